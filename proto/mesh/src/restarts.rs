//! Restarts that leave the topology as it is (docs/spec/mesh.md 18.6).
//!
//! When the process of a peer ends, its neighbours close nothing: they keep the connection in their records, *interrupted*, and dial. The
//! restarted process learns from the first neighbour which connections it had, and lists them in its own record before anybody sees that.
//!
//! ```text
//! restarting peer                         neighbour
//!  -- 1, restarting (by `stop` only) ------>
//!  -- end of the TCP connection ----------->  interrupted: for 60 s after 1, otherwise for 10 s
//!            ... the process starts ...
//!  <-- TCP connection, by either side ----->  the new connection takes the place of the old one
//!  <-- 2, the former connections -----------
//!  lists them, for 10 s
//! ```
//! Tag 67, a byte for the kind, the content. Kind 0 announces that the connection ends for another reason.

use std::net::SocketAddr;
use std::time::Duration;

use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid};

use crate::connection::{Connection, Ending, LATE_GRACE, PathState, Running};
use crate::event::{ConnectionError, ConnectionEvent, Event};
use crate::interrupted::{Departure, Interrupted};
use crate::mesh::Mesh;
use crate::output::Output;
use crate::peers::PeerConnection;
use crate::topology;
use crate::update::{decode_update, encode_update};

/// Handshake feature of peers that expect restarts.
pub(crate) const FEATURE: &str = "Restart";
/// Tag of the extension's messages, which are only sent to peers with the feature.
pub(crate) const TAG: u8 = 67;

const ENDED: u8 = 0;
const RESTARTING: u8 = 1;
const FORMER_CONNECTIONS: u8 = 2;

/// How long the place of a peer is kept that has announced its restart.
const ANNOUNCED: Duration = Duration::from_secs(60);
/// How long the place of a peer is kept whose process has ended without a word; also, for how long a new process lists the
/// connections of the one before.
const ASSUMED: Duration = Duration::from_secs(10);
/// What is routed over the peer to others takes another route after this time, if there is one.
const DETOUR_DELAY: Duration = Duration::from_millis(600);

impl Mesh {
    /// Sends the reason why we are about to close a connection.
    pub(crate) fn announce_end(&mut self, conn: ConnectionId, error: &ConnectionError, now: Now) {
        let Some(running) = self.connections.get(&conn).and_then(Connection::running) else { return };
        let kind = match error {
            // The connection is gone, or another one takes its place.
            ConnectionError::Closed(_) | ConnectionError::Io(_) | ConnectionError::Duplicate(..) => return,
            ConnectionError::Shutdown if self.departure == Departure::Restart => RESTARTING,
            _ => ENDED,
        };
        if running.added && running.understands_restarts {
            self.send(conn, &[TAG, kind], now);
        }
    }

    /// Handles a message of the extension. Unknown kinds are ignored.
    pub(crate) fn handle_restart_message(
        &mut self,
        conn: ConnectionId,
        body: &[u8],
        now: Now,
    ) -> Result<(), ConnectionError> {
        match body {
            [ENDED] => self.with_running(conn, |running| running.ending = Ending::Final),
            [RESTARTING] => self.with_running(conn, |running| running.ending = Ending::Restart),
            [FORMER_CONNECTIONS, update @ ..] => {
                let update =
                    decode_update(update).map_err(|e| ConnectionError::ProtocolViolation(e.to_string()))?;
                for record in update.records {
                    if record.name == self.config.name && record.uid != self.config.uid {
                        self.adopt_connections(record.connections.clone(), now);
                        // Our version must be higher than that of the former record.
                        let max_version = topology::max_version(now.wall);
                        self.topology.merge(vec![record], max_version, &mut self.rng);
                    }
                }
                self.apply_topology_changes(now);
            }
            _ => {}
        }
        Ok(())
    }

    // ---- the neighbours of a peer that restarts ---------------------------------------------------------------

