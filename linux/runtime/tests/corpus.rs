//! Replays the corpora of the fuzz targets, and mutations of them.

mod exercise;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn docker_answer() {
    replay::replay("docker_answer", 3000, exercise::docker_answer);
}

#[test]
fn reference() {
    replay::replay("reference", 3000, exercise::reference);
}
