//! The two UDP sockets of a peer, batched.
//!
//! Both are bound to the same address and port, so that everything leaves with the source port that peers (and their
//! NATs) know; they differ in the don't-fragment bit. The kernel may deliver a datagram to either, so both are read.
//! What goes to one address in datagrams of equal size leaves in one call that the kernel cuts (UDP_SEGMENT); what
//! arrives like that may come in one piece (UDP_GRO).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use weave_types::ConnectionId;

use crate::packet::grow;
use crate::sys::{self, OutMessage, RawAddress, Received, RecvBatch, SendBatch};

/// The largest UDP payload over IPv4.
pub const MAX_DATAGRAM: usize = 65_507;
/// The kernel's limit for one segmented send (UDP_MAX_SEGMENTS; later kernels allow 128).
const MAX_SEGMENTS: usize = 64;
/// IPv4 and UDP header.
const OVERHEAD_V4: usize = 28;
/// IPv6 and UDP header.
const OVERHEAD_V6: usize = 48;
/// Bursts of a whole TCP window must fit while the thread is busy.
const SOCKET_BUFFER: i32 = 16 << 20;
/// How long a send may wait for the device before its datagrams are dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(20);
/// Bytes queued before they have to be sent. More would only wash them out of the processor's cache.
const ARENA: usize = 256 << 10;
const SEND_SLOTS: usize = 256;

/// The sockets could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{step} for UDP {address}: {error}")]
pub struct OpenUdpError {
    /// Where they were to listen.
    pub address: SocketAddr,
    /// What was tried.
    pub step: &'static str,
    /// What the kernel said.
    #[source]
    pub error: io::Error,
}

/// The two sockets. Shared by all threads.
#[derive(Debug)]
pub struct UdpSockets {
    df: Socket,
    plain: Socket,
    local: SocketAddr,
    /// Cleared when the kernel turns out not to segment.
    segments: AtomicBool,
}

