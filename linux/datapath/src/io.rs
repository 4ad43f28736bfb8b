//! The [`Io`] of a forwarder on sockets.

use std::sync::Arc;
use std::time::Duration;

use weave_overlay::ForwarderEvent;
use weave_overlay::{Destination, Io, Slot};
use weave_switch::{Coalescer, Offload};
use weave_types::Instant;

use crate::events::{DatapathEvent, EventQueue};
use crate::packet::{InjectCounts, Injector, PacketSocket};
use crate::stats::Counters;
use crate::transmit::{SendContext, SendCounts, TransmitQueue};
use crate::udp::UdpSockets;

/// Minimum interval between two queries of the interface MTU for one destination. Until new tables arrive, many datagrams may
/// exceed it.
const MTU_QUERY_INTERVAL: Duration = Duration::from_millis(10);
/// How long frames are not merged after the kernel has refused to segment one: doubled if it refuses again soon afterwards.
const MIN_REFUSED_INTERVAL: Duration = Duration::from_secs(30);
const MAX_REFUSED_INTERVAL: Duration = Duration::from_secs(600);

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
    /// Until when frames for the local bridge are not merged, and for how long that was decided.
    unmerged: Option<(Instant, Duration)>,
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
            unmerged: None,
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
        if injector.take_refused() {
            self.stop_merging();
        }
        self.with_queue(|queue, context| queue.flush(context));
        // Drop the reference, so that a device that disappears is closed even if no further batch follows.
        self.device = None;
        counters.add_injected(std::mem::take(&mut self.injected));
        counters.add_sent(std::mem::take(&mut self.sent));
    }

    fn stop_merging(&mut self) {
        let recent = self.unmerged.filter(|(until, interval)| self.now.saturating_since(*until) < *interval);
        let last = recent.map_or(Duration::ZERO, |(_, interval)| interval * 2);
        let interval = last.clamp(MIN_REFUSED_INTERVAL, MAX_REFUSED_INTERVAL);
        self.unmerged = Some((self.now + interval, interval));
        tracing::info!(
            "the kernel refuses frames that were merged: received frames are passed on one by one for {} s, which is slower",
            interval.as_secs()
        );
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
        let mut refused = |to| report_refused_batch(events, to);
        work(queue, &mut SendContext { sockets, counts: sent, too_big: &mut too_big, refused: &mut refused })
    }
}

/// Queries the kernel for the MTU of the interface and reports it.
pub(crate) fn report_interface_mtu(sockets: &UdpSockets, events: &EventQueue, to: Destination) {
    if let Ok(mtu) = sockets.interface_mtu(to.from, to.to) {
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        events.push(DatapathEvent::Forwarder(ForwarderEvent::InterfaceMtu { conn: to.conn, mtu }));
    }
}

/// Reports that the kernel does not cut messages to the destination into datagrams.
pub(crate) fn report_refused_batch(events: &EventQueue, to: Destination) {
    events.push(DatapathEvent::Forwarder(ForwarderEvent::BatchRefused { conn: to.conn }));
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
        let KernelIo { coalescer, injector, injected, device, unmerged, now, .. } = self;
        let device = device.as_deref();
        if unmerged.is_some_and(|(until, _)| *now < until) {
            *injected += injector.push(frame, Offload::NONE, device);
            return;
        }
        coalescer.push(frame, &mut |frame, offload| *injected += injector.push(frame, offload, device));
    }

    fn event(&mut self, event: ForwarderEvent) {
        self.events.push(DatapathEvent::Forwarder(event));
    }
}
