//! What the kernel passes to user space of VXLAN packets: control frames, relayed frames, probes; and control messages.
#![no_main]

#[path = "../../proto/overlay/tests/it/fuzz_fastdp.rs"]
mod fuzz_fastdp;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_fastdp::run(data));
