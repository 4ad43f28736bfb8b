//! The allocators of a cluster on the simulated network, and the model with which their outputs are compared.

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

/// Limits of a run with allocators alone; runs without a message storm stay far below them.
const MAX_EVENTS: u64 = 60_000;
const MAX_QUEUED_EVENTS: usize = 2_000;
/// Writes of all nodes in a second; about one per protocol message. A second in which five peers connect needs 300.
const MAX_WRITES: u64 = 1_500;
/// Bytes that a node may write to a connection that is cut.
const MAX_UNREAD_BYTES: usize = 512 * 1024;
/// In clusters of more hosts only members with an output are checked after each event.
const MAX_CHECKED_HOSTS: u16 = 20;

/// A scheduled event; the number is the incarnation of the host for which it was scheduled.
pub(super) enum Event {
    Gossip(HostId, u32),
    TopologyChange(HostId, u32),
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
    /// [`RequestError::Cancelled`](weave_ipam::RequestError::Cancelled) is a valid answer.
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
    pub(super) world: World,
    /// Connections between allocators that run without nodes.
    pub(super) links: Links,
    pub(super) members: Vec<Member>,
    pub(super) removed_peers: Vec<RemovedPeer>,
    pub(super) requests: BTreeMap<RequestId, Request>,
    pub(super) last_request: RequestId,
    /// Number of donations.
    pub(super) donations: u64,
    /// The hosts and containers that use each address.
    pub(super) users: BTreeMap<u32, BTreeSet<(HostId, String)>>,
    pub(super) last_used: BTreeMap<u32, Instant>,
    /// Addresses that may have two users: two peers took them over, or a peer like 2.8.1 has forgotten their donation.
    pub(super) duplicates_allowed: BTreeSet<u32>,
    /// The peers among which each range was first divided.
    pub(super) decided_seeds: BTreeMap<Subnet, Vec<PeerName>>,
    /// Scheduled events, by the number from [`World::schedule`].
    events: BTreeMap<u64, Event>,
    /// Members that had an input and were not checked since.
    unchecked: BTreeSet<HostId>,
    traffic: Traffic,
    pub(super) rng: ChaCha12Rng,
    /// Whether `SIM_TRACE` is set.
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
        let mut world = World::new(seed, faults);
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
            world.add_stopped(HostId(n), options.clone());
            let host = world.host_mut(HostId(n));
            (host.clock, host.legacy) = (Clock::drifting(plan.clock_error_ppm, &mut rng), legacy);
        }
        if plan.hub {
            world.add(plan.hub_id(), options, &[]);
        }
        Cluster {
            plan: plan.clone(),
            world,
            links: Links::new(plan.hosts, plan.topology),
            members,
            removed_peers: Vec::new(),
            requests: BTreeMap::new(),
            last_request: RequestId(0),
            donations: 0,
            users: BTreeMap::new(),
            last_used: BTreeMap::new(),
            duplicates_allowed: BTreeSet::new(),
            decided_seeds: BTreeMap::new(),
            events: BTreeMap::new(),
            unchecked: BTreeSet::new(),
            traffic: Traffic::default(),
            rng: ChaCha12Rng::seed_from_u64(seed ^ 0x1b0a_9a31),
            traced: std::env::var_os("SIM_TRACE").is_some(),
        }
    }

    /// The hosts of the cluster, without the hub.
    pub(super) fn ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.plan.hosts).map(HostId)
    }

    pub(super) fn member(&self, id: HostId) -> &Member {
        &self.members[usize::from(id.0)]
    }

    pub(super) fn member_mut(&mut self, id: HostId) -> &mut Member {
        &mut self.members[usize::from(id.0)]
    }

    pub(super) fn is_running(&self, id: HostId) -> bool {
        self.member(id).allocator.is_some()
    }

    /// The host of a peer that was not removed.
    pub(super) fn by_name(&self, name: PeerName) -> Option<HostId> {
        self.ids().find(|&id| self.member(id).name == name && !self.member(id).destroyed)
    }

    pub(super) fn range_of(&self, id: HostId) -> Subnet {
        self.plan.ranges[self.member(id).range]
    }

    /// The time of the simulation.
    pub(super) fn clock(&self) -> Instant {
        self.world.clock()
    }

    /// The time on a host.
    pub(super) fn now(&self, id: HostId) -> Now {
        self.world.now_at(id)
    }

    pub(super) fn trace(&self, id: HostId, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>9.3} {} {}", self.clock().since_origin().as_secs_f64(), id.0, what());
        }
    }

    pub(super) fn schedule(&mut self, after: Duration, event: Event) {
        let number = self.world.schedule(after);
        self.events.insert(number, event);
    }

    pub(super) fn incarnation(&self, id: HostId) -> u32 {
        self.world.host(id).incarnation
    }

    pub(super) fn random_millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.clock() + time;
        while self.world.next_event().is_some_and(|at| at <= end) {
            let due = self.world.step().and_then(|number| self.events.remove(&number));
            self.check_traffic();
            self.apply_observations(self.is_large());
            if let Some(event) = due {
                self.handle(event);
            }
        }
        self.world.advance(end);
        self.world.touched.extend(std::mem::take(&mut self.unchecked));
        self.apply_observations(false);
    }

    pub(super) fn is_large(&self) -> bool {
        self.plan.hosts > MAX_CHECKED_HOSTS
    }

    fn check_traffic(&mut self) {
        let (events, queued) = (self.world.counters.events, self.world.queue_len());
        if !self.plan.nodes {
            assert!(
                events <= MAX_EVENTS && queued <= MAX_QUEUED_EVENTS,
                "message storm: {events} events, and {queued} in the queue"
            );
            return;
        }
        let max_writes = match &self.plan {
            plan if self.is_large() => MAX_WRITES * u64::from(plan.hosts) / 10,
            // Two peers like 2.8.1 that lack space donate to each other what neither can use, as fast as the network can.
            plan if plan.legacy > 1 => MAX_WRITES * 10,
            _ => MAX_WRITES,
        };
        let (now, writes) = (self.clock(), self.world.counters.tcp_writes);
        let traffic = &mut self.traffic;
        if now - traffic.second_began >= Duration::from_secs(1) {
            (traffic.second_began, traffic.writes_before) = (now, writes);
            traffic.most_unread = traffic.most_unread.max(self.world.most_unread());
        }
        let recent = writes - traffic.writes_before;
        assert!(recent <= max_writes, "message storm: {recent} messages within a second");
        assert!(
            traffic.most_unread <= MAX_UNREAD_BYTES,
            "{} unread bytes in one stream",
            traffic.most_unread
        );
    }

    /// Drops all messages in transit, and resets all connections.
    pub(super) fn lose_messages(&mut self) {
        self.events.retain(|_, event| !matches!(event, Event::Deliver { .. }));
        self.world.reset_connections();
        self.apply_observations(self.is_large());
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Gossip(id, incarnation) if self.incarnation(id) == incarnation => {
                self.gossip_periodically(id, incarnation);
            }
            Event::TopologyChange(id, incarnation) if self.incarnation(id) == incarnation => {
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
    pub(super) fn with_allocator<R>(
        &mut self,
        id: HostId,
        input: impl FnOnce(&mut Allocator, Now) -> R,
    ) -> Option<R> {
        if !self.plan.nodes {
            // A second reference to the allocator would make the input copy it.
            self.member_mut(id).allocator = None;
        }
        let result = self.world.with_allocator(id, input);
        self.apply_observations(false);
        result
    }

    /// Applies the outputs of allocators to the model in their order, and checks the members that have changed. With `lazily`
    /// members without an output are checked later.
    pub(super) fn apply_observations(&mut self, lazily: bool) {
        let observations = std::mem::take(&mut self.world.observations);
        let mut touched = std::mem::take(&mut self.world.touched);
        let mut changed: BTreeSet<HostId> = observations.iter().map(|(id, _)| *id).collect();
        if lazily {
            self.unchecked.extend(touched.difference(&changed));
            touched.clone_from(&changed);
        }
        for id in touched {
            let host = self.world.host(id);
            let Some(allocator) = host.allocator() else { continue };
            let member = &mut self.members[usize::from(id.0)];
            if !self.plan.nodes {
                changed.insert(id);
                member.allocator = host.share_allocator();
                continue;
            }
            // Most inputs of a node do not concern its allocator.
            if member.allocator.as_deref() == Some(allocator) {
                continue;
            }
            let last = std::mem::replace(&mut member.allocator, host.share_allocator());
            let unchanged =
                |last: &Rc<Allocator>| last.ring() == allocator.ring() && last.owned() == allocator.owned();
            if !last.as_ref().is_some_and(unchanged) {
                changed.insert(id);
                member.ring_before = last.map(|last| last.ring().clone());
            }
        }
        // The last outputs of a crashed peer are compared with its last state.
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
                // 2.8.1 ends connections to peers whose gossip conflicts with its own ring.
                Observation::ConnectionEnded(_) if self.member(id).legacy && self.plan.conflicts => {
                    self.member_mut(id).legacy_conflict_at = Some(self.clock());
                }
                Observation::ConnectionEnded(why) => panic!("{id} ends a connection to {why}"),
                Observation::Crashed(kind, _) => self.crash(id, kind),
            }
        }
        for id in changed {
            self.member_mut(id).ring_before = None;
            if self.is_running(id) {
                self.check_member(id);
            }
        }
    }
}

/// The name of a host's peer; an installation may have a new one.
pub(super) fn peer_name(id: HostId, installation: u16) -> PeerName {
    let [high, low] = installation.to_be_bytes();
    PeerName::from_bytes([2, high, low, 0, 0, (id.0 + 1) as u8])
}
