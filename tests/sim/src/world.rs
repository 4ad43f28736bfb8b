//! The simulation: hosts with real nodes or allocators, one network, a virtual clock, and one ordered queue of events.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::Allocator;
use weave_mesh::{Departure, StreamEnd};
use weave_node::{Node, Output};
use weave_types::{ConnectionId, Instant, MacAddr, Now};

use crate::clock::Clock;
use crate::driver_fault::DriverFault;
use crate::frames;
use crate::host::{CrashKind, Host, HostOptions, HostOutput, Observation};
use crate::kernel::Kernel;
use crate::net::{Faults, HostId, Net, PORT, VXLAN_PORT};
use crate::tcp::{DIAL_TIMEOUT, End, Tcp, TcpEvent};

/// Events of a host in a second at most; usually it has a few hundred when peers connect.
const MAX_EVENTS: u64 = 20_000;
const CONNECTION_RESET: &str = "read: connection reset by peer";

enum Event {
    /// Scheduled by [`World::schedule`], with the number of the event.
    External(u64),
    /// A timer of a host, with the number of the wake-up: a later one replaces it.
    Wake(HostId, u32),
    /// On the connection with this number.
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
    /// What happened at one end of a connection while its host was busy.
    Stream(End, TcpEvent),
}

impl Event {
    /// The host that has to handle the event, if one has to.
    fn host(&self) -> Option<HostId> {
        match self {
            Event::External(_) | Event::DeliverStream(_) => None,
            Event::Wake(host, _) | Event::Datagram { to: host, .. } => Some(*host),
            Event::Dial { to, .. } => HostId::from_ip(to.ip()),
            Event::DialTimeout { from: end, .. } | Event::Stream(end, _) => Some(end.host),
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    pub events: u64,
    /// TCP bytes written by all nodes.
    pub tcp_bytes: u64,
    /// Writes by all nodes; about one per protocol message.
    pub tcp_writes: u64,
}

pub struct World {
    pub net: Net,
    pub counters: Counters,
    /// Outputs of address allocation that were not read yet, in their order.
    pub(crate) observations: Vec<(HostId, Observation)>,
    /// Hosts whose peer had an input since this set was last emptied.
    pub(crate) touched: BTreeSet<HostId>,
    hosts: BTreeMap<HostId, Host>,
    tcp: Tcp,
    /// Events to come, by time and in the order in which they were scheduled.
    queue: BTreeMap<(Instant, u64), Event>,
    /// Number of the event that was scheduled last.
    sequence: u64,
    /// Number of frames that containers have sent.
    frames: u64,
    clock: Instant,
    /// Error of all wall clocks, seconds.
    wall_error: i64,
    rng: ChaCha12Rng,
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
            queue: BTreeMap::new(),
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

    /// The peer of a host does not run for this time.
    pub fn pause(&mut self, id: HostId, time: Duration) {
        let now = self.clock;
        self.host_mut(id).load.pause(time, now);
    }

    /// A host is slow for this time: its peer does not run for up to `longest`, again and again.
    pub fn slow_down(&mut self, id: HostId, time: Duration, longest: Duration) {
        let now = self.clock;
        self.host_mut(id).load.slow_down(time, longest, now);
    }

    /// The network card of a host no longer loses what it has cut.
    pub fn repair_segmentation(&mut self, id: HostId) {
        self.host_mut(id).options.loses_segments = false;
    }

    /// No further pauses begin.
    pub(crate) fn end_load(&mut self) {
        self.hosts.values_mut().for_each(|host| host.load.end());
    }

    /// Sets all wall clocks.
    pub fn jump_wall_clock(&mut self, seconds: i64) {
        self.wall_error += seconds;
    }

    pub fn hosts(&self) -> impl Iterator<Item = (&HostId, &Host)> {
        self.hosts.iter()
    }

    pub(crate) fn ids(&self) -> Vec<HostId> {
        self.hosts.keys().copied().collect()
    }

    /// The running nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.hosts.values().filter_map(|host| host.node.as_ref())
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
        host.containers.insert(container_mac(id));
        self.hosts.insert(id, host);
    }

    /// Starts the peer of a host that is down, with these targets, or with the persisted ones if there are none.
    pub fn start(&mut self, id: HostId, targets: &[HostId]) {
        let now = self.now_at(id);
        self.net.set_power(id, true);
        let host = self.host_mut(id);
        host.start(now);
        let targets = if targets.is_empty() { host.disk.targets.clone() } else { addresses(targets) };
        if let Some(node) = &mut host.node {
            let refused = node.connect(&targets, true, now);
            assert!(refused.is_empty(), "targets refused: {refused:?}");
        }
        self.process_outputs(id);
    }

    /// A peer announces that it ends.
    pub fn shut_down(&mut self, id: HostId, departure: Departure) {
        let kernel = &mut self.host_mut(id).kernel;
        match departure {
            Departure::Restart => kernel.leave(),
            Departure::Leave => *kernel = Kernel::default(),
        }
        self.with_node(id, |node, now| node.shutdown(departure, now));
    }

    /// Ends a peer, if it is running. Only the disk is kept. A host without power does not answer until it is started again.
    pub fn crash(&mut self, id: HostId, kind: CrashKind) {
        if !self.host(id).is_running() {
            return;
        }
        self.host_mut(id).crash();
        for end in self.tcp.ends_of(id) {
            match kind {
                CrashKind::Killed => self.close(end),
                CrashKind::PowerLost => self.tcp.power_lost(end),
            }
        }
        if kind == CrashKind::PowerLost {
            self.net.set_power(id, false);
            self.host_mut(id).kernel = Kernel::default();
        }
    }

    /// `weave connect`: adds targets to a running node, which dials them at once.
    pub(crate) fn connect(&mut self, id: HostId, targets: &[String]) {
        self.with_node(id, |node, now| {
            node.connect(targets, false, now);
        });
    }

    /// `weave forget`.
    pub(crate) fn forget(&mut self, id: HostId, target: HostId) {
        self.with_node(id, |node, now| node.forget(&addresses(&[target]), now));
    }

    /// Handles an input of a running node, and its outputs.
    pub fn with_node(&mut self, id: HostId, input: impl FnOnce(&mut Node, Now)) {
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

    /// A container of `from` sends a frame of `len` bytes to one of `to`; returns the number of the frame if both hosts have a
    /// container.
    pub(crate) fn send_unicast(&mut self, from: HostId, to: HostId, len: usize) -> Option<u64> {
        let dst = *self.host(to).containers.first()?;
        self.send_frame(from, dst, len)
    }

    /// A container of `from` sends a broadcast; returns the number of the frame if there is a container.
    pub(crate) fn send_broadcast(&mut self, from: HostId) -> Option<u64> {
        self.send_frame(from, MacAddr::BROADCAST, frames::MIN_LEN)
    }

    fn send_frame(&mut self, from: HostId, dst: MacAddr, len: usize) -> Option<u64> {
        let now = self.now_at(from).mono;
        let host = self.hosts.get_mut(&from)?;
        let src = *host.containers.first()?;
        self.frames += 1;
        let number = self.frames;
        host.local_frame(&frames::build(src, dst, frames::Stamp { from, number }, len), now);
        self.process_outputs(from);
        Some(number)
    }

    /// Removes all frames that were delivered to containers; returns how often each host received the frame with this number.
    pub(crate) fn take_deliveries(&mut self, number: u64) -> BTreeMap<HostId, usize> {
        let mut counts = BTreeMap::new();
        for (&id, host) in &mut self.hosts {
            let delivered = std::mem::take(&mut host.delivered);
            let count =
                delivered.iter().filter(|f| frames::read(f).is_some_and(|s| s.number == number)).count();
            if count > 0 {
                counts.insert(id, count);
            }
        }
        counts
    }

    /// A container moves with its MAC.
    pub(crate) fn move_container(&mut self, from: HostId, to: HostId) {
        if let Some(mac) = self.host_mut(from).containers.pop_first() {
            self.host_mut(to).containers.insert(mac);
        }
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.clock + time;
        let most = MAX_EVENTS * self.hosts.len() as u64 * (time.as_secs() + 1);
        let last = self.counters.events + most;
        while self.next_event().is_some_and(|at| at <= end) {
            assert!(self.counters.events < last, "message storm: {most} events in {time:?}");
            self.step();
        }
        self.clock = end;
    }

    /// Time of the next event.
    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Sets the clock forward to a time before which there is no event.
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
        for end in self.tcp.reset_all() {
            if self.is_current(end) {
                self.with_node(end.host, |node, now| {
                    node.handle_closed(end.conn, StreamEnd::ByRemote(CONNECTION_RESET.to_owned()), now);
                });
            }
        }
    }

    /// Runs until a condition holds, which is checked every 50 ms of virtual time; false if it does not hold within `limit`.
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
        let ((at, _), event) = self.queue.pop_first()?;
        self.clock = self.clock.max(at);
        self.counters.events += 1;
        let event = self.unless_busy(event)?;
        match event {
            Event::External(number) => return Some(number),
            Event::Wake(id, wake) => {
                let now = self.now_at(id);
                let host = self.hosts.get_mut(&id).filter(|host| host.wake_id == wake)?;
                // The next timer may be due at this time, too.
                host.next_wake = None;
                if !host.fault_occurs(DriverFault::LoseTimers, 3) && host.handle_timeout(now) {
                    host.wakes += 1;
                    self.process_outputs(id);
                }
            }
            Event::DeliverStream(id) => self.deliver_stream(id),
            Event::Stream(end, event) => self.handle_stream_event(end, event),
            Event::Dial { from, to } => self.dial(from, to),
            Event::DialTimeout { from, to } => {
                let text = format!("dial tcp :0->{to}: connect: connection timed out");
                self.dial_failed(from, text);
            }
            Event::Datagram { to, from, bytes } => {
                let now = self.now_at(to);
                if let Some(host) = self.hosts.get_mut(&to) {
                    match from.ip() {
                        IpAddr::V4(ip) if from.port() == VXLAN_PORT => {
                            host.handle_packet(ip, &bytes, now.mono);
                        }
                        _ => host.handle_datagram(from, bytes, now.mono),
                    }
                    self.process_outputs(to);
                }
            }
        }
        None
    }

