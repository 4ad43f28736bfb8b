use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::{ConnectionId, Instant, Now, PeerName};

use crate::admission::Admission;
use crate::config::Config;
use crate::connection::{Connection, Due, State};
use crate::dialer::{Attempt, Connected, Dialer, ResolveId};
use crate::digest::Age;
use crate::event::{ConnectionError, Event};
use crate::gossip::{Channels, Surrogates};
use crate::output::{Output, Persist};
use crate::peers::Peer;
use crate::routes::Routes;
use crate::short_ids::random_short_id;
use crate::topology::{OwnPeer, Topology};

/// One peer's part in the mesh: its connections, what it knows of the other peers, and the gossip that it passes on.
///
/// A machine without clock or sockets. The driver calls a `handle_…` for everything that happens, then takes
/// [`Mesh::poll_output`] until there is none, and calls [`Mesh::handle_timeout`] at [`Mesh::poll_timeout`]. Whatever
/// bytes peers send, the worst is that their connection ends.
#[derive(Debug)]
pub struct Mesh {
    pub(crate) config: Config,
    pub(crate) topology: Topology,
    pub(crate) routes: Arc<Routes>,
    pub(crate) dialer: Dialer,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    /// Those that were added.
    pub(crate) by_peer: BTreeMap<PeerName, ConnectionId>,
    /// Inbound ones in handshake, oldest first.
    pub(crate) unauthenticated: BTreeSet<ConnectionId>,
    pub(crate) surrogates: Surrogates,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) timers: Timers,
    /// Whose records the next announcement contains, besides our own.
    pub(crate) announced: BTreeSet<PeerName>,
    /// Records that we have asked for, and how new they are said to be.
    pub(crate) wanted: BTreeMap<PeerName, Age>,
    /// News to pass on, and who has told us.
    pub(crate) news: BTreeMap<PeerName, Vec<PeerName>>,
    /// Something that targets depend on has changed.
    pub(crate) targets_stale: bool,
    /// It was said that the only target cannot be reached, since a peer was connected last.
    pub(crate) alone_told: bool,
    pub(crate) terminations: u64,
    /// When a neighbour last gave way to a newcomer, the connection limit being reached.
    pub(crate) made_room: Option<Instant>,
    admission: Admission,
    last_connection: u64,
    outputs: VecDeque<Output>,
    peers_changed: bool,
    down: bool,
    /// Instead of a fresh one: the key with which recorded bytes were made.
    #[cfg(test)]
    pub(crate) private_key: Option<[u8; 32]>,
}

/// Every clock of the mesh but those of the dialer.
#[derive(Debug)]
pub(crate) struct Timers {
    /// For each connection an instant not later than its next deadline.
    pub(crate) connections: BTreeSet<(Instant, ConnectionId)>,
    /// Routes are to be computed again.
    pub(crate) routes: Option<Instant>,
    /// Our record, and those of new neighbours, are to be gossiped.
    pub(crate) announce: Option<Instant>,
    /// News is to be passed on.
    pub(crate) relay: Option<Instant>,
    /// When that may happen again at the earliest.
    pub(crate) relay_free: Instant,
    /// Records that we have asked for should have come.
    pub(crate) wanted: Option<Instant>,
    /// Unreachable peers are to be forgotten.
    pub(crate) garbage: Option<Instant>,
    /// The next round of complete state.
    pub(crate) gossip: Instant,
}

/// Changes are collected for so long before routes are computed again.
const ROUTES_DELAY: Duration = Duration::from_millis(100);
const ANNOUNCE_DELAY: Duration = Duration::from_secs(1);
const GARBAGE_DELAY: Duration = Duration::from_secs(1);
/// Of those who dialled us and have not shown yet who they are. The oldest one makes room for the next.
const MAX_UNAUTHENTICATED: usize = 64;

