use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use weave_mesh::OverlaySetup;
use weave_overlay::Destination;
use weave_overlay::forward::{Neighbour, Overlay};
use weave_overlay::select::{self, OverlaySwitch};
use weave_overlay::sleeve::{self, ControlFrame, Session, SessionConfig, SleeveControl, SleeveControlConfig};
use weave_types::{ConnectionId, Instant, Now, PeerName};

use crate::status::ConnectionReport;

/// The overlays of this version, in the order in which they are advertised.
pub(crate) fn overlays() -> Vec<String> {
    vec![select::SLEEVE.to_owned()]
}

/// Handshake feature: the peer sends sleeve heartbeats every 2 s and expects the same
/// ([`SleeveControl::with_fast_heartbeats`]; docs/spec/mesh.md 18.2).
pub(crate) const FAST_HEARTBEAT_FEATURE: &str = "SleeveHeartbeat2s";

/// What the caller must do for the overlays of one connection.
pub(crate) enum ConnectionOutput {
    Datagram {
        destination: Destination,
        bytes: Vec<u8>,
    },
    Control {
        index: usize,
        tag: u8,
        body: Vec<u8>,
    },
    Established,
    Failed(String),
    NeighbourChanged,
    /// The datagrams of the neighbour come from another address than before.
    NeighbourMoved,
    Event {
        peer: String,
        text: String,
    },
}

/// The overlays of all prepared connections.
#[derive(Default)]
pub(crate) struct Connections {
    connections: BTreeMap<ConnectionId, Connection>,
    outputs: VecDeque<(ConnectionId, ConnectionOutput)>,
}

/// The overlays of one connection: the selection among them, and the control state machine of each.
pub(crate) struct Connection {
    pub(crate) remote: PeerName,
    pub(crate) switch: OverlaySwitch,
    pub(crate) sleeve: SleeveControl,
    /// Position of sleeve in the common list.
    sleeve_index: usize,
    confirmed: bool,
    /// Remote address of the TCP connection.
    pub(crate) remote_addr: SocketAddr,
    /// `NAME(NICK)` of the peer.
    pub(crate) label: String,
}

impl Connections {
    pub(crate) fn prepare(
        &mut self,
        conn: ConnectionId,
        own: PeerName,
        port: u16,
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
        let mut sleeve = SleeveControl::new(SleeveControlConfig {
            session,
            local: SocketAddr::new(setup.local_addr.ip(), port),
            remote: setup.remote_addr,
            outbound: setup.outbound,
        });
        if setup.remote_features.contains_key(FAST_HEARTBEAT_FEATURE) {
            sleeve = sleeve.with_fast_heartbeats();
        }
        let (remote, remote_addr) = (setup.remote, setup.remote_addr);
        let connection =
            Connection { remote, switch, sleeve, sleeve_index, confirmed: false, remote_addr, label };
        self.connections.insert(conn, connection);
        Ok(())
    }

    pub(crate) fn confirm(&mut self, conn: ConnectionId, now: Now) {
        self.with(conn, |connection| {
            connection.confirmed = true;
            connection.sleeve.confirm(now.mono);
        });
        self.outputs.push_back((conn, ConnectionOutput::NeighbourChanged));
    }

    /// Removes a connection and returns it, if it was prepared.
    pub(crate) fn stop(&mut self, conn: ConnectionId) -> Option<Connection> {
        self.connections.remove(&conn)
    }

    pub(crate) fn get(&self, conn: ConnectionId) -> Option<&Connection> {
        self.connections.get(&conn)
    }

    pub(crate) fn handle_control_frame(
        &mut self,
        conn: ConnectionId,
        frame: ControlFrame,
        from: SocketAddr,
        now: Now,
    ) {
        let remote =
            |connections: &Connections| Some(connections.connections.get(&conn)?.sleeve.path().remote);
        let before = remote(self);
        self.with(conn, |connection| connection.sleeve.handle_control_frame(frame, from, now.mono));
        if let (Some(Some(before)), Some(Some(after))) = (before, remote(self))
            && before != after
        {
            self.outputs.push_back((conn, ConnectionOutput::NeighbourMoved));
        }
    }

