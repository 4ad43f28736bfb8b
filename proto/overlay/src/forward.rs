//! The data path: pure, run by the kernel driver's threads and by the simulator alike.
//!
//! ```text
//!  local bridge --frame, offload--> handle_local ----+                       +--> reserve, seal in place, commit
//!                                                    +--> verdict --> send --+--> ICMP "too big" back to the source
//!  neighbour ------datagram------> handle_datagram --+                       +--> inject
//! ```
//!
//! Each thread owns a [`Forwarder`]. They share what [`Tables`] point to: an immutable snapshot that `node` publishes.
//! After warm-up nothing here allocates: datagrams are built in the [`Io`]'s memory, and received ones are decrypted where
//! they lie.
//!
//! Frames to one neighbour are gathered into datagrams until the next does not fit or [`Forwarder::flush`] is called at the
//! end of a batch (docs/spec/data-plane.md 4.8). A super-frame (TSO, USO) is cut straight into one datagram per segment.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weave_switch::fragment::{self, Fragments, MAX_ICMP_FRAME};
use weave_switch::frame::{Class, ETHERTYPE_VLAN, Ethernet, classify};
use weave_switch::{
    DropReason, DuplicateFilter, ForwardingTable, LocalVerdict, Offload, PeerVerdict, Segments, local_frame,
    peer_frame,
};
use weave_types::{ConnectionId, Instant, PeerName, TokenBucket};

use crate::io::{Destination, Io, Slot};
use crate::sleeve::{
    ControlFrame, DatagramBuilder, MAX_DATAGRAM, OpenError, Opener, Sealer, Session, SleevePath, sender,
};

/// What the owner of the tables must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwarderEvent {
    /// For the MAC table, or for the log.
    Switch(weave_switch::SwitchEvent),
    /// For the connection's [`SleeveControl`](crate::sleeve::SleeveControl): a control frame. At most some hundred a second.
    Control {
        /// The connection.
        conn: ConnectionId,
        /// What it says.
        frame: ControlFrame,
        /// Where it came from.
        from: SocketAddr,
    },
    /// For the connection's [`SleeveControl`](crate::sleeve::SleeveControl): the kernel refused a datagram with the don't-fragment bit, the
    /// path carries IP packets of `mtu` bytes. Made by the driver; one for each refusal of a datagram that the link itself
    /// made.
    PathMtu {
        /// The connection that the datagram was for.
        conn: ConnectionId,
        /// Bytes, outer IP header included.
        mtu: u16,
    },
}

/// A connection as data threads see it.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Keys and counters. Its remote name is where frames for this neighbour go, and what its datagrams are named after.
    pub session: Arc<Session>,
    /// Whether the mesh has accepted the connection. Before, nothing but heartbeats is taken: the neighbour may have accepted
    /// it already, and its first heartbeat tells the link where it is (in the original it is lost, which costs 500 ms).
    pub confirmed: bool,
    /// How to reach it by sleeve.
    pub path: SleevePath,
    /// What frames are sent with. Datagrams are taken from every overlay at any time (docs/spec/data-plane.md 3.2).
    pub overlay: Overlay,
}

/// An overlay that user space sends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlay {
    /// The original's UDP encapsulation.
    Sleeve,
}

/// All that the data path knows. Immutable; a change means a new one.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Counts publications.
    pub generation: u64,
    /// What the switch knows.
    pub forwarding: ForwardingTable,
    /// The longest IP packet that the local bridge takes.
    pub local_mtu: usize,
    neighbours: Vec<Arc<Neighbour>>,
}

impl Tables {
    /// Of several neighbours of one name the last stays. The local bridge takes everything.
    pub fn new(generation: u64, forwarding: ForwardingTable, mut neighbours: Vec<Arc<Neighbour>>) -> Tables {
        neighbours.reverse();
        neighbours.sort_by_key(|n| n.session.remote());
        neighbours.dedup_by_key(|n| n.session.remote());
        Tables { generation, forwarding, local_mtu: usize::MAX, neighbours }
    }

    /// The same for a local bridge of this MTU.
    pub fn with_local_mtu(self, local_mtu: usize) -> Tables {
        Tables { local_mtu, ..self }
    }

    /// Ordered by name.
    pub fn neighbours(&self) -> &[Arc<Neighbour>] {
        &self.neighbours
    }
}

