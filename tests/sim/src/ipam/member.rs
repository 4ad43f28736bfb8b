//! A member of the cluster: its allocator, its disk, and the containers that use addresses on its host.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::rc::Rc;

use weave_ipam::{Allocator, Container, Record, Ring};
use weave_types::{Instant, PeerName};

use super::disk::AllocationDisk;

/// A container, or another user of addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct ContainerState {
    /// A Docker container, whose end releases its addresses. Other users release them explicitly.
    pub(super) is_container: bool,
    pub(super) running: bool,
    pub(super) died: Option<Instant>,
    /// The peer knows that the container does not run: its addresses may be released at once.
    pub(super) known_stopped: bool,
    /// Its addresses in the range.
    pub(super) addrs: BTreeSet<u32>,
}

#[derive(Default)]
pub(super) struct Member {
    pub(super) name: PeerName,
    /// Number of installations under a new name.
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
    pub(super) legacy_conflict_at: Option<Instant>,
    pub(super) recent_space_requests: VecDeque<Instant>,
    /// The version of each token that was last stored or sent.
    pub(super) versions: BTreeMap<u32, u32>,
    /// Removed peers that were reported to the allocator.
    pub(super) removals_reported: BTreeSet<PeerName>,
    /// Number of outputs, events not counted.
    pub(super) outputs: u64,
}

impl Member {
    pub(super) fn new(name: PeerName, legacy: bool) -> Member {
        Member { name, legacy, ..Member::default() }
    }

    /// Whether a container uses an address.
    pub(super) fn uses(&self, container: &str, addr: u32) -> bool {
        self.containers.get(container).is_some_and(|state| state.addrs.contains(&addr))
    }

    /// Collects the addresses on the disk that no container uses.
    pub(super) fn find_orphans(&mut self) {
        let stored = self.disk.stored().owned.iter();
        let stored =
            stored.flat_map(|(container, record)| addrs_of(record).map(|addr| (container.clone(), addr)));
        self.orphans = stored.filter(|(container, addr)| !self.uses(container, *addr)).collect();
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

    /// Replaces the versions by those on the disk.
    pub(super) fn reset_versions(&mut self) {
        let ring = self.disk.stored().ring.as_ref();
        self.versions = ring.iter().flat_map(|r| r.entries()).map(|e| (e.token, e.version)).collect();
    }
}

/// The addresses that a peer owns in a ring.
pub(super) fn owned(ring: &Ring, name: PeerName) -> BTreeSet<u32> {
    ring.ranges_owned_by(name).iter().flat_map(|range| range.start()..range.end()).collect()
}

pub(super) fn addr_to_u32(addr: IpAddr) -> u32 {
    match addr {
        IpAddr::V4(addr) => addr.into(),
        IpAddr::V6(_) => 0,
    }
}

/// The addresses of a record.
pub(super) fn addrs_of(record: &Record) -> impl Iterator<Item = u32> {
    record.cidrs.iter().map(|cidr| addr_to_u32(cidr.addr()))
}

pub(super) fn is_recorded(records: &BTreeMap<Container, Record>, container: &str, addr: u32) -> bool {
    records.get(container).is_some_and(|record| addrs_of(record).any(|recorded| recorded == addr))
}

pub(super) fn show_addr(addr: u32) -> String {
    std::net::Ipv4Addr::from(addr).to_string()
}
