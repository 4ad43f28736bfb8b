//! Any bytes as a database of 2.8.1.
#![no_main]

#[path = "../../proto/ipam/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::ipam_database(data));
