//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn switch_frame() {
    replay::replay("switch_frame", 2000, fuzz_entry::frame);
}

#[test]
fn switch_offload() {
    replay::replay("switch_offload", 2000, fuzz_entry::offload);
}
