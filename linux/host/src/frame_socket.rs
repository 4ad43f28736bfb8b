//! Packet sockets that see ARP and ICMP of two addresses only, for `weave trace`.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use crate::{Error, fault_injection};

/// Bytes of a frame that are received.
const SNAPSHOT: usize = 128;
/// Room for frames that wait, in bytes: more than any trace causes.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Sees the frames of one link, or of all links of a network namespace.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
    link: u32,
}

/// A frame that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenFrame {
    /// Index of the link.
    pub link: u32,
    /// Whether the link sent it; otherwise it has arrived there.
    pub outgoing: bool,
    /// Its beginning, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl FrameSocket {
    /// Opens a socket in the namespace of the calling thread. It sees ARP and ICMP from or to one of the addresses; `link` is the index
    /// of a link, or 0 for all of them.
    pub fn open(link: u32, addresses: [Ipv4Addr; 2]) -> Result<FrameSocket, Error> {
        let step = "looking for frames of a trace";
        fault_injection::fail_point(&step).map_err(|e| Error::refused(step, e, ""))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // With protocol 0 it receives nothing until it is bound.
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .map_err(|e| Error::socket(step, e, "packet sockets (CONFIG_PACKET, module af_packet)"))?;
        let _ = setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER);
        let mut filter = filter(addresses);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the pointer and the length describe `program`, and it describes `filter`; the kernel copies both.
        let attached = unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of_val(&program) as libc::socklen_t,
            )
        };
        let mut address = link_address(link);
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let bound = |address: &libc::sockaddr_ll| unsafe {
            let length = size_of_val(address) as libc::socklen_t;
            libc::bind(fd.as_raw_fd(), std::ptr::from_ref(address).cast(), length)
        };
        if attached < 0 || bound(&address) < 0 {
            return Err(Error::refused(step, Errno::last(), ""));
        }
        Ok(FrameSocket { fd, link })
    }

    /// Sends a frame by the link.
    ///
    /// # Errors
    /// The kernel refuses; the link is down, for example.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        let mut address = link_address(self.link);
        address.sll_protocol = frame.get(12..14).map_or(0, |kind| u16::from_ne_bytes([kind[0], kind[1]]));
        // SAFETY: pointers and lengths describe `frame` and `address`, which outlive the call.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                size_of_val(&address) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(Error::refused("sending a probe frame", Errno::last(), "")) } else { Ok(()) }
    }

    /// The next frame; `None` if there is none within this time.
    pub fn receive(&self, timeout: Duration) -> Result<Option<SeenFrame>, Error> {
        if let Some(seen) = self.try_receive()? {
            return Ok(Some(seen));
        }
        // Rounded up, so that a caller with a deadline does not spin.
        let timeout = timeout.checked_add(Duration::from_micros(999)).unwrap_or(timeout);
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let _ = poll(&mut [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)], timeout);
        self.try_receive()
    }

    fn try_receive(&self) -> Result<Option<SeenFrame>, Error> {
        let mut bytes = vec![0; SNAPSHOT];
        let mut from = link_address(0);
        let mut length = size_of_val(&from) as libc::socklen_t;
        // SAFETY: the kernel writes at most the given lengths to `bytes` and `from`.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        match (usize::try_from(received), Errno::last()) {
            (Ok(received), _) => {
                bytes.truncate(received);
                let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
                Ok(Some(SeenFrame { link: from.sll_ifindex as u32, outgoing, bytes }))
            }
            // ENETDOWN: a link has gone down, the others go on.
            (Err(_), Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => Ok(None),
            (Err(_), errno) => Err(Error::refused("receiving frames of a trace", errno, "")),
        }
    }
}

fn link_address(link: u32) -> libc::sockaddr_ll {
    // SAFETY: all-zero bytes are a valid `sockaddr_ll` (integers and a byte array).
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = link as i32;
    address
}

/// ARP and ICMP whose sender or target is one of the addresses.
fn filter(addresses: [Ipv4Addr; 2]) -> Vec<libc::sock_filter> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let [a, b] = addresses.map(u32::from);
    let statement = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let jump = |k, jt, jf| libc::sock_filter { code: JUMP_IF_EQUAL, jt, jf, k };
    vec![
        statement(LOAD_HALF, 12),
        jump(libc::ETH_P_ARP as u32, 9, 0),
        jump(libc::ETH_P_IP as u32, 0, 15),
        statement(LOAD_BYTE, 23),
        jump(libc::IPPROTO_ICMP as u32, 0, 13),
        statement(LOAD_WORD, 26),
        jump(a, 10, 0),
        jump(b, 9, 0),
        statement(LOAD_WORD, 30),
        jump(a, 7, 0),
        jump(b, 6, 7),
        // ARP: the addresses of sender and target.
        statement(LOAD_WORD, 28),
        jump(a, 4, 0),
        jump(b, 3, 0),
        statement(LOAD_WORD, 38),
        jump(a, 1, 0),
        jump(b, 0, 1),
        statement(RETURN, SNAPSHOT as u32),
        statement(RETURN, 0),
    ]
}
