//! Merging of received TCP segments into super-frames for the local bridge: the inverse of [`segment`](crate::segment).
//!
//! A receiving kernel handles one frame of 64 KB much faster than 48 small ones. It does not verify the checksum of a
//! super-frame, which the virtio header marks as "still to be computed". Therefore the checksum of each segment is verified
//! before it is merged, and segments are merged only if [`Segments`](crate::Segments) would restore them: consecutive
//! segments of one flow with equal headers, all of one size except for a shorter last one.

use std::fmt;

use crate::checksum::Sum;
use crate::frame::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6};
use crate::frame::{Network, PROTO_TCP, Tcp, be16, be32, transport};
use crate::offload::{Csum, Gso, GsoKind, Offload};

/// Number of flows that are merged at the same time. Datagrams arrive in bursts of few flows, and a search through eight is
/// cheap.
const FLOWS: usize = 8;

/// Maximum length of a super-frame, Ethernet header included.
pub const MAX_FRAME: usize = 65535;

/// Merges consecutive segments of TCP flows. One per injecting thread; all memory is allocated at construction.
///
/// Frames of one TCP flow keep their order; frames of different flows and of other protocols may overtake each other within a
/// batch.
pub struct Coalescer {
    flows: [Flow; FLOWS],
    /// Number of frames, used to find the flow with the oldest frame.
    clock: u64,
}

/// A super-frame that is being built.
struct Flow {
    /// Unchanged headers of the first segment, then the payload.
    buf: Box<[u8]>,
    /// Zero if the slot is free.
    len: usize,
    l3: usize,
    l4: usize,
    payload: usize,
    v4: bool,
    /// Payload of the first segment.
    mss: usize,
    segments: u16,
    next_seq: u32,
    /// Value of [`Coalescer::clock`] at the latest segment.
    touched: u64,
}

/// A TCP segment and the offsets of its headers.
struct Segment<'a> {
    frame: &'a [u8],
    network: Network<'a>,
    tcp: Tcp<'a>,
    l3: usize,
    l4: usize,
    /// Whether segmentation could restore it: no IP options, no special flags, no padding. The checksum is checked later.
    plain: bool,
}

enum Parsed<'a> {
    /// The frame is not TCP.
    NotTcp,
    /// Possibly part of a TCP flow, but a fragment or invalid.
    UnknownFlow,
    Tcp(Segment<'a>),
}

impl Coalescer {
    /// Allocates 512 KiB, all memory that it uses.
    pub fn new() -> Coalescer {
        Coalescer { flows: std::array::from_fn(|_| Flow::new()), clock: 0 }
    }

    /// Adds one complete frame. Calls `inject` for each frame that must go to the bridge now: the frame itself if it cannot be
    /// merged, and finished super-frames.
    pub fn push(&mut self, frame: &[u8], inject: &mut impl FnMut(&[u8], Offload)) {
        let segment = match parse(frame) {
            Parsed::NotTcp => return inject(frame, Offload::NONE),
            Parsed::UnknownFlow => {
                // Its flow has the same MAC addresses.
                self.emit_where(|flow| flow.buf[..12] == frame[..12], inject);
                return inject(frame, Offload::NONE);
            }
            Parsed::Tcp(segment) => segment,
        };
        self.clock += 1;
        let known = self.flows.iter().position(|flow| flow.len != 0 && flow.is_of(&segment));
        // A segment with PSH ends a super-frame; alone it is not held back. The checksum is the most expensive check.
        let useful = segment.plain && (known.is_some() || !segment.psh());
        let mergeable = useful && segment.checksums_valid();
        if let Some(flow) = known.map(|i| &mut self.flows[i]) {
            if mergeable && flow.accepts(&segment) {
                let full = flow.append(&segment, self.clock);
                if full {
                    flow.emit(inject);
                }
                return;
            }
            flow.emit(inject);
        }
        if mergeable && !segment.psh() {
            self.free_flow(known, inject).start(&segment);
        } else {
            inject(frame, Offload::NONE);
        }
    }

    /// Injects all frames that are held back. To be called at the end of each batch.
    pub fn flush(&mut self, inject: &mut impl FnMut(&[u8], Offload)) {
        self.emit_where(|_| true, inject);
    }

