//! Segmentation and checksums that the sending kernel left to us.

//!
//! A super-frame has the headers of its first piece and the payload of all of them. Each piece gets a copy of
//! the headers with what must differ: lengths, IPv4 identification (counting up), TCP sequence number, the TCP
//! flags FIN and PSH (kept in the last piece only) and CWR (kept in the first only), and complete checksums.

use std::fmt;

use crate::checksum::Sum;
use crate::frame::{Ipv4, Ipv6, Network, PROTO_TCP, PROTO_UDP, Tcp, Transport, Udp, transport};
use crate::offload::{Csum, Gso, GsoKind, Offload};

/// The frame does not fit its [`Offload`]. Drop it and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentError {
    /// The checksum to complete lies outside of the frame.
    ChecksumOutside,
    /// A segment size of zero.
    ZeroSize,
    /// The headers are not those of the kind of segmentation asked for, or are cut short.
    Headers,
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SegmentError::ChecksumOutside => "checksum outside of the frame",
            SegmentError::ZeroSize => "segment size zero",
            SegmentError::Headers => "headers do not fit the segmentation",
        })
    }
}

impl std::error::Error for SegmentError {}

/// The frames to send for one frame taken from the local bridge, each complete: cut, numbered, checksums filled in.
///
/// A frame with nothing left to do gives itself. Copies go straight to where the caller wants them.
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
    Cut(Cut),
}

#[derive(Clone, Debug)]
struct Cut {
    tcp: bool,
    v4: bool,
    /// UDP over IPv4 that came without a checksum stays so.
    checksummed: bool,
    /// The constant part of the pseudo header.
    pseudo: Sum,
    /// Offsets in the frame, ascending: network header, transport header, payload, end of the packet.
    l3: usize,
    l4: usize,
    payload: usize,
    end: usize,
    /// Payload bytes per piece, not zero.
    size: usize,
    /// Start of the next piece's payload.
    at: usize,
    /// Number of the next piece.
    index: u32,
}

impl<'a> Segments<'a> {
    /// Checks that the frame can be cut as asked.
    pub fn new(frame: &'a [u8], offload: Offload) -> Result<Segments<'a>, SegmentError> {
        let plan = match offload {
            Offload { gso: Some(gso), csum } => Plan::Cut(Cut::new(frame, gso, csum)?),
            Offload { gso: None, csum: Some(csum) } => {
                checksum_range(frame, csum)?;
                Plan::Checksum(csum)
            }
            Offload { gso: None, csum: None } => Plan::Copy,
        };
        Ok(Segments { frame, plan })
    }

    /// How many frames are still to come.
    pub fn remaining(&self) -> usize {
        match &self.plan {
            Plan::Done => 0,
            Plan::Copy | Plan::Checksum(_) => 1,
            Plan::Cut(cut) => (cut.end - cut.at).div_ceil(cut.size).max(1),
        }
    }

    /// Length of the next frame; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        match &self.plan {
            Plan::Done => None,
            Plan::Copy | Plan::Checksum(_) => Some(self.frame.len()),
            Plan::Cut(cut) => Some(cut.payload + cut.size.min(cut.end - cut.at)),
        }
    }

    /// Writes the next frame to the start of `buf` and returns its length, [`next_len`](Segments::next_len).
    /// `None` after the last, or if `buf` is too short, which changes nothing.
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
            Plan::Cut(cut) => cut.next(self.frame, out),
        };
        if done {
            self.plan = Plan::Done;
        }
        Some(len)
    }
}

impl Cut {
    fn new(frame: &[u8], gso: Gso, csum: Option<Csum>) -> Result<Cut, SegmentError> {
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
        Ok(Cut {
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

    /// Fills `out`, which has the right length, and says whether this was the last piece.
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

/// Total length, identification and checksum of an IPv4 header (with options) for the piece `index`.
fn number_ipv4(header: &mut [u8], payload_len: usize, index: u32) {
    let total = header.len() + payload_len;
    put16(header, 2, total);
    let id = Ipv4::parse(header).map_or(0, |ip| ip.id());
    put16(header, 4, usize::from(id.wrapping_add(index as u16)));
    put16(header, 10, 0);
    let sum = Sum::ZERO.bytes(header).checksum();
    put16(header, 10, usize::from(sum));
}

/// Sequence number and flags of a TCP header for the piece that starts `advance` bytes behind the first.
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

/// `value` is known to fit 16 bits, `at` to be within the header.
fn put16(header: &mut [u8], at: usize, value: usize) {
    header[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// Completes a checksum in place: sums from `csum.start` to the end of the packet, with the pseudo header's sum
/// that is in the field already. Works for any protocol with such a checksum.
pub fn complete_checksum(frame: &mut [u8], csum: Csum) -> Result<(), SegmentError> {
    let (start, field, end) = checksum_range(frame, csum)?;
    // Never zero, which would mean "none" for UDP and is as good as 0xffff for the others. The kernel does the same.
    let sum = Sum::ZERO.bytes(&frame[start..end]).checksum_udp();
    put16(frame, field, usize::from(sum));
    Ok(())
}

/// Start of the sum, offset of the field, end of the sum.
fn checksum_range(frame: &[u8], csum: Csum) -> Result<(usize, usize, usize), SegmentError> {
    let start = usize::from(csum.start);
    let field = start + usize::from(csum.offset);
    // Padding behind the packet does not belong to the sum.
    let end = transport(frame).filter(|found| found.l4 == start).map_or(frame.len(), |found| found.end);
    if field + 2 <= end { Ok((start, field, end)) } else { Err(SegmentError::ChecksumOutside) }
}
