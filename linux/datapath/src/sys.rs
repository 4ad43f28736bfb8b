//! System calls that std, nix and socket2 do not offer without allocation: batched send and receive, packet sockets, integer
//! socket options. All `unsafe` code of this crate is in this file.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{c_int, c_void, socklen_t};

/// Bytes of the largest socket address used here (`sockaddr_in6`; `sockaddr_ll` has 20).
const NAME_LEN: usize = 28;
/// Bytes for the control messages of one datagram; UDP_GRO needs 24, PACKET_AUXDATA 36, IPV6_PKTINFO with UDP_SEGMENT 64.
const CONTROL_LEN: usize = 64;
/// Bytes of a `cmsghdr`: length as `size_t`, level, type.
const CMSG_HEADER: usize = size_of::<usize>() + 8;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A socket address in the kernel's layout.
#[derive(Clone, Copy)]
pub(crate) struct RawAddress {
    bytes: [u8; NAME_LEN],
    len: u8,
}

impl RawAddress {
    pub(crate) const NONE: RawAddress = RawAddress { bytes: [0; NAME_LEN], len: 0 };
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::NONE;
        let b = &mut raw.bytes;
        b[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                b[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                b[4..8].copy_from_slice(&v4.ip().octets());
                raw.len = 16;
            }
            SocketAddr::V6(v6) => {
                b[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                b[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                b[8..24].copy_from_slice(&v6.ip().octets());
                b[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                raw.len = 28;
            }
        }
        raw
    }
}

fn parse_address(b: &[u8]) -> Option<SocketAddr> {
    let family = c_int::from(u16::from_ne_bytes(b.get(..2)?.try_into().ok()?));
    let port = u16::from_be_bytes(b.get(2..4)?.try_into().ok()?);
    match family {
        libc::AF_INET => {
            let ip: [u8; 4] = b.get(4..8)?.try_into().ok()?;
            Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(ip)), port))
        }
        libc::AF_INET6 => {
            let ip: [u8; 16] = b.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(b.get(24..28)?.try_into().ok()?);
            let ip = Ipv6Addr::from(ip);
            // A socket of both families writes IPv4 addresses as IPv6.
            Some(match ip.to_ipv4_mapped() {
                Some(ip) => SocketAddr::new(IpAddr::V4(ip), port),
                None => std::net::SocketAddrV6::new(ip, port, 0, scope).into(),
            })
        }
        _ => None,
    }
}

#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

/// What the kernel reported about one received message.
#[derive(Clone, Copy, Default)]
struct Outcome {
    len: usize,
    flags: c_int,
    name_len: usize,
    control_len: usize,
}

/// Buffers for `recvmmsg`, allocated once. Not `Send`: it stays with the thread that created it.
pub(crate) struct RecvBatch {
    slot_len: usize,
    data: Box<[u8]>,
    names: Box<[[u8; NAME_LEN]]>,
    controls: Box<[Control]>,
    outcomes: Box<[Outcome]>,
    // The pointers in these are valid only during `receive`.
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

/// One received message.
pub(crate) struct Received<'a> {
    /// Payload of the message.
    pub(crate) data: &'a mut [u8],
    /// Whether the message was longer than the slot, so that the rest is lost.
    pub(crate) truncated: bool,
    /// Sender, if the socket has internet addresses.
    pub(crate) from: Option<SocketAddr>,
    /// `sll_pkttype`, if it is a packet socket.
    pub(crate) packet_type: Option<u8>,
    control: &'a [u8],
}

impl Received<'_> {
    /// The data of the control message of this kind, as far as it was received.
    pub(crate) fn control(&self, level: c_int, kind: c_int) -> Option<&[u8]> {
        let mut rest = self.control;
        while rest.len() >= CMSG_HEADER {
            let (size, at) =
                (size_of::<usize>(), |i: usize| [rest[i], rest[i + 1], rest[i + 2], rest[i + 3]]);
            let len = usize::from_ne_bytes(rest[..size].try_into().ok()?);
            if len < CMSG_HEADER {
                return None;
            }
            let end = len.min(rest.len());
            if i32::from_ne_bytes(at(size)) == level && i32::from_ne_bytes(at(size + 4)) == kind {
                return Some(&rest[CMSG_HEADER..end]);
            }
            rest = rest.get(len.next_multiple_of(size)..)?;
        }
        None
    }
}

