//! A UDP socket of a server: requests and answers move in batches, and an answer leaves from the address that was asked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::{self, OutMessage, Received, RecvBatch, SendBatch};

/// Must hold the requests that arrive while the thread is busy.
const RECEIVE_BUFFER: i32 = 4 << 20;
/// How long a send waits for the device before an answer is dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(20);

/// A UDP socket for requests and answers.
#[derive(Debug)]
pub struct ServerSocket {
    socket: Socket,
    local: SocketAddr,
}

/// One received datagram.
#[derive(Debug)]
pub struct Request<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// Who sent it.
    pub from: SocketAddr,
    /// The address that it was sent to; unspecified if the socket has only one.
    pub local: IpAddr,
}

/// One datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The payload.
    pub data: &'a [u8],
    /// Whom it is for.
    pub to: SocketAddr,
    /// [`Request::local`] of the request.
    pub local: IpAddr,
}

/// Buffers of a thread that serves, allocated once. Not `Send`.
pub struct ServerBuffers {
    received: RecvBatch,
    sent: SendBatch,
}

impl ServerBuffers {
    /// Room for `count` datagrams of up to `len` bytes in one call.
    pub fn new(count: usize, len: usize) -> ServerBuffers {
        ServerBuffers { received: RecvBatch::new(count, len), sent: SendBatch::new(count) }
    }
}