impl UdpSockets {
    /// Binds both sockets, in the network namespace of the calling thread. Without an address they listen on all of
    /// IPv4. Port 0 lets the kernel choose. A port that any other socket holds is refused.
    pub fn open(listen: Option<IpAddr>, port: u16) -> Result<UdpSockets, OpenUdpError> {
        let address = SocketAddr::new(listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        let failed = |step| move |error| OpenUdpError { address, step, error };
        let new = || Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
        let plain = new().map_err(failed("socket"))?;
        let df = new().map_err(failed("socket"))?;
        set_discovery(&plain, address, false).map_err(failed("IP_MTU_DISCOVER"))?;
        set_discovery(&df, address, true).map_err(failed("IP_MTU_DISCOVER"))?;
        for socket in [&plain, &df] {
            grow(socket.as_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, SOCKET_BUFFER);
            grow(socket.as_fd(), libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SOCKET_BUFFER);
            socket.set_write_timeout(Some(SEND_PATIENCE)).map_err(failed("SO_SNDTIMEO"))?;
            // Since Linux 5.0; without it datagrams come one by one.
            let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        // The first is bound alone, which finds out whether the port is taken. Only then may the port be shared, and
        // only until the second is bound: nobody else gets in.
        plain.bind(&address.into()).map_err(failed("bind"))?;
        let bound = plain.local_addr().map_err(failed("getsockname"))?;
        let local = bound.as_socket().unwrap_or(address);
        let share = |on| plain.set_reuse_address(on).and_then(|()| df.set_reuse_address(on));
        share(true).map_err(failed("SO_REUSEADDR"))?;
        df.bind(&local.into()).map_err(failed("bind"))?;
        share(false).map_err(failed("SO_REUSEADDR"))?;
        Ok(UdpSockets { df, plain, local, segments: AtomicBool::new(true) })
    }

    /// Where they are bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Both sockets, to be polled and read.
    pub(crate) fn both(&self) -> [BorrowedFd<'_>; 2] {
        [self.df.as_fd(), self.plain.as_fd()]
    }

    fn socket(&self, df: bool) -> &Socket {
        if df { &self.df } else { &self.plain }
    }

    /// Sends one datagram, without waiting: control traffic from any thread.
    pub(crate) fn send(&self, to: SocketAddr, df: bool, datagram: &[u8]) -> io::Result<()> {
        self.socket(df)
            .send_to_with_flags(datagram, &to.into(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .map(drop)
    }

    /// What the kernel believes to be the MTU of the path to `to`, in bytes of IP packet.
    pub(crate) fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        let probe = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        set_discovery(&probe, to, true)?;
        // Routes may depend on the source.
        if !self.local.ip().is_unspecified() {
            probe.bind(&SocketAddr::new(self.local.ip(), 0).into())?;
        }
        probe.connect(&to.into())?;
        let (level, name) = match to {
            SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_MTU),
            SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_MTU),
        };
        sys::option_words(probe.as_fd(), level, name).map(|[mtu]| mtu)
    }
}

fn set_discovery(socket: &Socket, address: SocketAddr, df: bool) -> io::Result<()> {
    let (level, name, value) = match (address, df) {
        (SocketAddr::V4(_), true) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
        (SocketAddr::V4(_), false) => (libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
        (SocketAddr::V6(_), true) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
        (SocketAddr::V6(_), false) => (libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
    };
    sys::set_option(socket.as_fd(), level, name, value)
}

/// Size of the datagrams that a received message consists of: all but the last have it.
pub(crate) fn segment_size(message: &Received<'_>) -> usize {
    message
        .control(libc::SOL_UDP, libc::UDP_GRO)
        .and_then(|data| data.first_chunk::<4>())
        .and_then(|size| usize::try_from(i32::from_ne_bytes(*size)).ok())
        .filter(|&size| size > 0)
        .unwrap_or(message.data.len().max(1))
}

/// Buffers for a batch of received datagrams.
pub(crate) fn receive_batch(slots: usize) -> RecvBatch {
    RecvBatch::new(slots, 65_536)
}

/// Datagrams that follow each other in the arena and leave in one message.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    to: SocketAddr,
    df: bool,
    conn: ConnectionId,
    /// Size of all datagrams but the last, which may be shorter.
    segment: usize,
    count: usize,
    /// The last one was shorter: nothing may follow.
    closed: bool,
}

impl Run {
    fn takes(&self, to: SocketAddr, df: bool, conn: ConnectionId, len: usize) -> bool {
        !self.closed
            && len <= self.segment
            && self.count < MAX_SEGMENTS
            && self.len + len <= MAX_DATAGRAM
            && self.df == df
            && self.to == to
            && self.conn == conn
    }

    fn message(&self) -> OutMessage {
        let segment = if self.count > 1 { self.segment as u16 } else { 0 };
        OutMessage { start: self.start, len: self.len, to: RawAddress::from(self.to), segment }
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

/// Datagrams on their way out. They are written in place: `reserve`, fill, `commit`.
pub(crate) struct TransmitQueue {
    arena: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    batch: SendBatch,
}

impl TransmitQueue {
    pub(crate) fn new() -> TransmitQueue {
        TransmitQueue {
            arena: vec![0; ARENA].into(),
            used: 0,
            runs: Vec::with_capacity(SEND_SLOTS),
            batch: SendBatch::new(SEND_SLOTS),
        }
    }

    /// Whether a datagram of up to `len` bytes can be queued before the next flush.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.used + len <= self.arena.len() && self.runs.len() < SEND_SLOTS
    }

    /// Room for a datagram of up to `len` bytes; empty unless [`has_room`](Self::has_room).
    pub(crate) fn reserve(&mut self, len: usize) -> &mut [u8] {
        self.arena.get_mut(self.used..self.used + len).unwrap_or_default()
    }

    /// Queues the first `len` bytes of the room reserved last. A reservation that is not committed is void.
    pub(crate) fn commit(&mut self, to: SocketAddr, df: bool, conn: ConnectionId, len: usize) {
        let start = self.used;
        self.used += len;
        match self.runs.last_mut() {
            Some(run) if run.takes(to, df, conn, len) => {
                run.len += len;
                run.count += 1;
                run.closed = len < run.segment;
            }
            _ => self.runs.push(Run { start, len, to, df, conn, segment: len, count: 1, closed: len == 0 }),
        }
    }

    /// Whether there is nothing to flush.
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Sends everything that is queued. `too_big` hears of each connection whose path turned out smaller than a
    /// datagram with DF set.
    pub(crate) fn flush(
        &mut self,
        sockets: &UdpSockets,
        too_big: &mut dyn FnMut(ConnectionId, SocketAddr),
    ) -> Sent {
        let mut sent = Sent::default();
        let mut next = 0;
        while let Some(first) = self.runs.get(next) {
            let df = first.df;
            let segments = sockets.segments.load(Ordering::Relaxed);
            if !segments && first.count > 1 {
                self.send_singly(sockets, next, &mut sent, too_big);
                next += 1;
                continue;
            }
            let same =
                self.runs[next..].iter().take_while(|run| run.df == df && (segments || run.count == 1));
            let socket = sockets.socket(df).as_fd();
            match self.batch.send(socket, &self.arena, same.map(Run::message), 0) {
                Ok(count) => {
                    for run in &self.runs[next..next + count] {
                        sent.datagrams += run.count as u64;
                        sent.bytes += run.len as u64;
                    }
                    sent.messages += count as u64;
                    next += count.max(1);
                }
                Err(error) => {
                    self.failed(sockets, next, &error, &mut sent, too_big);
                    next += 1;
                }
            }
        }
        self.runs.clear();
        self.used = 0;
        sent
    }

    fn failed(
        &mut self,
        sockets: &UdpSockets,
        index: usize,
        error: &io::Error,
        sent: &mut Sent,
        too_big: &mut dyn FnMut(ConnectionId, SocketAddr),
    ) {
        let run = self.runs[index];
        if run.count == 1 {
            return account(&run, error, sent, too_big);
        }
        match error.raw_os_error() {
            // Segments larger than the path: with DF none will pass, without the kernel fragments single ones.
            Some(libc::EMSGSIZE | libc::EINVAL) => {
                let overhead = if run.to.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
                let fits = |mtu: u32| run.segment + overhead <= mtu as usize;
                if run.df && !sockets.path_mtu(run.to).is_ok_and(fits) {
                    // Only a shorter last one may still fit.
                    let full = run.count - usize::from(run.closed);
                    sent.dropped_too_big += full as u64;
                    too_big(run.conn, run.to);
                    self.runs[index].start += full * run.segment;
                    self.runs[index].len -= full * run.segment;
                }
                self.send_singly(sockets, index, sent, too_big);
            }
            // Not on this kernel, or not through this device (no checksum offload, IPsec).
            Some(libc::EIO | libc::EOPNOTSUPP | libc::ENOPROTOOPT) => {
                if sockets.segments.swap(false, Ordering::Relaxed) {
                    tracing::info!(%error, "UDP segmentation does not work here, sending datagrams one by one");
                }
                self.send_singly(sockets, index, sent, too_big);
            }
            _ => account(&run, error, sent, too_big),
        }
    }

    fn send_singly(
        &mut self,
        sockets: &UdpSockets,
        index: usize,
        sent: &mut Sent,
        too_big: &mut dyn FnMut(ConnectionId, SocketAddr),
    ) {
        let run = self.runs[index];
        let (mut start, end) = (run.start, run.start + run.len);
        while start < end {
            let piece = |start: usize| OutMessage {
                start,
                len: run.segment.min(end - start),
                to: RawAddress::from(run.to),
                segment: 0,
            };
            let pieces = (start..end).step_by(run.segment.max(1)).map(piece);
            match self.batch.send(sockets.socket(run.df).as_fd(), &self.arena, pieces, 0) {
                Ok(count) => {
                    let bytes = (count.max(1) * run.segment).min(end - start);
                    sent.datagrams += count as u64;
                    sent.messages += count as u64;
                    sent.bytes += bytes as u64;
                    start += bytes;
                }
                Err(error) => {
                    account(&Run { count: 1, ..run }, &error, sent, too_big);
                    start += run.segment.min(end - start);
                }
            }
        }
    }
}

fn account(run: &Run, error: &io::Error, sent: &mut Sent, too_big: &mut dyn FnMut(ConnectionId, SocketAddr)) {
    let count = run.count as u64;
    match error.raw_os_error() {
        Some(libc::EMSGSIZE) => {
            sent.dropped_too_big += count;
            if run.df {
                too_big(run.conn, run.to);
            }
        }
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => sent.dropped_busy += count,
        _ => sent.dropped_error += count,
    }
}
