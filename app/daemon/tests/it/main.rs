//! Tests of the HTTP and the DNS server, and of the live picture in a browser, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod browser;
mod corpus;
mod dns;
mod fuzz_entry;
mod http;
mod picture;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
