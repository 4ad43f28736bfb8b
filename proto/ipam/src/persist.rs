//! What comes back from the disk.

use std::collections::BTreeMap;

use crate::output::{Container, Persist};
use crate::owned::Record;
use crate::paxos::Election;
use crate::ring::Ring;

/// What was stored, to be given to [`Allocator::new`](crate::Allocator::new).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The ring; its holder is the peer that stored it.
    pub ring: Option<Ring>,
    /// The election that went on.
    pub election: Option<Election>,
    /// Who has which addresses.
    pub owned: BTreeMap<Container, Record>,
}

impl Loaded {
    /// Does to what is stored what an output asks for: the rule that every store follows.
    pub fn apply(&mut self, persist: &Persist) {
        match persist {
            Persist::Clear => *self = Loaded::default(),
            Persist::Ring(ring) => self.ring = Some(ring.clone()),
            Persist::Election(election) => self.election = election.clone(),
            Persist::Owned { container, record: Some(record) } => {
                self.owned.insert(container.clone(), record.clone());
            }
            Persist::Owned { container, record: None } => {
                self.owned.remove(container);
            }
        }
    }
}