    fn emit_where(&mut self, which: impl Fn(&Flow) -> bool, inject: &mut impl FnMut(&[u8], Offload)) {
        for flow in &mut self.flows {
            if flow.len != 0 && which(flow) {
                flow.emit(inject);
            }
        }
    }

    /// Frees a slot: that of the same flow, or a free one, or that of the flow with the oldest segment.
    fn free_flow(&mut self, known: Option<usize>, inject: &mut impl FnMut(&[u8], Offload)) -> &mut Flow {
        let oldest = || {
            let ages = self.flows.iter().enumerate();
            ages.min_by_key(|(_, flow)| if flow.len == 0 { 0 } else { flow.touched }).map_or(0, |(i, _)| i)
        };
        let i = known.unwrap_or_else(oldest);
        let flow = &mut self.flows[i];
        if flow.len != 0 {
            flow.emit(inject);
        }
        flow.touched = self.clock;
        flow
    }
}

impl Default for Coalescer {
    fn default() -> Coalescer {
        Coalescer::new()
    }
}

impl fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.flows.iter().filter(|flow| flow.len != 0).count();
        f.debug_struct("Coalescer").field("held", &held).finish_non_exhaustive()
    }
}

fn parse(frame: &[u8]) -> Parsed<'_> {
    let Some(network) = Ethernet::parse(frame).map(|e| e.network()) else { return Parsed::NotTcp };
    if let Some((ethertype, _)) = network
        && ethertype != ETHERTYPE_IPV4
        && ethertype != ETHERTYPE_IPV6
    {
        return Parsed::NotTcp;
    }
    let Some(found) = transport(frame) else { return Parsed::UnknownFlow };
    if found.protocol != PROTO_TCP {
        return Parsed::NotTcp;
    }
    let Some(tcp) = Tcp::parse(&frame[found.l4..found.end]) else { return Parsed::UnknownFlow };
    let (bare, sized) = match found.network {
        Network::V4(ip) => (ip.header_len() == Ipv4::HEADER, ip.total_len() != 0),
        Network::V6(ip) => (found.l4 - found.l3 == Ipv6::HEADER, ip.payload_len() != 0),
    };
    let flags = frame[found.l4 + 12] & 0x0f == 0 && tcp.flags() & !Tcp::PSH == Tcp::ACK;
    let unpadded = found.end == frame.len() && frame.len() <= MAX_FRAME;
    let plain = bare && sized && flags && unpadded && !tcp.payload().is_empty();
    Parsed::Tcp(Segment { frame, network: found.network, tcp, l3: found.l3, l4: found.l4, plain })
}

impl Segment<'_> {
    fn psh(&self) -> bool {
        self.tcp.flags() & Tcp::PSH != 0
    }

    fn payload_offset(&self) -> usize {
        self.l4 + self.tcp.header_len()
    }

    fn checksums_valid(&self) -> bool {
        let segment = &self.frame[self.l4..];
        let pseudo = match self.network {
            Network::V4(ip) if !Sum::ZERO.bytes(ip.header()).is_valid() => return false,
            Network::V4(ip) => Sum::ZERO.pseudo_v4(ip.src(), ip.dst(), PROTO_TCP, segment.len() as u16),
            Network::V6(ip) => Sum::ZERO.pseudo_v6(ip.src(), ip.dst(), PROTO_TCP, segment.len() as u32),
        };
        pseudo.bytes(segment).is_valid()
    }
}

impl Flow {
    fn new() -> Flow {
        Flow {
            buf: vec![0; MAX_FRAME].into_boxed_slice(),
            len: 0,
            l3: 0,
            l4: 0,
            payload: 0,
            v4: false,
            mss: 0,
            segments: 0,
            next_seq: 0,
            touched: 0,
        }
    }

    /// Whether the segment belongs to this connection and direction: same Ethernet header with tags, IP
    /// addresses and ports.
    fn is_of(&self, segment: &Segment<'_>) -> bool {
        let same = |from: usize, to: usize| self.buf.get(from..to) == segment.frame.get(from..to);
        let l3 = self.l3;
        let addresses = if self.v4 { same(l3 + 12, l3 + 20) } else { same(l3 + 8, l3 + 40) };
        let ports = self.buf.get(self.l4..self.l4 + 4) == segment.frame.get(segment.l4..segment.l4 + 4);
        l3 == segment.l3 && same(0, l3) && addresses && ports
    }

