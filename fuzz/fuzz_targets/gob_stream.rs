//! Decodes arbitrary bytes as a gob stream.
#![no_main]

#[path = "../../proto/gob/tests/it/fuzz_entry.rs"]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::decode_stream(data));
