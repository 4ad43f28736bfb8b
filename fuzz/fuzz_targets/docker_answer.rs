//! Any bytes as Docker's answer.
#![no_main]

#[path = "../../linux/runtime/tests/exercise/mod.rs"]
#[allow(dead_code, reason = "the other targets use the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::docker_answer(data));
