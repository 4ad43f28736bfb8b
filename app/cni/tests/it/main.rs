//! Tests of the crate from outside.
#![expect(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

mod fuzz_entry;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod vectors;

#[test]
fn corpora() {
    replay::replay("cni_request", 3000, fuzz_entry::request);
    replay::replay("netavark_request", 3000, fuzz_entry::netavark_request);
}
