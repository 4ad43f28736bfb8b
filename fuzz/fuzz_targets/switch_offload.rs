//! Any bytes as a virtio header and a frame: segmentation, checksums, coalescing and back.
#![no_main]

#[path = "../../proto/switch/tests/it/exercise.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod exercise;

libfuzzer_sys::fuzz_target!(|data: &[u8]| exercise::offload(data));
