//! The simulation: hosts, one clock, one ordered queue of events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{
    Allocator, Config, Event as Said, GossipError, Init, Output, Persist, Policy, RequestId, Ring, Subnet,
};
use weave_types::{Instant, Now, PeerName, PeerUid};

use super::answers::Request;
use super::calls::owned;
use super::host::Host;
use super::network::{Message, Network};
use super::nodes::Nodes;
use super::scenario::{Begin, Plan};
use super::trace::{show_message, show_output};
use super::violation;
use crate::clock::{Clock, lateness};
use crate::host::Death;
use crate::net::HostId;

/// A peer's periodic gossip (docs/spec/ipam.md 17).
const GOSSIP: Duration = Duration::from_secs(30);
/// Requests for space that a peer of ours may send in five seconds. A donor that answers at once is asked 250 times, if
/// every answer leads to a request.
const MAX_ASKED: usize = 100;

/// No run comes near these.
const MAX_EVENTS: u64 = 60_000;
const MAX_QUEUE: usize = 2_000;

pub(super) enum Event {
    Wake(HostId, u32),
    Gossip(HostId, u32),
    Topology(HostId, u32),
    /// A new connection: the first tells the second all that it knows.
    Greet(HostId, HostId),
    Reconnect,
    /// `weave reset` is over.
    Gone(HostId, u32),
    Deliver {
        from: HostId,
        to: HostId,
        message: Message,
    },
}

/// A peer that is gone for good.
pub(super) struct Grave {
    pub(super) name: PeerName,
    /// Its last view.
    pub(super) ring: Option<Ring>,
}

/// Many peers that share a range of addresses.
pub struct World {
    /// Number of events handled.
    pub events: u64,
    pub(super) plan: Plan,
    pub(super) network: Network,
    /// Whole peers instead, over a mesh of theirs: then `network` is not used.
    pub(super) nodes: Option<Nodes>,
    pub(super) hosts: Vec<Host>,
    pub(super) graves: Vec<Grave>,
    pub(super) requests: BTreeMap<RequestId, Request>,
    next_request: u64,
    /// How often somebody gave space to another.
    pub(super) donations: u64,
    /// Who was given what.
    pub(super) ledger: BTreeMap<u32, BTreeSet<(HostId, String)>>,
    /// When an address was used last.
    pub(super) last_used: BTreeMap<u32, Instant>,
    /// What two peers took over at once: there is no telling whose it is.
    pub(super) contested: BTreeSet<u32>,
    /// How each range was divided first.
    pub(super) decided: BTreeMap<Subnet, Vec<PeerName>>,
    queue: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    pub(super) clock: Instant,
    pub(super) rng: ChaCha12Rng,
    /// Everything that happens is told.
    traced: bool,
}

impl World {
    /// All hosts of a plan, started.
    pub fn new(seed: u64, plan: &Plan) -> World {
        let mut world = World::without_peers(seed, plan);
        for id in world.ids() {
            world.start(id);
        }
        world
    }

