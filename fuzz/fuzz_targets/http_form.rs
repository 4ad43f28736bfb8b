//! Any bytes as the form of a request to the daemon.
#![no_main]

#[path = "../../app/daemon/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::http_form(data));
