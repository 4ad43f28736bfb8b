//! The send queue: datagrams are written in place, merged into messages, and sent with as few system calls as possible.
//!
//! Each destination has a queue, a buffer with its datagrams end to end. Consecutive datagrams of equal size form a run, which
//! is one message that the kernel segments (UDP_SEGMENT).

use std::io;

use weave_overlay::udp::MAX_DATAGRAM;
use weave_overlay::{Destination, Slot};

use crate::sys::{OutMessage, RawAddress, SendBatch};
use crate::udp::UdpSockets;

/// Limit of the kernel for one segmented send. UDP_MAX_SEGMENTS is 64, later 128, but kernels before 6.9 count the headers to the
/// length.
const MAX_SEGMENTS: usize = 63;
/// IPv4 and UDP header.
const OVERHEAD_V4: usize = 28;
/// IPv6 and UDP header.
const OVERHEAD_V6: usize = 48;
/// Bytes of a queue. A larger one would exceed the processor's cache.
const LARGE_QUEUE: usize = 256 << 10;
/// Number of queues of that size. The further ones, which a flood to many neighbours needs, have room for one datagram of any
/// size. Pages that are never written use no memory.
const LARGE_QUEUES: usize = 8;
const SMALL_QUEUE: usize = 68 << 10;
/// Maximum number of messages in one call.
const MAX_MESSAGES: usize = 256;

/// Consecutive datagrams of a queue that are sent in one message.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    /// Size of all datagrams except the last, which may be shorter.
    segment: usize,
    count: usize,
    /// Whether the last datagram is shorter, so that none may follow.
    closed: bool,
}

impl Run {
    fn accepts(&self, len: usize) -> bool {
        !self.closed && len <= self.segment && self.count < MAX_SEGMENTS && self.len + len <= MAX_DATAGRAM
    }
}

/// The queued datagrams of one destination.
struct DestinationQueue {
    to: Destination,
    address: RawAddress,
    buffer: Box<[u8]>,
    used: usize,
    /// Room of the open datagram, which starts at `used`.
    open: usize,
    runs: Vec<Run>,
}

impl DestinationQueue {
    fn message(&self, run: &Run) -> OutMessage<'_> {
        let segment = if run.count > 1 { run.segment as u16 } else { 0 };
        OutMessage {
            bytes: &self.buffer[run.start..run.start + run.len],
            from: self.to.from,
            to: self.address,
            segment,
        }
    }

    fn reset(&mut self) {
        self.runs.clear();
        self.used = 0;
        self.open = 0;
    }
}

/// Results of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SendCounts {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    /// Messages passed to the kernel: fewer than datagrams if it segments.
    pub(crate) messages: u64,
    /// Dropped because device or socket buffer stayed full.
    pub(crate) dropped_busy: u64,
    /// Dropped because of the path MTU.
    pub(crate) dropped_too_big: u64,
    /// Dropped for another error, such as no route.
    pub(crate) dropped_error: u64,
}

/// The sockets to send with, and where results are recorded.
pub(crate) struct SendContext<'a> {
    pub(crate) sockets: &'a UdpSockets,
    pub(crate) counts: &'a mut SendCounts,
    /// Called for a destination with the don't-fragment bit if a datagram exceeds the path MTU.
    pub(crate) too_big: &'a mut dyn FnMut(Destination),
    /// Called for a destination if the kernel refuses to cut a message into datagrams.
    pub(crate) refused: &'a mut dyn FnMut(Destination),
}

impl SendContext<'_> {
    fn record_failure(&mut self, to: Destination, datagrams: usize, error: &io::Error) {
        let datagrams = datagrams as u64;
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                self.counts.dropped_too_big += datagrams;
                if to.df {
                    (self.too_big)(to);
                }
            }
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.counts.dropped_busy += datagrams,
            _ => self.counts.dropped_error += datagrams,
        }
    }
}

/// Whether the error may mean that this kernel or device does not cut messages into datagrams: no checksum offload, IPsec.
pub(crate) fn is_batch_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOPROTOOPT))
}

/// The send queue of one thread.
pub(crate) struct TransmitQueue {
    /// The first `active` queues have a destination; the others are kept for reuse.
    queues: Vec<DestinationQueue>,
    active: usize,
    /// Index of the queue used last, which the next datagram most likely uses as well.
    last: usize,
    batch: SendBatch,
    /// Reused buffer: indices of queue and run of each message, those with the don't-fragment bit first.
    order: Vec<(usize, usize)>,
}

impl TransmitQueue {
    pub(crate) fn new() -> TransmitQueue {
        TransmitQueue {
            queues: Vec::new(),
            active: 0,
            last: 0,
            batch: SendBatch::new(MAX_MESSAGES),
            order: Vec::with_capacity(MAX_MESSAGES),
        }
    }

    /// Opens a datagram of up to `room` bytes, at most [`MAX_DATAGRAM`], at the end of the destination's queue. Sends the queue
    /// first if it is full.
    pub(crate) fn reserve(&mut self, to: Destination, room: usize, context: &mut SendContext<'_>) -> Slot {
        debug_assert!(room <= MAX_DATAGRAM);
        let index = self.queue_for(to);
        let queue = &self.queues[index];
        if queue.used + room > queue.buffer.len() || queue.runs.len() == MAX_MESSAGES {
            self.order.clear();
            self.order.extend((0..queue.runs.len()).map(|run| (index, run)));
            self.send(context);
            self.queues[index].reset();
        }
        self.queues[index].open = room;
        self.last = index;
        Slot(index as u32)
    }

