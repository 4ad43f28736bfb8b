//! Bounds-checked views of frames and their headers. A view exists only if its header is complete and valid, so its
//! accessors cannot fail.

use std::net::{Ipv4Addr, Ipv6Addr};

use weave_types::MacAddr;

/// Length of an Ethernet header without tags.
pub const ETHERNET_HEADER: usize = 14;
/// Ethernet type of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethernet type of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Ethernet type of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// Ethernet type of an outer (service) tag, 802.1ad.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;
/// IP protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// IP protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTO_UDP: u8 = 17;
/// IP protocol number of ICMPv6.
pub const PROTO_ICMPV6: u8 = 58;

/// Maximum number of VLAN tags that [`Ethernet::network`] skips.
const MAX_TAGS: usize = 2;
/// Maximum number of extension headers that [`transport`] skips.
const MAX_EXTENSIONS: usize = 8;

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    }
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

/// A frame of at least 14 bytes.
///
/// ```text
///   0        6        12     14
///   | dst    | src    | type | payload ...
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    frame: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// `None` if shorter than 14 bytes.
    pub fn parse(frame: &'a [u8]) -> Option<Ethernet<'a>> {
        (frame.len() >= ETHERNET_HEADER).then_some(Ethernet { frame })
    }

    /// Destination address.
    pub fn dst(&self) -> MacAddr {
        MacAddr(array(self.frame, 0))
    }

    /// Source address.
    pub fn src(&self) -> MacAddr {
        MacAddr(array(self.frame, 6))
    }

    /// The raw type field: an Ethernet type from 0x600 on, otherwise the payload length of an 802.3 frame.
    pub fn type_or_length(&self) -> u16 {
        be16(self.frame, 12)
    }

    /// Whether this is an 802.3 frame with a length instead of a type.
    pub fn is_802_3(&self) -> bool {
        self.type_or_length() < 0x600
    }

    /// The bytes after the header, tags included.
    pub fn payload(&self) -> &'a [u8] {
        &self.frame[ETHERNET_HEADER..]
    }

    /// VLAN identifier (0 to 4095) of the outermost tag, if there is one.
    pub fn vlan(&self) -> Option<u16> {
        let tagged = is_tag(self.type_or_length()) && self.frame.len() >= ETHERNET_HEADER + 4;
        tagged.then(|| be16(self.frame, ETHERNET_HEADER) & 0x0fff)
    }

    /// The Ethernet type after up to two VLAN tags, and the offset of the network header in the frame. `None` if a tag is
    /// truncated or there are more than two.
    pub fn network(&self) -> Option<(u16, usize)> {
        let mut offset = ETHERNET_HEADER;
        let mut ethertype = self.type_or_length();
        for _ in 0..MAX_TAGS {
            if !is_tag(ethertype) {
                break;
            }
            if self.frame.len() < offset + 4 {
                return None;
            }
            ethertype = be16(self.frame, offset + 2);
            offset += 4;
        }
        (!is_tag(ethertype)).then_some((ethertype, offset))
    }
}

fn is_tag(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

/// An IPv4 packet with a complete header. The payload may be truncated or followed by padding.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<'a> {
    packet: &'a [u8],
    header_len: usize,
}

impl<'a> Ipv4<'a> {
    /// Shortest header.
    pub const HEADER: usize = 20;
    /// Bit of [`flags_and_offset`](Ipv4::flags_and_offset): do not fragment.
    pub const DF: u16 = 0x4000;
    /// Bit of [`flags_and_offset`](Ipv4::flags_and_offset): more fragments follow.
    pub const MF: u16 = 0x2000;
    /// Mask of the offset in [`flags_and_offset`](Ipv4::flags_and_offset), in units of 8 bytes.
    pub const OFFSET: u16 = 0x1fff;

    /// `None` if the version is not 4 or the header is incomplete or invalid. The total length may exceed the packet or be
    /// shorter than the header (zero in super-frames longer than 64 KiB): see [`payload`](Ipv4::payload).
    pub fn parse(packet: &'a [u8]) -> Option<Ipv4<'a>> {
        let first = *packet.first()?;
        let header_len = usize::from(first & 0x0f) * 4;
        let complete = header_len >= Self::HEADER && packet.len() >= header_len;
        (first >> 4 == 4 && complete).then_some(Ipv4 { packet, header_len })
    }

    /// Length of the header with options, 20 to 60.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// The header with options.
    pub fn header(&self) -> &'a [u8] {
        &self.packet[..self.header_len]
    }

    /// Type of service.
    pub fn tos(&self) -> u8 {
        self.packet[1]
    }

    /// Length of header and payload according to the header.
    pub fn total_len(&self) -> usize {
        usize::from(be16(self.packet, 2))
    }

