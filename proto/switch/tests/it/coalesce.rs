use proptest::prelude::*;
use weave_switch::coalesce::MAX_FRAME;
use weave_switch::{Coalescer, GsoKind, Offload, Segments};

use crate::packet::{DF, Packet, bytes, naive_sum, tcp, tcp6, udp};
use crate::segment::any_packet;

const ACK: u8 = 0x10;
const PSH: u8 = 8;

type Injected = Vec<(Vec<u8>, Offload)>;

/// What comes out of each push, and at last of the flush.
fn run(frames: &[Vec<u8>]) -> Vec<Injected> {
    let mut coalescer = Coalescer::new();
    let mut all = vec![];
    for frame in frames {
        let mut out = vec![];
        coalescer.push(frame, &mut |frame, offload| out.push((frame.to_vec(), offload)));
        all.push(out);
    }
    let mut out = vec![];
    coalescer.flush(&mut |frame, offload| out.push((frame.to_vec(), offload)));
    all.push(out);
    coalescer.flush(&mut |_, _| panic!("flushed twice"));
    all
}

/// How many frames come out of each push and the flush.
fn counts(frames: &[Vec<u8>]) -> Vec<usize> {
    run(frames).iter().map(Vec::len).collect()
}

/// Segments of one flow that follow each other.
fn train(first: &Packet, lens: &[usize]) -> Vec<Packet> {
    let mut seq = first.seq;
    let mut train = vec![];
    for (i, &len) in lens.iter().enumerate() {
        let id = if first.v6 { 0 } else { first.id.wrapping_add(i as u16) };
        train.push(Packet { seq, id, payload: bytes(len), ..first.clone() });
        seq = seq.wrapping_add(len as u32);
    }
    train
}

fn build(packets: &[Packet]) -> Vec<Vec<u8>> {
    packets.iter().map(Packet::build).collect()
}

/// Checks a super-frame in a naive way and gives it back as a packet, and its segment size.
fn read_super(frame: &[u8], offload: Offload) -> (Packet, u16) {
    let (csum, gso) = (offload.csum.unwrap(), offload.gso.unwrap());
    let l4 = usize::from(csum.start);
    let field = l4 + 16;
    assert_eq!(csum.offset, 16);
    // Completed as a kernel would, it has the right checksum.
    let mut whole = frame.to_vec();
    let sum = !naive_sum(&frame[l4..]);
    whole[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    let packet = Packet::read(&whole);
    assert_eq!(usize::from(gso.hdr_len), packet.header_len());
    assert_eq!(l4, packet.l4());
    assert_eq!(gso.kind, if packet.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 });
    (packet, gso.size)
}

#[test]
fn consecutive_segments_are_merged() {
    for first in [tcp(), tcp6()] {
        for tags in [vec![], vec![[0x81, 0, 0, 5]], vec![[0x88, 0xa8, 0, 6], [0x81, 0, 0, 5]]] {
            let first = Packet { tags, seq: 0xffff_fff0, tos: 0x18, ..first.clone() };
            let packets = train(&first, &[100, 100, 100, 40]);
            let out = run(&build(&packets));
            assert_eq!(
                out.iter().map(Vec::len).collect::<Vec<_>>(),
                [0, 0, 0, 1, 0],
                "ends at the short one"
            );
            let (frame, offload) = &out[3][0];
            let (merged, size) = read_super(frame, *offload);
            let payload = packets.iter().flat_map(|p| p.payload.clone()).collect();
            assert_eq!(format!("{merged:?}"), format!("{:?}", Packet { payload, ..first }));
            assert_eq!(size, 100);
            // Segmentation restores the original frames.
            let mut segments = Segments::new(frame, *offload).unwrap();
            for packet in &packets {
                let mut buf = [0; 500];
                let len = segments.next_into(&mut buf).unwrap();
                assert_eq!(buf[..len], packet.build());
            }
            assert_eq!(segments.remaining(), 0);
        }
    }
}

#[test]
fn a_single_segment_is_unchanged() {
    for packet in [tcp(), tcp6()] {
        assert_eq!(run(&[packet.build()]), [vec![], vec![(packet.build(), Offload::NONE)]]);
    }
}

