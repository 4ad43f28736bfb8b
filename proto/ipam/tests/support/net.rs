//! Some allocators, a network that loses, delays, repeats and reorders, and crashes between any two outputs; everything
//! follows from a seed. After each step it is checked that nothing is used twice and that what was said is on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{Allocator, Answer, Config, GossipError, Init, Loaded, Output, RequestId, Subnet};
use weave_types::{Instant, Now, PeerName, PeerUid};

/// What went wrong.
pub(crate) type Fault = String;

#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) hosts: usize,
    pub(crate) range: Subnet,
    pub(crate) init: Init,
    pub(crate) steps: usize,
    pub(crate) crashes: bool,
}

struct Host {
    config: Config,
    allocator: Option<Allocator>,
    disk: Loaded,
    /// Requests not answered yet, with the container.
    asked: BTreeMap<RequestId, String>,
    cancelled: BTreeSet<RequestId>,
    /// Addresses that were answered and not released.
    live: BTreeMap<String, IpAddr>,
    /// A crash came in between: may or may not be on the disk.
    unclear: BTreeSet<String>,
    known: BTreeSet<PeerName>,
}

#[derive(Clone)]
struct Message {
    from: usize,
    to: usize,
    kind: Kind,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gossip,
    Broadcast,
    Unicast,
}

pub(crate) struct Net {
    setup: Setup,
    rng: ChaCha12Rng,
    hosts: Vec<Host>,
    wire: Vec<Message>,
    cut: BTreeSet<(usize, usize)>,
    now: Duration,
    next: u64,
    uids: u64,
    pub(crate) answered: u64,
    pub(crate) messages: u64,
    pub(crate) crashes: u64,
}

impl Net {
    pub(crate) fn new(setup: Setup, seed: u64) -> Net {
        let mut net = Net {
            rng: ChaCha12Rng::seed_from_u64(seed),
            hosts: Vec::new(),
            wire: Vec::new(),
            cut: BTreeSet::new(),
            now: Duration::ZERO,
            next: 0,
            uids: 0,
            answered: 0,
            messages: 0,
            crashes: 0,
            setup,
        };
        for index in 0..net.setup.hosts {
            let name = PeerName::from_number(0x10 + index as u64).unwrap();
            let mut config = Config::new(name, PeerUid(0), format!("host{index}"), net.setup.range);
            config.init = net.setup.init.clone();
            net.hosts.push(Host {
                config,
                allocator: None,
                disk: Loaded::default(),
                asked: BTreeMap::new(),
                cancelled: BTreeSet::new(),
                live: BTreeMap::new(),
                unclear: BTreeSet::new(),
                known: BTreeSet::new(),
            });
        }
        net
    }

    /// A whole run: random steps, then peace, after which everybody is served.
    pub(crate) fn run(&mut self) -> Result<(), Fault> {
        for index in 0..self.hosts.len() {
            self.start(index)?;
        }
        for _ in 0..self.setup.steps {
            self.step()?;
            self.check()?;
        }
        self.settle()
    }

    fn now(&self) -> Now {
        Now { mono: Instant::from_origin(self.now), wall: Duration::from_secs(1_700_000_000) + self.now }
    }

    fn start(&mut self, index: usize) -> Result<(), Fault> {
        self.uids += 1;
        let rng = ChaCha12Rng::seed_from_u64(self.rng.random());
        let now = self.now();
        let host = &mut self.hosts[index];
        host.config.uid = PeerUid(self.uids);
        let allocator = Allocator::new(host.config.clone(), rng, host.disk.clone(), now);
        for (container, addr) in &host.live {
            let has = allocator.owned().get(container);
            if !has.is_some_and(|record| record.cidrs.iter().any(|cidr| cidr.addr() == *addr)) {
                return Err(format!("S6: {container} has lost {addr} over a restart"));
            }
        }
        for container in allocator.owned().keys() {
            if !host.live.contains_key(container) && !host.unclear.contains(container) {
                return Err(format!("S6: {container} has got its address back by a restart"));
            }
        }
        host.allocator = Some(allocator);
        self.drain(index)?;
        // The driver releases what it does not know of.
        for container in self.hosts[index].unclear.clone() {
            if !self.hosts[index].live.contains_key(&container) {
                self.with(index, |allocator, now| drop(allocator.delete(&container, now)))?;
            }
            if self.hosts[index].allocator.is_some() {
                self.hosts[index].unclear.remove(&container);
            }
        }
        self.topology()
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        !self.cut.contains(&(a.min(b), a.max(b)))
            && self.hosts[a].allocator.is_some()
            && self.hosts[b].allocator.is_some()
    }

