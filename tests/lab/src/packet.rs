//! Parses captured frames (pcap files, Ethernet, IP) and verifies checksums.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// An 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;

/// Result of verifying the checksums of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Every checksum is right; the text names the layers, innermost last ("ipv4 udp").
    Good(&'static str),
    /// There is no checksum that can be verified (ARP, a later fragment, a private EtherType).
    None,
    /// This checksum is wrong.
    Bad(String),
}

/// An Ethernet frame.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a> {
    pub to: [u8; 6],
    pub from: [u8; 6],
    /// Number of 802.1Q tags skipped.
    pub tags: usize,
    /// EtherType after the tags.
    pub ethertype: u16,
    pub payload: &'a [u8],
}

impl<'a> Ethernet<'a> {
    /// Parses a frame; `None` if it is too short.
    pub fn parse(frame: &'a [u8]) -> Option<Ethernet<'a>> {
        let to = frame.get(..6)?.try_into().ok()?;
        let from = frame.get(6..12)?.try_into().ok()?;
        let (mut at, mut tags) = (12, 0);
        loop {
            let ethertype = be16(frame, at)?;
            if ethertype != ETHERTYPE_VLAN {
                return Some(Ethernet { to, from, tags, ethertype, payload: &frame[at + 2..] });
            }
            at += 4;
            tags += 1;
        }
    }
}

/// A UDP datagram in an IPv4 frame that is not a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Udp<'a> {
    pub from: IpAddr,
    pub to: IpAddr,
    pub from_port: u16,
    pub to_port: u16,
    /// Don't-fragment bit of the IPv4 header.
    pub df: bool,
    /// Cut to the length field.
    pub payload: &'a [u8],
}

impl<'a> Udp<'a> {
    pub fn parse(frame: &'a [u8]) -> Option<Udp<'a>> {
        let ethernet = Ethernet::parse(frame)?;
        let ip = Ipv4::parse(ethernet)?;
        if ip.protocol != 17 || ip.fragment {
            return None;
        }
        let length = usize::from(be16(ip.payload, 4)?);
        Some(Udp {
            from: IpAddr::from(ip.from),
            to: IpAddr::from(ip.to),
            from_port: be16(ip.payload, 0)?,
            to_port: be16(ip.payload, 2)?,
            df: ip.df,
            payload: ip.payload.get(8..length)?,
        })
    }
}

struct Ipv4<'a> {
    header: &'a [u8],
    from: [u8; 4],
    to: [u8; 4],
    protocol: u8,
    df: bool,
    /// Part of a fragmented packet.
    fragment: bool,
    payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    fn parse(ethernet: Ethernet<'a>) -> Option<Ipv4<'a>> {
        let bytes = ethernet.payload;
        if ethernet.ethertype != 0x0800 || bytes.first()? >> 4 != 4 {
            return None;
        }
        let header = usize::from(bytes[0] & 15) * 4;
        let total = usize::from(be16(bytes, 2)?);
        let flags = be16(bytes, 6)?;
        Some(Ipv4 {
            header: bytes.get(..header)?,
            from: bytes.get(12..16)?.try_into().ok()?,
            to: bytes.get(16..20)?.try_into().ok()?,
            protocol: *bytes.get(9)?,
            df: flags & 0x4000 != 0,
            fragment: flags & 0x3fff != 0,
            payload: bytes.get(header..total)?,
        })
    }
}

/// One frame record of a plain sleeve datagram.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The peer of the container that sent the frame.
    pub source: [u8; 6],
    /// The peer of the container that it is sent to.
    pub destination: [u8; 6],
    pub frame: &'a [u8],
}

/// The frames in a plain sleeve datagram; `None` if any part of it is malformed.
pub fn sleeve_records(datagram: &[u8]) -> Option<Vec<Record<'_>>> {
    let mut rest = datagram.get(6..)?;
    let mut records = Vec::new();
    while !rest.is_empty() {
        let length = usize::from(be16(rest, 12)?);
        records.push(Record {
            source: rest.get(..6)?.try_into().ok()?,
            destination: rest.get(6..12)?.try_into().ok()?,
            frame: rest.get(14..14 + length)?,
        });
        rest = &rest[14 + length..];
    }
    Some(records)
}

