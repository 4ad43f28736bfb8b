//! Recorded requests, and any others.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod corpus;
mod fuzz_entry;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod vectors;
