//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, fuzz_fastdp, replay};

#[test]
fn sleeve_datagram() {
    replay::replay("sleeve_datagram", 2000, fuzz_entry::datagram);
}

#[test]
fn warp() {
    replay::replay("warp", 2000, fuzz_entry::warp);
}

#[test]
fn overlay_control() {
    replay::replay("overlay_control", 2000, fuzz_entry::control);
}

#[test]
fn fastdp() {
    replay::replay("fastdp", 2000, fuzz_fastdp::run);
}