    /// The remote end of a connection has closed it. Returns whether its place is kept.
    pub(crate) fn interrupt(
        &mut self,
        running: &Running,
        remote: SocketAddr,
        outbound: bool,
        now: Now,
    ) -> bool {
        let peer = running.peer;
        let earlier = self.interrupted.get(&peer).map(|interrupted| interrupted.until);
        let expected = running.understands_restarts
            && running.ending != Ending::Final
            && running.path == PathState::Works
            && (running.established || earlier.is_some());
        if !expected || self.is_shut_down {
            return false;
        }
        let until = match (running.ending, earlier) {
            (Ending::Restart, _) => now.mono + ANNOUNCED,
            // A peer that fails again and again while it starts is given up.
            (_, Some(until)) => until,
            (_, None) => now.mono + ASSUMED,
        };
        let connection = PeerConnection { peer, address: remote.into(), outbound, established: true };
        self.keep_place(connection, until, Some(remote), now);
        self.peers_changed = true;
        let seconds = until.saturating_since(now.mono).as_secs();
        let announced = running.ending == Ending::Restart;
        if let Some(interrupted) = self.interrupted.get_mut(&peer) {
            interrupted.announced = announced;
        }
        let what = ConnectionEvent::Interrupted { seconds, announced };
        self.output(Output::Event(Event::Connection(remote, self.topology.label(peer), what)));
        self.dialer.on_interrupted(peer, remote, outbound, now.mono);
        true
    }

    fn keep_place(
        &mut self,
        connection: PeerConnection,
        until: Instant,
        remote: Option<SocketAddr>,
        now: Now,
    ) {
        let peer = connection.peer;
        let detour_at = Some(now.mono + DETOUR_DELAY);
        let interrupted =
            Interrupted { until, announced: false, detour_at, path: PathState::Works, connection, remote };
        if self.interrupted.insert(peer, interrupted).is_none() {
            let placeholder = || ("".into(), PeerUid(0), None);
            self.topology.acquire_peer(peer, placeholder);
        }
    }

    /// Another connection is about to take the place of this one. Our record does not change if it lists this one as established.
    pub(crate) fn keep_established(&mut self, old: ConnectionId, new: &PeerConnection, now: Now) {
        let Some(running) = self.connections.get(&old).and_then(Connection::running) else { return };
        if running.understands_restarts && running.established && running.path == PathState::Works {
            self.keep_place(new.clone(), now.mono + ASSUMED, None, now);
        }
    }

    /// A connection has been added in the place of an interrupted one. Returns whether our record lists it as established, as it did
    /// before.
    pub(crate) fn resume(&mut self, peer: PeerName) -> bool {
        self.peers_changed |= self.interrupted.contains_key(&peer);
        match self.interrupted.get_mut(&peer) {
            Some(interrupted) if interrupted.is_listed() => {
                interrupted.path = PathState::Works;
                interrupted.detour_at = None;
                true
            }
            Some(_) => {
                self.end_interruption(peer);
                false
            }
            None => false,
        }
    }

    /// Nothing is kept for the peer any more; our record is the business of the caller.
    pub(crate) fn end_interruption(&mut self, peer: PeerName) -> Option<Interrupted> {
        let interrupted = self.interrupted.remove(&peer)?;
        self.topology.release_peer(peer);
        Some(interrupted)
    }

    /// Gives up the place of a peer.
    pub(crate) fn give_up(&mut self, peer: PeerName, now: Now) {
        let Some(interrupted) = self.end_interruption(peer) else { return };
        if self.by_peer.contains_key(&peer) {
            self.topology.set_established(peer, false);
        } else {
            let label = self.topology.label(peer);
            self.topology.disconnect(peer);
            self.topology.collect_garbage(&mut self.rng);
            if let Some(remote) = interrupted.remote {
                self.output(Output::Event(Event::Connection(remote, label, ConnectionEvent::Deleted)));
            }
        }
        self.apply_topology_changes(now);
        self.targets_stale = true;
    }

    /// This host has lost addresses: nothing returns to connections from these.
    pub(crate) fn give_up_all(&mut self, now: Now) {
        for peer in self.interrupted.keys().copied().collect::<Vec<_>>() {
            self.give_up(peer, now);
        }
    }

    /// Whether the peer has said that its process ends, and has not returned: nothing can be asked of it for now.
    pub fn has_stopped(&self, peer: PeerName) -> bool {
        self.interrupted.get(&peer).is_some_and(|i| i.announced) && !self.by_peer.contains_key(&peer)
    }

    /// Number of connections that exist, or whose place is kept, except that of `peer`.
    pub(crate) fn occupied_places(&self, peer: PeerName) -> usize {
        let kept = self.interrupted.keys().filter(|name| !self.by_peer.contains_key(name));
        kept.chain(self.by_peer.keys()).filter(|name| **name != peer).count()
    }

