//! Handles arbitrary bytes as a message of a trace, and as a frame.
#![no_main]

#[path = "../../proto/trace/tests/it/fuzz_entry.rs"]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::message(data));