/// Verifies the checksums of the IPv4 header and of TCP, UDP, ICMP and ICMPv6 in a frame. Of a fragment only the header is
/// verified; [`Reassembly`] verifies the datagram.
pub fn checksum(frame: &[u8]) -> Checksum {
    let Some(ethernet) = Ethernet::parse(frame) else { return Checksum::None };
    match ethernet.ethertype {
        0x0800 => match Ipv4::parse(ethernet) {
            None => Checksum::Bad("not IPv4".to_owned()),
            Some(ip) if sum(&[ip.header]) != 0xffff => Checksum::Bad("IPv4 header".to_owned()),
            Some(ip) if ip.fragment => Checksum::None,
            Some(ip) => layer4(&ip.from, &ip.to, ip.protocol, ip.payload),
        },
        0x86dd => {
            let bytes = ethernet.payload;
            let parsed = (|| {
                let length = usize::from(be16(bytes, 4)?);
                Some((bytes.get(8..24)?, bytes.get(24..40)?, *bytes.get(6)?, bytes.get(40..40 + length)?))
            })();
            let Some((from, to, mut next, mut rest)) = parsed else {
                return Checksum::Bad("not IPv6".to_owned());
            };
            // Hop-by-hop options precede the reports of multicast listeners.
            if next == 0 && rest.len() >= 8 {
                let skip = 8 + usize::from(rest[1]) * 8;
                (next, rest) = (rest[0], rest.get(skip..).unwrap_or_default());
            }
            if next == 44 { Checksum::None } else { layer4(from, to, next, rest) }
        }
        _ => Checksum::None,
    }
}

fn layer4(from: &[u8], to: &[u8], protocol: u8, payload: &[u8]) -> Checksum {
    let pseudo = [0, protocol];
    let length = (payload.len() as u32).to_be_bytes();
    let with_pseudo = || sum(&[from, to, &pseudo, &length, payload]) == 0xffff;
    let v4 = from.len() == 4;
    let (good, name) = match protocol {
        6 => (with_pseudo(), if v4 { "ipv4 tcp" } else { "ipv6 tcp" }),
        17 => {
            let absent = v4 && be16(payload, 6) == Some(0);
            if absent {
                return Checksum::None;
            }
            (with_pseudo(), if v4 { "ipv4 udp" } else { "ipv6 udp" })
        }
        1 if v4 => (sum(&[payload]) == 0xffff, "ipv4 icmp"),
        58 => (with_pseudo(), "ipv6 icmp"),
        _ => return Checksum::None,
    };
    if good { Checksum::Good(name) } else { Checksum::Bad(name.to_owned()) }
}

/// Reassembles IPv4 fragments to verify the checksum of the datagram.
#[derive(Debug, Default)]
pub struct Reassembly {
    parts: BTreeMap<DatagramId, Vec<Fragment>>,
}

/// Source, destination and identification.
type DatagramId = ([u8; 4], [u8; 4], u16);

/// Offset, whether it is the last one, content.
type Fragment = (usize, bool, Vec<u8>);

impl Reassembly {
    /// Adds a frame; returns the result of a datagram that it completes.
    pub fn add(&mut self, frame: &[u8]) -> Option<Checksum> {
        let ethernet = Ethernet::parse(frame)?;
        let ip = Ipv4::parse(ethernet)?;
        if !ip.fragment {
            return None;
        }
        let flags = be16(ip.header, 6)?;
        let key = (ip.from, ip.to, be16(ip.header, 4)?);
        let parts = self.parts.entry(key).or_default();
        parts.push((usize::from(flags & 0x1fff) * 8, flags & 0x2000 == 0, ip.payload.to_vec()));
        parts.sort();
        parts.dedup();
        let mut whole = Vec::new();
        for (offset, last, bytes) in parts.iter() {
            if *offset != whole.len() {
                return None;
            }
            whole.extend_from_slice(bytes);
            if *last {
                let verdict = layer4(&ip.from, &ip.to, ip.protocol, &whole);
                self.parts.remove(&key);
                return Some(verdict);
            }
        }
        None
    }
}

