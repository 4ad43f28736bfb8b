//! Any text as a peer to connect to, or as an address to listen on.
#![no_main]

#[path = "../../app/daemon/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::typed(data));
