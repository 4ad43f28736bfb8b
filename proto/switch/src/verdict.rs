use std::fmt;

use weave_types::{Instant, MacAddr, PeerName};

use crate::frame::Ethernet;
use crate::mac::{Seen, is_learnable};
use crate::table::ForwardingTable;

/// What to do with a frame captured from the local bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalVerdict<'t> {
    /// Nothing, but count it.
    Drop(DropReason),
    /// Send it to neighbour `via` as (source = this peer, destination = `dst`).
    Unicast {
        /// The peer that the destination MAC is behind.
        dst: PeerName,
        /// The neighbour on the way there.
        via: PeerName,
    },
    /// Send a copy to each of these neighbours, as (source = this peer, destination = that neighbour). May be empty.
    Flood(&'t [PeerName]),
}

/// What to do with a frame from a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerVerdict<'t> {
    /// Nothing, but count it.
    Drop(DropReason),
    /// Pass it on to neighbour `via`, with source and destination peer unchanged.
    Relay {
        /// The neighbour on the way to the destination peer.
        via: PeerName,
    },
    /// Inject it into the local bridge, and send a copy to each neighbour in `flood` as (source unchanged,
    /// destination = that neighbour).
    Deliver {
        /// The rest of the source's broadcast tree as seen from here. Empty if the destination MAC is local.
        flood: &'t [PeerName],
    },
}

/// Why a frame goes nowhere. `as usize` numbers them for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// Shorter than an Ethernet header.
    TooShort,
    /// The source MAC is zero or a group address. 2.8.1 forwards such frames, but the receiving bridge drops them.
    InvalidSource,
    /// Local: spanning tree, which must not cross the switch.
    SpanningTree,
    /// Local: the destination MAC is local; the bridge has delivered the frame.
    DestinationLocal,
    /// Local: another peer is sending from this source MAC.
    LocalConflict,
    /// There is no route to the destination peer.
    NoRoute,
    /// The source peer is this one: the frame went round a loop. 2.8.1 warns and goes on.
    OwnPacket,
    /// The source or the destination peer is not part of the topology.
    UnknownPeer,
}

impl DropReason {
    /// All reasons, each at the index of its number.
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

/// What the owner of the table must be told. Repeats until a new table is published: see
/// [`DuplicateFilter`](crate::DuplicateFilter).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwitchEvent {
    /// For [`MacTable::learn_local`](crate::MacTable::learn_local): a local MAC that the table has not at this peer.
    LocalMac(MacAddr),
    /// For [`MacTable::learn_remote`](crate::MacTable::learn_remote): a MAC that the table has not at this peer.
    RemoteMac {
        /// The source MAC.
        mac: MacAddr,
        /// The source peer.
        peer: PeerName,
    },
    /// A frame was dropped as [`DropReason::LocalConflict`]. 2.8.1 logs `Captured frame from MAC (<mac>) to (<dst>)
    /// associated with another peer <peer>`.
    LocalConflict {
        /// The source MAC.
        mac: MacAddr,
        /// The destination MAC.
        dst: MacAddr,
        /// Who sends from it.
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

/// Judges a frame captured from the local bridge (docs/spec/data-plane.md 2.3).
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
    let fact = match table.macs.see(src, table.own, now) {
        Seen::Here => None,
        Seen::Elsewhere { peer, active: true } => {
            let fact = SwitchEvent::LocalConflict { mac: src, dst, peer };
            return (LocalVerdict::Drop(DropReason::LocalConflict), Some(fact));
        }
        Seen::Unknown | Seen::Elsewhere { active: false, .. } => Some(SwitchEvent::LocalMac(src)),
    };
    (local_destination(table, src, dst), fact)
}

fn local_destination(table: &ForwardingTable, src: MacAddr, dst: MacAddr) -> LocalVerdict<'_> {
    let own = table.own;
    if dst == MacAddr::SPANNING_TREE {
        return LocalVerdict::Drop(DropReason::SpanningTree);
    }
    // The snapshot may not have the source yet, the original's cache would.
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

/// Judges a frame that a neighbour passed on, with source peer `src` and destination peer `dst`
/// (docs/spec/data-plane.md 2.4). Overlay control frames (all MACs zero) must have been taken out before.
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
        // Deviation: the original warns and goes on, which moves our own containers' MACs about and feeds the loop.
        let fact = SwitchEvent::OwnPacket { peer: dst, mac, dst: to };
        return (PeerVerdict::Drop(DropReason::OwnPacket), Some(fact));
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
    let fact = match table.macs.see(mac, src, now) {
        Seen::Here => None,
        Seen::Unknown | Seen::Elsewhere { .. } => Some(SwitchEvent::RemoteMac { mac, peer: src }),
    };
    // A source that has just moved here from there is not local, whatever the snapshot says.
    let local = to != mac && lookup(table, to) == Some(table.own);
    let flood = if local { &[] } else { table.routes.broadcast(src) };
    (PeerVerdict::Deliver { flood }, fact)
}

/// Group addresses are never in the map: no need to look.
fn lookup(table: &ForwardingTable, mac: MacAddr) -> Option<PeerName> {
    if mac.is_group() { None } else { table.macs.lookup(mac) }
}
