//! Replays the corpora of the fuzz targets, and mutations of them.

mod fuzz_entry;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn docker_answer() {
    replay::replay("docker_answer", 3000, fuzz_entry::docker_answer);
}

#[test]
fn reference() {
    replay::replay("reference", 3000, fuzz_entry::reference);
}
