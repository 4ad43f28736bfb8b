//! Datagrams on their way out: written in place, merged into few messages, sent in few calls.
//!
//! Each destination has a lane, a buffer in which its datagrams lie end to end. Neighbours of equal size form a run that
//! leaves as one message, cut by the kernel (UDP_SEGMENT).

use std::io;

use weave_overlay::{Destination, Slot};

use crate::sys::{OutMessage, RawAddress, SendBatch};
use crate::udp::UdpSockets;

/// The largest UDP payload over IPv4.
pub(crate) const MAX_DATAGRAM: usize = 65_507;
/// The kernel's limit for one segmented send (UDP_MAX_SEGMENTS; later kernels allow 128).
const MAX_SEGMENTS: usize = 64;
/// IPv4 and UDP header.
const OVERHEAD_V4: usize = 28;
/// IPv6 and UDP header.
const OVERHEAD_V6: usize = 48;
/// Bytes a lane holds before they have to be sent. More would only wash them out of the processor's cache.
const LANE: usize = 256 << 10;
/// Lanes of that size. The further ones that a flood to many neighbours takes are just large enough for any datagram;
/// pages that are never written cost nothing.
const LARGE_LANES: usize = 8;
const SMALL_LANE: usize = 68 << 10;
const SEND_SLOTS: usize = 256;

/// Datagrams that follow each other in a lane and leave in one message.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    /// Size of all datagrams but the last, which may be shorter.
    segment: usize,
    count: usize,
    /// The last one was shorter: nothing may follow.
    closed: bool,
}

impl Run {
    fn takes(&self, len: usize) -> bool {
        !self.closed && len <= self.segment && self.count < MAX_SEGMENTS && self.len + len <= MAX_DATAGRAM
    }
}

struct Lane {
    to: Destination,
    address: RawAddress,
    buffer: Box<[u8]>,
    used: usize,
    /// Length of the datagram that is being written behind `used`.
    open: usize,
    runs: Vec<Run>,
}

impl Lane {
    fn message(&self, run: &Run) -> OutMessage<'_> {
        let segment = if run.count > 1 { run.segment as u16 } else { 0 };
        OutMessage { bytes: &self.buffer[run.start..run.start + run.len], to: self.address, segment }
    }

    fn reset(&mut self) {
        self.runs.clear();
        self.used = 0;
        self.open = 0;
    }
}

/// What became of datagrams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    /// System calls' messages: the fewer per datagram, the better segmentation worked.
    pub(crate) messages: u64,
    /// The device or the socket buffer had no room in time.
    pub(crate) dropped_busy: u64,
    /// Larger than the path takes.
    pub(crate) dropped_too_big: u64,
    /// Anything else: no route, forbidden, ...
    pub(crate) dropped_error: u64,
}

/// Where messages go, and what hears of the outcome.
pub(crate) struct Outlet<'a> {
    pub(crate) sockets: &'a UdpSockets,
    pub(crate) sent: &'a mut Sent,
    /// Called for a destination with DF whose path turned out smaller than a datagram.
    pub(crate) too_big: &'a mut dyn FnMut(Destination),
}

impl Outlet<'_> {
    fn failed(&mut self, to: Destination, datagrams: usize, error: &io::Error) {
        let datagrams = datagrams as u64;
        match error.raw_os_error() {
            Some(libc::EMSGSIZE) => {
                self.sent.dropped_too_big += datagrams;
                if to.df {
                    (self.too_big)(to);
                }
            }
            Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => self.sent.dropped_busy += datagrams,
            _ => self.sent.dropped_error += datagrams,
        }
    }
}

/// All lanes of one thread.
pub(crate) struct TransmitQueue {
    /// Those below `active` have a destination.
    lanes: Vec<Lane>,
    active: usize,
    /// The lane used last, where the next datagram most likely goes.
    last: usize,
    batch: SendBatch,
    /// Scratch: lane and run of each message, those with DF first.
    order: Vec<(usize, usize)>,
}

impl TransmitQueue {
    pub(crate) fn new() -> TransmitQueue {
        TransmitQueue {
            lanes: Vec::new(),
            active: 0,
            last: 0,
            batch: SendBatch::new(SEND_SLOTS),
            order: Vec::with_capacity(SEND_SLOTS),
        }
    }

    /// Opens a datagram of up to `room` bytes, at most [`MAX_DATAGRAM`], behind what is queued for that destination;
    /// sends that first if its lane is full.
    pub(crate) fn reserve(&mut self, to: Destination, room: usize, outlet: &mut Outlet<'_>) -> Slot {
        debug_assert!(room <= MAX_DATAGRAM);
        let index = self.lane(to);
        let lane = &self.lanes[index];
        if lane.used + room > lane.buffer.len() || lane.runs.len() == SEND_SLOTS {
            self.order.clear();
            self.order.extend((0..lane.runs.len()).map(|run| (index, run)));
            self.send(outlet);
            self.lanes[index].reset();
        }
        self.lanes[index].open = room;
        self.last = index;
        Slot(index as u32)
    }

    fn lane(&mut self, to: Destination) -> usize {
        let active = &self.lanes[..self.active];
        if active.get(self.last).is_some_and(|lane| lane.to == to) {
            return self.last;
        }
        if let Some(index) = active.iter().position(|lane| lane.to == to) {
            return index;
        }
        let address = RawAddress::from(to.to);
        match self.lanes.get_mut(self.active) {
            Some(lane) => (lane.to, lane.address) = (to, address),
            None => {
                let len = if self.active < LARGE_LANES { LANE } else { SMALL_LANE };
                let buffer = vec![0; len].into();
                self.lanes.push(Lane { to, address, buffer, used: 0, open: 0, runs: Vec::new() });
            }
        }
        self.active += 1;
        self.active - 1
    }

