use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use weave_types::{ConnectionId, Instant, PeerName, PeerUid};

use crate::topology::Topology;

/// Whom to connect to (docs/spec/mesh.md 10).
///
/// *Direct peers* are what the user asked for, *targets* the places to dial: those of the direct peers and those learnt
/// from the topology. Each target is tried until it is connected, with growing pauses.
///
/// ```text
///             evaluate, valid                    due                      added
///   (unknown) ---------------> waiting ------------------> attempting --------------> connected
///                               |  ^  ^                        |                          |
///          not valid, direct    |  |  +---- error: later ------+---- ended: later/now ----+
///                               v  | valid again
///                            suspended            waiting, not valid, not direct: forgotten
/// ```
#[derive(Debug)]
pub(crate) struct Dialer {
    /// Our own listening port, taken where none was given.
    port: u16,
    discovery: bool,
    /// By the text that the user gave.
    direct: BTreeMap<String, Place>,
    targets: BTreeMap<Place, Target>,
    next_resolve: u64,
    /// No target is due earlier.
    due: Option<Instant>,
}

/// Where a peer may listen. A name is looked up at every attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    host: Host,
    /// `None` only for direct peers without one.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// A question to the resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResolveId(pub u64);

#[derive(Debug)]
struct Target {
    state: State,
    last_error: Option<String>,
    /// `None`: never.
    try_after: Option<Instant>,
    interval: Duration,
    /// Who answered there last. As long as we have another connection to it there is no point in dialling (docs/spec/mesh.md
    /// 15.12).
    occupant: Option<(PeerName, PeerUid)>,
    /// What a name stood for when it was last looked up, IPv4 first.
    resolved: Vec<IpAddr>,
    /// Which of them is next.
    turn: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Resolving(ResolveId),
    Dialling(ConnectionId),
    Connected(ConnectionId),
    Suspended,
}

/// What to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Resolve { id: ResolveId, host: String },
    Dial { place: Place, addr: SocketAddr },
}

/// Our connections, as far as they bear on targets.
#[derive(Debug, Default)]
pub(crate) struct Connected {
    pub(crate) remotes: BTreeSet<SocketAddr>,
    pub(crate) inbound_from: BTreeSet<IpAddr>,
    pub(crate) peers: BTreeMap<PeerName, PeerUid>,
    /// How many more there may be; `None`: any number.
    pub(crate) room: Option<usize>,
    /// There is no room, but one of them could be given up for a peer that is out of reach.
    pub(crate) spare: bool,
    /// The limit, for the text.
    pub(crate) limit: usize,
}

/// When a target whose connection ended is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// After a pause; at once if the connection had lasted.
    Later,
    /// Only when the user asks for it.
    Never,
}

/// A target as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// The address to dial; for a name that was not found yet the name.
    pub address: String,
    /// What it is doing.
    pub state: TargetState,
    /// Why the last attempt ended.
    pub last_error: Option<String>,
    /// When it will be tried; `None`: never. Only meaningful while waiting.
    pub retry: Option<Instant>,
}

/// What a target is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetState {
    /// For its next attempt.
    Waiting,
    /// An attempt is under way.
    Attempting,
    /// There is a connection.
    Connected,
    /// It has to be kept, but need not be tried.
    Suspended,
}

const FIRST_INTERVAL: Duration = Duration::from_secs(2);
const MAX_INTERVAL: Duration = Duration::from_secs(6 * 60);
/// A connection that lasted so long is tried again at once.
const LASTED: Duration = Duration::from_secs(60);
/// More places than this are not learnt from the topology, whatever peers report.
const MAX_DISCOVERED: usize = 8192;
/// A resolver's answer is cut here.
const MAX_RESOLVED: usize = 64;

impl Dialer {
    pub(crate) fn new(port: u16, discovery: bool) -> Dialer {
        Dialer {
            port,
            discovery,
            direct: BTreeMap::new(),
            targets: BTreeMap::new(),
            next_resolve: 0,
            due: None,
        }
    }

    // ---- the user ---------------------------------------------------------------------------------------------

