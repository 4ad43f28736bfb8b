//! Simulated TCP connections: two ordered byte streams that lose nothing, stall while the link is cut, and end when one end
//! closes or its host fails.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use weave_types::{ConnectionId, Instant};

use crate::net::{HostId, Net};

/// Unread bytes that the kernels of both ends take.
const SOCKET_BUFFER: usize = 256 * 1024;
/// A stalled stream tries again after this time.
const RETRANSMIT_INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// One end of a connection: the host, its incarnation (crashes count it up) and the peer's own handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) host: HostId,
    pub(crate) incarnation: u32,
    pub(crate) conn: ConnectionId,
}

#[derive(Default)]
struct Stream {
    queue: VecDeque<(Instant, Vec<u8>)>,
    queued: usize,
    /// Bytes that were reported to the sender as written.
    reported: usize,
    /// Bytes delivered or queued.
    total: usize,
    /// The sender has closed; reported to the receiver after the last byte.
    closing: Option<&'static str>,
}

struct Pipe {
    ends: [End; 2],
    /// `streams[i]` flows from `ends[i]` to the other end.
    streams: [Stream; 2],
    /// Whether the end has neither closed the connection nor received its end.
    open: [bool; 2],
    /// The end has lost its power, and with it all memory of the connection.
    lost: [bool; 2],
    /// Time of the next delivery.
    due_at: Option<Instant>,
}

/// An event for a node.
pub(crate) enum TcpEvent {
    Bytes(End, Vec<u8>),
    Written(End, usize),
    Closed(End, &'static str),
}

#[derive(Default)]
pub(crate) struct Tcp {
    pipes: BTreeMap<u64, Pipe>,
    by_end: BTreeMap<End, u64>,
    next: u64,
}

impl Tcp {
    pub(crate) fn open(&mut self, dialler: End, acceptor: End) {
        let id = self.next;
        self.next += 1;
        self.by_end.insert(dialler, id);
        self.by_end.insert(acceptor, id);
        self.pipes.insert(
            id,
            Pipe {
                ends: [dialler, acceptor],
                streams: Default::default(),
                open: [true; 2],
                lost: [false; 2],
                due_at: None,
            },
        );
    }

    /// Queues bytes; returns the pipe and the time of its next delivery, if that changes.
    pub(crate) fn write(
        &mut self,
        from: End,
        bytes: Vec<u8>,
        now: Instant,
        net: &mut Net,
    ) -> Option<(u64, Instant)> {
        let id = *self.by_end.get(&from)?;
        let pipe = self.pipes.get_mut(&id)?;
        let side = pipe.side(from);
        let stream = &mut pipe.streams[side];
        let earliest = stream.queue.back().map_or(now, |(at, _)| *at);
        let at = earliest.max(now + net.delay());
        stream.queued += bytes.len();
        stream.total += bytes.len();
        stream.queue.push_back((at, bytes));
        Some((id, pipe.schedule(at)?))
    }

    /// One end closes, or its process ends: reported to the other end after the bytes sent before.
    pub(crate) fn close(&mut self, end: End, why: &'static str, now: Instant) -> Option<(u64, Instant)> {
        let id = self.by_end.remove(&end)?;
        let pipe = self.pipes.get_mut(&id)?;
        let side = pipe.side(end);
        pipe.open[side] = false;
        let stream = &mut pipe.streams[side];
        stream.closing = Some(why);
        // A close is a reset: bytes that this end has not read are lost.
        pipe.streams[1 - side].queue.clear();
        if pipe.open == [false; 2] {
            self.pipes.remove(&id);
            return None;
        }
        let at = pipe.streams[side].queue.back().map_or(now, |(at, _)| *at);
        Some((id, pipe.schedule(at.max(now))?))
    }

    /// One end has lost its power: the other receives a reset when it sends something after the host is back.
    pub(crate) fn power_lost(&mut self, end: End) {
        let Some(id) = self.by_end.remove(&end) else { return };
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        let side = pipe.side(end);
        pipe.open[side] = false;
        pipe.lost[side] = true;
        pipe.streams[side].queue.clear();
        if pipe.open == [false; 2] {
            self.pipes.remove(&id);
        }
    }

