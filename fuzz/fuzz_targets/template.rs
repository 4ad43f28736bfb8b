//! Any text as a Go template over a report.
#![no_main]

#[path = "../../app/api/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::template(data));
