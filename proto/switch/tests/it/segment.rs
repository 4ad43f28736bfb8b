use proptest::prelude::*;
use weave_switch::segment::{SegmentError, complete_checksum};
use weave_switch::{Csum, Gso, GsoKind, Offload, Segments};

use crate::packet::{Packet, bytes, naive_sum, tcp, tcp6, udp, udp6};

const TAG: [u8; 4] = [0x81, 0, 0x20, 7];
const OUTER_TAG: [u8; 4] = [0x88, 0xa8, 0, 9];
const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// All segments, after checking `next_len` and `remaining` for each.
fn cut(frame: &[u8], offload: Offload) -> Result<Vec<Vec<u8>>, SegmentError> {
    let mut segments = Segments::new(frame, offload)?;
    let mut all = vec![];
    while let Some(len) = segments.next_len() {
        let left = segments.remaining();
        assert!(left > 0);
        let mut buf = vec![0xee; len + 3];
        if len > 0 {
            assert_eq!(segments.next_into(&mut buf[..len - 1]), None, "buffer too short");
            assert_eq!(
                (segments.next_len(), segments.remaining()),
                (Some(len), left),
                "a failed call changes nothing"
            );
        }
        assert_eq!(segments.next_into(&mut buf), Some(len));
        assert_eq!(buf[len..], [0xee; 3], "bytes after the segment are not written");
        assert_eq!(segments.remaining(), left - 1);
        all.push(buf[..len].to_vec());
    }
    assert_eq!((segments.remaining(), segments.next_into(&mut [0; 2000])), (0, None));
    Ok(all)
}

fn read(packet: &Packet, size: u16) -> Vec<Packet> {
    let (frame, offload) = packet.gso(size);
    cut(&frame, offload).unwrap().iter().map(|segment| Packet::read(segment)).collect()
}

#[test]
fn frame_without_offload_is_unchanged() {
    for frame in [tcp().build(), vec![], vec![1, 2, 3]] {
        assert_eq!(cut(&frame, Offload::NONE), Ok(vec![frame]));
    }
}

#[test]
fn partial_checksums_are_completed() {
    for tags in [vec![], vec![TAG], vec![OUTER_TAG, TAG]] {
        for packet in [tcp(), tcp6(), udp(), udp6()] {
            for len in [0, 1, 2, 3, 99, 1400] {
                let packet = Packet { payload: bytes(len), tags: tags.clone(), ..packet.clone() };
                let (frame, offload) = packet.partial();
                assert_eq!(cut(&frame, offload), Ok(vec![packet.build()]));
                let mut frame = frame;
                assert_eq!(complete_checksum(&mut frame, offload.csum.unwrap()), Ok(()));
                assert_eq!(frame, packet.build());
            }
        }
    }
}

/// Two bytes of payload are chosen so that the checksum is zero.
#[test]
fn a_checksum_of_zero_is_written_as_ffff() {
    for packet in [udp(), udp6()] {
        let mut packet = Packet { payload: vec![0, 0], ..packet };
        let frame = packet.build();
        let at = packet.l4() + 6;
        packet.payload = frame[at..at + 2].to_vec();
        let (frame, offload) = packet.partial();
        let done = &cut(&frame, offload).unwrap()[0];
        assert_eq!(done[at..at + 2], [0xff, 0xff]);
        Packet::read(done);
        let (frame, offload) = packet.gso(2);
        assert_eq!(&cut(&frame, offload).unwrap()[0], done);
    }
}

#[test]
fn checksum_excludes_padding() {
    let packet = Packet { payload: bytes(1), options: vec![], ..tcp() };
    let (mut frame, offload) = packet.partial();
    frame.extend([0xaa; 5]);
    let done = &cut(&frame, offload).unwrap()[0];
    assert_eq!(done[..frame.len() - 5], packet.build());
    assert_eq!(done[frame.len() - 5..], [0xaa; 5]);
}

#[test]
fn checksum_of_an_unknown_protocol_is_completed() {
    // An unknown protocol directly on Ethernet.
    let mut frame = [[5; 12].as_slice(), &[0x12, 0x34], &bytes(51)].concat();
    let whole = naive_sum(&frame[20..]);
    assert_eq!(complete_checksum(&mut frame, Csum { start: 20, offset: 4 }), Ok(()));
    assert_eq!(frame[24..26], (!whole).to_be_bytes());
}

