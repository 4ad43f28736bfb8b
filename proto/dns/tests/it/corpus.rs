//! Inputs of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn queries() {
    replay::replay("dns_query", 4000, fuzz_entry::query);
}