impl ServerSocket {
    /// Binds `count` sockets to the same address, among which the kernel divides the clients. Port 0 lets the kernel choose.
    /// Fails if any other socket uses the port.
    pub fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<ServerSocket>> {
        let mut sockets = Vec::with_capacity(count);
        let mut local = address;
        for n in 0..count {
            let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
            if address.is_ipv6() {
                // With `::` both families, whatever the default of the host is.
                socket.set_only_v6(false)?;
            }
            if address.ip().is_unspecified() {
                sys::set_option(socket.as_fd(), libc::SOL_IP, libc::IP_PKTINFO, 1)?;
                if address.is_ipv6() {
                    sys::set_option(socket.as_fd(), libc::SOL_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
                }
            }
            sys::set_receive_buffer(socket.as_fd(), RECEIVE_BUFFER);
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            // The first one is bound alone, which fails if the port is in use, and shares the port afterwards.
            if n > 0 {
                socket.set_reuse_port(true)?;
            }
            socket.bind(&local.into())?;
            if n == 0 {
                local = socket.local_addr()?.as_socket().unwrap_or(address);
                socket.set_reuse_port(count > 1)?;
            }
            sockets.push(ServerSocket { socket, local });
        }
        Ok(sockets)
    }

    /// The address that the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits for a datagram and receives those that are there, at least one. Returns their number.
    /// After [`shut_down`](Self::shut_down) it returns at once.
    pub fn receive(&self, buffers: &mut ServerBuffers) -> io::Result<usize> {
        buffers.received.receive_waiting(self.socket.as_fd())
    }

    /// Wakes the thread that waits in [`receive`](Self::receive).
    pub fn shut_down(&self) {
        // The kernel wakes the thread although it reports that the socket is not connected.
        let _ = self.socket.shutdown(std::net::Shutdown::Read);
    }

    /// Sends in order and returns how many datagrams could not be sent.
    pub fn send(&self, buffers: &mut ServerBuffers, answers: &[Answer<'_>]) -> usize {
        send_all(&self.socket, &mut buffers.sent, answers)
    }

    /// Sends one datagram.
    pub fn send_one(&self, answer: Answer<'_>) -> bool {
        send_all(&self.socket, &mut SendBatch::new(1), &[answer]) == 0
    }
}

impl ServerBuffers {
    /// Datagram `index` of the last [`ServerSocket::receive`]. `None` if it was longer than the buffer.
    pub fn request(&mut self, index: usize) -> Option<Request<'_>> {
        let message = self.received.message(index);
        let local = local_addr(&message);
        match message {
            Received { data, truncated: false, from: Some(from), .. } => Some(Request { data, from, local }),
            _ => None,
        }
    }
}

fn send_all(socket: &Socket, batch: &mut SendBatch, answers: &[Answer<'_>]) -> usize {
    let (mut done, mut failed) = (0, 0);
    while done < answers.len() {
        let messages = answers[done..].iter().map(|answer| OutMessage {
            bytes: answer.data,
            from: answer.local,
            to: answer.to.into(),
            segment: 0,
        });
        match batch.send(socket.as_fd(), messages) {
            Ok(sent) if sent > 0 => done += sent,
            // What is wrong concerns the first one: its client is unreachable, say.
            _ => {
                done += 1;
                failed += 1;
            }
        }
    }
    failed
}

/// The local address of a datagram, from `in_pktinfo` or `in6_pktinfo`.
fn local_addr(message: &Received<'_>) -> IpAddr {
    if let Some(info) = message.control(libc::SOL_IP, libc::IP_PKTINFO)
        && let Some(octets) = info.get(4..8).and_then(|octets| octets.first_chunk::<4>())
    {
        return Ipv4Addr::from(*octets).into();
    }
    if let Some(info) = message.control(libc::SOL_IPV6, libc::IPV6_PKTINFO)
        && let Some(octets) = info.first_chunk::<16>()
    {
        return Ipv6Addr::from(*octets).to_canonical();
    }
    Ipv4Addr::UNSPECIFIED.into()
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Waits for a datagram and sends it back.
    fn echo(socket: &ServerSocket) {
        let mut buffers = ServerBuffers::new(4, 512);
        assert_eq!(socket.receive(&mut buffers).unwrap(), 1);
        let request = buffers.request(0).unwrap();
        let (data, to, local) = (request.data.to_vec(), request.from, request.local);
        assert_eq!(socket.send(&mut buffers, &[Answer { data: &data, to, local }]), 0);
    }

    #[test]
    fn answers_leave_from_the_address_that_was_asked() {
        for (listen, addresses) in [
            ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2"][..]),
            ("127.0.0.3:0", &["127.0.0.3"]),
            ("[::]:0", &["127.0.0.2", "::1"]),
        ] {
            let sockets = ServerSocket::bind(listen.parse().unwrap(), 1).unwrap();
            let port = sockets[0].local_addr().port();
            for address in addresses {
                let server = SocketAddr::new(address.parse().unwrap(), port);
                let any: IpAddr = if server.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                };
                let client = UdpSocket::bind((any, 0)).unwrap();
                client.set_read_timeout(Some(TIMEOUT)).unwrap();
                client.send_to(b"request", server).unwrap();
                echo(&sockets[0]);
                let mut buffer = [0; 64];
                let (len, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..len], from), (&b"request"[..], server), "bound to {listen}");
            }
        }
    }

    #[test]
    fn clients_are_divided_among_the_sockets() {
        let sockets = ServerSocket::bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let server = sockets[0].local_addr();
        // All of 64 clients on one socket have a chance of one in 2^63.
        for _ in 0..64 {
            UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"request", server).unwrap();
        }
        let received = sockets.iter().map(|socket| socket.receive(&mut ServerBuffers::new(64, 512)).unwrap());
        assert_eq!(received.sum::<usize>(), 64);
    }

    #[test]
    fn waiting_thread_is_woken_by_shutdown() {
        let socket = &ServerSocket::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap()[0];
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // After the first one it waits again, unless it has been woken before.
                echo(socket);
                let mut buffers = ServerBuffers::new(4, 512);
                socket
                    .receive(&mut buffers)
                    .is_ok_and(|count| (0..count).any(|n| buffers.request(n).is_some()))
            });
            client.send_to(b"request", socket.local_addr()).unwrap();
            client.recv(&mut [0; 64]).unwrap();
            socket.shut_down();
            assert!(!thread.join().unwrap(), "a datagram that nobody sent");
        });
    }

    #[test]
    fn port_in_use_is_an_error() {
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        let error = ServerSocket::bind(address, 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let sockets = ServerSocket::bind("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let error = ServerSocket::bind(sockets[0].local_addr(), 2).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn unreachable_client_does_not_keep_answers_from_others() {
        let sockets = ServerSocket::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(TIMEOUT)).unwrap();
        let local = Ipv4Addr::UNSPECIFIED.into();
        let reachable = Answer { data: b"answer", to: client.local_addr().unwrap(), local };
        // A socket that is bound to the loopback address cannot send elsewhere.
        let unreachable = Answer { to: "192.0.2.1:9".parse().unwrap(), ..reachable };
        let mut buffers = ServerBuffers::new(2, 512);
        let answers = [unreachable, reachable, unreachable, unreachable, reachable];
        assert_eq!(sockets[0].send(&mut buffers, &answers), 3);
        let mut buffer = [0; 64];
        for _ in 0..2 {
            assert_eq!(client.recv(&mut buffer).unwrap(), 6);
        }
    }

    #[test]
    fn longer_datagrams_are_recognised() {
        let sockets = ServerSocket::bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&[0; 513], sockets[0].local_addr()).unwrap();
        let mut buffers = ServerBuffers::new(2, 512);
        assert_eq!(sockets[0].receive(&mut buffers).unwrap(), 1);
        assert!(buffers.request(0).is_none());
    }
}
