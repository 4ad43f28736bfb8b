//! Decodes arbitrary bytes as a gob stream.
#![no_main]

#[path = "../../proto/gob/tests/exercise/mod.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::decode_stream(data));
