//! Entry points of the fuzz targets `sleeve_datagram`, `warp` and `overlay_control`: all code that handles bytes of peers. The corpus tests
//! run them as well.

use std::net::SocketAddr;
use std::sync::Arc;

use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Forwarder, Neighbour, Overlay, Tables};
use weave_overlay::select::{self, OverlaySwitch, parse_control};
use weave_overlay::udp::{
    ControlFrame, Opener, Output, Sealer, Session, SessionConfig, UdpControl, UdpControlConfig, UdpPath,
    probe_budget,
};
use weave_overlay::warp::{Cipher, KeyLimits, WarpControl, WarpControlConfig};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::{ForwardingTable, MacConfig, MacTable, Routes};
use weave_types::{ConnectionId, ConnectionUid, Instant, PeerName};

const OWN: PeerName = PeerName::from_bytes([0, 0, 0, 0, 0, 1]);
const REMOTE: PeerName = PeerName::from_bytes([0, 0, 0, 0, 0, 2]);
const OTHER: PeerName = PeerName::from_bytes([0, 0, 0, 0, 0, 3]);

struct AllReachable;

impl Routes for AllReachable {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        Some(dst)
    }

    fn broadcast(&self, _: PeerName) -> &[PeerName] {
        &[OTHER]
    }

    fn knows(&self, _: PeerName) -> bool {
        true
    }
}

/// An [`Io`] that checks lengths and discards everything. There are two neighbours, each with and without the don't-fragment bit.
#[derive(Default)]
struct Sink {
    open: [Option<Vec<u8>>; 4],
}

impl Io for Sink {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        let slot = Slot(u32::from(to.df) + 2 * u32::from(to.to == address(OTHER)));
        let open = self.open[slot.0 as usize].replace(vec![0; room]);
        assert!(open.is_none(), "two open slots for one destination");
        slot
    }

    fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        self.open[slot.0 as usize].as_mut().expect("no open slot")
    }

    fn commit(&mut self, slot: Slot, len: usize) {
        let buf = self.open[slot.0 as usize].take().expect("no open slot");
        assert!(len <= if slot.0 % 2 == 1 { 1472 } else { buf.len() });
    }

    fn inject(&mut self, frame: &[u8]) {
        assert!(frame.len() >= 14);
    }

    fn event(&mut self, event: ForwarderEvent) {
        if let ForwarderEvent::Control { frame: control, .. } = event {
            assert_ne!(control, ControlFrame::Malformed);
        }
    }
}

fn address(peer: PeerName) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, peer.to_bytes()[5]], 6783))
}

fn session(own: PeerName, remote: PeerName, key: Option<[u8; 32]>) -> Arc<Session> {
    let (conn, uid) = (ConnectionId(1), ConnectionUid(0x0102_0304_0506_0708));
    Session::new(SessionConfig { own, remote, conn, uid, outbound: own < remote, key })
}

/// Handles a datagram. The first byte is a set of flags: the session has a key (1); the rest is sealed instead of used directly
/// (2); the neighbours do not receive fragmented datagrams (4); the datagram is sealed with the don't-fragment bit (8).
pub(crate) fn datagram(data: &[u8]) {
    let Some((&flags, data)) = data.split_first() else { return };
    let key = (flags & 1 != 0).then_some([7; 32]);
    let mut bytes = [&REMOTE.to_bytes(), data].concat();
    if flags & 2 != 0 && bytes.len() < 60000 {
        // The data becomes one record.
        let sealer = Sealer::new(session(REMOTE, OWN, key));
        let mut draft = sealer.begin();
        bytes = vec![0; sealer.sealed_len_with(&draft, data.len().saturating_sub(14))];
        let (header, frame) = data.split_at(data.len().min(14));
        let name = |at: usize| -> PeerName {
            header
                .get(at..at + 6)
                .map_or(OWN, |name| PeerName::from_bytes(name.try_into().expect("six bytes")))
        };
        assert!(sealer.push(&mut draft, &mut bytes, name(0), name(6), frame));
        sealer.finish(draft, &mut bytes, flags & 8 != 0).expect("no sequence number left");
    }
    let macs = MacTable::new(MacConfig::new(OWN)).snapshot();
    let forwarding = ForwardingTable { own: OWN, macs, routes: Arc::new(AllReachable) };
    let neighbours = [REMOTE, OTHER].map(|remote| {
        let session = session(OWN, remote, key);
        let mtu = 1500 - session.overhead();
        let path = UdpPath {
            local: address(OWN).ip(),
            remote: Some(address(remote)),
            mtu,
            max_payload: 1472,
            stack_fragments: flags & 4 == 0,
            batched: true,
        };
        Arc::new(Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve })
    });
    let mut forwarder = Forwarder::new(Arc::new(Tables::new(0, forwarding, neighbours.into())), 0);
    let mut io = Sink::default();
    for _ in 0..2 {
        forwarder.handle_datagram(address(REMOTE), &mut bytes.clone(), Instant::ORIGIN, &mut io);
        forwarder.flush(&mut io);
    }
    let stats = forwarder.stats();
    assert!(key.is_none() || stats.drop_replayed + stats.drop_forged + stats.drop_malformed > 0);
}

