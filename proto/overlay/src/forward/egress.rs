//! Carries out verdicts: sends frames to neighbours and passes them to the local bridge.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weave_switch::fragment::{self, Fragments, MAX_ICMP_FRAME};
use weave_switch::frame::{Class, ETHERTYPE_VLAN, Ethernet, classify};
use weave_switch::{DropReason, ForwardingTable, Offload, PeerVerdict, Segments, peer_frame};
use weave_types::{ConnectionId, Instant, PeerName, TokenBucket};

use super::stats::Stats;
use super::tables::{Neighbour, Tables};
use crate::event::ForwarderEvent;
use crate::io::{Destination, Io, Slot};
use crate::liveness::LivenessFrame;
use crate::select::Overlay;
use crate::udp::{
    ControlFrame, DatagramBuilder, MAX_DATAGRAM, OpenError, Opener, Records, Sealer, Session, UdpPath, sender,
};
use crate::warp;

/// Maximum number of frames in one datagram (docs/spec/data-plane.md 4.8).
const MAX_RECORDS: usize = 100;
/// Bytes that an 802.1Q tag adds to a frame. The MTU of a bridge does not count them.
const VLAN_TAG: usize = 4;
/// Bytes that every IPv6 link must carry (RFC 8200 section 5).
const IPV6_MIN_MTU: usize = 1280;
/// Rate limit of the control frames of one neighbour, separate for heartbeats and probes. A search for the path MTU sends
/// about 30 sizes at the same time, three times.
const CONTROL_BURST: u32 = 128;
const CONTROL_INTERVAL: Duration = Duration::from_millis(10);

/// The state of all neighbours and the counters of one [`Forwarder`](super::Forwarder).
#[derive(Debug)]
pub(super) struct Egress {
    /// State of each neighbour, in the order of [`Tables::neighbours`].
    neighbours: Vec<NeighbourState>,
    /// The neighbours by the index that warp's datagrams have, sorted.
    by_index: Vec<(u32, usize)>,
    /// Indices of the neighbours that may have open datagrams.
    unflushed: Vec<usize>,
    /// The lane of warp that is sent on.
    lane: usize,
    pub(super) stats: Stats,
    /// Buffer for frames that are copied before they are fragmented.
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct NeighbourState {
    neighbour: Arc<Neighbour>,
    sleeve: Channel,
    warp: Option<Channel>,
    /// Whether [`Egress::unflushed`] contains this neighbour.
    listed: bool,
}

/// The state of one session.
#[derive(Debug)]
struct Channel {
    sealer: Sealer,
    opener: Opener,
    /// The datagram that is being filled, without (0) and with (1) the don't-fragment bit.
    open: [Option<(Slot, DatagramBuilder)>; 2],
    heartbeats: TokenBucket,
    probes: TokenBucket,
}

/// Which session of a neighbour a datagram belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelId {
    /// Index of the neighbour.
    neighbour: usize,
    warp: bool,
}

/// A frame for a neighbour or the local bridge.
#[derive(Clone, Copy)]
pub(super) struct OutgoingFrame<'f> {
    pub(super) src: PeerName,
    pub(super) dst: PeerName,
    pub(super) frame: &'f [u8],
    pub(super) offload: Offload,
    /// Whether this is a copy of a flooded frame. Those are never answered.
    pub(super) flood: bool,
}

/// [`fragment::frag_needed`] or [`fragment::packet_too_big`].
type MakeAnswer = fn(&[u8], u16, &mut [u8]) -> Option<usize>;

/// Writes the ICMP message that reports `mtu` to the source of `frame`; `None` if no answer is allowed.
fn write_answer<'b>(
    make: MakeAnswer,
    frame: &[u8],
    mtu: usize,
    buf: &'b mut [u8; MAX_ICMP_FRAME],
) -> Option<&'b [u8]> {
    let len = make(frame, u16::try_from(mtu).unwrap_or(u16::MAX), buf)?;
    buf.get(..len)
}

