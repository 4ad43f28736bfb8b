//! The user who owns the other end of a TCP connection within this host (sock_diag(7)).

use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::errno::Errno;

use crate::Error;
use crate::netlink::{Netlink, Request, u16_at, u32_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `TCP_ESTABLISHED`, `TCP_FIN_WAIT1`, `TCP_FIN_WAIT2` and `TCP_CLOSE_WAIT`: states of a connected socket of which at most one
/// direction has been closed.
const CONNECTED: [u8; 4] = [1, 4, 5, 8];

/// The user id of the process of this host whose socket is bound to `local` and connected to `remote`. `None` if no process has such
/// a socket: the connection comes from another host, or its process has closed it already.
///
/// # Errors
/// The kernel does not answer such questions.
pub fn tcp_socket_owner(local: SocketAddr, remote: SocketAddr) -> Result<Option<u32>, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_SOCK_DIAG)?;
    let replies = match netlink.query(request(local, remote), "looking up the owner of a connection") {
        Err(e) if e.errno() == Some(Errno::ENOENT) => return Ok(None),
        replies => replies?,
    };
    let found = replies.iter().filter(|reply| reply.kind == SOCK_DIAG_BY_FAMILY);
    Ok(found.into_iter().find_map(|reply| owner(&reply.body, remote.port())))
}

/// `struct inet_diag_req_v2`.
fn request(local: SocketAddr, remote: SocketAddr) -> Request {
    let (local_ip, remote_ip) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = if local_ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let mut header = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    header.extend_from_slice(&u32::MAX.to_ne_bytes());
    header.extend_from_slice(&local.port().to_be_bytes());
    header.extend_from_slice(&remote.port().to_be_bytes());
    header.extend_from_slice(&padded(local_ip));
    header.extend_from_slice(&padded(remote_ip));
    // Any interface; no cookie.
    header.extend_from_slice(&[0; 4]);
    header.extend_from_slice(&[0xff; 8]);
    Request::new(SOCK_DIAG_BY_FAMILY, 0, &header)
}

fn padded(ip: IpAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match ip {
        IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => bytes = ip.octets(),
    }
    bytes
}

/// The user id in a `struct inet_diag_msg`. A socket that its process has closed has no inode, and the user id is 0 then whoever
/// opened it. Where there is no connected socket, the kernel may describe one that listens.
fn owner(body: &[u8], remote_port: u16) -> Option<u32> {
    let connected = CONNECTED.contains(body.get(1)?) && u16_at(body, 6)? == remote_port.to_be();
    let (uid, inode) = (u32_at(body, 64)?, u32_at(body, 68)?);
    (connected && inode != 0).then_some(uid)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn owner_of_a_connection_is_found_until_it_is_closed() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(host) else { continue };
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, remote) = listener.accept().unwrap();
            let local = server.local_addr().unwrap();
            let uid = || tcp_socket_owner(remote, local).unwrap();
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(uid(), Some(own), "{host}");
            client.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(uid(), Some(own), "{host}: the client still waits for the answer");
            drop(client);
            assert_eq!(uid(), None, "{host}: a closed socket belongs to nobody, and not to root");
            let nobody = SocketAddr::new(remote.ip(), 1);
            assert_eq!(tcp_socket_owner(local, nobody).unwrap(), None, "{host}: a listening socket");
        }
    }

    #[test]
    fn damaged_answers_name_nobody() {
        let mut body = vec![0; 72];
        body[1] = 1;
        body[6..8].copy_from_slice(&6784_u16.to_be_bytes());
        body[64..68].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(owner(&body, 6784), None, "no inode");
        body[68] = 1;
        assert_eq!(owner(&body, 6784), Some(1000));
        assert_eq!(owner(&body, 6783), None);
        for cut in 0..body.len() {
            assert_eq!(owner(&body[..cut], 6784), None);
        }
        body[1] = 10;
        assert_eq!(owner(&body, 6784), None, "a listening socket");
    }
}
