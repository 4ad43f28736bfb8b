use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid};

use crate::peers::PeerLabel;
use crate::topology::Topology;

/// Decides which addresses to dial, and when (docs/spec/mesh.md 10).
///
/// *Direct peers* are given by the user. *Targets* are the addresses to dial: those of direct peers, and those that are
/// learnt from the topology. A target is dialled until it is connected, with increasing intervals.
///
/// ```text
///             evaluate, valid                    due                      added
///   (unknown) ---------------> waiting ------------------> attempting --------------> connected
///                               |  ^  ^                        | ^                        |
///   not valid, or the peer      |  |  +---- error: later ------+-|-- ended: later/now ----+
///   that answered is connected  v  | otherwise                   |
///                            suspended --------------------------+
///                                     valid and due     waiting, not valid, not direct: removed
/// ```
///
/// An address is not a peer: a router has the addresses of several peers, a peer may have several addresses, and an address
/// passes on to another host. Therefore a target at which a connected peer has answered is dialled again from time to time
/// unless the connection leads to that address, and where a connected peer is expected, the handshake is ended as soon as it has answered
/// ([`Attempt::Dial::identify_first`]).
#[derive(Debug)]
pub(crate) struct Dialer {
    /// Our listening port, which is the default port of targets.
    port: u16,
    discovery: bool,
    /// Direct peers by the text that the user gave.
    direct: BTreeMap<String, TargetAddr>,
    targets: BTreeMap<TargetAddr, Target>,
    /// Addresses at which peers were connected until contact with them was lost.
    last_met: BTreeMap<TargetAddr, LastMet>,
    next_resolve: u64,
    /// When the next target is due.
    next_due: Option<Instant>,
}

/// An address to dial. A host name is looked up at every attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TargetAddr {
    host: Host,
    /// `None` only for direct peers that were given without a port.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Identifies the lookup of a host name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResolveId(pub u64);

#[derive(Debug)]
struct Target {
    state: State,
    last_error: Option<String>,
    /// When the next attempt is due; `None` for never.
    retry_at: Option<Instant>,
    interval: Duration,
    /// The peer that answered last. While it is connected, the target is suspended (docs/spec/mesh.md 15.12).
    last_peer: Option<(PeerName, PeerUid)>,
    /// Result of the last lookup of a host name, IPv4 first.
    resolved: Vec<IpAddr>,
    /// The peer restarts: until then attempts follow after this interval.
    hurried: Option<(Instant, Duration)>,
    /// Index of the next address in `resolved`.
    next_ip: usize,
}

#[derive(Debug)]
struct LastMet {
    peer: PeerName,
    lost_at: Instant,
    /// The address is dialled until then, and afterwards only while no peer is connected.
    dial_until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Resolving(ResolveId),
    Dialling(ConnectionId),
    Connected(ConnectionId),
    Suspended,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Resolve {
        id: ResolveId,
        host: String,
    },
    /// `identify_first`: a connected peer is expected to answer, so its name is needed before ours is sent.
    Dial {
        target_addr: TargetAddr,
        addr: SocketAddr,
        identify_first: bool,
        /// One of many attempts.
        quiet: bool,
    },
}

/// The properties of our connections that decide about targets.
#[derive(Debug, Default)]
pub(crate) struct OwnConnections {
    pub(crate) remotes: BTreeSet<SocketAddr>,
    pub(crate) inbound_from: BTreeSet<IpAddr>,
    /// The connected peers, with the remote address of each connection.
    pub(crate) peers: BTreeMap<PeerName, (PeerUid, SocketAddr)>,
    /// How many more connections are allowed; `None` for no limit.
    pub(crate) room: Option<usize>,
    /// The limit is reached, but a connection could be ended in favour of an unreachable peer.
    pub(crate) can_evict: bool,
    /// The limit, for error texts.
    pub(crate) limit: usize,
}

/// When a target whose connection ended is dialled again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The next attempt follows after an interval, or immediately if the connection existed for [`RETRY_RESET_AFTER`].
    Later,
    /// The peer that answered is connected by another connection: the target is dialled again after [`RECHECK_INTERVAL`].
    Recheck,
    /// The next attempt follows only if the user connects again, or the addresses of this host change.
    Never,
}