macro_rules! stats {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {
        /// What happened to frames and datagrams, since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[doc = $doc])* pub $name: u64,)*
            /// Frames that the switch dropped, by the number of the [`DropReason`].
            pub switch_drops: [u64; DropReason::ALL.len()],
        }

        impl Stats {
            /// All counters but [`switch_drops`](Stats::switch_drops), with their names.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }

        impl std::ops::AddAssign<&Stats> for Stats {
            fn add_assign(&mut self, other: &Stats) {
                $(self.$name += other.$name;)*
                for (sum, more) in self.switch_drops.iter_mut().zip(other.switch_drops) {
                    *sum += more;
                }
            }
        }
    };
}

stats! {
    /// Frames (super-frames count once) from the local bridge.
    local_frames,
    /// Datagrams from the network.
    datagrams_in,
    /// Frames in datagrams of neighbours, control frames included.
    frames_in,
    /// Frames given to the local bridge.
    injected,
    /// Frames sent to neighbours, after cutting, one for each copy.
    frames_out,
    /// Datagrams sent to neighbours.
    datagrams_out,
    /// ICMP answers to frames too big for a path.
    too_big_answers,
    /// Frames fragmented here.
    fragmented,
    /// Dropped: the neighbour's UDP address is not known yet.
    drop_awaiting_contact,
    /// Dropped: too big for the path, not to be fragmented, and part of a flood.
    drop_too_big_flood,
    /// Dropped: too big for the path, and no answer possible.
    drop_too_big,
    /// Dropped: more than a datagram can hold.
    drop_oversize,
    /// Dropped: a fragmentable packet that could not be fragmented.
    drop_unfragmentable,
    /// Dropped: the next hop has no connection.
    drop_no_connection,
    /// Dropped: the route leads back to the neighbour it came from.
    drop_hairpin,
    /// Dropped: frame and virtio header do not fit together.
    drop_bad_offload,
    /// Dropped: sequence numbers are used up.
    drop_exhausted,
    /// Datagram dropped: no room for a name.
    drop_short_datagram,
    /// Datagram dropped: named after nobody we are connected to.
    drop_unknown_sender,
    /// Dropped: a frame from a neighbour whose connection is not confirmed.
    drop_unconfirmed,
    /// Datagram dropped: it cannot be decrypted.
    drop_forged,
    /// Datagram dropped: seen before.
    drop_replayed,
    /// Datagram dropped from some point on: malformed.
    drop_malformed,
    /// Dropped: a frame from a neighbour without an Ethernet header.
    drop_short_frame,
    /// Dropped: a control frame for or from somebody else, damaged, or with the number of another connection.
    drop_special,
    /// Dropped: more control frames than anybody needs.
    drop_special_rate,
}

/// One data thread's half of the switch.
#[derive(Debug)]
pub struct Forwarder {
    tables: Arc<Tables>,
    limiter: DuplicateFilter,
    lanes: Lanes,
}

/// What is kept per neighbour, in the order of [`Tables::neighbours`].
#[derive(Debug)]
struct Lanes {
    all: Vec<Lane>,
    /// Indices of the lanes that may have open datagrams.
    open: Vec<usize>,
    stats: Stats,
    /// For frames that are cut twice: segments that are to be fragmented.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Lane {
    neighbour: Arc<Neighbour>,
    sealer: Sealer,
    opener: Opener,
    /// The datagram being filled, without (0) and with (1) the don't-fragment bit.
    open: [Option<(Slot, DatagramBuilder)>; 2],
    /// Whether [`Lanes::open`] has it.
    listed: bool,
    heartbeats: TokenBucket,
    probes: TokenBucket,
}

/// One frame on its way to a neighbour.
#[derive(Clone, Copy)]
struct Parcel<'f> {
    src: PeerName,
    dst: PeerName,
    frame: &'f [u8],
    offload: Offload,
    flood: bool,
}

impl Forwarder {
    /// Begins with `tables`. The one that takes datagrams has the replay windows: there must be one of them, and it must live
    /// as long as the process.
    pub fn new(tables: Arc<Tables>) -> Forwarder {
        let all = tables.neighbours.iter().map(Lane::new).collect();
        let lanes = Lanes { all, open: Vec::new(), stats: Stats::default(), scratch: Vec::new() };
        Forwarder { tables, limiter: DuplicateFilter::new(), lanes }
    }

