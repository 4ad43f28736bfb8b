//! Any bytes as a state message of IPAM.
#![no_main]

#[path = "../../proto/ipam/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::ipam_state(data));
