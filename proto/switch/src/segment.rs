//! Segmentation and checksums that the sending kernel left to its network device.
//!
//! A super-frame has the headers of its first segment and the payload of all segments. Each segment gets a copy of the
//! headers with new lengths, IPv4 identification (counting up), TCP sequence number and complete checksums. The TCP flags FIN
//! and PSH stay only in the last segment, CWR only in the first.

use crate::checksum::Sum;
use crate::frame::{Ipv4, Ipv6, Network, PROTO_TCP, PROTO_UDP, Tcp, Transport, Udp, transport};
use crate::offload::{Csum, Gso, GsoKind, Offload};

/// The frame does not match its [`Offload`]. It is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// The checksum to complete is outside of the frame.
    #[error("checksum outside of the frame")]
    ChecksumOutside,
    /// The segment size is zero.
    #[error("segment size zero")]
    ZeroSize,
    /// The headers do not match the kind of segmentation, or are truncated.
    #[error("headers do not fit the segmentation")]
    Headers,
}

/// The complete frames to send for one frame captured from the local bridge. A frame without pending work yields itself. Each
/// frame is written directly to the buffer of the caller.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    plan: Plan,
}

#[derive(Clone, Debug)]
enum Plan {
    Done,
    Copy,
    Checksum(Csum),
    Segment(Segmentation),
}

#[derive(Clone, Debug)]
struct Segmentation {
    tcp: bool,
    v4: bool,
    /// Whether segments get a checksum. UDP over IPv4 without a checksum stays without.
    checksummed: bool,
    /// The constant part of the pseudo header.
    pseudo: Sum,
    /// Offsets in the frame, ascending: network header, transport header, payload, end of the packet.
    l3: usize,
    l4: usize,
    payload: usize,
    end: usize,
    /// Payload bytes per segment, not zero.
    size: usize,
    /// Offset of the next segment's payload.
    at: usize,
    /// Number of the next segment.
    index: u32,
}

impl<'a> Segments<'a> {
    /// Checks that the frame matches the offload.
    pub fn new(frame: &'a [u8], offload: Offload) -> Result<Segments<'a>, SegmentError> {
        let plan = match offload {
            Offload { gso: Some(gso), csum } => Plan::Segment(Segmentation::new(frame, gso, csum)?),
            Offload { gso: None, csum: Some(csum) } => {
                checksum_range(frame, csum)?;
                Plan::Checksum(csum)
            }
            Offload { gso: None, csum: None } => Plan::Copy,
        };
        Ok(Segments { frame, plan })
    }

    /// Number of frames left.
    pub fn remaining(&self) -> usize {
        match &self.plan {
            Plan::Done => 0,
            Plan::Copy | Plan::Checksum(_) => 1,
            Plan::Segment(segmentation) => {
                (segmentation.end - segmentation.at).div_ceil(segmentation.size).max(1)
            }
        }
    }

    /// Length of the next frame; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        match &self.plan {
            Plan::Done => None,
            Plan::Copy | Plan::Checksum(_) => Some(self.frame.len()),
            Plan::Segment(segmentation) => {
                Some(segmentation.payload + segmentation.size.min(segmentation.end - segmentation.at))
            }
        }
    }

    /// Writes the next frame to the start of `buf` and returns its length, [`next_len`](Segments::next_len).
    /// `None` after the last, or without a change if `buf` is too short.
    pub fn next_into(&mut self, buf: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let out = buf.get_mut(..len)?;
        let done = match &mut self.plan {
            Plan::Done => return None,
            Plan::Copy => {
                out.copy_from_slice(self.frame);
                true
            }
            Plan::Checksum(csum) => {
                out.copy_from_slice(self.frame);
                // Cannot fail: it was tried on the same bytes at construction.
                complete_checksum(out, *csum).is_ok()
            }
            Plan::Segment(segmentation) => segmentation.next(self.frame, out),
        };
        if done {
            self.plan = Plan::Done;
        }
        Some(len)
    }
}

