//! Replays the corpus of the fuzz target and mutations of it.

mod exercise;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn gob_stream() {
    replay::replay("gob_stream", 4000, exercise::decode_stream);
}
