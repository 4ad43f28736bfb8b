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
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::packet::grow;
use crate::sys::{self, Received};

/// Room for one received message: datagrams that the kernel merged have at most 64 kB together.
pub(crate) const MESSAGE: usize = 65_536;
/// Bursts of whole TCP windows must fit while the thread is busy.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// What may wait in the queue of a slow device: 30 ms at 1 Gbit/s. More would only add delay, as the senders in containers
/// learn of a bottleneck by losses.
const SEND_BUFFER: i32 = 4 << 20;
/// How long a send may wait for the device before its datagrams are dropped.
const SEND_PATIENCE: Duration = Duration::from_millis(20);

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
    /// Sends nothing: connected to one address after the other to learn what the kernel knows about the path.
    probe: Mutex<Socket>,
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
            grow(socket.as_fd(), libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER);
            grow(socket.as_fd(), libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER);
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
        let probe = new().map_err(failed("socket"))?;
        set_discovery(&probe, address, true).map_err(failed("IP_MTU_DISCOVER"))?;
        // Routes may depend on the source.
        probe.bind(&SocketAddr::new(local.ip(), 0).into()).map_err(failed("bind"))?;
        Ok(UdpSockets { df, plain, probe: Mutex::new(probe), local, segments: AtomicBool::new(true) })
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

    /// The socket that sends with or without DF.
    pub(crate) fn fd(&self, df: bool) -> BorrowedFd<'_> {
        self.socket(df).as_fd()
    }

    /// Whether the kernel cuts messages for us, as far as we know.
    pub(crate) fn segments(&self) -> bool {
        self.segments.load(Ordering::Relaxed)
    }

    /// It turned out that it does not.
    pub(crate) fn stop_segmenting(&self, error: &io::Error) {
        if self.segments.swap(false, Ordering::Relaxed) {
            tracing::info!(%error, "UDP segmentation does not work here, sending datagrams one by one");
        }
    }

    /// Sends one datagram: control traffic from any thread. Behind a full queue it waits for up to 20 ms, since losing
    /// heartbeats to the data that they vouch for would end a connection that is only busy.
    pub(crate) fn send(&self, to: SocketAddr, df: bool, datagram: &[u8]) -> io::Result<()> {
        self.socket(df).send_to_with_flags(datagram, &to.into(), libc::MSG_NOSIGNAL).map(drop)
    }

    /// Datagrams that the kernel dropped for want of room, since the sockets were made.
    pub(crate) fn receive_drops(&self) -> u64 {
        /// `SK_MEMINFO_DROPS` in the words of SO_MEMINFO.
        const DROPS: usize = 8;
        let drops = |socket| {
            sys::option_words::<9>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO).map_or(0, |w| w[DROPS])
        };
        self.both().into_iter().map(|socket| u64::from(drops(socket))).sum()
    }

    /// What the kernel believes to be the MTU of the path to `to`, in bytes of IP packet.
    pub(crate) fn path_mtu(&self, to: SocketAddr) -> io::Result<u32> {
        let probe = self.probe.lock().unwrap_or_else(PoisonError::into_inner);
        // Otherwise it would keep the source address chosen for the path before.
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

/// Size of the datagrams that a received message consists of: all but the last have it.
pub(crate) fn segment_size(message: &Received<'_>) -> usize {
    message
        .control(libc::SOL_UDP, libc::UDP_GRO)
        .and_then(|data| data.first_chunk::<4>())
        .and_then(|size| usize::try_from(i32::from_ne_bytes(*size)).ok())
        .filter(|&size| size > 0)
        .unwrap_or(message.data.len().max(1))
}