/// Status of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// Address to dial; the host name while it is not resolved.
    pub address: String,
    /// State of the target.
    pub state: TargetState,
    /// Why the last attempt or connection ended.
    pub last_error: Option<String>,
    /// When the next attempt is due; `None` for never. Only meaningful while waiting or suspended.
    pub retry: Option<Now>,
    /// The peer that answered last and is connected at this address, which is another one than that of the target. Only
    /// while suspended.
    pub elsewhere: Option<(PeerLabel, SocketAddr)>,
}

/// State of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// Waits for the next attempt.
    Waiting,
    /// An attempt has started.
    Attempting,
    /// A connection was added.
    Connected,
    /// A direct peer that need not be dialled, because the peer that answered is connected.
    Suspended,
}

const INITIAL_RETRY_INTERVAL: Duration = Duration::from_secs(2);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(6 * 60);
/// After a connection of this duration the next attempt is immediate.
const RETRY_RESET_AFTER: Duration = Duration::from_secs(60);
/// Interval between two checks of who answers at a target, while the peer that answered last is connected; with the random
/// part of all intervals, 15 to 45 seconds. It does not grow: the address may pass on to another host at any time, and a
/// check is one short TCP connection.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);
/// The addresses of peers that this host lost contact with because its own addresses changed are dialled for this time.
const LAST_MET_PERIOD: Duration = Duration::from_secs(10 * 60);
/// Interval between attempts to reach a peer that restarts, at least and for each of our targets, since all peers of a large mesh dial it;
/// and for how long it applies.
const HURRIED_INTERVAL: Duration = Duration::from_millis(100);
const HURRIED_INTERVAL_PER_TARGET: Duration = Duration::from_millis(20);
const HURRIED_PERIOD: Duration = Duration::from_secs(10);
/// Maximum number of addresses of lost peers; a further one replaces the oldest.
const MAX_LAST_MET: usize = 64;
/// Maximum number of addresses that are learnt from the topology.
const MAX_DISCOVERED: usize = 8192;
/// Maximum number of addresses of a host name; further ones are ignored.
const MAX_RESOLVED: usize = 64;

impl Dialer {
    pub(crate) fn new(port: u16, discovery: bool) -> Dialer {
        Dialer {
            port,
            discovery,
            direct: BTreeMap::new(),
            targets: BTreeMap::new(),
            last_met: BTreeMap::new(),
            next_resolve: 0,
            next_due: None,
        }
    }

    // ---- direct peers -----------------------------------------------------------------------------------------

