//! The steps of a connection from the handshake to its end (docs/spec/mesh.md 4.8).

use std::sync::Arc;
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName};

use crate::admission::{Survivor, resolve_duplicate};
use crate::connection::{Connection, HEARTBEAT_INTERVAL, READ_TIMEOUT, Running, State};
use crate::dialer::Retry;
use crate::event::{ConnectionError, ConnectionEvent, Event, PeerStatusOnConnect};
use crate::features::Features;
use crate::gossip::{Channels, GossipKind, Queue};
use crate::handshake::{Handshake, HandshakeConfig, Progress, Session};
use crate::mesh::Mesh;
use crate::output::{Output, OverlaySetup};
use crate::peers::{PeerConnection, PeerLabel};

/// The overlay of peers that announce none.
const LEGACY_OVERLAY: &str = "sleeve";
/// Minimum interval between connections that are ended in favour of other peers.
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);
/// Handshake feature of peers that compare digests of the topology (module `digest`).
pub(crate) const DIGEST_FEATURE: &str = "TopologyDigest";

impl Mesh {
    /// The TCP connection is open: starts the handshake.
    pub(crate) fn start_handshake(&mut self, conn: ConnectionId, now: Now) {
        let private_key = self.random();
        #[cfg(test)]
        let private_key = self.private_key.unwrap_or(private_key);
        let connection_id = u64::from_be_bytes(self.random());
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let trusted = self.config.trusts(connection.remote.ip());
        let overlays = &self.config.overlays;
        let own_features = Features {
            name: self.config.name,
            nickname: self.config.nickname.clone(),
            uid: self.config.uid,
            connection_id,
            short_id: self.topology.own_peer().short_id,
            trusted,
            overlays: (!overlays.is_empty()).then(|| overlays.clone()),
        };
        let mut features = self.config.features.clone();
        features.extend(own_features.to_map());
        if self.config.topology_digest {
            features.insert(DIGEST_FEATURE.to_owned(), "1".to_owned());
        }
        let config = HandshakeConfig {
            features,
            password: self.config.password.clone(),
            min_protocol: self.config.min_protocol,
            outbound: connection.outbound(),
            ..HandshakeConfig::default()
        };
        connection.start_handshake(Handshake::new(config, private_key), own_features, now.mono);
        self.flush_handshake(conn, now);
        self.rearm_timer(conn);
    }

    fn flush_handshake(&mut self, conn: ConnectionId, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let State::Handshaking { handshake, .. } = &mut connection.state else { return };
        if let Some(bytes) = handshake.poll_write() {
            connection.on_write_queued(bytes.len(), now.mono);
            self.output(Output::Write { conn, bytes });
        }
    }

