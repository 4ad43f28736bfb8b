//! Tests of the HTTP and the DNS server, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod corpus;
mod dns;
mod fuzz_entry;
mod http;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
