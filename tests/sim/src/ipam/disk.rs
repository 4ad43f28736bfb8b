//! A disk with the two classes of persistence: what is synced, and what the kernel has not written yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_ipam::{Container, Durability, Loaded, Persist, Record};
use weave_types::Instant;

/// After this time at the latest a record is on the platter.
const WRITTEN_BACK: Duration = Duration::from_secs(1);

/// What one host has stored.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// What a process reads.
    stored: Loaded,
    /// Records that survive a power loss.
    platter: BTreeMap<Container, Record>,
    /// Those that may not.
    unsynced: VecDeque<(Instant, Persist)>,
}

impl Disk {
    /// What a process reads.
    pub(super) fn stored(&self) -> &Loaded {
        &self.stored
    }

    /// Does what an output asks for.
    pub(super) fn write(&mut self, persist: &Persist, now: Instant) {
        self.write_back(now);
        self.stored.apply(persist);
        match (persist.durability(), persist) {
            (Durability::Record, _) => self.unsynced.push_back((now, persist.clone())),
            (Durability::Synced, Persist::Clear) => {
                self.platter.clear();
                self.unsynced.clear();
            }
            (Durability::Synced, _) => {}
        }
    }

    fn write_back(&mut self, now: Instant) {
        while self.unsynced.front().is_some_and(|(at, _)| now - *at >= WRITTEN_BACK) {
            self.write_one();
        }
    }

    fn write_one(&mut self) {
        if let Some((_, persist)) = self.unsynced.pop_front() {
            let mut loaded = Loaded { owned: std::mem::take(&mut self.platter), ..Loaded::default() };
            loaded.apply(&persist);
            self.platter = loaded.owned;
        }
    }

    /// The last second of records is lost, or part of it.
    pub(super) fn lose_power(&mut self, now: Instant, rng: &mut ChaCha12Rng) {
        self.write_back(now);
        for _ in 0..rng.random_range(0..=self.unsynced.len()) {
            self.write_one();
        }
        self.unsynced.clear();
        self.stored.owned = self.platter.clone();
    }

    /// Nothing is left.
    pub(super) fn wipe(&mut self) {
        *self = Disk::default();
    }
}