fn warp_end(own: PeerName, limits: KeyLimits) -> WarpControl {
    let remote = if own == OWN { REMOTE } else { OWN };
    let (conn, uid) = (ConnectionId(1), ConnectionUid(7));
    let number = own.to_bytes()[5];
    WarpControl::new(WarpControlConfig {
        session: SessionConfig { own, remote, conn, uid, outbound: own < remote, key: None },
        mesh_key: None,
        local: address(own),
        remote: address(remote),
        private_key: [number; 32].into(),
        index: 0x0101_0101 * u32::from(number),
        preferred: Cipher::Aes256Gcm,
        limits,
        liveness: true,
        segmentation: true,
    })
}

/// The two ends of warp, with keys.
fn warp_ends(limits: KeyLimits) -> [WarpControl; 2] {
    let mut ends = [OWN, REMOTE].map(|own| warp_end(own, limits));
    let keys = ends.each_mut().map(|end| {
        end.confirm(Instant::ORIGIN);
        match end.poll_output() {
            Some(Output::Control { tag: 0, body }) => body,
            other => panic!("{other:?} instead of the key"),
        }
    });
    for (end, key) in ends.iter_mut().zip(keys.iter().rev()) {
        end.handle_control(0, key, Instant::ORIGIN).expect("the key is good");
    }
    ends
}

