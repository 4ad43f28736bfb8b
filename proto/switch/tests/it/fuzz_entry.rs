//! Entry points of the fuzz targets `fuzz/fuzz_targets/switch_*.rs`: all code that handles bytes of peers or containers. The tests
//! here run them on random bytes.

use std::sync::Arc;

use weave_switch::fragment::{Fragments, MAX_ICMP_FRAME, frag_needed, packet_too_big};
use weave_switch::frame::{Class, Ethernet, classify, transport};
use weave_switch::segment::complete_checksum;
use weave_switch::{
    Coalescer, Csum, ForwardingTable, MacConfig, MacTable, Offload, Routes, Segments, local_frame, peer_frame,
};
use weave_types::{Instant, PeerName};

const OWN: PeerName = PeerName::from_bytes([0, 0, 0, 0, 0, 1]);

struct Everywhere;

impl Routes for Everywhere {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        Some(dst)
    }

    fn broadcast(&self, _: PeerName) -> &[PeerName] {
        &[OWN]
    }

    fn knows(&self, _: PeerName) -> bool {
        true
    }
}

/// Runs verdicts, views, fragmentation and ICMP answers on one frame.
pub(crate) fn frame(data: &[u8]) {
    let mut macs = MacTable::new(MacConfig::new(OWN));
    for round in 0..2 {
        let table = ForwardingTable { own: OWN, macs: macs.snapshot(), routes: Arc::new(Everywhere) };
        let (_, local) = local_frame(&table, data, Instant::ORIGIN);
        let src = PeerName::from_bytes([0, 0, 0, 0, 0, 2]);
        let (_, remote) = peer_frame(&table, src, OWN, data, Instant::ORIGIN);
        assert!(
            local.is_none() || remote.is_none() || round == 0,
            "one of them is known in the second round"
        );
        if let Some(ethernet) = Ethernet::parse(data) {
            macs.learn_local(ethernet.src(), Instant::ORIGIN);
        }
    }
    if let Some(found) = transport(data) {
        assert!(found.l3 < found.l4 && found.l4 <= found.end && found.end <= data.len());
    }
    let class = classify(data);
    let mtu = usize::from(data.get(17).copied().unwrap_or(200)) * 8;
    let mut buf = vec![0; 70_000];
    if let Ok(mut fragments) = Fragments::new(data, mtu) {
        assert_eq!(class, Class::Ipv4 { df: false });
        while let Some(len) = fragments.next_len() {
            assert!(len <= (mtu + 14).max(60));
            assert_eq!(fragments.next_into(&mut buf), Some(len));
        }
    }
    for mtu in [0, 1400, u16::MAX] {
        if let Some(len) = frag_needed(data, mtu, &mut buf[..MAX_ICMP_FRAME]) {
            assert!(matches!(class, Class::Ipv4 { .. }) && len <= 14 + 20 + 8 + 68);
        }
        if let Some(len) = packet_too_big(data, mtu, &mut buf[..MAX_ICMP_FRAME]) {
            assert!(class == Class::Ipv6 && len > 14 + 48);
        }
    }
}

/// Runs segmentation, merging and segmentation again. The first ten bytes are a virtio header, the rest is a frame.
pub(crate) fn offload(data: &[u8]) {
    let Ok(offload) = Offload::from_virtio(data) else { return };
    assert_eq!(Offload::from_virtio(&offload.to_virtio()), Ok(offload));
    let frame = &data[10..];
    if let Some(Csum { start, offset }) = offload.csum {
        let _ = complete_checksum(&mut frame.to_vec(), Csum { start, offset });
    }
    let Ok(segments) = Segments::new(frame, offload) else { return };
    let mut coalescer = Coalescer::new();
    let mut out = 0;
    let mut again = |frame: &[u8], offload: Offload| {
        out += Segments::new(frame, offload).expect("a merged frame can be segmented").remaining();
    };
    let expected = each(segments, |piece| coalescer.push(piece, &mut again));
    coalescer.flush(&mut again);
    assert_eq!(out, expected, "as many segments as before");
}

fn each(mut segments: Segments<'_>, mut f: impl FnMut(&[u8])) -> usize {
    let mut buf = vec![0; 66_000.max(segments.next_len().unwrap_or(0))];
    let mut count = 0;
    while let Some(len) = segments.next_len() {
        assert_eq!(segments.next_into(&mut buf), Some(len));
        f(&buf[..len]);
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::packet::Packet;
    use crate::segment::any_packet;

    /// A packet with some bytes overwritten, possibly truncated.
    fn corrupted_packet() -> impl Strategy<Value = Vec<u8>> {
        let damage = proptest::collection::vec((0usize..90, any::<u8>()), 0..4);
        (any_packet(), damage, 0usize..6000).prop_map(|(packet, damage, len)| {
            let packet =
                Packet { payload: packet.payload[..packet.payload.len().min(300)].to_vec(), ..packet };
            let mut frame = packet.build();
            for (at, byte) in damage {
                if let Some(there) = frame.get_mut(at) {
                    *there = byte;
                }
            }
            if len < frame.len() {
                frame.truncate(len);
            }
            frame
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            super::frame(&data);
            super::offload(&data);
        }

        #[test]
        fn corrupted_packets_are_handled(data in corrupted_packet()) {
            super::frame(&data);
        }

        #[test]
        fn corrupted_super_frames_are_handled(
            data in corrupted_packet(), flags in 0u8..3, kind in prop_oneof![Just(0u8), Just(1), Just(4), Just(5)], size: u8,
            start in 0u16..80, offset in prop_oneof![Just(16u16), Just(6), 0u16..200],
        ) {
            let mut bytes = vec![flags, kind, 0, 0];
            for word in [u16::from(size), start, offset] {
                bytes.extend(word.to_ne_bytes());
            }
            bytes.extend(data);
            super::offload(&bytes);
        }
    }
}
