//! Replays the corpus of the fuzz target and mutations of it.

mod exercise;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn addresses() {
    replay::replay("addresses", 4000, exercise::addresses);
}