    pub(crate) fn handle_interface_mtu(&mut self, conn: ConnectionId, mtu: u16, now: Now) {
        self.with(conn, |connection| connection.sleeve.handle_interface_mtu(mtu, now.mono));
    }

    /// Handles a control message of the peer. An invalid one is logged and ignored (docs/spec/mesh.md 6.3).
    pub(crate) fn handle_control(
        &mut self,
        conn: ConnectionId,
        index: Option<u8>,
        tag: u8,
        body: &[u8],
        now: Now,
    ) {
        let mut problem = None;
        self.with(conn, |connection| {
            problem = match connection.switch.control_target(index) {
                Ok(target) if target == connection.sleeve_index => {
                    connection.sleeve.handle_control(tag, body, now.mono).err().map(|e| e.to_string())
                }
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
        });
        if let (Some(text), Some(connection)) = (problem, self.connections.get(&conn)) {
            let peer = connection.label.clone();
            self.outputs.push_back((conn, ConnectionOutput::Event { peer, text }));
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

    pub(crate) fn poll_output(&mut self) -> Option<(ConnectionId, ConnectionOutput)> {
        self.outputs.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn reports(&self, now: Now) -> impl Iterator<Item = (ConnectionId, ConnectionReport)> {
        self.connections.iter().map(move |(conn, c)| {
            let reason = match c.sleeve.problem(now.mono) {
                Some(problem) => format!("{}: {problem}", select::SLEEVE),
                None => c.switch.reason(),
            };
            let report = ConnectionReport {
                overlay: c.switch.best().map(|(_, name)| name.to_owned()),
                reason,
                mtu: c.sleeve.known_mtu(),
                encrypted: c.sleeve.session().is_encrypted(),
            };
            (*conn, report)
        })
    }

    /// The neighbours for the data threads.
    pub(crate) fn neighbours(&self) -> Vec<Arc<Neighbour>> {
        let neighbour = |connection: &Connection| {
            Arc::new(Neighbour {
                session: connection.sleeve.session().clone(),
                confirmed: connection.confirmed,
                path: connection.sleeve.path(),
                overlay: Overlay::Sleeve,
            })
        };
        // An unconfirmed connection may be a duplicate: it must not replace the one that works.
        let (ready, waiting): (Vec<_>, Vec<_>) = self.connections.values().partition(|c| c.confirmed);
        let taken = |c: &&&Connection| !ready.iter().any(|r| r.remote == c.remote);
        ready.iter().chain(waiting.iter().filter(taken)).map(|c| neighbour(c)).collect()
    }

    /// Passes an input to one connection and collects its outputs.
    fn with(&mut self, conn: ConnectionId, input: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        input(connection);
        while let Some(output) = connection.sleeve.poll_output() {
            let index = connection.sleeve_index;
            let output = match output {
                sleeve::Output::Datagram { from, to, df, bytes } => {
                    ConnectionOutput::Datagram { destination: Destination { conn, from, to, df }, bytes }
                }
                sleeve::Output::Control { tag, body } => ConnectionOutput::Control { index, tag, body },
                sleeve::Output::PathChanged => ConnectionOutput::NeighbourChanged,
                sleeve::Output::Event(event) => ConnectionOutput::Event {
                    peer: connection.label.clone(),
                    text: format!("sleeve: {event}"),
                },
                sleeve::Output::Established => {
                    connection.switch.handle_established(index);
                    continue;
                }
                sleeve::Output::Failed(error) => {
                    connection.switch.handle_error(index, &error);
                    continue;
                }
            };
            self.outputs.push_back((conn, output));
        }
        while let Some(output) = connection.switch.poll_output() {
            let output = match output {
                select::Output::Established => ConnectionOutput::Established,
                select::Output::Failed(error) => ConnectionOutput::Failed(error),
                select::Output::BestChanged { name, .. } => {
                    let text = format!("using {name}");
                    self.outputs
                        .push_back((conn, ConnectionOutput::Event { peer: connection.label.clone(), text }));
                    ConnectionOutput::NeighbourChanged
                }
            };
            self.outputs.push_back((conn, output));
        }
    }
}
