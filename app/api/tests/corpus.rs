//! Replays the corpora of the fuzz targets, and mutations of them.

mod fuzz_entry;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn template() {
    replay::replay("template", 3000, fuzz_entry::template);
}

#[test]
fn daemon_answer() {
    replay::replay("daemon_answer", 3000, fuzz_entry::answer);
}
