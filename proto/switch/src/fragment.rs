//! Frames that exceed an MTU: IPv4 fragmentation, and the ICMP messages that ask for shorter packets.

use std::net::{Ipv4Addr, Ipv6Addr};

use weave_types::MacAddr;

use crate::checksum::Sum;
use crate::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Ipv4, Ipv6};
use crate::frame::{PROTO_ICMP, PROTO_ICMPV6, skip_extensions};

/// Frames created here are padded with zeros to this length, the minimum on Ethernet without the frame check sequence.
const MIN_FRAME: usize = 60;

/// Whether a frame exceeds `mtu`, the longest IP packet in bytes (docs/spec/data-plane.md 4.7).
pub fn too_big(frame_len: usize, mtu: usize) -> bool {
    frame_len > mtu.saturating_add(ETHERNET_HEADER)
}

/// The frame cannot be fragmented. It is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// The frame is not IPv4 with a valid header and a complete payload.
    #[error("not a complete IPv4 packet")]
    NotIpv4,
    /// The don't-fragment bit is set.
    #[error("packet must not be fragmented")]
    DontFragment,
    /// The MTU has no room for 8 bytes of payload.
    #[error("mtu too small to fragment")]
    MtuTooSmall,
    /// The frame is a fragment that ends beyond the maximum packet length.
    #[error("fragment ends beyond 65535 bytes")]
    OffsetTooBig,
}

/// Splits an IPv4 frame without VLAN tag into fragments, each a complete frame (docs/spec/data-plane.md 4.7).
///
/// Each fragment repeats all options, as in 2.8.1. Padding after the packet is dropped.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    /// Ethernet and IPv4 header of the frame.
    header: &'a [u8],
    /// The rest of the payload.
    payload: &'a [u8],
    /// Maximum payload of the last fragment, at least 8. The others have a multiple of 8.
    room: usize,
    /// Offset of the next fragment in units of 8 bytes.
    offset: u16,
    /// Flags of the last fragment. The frame may be a fragment itself.
    flags: u16,
    done: bool,
}

impl<'a> Fragments<'a> {
    /// Checks that the frame can be fragmented into IP packets of at most `mtu` bytes.
    pub fn new(frame: &'a [u8], mtu: usize) -> Result<Fragments<'a>, FragmentError> {
        let ip = ipv4(frame).ok_or(FragmentError::NotIpv4)?;
        let payload = ip.payload().ok_or(FragmentError::NotIpv4)?;
        if ip.df() {
            return Err(FragmentError::DontFragment);
        }
        let room = mtu.saturating_sub(ip.header_len());
        if room < 8 {
            return Err(FragmentError::MtuTooSmall);
        }
        let offset = ip.flags_and_offset() & Ipv4::OFFSET;
        if usize::from(offset) * 8 + payload.len() > usize::from(u16::MAX) {
            return Err(FragmentError::OffsetTooBig);
        }
        let header = &frame[..ETHERNET_HEADER + ip.header_len()];
        let flags = ip.flags_and_offset() & !Ipv4::OFFSET;
        Ok(Fragments { header, payload, room, offset, flags, done: false })
    }

    /// Length of the next frame; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        let len = self.header.len() + self.fragment_len();
        (!self.done).then_some(len.max(MIN_FRAME))
    }

    /// Deviation: 2.8.1 rounds down the last fragment as well, so that a few bytes may need another one.
    fn fragment_len(&self) -> usize {
        if self.payload.len() <= self.room { self.payload.len() } else { self.room & !7 }
    }

    /// Writes the next frame to the start of `buf` and returns its length, [`next_len`](Fragments::next_len).
    /// `None` after the last, or without a change if `buf` is too short.
    pub fn next_into(&mut self, buf: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        let out = buf.get_mut(..len)?;
        let (fragment, rest) = self.payload.split_at(self.fragment_len());
        let (header, room) = out.split_at_mut(self.header.len());
        header.copy_from_slice(self.header);
        let (data, padding) = room.split_at_mut(fragment.len());
        data.copy_from_slice(fragment);
        padding.fill(0);

        self.done = rest.is_empty();
        let more = if self.done { 0 } else { Ipv4::MF };
        let ip = &mut header[ETHERNET_HEADER..];
        let total = (ip.len() + fragment.len()) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[6..8].copy_from_slice(&(self.flags | more | self.offset).to_be_bytes());
        fill_ipv4_checksum(ip);

        // Cannot overflow while payload is left: `new` has checked where it ends.
        self.offset = self.offset.wrapping_add((fragment.len() / 8) as u16);
        self.payload = rest;
        Some(len)
    }
}

fn fill_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let sum = Sum::ZERO.bytes(header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// The IPv4 packet of a frame, if its header is valid and not preceded by a VLAN tag.
fn ipv4(frame: &[u8]) -> Option<Ipv4<'_>> {
    let ethernet = Ethernet::parse(frame).filter(|e| e.type_or_length() == ETHERTYPE_IPV4)?;
    Ipv4::parse(ethernet.payload()).filter(|ip| ip.total_len() >= ip.header_len())
}

/// Maximum length of the frames of [`frag_needed`] and [`packet_too_big`].
pub const MAX_ICMP_FRAME: usize = ETHERNET_HEADER + IPV6_MIN_MTU;

/// Every IPv6 link carries this, and ICMPv6 errors must not be longer (RFC 4443 section 2.4 c).
const IPV6_MIN_MTU: usize = 1280;
/// Time to live and hop limit of answers, as in 2.8.1.
const ANSWER_TTL: u8 = 64;
const ICMP_HEADER: usize = 8;