/// Passes operations to an end of warp, each encoded as an operation, a length and that many bytes: control messages, datagrams as they
/// are, datagrams that the other end seals, and changed ones.
pub(crate) fn warp(mut data: &[u8]) {
    let limits = KeyLimits { datagrams: 2, time: std::time::Duration::from_secs(1) };
    let [mut own, other] = warp_ends(limits);
    let session = |end: &WarpControl| end.path_control().expect("there are keys").session().clone();
    let (ours, theirs) = (session(&own), session(&other));
    let sealer = Sealer::new(theirs.clone());
    let back = Opener::new(theirs);
    let path = own.path_control().expect("there are keys").path();
    let sleeve = self::session(OWN, REMOTE, None);
    let neighbour = Neighbour {
        session: sleeve,
        confirmed: true,
        path: UdpPath { remote: Some(address(REMOTE)), ..path },
        warp: Some((ours, UdpPath { remote: Some(address(REMOTE)), mtu: 1412, max_payload: 1472, ..path })),
        overlay: Overlay::Warp,
    };
    let macs = MacTable::new(MacConfig::new(OWN)).snapshot();
    let forwarding = ForwardingTable { own: OWN, macs, routes: Arc::new(AllReachable) };
    let mut forwarder = Forwarder::new(Arc::new(Tables::new(0, forwarding, vec![Arc::new(neighbour)])), 0);
    let mut io = Sink::default();
    let mut now = Instant::ORIGIN;
    while let [operation, len, rest @ ..] = data {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        match operation % 6 {
            0 => _ = own.handle_control(*len % 5, body, now),
            1 => {
                let mut fresh = warp_end(OWN, limits);
                _ = fresh.handle_control(0, body, now);
                fresh.confirm(now);
                while fresh.poll_output().is_some() {}
            }
            2 => forwarder.handle_datagram(address(REMOTE), &mut body.to_vec(), now, &mut io),
            3 | 4 => {
                let mut draft = sealer.begin();
                let mut bytes = vec![0; sealer.sealed_len_with(&draft, body.len())];
                assert!(sealer.push(&mut draft, &mut bytes, REMOTE, OWN, body));
                sealer.finish(draft, &mut bytes, operation & 8 != 0).expect("no sequence number left");
                let before = forwarder.stats().drop_forged;
                if operation % 6 == 4 {
                    let at = usize::from(*len) % bytes.len();
                    bytes[at] ^= 1 << (operation >> 5);
                    forwarder.handle_datagram(address(REMOTE), &mut bytes, now, &mut io);
                } else {
                    forwarder.handle_datagram(address(REMOTE), &mut bytes.clone(), now, &mut io);
                    assert_eq!(forwarder.stats().drop_forged, before);
                    let replayed = forwarder.stats().drop_replayed;
                    forwarder.handle_datagram(address(REMOTE), &mut bytes, now, &mut io);
                    assert_eq!(forwarder.stats().drop_replayed, replayed + 1);
                }
            }
            _ => {
                now = own.poll_timeout().map_or(now, |(at, _)| at.max(now));
                own.handle_timeout(&mut probe_budget(), now);
            }
        }
        forwarder.flush(&mut io);
        while let Some(output) = own.poll_output() {
            if let Output::Datagram { mut bytes, .. } = output {
                assert!(back.open(&mut bytes).is_ok());
            }
        }
    }
}

/// Passes a sequence of inputs to a connection, each encoded as an operation, a length and that many bytes.
pub(crate) fn control(mut data: &[u8]) {
    let both = [select::FASTDP.to_owned(), select::SLEEVE.to_owned()];
    let Ok(mut switch) = OverlaySwitch::new("peer", &both, Some(&both), false) else { return };
    let mut connection = UdpControl::new(UdpControlConfig {
        session: session(OWN, REMOTE, None),
        local: address(OWN),
        remote: address(REMOTE),
        outbound: false,
    });
    let uid = connection.session().uid();
    let mut now = Instant::ORIGIN;
    while let [operation, len, rest @ ..] = data {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        data = rest;
        let from = SocketAddr::from(([10, 0, 0, *len], 6783));
        let number = body.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        match operation % 8 {
            0 => connection.confirm(now),
            1 => connection.handle_control_frame(ControlFrame::Heartbeat(uid), from, now),
            2 => {
                if let Some(frame) = ControlFrame::parse(body) {
                    connection.handle_control_frame(frame, from, now);
                }
            }
            3 | 4 => {
                if let Ok((index, tag, body)) = parse_control(body)
                    && switch.control_target(Some(index)) == Ok(1)
                {
                    _ = connection.handle_control(tag, body, now);
                }
            }
            5 => connection.handle_interface_mtu(number, now),
            6 => switch.handle_health(usize::from(len % 2), len & 2 != 0),
            _ => {
                now = connection.poll_timeout().map_or(now, |(at, _)| at.max(now));
                connection.handle_timeout(&mut probe_budget(), now);
            }
        }
        let mut outputs = 0;
        while let Some(output) = connection.poll_output() {
            outputs += 1;
            assert!(outputs < 100, "too many outputs");
            match output {
                Output::Established => switch.handle_established(1),
                Output::Failed(error) => switch.handle_error(1, &error),
                Output::Datagram { bytes, .. } => assert!(bytes.len() <= 65507),
                _ => {}
            }
        }
        while switch.poll_output().is_some() {}
        assert_eq!(switch.best().is_none(), switch.reason().starts_with("none"));
        let path = connection.path();
        assert!((6..=65535).contains(&path.mtu) && path.max_payload <= 65507);
    }
}
