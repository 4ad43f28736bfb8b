//! A disk with two classes of durability: synced data, and records that the kernel has not written yet.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_ipam::{Container, Durability, Loaded, Persist, Record};
use weave_types::Instant;

/// The kernel writes a record back within this time.
const WRITE_BACK_DELAY: Duration = Duration::from_secs(1);

/// What the allocator of one host has stored.
#[derive(Debug, Default)]
pub(super) struct AllocationDisk {
    /// The content as a process reads it.
    stored: Loaded,
    /// Records that survive a power loss.
    durable: BTreeMap<Container, Record>,
    /// Writes of records that may not survive it, with their time.
    unsynced: VecDeque<(Instant, Persist)>,
}

impl AllocationDisk {
    pub(super) fn stored(&self) -> &Loaded {
        &self.stored
    }

    pub(super) fn write(&mut self, persist: &Persist, now: Instant) {
        self.write_back_due(now);
        self.stored.apply(persist);
        match (persist.durability(), persist) {
            (Durability::Record, _) => self.unsynced.push_back((now, persist.clone())),
            (Durability::Synced, Persist::Clear) => {
                self.durable.clear();
                self.unsynced.clear();
            }
            (Durability::Synced, _) => {}
        }
    }

    fn write_back_due(&mut self, now: Instant) {
        while self.unsynced.front().is_some_and(|(at, _)| now - *at >= WRITE_BACK_DELAY) {
            self.write_back_one();
        }
    }

    fn write_back_one(&mut self) {
        if let Some((_, persist)) = self.unsynced.pop_front() {
            let mut loaded = Loaded { owned: std::mem::take(&mut self.durable), ..Loaded::default() };
            loaded.apply(&persist);
            self.durable = loaded.owned;
        }
    }

    /// Loses unsynced records, except for a random number of the oldest ones.
    pub(super) fn lose_power(&mut self, now: Instant, rng: &mut ChaCha12Rng) {
        self.write_back_due(now);
        for _ in 0..rng.random_range(0..=self.unsynced.len()) {
            self.write_back_one();
        }
        self.unsynced.clear();
        self.stored.owned = self.durable.clone();
    }

    pub(super) fn wipe(&mut self) {
        *self = AllocationDisk::default();
    }
}
