//! A few peers with a simulated clock and simulated TCP connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid, ShortId};

use crate::test_support::{peer, rng};
use crate::{Channels, Config, Mesh, Output, OverlayControl, OverlaySetup, Persist, StreamEnd};

/// A channel whose state is a set of bytes.
#[derive(Debug, Default)]
pub(crate) struct Sets {
    pub(crate) names: Vec<&'static str>,
    pub(crate) state: BTreeMap<String, BTreeSet<u8>>,
    pub(crate) unicasts: Vec<(PeerName, Vec<u8>)>,
    pub(crate) broadcasts: Vec<(PeerName, Vec<u8>)>,
    pub(crate) refuse: Option<String>,
    /// Number of gossip messages received.
    pub(crate) received: usize,
}

impl Channels for Sets {
    fn names(&self) -> &[&'static str] {
        &self.names
    }

    fn on_unicast(&mut self, _: &str, src: PeerName, payload: &[u8], _: Now) -> Result<(), String> {
        self.unicasts.push((src, payload.to_vec()));
        Ok(())
    }

    fn on_broadcast(
        &mut self,
        _: &str,
        src: PeerName,
        payload: &[u8],
        _: Now,
    ) -> Result<Option<Vec<u8>>, String> {
        self.broadcasts.push((src, payload.to_vec()));
        Ok(Some(payload.to_vec()))
    }

    fn on_gossip(&mut self, channel: &str, payload: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        if let Some(error) = &self.refuse {
            return Err(error.clone());
        }
        self.received += 1;
        let state = self.state.entry(channel.to_owned()).or_default();
        let new: Vec<u8> = payload.iter().copied().filter(|b| state.insert(*b)).collect();
        Ok((!new.is_empty()).then_some(new))
    }

    fn digest(&mut self, channel: &str) -> Option<u64> {
        // Of small numbers.
        self.state.get(channel).map(|set| set.iter().fold(0, |digest, byte| digest | 1 << (byte % 64)))
    }

    fn state(&mut self, channel: &str, _: Now) -> Option<Vec<u8>> {
        self.state.get(channel).map(|set| set.iter().copied().collect())
    }

    fn merge(&mut self, _: &str, queued: &mut Vec<u8>, more: &[u8]) {
        let all: BTreeSet<u8> = queued.iter().chain(more).copied().collect();
        *queued = all.into_iter().collect();
    }
}

pub(crate) struct Host {
    pub(crate) ip: IpAddr,
    pub(crate) mesh: Mesh,
    pub(crate) channels: Sets,
    pub(crate) up: bool,
    /// The host that answers at this one's address.
    pub(crate) forwarded_to: Option<usize>,
    /// The data path of this host is never established.
    pub(crate) overlay_fails: bool,
    /// Bytes written to this host are never acknowledged to the writer.
    pub(crate) stuck: bool,
    /// The process does not run before this time. Its timers fire before what has arrived meanwhile is handled.
    suspended_until: Instant,
    pub(crate) events: Vec<String>,
    pub(crate) removed: Vec<PeerName>,
    pub(crate) setups: BTreeMap<ConnectionId, OverlaySetup>,
    pub(crate) controls: Vec<(ConnectionId, OverlayControl)>,
    pub(crate) tested_paths: Vec<ConnectionId>,
    pub(crate) short_id: Option<ShortId>,
    pub(crate) ceiling: u64,
    pub(crate) targets: Vec<String>,
    pub(crate) written: usize,
    wake: Option<Instant>,
}

enum Delivery {
    Bytes(Vec<u8>),
    Closed,
    /// A test of the connection has failed.
    Broken,
    Accept {
        from: usize,
        dialer: ConnectionId,
        to: SocketAddr,
    },
    Dialled {
        local: SocketAddr,
        remote: SocketAddr,
    },
    Refused(SocketAddr),
    Established,
}

