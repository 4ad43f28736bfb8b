//! Properties that hold for all inputs.

use std::sync::Arc;

use crate::support::{Line, Recorder, UID, addr, config, name, session};
use proptest::prelude::*;
use weave_overlay::forward::{Forwarder, Neighbour, Overlay, Tables};
use weave_overlay::select::{OverlaySwitch, parse_control};
use weave_overlay::udp::{ControlFrame, OpenError, Opener, Sealer, UdpControl, UdpPath, probe_budget};
use weave_switch::{Csum, ForwardingTable, Gso, GsoKind, MacConfig, MacTable, Offload};
use weave_types::Instant;

fn seal(sealer: &Sealer, frames: &[Vec<u8>], df: bool) -> Vec<u8> {
    let mut buf = vec![0; 65507];
    let mut draft = sealer.begin();
    for frame in frames {
        assert!(sealer.push(&mut draft, &mut buf, name(1), name(3), frame));
    }
    assert_eq!(draft.records(), frames.len());
    let len = sealer.sealed_len(&draft);
    assert_eq!(sealer.finish(draft, &mut buf, df), Ok(len));
    buf.truncate(len);
    buf
}

fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let frame =
        (0usize..3000, any::<u8>()).prop_map(|(len, seed)| (0..len).map(|i| (i as u8) ^ seed).collect());
    prop::collection::vec(frame, 0..20)
}

fn key() -> impl Strategy<Value = Option<[u8; 32]>> {
    prop::option::of(any::<[u8; 32]>())
}

/// The forwarder of the second of three peers in a line.
fn forwarder(key: Option<[u8; 32]>, mtu: usize, stack_fragments: bool) -> Forwarder {
    let mut macs = MacTable::new(MacConfig::new(name(2)));
    for peer in [1, 2, 3] {
        macs.learn_remote(weave_types::MacAddr([2, 0, 0, 0, 0, peer]), name(peer), Instant::ORIGIN);
    }
    let routes = Arc::new(Line { own: 2, peers: 3 });
    let forwarding = ForwardingTable { own: name(2), macs: macs.snapshot(), routes };
    let neighbours = [1, 3].map(|remote| {
        let session = session(2, remote, key);
        let max_payload = (mtu + session.overhead() - 28).min(65507);
        let path = UdpPath {
            local: addr(1).ip(),
            remote: Some(addr(remote)),
            mtu,
            max_payload,
            stack_fragments,
            batched: true,
        };
        Arc::new(Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve })
    });
    Forwarder::new(Arc::new(Tables::new(0, forwarding, neighbours.into())), 0)
}

fn offload() -> impl Strategy<Value = Offload> {
    let csum = prop_oneof![Just((34, 16)), Just((34, 6)), any::<(u16, u16)>()];
    let kind = prop_oneof![Just(GsoKind::TcpV4), Just(GsoKind::TcpV6), Just(GsoKind::Udp)];
    let gso = (kind, prop_oneof![Just(1336u16), any::<u16>()], any::<u16>());
    (prop::option::of(csum), prop::option::of(gso)).prop_map(|(csum, gso)| Offload {
        csum: csum.map(|(start, offset)| Csum { start, offset }),
        gso: gso.map(|(kind, size, hdr_len)| Gso { kind, size, hdr_len }),
    })
}

/// Frames with valid MACs and headers, corrupted in one byte.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let mac =
        prop_oneof![Just([2, 0, 0, 0, 0, 1]), Just([2, 0, 0, 0, 0, 3]), Just([255; 6]), any::<[u8; 6]>()];
    let head = prop_oneof![
        Just(&[0x08, 0x00, 0x45, 0, 5, 200, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..]),
        Just(&[0x08, 0x00, 0x45, 0, 5, 200, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2][..]),
        Just(&[0x86, 0xdd, 0x60, 0, 0, 0, 5, 200, 6, 64, 0xfd][..]),
        Just(&[0x08, 0x06][..]),
        Just(&[][..]),
    ];
    (mac.clone(), mac, head, 0usize..4000, any::<(prop::sample::Index, u8)>()).prop_map(
        |(dst, src, head, len, (at, value))| {
            let mut frame = [&dst[..], &src[..], head].concat();
            frame.resize(len, 0x50);
            if !frame.is_empty() {
                let at = at.index(frame.len());
                frame[at] ^= value;
            }
            frame
        },
    )
}