#[test]
fn checksum_outside_of_the_frame_is_rejected() {
    let frame = tcp().build();
    let len = frame.len() as u16;
    for (start, offset) in [(len - 1, 0), (len, 0), (0, len - 1), (34, len), (0xffff, 0xffff)] {
        let csum = Csum { start, offset };
        let result = cut(&frame, Offload { csum: Some(csum), gso: None });
        assert_eq!(result, Err(SegmentError::ChecksumOutside), "{start} {offset}");
        assert_eq!(complete_checksum(&mut frame.clone(), csum), Err(SegmentError::ChecksumOutside));
    }
    let csum = Some(Csum { start: len - 2, offset: 0 });
    assert!(cut(&frame, Offload { csum, gso: None }).is_ok());
}

#[test]
fn tcp_segments_have_correct_headers() {
    for packet in [tcp(), tcp6(), Packet { flags_and_offset: 0, ip_options: vec![0x94, 4, 0, 0], ..tcp() }] {
        for tags in [vec![], vec![TAG], vec![OUTER_TAG, TAG]] {
            let whole = Packet {
                payload: bytes(3500),
                tags,
                flags: CWR | ECE | PSH | FIN | ACK,
                seq: 0xffff_ff00,
                id: if packet.v6 { 0 } else { 0xffff },
                tos: 0xb8,
                ..packet.clone()
            };
            let segments = read(&whole, 1000);
            assert_eq!(segments.len(), 4);
            for (i, segment) in segments.iter().enumerate() {
                let flags = ECE | ACK | if i == 0 { CWR } else { 0 } | if i == 3 { PSH | FIN } else { 0 };
                let expected = Packet {
                    payload: whole.payload[i * 1000..3500.min(i * 1000 + 1000)].to_vec(),
                    seq: whole.seq.wrapping_add(i as u32 * 1000),
                    id: if whole.v6 { 0 } else { whole.id.wrapping_add(i as u16) },
                    flags,
                    ..whole.clone()
                };
                assert_eq!(format!("{segment:?}"), format!("{expected:?}"));
            }
        }
    }
}

#[test]
fn udp_segments_have_correct_headers() {
    for packet in [udp(), udp6()] {
        let whole = Packet { payload: bytes(2001), tags: vec![TAG], ..packet };
        let segments = read(&whole, 1000);
        assert_eq!(segments.iter().map(|p| p.payload.len()).collect::<Vec<_>>(), [1000, 1000, 1]);
        for (i, segment) in segments.iter().enumerate() {
            let expected = Packet {
                payload: whole.payload[i * 1000..2001.min(i * 1000 + 1000)].to_vec(),
                id: if whole.v6 { 0 } else { whole.id + i as u16 },
                ..whole.clone()
            };
            assert_eq!(format!("{segment:?}"), format!("{expected:?}"));
        }
    }
}

/// UDP over IPv4 without a checksum is an exception.
#[test]
fn segments_get_checksums_without_a_request() {
    for packet in [tcp(), tcp6(), udp(), udp6()] {
        let packet = Packet { payload: bytes(30), ..packet };
        let (mut frame, offload) = packet.gso(20);
        for (segments, field) in [(2, None), (2, Some(0))] {
            if let Some(field) = field {
                let at = usize::from(offload.csum.unwrap().start + offload.csum.unwrap().offset);
                frame[at..at + 2].copy_from_slice(&u16::to_be_bytes(field));
            }
            let done = cut(&frame, Offload { csum: None, ..offload }).unwrap();
            assert_eq!(done.len(), segments);
            for segment in done {
                if packet.udp && !packet.v6 && field.is_some() {
                    assert_eq!(segment[40..42], [0, 0]);
                } else {
                    Packet::read(&segment);
                }
            }
        }
    }
}

