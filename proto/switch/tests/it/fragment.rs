use proptest::prelude::*;
use weave_switch::fragment::{
    FragmentError, Fragments, MAX_ICMP_FRAME, frag_needed, packet_too_big, too_big,
};

use crate::packet::{DF, Packet, bytes, naive_sum, tcp, tcp6, udp, udp6};

fn plain() -> Packet {
    Packet { flags_and_offset: 0, ..udp() }
}

fn fragments(frame: &[u8], mtu: usize) -> Result<Vec<Vec<u8>>, FragmentError> {
    let mut fragments = Fragments::new(frame, mtu)?;
    let mut pieces = vec![];
    while let Some(len) = fragments.next_len() {
        let mut buf = vec![0xee; len];
        assert_eq!(fragments.next_into(&mut buf[..len - 1]), None);
        assert_eq!(fragments.next_into(&mut buf), Some(len));
        pieces.push(buf);
    }
    Ok(pieces)
}

/// Reassembles the payload and checks the headers of all fragments.
fn reassemble(pieces: &[Vec<u8>], whole: &[u8], mtu: usize) -> Vec<u8> {
    let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let header_len = usize::from(whole[14] & 15) * 4;
    let start = usize::from(word(whole, 20) & 0x1fff) * 8;
    let mut payload = vec![];
    for (i, piece) in pieces.iter().enumerate() {
        let total = usize::from(word(piece, 16));
        assert!(total <= mtu && piece.len() >= 60);
        assert_eq!(naive_sum(&piece[14..14 + header_len]), 0xffff);
        assert!(piece[14 + total..].iter().all(|b| *b == 0), "padding");
        assert_eq!(piece.len(), (14 + total).max(60));
        // Everything but length, flags, offset and checksum is repeated.
        assert_eq!(
            [&piece[..16], &piece[18..20], &piece[22..24], &piece[26..14 + header_len]].concat(),
            [&whole[..16], &whole[18..20], &whole[22..24], &whole[26..14 + header_len]].concat()
        );
        assert_eq!(usize::from(word(piece, 20) & 0x1fff) * 8, start + payload.len());
        let more = i + 1 < pieces.len() || word(whole, 20) & 0x2000 != 0;
        assert_eq!(word(piece, 20) & 0xe000, (word(whole, 20) & 0xc000) | if more { 0x2000 } else { 0 });
        payload.extend(&piece[14 + header_len..14 + total]);
    }
    payload
}

#[test]
fn invalid_frames_and_mtus_are_rejected() {
    let frame = plain().build();
    assert_eq!(
        fragments(&Packet { flags_and_offset: DF, ..plain() }.build(), 60),
        Err(FragmentError::DontFragment)
    );
    for mtu in 0..28 {
        assert_eq!(fragments(&frame, mtu), Err(FragmentError::MtuTooSmall), "{mtu}");
    }
    assert_eq!(fragments(&frame, 28).unwrap().len(), 14);
    assert_eq!(fragments(&frame, 35).unwrap().len(), 13, "8 bytes each, 12 in the last");
    assert_eq!(fragments(&frame, 36).unwrap().len(), 7);
    for not_ipv4 in [
        udp6().build(),
        Packet { tags: vec![[0x81, 0, 0, 1]], ..plain() }.build(),
        frame[..33].to_vec(),
        frame[..frame.len() - 1].to_vec(),
        vec![],
    ] {
        assert_eq!(fragments(&not_ipv4, 60), Err(FragmentError::NotIpv4));
    }
    let mut impossible = frame.clone();
    impossible[16..18].copy_from_slice(&[0, 19]);
    assert_eq!(fragments(&impossible, 60), Err(FragmentError::NotIpv4));
    // 8191 * 8 = 65528, 7 more bytes are the most.
    let last = |len| Packet { flags_and_offset: 0x1fff, payload: bytes(len), ..plain() }.build();
    assert_eq!(fragments(&last(0), 60), Err(FragmentError::OffsetTooBig));
    let mut just = last(0);
    just[16..18].copy_from_slice(&27u16.to_be_bytes());
    assert_eq!(fragments(&just, 60).unwrap().len(), 1);
}

