//! The steps of a connection from the handshake to its end (docs/spec/mesh.md 4.8).

use std::sync::Arc;
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName};

use crate::admission::{Survivor, resolve_duplicate};
use crate::connection::{Connection, Ending, HEARTBEAT_INTERVAL, PathState, READ_TIMEOUT, Running, State};
use crate::dialer::Retry;
use crate::event::{ConnectionError, ConnectionEvent, Event, PeerStatusOnConnect, StreamEnd};
use crate::features::Features;
use crate::gossip::{Channels, GossipKind, Queue};
use crate::handshake::{Handshake, HandshakeConfig, Progress, Session};
use crate::mesh::Mesh;
use crate::output::{Output, OverlaySetup};
use crate::peers::{PeerConnection, PeerLabel};
use crate::restarts;

/// The overlay of peers that announce none.
const LEGACY_OVERLAY: &str = "sleeve";
/// Minimum interval between connections that are ended in favour of other peers.
const EVICTION_INTERVAL: Duration = Duration::from_secs(10);
/// Handshake feature of peers that compare digests of the topology (module `digest`).
const DIGEST_FEATURE: &str = "TopologyDigest";
/// Handshake feature of peers that compare digests of channels (module `channel_digest`).
const CHANNEL_DIGEST_FEATURE: &str = "ChannelDigest";
/// Handshake feature of peers that understand [`REFUSAL_TAG`] (docs/spec/mesh.md 18.3).
const REFUSAL_FEATURE: &str = "Refusal";
/// Tag of the message that says why a connection is about to be closed.
pub(crate) const REFUSAL_TAG: u8 = 65;
const NAME_IN_USE: u8 = 0;
/// Maximum length of the text of a refusal in bytes.
const MAX_REFUSAL: usize = 2048;

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
        features.insert(REFUSAL_FEATURE.to_owned(), "1".to_owned());
        if self.config.digests {
            features.insert(DIGEST_FEATURE.to_owned(), "1".to_owned());
            features.insert(CHANNEL_DIGEST_FEATURE.to_owned(), "1".to_owned());
            features.insert(restarts::FEATURE.to_owned(), "1".to_owned());
        }
        let config = HandshakeConfig {
            features,
            password: self.config.password.clone(),
            min_protocol: self.config.min_protocol,
            outbound: connection.outbound(),
            identify_first: connection.identify_first,
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
        mut session: Session,
        own_features: &Features,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        self.unauthenticated.remove(&conn);
        let remote = Features::from_map(&session.remote_features).map_err(ConnectionError::Features)?;
        let (name, uid) = (remote.name, remote.uid);
        let known = self.by_peer.get(&name).and_then(|known| self.connections.get(known));
        let known = known.filter(|known| known.running().is_some_and(|running| running.peer_uid == uid));
        let known = known.map(|known| known.remote);
        let label = self.topology.label(name);
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        if let (true, Some(remote)) = (connection.identify_first, known) {
            if let Some(target_addr) = &connection.target_addr {
                self.dialer.on_peer_identified(target_addr, conn, name, uid);
            }
            return Err(ConnectionError::AlreadyConnected(label, remote));
        }
        let unsent = std::mem::take(&mut session.unsent_features);
        if !unsent.is_empty() {
            connection.on_write_queued(unsent.len(), now.mono);
            self.output(Output::Write { conn, bytes: unsent });
        }
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };

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
        let supports_digest = self.config.digests && features.contains_key(DIGEST_FEATURE);
        let supports_channel_digest = self.config.digests && features.contains_key(CHANNEL_DIGEST_FEATURE);
        let understands_restarts = self.config.digests && features.contains_key(restarts::FEATURE);
        let understands_refusal = features.contains_key(REFUSAL_FEATURE);
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
            path: PathState::Works,
            supports_digest,
            digest_sent_at: None,
            supports_channel_digest,
            understands_refusal,
            understands_restarts,
            ending: Ending::Unannounced,
            probed_at: None,
            probed_until: None,
            passed_probe: false,
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
        let mut connection = PeerConnection {
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
            if other.peer_uid != running.peer_uid {
                return Err(self.refuse_other_run(conn, old, now));
            }
            match resolve_duplicate(other.uid, running.uid) {
                Survivor::Old => {
                    // The peer may have moved, and have ended the old connection without being able to tell us.
                    self.probe(old, now);
                    return Err(duplicate);
                }
                Survivor::New => replaced = Some(old),
                Survivor::Neither => {
                    self.terminate(old, duplicate.clone(), now);
                    return Err(duplicate);
                }
            }
        }
        let limit = self.config.connection_limit;
        if limit > 0 && replaced.is_none() && self.occupied_places(peer) >= limit {
            self.evict_neighbour(peer, limit, now)?;
        }

        // The new connection replaces the old one in one step, so that peers behind it do not become unreachable.
        if let Some(old) = replaced {
            self.keep_established(old, &connection, now);
        }
        self.by_peer.insert(peer, conn);
        connection.established = self.resume(peer);
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
        if restarted {
            self.send_former_connections(conn, peer, now);
        }
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

    /// Another run of a connected peer has connected. Either the peer has restarted, and the old connection does not lead to
    /// it any more: the test shows that, and the peer dials again. Or it is another host with the same name, which must not
    /// replace the one that works.
    fn refuse_other_run(&mut self, conn: ConnectionId, old: ConnectionId, now: Now) -> ConnectionError {
        let Some(connection) = self.connections.get(&old) else { return ConnectionError::Shutdown };
        let remote = connection.remote;
        let running = connection.running();
        let label = self.topology.label(running.map_or(PeerName::UNKNOWN, |running| running.peer));
        let is_alive = running.is_some_and(|running| running.passed_probe);
        self.probe(old, now);
        if !is_alive {
            return ConnectionError::StillConnected(label, remote);
        }
        let understood =
            self.connections.get(&conn).and_then(Connection::running).is_some_and(|r| r.understands_refusal);
        if understood {
            let holder = format!("{} at {remote}", label.nickname);
            let message = [&[REFUSAL_TAG, NAME_IN_USE], holder.as_bytes()].concat();
            self.send_unless_busy(conn, &message, now);
        }
        ConnectionError::NameInUse(label, remote)
    }

    /// Handles the reason for which the peer is about to close the connection. Unknown ones are ignored.
    pub(crate) fn handle_refusal(&self, peer: PeerName, body: &[u8]) -> Result<(), ConnectionError> {
        match body.split_first() {
            Some((&NAME_IN_USE, holder)) if holder.len() <= MAX_REFUSAL => {
                let holder = String::from_utf8_lossy(holder).into_owned();
                Err(ConnectionError::OwnNameInUse(holder, self.topology.label(peer)))
            }
            _ => Ok(()),
        }
    }

    /// Records that another host has our name. Only a peer without working connections is the second one with its name: the
    /// first one goes on.
    fn record_name_conflict(&mut self, outbound: bool, error: &ConnectionError) {
        let is_second = match error {
            ConnectionError::OwnNameInUse(..) => true,
            ConnectionError::NameCollision(..) => outbound,
            _ => false,
        };
        let established =
            |conn| self.connections.get(conn).and_then(Connection::running).is_some_and(|r| r.established);
        if is_second && !self.by_peer.values().any(established) {
            self.name_conflict = Some(error.to_string());
        }
    }

    /// The connection limit is reached. If `new_peer` is unreachable, ends a connection whose peer is reachable
    /// otherwise, so that the limit does not separate parts of the mesh permanently.
    fn evict_neighbour(&mut self, new_peer: PeerName, limit: usize, now: Now) -> Result<(), ConnectionError> {
        let is_reachable = self.topology.is_reachable(new_peer);
        let weight = |name: &PeerName| (self.topology.peer(*name).map_or(0, |p| p.connections.len()), *name);
        // The peer with the most connections is best able to replace this one.
        let victim = self.topology.redundant_neighbours().into_iter().max_by_key(weight);
        let victim = victim.filter(|_| !is_reachable);
        let error = ConnectionError::LimitReached(limit);
        let interval_passed = self.last_eviction.is_none_or(|at| now.mono - at >= EVICTION_INTERVAL);
        let Some(victim) = victim.filter(|_| interval_passed) else { return Err(error) };
        self.last_eviction = Some(now.mono);
        match self.by_peer.get(&victim) {
            Some(&conn) => self.terminate(conn, error, now),
            None => self.give_up(victim, now),
        }
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
        self.name_conflict = None;
        self.only_target_reported = false;
        self.dialer.on_established(peer);
        self.end_interruption(peer);
        self.topology.set_established(peer, true);
        self.apply_topology_changes(now);
        self.log_event(conn, ConnectionEvent::Established);
    }

    /// Ends a connection (docs/spec/mesh.md 4.8 step 11). An unknown connection is ignored.
    pub(crate) fn terminate(&mut self, conn: ConnectionId, error: ConnectionError, now: Now) {
        self.announce_end(conn, &error, now);
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.unauthenticated.remove(&conn);
        self.failed_paths.remove(&conn);
        if let Some(timer) = connection.timer {
            self.timers.connections.remove(&(timer, conn));
        }
        self.output(Output::Close { conn });
        self.record_name_conflict(connection.outbound(), &error);
        let Connection { state, target_addr, remote, quiet, .. } = connection;
        let retry = match error {
            ConnectionError::SelfConnection => Retry::Never,
            ConnectionError::AlreadyConnected(..) | ConnectionError::Duplicate(..) => Retry::Recheck,
            _ => Retry::Later,
        };
        let text = error.to_string();
        let is_check = matches!(error, ConnectionError::AlreadyConnected(..));
        if error != ConnectionError::SelfConnection && !is_check && !matches!(state, State::Dialling) {
            self.terminations += 1;
        }
        match state {
            State::Dialling => {
                if !quiet {
                    self.output(Output::Event(Event::AttemptFailed(remote, text.clone())));
                }
                if let Some(target_addr) = target_addr {
                    self.dialer.on_dial_failed(&target_addr, conn, text, &mut self.rng, now.mono);
                }
                if !quiet {
                    self.report_unreachable_only_target();
                }
                self.targets_stale = true;
                return;
            }
            State::Handshaking { .. } if is_check => {}
            State::Handshaking { .. } => {
                self.output(Output::Event(Event::HandshakeFailed(remote, error)));
            }
            State::Running(running) => {
                let label = self.topology.label(running.peer);
                let event = |event| Output::Event(Event::Connection(remote, label.clone(), event));
                let contact_lost = match error {
                    ConnectionError::LocalAddressLost(_) => Some(true),
                    ConnectionError::ReadTimeout(..)
                    | ConnectionError::WriteTimeout(..)
                    | ConnectionError::Overlay(_) => Some(false),
                    _ => None,
                };
                if let Some(own_address_lost) = contact_lost.filter(|_| running.added) {
                    let outbound = target_addr.is_some();
                    self.dialer.on_contact_lost(running.peer, remote, outbound, own_address_lost, now.mono);
                }
                let by_remote = matches!(error, ConnectionError::Closed(_));
                self.output(event(ConnectionEvent::Ended(error)));
                let is_registered = running.added && self.by_peer.get(&running.peer) == Some(&conn);
                if is_registered {
                    self.by_peer.remove(&running.peer);
                }
                if is_registered && by_remote && self.interrupt(&running, remote, target_addr.is_some(), now)
                {
                    self.topology.release_peer(running.peer);
                } else if is_registered {
                    self.topology.release_peer(running.peer);
                    self.end_interruption(running.peer);
                    self.topology.disconnect(running.peer);
                    self.topology.collect_garbage(&mut self.rng);
                    self.output(event(ConnectionEvent::Deleted));
                } else {
                    self.topology.release_peer(running.peer);
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
    pub(crate) fn closing_error(&mut self, conn: ConnectionId, end: StreamEnd) -> ConnectionError {
        match (self.connections.get_mut(&conn).map(|c| &mut c.state), end) {
            (Some(State::Handshaking { handshake, .. }), StreamEnd::ByRemote(text)) if text == "EOF" => {
                ConnectionError::Handshake(handshake.handle_eof())
            }
            (_, StreamEnd::ByRemote(text)) => ConnectionError::Closed(text),
            (_, StreamEnd::Broken(text)) => ConnectionError::Io(text),
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
