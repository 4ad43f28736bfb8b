//! Tests of the HTTP server, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod corpus;
mod fuzz_entry;
mod http;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
