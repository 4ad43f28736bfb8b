//! Any arguments of the command.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weave_cli::fuzz_entry(data));
