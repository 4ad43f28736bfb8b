//! Any bytes as a virtio header and a frame: segmentation, checksums, coalescing and back.
#![no_main]

#[path = "../../proto/switch/tests/it/fuzz_entry.rs"]
#[allow(dead_code, reason = "the other target uses the rest")]
mod fuzz_entry;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_entry::offload(data));
