use std::collections::BTreeMap;
use std::time::Duration;

use weave_overlay::{PathQuality, TrafficCounts};
use weave_types::{ConnectionId, MacAddr, PeerName};

/// Content of the status pages of a peer.
#[derive(Clone, Debug)]
pub struct Status {
    /// Peers, routes, connections and targets of the mesh.
    pub mesh: weave_mesh::Status,
    /// The overlays of each prepared connection.
    pub connections: BTreeMap<ConnectionId, ConnectionReport>,
    /// The MAC table, sorted by address.
    pub macs: Vec<MacReport>,
    /// The size of the MAC table.
    pub mac_table: MacTableReport,
    /// Status of address allocation; `None` if it is disabled.
    pub ipam: Option<weave_ipam::Status>,
}

/// The overlay side of one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionReport {
    /// The overlay in use, if any.
    pub overlay: Option<String>,
    /// The overlay in use, and what does not work: the path ([`UdpControl::problem`]), or preferred overlays
    /// ([`OverlaySwitch::reason`]).
    ///
    /// [`UdpControl::problem`]: weave_overlay::udp::UdpControl::problem
    /// [`OverlaySwitch::reason`]: weave_overlay::select::OverlaySwitch::reason
    pub reason: String,
    /// The longest inner IP packet that is sent unfragmented; `None` before it is known.
    pub mtu: Option<usize>,
    /// Whether frames are encrypted.
    pub encrypted: bool,
    /// What has passed on the connection, by all of its overlays.
    pub traffic: TrafficCounts,
    /// What [`Node::measure_paths`](crate::Node::measure_paths) has shown about the overlay in use; `None` if its path is not tested.
    pub quality: Option<PathQuality>,
}

/// One entry of the MAC table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MacReport {
    /// The address.
    pub mac: MacAddr,
    /// The peer that has it.
    pub peer: PeerName,
    /// Nickname of the peer; empty if the peer is unknown.
    pub nickname: String,
    /// When its latest frame arrived, since the Unix epoch.
    pub last_seen: Duration,
    /// How many frames of this host were refused because another peer uses the address.
    pub refused: u64,
}

/// The size of the MAC table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MacTableReport {
    /// The largest number of entries.
    pub max_entries: usize,
    /// How many entries were displaced because the table was full.
    pub displaced: u64,
    /// The peer with most entries, `NAME(NICK)`, and their number.
    pub largest: Option<(String, usize)>,
}
