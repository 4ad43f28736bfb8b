//! Any bytes as gossip about names.
#![no_main]

#[path = "../../proto/dns/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::gossip(data));