    /// Adds direct peers, after forgetting all others if they are to be replaced; each is due now. Returns the errors of
    /// the refused ones.
    pub(crate) fn connect(&mut self, peers: &[String], replace: bool, now: Instant) -> Vec<String> {
        if replace {
            self.direct.clear();
        }
        let mut errors = Vec::new();
        for text in peers {
            match parse_peer(text) {
                Ok(place) => {
                    if let Some(target) = self.targets.get_mut(&place.or_port(self.port)) {
                        target.retry_now(now);
                        target.occupant = None;
                    }
                    self.direct.insert(text.clone(), place);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        errors
    }

    /// Strikes direct peers out, by the text with which they were added.
    pub(crate) fn forget(&mut self, peers: &[String]) {
        for peer in peers {
            self.direct.remove(peer);
        }
    }

    /// The direct peers as they were given.
    pub(crate) fn direct_peers(&self) -> Vec<String> {
        self.direct.keys().cloned().collect()
    }

    /// The same without those that are never tried again (docs/spec/mesh.md 10.5).
    pub(crate) fn active_peers(&self) -> Vec<String> {
        let given_up = |place: &Place| {
            let target = self.targets.get(&place.or_port(self.port));
            target.is_some_and(|t| t.state == State::Waiting && t.try_after.is_none())
        };
        self.direct.iter().filter(|(_, place)| !given_up(place)).map(|(text, _)| text.clone()).collect()
    }

    /// Whether the place is one that the user asked for.
    pub(crate) fn is_direct(&self, place: &Place) -> bool {
        self.direct.values().any(|p| p.or_port(self.port) == *place)
    }

    // ---- decisions --------------------------------------------------------------------------------------------

    /// When [`Dialer::evaluate`] has something to begin.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due
    }

    /// Which targets there should be, and which of them to try now (docs/spec/mesh.md 10.2, 10.3).
    pub(crate) fn evaluate(
        &mut self,
        connected: &Connected,
        topology: &Topology,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Vec<Attempt> {
        let direct: BTreeSet<Place> = self.direct.values().map(|p| p.or_port(self.port)).collect();
        let valid = self.valid(connected, topology);
        for place in &valid {
            let target = self.targets.entry(place.clone()).or_insert_with(|| Target::new(now));
            if target.state == State::Suspended {
                target.state = State::Waiting;
            }
        }
        self.targets.retain(|place, target| {
            let idle = matches!(target.state, State::Waiting | State::Suspended);
            if idle && !valid.contains(place) {
                target.state = State::Suspended;
            }
            target.state != State::Suspended || direct.contains(place)
        });
        self.begin(connected, &direct, topology, rng, now)
    }

    fn valid(&self, connected: &Connected, topology: &Topology) -> BTreeSet<Place> {
        let mut valid = BTreeSet::new();
        for direct in self.direct.values() {
            let place = direct.or_port(self.port);
            let target = self.targets.get(&place);
            let resolved = target.map_or(&[][..], |t| &t.resolved);
            let met = |ip: &IpAddr| direct.port.is_none() && connected.inbound_from.contains(ip);
            let useless = |ip: &IpAddr| met(ip) || connected.remotes.contains(&place.at(*ip));
            let useless = match &place.host {
                Host::Ip(ip) => useless(ip),
                Host::Name(_) => !resolved.is_empty() && resolved.iter().all(useless),
            };
            if !useless && !target.is_some_and(|t| t.occupied(connected)) {
                valid.insert(place);
            }
        }
        if self.discovery {
            let mut seen = HashSet::new();
            for (_, peer) in topology.peers().filter(|&(name, _)| name != topology.own()) {
                for link in &peer.links {
                    if link.peer == topology.own() || connected.peers.contains_key(&link.peer) {
                        continue;
                    }
                    let Some(mut addr) = link.address.socket() else { continue };
                    if !link.outbound {
                        addr.set_port(self.port);
                    }
                    if seen.len() < MAX_DISCOVERED
                        && dialable(addr)
                        && seen.insert(addr)
                        && !connected.remotes.contains(&addr)
                    {
                        let place = Place { host: Host::Ip(addr.ip()), port: Some(addr.port()) };
                        if !self.targets.get(&place).is_some_and(|t| t.occupied(connected)) {
                            valid.insert(place);
                        }
                    }
                }
            }
        }
        valid
    }

    fn begin(
        &mut self,
        connected: &Connected,
        direct: &BTreeSet<Place>,
        topology: &Topology,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Vec<Attempt> {
        let due = self.targets.iter().filter(|(_, t)| t.state == State::Waiting);
        let mut due: Vec<Place> =
            due.filter(|(_, t)| t.try_after.is_some_and(|at| at <= now)).map(|(p, _)| p.clone()).collect();
        // Chance keeps a large mesh from dialling the same peers first everywhere.
        due.shuffle(rng);
        due.sort_by_key(|place| !direct.contains(place));

        let under_way = |t: &Target| matches!(t.state, State::Resolving(_) | State::Dialling(_));
        let mut room =
            connected.room.map(|r| r.saturating_sub(self.targets.values().filter(|t| under_way(t)).count()));
        let mut attempts = Vec::new();
        for place in due {
            let Some(target) = self.targets.get_mut(&place) else { continue };
            // With all connections taken, a direct peer may still be what joins two parts of the mesh.
            let known = target.occupant.is_some_and(|(peer, _)| topology.peer(peer).is_some());
            let may_join = connected.spare && direct.contains(&place) && !known;
            if room == Some(0) && !may_join {
                target.fail(format!("Connection limit reached ({})", connected.limit));
                target.retry_later(rng, now);
                continue;
            }
            room = room.map(|r| r.saturating_sub(1));
            attempts.push(match &place.host {
                Host::Ip(ip) => Attempt::Dial { addr: place.at(*ip), place },
                Host::Name(host) => {
                    self.next_resolve += 1;
                    let id = ResolveId(self.next_resolve);
                    target.state = State::Resolving(id);
                    Attempt::Resolve { id, host: host.clone() }
                }
            });
        }
        let waiting = self.targets.values().filter(|t| t.state == State::Waiting);
        // What is begun above is waiting only until `dialling` is called.
        self.due = waiting.filter_map(|t| t.try_after).filter(|&at| at > now).min();
        attempts
    }

    // ---- the course of an attempt -----------------------------------------------------------------------------

    /// A name was looked up. Returns what to dial.
    pub(crate) fn resolved(
        &mut self,
        id: ResolveId,
        result: Result<Vec<IpAddr>, String>,
        connected: &Connected,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<Attempt> {
        let (place, target) = self.targets.iter_mut().find(|(_, t)| t.state == State::Resolving(id))?;
        target.state = State::Waiting;
        match result {
            Ok(mut found) if !found.is_empty() => {
                found.sort_by_key(|ip| ip.is_ipv6());
                found.truncate(MAX_RESOLVED);
                target.resolved = found;
            }
            Ok(_) => {
                target.fail(format!("lookup {place}: no such host"));
                target.retry_later(rng, now);
                self.due = earlier(self.due, target.try_after);
                return None;
            }
            Err(error) => {
                target.fail(error);
                target.retry_later(rng, now);
                self.due = earlier(self.due, target.try_after);
                return None;
            }
        }
        let count = target.resolved.len();
        let in_turn = (0..count).map(|i| place.at(target.resolved[(target.turn + i) % count]));
        let free = in_turn.into_iter().find(|addr| !connected.remotes.contains(addr));
        match free {
            Some(addr) => Some(Attempt::Dial { place: place.clone(), addr }),
            None => {
                target.retry_later(rng, now);
                self.due = earlier(self.due, target.try_after);
                None
            }
        }
    }

    /// The attempt goes on under this handle.
    pub(crate) fn dialling(&mut self, place: &Place, conn: ConnectionId) {
        if let Some(target) = self.targets.get_mut(place) {
            target.state = State::Dialling(conn);
        }
    }

    /// It is now known who listens there.
    pub(crate) fn met(&mut self, place: &Place, conn: ConnectionId, peer: PeerName, uid: PeerUid) {
        if let Some(target) = self.owned(place, conn) {
            target.occupant = Some((peer, uid));
        }
    }

    /// The connection has been added.
    pub(crate) fn connected(&mut self, place: &Place, conn: ConnectionId) {
        if let Some(target) = self.owned(place, conn) {
            target.state = State::Connected(conn);
        }
    }

    /// There was no TCP connection.
    pub(crate) fn unreachable(
        &mut self,
        place: &Place,
        conn: ConnectionId,
        error: String,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if let Some(target) = self.owned(place, conn) {
            target.turn = target.turn.wrapping_add(1);
            target.fail(error);
            target.retry_later(rng, now);
            let due = target.try_after;
            self.due = earlier(self.due, due);
        }
    }

    /// The TCP connection has ended (docs/spec/mesh.md 10.4).
    pub(crate) fn ended(
        &mut self,
        place: &Place,
        conn: ConnectionId,
        error: String,
        retry: Retry,
        rng: &mut impl Rng,
        now: Instant,
    ) {
        if let Some(target) = self.owned(place, conn) {
            target.fail(error);
            // A name may stand for several hosts, of which one is ourself.
            let others = target.resolved.len() > 1;
            match (retry, target.try_after) {
                (Retry::Never, _) if !others => target.try_after = None,
                (Retry::Later, Some(at)) if now - at > LASTED => target.retry_now(now),
                _ => {
                    target.turn = target.turn.wrapping_add(1);
                    target.retry_later(rng, now);
                }
            }
            let due = target.try_after;
            self.due = earlier(self.due, due);
        }
    }

    fn owned(&mut self, place: &Place, conn: ConnectionId) -> Option<&mut Target> {
        let target = self.targets.get_mut(place)?;
        matches!(target.state, State::Dialling(c) | State::Connected(c) if c == conn).then_some(target)
    }

    // ---- status -----------------------------------------------------------------------------------------------

    /// All targets, in order.
    pub(crate) fn targets(&self) -> impl Iterator<Item = TargetStatus> + '_ {
        self.targets.iter().map(|(place, target)| TargetStatus {
            address: match (&place.host, target.resolved.get(target.turn % target.resolved.len().max(1))) {
                (Host::Name(_), Some(ip)) => place.at(*ip).to_string(),
                _ => place.to_string(),
            },
            state: match target.state {
                State::Waiting => TargetState::Waiting,
                State::Resolving(_) | State::Dialling(_) => TargetState::Attempting,
                State::Connected(_) => TargetState::Connected,
                State::Suspended => TargetState::Suspended,
            },
            last_error: target.last_error.clone(),
            retry: target.try_after,
        })
    }
}

impl Target {
    fn new(now: Instant) -> Target {
        Target {
            state: State::Waiting,
            last_error: None,
            try_after: Some(now),
            interval: FIRST_INTERVAL,
            occupant: None,
            resolved: Vec::new(),
            turn: 0,
        }
    }

    fn fail(&mut self, error: String) {
        self.state = State::Waiting;
        self.last_error = Some(error);
    }

    fn retry_now(&mut self, now: Instant) {
        self.try_after = Some(now);
        self.interval = FIRST_INTERVAL;
    }

    fn retry_later(&mut self, rng: &mut impl Rng, now: Instant) {
        self.try_after = Some(now + self.interval / 2 + self.interval.mul_f64(rng.random::<f64>()));
        self.interval = (self.interval * 3 / 2).min(MAX_INTERVAL);
    }

    fn occupied(&self, connected: &Connected) -> bool {
        self.occupant.is_some_and(|(peer, uid)| connected.peers.get(&peer) == Some(&uid))
    }
}

impl Place {
    fn or_port(&self, port: u16) -> Place {
        Place { host: self.host.clone(), port: self.port.or(Some(port)) }
    }

    fn at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port.unwrap_or(0))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Ip(ip), Some(port)) => SocketAddr::new(*ip, port).fmt(f),
            (Host::Ip(ip), None) => ip.fmt(f),
            (Host::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (Host::Name(name), None) => name.fmt(f),
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

/// What peers report is not always worth dialling.
fn dialable(addr: SocketAddr) -> bool {
    addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()
}

/// The text does not name a direct peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePlaceError(String);

impl fmt::Display for ParsePlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invalid peer name {:?}, should be host[:port]", self.0)
    }
}

impl std::error::Error for ParsePlaceError {}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address. Port 0 counts as none.
fn parse_peer(text: &str) -> Result<Place, ParsePlaceError> {
    let bad = || ParsePlaceError(text.to_owned());
    let (host, port) = if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Place { host: Host::Ip(ip), port: None });
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
    let plain = |host: &str| !host.is_empty() && !host.contains(['[', ']', '/', ' ']);
    let host = match host.parse::<IpAddr>() {
        Ok(ip) => Host::Ip(ip),
        Err(_) if plain(host) && !host.contains(':') => Host::Name(host.to_owned()),
        Err(_) => return Err(bad()),
    };
    // A bare IPv6 address was recognised above; here its last group would be mistaken for a port.
    if matches!(host, Host::Ip(IpAddr::V6(_))) && !text.starts_with('[') {
        return Err(bad());
    }
    let port = match port {
        None | Some("") => None,
        Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => Some(port.parse().map_err(|_| bad())?),
        Some(_) => return Err(bad()),
    };
    Ok(Place { host, port: port.filter(|&p| p != 0) })
}

#[cfg(test)]
impl Dialer {
    /// For the vectors: puts a target into a state.
    pub(crate) fn force(&mut self, addr: SocketAddr, state: TargetState, now: Instant) {
        let mut target = Target::new(now);
        target.retry_later(&mut crate::tests::support::rng(1), now);
        target.state = match state {
            TargetState::Waiting => State::Waiting,
            TargetState::Attempting => State::Dialling(ConnectionId(77)),
            TargetState::Connected => State::Connected(ConnectionId(77)),
            TargetState::Suspended => State::Suspended,
        };
        self.targets.insert(Place { host: Host::Ip(addr.ip()), port: Some(addr.port()) }, target);
    }
}

#[cfg(test)]
#[path = "tests/dialer.rs"]
mod tests;
