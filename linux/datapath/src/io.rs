//! What a forwarder asks of the world, on sockets.

use std::sync::Arc;
use std::time::Duration;

use weave_overlay::ForwarderEvent;
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Coalescer;
use weave_types::Instant;

use crate::events::{DatapathEvent, EventQueue};
use crate::packet::{Injected, Injector, PacketSocket};
use crate::stats::Counters;
use crate::transmit::{Outlet, Sent, TransmitQueue};
use crate::udp::UdpSockets;

/// A connection's datagrams that are too big come in swarms until the tables say how long they may be; the kernel is
/// asked for the path MTU once in a while.
const MTU_QUESTION_INTERVAL: Duration = Duration::from_millis(10);

/// One thread's batches. Nothing is held back beyond [`finish`](KernelIo::finish).
pub(crate) struct KernelIo {
    sockets: Arc<UdpSockets>,
    events: Arc<EventQueue>,
    device: Option<Arc<PacketSocket>>,
    queue: TransmitQueue,
    coalescer: Coalescer,
    injector: Injector,
    sent: Sent,
    injected: Injected,
    now: Instant,
    asked: Option<(Destination, Instant)>,
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
            sent: Sent::default(),
            injected: Injected::default(),
            now: Instant::ORIGIN,
            asked: None,
        }
    }

    /// Begins a batch.
    pub(crate) fn begin(&mut self, device: Option<Arc<PacketSocket>>, now: Instant) {
        self.device = device;
        self.now = now;
    }

    /// Ends a batch: everything leaves.
    pub(crate) fn finish(&mut self, counters: &Counters) {
        let KernelIo { coalescer, injector, injected, device, .. } = self;
        let device = device.as_deref();
        coalescer.flush(&mut |frame, offload| *injected += injector.push(frame, offload, device));
        *injected += injector.flush(device);
        self.with_queue(|queue, outlet| queue.flush(outlet));
        // A device that is lost meanwhile is closed, even if no other batch comes.
        self.device = None;
        counters.on_injected(std::mem::take(&mut self.injected));
        counters.on_sent(std::mem::take(&mut self.sent));
    }

    fn with_queue<T>(&mut self, work: impl FnOnce(&mut TransmitQueue, &mut Outlet<'_>) -> T) -> T {
        let KernelIo { queue, sockets, events, sent, asked, now, .. } = self;
        let mut too_big = |to: Destination| {
            if asked.is_some_and(|(whom, at)| whom == to && *now - at < MTU_QUESTION_INTERVAL) {
                return;
            }
            *asked = Some((to, *now));
            report_path_mtu(sockets, events, to);
        };
        work(queue, &mut Outlet { sockets, sent, too_big: &mut too_big })
    }
}

/// Asks the kernel and tells the node.
pub(crate) fn report_path_mtu(sockets: &UdpSockets, events: &EventQueue, to: Destination) {
    if let Ok(mtu) = sockets.path_mtu(to.to) {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        events.push(DatapathEvent::Forwarder(ForwarderEvent::PathMtu { conn: to.conn, mtu }));
    }
}

impl Io for KernelIo {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        self.with_queue(|queue, outlet| queue.reserve(to, room, outlet))
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
