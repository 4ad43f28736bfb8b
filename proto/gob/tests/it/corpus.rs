//! Replays the corpus of the fuzz target and mutations of it.

use crate::{fuzz_entry, replay};

#[test]
fn gob_stream() {
    replay::replay("gob_stream", 4000, fuzz_entry::decode_stream);
}
