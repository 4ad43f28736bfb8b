use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use weave_switch::{ForwardingTable, MacMap};
use weave_types::{PeerName, ShortId};

use crate::Traffic;

/// Further neighbours are reached by another overlay: each turn of the program's loop over them has its price when the kernel verifies
/// it.
pub const MAX_KERNEL_NEIGHBOURS: usize = 255;

/// What the kernel's programs forward frames with, derived from [`Tables`](crate::forward::Tables): an immutable snapshot, which the
/// driver compares with what the kernel has.
#[derive(Clone, Debug)]
pub struct KernelTables {
    /// Name of this peer.
    pub own: PeerName,
    /// Short id of this peer.
    pub own_id: ShortId,
    /// The peers of the topology that own a short id, this one included, sorted by id. Frames from and to other ids are dropped.
    pub peers: Vec<KernelPeer>,
    /// The neighbours that are reached by fastdp, at most [`MAX_KERNEL_NEIGHBOURS`], sorted by name. [`KernelRoute::Kernel`] and [`KernelPeer::broadcast`] are positions in this list.
    pub neighbours: Vec<KernelNeighbour>,
    /// The ports at which VXLAN packets are expected, sorted.
    pub ports: Vec<u16>,
    /// Which peer each MAC is behind. MACs of peers without a short id are unknown to the kernel.
    pub macs: Arc<MacMap>,
}

impl KernelTables {
    /// Whether the kernel sends to the peer as a neighbour.
    pub fn has_neighbour(&self, peer: PeerName) -> bool {
        self.neighbours.binary_search_by_key(&peer, |neighbour| neighbour.name).is_ok()
    }

    /// Number of peers that are reached by the kernel, and of neighbours to which it sends broadcasts of this host: these depend on what
    /// others report as well.
    pub fn reached(&self) -> usize {
        let peers = self.peers.iter().filter(|peer| matches!(peer.route, KernelRoute::Kernel(_)));
        let own = self.peers.iter().find(|peer| peer.short_id == self.own_id);
        peers.count() + own.map_or(0, |own| own.broadcast.len())
    }

    /// The peer with this id.
    pub fn peer(&self, id: ShortId) -> Option<PeerName> {
        let index = self.peers.binary_search_by_key(&id, |peer| peer.short_id).ok()?;
        Some(self.peers[index].name)
    }

    /// Derives the tables. `ids` are the peers that own a short id; `neighbours` are those that are reached by fastdp.
    pub fn new(
        own_id: ShortId,
        forwarding: &ForwardingTable,
        ids: impl Iterator<Item = (PeerName, ShortId)>,
        neighbours: BTreeMap<PeerName, KernelNeighbour>,
        ports: BTreeSet<u16>,
    ) -> KernelTables {
        let neighbours: Vec<KernelNeighbour> = neighbours.into_values().take(MAX_KERNEL_NEIGHBOURS).collect();
        let position = |name: &PeerName| {
            let index = neighbours.binary_search_by_key(name, |neighbour| neighbour.name).ok()?;
            u16::try_from(index).ok()
        };
        let routes = &forwarding.routes;
        let peer = |(name, short_id)| {
            let route = match routes.unicast(name) {
                _ if name == forwarding.own => KernelRoute::None,
                None => KernelRoute::None,
                Some(via) => position(&via).map_or(KernelRoute::User, KernelRoute::Kernel),
            };
            let flood = routes.broadcast(name);
            let broadcast: Vec<u16> = flood.iter().filter_map(position).collect();
            let broadcast_user = broadcast.len() < flood.len();
            KernelPeer { short_id, name, route, broadcast, broadcast_user }
        };
        let mut peers: Vec<KernelPeer> = ids.map(peer).collect();
        peers.sort_by_key(|peer| peer.short_id);
        KernelTables {
            own: forwarding.own,
            own_id,
            peers,
            neighbours,
            ports: ports.into_iter().collect(),
            macs: forwarding.macs.clone(),
        }
    }
}

/// A peer, with the routes that depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPeer {
    /// The id of the peer in a VNI.
    pub short_id: ShortId,
    /// Name of the peer.
    pub name: PeerName,
    /// How frames reach the peer.
    pub route: KernelRoute,
    /// The neighbours to which the kernel forwards a broadcast that started at this peer.
    pub broadcast: Vec<u16>,
    /// Whether user space forwards such a broadcast as well, to neighbours that are not reached by fastdp.
    pub broadcast_user: bool,
}

/// How frames reach a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelRoute {
    /// Not at all.
    None,
    /// The kernel forwards them to this neighbour.
    Kernel(u16),
    /// User space forwards them by another overlay.
    User,
}

/// A neighbour that is reached by fastdp.
#[derive(Clone, Debug)]
pub struct KernelNeighbour {
    /// Name of the neighbour.
    pub name: PeerName,
    /// The id of the neighbour in a VNI.
    pub short_id: ShortId,
    /// How to send to it.
    pub path: FastdpPath,
    /// Where the driver writes what the kernel has counted.
    pub traffic: Arc<Traffic>,
}

/// The outer addresses of VXLAN packets to a neighbour (docs/spec/data-plane.md 5.1 to 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FastdpPath {
    /// Our address of the TCP connection.
    pub local: Ipv4Addr,
    /// The neighbour's address.
    pub remote: Ipv4Addr,
    /// The VXLAN port of both ends of this connection: packets leave through the device of this port.
    pub port: u16,
}

/// The VNI of a frame: the peer that captured it, and the peer that delivers it (docs/spec/data-plane.md 5.1).
pub fn vni(src: ShortId, dst: ShortId) -> u32 {
    u32::from(src.get()) | u32::from(dst.get()) << 12
}