    /// The largest number of unread bytes in a stream.
    pub(crate) fn most_unread(&self) -> usize {
        self.pipes.values().flat_map(|pipe| &pipe.streams).map(|stream| stream.queued).max().unwrap_or(0)
    }

    /// Removes all connections and the bytes in transit; returns the ends that were open.
    pub(crate) fn reset_all(&mut self) -> Vec<End> {
        let pipes = std::mem::take(&mut self.pipes);
        self.by_end.clear();
        pipes
            .values()
            .flat_map(|pipe| (0..2).filter(|&side| pipe.open[side]).map(|side| pipe.ends[side]))
            .collect()
    }

    pub(crate) fn ends_of(&self, host: HostId) -> Vec<End> {
        self.by_end.keys().filter(|end| end.host == host).copied().collect()
    }

    /// Delivers what is due on one connection; the second value is the time of the next delivery.
    pub(crate) fn deliver_stream(
        &mut self,
        id: u64,
        now: Instant,
        net: &mut Net,
    ) -> (Vec<TcpEvent>, Option<Instant>) {
        let mut events = Vec::new();
        let Some(pipe) = self.pipes.get_mut(&id) else { return (events, None) };
        if pipe.due_at.take_if(|at| *at <= now).is_none() {
            return (events, None);
        }
        let connected = net.streams(pipe.ends[0].host, pipe.ends[1].host);
        let mut again: Option<Instant> = None;
        for side in 0..2 {
            let (from, to) = (pipe.ends[side], pipe.ends[1 - side]);
            let stream = &mut pipe.streams[side];
            if !connected {
                if !stream.queue.is_empty() || stream.closing.is_some() {
                    again = Some(now + RETRANSMIT_INTERVAL);
                }
            } else if pipe.lost[1 - side] {
                if !stream.queue.is_empty() && pipe.open[side] {
                    pipe.open[side] = false;
                    self.by_end.remove(&from);
                    events.push(TcpEvent::Closed(from, "read: connection reset by peer"));
                }
                stream.queue.clear();
                continue;
            } else {
                let mut received = Vec::new();
                while stream.queue.front().is_some_and(|(at, _)| *at <= now) {
                    let (_, bytes) = stream.queue.pop_front().expect("front was there");
                    stream.queued -= bytes.len();
                    received.extend_from_slice(&bytes);
                }
                if net.faults.split_stream_randomly && !received.is_empty() {
                    let rest = received.split_off(net.cut_stream(received.len()));
                    if !rest.is_empty() {
                        stream.queued += rest.len();
                        stream.queue.push_front((now + net.delay(), rest));
                    }
                }
                if !received.is_empty() && pipe.open[1 - side] {
                    events.push(TcpEvent::Bytes(to, received));
                }
                if let Some((at, _)) = stream.queue.front() {
                    again = Some(again.map_or(*at, |t| t.min(*at)));
                }
            }
            // Written = taken by the kernel: all but what exceeds its buffer.
            let written = stream.total - stream.queued.saturating_sub(SOCKET_BUFFER);
            if written > stream.reported && pipe.open[side] {
                events.push(TcpEvent::Written(from, written - stream.reported));
                stream.reported = written;
            }
            if connected
                && stream.queue.is_empty()
                && pipe.open[1 - side]
                && let Some(why) = stream.closing
            {
                pipe.open[1 - side] = false;
                self.by_end.remove(&to);
                events.push(TcpEvent::Closed(to, why));
            }
        }
        if pipe.open == [false; 2] {
            self.pipes.remove(&id);
            return (events, None);
        }
        let again = again.and_then(|at| pipe.schedule(at));
        (events, again)
    }
}

impl Pipe {
    /// `None` if a delivery is planned before anyway.
    fn schedule(&mut self, at: Instant) -> Option<Instant> {
        if self.due_at.is_some_and(|planned| planned <= at) {
            return None;
        }
        self.due_at = Some(at);
        Some(at)
    }

    fn side(&self, end: End) -> usize {
        usize::from(self.ends[1] == end)
    }
}

/// The address of the listener of a host.
pub(crate) fn listener(host: HostId, port: u16) -> SocketAddr {
    SocketAddr::new(host.ip(), port)
}
