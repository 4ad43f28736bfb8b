//! Frames of other peers that the kernel leaves to user space.

use std::time::Duration;

use weave_overlay::fastdp::{FastdpPath, SegmentedProbe};
use weave_overlay::{ArrivedSegments, ForwarderEvent};
use weave_types::{ConnectionUid, Instant, PeerName, ShortId};

use crate::fuzz_fastdp::{Events, forwarder};

#[test]
fn probes_of_fastdp_are_reported_and_limited() {
    let id = |n| ShortId::new(n).unwrap();
    let mut forwarder = forwarder();
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
    assert_eq!(
        io.0[0],
        ForwarderEvent::SegmentedProbe { src: PeerName::from_bytes([0, 0, 0, 0, 0, 2]), probe, arrived }
    );
    assert!((900..=1000).contains(&io.0.len()), "{}", io.0.len());
    let before = io.0.len();
    now += Duration::from_millis(50);
    for _ in 0..200 {
        forwarder.handle_relayed(id(2), id(1), &frame, now, &mut io);
    }
    assert_eq!(io.0.len() - before, 50);
    let stats = forwarder.stats();
    assert_eq!((stats.drop_special_rate as usize, stats.injected), (2200 - io.0.len(), 0));
}
