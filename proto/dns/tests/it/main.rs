//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod answer;
mod corpus;
mod forwarder;
mod fuzz_entry;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod support;
