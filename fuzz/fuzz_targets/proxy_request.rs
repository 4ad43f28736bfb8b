//! Any bytes from a client of the Docker API proxy.
#![no_main]

#[path = "../../app/daemon/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::proxy_request(data));
