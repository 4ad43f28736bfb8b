//! Any text as the name of a container.
#![no_main]

#[path = "../../linux/runtime/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::reference(data));
