//! Replays the corpora of the fuzz targets and mutations of them.

mod exercise;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn handshake() {
    replay::replay("handshake", 3000, exercise::handshake);
}

#[test]
fn session_frames() {
    replay::replay("session_frames", 3000, exercise::session_frames);
}

#[test]
fn topology_update() {
    replay::replay("topology_update", 3000, exercise::topology_update);
}

#[test]
fn envelope() {
    replay::replay("envelope", 3000, exercise::envelope);
}

#[test]
fn feature_map() {
    replay::replay("feature_map", 3000, exercise::feature_map);
}
