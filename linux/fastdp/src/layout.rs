//! The structures that programs and user space share, those of `bpf/fastdp.bpf.c`. A change of any needs another [`VERSION`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use weave_overlay::TrafficCounts;
use weave_overlay::fastdp::{KERNEL_FRAME_HEAD, KernelRoute, KernelTables, MAX_KERNEL_NEIGHBOURS};
use weave_switch::DropReason;
use weave_types::{MacAddr, ShortId};

use crate::error::Error;

const MAGIC: u32 = 0x7765_6176;
/// Of the layout. Maps with another one are not adopted.
const VERSION: u32 = 1;

pub(crate) const IDS: usize = ShortId::COUNT as usize;
/// The loop over the neighbours of a broadcast has this bound.
const MAX_BROADCAST: usize = MAX_KERNEL_NEIGHBOURS;
pub(crate) const BROADCAST_POOL: usize = 65536;
/// No neighbour is left out of a broadcast.
const NO_EXCEPTION: u16 = 0xffff;

pub(crate) const HEADER: usize = 40;
pub(crate) const PEER: usize = 12;
pub(crate) const NEIGHBOUR: usize = 16;
pub(crate) const NEIGHBOURS_AT: usize = HEADER + IDS * PEER;
pub(crate) const BROADCAST_AT: usize = NEIGHBOURS_AT + IDS * NEIGHBOUR;
pub(crate) const TABLES_SIZE: usize = BROADCAST_AT + BROADCAST_POOL * 2;
pub(crate) const MAC_ENTRY_SIZE: usize = 40;
pub(crate) const COUNT_SIZE: usize = 16;
pub(crate) const GLOBALS_SIZE: usize = 24;
pub(crate) const LIMITS_SIZE: usize = 24;
pub(crate) const TRAFFIC_SIZE: usize = 16;
pub(crate) const REMOTE_SIZE: usize = 8;
pub(crate) const PORT_SIZE: usize = 16;
pub(crate) const EVENTS_SIZE: usize = 256 << 10;

const KIND_NONE: u8 = 1;
const KIND_KERNEL: u8 = 2;
const KIND_USER: u8 = 3;

/// `struct globals`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Globals {
    magic: u32,
    version: u32,
    /// Bytes of the local address in a tunnel key, or 0.
    local_address: u32,
}

/// How much longer a tunnel key is with a local address.
const LOCAL_ADDRESS: u32 = 16;

impl Globals {
    /// For a kernel whose tunnel keys have a local address, which is so from Linux 6.0 on, or whose routing chooses it.
    pub(crate) fn new(local_address: bool) -> Globals {
        let local_address = if local_address { LOCAL_ADDRESS } else { 0 };
        Globals { magic: MAGIC, version: VERSION, local_address }
    }

    pub(crate) fn is_current(&self) -> bool {
        (self.magic, self.version) == (MAGIC, VERSION)
    }

