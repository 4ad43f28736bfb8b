use std::net::SocketAddr;

use weave_types::{ConnectionId, Now, PeerName, PeerUid, ShortId};

use crate::connection::Connection;
use crate::dialer::TargetStatus;
use crate::handshake::{MAX_PROTOCOL, MIN_PROTOCOL};
use crate::mesh::Mesh;
use crate::peers::PeerLabel;

/// The status of the mesh (docs/spec/mesh.md 13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Lowest protocol version that is accepted.
    pub protocol_min: u8,
    /// Highest protocol version that is accepted.
    pub protocol_max: u8,
    /// Whether a password is set.
    pub encryption: bool,
    /// Whether peers that are learnt from the topology are dialled.
    pub discovery: bool,
    /// Name and nickname of this peer.
    pub own: PeerLabel,
    /// Listening TCP port.
    pub port: u16,
    /// All known peers, ascending by name.
    pub peers: Vec<PeerStatus>,
    /// Destinations and next hops of data, ascending; the next hop to this peer is [`PeerName::UNKNOWN`].
    pub unicast_routes: Vec<(PeerName, PeerName)>,
    /// Sources and next hops of broadcast data, as far as they have been computed.
    pub broadcast_routes: Vec<(PeerName, Vec<PeerName>)>,
    /// Our connections, oldest first.
    pub connections: Vec<ConnectionStatus>,
    /// All targets. Lists of connections show the waiting and attempting ones after the connections.
    pub targets: Vec<TargetStatus>,
    /// Number of connections that have ended, except those to this peer itself.
    pub terminations: u64,
    /// Direct peers as the user gave them.
    pub direct_peers: Vec<String>,
    /// Networks to which data is not encrypted.
    pub trusted_subnets: Vec<weave_types::Cidr>,
}

/// A peer's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Name and nickname.
    pub label: PeerLabel,
    /// Identifies the run of the peer's process; 0 for a placeholder.
    pub uid: PeerUid,
    /// Short id of the peer, if it has one.
    pub short_id: Option<ShortId>,
    /// Version of the record.
    pub version: u64,
    /// Connections that the peer reports.
    pub connections: Vec<PeerConnectionStatus>,
}

/// A connection that a peer reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConnectionStatus {
    /// The remote peer.
    pub label: PeerLabel,
    /// Address of the remote end.
    pub address: String,
    /// Whether the reporting peer dialled.
    pub outbound: bool,
    /// Whether the data path is verified.
    pub established: bool,
}

/// One of our connections. The driver adds the name and attributes of the overlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionStatus {
    /// Identifies the connection.
    pub conn: ConnectionId,
    /// Remote address.
    pub address: SocketAddr,
    /// Whether we dialled.
    pub outbound: bool,
    /// Whether the data path is verified; otherwise the connection is pending.
    pub established: bool,
    /// Whether data is encrypted.
    pub encrypted: bool,
    /// Protocol version in use.
    pub protocol: u8,
    /// The remote peer.
    pub peer: PeerLabel,
    /// Bytes that the driver has not written yet.
    pub unwritten: usize,
}

impl Mesh {
    /// The status at this time.
    pub fn status(&self, now: Now) -> Status {
        let label = |name| self.topology.label(name);
        let peers = self.topology.peers().map(|(name, peer)| PeerStatus {
            label: label(name),
            uid: peer.uid,
            short_id: peer.short_id,
            version: peer.version,
            connections: peer
                .connections
                .iter()
                .map(|connection| PeerConnectionStatus {
                    label: label(connection.peer),
                    address: connection.address.to_string(),
                    outbound: connection.outbound,
                    established: connection.established,
                })
                .collect(),
        });
        Status {
            protocol_min: self.config.min_protocol.max(MIN_PROTOCOL),
            protocol_max: MAX_PROTOCOL,
            encryption: self.config.password.is_some(),
            discovery: self.config.discovery,
            own: label(self.config.name),
            port: self.config.port,
            peers: peers.collect(),
            unicast_routes: self.routes.unicast_table().collect(),
            broadcast_routes: self.routes.broadcast_table().map(|(src, to)| (src, to.to_vec())).collect(),
            connections: self.connections.values().filter_map(|c| self.connection_status(c)).collect(),
            targets: self.dialer.targets(&self.own_connections(), &self.topology, now).collect(),
            terminations: self.terminations,
            direct_peers: self.dialer.direct_peers(),
            trusted_subnets: self.config.trusted_subnets.clone(),
        }
    }

    fn connection_status(&self, connection: &Connection) -> Option<ConnectionStatus> {
        let running = connection.running().filter(|r| r.added)?;
        Some(ConnectionStatus {
            conn: connection.id,
            address: connection.remote,
            outbound: connection.outbound(),
            established: running.established,
            encrypted: running.encrypted_overlay,
            protocol: running.session.version,
            peer: self.topology.label(running.peer),
            unwritten: connection.unwritten,
        })
    }

    /// The direct peers that are still dialled, as the user gave them (docs/spec/mesh.md 10.5).
    pub fn active_direct_peers(&self) -> Vec<String> {
        self.dialer.active_peers()
    }
}