    /// Adds direct peers, which are due immediately, and removes all others if `replace`. Returns an error for each
    /// text that is refused.
    pub(crate) fn connect(&mut self, peers: &[String], replace: bool, now: Instant) -> Vec<String> {
        if replace {
            self.direct.clear();
        }
        let mut errors = Vec::new();
        for text in peers {
            match parse_peer(text) {
                Ok(target_addr) => {
                    if let Some(target) = self.targets.get_mut(&target_addr.with_default_port(self.port)) {
                        target.retry_now(now);
                        target.last_peer = None;
                    }
                    self.direct.insert(text.clone(), target_addr);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    }

    /// Removes direct peers, by the text with which they were added.
    pub(crate) fn forget(&mut self, peers: &[String]) {
        for peer in peers {
            self.direct.remove(peer);
        }
    }

    /// The direct peers as the user gave them.
    pub(crate) fn direct_peers(&self) -> Vec<String> {
        self.direct.keys().cloned().collect()
    }

    /// The direct peers that are still dialled (docs/spec/mesh.md 10.5).
    pub(crate) fn active_peers(&self) -> Vec<String> {
        let given_up = |target_addr: &TargetAddr| {
            let target = self.targets.get(&target_addr.with_default_port(self.port));
            target.is_some_and(|t| t.state == State::Waiting && t.retry_at.is_none())
        };
        self.direct
            .iter()
            .filter(|(_, target_addr)| !given_up(target_addr))
            .map(|(text, _)| text.clone())
            .collect()
    }

    /// Whether the peer at this address may be one that the topology does not have: it was named by the user, or it has
    /// been connected before.
    pub(crate) fn accepts_unknown(&self, target_addr: &TargetAddr) -> bool {
        self.direct.values().any(|p| p.with_default_port(self.port) == *target_addr)
            || self.last_met.contains_key(target_addr)
    }

    /// The contact with a peer was lost at this address. It may not be able to dial, so this peer tries as well.
    pub(crate) fn on_contact_lost(
        &mut self,
        peer: PeerName,
        remote: SocketAddr,
        outbound: bool,
        own_address_lost: bool,
        now: Instant,
    ) {
        let dial_until = if own_address_lost { now + LAST_MET_PERIOD } else { now };
        self.remember(self.listener_of(remote, outbound), LastMet { peer, lost_at: now, dial_until });
    }

    /// The peer restarts: it is dialled again and again, since it may not know our address.
    pub(crate) fn on_interrupted(
        &mut self,
        peer: PeerName,
        remote: SocketAddr,
        outbound: bool,
        now: Instant,
    ) {
        let target_addr = self.listener_of(remote, outbound);
        let dial_until = now + HURRIED_PERIOD;
        self.remember(target_addr.clone(), LastMet { peer, lost_at: now, dial_until });
        let interval = HURRIED_INTERVAL.max(HURRIED_INTERVAL_PER_TARGET * self.targets.len() as u32);
        let target = self.targets.entry(target_addr).or_insert_with(|| Target::new(now));
        target.hurried = Some((dial_until, interval));
        if matches!(target.state, State::Waiting | State::Suspended) {
            (target.state, target.last_peer) = (State::Waiting, None);
            target.retry_at = Some(now + HURRIED_INTERVAL);
        }
    }

    /// The address at which the peer at the other end of a connection accepts connections.
    fn listener_of(&self, remote: SocketAddr, outbound: bool) -> TargetAddr {
        let port = if outbound { remote.port() } else { self.port };
        TargetAddr { host: Host::Ip(remote.ip()), port: Some(port) }
    }

    fn remember(&mut self, target_addr: TargetAddr, met: LastMet) {
        self.last_met.insert(target_addr, met);
        if self.last_met.len() > MAX_LAST_MET {
            let oldest = self.last_met.iter().min_by_key(|(_, met)| met.lost_at);
            if let Some(oldest) = oldest.map(|(target_addr, _)| target_addr.clone()) {
                self.last_met.remove(&oldest);
            }
        }
    }

    /// A connection with the peer is established. Before that the peer may still end it in favour of one that is dead.
    pub(crate) fn on_established(&mut self, peer: PeerName) {
        for (target_addr, _) in self.last_met.extract_if(.., |_, met| met.peer == peer) {
            if let Some(target) = self.targets.get_mut(&target_addr) {
                target.hurried = None;
            }
        }
    }

    /// The addresses or routes of this host have changed: what was learnt about targets may not be true any more.
    pub(crate) fn on_network_change(&mut self, now: Instant) {
        for target in self.targets.values_mut() {
            if matches!(target.state, State::Waiting | State::Suspended) {
                target.retry_now(now);
            }
        }
    }

    // ---- choice of targets ------------------------------------------------------------------------------------

    /// When [`Dialer::evaluate`] has a target to dial.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.next_due
    }

    /// Updates the targets, and returns the attempts to start now (docs/spec/mesh.md 10.2, 10.3).
    pub(crate) fn evaluate(
        &mut self,
        connected: &OwnConnections,
        topology: &Topology,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Vec<Attempt> {
        let direct: BTreeSet<TargetAddr> =
            self.direct.values().map(|p| p.with_default_port(self.port)).collect();
        let valid = self.valid_targets(connected, topology, now);
        for target_addr in &valid {
            let target = self.targets.entry(target_addr.clone()).or_insert_with(|| Target::new(now));
            match target.state {
                State::Waiting if target.is_answered_by(connected) => target.state = State::Suspended,
                State::Suspended if !target.is_answered_by(connected) => {
                    target.state = State::Waiting;
                    // The peer that answered there is no longer connected.
                    if target.last_peer.take().is_some() {
                        target.retry_at = target.retry_at.map(|at| at.min(now));
                    }
                }
                _ => {}
            }
        }
        self.targets.retain(|target_addr, target| {
            let idle = matches!(target.state, State::Waiting | State::Suspended);
            if idle && !valid.contains(target_addr) {
                target.state = State::Suspended;
                return direct.contains(target_addr);
            }
            true
        });
        self.start_due(connected, &valid, &direct, topology, rng, now)
    }

    fn valid_targets(
        &self,
        connected: &OwnConnections,
        topology: &Topology,
        now: Instant,
    ) -> BTreeSet<TargetAddr> {
        let mut valid = BTreeSet::new();
        for direct in self.direct.values() {
            let target_addr = direct.with_default_port(self.port);
            let resolved = self.targets.get(&target_addr).map_or(&[][..], |t| &t.resolved);
            let is_connected = |ip: &IpAddr| connected.remotes.contains(&target_addr.socket_addr(*ip));
            let is_connected = match &target_addr.host {
                Host::Ip(ip) => is_connected(ip),
                Host::Name(_) => !resolved.is_empty() && resolved.iter().all(is_connected),
            };
            if !is_connected {
                valid.insert(target_addr);
            }
        }
        if self.discovery {
            let mut seen = HashSet::new();
            for (_, peer) in topology.peers().filter(|&(name, _)| name != topology.own()) {
                for connection in &peer.connections {
                    if connection.peer == topology.own() || connected.peers.contains_key(&connection.peer) {
                        continue;
                    }
                    let Some(mut addr) = connection.address.socket() else { continue };
                    if !connection.outbound {
                        addr.set_port(self.port);
                    }
                    if seen.len() < MAX_DISCOVERED
                        && dialable(addr)
                        && seen.insert(addr)
                        && !connected.remotes.contains(&addr)
                    {
                        let target_addr = TargetAddr { host: Host::Ip(addr.ip()), port: Some(addr.port()) };
                        if !self.targets.get(&target_addr).is_some_and(|t| t.is_answered_by(connected)) {
                            valid.insert(target_addr);
                        }
                    }
                }
            }
            let dialled = self
                .last_met
                .iter()
                .filter(|(_, met)| !connected.peers.contains_key(&met.peer))
                .filter(|(_, met)| connected.peers.is_empty() || now < met.dial_until)
                .filter(|(addr, _)| {
                    !addr.ip().is_some_and(|ip| connected.remotes.contains(&addr.socket_addr(ip)))
                });
            valid.extend(dialled.map(|(target_addr, _)| target_addr.clone()));
        }
        valid
    }

    fn start_due(
        &mut self,
        connected: &OwnConnections,
        valid: &BTreeSet<TargetAddr>,
        direct: &BTreeSet<TargetAddr>,
        topology: &Topology,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Vec<Attempt> {
        let is_idle = |(target_addr, target): &(&TargetAddr, &Target)| match target.state {
            State::Waiting => true,
            State::Suspended => {
                valid.contains(*target_addr) && target.elsewhere(target_addr, connected).is_some()
            }
            _ => false,
        };
        let due = self.targets.iter().filter(is_idle);
        let mut due: Vec<TargetAddr> =
            due.filter(|(_, t)| t.retry_at.is_some_and(|at| at <= now)).map(|(p, _)| p.clone()).collect();
        // In random order, so that the peers of a large mesh do not all dial the same peer first.
        due.shuffle(rng);
        due.sort_by_key(|target_addr| !direct.contains(target_addr));

        let is_attempting = |t: &Target| matches!(t.state, State::Resolving(_) | State::Dialling(_));
        let mut room = connected
            .room
            .map(|r| r.saturating_sub(self.targets.values().filter(|t| is_attempting(t)).count()));
        let mut attempts = Vec::new();
        for target_addr in due {
            let Some(target) = self.targets.get_mut(&target_addr) else { continue };
            // At the limit, an unknown direct peer is dialled nevertheless: it may connect two parts of the mesh.
            let known = target.last_peer.is_some_and(|(peer, _)| topology.peer(peer).is_some());
            let may_join = connected.can_evict && direct.contains(&target_addr) && !known;
            let suspended = target.state == State::Suspended;
            if room == Some(0) && !may_join && !suspended && !target.is_hurried(now) {
                target.fail(format!("Connection limit reached ({})", connected.limit));
                target.retry_later(rng, now);
                continue;
            }
            room = room.map(|r| r.saturating_sub(usize::from(!suspended)));
            attempts.push(match &target_addr.host {
                Host::Ip(ip) => Attempt::Dial {
                    addr: target_addr.socket_addr(*ip),
                    identify_first: target.expects_connected_peer(*ip, connected),
                    quiet: target.is_hurried(now),
                    target_addr,
                },
                Host::Name(host) => {
                    self.next_resolve += 1;
                    let id = ResolveId(self.next_resolve);
                    target.state = State::Resolving(id);
                    Attempt::Resolve { id, host: host.clone() }
                }
            });
        }
        let waiting = self.targets.iter().filter(is_idle);
        // The targets of the attempts above are still idle, until `on_dial_started`.
        self.next_due = waiting.filter_map(|(_, t)| t.retry_at).filter(|&at| at > now).min();
        attempts
    }

    // ---- progress of an attempt -------------------------------------------------------------------------------

    /// A host name was looked up. Returns the attempt to start.
    pub(crate) fn on_resolved(
        &mut self,
        id: ResolveId,
        result: Result<Vec<IpAddr>, String>,
        connected: &OwnConnections,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Attempt> {
        let (target_addr, target) = self.targets.iter_mut().find(|(_, t)| t.state == State::Resolving(id))?;
        target.state = State::Waiting;
        let mut addr = None;
        match result {
            Ok(mut found) if !found.is_empty() => {
                found.sort_by_key(|ip| ip.is_ipv6());
                found.truncate(MAX_RESOLVED);
                let count = found.len();
                let in_turn =
                    (0..count).map(|i| target_addr.socket_addr(found[(target.next_ip + i) % count]));
                addr = in_turn.into_iter().find(|addr| !connected.remotes.contains(addr));
                target.resolved = found;
            }
            Ok(_) => target.fail(format!("lookup {target_addr}: no such host")),
            Err(error) => target.fail(error),
        }
        if addr.is_none() {
            target.retry_later(rng, now);
            self.next_due = earliest(self.next_due, target.retry_at);
        }
        addr.map(|addr| Attempt::Dial {
            target_addr: target_addr.clone(),
            addr,
            identify_first: target.expects_connected_peer(addr.ip(), connected),
            quiet: target.is_hurried(now),
        })
    }

    /// The attempt was started as this connection.
    pub(crate) fn on_dial_started(&mut self, target_addr: &TargetAddr, conn: ConnectionId) {
        if let Some(target) = self.targets.get_mut(target_addr) {
            target.state = State::Dialling(conn);
        }
    }

    /// The handshake has identified the peer at this address.
    pub(crate) fn on_peer_identified(
        &mut self,
        target_addr: &TargetAddr,
        conn: ConnectionId,
        peer: PeerName,
        uid: PeerUid,
    ) {
        if let Some(target) = self.target_of(target_addr, conn) {
            target.last_peer = Some((peer, uid));
        }
    }

    pub(crate) fn on_connected(&mut self, target_addr: &TargetAddr, conn: ConnectionId) {
        if let Some(target) = self.target_of(target_addr, conn) {
            target.state = State::Connected(conn);
        }
    }

    /// No TCP connection could be made.
    pub(crate) fn on_dial_failed(
        &mut self,
        target_addr: &TargetAddr,
        conn: ConnectionId,
        error: String,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if let Some(target) = self.target_of(target_addr, conn) {
            target.next_ip = target.next_ip.wrapping_add(1);
            // Whoever was there, is not there any more.
            target.last_peer = None;
            target.fail(error);
            target.retry_later(rng, now);
            let due = target.retry_at;
            self.next_due = earliest(self.next_due, due);
        }
    }

    /// The TCP connection has ended (docs/spec/mesh.md 10.4).
    pub(crate) fn on_disconnected(
        &mut self,
        target_addr: &TargetAddr,
        conn: ConnectionId,
        error: String,
        retry: Retry,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if let Some(target) = self.target_of(target_addr, conn) {
            target.fail(error);
            // A host name may have the addresses of several hosts, including ours.
            let others = target.resolved.len() > 1;
            match (retry, target.retry_at) {
                (Retry::Never, _) if !others => target.retry_at = None,
                (Retry::Later, _) if target.is_hurried(now) => target.retry_later(rng, now),
                (Retry::Later, Some(at)) if now - at > RETRY_RESET_AFTER => target.retry_now(now),
                (Retry::Recheck, _) if !others => {
                    target.retry_at = Some(now + randomized(RECHECK_INTERVAL, rng));
                    target.interval = INITIAL_RETRY_INTERVAL;
                }
                _ => {
                    target.next_ip = target.next_ip.wrapping_add(1);
                    target.retry_later(rng, now);
                }
            }
            let due = target.retry_at;
            self.next_due = earliest(self.next_due, due);
        }
    }

    /// The target of an attempt or connection, unless it has another one by now.
    fn target_of(&mut self, target_addr: &TargetAddr, conn: ConnectionId) -> Option<&mut Target> {
        let target = self.targets.get_mut(target_addr)?;
        matches!(target.state, State::Dialling(c) | State::Connected(c) if c == conn).then_some(target)
    }

    // ---- status -----------------------------------------------------------------------------------------------

    /// All targets, ordered by address.
    pub(crate) fn targets<'a>(
        &'a self,
        connected: &'a OwnConnections,
        topology: &'a Topology,
        now: Now,
    ) -> impl Iterator<Item = TargetStatus> + 'a {
        self.targets.iter().map(move |(target_addr, target)| TargetStatus {
            address: match (
                &target_addr.host,
                target.resolved.get(target.next_ip % target.resolved.len().max(1)),
            ) {
                (Host::Name(_), Some(ip)) => target_addr.socket_addr(*ip).to_string(),
                _ => target_addr.to_string(),
            },
            state: match target.state {
                State::Waiting => TargetState::Waiting,
                State::Resolving(_) | State::Dialling(_) => TargetState::Attempting,
                State::Connected(_) => TargetState::Connected,
                State::Suspended => TargetState::Suspended,
            },
            last_error: target.last_error.clone(),
            retry: target.retry_at.map(|mono| Now { mono, wall: now.wall_at(mono) }),
            elsewhere: target
                .elsewhere(target_addr, connected)
                .map(|(peer, remote)| (topology.label(peer), remote)),
        })
    }
}

impl Target {
    fn new(now: Instant) -> Target {
        Target {
            state: State::Waiting,
            last_error: None,
            retry_at: Some(now),
            interval: INITIAL_RETRY_INTERVAL,
            last_peer: None,
            resolved: Vec::new(),
            hurried: None,
            next_ip: 0,
        }
    }

    fn fail(&mut self, error: String) {
        self.state = State::Waiting;
        self.last_error = Some(error);
    }

    fn retry_now(&mut self, now: Instant) {
        self.retry_at = Some(now);
        self.interval = INITIAL_RETRY_INTERVAL;
    }

    fn retry_later(&mut self, rng: &mut impl Rng, now: Instant) {
        if let Some((_, interval)) = self.hurried.filter(|(until, _)| now < *until) {
            self.retry_at = Some(now + randomized(interval, rng));
            return;
        }
        self.retry_at = Some(now + randomized(self.interval, rng));
        self.interval = (self.interval * 3 / 2).min(MAX_RETRY_INTERVAL);
    }

    fn is_hurried(&self, now: Instant) -> bool {
        self.hurried.is_some_and(|(until, _)| now < until)
    }

    /// Whether the peer that answered last is connected.
    fn is_answered_by(&self, connected: &OwnConnections) -> bool {
        self.last_peer
            .is_some_and(|(peer, uid)| connected.peers.get(&peer).is_some_and(|(known, _)| *known == uid))
    }

    /// The peer that answered last, and the address at which it is connected, if that is not the address of the target.
    fn elsewhere(&self, own: &TargetAddr, connected: &OwnConnections) -> Option<(PeerName, SocketAddr)> {
        let (peer, _) = self.last_peer.filter(|_| self.state == State::Suspended)?;
        let (_, remote) = connected.peers.get(&peer)?;
        let is_here = own.ip().iter().chain(&self.resolved).any(|ip| *ip == remote.ip());
        (!is_here).then_some((peer, *remote))
    }

    fn expects_connected_peer(&self, ip: IpAddr, connected: &OwnConnections) -> bool {
        self.is_answered_by(connected) || connected.inbound_from.contains(&ip)
    }
}

impl TargetAddr {
    fn ip(&self) -> Option<IpAddr> {
        match &self.host {
            Host::Ip(ip) => Some(*ip),
            Host::Name(_) => None,
        }
    }

    fn with_default_port(&self, port: u16) -> TargetAddr {
        TargetAddr { host: self.host.clone(), port: self.port.or(Some(port)) }
    }

    fn socket_addr(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port.unwrap_or(0))
    }
}

impl fmt::Display for TargetAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Ip(ip), Some(port)) => SocketAddr::new(*ip, port).fmt(f),
            (Host::Ip(ip), None) => ip.fmt(f),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Name(name), None) => name.fmt(f),
        }
    }
}

