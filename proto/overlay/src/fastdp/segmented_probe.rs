use std::net::Ipv4Addr;

use weave_switch::Offload;
use weave_switch::checksum::Sum;
use weave_switch::frame::{ETHERNET_HEADER, Ipv4, PROTO_TCP, Tcp};
use weave_switch::offload::{Csum, Gso, GsoKind};
use weave_switch::segment::complete_checksum;
use weave_types::ConnectionUid;

use super::tables::FastdpPath;
use crate::segmentation::ArrivedSegments;

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const HEADERS: usize = Ipv4::HEADER + Tcp::HEADER;
const TCP_AT: usize = ETHERNET_HEADER + Ipv4::HEADER;
/// What the payload of each segment begins with: UID (8), number (4), index (1), number of segments (1), bytes of each segment (2).
const LABEL: usize = 16;
/// Payload bytes of a segment at most: a frame has 64 kB.
const MAX_SEGMENT: usize = 16_000;

/// A frame that tests segmentation: one TCP segment of full size, or several that the kernel or the network card has to cut
/// (docs/spec/data-plane.md 5.8). Both of its MACs are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentedProbe {
    /// Identifies the connection.
    pub uid: ConnectionUid,
    /// Number of the probe.
    pub number: u32,
    /// How many segments it has.
    pub segments: u8,
    /// Payload bytes of each segment.
    pub size: u16,
}

impl SegmentedProbe {
    /// A probe whose packets have `mtu` bytes, as far as that is possible.
    pub(crate) fn new(uid: ConnectionUid, number: u32, segments: u8, mtu: usize) -> SegmentedProbe {
        let size = mtu.saturating_sub(HEADERS).clamp(LABEL, MAX_SEGMENT);
        SegmentedProbe { uid, number, segments, size: size as u16 }
    }

    /// The frame, and what is left to the sending kernel. The program that sends it finds its way in it: the outer addresses are those of
    /// the IP header, the ids of the peers are the ports, and the number of the device is that of the acknowledgement.
    pub fn frame(&self, path: &FastdpPath, vni: u32, device: u32) -> (Vec<u8>, Offload) {
        let SegmentedProbe { uid, number, segments, size } = *self;
        let mut frame = vec![0; ETHERNET_HEADER + HEADERS];
        frame[12..ETHERNET_HEADER].copy_from_slice(&ETHERTYPE_IPV4);
        for index in 0..segments {
            let start = frame.len();
            frame.extend(uid.0.to_be_bytes());
            frame.extend(number.to_be_bytes());
            frame.extend([index, segments]);
            frame.extend(size.to_be_bytes());
            frame.resize(start + usize::from(size).max(LABEL), 0);
        }
        let len = (frame.len() - ETHERNET_HEADER) as u16;
        let ip = &mut frame[ETHERNET_HEADER..TCP_AT];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&len.to_be_bytes());
        ip[6..8].copy_from_slice(&Ipv4::DF.to_be_bytes());
        ip[8] = 64;
        ip[9] = PROTO_TCP;
        ip[12..16].copy_from_slice(&path.local.octets());
        ip[16..20].copy_from_slice(&path.remote.octets());
        let sum = Sum::ZERO.bytes(ip).checksum();
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let tcp = &mut frame[TCP_AT..TCP_AT + Tcp::HEADER];
        tcp[0..2].copy_from_slice(&((vni & 0xfff) as u16).to_be_bytes());
        tcp[2..4].copy_from_slice(&((vni >> 12 & 0xfff) as u16).to_be_bytes());
        tcp[8..12].copy_from_slice(&device.to_be_bytes());
        tcp[12] = (Tcp::HEADER as u8 / 4) << 4;
        tcp[13] = Tcp::ACK;
        tcp[14..16].copy_from_slice(&[0xff, 0xff]);
        let pseudo =
            Sum::ZERO.pseudo_v4(path.local, path.remote, PROTO_TCP, len - Ipv4::HEADER as u16).folded();
        tcp[Tcp::CHECKSUM..Tcp::CHECKSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
        let csum = Csum { start: TCP_AT as u16, offset: Tcp::CHECKSUM as u16 };
        if segments == 1 {
            let completed = complete_checksum(&mut frame, csum);
            debug_assert_eq!(completed, Ok(()));
            return (frame, Offload::NONE);
        }
        let hdr_len = (ETHERNET_HEADER + HEADERS) as u16;
        let gso = Gso { kind: GsoKind::TcpV4, size, hdr_len };
        (frame, Offload { csum: Some(csum), gso: Some(gso) })
    }

