//! The allocators of a cluster on the simulated network, and the reference model: which address is given to whom.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::{Allocator, Output, RequestId, Ring, Subnet};
use weave_types::{Instant, Now, PeerName};

use super::links::{Links, Message};
use super::member::Member;
use super::plans::{AllocationPlan, Topology};
use crate::clock::Clock;
use crate::host::{HostOptions, Observation};
use crate::net::{Faults, HostId};
use crate::world::World;

/// Limits of a run with allocators alone; ordinary runs stay far below them.
const MAX_EVENTS: u64 = 60_000;
const MAX_QUEUED_EVENTS: usize = 2_000;
/// Writes of all nodes in a second; about one per protocol message. A second in which five peers connect needs 300.
const MAX_WRITES: u64 = 1_500;
/// Bytes that a node has written and another, cut off, has not read.
const MAX_UNREAD_BYTES: usize = 512 * 1024;
/// Clusters of more hosts are not checked completely after each event.
const LARGE: u16 = 20;

/// A scheduled event; the number is the incarnation of the host for which it was scheduled.
pub(super) enum Event {
    Gossip(HostId, u32),
    Topology(HostId, u32),
    /// On a new connection the first sends its complete state to the second.
    GossipOnConnect(HostId, HostId),
    Reconnect,
    ResetFinished(HostId, u32),
    Deliver {
        from: HostId,
        to: HostId,
        message: Message,
    },
}

/// A peer that will not come back.
pub(super) struct RemovedPeer {
    pub(super) name: PeerName,
    /// Its last view.
    pub(super) ring: Option<Ring>,
}

/// A request without an answer.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) host: HostId,
    pub(super) kind: RequestKind,
    pub(super) since: Instant,
    /// "Cancelled" is a valid answer.
    pub(super) cancelled: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum RequestKind {
    Allocate(String, Subnet),
    Claim(String, u32),
    Prime,
}

/// Number of writes and unread bytes, which must stay bounded.
#[derive(Default)]
struct Traffic {
    second_began: Instant,
    writes_before: u64,
    most_unread: usize,
}

/// Peers that share a range of addresses.
pub struct Cluster {
    pub(super) plan: AllocationPlan,
    /// Hosts, network and clock.
    pub(super) sim: World,
    /// Connections between allocators that run without nodes.
    pub(super) links: Links,
    pub(super) members: Vec<Member>,
    pub(super) removed_peers: Vec<RemovedPeer>,
    pub(super) requests: BTreeMap<RequestId, Request>,
    next_request: u64,
    pub(super) donations: u64,
    /// Users of each address.
    pub(super) ledger: BTreeMap<u32, BTreeSet<(HostId, String)>>,
    pub(super) last_used: BTreeMap<u32, Instant>,
    /// Addresses that two peers took over at the same time, which may therefore have two users.
    pub(super) contested: BTreeSet<u32>,
    /// The first division of each range.
    pub(super) decided: BTreeMap<Subnet, Vec<PeerName>>,
    events: BTreeMap<u64, Event>,
    /// Members that were changed and not checked since.
    unchecked: BTreeSet<HostId>,
    traffic: Traffic,
    pub(super) rng: ChaCha12Rng,
    traced: bool,
}

impl Cluster {
    /// All hosts of a plan, started.
    pub fn new(seed: u64, plan: &AllocationPlan) -> Cluster {
        let mut cluster = Cluster::stopped(seed, plan);
        for id in cluster.ids() {
            cluster.start(id);
        }
        cluster
    }

