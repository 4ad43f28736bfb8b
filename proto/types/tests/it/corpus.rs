//! Replays the corpus of the fuzz target and mutations of it.

use crate::{fuzz_entry, replay};

#[test]
fn addresses() {
    replay::replay("addresses", 4000, fuzz_entry::addresses);
}
