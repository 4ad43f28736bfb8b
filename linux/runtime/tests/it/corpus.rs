//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn docker_answer() {
    replay::replay("docker_answer", 3000, fuzz_entry::docker_answer);
}

#[test]
fn reference() {
    replay::replay("reference", 3000, fuzz_entry::reference);
}
