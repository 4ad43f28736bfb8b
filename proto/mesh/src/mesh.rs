use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_types::{ConnectionId, Instant, Now, PeerName, ShortId};

use crate::admission::Admission;
use crate::config::Config;
use crate::connection::{Connection, Expired, PROBE_PERIOD, PathState, Running, State};
use crate::dialer::{Attempt, Dialer, OwnConnections, ResolveId};
use crate::event::{ConnectionError, Event, StreamEnd};
use crate::gossip::{Channels, Surrogates};
use crate::interrupted::{Departure, Interrupted};
use crate::output::{Output, Persist};
use crate::peers::{Peer, RecordVersion};
use crate::routes::Routes;
use crate::short_ids::random_short_id;
use crate::topology::{self, OwnPeer, Topology};

/// One peer's part in the mesh: its connections, the records of the other peers, and the gossip that it relays.
///
/// A state machine without clock or sockets. After each call of a `handle_` function the driver carries out
/// [`Mesh::poll_output`] until it returns `None`; it calls [`Mesh::handle_timeout`] at [`Mesh::poll_timeout`]. Malformed
/// bytes from a peer end the connection to it and have no other effect.
#[derive(Debug)]
pub struct Mesh {
    pub(crate) config: Config,
    pub(crate) topology: Topology,
    pub(crate) routes: Arc<Routes>,
    pub(crate) dialer: Dialer,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    /// The connections that are in our topology record.
    pub(crate) by_peer: BTreeMap<PeerName, ConnectionId>,
    /// Connections whose data path has failed (module `paths`).
    pub(crate) failed_paths: BTreeSet<ConnectionId>,
    /// Connections that are expected to be made again after a restart (module `restarts`).
    pub(crate) interrupted: BTreeMap<PeerName, Interrupted>,
    pub(crate) started_at: Instant,
    /// Why connections are closed at the shutdown.
    pub(crate) departure: Departure,
    /// Inbound connections in handshake, oldest first.
    pub(crate) unauthenticated: BTreeSet<ConnectionId>,
    pub(crate) surrogates: Surrogates,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) timers: Timers,
    /// Peers whose records the next announcement contains besides our own.
    pub(crate) to_announce: BTreeSet<PeerName>,
    /// Records that were requested from a neighbour, with the versions that it announced, and when.
    pub(crate) requested: BTreeMap<PeerName, (RecordVersion, Instant)>,
    /// Peers with new records to relay, and the neighbours that have these records.
    pub(crate) pending_news: BTreeMap<PeerName, Vec<PeerName>>,
    /// The targets have to be evaluated again.
    pub(crate) targets_stale: bool,
    /// [`Event::OnlyTargetUnreachable`] was sent since the last peer was connected.
    pub(crate) only_target_reported: bool,
    pub(crate) terminations: u64,
    /// Another host has our name, and no connection has been established since.
    pub(crate) name_conflict: Option<String>,
    /// When a connection was last ended at the connection limit in favour of another peer.
    pub(crate) last_eviction: Option<Instant>,
    admission: Admission,
    last_connection: u64,
    outputs: VecDeque<Output>,
    /// [`Output::PeersChanged`] is due.
    pub(crate) peers_changed: bool,
    pub(crate) is_shut_down: bool,
    /// The private key of recorded handshakes, instead of a random one.
    #[cfg(test)]
    pub(crate) private_key: Option<[u8; 32]>,
}

/// All timers but those of the dialer.
#[derive(Debug)]
pub(crate) struct Timers {
    /// For each connection the time of its timer, which is not later than its next deadline.
    pub(crate) connections: BTreeSet<(Instant, ConnectionId)>,
    /// When routes are computed again.
    pub(crate) routes: Option<Instant>,
    /// The earliest time at which routes may be computed again because of a change that does not interrupt data.
    pub(crate) next_routes: Instant,
    /// When our record and those of new neighbours are gossiped.
    pub(crate) announce: Option<Instant>,
    /// The earliest time at which they may be gossiped again because of a change that does not interrupt data.
    pub(crate) next_announce: Instant,
    /// When the records of `pending_news` are relayed.
    pub(crate) relay: Option<Instant>,
    /// The earliest time at which records may be relayed again.
    pub(crate) next_relay: Instant,
    /// When requested records should have arrived.
    pub(crate) requested: Option<Instant>,
    /// The earliest time at which the targets may be evaluated again because of connections and routes.
    pub(crate) next_targets: Instant,
    /// When unreachable peers are removed.
    pub(crate) garbage: Option<Instant>,
    /// When complete state is gossiped next.
    pub(crate) gossip: Instant,
}

