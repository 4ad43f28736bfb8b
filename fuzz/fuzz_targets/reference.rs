//! Any text as the name of a container.
#![no_main]

#[path = "../../linux/runtime/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::reference(data));