impl RecvBatch {
    /// Room for `slots` messages of up to `slot_len` bytes each.
    pub(crate) fn new(slots: usize, slot_len: usize) -> RecvBatch {
        // SAFETY: both are C structs of integers and raw pointers, for which all zeros are a valid value.
        let (iovec, header): (libc::iovec, libc::mmsghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        RecvBatch {
            slot_len,
            data: vec![0; slots * slot_len].into(),
            names: vec![[0; NAME_LEN]; slots].into(),
            controls: vec![Control([0; CONTROL_LEN]); slots].into(),
            outcomes: vec![Outcome::default(); slots].into(),
            iovecs: vec![iovec; slots].into(),
            headers: vec![header; slots].into(),
        }
    }

    /// Maximum number of messages in one call.
    pub(crate) fn slots(&self) -> usize {
        self.outcomes.len()
    }

    /// Receives up to `limit` messages without waiting. `WouldBlock` if there are none.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        self.receive_with(socket, limit, libc::MSG_DONTWAIT)
    }

    /// Waits for a message and receives those that are there.
    pub(crate) fn receive_waiting(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.receive_with(socket, self.slots(), libc::MSG_WAITFORONE)
    }

    fn receive_with(&mut self, socket: BorrowedFd<'_>, limit: usize, flags: c_int) -> io::Result<usize> {
        let limit = limit.min(self.slots());
        let slots = self.data.chunks_exact_mut(self.slot_len).zip(&mut self.names).zip(&mut self.controls);
        for (((data, name), control), (iovec, header)) in
            slots.zip(self.iovecs.iter_mut().zip(&mut self.headers))
        {
            iovec.iov_base = data.as_mut_ptr().cast();
            iovec.iov_len = data.len();
            let h = &mut header.msg_hdr;
            h.msg_name = name.as_mut_ptr().cast();
            h.msg_namelen = NAME_LEN as socklen_t;
            h.msg_iov = iovec;
            h.msg_iovlen = 1;
            h.msg_control = control.0.as_mut_ptr().cast();
            h.msg_controllen = CONTROL_LEN as _;
            h.msg_flags = 0;
        }
        let count = loop {
            // SAFETY: `limit` is at most the number of headers. Each header was filled above with pointers to buffers of
            // `self` and their lengths; the buffers do not overlap, and `&mut self` excludes other access during the call.
            let result = unsafe {
                libc::recvmmsg(
                    socket.as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    limit as _,
                    flags as _,
                    std::ptr::null_mut(),
                )
            };
            match check(result) {
                Ok(count) => break count as usize,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        for (outcome, header) in self.outcomes.iter_mut().zip(&self.headers).take(count) {
            let h = &header.msg_hdr;
            *outcome = Outcome {
                len: header.msg_len as usize,
                flags: h.msg_flags,
                name_len: h.msg_namelen as usize,
                control_len: h.msg_controllen,
            };
        }
        Ok(count)
    }

    /// Message `index` of the last `receive`. Panics at or above [`slots`](Self::slots).
    pub(crate) fn message(&mut self, index: usize) -> Received<'_> {
        let outcome = self.outcomes[index];
        let start = index * self.slot_len;
        let name = &self.names[index][..outcome.name_len.min(NAME_LEN)];
        let is_packet = name.len() >= 20 && name[..2] == (libc::AF_PACKET as u16).to_ne_bytes();
        Received {
            data: &mut self.data[start..start + outcome.len.min(self.slot_len)],
            truncated: outcome.flags & libc::MSG_TRUNC != 0,
            from: parse_address(name),
            packet_type: is_packet.then(|| name[10]),
            control: &self.controls[index].0[..outcome.control_len.min(CONTROL_LEN)],
        }
    }
}

/// One message to send.
#[derive(Clone, Copy)]
pub(crate) struct OutMessage<'a> {
    /// Payload.
    pub(crate) bytes: &'a [u8],
    /// Source address; unspecified if the kernel chooses it.
    pub(crate) from: IpAddr,
    /// Destination; [`RawAddress::NONE`] on a bound packet socket.
    pub(crate) to: RawAddress,
    /// Size of the datagrams that the kernel divides the message into (UDP_SEGMENT); 0 for a single datagram.
    pub(crate) segment: u16,
}

