//! Inputs of the fuzz targets, and mutations of them.

use crate::{fuzz_entry, replay};

#[test]
fn queries() {
    replay::replay("dns_query", 4000, fuzz_entry::query);
}

#[test]
fn answers_of_servers() {
    replay::replay("dns_answer", 4000, fuzz_entry::answers);
}

#[test]
fn gossip() {
    replay::replay("dns_gossip", 4000, fuzz_entry::gossip);
}