    /// Goes on with other tables. What was gathered is flushed first; connections that stay keep their replay windows.
    pub fn set_tables(&mut self, tables: Arc<Tables>, io: &mut impl Io) {
        self.flush(io);
        let mut old = std::mem::take(&mut self.lanes.all);
        self.lanes.all = tables
            .neighbours
            .iter()
            .map(|neighbour| {
                match old.iter().position(|lane| Arc::ptr_eq(&lane.neighbour.session, &neighbour.session)) {
                    Some(at) => Lane { neighbour: neighbour.clone(), ..old.swap_remove(at) },
                    None => Lane::new(neighbour),
                }
            })
            .collect();
        self.tables = tables;
    }

    /// The tables in use.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Counters since the start.
    pub fn stats(&self) -> &Stats {
        &self.lanes.stats
    }

    /// A frame captured from the local bridge (docs/spec/data-plane.md 2.3), with what its sender's kernel left to do.
    pub fn handle_local(&mut self, frame: &[u8], offload: Offload, now: Instant, io: &mut impl Io) {
        let Forwarder { tables, limiter, lanes } = self;
        lanes.stats.local_frames += 1;
        let table = &tables.forwarding;
        let (verdict, fact) = local_frame(table, frame, now);
        report(fact, limiter, now, io);
        match verdict {
            LocalVerdict::Drop(reason) => lanes.stats.switch_drops[reason as usize] += 1,
            LocalVerdict::Unicast { dst, via } => {
                let parcel = Parcel { src: table.own, dst, frame, offload, flood: false };
                lanes.send(via, parcel, table, now, io);
            }
            LocalVerdict::Flood(to) => {
                for &via in to {
                    let parcel = Parcel { src: table.own, dst: via, frame, offload, flood: true };
                    lanes.send(via, parcel, table, now, io);
                }
            }
        }
    }

    /// A datagram that came to the sleeve port. It is decrypted in place.
    pub fn handle_datagram(&mut self, from: SocketAddr, datagram: &mut [u8], now: Instant, io: &mut impl Io) {
        let Forwarder { tables, limiter, lanes } = self;
        lanes.stats.datagrams_in += 1;
        let Some(name) = sender(datagram) else {
            lanes.stats.drop_short_datagram += 1;
            return;
        };
        let Some(index) = lanes.find(name) else {
            lanes.stats.drop_unknown_sender += 1;
            return;
        };
        let lane = &mut lanes.all[index];
        let confirmed = lane.neighbour.confirmed;
        let records = match lane.opener.open(datagram) {
            Ok(records) => records,
            Err(error) => return lanes.count(error),
        };
        let table = &tables.forwarding;
        for record in records {
            let record = match record {
                Ok(record) => record,
                Err(error) => return lanes.count(error),
            };
            lanes.stats.frames_in += 1;
            let frame = record.frame;
            let special = ControlFrame::parse(frame);
            if !confirmed && !matches!(special, Some(ControlFrame::Heartbeat(_))) {
                lanes.stats.drop_unconfirmed += 1;
                continue;
            }
            if let Some(special) = special {
                if record.src == name && record.dst == table.own {
                    lanes.special(index, special, from, now, io);
                } else {
                    lanes.stats.drop_special += 1;
                }
                continue;
            }
            if frame.len() < weave_switch::frame::ETHERNET_HEADER {
                lanes.stats.drop_short_frame += 1;
                continue;
            }
            let (verdict, fact) = peer_frame(table, record.src, record.dst, frame, now);
            report(fact, limiter, now, io);
            let parcel =
                Parcel { src: record.src, dst: record.dst, frame, offload: Offload::NONE, flood: false };
            match verdict {
                PeerVerdict::Drop(reason) => lanes.stats.switch_drops[reason as usize] += 1,
                // No TTL stops a frame that two peers, whose routes disagree for a moment, hand to each other.
                PeerVerdict::Relay { via } if via == name => lanes.stats.drop_hairpin += 1,
                PeerVerdict::Relay { via } => lanes.send(via, parcel, table, now, io),
                PeerVerdict::Deliver { flood } => {
                    lanes.deliver(parcel, tables, now, io);
                    for &via in flood.iter().filter(|via| **via != name) {
                        lanes.send(via, Parcel { dst: via, flood: true, ..parcel }, table, now, io);
                    }
                }
            }
        }
    }

    /// Sends what is gathered. To be called at the end of each batch of frames or datagrams.
    pub fn flush(&mut self, io: &mut impl Io) {
        self.lanes.flush(io);
    }
}