#[test]
fn minimum_and_maximum_segment_sizes_are_supported() {
    let packet = Packet { flags: PSH | ACK, ..tcp() };
    for (len, size, segments) in
        [(0, 10, 1), (1, 10, 1), (10, 10, 1), (11, 10, 2), (20, 10, 2), (5, 65535, 1), (3, 1, 3)]
    {
        let all = read(&Packet { payload: bytes(len), ..packet.clone() }, size);
        assert_eq!(all.len(), segments, "{len} in {size}");
        assert_eq!(all.iter().flat_map(|p| p.payload.clone()).collect::<Vec<_>>(), bytes(len));
        assert_eq!(all.last().unwrap().flags, PSH | ACK);
    }
    let longest = Packet { payload: bytes(65535 - 20 - 32), ..tcp() };
    assert_eq!(read(&longest, 1448).len(), 46);
    assert_eq!(read(&longest, 65535).len(), 1);
}

#[test]
fn segmentation_removes_padding() {
    let (mut frame, offload) = tcp().gso(60);
    frame.extend([0; 9]);
    let total: usize =
        cut(&frame, offload).unwrap().iter().map(|segment| Packet::read(segment).payload.len()).sum();
    assert_eq!(total, 100);
}

/// The length field of the header is zero, so the length of the frame is used.
#[test]
fn super_frames_above_64_kib_are_segmented() {
    for packet in [tcp(), tcp6()] {
        let (head, offload) = packet.gso(1448);
        let mut frame = head[..packet.header_len()].to_vec();
        frame.extend(bytes(100_000));
        let l3 = packet.l3();
        let length = if packet.v6 { l3 + 4 } else { l3 + 2 };
        frame[length..length + 2].fill(0);
        let segments = cut(&frame, offload).unwrap();
        assert_eq!(segments.len(), 70);
        let stream: Vec<u8> = segments.iter().flat_map(|segment| Packet::read(segment).payload).collect();
        assert_eq!(stream, bytes(100_000));
        let gso = offload.gso.map(|gso| Gso { size: 65535, ..gso });
        assert_eq!(
            cut(&frame, Offload { gso, ..offload }),
            Err(SegmentError::Headers),
            "a segment would be too long"
        );
    }
}

#[test]
fn headers_that_do_not_match_are_rejected() {
    let refused = |frame: &[u8], offload: Offload, why: &str| {
        assert_eq!(cut(frame, offload), Err(SegmentError::Headers), "{why}");
    };
    let (frame, offload) = tcp().gso(50);
    let kind = |kind| Offload { gso: offload.gso.map(|gso| Gso { kind, ..gso }), ..offload };
    refused(&frame, kind(GsoKind::TcpV6), "family");
    refused(&frame, kind(GsoKind::Udp), "protocol");
    let (frame6, offload6) = tcp6().gso(50);
    refused(&frame6, Offload { gso: kind(GsoKind::TcpV4).gso, ..offload6 }, "family");
    let (udp_frame, udp_offload) = udp().gso(50);
    refused(&udp_frame, Offload { gso: offload.gso, csum: None }, "protocol");
    assert!(cut(&udp_frame, udp_offload).is_ok());
    let csum = |start, offset| Offload { csum: Some(Csum { start, offset }), ..offload };
    refused(&frame, csum(33, 16), "checksum start");
    refused(&frame, csum(34, 6), "checksum offset");
    assert!(cut(&frame, csum(34, 16)).is_ok());
    let zero = Offload { gso: offload.gso.map(|gso| Gso { size: 0, ..gso }), ..offload };
    assert_eq!(cut(&frame, zero), Err(SegmentError::ZeroSize));
    for len in 0..tcp().header_len() {
        refused(&frame[..len], offload, "cut short");
    }
    refused(&frame[..frame.len() - 1], offload, "payload cut short");
    for flags_and_offset in [0x2000, 1] {
        let (frame, offload) = Packet { flags_and_offset, ..tcp() }.gso(50);
        refused(&frame, offload, "fragment");
    }
    let (arp, _) = tcp().gso(50);
    refused(&[&arp[..12], &[8, 6], &arp[14..]].concat(), offload, "no IP");
    let (frame, offload) = Packet { tags: vec![TAG; 3], ..tcp() }.gso(50);
    refused(&frame, offload, "too many tags");
    // A data offset of 16 bytes, and one beyond the end.
    for words in [4u8, 15] {
        let (mut frame, offload) = Packet { payload: vec![], options: vec![], ..tcp() }.gso(50);
        frame[46] = words << 4;
        refused(&frame, offload, "tcp header");
    }
}

