//! Replays the corpora of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn ipam_state() {
    replay::replay("ipam_state", 3000, fuzz_entry::ipam_state);
}

#[test]
fn ipam_unicast() {
    replay::replay("ipam_unicast", 3000, fuzz_entry::ipam_unicast);
}

#[test]
fn ipam_database() {
    replay::replay("ipam_database", 2000, fuzz_entry::ipam_database);
}