/// Delay between a change of the topology and the computation of routes, so that several changes share one.
const ROUTES_DELAY: Duration = Duration::from_millis(100);
/// The same while connections return after a restart.
const SHORT_ROUTES_DELAY: Duration = Duration::from_millis(5);
/// Minimum interval between two computations of routes, and between two relays of news, for each peer, and for any number: while a large
/// mesh forms the topology changes all the time, and both take longer the more peers there are.
const INTERVAL_PER_PEER: Duration = Duration::from_millis(8);
const MAX_INTERVAL: Duration = Duration::from_secs(1);
const ANNOUNCE_DELAY: Duration = Duration::from_secs(1);
const GARBAGE_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of inbound connections in handshake. Beyond it the oldest one is closed.
const MAX_UNAUTHENTICATED: usize = 64;

impl Mesh {
    /// A peer without connections. Its first outputs are state to persist.
    pub fn new(config: Config, mut rng: ChaCha12Rng, now: Now) -> Mesh {
        let topology = Topology::new(OwnPeer {
            name: config.name,
            nickname: config.nickname.as_str().into(),
            uid: config.uid,
            // A clock that ran fast may have let our version exceed what others accept.
            version: config.version.min(topology::max_version(now.wall)),
            short_id: config.short_id.unwrap_or_else(|| random_short_id(&mut rng)),
        });
        let timers = Timers {
            connections: BTreeSet::new(),
            routes: None,
            next_routes: now.mono,
            announce: None,
            next_announce: now.mono,
            relay: None,
            next_relay: now.mono,
            requested: None,
            next_targets: now.mono,
            garbage: None,
            gossip: now.mono + config.gossip_interval,
        };
        let mut mesh = Mesh {
            routes: Arc::new(Routes::compute(&topology)),
            dialer: Dialer::new(config.port, config.discovery),
            connections: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            failed_paths: BTreeSet::new(),
            interrupted: BTreeMap::new(),
            started_at: now.mono,
            departure: Departure::Leave,
            unauthenticated: BTreeSet::new(),
            surrogates: Surrogates::default(),
            rng,
            timers,
            to_announce: BTreeSet::new(),
            requested: BTreeMap::new(),
            pending_news: BTreeMap::new(),
            targets_stale: false,
            only_target_reported: false,
            terminations: 0,
            admission: Admission::new(),
            last_eviction: None,
            name_conflict: None,
            last_connection: 0,
            outputs: VecDeque::new(),
            peers_changed: false,
            is_shut_down: false,
            #[cfg(test)]
            private_key: None,
            topology,
            config,
        };
        mesh.apply_topology_changes(now);
        mesh
    }

    // ---- commands of the user ---------------------------------------------------------------------------------

    /// Adds direct peers (`host[:port]`), and removes all others if `replace`. Returns an error for each text that is
    /// refused; the other peers are added nevertheless.
    pub fn connect(&mut self, peers: &[String], replace: bool, now: Now) -> Vec<String> {
        let errors = self.dialer.connect(peers, replace, now.mono);
        self.output(Output::Persist(Persist::Targets(self.dialer.direct_peers())));
        self.targets_stale = true;
        self.timers.next_targets = now.mono;
        self.finish_input(now);
        errors
    }

    /// Removes direct peers, by the text with which they were added. Their connections remain.
    pub fn forget(&mut self, peers: &[String], now: Now) {
        self.dialer.forget(peers);
        self.output(Output::Persist(Persist::Targets(self.dialer.direct_peers())));
        self.targets_stale = true;
        self.finish_input(now);
    }