    /// The event, if its host can handle it now; otherwise it waits.
    fn unless_busy(&mut self, event: Event) -> Option<Event> {
        let now = self.clock;
        let host = event.host().and_then(|id| self.hosts.get_mut(&id));
        let Some((host, until)) = host.and_then(|host| host.busy_until(now).map(|until| (host, until)))
        else {
            return Some(event);
        };
        if !matches!(event, Event::Datagram { .. }) || host.load.keeps_datagram() {
            self.push(until, event);
        }
        None
    }

    fn deliver_stream(&mut self, id: u64) {
        let (events, again) = self.tcp.deliver_stream(id, self.clock, &mut self.net);
        if let Some(at) = again {
            self.push(at, Event::DeliverStream(id));
        }
        for (end, event) in events {
            if let Some(Event::Stream(end, event)) = self.unless_busy(Event::Stream(end, event)) {
                self.handle_stream_event(end, event);
            }
        }
    }

    fn handle_stream_event(&mut self, end: End, event: TcpEvent) {
        let now = self.now_at(end.host);
        let host = self.hosts.get_mut(&end.host).filter(|h| h.incarnation == end.incarnation);
        let Some(host) = host else { return };
        let loses_written_reports = host.options.driver_fault == Some(DriverFault::LoseWrittenReports);
        let Some(node) = &mut host.node else { return };
        match event {
            TcpEvent::Received(bytes) => node.handle_stream(end.conn, &bytes, now),
            TcpEvent::Written(_) if loses_written_reports => return,
            TcpEvent::Written(bytes) => node.handle_written(end.conn, bytes, now),
            TcpEvent::Closed => {
                node.handle_closed(end.conn, StreamEnd::ByRemote(CONNECTION_RESET.to_owned()), now)
            }
        }
        self.process_outputs(end.host);
    }

