//! The two UDP sockets of a peer (docs/spec/data-plane.md 4.2).
//!
//! Both are bound to the same address and port, so that all datagrams have the source port that peers (and their NATs) know;
//! one sets the don't-fragment bit. The kernel may deliver a datagram to either, so both are read. Datagrams of equal size to
//! one address are sent in one message that the kernel segments (UDP_SEGMENT); the kernel may merge received datagrams in the
//! same way (UDP_GRO).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::{self, Received};

/// Bytes of one received message: datagrams that the kernel merges have at most 64 kB together.
pub(crate) const MAX_MESSAGE: usize = 65_536;
/// Must hold bursts of whole TCP windows while the thread is busy.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// Limits the queue of a slow device: 30 ms at 1 Gbit/s. More would only add delay, since senders in containers detect a
/// bottleneck by loss.
const SEND_BUFFER: i32 = 4 << 20;
/// How long a send waits for the device before its datagrams are dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(20);

/// The sockets could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{step} for UDP {address}: {error}")]
pub struct OpenUdpError {
    /// The local address.
    pub address: SocketAddr,
    /// The failed step.
    pub step: &'static str,
    /// Error of the kernel.
    #[source]
    pub error: io::Error,
}

/// The two sockets, shared by all threads.
#[derive(Debug)]
pub(crate) struct UdpSockets {
    df: Socket,
    plain: Socket,
    /// Never sends. It is connected to an address to query the path MTU that the kernel knows.
    probe: Mutex<Socket>,
    local: SocketAddr,
    /// Whether the kernel supports segmentation, as far as known.
    segmentation: AtomicBool,
}

impl UdpSockets {
    /// Binds both sockets, in the network namespace of the calling thread. Without an address they listen on all IPv4
    /// addresses. Port 0 lets the kernel choose. Fails if any other socket uses the port.
    pub(crate) fn open(listen: Option<IpAddr>, port: u16) -> Result<UdpSockets, OpenUdpError> {
        let address = SocketAddr::new(listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        let failed = |step| move |error| OpenUdpError { address, step, error };
        let new = || Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
        let plain = new().map_err(failed("socket"))?;
        let df = new().map_err(failed("socket"))?;
        set_discovery(&plain, address, false).map_err(failed("IP_MTU_DISCOVER"))?;
        set_discovery(&df, address, true).map_err(failed("IP_MTU_DISCOVER"))?;
        for socket in [&plain, &df] {
            sys::set_receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
            sys::set_send_buffer(socket.as_fd(), SEND_BUFFER);
            socket.set_write_timeout(Some(SEND_TIMEOUT)).map_err(failed("SO_SNDTIMEO"))?;
            // Linux 5.0 or later; without it the kernel does not merge datagrams.
            let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        // The first socket is bound without SO_REUSEADDR, which fails if the port is in use. Then the port is shared only until
        // the second socket is bound, so that no other process can share it.
        plain.bind(&address.into()).map_err(failed("bind"))?;
        let bound = plain.local_addr().map_err(failed("getsockname"))?;
        let local = bound.as_socket().unwrap_or(address);
        let share = |on| plain.set_reuse_address(on).and_then(|()| df.set_reuse_address(on));
        share(true).map_err(failed("SO_REUSEADDR"))?;
        df.bind(&local.into()).map_err(failed("bind"))?;
        share(false).map_err(failed("SO_REUSEADDR"))?;
        let probe = new().map_err(failed("socket"))?;
        set_discovery(&probe, address, true).map_err(failed("IP_MTU_DISCOVER"))?;
        // Routes may depend on the source address.
        probe.bind(&SocketAddr::new(local.ip(), 0).into()).map_err(failed("bind"))?;
        Ok(UdpSockets { df, plain, probe: Mutex::new(probe), local, segmentation: AtomicBool::new(true) })
    }

    /// The local address of both sockets.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Both sockets, for polling and receiving.
    pub(crate) fn both(&self) -> [BorrowedFd<'_>; 2] {
        [self.df.as_fd(), self.plain.as_fd()]
    }

    fn socket(&self, df: bool) -> &Socket {
        if df { &self.df } else { &self.plain }
    }

    /// The socket that sends with or without the don't-fragment bit.
    pub(crate) fn fd(&self, df: bool) -> BorrowedFd<'_> {
        self.socket(df).as_fd()
    }

    /// Whether the kernel segments messages, as far as known.
    pub(crate) fn supports_segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// Records that the kernel does not segment messages.
    pub(crate) fn disable_segmentation(&self, error: &io::Error) {
        if self.segmentation.swap(false, Ordering::Relaxed) {
            tracing::info!(%error, "UDP segmentation is not supported here; sending datagrams individually, which costs throughput");
        }
    }

    /// Sends one control datagram, from any thread. If the queue is full it waits for up to 20 ms: if data displaced the
    /// heartbeats, a busy connection would time out.
    pub(crate) fn send(&self, to: SocketAddr, df: bool, datagram: &[u8]) -> io::Result<()> {
        self.socket(df).send_to_with_flags(datagram, &to.into(), libc::MSG_NOSIGNAL).map(drop)
    }

    /// Datagrams that the kernel dropped because the receive buffers were full.
    pub(crate) fn receive_drops(&self) -> u64 {
        /// Index of `SK_MEMINFO_DROPS` in SO_MEMINFO.
        const DROPS: usize = 8;
        let drops = |socket| {
            sys::option_words::<9>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO).map_or(0, |w| w[DROPS])
        };
        self.both().into_iter().map(|socket| u64::from(drops(socket))).sum()
    }

    /// The path MTU to `to` that the kernel knows, in bytes of IP packet.
    pub(crate) fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        let probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        // Otherwise it would keep the source address that was chosen for the previous address.
        sys::disconnect(probe.as_fd())?;
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

/// Size of the datagrams in a received message; the last one may be shorter.
pub(crate) fn segment_size(message: &Received<'_>) -> usize {
    message
        .control(libc::SOL_UDP, libc::UDP_GRO)
        .and_then(|data| data.first_chunk::<4>())
        .and_then(|size| usize::try_from(i32::from_ne_bytes(*size)).ok())
        .filter(|&size| size > 0)
        .unwrap_or(message.data.len().max(1))
}