/// Headers for `sendmmsg`, allocated once.
pub(crate) struct SendBatch {
    names: Box<[RawAddress]>,
    controls: Box<[Control]>,
    iovecs: Box<[libc::iovec]>,
    headers: Box<[libc::mmsghdr]>,
}

impl SendBatch {
    /// Room for `slots` messages in one call.
    pub(crate) fn new(slots: usize) -> SendBatch {
        // SAFETY: both are C structs of integers and raw pointers, for which all zeros are a valid value.
        let (iovec, header): (libc::iovec, libc::mmsghdr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        SendBatch {
            names: vec![RawAddress::NONE; slots].into(),
            controls: vec![Control([0; CONTROL_LEN]); slots].into(),
            iovecs: vec![iovec; slots].into(),
            headers: vec![header; slots].into(),
        }
    }

    /// Sends as many of `messages` as fit one call and the kernel accepts, in order. An error is that of the first message.
    pub(crate) fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        messages: impl Iterator<Item = OutMessage<'a>>,
    ) -> io::Result<usize> {
        let mut count = 0;
        let slots =
            self.names.iter_mut().zip(&mut self.controls).zip(&mut self.iovecs).zip(&mut self.headers);
        for (message, (((name, control), iovec), header)) in messages.zip(slots) {
            // The kernel only reads from it; `iovec` has no const variant.
            iovec.iov_base = message.bytes.as_ptr().cast_mut().cast();
            iovec.iov_len = message.bytes.len();
            *name = message.to;
            let h = &mut header.msg_hdr;
            h.msg_name = if name.len == 0 { std::ptr::null_mut() } else { name.bytes.as_mut_ptr().cast() };
            h.msg_namelen = socklen_t::from(name.len);
            h.msg_iov = iovec;
            h.msg_iovlen = 1;
            let len = encode_controls(&mut control.0, message.from, message.segment);
            h.msg_control = if len == 0 { std::ptr::null_mut() } else { control.0.as_mut_ptr().cast() };
            h.msg_controllen = len as _;
            count += 1;
        }
        if count == 0 {
            return Ok(0);
        }
        loop {
            // SAFETY: the first `count` headers were filled above with pointers to buffers of `self` and to payloads that are
            // borrowed for 'a, with their lengths. All of them stay valid during the call, which only reads them.
            let result = unsafe {
                libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), count, libc::MSG_NOSIGNAL as _)
            };
            match check(result) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(|sent| sent as usize),
            }
        }
    }
}

/// Writes the control messages of a datagram and returns their length.
fn encode_controls(buf: &mut [u8; CONTROL_LEN], from: IpAddr, segment: u16) -> usize {
    let mut len = 0;
    match from {
        _ if from.is_unspecified() => {}
        IpAddr::V4(ip) => {
            // `in_pktinfo`: interface, source address, and an address that is ignored.
            let mut info = [0; 12];
            info[4..8].copy_from_slice(&ip.octets());
            len = encode_control(buf, len, libc::SOL_IP, libc::IP_PKTINFO, &info);
        }
        IpAddr::V6(ip) => {
            // `in6_pktinfo`: source address and interface.
            let mut info = [0; 20];
            info[..16].copy_from_slice(&ip.octets());
            len = encode_control(buf, len, libc::SOL_IPV6, libc::IPV6_PKTINFO, &info);
        }
    }
    if segment != 0 {
        len = encode_control(buf, len, libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
    }
    len
}

/// Writes a control message at `start` and returns where the next one starts.
fn encode_control(
    buf: &mut [u8; CONTROL_LEN],
    start: usize,
    level: c_int,
    kind: c_int,
    data: &[u8],
) -> usize {
    let size = size_of::<usize>();
    let len = CMSG_HEADER + data.len();
    let buf = &mut buf[start..];
    buf[..size].copy_from_slice(&len.to_ne_bytes());
    buf[size..size + 4].copy_from_slice(&level.to_ne_bytes());
    buf[size + 4..size + 8].copy_from_slice(&kind.to_ne_bytes());
    buf[CMSG_HEADER..len].copy_from_slice(data);
    start + len.next_multiple_of(size)
}

/// Sets an integer option.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer refers to `value`, which is valid during the call, and the length is its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast::<c_void>(),
            size_of::<c_int>() as socklen_t,
        )
    };
    check(result).map(drop)
}

