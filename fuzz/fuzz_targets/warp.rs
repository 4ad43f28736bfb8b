//! Control messages and datagrams for an end of warp: exchange keys, open, change epochs.
#![no_main]

#[path = "../../proto/overlay/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::warp(data));