    /// The room of an open datagram; empty if it is none.
    pub(crate) fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        match self.lanes.get_mut(slot.0 as usize) {
            Some(lane) => &mut lane.buffer[lane.used..lane.used + lane.open],
            None => &mut [],
        }
    }

    /// Closes an open datagram with the first `len` bytes of its room. A length of 0, or of more than the room, takes
    /// it back.
    pub(crate) fn commit(&mut self, slot: Slot, len: usize) {
        let Some(lane) = self.lanes.get_mut(slot.0 as usize) else { return };
        let room = std::mem::take(&mut lane.open);
        if len == 0 || len > room {
            return;
        }
        match lane.runs.last_mut() {
            Some(run) if run.takes(len) => {
                run.len += len;
                run.count += 1;
                run.closed = len < run.segment;
            }
            _ => lane.runs.push(Run { start: lane.used, len, segment: len, count: 1, closed: false }),
        }
        lane.used += len;
    }

    /// Sends everything that is queued. Open datagrams are taken back.
    pub(crate) fn flush(&mut self, outlet: &mut Outlet<'_>) {
        if self.active == 0 {
            return;
        }
        self.order.clear();
        for df in [true, false] {
            for (index, lane) in
                self.lanes[..self.active].iter().enumerate().filter(|(_, lane)| lane.to.df == df)
            {
                self.order.extend((0..lane.runs.len()).map(|run| (index, run)));
            }
        }
        self.send(outlet);
        self.lanes[..self.active].iter_mut().for_each(Lane::reset);
        self.active = 0;
    }

    /// Sends what `order` names.
    fn send(&mut self, outlet: &mut Outlet<'_>) {
        let mut next = 0;
        while let Some(&(lane, run)) = self.order.get(next) {
            let (lane, run) = (&self.lanes[lane], self.lanes[lane].runs[run]);
            let (to, segments) = (lane.to, outlet.sockets.segments());
            if run.count > 1 && !segments {
                self.send_singly(self.order[next], run, outlet);
                next += 1;
                continue;
            }
            let lanes = &self.lanes;
            let same = self.order[next..]
                .iter()
                .map(|&(lane, run)| (&lanes[lane], &lanes[lane].runs[run]))
                .take_while(|(lane, run)| lane.to.df == to.df && (segments || run.count == 1))
                .map(|(lane, run)| lane.message(run));
            match self.batch.send(outlet.sockets.fd(to.df), same) {
                Ok(count) => {
                    for &(lane, run) in &self.order[next..next + count] {
                        let run = &self.lanes[lane].runs[run];
                        outlet.sent.datagrams += run.count as u64;
                        outlet.sent.bytes += run.len as u64;
                    }
                    outlet.sent.messages += count as u64;
                    next += count.max(1);
                }
                Err(error) => {
                    self.failed(self.order[next], run, &error, outlet);
                    next += 1;
                }
            }
        }
    }

    /// The kernel refused a message: find out whether its datagrams pass one by one.
    fn failed(&mut self, at: (usize, usize), run: Run, error: &io::Error, outlet: &mut Outlet<'_>) {
        let to = self.lanes[at.0].to;
        if run.count == 1 {
            return outlet.failed(to, 1, error);
        }
        match error.raw_os_error() {
            // Segments larger than the path: with DF none will pass, without it the kernel fragments single ones.
            Some(libc::EMSGSIZE | libc::EINVAL) => {
                let overhead = if to.to.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
                let fits = |mtu: u32| run.segment + overhead <= mtu as usize;
                if !to.df || outlet.sockets.path_mtu(to.to).is_ok_and(fits) {
                    return self.send_singly(at, run, outlet);
                }
                // Only a shorter last one may still fit.
                let full = run.count - usize::from(run.closed);
                outlet.failed(to, full, &io::Error::from_raw_os_error(libc::EMSGSIZE));
                let rest =
                    Run { start: run.start + full * run.segment, len: run.len - full * run.segment, ..run };
                self.send_singly(at, rest, outlet);
            }
            // Not on this kernel, or not through this device (no checksum offload, IPsec).
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                outlet.sockets.stop_segmenting(error);
                self.send_singly(at, run, outlet);
            }
            _ => outlet.failed(to, run.count, error),
        }
    }

    fn send_singly(&mut self, (lane, _): (usize, usize), run: Run, outlet: &mut Outlet<'_>) {
        let lane = &self.lanes[lane];
        let mut rest = &lane.buffer[run.start..run.start + run.len];
        while !rest.is_empty() {
            let pieces =
                rest.chunks(run.segment).map(|bytes| OutMessage { bytes, to: lane.address, segment: 0 });
            let done = match self.batch.send(outlet.sockets.fd(lane.to.df), pieces) {
                Ok(count) => {
                    let bytes = (count.max(1) * run.segment).min(rest.len());
                    outlet.sent.datagrams += count as u64;
                    outlet.sent.messages += count as u64;
                    outlet.sent.bytes += bytes as u64;
                    bytes
                }
                Err(error) => {
                    outlet.failed(lane.to, 1, &error);
                    run.segment.min(rest.len())
                }
            };
            rest = &rest[done..];
        }
    }
}