pub(crate) struct Net {
    pub(crate) now: Instant,
    pub(crate) hosts: Vec<Host>,
    pub(crate) names: BTreeMap<String, Vec<IpAddr>>,
    /// Pairs of hosts that cannot dial each other.
    pub(crate) separated: BTreeSet<(usize, usize)>,
    pipes: BTreeMap<(usize, ConnectionId), (usize, ConnectionId)>,
    in_flight: BTreeMap<(Instant, u64), (usize, ConnectionId, Delivery)>,
    sequence: u64,
    timers: BTreeSet<(Instant, usize)>,
}

/// Wall-clock time at the start.
const START: Duration = Duration::from_secs(1_800_000_000);
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
pub(crate) const LATENCY: Duration = Duration::from_millis(5);

impl Net {
    /// Peers `1..=n` at `10.0.0.1..=n`, configured by `adjust`.
    pub(crate) fn new(n: usize, adjust: impl Fn(usize, &mut Config)) -> Net {
        let mut net = Net {
            now: Instant::ORIGIN,
            hosts: Vec::new(),
            names: BTreeMap::new(),
            separated: BTreeSet::new(),
            pipes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            timers: BTreeSet::new(),
        };
        for i in 0..n {
            let mut config = config(i);
            adjust(i, &mut config);
            net.add(i, config);
        }
        net
    }

    fn add(&mut self, i: usize, config: Config) {
        let seed = config.uid.0;
        let mesh = Mesh::new(config, rng(seed), self.time());
        self.hosts.push(Host {
            ip: IpAddr::from([10, 0, (i / 250) as u8, (i % 250 + 1) as u8]),
            mesh,
            channels: Sets { names: vec!["set"], ..Sets::default() },
            up: true,
            forwarded_to: None,
            overlay_fails: false,
            stuck: false,
            suspended_until: Instant::ORIGIN,
            events: Vec::new(),
            removed: Vec::new(),
            setups: BTreeMap::new(),
            controls: Vec::new(),
            tested_paths: Vec::new(),
            short_id: None,
            ceiling: 0,
            targets: Vec::new(),
            written: 0,
            wake: None,
        });
        self.drain(i);
    }

    pub(crate) fn time(&self) -> Now {
        Now { mono: self.now, wall: START + self.now.since_origin() }
    }

    /// Calls a host's mesh and carries out its outputs.
    pub(crate) fn with<R>(&mut self, i: usize, act: impl FnOnce(&mut Mesh, &mut Sets, Now) -> R) -> R {
        let now = self.time();
        let host = &mut self.hosts[i];
        let result = act(&mut host.mesh, &mut host.channels, now);
        self.drain(i);
        result
    }

    pub(crate) fn connect(&mut self, i: usize, peers: &[&str]) {
        let peers: Vec<String> = peers.iter().map(|&p| p.to_owned()).collect();
        let errors = self.with(i, |mesh, _, now| mesh.connect(&peers, false, now));
        assert!(errors.is_empty(), "{errors:?}");
    }

    /// The host fails: its connections are not closed.
    pub(crate) fn crash_host(&mut self, i: usize) {
        self.hosts[i].up = false;
        self.hosts[i].wake.map(|wake| self.timers.remove(&(wake, i)));
        self.pipes.retain(|here, there| here.0 != i && there.0 != i);
        self.in_flight.retain(|_, (host, ..)| *host != i);
    }

    /// Gives the host another address, and returns the old one. Its connections carry nothing any more.
    pub(crate) fn move_host(&mut self, i: usize, ip: IpAddr) -> IpAddr {
        self.pipes.retain(|here, there| here.0 != i && there.0 != i);
        std::mem::replace(&mut self.hosts[i].ip, ip)
    }

