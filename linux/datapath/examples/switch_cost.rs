//! What a frame costs: `cargo run --release -p weave-datapath --example switch_cost`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use weave_switch::checksum::Sum;
use weave_switch::{
    Coalescer, Csum, ForwardingTable, Gso, GsoKind, MacConfig, MacTable, Offload, Routes, Segments,
    local_frame, peer_frame,
};
use weave_types::{Instant, MacAddr, PeerName};

/// Fastest of several runs, in ns per call of `f`.
fn measure(calls: u32, mut f: impl FnMut()) -> f64 {
    let mut best = Duration::MAX;
    for _ in 0..15 {
        let start = Clock::now();
        for _ in 0..calls {
            f();
        }
        best = best.min(start.elapsed());
    }
    best.as_secs_f64() * 1e9 / f64::from(calls)
}

fn report(what: &str, ns: f64, units: usize, bytes: usize) {
    let each = ns / units as f64;
    print!("{what:44} {each:10.1} ns each");
    if bytes > 0 {
        print!(" {:9.0} MB/s", bytes as f64 * 1000.0 / ns);
    }
    println!();
}

/// A super-frame of TCP over IPv4 with timestamps.
fn super_frame(payload: usize) -> (Vec<u8>, Offload) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(((52 + payload) as u16).to_be_bytes());
    frame.extend([0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 2, 0, 1, 10, 2, 0, 2]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 4, 0, 0, 0, 0, 77, 0x80, 0x10, 1, 0xf5, 0, 0, 0, 0]);
    frame.extend([1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8]);
    frame.extend((0..payload).map(|i| (i % 251) as u8));
    let gso = Gso { kind: GsoKind::TcpV4, size: 1324, hdr_len: 66 };
    (frame, Offload { csum: Some(Csum { start: 34, offset: 16 }), gso: Some(gso) })
}

struct Everywhere(Vec<PeerName>);

impl Routes for Everywhere {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        Some(dst)
    }

    fn broadcast(&self, _: PeerName) -> &[PeerName] {
        &self.0
    }

    fn knows(&self, peer: PeerName) -> bool {
        self.0.binary_search(&peer).is_ok()
    }
}

fn main() {
    let bytes = vec![0x5a; 65536];
    for len in [64, 1448, 65536] {
        let ns = measure(10_000, || {
            black_box(Sum::ZERO.bytes(black_box(&bytes[..len])));
        });
        report(&format!("checksum of {len} bytes"), ns, 1, len);
    }

    let (frame, offload) = super_frame(48 * 1324);
    let mut buf = vec![0; 100_000];
    let ns = measure(1000, || {
        let mut segments = Segments::new(black_box(&frame), offload).expect("sound");
        let mut at = 0;
        while let Some(len) = segments.next_into(&mut buf[at..]) {
            at += len;
        }
        black_box(&buf);
    });
    report("segmentation, 1390-byte frames", ns, 48, 48 * 1324);

    let mut segments = Segments::new(&frame, offload).expect("sound");
    let mut pieces = vec![];
    while let Some(len) = segments.next_into(&mut buf) {
        pieces.push(buf[..len].to_vec());
    }
    let mut coalescer = Coalescer::new();
    let mut out = 0;
    let ns = measure(1000, || {
        let mut sink = |frame: &[u8], _: Offload| out += black_box(frame).len();
        for piece in &pieces {
            coalescer.push(black_box(piece), &mut sink);
        }
        coalescer.flush(&mut sink);
    });
    report("coalescing, 1390-byte frames", ns, 48, 48 * 1324);
    let mut ack = super_frame(0).0;
    ack.truncate(66);
    let ns =
        measure(100_000, || coalescer.push(black_box(&ack), &mut |frame, _| out += black_box(frame).len()));
    report("coalescing, acknowledgements pass", ns, 1, 66);

    let name = |i: u16| PeerName::from_bytes([0x7a, 0, 0, 0, (i >> 8) as u8, i as u8]);
    let own = name(0);
    for entries in [10u32, 10_000] {
        let mut macs = MacTable::new(MacConfig { hash_seed: 0x1234_5678_9abc_def1, ..MacConfig::new(own) });
        let mac = |i: u32| MacAddr([2, 0, 0, 0, (i >> 8) as u8, i as u8]);
        for i in 0..entries {
            let peer = if i % 2 == 0 { own } else { name((i % 50 + 1) as u16) };
            macs.learn_remote(mac(i), peer, Instant::ORIGIN);
        }
        let routes = Arc::new(Everywhere((0..100).map(name).collect()));
        let table = ForwardingTable { own, macs: macs.snapshot(), routes };
        let frame = |src: u32, dst: u32| [&mac(dst).0[..], &mac(src).0, &[8, 0]].concat();
        let local: Vec<_> =
            (0..entries / 2).map(|i| frame(2 * i, 2 * ((i * 7) % (entries / 2)) + 1)).collect();
        let remote: Vec<_> =
            (0..entries / 2).map(|i| frame(2 * i + 1, 2 * ((i * 7) % (entries / 2)))).collect();
        let calls = 2_000_000 / local.len() as u32 / 10;
        let ns = measure(calls, || {
            for frame in &local {
                black_box(local_frame(black_box(&table), frame, Instant::ORIGIN));
            }
        });
        report(&format!("local verdict, {entries} MACs"), ns, local.len(), 0);
        let ns = measure(calls, || {
            for (i, frame) in remote.iter().enumerate() {
                let src = name(((2 * i + 1) % 50 + 1) as u16);
                black_box(peer_frame(black_box(&table), src, own, frame, Instant::ORIGIN));
            }
        });
        report(&format!("peer verdict, {entries} MACs"), ns, remote.len(), 0);
        let ns = measure(20, || {
            // A move and back makes the snapshot stale.
            macs.learn_remote(mac(1), name(60), Instant::ORIGIN);
            macs.learn_remote(mac(1), name(2), Instant::ORIGIN);
            black_box(macs.snapshot());
        });
        report(&format!("snapshot, {entries} MACs"), ns, 1, 0);
    }
}