    fn topology(&mut self) -> Result<(), Fault> {
        let now = self.now();
        for index in 0..self.hosts.len() {
            let reachable: BTreeMap<PeerName, String> = (0..self.hosts.len())
                .filter(|&other| other != index && self.linked(index, other))
                .map(|other| (self.hosts[other].config.name, self.hosts[other].config.nickname.clone()))
                .collect();
            let names: BTreeSet<PeerName> = reachable.keys().copied().collect();
            let host = &mut self.hosts[index];
            let fresh: Vec<PeerName> = names.difference(&host.known).copied().collect();
            host.known = names;
            if let Some(allocator) = &mut host.allocator {
                allocator.handle_topology_change(&reachable, now);
                self.drain(index)?;
            }
            // A new connection begins with everything that is known.
            for name in fresh {
                let other = self.index(name);
                self.gossip(index, other)?;
            }
        }
        Ok(())
    }

    fn index(&self, name: PeerName) -> usize {
        (name.number() - 0x10) as usize
    }

    fn gossip(&mut self, from: usize, to: usize) -> Result<(), Fault> {
        let now = self.now();
        let Some(allocator) = &mut self.hosts[from].allocator else { return Ok(()) };
        let bytes = allocator.state(now);
        if self.drain(from)? {
            self.wire.push(Message { from, to, kind: Kind::Gossip, bytes });
        }
        Ok(())
    }

    /// Does something with a host, then what it asks for.
    fn with(&mut self, index: usize, act: impl FnOnce(&mut Allocator, Now)) -> Result<(), Fault> {
        let now = self.now();
        if let Some(allocator) = &mut self.hosts[index].allocator {
            act(allocator, now);
            self.drain(index)?;
        }
        Ok(())
    }

    /// Does what a host asks for, unless it crashes in between; false if it did.
    fn drain(&mut self, index: usize) -> Result<bool, Fault> {
        let crash = self.setup.crashes && self.rng.random_bool(0.003);
        let mut left = if crash { self.rng.random_range(0..4) } else { usize::MAX };
        loop {
            let Some(allocator) = &mut self.hosts[index].allocator else { return Ok(false) };
            if left == 0 {
                self.crash(index);
                return Ok(false);
            }
            left = left.saturating_sub(1);
            let Some(output) = allocator.poll_output() else { break };
            self.carry_out(index, output)?;
        }
        if let Some(allocator) = &self.hosts[index].allocator {
            allocator.check_invariants().map_err(|error| format!("host{index}: {error}"))?;
        }
        Ok(true)
    }

    fn crash(&mut self, index: usize) {
        self.crashes += 1;
        let host = &mut self.hosts[index];
        host.allocator = None;
        host.unclear.extend(host.asked.values().cloned());
        host.asked.clear();
        host.cancelled.clear();
        host.known.clear();
    }

