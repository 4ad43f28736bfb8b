//! Any bytes as a sleeve datagram: open, switch, pass on.
#![no_main]

#[path = "../../proto/overlay/tests/it/exercise.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::datagram(data));