#[test]
fn a_frame_that_fits_is_one_fragment() {
    let mut frame = plain().build();
    assert_eq!(fragments(&frame, 128).unwrap(), [frame.clone()]);
    assert_eq!(fragments(&frame, 127).unwrap().len(), 2);
    // Padding is removed, and added again if the frame is too short.
    let whole = frame.clone();
    frame.extend([7; 9]);
    assert_eq!(fragments(&frame, 1000).unwrap(), [whole]);
    let short = Packet { payload: bytes(3), ..plain() }.build();
    assert_eq!(fragments(&short, 1000).unwrap(), [[short.clone(), vec![0; 60 - short.len()]].concat()]);
}

#[test]
fn too_big_compares_with_the_mtu() {
    assert!(!too_big(1514, 1500) && too_big(1515, 1500));
    assert!(!too_big(usize::MAX, usize::MAX));
}

proptest! {
    #[test]
    fn fragments_reassemble_to_the_packet(
        len in 0usize..9000, mtu in 28usize..2000, options in 0usize..11, offset in 0u16..1000, more: bool, id: u16,
    ) {
        let flags_and_offset = offset | if more { 0x2000 } else { 0 };
        let packet = Packet {
            payload: bytes(len), ip_options: vec![1; options * 4], flags_and_offset, id, ..plain()
        };
        let frame = packet.build();
        let pieces = fragments(&frame, mtu);
        if mtu < 28 + options * 4 {
            prop_assert_eq!(pieces, Err(FragmentError::MtuTooSmall));
        } else {
            let pieces = pieces.unwrap();
            prop_assert_eq!(reassemble(&pieces, &frame, mtu), &frame[packet.l4()..]);
            // Every fragment except the last is as long as possible.
            let room = mtu - 20 - options * 4;
            for piece in &pieces[..pieces.len() - 1] {
                let total = usize::from(u16::from_be_bytes([piece[16], piece[17]]));
                prop_assert_eq!(total, mtu - room % 8);
            }
        }
    }
}

fn answer4(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let mut buf = [0xee; MAX_ICMP_FRAME];
    let len = frag_needed(frame, mtu, &mut buf)?;
    assert_eq!(frag_needed(frame, mtu, &mut [0; MAX_ICMP_FRAME][..len - 1]), None, "no room");
    Some(buf[..len].to_vec())
}

fn answer6(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let mut buf = [0xee; MAX_ICMP_FRAME];
    let len = packet_too_big(frame, mtu, &mut buf)?;
    assert_eq!(packet_too_big(frame, mtu, &mut [0; MAX_ICMP_FRAME][..len - 1]), None, "no room");
    Some(buf[..len].to_vec())
}

#[test]
fn frag_needed_quotes_the_packet() {
    let packet = Packet { payload: bytes(1400), ..tcp() };
    let answer = answer4(&packet.build(), 1376).unwrap();
    assert_eq!(answer.len(), 14 + 20 + 8 + 28);
    assert_eq!(naive_sum(&answer[14..34]), 0xffff);
    assert_eq!(naive_sum(&answer[34..]), 0xffff);
    assert_eq!(answer[34..42], [3, 4, answer[36], answer[37], 0, 0, 0x05, 0x60]);
    // A truncated packet is quoted as far as it exists.
    assert_eq!(answer4(&packet.build()[..36], 1376).unwrap().len(), 14 + 20 + 8 + 22);
}

