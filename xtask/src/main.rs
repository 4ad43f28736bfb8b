//! Checks that cargo does not do.
#![forbid(unsafe_code)]
fn main() {}
