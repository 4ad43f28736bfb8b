//! Tests of the public API, in one binary.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod corpus;
mod fastdp;
mod forward;
mod frame_watch;
mod fuzz_entry;
mod fuzz_fastdp;
mod live;
mod properties;
mod relayed;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod support;
mod udp_control;
mod vectors;
mod warp;
mod warp_forward;
