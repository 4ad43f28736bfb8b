//! A member of the cluster: its allocator, its disk, and the containers that use addresses on its host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use weave_ipam::{Allocator, Container, Ring};
use weave_types::{Instant, PeerName};

use super::disk::AllocationDisk;

/// A container, or another user of addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerState {
    /// A Docker container, whose end releases its addresses. Others release them explicitly.
    pub(super) is_container: bool,
    pub(super) running: bool,
    pub(super) died: Option<Instant>,
    /// The peer knows that the container does not run: its addresses may be released at once.
    pub(super) gone: bool,
    /// Its addresses in the range.
    pub(super) addrs: BTreeSet<u32>,
}

pub(super) struct Member {
    pub(super) name: PeerName,
    /// Counts installations under a new name.
    pub(super) installation: u16,
    /// The peer behaves like 2.8.1.
    pub(super) legacy: bool,
    /// The allocator after the last applied output; `None` while the peer is down.
    pub(super) allocator: Option<Rc<Allocator>>,
    /// In a node, while the outputs of one input are applied: the ring before that input.
    pub(super) ring_before: Option<Ring>,
    pub(super) disk: AllocationDisk,
    /// Time of the last start.
    pub(super) started: Instant,
    /// Index of its range in the plan.
    pub(super) range: usize,
    pub(super) containers: BTreeMap<Container, ContainerState>,
    /// Addresses on the disk of containers that never received them, or do not exist any more.
    pub(super) orphans: BTreeSet<(Container, u32)>,
    /// Claims that were answered before their outcome was known.
    pub(super) pending_claims: BTreeSet<(Container, u32)>,
    pub(super) destroyed: bool,
    /// `weave reset` was called.
    pub(super) leaving: bool,
    /// The last time since the network was healed at which a peer like 2.8.1 ended itself or a connection because of a conflict.
    pub(super) objected_at: Option<Instant>,
    pub(super) recent_space_requests: VecDeque<Instant>,
    /// The version of each token that was stored or sent last.
    pub(super) versions: BTreeMap<u32, u32>,
    /// Removed peers that were reported to the allocator.
    pub(super) removals_reported: BTreeSet<PeerName>,
    /// Number of outputs, events not counted.
    pub(super) outputs: u64,
}

impl Member {
    pub(super) fn new(name: PeerName, legacy: bool) -> Member {
        Member {
            name,
            installation: 0,
            legacy,
            allocator: None,
            ring_before: None,
            disk: AllocationDisk::default(),
            started: Instant::ORIGIN,
            range: 0,
            containers: BTreeMap::new(),
            orphans: BTreeSet::new(),
            pending_claims: BTreeSet::new(),
            destroyed: false,
            leaving: false,
            objected_at: None,
            recent_space_requests: VecDeque::new(),
            versions: BTreeMap::new(),
            removals_reported: BTreeSet::new(),
            outputs: 0,
        }
    }

    /// The ring of the running peer, or the one on the disk.
    pub(super) fn view(&self) -> Option<&Ring> {
        if self.destroyed {
            return None;
        }
        match &self.allocator {
            Some(allocator) => Some(allocator.ring()),
            None => self.disk.stored().ring.as_ref(),
        }
        .filter(|ring| !ring.is_empty())
    }

    /// Whether the peer runs and has a ring.
    pub(super) fn is_ready(&self) -> bool {
        self.allocator.as_ref().is_some_and(|allocator| !allocator.ring().is_empty())
    }

    /// Resets the versions to those on the disk.
    pub(super) fn forget_versions(&mut self) {
        let ring = self.disk.stored().ring.as_ref();
        self.versions = ring.iter().flat_map(|r| r.entries()).map(|e| (e.token, e.version)).collect();
    }
}

/// The addresses that a peer owns in a ring.
pub(super) fn owned(ring: &Ring, name: PeerName) -> BTreeSet<u32> {
    ring.ranges_owned_by(name).iter().flat_map(|range| range.start()..range.end()).collect()
}
