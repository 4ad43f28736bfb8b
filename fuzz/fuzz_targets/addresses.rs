//! Parses arbitrary text as a peer name, a MAC address and a CIDR.
#![no_main]

#[path = "../../proto/types/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::addresses(data));
