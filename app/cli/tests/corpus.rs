//! Replays the corpus of the fuzz target, and mutations of it.

#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn command_line() {
    replay::replay("command_line", 4000, weave_cli::fuzz_entry);
}
