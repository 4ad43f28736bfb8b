//! The one binary, `weave`.
#![forbid(unsafe_code)]
fn main() {}
