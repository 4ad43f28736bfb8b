//! Any requests of Docker to the network plugin.
#![no_main]

#[path = "../../app/plugin/tests/it/fuzz_entry.rs"]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::plugin_request(data));
