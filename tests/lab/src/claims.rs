//! Connects tests with the rows of docs/claims.md.

/// Prints that the test has shown these rows; everything before the call held. `make claims` collects the lines.
pub fn claims(ids: &[&str]) {
    for id in ids {
        println!("claim {id} shown");
    }
}

/// Declares at the head of a test file which rows its tests show. `make claims` searches the source for the name of the macro; a
/// row counts as shown when [`claims()`] prints it.
#[macro_export]
macro_rules! claims {
    ($($id:literal),+ $(,)?) => {
        #[expect(dead_code, reason = "read by `make claims` in the source")]
        const CLAIMS: &[&str] = &[$($id),+];
    };
}