    /// Whether a plain segment of this flow continues it and segmentation would restore it.
    fn accepts(&self, segment: &Segment<'_>) -> bool {
        let (mine, its) = (&self.buf[self.l3..self.payload], &segment.frame[segment.l3..]);
        let l4 = self.l4 - self.l3;
        let same = |from: usize, to: usize| mine.get(from..to) == its.get(from..to);
        let same_ip_header = if self.v4 {
            // Segmentation counts the identification up. With the don't-fragment bit it has no meaning (RFC 6864 section 4.1).
            let df = be16(mine, 6) & Ipv4::DF != 0;
            let counted = be16(its, 4) == be16(mine, 4).wrapping_add(self.segments);
            same(0, 2) && same(6, 10) && (df || counted)
        } else {
            same(0, 4) && same(6, 8)
        };
        let same_tcp_header = self.payload - self.l4 == segment.tcp.header_len()
            // Acknowledgement number and data offset; window; urgent pointer and options.
            && same(l4 + 8, l4 + 13)
            && same(l4 + 14, l4 + 16)
            && same(l4 + 18, mine.len());
        let len = segment.tcp.payload().len();
        let fits = len <= self.mss && self.len + len <= self.buf.len();
        same_ip_header && same_tcp_header && fits && segment.tcp.seq() == self.next_seq
    }

    fn start(&mut self, segment: &Segment<'_>) {
        self.buf[..segment.frame.len()].copy_from_slice(segment.frame);
        self.len = segment.frame.len();
        self.l3 = segment.l3;
        self.l4 = segment.l4;
        self.payload = segment.payload_offset();
        self.v4 = matches!(segment.network, Network::V4(_));
        self.mss = segment.tcp.payload().len();
        self.segments = 1;
        self.next_seq = segment.tcp.seq().wrapping_add(self.mss as u32);
    }

    /// Adds an accepted segment and returns whether the super-frame is finished.
    fn append(&mut self, segment: &Segment<'_>, clock: u64) -> bool {
        let payload = segment.tcp.payload();
        self.buf[self.len..self.len + payload.len()].copy_from_slice(payload);
        self.len += payload.len();
        self.segments += 1;
        self.next_seq = self.next_seq.wrapping_add(payload.len() as u32);
        self.touched = clock;
        if segment.psh() {
            self.buf[self.l4 + 13] |= Tcp::PSH;
        }
        segment.psh() || payload.len() < self.mss || self.len + self.mss > self.buf.len()
    }

    fn emit(&mut self, inject: &mut impl FnMut(&[u8], Offload)) {
        let len = std::mem::take(&mut self.len);
        if self.segments == 1 {
            return inject(&self.buf[..len], Offload::NONE);
        }
        let frame = &mut self.buf[..len];
        let l4_len = len - self.l4;
        let pseudo = if self.v4 {
            let (src, dst) = (be32(frame, self.l3 + 12).into(), be32(frame, self.l3 + 16).into());
            let header = &mut frame[self.l3..self.l4];
            header[2..4].copy_from_slice(&((len - self.l3) as u16).to_be_bytes());
            header[10..12].fill(0);
            let sum = Sum::ZERO.bytes(header).checksum();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            Sum::ZERO.pseudo_v4(src, dst, PROTO_TCP, l4_len as u16)
        } else {
            let header = &mut frame[self.l3..self.l4];
            header[4..6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            Sum::ZERO.bytes(&header[8..40]).word(u16::from(PROTO_TCP)).word(l4_len as u16)
        };
        let tcp = &mut frame[self.l4..self.payload];
        tcp[Tcp::CHECKSUM..Tcp::CHECKSUM + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
        let gso = Gso {
            kind: if self.v4 { GsoKind::TcpV4 } else { GsoKind::TcpV6 },
            size: self.mss as u16,
            hdr_len: self.payload as u16,
        };
        let csum = Csum { start: self.l4 as u16, offset: Tcp::CHECKSUM as u16 };
        inject(frame, Offload { csum: Some(csum), gso: Some(gso) });
    }
}
