use std::fmt;

use weave_types::{Instant, MacAddr, PeerName};

use crate::frame::Ethernet;
use crate::mac::{SourceState, is_learnable};
use crate::table::ForwardingTable;

/// What to do with a frame captured from the local bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalVerdict<'t> {
    /// Drop the frame and count it.
    Drop(DropReason),
    /// Send the frame to neighbour `via` as (source = this peer, destination = `dst`).
    Unicast {
        /// The peer that has the destination MAC.
        dst: PeerName,
        /// The next hop.
        via: PeerName,
    },
    /// Send a copy to each of these neighbours, as (source = this peer, destination = that neighbour). May be empty.
    Flood(&'t [PeerName]),
}

/// What to do with a frame from a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVerdict<'t> {
    /// Drop the frame and count it.
    Drop(DropReason),
    /// Forward the frame to neighbour `via`, with source and destination peer unchanged.
    Relay {
        /// The next hop.
        via: PeerName,
    },
    /// Inject the frame into the local bridge, and send a copy to each neighbour in `flood` as (source unchanged,
    /// destination = that neighbour).
    Deliver {
        /// The next hops of the source's broadcast tree. Empty if the destination MAC is local.
        flood: &'t [PeerName],
    },
}

/// Why a frame was dropped. `as usize` is the index for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    TooShort,
    /// The source MAC is zero or a group address. 2.8.1 forwards such frames, but the receiving bridge drops them.
    InvalidSource,
    /// Captured locally: spanning tree, which must not cross the switch.
    SpanningTree,
    /// Captured locally: the destination MAC is local, so the bridge has delivered the frame.
    DestinationLocal,
    /// Captured locally: another peer is sending from this source MAC.
    LocalConflict,
    /// There is no route to the destination peer.
    NoRoute,
    /// The source peer is this peer, so the frame went through a loop. 2.8.1 warns and forwards it.
    OwnPacket,
    /// The source or the destination peer is not part of the topology.
    UnknownPeer,
}

impl DropReason {
    /// All reasons; each has its own number as index.
    pub const ALL: [DropReason; 8] = [
        DropReason::TooShort,
        DropReason::InvalidSource,
        DropReason::SpanningTree,
        DropReason::DestinationLocal,
        DropReason::LocalConflict,
        DropReason::NoRoute,
        DropReason::OwnPacket,
        DropReason::UnknownPeer,
    ];
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropReason::TooShort => "frame too short",
            DropReason::InvalidSource => "invalid source MAC",
            DropReason::SpanningTree => "spanning tree frame",
            DropReason::DestinationLocal => "destination MAC is local",
            DropReason::LocalConflict => "source MAC in use at another peer",
            DropReason::NoRoute => "no route to the destination peer",
            DropReason::OwnPacket => "own frame came back",
            DropReason::UnknownPeer => "unknown peer",
        })
    }
}

/// What the owner of the table must learn. The event repeats until a new table is published: see
/// [`DuplicateFilter`](crate::DuplicateFilter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwitchEvent {
    /// A local MAC that the table does not have at this peer, for
    /// [`MacTable::learn_local`](crate::MacTable::learn_local).
    LocalMac(MacAddr),
    /// A MAC that the table does not have at the source peer, for
    /// [`MacTable::learn_remote`](crate::MacTable::learn_remote).
    RemoteMac {
        /// The source MAC.
        mac: MacAddr,
        /// The source peer.
        peer: PeerName,
    },
    /// A frame has a source that is in use at another peer: it was dropped as [`DropReason::LocalConflict`], but for one in
    /// [`MacConfig::conflict_interval`](crate::MacConfig::conflict_interval). 2.8.1 drops all and logs `Captured frame from MAC
    /// (<mac>) to (<dst>) associated with another peer <peer>`.
    LocalConflict {
        /// The source MAC.
        mac: MacAddr,
        /// The peer that sends from it.
        peer: PeerName,
    },
    /// A frame was dropped as [`DropReason::OwnPacket`]. 2.8.1 logs `Received own packet to peer <peer> from
    /// MAC (<mac>) to (<dst>)`.
    OwnPacket {
        /// The destination peer.
        peer: PeerName,
        /// The source MAC.
        mac: MacAddr,
        /// The destination MAC.
        dst: MacAddr,
    },
}