    /// Identification.
    pub fn id(&self) -> u16 {
        be16(self.packet, 4)
    }

    /// The word with the flags and the fragment offset.
    pub fn flags_and_offset(&self) -> u16 {
        be16(self.packet, 6)
    }

    /// Whether the packet must not be fragmented.
    pub fn df(&self) -> bool {
        self.flags_and_offset() & Self::DF != 0
    }

    /// Whether this is a fragment.
    pub fn is_fragment(&self) -> bool {
        self.flags_and_offset() & (Self::MF | Self::OFFSET) != 0
    }

    /// Time to live.
    pub fn ttl(&self) -> u8 {
        self.packet[8]
    }

    /// Protocol of the payload.
    pub fn protocol(&self) -> u8 {
        self.packet[9]
    }

    /// Source address.
    pub fn src(&self) -> Ipv4Addr {
        array::<4>(self.packet, 12).into()
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv4Addr {
        array::<4>(self.packet, 16).into()
    }

    /// The payload without padding; `None` if it is truncated or the total length is invalid.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.packet.get(self.header_len..self.total_len())
    }
}

/// An IPv6 packet with a complete fixed header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<'a> {
    packet: &'a [u8],
}

impl<'a> Ipv6<'a> {
    /// Length of the fixed header.
    pub const HEADER: usize = 40;

    /// `None` if the version is not 6 or the header is incomplete.
    pub fn parse(packet: &'a [u8]) -> Option<Ipv6<'a>> {
        (packet.len() >= Self::HEADER && packet[0] >> 4 == 6).then_some(Ipv6 { packet })
    }

    /// Length of the payload according to the header.
    pub fn payload_len(&self) -> usize {
        usize::from(be16(self.packet, 4))
    }

    /// Protocol of the payload.
    pub fn next_header(&self) -> u8 {
        self.packet[6]
    }

    /// Hop limit.
    pub fn hop_limit(&self) -> u8 {
        self.packet[7]
    }

    /// Source address.
    pub fn src(&self) -> Ipv6Addr {
        array::<16>(self.packet, 8).into()
    }

    /// Destination address.
    pub fn dst(&self) -> Ipv6Addr {
        array::<16>(self.packet, 24).into()
    }

    /// The payload without padding; `None` if it is truncated.
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.packet.get(Self::HEADER..Self::HEADER + self.payload_len())
    }
}

/// A TCP segment with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    segment: &'a [u8],
    header_len: usize,
}

impl<'a> Tcp<'a> {
    /// Shortest header.
    pub const HEADER: usize = 20;
    /// Flag: last segment of the sender.
    pub const FIN: u8 = 0x01;
    /// Flag: push.
    pub const PSH: u8 = 0x08;
    /// Flag: acknowledgement.
    pub const ACK: u8 = 0x10;
    /// Flag: congestion window reduced.
    pub const CWR: u8 = 0x80;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 16;

    /// `None` if the header is incomplete or invalid.
    pub fn parse(segment: &'a [u8]) -> Option<Tcp<'a>> {
        let header_len = usize::from(segment.get(12)? >> 4) * 4;
        let complete = header_len >= Self::HEADER && segment.len() >= header_len;
        complete.then_some(Tcp { segment, header_len })
    }

    /// Length of the header with options, 20 to 60.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.segment, 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.segment, 2)
    }

    /// Sequence number of the first byte of the payload.
    pub fn seq(&self) -> u32 {
        be32(self.segment, 4)
    }

    /// Acknowledged sequence number.
    pub fn ack(&self) -> u32 {
        be32(self.segment, 8)
    }

    /// The eight flags.
    pub fn flags(&self) -> u8 {
        self.segment[13]
    }

    /// The payload.
    pub fn payload(&self) -> &'a [u8] {
        &self.segment[self.header_len..]
    }
}

/// A UDP datagram with a complete header.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    datagram: &'a [u8],
}

impl<'a> Udp<'a> {
    /// Length of the header.
    pub const HEADER: usize = 8;
    /// Offset of the checksum.
    pub const CHECKSUM: usize = 6;

    /// `None` if the header is incomplete.
    pub fn parse(datagram: &'a [u8]) -> Option<Udp<'a>> {
        (datagram.len() >= Self::HEADER).then_some(Udp { datagram })
    }

    /// Source port.
    pub fn src_port(&self) -> u16 {
        be16(self.datagram, 0)
    }

    /// Destination port.
    pub fn dst_port(&self) -> u16 {
        be16(self.datagram, 2)
    }

    /// Length of header and payload according to the header.
    pub fn len(&self) -> usize {
        usize::from(be16(self.datagram, 4))
    }

    /// Whether the header declares no payload.
    pub fn is_empty(&self) -> bool {
        self.len() <= Self::HEADER
    }

    /// The checksum; zero means none.
    pub fn checksum(&self) -> u16 {
        be16(self.datagram, Self::CHECKSUM)
    }

    /// Everything after the header.
    pub fn payload(&self) -> &'a [u8] {
        &self.datagram[Self::HEADER..]
    }
}