/// The one's complement sum of RFC 1071 over the parts; all but the last must have even length.
pub fn sum(parts: &[&[u8]]) -> u16 {
    let mut total: u64 = 0;
    for part in parts {
        for pair in part.chunks(2) {
            total += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    total as u16
}

/// A pcap file: little-endian, microseconds, Ethernet.
pub(crate) const PCAP_HEADER: [u8; 24] =
    [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0];

/// The frames of a pcap file written by `lab probe capture`.
pub fn pcap_frames(file: &[u8]) -> Vec<&[u8]> {
    let mut rest = file.get(PCAP_HEADER.len()..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some(header) = rest.get(..16) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some(frame) = rest.get(16..16 + length) else { break };
        frames.push(frame);
        rest = &rest[16 + length..];
    }
    frames
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 header with the given fragment field (RFC 791), completed by its checksum.
    fn ipv4(fragment: u16, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 7]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 2, 1, 1, 10, 2, 1, 2]);
        let check = !sum(&[&frame[14..34]]);
        frame[24..26].copy_from_slice(&check.to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn udp(data: &[u8]) -> Vec<u8> {
        let length = (8 + data.len() as u16).to_be_bytes();
        let mut bytes = vec![0x13, 0x88, 0x13, 0x89, length[0], length[1], 0, 0];
        bytes.extend(data);
        let whole = (bytes.len() as u32).to_be_bytes();
        let check = !sum(&[&[10, 2, 1, 1], &[10, 2, 1, 2], &[0, 17], &whole, &bytes]);
        bytes[6..8].copy_from_slice(&check.to_be_bytes());
        bytes
    }

    #[test]
    fn wrong_udp_checksums_are_detected() {
        let mut frame = ipv4(0, 17, &udp(b"hello"));
        assert_eq!(checksum(&frame), Checksum::Good("ipv4 udp"));
        assert_eq!(Udp::parse(&frame).map(|u| u.payload), Some(&b"hello"[..]));
        *frame.last_mut().unwrap() ^= 1;
        assert_eq!(checksum(&frame), Checksum::Bad("ipv4 udp".to_owned()));
        frame[30] ^= 1;
        assert_eq!(checksum(&frame), Checksum::Bad("IPv4 header".to_owned()));
    }

    #[test]
    fn fragments_are_checked_as_a_whole_in_any_order() {
        let datagram = udp(&[9; 40]);
        let (first, last) = (ipv4(0x2000, 17, &datagram[..24]), ipv4(3, 17, &datagram[24..]));
        assert_eq!(checksum(&first), Checksum::None);
        let mut whole = Reassembly::default();
        assert_eq!(whole.add(&last), None);
        assert_eq!(whole.add(&first), Some(Checksum::Good("ipv4 udp")));
        let mut bad = last.clone();
        *bad.last_mut().unwrap() = 0;
        assert_eq!(whole.add(&first), None);
        assert_eq!(whole.add(&bad), Some(Checksum::Bad("ipv4 udp".to_owned())));
    }

    #[test]
    fn sleeve_datagrams_are_cut_into_records() {
        let mut datagram = vec![1; 6];
        for frame in [&b"first"[..], b"second"] {
            datagram.extend([2; 6]);
            datagram.extend([3; 6]);
            datagram.extend((frame.len() as u16).to_be_bytes());
            datagram.extend(frame);
        }
        let records = sleeve_records(&datagram).unwrap();
        assert_eq!(records.iter().map(|r| r.frame).collect::<Vec<_>>(), [&b"first"[..], b"second"]);
        assert!(sleeve_records(&datagram[..datagram.len() - 1]).is_none());
    }
}