    /// The process ends: its connections are closed.
    pub(crate) fn stop_process(&mut self, i: usize) {
        self.hosts[i].up = false;
        self.hosts[i].wake.map(|wake| self.timers.remove(&(wake, i)));
        let ends: Vec<_> = self.pipes.iter().filter(|(at, _)| at.0 == i).map(|(a, b)| (*a, *b)).collect();
        for (here, there) in ends {
            self.pipes.remove(&here);
            self.pipes.remove(&there);
            self.post(LATENCY, there.0, there.1, Delivery::Closed);
        }
        self.in_flight.retain(|_, (host, ..)| *host != i);
    }

    /// Separates two hosts; if `closed`, their connections are closed immediately.
    pub(crate) fn separate(&mut self, a: usize, b: usize, closed: bool) {
        self.separated.insert((a, b));
        let between = |here: usize, there: usize| (here, there) == (a, b) || (here, there) == (b, a);
        let ends: Vec<_> =
            self.pipes.iter().filter(|(x, y)| between(x.0, y.0)).map(|(x, y)| (*x, *y)).collect();
        for (here, there) in ends {
            self.pipes.remove(&here);
            if closed {
                self.post(LATENCY, there.0, there.1, Delivery::Closed);
            }
        }
    }

    /// Starts a new process on a stopped host, with the state that the old one persisted.
    pub(crate) fn restart(&mut self, i: usize, adjust: impl Fn(&mut Config)) {
        let old = &self.hosts[i];
        let mut config = config(i);
        config.uid = PeerUid(old.mesh.config.uid.0 + 1000);
        config.short_id = old.short_id;
        config.version = old.ceiling;
        adjust(&mut config);
        let targets = old.targets.clone();
        self.add(i, config);
        let new = self.hosts.pop().unwrap();
        self.hosts[i] = new;
        let now = self.time();
        self.hosts[i].mesh.connect(&targets, false, now);
        self.drain(i);
    }

    fn post(&mut self, delay: Duration, host: usize, conn: ConnectionId, what: Delivery) {
        self.sequence += 1;
        self.in_flight.insert((self.now + delay, self.sequence), (host, conn, what));
    }

    fn drain(&mut self, i: usize) {
        // `add` drains before the host is at its index.
        let at = i.min(self.hosts.len() - 1);
        while let Some(output) = self.hosts[at].mesh.poll_output() {
            self.carry_out(at, output);
        }
        let host = &mut self.hosts[at];
        let wake = host.mesh.poll_timeout().map(|(at, _)| at);
        if host.wake != wake {
            host.wake.map(|old| self.timers.remove(&(old, i)));
            wake.map(|new| self.timers.insert((new, i)));
            host.wake = wake;
        }
    }

