//! Replays the corpora of the fuzz targets and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn handshake() {
    replay::replay("handshake", 3000, fuzz_entry::handshake);
}

#[test]
fn session_frames() {
    replay::replay("session_frames", 3000, fuzz_entry::session_frames);
}

#[test]
fn topology_update() {
    replay::replay("topology_update", 3000, fuzz_entry::topology_update);
}

#[test]
fn envelope() {
    replay::replay("envelope", 3000, fuzz_entry::envelope);
}

#[test]
fn feature_map() {
    replay::replay("feature_map", 3000, fuzz_entry::feature_map);
}