    /// All hosts of a plan, none of them started.
    pub(super) fn stopped(seed: u64, plan: &AllocationPlan) -> Cluster {
        let mut faults = Faults {
            split_stream_randomly: true,
            loss: plan.loss,
            duplication: plan.duplication,
            stall: plan.stall,
            ..Faults::default()
        };
        if plan.nodes {
            faults.stall = 0.0;
        } else {
            (faults.latency, faults.jitter) = (Duration::from_millis(1), Duration::from_millis(19));
        }
        let mut sim = World::new(seed, faults);
        let options = HostOptions {
            password: plan.password.map(str::to_owned),
            discovery: plan.topology == Topology::Complete,
            connection_limit: 0,
            allocator_only: !plan.nodes,
            late_timers: true,
            driver_fault: plan.driver_fault,
            ..HostOptions::default()
        };
        let mut rng = ChaCha12Rng::seed_from_u64(seed ^ 0x10c6_7a11);
        let mut members = Vec::new();
        for n in 0..plan.hosts {
            let legacy = n < plan.legacy;
            members.push(Member::new(peer_name(HostId(n), 0), legacy));
            sim.add_stopped(HostId(n), options.clone());
            let host = sim.host_mut(HostId(n));
            (host.clock, host.legacy) = (Clock::drifting(plan.clock_error_ppm, &mut rng), legacy);
        }
        if plan.hub {
            sim.add(plan.hub_id(), options, &[]);
        }
        Cluster {
            plan: plan.clone(),
            sim,
            links: Links::new(plan.hosts, plan.topology),
            members,
            removed_peers: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            donations: 0,
            ledger: BTreeMap::new(),
            last_used: BTreeMap::new(),
            contested: BTreeSet::new(),
            decided: BTreeMap::new(),
            events: BTreeMap::new(),
            unchecked: BTreeSet::new(),
            traffic: Traffic::default(),
            rng: ChaCha12Rng::seed_from_u64(seed ^ 0x1b0a_9a31),
            traced: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.plan.hosts).map(HostId)
    }

    pub(super) fn member(&self, id: HostId) -> &Member {
        &self.members[usize::from(id.0)]
    }

    pub(super) fn member_mut(&mut self, id: HostId) -> &mut Member {
        &mut self.members[usize::from(id.0)]
    }

    pub(super) fn runs(&self, id: HostId) -> bool {
        self.member(id).allocator.is_some()
    }

    pub(super) fn by_name(&self, name: PeerName) -> Option<HostId> {
        self.ids().find(|&id| self.member(id).name == name && !self.member(id).destroyed)
    }

    pub(super) fn range_of(&self, id: HostId) -> Subnet {
        self.plan.ranges[self.member(id).range]
    }

    /// The time of the simulation.
    pub(super) fn clock(&self) -> Instant {
        self.sim.clock()
    }

    /// The time on a host.
    pub(super) fn now(&self, id: HostId) -> Now {
        self.sim.now_at(id)
    }

    /// Number of events handled.
    pub fn event_count(&self) -> u64 {
        self.sim.counters.events
    }

