//! Any text as a Go template over a report.
#![no_main]

#[path = "../../app/api/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::template(data));
