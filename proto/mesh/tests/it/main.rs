//! Tests of the public interface, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod corpus;
mod fuzz_entry;
mod gossip_codec;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod session;
mod support;