fn report(
    fact: Option<weave_switch::SwitchEvent>,
    limiter: &mut DuplicateFilter,
    now: Instant,
    io: &mut impl Io,
) {
    if let Some(fact) = fact
        && limiter.admit(&fact, now)
    {
        io.event(ForwarderEvent::Switch(fact));
    }
}

impl Lanes {
    fn find(&self, name: PeerName) -> Option<usize> {
        self.all.binary_search_by_key(&name, |lane| lane.neighbour.session.remote()).ok()
    }

    fn count(&mut self, error: OpenError) {
        match error {
            OpenError::TooShort { .. } => self.stats.drop_short_datagram += 1,
            OpenError::Forged => self.stats.drop_forged += 1,
            OpenError::Replayed => self.stats.drop_replayed += 1,
            OpenError::NoSequence { .. } | OpenError::Truncated { .. } | OpenError::Trailing { .. } => {
                self.stats.drop_malformed += 1;
            }
        }
    }

    fn special(
        &mut self,
        index: usize,
        special: ControlFrame,
        from: SocketAddr,
        now: Instant,
        io: &mut impl Io,
    ) {
        let lane = &mut self.all[index];
        let session = &lane.neighbour.session;
        let bucket = match special {
            ControlFrame::Malformed => return self.stats.drop_special += 1,
            ControlFrame::Heartbeat(uid) if uid != session.uid() => return self.stats.drop_special += 1,
            // Apart, so that nobody's probes can starve them.
            ControlFrame::Heartbeat(_) => &mut lane.heartbeats,
            ControlFrame::FragmentationTest | ControlFrame::MtuTest { .. } => &mut lane.probes,
        };
        if !bucket.try_take(now) {
            return self.stats.drop_special_rate += 1;
        }
        io.event(ForwarderEvent::Control { conn: session.conn(), frame: special, from });
    }

    /// Sends a frame to the neighbour `via`, whole, cut, or answered as too big (docs/spec/data-plane.md 4.7).
    fn send(
        &mut self,
        via: PeerName,
        parcel: Parcel,
        table: &ForwardingTable,
        now: Instant,
        io: &mut impl Io,
    ) {
        let Some(index) = self.find(via) else {
            return self.stats.drop_no_connection += 1;
        };
        let SleevePath { remote: Some(to), mtu, stack_fragments, .. } = self.all[index].neighbour.path else {
            return self.stats.drop_awaiting_contact += 1;
        };
        let frame = parcel.frame;
        let Ok(segments) = Segments::new(frame, parcel.offload) else {
            return self.stats.drop_bad_offload += 1;
        };
        let too_big = segments.next_len().is_some_and(|len| fragment::too_big(len, mtu));
        let df = match classify(frame) {
            Class::Ipv4 { df: true } if too_big => {
                return self.answer_too_big(fragment::frag_needed, mtu, parcel, table, now, io);
            }
            Class::Ipv4 { df: true } => true,
            // Packets of IPv6 are not fragmented on their way, and their senders can be told: an improvement on the
            // original, which leaves all of them to the kernel's fragmentation. No link may ask for less than 1280 bytes.
            Class::Ipv6 if too_big && mtu >= IPV6_MIN_MTU && !parcel.flood => {
                return self.answer_too_big(fragment::packet_too_big, mtu, parcel, table, now, io);
            }
            Class::Ipv6 => !too_big,
            Class::Ipv4 { df: false } if !stack_fragments => {
                if too_big {
                    return self.send_fragments(index, to, segments, mtu, parcel, io);
                }
                true
            }
            Class::Ipv4 { df: false } | Class::Other | Class::Control => false,
            Class::TooShort => return self.stats.drop_short_frame += 1,
        };
        self.send_segments(index, Destination { conn: self.all[index].conn(), to, df }, segments, parcel, io);
    }

