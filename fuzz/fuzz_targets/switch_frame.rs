//! Any bytes as a frame: verdicts, views, fragments, ICMP answers.
#![no_main]

#[path = "../../proto/switch/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::frame(data));