/// Answer to an IPv4 packet that is too big and must not be fragmented: ICMP "fragmentation needed" from its
/// destination to its source, written to `out` (at least [`MAX_ICMP_FRAME`]). Returns its length.
///
/// `None` if no answer is allowed (RFC 1122 section 3.2.2): to ICMP errors, to fragments except the first, to group or
/// broadcast addresses; and if the frame is not IPv4 or behind a VLAN tag. 2.8.1 answers all IPv4 packets.
pub fn frag_needed(frame: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let ip = ipv4(frame)?;
    let quote = ETHERNET_HEADER..(ETHERNET_HEADER + ip.header_len() + 8).min(frame.len());
    let quoted = &frame[quote];
    let proper = is_host_v4(ip.src()) && is_host_v4(ip.dst()) && ip.flags_and_offset() & Ipv4::OFFSET == 0;
    if !proper || (ip.protocol() == PROTO_ICMP && is_icmp_error(quoted.get(ip.header_len()).copied())) {
        return None;
    }
    let len = ETHERNET_HEADER + Ipv4::HEADER + ICMP_HEADER + quoted.len();
    let out = out.get_mut(..len)?;
    let (ethernet, packet) = out.split_at_mut(ETHERNET_HEADER);
    answer_ethernet(frame, ethernet)?;
    let (header, icmp) = packet.split_at_mut(Ipv4::HEADER);
    header.fill(0);
    header[0] = 0x45;
    header[1] = ip.tos();
    header[2..4].copy_from_slice(&((Ipv4::HEADER + icmp.len()) as u16).to_be_bytes());
    header[8] = ANSWER_TTL;
    header[9] = PROTO_ICMP;
    header[12..16].copy_from_slice(&ip.dst().octets());
    header[16..20].copy_from_slice(&ip.src().octets());
    fill_ipv4_checksum(header);

    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    icmp[..ICMP_HEADER].copy_from_slice(&[3, 4, 0, 0, 0, 0, mtu_high, mtu_low]);
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let sum = Sum::ZERO.bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

/// Answer to an IPv6 packet that is too big: ICMPv6 "packet too big" from its destination to its source,
/// written to `out` (at least [`MAX_ICMP_FRAME`]). Returns its length.
///
/// `None` if no answer is allowed (RFC 4443 section 2.4 e): to ICMPv6 errors and redirects, to group addresses; if
/// `mtu` is less than 1280, which a host need not obey; and if the frame is not IPv6 or behind a VLAN tag.
/// 2.8.1 never answers IPv6 packets.
pub fn packet_too_big(frame: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    let ethernet = Ethernet::parse(frame).filter(|e| e.type_or_length() == ETHERTYPE_IPV6)?;
    let ip = Ipv6::parse(ethernet.payload())?;
    let packet = ethernet.payload();
    let packet = &packet[..packet.len().min(Ipv6::HEADER + ip.payload_len())];
    let error = matches!(skip_extensions(ip.next_header(), &packet[Ipv6::HEADER..]),
        Some((PROTO_ICMPV6, at)) if is_icmpv6_error(packet.get(Ipv6::HEADER + at).copied()));
    let proper = is_host_v6(ip.src()) && is_host_v6(ip.dst()) && usize::from(mtu) >= IPV6_MIN_MTU;
    if error || !proper {
        return None;
    }
    let quoted = &packet[..packet.len().min(IPV6_MIN_MTU - Ipv6::HEADER - ICMP_HEADER)];
    let len = ETHERNET_HEADER + Ipv6::HEADER + ICMP_HEADER + quoted.len();
    let out = out.get_mut(..len)?;
    let (ethernet, answer) = out.split_at_mut(ETHERNET_HEADER);
    answer_ethernet(frame, ethernet)?;
    let (header, icmp) = answer.split_at_mut(Ipv6::HEADER);
    header.fill(0);
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    header[6] = PROTO_ICMPV6;
    header[7] = ANSWER_TTL;
    header[8..24].copy_from_slice(&ip.dst().octets());
    header[24..40].copy_from_slice(&ip.src().octets());

    let [mtu_high, mtu_low] = mtu.to_be_bytes();
    icmp[..ICMP_HEADER].copy_from_slice(&[2, 0, 0, 0, 0, 0, mtu_high, mtu_low]);
    icmp[ICMP_HEADER..].copy_from_slice(quoted);
    let pseudo = Sum::ZERO.pseudo_v6(ip.dst(), ip.src(), PROTO_ICMPV6, icmp.len() as u32);
    let sum = pseudo.bytes(icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(len)
}

/// Writes the Ethernet header of `frame` with source and destination exchanged; `None` if one of them is a group address or
/// zero.
fn answer_ethernet(frame: &[u8], out: &mut [u8]) -> Option<()> {
    let ethernet = Ethernet::parse(frame)?;
    let (src, dst) = (ethernet.src(), ethernet.dst());
    let hosts = [src, dst].iter().all(|mac| !mac.is_group() && *mac != MacAddr::ZERO);
    out[..6].copy_from_slice(&src.0);
    out[6..12].copy_from_slice(&dst.0);
    out[12..14].copy_from_slice(&ethernet.type_or_length().to_be_bytes());
    hosts.then_some(())
}

fn is_host_v4(addr: Ipv4Addr) -> bool {
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast())
}

fn is_host_v6(addr: Ipv6Addr) -> bool {
    !(addr.is_unspecified() || addr.is_multicast())
}

/// Unreachable, source quench, redirect, time exceeded, parameter problem; or truncated, so that the type is unknown.
fn is_icmp_error(kind: Option<u8>) -> bool {
    matches!(kind, None | Some(3 | 4 | 5 | 11 | 12))
}

/// Errors and redirects; or truncated, so that the type is unknown.
fn is_icmpv6_error(kind: Option<u8>) -> bool {
    matches!(kind, None | Some(0..=127 | 137))
}