    pub(crate) fn encode(&self) -> [u8; GLOBALS_SIZE] {
        let mut bytes = [0; GLOBALS_SIZE];
        for (slot, value) in bytes.chunks_exact_mut(4).zip([self.magic, self.version, self.local_address]) {
            slot.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Globals> {
        Some(Globals {
            magic: u32_at(bytes, 0)?,
            version: u32_at(bytes, 4)?,
            local_address: u32_at(bytes, 8)?,
        })
    }
}

/// The devices that the programs send to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) uplink: u32,
    pub(crate) tap: u32,
    pub(crate) relay_tap: u32,
}

/// Encodes `struct tables`, with generation 0, into `bytes`, whatever they are. `device` gives the VXLAN device of a port.
pub(crate) fn encode_tables(
    tables: &KernelTables,
    devices: &Devices,
    device: impl Fn(u16) -> Option<u32>,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Error> {
    bytes.clear();
    bytes.resize(TABLES_SIZE, 0);
    put(&mut bytes, 8, &nanos(tables.macs.hold_down()).to_ne_bytes());
    put(&mut bytes, 16, &nanos(tables.macs.conflict_interval()).to_ne_bytes());
    put(&mut bytes, 24, &devices.uplink.to_ne_bytes());
    put(&mut bytes, 28, &devices.tap.to_ne_bytes());
    put(&mut bytes, 32, &devices.relay_tap.to_ne_bytes());
    put(&mut bytes, 36, &tables.own_id.get().to_ne_bytes());
    limit("neighbours", tables.neighbours.len(), IDS)?;
    for (i, neighbour) in tables.neighbours.iter().enumerate() {
        let path = neighbour.path;
        let at = NEIGHBOURS_AT + i * NEIGHBOUR;
        put(&mut bytes, at, &u32::from(path.remote).to_ne_bytes());
        put(&mut bytes, at + 4, &u32::from(path.local).to_ne_bytes());
        let device = device(path.port).ok_or(Error::NoPort(path.port))?;
        put(&mut bytes, at + 8, &device.to_ne_bytes());
        put(&mut bytes, at + 12, &neighbour.short_id.get().to_ne_bytes());
    }
    let mut pool = BroadcastPool::default();
    for peer in &tables.peers {
        let (kind, next) = match peer.route {
            KernelRoute::None => (KIND_NONE, 0),
            KernelRoute::Kernel(next) => (KIND_KERNEL, next),
            KernelRoute::User => (KIND_USER, 0),
        };
        limit("neighbours of a broadcast", peer.broadcast.len(), MAX_BROADCAST)?;
        let (first, count, except) = pool.add(&peer.broadcast);
        let at = HEADER + usize::from(peer.short_id.get()) * PEER;
        bytes[at] = kind;
        bytes[at + 1] = u8::from(peer.broadcast_user);
        for (i, value) in [next, first as u16, count, except].into_iter().enumerate() {
            put(&mut bytes, at + 2 + i * 2, &value.to_ne_bytes());
        }
    }
    limit("entries of broadcast trees", pool.entries.len(), BROADCAST_POOL)?;
    for (i, neighbour) in pool.entries.iter().enumerate() {
        put(&mut bytes, BROADCAST_AT + i * 2, &neighbour.to_ne_bytes());
    }
    Ok(bytes)
}

fn limit(what: &'static str, number: usize, limit: usize) -> Result<(), Error> {
    if number > limit { Err(Error::TooLarge { what, number, limit }) } else { Ok(()) }
}

/// The neighbours to which broadcasts go, one list after the other. Most lists are the same, or all neighbours but the one from which the
/// broadcast comes.
#[derive(Default)]
struct BroadcastPool {
    entries: Vec<u16>,
    lists: BTreeMap<Vec<u16>, usize>,
    /// The longest list.
    all: Option<(BTreeSet<u16>, usize)>,
}

impl BroadcastPool {
    /// Start and length of a list, and what it leaves out.
    fn add(&mut self, list: &[u16]) -> (usize, u16, u16) {
        if list.is_empty() {
            return (0, 0, NO_EXCEPTION);
        }
        if let Some(start) = self.lists.get(list) {
            return (*start, list.len() as u16, NO_EXCEPTION);
        }
        if let Some((all, start)) = &self.all
            && list.len() + 1 == all.len()
            && list.iter().all(|n| all.contains(n))
        {
            let left_out = all.iter().find(|n| !list.contains(n));
            return (*start, all.len() as u16, left_out.copied().unwrap_or(NO_EXCEPTION));
        }
        let start = self.entries.len();
        self.entries.extend_from_slice(list);
        self.lists.insert(list.to_vec(), start);
        if self.all.as_ref().is_none_or(|(all, _)| all.len() < list.len()) {
            self.all = Some((list.iter().copied().collect(), start));
        }
        (start, list.len() as u16, NO_EXCEPTION)
    }
}

/// Sets the generation of encoded tables, which events carry.
pub(crate) fn set_generation(tables: &mut [u8], generation: u64) {
    put(tables, 0, &generation.to_ne_bytes());
}

/// The generation of encoded tables.
pub(crate) fn generation(tables: &[u8]) -> u64 {
    u64_at(tables, 0).unwrap_or_default()
}

/// [`KernelTables::reached`] of encoded tables.
pub(crate) fn reached(tables: &[u8]) -> usize {
    let entries = tables.get(HEADER..NEIGHBOURS_AT).unwrap_or_default().chunks_exact(PEER);
    let peers = entries.filter(|entry| entry[0] == KIND_KERNEL).count();
    let own = HEADER + usize::from(own_id(tables)) * PEER;
    let [count, except] = [6, 8].map(|offset| u16_at(tables, own + offset));
    let is_one_left_out = except.is_some_and(|except| except != NO_EXCEPTION);
    peers + usize::from(count.unwrap_or_default()).saturating_sub(usize::from(is_one_left_out))
}

/// The short id of this peer in encoded tables.
pub(crate) fn own_id(tables: &[u8]) -> u16 {
    u16_at(tables, 36).unwrap_or_default()
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// `struct mac_entry`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MacValue {
    pub(crate) last_seen: u64,
    pub(crate) learnt: u64,
    pub(crate) reported: u64,
    pub(crate) conflict: u64,
    pub(crate) refused: u32,
    pub(crate) peer: u16,
    pub(crate) pending: bool,
}

impl MacValue {
    pub(crate) fn encode(&self) -> [u8; MAC_ENTRY_SIZE] {
        let mut bytes = [0; MAC_ENTRY_SIZE];
        for (i, value) in [self.last_seen, self.learnt, self.reported, self.conflict].into_iter().enumerate()
        {
            put(&mut bytes, i * 8, &value.to_ne_bytes());
        }
        put(&mut bytes, 32, &self.refused.to_ne_bytes());
        put(&mut bytes, 36, &self.peer.to_ne_bytes());
        bytes[38] = u8::from(self.pending);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; MAC_ENTRY_SIZE]) -> MacValue {
        let [last_seen, learnt, reported, conflict] =
            [0, 8, 16, 24].map(|at| u64_at(bytes, at).unwrap_or_default());
        MacValue {
            last_seen,
            learnt,
            reported,
            conflict,
            refused: u32_at(bytes, 32).unwrap_or_default(),
            peer: u16_at(bytes, 36).unwrap_or_default(),
            pending: bytes[38] != 0,
        }
    }
}

/// The key of a MAC: its bytes, and two zeros.
pub(crate) fn mac_key(mac: MacAddr) -> [u8; 8] {
    let [a, b, c, d, e, f] = mac.0;
    [a, b, c, d, e, f, 0, 0]
}

pub(crate) fn mac_of(key: [u8; 8]) -> MacAddr {
    let [a, b, c, d, e, f, _, _] = key;
    MacAddr([a, b, c, d, e, f])
}

/// `struct traffic`, of one processor.
pub(crate) fn decode_traffic(bytes: &[u8]) -> TrafficCounts {
    let [sent, received, heard] = [0, 4, 8].map(|at| u32_at(bytes, at).unwrap_or_default());
    TrafficCounts { sent, received, heard }
}

/// `struct remote`.
pub(crate) fn remote_key(address: Ipv4Addr, ifindex: u32) -> [u8; REMOTE_SIZE] {
    let mut key = [0; REMOTE_SIZE];
    put(&mut key, 0, &u32::from(address).to_ne_bytes());
    put(&mut key, 4, &ifindex.to_ne_bytes());
    key
}

/// A record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// About a peer.
    Peer {
        kind: PeerRecord,
        peer: u16,
        last_seen: Option<u64>,
        generation: u64,
        mac: MacAddr,
        destination: MacAddr,
    },
    Control {
        vni: u32,
        remote: Ipv4Addr,
        ifindex: u32,
        len: u32,
        head: [u8; KERNEL_FRAME_HEAD],
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerRecord {
    LocalMac,
    RemoteMac,
    Conflict,
    OwnPacket,
    Traffic,
    /// A broadcast of the peer was sent to the neighbours in its tree.
    Flood,
}

impl Record {
    /// `None` if it is not a record of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let kind = match u32_at(bytes, 0)? {
            1 => PeerRecord::LocalMac,
            2 => PeerRecord::RemoteMac,
            3 => PeerRecord::Conflict,
            4 => PeerRecord::OwnPacket,
            6 => PeerRecord::Traffic,
            7 => PeerRecord::Flood,
            5 => {
                let [vni, remote, ifindex, len] = [4, 8, 12, 16].map(|at| u32_at(bytes, at));
                let head = *bytes.get(24..)?.first_chunk()?;
                let remote = Ipv4Addr::from(remote?);
                return Some(Record::Control { vni: vni?, remote, ifindex: ifindex?, len: len?, head });
            }
            _ => return None,
        };
        let mac = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(mac_of);
        Some(Record::Peer {
            kind,
            peer: u16_at(bytes, 4)?,
            last_seen: u64_at(bytes, 8).filter(|_| u16_at(bytes, 6) != Some(0)),
            generation: u64_at(bytes, 16)?,
            mac: mac(24)?,
            destination: mac(32)?,
        })
    }
}

