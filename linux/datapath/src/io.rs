//! The [`Io`] of a forwarder on sockets.

use std::sync::Arc;
use std::time::Duration;

use weave_overlay::ForwarderEvent;
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Coalescer;
use weave_types::Instant;

use crate::events::{DatapathEvent, EventQueue};
use crate::packet::{InjectCounts, Injector, PacketSocket};
use crate::stats::Counters;
use crate::transmit::{SendContext, SendCounts, TransmitQueue};
use crate::udp::UdpSockets;

/// Minimum interval between two queries of the interface MTU for one destination. Until new tables arrive, many datagrams may
/// exceed it.
const MTU_QUERY_INTERVAL: Duration = Duration::from_millis(10);

/// The batches of one thread. [`finish`](KernelIo::finish) sends everything.
pub(crate) struct KernelIo {
    sockets: Arc<UdpSockets>,
    events: Arc<EventQueue>,
    device: Option<Arc<PacketSocket>>,
    queue: TransmitQueue,
    coalescer: Coalescer,
    injector: Injector,
    sent: SendCounts,
    injected: InjectCounts,
    now: Instant,
    /// The latest query of an interface MTU.
    queried: Option<(Destination, Instant)>,
}

impl KernelIo {
    pub(crate) fn new(sockets: Arc<UdpSockets>, events: Arc<EventQueue>) -> KernelIo {
        KernelIo {
            sockets,
            events,
            device: None,
            queue: TransmitQueue::new(),
            coalescer: Coalescer::new(),
            injector: Injector::new(),
            sent: SendCounts::default(),
            injected: InjectCounts::default(),
            now: Instant::ORIGIN,
            queried: None,
        }
    }

    /// Begins a batch.
    pub(crate) fn begin(&mut self, device: Option<Arc<PacketSocket>>, now: Instant) {
        self.device = device;
        self.now = now;
    }

    /// Ends a batch: sends and injects everything.
    pub(crate) fn finish(&mut self, counters: &Counters) {
        let KernelIo { coalescer, injector, injected, device, .. } = self;
        let device = device.as_deref();
        coalescer.flush(&mut |frame, offload| *injected += injector.push(frame, offload, device));
        *injected += injector.flush(device);
        self.with_queue(|queue, context| queue.flush(context));
        // Drop the reference, so that a device that disappears is closed even if no further batch follows.
        self.device = None;
        counters.add_injected(std::mem::take(&mut self.injected));
        counters.add_sent(std::mem::take(&mut self.sent));
    }

    fn with_queue<T>(&mut self, work: impl FnOnce(&mut TransmitQueue, &mut SendContext<'_>) -> T) -> T {
        let KernelIo { queue, sockets, events, sent, queried, now, .. } = self;
        let mut too_big = |to: Destination| {
            if queried.is_some_and(|(previous, at)| previous == to && *now - at < MTU_QUERY_INTERVAL) {
                return;
            }
            *queried = Some((to, *now));
            report_interface_mtu(sockets, events, to);
        };
        work(queue, &mut SendContext { sockets, counts: sent, too_big: &mut too_big })
    }
}

/// Queries the kernel for the MTU of the interface and reports it.
pub(crate) fn report_interface_mtu(sockets: &UdpSockets, events: &EventQueue, to: Destination) {
    if let Ok(mtu) = sockets.interface_mtu(to.from, to.to) {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        events.push(DatapathEvent::Forwarder(ForwarderEvent::InterfaceMtu { conn: to.conn, mtu }));
    }
}

impl Io for KernelIo {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        self.with_queue(|queue, context| queue.reserve(to, room, context))
    }

    fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        self.queue.buffer(slot)
    }

    fn commit(&mut self, slot: Slot, len: usize) {
        self.queue.commit(slot, len);
    }

    fn inject(&mut self, frame: &[u8]) {
        let KernelIo { coalescer, injector, injected, device, .. } = self;
        let device = device.as_deref();
        coalescer.push(frame, &mut |frame, offload| *injected += injector.push(frame, offload, device));
    }

    fn event(&mut self, event: ForwarderEvent) {
        self.events.push(DatapathEvent::Forwarder(event));
    }
}