#[test]
fn ipv6_extension_headers_are_kept() {
    let whole = Packet { payload: bytes(100), ..tcp6() };
    let with = |kind: u8, header: &[u8]| {
        let (frame, offload) = whole.gso(60);
        let mut frame = [&frame[..54], header, &frame[54..]].concat();
        frame[20] = kind;
        frame[54] = 6;
        let len = u16::from_be_bytes([frame[18], frame[19]]) + header.len() as u16;
        frame[18..20].copy_from_slice(&len.to_be_bytes());
        cut(&frame, offload.shifted(header.len() as u16))
    };
    for kind in [0, 60, 43] {
        let segments = with(kind, &[0, 1, 0, 0, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5]).unwrap();
        assert_eq!(segments.len(), 2);
        for (segment, len) in segments.iter().zip([60, 40]) {
            // Without the extension header it is an ordinary packet.
            let mut plain = [&segment[..54], &segment[70..]].concat();
            assert_eq!(u16::from_be_bytes([plain[18], plain[19]]), 16 + 32 + len);
            plain[18..20].copy_from_slice(&(32 + len).to_be_bytes());
            plain[20] = 6;
            assert_eq!(Packet::read(&plain).payload.len(), usize::from(len));
        }
    }
    let headers = Err(SegmentError::Headers);
    assert_eq!(with(43, &[0, 0, 0, 1, 0, 0, 0, 0]), headers, "the pseudo header has another destination");
    assert_eq!(with(44, &[0, 0, 0, 0, 0, 0, 0, 0]), headers, "a fragment");
    assert_eq!(with(60, &[0, 255, 0, 0, 0, 0, 0, 0]), headers, "beyond the end");
}

prop_compose! {
    pub(crate) fn any_packet()(
        v6: bool, is_udp: bool, tags in 0usize..3, payload in proptest::collection::vec(any::<u8>(), 0..5000),
        seq: u32, ack: u32, id: u16, flags: u8, window: u16, urgent: u16, ttl: u8, tos: u8, df: bool,
        options in 0usize..11, ip_options in 0usize..11, src: [u8; 16], dst: [u8; 16], ports: (u16, u16),
    ) -> Packet {
        let tags = [OUTER_TAG, TAG][2 - tags..].to_vec();
        let base = Packet { v6, udp: is_udp, tags, payload, src, dst, ports, ttl, tos, ..tcp() };
        let base = if v6 { Packet { id: 0, flags_and_offset: 0, ..base } } else {
            Packet { id, flags_and_offset: if df { 0x4000 } else { 0 }, ip_options: vec![1; ip_options * 4], ..base }
        };
        // Address bytes that IPv4 does not have get the values of `Packet::read`.
        let prefix = if v6 { 0 } else { 12 };
        let mut base = base;
        base.src[..prefix].copy_from_slice(&tcp().src[..prefix]);
        base.dst[..prefix].copy_from_slice(&tcp().dst[..prefix]);
        if is_udp {
            Packet { seq: 0, ack: 0, flags: 0, window: 0, urgent: 0, options: vec![], ..base }
        } else {
            Packet { seq, ack, flags: flags & !SYN, window, urgent, options: vec![1; options * 4], ..base }
        }
    }
}

proptest! {
    #[test]
    fn segments_contain_the_whole_payload(whole in any_packet(), size in 1u16..3000) {
        let (frame, offload) = whole.gso(size);
        let segments = cut(&frame, offload).unwrap();
        let mut stream = vec![];
        for (i, segment) in segments.iter().enumerate() {
            let segment = Packet::read(segment);
            let last = i + 1 == segments.len();
            prop_assert!(last || segment.payload.len() == usize::from(size));
            let mut clear = if last { 0 } else { FIN | PSH };
            if i > 0 {
                clear |= CWR;
            }
            let expected = Packet {
                seq: if whole.udp { 0 } else { whole.seq.wrapping_add(stream.len() as u32) },
                id: if whole.v6 { 0 } else { whole.id.wrapping_add(i as u16) },
                flags: whole.flags & !clear,
                payload: segment.payload.clone(),
                ..whole.clone()
            };
            prop_assert_eq!(format!("{segment:?}"), format!("{expected:?}"));
            stream.extend(segment.payload);
        }
        prop_assert_eq!(stream, whole.payload);
    }
}