/// The network layer of a frame.
#[derive(Clone, Copy, Debug)]
pub enum Network<'a> {
    /// IPv4.
    V4(Ipv4<'a>),
    /// IPv6.
    V6(Ipv6<'a>),
}

/// Offsets of the headers in an IP frame; see [`transport`].
#[derive(Clone, Copy, Debug)]
pub struct Transport<'a> {
    /// The network layer. Its packet runs to the end of the frame, padding included.
    pub network: Network<'a>,
    /// Offset of the network header in the frame.
    pub l3: usize,
    /// Offset of the transport header in the frame.
    pub l4: usize,
    /// Protocol of the transport layer, [`PROTO_TCP`] for one.
    pub protocol: u8,
    /// End of the packet in the frame; the rest is padding. The end of the frame if the header has no length (super-frames
    /// longer than 64 KiB).
    pub end: usize,
}

/// Finds the transport header after VLAN tags, IPv4 options and IPv6 extension headers. `None` if the frame is not IP, is
/// truncated or invalid, is a fragment (which may have no transport header), or has a source route (its checksum covers an
/// address that is not in the fixed header).
pub fn transport(frame: &[u8]) -> Option<Transport<'_>> {
    let (ethertype, l3) = Ethernet::parse(frame)?.network()?;
    let packet = &frame[l3..];
    match ethertype {
        ETHERTYPE_IPV4 => {
            let ip = Ipv4::parse(packet)?;
            let l4 = l3 + ip.header_len();
            let end = if ip.total_len() == 0 { frame.len() } else { l3 + ip.total_len() };
            let valid = !ip.is_fragment() && l4 <= end && end <= frame.len();
            valid.then_some(Transport { network: Network::V4(ip), l3, l4, protocol: ip.protocol(), end })
        }
        ETHERTYPE_IPV6 => {
            let ip = Ipv6::parse(packet)?;
            let fixed = l3 + Ipv6::HEADER;
            let end = if ip.payload_len() == 0 { frame.len() } else { fixed + ip.payload_len() };
            let (protocol, skip) = skip_extensions(ip.next_header(), frame.get(fixed..end)?)?;
            let l4 = fixed + skip;
            // Without a length there must be a jumbo option, which segmentation does not support.
            let valid = skip == 0 || ip.payload_len() != 0;
            valid.then_some(Transport { network: Network::V6(ip), l3, l4, protocol, end })
        }
        _ => None,
    }
}

/// The protocol after IPv6 extension headers and its offset (RFC 8200 section 4).
pub(crate) fn skip_extensions(first: u8, payload: &[u8]) -> Option<(u8, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const DESTINATION: u8 = 60;
    let mut next = first;
    let mut at = 0;
    for _ in 0..MAX_EXTENSIONS {
        match next {
            HOP_BY_HOP | DESTINATION => {}
            ROUTING if *payload.get(at + 3)? == 0 => {}
            ROUTING | FRAGMENT => return None,
            _ => return Some((next, at)),
        }
        next = *payload.get(at)?;
        at += (usize::from(*payload.get(at + 1)?) + 1) * 8;
        if at > payload.len() {
            return None;
        }
    }
    None
}

/// What an overlay must know about a frame to choose how to send it. As in 2.8.1 (`frame_classification.json`), IP behind a
/// VLAN tag is not recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Shorter than an Ethernet header.
    TooShort,
    /// Both MACs and the type are zero: an overlay control frame, never switched (docs/spec/data-plane.md 4.3).
    Control,
    /// IPv4 with a valid header.
    Ipv4 {
        /// Whether it must not be fragmented.
        df: bool,
    },
    /// IPv6. 2.8.1 treats it as [`Other`](Class::Other).
    Ipv6,
    /// Anything else, invalid IP included.
    Other,
}

/// Classifies a frame.
pub fn classify(frame: &[u8]) -> Class {
    let Some(ethernet) = Ethernet::parse(frame) else { return Class::TooShort };
    let packet = ethernet.payload();
    match ethernet.type_or_length() {
        0 if ethernet.src() == MacAddr::ZERO && ethernet.dst() == MacAddr::ZERO => Class::Control,
        ETHERTYPE_IPV4 => match Ipv4::parse(packet) {
            Some(ip) if ip.total_len() >= ip.header_len() => Class::Ipv4 { df: ip.df() },
            _ => Class::Other,
        },
        ETHERTYPE_IPV6 if Ipv6::parse(packet).is_some() => Class::Ipv6,
        _ => Class::Other,
    }
}
