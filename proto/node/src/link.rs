use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use weave_mesh::OverlaySetup;
use weave_overlay::forward::{Neighbour, Overlay};
use weave_overlay::select::{self, OverlaySwitch};
use weave_overlay::sleeve::{self, ControlFrame, Session, SessionConfig, SleeveControl, SleeveControlConfig};
use weave_types::{ConnectionId, Instant, Now, PeerName};

use crate::node::overlays;
use crate::status::ConnectionReport;

/// Extension: the peer sends sleeve heartbeats each 2 s, and expects them (see [`SleeveControl::with_fast_heartbeats`]).
pub(crate) const FAST_HEARTBEAT_FEATURE: &str = "SleeveHeartbeat2s";

/// What the overlays of one connection want.
pub(crate) enum Effect {
    Datagram { to: SocketAddr, df: bool, bytes: Vec<u8> },
    Control { index: usize, tag: u8, body: Vec<u8> },
    Established,
    Failed(String),
    NeighbourChanged,
    Event { peer: String, text: String },
}

/// The overlays of every connection that is prepared.
#[derive(Default)]
pub(crate) struct Links {
    connections: BTreeMap<ConnectionId, Connection>,
    effects: VecDeque<(ConnectionId, Effect)>,
}

/// The overlays of one connection: the choice, and each overlay's control half.
pub(crate) struct Connection {
    pub(crate) remote: PeerName,
    pub(crate) switch: OverlaySwitch,
    pub(crate) sleeve: SleeveControl,
    /// Position of sleeve in the common list.
    sleeve_index: usize,
    confirmed: bool,
    label: String,
}

impl Links {
    pub(crate) fn prepare(
        &mut self,
        conn: ConnectionId,
        own: PeerName,
        setup: OverlaySetup,
    ) -> Result<(), String> {
        let label = format!("{}({})", setup.remote, setup.remote_nickname);
        let encrypted = setup.session_key.is_some();
        let switch = OverlaySwitch::new(&label, &overlays(), setup.overlays.as_deref(), encrypted)
            .map_err(|e| e.to_string())?;
        let sleeve_index = switch.common().position(|name| name == select::SLEEVE);
        let sleeve_index = sleeve_index.ok_or_else(|| select::NoCommonOverlay.to_string())?;
        let session = Session::new(SessionConfig {
            own,
            remote: setup.remote,
            conn,
            uid: setup.uid,
            outbound: setup.outbound,
            key: setup.session_key,
        });
        // An acceptor only knows the TCP source port, which is nobody's UDP port: it waits for a datagram.
        let remote = setup.outbound.then_some(setup.remote_addr);
        let mut sleeve = SleeveControl::new(SleeveControlConfig { session, remote });
        if setup.remote_features.contains_key(FAST_HEARTBEAT_FEATURE) {
            sleeve = sleeve.with_fast_heartbeats();
        }
        let connection =
            Connection { remote: setup.remote, switch, sleeve, sleeve_index, confirmed: false, label };
        self.connections.insert(conn, connection);
        Ok(())
    }

    pub(crate) fn confirm(&mut self, conn: ConnectionId, now: Now) {
        self.with(conn, |connection| {
            connection.confirmed = true;
            connection.sleeve.confirm(now.mono);
        });
        self.effects.push_back((conn, Effect::NeighbourChanged));
    }

    /// Whether the data threads knew the connection.
    pub(crate) fn stop(&mut self, conn: ConnectionId) -> bool {
        self.connections.remove(&conn).is_some()
    }

    pub(crate) fn handle_control_frame(
        &mut self,
        conn: ConnectionId,
        control: ControlFrame,
        from: SocketAddr,
        now: Now,
    ) {
        self.with(conn, |connection| connection.sleeve.handle_control_frame(control, from, now.mono));
    }

    pub(crate) fn handle_path_mtu(&mut self, conn: ConnectionId, mtu: u16, now: Now) {
        self.with(conn, |connection| connection.sleeve.handle_path_mtu(mtu, now.mono));
    }