    fn carry_out(&mut self, i: usize, output: Output) {
        let host = &mut self.hosts[i];
        match output {
            Output::Persist(Persist::ShortId(id)) => host.short_id = Some(id),
            Output::Persist(Persist::VersionCeiling(ceiling)) => {
                assert!(ceiling > host.ceiling, "the ceiling never falls");
                host.ceiling = ceiling;
            }
            Output::Persist(Persist::Targets(targets)) => host.targets = targets,
            Output::Write { conn, bytes } => {
                let own = host.mesh.peer(host.mesh.name()).unwrap();
                assert!(own.version < host.ceiling, "a version is persisted before it is sent");
                host.written += bytes.len();
                if let Some(&(to, there)) = self.pipes.get(&(i, conn)) {
                    self.post(LATENCY, to, there, Delivery::Bytes(bytes));
                }
            }
            Output::Close { conn } => {
                if let Some((to, there)) = self.pipes.remove(&(i, conn)) {
                    self.pipes.remove(&(to, there));
                    self.post(LATENCY, to, there, Delivery::Closed);
                }
            }
            Output::Probe { conn } => {
                let broken = match self.pipes.get(&(i, conn)) {
                    Some((to, there)) => !self.pipes.contains_key(&(*to, *there)),
                    None => true,
                };
                if broken {
                    self.post(PROBE_TIMEOUT, i, conn, Delivery::Broken);
                }
            }
            Output::Dial { conn, addr } => {
                let found = self.hosts.iter().position(|h| h.ip == addr.ip() && addr.port() == 6783);
                let found = found.map(|to| self.hosts[to].forwarded_to.unwrap_or(to));
                let found = found.filter(|&to| self.hosts[to].up);
                match found
                    .filter(|&to| !self.separated.contains(&(i, to)) && !self.separated.contains(&(to, i)))
                {
                    Some(to) => {
                        let accept = Delivery::Accept { from: i, dialer: conn, to: addr };
                        self.post(LATENCY, to, ConnectionId(0), accept);
                    }
                    None => self.post(LATENCY, i, conn, Delivery::Refused(addr)),
                }
            }
            Output::Resolve { id, host: name } => {
                let result =
                    self.names.get(&name).cloned().ok_or_else(|| format!("lookup {name}: no such host"));
                self.with(i, |mesh, _, now| mesh.handle_resolved(id, result, now));
            }
            Output::OverlayPrepare { conn, setup } => {
                host.setups.insert(conn, *setup);
            }
            Output::OverlayConfirm { conn } => {
                if !host.overlay_fails {
                    self.post(LATENCY, i, conn, Delivery::Established);
                }
            }
            Output::OverlayStop { conn } => {
                host.setups.remove(&conn).expect("was prepared");
            }
            Output::OverlayControl { conn, control } => host.controls.push((conn, control)),
            Output::TestPath { conn } => host.tested_paths.push(conn),
            Output::PeerRemoved(peer) => host.removed.push(peer),
            Output::Event(event) => host.events.push(event.to_string()),
            Output::RoutesChanged | Output::PeersChanged | Output::ShortIdsInvalidated => {}
        }
    }

    /// Stops the process of a host for a time.
    pub(crate) fn suspend(&mut self, i: usize, time: Duration) {
        self.hosts[i].suspended_until = self.now + time;
    }

    /// Advances to the next event, unless it is after `end`.
    fn step(&mut self, end: Instant) -> bool {
        let delivery = self.in_flight.keys().next().map(|&(at, _)| at);
        let timer = self.timers.first().copied();
        match (delivery, timer) {
            (Some(at), timer) if at <= end && timer.is_none_or(|(t, _)| at <= t) => {
                self.now = self.now.max(at);
                let ((_, _), (host, conn, what)) = self.in_flight.pop_first().unwrap();
                let suspended = self.hosts[host].suspended_until.saturating_since(self.now);
                if !suspended.is_zero() {
                    self.post(suspended + Duration::from_millis(1), host, conn, what);
                } else if self.hosts[host].up {
                    self.deliver(host, conn, what);
                }
                true
            }
            (_, Some((at, i))) if at <= end && at < self.hosts[i].suspended_until => {
                let until = self.hosts[i].suspended_until;
                self.timers.remove(&(at, i));
                self.timers.insert((until, i));
                self.hosts[i].wake = Some(until);
                true
            }
            (_, Some((at, i))) if at <= end => {
                self.now = self.now.max(at);
                self.with(i, |mesh, channels, now| mesh.handle_timeout(channels, now));
                let again = self.hosts[i].mesh.poll_timeout();
                assert!(
                    again.is_none_or(|(t, _)| t > self.now),
                    "the timer {again:?} expires again immediately"
                );
                true
            }
            _ => {
                self.now = end;
                false
            }
        }
    }

