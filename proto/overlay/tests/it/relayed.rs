//! Frames of other peers that the kernel leaves to user space.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weave_overlay::fastdp::{FastdpPath, KernelTables, SegmentedProbe};
use weave_overlay::forward::{Forwarder, Tables};
use weave_overlay::{ArrivedSegments, Destination, ForwarderEvent, Io, Slot};
use weave_switch::{ForwardingTable, MacConfig, MacTable, Routes};
use weave_types::{ConnectionUid, Instant, PeerName, ShortId};

use crate::support::name;

struct Direct;

impl Routes for Direct {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        Some(dst)
    }

    fn broadcast(&self, _: PeerName) -> &[PeerName] {
        &[]
    }

    fn knows(&self, _: PeerName) -> bool {
        true
    }
}

#[derive(Default)]
struct Events(Vec<ForwarderEvent>);

impl Io for Events {
    fn reserve(&mut self, to: Destination, _: usize) -> Slot {
        panic!("a probe is forwarded to {to:?}")
    }

    fn buffer(&mut self, _: Slot) -> &mut [u8] {
        &mut []
    }

    fn commit(&mut self, _: Slot, _: usize) {}

    fn inject(&mut self, frame: &[u8]) {
        panic!("injected: {frame:?}")
    }

    fn event(&mut self, event: ForwarderEvent) {
        self.0.push(event);
    }
}

#[test]
fn probes_of_fastdp_are_reported_and_limited() {
    let id = |n| ShortId::new(u16::from(n)).unwrap();
    let macs = MacTable::new(MacConfig::new(name(1))).snapshot();
    let forwarding = ForwardingTable { own: name(1), macs, routes: Arc::new(Direct) };
    let ids = (1..=3).map(|n| (name(n), id(n)));
    let kernel = KernelTables::new(id(1), &forwarding, ids, BTreeMap::new(), BTreeSet::new());
    let tables = Tables::new(0, forwarding, Vec::new()).with_kernel(Some(Arc::new(kernel)));
    let mut forwarder = Forwarder::new(Arc::new(tables));
    let probe = SegmentedProbe { uid: ConnectionUid(5), number: 8, segments: 1, size: 100 };
    let path = FastdpPath { local: [192, 0, 2, 2].into(), remote: [192, 0, 2, 1].into(), port: 6784 };
    let (frame, _) = probe.frame(&path, 0, 0);
    let mut io = Events::default();
    let mut now = Instant::ORIGIN;
    // For another peer, from this one, of one that is unknown, damaged.
    let mut damaged = frame.clone();
    damaged[90] ^= 1;
    for (src, dst, frame) in
        [(id(2), id(3), &frame), (id(1), id(1), &frame), (id(9), id(1), &frame), (id(2), id(1), &damaged)]
    {
        forwarder.handle_relayed(src, dst, frame, now, &mut io);
    }
    assert_eq!((io.0.len(), forwarder.stats().drop_special), (0, 3));
    for _ in 0..2000 {
        forwarder.handle_relayed(id(2), id(1), &frame, now, &mut io);
    }
    let arrived = ArrivedSegments { number: 8, first: 0, count: 1 };
    assert_eq!(io.0[0], ForwarderEvent::SegmentedProbe { src: name(2), probe, arrived });
    assert!((900..=1000).contains(&io.0.len()), "{}", io.0.len());
    let before = io.0.len();
    now += Duration::from_millis(50);
    for _ in 0..200 {
        forwarder.handle_relayed(id(2), id(1), &frame, now, &mut io);
    }
    assert_eq!(io.0.len() - before, 50);
    assert_eq!(forwarder.stats().drop_special_rate as usize, 2200 - io.0.len());
}
