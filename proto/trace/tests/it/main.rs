//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod flow;
mod fuzz_entry;
mod message;
mod network;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod trace;
mod verdict;
