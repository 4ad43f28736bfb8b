use std::net::Ipv4Addr;

use proptest::prelude::*;
use weave_switch::checksum::Sum;
use weave_switch::frame::{Class, classify};
use weave_trace::{Direction, Endpoint, Flow, Probe, Recognised};
use weave_types::MacAddr;

fn flow() -> Flow {
    let end = |n| Endpoint { mac: MacAddr([2, 0, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 32, 0, n) };
    Flow { source: end(1), destination: end(2), id: 0xbeef }
}

/// What the destination answers.
fn answer(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&flow().destination.mac.0);
    if frame[12..14] == [8, 6] {
        answer[21] = 2;
        answer[22..28].copy_from_slice(&flow().destination.mac.0);
        answer[28..32].copy_from_slice(&frame[38..42]);
        answer[32..38].copy_from_slice(&frame[22..28]);
        answer[38..42].copy_from_slice(&frame[28..32]);
    } else {
        answer[26..30].copy_from_slice(&frame[30..34]);
        answer[30..34].copy_from_slice(&frame[26..30]);
        answer[34] = 0;
    }
    answer
}

#[test]
fn probes_and_their_answers_are_recognised() {
    for probe in Probe::ALL {
        let frame = flow().frame(probe, 3, 1376);
        assert_eq!(flow().recognise(&frame), Some(Recognised::Probe(probe, Direction::There)));
        assert_eq!(flow().recognise(&answer(&frame)), Some(Recognised::Probe(probe, Direction::Back)));
        // The beginning is enough.
        let beginning = &frame[..frame.len().min(80)];
        assert_eq!(flow().recognise(beginning), Some(Recognised::Probe(probe, Direction::There)));
        for other in [
            Flow { id: 1, ..flow() },
            Flow { source: flow().destination, ..flow() },
            Flow { destination: flow().source, ..flow() },
        ] {
            let expected = (probe == Probe::Arp && other.id == 1)
                .then_some(Recognised::Probe(Probe::Arp, Direction::There));
            assert_eq!(other.recognise(&frame), expected, "{other:?}");
        }
    }
    let arp = answer(&flow().frame(Probe::Arp, 0, 1376));
    assert_eq!(flow().arp_answer(&arp), Some(flow().destination.mac));
    assert_eq!(flow().arp_answer(&flow().frame(Probe::Arp, 0, 1376)), None);
}

#[test]
fn echo_requests_are_valid_packets_of_the_wanted_size() {
    for (probe, mtu, len) in [(Probe::Small, 1376, 84), (Probe::Full, 1376, 1376), (Probe::Full, 20, 28)] {
        let frame = flow().frame(probe, 0, mtu);
        assert_eq!(frame.len(), 14 + len, "{probe:?}");
        assert_eq!(classify(&frame), Class::Ipv4 { df: true });
        assert!(Sum::ZERO.bytes(&frame[14..34]).is_valid(), "header");
        assert!(Sum::ZERO.bytes(&frame[34..]).is_valid(), "message");
    }
}

#[test]
fn refusals_because_of_the_size_are_recognised() {
    let probe = flow().frame(Probe::Full, 1, 1376);
    let mut refusal = probe[..34].to_vec();
    refusal[26..30].copy_from_slice(&flow().destination.ip.octets());
    refusal[30..34].copy_from_slice(&flow().source.ip.octets());
    refusal.extend([3, 4, 0, 0, 0, 0, 0x05, 0x14]);
    refusal.extend(&probe[14..42]);
    assert_eq!(flow().recognise(&refusal), Some(Recognised::TooBig(1300)));
    assert_eq!(Flow { id: 1, ..flow() }.recognise(&refusal), None);
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        flow().recognise(&bytes);
        flow().arp_answer(&bytes);
    }
}
