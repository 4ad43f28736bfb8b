//! Entry point of the fuzz target `fastdp`: what user space reads of VXLAN packets. The corpus tests run it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use weave_overlay::fastdp::{
    FastdpControl, FastdpControlConfig, FastdpPath, KERNEL_FRAME_HEAD, KernelFrame, KernelTables, Output,
    SegmentedProbe,
};
use weave_overlay::forward::{Forwarder, Tables};
use weave_overlay::{Destination, ForwarderEvent, Io, Slot};
use weave_switch::{ForwardingTable, MacConfig, MacTable, Routes};
use weave_types::{ConnectionUid, Instant, PeerName, ShortId};

const OWN: PeerName = PeerName::from_bytes([0, 0, 0, 0, 0, 1]);
const UID: ConnectionUid = ConnectionUid(0x0102_0304_0506_0708);
const PATH: FastdpPath =
    FastdpPath { local: Ipv4Addr::new(192, 0, 2, 1), remote: Ipv4Addr::new(192, 0, 2, 2), port: 6784 };

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

/// Collects events. Nothing is sent, because there is no neighbour.
#[derive(Default)]
pub(crate) struct Events(pub(crate) Vec<ForwarderEvent>);

impl Io for Events {
    fn reserve(&mut self, _: Destination, _: usize) -> Slot {
        unreachable!("there is no neighbour")
    }

    fn buffer(&mut self, _: Slot) -> &mut [u8] {
        &mut []
    }

    fn commit(&mut self, _: Slot, _: usize) {}

    fn inject(&mut self, _: &[u8]) {}

    fn event(&mut self, event: ForwarderEvent) {
        self.0.push(event);
    }
}

/// That of peer 1, which knows peers 2 and 3.
pub(crate) fn forwarder() -> Forwarder {
    let macs = MacTable::new(MacConfig::new(OWN)).snapshot();
    let forwarding = ForwardingTable { own: OWN, macs, routes: Arc::new(Direct) };
    let ids = (1..=3).filter_map(|n| {
        let id = ShortId::new(u16::from(n))?;
        Some((PeerName::from_bytes([0, 0, 0, 0, 0, n]), id))
    });
    let own_id = ShortId::new(1).expect("small");
    let kernel = KernelTables::new(own_id, &forwarding, ids, BTreeMap::new(), BTreeSet::new());
    let tables = Tables::new(0, forwarding, Vec::new()).with_kernel(Some(Arc::new(kernel)));
    Forwarder::new(Arc::new(tables), 0)
}

/// Each operation has a byte for its kind, two for its length, and as many bytes: a frame that the kernel reports (0), one that it passes to
/// user space (1), a control message (2), a probe of another size as it is cut (3); otherwise time passes.
pub(crate) fn run(mut data: &[u8]) {
    let config = FastdpControlConfig { uid: UID, path: PATH, mtu: 1376 };
    let mut control = FastdpControl::new(config).with_liveness().with_segmentation_test();
    let mut forwarder = forwarder();
    let mut now = Instant::ORIGIN;
    control.confirm(now);
    while let Some((&[kind, high, low], rest)) = data.split_first_chunk() {
        let (body, rest) = rest.split_at(rest.len().min(usize::from(u16::from_be_bytes([high, low]))));
        data = rest;
        let id = |at: usize| ShortId::new(u16::from(body.get(at).copied().unwrap_or_default() % 4));
        match kind % 5 {
            0 => {
                let mut head = [0; KERNEL_FRAME_HEAD];
                let len = body.len().min(KERNEL_FRAME_HEAD);
                head[..len].copy_from_slice(&body[..len]);
                let src = ShortId::new(2).expect("small");
                let frame =
                    KernelFrame { src, dst: src, from: PATH.remote, port: 6784, len: body.len(), head };
                control.handle_frame(&frame, now);
            }
            1 => {
                let (Some(src), Some(dst)) = (id(0), id(1)) else { continue };
                let mut io = Events::default();
                forwarder.handle_relayed(src, dst, body.get(2..).unwrap_or_default(), now, &mut io);
                forwarder.flush(&mut io);
                for event in io.0 {
                    let ForwarderEvent::SegmentedProbe { probe, arrived, .. } = event else { continue };
                    assert!(u16::from(arrived.first) + u16::from(arrived.count) <= u16::from(probe.segments));
                    control.handle_segments(&probe, arrived);
                }
            }
            2 => {
                let Some((&tag, body)) = body.split_first() else { continue };
                _ = control.handle_control(tag, body, now);
            }
            3 => {
                let byte = |at: usize| body.get(at).copied().unwrap_or_default();
                let (size, segments) = (u16::from_be_bytes([byte(0) % 16, byte(1)]), byte(2) % 8);
                let probe = SegmentedProbe { uid: UID, number: 1, segments, size };
                let (frame, offload) = probe.frame(&PATH, 0x002_003, 5);
                let Ok(mut cut) = weave_switch::Segments::new(&frame, offload) else { continue };
                while let Some(len) = cut.next_len() {
                    let mut segment = vec![0; len];
                    cut.next_into(&mut segment);
                    let parsed = SegmentedProbe::parse(&segment);
                    assert!(size < 16 || segments == 0 || parsed.is_some_and(|(same, _)| same == probe));
                }
            }
            _ => {
                now = control.poll_timeout().map_or(now, |(at, _)| at.max(now));
                control.handle_timeout(now);
            }
        }
        let mut outputs = 0;
        while let Some(output) = control.poll_output() {
            outputs += 1;
            assert!(outputs < 100, "too many outputs");
            if let Output::Control { tag, body } = output {
                assert_eq!(body.len(), if tag == 2 { 6 } else { 0 });
            }
        }
    }
}
