//! Parses arbitrary text as a peer name, a MAC address and a CIDR.
#![no_main]

#[path = "../../proto/types/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::addresses(data));