#[test]
fn psh_ends_a_super_frame() {
    let mut packets = train(&tcp(), &[100, 100, 100, 100]);
    packets[1].flags = ACK | PSH;
    let out = run(&build(&packets));
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0, 0, 1]);
    assert_eq!(read_super(&out[1][0].0, out[1][0].1).0.flags, ACK | PSH);
    assert_eq!(read_super(&out[4][0].0, out[4][0].1).0.flags, ACK);
    // A single segment with PSH is passed on immediately.
    let push = Packet { flags: ACK | PSH, ..tcp() }.build();
    assert_eq!(run(std::slice::from_ref(&push)), [vec![(push, Offload::NONE)], vec![]]);
}

#[test]
fn full_super_frames_are_emitted() {
    for first in [tcp(), tcp6()] {
        let header = first.header_len();
        let packets = train(&first, &[1448; 60]);
        let out = run(&build(&packets));
        let lens: Vec<_> =
            out.iter().flatten().map(|(frame, offload)| (frame.len(), offload.gso.is_some())).collect();
        let most = (MAX_FRAME - header) / 1448;
        assert_eq!(lens, [(header + most * 1448, true), (header + (60 - most) * 1448, true)]);
        assert_eq!(out[most - 1].len(), 1, "as soon as no more fits");
    }
    // A first segment that leaves no room for anything.
    let long = train(&tcp(), &[MAX_FRAME - tcp().header_len(), 1]);
    assert_eq!(counts(&build(&long)), [0, 1, 1]);
    // Longer than the longest super-frame: passes (IPv6 does not count its header).
    let longer = Packet { payload: bytes(65535 - 32), ..tcp6() };
    assert!(longer.build().len() > MAX_FRAME);
    assert_eq!(counts(&[longer.build()]), [1, 0]);
}

/// Each case gives the number of frames injected by each push and by the flush.
#[test]
fn different_headers_are_not_merged() {
    fn check(first: &Packet, what: &str, change: &dyn Fn(&mut Packet), expected: &[usize]) {
        let mut packets = train(first, &[100, 100, 100]);
        assert_eq!(counts(&build(&packets)), [0, 0, 0, 1], "unchanged");
        change(&mut packets[2]);
        let frames = build(&packets);
        let out = run(&frames);
        assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{what}");
        let flat: Vec<_> = out.into_iter().flatten().collect();
        let own = flat.iter().position(|(frame, _)| *frame == frames[2]);
        assert!(own.is_some(), "{what}: the third comes out unchanged");
        assert_eq!(flat[own.unwrap()].1, Offload::NONE);
        let (merged, _) = flat.iter().find(|(_, o)| o.gso.is_some()).unwrap();
        assert_eq!(merged.len(), first.header_len() + 200, "{what}: the others are merged");
    }
    // The same flow, but the third segment starts a new super-frame: the first two are emitted, the third is held back.
    type Change = Box<dyn Fn(&mut Packet)>;
    let restarts: Vec<(&str, Change)> = vec![
        ("sequence gap", Box::new(|p| p.seq += 1)),
        ("sequence repeated", Box::new(|p| p.seq -= 100)),
        ("acknowledgement", Box::new(|p| p.ack += 1)),
        ("window", Box::new(|p| p.window += 1)),
        ("urgent pointer", Box::new(|p| p.urgent += 1)),
        ("timestamp", Box::new(|p| p.options[11] += 1)),
        ("option length", Box::new(|p| p.options.extend([1, 1, 1, 1]))),
        ("no options", Box::new(|p| p.options.clear())),
        ("traffic class", Box::new(|p| p.tos = 0x10)),
        ("congestion mark", Box::new(|p| p.tos = 3)),
        ("hop limit", Box::new(|p| p.ttl -= 1)),
        ("longer", Box::new(|p| p.payload.push(0))),
    ];
    for (what, change) in &restarts {
        for first in [tcp(), tcp6()] {
            check(&first, what, change, &[0, 0, 1, 1]);
        }
    }
    check(&tcp(), "df", &|p| p.flags_and_offset = 0, &[0, 0, 1, 1]);
    let counting = Packet { flags_and_offset: 0, ..tcp() };
    check(&counting, "identification", &|p| p.id += 1, &[0, 0, 1, 1]);
    // The same flow, but the third segment cannot start a super-frame: everything is emitted.
    let passes: Vec<(&str, Change)> = vec![
        ("fin", Box::new(|p| p.flags |= 1)),
        ("syn", Box::new(|p| p.flags |= 2)),
        ("rst", Box::new(|p| p.flags |= 4)),
        ("urg", Box::new(|p| p.flags |= 0x20)),
        ("ece", Box::new(|p| p.flags |= 0x40)),
        ("cwr", Box::new(|p| p.flags |= 0x80)),
        ("no ack", Box::new(|p| p.flags = 0)),
        ("empty", Box::new(|p| p.payload.clear())),
        ("push and gap", Box::new(|p| (p.flags, p.seq) = (ACK | PSH, p.seq + 1))),
    ];
    for (what, change) in &passes {
        for first in [tcp(), tcp6()] {
            check(&first, what, change, &[0, 0, 2, 0]);
        }
    }
    check(&tcp(), "ip options", &|p| p.ip_options = vec![1, 1, 1, 1], &[0, 0, 2, 0]);
    check(&tcp(), "fragment", &|p| p.flags_and_offset = 0x2000, &[0, 0, 2, 0]);
    // Another flow: both are held back.
    let others: Vec<(&str, Change)> = vec![
        ("source port", Box::new(|p| p.ports.0 += 1)),
        ("destination port", Box::new(|p| p.ports.1 += 1)),
        ("source address", Box::new(|p| p.src[15] += 1)),
        ("destination address", Box::new(|p| p.dst[12] += 1)),
        ("source mac", Box::new(|p| p.macs[6] += 4)),
        ("destination mac", Box::new(|p| p.macs[5] += 4)),
        ("tagged", Box::new(|p| p.tags.push([0x81, 0, 0, 1]))),
    ];
    for (what, change) in &others {
        for first in [tcp(), tcp6()] {
            check(&first, what, change, &[0, 0, 0, 2]);
        }
    }
    let tagged = Packet { tags: vec![[0x81, 0, 0, 1]], ..tcp() };
    check(&tagged, "another tag", &|p| p.tags[0][3] = 2, &[0, 0, 0, 2]);
    check(&tcp6(), "ipv6 address", &|p| p.dst[0] += 1, &[0, 0, 0, 2]);
    // Another protocol: the third is passed on immediately, the others are held back.
    check(&tcp(), "udp", &|p| *p = udp(), &[0, 0, 1, 1]);
}