impl NeighbourState {
    fn new(neighbour: &Arc<Neighbour>, lane: usize) -> NeighbourState {
        NeighbourState {
            neighbour: neighbour.clone(),
            sleeve: Channel::new(&neighbour.session, lane),
            warp: neighbour.warp.as_ref().map(|(session, _)| Channel::new(session, lane)),
            listed: false,
        }
    }

    fn conn(&self) -> ConnectionId {
        self.neighbour.session.conn()
    }

    /// Takes over a newer description of the neighbour, with the same session of sleeve. A session that remains keeps its state.
    fn update(self, neighbour: &Arc<Neighbour>, lane: usize) -> NeighbourState {
        let warp = neighbour.warp.as_ref().map(|(session, _)| match self.warp {
            Some(channel) if Arc::ptr_eq(channel.opener.session(), session) => channel,
            _ => Channel::new(session, lane),
        });
        NeighbourState { neighbour: neighbour.clone(), warp, ..self }
    }

    /// How frames are sent to the neighbour.
    fn path(&self) -> UdpPath {
        match &self.neighbour.warp {
            Some((_, path)) if self.neighbour.overlay == Overlay::Warp => *path,
            _ => self.neighbour.path,
        }
    }

    /// The session that seals frames to the neighbour.
    fn sending(&mut self) -> &mut Channel {
        match &mut self.warp {
            Some(channel) if self.neighbour.overlay == Overlay::Warp => channel,
            _ => &mut self.sleeve,
        }
    }

    fn channel(&mut self, warp: bool) -> &mut Channel {
        match &mut self.warp {
            Some(channel) if warp => channel,
            _ => &mut self.sleeve,
        }
    }
}

impl Channel {
    fn new(session: &Arc<Session>, lane: usize) -> Channel {
        Channel {
            sealer: Sealer::new(session.clone()).on_lane(lane),
            opener: Opener::new(session.clone()),
            open: [None, None],
            heartbeats: TokenBucket::new(CONTROL_BURST, CONTROL_INTERVAL),
            probes: TokenBucket::new(CONTROL_BURST, CONTROL_INTERVAL),
        }
    }
}

impl Egress {
    pub(super) fn new(neighbours: &[Arc<Neighbour>], lane: usize) -> Egress {
        let mut egress = Egress {
            neighbours: Vec::new(),
            by_index: Vec::new(),
            unflushed: Vec::new(),
            lane,
            stats: Stats::default(),
            scratch: Vec::new(),
        };
        egress.set_neighbours(neighbours);
        egress
    }

    /// Replaces the neighbours; those with the same session keep their state. No datagram may be open.
    pub(super) fn set_neighbours(&mut self, neighbours: &[Arc<Neighbour>]) {
        let (mut old, lane) = (std::mem::take(&mut self.neighbours), self.lane);
        let state = |neighbour: &Arc<Neighbour>| match old
            .iter()
            .position(|state| Arc::ptr_eq(&state.neighbour.session, &neighbour.session))
        {
            Some(at) => old.swap_remove(at).update(neighbour, lane),
            None => NeighbourState::new(neighbour, lane),
        };
        self.neighbours = neighbours.iter().map(state).collect();
        let index = |(at, state): (usize, &NeighbourState)| {
            Some((state.neighbour.warp.as_ref()?.0.keys()?.own_index(), at))
        };
        self.by_index = self.neighbours.iter().enumerate().filter_map(index).collect();
        self.by_index.sort_unstable();
    }

    /// The session that a datagram seems to belong to: that of warp with the index in the header, or that of sleeve with the name of the
    /// sender.
    pub(super) fn find_session(&self, datagram: &[u8]) -> Option<ChannelId> {
        if let Some(index) = warp::receiver(datagram)
            && let Ok(at) = self.by_index.binary_search_by_key(&index, |(index, _)| *index)
        {
            return Some(ChannelId { neighbour: self.by_index[at].1, warp: true });
        }
        Some(ChannelId { neighbour: self.find(sender(datagram)?)?, warp: false })
    }

    /// The neighbour that has the session.
    pub(super) fn name(&self, id: ChannelId) -> PeerName {
        self.neighbours[id.neighbour].neighbour.session.remote()
    }