/// Between half of the interval and one and a half of it.
fn randomized(interval: Duration, rng: &mut impl Rng) -> Duration {
    interval / 2 + interval.mul_f64(rng.random::<f64>())
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

/// Whether an address that a peer reports can be dialled.
fn dialable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

/// The text is not the address of a direct peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid peer name {0:?}, should be host[:port]")]
struct ParsePeerAddrError(String);

/// Parses `host`, `host:port`, `[v6]`, `[v6]:port` or an IPv6 address without brackets. Port 0 means that no port is
/// given.
fn parse_peer(text: &str) -> Result<TargetAddr, ParsePeerAddrError> {
    let bad = || ParsePeerAddrError(text.to_owned());
    let (host, port) = if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(TargetAddr { host: Host::Ip(ip), port: None });
    } else if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(bad)?;
        let port = match rest {
            "" => None,
            _ => Some(rest.strip_prefix(':').ok_or_else(bad)?),
        };
        host.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6).ok_or_else(bad)?;
        (host, port)
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_name = |host: &str| !host.is_empty() && !host.contains(['[', ']', '/', ' ']);
    let host = match host.parse::<IpAddr>() {
        Ok(ip) => Host::Ip(ip),
        Err(_) if is_name(host) && !host.contains(':') => Host::Name(host.to_owned()),
        Err(_) => return Err(bad()),
    };
    // An IPv6 address without brackets was parsed above; here its last group would be taken for a port.
    if matches!(host, Host::Ip(IpAddr::V6(_))) && !text.starts_with('[') {
        return Err(bad());
    }
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().map_err(|_| bad())?),
        Some(_) => return Err(bad()),
    };
    Ok(TargetAddr { host, port: port.filter(|&p| p != 0) })
}

#[cfg(test)]
impl Dialer {
    /// Sets the state of a target.
    pub(crate) fn set_state(&mut self, addr: SocketAddr, state: TargetState, now: Instant) {
        let mut target = Target::new(now);
        target.retry_later(&mut crate::test_support::rng(1), now);
        target.state = match state {
            TargetState::Waiting => State::Waiting,
            TargetState::Attempting => State::Dialling(ConnectionId(77)),
            TargetState::Connected => State::Connected(ConnectionId(77)),
            TargetState::Suspended => State::Suspended,
        };
        self.targets.insert(TargetAddr { host: Host::Ip(addr.ip()), port: Some(addr.port()) }, target);
    }
}

#[cfg(test)]
mod tests;
