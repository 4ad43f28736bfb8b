//! The link between tests and the rows of the claims table.

/// Says that the claims with these ids were shown by the test that just reached its end. `make claims` collects the lines.
pub fn claims(ids: &[&str]) {
    for id in ids {
        println!("claim {id} shown");
    }
}

/// Declares at the head of a test file which claims its tests show, in a form that a tool finds by searching for the
/// macro's name; the lines that count are printed by [`claims()`] when a test passes.
#[macro_export]
macro_rules! claims {
    ($($id:literal),+ $(,)?) => {
        #[expect(dead_code, reason = "read by the claims tool, which searches the source")]
        const CLAIMS: &[&str] = &[$($id),+];
    };
}
