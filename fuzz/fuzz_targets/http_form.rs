//! Any bytes as the form of a request to the daemon.
#![no_main]

#[path = "../../app/daemon/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::http_form(data));