    /// Gives a frame to the local bridge. Where hosts have different MTUs it may be longer than the bridge takes: then it is
    /// cut, or its source is told, as on a path that is too narrow. (2.8.1 lets the kernel drop it.)
    fn deliver(&mut self, parcel: Parcel, tables: &Tables, now: Instant, io: &mut impl Io) {
        let (frame, mtu, table) = (parcel.frame, tables.local_mtu, &tables.forwarding);
        let Some(ethernet) = Ethernet::parse(frame) else { return self.stats.drop_short_frame += 1 };
        let tag = if ethernet.type_or_length() == ETHERTYPE_VLAN { VLAN_TAG } else { 0 };
        if !fragment::too_big(frame.len().saturating_sub(tag), mtu) {
            self.stats.injected += 1;
            return io.inject(frame);
        }
        // Only the peer that has the destination answers a frame that was flooded to all.
        let is_ours = table.macs.lookup(ethernet.dst()) == Some(table.own);
        let make = match classify(frame) {
            Class::Ipv4 { df: false } => return self.deliver_fragments(frame, mtu, io),
            Class::Ipv4 { df: true } if is_ours => fragment::frag_needed,
            Class::Ipv6 if is_ours && mtu >= IPV6_MIN_MTU => fragment::packet_too_big,
            _ => return self.stats.drop_too_big += 1,
        };
        let mut answer = [0; MAX_ICMP_FRAME];
        let limit = u16::try_from(mtu).unwrap_or(u16::MAX);
        let Some(answer) = make(frame, limit, &mut answer).and_then(|len| answer.get(..len)) else {
            return self.stats.drop_too_big += 1;
        };
        let Some(via) = table.routes.unicast(parcel.src) else {
            return self.stats.switch_drops[DropReason::NoRoute as usize] += 1;
        };
        self.stats.too_big_answers += 1;
        // As a flood, so that an answer is never answered, whatever the path carries.
        let parcel =
            Parcel { src: table.own, dst: parcel.src, frame: answer, offload: Offload::NONE, flood: true };
        self.send(via, parcel, table, now, io);
    }

    fn deliver_fragments(&mut self, frame: &[u8], mtu: usize, io: &mut impl Io) {
        let Ok(mut fragments) = Fragments::new(frame, mtu) else {
            return self.stats.drop_unfragmentable += 1;
        };
        self.stats.fragmented += 1;
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(len) = fragments.next_len() {
            scratch.resize(scratch.len().max(len), 0);
            if fragments.next_into(&mut scratch).is_none() {
                break;
            }
            self.stats.injected += 1;
            io.inject(&scratch[..len]);
        }
        self.scratch = scratch;
    }

    /// Tells the source of a frame what the path carries, by a frame that is treated as if the destination had sent it.
    fn answer_too_big(
        &mut self,
        make: fn(&[u8], u16, &mut [u8]) -> Option<usize>,
        mtu: usize,
        parcel: Parcel,
        table: &ForwardingTable,
        now: Instant,
        io: &mut impl Io,
    ) {
        if parcel.flood {
            return self.stats.drop_too_big_flood += 1;
        }
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let mut answer = [0; MAX_ICMP_FRAME];
        let Some(answer) = make(parcel.frame, mtu, &mut answer).and_then(|len| answer.get(..len)) else {
            return self.stats.drop_too_big += 1;
        };
        self.stats.too_big_answers += 1;
        let (src, dst) = (parcel.dst, parcel.src);
        let (verdict, _) = peer_frame(table, src, dst, answer, now);
        match verdict {
            PeerVerdict::Deliver { .. } => {
                self.stats.injected += 1;
                io.inject(answer);
            }
            PeerVerdict::Relay { via } => {
                // As a flood, so that an answer is never answered, whatever the path carries.
                let parcel = Parcel { src, dst, frame: answer, offload: Offload::NONE, flood: true };
                self.send(via, parcel, table, now, io);
            }
            PeerVerdict::Drop(reason) => self.stats.switch_drops[reason as usize] += 1,
        }
    }

    /// Fragments each segment and sends the pieces with the don't-fragment bit.
    fn send_fragments(
        &mut self,
        index: usize,
        to: SocketAddr,
        mut segments: Segments,
        mtu: usize,
        parcel: Parcel,
        io: &mut impl Io,
    ) {
        let to = Destination { conn: self.all[index].conn(), to, df: true };
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(len) = segments.next_len() {
            scratch.resize(scratch.len().max(len), 0);
            if segments.next_into(&mut scratch).is_none() {
                break;
            }
            match Fragments::new(&scratch[..len], mtu) {
                Ok(mut fragments) => {
                    self.stats.fragmented += 1;
                    while let Some(len) = fragments.next_len() {
                        if !self.gather(index, to, len, parcel, |space| fragments.next_into(space), io) {
                            break;
                        }
                    }
                }
                Err(_) => self.stats.drop_unfragmentable += 1,
            }
        }
        self.scratch = scratch;
    }

