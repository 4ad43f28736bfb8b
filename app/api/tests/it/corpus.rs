//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn template() {
    replay::replay("template", 3000, fuzz_entry::template);
}

#[test]
fn daemon_answer() {
    replay::replay("daemon_answer", 3000, fuzz_entry::answer);
}
