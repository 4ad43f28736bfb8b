mod allocate;
mod claim;
mod containers;
mod donate;
mod election;
mod gossip;
mod load;
mod peers;
mod report;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use weave_types::{Instant, Now, PeerName, PeerUid};

use crate::address::AddrRange;
use crate::config::{Config, Init};
use crate::gossip_error::{Conflict, NamedPeer};
use crate::output::{
    Answer, Cancelled, Container, Event, Output, Persist, QuorumSource, RequestError, RequestId,
};
use crate::owned::{Owned, Record};
use crate::paxos::{Election, ElectorId, Paxos};
use crate::ring::Ring;
use crate::space::{RangeSet, Space};
use allocate::Allocation;
use claim::Claim;
use donate::Asks;

/// Proposals, requests for space and claims are repeated at this interval while something waits.
const TICK: Duration = Duration::from_secs(5);
/// A container that starts again within this time keeps its addresses.
const GRACE: Duration = Duration::from_secs(30);

/// One peer's address allocation. See the crate's page.
///
/// After every call the driver drains [`poll_output`](Allocator::poll_output), and before anything else leaves the
/// process: that includes the bytes that [`state`](Allocator::state), [`handle_gossip`](Allocator::handle_gossip) and
/// [`handle_broadcast`](Allocator::handle_broadcast) return.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocator {
    config: Config,
    rng: ChaCha12Rng,
    ring: Ring,
    /// Entries whose number of free addresses may be out of date: of an address, or all.
    stale: Stale,
    space: Space,
    owned: Owned,

    /// Who we are in an election: of this incarnation, or of the one that began it.
    node: ElectorId,
    /// Only while there is no ring, and not in an observer.
    paxos: Option<Paxos>,
    /// When the election began here, if it has and goes on.
    waiting: Option<Instant>,
    /// Peer addresses given that do not lead to ourself.
    targets: u32,
    warned_quorum: bool,

    /// Ring and election have changed since they were stored.
    ring_unsaved: bool,
    saved_election: Option<Election>,

    nicknames: BTreeMap<PeerName, String>,
    reachable: BTreeMap<PeerName, String>,
    lost_sight: BTreeMap<PeerName, Instant>,
    conflicts: BTreeMap<PeerName, Dispute>,
    /// Ours, but another peer says that it is not: not handed out.
    disputed: RangeSet,

    dead: BTreeMap<Container, Instant>,
    primes: VecDeque<(RequestId, Instant)>,
    claims: VecDeque<Claim>,
    allocations: VecDeque<Allocation>,
    asks: Asks,
    next_tick: Option<Instant>,
    leaving: bool,
    /// What we have given away since we are leaving, and to whom how often.
    bequeathed: RangeSet,
    heirs: BTreeMap<PeerName, u32>,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stale {
    Nothing,
    At(u32),
    All,
}

/// A conflict with one peer.
#[derive(Clone, Debug, PartialEq)]
struct Dispute {
    conflict: Conflict,
    /// Who says, or is said, to own what is in doubt.
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

    /// Connected, directly or not; we are always.
    fn is_reachable(&self, name: PeerName) -> bool {
        name == self.me() || self.reachable.contains_key(&name)
    }

    // ---- what has to be stored --------------------------------------------------------------------------------

    fn save_ring(&mut self) {
        if std::mem::take(&mut self.ring_unsaved) {
            let ring = self.ring.clone();
            self.output(Output::Persist(Persist::Ring(ring)));
        }
    }

    fn save_election(&mut self) {
        // An observer keeps what it promised when it still voted.
        let Some(paxos) = &self.paxos else { return };
        let election = paxos.election(self.config.range.range());
        if election != self.saved_election {
            self.saved_election.clone_from(&election);
            self.output(Output::Persist(Persist::Election(election)));
        }
    }

    /// Stores what a container has now.
    fn save_owned(&mut self, container: &str) {
        let record = self.owned.record(container).cloned();
        self.output(Output::Persist(Persist::Owned { container: container.to_owned(), record }));
    }

    /// The end of every input: brings the ring's numbers of free addresses up to date (docs/spec/ipam.md 6.3) and the timer.
    fn finish(&mut self, now: Now) {
        let free = self.space.free();
        self.ring_unsaved |= match self.stale {
            Stale::Nothing => false,
            Stale::At(addr) => self.ring.report_free_at(addr, |range| free.count_in(range)),
            Stale::All => self.ring.report_free(|range| free.count_in(range)),
        };
        self.stale = Stale::Nothing;
        if !self.waits() {
            self.next_tick = None;
        } else if self.next_tick.is_none() {
            self.next_tick = Some(now.mono + TICK);
        }
    }

