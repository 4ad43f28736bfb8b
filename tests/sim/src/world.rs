//! The simulation: hosts with real nodes or allocators, one network, a virtual clock, and one ordered queue of events.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::SocketAddr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::Allocator;
use weave_node::Output;
use weave_types::{ConnectionId, Instant, MacAddr, Now};

use crate::clock::Clock;
use crate::driver_fault::DriverFault;
use crate::frames;
use crate::host::{CrashKind, Host, HostOptions, HostOutput, Observation};
use crate::net::{Faults, HostId, Net, PORT};
use crate::tcp::{DIAL_TIMEOUT, End, Tcp, TcpEvent, listener};

enum Event {
    /// Scheduled by [`World::schedule`].
    External(u64),
    Wake(HostId, u32),
    DeliverStream(u64),
    Dial {
        from: End,
        to: SocketAddr,
    },
    DialTimeout {
        from: End,
        to: SocketAddr,
    },
    Datagram {
        to: HostId,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub events: u64,
    /// TCP bytes written by all nodes.
    pub tcp_bytes: u64,
    /// Writes by all nodes; about one per protocol message.
    pub tcp_writes: u64,
    pub datagrams: u64,
    /// Times that a node was woken by its timer.
    pub wakes: u64,
}

pub struct World {
    pub net: Net,
    pub counters: Counters,
    /// Outputs of address allocation that were not read yet, in order.
    pub(crate) observations: Vec<(HostId, Observation)>,
    /// Hosts whose peer had an input since this set was read.
    pub(crate) touched: BTreeSet<HostId>,
    hosts: BTreeMap<HostId, Host>,
    tcp: Tcp,
    queue: BinaryHeap<Reverse<(Instant, u64, EventBox)>>,
    sequence: u64,
    frames: u64,
    clock: Instant,
    /// Error of all wall clocks, seconds.
    wall_error: i64,
    rng: ChaCha12Rng,
}

/// An event in the heap, which orders events by time and sequence alone.
struct EventBox(Event);

impl PartialEq for EventBox {
    fn eq(&self, _: &EventBox) -> bool {
        true
    }
}

impl Eq for EventBox {}

impl PartialOrd for EventBox {
    fn partial_cmp(&self, other: &EventBox) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for EventBox {
    fn cmp(&self, _: &EventBox) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl World {
    /// An empty world; all random decisions follow from the seed.
    pub fn new(seed: u64, faults: Faults) -> World {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let net = Net::new(faults, ChaCha12Rng::seed_from_u64(rng.random()));
        World {
            net,
            counters: Counters::default(),
            observations: Vec::new(),
            touched: BTreeSet::new(),
            hosts: BTreeMap::new(),
            tcp: Tcp::default(),
            queue: BinaryHeap::new(),
            sequence: 0,
            frames: 0,
            clock: Instant::ORIGIN,
            wall_error: 0,
            rng,
        }
    }

    /// The virtual time.
    pub fn now(&self) -> Now {
        Clock { wall_error: self.wall_error, ..Clock::default() }.read(self.clock)
    }

    pub(crate) fn clock(&self) -> Instant {
        self.clock
    }

    /// The time on a host.
    pub(crate) fn now_at(&self, id: HostId) -> Now {
        let mut clock = self.hosts.get(&id).map(|host| host.clock).unwrap_or_default();
        clock.wall_error += self.wall_error;
        clock.read(self.clock)
    }

    /// Sets all wall clocks.
    pub fn jump_wall_clock(&mut self, seconds: i64) {
        self.wall_error += seconds;
    }

    pub fn hosts(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter()
    }

    pub fn host(&self, id: HostId) -> &Host {
        &self.hosts[&id]
    }

    pub fn host_mut(&mut self, id: HostId) -> &mut Host {
        self.hosts.get_mut(&id).expect("host was added")
    }

    /// Adds a host and starts its peer with these targets.
    pub fn add(&mut self, id: HostId, options: HostOptions, targets: &[HostId]) {
        self.add_stopped(id, options);
        self.start(id, targets);
    }

    /// Adds a host whose peer is not started yet.
    pub(crate) fn add_stopped(&mut self, id: HostId, options: HostOptions) {
        let seed = self.rng.random();
        let mut host = Host::new(id, options, seed);
        host.containers.insert(container_mac(id, 0));
        self.hosts.insert(id, host);
    }

    /// Starts the peer of a host that is down, with these targets, or with the persisted ones if there are none.
    pub fn start(&mut self, id: HostId, targets: &[HostId]) {
        let now = self.now_at(id);
        self.net.set_power(id, true);
        let host = self.hosts.get_mut(&id).expect("host was added");
        host.start(now);
        let targets = if targets.is_empty() { host.disk.targets.clone() } else { addresses(targets) };
        if let Some(node) = host.node.as_mut() {
            let refused = node.connect(&targets, true, now);
            assert!(refused.is_empty(), "targets refused: {refused:?}");
        }
        self.process_outputs(id);
    }

    /// Ends a peer, if it is running.
    pub(crate) fn end(&mut self, id: HostId, crash: CrashKind) {
        if self.host(id).is_running() {
            match crash {
                CrashKind::Killed => self.crash(id),
                CrashKind::PowerLost => self.lose_power(id),
            }
        }
    }

    /// Takes the power from a host: its connections are not closed, and nothing answers until it is started again.
    pub fn lose_power(&mut self, id: HostId) {
        let host = self.hosts.get_mut(&id).expect("host was added");
        if host.is_running() {
            host.crash();
            self.net.set_power(id, false);
            for end in self.tcp.ends_of(id) {
                self.tcp.power_lost(end);
            }
        }
    }

    /// Ends a peer as SIGKILL does: connections are reset, and only the disk is kept.
    pub fn crash(&mut self, id: HostId) {
        let host = self.hosts.get_mut(&id).expect("host was added");
        host.crash();
        for end in self.tcp.ends_of(id) {
            let due = self.tcp.close(end, "read: connection reset by peer", self.clock);
            self.schedule_delivery(due);
        }
    }

    /// Handles an input of a running node, and its outputs.
    pub fn with_node(&mut self, id: HostId, input: impl FnOnce(&mut weave_node::Node, Now)) {
        let now = self.now_at(id);
        if let Some(node) = self.hosts.get_mut(&id).and_then(|h| h.node.as_mut()) {
            input(node, now);
            self.process_outputs(id);
        }
    }

    /// Handles an input of a running allocator, in a node or alone, and its outputs.
    pub(crate) fn with_allocator<R>(
        &mut self,
        id: HostId,
        input: impl FnOnce(&mut Allocator, Now) -> R,
    ) -> Option<R> {
        let now = self.now_at(id);
        let result = self.hosts.get_mut(&id)?.with_allocator(now, input);
        self.process_outputs(id);
        result
    }

    /// A container on `from` sends a frame.
    pub fn send_frame(&mut self, from: HostId, frame: &[u8]) {
        let now = self.now_at(from).mono;
        if let Some(host) = self.hosts.get_mut(&from) {
            host.local_frame(frame, now);
            self.process_outputs(from);
        }
    }

    /// A container of `from` sends a frame to one of `to`; returns the number of the frame if both hosts have a container.
    pub fn send_unicast(&mut self, from: HostId, to: HostId) -> Option<u64> {
        let dst = *self.host(to).containers.first()?;
        self.send(from, dst)
    }

    /// A container of `from` sends a broadcast; returns the number of the frame if there is a container.
    pub fn send_broadcast(&mut self, from: HostId) -> Option<u64> {
        self.send(from, MacAddr::BROADCAST)
    }

    fn send(&mut self, from: HostId, dst: MacAddr) -> Option<u64> {
        let src = *self.host(from).containers.first()?;
        Some(self.send_sized(from, src, dst, frames::SHORTEST))
    }

    /// A container of `from` sends a frame of `len` bytes to one of `to`.
    pub fn send_long(&mut self, from: HostId, to: HostId, len: usize) -> Option<u64> {
        let src = *self.host(from).containers.first()?;
        let dst = *self.host(to).containers.first()?;
        Some(self.send_sized(from, src, dst, len))
    }

    fn send_sized(&mut self, from: HostId, src: MacAddr, dst: MacAddr, len: usize) -> u64 {
        self.frames += 1;
        let number = self.frames;
        self.send_frame(from, &frames::build(src, dst, frames::Stamp { from, number }, len));
        number
    }

    /// A container moves with its MAC.
    pub fn move_container(&mut self, from: HostId, to: HostId) {
        if let Some(mac) = self.host_mut(from).containers.pop_first() {
            self.host_mut(to).containers.insert(mac);
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.clock + time;
        while self.queue.peek().is_some_and(|Reverse((at, _, _))| *at <= end) {
            self.step();
        }
        self.clock = end;
    }

    /// Time of the next event.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Sets the clock forward; there must be no event before that time.
    pub(crate) fn advance(&mut self, to: Instant) {
        self.clock = self.clock.max(to);
    }

    /// Number of events to come.
    pub(crate) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Schedules an event; [`World::step`] returns its number when it is due.
    pub(crate) fn schedule(&mut self, after: Duration) -> u64 {
        self.push(self.clock + after, Event::External(self.sequence + 1));
        self.sequence
    }

    /// The largest number of unread bytes in a stream.
    pub(crate) fn most_unread(&self) -> usize {
        self.tcp.most_unread()
    }

    /// Resets all connections; bytes in transit are lost.
    pub(crate) fn reset_connections(&mut self) {
        const RESET: &str = "read: connection reset by peer";
        for end in self.tcp.reset_all() {
            if self.is_current(end) {
                self.with_node(end.host, |node, now| node.handle_closed(end.conn, RESET.to_owned(), now));
            }
        }
    }

    /// Runs until a condition holds, which is checked every 50 ms of virtual time; false if it does not within `limit`.
    pub fn run_until(&mut self, limit: Duration, mut holds: impl FnMut(&World) -> bool) -> bool {
        let end = self.clock + limit;
        loop {
            if holds(self) {
                return true;
            }
            if self.clock >= end {
                return false;
            }
            self.run_for(Duration::from_millis(50));
        }
    }

    /// Handles the next event; returns the number of an event from [`World::schedule`].
    pub(crate) fn step(&mut self) -> Option<u64> {
        let Reverse((at, _, EventBox(event))) = self.queue.pop()?;
        self.clock = self.clock.max(at);
        self.counters.events += 1;
        match event {
            Event::External(number) => return Some(number),
            Event::Wake(id, wake) => {
                let now = self.now_at(id);
                let host = self.hosts.get_mut(&id).filter(|host| host.wake == wake)?;
                if !host.fault_occurs(DriverFault::LoseTimers, 3) && host.handle_timeout(now) {
                    self.counters.wakes += 1;
                    host.wakes += 1;
                    self.process_outputs(id);
                }
            }
            Event::DeliverStream(id) => self.deliver_stream(id),
            Event::Dial { from, to } => self.dial(from, to),
            Event::DialTimeout { from, to } => {
                let text = format!("dial tcp :0->{to}: connect: connection timed out");
                self.dial_failed(from, text);
            }
            Event::Datagram { to, from, bytes } => {
                let now = self.now_at(to);
                if let Some(host) = self.hosts.get_mut(&to) {
                    host.datagram(from, bytes, now.mono);
                    self.process_outputs(to);
                }
            }
        }
        None
    }

    fn deliver_stream(&mut self, id: u64) {
        let (events, again) = self.tcp.deliver_stream(id, self.clock, &mut self.net);
        if let Some(at) = again {
            self.push(at, Event::DeliverStream(id));
        }
        for event in events {
            let end = match &event {
                TcpEvent::Bytes(end, _) | TcpEvent::Written(end, _) | TcpEvent::Closed(end, _) => *end,
            };
            let now = self.now_at(end.host);
            let Some(host) = self.hosts.get_mut(&end.host).filter(|h| h.incarnation == end.incarnation)
            else {
                continue;
            };
            if host.options.driver_fault == Some(DriverFault::LoseWrittenReports)
                && matches!(event, TcpEvent::Written(..))
            {
                continue;
            }
            let Some(node) = host.node.as_mut() else { continue };
            match event {
                TcpEvent::Bytes(_, bytes) => node.handle_stream(end.conn, &bytes, now),
                TcpEvent::Written(_, bytes) => node.handle_written(end.conn, bytes, now),
                TcpEvent::Closed(_, why) => node.handle_closed(end.conn, why.to_owned(), now),
            }
            self.process_outputs(end.host);
        }
    }

    fn dial(&mut self, from: End, to: SocketAddr) {
        let target = HostId::from_ip(to.ip());
        let reachable = target.is_some_and(|t| t == from.host || self.net.dialable(from.host, t));
        if !reachable {
            self.push(self.clock + DIAL_TIMEOUT, Event::DialTimeout { from, to });
            return;
        }
        let target = target.expect("reachable implies a target");
        let now = self.now_at(target);
        let local = SocketAddr::new(from.host.ip(), self.rng.random_range(32768..61000));
        let accepted = match self.hosts.get_mut(&target) {
            Some(host) if to.port() == PORT => {
                let incarnation = host.incarnation;
                host.node
                    .as_mut()
                    .and_then(|node| node.handle_accepted(listener(target, PORT), local, now))
                    .map(|conn| End { host: target, incarnation, conn })
            }
            _ => None,
        };
        let Some(acceptor) = accepted else {
            self.dial_failed(from, format!("dial tcp :0->{to}: connect: connection refused"));
            return;
        };
        self.tcp.open(from, acceptor);
        self.process_outputs(target);
        if self.is_current(from) {
            self.with_node(from.host, |node, now| node.handle_dialled(from.conn, local, to, now));
        } else {
            let due = self.tcp.close(from, "read: connection reset by peer", self.clock);
            self.schedule_delivery(due);
        }
    }

    fn dial_failed(&mut self, from: End, error: String) {
        if self.is_current(from) {
            self.with_node(from.host, |node, now| node.handle_dial_failed(from.conn, error, now));
        }
    }

    fn is_current(&self, end: End) -> bool {
        self.hosts.get(&end.host).is_some_and(|h| h.incarnation == end.incarnation && h.node.is_some())
    }

    /// Handles all outputs of a host, and schedules its next wake-up.
    fn process_outputs(&mut self, id: HostId) {
        self.touched.insert(id);
        loop {
            let now = self.now_at(id);
            let Some(host) = self.hosts.get_mut(&id) else { return };
            let incarnation = host.incarnation;
            let output = host.next_output(now);
            let planned_crash = host.crash_due();
            self.observations.extend(host.observations.drain(..).map(|observations| (id, observations)));
            if let Some(planned_crash) = planned_crash {
                let last = host.share_allocator();
                let died = last.map(|allocator| Observation::Crashed(planned_crash, allocator));
                self.observations.extend(died.map(|died| (id, died)));
                return self.end(id, planned_crash);
            }
            let output = match output {
                Some(HostOutput::Node(Output::Write { .. }))
                    if host.fault_occurs(DriverFault::LoseWrites, 50) =>
                {
                    continue;
                }
                Some(HostOutput::Node(Output::Write { conn, mut bytes }))
                    if host.fault_occurs(DriverFault::RepeatWrites, 50) =>
                {
                    bytes.extend_from_within(..);
                    Some(HostOutput::Node(Output::Write { conn, bytes }))
                }
                output => output,
            };
            let end = |conn: ConnectionId| End { host: id, incarnation, conn };
            match output {
                Some(HostOutput::Node(Output::Dial { conn, addr })) => {
                    let at = self.clock + self.net.delay();
                    self.push(at, Event::Dial { from: end(conn), to: addr });
                }
                Some(HostOutput::Node(Output::Write { conn, bytes })) => {
                    self.counters.tcp_bytes += bytes.len() as u64;
                    self.counters.tcp_writes += 1;
                    let due = self.tcp.write(end(conn), bytes, self.clock, &mut self.net);
                    self.schedule_delivery(due);
                }
                Some(HostOutput::Node(Output::Close { conn })) => {
                    let due = self.tcp.close(end(conn), "read: connection reset by peer", self.clock);
                    self.schedule_delivery(due);
                }
                Some(HostOutput::Datagram { to, df, bytes }) => self.send_datagram(id, to, df, bytes),
                Some(HostOutput::Node(_) | HostOutput::Internal) => {}
                None => break,
            }
        }
        let now = self.now();
        let host = self.hosts.get_mut(&id).expect("it was there above");
        if let Some((at, reason)) = host.poll_timeout() {
            let mut at = host.clock.when(at).max(now.mono);
            if host.options.driver_fault == Some(DriverFault::SpuriousWakeups) {
                at = at.min(now.mono + Duration::from_millis(100));
            }
            if host.next_wake != Some(at) {
                host.next_wake = Some(at);
                host.wake_reason = reason;
                host.wake += 1;
                let (wake, late) = (host.wake, host.lateness());
                self.push(at + late, Event::Wake(id, wake));
            }
        }
    }

    fn send_datagram(&mut self, from: HostId, to: SocketAddr, df: bool, bytes: Vec<u8>) {
        self.counters.datagrams += 1;
        let Some(target) = HostId::from_ip(to.ip()).filter(|_| to.port() == PORT) else { return };
        for delay in self.net.datagram(from, target, bytes.len(), df, self.clock) {
            let event = Event::Datagram { to: target, from: listener(from, PORT), bytes: bytes.clone() };
            self.push(self.clock + delay, event);
        }
    }

    fn schedule_delivery(&mut self, due: Option<(u64, Instant)>) {
        if let Some((id, at)) = due {
            self.push(at, Event::DeliverStream(id));
        }
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at, self.sequence, EventBox(event))));
    }
}

/// The addresses of hosts, as a user types targets.
pub fn addresses(hosts: &[HostId]) -> Vec<String> {
    hosts.iter().map(|h| h.ip().to_string()).collect()
}

/// The MAC of the `n`th container of a host.
fn container_mac(host: HostId, n: u8) -> MacAddr {
    let [high, low] = host.0.to_be_bytes();
    MacAddr([0x02, 0xc0, high, low, 0, n])
}