/// With the don't-fragment bit the identification has no meaning.
#[test]
fn identification_is_ignored_with_df() {
    let mut packets = train(&Packet { flags_and_offset: DF, ..tcp() }, &[100, 100]);
    packets[1].id = packets[0].id;
    assert_eq!(counts(&build(&packets)), [0, 0, 1]);
}

/// A corrupted segment is passed on unchanged after the segments before it, whichever bit is wrong.
#[test]
fn corrupted_segments_are_not_merged() {
    for first in [tcp(), tcp6()] {
        let frames = build(&train(&first, &[100, 100]));
        // From the IP header on, except for fields that change the kind of packet: version, lengths, protocol, fragment.
        let l3 = first.l3();
        let special = if first.v6 { vec![0, 4, 5, 6] } else { vec![0, 2, 3, 6, 7, 9] };
        for byte in (0..frames[1].len() - l3).filter(|byte| !special.contains(byte)) {
            // No checksum covers these fields of IPv6.
            if first.v6 && (byte < 8) {
                continue;
            }
            for bit in 0..8 {
                let mut frames = frames.clone();
                frames[1][l3 + byte] ^= 1 << bit;
                let out = run(&frames);
                let flat: Vec<_> = out.iter().flatten().collect();
                assert_eq!(flat.len(), 2, "{byte} {bit}");
                assert!(flat.iter().all(|(_, offload)| *offload == Offload::NONE));
                assert_eq!(out[1].last().unwrap().0, frames[1], "passed on immediately");
                assert!(flat.iter().any(|(frame, _)| *frame == frames[0]));
            }
        }
        // If the first segment is corrupted, the second starts a super-frame.
        let mut frames = frames.clone();
        *frames[0].last_mut().unwrap() ^= 1;
        assert_eq!(counts(&frames), [1, 0, 1]);
    }
}

#[test]
fn padded_segments_are_not_merged() {
    let packet = Packet { payload: bytes(1), options: vec![], ..tcp() };
    let mut frame = packet.build();
    frame.extend([0; 5]);
    assert_eq!(run(std::slice::from_ref(&frame)), [vec![(frame, Offload::NONE)], vec![]]);
}

