//! Handles arbitrary bytes from a peer after the handshake.
#![no_main]

#[path = "../../proto/mesh/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::session_frames(data));