    /// The probe of which a frame has packets, one or several that the receiving kernel has merged, and which. `None` if it is another
    /// frame or not as it was sent: a checksum is wrong, or it was cut elsewhere.
    pub fn parse(frame: &[u8]) -> Option<(SegmentedProbe, ArrivedSegments)> {
        let (header, packet) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        if header[..12] != [0; 12] || header[12..] != ETHERTYPE_IPV4 {
            return None;
        }
        let ip = Ipv4::parse(packet)?;
        if ip.protocol() != PROTO_TCP || ip.is_fragment() || !Sum::ZERO.bytes(ip.header()).is_valid() {
            return None;
        }
        let segment = ip.payload()?;
        let (src, dst): (Ipv4Addr, Ipv4Addr) = (ip.src(), ip.dst());
        let len = u16::try_from(segment.len()).ok()?;
        if !Sum::ZERO.pseudo_v4(src, dst, PROTO_TCP, len).bytes(segment).is_valid() {
            return None;
        }
        let tcp = Tcp::parse(segment)?;
        let (probe, first) = label(tcp.payload())?;
        let size = usize::from(probe.size);
        let is_in_place = usize::try_from(tcp.seq()).ok()? == usize::from(first) * size;
        let packets = tcp.payload().chunks(size.max(LABEL));
        let count = u8::try_from(packets.len()).ok()?;
        let is_whole = is_in_place
            && first.checked_add(count)? <= probe.segments
            && (first..)
                .zip(packets)
                .all(|(index, packet)| packet.len() == size && label(packet) == Some((probe, index)));
        is_whole.then_some((probe, ArrivedSegments { number: probe.number, first, count }))
    }
}

/// The label of a segment: the probe and the index of the segment in it.
fn label(payload: &[u8]) -> Option<(SegmentedProbe, u8)> {
    let (uid, rest) = payload.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let &[index, segments, s0, s1, ..] = rest else { return None };
    let probe = SegmentedProbe {
        uid: ConnectionUid(u64::from_be_bytes(*uid)),
        number: u32::from_be_bytes(*number),
        segments,
        size: u16::from_be_bytes([s0, s1]),
    };
    Some((probe, index))
}

#[cfg(test)]
mod tests {
    use weave_switch::segment::Segments;

    use super::*;
    use crate::segmentation::SEGMENTS;

    const PATH: FastdpPath =
        FastdpPath { local: Ipv4Addr::new(192, 0, 2, 1), remote: Ipv4Addr::new(192, 0, 2, 2), port: 6784 };

    fn probe(segments: u8) -> SegmentedProbe {
        SegmentedProbe::new(ConnectionUid(0x0102_0304_0506_0708), 77, segments, 1376)
    }

    fn cut(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
        let mut segments = Segments::new(frame, offload).unwrap();
        std::iter::from_fn(|| {
            let mut buffer = vec![0; 2000];
            let len = segments.next_into(&mut buffer)?;
            buffer.truncate(len);
            Some(buffer)
        })
        .collect()
    }

    #[test]
    fn every_segment_is_recognised_with_its_place() {
        let probe = probe(SEGMENTS);
        let (frame, offload) = probe.frame(&PATH, 0x456_123, 9);
        assert_eq!(SegmentedProbe::parse(&frame), None, "its checksum is not complete");
        let packets = cut(&frame, offload);
        assert_eq!(packets.len(), usize::from(SEGMENTS));
        for (index, packet) in (0..).zip(&packets) {
            assert_eq!(packet.len(), ETHERNET_HEADER + 1376);
            let arrived = ArrivedSegments { number: 77, first: index, count: 1 };
            assert_eq!(SegmentedProbe::parse(packet), Some((probe, arrived)));
        }
        let mut merged = frame.clone();
        complete_checksum(&mut merged, offload.csum.unwrap()).unwrap();
        let arrived = ArrivedSegments { number: 77, first: 0, count: SEGMENTS };
        assert_eq!(SegmentedProbe::parse(&merged), Some((probe, arrived)));
        assert_eq!(
            (&frame[34..36], &frame[36..38], &frame[42..46]),
            (&[1, 0x23][..], &[4, 0x56][..], &[0, 0, 0, 9][..])
        );
    }

    #[test]
    fn a_plain_probe_is_complete_and_of_full_size() {
        let probe = probe(1);
        let (frame, offload) = probe.frame(&PATH, 0, 0);
        assert_eq!((offload, frame.len()), (Offload::NONE, ETHERNET_HEADER + 1376));
        let arrived = ArrivedSegments { number: 77, first: 0, count: 1 };
        assert_eq!(SegmentedProbe::parse(&frame), Some((probe, arrived)));
    }

    #[test]
    fn what_was_changed_or_cut_elsewhere_is_not_recognised() {
        let (frame, offload) = probe(SEGMENTS).frame(&PATH, 0, 0);
        let packet = &cut(&frame, offload)[1];
        for at in 0..packet.len() {
            let mut changed = packet.clone();
            changed[at] ^= 1;
            assert_eq!(SegmentedProbe::parse(&changed), None, "byte {at}");
        }
        for len in 0..packet.len() {
            assert_eq!(SegmentedProbe::parse(&packet[..len]), None, "{len} bytes");
        }
        let gso = Some(Gso { size: 1000, ..offload.gso.unwrap() });
        let elsewhere = cut(&frame, Offload { gso, ..offload });
        assert!(elsewhere.iter().all(|packet| SegmentedProbe::parse(packet).is_none()));
    }

    #[test]
    fn sizes_stay_within_a_frame() {
        for mtu in [0, 40, 56, 68, 1376, 8950, 65_535] {
            let (frame, _) = SegmentedProbe::new(ConnectionUid(1), 0, SEGMENTS, mtu).frame(&PATH, 0, 0);
            assert!(frame.len() - ETHERNET_HEADER <= 65_535, "{mtu}");
        }
    }
}