#[test]
fn segments_with_reserved_bits_are_not_merged() {
    // The bit that was ECN's nonce sum (and is accurate ECN's now).
    let mut frame = tcp().build();
    let l4 = tcp().l4();
    frame[l4 + 12] |= 1;
    let sum = u16::from_be_bytes([frame[l4 + 16], frame[l4 + 17]]) - 0x100;
    frame[l4 + 16..l4 + 18].copy_from_slice(&sum.to_be_bytes());
    Packet::read(&frame);
    assert_eq!(counts(&[frame]), [1, 0]);
}

#[test]
fn other_frames_are_passed_on() {
    let arp = [&[2; 12][..], &[8, 6], &[0; 28]].concat();
    let llc = [&[2; 12][..], &[0, 38], &[0; 38]].concat();
    for frame in [vec![], vec![0; 13], vec![0; 14], arp, llc, udp().build()] {
        assert_eq!(run(std::slice::from_ref(&frame)), [vec![(frame, Offload::NONE)], vec![]]);
    }
}

/// A frame of an unknown flow is passed on after the flows with the same MAC addresses; others are held back.
#[test]
fn frames_of_unknown_flows_keep_their_order() {
    let near = train(&tcp(), &[100, 100]);
    let far = Packet { macs: [6; 12], ports: (1, 2), ..tcp() };
    let fragment = Packet { flags_and_offset: 1, ..tcp() };
    let frames = [build(&near), vec![far.build(), fragment.build()]].concat();
    let out = run(&frames);
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 2, 1]);
    assert!(out[3][0].1.gso.is_some());
    assert_eq!(out[3][1].0, fragment.build());
    assert_eq!(out[4][0].0, far.build());
}

#[test]
fn the_oldest_of_nine_flows_is_emitted() {
    let flow = |i: u16| Packet { ports: (i, 80), ..tcp() };
    let mut frames: Vec<_> = (0..8).map(|i| flow(i).build()).collect();
    frames.push(Packet { seq: 1100, ..flow(0) }.build());
    frames.push(flow(8).build());
    let out = run(&frames);
    assert_eq!(out.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 8]);
    assert_eq!(out[9][0].0, flow(1).build(), "the flow with the oldest segment is emitted");
}

proptest! {
    /// After segmentation, shuffling between flows, merging and segmentation, each flow has the same frames.
    #[test]
    fn coalesced_and_segmented_frames_are_unchanged(
        wholes in proptest::collection::vec((any_packet(), 1u16..1500), 1..12),
        order in proptest::collection::vec(any::<u16>(), 0..200),
    ) {
        let mut flows: Vec<Vec<Vec<u8>>> = vec![];
        for (i, (whole, size)) in wholes.iter().enumerate() {
            // Ports distinguish the flows.
            let flags = if whole.udp { 0 } else if whole.flags & 1 == 0 { ACK | PSH } else { whole.flags };
            let whole = Packet { ports: (i as u16, 7), flags, ..whole.clone() };
            let (frame, offload) = whole.gso((*size).max(100));
            flows.push(cut(&frame, offload));
        }
        let expected = flows.clone();
        let mut frames = vec![];
        for pick in order.iter().copied().chain(0..2000) {
            let i = usize::from(pick) % flows.len();
            if !flows[i].is_empty() {
                frames.push(flows[i].remove(0));
            }
        }
        for rest in flows {
            frames.extend(rest);
        }
        let mut restored = vec![vec![]; expected.len()];
        for (frame, offload) in run(&frames).iter().flatten() {
            if offload.gso.is_some() {
                read_super(frame, *offload);
            }
            for piece in cut(frame, *offload) {
                let flow = usize::from(Packet::read(&piece).ports.0);
                restored[flow].push(piece);
            }
        }
        for (restored, expected) in restored.iter().zip(&expected) {
            prop_assert_eq!(restored, expected);
        }
    }
}

fn cut(frame: &[u8], offload: Offload) -> Vec<Vec<u8>> {
    let mut segments = Segments::new(frame, offload).unwrap();
    let mut pieces = vec![];
    while let Some(len) = segments.next_len() {
        let mut piece = vec![0; len];
        assert_eq!(segments.next_into(&mut piece), Some(len));
        pieces.push(piece);
    }
    pieces
}
