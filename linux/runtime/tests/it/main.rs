//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod corpus;
mod engine;
mod fuzz_entry;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod resolve;