    fn dial(&mut self, from: End, to: SocketAddr) {
        let target = HostId::from_ip(to.ip());
        let Some(target) = target.filter(|&t| t == from.host || self.net.dialable(from.host, t)) else {
            self.push(self.clock + DIAL_TIMEOUT, Event::DialTimeout { from, to });
            return;
        };
        let now = self.now_at(target);
        let local = SocketAddr::new(from.host.ip(), self.rng.random_range(32768..61000));
        let host = self.hosts.get_mut(&target).filter(|_| to.port() == PORT);
        let accepted = host.and_then(|host| {
            let conn = host.node.as_mut()?.handle_accepted(target.listener(), local, now)?;
            Some(End { host: target, incarnation: host.incarnation, conn })
        });
        let Some(acceptor) = accepted else {
            self.dial_failed(from, format!("dial tcp :0->{to}: connect: connection refused"));
            return;
        };
        self.tcp.open(from, acceptor);
        self.process_outputs(target);
        if self.is_current(from) {
            self.with_node(from.host, |node, now| node.handle_dialled(from.conn, local, to, now));
        } else {
            self.close(from);
        }
    }

    /// Resets the connection of one end.
    fn close(&mut self, end: End) {
        let due = self.tcp.close(end, self.clock);
        self.schedule_delivery(due);
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
            self.observations.extend(host.observations.drain(..).map(|observation| (id, observation)));
            if let Some(kind) = planned_crash {
                let allocator = host.share_allocator();
                self.observations.extend(allocator.map(|last| (id, Observation::Crashed(kind, last))));
                return self.crash(id, kind);
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
                    let at = self.clock + self.net.random_delay();
                    self.push(at, Event::Dial { from: end(conn), to: addr });
                }
                Some(HostOutput::Node(Output::Write { conn, bytes })) => {
                    self.counters.tcp_bytes += bytes.len() as u64;
                    self.counters.tcp_writes += 1;
                    let due = self.tcp.write(end(conn), bytes, self.clock, &mut self.net);
                    self.schedule_delivery(due);
                }
                Some(HostOutput::Node(Output::Close { conn })) => self.close(end(conn)),
                Some(HostOutput::Datagram { to, df, bytes }) => self.send_datagram(id, to, df, bytes),
                Some(HostOutput::Node(_) | HostOutput::Internal) => {}
                None => break,
            }
        }
        let now = self.now();
        let host = self.host_mut(id);
        if let Some((at, reason)) = host.poll_timeout() {
            let mut at = host.clock.time_of(at).max(now.mono);
            if host.options.driver_fault == Some(DriverFault::SpuriousWakeups) {
                at = at.min(now.mono + Duration::from_millis(100));
            }
            if host.next_wake != Some(at) {
                host.next_wake = Some(at);
                host.wake_reason = reason;
                host.wake_id += 1;
                let (wake, delay) = (host.wake_id, host.timer_delay());
                self.push(at + delay, Event::Wake(id, wake));
            }
        }
    }

    fn send_datagram(&mut self, from: HostId, to: SocketAddr, df: bool, bytes: Vec<u8>) {
        let port = to.port();
        let Some(target) = HostId::from_ip(to.ip()).filter(|_| [PORT, VXLAN_PORT].contains(&port)) else {
            return;
        };
        if port == VXLAN_PORT && self.net.vxlan_blocked {
            return;
        }
        for delay in self.net.datagram_delays(from, target, bytes.len(), df, self.clock) {
            let from = SocketAddr::new(from.ip(), port);
            let event = Event::Datagram { to: target, from, bytes: bytes.clone() };
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
        self.queue.insert((at, self.sequence), event);
    }
}

/// The addresses of hosts, as a user gives them to `weave launch` and `weave connect`.
pub(crate) fn addresses(hosts: &[HostId]) -> Vec<String> {
    hosts.iter().map(|h| h.ip().to_string()).collect()
}

/// The MAC of the container that is on the host at the start.
fn container_mac(host: HostId) -> MacAddr {
    let [high, low] = host.0.to_be_bytes();
    MacAddr([0x02, 0xc0, high, low, 0, 0])
}