/// Decides about a frame captured from the local bridge (docs/spec/data-plane.md 2.3).
pub fn local_frame<'t>(
    table: &'t ForwardingTable,
    frame: &[u8],
    now: Instant,
) -> (LocalVerdict<'t>, Option<SwitchEvent>) {
    let Some(ethernet) = Ethernet::parse(frame) else {
        return (LocalVerdict::Drop(DropReason::TooShort), None);
    };
    let (src, dst) = (ethernet.src(), ethernet.dst());
    if !is_learnable(src) {
        return (LocalVerdict::Drop(DropReason::InvalidSource), None);
    }
    let event = match table.macs.refresh_source(src, table.own, now) {
        SourceState::SamePeer => None,
        SourceState::OtherPeer { peer, active: true } => {
            let event = SwitchEvent::LocalConflict { mac: src, peer };
            if !table.macs.passes_despite_conflict(src, now) {
                return (LocalVerdict::Drop(DropReason::LocalConflict), Some(event));
            }
            Some(event)
        }
        SourceState::Unknown | SourceState::OtherPeer { active: false, .. } => {
            Some(SwitchEvent::LocalMac(src))
        }
    };
    (local_destination(table, src, dst), event)
}

fn local_destination(table: &ForwardingTable, src: MacAddr, dst: MacAddr) -> LocalVerdict<'_> {
    let own = table.own;
    if dst == MacAddr::SPANNING_TREE {
        return LocalVerdict::Drop(DropReason::SpanningTree);
    }
    // The snapshot may lack the source, which 2.8.1 would have learnt at this point.
    let peer = if dst == src { Some(own) } else { lookup(table, dst) };
    match peer {
        None => LocalVerdict::Flood(table.routes.broadcast(own)),
        Some(peer) if peer == own => LocalVerdict::Drop(DropReason::DestinationLocal),
        Some(peer) => match table.routes.unicast(peer) {
            Some(via) => LocalVerdict::Unicast { dst: peer, via },
            None => LocalVerdict::Drop(DropReason::NoRoute),
        },
    }
}

/// Decides about a frame of a neighbour, with source peer `src` and destination peer `dst` (docs/spec/data-plane.md 2.4).
/// The caller has handled overlay control frames (all MACs zero) before.
pub fn peer_frame<'t>(
    table: &'t ForwardingTable,
    src: PeerName,
    dst: PeerName,
    frame: &[u8],
    now: Instant,
) -> (PeerVerdict<'t>, Option<SwitchEvent>) {
    let drop = |reason| (PeerVerdict::Drop(reason), None);
    let Some(ethernet) = Ethernet::parse(frame) else {
        return drop(DropReason::TooShort);
    };
    let (mac, to) = (ethernet.src(), ethernet.dst());
    if src == table.own {
        // Deviation: 2.8.1 warns and forwards the frame, which moves the MACs of local containers and continues the loop.
        let event = SwitchEvent::OwnPacket { peer: dst, mac, dst: to };
        return (PeerVerdict::Drop(DropReason::OwnPacket), Some(event));
    }
    if !table.routes.knows(src) {
        return drop(DropReason::UnknownPeer);
    }
    if dst != table.own {
        if !table.routes.knows(dst) {
            return drop(DropReason::UnknownPeer);
        }
        return match table.routes.unicast(dst) {
            Some(via) => (PeerVerdict::Relay { via }, None),
            None => drop(DropReason::NoRoute),
        };
    }
    if !is_learnable(mac) {
        return drop(DropReason::InvalidSource);
    }
    let event = match table.macs.refresh_source(mac, src, now) {
        SourceState::SamePeer => None,
        SourceState::Unknown | SourceState::OtherPeer { .. } => {
            Some(SwitchEvent::RemoteMac { mac, peer: src })
        }
    };
    // If the source MAC itself is the destination, it has just moved to `src`; the snapshot may still have it here.
    let local = to != mac && lookup(table, to) == Some(table.own);
    let flood = if local { &[] } else { table.routes.broadcast(src) };
    (PeerVerdict::Deliver { flood }, event)
}

/// Looks up a destination. Group addresses are never in the map.
fn lookup(table: &ForwardingTable, mac: MacAddr) -> Option<PeerName> {
    if mac.is_group() { None } else { table.macs.lookup(mac) }
}
