//! Stored state, as it is read at the start.

use std::collections::BTreeMap;

use crate::output::Persist;
use crate::owned::{Container, Record};
use crate::paxos::Election;
use crate::ring::Ring;

/// Stored state, given to [`Allocator::new`](crate::Allocator::new).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The ring as stored by its holder.
    pub ring: Option<Ring>,
    /// An election that had not ended.
    pub election: Option<Election>,
    /// The addresses of all containers.
    pub owned: BTreeMap<Container, Record>,
}

impl Loaded {
    /// Applies an output to the stored state, as every store must.
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
