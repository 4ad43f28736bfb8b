//! The life of a connection, in the order of docs/spec/mesh.md 4.8.

use std::sync::Arc;
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName};

use crate::admission::{Survivor, resolve};
use crate::connection::{Connection, HEARTBEAT, READ_TIMEOUT, Running, State};
use crate::dialer::Retry;
use crate::event::{ConnectionError, ConnectionEvent, Event, Newcomer};
use crate::features::Features;
use crate::gossip::{Channels, Queue, Route};
use crate::handshake::{Handshake, HandshakeConfig, Progress, Session};
use crate::mesh::Mesh;
use crate::output::{Output, OverlaySetup};
use crate::peers::{Link, PeerLabel};

/// The overlay that peers mean who name none.
const LEGACY_OVERLAY: &str = "sleeve";
/// A good neighbour gives way to a stranger at most so often, whoever knocks.
const ROOM_INTERVAL: Duration = Duration::from_secs(10);
/// Extension: the peer compares digests of the topology (module `digest`).
pub(crate) const DIGEST_FEATURE: &str = "TopologyDigest";

impl Mesh {
    /// TCP is there: says who we are.
    pub(crate) fn start_handshake(&mut self, conn: ConnectionId, now: Now) {
        let private_key = self.random();
        #[cfg(test)]
        let private_key = self.private_key.unwrap_or(private_key);
        let connection_id = u64::from_be_bytes(self.random());
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let trusted = self.config.trusts(connection.remote.ip());
        let overlays = &self.config.overlays;
        let ours = Features {
            name: self.config.name,
            nickname: self.config.nickname.clone(),
            uid: self.config.uid,
            connection_id,
            short_id: self.topology.own_peer().short_id,
            trusted,
            overlays: (!overlays.is_empty()).then(|| overlays.clone()),
        };
        let mut features = self.config.features.clone();
        features.extend(ours.to_map());
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
        connection.start(Handshake::new(config, private_key), ours, now.mono);
        self.flush_handshake(conn, now);
        self.watch(conn);
    }

    fn flush_handshake(&mut self, conn: ConnectionId, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let State::Handshaking { handshake, .. } = &mut connection.state else { return };
        if let Some(bytes) = handshake.poll_write() {
            connection.wrote(bytes.len(), now.mono);
            self.output(Output::Write { conn, bytes });
        }
    }