impl Segmentation {
    fn new(frame: &[u8], gso: Gso, csum: Option<Csum>) -> Result<Segmentation, SegmentError> {
        if gso.size == 0 {
            return Err(SegmentError::ZeroSize);
        }
        let found = transport(frame).ok_or(SegmentError::Headers)?;
        let Transport { network, l3, l4, protocol, end } = found;
        let segment = &frame[l4..end];
        let (tcp, header_len, field) = match gso.kind {
            GsoKind::TcpV4 | GsoKind::TcpV6 => {
                let header = Tcp::parse(segment).ok_or(SegmentError::Headers)?;
                (true, header.header_len(), Tcp::CHECKSUM)
            }
            GsoKind::Udp => {
                Udp::parse(segment).ok_or(SegmentError::Headers)?;
                (false, Udp::HEADER, Udp::CHECKSUM)
            }
        };
        let (v4, pseudo) = match network {
            Network::V4(ip) => (true, Sum::ZERO.pseudo_v4(ip.src(), ip.dst(), protocol, 0)),
            Network::V6(ip) => (false, Sum::ZERO.pseudo_v6(ip.src(), ip.dst(), protocol, 0)),
        };
        let family_fits = match gso.kind {
            GsoKind::TcpV4 => v4,
            GsoKind::TcpV6 => !v4,
            GsoKind::Udp => true,
        };
        let protocol_fits = protocol == if tcp { PROTO_TCP } else { PROTO_UDP };
        let csum_fits =
            csum.is_none_or(|csum| usize::from(csum.start) == l4 && usize::from(csum.offset) == field);
        let payload = l4 + header_len;
        let longest = payload - l3 + usize::from(gso.size).min(end - payload);
        if !(family_fits && protocol_fits && csum_fits) || longest > usize::from(u16::MAX) {
            return Err(SegmentError::Headers);
        }
        let bare = csum.is_none() && v4 && !tcp && segment[field..field + 2] == [0, 0];
        Ok(Segmentation {
            tcp,
            v4,
            checksummed: !bare,
            pseudo,
            l3,
            l4,
            payload,
            end,
            size: usize::from(gso.size),
            at: payload,
            index: 0,
        })
    }

    /// Fills `out`, which has the right length, and returns whether this was the last segment.
    fn next(&mut self, frame: &[u8], out: &mut [u8]) -> bool {
        let taken = out.len() - self.payload;
        let (header, payload) = out.split_at_mut(self.payload);
        header.copy_from_slice(&frame[..self.payload]);
        payload.copy_from_slice(&frame[self.at..self.at + taken]);

        let first = self.at == self.payload;
        let advance = (self.at - self.payload) as u32;
        self.at += taken;
        let last = self.at == self.end;

        let (l2_l3, l4) = header.split_at_mut(self.l4);
        let l3 = &mut l2_l3[self.l3..];
        let l4_len = l4.len() + taken;
        if self.v4 {
            number_ipv4(l3, l4_len, self.index);
        } else {
            put16(l3, 4, l3.len() - Ipv6::HEADER + l4_len);
        }
        let field = if self.tcp {
            number_tcp(l4, advance, first, last);
            Tcp::CHECKSUM
        } else {
            put16(l4, 4, l4_len);
            Udp::CHECKSUM
        };
        if self.checksummed {
            put16(l4, field, 0);
            let sum = self.pseudo.word(l4_len as u16).bytes(l4).bytes(payload);
            put16(l4, field, usize::from(if self.tcp { sum.checksum() } else { sum.checksum_udp() }));
        }
        self.index = self.index.wrapping_add(1);
        last
    }
}

/// Total length, identification and checksum of an IPv4 header (with options) for the segment `index`.
fn number_ipv4(header: &mut [u8], payload_len: usize, index: u32) {
    let total = header.len() + payload_len;
    put16(header, 2, total);
    let id = Ipv4::parse(header).map_or(0, |ip| ip.id());
    put16(header, 4, usize::from(id.wrapping_add(index as u16)));
    put16(header, 10, 0);
    let sum = Sum::ZERO.bytes(header).checksum();
    put16(header, 10, usize::from(sum));
}

/// Sequence number and flags of a TCP header for the segment that starts `advance` bytes after the first.
fn number_tcp(header: &mut [u8], advance: u32, first: bool, last: bool) {
    let seq = Tcp::parse(header).map_or(0, |tcp| tcp.seq());
    header[4..8].copy_from_slice(&seq.wrapping_add(advance).to_be_bytes());
    if !first {
        header[13] &= !Tcp::CWR;
    }
    if !last {
        header[13] &= !(Tcp::FIN | Tcp::PSH);
    }
}

/// Stores a 16-bit value. The caller ensures that `value` fits 16 bits and `at` is within the header.
fn put16(header: &mut [u8], at: usize, value: usize) {
    header[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Completes a checksum in place: sums from `csum.start` to the end of the packet, including the pseudo header's sum that the
/// field contains. Works for any protocol with such a checksum.
pub fn complete_checksum(frame: &mut [u8], csum: Csum) -> Result<(), SegmentError> {
    let (start, field, end) = checksum_range(frame, csum)?;
    // Zero would mean "no checksum" for UDP and is equivalent to 0xffff for other protocols. The kernel does the same.
    let sum = Sum::ZERO.bytes(&frame[start..end]).checksum_udp();
    put16(frame, field, usize::from(sum));
    Ok(())
}

/// Start of the sum, offset of the field, end of the sum.
fn checksum_range(frame: &[u8], csum: Csum) -> Result<(usize, usize, usize), SegmentError> {
    let start = usize::from(csum.start);
    let field = start + usize::from(csum.offset);
    // Padding after the packet is not part of the sum.
    let end = transport(frame).filter(|found| found.l4 == start).map_or(frame.len(), |found| found.end);
    if field + 2 <= end { Ok((start, field, end)) } else { Err(SegmentError::ChecksumOutside) }
}