    pub(crate) fn on_bytes(
        &mut self,
        conn: ConnectionId,
        bytes: &[u8],
        channels: &mut dyn Channels,
        now: Now,
    ) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        match &mut connection.state {
            State::Dialling => return,
            State::Running(running) => running.session.push(bytes),
            State::Handshaking { handshake, own_features, .. } => {
                let result = handshake.handle_bytes(bytes);
                let own_features = own_features.clone();
                if let Ok(Progress::Exchange) = result {
                    connection.on_header(now.mono);
                }
                self.flush_handshake(conn, now);
                let result = match result {
                    Ok(Progress::Done(session)) => {
                        self.on_handshake_complete(conn, *session, &own_features, channels, now)
                    }
                    Ok(_) => return self.rearm_timer(conn),
                    Err(error) => Err(ConnectionError::Handshake(error)),
                };
                if let Err(error) = result {
                    return self.terminate(conn, error, now);
                }
            }
        }
        self.receive(conn, channels, now);
        self.rearm_timer(conn);
    }

    /// Registers an authenticated connection: peer record, choice of overlays, duplicate connections, overlay set-up
    /// (docs/spec/mesh.md 4.8 steps 2 to 9).
    fn on_handshake_complete(
        &mut self,
        conn: ConnectionId,
        session: Session,
        own_features: &Features,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        self.unauthenticated.remove(&conn);
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        let remote = Features::from_map(&session.remote_features).map_err(ConnectionError::Features)?;
        let (name, uid) = (remote.name, remote.uid);

        if !connection.accept_unknown && self.topology.peer(name).is_none() {
            return Err(ConnectionError::UnknownName(name, connection.remote));
        }
        let nickname: Arc<str> = remote.nickname.as_str().into();
        self.topology.acquire_peer(name, || (nickname.clone(), uid, remote.short_id));
        // A known name with a new UID means that the peer has restarted.
        let restarted = self.topology.peer(name).is_some_and(|known| known.uid != uid);

        let legacy_overlay = remote.overlays.is_none();
        let trusted = remote.trusted && self.config.trusts(connection.remote.ip());
        let session_key = session.session_key.filter(|_| !trusted);
        let version = session.version;
        let features = session.remote_features.clone();
        let supports_digest = self.config.topology_digest && features.contains_key(DIGEST_FEATURE);
        let connection_uid = own_features.connection_uid(&remote);
        let setup = OverlaySetup {
            remote: name,
            remote_nickname: remote.nickname.clone(),
            local_addr: connection.local,
            remote_addr: connection.remote,
            outbound: connection.outbound(),
            uid: connection_uid,
            session_key,
            overlays: remote.overlays.clone(),
            remote_features: features,
        };
        connection.state = State::Running(Box::new(Running {
            session,
            peer: name,
            peer_uid: uid,
            uid: connection_uid,
            legacy_overlay,
            encrypted_overlay: session_key.is_some(),
            overlay_prepared: false,
            added: false,
            established: false,
            supports_digest,
            digest_sent_at: None,
            queue: Queue::default(),
            forged_version_reported: false,
            heartbeat_at: now.mono + HEARTBEAT_INTERVAL,
            read_deadline: now.mono + READ_TIMEOUT,
        }));
        if let Some(target_addr) = connection.target_addr.clone() {
            self.dialer.on_peer_identified(&target_addr, conn, name, uid);
        }
        self.apply_topology_changes(now);
        if name == self.config.name {
            if uid == self.config.uid {
                return Err(ConnectionError::SelfConnection);
            }
            let theirs = PeerLabel { name, nickname };
            return Err(ConnectionError::NameCollision(self.topology.label(name), theirs));
        }
        self.log_event(conn, ConnectionEvent::Ready { version });

        self.check_overlays(setup.overlays.as_deref())?;
        self.with_running(conn, |running| running.overlay_prepared = true);
        self.output(Output::OverlayPrepare { conn, setup: Box::new(setup) });

        self.add_connection(conn, restarted, channels, now)?;
        self.output(Output::OverlayConfirm { conn });
        self.flush_queue(conn, now);
        Ok(())
    }

    /// Without own overlays there is nothing to negotiate.
    fn check_overlays(&self, theirs: Option<&[String]>) -> Result<(), ConnectionError> {
        let ours = &self.config.overlays;
        let common = match theirs {
            Some(theirs) => ours.iter().any(|name| theirs.contains(name)),
            None => ours.iter().any(|name| name == LEGACY_OVERLAY),
        };
        if common || ours.is_empty() { Ok(()) } else { Err(ConnectionError::NoCommonOverlay) }
    }

    fn add_connection(
        &mut self,
        conn: ConnectionId,
        restarted: bool,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some(connection) = self.connections.get(&conn) else { return Ok(()) };
        let Some(running) = connection.running() else { return Ok(()) };
        let peer = running.peer;
        let connection = PeerConnection {
            peer,
            address: connection.remote.into(),
            outbound: connection.outbound(),
            established: false,
        };
        let duplicate =
            ConnectionError::Duplicate(self.topology.label(peer), self.topology.label(self.config.name));
        let old = self.by_peer.get(&peer).copied();
        let old = old.and_then(|old| Some((old, self.connections.get(&old)?.running()?)));
        let mut replaced = None;
        if let Some((old, other)) = old {
            // A connection to an earlier run of the peer is broken, even if that has not been noticed.
            let survivor = if other.peer_uid == running.peer_uid {
                resolve_duplicate(other.uid, running.uid)
            } else {
                Survivor::New
            };
            match survivor {
                Survivor::Old => return Err(duplicate),
                Survivor::New => replaced = Some(old),
                Survivor::Neither => {
                    self.terminate(old, duplicate.clone(), now);
                    return Err(duplicate);
                }
            }
        }
        let limit = self.config.connection_limit;
        if limit > 0 && replaced.is_none() && self.by_peer.len() >= limit {
            self.evict_neighbour(peer, limit, now)?;
        }

        // The new connection replaces the old one in one step, so that peers behind it do not become unreachable.
        self.by_peer.insert(peer, conn);
        self.topology.connect(connection);
        self.to_announce.insert(peer);
        self.with_running(conn, |running| running.added = true);
        if let Some(old) = replaced {
            self.with_running(old, |running| running.added = false);
            self.log_event(old, ConnectionEvent::Deleted);
            self.terminate(old, duplicate, now);
        }
        self.apply_topology_changes(now);

        let status = if restarted {
            PeerStatusOnConnect::Restarted
        } else if self.routes.unicast(peer).is_none() {
            PeerStatusOnConnect::New
        } else {
            PeerStatusOnConnect::Known
        };
        if status != PeerStatusOnConnect::Known {
            self.queue_complete_state(conn, channels, now);
        }
        self.log_event(conn, ConnectionEvent::Added(status));
        if let Some(target_addr) = self.connections.get(&conn).and_then(|c| c.target_addr.clone()) {
            self.dialer.on_connected(&target_addr, conn);
        }
        self.targets_stale = true;
        Ok(())
    }

    /// The connection limit is reached. If `new_peer` is unreachable, ends a connection whose peer is reachable
    /// otherwise, so that the limit does not separate parts of the mesh permanently.
    fn evict_neighbour(&mut self, new_peer: PeerName, limit: usize, now: Now) -> Result<(), ConnectionError> {
        let is_reachable = self.topology.is_reachable(new_peer);
        let weight = |name: &PeerName| (self.topology.peer(*name).map_or(0, |p| p.connections.len()), *name);
        // The peer with the most connections is best able to replace this one.
        let victim = self.topology.redundant_neighbours().into_iter().max_by_key(weight);
        let victim = victim.filter(|_| !is_reachable).and_then(|name| self.by_peer.get(&name).copied());
        let error = ConnectionError::LimitReached(limit);
        let interval_passed = self.last_eviction.is_none_or(|at| now.mono - at >= EVICTION_INTERVAL);
        let Some(victim) = victim.filter(|_| interval_passed) else { return Err(error) };
        self.last_eviction = Some(now.mono);
        self.terminate(victim, error, now);
        Ok(())
    }

    /// Sends complete state to a new or restarted peer (docs/spec/mesh.md 7.6).
    fn queue_complete_state(&mut self, conn: ConnectionId, channels: &mut dyn Channels, now: Now) {
        self.sync_topology(conn, now);
        for name in channels.names().to_vec() {
            if let Some(state) = channels.state(name, now) {
                self.queue(conn, GossipKind::Neighbour, &name.into(), &state, channels);
            }
        }
    }

    /// The overlay has verified the data path (docs/spec/mesh.md 4.8 step 10).
    pub(crate) fn on_established(&mut self, conn: ConnectionId, now: Now) {
        let Some(running) = self.connections.get_mut(&conn).and_then(Connection::running_mut) else { return };
        if !running.added || running.established {
            return;
        }
        running.established = true;
        let peer = running.peer;
        self.only_target_reported = false;
        self.topology.establish(peer);
        self.apply_topology_changes(now);
        self.log_event(conn, ConnectionEvent::Established);
    }

    /// Ends a connection (docs/spec/mesh.md 4.8 step 11). An unknown connection is ignored.
    pub(crate) fn terminate(&mut self, conn: ConnectionId, error: ConnectionError, now: Now) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.unauthenticated.remove(&conn);
        if let Some(timer) = connection.timer {
            self.timers.connections.remove(&(timer, conn));
        }
        self.output(Output::Close { conn });
        let Connection { state, target_addr, remote, .. } = connection;
        let retry = match error {
            ConnectionError::SelfConnection | ConnectionError::NameCollision(..) => Retry::Never,
            _ => Retry::Later,
        };
        let text = error.to_string();
        if error != ConnectionError::SelfConnection && !matches!(state, State::Dialling) {
            self.terminations += 1;
        }
        match state {
            State::Dialling => {
                self.output(Output::Event(Event::AttemptFailed(remote, text.clone())));
                if let Some(target_addr) = target_addr {
                    self.dialer.on_dial_failed(&target_addr, conn, text, &mut self.rng, now.mono);
                }
                self.report_unreachable_only_target();
                self.targets_stale = true;
                return;
            }
            State::Handshaking { .. } => {
                self.output(Output::Event(Event::HandshakeFailed(remote, error)));
            }
            State::Running(running) => {
                let label = self.topology.label(running.peer);
                let event = |event| Output::Event(Event::Connection(remote, label.clone(), event));
                self.output(event(ConnectionEvent::Ended(error)));
                self.topology.release_peer(running.peer);
                if running.added && self.by_peer.get(&running.peer) == Some(&conn) {
                    self.by_peer.remove(&running.peer);
                    self.topology.disconnect(running.peer);
                    self.topology.collect_garbage(&mut self.rng);
                    self.output(event(ConnectionEvent::Deleted));
                } else {
                    self.schedule_collection(now);
                }
                if running.overlay_prepared {
                    self.output(Output::OverlayStop { conn });
                }
            }
        }
        self.apply_topology_changes(now);
        if let Some(target_addr) = target_addr {
            self.dialer.on_disconnected(&target_addr, conn, text, retry, &mut self.rng, now.mono);
        }
        self.targets_stale = true;
    }

    /// Reports that the only direct peer cannot be reached, once until a peer is connected.
    fn report_unreachable_only_target(&mut self) {
        if self.only_target_reported || !self.by_peer.is_empty() {
            return;
        }
        if let [only] = &self.dialer.active_peers()[..] {
            self.only_target_reported = true;
            self.output(Output::Event(Event::OnlyTargetUnreachable(only.clone())));
        }
    }

    /// The error for a text of the driver. During a handshake 2.8.1 has more specific ones.
    pub(crate) fn closing_error(&mut self, conn: ConnectionId, error: String) -> ConnectionError {
        match self.connections.get_mut(&conn).map(|c| &mut c.state) {
            Some(State::Handshaking { handshake, .. }) if error == "EOF" => {
                ConnectionError::Handshake(handshake.handle_eof())
            }
            _ => ConnectionError::Io(error),
        }
    }

    pub(crate) fn with_running(&mut self, conn: ConnectionId, change: impl FnOnce(&mut Running)) {
        if let Some(running) = self.connections.get_mut(&conn).and_then(Connection::running_mut) {
            change(running);
        }
    }

    /// Logs an event of a connection whose peer is authenticated.
    pub(crate) fn log_event(&mut self, conn: ConnectionId, event: ConnectionEvent) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let name = connection.running().map_or(PeerName::UNKNOWN, |running| running.peer);
        let event = Event::Connection(connection.remote, self.topology.label(name), event);
        self.output(Output::Event(event));
    }
}
