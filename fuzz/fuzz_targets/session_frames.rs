//! Handles arbitrary bytes from a peer after the handshake.
#![no_main]

#[path = "../../proto/mesh/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::session_frames(data));