    /// A control message of the peer; what makes no sense is logged and ignored (docs/spec/mesh.md 6.3).
    pub(crate) fn handle_control(
        &mut self,
        conn: ConnectionId,
        index: Option<u8>,
        tag: u8,
        body: &[u8],
        now: Now,
    ) {
        let mut complaint = None;
        self.with(conn, |connection| {
            complaint = match connection.switch.control_target(index) {
                Ok(target) if target == connection.sleeve_index => {
                    connection.sleeve.handle_control(tag, body, now.mono).err().map(|e| e.to_string())
                }
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
        });
        if let (Some(text), Some(connection)) = (complaint, self.connections.get(&conn)) {
            let peer = connection.label.clone();
            self.effects.push_back((conn, Effect::Event { peer, text }));
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        let due: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|(_, c)| c.sleeve.poll_timeout().is_some_and(|(at, _)| at <= now.mono))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in due {
            self.with(conn, |connection| connection.sleeve.handle_timeout(now.mono));
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.connections.values().filter_map(|c| c.sleeve.poll_timeout()).min_by_key(|(at, _)| *at)
    }

    pub(crate) fn poll_effect(&mut self) -> Option<(ConnectionId, Effect)> {
        self.effects.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn reports(&self) -> impl Iterator<Item = (ConnectionId, ConnectionReport)> {
        self.connections.iter().map(|(conn, c)| {
            let report = ConnectionReport {
                overlay: c.switch.best().map(|(_, name)| name.to_owned()),
                reason: c.switch.reason(),
                mtu: c.sleeve.path().mtu,
                encrypted: c.sleeve.session().is_encrypted(),
            };
            (*conn, report)
        })
    }

    /// What the data threads must know of each connection.
    pub(crate) fn neighbours(&self) -> Vec<Arc<Neighbour>> {
        let neighbour = |connection: &Connection| {
            Arc::new(Neighbour {
                session: connection.sleeve.session().clone(),
                confirmed: connection.confirmed,
                path: connection.sleeve.path(),
                overlay: Overlay::Sleeve,
            })
        };
        // A connection that is not confirmed may be a duplicate: it must not take the place of the one that works.
        let (ready, waiting): (Vec<_>, Vec<_>) = self.connections.values().partition(|c| c.confirmed);
        let taken = |c: &&&Connection| !ready.iter().any(|r| r.remote == c.remote);
        ready.iter().chain(waiting.iter().filter(taken)).map(|c| neighbour(c)).collect()
    }

    /// Runs an input on one connection and collects what comes out of it.
    fn with(&mut self, conn: ConnectionId, input: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        input(connection);
        while let Some(output) = connection.sleeve.poll_output() {
            let index = connection.sleeve_index;
            let effect = match output {
                sleeve::Output::Datagram { to, df, bytes } => Effect::Datagram { to, df, bytes },
                sleeve::Output::Control { tag, body } => Effect::Control { index, tag, body },
                sleeve::Output::PathChanged => Effect::NeighbourChanged,
                sleeve::Output::Event(event) => {
                    Effect::Event { peer: connection.label.clone(), text: format!("sleeve: {event}") }
                }
                sleeve::Output::Established => {
                    connection.switch.handle_established(index);
                    continue;
                }
                sleeve::Output::Failed(error) => {
                    connection.switch.handle_error(index, &error);
                    continue;
                }
            };
            self.effects.push_back((conn, effect));
        }
        while let Some(output) = connection.switch.poll_output() {
            let effect = match output {
                select::Output::Established => Effect::Established,
                select::Output::Failed(error) => Effect::Failed(error),
                select::Output::BestChanged { name, .. } => {
                    let text = format!("using {name}");
                    self.effects.push_back((conn, Effect::Event { peer: connection.label.clone(), text }));
                    Effect::NeighbourChanged
                }
            };
            self.effects.push_back((conn, effect));
        }
    }
}
