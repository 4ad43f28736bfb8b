//! Replays the corpora of the fuzz targets, and mutations of it.

#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn command_line() {
    replay::replay("command_line", 4000, weave_cli::fuzz_entry);
}

#[test]
fn redaction() {
    replay::replay("redaction", 4000, weave_cli::fuzz_redaction);
}
