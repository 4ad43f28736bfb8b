//! Any bytes as the daemon's answer to a command.
#![no_main]

#[path = "../../app/api/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::answer(data));
