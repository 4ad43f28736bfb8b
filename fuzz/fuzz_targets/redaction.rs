//! A text of a support bundle.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_cli::fuzz_redaction(data));
