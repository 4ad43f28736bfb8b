use std::net::SocketAddr;

use weave_types::ConnectionId;

use crate::forward::ForwarderEvent;

/// Where a datagram goes. One value names one outgoing queue of an [`Io`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// The connection it belongs to; a path MTU that the kernel reports is reported for it.
    pub conn: ConnectionId,
    /// The neighbour's UDP address.
    pub to: SocketAddr,
    /// Whether it leaves with the don't-fragment bit; otherwise the kernel may fragment it (docs/spec/data-plane.md 4.2).
    pub df: bool,
}

/// A datagram that is being filled: the [`Io`]'s own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// What the data path asks of the world. The kernel driver implements it over batched sockets, tests over a list.
///
/// Outgoing datagrams are written in place, in memory that the implementation owns:
///
/// ```text
/// let slot = io.reserve(destination, room);     // opens a datagram at the tail of that destination's queue
/// io.buffer(slot)[..n]  ...                     // any number of times; other slots may be used in between
/// io.commit(slot, len);                         // closes it with `len` <= `room` bytes; 0 takes it back
/// ```
///
/// What the forwarder promises:
/// * it has at most one open slot per [`Destination`], so that an implementation that keeps one contiguous buffer per
///   destination can give the rest of the room back at `commit` and lay datagrams end to end: runs of equal size then
///   leave as one `UDP_SEGMENT` send without a copy;
/// * datagrams cut from one super-frame are committed one after the other, equal in size but for the last;
/// * `room` is between 1 and [`MAX_DATAGRAM`](crate::sleeve::MAX_DATAGRAM);
/// * no slot is open when [`Forwarder::flush`](crate::forward::Forwarder::flush) returns.
///
/// What an implementation may do: send committed datagrams whenever it likes (when a buffer is full, after `flush`), in
/// order within a destination.
pub trait Io {
    /// Opens a datagram of at most `room` bytes.
    fn reserve(&mut self, to: Destination, room: usize) -> Slot;

    /// The `room` bytes of an open datagram. Their first content is arbitrary, later what was written.
    fn buffer(&mut self, slot: Slot) -> &mut [u8];

    /// Closes an open datagram: its first `len` bytes are to be sent; nothing is if `len` is 0.
    fn commit(&mut self, slot: Slot, len: usize);

    /// Gives a frame to the local bridge. Its checksums are complete.
    fn inject(&mut self, frame: &[u8]);

    /// Tells the owner of the tables something. May be lost when the owner is slow: what matters repeats.
    fn event(&mut self, event: ForwarderEvent);
}