    fn carry_out(&mut self, index: usize, output: Output) -> Result<(), Fault> {
        match output {
            Output::Persist(persist) => self.hosts[index].disk.apply(&persist),
            Output::Broadcast(bytes) => {
                self.said(index, &bytes)?;
                for to in 0..self.hosts.len() {
                    if to != index && self.linked(index, to) {
                        self.wire.push(Message {
                            from: index,
                            to,
                            kind: Kind::Broadcast,
                            bytes: bytes.clone(),
                        });
                    }
                }
            }
            Output::Unicast { to, payload } => {
                if let Some(&1) = payload.first() {
                    self.said(index, &payload[1..])?;
                }
                let to = self.index(to);
                if self.linked(index, to) {
                    self.wire.push(Message { from: index, to, kind: Kind::Unicast, bytes: payload });
                }
            }
            Output::Done(request, result) => {
                let host = &mut self.hosts[index];
                let Some(container) = host.asked.remove(&request) else {
                    return Err(format!("S12: {request:?} answered twice: {result:?}"));
                };
                self.answered += 1;
                let was_cancelled = host.cancelled.remove(&request);
                let addr = match result {
                    Ok(Answer::Allocated(cidr)) => cidr.addr(),
                    _ => return Ok(()),
                };
                if was_cancelled {
                    return Err(format!("S12: {request:?} was cancelled, and has got {addr}"));
                }
                let stored = host.disk.owned.get(&container);
                if !stored.is_some_and(|record| record.cidrs.iter().any(|cidr| cidr.addr() == addr)) {
                    return Err(format!("S6: {addr} was answered before it was on the disk"));
                }
                if let Some(had) = host.live.insert(container.clone(), addr)
                    && had != addr
                {
                    return Err(format!("S5: {container} had {had}, and now {addr}"));
                }
            }
            Output::Event(_) => {}
        }
        Ok(())
    }

