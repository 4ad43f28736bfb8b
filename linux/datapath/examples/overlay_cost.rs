//! Nanoseconds per packet of sealing, opening and the whole data path. `cargo run --release -p weave-datapath --example overlay_cost`

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time;

use weave_overlay::forward::{Fact, Forwarder, Neighbour, Overlay, Tables};
use weave_overlay::sleeve::{Opener, Path, Sealer, Session, SessionConfig};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::{Csum, ForwardingTable, Gso, GsoKind, MacConfig, MacTable, Offload, Routes};
use weave_types::{ConnectionId, ConnectionUid, Instant, MacAddr, PeerName};

const A: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 1]);
const B: PeerName = PeerName::from_bytes([0x7a, 0, 0, 0, 0, 2]);
const BATCH: usize = 64;

/// Best of five, per packet.
fn measure(what: &str, bytes: usize, packets: usize, mut run: impl FnMut()) {
    let rounds = (300_000 / packets).max(20);
    let best = (0..5)
        .map(|_| {
            let start = time::Instant::now();
            (0..rounds).for_each(|_| run());
            start.elapsed().as_secs_f64() / (rounds * packets) as f64
        })
        .fold(f64::MAX, f64::min);
    println!("{what:<44} {:>8.0} ns/packet {:>8.1} Gbit/s", best * 1e9, bytes as f64 * 8.0 / best / 1e9);
}

fn session(own: PeerName, remote: PeerName, key: Option<[u8; 32]>) -> Arc<Session> {
    let (conn, uid) = (ConnectionId(1), ConnectionUid(7));
    Session::new(SessionConfig { own, remote, conn, uid, outbound: own == A, key })
}

struct Direct(PeerName);

impl Routes for Direct {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        (dst == self.0).then_some(dst)
    }

    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        if src == self.0 { &[] } else { std::slice::from_ref(&self.0) }
    }

    fn knows(&self, _: PeerName) -> bool {
        true
    }
}

/// One buffer, as for one destination; datagrams end to end.
#[derive(Default)]
struct Sink {
    buffer: Vec<u8>,
    used: usize,
    sizes: Vec<usize>,
    injected: usize,
}

impl Io for Sink {
    fn reserve(&mut self, _: Destination, room: usize) -> Slot {
        if self.buffer.len() < self.used + room {
            self.buffer.resize(self.used + room, 0);
        }
        Slot(0)
    }

    fn buffer(&mut self, _: Slot) -> &mut [u8] {
        &mut self.buffer[self.used..]
    }

    fn commit(&mut self, _: Slot, len: usize) {
        self.used += len;
        self.sizes.push(len);
    }

    fn inject(&mut self, frame: &[u8]) {
        self.injected += black_box(frame).len();
    }

    fn fact(&mut self, _: Fact) {}
}

impl Sink {
    fn clear(&mut self) {
        self.used = 0;
        self.sizes.clear();
    }
}

fn forwarder(own: PeerName, remote: PeerName, key: Option<[u8; 32]>) -> Forwarder {
    let mut macs = MacTable::new(MacConfig::new(own));
    macs.learn_local(MacAddr([2, 0, 0, 0, 0, own.to_bytes()[5]]), Instant::ORIGIN);
    macs.learn_remote(MacAddr([2, 0, 0, 0, 0, remote.to_bytes()[5]]), remote, Instant::ORIGIN);
    let forwarding = ForwardingTable { own, macs: macs.snapshot(), routes: Arc::new(Direct(remote)) };
    let session = session(own, remote, key);
    let path = Path {
        remote: Some(SocketAddr::from(([10, 0, 0, 1], 6783))),
        mtu: 1500 - session.overhead(),
        max_payload: 1472,
        stack_fragments: true,
    };
    let neighbour = Neighbour { session, confirmed: true, path, overlay: Overlay::Sleeve };
    Forwarder::new(Arc::new(Tables::new(0, forwarding, vec![Arc::new(neighbour)])))
}

