//! Replays the corpus of the fuzz target and mutations of it.

use crate::{fuzz_entry, replay};

#[test]
fn plugin_request() {
    replay::replay("plugin_request", 3000, fuzz_entry::plugin_request);
}