proptest! {
    #[test]
    fn sealed_datagrams_can_be_opened(frames in frames(), key in key(), df in any::<bool>()) {
        let sealed = seal(&Sealer::new(session(1, 2, key)), &frames, df);
        let opener = Opener::new(session(2, 1, key));
        let mut bytes = sealed.clone();
        let opened: Vec<_> = opener.open(&mut bytes).unwrap().map(|record| record.unwrap()).collect();
        prop_assert_eq!(opened.len(), frames.len());
        for (record, frame) in opened.iter().zip(&frames) {
            prop_assert_eq!((record.src, record.dst, record.frame), (name(1), name(3), &frame[..]));
        }
        if key.is_some() {
            prop_assert_eq!(opener.open(&mut sealed.clone()).err(), Some(OpenError::Replayed));
        }
    }

    /// Compared with an independent implementation, RustCrypto's.
    #[test]
    fn sealing_is_nacl_secretbox(frames in frames(), key in any::<[u8; 32]>(), df in any::<bool>()) {
        use crypto_secretbox::aead::{AeadInPlace, KeyInit};
        let sealed = seal(&Sealer::new(session(1, 2, Some(key))), &frames, df);
        let plain = seal(&Sealer::new(session(1, 2, None)), &frames, df);
        let mut nonce = [0; 24];
        nonce[0] = 0x80;
        nonce[16] = if df { 0x80 } else { 0 };
        let mut body = plain[6..].to_vec();
        let tag = crypto_secretbox::XSalsa20Poly1305::new(&key.into())
            .encrypt_in_place_detached(&nonce.into(), b"", &mut body)
            .unwrap();
        prop_assert_eq!(&sealed[..6], &plain[..6]);
        prop_assert_eq!(&sealed[6..14], &nonce[16..]);
        prop_assert_eq!(&sealed[14..30], &tag[..]);
        prop_assert!(sealed[30..] == body[..]);
    }

    #[test]
    fn corrupted_datagrams_are_rejected(frames in frames(), key in any::<[u8; 32]>(), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut sealed = seal(&Sealer::new(session(1, 2, Some(key))), &frames, true);
        // The name is in clear and selects the key; it is not authenticated.
        let at = 6 + at.index(sealed.len() - 6);
        sealed[at] ^= 1u8 << bit;
        let opener = Opener::new(session(2, 1, Some(key)));
        prop_assert_eq!(opener.open(&mut sealed).err(), Some(OpenError::Forged));
    }

    #[test]
    fn truncated_datagrams_are_rejected(frames in frames(), key in any::<[u8; 32]>(), at in any::<prop::sample::Index>()) {
        let sealed = seal(&Sealer::new(session(1, 2, Some(key))), &frames, true);
        let mut cut = sealed[..at.index(sealed.len())].to_vec();
        prop_assert!(Opener::new(session(2, 1, Some(key))).open(&mut cut).is_err());
    }

    #[test]
    fn any_datagram_is_handled(
        bytes in prop::collection::vec(any::<u8>(), 0..300), key in key(), from in 1u8..4, named in any::<bool>(),
    ) {
        let mut bytes = bytes;
        if named && bytes.len() >= 6 {
            bytes[..6].copy_from_slice(&name(from).to_bytes());
        }
        if let Ok(records) = Opener::new(session(2, 1, key)).open(&mut bytes.clone()) {
            prop_assert!(records.count() <= bytes.len() / 14 + 1);
        }
        _ = ControlFrame::parse(&bytes);
        let mut io = Recorder::default();
        let mut forwarder = forwarder(key, 1414, true);
        forwarder.handle_datagram(addr(1), &mut bytes, Instant::ORIGIN, &mut io);
        forwarder.flush(&mut io);
        io.take();
    }

    /// The receiver can open every datagram, and none exceeds the path MTU.
    #[test]
    fn any_frame_is_forwarded_or_dropped(
        frames in prop::collection::vec((frame(), offload(), any::<bool>()), 1..12),
        key in key(), mtu in prop_oneof![Just(1414usize), 552usize..9000, Just(65535)], stack_fragments in any::<bool>(),
    ) {
        let mut io = Recorder::default();
        let mut forwarder = forwarder(key, mtu, stack_fragments);
        let sealer = Sealer::new(session(1, 2, key));
        for (frame, offload, local) in &frames {
            if *local {
                forwarder.handle_local(frame, *offload, Instant::ORIGIN, &mut io);
            } else {
                let mut datagram = seal(&sealer, std::slice::from_ref(frame), true);
                forwarder.handle_datagram(addr(1), &mut datagram, Instant::ORIGIN, &mut io);
            }
        }
        forwarder.flush(&mut io);
        let io = io.take();
        let limit = (mtu + session(1, 2, key).overhead() - 28).min(65507);
        let openers = [1, 3].map(|own| Opener::new(session(own, 2, key)));
        for (to, mut datagram) in io.sent {
            let limit = if to.df { limit } else { 65507 };
            prop_assert!(datagram.len() <= limit);
            let opener = openers.iter().find(|o| o.session().own().to_bytes()[5] as u64 == to.conn.0).unwrap();
            let records: Vec<_> = opener.open(&mut datagram).unwrap().collect();
            prop_assert!((1..=100).contains(&records.len()));
            prop_assert!(records.iter().all(|record| record.is_ok()));
        }
    }

    #[test]
    fn any_sequence_of_inputs_is_handled(steps in prop::collection::vec((0u8..7, any::<u16>(), prop::collection::vec(any::<u8>(), 0..4)), 0..60)) {
        let mut control = UdpControl::new(config(session(1, 2, Some([1; 32])), 2));
        let mut now = Instant::ORIGIN;
        for (step, number, bytes) in steps {
            match step {
                0 => control.confirm(now),
                1 => control.handle_control_frame(ControlFrame::Heartbeat(UID), addr(number as u8), now),
                2 => control.handle_control_frame(ControlFrame::MtuTest { mtu: number }, addr(2), now),
                3 => _ = control.handle_control((number % 5) as u8, &bytes, now),
                4 => control.handle_interface_mtu(number, now),
                5 => _ = control.handle_control(3, &number.to_be_bytes(), now),
                _ => {
                    if let Some((at, _)) = control.poll_timeout() {
                        now = now.max(at);
                    }
                    control.handle_timeout(&mut probe_budget(), now);
                }
            }
            let mut outputs = 0;
            while control.poll_output().is_some() {
                outputs += 1;
                prop_assert!(outputs < 100, "too many outputs");
            }
            let path = control.path();
            prop_assert!(path.mtu >= 6 && path.mtu <= 65535 && path.max_payload <= 65507);
            // Handling a timer that is due must advance it.
            control.handle_timeout(&mut probe_budget(), now);
            prop_assert!(control.poll_timeout().is_none_or(|(at, _)| at > now));
        }
    }

    #[test]
    fn control_payloads_with_unknown_indices_are_rejected(payload in prop::collection::vec(any::<u8>(), 0..5)) {
        let both = ["fastdp".to_owned(), "sleeve".to_owned()];
        let switch = OverlaySwitch::new("peer", &both, Some(&both), false).unwrap();
        if let Ok((index, _, _)) = parse_control(&payload) {
            prop_assert_eq!(switch.control_target(Some(index)).is_ok(), index < 2);
        } else {
            prop_assert!(payload.len() < 2);
        }
    }
}