    /// Ends all connections. No further ones are dialled or accepted.
    pub fn shutdown(&mut self, departure: Departure, now: Now) {
        self.departure = departure;
        self.is_shut_down = true;
        let all: Vec<ConnectionId> = self.connections.keys().copied().collect();
        for conn in all {
            self.terminate(conn, ConnectionError::Shutdown, now);
        }
    }

    // ---- sockets ----------------------------------------------------------------------------------------------

    /// Handles the answer to [`Output::Resolve`].
    pub fn handle_resolved(&mut self, id: ResolveId, result: Result<Vec<IpAddr>, String>, now: Now) {
        let connected = self.own_connections();
        let attempt = self.dialer.on_resolved(id, result, &connected, &mut self.rng, now.mono);
        if let Some(attempt) = attempt.filter(|_| !self.is_shut_down) {
            self.start_attempt(attempt);
        }
        self.targets_stale = true;
        self.finish_input(now);
    }

    /// Handles an inbound connection. Returns `None` after a shutdown, and if the source connects too often: the driver
    /// closes the socket. The listener waits for [`Mesh::accept_delay`] before it accepts the next connection.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Now,
    ) -> Option<ConnectionId> {
        if self.is_shut_down {
            return None;
        }
        let (local, remote) = (to_canonical_addr(local), to_canonical_addr(remote));
        if !self.admission.admit(remote.ip(), now.mono) {
            return None;
        }
        while self.unauthenticated.len() >= MAX_UNAUTHENTICATED {
            let oldest = *self.unauthenticated.first()?;
            self.unauthenticated.remove(&oldest);
            self.terminate(oldest, ConnectionError::TooManyPending, now);
        }
        let conn = self.next_connection();
        self.connections.insert(conn, Connection::new(conn, local, remote));
        self.unauthenticated.insert(conn);
        self.output(Output::Event(Event::Accepted(remote)));
        self.start_handshake(conn, now);
        self.finish_input(now);
        Some(conn)
    }

    /// How long the listener waits before it accepts the next connection (docs/spec/mesh.md 11.1).
    pub fn accept_delay(&self, now: Now) -> Duration {
        self.admission.delay(now.mono)
    }

    /// Handles the success of [`Output::Dial`].
    pub fn handle_dialled(&mut self, conn: ConnectionId, local: SocketAddr, remote: SocketAddr, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        if !matches!(connection.state, State::Dialling) {
            return;
        }
        connection.local = to_canonical_addr(local);
        connection.remote = to_canonical_addr(remote);
        self.start_handshake(conn, now);
        self.finish_input(now);
    }

    /// Handles the failure of [`Output::Dial`].
    pub fn handle_dial_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        if self.connections.get(&conn).is_some_and(|c| matches!(c.state, State::Dialling)) {
            self.terminate(conn, ConnectionError::Io(error), now);
        }
        self.finish_input(now);
    }

    /// Handles bytes from a peer.
    pub fn handle_stream(&mut self, conn: ConnectionId, bytes: &[u8], channels: &mut dyn Channels, now: Now) {
        self.on_bytes(conn, bytes, channels, now);
        self.finish_input(now);
    }

    /// Handles the progress of earlier [`Output::Write`]s: this number of bytes has been written.
    pub fn handle_written(&mut self, conn: ConnectionId, bytes: usize, now: Now) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.on_written(bytes, now.mono);
            self.flush_queue(conn, now);
            self.rearm_timer(conn);
        }
        self.finish_input(now);
    }

    /// Handles the end of a connection by the peer or the kernel.
    pub fn handle_closed(&mut self, conn: ConnectionId, end: StreamEnd, now: Now) {
        let error = self.closing_error(conn, end);
        self.terminate(conn, error, now);
        self.finish_input(now);
    }

    /// Sets the overlays that new connections offer, in order of preference.
    pub fn set_overlays(&mut self, overlays: Vec<String>) {
        self.config.overlays = overlays;
    }

    // ---- overlays ---------------------------------------------------------------------------------------------

    /// Handles the success of [`Output::OverlayConfirm`]: the data path is verified.
    pub fn handle_overlay_established(&mut self, conn: ConnectionId, now: Now) {
        self.on_established(conn, now);
        self.finish_input(now);
    }

    /// Handles the failure of all overlays of a connection.
    pub fn handle_overlay_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        self.terminate(conn, ConnectionError::Overlay(error), now);
        self.finish_input(now);
    }

    // ---- the host's network -----------------------------------------------------------------------------------

    /// Handles a change of the host's addresses or routes. Connections from the addresses that the host has lost are ended,
    /// since nothing can be sent on them any more, the paths of the others are tested, and all targets are dialled at once.
    pub fn handle_network_change(&mut self, lost: &BTreeSet<IpAddr>, now: Now) {
        let broken = self.connections.values().filter_map(|c| match c.state {
            // It may use a route or an address that has changed.
            State::Dialling => Some((c.id, ConnectionError::NetworkChanged)),
            _ => {
                lost.contains(&c.local.ip()).then(|| (c.id, ConnectionError::LocalAddressLost(c.local.ip())))
            }
        });
        for (conn, error) in broken.collect::<Vec<_>>() {
            self.terminate(conn, error, now);
        }
        if !lost.is_empty() {
            self.give_up_all(now);
        }
        // Others may have lost their way, also where no data moves that would show it.
        let in_use = |running: &Running| running.established && running.path == PathState::Works;
        let in_use = self.connections.values().filter(|c| c.running().is_some_and(in_use));
        for conn in in_use.map(|c| c.id).collect::<Vec<_>>() {
            self.output(Output::TestPath { conn });
        }
        self.dialer.on_network_change(now.mono);
        self.targets_stale = true;
        self.finish_input(now);
    }

    /// Finds out whether a connection still leads to its peer, which may have moved or restarted: sends something, and has the
    /// driver end the connection if the other host does not acknowledge it.
    pub fn probe(&mut self, conn: ConnectionId, now: Now) {
        let Some(running) = self.connections.get_mut(&conn).and_then(Connection::running_mut) else { return };
        if running.probed_at.is_none_or(|at| now.mono - at >= PROBE_PERIOD) {
            running.probed_at = Some(now.mono);
            running.probed_until = Some(now.mono + PROBE_PERIOD);
            running.passed_probe = false;
            self.heartbeat(conn, now);
            self.rearm_timer(conn);
            self.output(Output::Probe { conn });
        }
    }

    /// Why no address may be given out: another host has our name, and is the one that others are connected to.
    pub fn name_conflict(&self) -> Option<&str> {
        self.name_conflict.as_deref()
    }

    // ---- time -------------------------------------------------------------------------------------------------

    /// When [`Mesh::handle_timeout`] is to be called, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let timers = &self.timers;
        [
            timers.connections.first().map(|&(at, _)| (at, "connection")),
            timers.routes.map(|at| (at, "routes")),
            timers.announce.map(|at| (at, "announce")),
            timers.relay.map(|at| (at, "relay")),
            timers.requested.map(|at| (at, "requests")),
            timers.garbage.map(|at| (at, "garbage")),
            self.restart_timeout().map(|at| (at, "restarts")),
            Some((timers.gossip, "gossip")),
            self.dialer.next_due().map(|at| (at, "dial")),
            self.targets_stale.then_some((timers.next_targets, "targets")),
        ]
        .into_iter()
        .flatten()
        .filter(|_| !self.is_shut_down)
        .min()
    }

    /// Handles expired timers. Early or repeated calls have no effect.
    pub fn handle_timeout(&mut self, channels: &mut dyn Channels, now: Now) {
        if self.is_shut_down {
            return;
        }
        while let Some(&(at, conn)) = self.timers.connections.first()
            && at <= now.mono
        {
            self.timers.connections.pop_first();
            let Some(connection) = self.connections.get_mut(&conn) else { continue };
            connection.timer = None;
            match connection.on_timeout(now.mono) {
                Some(Expired::Heartbeat) => self.heartbeat(conn, now),
                Some(Expired::Connection(error)) => self.terminate(conn, error, now),
                None => {}
            }
            self.rearm_timer(conn);
        }
        self.handle_restart_timeout(now);
        if take_if_due(&mut self.timers.garbage, now) {
            self.topology.collect_garbage(&mut self.rng);
            self.apply_topology_changes(now);
        }
        if self.timers.routes.is_some_and(|at| at <= now.mono) {
            self.refresh_routes(now);
            self.targets_stale = true;
        }
        if take_if_due(&mut self.timers.relay, now) {
            self.relay_news(now);
        }
        if take_if_due(&mut self.timers.requested, now) {
            self.retry_requests(now);
        }
        if take_if_due(&mut self.timers.announce, now) {
            self.announce(now);
        }
        if self.timers.gossip <= now.mono {
            self.timers.gossip = now.mono + self.config.gossip_interval;
            self.gossip_all(channels, now);
        }
        self.finish_input(now);
    }

    // ---- outputs and queries ----------------------------------------------------------------------------------

    /// The next output to carry out.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The routes as of the last [`Output::RoutesChanged`].
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.clone()
    }

    /// Name of this peer.
    pub fn name(&self) -> PeerName {
        self.config.name
    }

    /// Record of a peer.
    pub fn peer(&self, name: PeerName) -> Option<&Peer> {
        self.topology.peer(name)
    }

    /// The short id that the peer owns; `None` if it has none or another peer owns it (docs/spec/mesh.md 2.6).
    pub fn short_id(&self, name: PeerName) -> Option<ShortId> {
        let id = self.topology.peer(name)?.short_id?;
        (self.topology.short_ids().owner(id) == Some(name)).then_some(id)
    }

    /// The peer that owns a short id.
    pub fn short_id_owner(&self, id: ShortId) -> Option<PeerName> {
        self.topology.short_ids().owner(id)
    }

    /// All known peers including this one, ascending by name.
    pub fn peers(&self) -> impl ExactSizeIterator<Item = (PeerName, &Peer)> + '_ {
        self.topology.peers()
    }

    // ---- internal ---------------------------------------------------------------------------------------------

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

    /// Applies the consequences of changes in the topology. Called before any message that depends on them.
    pub(crate) fn apply_topology_changes(&mut self, now: Now) {
        let changes = self.topology.take_changes();
        if let Some(ceiling) = changes.version_ceiling {
            self.output(Output::Persist(Persist::VersionCeiling(ceiling)));
        }
        if let Some(id) = changes.short_id {
            self.output(Output::Persist(Persist::ShortId(id)));
        }
        if changes.short_ids_invalidated {
            self.output(Output::ShortIdsInvalidated);
        }
        for peer in changes.removed {
            self.output(Output::PeerRemoved(peer.name));
            self.output(Output::Event(Event::PeerRemoved(peer)));
        }
        if changes.announce {
            let soon = now.mono + ANNOUNCE_DELAY;
            let at = if changes.is_urgent { soon } else { self.timers.next_announce.max(soon) };
            self.timers.announce = Some(self.timers.announce.map_or(at, |earlier| earlier.min(at)));
        }
        if changes.changed {
            let at = match self.interrupted.is_empty() {
                true => self.timers.next_routes.max(now.mono + ROUTES_DELAY),
                false => now.mono + SHORT_ROUTES_DELAY,
            };
            self.timers.routes = Some(self.timers.routes.map_or(at, |earlier| earlier.min(at)));
            self.peers_changed = true;
            if !self.failed_paths.is_empty() {
                self.review_paths(now);
            }
            if !self.interrupted.is_empty() {
                self.review_interrupted(now);
            }
        }
    }

    /// Schedules the removal of peers that have become unreachable.
    pub(crate) fn schedule_collection(&mut self, now: Now) {
        if self.topology.collection_due() {
            self.timers.garbage.get_or_insert(now.mono + GARBAGE_DELAY);
        }
    }

    /// Minimum interval between two reactions to news of the topology, unless data is interrupted.
    pub(crate) fn interval(&self) -> Duration {
        let peers = u32::try_from(self.topology.peers().len()).unwrap_or(u32::MAX);
        INTERVAL_PER_PEER.saturating_mul(peers).min(MAX_INTERVAL)
    }

    /// Computes the routes if the topology has changed.
    pub(crate) fn refresh_routes(&mut self, now: Now) {
        if self.timers.routes.take().is_none() {
            return;
        }
        self.timers.next_routes = now.mono + self.interval();
        if let Some(routes) = self.routes.recompute(&self.topology) {
            self.routes = Arc::new(routes);
            self.output(Output::RoutesChanged);
        }
    }

    /// Sets the timer of a connection to its next deadline. A timer that expires earlier is kept, since it is set again
    /// then.
    pub(crate) fn rearm_timer(&mut self, conn: ConnectionId) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let next = connection.next_deadline();
        match (next, connection.timer) {
            (Some(next), Some(timer)) if timer <= next => {}
            (Some(next), timer) => {
                connection.timer = Some(next);
                if let Some(timer) = timer {
                    self.timers.connections.remove(&(timer, conn));
                }
                self.timers.connections.insert((next, conn));
            }
            (None, _) => {}
        }
    }

    /// Completes the handling of an input: applies changes and starts attempts that are due.
    pub(crate) fn finish_input(&mut self, now: Now) {
        self.limit_buffers(now);
        self.apply_topology_changes(now);
        if std::mem::take(&mut self.peers_changed) {
            self.output(Output::PeersChanged);
        }
        let is_due = self.dialer.next_due().is_some_and(|at| at <= now.mono);
        let is_stale = self.targets_stale && self.timers.next_targets <= now.mono;
        if !self.is_shut_down && (is_due || is_stale) {
            self.targets_stale = false;
            self.timers.next_targets = now.mono + self.interval();
            let connected = self.own_connections();
            let attempts = self.dialer.evaluate(&connected, &self.topology, &mut self.rng, now.mono);
            for attempt in attempts {
                self.start_attempt(attempt);
            }
        }
    }

    /// Ends connections until the bytes of unfinished messages are within their limit. The connection with most goes, so that
    /// one peer does not take the room of the others.
    fn limit_buffers(&mut self, now: Now) {
        while self.connections.values().map(Connection::buffered).sum::<usize>() > self.config.max_buffered {
            let largest = self.connections.values().map(|c| (c.buffered(), c.id)).max();
            let Some((bytes, conn)) = largest else { return };
            self.terminate(conn, ConnectionError::TooMuchBuffered(bytes), now);
        }
    }

    fn start_attempt(&mut self, attempt: Attempt) {
        match attempt {
            Attempt::Resolve { id, host } => self.output(Output::Resolve { id, host }),
            Attempt::Dial { target_addr, addr, identify_first, quiet } => {
                let conn = self.next_connection();
                let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
                let mut connection = Connection::new(conn, unknown, addr);
                connection.accept_unknown = self.dialer.accepts_unknown(&target_addr);
                connection.identify_first = identify_first;
                connection.quiet = quiet;
                self.dialer.on_dial_started(&target_addr, conn);
                connection.target_addr = Some(target_addr);
                self.connections.insert(conn, connection);
                if !identify_first && !quiet {
                    self.output(Output::Event(Event::Attempting(addr)));
                }
                self.output(Output::Dial { conn, addr });
            }
        }
    }

    /// The properties of our connections that the dialer needs.
    pub(crate) fn own_connections(&self) -> OwnConnections {
        let limit = self.config.connection_limit;
        let room = (limit > 0).then(|| limit.saturating_sub(self.occupied_places(PeerName::UNKNOWN)));
        let mut connected = OwnConnections {
            room,
            can_evict: room == Some(0) && !self.topology.redundant_neighbours().is_empty(),
            limit,
            ..OwnConnections::default()
        };
        for connection in self.by_peer.values().filter_map(|conn| self.connections.get(conn)) {
            connected.remotes.insert(connection.remote);
            if !connection.outbound() {
                connected.inbound_from.insert(connection.remote.ip());
            }
            if let Some(running) = connection.running() {
                connected.peers.insert(running.peer, (running.peer_uid, connection.remote));
            }
        }
        connected
    }
}

fn take_if_due(timer: &mut Option<Instant>, now: Now) -> bool {
    timer.take_if(|at| *at <= now.mono).is_some()
}

/// Converts the IPv4-mapped address that a dual-stack listener reports for an IPv4 client (docs/spec/mesh.md 4.1).
fn to_canonical_addr(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