/// What the programs count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Dropped for a reason that other overlays have, too.
    Dropped(DropReason),
    /// Dropped because the next hop of a relayed frame is the neighbour that it came from.
    Hairpin,
    /// From peers, dropped because no tables have been published.
    NoTables,
    /// On a VXLAN device, but without IPv4 addresses.
    NoTunnelKey,
    /// Dropped because the kernel refused to send them.
    SendFailed,
    /// Not relayed, because so many peers had done so already that the frame must be going in a circle.
    TooManyHops,
    /// Local frames to one peer.
    Unicast,
    /// Local frames to all peers.
    Flooded,
    /// Copies of local frames and of frames from peers, to all neighbours of a broadcast tree.
    Copies,
    /// Frames from one neighbour to another.
    Relayed,
    /// Frames of peers that were passed to the local bridge.
    Delivered,
    /// Local frames passed to user space.
    ToUser,
    /// Frames of peers passed to user space, to be sent on by another overlay.
    RelayedToUser,
    /// Control frames received: heartbeats and tests of a path.
    Control,
    /// Control frames that were dropped because they came too fast.
    ControlSuppressed,
    /// Tests of a path that the program has answered.
    Answered,
    /// Events for which there was no room.
    EventsLost,
    /// MACs for which there was no room.
    MacsFull,
}

