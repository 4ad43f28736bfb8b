use std::net::{IpAddr, SocketAddr};

use weave_types::ConnectionId;

use crate::event::ForwarderEvent;

/// Where a datagram is sent. Each value has its own outgoing queue in an [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The connection that the datagram belongs to; interface MTUs are reported for it.
    pub conn: ConnectionId,
    /// The source address; unspecified if the kernel chooses it.
    pub from: IpAddr,
    /// The neighbour's UDP address.
    pub to: SocketAddr,
    /// Whether the don't-fragment bit is set; without it the kernel may fragment (docs/spec/data-plane.md 4.2).
    pub df: bool,
    /// Whether the kernel may be given several datagrams in one send, which it or the network card cuts.
    pub batched: bool,
}

/// Handle of a datagram that is being written, chosen by the [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// The input and output of the data path. The kernel driver implements it over batched sockets, tests over a list.
///
/// Outgoing datagrams are written in place, in memory that the implementation owns:
///
/// ```text
/// let slot = io.reserve(destination, room);     // opens a datagram at the tail of that destination's queue
/// io.buffer(slot)[..n]  ...                     // any number of times; other slots may be used in between
/// io.commit(slot, len);                         // closes it with `len` <= `room` bytes; 0 discards it
/// ```
///
/// The forwarder guarantees:
/// * it has at most one open slot per [`Destination`], so that an implementation with one contiguous buffer per
///   destination can reclaim unused room at `commit` and store datagrams end to end: runs of equal size then leave as one
///   `UDP_SEGMENT` send without a copy;
/// * datagrams cut from one super-frame are committed one after the other, equal in size except for the last;
/// * `room` is between 1 and [`MAX_DATAGRAM`](crate::udp::MAX_DATAGRAM);
/// * no slot is open when [`Forwarder::flush`](crate::forward::Forwarder::flush) returns.
///
/// An implementation may send committed datagrams at any time (when a buffer is full, after `flush`), in order within a
/// destination.
pub trait Io {
    /// Opens a datagram of at most `room` bytes.
    fn reserve(&mut self, to: Destination, room: usize) -> Slot;

    /// The `room` bytes of an open datagram. The initial content is arbitrary; later it is what was written.
    fn buffer(&mut self, slot: Slot) -> &mut [u8];

    /// Closes an open datagram and queues its first `len` bytes; discards it if `len` is 0.
    fn commit(&mut self, slot: Slot, len: usize);

    /// Passes a frame with complete checksums to the local bridge.
    fn inject(&mut self, frame: &[u8]);

    /// Reports an event to the owner of the tables. Events may be lost when the owner is slow; the important ones repeat.
    fn event(&mut self, event: ForwarderEvent);
}