    fn touch(&mut self, addr: u32) {
        self.stale = match self.stale {
            Stale::Nothing => Stale::At(addr),
            Stale::At(other) if other == addr => Stale::At(addr),
            _ => Stale::All,
        };
    }

    fn waits(&self) -> bool {
        self.waiting.is_some()
            || !self.primes.is_empty()
            || !self.claims.is_empty()
            || !self.allocations.is_empty()
    }

    // ---- outputs and time -------------------------------------------------------------------------------------

    /// The next thing to do; drain until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Allocator::handle_timeout), and what for. `None` if nothing waits.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let tick = self.next_tick.map(|at| (at, "address requests"));
        let release = self.dead.values().min().map(|&died| (died + GRACE, "addresses of dead containers"));
        [tick, release].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Time has passed. Late or too often is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        if self.next_tick.is_some_and(|at| now.mono >= at) {
            self.next_tick = None;
            self.asks.new_tick();
            if self.waiting.is_some() {
                self.propose(now);
            } else if self.ring.is_empty() {
                self.establish(now);
            } else {
                self.count_tries();
                self.retry(now);
            }
            self.forget_asks();
            self.announce_waiting(now);
        }
        self.release_dead(now);
        self.finish(now);
    }

    /// Tries everything that waits again: primes, then claims, then allocations, each in the order they came.
    fn retry(&mut self, now: Now) {
        if self.ring.is_empty() {
            return;
        }
        for (request, _) in std::mem::take(&mut self.primes) {
            self.done(request, Ok(Answer::Primed));
        }
        self.retry_claims(now);
        self.retry_allocations(now);
    }

    // ---- waiting for a ring, and giving up --------------------------------------------------------------------

    /// Waits for a ring, and sees to it that there will be one. Answered by [`Output::Done`] with
    /// [`Answer::Primed`].
    pub fn prime(&mut self, request: RequestId, now: Now) {
        if !self.ring.is_empty() {
            self.done(request, Ok(Answer::Primed));
        } else if self.leaving {
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        } else {
            self.primes.push_back((request, now.mono));
            self.establish(now);
        }
        self.finish(now);
    }

    /// Nobody waits for the answer any more: it is [`Cancelled`](crate::RequestError::Cancelled), and nothing is left
    /// allocated. A request already answered is left as it is: the driver then calls [`free`](Allocator::free).
    pub fn cancel(&mut self, request: RequestId, now: Now) {
        if let Some(at) = self.primes.iter().position(|(id, _)| *id == request) {
            self.primes.remove(at);
            self.done(request, Err(RequestError::Cancelled(Cancelled::Prime)));
        }
        self.cancel_claims(|claim| claim.request == Some(request));
        self.cancel_allocations(|allocation| allocation.request == request);
        self.finish(now);
    }

    /// The ring as we know it.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Other random numbers from now on. For tests.
    #[doc(hidden)]
    pub fn reseed(&mut self, rng: ChaCha12Rng) {
        self.rng = rng;
    }

    /// Our addresses. For tests.
    #[doc(hidden)]
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// What we know of the election; `None` with a ring, and in an observer. For tests.
    #[doc(hidden)]
    pub fn paxos(&self) -> Option<&Paxos> {
        self.paxos.as_ref()
    }

    /// What must hold between any two inputs (docs/spec/ipam.md 16.2, S3 and S7). For tests.
    ///
    /// # Errors
    /// It does not; says what.
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), String> {
        self.ring.check().map_err(|fault| fault.to_string())?;
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

/// The first identity in elections.
fn node_of(config: &Config, uid: PeerUid) -> ElectorId {
    ElectorId { name: config.name, uid }
}

/// Where the quorum comes from.
fn quorum_source(init: &Init, targets: u32) -> QuorumSource {
    match init {
        Init::Consensus(Some(count)) => QuorumSource::Count(*count),
        Init::Consensus(None) | Init::Seed(_) => QuorumSource::Targets(targets),
        Init::Observer => QuorumSource::Observer,
    }
}

/// An empty record has nothing to be stored for.
fn is_empty(record: &Record) -> bool {
    record.cidrs.is_empty()
}