    fn send_segments(
        &mut self,
        index: usize,
        to: Destination,
        mut segments: Segments,
        parcel: Parcel,
        io: &mut impl Io,
    ) {
        if segments.remaining() == 1 {
            let len = segments.next_len().unwrap_or_default();
            self.gather(index, to, len, parcel, |space| segments.next_into(space), io);
            return;
        }
        self.close(index, to.df, io);
        while let Some(len) = segments.next_len()
            && self.gather(index, to, len, parcel, |space| segments.next_into(space), io)
        {
            self.close(index, to.df, io);
        }
    }

    /// Adds a frame of `len` bytes, that `write` puts down, to the datagram that is being filled for `to`, or to a new one.
    /// `false` if it was dropped.
    fn gather(
        &mut self,
        index: usize,
        to: Destination,
        len: usize,
        parcel: Parcel,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
        io: &mut impl Io,
    ) -> bool {
        let max_payload = self.all[index].neighbour.path.max_payload.min(MAX_DATAGRAM);
        if let Some((_, draft)) = &self.all[index].open[usize::from(to.df)] {
            let lane = &self.all[index];
            if lane.sealer.sealed_len_with(draft, len) > max_payload || draft.records() >= MAX_RECORDS {
                self.close(index, to.df, io);
            }
        }
        let Lanes { all, open: dirty, stats, .. } = self;
        let Lane { sealer, open, listed, .. } = &mut all[index];
        let (slot, draft) = match &mut open[usize::from(to.df)] {
            Some((slot, draft)) => (*slot, draft),
            none => {
                let draft = sealer.begin();
                let needed = sealer.sealed_len_with(&draft, len);
                let limit = if to.df { max_payload } else { MAX_DATAGRAM };
                if needed > limit {
                    stats.drop_oversize += 1;
                    return false;
                }
                if !std::mem::replace(listed, true) {
                    dirty.push(index);
                }
                let slot = io.reserve(to, needed.max(max_payload));
                (slot, &mut none.insert((slot, draft)).1)
            }
        };
        let buf = io.buffer(slot);
        let Some(len) = sealer.space(draft, buf).and_then(write) else {
            debug_assert!(false, "{len} bytes were reserved, the frame did not fit");
            return false;
        };
        sealer.add(draft, buf, parcel.src, parcel.dst, len);
        stats.frames_out += 1;
        true
    }

    /// Seals and commits the datagram that is being filled.
    fn close(&mut self, index: usize, df: bool, io: &mut impl Io) {
        let lane = &mut self.all[index];
        let Some((slot, draft)) = lane.open[usize::from(df)].take() else { return };
        if draft.records() == 0 {
            return io.commit(slot, 0);
        }
        let records = draft.records() as u64;
        match lane.sealer.finish(draft, io.buffer(slot), df) {
            Ok(len) => {
                io.commit(slot, len);
                self.stats.datagrams_out += 1;
            }
            Err(_) => {
                io.commit(slot, 0);
                self.stats.drop_exhausted += records;
            }
        }
    }

    fn flush(&mut self, io: &mut impl Io) {
        while let Some(index) = self.open.pop() {
            self.all[index].listed = false;
            self.close(index, false, io);
            self.close(index, true, io);
        }
    }
}

impl Lane {
    fn new(neighbour: &Arc<Neighbour>) -> Lane {
        let session = &neighbour.session;
        Lane {
            neighbour: neighbour.clone(),
            sealer: Sealer::new(session.clone()),
            opener: Opener::new(session.clone()),
            open: [None, None],
            listed: false,
            heartbeats: TokenBucket::new(CONTROL_BURST, CONTROL_INTERVAL),
            probes: TokenBucket::new(CONTROL_BURST, CONTROL_INTERVAL),
        }
    }

    fn conn(&self) -> ConnectionId {
        self.neighbour.session.conn()
    }
}

/// Limits the control frames of a neighbour that are passed on. A search for the path MTU sends some 30 sizes at once, three
/// times.
const CONTROL_BURST: u32 = 128;
const CONTROL_INTERVAL: Duration = Duration::from_millis(10);

/// Frames in one datagram at most (docs/spec/data-plane.md 4.8).
const MAX_RECORDS: usize = 100;

/// Bytes that an 802.1Q tag adds to a frame; a bridge's MTU does not count them.
const VLAN_TAG: usize = 4;

/// Bytes; RFC 8200 section 5.
const IPV6_MIN_MTU: usize = 1280;
