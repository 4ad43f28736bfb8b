//! The UDP sockets of a peer (docs/spec/data-plane.md 4.2).
//!
//! None believes the path MTUs that the kernel learns from ICMP, because anybody can forge such messages: only the MTU of
//! the outgoing interface limits a datagram. Path MTUs are found by probes that the neighbour acknowledges.
//!
//! All are bound to the same address and port, so that all datagrams have the source port that peers (and their NATs) know. Two of them
//! send, one with the don't-fragment bit. Each receiving thread reads sockets of its own: a program tells the kernel by the lane of a
//! datagram of warp which one that is, so that the frames of a flow stay in order. It is a matter of speed only, any socket may receive
//! any datagram. Datagrams of equal size to one address are sent in one message that the kernel segments (UDP_SEGMENT); the kernel may
//! merge received datagrams in the same way (UDP_GRO).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};
use weave_overlay::Destination;
use weave_overlay::warp;

use crate::sys::{self, OutMessage, Received, SendBatch};

/// Bytes of one received message: datagrams that the kernel merges have at most 64 kB together.
pub(crate) const MAX_MESSAGE: usize = 65_536;
/// Must hold bursts of whole TCP windows while the thread is busy.
const RECEIVE_BUFFER: i32 = 16 << 20;
/// Limits the queue of a slow device: 30 ms at 1 Gbit/s. More would only add delay, since senders in containers detect a
/// bottleneck by loss.
const SEND_BUFFER: i32 = 4 << 20;
/// How long a send waits for the device before its datagrams are dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(20);
/// Bytes of the longest datagram, which every interface but loopback refuses.
const LONGEST: usize = 65_507;

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

/// The sockets, shared by all threads.
#[derive(Debug)]
pub(crate) struct UdpSockets {
    df: Socket,
    plain: Socket,
    /// Those of the receiving threads after the first.
    further: Vec<Socket>,
    local: SocketAddr,
}

