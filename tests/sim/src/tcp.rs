//! Simulated TCP connections: two ordered byte streams that lose nothing, stall while the link is cut, and end when one end
//! closes or its host fails.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use weave_types::{ConnectionId, Instant};

use crate::net::{HostId, Net};

/// Unread bytes that the kernels of both ends buffer.
const SOCKET_BUFFER: usize = 256 * 1024;
/// Interval at which a stalled stream is tried again.
const RETRANSMIT_INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(20);

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) host: HostId,
    /// [`Host::incarnation`](crate::Host::incarnation) when the connection was made.
    pub(crate) incarnation: u32,
    pub(crate) conn: ConnectionId,
}

#[derive(Default)]
struct Stream {
    /// Bytes in transit, with the time of their arrival.
    queue: VecDeque<(Instant, Vec<u8>)>,
    /// Number of bytes in the queue.
    queued: usize,
    /// Bytes that were reported to the sender as written.
    reported: usize,
    /// Bytes delivered or queued.
    total: usize,
    /// The sender has closed; this is reported to the receiver after the last byte.
    closing: bool,
}

struct Connection {
    ends: [End; 2],
    /// `streams[i]` flows from `ends[i]` to the other end.
    streams: [Stream; 2],
    /// Whether the end has neither closed the connection nor received its end.
    open: [bool; 2],
    /// Whether the host of the end has lost its power, and does not know the connection any more.
    power_lost: [bool; 2],
    /// Time of the next delivery.
    due_at: Option<Instant>,
}

/// What happens at one end of a connection.
pub(crate) enum TcpEvent {
    Received(Vec<u8>),
    /// The kernel has taken this number of bytes.
    Written(usize),
    /// The other end has reset the connection.
    Closed,
}

#[derive(Default)]
pub(crate) struct Tcp {
    connections: BTreeMap<u64, Connection>,
    by_end: BTreeMap<End, u64>,
    next_id: u64,
}

impl Tcp {
    pub(crate) fn open(&mut self, dialler: End, acceptor: End) {
        let id = self.next_id;
        self.next_id += 1;
        self.by_end.insert(dialler, id);
        self.by_end.insert(acceptor, id);
        let connection = Connection {
            ends: [dialler, acceptor],
            streams: Default::default(),
            open: [true; 2],
            power_lost: [false; 2],
            due_at: None,
        };
        self.connections.insert(id, connection);
    }

    /// Queues bytes; returns the number of the connection and the time of its next delivery, if that time changes.
    pub(crate) fn write(
        &mut self,
        from: End,
        bytes: Vec<u8>,
        now: Instant,
        net: &mut Net,
    ) -> Option<(u64, Instant)> {
        let id = *self.by_end.get(&from)?;
        let connection = self.connections.get_mut(&id)?;
        let side = connection.side(from);
        let stream = &mut connection.streams[side];
        let earliest = stream.queue.back().map_or(now, |(at, _)| *at);
        let at = earliest.max(now + net.random_delay());
        stream.queued += bytes.len();
        stream.total += bytes.len();
        stream.queue.push_back((at, bytes));
        Some((id, connection.schedule(at)?))
    }

    /// One end resets the connection, or its process ends; the other end receives the bytes sent before. Returns the same as
    /// [`Tcp::write`].
    pub(crate) fn close(&mut self, end: End, now: Instant) -> Option<(u64, Instant)> {
        let id = self.by_end.remove(&end)?;
        let connection = self.connections.get_mut(&id)?;
        let side = connection.side(end);
        connection.open[side] = false;
        connection.streams[side].closing = true;
        // Bytes that this end has not read are lost.
        connection.streams[1 - side].queue.clear();
        if connection.open == [false; 2] {
            self.connections.remove(&id);
            return None;
        }
        let at = connection.streams[side].queue.back().map_or(now, |(at, _)| *at);
        Some((id, connection.schedule(at.max(now))?))
    }

    /// The host of one end has lost its power: the other end is reset when it sends something after the host has returned.
    pub(crate) fn power_lost(&mut self, end: End) {
        let Some(id) = self.by_end.remove(&end) else { return };
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let side = connection.side(end);
        connection.open[side] = false;
        connection.power_lost[side] = true;
        connection.streams[side].queue.clear();
        if connection.open == [false; 2] {
            self.connections.remove(&id);
        }
    }

    /// The largest number of unread bytes in a stream.
    pub(crate) fn most_unread(&self) -> usize {
        self.connections
            .values()
            .flat_map(|connection| &connection.streams)
            .map(|stream| stream.queued)
            .max()
            .unwrap_or(0)
    }

    /// Removes all connections and the bytes in transit; returns the ends that were open.
    pub(crate) fn reset_all(&mut self) -> Vec<End> {
        self.by_end.clear();
        std::mem::take(&mut self.connections)
            .values()
            .flat_map(|connection| {
                (0..2).filter(|&side| connection.open[side]).map(|side| connection.ends[side])
            })
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
    ) -> (Vec<(End, TcpEvent)>, Option<Instant>) {
        let mut events = Vec::new();
        let Some(connection) = self.connections.get_mut(&id) else { return (events, None) };
        if connection.due_at.take_if(|at| *at <= now).is_none() {
            return (events, None);
        }
        let connected = net.streams_pass(connection.ends[0].host, connection.ends[1].host);
        let mut again: Option<Instant> = None;
        for side in 0..2 {
            let (from, to) = (connection.ends[side], connection.ends[1 - side]);
            let stream = &mut connection.streams[side];
            if !connected {
                if !stream.queue.is_empty() || stream.closing {
                    again = Some(now + RETRANSMIT_INTERVAL);
                }
            } else if connection.power_lost[1 - side] {
                if !stream.queue.is_empty() && connection.open[side] {
                    connection.open[side] = false;
                    self.by_end.remove(&from);
                    events.push((from, TcpEvent::Closed));
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
                    let rest = received.split_off(net.random_segment(received.len()));
                    if !rest.is_empty() {
                        stream.queued += rest.len();
                        stream.queue.push_front((now + net.random_delay(), rest));
                    }
                }
                if !received.is_empty() && connection.open[1 - side] {
                    events.push((to, TcpEvent::Received(received)));
                }
                if let Some((at, _)) = stream.queue.front() {
                    again = Some(again.map_or(*at, |t| t.min(*at)));
                }
            }
            // The kernel has taken all bytes except those that exceed its buffer.
            let written = stream.total - stream.queued.saturating_sub(SOCKET_BUFFER);
            if written > stream.reported && connection.open[side] {
                events.push((from, TcpEvent::Written(written - stream.reported)));
                stream.reported = written;
            }
            if connected && stream.closing && stream.queue.is_empty() && connection.open[1 - side] {
                connection.open[1 - side] = false;
                self.by_end.remove(&to);
                events.push((to, TcpEvent::Closed));
            }
        }
        if connection.open == [false; 2] {
            self.connections.remove(&id);
            return (events, None);
        }
        let again = again.and_then(|at| connection.schedule(at));
        (events, again)
    }
}

impl Connection {
    /// Sets the time of the next delivery; `None` if one is already planned before it.
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