impl Mesh {
    /// A peer without connections. Has things to persist at once.
    pub fn new(config: Config, mut rng: ChaCha12Rng, now: Now) -> Mesh {
        let topology = Topology::new(OwnPeer {
            name: config.name,
            nickname: config.nickname.as_str().into(),
            uid: config.uid,
            version: config.version,
            short_id: config.short_id.unwrap_or_else(|| random_short_id(&mut rng)),
        });
        let timers = Timers {
            connections: BTreeSet::new(),
            routes: None,
            announce: None,
            relay: None,
            relay_free: now.mono,
            wanted: None,
            garbage: None,
            gossip: now.mono + config.gossip_interval,
        };
        let mut mesh = Mesh {
            routes: Arc::new(Routes::compute(&topology)),
            dialer: Dialer::new(config.port, config.discovery),
            connections: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            unauthenticated: BTreeSet::new(),
            surrogates: Surrogates::default(),
            rng,
            timers,
            announced: BTreeSet::new(),
            wanted: BTreeMap::new(),
            news: BTreeMap::new(),
            targets_stale: false,
            alone_told: false,
            terminations: 0,
            admission: Admission::new(),
            made_room: None,
            last_connection: 0,
            outputs: VecDeque::new(),
            peers_changed: false,
            down: false,
            #[cfg(test)]
            private_key: None,
            topology,
            config,
        };
        mesh.absorb(now);
        mesh
    }

    // ---- the user ---------------------------------------------------------------------------------------------

    /// Adds direct peers (`host[:port]`), in place of all others if `replace`. Returns a text for each that is refused;
    /// the others are added all the same.
    pub fn connect(&mut self, peers: &[String], replace: bool, now: Now) -> Vec<String> {
        let errors = self.dialer.connect(peers, replace, now.mono);
        self.output(Output::Persist(Persist::Targets(self.dialer.direct_peers())));
        self.targets_stale = true;
        self.settle(now);
        errors
    }

    /// Strikes direct peers out, by the very text with which they were added. Connections stay.
    pub fn forget(&mut self, peers: &[String], now: Now) {
        self.dialer.forget(peers);
        self.output(Output::Persist(Persist::Targets(self.dialer.direct_peers())));
        self.targets_stale = true;
        self.settle(now);
    }

    /// Ends all connections; nothing is dialled or accepted any more.
    pub fn shutdown(&mut self, now: Now) {
        self.down = true;
        let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for conn in all {
            self.terminate(conn, ConnectionError::Shutdown, now);
        }
    }

    // ---- sockets ----------------------------------------------------------------------------------------------

    /// A host name was looked up.
    pub fn handle_resolved(&mut self, id: ResolveId, result: Result<Vec<IpAddr>, String>, now: Now) {
        let connected = self.connected();
        let attempt = self.dialer.resolved(id, result, &connected, &mut self.rng, now.mono);
        if let Some(attempt) = attempt.filter(|_| !self.down) {
            self.begin(attempt);
        }
        self.targets_stale = true;
        self.settle(now);
    }