    /// What others are told must be on the disk.
    fn said(&self, index: usize, bytes: &[u8]) -> Result<(), Fault> {
        let host = &self.hosts[index];
        let state = StateMessage::decode(bytes).map_err(|error| error.to_string())?;
        if state.ring.is_some() && state.ring != host.disk.ring {
            return Err("S6: a ring was sent before it was on the disk".to_owned());
        }
        for (node, claims) in state.paxos.iter().flatten() {
            if node.name == host.config.name
                && host.disk.election.as_ref().is_some_and(|e| e.elector == *node && e.state != *claims)
            {
                return Err("S6: a promise was sent before it was on the disk".to_owned());
            }
            let mine = host.allocator.as_ref().and_then(|a| a.paxos()).map(|paxos| paxos.own());
            if mine == Some(*node) && host.disk.election.is_none() {
                return Err("S6: a promise was sent before it was on the disk".to_owned());
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Fault> {
        let count = self.hosts.len();
        let index = self.rng.random_range(0..count);
        match self.rng.random_range(0..100) {
            0..14 => self.allocate(index)?,
            14..19 => self.claim(index)?,
            19..26 => {
                let live: Vec<String> = self.hosts[index].live.keys().cloned().collect();
                if let Some(container) = live.choose(&mut self.rng).cloned()
                    && self.hosts[index].allocator.is_some()
                {
                    self.hosts[index].live.remove(&container);
                    self.hosts[index].unclear.insert(container.clone());
                    self.with(index, |allocator, now| drop(allocator.delete(&container, now)))?;
                    if self.hosts[index].allocator.is_some() {
                        self.hosts[index].unclear.remove(&container);
                    }
                }
            }
            26..29 => {
                let asked: Vec<RequestId> = self.hosts[index].asked.keys().copied().collect();
                if let Some(&request) = asked.choose(&mut self.rng) {
                    self.hosts[index].cancelled.insert(request);
                    self.with(index, |allocator, now| allocator.cancel(request, now))?;
                }
            }
            29..34 => {
                self.now += Duration::from_millis(self.rng.random_range(100..6000));
                for index in 0..count {
                    self.with(index, |allocator, now| allocator.handle_timeout(now))?;
                }
            }
            34..38 => {
                let other = self.rng.random_range(0..count);
                let link = (index.min(other), index.max(other));
                if index != other && !self.cut.remove(&link) {
                    self.cut.insert(link);
                }
                self.topology()?;
            }
            38..41 if self.setup.crashes => {
                if self.hosts[index].allocator.is_some() && self.rng.random_bool(0.2) {
                    self.crash(index);
                    self.topology()?;
                }
            }
            41..48 => {
                for index in 0..count {
                    if self.hosts[index].allocator.is_none() {
                        self.start(index)?;
                    }
                }
            }
            48..55 => {
                let other = self.rng.random_range(0..count);
                if other != index && self.linked(index, other) {
                    self.gossip(index, other)?;
                }
            }
            _ => self.deliver()?,
        }
        Ok(())
    }

    fn request(&mut self, index: usize, container: &str) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        self.hosts[index].asked.insert(id, container.to_owned());
        id
    }

    fn allocate(&mut self, index: usize) -> Result<(), Fault> {
        if self.hosts[index].allocator.is_none() {
            return Ok(());
        }
        let container = format!("{index}-{}", self.rng.random_range(0..6));
        if self.hosts[index].asked.values().any(|c| *c == container) {
            return Ok(());
        }
        let id = self.request(index, &container);
        let subnet = self.setup.range;
        self.with(index, |allocator, now| allocator.allocate(id, container, subnet, true, now))
    }

    /// A claim and its answer are followed at once or given up: what matters is whose address it takes.
    fn claim(&mut self, index: usize) -> Result<(), Fault> {
        if self.hosts[index].allocator.is_none() {
            return Ok(());
        }
        let range = self.setup.range.range();
        let addr = self.rng.random_range(range.start()..range.end());
        let cidr = weave_types::Cidr::new(IpAddr::V4(addr.into()), self.setup.range.prefix()).unwrap();
        // Other names than those of allocations: the same container may not have two.
        let container = format!("claim-{index}-{addr}");
        let id = self.request(index, &container);
        self.hosts[index].unclear.insert(container.clone());
        let result = self.with(index, |allocator, now| {
            allocator.claim(id, container.clone(), cidr, true, false, now);
        });
        result?;
        let host = &mut self.hosts[index];
        match &host.allocator {
            None => {}
            Some(allocator) if allocator.owned().contains_key(&container) => {
                host.unclear.remove(&container);
                host.live.insert(container, cidr.addr());
            }
            Some(_) if host.asked.contains_key(&id) => {
                host.cancelled.insert(id);
                self.with(index, |allocator, now| allocator.cancel(id, now))?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn deliver(&mut self) -> Result<(), Fault> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let at = self.rng.random_range(0..self.wire.len().min(12));
        // Sometimes it comes again later.
        let repeat = self.rng.random_bool(0.05);
        let message = if repeat { self.wire[at].clone() } else { self.wire.remove(at) };
        if !self.linked(message.from, message.to) || self.rng.random_bool(0.05) {
            return Ok(());
        }
        self.receive(message)
    }

    fn receive(&mut self, message: Message) -> Result<(), Fault> {
        self.messages += 1;
        let (now, src) = (self.now(), self.hosts[message.from].config.name);
        let Some(allocator) = &mut self.hosts[message.to].allocator else { return Ok(()) };
        let result = match message.kind {
            Kind::Gossip => allocator.handle_gossip(&message.bytes, now).map(drop),
            Kind::Broadcast => allocator.handle_broadcast(src, &message.bytes, now).map(drop),
            Kind::Unicast => allocator.handle_unicast(src, &message.bytes, now),
        };
        if let Err(error) = result {
            let what = Unicast::decode(&message.bytes);
            return Err(match error {
                GossipError::Malformed(error) => {
                    format!("S8: a message of ours is malformed: {error}, {what:?}")
                }
                GossipError::Conflict(error) => format!("L8: conflict without a cause: {error}"),
            });
        }
        self.drain(message.to)?;
        Ok(())
    }

    /// What must hold at any time (docs/spec/ipam.md 16.2).
    fn check(&self) -> Result<(), Fault> {
        let mut users: BTreeMap<IpAddr, &str> = BTreeMap::new();
        for (container, addr) in self.hosts.iter().flat_map(|host| &host.live) {
            if let Some(other) = users.insert(*addr, container) {
                return Err(format!("S1: {addr} is used by {other} and {container}"));
            }
        }
        let mut spaces: Vec<(usize, weave_ipam::AddrRange)> = Vec::new();
        let mut seeds = None;
        for (index, host) in self.hosts.iter().enumerate() {
            let Some(allocator) = &host.allocator else { continue };
            let space = allocator.space();
            for range in space.used().iter().chain(space.free().iter()) {
                if let Some((other, theirs)) = spaces.iter().find(|(o, r)| *o != index && r.overlaps(range)) {
                    return Err(format!("S2: host{index} has {range}, host{other} has {theirs}"));
                }
                spaces.push((index, range));
            }
            if !allocator.ring().is_empty() {
                let own = allocator.ring().seeds().to_vec();
                match &seeds {
                    None => seeds = Some(own),
                    Some(seeds) if *seeds != own => return Err(format!("S9: seeds {seeds:?} and {own:?}")),
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Peace: all run, all are connected, nothing is lost. Everybody must be served.
    fn settle(&mut self) -> Result<(), Fault> {
        self.setup.crashes = false;
        self.cut.clear();
        for index in 0..self.hosts.len() {
            if self.hosts[index].allocator.is_none() {
                self.start(index)?;
            }
        }
        self.topology()?;
        for index in 0..self.hosts.len() {
            self.allocate(index)?;
        }
        for round in 0..40 {
            let mut delivered = 0;
            while !self.wire.is_empty() {
                let message = self.wire.remove(0);
                self.receive(message)?;
                self.check()?;
                delivered += 1;
                if delivered > 400 * self.hosts.len() {
                    return Err(format!("L2: {delivered} messages within a tick"));
                }
            }
            if round > 20 && delivered == 0 && self.converged() {
                break;
            }
            self.now += Duration::from_secs(5);
            for index in 0..self.hosts.len() {
                self.with(index, |allocator, now| allocator.handle_timeout(now))?;
                self.gossip(index, (index + 1) % self.hosts.len())?;
            }
        }
        if !self.converged() {
            return Err("L5: rings differ after everything was healed".to_owned());
        }
        let waiting: usize = self.hosts.iter().map(|host| host.asked.len()).sum();
        let hosts = self.setup.range.hosts();
        let allocators = self.hosts.iter().filter_map(|host| host.allocator.as_ref());
        let free: u32 = allocators.map(|a| a.space().free().count_in(hosts)).sum();
        if waiting > 0 && free > 0 {
            return Err(format!("L2: {waiting} requests wait although {free} addresses are free"));
        }
        let versions = |net: &Net| {
            let allocators = net.hosts.iter().filter_map(|host| host.allocator.as_ref());
            allocators.flat_map(|a| a.ring().entries().iter().map(|e| e.version)).collect::<Vec<u32>>()
        };
        if waiting == 0 {
            let mut before = Vec::new();
            for _ in 0..3 {
                before = versions(self);
                for from in 0..self.hosts.len() {
                    for to in (0..self.hosts.len()).filter(|to| *to != from) {
                        self.gossip(from, to)?;
                        while !self.wire.is_empty() {
                            let message = self.wire.remove(0);
                            self.receive(message)?;
                        }
                    }
                }
            }
            if before != versions(self) {
                return Err("L5: versions rise although nothing happens".to_owned());
            }
        }
        let owned: u32 = self
            .hosts
            .iter()
            .filter_map(|host| host.allocator.as_ref())
            .map(|a| a.space().free().count() + a.space().used().count())
            .sum();
        if owned != 0 && owned != self.setup.range.range().size() {
            return Err(format!("{owned} addresses are left of {}", self.setup.range));
        }
        Ok(())
    }

    fn converged(&self) -> bool {
        let owners = |host: &Host| {
            let ring = host.allocator.as_ref().map(|a| a.ring().entries().to_vec()).unwrap_or_default();
            ring.iter().map(|e| (e.token, e.peer)).collect::<Vec<_>>()
        };
        self.hosts.windows(2).all(|pair| owners(&pair[0]) == owners(&pair[1]))
    }
}
