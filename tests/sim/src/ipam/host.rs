//! A host of the address world: its peer, its disk, and the containers that use addresses on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weave_ipam::{Allocator, Container, Ring};
use weave_types::{Instant, PeerName};

use super::disk::Disk;
use crate::clock::Clock;
use crate::host::Death;

/// A container, or something else that uses addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Living {
    /// Docker's: its death releases its addresses. Otherwise somebody releases them explicitly.
    pub(super) is_container: bool,
    /// It runs.
    pub(super) running: bool,
    /// When it ended.
    pub(super) died: Option<Instant>,
    /// It was destroyed, or the peer was told that it does not run: its addresses may be released at once.
    pub(super) gone: bool,
    /// What it was given, in the range.
    pub(super) addrs: BTreeSet<u32>,
}

/// One host.
pub(super) struct Host {
    /// Its peer's name.
    pub(super) name: PeerName,
    /// How many names it has had.
    pub(super) generation: u16,
    /// It behaves like 2.8.1.
    pub(super) legacy: bool,
    /// The peer, while it runs.
    pub(super) allocator: Option<Allocator>,
    /// Among nodes, while it is noted what came of one input: the ring before that input.
    pub(super) before: Option<Ring>,
    /// What it has stored.
    pub(super) disk: Disk,
    /// Raised with each end of a process: what was scheduled for an earlier one is void.
    pub(super) incarnation: u32,
    /// Its clocks.
    pub(super) time: Clock,
    /// When the peer was started.
    pub(super) started: Instant,
    /// The peer dies after so many more outputs.
    pub(super) fuse: Option<(u16, Death)>,
    /// Which of the plan's ranges it was given.
    pub(super) range: usize,
    /// What uses addresses here.
    pub(super) containers: BTreeMap<Container, Living>,
    /// On the disk for containers that were never told, or are dead.
    pub(super) orphans: BTreeSet<(Container, u32)>,
    /// Claims that were answered before it was known whether they succeed.
    pub(super) unsettled: BTreeSet<(Container, u32)>,
    /// Gone for good.
    pub(super) destroyed: bool,
    /// `weave reset` was called.
    pub(super) leaving: bool,
    /// When, since all works again, it last did like 2.8.1 and ended itself or a connection because of addresses.
    pub(super) protested: Option<Instant>,
    /// When the peer is woken next.
    pub(super) wake: Option<Instant>,
    /// Requests for space that it sent lately.
    pub(super) asked: VecDeque<Instant>,
    /// Versions that it has stored or told.
    pub(super) versions: BTreeMap<u32, u32>,
    /// Names that it was told are gone.
    pub(super) told_gone: BTreeSet<PeerName>,
    /// Number of outputs so far.
    pub(super) outputs: u64,
}

impl Host {
    /// A host that was never started.
    pub(super) fn new(name: PeerName, legacy: bool) -> Host {
        Host {
            name,
            generation: 0,
            legacy,
            allocator: None,
            before: None,
            disk: Disk::default(),
            incarnation: 0,
            time: Clock::default(),
            started: Instant::ORIGIN,
            fuse: None,
            range: 0,
            containers: BTreeMap::new(),
            orphans: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            destroyed: false,
            leaving: false,
            protested: None,
            wake: None,
            asked: VecDeque::new(),
            versions: BTreeMap::new(),
            told_gone: BTreeSet::new(),
            outputs: 0,
        }
    }

    /// The ring by which it will act: of the running peer, or that on the disk.
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

    /// Whether its peer runs and has a ring.
    pub(super) fn is_ready(&self) -> bool {
        self.allocator.as_ref().is_some_and(|allocator| !allocator.ring().is_empty())
    }

    /// Starts to count versions anew, from what is on the disk.
    pub(super) fn forget_versions(&mut self) {
        let ring = self.disk.stored().ring.as_ref();
        self.versions = ring.iter().flat_map(|r| r.entries()).map(|e| (e.token, e.version)).collect();
    }
}