    /// Somebody dialled us. `None` when shutting down, or when the same address dials too often: close the socket. The
    /// listener waits for
    /// [`Mesh::accept_delay`] before it accepts the next one.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Now,
    ) -> Option<ConnectionId> {
        if self.down {
            return None;
        }
        let (local, remote) = (unmapped(local), unmapped(remote));
        if !self.admission.admit(remote.ip(), now.mono) {
            return None;
        }
        while self.unauthenticated.len() >= MAX_UNAUTHENTICATED {
            let oldest = *self.unauthenticated.first()?;
            self.unauthenticated.remove(&oldest);
            self.terminate(oldest, ConnectionError::Crowded, now);
        }
        let conn = self.next_connection();
        self.connections.insert(conn, Connection::new(conn, local, remote));
        self.unauthenticated.insert(conn);
        self.output(Output::Event(Event::Accepted(remote)));
        self.start_handshake(conn, now);
        self.settle(now);
        Some(conn)
    }

    /// How long the listener waits before it accepts again (docs/spec/mesh.md 11.1).
    pub fn accept_delay(&self, now: Now) -> Duration {
        self.admission.delay(now.mono)
    }

    /// An attempt succeeded.
    pub fn handle_dialled(&mut self, conn: ConnectionId, local: SocketAddr, remote: SocketAddr, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if !matches!(connection.state, State::Dialling) {
            return;
        }
        connection.local = unmapped(local);
        connection.remote = unmapped(remote);
        self.start_handshake(conn, now);
        self.settle(now);
    }

    /// An attempt failed.
    pub fn handle_dial_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        if self.connections.get(&conn).is_some_and(|c| matches!(c.state, State::Dialling)) {
            self.terminate(conn, ConnectionError::Io(error), now);
        }
        self.settle(now);
    }

    /// Bytes came from a peer.
    pub fn handle_stream(&mut self, conn: ConnectionId, bytes: &[u8], channels: &mut dyn Channels, now: Now) {
        self.feed(conn, bytes, channels, now);
        self.settle(now);
    }

    /// The kernel has taken so many bytes of earlier [`Output::Write`]s.
    pub fn handle_written(&mut self, conn: ConnectionId, bytes: usize, now: Now) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.drained(bytes, now.mono);
            self.pump(conn, now);
            self.watch(conn);
        }
        self.settle(now);
    }

    /// The peer or the kernel ended the connection.
    pub fn handle_closed(&mut self, conn: ConnectionId, error: String, now: Now) {
        let error = self.closing_error(conn, error);
        self.terminate(conn, error, now);
        self.settle(now);
    }

    // ---- overlays ---------------------------------------------------------------------------------------------

    /// Data can travel over the connection.
    pub fn handle_overlay_established(&mut self, conn: ConnectionId, now: Now) {
        self.establish(conn, now);
        self.settle(now);
    }

    /// No overlay of the connection is of use.
    pub fn handle_overlay_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        self.terminate(conn, ConnectionError::Overlay(error), now);
        self.settle(now);
    }

    // ---- time -------------------------------------------------------------------------------------------------

    /// When [`Mesh::handle_timeout`] wants to be called, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timers = &self.timers;
        [
            timers.connections.first().map(|&(at, _)| (at, "connection")),
            timers.routes.map(|at| (at, "routes")),
            timers.announce.map(|at| (at, "announce")),
            timers.relay.map(|at| (at, "relay")),
            timers.wanted.map(|at| (at, "wanted")),
            timers.garbage.map(|at| (at, "garbage")),
            Some((timers.gossip, "gossip")),
            self.dialer.next_due().map(|at| (at, "dial")),
        ]
        .into_iter()
        .flatten()
        .filter(|_| !self.down)
        .min()
    }

    /// Does what is due. Early or repeated calls do no harm.
    pub fn handle_timeout(&mut self, channels: &mut dyn Channels, now: Now) {
        if self.down {
            return;
        }
        while let Some(&(at, conn)) = self.timers.connections.first()
            && at <= now.mono
        {
            self.timers.connections.pop_first();
            let Some(connection) = self.connections.get_mut(&conn) else { continue };
            connection.wake = None;
            match connection.due(now.mono) {
                Some(Due::Heartbeat) => self.heartbeat(conn, now),
                Some(Due::End(error)) => self.terminate(conn, error, now),
                None => {}
            }
            self.watch(conn);
        }
        if due(&mut self.timers.garbage, now) {
            self.topology.collect(&mut self.rng);
            self.absorb(now);
        }
        if self.timers.routes.is_some_and(|at| at <= now.mono) {
            self.refresh_routes();
            self.targets_stale = true;
        }
        if due(&mut self.timers.relay, now) {
            self.relay_news(now);
        }
        if due(&mut self.timers.wanted, now) {
            self.ask_again(now);
        }
        if due(&mut self.timers.announce, now) {
            self.announce(now);
        }
        if self.timers.gossip <= now.mono {
            self.timers.gossip = now.mono + self.config.gossip_interval;
            self.gossip_all(channels, now);
        }
        self.settle(now);
    }

    // ---- reads ------------------------------------------------------------------------------------------------

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The routes as of the last [`Output::RoutesChanged`].
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.clone()
    }

    /// Our name.
    pub fn name(&self) -> PeerName {
        self.config.name
    }

    /// What is known of a peer.
    pub fn peer(&self, name: PeerName) -> Option<&Peer> {
        self.topology.peer(name)
    }

    /// All known peers, ourself included, ascending by name.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = (PeerName, &Peer)> + '_ {
        self.topology.peers()
    }

    // ---- inside -----------------------------------------------------------------------------------------------

    pub(crate) fn output(&mut self, output: Output) {
        self.outputs.push_back(output);
    }

    pub(crate) fn next_connection(&mut self) -> ConnectionId {
        self.last_connection += 1;
        ConnectionId(self.last_connection)
    }

    pub(crate) fn random<const N: usize>(&mut self) -> [u8; N] {
        self.rng.random()
    }

    /// Does what a change of the topology demands. Comes before any message that shows the change.
    pub(crate) fn absorb(&mut self, now: Now) {
        let effects = self.topology.take_effects();
        if let Some(ceiling) = effects.ceiling {
            self.output(Output::Persist(Persist::VersionCeiling(ceiling)));
        }
        if let Some(id) = effects.short_id {
            self.output(Output::Persist(Persist::ShortId(id)));
        }
        if effects.short_ids_invalidated {
            self.output(Output::ShortIdsInvalidated);
        }
        for peer in effects.removed {
            self.output(Output::PeerRemoved(peer.name));
            self.output(Output::Event(Event::PeerRemoved(peer)));
        }
        if effects.announce {
            self.timers.announce.get_or_insert(now.mono + ANNOUNCE_DELAY);
        }
        if effects.changed {
            self.timers.routes.get_or_insert(now.mono + ROUTES_DELAY);
            self.peers_changed = true;
        }
    }

    /// News came: what is unreachable now is forgotten soon.
    pub(crate) fn schedule_collection(&mut self, now: Now) {
        if self.topology.has_garbage() {
            self.timers.garbage.get_or_insert(now.mono + GARBAGE_DELAY);
        }
    }

    /// Computes the routes if anything that they depend on may have changed.
    pub(crate) fn refresh_routes(&mut self) {
        if self.timers.routes.take().is_some()
            && let Some(routes) = self.routes.recompute(&self.topology)
        {
            self.routes = Arc::new(routes);
            self.output(Output::RoutesChanged);
        }
    }

    /// Keeps the timer of a connection.
    pub(crate) fn watch(&mut self, conn: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let next = connection.next_deadline();
        match (next, connection.wake) {
            // Later deadlines are found out when it wakes.
            (Some(next), Some(wake)) if wake <= next => {}
            (Some(next), wake) => {
                connection.wake = Some(next);
                if let Some(wake) = wake {
                    self.timers.connections.remove(&(wake, conn));
                }
                self.timers.connections.insert((next, conn));
            }
            (None, _) => {}
        }
    }

    /// At the end of every input.
    fn settle(&mut self, now: Now) {
        self.absorb(now);
        if std::mem::take(&mut self.peers_changed) {
            self.output(Output::PeersChanged);
        }
        let due = self.dialer.next_due().is_some_and(|at| at <= now.mono);
        if !self.down && (due || std::mem::take(&mut self.targets_stale)) {
            let connected = self.connected();
            let attempts = self.dialer.evaluate(&connected, &self.topology, &mut self.rng, now.mono);
            for attempt in attempts {
                self.begin(attempt);
            }
        }
    }

    fn begin(&mut self, attempt: Attempt) {
        match attempt {
            Attempt::Resolve { id, host } => self.output(Output::Resolve { id, host }),
            Attempt::Dial { place, addr } => {
                let conn = self.next_connection();
                let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
                let mut connection = Connection::new(conn, unknown, addr);
                connection.accept_new = self.dialer.is_direct(&place);
                self.dialer.dialling(&place, conn);
                connection.place = Some(place);
                self.connections.insert(conn, connection);
                self.output(Output::Event(Event::Attempting(addr)));
                self.output(Output::Dial { conn, addr });
            }
        }
    }

    /// Our connections, as the dialer looks at them.
    fn connected(&self) -> Connected {
        let limit = self.config.connection_limit;
        let room = (limit > 0).then(|| limit.saturating_sub(self.by_peer.len()));
        let mut connected = Connected {
            room,
            spare: room == Some(0) && !self.topology.redundant_neighbours().is_empty(),
            limit,
            ..Connected::default()
        };
        for connection in self.by_peer.values().filter_map(|conn| self.connections.get(conn)) {
            connected.remotes.insert(connection.remote);
            if !connection.outbound() {
                connected.inbound_from.insert(connection.remote.ip());
            }
            if let Some(running) = connection.running() {
                connected.peers.insert(running.peer, running.peer_uid);
            }
        }
        connected
    }
}

fn due(timer: &mut Option<Instant>, now: Now) -> bool {
    timer.take_if(|at| *at <= now.mono).is_some()
}

/// A dual-stack listener shows IPv4 clients in IPv6 form; addresses are gossiped as text (docs/spec/mesh.md 4.1).
fn unmapped(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