/// A TCP frame over IPv4 whose checksum is still to be made.
fn tcp(payload: usize) -> (Vec<u8>, Offload) {
    let mut frame = vec![0u8; 54 + payload];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
    frame[20..24].copy_from_slice(&[0x40, 0, 64, 6]);
    frame[26..34].copy_from_slice(&[10, 2, 0, 1, 10, 2, 0, 2]);
    frame[46] = 0x50;
    (frame, Offload { csum: Some(Csum { start: 34, offset: 16 }), gso: None })
}

fn main() {
    for (mode, key) in [("plain", None), ("encrypted", Some([9; 32]))] {
        for len in [66, 1390, 60000] {
            let sealer = Sealer::new(session(A, B, key));
            let (frame, mut buf) = (vec![1u8; len], vec![0u8; 65507]);
            let mut sealed = 0;
            measure(&format!("{mode}: seal a frame of {len}"), len, 1, || {
                let mut draft = sealer.begin();
                assert!(sealer.push(&mut draft, &mut buf, A, B, black_box(&frame)));
                sealed = sealer.finish(draft, &mut buf, true).expect("numbers left");
            });
            // Opening once moves the replay window: each time needs an own datagram.
            let packets: Vec<Vec<u8>> = (0..2000)
                .map(|_| {
                    let mut draft = sealer.begin();
                    assert!(sealer.push(&mut draft, &mut buf, A, B, &frame));
                    let len = sealer.finish(draft, &mut buf, true).expect("numbers left");
                    buf[..len].to_vec()
                })
                .collect();
            let remote = session(B, A, key);
            let mut work = vec![0; 65507];
            measure(&format!("{mode}: open it (with a copy)"), len, packets.len(), || {
                let mut opener = Opener::new(remote.clone());
                for packet in &packets {
                    work[..packet.len()].copy_from_slice(packet);
                    let records = opener.open(&mut work[..packet.len()]).expect("good");
                    records.for_each(|record| _ = black_box(record));
                }
            });
        }
        let mut out = forwarder(A, B, key);
        let mut io = Sink::default();
        for (what, payload) in [("66-byte TCP frames", 12), ("1390-byte TCP frames", 1336)] {
            let (frame, offload) = tcp(payload);
            measure(&format!("{mode}: handle_local, {what}"), frame.len(), BATCH, || {
                for _ in 0..BATCH {
                    out.handle_local(black_box(&frame), offload, Instant::ORIGIN, &mut io);
                }
                out.flush(&mut io);
                io.clear();
            });
        }
        let (frame, mut offload) = tcp(45 * 1336);
        offload.gso = Some(Gso { kind: GsoKind::TcpV4, size: 1336, hdr_len: 54 });
        measure(&format!("{mode}: handle_local, TSO, per segment"), 1390, 45, || {
            out.handle_local(black_box(&frame), offload, Instant::ORIGIN, &mut io);
            out.flush(&mut io);
            io.clear();
        });
        // The segments once more, as the other end gets them.
        for _ in 0..40 {
            out.handle_local(&frame, offload, Instant::ORIGIN, &mut io);
        }
        let sent = io.buffer[..io.used].to_vec();
        let sizes = io.sizes.clone();
        let mut work = vec![0; 2000];
        let from = SocketAddr::from(([10, 0, 0, 2], 6783));
        measure(&format!("{mode}: handle_datagram (with a copy)"), 1390, sizes.len(), || {
            let mut inward = forwarder(B, A, key);
            let mut rest = &sent[..];
            for size in &sizes {
                let (datagram, more) = rest.split_at(*size);
                rest = more;
                work[..*size].copy_from_slice(datagram);
                inward.handle_datagram(from, &mut work[..*size], Instant::ORIGIN, &mut io);
            }
            assert_eq!(inward.stats().injected, sizes.len() as u64);
        });
    }
}