/// Lets a program choose which of the sockets that share a port through SO_REUSEPORT receives a datagram. It gets the datagram behind the
/// UDP header, and returns the number of the socket in the order in which they were bound.
pub(crate) fn attach_reuseport(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the pointer refers to `program`, which describes the slice; the kernel copies both during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast::<c_void>(),
            size_of_val(&program) as socklen_t,
        )
    };
    check(result).map(drop)
}

/// Sets the size of the receive buffer, above the system's limit if CAP_NET_ADMIN permits it.
pub(crate) fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: c_int) {
    set_buffer(socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes);
}

/// Sets the size of the send buffer, above the system's limit if CAP_NET_ADMIN permits it.
pub(crate) fn set_send_buffer(socket: BorrowedFd<'_>, bytes: c_int) {
    set_buffer(socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, bytes);
}

fn set_buffer(socket: BorrowedFd<'_>, force: c_int, plain: c_int, bytes: c_int) {
    if set_option(socket, libc::SOL_SOCKET, force, bytes).is_err() {
        // The kernel limits the value instead of failing.
        let _ = set_option(socket, libc::SOL_SOCKET, plain, bytes);
    }
}

/// Reads an option that consists of up to `N` integers; those that the kernel does not write are 0.
pub(crate) fn option_words<const N: usize>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<[u32; N]> {
    let mut value = [0u32; N];
    let mut len = size_of_val(&value) as socklen_t;
    // SAFETY: `value` has `len` bytes and is valid during the call; any bytes are valid integers.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast::<c_void>(), &raw mut len)
    };
    check(result).map(|_| value)
}

/// Creates a packet socket that is not bound and receives nothing.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor was just created and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Binds a packet socket to a device. `protocol` is an Ethernet type in host byte order; with 0 it receives nothing.
pub(crate) fn bind_packet(socket: BorrowedFd<'_>, device: u32, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: device as c_int,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer refers to `address`, which is valid during the call, and the length is its size.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast::<libc::sockaddr>(),
            size_of::<libc::sockaddr_ll>() as socklen_t,
        )
    };
    check(result).map(drop)
}

/// Creates an event counter, to wake a poll.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: the descriptor was just created and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_addresses_round_trip() {
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:6783".parse().unwrap();
        assert_eq!(parse_address(&RawAddress::from(mapped).bytes), Some("10.1.2.3:6783".parse().unwrap()));
        for text in ["10.1.2.3:6783", "0.0.0.0:1", "[fd00::1]:6783", "[fe80::2%7]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let raw = RawAddress::from(address);
            assert_eq!(parse_address(&raw.bytes[..usize::from(raw.len)]), Some(address));
        }
        assert_eq!(parse_address(&[]), None);
        assert_eq!(parse_address(&[2, 0, 1, 1, 10]), None);
    }

    #[test]
    fn control_messages_are_found_and_invalid_ones_end_the_search() {
        let mut buf = [0; CONTROL_LEN];
        let used = encode_controls(&mut buf, "fd00::1".parse().unwrap(), 1410);
        let received =
            |control| Received { data: &mut [], truncated: false, from: None, packet_type: None, control };
        let message = received(&buf[..used]);
        assert_eq!(message.control(libc::SOL_UDP, libc::UDP_SEGMENT).unwrap()[..2], 1410u16.to_ne_bytes());
        assert!(message.control(libc::SOL_UDP, libc::UDP_GRO).is_none());
        // A length below that of the header must not cause an endless loop.
        assert!(received(&[0; 32]).control(libc::SOL_UDP, libc::UDP_GRO).is_none());
    }
}
