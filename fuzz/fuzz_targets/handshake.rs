//! Handles arbitrary bytes from a remote that connects.
#![no_main]

#[path = "../../proto/mesh/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::handshake(data));