    /// All hosts of a plan, none of them started.
    pub(super) fn without_peers(seed: u64, plan: &Plan) -> World {
        let mut world = World {
            events: 0,
            plan: plan.clone(),
            network: Network::new(plan),
            nodes: plan.nodes.then(|| Nodes::new(seed, plan)),
            hosts: Vec::new(),
            graves: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 0,
            donations: 0,
            ledger: BTreeMap::new(),
            last_used: BTreeMap::new(),
            contested: BTreeSet::new(),
            decided: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            clock: Instant::ORIGIN,
            rng: ChaCha12Rng::seed_from_u64(seed ^ 0x1b0a_9a31),
            traced: std::env::var_os("SIM_TRACE").is_some(),
        };
        let mut rng = ChaCha12Rng::seed_from_u64(seed ^ 0x10c6_7a11);
        for n in 0..plan.hosts {
            let mut host = Host::new(name_of(HostId(n), 0), n < plan.legacy);
            host.time = Clock::drifting(plan.drift, &mut rng);
            world.hosts.push(host);
        }
        world
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.plan.hosts).map(HostId)
    }

    pub(super) fn host(&self, id: HostId) -> &Host {
        &self.hosts[usize::from(id.0)]
    }

    pub(super) fn host_mut(&mut self, id: HostId) -> &mut Host {
        &mut self.hosts[usize::from(id.0)]
    }

    pub(super) fn runs(&self, id: HostId) -> bool {
        self.host(id).allocator.is_some()
    }

    pub(super) fn of_name(&self, name: PeerName) -> Option<HostId> {
        self.ids().find(|&id| self.host(id).name == name && !self.host(id).destroyed)
    }

    pub(super) fn range_of(&self, id: HostId) -> Subnet {
        self.plan.ranges[self.host(id).range]
    }

    /// What time it is on a host.
    pub(super) fn now(&self, id: HostId) -> Now {
        self.host(id).time.read(self.clock)
    }

    /// Tells what happens, with `SIM_TRACE`.
    pub(super) fn trace(&self, id: HostId, what: impl FnOnce() -> String) {
        if self.traced {
            eprintln!("{:>9.3} {} {}", self.clock.since_origin().as_secs_f64(), id.0, what());
        }
    }

    pub(super) fn new_request(&mut self) -> RequestId {
        self.next_request += 1;
        RequestId(self.next_request)
    }

    pub(super) fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.clock + after, self.sequence), event);
    }

    pub(super) fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..to))
    }

    /// Lets time pass.
    pub(super) fn run_for(&mut self, time: Duration) {
        let end = self.clock + time;
        if self.nodes.is_some() {
            return self.run_nodes_until(end);
        }
        while let Some((&(at, _), _)) = self.queue.first_key_value() {
            if at > end {
                break;
            }
            let Some(((at, _), event)) = self.queue.pop_first() else { break };
            self.clock = at;
            self.events += 1;
            if self.events > MAX_EVENTS || self.queue.len() > MAX_QUEUE {
                violation!("a storm: {} events, {} more to come", self.events, self.queue.len());
            }
            self.handle(event);
        }
        self.clock = end;
    }

    /// Everything that is on its way is lost.
    pub(super) fn lose_messages(&mut self) {
        self.queue.retain(|_, event| !matches!(event, Event::Deliver { .. }));
        self.reset_connections();
    }

    /// The time of the next event of ours.
    pub(super) fn next_event(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|(&(at, _), _)| at)
    }

    pub(super) fn handle_next(&mut self) {
        if let Some((_, event)) = self.queue.pop_first() {
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(id, incarnation) if self.host(id).incarnation == incarnation => {
                self.host_mut(id).wake = None;
                self.call(id, |allocator, now| allocator.handle_timeout(now));
            }
            Event::Gossip(id, incarnation) if self.host(id).incarnation == incarnation => {
                let neighbours = self.network.neighbours(id);
                if !neighbours.is_empty() {
                    let to = neighbours[self.rng.random_range(0..neighbours.len())];
                    self.tell(id, to);
                }
                self.schedule(GOSSIP, Event::Gossip(id, incarnation));
            }
            Event::Topology(id, incarnation) if self.host(id).incarnation == incarnation => {
                self.tell_topology(id);
            }
            Event::Greet(from, to) if self.network.neighbours(from).contains(&to) => self.tell(from, to),
            Event::Reconnect => self.relink(),
            Event::Gone(id, incarnation) if self.host(id).incarnation == incarnation => self.destroy(id),
            Event::Deliver { from, to, message } => self.deliver(from, to, &message),
            _ => {}
        }
    }

    // ---- peers ------------------------------------------------------------------------------------------------

    /// An input of a running peer, and all that comes of it.
    pub(super) fn call<R>(&mut self, id: HostId, input: impl FnOnce(&mut Allocator, Now) -> R) -> Option<R> {
        let now = self.now(id);
        if self.nodes.is_some() {
            return self.call_node(id, |allocator| input(allocator, now));
        }
        let result = self.host_mut(id).allocator.as_mut().map(|allocator| input(allocator, now));
        self.settle(id);
        result
    }

    /// Carries out what a peer says, up to where it dies; true if it lives on.
    pub(super) fn settle(&mut self, id: HostId) -> bool {
        if self.nodes.is_some() {
            self.absorb();
            return self.runs(id);
        }
        loop {
            let Some(allocator) = self.host_mut(id).allocator.as_mut() else { return false };
            let Some(output) = allocator.poll_output() else { break };
            if !matches!(output, Output::Event(_)) {
                let host = self.host_mut(id);
                host.outputs += 1;
                match &mut host.fuse {
                    Some((0, death)) => {
                        let death = *death;
                        self.kill(id, death);
                        return false;
                    }
                    Some((left, _)) => *left -= 1,
                    None => {}
                }
            }
            self.perform(id, output);
        }
        self.check_host(id);
        self.schedule_wake(id);
        true
    }

    pub(super) fn perform(&mut self, id: HostId, output: Output) {
        self.trace(id, || show_output(&output));
        match output {
            Output::Persist(persist) => {
                self.released_by(id, &persist);
                let clock = self.clock;
                let host = self.host_mut(id);
                host.disk.write(&persist, clock);
                if matches!(persist, Persist::Clear) {
                    host.forget_versions();
                }
            }
            Output::Unicast { to, payload } => {
                self.check_unicast(id, &payload);
                if let Some(to) = self.of_name(to).filter(|&to| self.network.path(id, to)) {
                    let src = self.host(id).name;
                    self.transmit(id, to, Message::Unicast { src, payload });
                }
            }
            Output::Broadcast(payload) => {
                self.check_state(id, &decoded(&payload));
                let src = self.host(id).name;
                self.pass_on(id, src, &payload);
            }
            Output::Done(request, result) => self.answered(id, request, result),
            Output::Event(event) => self.said(id, event),
        }
    }

    pub(super) fn said(&mut self, id: HostId, event: Said) {
        match event {
            Said::RingEstablished { seeds } => {
                let range = self.range_of(id);
                let first = self.decided.entry(range).or_insert_with(|| seeds.clone());
                if *first != seeds && !self.plan.may_divide {
                    violation!("two decisions for {range}: {first:?}, and on {} {seeds:?}", id.0);
                }
            }
            Said::Yielded { .. } if self.host(id).legacy => {
                // 2.8.1 aborts when it loses part of its own; what it had stored is consistent.
                let now = self.clock;
                let host = self.host_mut(id);
                host.protested = Some(now);
                host.fuse.get_or_insert((0, Death::Killed));
            }
            Said::Conflict { conflict, .. } if !self.plan.conflicts => {
                violation!("host {}: conflict without cause: {conflict}", id.0)
            }
            Said::Donated { .. } => self.donations += 1,
            Said::PreclaimFailed { container, cidr, error } => {
                self.preclaim_failed(id, &container, cidr, &error);
            }
            _ => {}
        }
    }

    fn schedule_wake(&mut self, id: HostId) {
        let Some(allocator) = &self.host(id).allocator else { return };
        let Some((at, _)) = allocator.poll_timeout() else { return };
        let at = self.host(id).time.when(at).max(self.clock);
        if self.host(id).wake.is_some_and(|wake| wake <= at) {
            return;
        }
        self.host_mut(id).wake = Some(at);
        let late = lateness(&mut self.rng);
        let incarnation = self.host(id).incarnation;
        self.schedule((at - self.clock) + late, Event::Wake(id, incarnation));
    }

    /// Starts a peer with what is on its disk.
    pub(super) fn start(&mut self, id: HostId) {
        if self.runs(id) || self.host(id).destroyed {
            return;
        }
        self.trace(id, || "start".to_owned());
        let offset = self.millis(0, 10_000_000);
        let (uid, rng) = (self.rng.random(), ChaCha12Rng::seed_from_u64(self.rng.random()));
        let range = self.range_of(id);
        let clock = self.clock;
        let config = self.config(id, PeerUid(uid), range);
        let host = self.host_mut(id);
        host.time.ahead = offset;
        host.started = clock;
        host.wake = None;
        host.asked.clear();
        host.told_gone.clear();
        host.forget_versions();
        host.find_orphans();
        let mut loaded = host.disk.stored().clone();
        if host.legacy {
            // 2.8.1 does not store what it has promised (docs/spec/ipam.md 15.11).
            loaded.election = None;
        }
        let running: BTreeSet<String> =
            host.containers.iter().filter(|(_, c)| c.running).map(|(id, _)| id.clone()).collect();
        for container in host.containers.values_mut().filter(|c| !c.running) {
            container.gone = true;
        }
        let in_use: Vec<(String, Vec<u32>, bool)> = host
            .containers
            .iter()
            .filter(|(_, c)| c.running && !c.addrs.is_empty())
            .map(|(id, c)| (id.clone(), c.addrs.iter().copied().collect(), c.is_container))
            .collect();
        if self.nodes.is_some() {
            self.start_node(id, config, loaded);
        } else {
            let now = self.now(id);
            self.host_mut(id).allocator = Some(Allocator::new(config, rng, loaded, now));
        }
        let mut alive = self.settle(id);
        if alive && self.nodes.is_none() {
            let others = self.plan.electors().saturating_sub(1);
            self.call(id, |allocator, now| allocator.handle_target_count(others.into(), now));
        }
        for (container, addrs, is_container) in in_use {
            let cidrs: Vec<_> = addrs.iter().map(|&addr| self.plan.cidr(addr)).collect();
            self.call(id, |allocator, now| allocator.preclaim(container, &cidrs, is_container, now));
        }
        alive = self.call(id, |allocator, now| allocator.prune(&running, now)).is_some();
        if alive && self.runs(id) {
            self.drop_unknown(id);
            for container in self.host_mut(id).containers.values_mut() {
                container.gone = false;
            }
        }
        self.relink();
        if self.nodes.is_some() {
            return;
        }
        let incarnation = self.host(id).incarnation;
        let phase = self.millis(0, 30_000);
        self.schedule(phase, Event::Gossip(id, incarnation));
    }

    fn config(&self, id: HostId, uid: PeerUid, range: Subnet) -> Config {
        let host = self.host(id);
        let mut config = Config::new(host.name, uid, format!("host-{}", id.0), range);
        let electors: Vec<HostId> = self.ids().filter(|id| id.0 < self.plan.electors()).collect();
        config.init = match self.plan.begin {
            _ if id.0 >= self.plan.electors() => Init::Observer,
            Begin::Count => Init::Consensus(Some(electors.len() as u32)),
            Begin::Targets | Begin::Chain => Init::Consensus(None),
            Begin::Seed => Init::Seed(electors.iter().map(|&id| name_of(id, 0)).collect()),
        };
        if host.legacy {
            config.policy = Policy { send_before_persist: self.plan.early, ..Policy::V2_8_1 };
        }
        config
    }

    /// Ends a peer: its memory is gone, and with the power also what was not written yet, and the containers.
    pub(super) fn kill(&mut self, id: HostId, death: Death) {
        if !self.runs(id) {
            return;
        }
        self.trace(id, || format!("{death:?}"));
        let clock = self.clock;
        let mut rng = ChaCha12Rng::seed_from_u64(self.rng.random());
        self.end_node(id, death);
        self.contest_the_forgotten(id);
        let host = self.host_mut(id);
        host.allocator = None;
        host.incarnation += 1;
        host.fuse = None;
        host.unsettled.clear();
        self.requests.retain(|_, request| request.host != id);
        if death == Death::PowerLost {
            self.host_mut(id).disk.lose_power(clock, &mut rng);
            self.lose_containers(id);
        }
        if self.host(id).leaving {
            self.destroy(id);
        }
        self.relink();
    }

    /// What 2.8.1 gave away and had not stored yet is its own again; and where it had told of a version that it had not stored,
    /// it says other things at the same version, which others take for what they know.
    fn contest_the_forgotten(&mut self, id: HostId) {
        let host = self.host(id);
        let (Some(allocator), Some(stored)) = (&host.allocator, &host.disk.stored().ring) else { return };
        if host.legacy && self.plan.early {
            let kept = owned(allocator.ring(), host.name);
            let mut forgotten: BTreeSet<u32> = owned(stored, host.name).difference(&kept).copied().collect();
            let ends = stored.entries().iter().skip(1).map(|next| next.token).chain([stored.range().end()]);
            for (entry, end) in stored.entries().iter().zip(ends).filter(|(entry, _)| entry.peer == host.name)
            {
                let told = allocator.ring().entries().iter().find(|told| told.token == entry.token);
                if told.is_some_and(|told| told.version > entry.version) {
                    forgotten.extend(entry.token..end);
                }
            }
            self.contested.extend(forgotten);
        }
    }

    /// A host is gone for good, with all that ran on it.
    pub(super) fn destroy(&mut self, id: HostId) {
        if self.host(id).destroyed {
            return;
        }
        let ring = self.host(id).view().cloned();
        self.end_node(id, Death::Killed);
        self.wipe_node(id);
        self.requests.retain(|_, request| request.host != id);
        self.lose_containers(id);
        let host = self.host_mut(id);
        host.destroyed = true;
        host.allocator = None;
        host.incarnation += 1;
        host.fuse = None;
        host.leaving = false;
        host.unsettled.clear();
        host.orphans.clear();
        host.disk.wipe();
        let name = host.name;
        self.graves.push(Grave { name, ring });
        self.relink();
    }

    /// A destroyed host is installed anew: under its old name if nobody could be misled by that, else under another.
    pub(super) fn reinstall(&mut self, id: HostId) {
        if !self.host(id).destroyed || !self.others_have_rings(id) {
            return;
        }
        let grave = self.graves.iter().position(|grave| grave.name == self.host(id).name);
        let same = self.plan.begin != Begin::Seed
            && grave.is_some_and(|grave| self.all_know(id, self.graves[grave].ring.as_ref()));
        if let (true, Some(grave)) = (same, grave) {
            self.lose_messages();
            self.graves.remove(grave);
        }
        let host = self.host_mut(id);
        host.destroyed = false;
        if !same {
            host.generation += 1;
            host.name = name_of(id, host.generation);
        }
        self.start(id);
    }

    // ---- what is sent -----------------------------------------------------------------------------------------

    /// One peer tells a neighbour all that it knows.
    pub(super) fn tell(&mut self, from: HostId, to: HostId) {
        let now = self.now(from);
        let Some(allocator) = self.host_mut(from).allocator.as_mut() else { return };
        let payload = allocator.state(now);
        if self.settle(from) {
            self.check_state(from, &decoded(&payload));
            self.transmit(from, to, Message::Gossip(payload));
        }
    }

    /// A broadcast goes on along the tree of its source.
    pub(super) fn pass_on(&mut self, at: HostId, src: PeerName, payload: &[u8]) {
        let Some(root) = self.of_name(src) else { return };
        for to in self.network.children(root, at) {
            self.transmit(at, to, Message::Broadcast { src, payload: payload.to_vec() });
        }
    }

    fn transmit(&mut self, from: HostId, to: HostId, message: Message) {
        for delay in self.network.fate(from, to, &mut self.rng) {
            self.schedule(delay, Event::Deliver { from, to, message: message.clone() });
        }
    }

    fn deliver(&mut self, from: HostId, to: HostId, message: &Message) {
        if !self.runs(to) || self.runs(from) && !self.network.path(from, to) {
            return;
        }
        self.trace(to, || format!("<- {} {}", from.0, show_message(message)));
        let now = self.now(to);
        let Some(allocator) = self.host_mut(to).allocator.as_mut() else { return };
        let result = match message {
            Message::Unicast { src, payload } => allocator.handle_unicast(*src, payload, now).map(|()| None),
            Message::Broadcast { src, payload } => {
                allocator.handle_broadcast(*src, payload, now).map(|relay| relay.map(|bytes| (*src, bytes)))
            }
            Message::Gossip(payload) => allocator.handle_gossip(payload, now).map(|news| {
                assert!(news.is_none(), "gossip is not passed on");
                None
            }),
        };
        let alive = self.settle(to);
        match result {
            Ok(relay) => {
                if let (true, Some((src, bytes))) = (alive, relay) {
                    self.check_state(to, &decoded(&bytes));
                    self.pass_on(to, src, &bytes);
                }
                if let (true, Message::Gossip(payload)) = (alive, message) {
                    self.check_known(to, payload);
                }
            }
            Err(GossipError::Malformed(error)) => {
                violation!("host {} blames an honest peer: {error}", to.0)
            }
            Err(error) if !self.plan.conflicts => {
                violation!("host {}: conflict without cause: {error}", to.0)
            }
            Err(_) if self.host(to).legacy => {
                // 2.8.1 ends the connection over which it came.
                self.host_mut(to).protested = Some(self.clock);
                let time = self.millis(1000, 10_000);
                self.network.drop_link(from, to, self.clock + time);
                self.schedule(time, Event::Reconnect);
                self.relink();
            }
            Err(_) => {}
        }
    }

    /// What was taken over once is no news.
    fn check_known(&mut self, id: HostId, payload: &[u8]) {
        if self.host(id).legacy || !self.rng.random_bool(0.1) {
            return;
        }
        let (now, outputs) = (self.now(id), self.host(id).outputs);
        let Some(allocator) = self.host_mut(id).allocator.as_mut() else { return };
        let before = allocator.ring().clone();
        let result = allocator.handle_gossip(payload, now);
        let same = *allocator.ring() == before;
        if self.settle(id) && (result != Ok(None) || !same || self.host(id).outputs != outputs) {
            violation!("host {}: gossip is news a second time: {result:?}", id.0);
        }
    }

    /// Counts a request for space.
    fn check_unicast(&mut self, id: HostId, payload: &[u8]) {
        match Unicast::decode(payload) {
            Ok(Some(Unicast::State(state))) => self.check_state(id, &state),
            Ok(Some(Unicast::Request(_))) => {
                let clock = self.clock;
                let host = self.host_mut(id);
                host.asked.push_back(clock);
                while host.asked.front().is_some_and(|&at| clock - at > Duration::from_secs(5)) {
                    host.asked.pop_front();
                }
                if host.asked.len() > MAX_ASKED && !host.legacy {
                    violation!("host {}: {} requests for space in five seconds", id.0, host.asked.len());
                }
            }
            Ok(Some(Unicast::Denied(_))) => {}
            other => violation!("host {} sends {other:?}", id.0),
        }
    }

    /// Nothing is sent that depends on what is not on the disk.
    fn check_state(&mut self, id: HostId, state: &StateMessage) {
        let host = self.host_mut(id);
        let stored = host.disk.stored();
        if let Some(ring) = &state.ring {
            let known = stored.ring.as_ref().is_some_and(|r| r.entries() == ring.entries());
            if !known && !host.legacy {
                violation!("host {} sends a ring that is not on its disk: {ring:?}", id.0);
            }
            if ring.peer() != host.name {
                violation!("host {} sends the ring of {}", id.0, ring.peer());
            }
            for entry in ring.entries() {
                let last = host.versions.insert(entry.token, entry.version);
                if last.is_some_and(|last| last > entry.version) && !host.legacy {
                    violation!("host {}: version falls from {last:?} in {entry:?}", id.0);
                }
            }
            if host.versions.len() != ring.entries().len() {
                violation!("host {}: a token has vanished: {ring:?}, was {:?}", id.0, host.versions);
            }
        }
        let Some(knowledge) = state.paxos.as_ref().filter(|_| !host.legacy) else { return };
        match &stored.election {
            Some(election) if knowledge.get(&election.elector) != Some(&election.state) => {
                violation!("host {} promises what is not on its disk: {knowledge:?}", id.0)
            }
            None if host
                .allocator
                .as_ref()
                .and_then(|a| a.paxos())
                .is_some_and(|p| knowledge.contains_key(&p.own())) =>
            {
                violation!("host {} promises without a word on its disk: {knowledge:?}", id.0)
            }
            _ => {}
        }
    }
}

fn decoded(payload: &[u8]) -> StateMessage {
    StateMessage::decode(payload)
        .unwrap_or_else(|error| violation!("a peer sends what nobody reads: {error}"))
}

/// A host's peer; each installation may have another name.
pub(super) fn name_of(id: HostId, generation: u16) -> PeerName {
    let [high, low] = generation.to_be_bytes();
    PeerName::from_bytes([2, high, low, 0, 0, (id.0 + 1) as u8])
}