    fn queue_for(&mut self, to: Destination) -> usize {
        let active = &self.queues[..self.active];
        if active.get(self.last).is_some_and(|queue| queue.to == to) {
            return self.last;
        }
        if let Some(index) = active.iter().position(|queue| queue.to == to) {
            return index;
        }
        let address = RawAddress::from(to.to);
        match self.queues.get_mut(self.active) {
            Some(queue) => (queue.to, queue.address) = (to, address),
            None => {
                let len = if self.active < LARGE_QUEUES { LARGE_QUEUE } else { SMALL_QUEUE };
                let buffer = vec![0; len].into();
                self.queues.push(DestinationQueue {
                    to,
                    address,
                    buffer,
                    used: 0,
                    open: 0,
                    runs: Vec::new(),
                });
            }
        }
        self.active += 1;
        self.active - 1
    }

    /// The room of an open datagram; empty if there is none.
    pub(crate) fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        match self.queues.get_mut(slot.0 as usize) {
            Some(queue) => &mut queue.buffer[queue.used..queue.used + queue.open],
            None => &mut [],
        }
    }

    /// Closes an open datagram with the first `len` bytes of its room. Discards it if `len` is 0 or exceeds the room.
    pub(crate) fn commit(&mut self, slot: Slot, len: usize) {
        let Some(queue) = self.queues.get_mut(slot.0 as usize) else { return };
        let room = std::mem::take(&mut queue.open);
        if len == 0 || len > room {
            return;
        }
        match queue.runs.last_mut() {
            Some(run) if queue.to.batched && run.accepts(len) => {
                run.len += len;
                run.count += 1;
                run.closed = len < run.segment;
            }
            _ => queue.runs.push(Run { start: queue.used, len, segment: len, count: 1, closed: false }),
        }
        queue.used += len;
    }

    /// Sends everything that is queued. Open datagrams are discarded.
    pub(crate) fn flush(&mut self, context: &mut SendContext<'_>) {
        if self.active == 0 {
            return;
        }
        self.order.clear();
        for df in [true, false] {
            for (index, queue) in
                self.queues[..self.active].iter().enumerate().filter(|(_, queue)| queue.to.df == df)
            {
                self.order.extend((0..queue.runs.len()).map(|run| (index, run)));
            }
        }
        self.send(context);
        self.queues[..self.active].iter_mut().for_each(DestinationQueue::reset);
        self.active = 0;
    }

    /// Sends the messages in `order`.
    fn send(&mut self, context: &mut SendContext<'_>) {
        let mut next = 0;
        while let Some(&(queue, run)) = self.order.get(next) {
            let (to, run) = (self.queues[queue].to, self.queues[queue].runs[run]);
            let queues = &self.queues;
            let batch = self.order[next..]
                .iter()
                .map(|&(queue, run)| (&queues[queue], &queues[queue].runs[run]))
                .take_while(|(queue, _)| queue.to.df == to.df)
                .map(|(queue, run)| queue.message(run));
            match self.batch.send(context.sockets.fd(to.df), batch) {
                Ok(count) => {
                    for &(queue, run) in &self.order[next..next + count] {
                        let run = &self.queues[queue].runs[run];
                        context.counts.datagrams += run.count as u64;
                        context.counts.bytes += run.len as u64;
                    }
                    context.counts.messages += count as u64;
                    next += count.max(1);
                }
                Err(error) => {
                    self.handle_failure(self.order[next], run, &error, context);
                    next += 1;
                }
            }
        }
    }

    /// The kernel refused a message: sends its datagrams individually if that may succeed.
    fn handle_failure(
        &mut self,
        at: (usize, usize),
        run: Run,
        error: &io::Error,
        context: &mut SendContext<'_>,
    ) {
        let to = self.queues[at.0].to;
        if run.count == 1 {
            return context.record_failure(to, 1, error);
        }
        match error.raw_os_error() {
            // Segments exceed the path MTU. Without the don't-fragment bit the kernel fragments individual datagrams.
            Some(libc::EMSGSIZE | libc::EINVAL) => {
                let overhead = if to.to.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
                let fits = |mtu: u32| run.segment + overhead <= mtu as usize;
                let fits = context.sockets.interface_mtu(to.from, to.to).is_ok_and(fits);
                if fits && is_batch_refused(error) {
                    (context.refused)(to);
                }
                if fits || !to.df {
                    return self.send_individually(at, run, context);
                }
                // Only a shorter last datagram may still fit.
                let full = run.count - usize::from(run.closed);
                context.record_failure(to, full, &io::Error::from_raw_os_error(libc::EMSGSIZE));
                let rest =
                    Run { start: run.start + full * run.segment, len: run.len - full * run.segment, ..run };
                self.send_individually(at, rest, context);
            }
            _ if is_batch_refused(error) => {
                (context.refused)(to);
                self.send_individually(at, run, context);
            }
            _ => context.record_failure(to, run.count, error),
        }
    }

    fn send_individually(&mut self, (queue, _): (usize, usize), run: Run, context: &mut SendContext<'_>) {
        let queue = &self.queues[queue];
        let mut rest = &queue.buffer[run.start..run.start + run.len];
        while !rest.is_empty() {
            let pieces = rest.chunks(run.segment).map(|bytes| OutMessage {
                bytes,
                from: queue.to.from,
                to: queue.address,
                segment: 0,
            });
            let done = match self.batch.send(context.sockets.fd(queue.to.df), pieces) {
                Ok(count) => {
                    let bytes = (count.max(1) * run.segment).min(rest.len());
                    context.counts.datagrams += count as u64;
                    context.counts.messages += count as u64;
                    context.counts.bytes += bytes as u64;
                    bytes
                }
                Err(error) => {
                    context.record_failure(queue.to, 1, &error);
                    run.segment.min(rest.len())
                }
            };
            rest = &rest[done..];
        }
    }
}