    pub(crate) fn restart_timeout(&self) -> Option<Instant> {
        let times = |(peer, i): (&PeerName, &Interrupted)| {
            let detour = i.detour_at.filter(|_| !self.by_peer.contains_key(peer));
            detour.map_or(i.until, |at| at.min(i.until))
        };
        self.interrupted.iter().map(times).min()
    }

    pub(crate) fn handle_restart_timeout(&mut self, now: Now) {
        for interrupted in self.interrupted.values_mut() {
            // The peer may have returned while this machine was asleep or busy.
            if interrupted.until.is_handled_late(now.mono) {
                interrupted.until = now.mono + LATE_GRACE;
            }
            if let Some(at) = interrupted.detour_at.as_mut().filter(|at| at.is_handled_late(now.mono)) {
                *at = now.mono + DETOUR_DELAY;
            }
        }
        let due = |(peer, i): (&PeerName, &Interrupted)| (i.until <= now.mono).then_some(*peer);
        for peer in self.interrupted.iter().filter_map(due).collect::<Vec<_>>() {
            self.give_up(peer, now);
        }
        let mut review = false;
        for interrupted in self.interrupted.values_mut() {
            review |= interrupted.detour_at.take_if(|at| *at <= now.mono).is_some();
        }
        if review {
            self.review_interrupted(now);
        }
    }

    /// Withdraws interrupted connections, and restores them, as those with a failed path (module `paths`), but only if the peer would
    /// relay anything: nothing else is gained by another route.
    pub(crate) fn review_interrupted(&mut self, now: Now) {
        let waits = |(peer, i): (&PeerName, &Interrupted)| {
            (i.detour_at.is_none() && !self.by_peer.contains_key(peer)).then_some(*peer)
        };
        for peer in self.interrupted.iter().filter_map(waits).collect::<Vec<_>>() {
            let other_route = self.topology.has_other_route(peer);
            let relays = self.routes.unicast_table().any(|(dst, via)| via == peer && dst != peer);
            let Some(interrupted) = self.interrupted.get_mut(&peer) else { continue };
            match (interrupted.path, other_route) {
                (PathState::Works, true) if relays => {
                    interrupted.path = PathState::Withdrawn;
                    self.topology.disconnect(peer);
                }
                (PathState::Withdrawn, false) => {
                    interrupted.path = PathState::LastRoute;
                    let connection = interrupted.connection.clone();
                    self.topology.connect(connection);
                }
                _ => continue,
            }
            self.publish_paths(now);
        }
    }

    /// Tells a restarted peer which connections it had. Sent before anything that makes it send its own record.
    pub(crate) fn send_former_connections(&mut self, conn: ConnectionId, peer: PeerName, now: Now) {
        let understood =
            self.connections.get(&conn).and_then(Connection::running).is_some_and(|r| r.understands_restarts);
        let Some(known) = self.topology.peer(peer).filter(|known| understood && known.version > 0) else {
            return;
        };
        let mut former = topology::record(peer, known);
        former.connections.retain(|c| self.topology.is_established(c.peer, peer) && c.established);
        let message = [&[TAG, FORMER_CONNECTIONS][..], &encode_update(&[former])].concat();
        self.send(conn, &message, now);
    }

    // ---- the peer that has restarted --------------------------------------------------------------------------

    /// Lists the connections of the process before this one, until they exist again.
    fn adopt_connections(&mut self, connections: Vec<PeerConnection>, now: Now) {
        let until = self.started_at + ASSUMED;
        for connection in connections {
            let peer = connection.peer;
            let is_other = peer != self.config.name && connection.established;
            let limit = self.config.connection_limit;
            let has_room = limit == 0 || self.occupied_places(peer) < limit;
            if until <= now.mono || !is_other || !has_room || self.interrupted.contains_key(&peer) {
                continue;
            }
            match self.by_peer.get(&peer).and_then(|conn| self.connections.get(conn)?.running()) {
                Some(running) if running.established => continue,
                Some(_) => self.topology.set_established(peer, true),
                None => self.topology.connect(connection.clone()),
            }
            self.keep_place(connection, until, None, now);
        }
    }
}