    /// The index of a neighbour.
    pub(super) fn find(&self, name: PeerName) -> Option<usize> {
        self.neighbours.binary_search_by_key(&name, |state| state.neighbour.session.remote()).ok()
    }

    /// Opens a datagram of a neighbour. Returns whether the connection is confirmed, and the records.
    pub(super) fn open_datagram<'d>(
        &mut self,
        id: ChannelId,
        datagram: &'d mut [u8],
    ) -> Result<(bool, Records<'d>), OpenError> {
        let state = &mut self.neighbours[id.neighbour];
        Ok((state.neighbour.confirmed, state.channel(id.warp).opener.open(datagram)?))
    }

    /// A datagram of the neighbour has been opened. Whether it had data.
    pub(super) fn note_received(&mut self, id: ChannelId, has_data: bool, io: &mut impl Io) {
        let session = self.neighbours[id.neighbour].channel(id.warp).opener.session();
        if session.traffic().note_received(has_data) {
            io.event(ForwarderEvent::Traffic { conn: session.conn(), overlay: session.overlay() });
        }
    }

    pub(super) fn count_open_error(&mut self, error: OpenError) {
        match error {
            OpenError::TooShort { .. } => self.stats.drop_short_datagram += 1,
            OpenError::Forged => self.stats.drop_forged += 1,
            OpenError::Replayed => self.stats.drop_replayed += 1,
            OpenError::NoSequence { .. } | OpenError::Truncated { .. } | OpenError::Trailing { .. } => {
                self.stats.drop_malformed += 1;
            }
        }
    }

    /// Reports a control frame of a neighbour, unless it is malformed or exceeds the rate limit.
    pub(super) fn report_control_frame(
        &mut self,
        id: ChannelId,
        frame: ControlFrame,
        from: SocketAddr,
        now: Instant,
        io: &mut impl Io,
    ) {
        let state = self.neighbours[id.neighbour].channel(id.warp);
        let session = state.opener.session();
        let bucket = match frame {
            ControlFrame::Malformed => return self.stats.drop_special += 1,
            ControlFrame::Heartbeat(uid) | ControlFrame::Liveness(LivenessFrame { uid, .. })
                if uid != session.uid() =>
            {
                return self.stats.drop_special += 1;
            }
            // Separate, so that probes cannot displace heartbeats.
            ControlFrame::Heartbeat(_) | ControlFrame::Liveness(_) => &mut state.heartbeats,
            ControlFrame::FragmentationTest
            | ControlFrame::MtuTest { .. }
            | ControlFrame::SegmentedProbe { .. } => &mut state.probes,
        };
        if !bucket.try_take(now) {
            return self.stats.drop_special_rate += 1;
        }
        io.event(ForwarderEvent::Control { conn: session.conn(), overlay: session.overlay(), frame, from });
    }

    /// Sends a frame to the neighbour `via`: whole, in segments, in fragments, or not at all, with an ICMP answer to its
    /// source (docs/spec/data-plane.md 4.7).
    pub(super) fn send(
        &mut self,
        via: PeerName,
        outgoing: OutgoingFrame,
        table: &ForwardingTable,
        now: Instant,
        io: &mut impl Io,
    ) {
        let Some(index) = self.find(via) else {
            return self.stats.drop_no_connection += 1;
        };
        let path = self.neighbours[index].path();
        let UdpPath { local: from, remote: Some(to), mtu, stack_fragments, batched, .. } = path else {
            return self.stats.drop_awaiting_contact += 1;
        };
        let conn = self.neighbours[index].conn();
        let destination = |df| Destination { conn, from, to, df, batched };
        let frame = outgoing.frame;
        let Ok(segments) = Segments::new(frame, outgoing.offload) else {
            return self.stats.drop_bad_offload += 1;
        };
        let too_big = segments.next_len().is_some_and(|len| fragment::too_big(len, mtu));
        let df = match classify(frame) {
            Class::Ipv4 { df: true } if too_big => {
                return self.answer_too_big(fragment::frag_needed, mtu, outgoing, table, now, io);
            }
            Class::Ipv4 { df: true } => true,
            // IPv6 routers never fragment, so the source is notified. 2.8.1 sends all IPv6 packets without the don't-fragment
            // bit instead. A source need not accept an MTU below 1280 bytes.
            Class::Ipv6 if too_big && mtu >= IPV6_MIN_MTU && !outgoing.flood => {
                return self.answer_too_big(fragment::packet_too_big, mtu, outgoing, table, now, io);
            }
            Class::Ipv6 => !too_big,
            Class::Ipv4 { df: false } if !stack_fragments => {
                if too_big {
                    return self.send_fragments(index, destination(true), segments, mtu, outgoing, io);
                }
                true
            }
            Class::Ipv4 { df: false } | Class::Other | Class::Control => false,
            Class::TooShort => return self.stats.drop_short_frame += 1,
        };
        self.send_segments(index, destination(df), segments, outgoing, io);
    }

    /// Passes a frame to the local bridge. If hosts have different MTUs, the frame may exceed the bridge's: then it is
    /// fragmented or its source is notified, as for a path MTU. (2.8.1 lets the kernel drop it.)
    pub(super) fn deliver(
        &mut self,
        outgoing: OutgoingFrame,
        tables: &Tables,
        now: Instant,
        io: &mut impl Io,
    ) {
        let (frame, mtu, table) = (outgoing.frame, tables.local_mtu, &tables.forwarding);
        let Some(ethernet) = Ethernet::parse(frame) else { return self.stats.drop_short_frame += 1 };
        let tag = if ethernet.type_or_length() == ETHERTYPE_VLAN { VLAN_TAG } else { 0 };
        if !fragment::too_big(frame.len().saturating_sub(tag), mtu) {
            self.stats.injected += 1;
            return io.inject(frame);
        }
        // Of the peers that receive a flooded frame, only the one with the destination answers.
        let is_local = table.macs.lookup(ethernet.dst()) == Some(table.own);
        let make: MakeAnswer = match classify(frame) {
            Class::Ipv4 { df: false } => return self.deliver_fragments(frame, mtu, io),
            Class::Ipv4 { df: true } if is_local => fragment::frag_needed,
            Class::Ipv6 if is_local && mtu >= IPV6_MIN_MTU => fragment::packet_too_big,
            _ => return self.stats.drop_too_big += 1,
        };
        let mut buf = [0; MAX_ICMP_FRAME];
        let Some(answer) = write_answer(make, frame, mtu, &mut buf) else {
            return self.stats.drop_too_big += 1;
        };
        let Some(via) = table.routes.unicast(outgoing.src) else {
            return self.stats.switch_drops[DropReason::NoRoute as usize] += 1;
        };
        self.stats.too_big_answers += 1;
        // Marked as a flood, so that the answer itself is never answered.
        let outgoing = OutgoingFrame {
            src: table.own,
            dst: outgoing.src,
            frame: answer,
            offload: Offload::NONE,
            flood: true,
        };
        self.send(via, outgoing, table, now, io);
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

    /// Reports the path MTU to the source of a frame, by an ICMP message that is forwarded as if the destination had sent it.
    fn answer_too_big(
        &mut self,
        make: MakeAnswer,
        mtu: usize,
        outgoing: OutgoingFrame,
        table: &ForwardingTable,
        now: Instant,
        io: &mut impl Io,
    ) {
        if outgoing.flood {
            return self.stats.drop_too_big_flood += 1;
        }
        let mut buf = [0; MAX_ICMP_FRAME];
        let Some(answer) = write_answer(make, outgoing.frame, mtu, &mut buf) else {
            return self.stats.drop_too_big += 1;
        };
        self.stats.too_big_answers += 1;
        let (src, dst) = (outgoing.dst, outgoing.src);
        let (verdict, _) = peer_frame(table, src, dst, answer, now);
        match verdict {
            PeerVerdict::Deliver { .. } => {
                self.stats.injected += 1;
                io.inject(answer);
            }
            PeerVerdict::Relay { via } => {
                // Marked as a flood, so that the answer itself is never answered.
                let outgoing = OutgoingFrame { src, dst, frame: answer, offload: Offload::NONE, flood: true };
                self.send(via, outgoing, table, now, io);
            }
            PeerVerdict::Drop(reason) => self.stats.switch_drops[reason as usize] += 1,
        }
    }

    /// Fragments each segment and sends the fragments with the don't-fragment bit.
    fn send_fragments(
        &mut self,
        index: usize,
        to: Destination,
        mut segments: Segments,
        mtu: usize,
        outgoing: OutgoingFrame,
        io: &mut impl Io,
    ) {
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
                        if !self.add_frame(index, to, len, outgoing, |space| fragments.next_into(space), io) {
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
        outgoing: OutgoingFrame,
        io: &mut impl Io,
    ) {
        if segments.remaining() == 1 {
            let len = segments.next_len().unwrap_or_default();
            self.add_frame(index, to, len, outgoing, |space| segments.next_into(space), io);
            return;
        }
        self.close(index, to.df, io);
        while let Some(len) = segments.next_len()
            && self.add_frame(index, to, len, outgoing, |space| segments.next_into(space), io)
        {
            self.close(index, to.df, io);
        }
    }

    /// Adds a frame of `len` bytes, which `write` writes, to the open datagram for `to` or to a new one. Returns `false` if
    /// the frame was dropped.
    fn add_frame(
        &mut self,
        index: usize,
        to: Destination,
        len: usize,
        outgoing: OutgoingFrame,
        write: impl FnOnce(&mut [u8]) -> Option<usize>,
        io: &mut impl Io,
    ) -> bool {
        let max_payload = self.neighbours[index].path().max_payload.min(MAX_DATAGRAM);
        let Channel { sealer, open, .. } = self.neighbours[index].sending();
        if let Some((_, builder)) = &open[usize::from(to.df)]
            && (sealer.sealed_len_with(builder, len) > max_payload || builder.records() >= MAX_RECORDS)
        {
            self.close(index, to.df, io);
        }
        let Egress { neighbours, unflushed, stats, .. } = self;
        let is_listed = std::mem::replace(&mut neighbours[index].listed, true);
        if !is_listed {
            unflushed.push(index);
        }
        let Channel { sealer, open, .. } = neighbours[index].sending();
        let (slot, builder) = match &mut open[usize::from(to.df)] {
            Some((slot, builder)) => (*slot, builder),
            none => {
                let builder = sealer.begin();
                let needed = sealer.sealed_len_with(&builder, len);
                let limit = if to.df { max_payload } else { MAX_DATAGRAM };
                if needed > limit {
                    stats.drop_oversize += 1;
                    return false;
                }
                let slot = io.reserve(to, needed.max(max_payload));
                (slot, &mut none.insert((slot, builder)).1)
            }
        };
        let buf = io.buffer(slot);
        let Some(len) = sealer.space(builder, buf).and_then(write) else {
            debug_assert!(false, "{len} bytes were reserved, the frame did not fit");
            return false;
        };
        sealer.add(builder, buf, outgoing.src, outgoing.dst, len);
        stats.frames_out += 1;
        true
    }

    /// Seals and commits the open datagram, if there is one.
    fn close(&mut self, index: usize, df: bool, io: &mut impl Io) {
        let Channel { sealer, open, .. } = self.neighbours[index].sending();
        let Some((slot, builder)) = open[usize::from(df)].take() else { return };
        if builder.records() == 0 {
            return io.commit(slot, 0);
        }
        let records = builder.records() as u64;
        match sealer.finish(builder, io.buffer(slot), df) {
            Ok(len) => {
                io.commit(slot, len);
                self.stats.datagrams_out += 1;
                let session = sealer.session();
                if session.traffic().note_sent() {
                    io.event(ForwarderEvent::Traffic { conn: session.conn(), overlay: session.overlay() });
                }
            }
            Err(_) => {
                io.commit(slot, 0);
                self.stats.drop_exhausted += records;
            }
        }
    }

    pub(super) fn flush(&mut self, io: &mut impl Io) {
        while let Some(index) = self.unflushed.pop() {
            self.neighbours[index].listed = false;
            self.close(index, false, io);
            self.close(index, true, io);
        }
    }
}