#[test]
fn frag_needed_is_refused_where_rfc_1122_forbids_it() {
    let answers = |packet: Packet| answer4(&packet.build(), 500).is_some();
    assert!(answers(tcp()));
    assert!(answers(Packet { flags_and_offset: 0x6000, ..tcp() }), "the first fragment");
    assert!(!answers(Packet { flags_and_offset: 0x4001, ..tcp() }), "another fragment");
    assert!(!answers(tcp6()) && !answers(Packet { tags: vec![[0x81, 0, 0, 1]], ..tcp() }));
    let with = |at: usize, addr: [u8; 4]| {
        let mut packet = tcp();
        if at == 0 {
            packet.src[12..].copy_from_slice(&addr)
        } else {
            packet.dst[12..].copy_from_slice(&addr)
        }
        answers(packet)
    };
    for end in [0, 1] {
        assert!(with(end, [10, 0, 0, 9]));
        assert!(!with(end, [0; 4]) && !with(end, [255; 4]) && !with(end, [224, 0, 0, 1]));
    }
    for (at, mac) in [(0, [1, 0, 0, 0, 0, 1]), (6, [1, 0, 0, 0, 0, 1]), (0, [0; 6]), (6, [0; 6])] {
        let mut packet = tcp();
        packet.macs[at..at + 6].copy_from_slice(&mac);
        assert!(!answers(packet));
    }
    let mut icmp = tcp().build();
    icmp[23] = 1;
    for kind in 0..=255 {
        icmp[34] = kind;
        assert_eq!(answer4(&icmp, 500).is_none(), [3, 4, 5, 11, 12].contains(&kind), "type {kind}");
    }
    assert_eq!(answer4(&icmp[..34], 500), None, "type unknown");
}

#[test]
fn packet_too_big_quotes_the_packet() {
    for len in [100, 1232 - 40 - 32, 1400] {
        let packet = Packet { payload: bytes(len), tos: 0x10, ..tcp6() };
        let mut frame = packet.build();
        let ip = frame[14..].to_vec();
        frame.extend([0; 3]);
        let answer = answer6(&frame, 1380).unwrap();
        let quoted = ip.len().min(1232);
        assert_eq!(answer.len(), 14 + 40 + 8 + quoted);
        assert!(answer.len() <= MAX_ICMP_FRAME);
        assert_eq!(answer[..14], [&frame[6..12], &frame[..6], &[0x86, 0xdd]].concat());
        let length = ((8 + quoted) as u16).to_be_bytes();
        assert_eq!(answer[14..22], [0x60, 0, 0, 0, length[0], length[1], 58, 64]);
        assert_eq!(answer[22..54], [packet.dst, packet.src].concat());
        assert_eq!(answer[54..62], [2, 0, answer[56], answer[57], 0, 0, 0x05, 0x64]);
        assert_eq!(answer[62..], ip[..quoted]);
        let pseudo = [&packet.dst[..], &packet.src, &[0, 0, length[0], length[1], 0, 0, 0, 58]].concat();
        assert_eq!(naive_sum(&[&pseudo[..], &answer[54..]].concat()), 0xffff);
    }
}

#[test]
fn packet_too_big_is_refused_where_rfc_4443_forbids_it() {
    let frame = tcp6().build();
    assert!(answer6(&frame, 1280).is_some());
    assert!(answer6(&frame, 1279).is_none(), "a host need not obey");
    assert!(answer6(&tcp().build(), 1400).is_none());
    assert!(answer6(&Packet { tags: vec![[0x81, 0, 0, 1]], ..tcp6() }.build(), 1400).is_none());
    for at in [22, 38] {
        for addr in [[0; 16], [0xff; 16]] {
            let mut frame = frame.clone();
            frame[at..at + 16].copy_from_slice(&addr);
            assert!(answer6(&frame, 1400).is_none());
        }
    }
    for at in [0, 6] {
        let mut frame = frame.clone();
        frame[at] = 1;
        assert!(answer6(&frame, 1400).is_none());
    }
    // Errors and redirects, directly and after an extension header of 8 bytes.
    for (next, at) in [(58, 54), (60, 62)] {
        for kind in 0..=255 {
            let mut frame = frame.clone();
            frame[20] = next;
            if next == 60 {
                frame[54..56].copy_from_slice(&[58, 0]);
            }
            frame[at] = kind;
            assert_eq!(answer6(&frame, 1400).is_none(), kind < 128 || kind == 137, "type {kind}");
        }
    }
    let mut short = frame.clone();
    short[20] = 58;
    assert!(answer6(&short[..54], 1400).is_none(), "type unknown");
}