    pub(super) fn trace(&self, id: HostId, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>9.3} {} {}", self.clock().since_origin().as_secs_f64(), id.0, what());
        }
    }

    pub(super) fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub(super) fn schedule(&mut self, after: Duration, event: Event) {
        let number = self.sim.schedule(after);
        self.events.insert(number, event);
    }

    pub(super) fn incarnation(&self, id: HostId) -> u32 {
        self.sim.host(id).incarnation
    }

    pub(super) fn random_millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.clock() + time;
        while self.sim.next_event().is_some_and(|at| at <= end) {
            let due = self.sim.step().and_then(|number| self.events.remove(&number));
            self.check_traffic();
            self.apply_observations(self.is_large());
            if let Some(event) = due {
                self.handle(event);
            }
        }
        self.sim.advance(end);
        self.sim.touched.extend(std::mem::take(&mut self.unchecked));
        self.apply_observations(false);
    }

    pub(super) fn is_large(&self) -> bool {
        self.plan.hosts > LARGE
    }

    fn check_traffic(&mut self) {
        let (events, queued) = (self.event_count(), self.sim.queue_len());
        if !self.plan.nodes {
            assert!(
                events <= MAX_EVENTS && queued <= MAX_QUEUED_EVENTS,
                "message storm: {events} events, {queued} more are queued"
            );
            return;
        }
        let max_writes = match &self.plan {
            plan if plan.hosts > LARGE => MAX_WRITES * u64::from(plan.hosts) / 10,
            // Two such peers that lack space give each other what neither can use, as fast as the network can.
            plan if plan.legacy > 1 => MAX_WRITES * 10,
            _ => MAX_WRITES,
        };
        let (now, writes) = (self.clock(), self.sim.counters.tcp_writes);
        let traffic = &mut self.traffic;
        if now - traffic.second_began >= Duration::from_secs(1) {
            (traffic.second_began, traffic.writes_before) = (now, writes);
            traffic.most_unread = traffic.most_unread.max(self.sim.most_unread());
        }
        let recent = writes - traffic.writes_before;
        assert!(recent <= max_writes, "message storm: {recent} messages within a second");
        assert!(
            traffic.most_unread <= MAX_UNREAD_BYTES,
            "{} unread bytes in one stream",
            traffic.most_unread
        );
    }

    /// All messages in transit are lost, and all connections reset.
    pub(super) fn lose_messages(&mut self) {
        self.events.retain(|_, event| !matches!(event, Event::Deliver { .. }));
        self.sim.reset_connections();
        self.apply_observations(self.is_large());
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Gossip(id, incarnation) if self.incarnation(id) == incarnation => {
                self.gossip_periodically(id, incarnation);
            }
            Event::Topology(id, incarnation) if self.incarnation(id) == incarnation => {
                self.report_topology(id);
            }
            Event::GossipOnConnect(from, to) if self.links.neighbours(from).contains(&to) => {
                self.send_state(from, to);
            }
            Event::Reconnect => self.update_links(),
            Event::ResetFinished(id, incarnation) if self.incarnation(id) == incarnation => {
                self.remove_for_good(id);
            }
            Event::Deliver { from, to, message } => self.deliver(from, to, &message),
            _ => {}
        }
    }

    /// An input of a running allocator, and everything that follows from it at once.
    pub(super) fn call<R>(&mut self, id: HostId, input: impl FnOnce(&mut Allocator, Now) -> R) -> Option<R> {
        if !self.plan.nodes {
            // Otherwise the input would copy the allocator.
            self.member_mut(id).allocator = None;
        }
        let result = self.sim.with_allocator(id, input);
        self.apply_observations(false);
        result
    }

    /// Applies the outputs of allocators to the model, in the order in which they were put out. `lazily`: members without an
    /// output are checked later.
    pub(super) fn apply_observations(&mut self, lazily: bool) {
        let observations = std::mem::take(&mut self.sim.observations);
        let mut touched = std::mem::take(&mut self.sim.touched);
        let mut changed: BTreeSet<HostId> = observations.iter().map(|(id, _)| *id).collect();
        if lazily {
            self.unchecked.extend(touched.difference(&changed));
            touched.clone_from(&changed);
        }
        for id in touched {
            let host = self.sim.host(id);
            let Some(allocator) = host.allocator() else { continue };
            let member = &mut self.members[usize::from(id.0)];
            if !self.plan.nodes {
                changed.insert(id);
                member.allocator = host.share_allocator();
                continue;
            }
            if member.allocator.as_deref() == Some(allocator) {
                continue;
            }
            let last = std::mem::replace(&mut member.allocator, host.share_allocator());
            if !last
                .as_ref()
                .is_some_and(|last| last.ring() == allocator.ring() && last.owned() == allocator.owned())
            {
                changed.insert(id);
                member.ring_before = last.map(|last| last.ring().clone());
            }
        }
        for (id, observation) in &observations {
            if let Observation::Crashed(_, last) = observation {
                self.member_mut(*id).allocator = Some(Rc::clone(last));
            }
        }
        for (id, observation) in observations {
            match observation {
                Observation::Output(output) => {
                    if !matches!(output, Output::Event(_)) {
                        self.member_mut(id).outputs += 1;
                    }
                    self.handle_output(id, output);
                }
                // 2.8.1 ends connections to peers that contradict it.
                Observation::ConnectionEnded(_) if self.member(id).legacy && self.plan.conflicts => {
                    self.member_mut(id).objected_at = Some(self.clock());
                }
                Observation::ConnectionEnded(why) => panic!("host {} ends a connection to {why}", id.0),
                Observation::Crashed(crash, _) => self.kill(id, crash),
            }
        }
        for id in changed {
            self.member_mut(id).ring_before = None;
            if self.runs(id) {
                self.check_member(id);
            }
        }
    }
}

/// The name of a host's peer; each installation may have another.
pub(super) fn peer_name(id: HostId, installation: u16) -> PeerName {
    let [high, low] = installation.to_be_bytes();
    PeerName::from_bytes([2, high, low, 0, 0, (id.0 + 1) as u8])
}