impl UdpSockets {
    /// Binds sockets for a number of receiving threads, in the network namespace of the calling thread. Without an address they listen on
    /// all IPv4 addresses, with `::` on all of both families. Port 0 lets the kernel choose. Fails if any other socket uses the port.
    pub(crate) fn open(
        listen: Option<IpAddr>,
        port: u16,
        threads: usize,
    ) -> Result<UdpSockets, OpenUdpError> {
        let address = SocketAddr::new(listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), port);
        let failed = |step| move |error| OpenUdpError { address, step, error };
        let new = || Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP));
        let plain = new().map_err(failed("socket"))?;
        let df = new().map_err(failed("socket"))?;
        let further: Result<Vec<_>, _> = (1..threads).map(|_| new().map_err(failed("socket"))).collect();
        let further = further?;
        set_discovery(&plain, address.is_ipv6(), false).map_err(failed("IP_MTU_DISCOVER"))?;
        set_discovery(&df, address.is_ipv6(), true).map_err(failed("IP_MTU_DISCOVER"))?;
        for socket in [&plain, &df].into_iter().chain(&further) {
            if address.is_ipv6() {
                // With `::` both families, whatever the default of the host is.
                socket.set_only_v6(false).map_err(failed("IPV6_V6ONLY"))?;
            }
            sys::set_receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
            sys::set_send_buffer(socket.as_fd(), SEND_BUFFER);
            socket.set_write_timeout(Some(SEND_TIMEOUT)).map_err(failed("SO_SNDTIMEO"))?;
            // Linux 5.0 or later; without it the kernel does not merge datagrams.
            let _ = sys::set_option(socket.as_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
        }
        // The first socket is bound without SO_REUSEPORT, which fails if the port is in use. Another peer fails in the same way.
        plain.bind(&address.into()).map_err(failed("bind"))?;
        let bound = plain.local_addr().map_err(failed("getsockname"))?;
        let local = bound.as_socket().unwrap_or(address);
        plain.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
        for socket in [&df].into_iter().chain(&further) {
            socket.set_reuse_port(true).map_err(failed("SO_REUSEPORT"))?;
            socket.bind(&local.into()).map_err(failed("bind"))?;
        }
        // Linux 4.5 or later; without it the kernel chooses sockets by addresses.
        let _ = sys::attach_reuseport(plain.as_fd(), &mut by_lane(threads));
        Ok(UdpSockets { df, plain, further, local })
    }

    /// The local address of all sockets.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The number of receiving threads.
    pub(crate) fn threads(&self) -> usize {
        1 + self.further.len()
    }

    /// The sockets of a receiving thread.
    pub(crate) fn of_thread(&self, thread: usize) -> Vec<BorrowedFd<'_>> {
        match thread.checked_sub(1) {
            None => vec![self.df.as_fd(), self.plain.as_fd()],
            Some(further) => self.further.get(further).map(AsFd::as_fd).into_iter().collect(),
        }
    }

    /// The socket that sends with or without the don't-fragment bit.
    pub(crate) fn fd(&self, df: bool) -> BorrowedFd<'_> {
        if df { self.df.as_fd() } else { self.plain.as_fd() }
    }

    /// Sends one control datagram, or several of `segment` bytes, from any thread. If the queue is full it waits for up to 20 ms: if data
    /// displaced the heartbeats, a busy connection would time out.
    pub(crate) fn send(&self, destination: Destination, bytes: &[u8], segment: u16) -> io::Result<()> {
        let Destination { from, to, df, .. } = destination;
        let message = OutMessage { bytes, from, to: to.into(), segment };
        SendBatch::new(1).send(self.fd(df), std::iter::once(message)).map(drop)
    }

    /// Datagrams that the kernel dropped because the receive buffers were full.
    pub(crate) fn receive_drops(&self) -> u64 {
        /// Index of `SK_MEMINFO_DROPS` in SO_MEMINFO.
        const DROPS: usize = 8;
        let drops = |socket| {
            sys::option_words::<9>(socket, libc::SOL_SOCKET, libc::SO_MEMINFO).map_or(0, |w| w[DROPS])
        };
        let sockets = [&self.df, &self.plain].into_iter().chain(&self.further);
        sockets.map(|socket| u64::from(drops(socket.as_fd()))).sum()
    }

    /// The MTU of the interface through which datagrams leave from `from` for `to`, in bytes of IP packet. The kernel tells it
    /// when it refuses a datagram; the MTU of the route would include what ICMP messages said. Looks in the network namespace of
    /// the calling thread, which must be that of the sockets.
    pub(crate) fn interface_mtu(&self, from: IpAddr, to: SocketAddr) -> io::Result<u32> {
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        set_discovery(&socket, to.is_ipv6(), true)?;
        let (level, name) = match to {
            SocketAddr::V4(_) => (libc::SOL_IP, libc::IP_RECVERR),
            SocketAddr::V6(_) => (libc::SOL_IPV6, libc::IPV6_RECVERR),
        };
        sys::set_option(socket.as_fd(), level, name, 1)?;
        // Routes may depend on the source address.
        let from = match (from, to) {
            (IpAddr::V6(from), SocketAddr::V6(to)) => SocketAddrV6::new(from, 0, 0, to.scope_id()).into(),
            (from, _) => SocketAddr::new(from, 0),
        };
        socket.bind(&from.into())?;
        match socket.send_to_with_flags(&vec![0; LONGEST], &to.into(), libc::MSG_DONTWAIT) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(u32::MAX),
        }
        let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut [], Some(&mut space), flags)?;
        message
            .cmsgs()?
            .find_map(|control| match control {
                ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                    Some(error.ee_info)
                }
                _ => None,
            })
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// The program that chooses the socket of a datagram: for warp by the lane, for all others that of the first thread. The sockets are
/// numbered as [`UdpSockets::open`] binds them: `plain`, `df`, `further`.
fn by_lane(threads: usize) -> [libc::sock_filter; 7] {
    const LANE_OFFSET: u32 = 2;
    let step = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let (load, alu) = (libc::BPF_LD | libc::BPF_ABS, libc::BPF_ALU | libc::BPF_K);
    let is_warp = step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, warp::TYPE.into());
    [
        step(load | libc::BPF_B, 0),
        libc::sock_filter { jf: 4, ..is_warp },
        step(load | libc::BPF_H, LANE_OFFSET),
        step(alu | libc::BPF_MOD, threads.max(1) as u32),
        step(alu | libc::BPF_ADD, 1),
        step(libc::BPF_RET | libc::BPF_A, 0),
        step(libc::BPF_RET | libc::BPF_K, 1),
    ]
}

/// Chooses what the kernel does with datagrams that are too long. A socket of IPv6 also sends IPv4, by the option of IPv4.
fn set_discovery(socket: &Socket, ipv6: bool, df: bool) -> io::Result<()> {
    let v4 = if df { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_OMIT };
    sys::set_option(socket.as_fd(), libc::SOL_IP, libc::IP_MTU_DISCOVER, v4)?;
    if ipv6 {
        // Only the source fragments IPv6, so datagrams that may be fragmented depend on "packet too big". A forged one makes
        // fragments of 1280 bytes, the least that IPv6 allows.
        let v6 = if df { libc::IPV6_PMTUDISC_PROBE } else { libc::IPV6_PMTUDISC_DONT };
        sys::set_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_MTU_DISCOVER, v6)?;
    }
    Ok(())
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
