//! Text from other peers, made fit for terminals, logs and reports.

/// Text of other peers without control characters, which could change a terminal or break a line.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error of the mesh, with its most probable cause where 2.8.1's text does not give it.
pub(crate) fn explain_error(text: &str) -> String {
    const UNREADABLE: &str = "Unable to decrypt TCP msg";
    printable(text).replace(UNREADABLE, &format!("{UNREADABLE} (do both sides have the same password?)"))
}