    fn deliver(&mut self, i: usize, conn: ConnectionId, what: Delivery) {
        match what {
            Delivery::Bytes(bytes) => {
                self.with(i, |mesh, channels, now| mesh.handle_stream(conn, &bytes, channels, now));
                if let Some(&(from, there)) = self.pipes.get(&(i, conn)).filter(|_| !self.hosts[i].stuck) {
                    self.with(from, |mesh, _, now| mesh.handle_written(there, bytes.len(), now));
                }
            }
            Delivery::Closed => self
                .with(i, |mesh, _, now| mesh.handle_closed(conn, StreamEnd::ByRemote("EOF".to_owned()), now)),
            Delivery::Broken => {
                let end = StreamEnd::Broken("connection timed out".to_owned());
                self.with(i, |mesh, _, now| mesh.handle_closed(conn, end, now));
            }
            Delivery::Accept { from, dialer, to } => {
                let source = SocketAddr::new(self.hosts[from].ip, 40_000 + self.sequence as u16 % 20_000);
                let now = self.time();
                let accepted = self.hosts[i].mesh.handle_accepted(to, source, now);
                let Some(accepted) = accepted else {
                    return self.post(LATENCY, from, dialer, Delivery::Refused(to));
                };
                self.pipes.insert((i, accepted), (from, dialer));
                self.pipes.insert((from, dialer), (i, accepted));
                self.post(LATENCY, from, dialer, Delivery::Dialled { local: source, remote: to });
                self.drain(i);
            }
            Delivery::Dialled { local, remote } => {
                self.with(i, |mesh, _, now| mesh.handle_dialled(conn, local, remote, now));
            }
            Delivery::Refused(addr) => {
                let error = format!("dial tcp {addr}: connect: connection refused");
                self.with(i, |mesh, _, now| mesh.handle_dial_failed(conn, error, now));
            }
            Delivery::Established => {
                self.with(i, |mesh, _, now| mesh.handle_overlay_established(conn, now));
            }
        }
    }

    pub(crate) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
    }

    pub(crate) fn run_s(&mut self, seconds: u64) {
        self.run(Duration::from_secs(seconds));
    }

    // ---- assertions -------------------------------------------------------------------------------------------

    /// All hosts have the same records of all hosts, and data routes to all of them.
    pub(crate) fn assert_converged(&self) {
        let up: Vec<&Host> = self.hosts.iter().filter(|h| h.up).collect();
        let first = up[0];
        for host in &up {
            let theirs: Vec<_> =
                host.mesh.peers().map(|(n, p)| (n, p.uid, p.version, &p.connections)).collect();
            let ours: Vec<_> =
                first.mesh.peers().map(|(n, p)| (n, p.uid, p.version, &p.connections)).collect();
            assert_eq!(theirs, ours, "{} against {}", host.mesh.name(), first.mesh.name());
            assert_eq!(theirs.len(), up.len());
            let routes = host.mesh.routes();
            for other in &up {
                let to = other.mesh.name();
                assert!(
                    to == host.mesh.name() || routes.unicast(to).is_some(),
                    "{} to {to}",
                    host.mesh.name()
                );
            }
        }
    }

    /// The peers to which a host reports established connections.
    pub(crate) fn neighbours(&self, i: usize) -> Vec<PeerName> {
        let mesh = &self.hosts[i].mesh;
        mesh.peer(mesh.name()).unwrap().connections.iter().filter(|c| c.established).map(|c| c.peer).collect()
    }

    /// Number of logged events that contain a text.
    pub(crate) fn logged(&self, i: usize, text: &str) -> usize {
        self.hosts[i].events.iter().filter(|line| line.contains(text)).count()
    }
}

pub(crate) fn config(i: usize) -> Config {
    let number = i as u64 + 1;
    Config::new(peer(number), format!("h{number}"), PeerUid(number * 7 + 1))
}

pub(super) fn default_config(_: usize, _: &mut Config) {}

pub(super) fn ip(i: usize) -> String {
    format!("10.0.0.{}", i + 1)
}

/// `n` peers in a row, without discovery.
pub(super) fn line(n: usize, adjust: impl Fn(usize, &mut Config)) -> Net {
    let mut net = Net::new(n, |i, config| {
        config.discovery = false;
        adjust(i, config);
    });
    for i in 1..n {
        net.connect(i, &[&ip(i - 1)]);
    }
    net
}
