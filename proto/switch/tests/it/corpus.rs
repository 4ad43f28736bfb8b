//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{exercise, replay};

#[test]
fn switch_frame() {
    replay::replay("switch_frame", 2000, exercise::frame);
}

#[test]
fn switch_offload() {
    replay::replay("switch_offload", 2000, exercise::offload);
}