    /// Bytes came.
    pub(crate) fn feed(&mut self, conn: ConnectionId, bytes: &[u8], channels: &mut dyn Channels, now: Now) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        match &mut connection.state {
            State::Dialling => return,
            State::Running(running) => running.session.push(bytes),
            State::Handshaking { handshake, ours, .. } => {
                let result = handshake.handle_bytes(bytes);
                let ours = ours.clone();
                if let Ok(Progress::Exchange) = result {
                    connection.greeted(now.mono);
                }
                self.flush_handshake(conn, now);
                let result = match result {
                    Ok(Progress::Done(session)) => self.introduce(conn, *session, &ours, channels, now),
                    Ok(_) => return self.watch(conn),
                    Err(error) => Err(ConnectionError::Handshake(error)),
                };
                if let Err(error) = result {
                    return self.terminate(conn, error, now);
                }
            }
        }
        self.receive(conn, channels, now);
        self.watch(conn);
    }

    /// Steps 2 to 9: the handshake is done.
    fn introduce(
        &mut self,
        conn: ConnectionId,
        session: Session,
        ours: &Features,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        self.unauthenticated.remove(&conn);
        let Some(connection) = self.connections.get_mut(&conn) else { return Ok(()) };
        let remote = Features::from_map(&session.remote_features).map_err(ConnectionError::Features)?;
        let (name, uid) = (remote.name, remote.uid);

        // 3: who is it?
        if !connection.accept_new && self.topology.peer(name).is_none() {
            return Err(ConnectionError::UnknownName(name, connection.remote));
        }
        let nickname: Arc<str> = remote.nickname.as_str().into();
        let said = || (nickname.clone(), uid, remote.short_id);
        self.topology.refer(name, said);
        // 4: have we met it in another life?
        let restarted = self.topology.peer(name).is_some_and(|known| known.uid != uid);

        let legacy_overlay = remote.overlays.is_none();
        let trusted = remote.trusted && self.config.trusts(connection.remote.ip());
        let session_key = session.session_key.filter(|_| !trusted);
        let version = session.version;
        let features = session.remote_features.clone();
        let digests = self.config.topology_digest && features.contains_key(DIGEST_FEATURE);
        let connection_uid = ours.connection_uid(&remote);
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
            prepared: false,
            added: false,
            established: false,
            digests,
            digest_sent: None,
            queue: Queue::default(),
            heartbeat_at: now.mono + HEARTBEAT,
            read_by: now.mono + READ_TIMEOUT,
        }));
        if let Some(place) = connection.place.clone() {
            self.dialer.met(&place, conn, name, uid);
        }
        self.absorb(now);
        if name == self.config.name {
            if uid == self.config.uid {
                return Err(ConnectionError::Ourself);
            }
            let theirs = PeerLabel { name, nickname };
            return Err(ConnectionError::NameCollision(self.topology.label(name), theirs));
        }
        self.log(conn, ConnectionEvent::Ready { version });

        // 5: can frames travel?
        self.check_overlays(setup.overlays.as_deref())?;
        self.with_running(conn, |running| running.prepared = true);
        self.output(Output::OverlayPrepare { conn, setup: Box::new(setup) });

        // 6, 7
        self.add(conn, restarted, channels, now)?;
        // 8
        self.output(Output::OverlayConfirm { conn });
        self.pump(conn, now);
        Ok(())
    }

    /// With no overlays of our own at all there is nothing to agree upon.
    fn check_overlays(&self, theirs: Option<&[String]>) -> Result<(), ConnectionError> {
        let ours = &self.config.overlays;
        let common = match theirs {
            Some(theirs) => ours.iter().any(|name| theirs.contains(name)),
            None => ours.iter().any(|name| name == LEGACY_OVERLAY),
        };
        if common || ours.is_empty() { Ok(()) } else { Err(ConnectionError::NoCommonOverlay) }
    }

    fn add(
        &mut self,
        conn: ConnectionId,
        restarted: bool,
        channels: &mut dyn Channels,
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some(connection) = self.connections.get(&conn) else { return Ok(()) };
        let Some(running) = connection.running() else { return Ok(()) };
        let peer = running.peer;
        let link = Link {
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
            // A connection to an earlier incarnation is dead; only we have not noticed yet.
            let verdict = if other.peer_uid == running.peer_uid {
                resolve(other.uid, running.uid)
            } else {
                Survivor::New
            };
            match verdict {
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
            self.make_room(peer, limit, now)?;
        }

        // The new link takes the old one's place at once: nobody behind it becomes unreachable in between.
        self.by_peer.insert(peer, conn);
        self.topology.connect(link);
        self.announced.insert(peer);
        self.with_running(conn, |running| running.added = true);
        if let Some(old) = replaced {
            self.with_running(old, |running| running.added = false);
            self.log(old, ConnectionEvent::Deleted);
            self.terminate(old, duplicate, now);
        }
        self.absorb(now);

        let newcomer = if restarted {
            Newcomer::Restarted
        } else if self.routes.unicast(peer).is_none() {
            Newcomer::New
        } else {
            Newcomer::Known
        };
        if newcomer != Newcomer::Known {
            self.queue_all_state(conn, channels, now);
        }
        self.log(conn, ConnectionEvent::Added(newcomer));
        if let Some(place) = self.connections.get(&conn).and_then(|c| c.place.clone()) {
            self.dialer.connected(&place, conn);
        }
        self.targets_stale = true;
        Ok(())
    }

    /// All connections are taken. For a peer that we could not reach otherwise, one is given up whose peer we can: a
    /// limit must not keep parts of the mesh from each other for good.
    fn make_room(&mut self, newcomer: PeerName, limit: usize, now: Now) -> Result<(), ConnectionError> {
        let reached = self.topology.is_reachable(newcomer);
        let weight = |name: &PeerName| (self.topology.peer(*name).map_or(0, |p| p.links.len()), *name);
        // Its peer should have others to turn to.
        let victim = self.topology.redundant_neighbours().into_iter().max_by_key(weight);
        let victim = victim.filter(|_| !reached).and_then(|name| self.by_peer.get(&name).copied());
        let error = ConnectionError::LimitReached(limit);
        let rested = self.made_room.is_none_or(|at| now.mono - at >= ROOM_INTERVAL);
        let Some(victim) = victim.filter(|_| rested) else { return Err(error) };
        self.made_room = Some(now.mono);
        self.terminate(victim, error, now);
        Ok(())
    }

    /// A peer that knows nothing, or has forgotten everything, gets all there is (docs/spec/mesh.md 7.6).
    fn queue_all_state(&mut self, conn: ConnectionId, channels: &mut dyn Channels, now: Now) {
        self.offer_topology(conn, now);
        for name in channels.names().to_vec() {
            if let Some(state) = channels.state(name, now) {
                self.queue(conn, Route::Gossip, &name.into(), &state, channels);
            }
        }
    }

    /// Step 10: data can travel.
    pub(crate) fn establish(&mut self, conn: ConnectionId, now: Now) {
        let Some(running) = self.connections.get_mut(&conn).and_then(Connection::running_mut) else { return };
        if !running.added || running.established {
            return;
        }
        running.established = true;
        let peer = running.peer;
        self.alone_told = false;
        self.topology.establish(peer);
        self.absorb(now);
        self.log(conn, ConnectionEvent::Established);
    }

    /// Step 11. A connection that does not exist any more is no error.
    pub(crate) fn terminate(&mut self, conn: ConnectionId, error: ConnectionError, now: Now) {
        let Some(connection) = self.connections.remove(&conn) else { return };
        self.unauthenticated.remove(&conn);
        if let Some(wake) = connection.wake {
            self.timers.connections.remove(&(wake, conn));
        }
        self.output(Output::Close { conn });
        let Connection { state, place, remote, .. } = connection;
        let retry = match error {
            ConnectionError::Ourself | ConnectionError::NameCollision(..) => Retry::Never,
            _ => Retry::Later,
        };
        let text = error.to_string();
        if error != ConnectionError::Ourself && !matches!(state, State::Dialling) {
            self.terminations += 1;
        }
        match state {
            State::Dialling => {
                self.output(Output::Event(Event::AttemptFailed(remote, text.clone())));
                if let Some(place) = place {
                    self.dialer.unreachable(&place, conn, text, &mut self.rng, now.mono);
                }
                self.hint_at_others();
                self.targets_stale = true;
                return;
            }
            State::Handshaking { .. } => {
                self.output(Output::Event(Event::HandshakeFailed(remote, error)));
            }
            State::Running(running) => {
                let label = self.topology.label(running.peer);
                let log = |what| Output::Event(Event::Connection(remote, label.clone(), what));
                self.output(log(ConnectionEvent::Ended(error)));
                self.topology.release(running.peer);
                if running.added && self.by_peer.get(&running.peer) == Some(&conn) {
                    self.by_peer.remove(&running.peer);
                    self.topology.disconnect(running.peer);
                    self.topology.collect(&mut self.rng);
                    self.output(log(ConnectionEvent::Deleted));
                } else {
                    self.schedule_collection(now);
                }
                if running.prepared {
                    self.output(Output::OverlayStop { conn });
                }
            }
        }
        self.absorb(now);
        if let Some(place) = place {
            self.dialer.ended(&place, conn, text, retry, &mut self.rng, now.mono);
        }
        self.targets_stale = true;
    }

    /// Says, once each time that we are left alone, that a single target is all there is.
    fn hint_at_others(&mut self) {
        if self.alone_told || !self.by_peer.is_empty() {
            return;
        }
        if let [only] = &self.dialer.active_peers()[..] {
            self.alone_told = true;
            self.output(Output::Event(Event::OnlyTarget(only.clone())));
        }
    }

    /// The driver's text about the end, completed as 2.8.1 does for a handshake.
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

    /// Logs something about a connection whose peer is known.
    pub(crate) fn log(&mut self, conn: ConnectionId, what: ConnectionEvent) {
        let Some(connection) = self.connections.get(&conn) else { return };
        let name = connection.running().map_or(PeerName::UNKNOWN, |running| running.peer);
        let event = Event::Connection(connection.remote, self.topology.label(name), what);
        self.output(Output::Event(event));
    }
}
