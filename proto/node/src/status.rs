use std::collections::BTreeMap;
use std::time::Duration;

use weave_types::{ConnectionId, MacAddr, PeerName};

use crate::link::Links;

/// All that status pages show of a peer, as plain values.
#[derive(Clone, Debug)]
pub struct Status {
    /// What the mesh knows: peers, routes, connections, targets.
    pub mesh: weave_mesh::Status,
    /// What the overlays know of each connection that is prepared.
    pub connections: BTreeMap<ConnectionId, ConnectionReport>,
    /// The MAC table, in order.
    pub macs: Vec<MacReport>,
    /// Of address allocation; `None` if it is off.
    pub ipam: Option<weave_ipam::Status>,
}

/// The overlay side of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// The overlay in use; `None` before one is.
    pub overlay: Option<String>,
    /// Why it is this one.
    pub reason: String,
    /// The longest inner IP packet that is sent unfragmented.
    pub mtu: usize,
    /// Whether frames are sealed.
    pub encrypted: bool,
}

/// One line of the MAC table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacReport {
    /// The address.
    pub mac: MacAddr,
    /// The peer that it is behind.
    pub peer: PeerName,
    /// That peer's nickname; empty if the peer is not known any more.
    pub nickname: String,
    /// When it was last seen, since the Unix epoch.
    pub last_seen: Duration,
}

impl Status {
    pub(crate) fn new(
        mesh: weave_mesh::Status,
        macs: Vec<MacReport>,
        links: &Links,
        ipam: Option<weave_ipam::Status>,
    ) -> Status {
        let connections = links.reports().collect();
        Status { mesh, connections, macs, ipam }
    }
}
