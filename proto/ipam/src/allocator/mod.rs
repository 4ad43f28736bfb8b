mod allocate;
mod claim;
mod containers;
mod donate;
mod election;
mod gossip;
mod load;
mod peers;
mod report;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use weave_types::{Instant, Now, PeerName};

use crate::address::AddrRange;
use crate::config::Config;
use crate::gossip_error::{Conflict, NamedPeer};
use crate::output::{Answer, Cancelled, Event, Output, Persist, RequestError, RequestId};
use crate::owned::{Container, Owned};
use crate::paxos::{Election, ElectorId, Paxos};
use crate::ring::Ring;
use crate::space::{RangeSet, Space};
use allocate::Allocation;
use claim::Claim;
use donate::SpaceRequests;

/// Interval at which elections, requests for space and claims are retried while something waits (docs/spec/ipam.md
/// 8.3).
const TICK: Duration = Duration::from_secs(5);
/// A container that starts again within this time keeps its addresses (docs/spec/ipam.md 8.7).
const GRACE: Duration = Duration::from_secs(30);
/// Time for the news that a container has started again to be handled, after this machine was asleep or busy.
const LATE_GRACE: Duration = Duration::from_secs(5);

/// Address allocation of one peer; see the crate documentation.
///
/// After every call the driver carries out all outputs of [`poll_output`](Allocator::poll_output) before it sends
/// anything else. That includes the bytes that [`state`](Allocator::state),
/// [`handle_gossip`](Allocator::handle_gossip) and [`handle_broadcast`](Allocator::handle_broadcast) return.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocator {
    config: Config,
    rng: ChaCha12Rng,
    ring: Ring,
    /// Entries of the ring whose number of free addresses has to be recomputed.
    stale_free_counts: StaleFreeCounts,
    space: Space,
    owned: Owned,

    /// This peer's identity in an election: with the current UID, or with that of a resumed election.
    elector: ElectorId,
    /// `None` with a ring, and in an observer.
    paxos: Option<Paxos>,
    /// Start of the running election.
    election_since: Option<Instant>,
    /// Number of configured peer addresses that are not this peer's own.
    targets: u32,
    warned_quorum: bool,

    /// The ring has changed since it was last stored.
    ring_unsaved: bool,
    saved_election: Option<Election>,

    nicknames: BTreeMap<PeerName, String>,
    reachable: BTreeMap<PeerName, String>,
    unreachable_since: BTreeMap<PeerName, Instant>,
    /// Reachable peers that have sent a ring: they allocate addresses themselves.
    allocating: BTreeSet<PeerName>,
    /// Whether another peer has been reachable since the start.
    met_peer: bool,
    conflicts: BTreeMap<PeerName, Dispute>,
    /// Own addresses that another peer claims. They are not handed out.
    disputed: RangeSet,

    /// When the addresses of containers that have ended are released.
    release_at: BTreeMap<Container, Instant>,
    primes: VecDeque<(RequestId, Instant)>,
    claims: VecDeque<Claim>,
    allocations: VecDeque<Allocation>,
    space_requests: SpaceRequests,
    next_tick: Option<Instant>,
    leaving: bool,
    /// What was given away after `leaving` was set, and how often to each peer.
    transferred: RangeSet,
    transfer_targets: BTreeMap<PeerName, u32>,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StaleFreeCounts {
    Nothing,
    At(u32),
    All,
}

/// A conflict with one peer.
#[derive(Clone, Debug, PartialEq)]
struct Dispute {
    conflict: Conflict,
    /// The other owner of the disputed ranges: the peer itself, or a third one.
    claimant: PeerName,
    since: Instant,
    ranges: Vec<AddrRange>,
}

impl Allocator {
    fn me(&self) -> PeerName {
        self.config.name
    }

    fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }

    fn done(&mut self, request: RequestId, result: Result<Answer, RequestError>) {
        self.output(Output::Done(request, result));
    }

    fn named(&self, name: PeerName) -> NamedPeer {
        NamedPeer { name, nickname: self.nickname(name) }
    }

    fn nickname(&self, name: PeerName) -> String {
        self.nicknames.get(&name).cloned().unwrap_or_default()
    }

    /// Whether a peer is connected, directly or not. This peer always is.
    fn is_reachable(&self, name: PeerName) -> bool {
        name == self.me() || self.reachable.contains_key(&name)
    }

    fn save_ring(&mut self) {
        if std::mem::take(&mut self.ring_unsaved) {
            let ring = self.ring.clone();
            self.output(Output::Persist(Persist::Ring(ring)));
        }
    }

    fn save_election(&mut self) {
        // An observer keeps a stored promise from an earlier start as elector.
        let Some(paxos) = &self.paxos else { return };
        let election = paxos.election(self.config.range.range());
        if election != self.saved_election {
            self.saved_election.clone_from(&election);
            self.output(Output::Persist(Persist::Election(election)));
        }
    }

    fn save_owned(&mut self, container: &str) {
        let record = self.owned.record(container).cloned();
        self.output(Output::Persist(Persist::Owned { container: container.to_owned(), record }));
    }

    /// The end of every input: updates the free counts of the ring (docs/spec/ipam.md 6.3) and the timer.
    fn finish(&mut self, now: Now) {
        let free = self.space.free();
        self.ring_unsaved |= match self.stale_free_counts {
            StaleFreeCounts::Nothing => false,
            StaleFreeCounts::At(addr) => self.ring.report_free_at(addr, |range| free.count_in(range)),
            StaleFreeCounts::All => self.ring.report_free(|range| free.count_in(range)),
        };
        self.stale_free_counts = StaleFreeCounts::Nothing;
        if !self.has_pending() {
            self.next_tick = None;
        } else if self.next_tick.is_none() {
            self.next_tick = Some(now.mono + TICK);
        }
    }

    fn mark_free_count_stale(&mut self, addr: u32) {
        self.stale_free_counts = match self.stale_free_counts {
            StaleFreeCounts::Nothing => StaleFreeCounts::At(addr),
            StaleFreeCounts::At(other) if other == addr => StaleFreeCounts::At(addr),
            _ => StaleFreeCounts::All,
        };
    }

    fn has_pending(&self) -> bool {
        self.election_since.is_some()
            || !self.primes.is_empty()
            || !self.claims.is_empty()
            || !self.allocations.is_empty()
    }

    /// The next output; called until it returns `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Allocator::handle_timeout), and the reason. `None` if nothing waits.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let tick = self.next_tick.map(|at| (at, "address requests"));
        let release = self.release_at.values().min().map(|&at| (at, "addresses of dead containers"));
        [tick, release].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Handles the passing of time. A late or an extra call is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.next_tick.is_some_and(|at| now.mono >= at) {
            self.next_tick = None;
            self.space_requests.new_tick();
            if self.election_since.is_some() {
                self.propose(now);
            } else if self.ring.is_empty() {
                self.start_election(now);
            } else {
                self.count_attempts();
                self.retry();
            }
            self.drop_stale_requests();
            self.announce_waiting(now);
        }
        self.release_dead(now);
        self.finish(now);
    }

    /// Retries everything that waits: prime requests, then claims, then allocations, each in order of arrival.
    fn retry(&mut self) {
        if self.ring.is_empty() {
            return;
        }
        for (request, _) in std::mem::take(&mut self.primes) {
            self.done(request, Ok(Answer::Primed));
        }
        self.retry_claims();
        self.retry_allocations();
    }

    /// Waits for a ring; starts an election if none is running. The answer is an [`Output::Done`] with
    /// [`Answer::Primed`].
    pub fn prime(&mut self, request: RequestId, now: Now) {
        if !self.ring.is_empty() {
            self.done(request, Ok(Answer::Primed));
        } else if self.leaving {
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        } else {
            self.primes.push_back((request, now.mono));
            self.start_election(now);
        }
        self.finish(now);
    }

    /// Cancels a request: the answer is [`Cancelled`](crate::RequestError::Cancelled), and nothing stays allocated.
    /// If the request was answered before, this does nothing, and the driver releases the address with
    /// [`free`](Allocator::free).
    pub fn cancel(&mut self, request: RequestId, now: Now) {
        if let Some(at) = self.primes.iter().position(|(id, _)| *id == request) {
            self.primes.remove(at);
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        }
        self.cancel_claims(|claim| claim.request == Some(request));
        self.cancel_allocations(|allocation| allocation.request == request);
        self.finish(now);
    }

    /// The ring as this peer knows it.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Replaces the random number generator. For tests.
    #[doc(hidden)]
    pub fn reseed(&mut self, rng: ChaCha12Rng) {
        self.rng = rng;
    }

    /// This peer's own addresses. For tests.
    #[doc(hidden)]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// The state of the election; `None` with a ring, and in an observer. For tests.
    #[doc(hidden)]
    pub fn paxos(&self) -> Option<&Paxos> {
        self.paxos.as_ref()
    }

    /// Checks what must hold between any two inputs (docs/spec/ipam.md 16.2, S3 and S7). For tests.
    ///
    /// # Errors
    /// The first violation.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        self.ring.check().map_err(|error| error.to_string())?;
        let mine: RangeSet = self.ring.ranges_owned_by(self.me()).into_iter().collect();
        let mut all = self.space.free().clone();
        for used in self.space.used().iter() {
            if all.count_in(used) > 0 {
                return Err(format!("{used} is used and free"));
            }
            all.insert(used);
        }
        if all != mine && !self.leaving {
            return Err(format!("space {all:?} is not what is ours in the ring {mine:?}"));
        }
        let held: RangeSet = self
            .owned
            .addresses()
            .filter(|(addr, _)| self.config.range.range().contains(*addr))
            .map(|(addr, _)| AddrRange::single(addr))
            .collect();
        if held != *self.space.used() && !self.leaving {
            return Err(format!("used {:?}, held {held:?}", self.space.used()));
        }
        Ok(())
    }
}
