//! Any configuration from a container runtime, for the CNI plugins.
#![no_main]

#[path = "../../app/cni/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::request(data));