impl Counter {
    /// All of them, in the programs' order.
    pub const ALL: [Counter; 25] = [
        Counter::Dropped(DropReason::TooShort),
        Counter::Dropped(DropReason::InvalidSource),
        Counter::Dropped(DropReason::SpanningTree),
        Counter::Dropped(DropReason::DestinationLocal),
        Counter::Dropped(DropReason::LocalConflict),
        Counter::Dropped(DropReason::NoRoute),
        Counter::Dropped(DropReason::OwnPacket),
        Counter::Dropped(DropReason::UnknownPeer),
        Counter::Hairpin,
        Counter::NoTables,
        Counter::NoTunnelKey,
        Counter::SendFailed,
        Counter::TooManyHops,
        Counter::Unicast,
        Counter::Flooded,
        Counter::Copies,
        Counter::Relayed,
        Counter::Delivered,
        Counter::ToUser,
        Counter::RelayedToUser,
        Counter::Control,
        Counter::ControlSuppressed,
        Counter::Answered,
        Counter::EventsLost,
        Counter::MacsFull,
    ];
}

impl fmt::Display for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Counter::Dropped(reason) => return reason.fmt(f),
            Counter::Hairpin => "next hop is the sender",
            Counter::NoTables => "no forwarding tables yet",
            Counter::NoTunnelKey => "no tunnel addresses",
            Counter::SendFailed => "kernel refused to send",
            Counter::TooManyHops => "relayed too often",
            Counter::Unicast => "to one peer",
            Counter::Flooded => "to all peers",
            Counter::Copies => "copies to neighbours",
            Counter::Relayed => "relayed",
            Counter::Delivered => "delivered",
            Counter::ToUser => "to user space",
            Counter::RelayedToUser => "relayed to user space",
            Counter::Control => "control frames",
            Counter::ControlSuppressed => "control frames too fast",
            Counter::Answered => "tests of a path answered",
            Counter::EventsLost => "events lost",
            Counter::MacsFull => "no room for a MAC",
        })
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_lists_are_shared() {
        let mut pool = BroadcastPool::default();
        let all: Vec<u16> = (0..500).collect();
        assert_eq!(pool.add(&all), (0, 500, NO_EXCEPTION));
        for n in 0..500 {
            let others: Vec<u16> = all.iter().copied().filter(|i| *i != n).collect();
            assert_eq!(pool.add(&others), (0, 500, n));
        }
        assert_eq!(pool.add(&[3, 4]), (500, 2, NO_EXCEPTION));
        assert_eq!(pool.add(&[3, 4]), (500, 2, NO_EXCEPTION));
        assert_eq!(pool.add(&[]), (0, 0, NO_EXCEPTION));
        assert_eq!(pool.entries.len(), 502);
    }

    #[test]
    fn records_are_decoded_and_short_ones_refused() {
        let mut bytes = vec![0; 40];
        put(&mut bytes, 0, &2u32.to_ne_bytes());
        put(&mut bytes, 4, &7u16.to_ne_bytes());
        put(&mut bytes, 8, &99u64.to_ne_bytes());
        bytes[24..30].copy_from_slice(&[2, 1, 2, 3, 4, 5]);
        let expected = |last_seen| Record::Peer {
            kind: PeerRecord::RemoteMac,
            peer: 7,
            last_seen,
            generation: 0,
            mac: MacAddr([2, 1, 2, 3, 4, 5]),
            destination: MacAddr::ZERO,
        };
        assert_eq!(Record::decode(&bytes), Some(expected(None)));
        bytes[6] = 1;
        assert_eq!(Record::decode(&bytes), Some(expected(Some(99))));
        for end in 0..40 {
            assert_eq!(Record::decode(&bytes[..end]), None);
        }
        let mut bytes = vec![0; 88];
        put(&mut bytes, 0, &5u32.to_ne_bytes());
        put(&mut bytes, 16, &1390u32.to_ne_bytes());
        bytes[87] = 7;
        assert!(
            matches!(Record::decode(&bytes), Some(Record::Control { len: 1390, head, .. }) if head[63] == 7)
        );
        assert_eq!(Record::decode(&bytes[..87]), None);
    }

    #[test]
    fn mac_entries_round_trip() {
        let value = MacValue {
            last_seen: 1,
            learnt: 2,
            reported: 3,
            conflict: 4,
            refused: 5,
            peer: 6,
            pending: true,
        };
        assert_eq!(MacValue::decode(&value.encode()), value);
    }
}
