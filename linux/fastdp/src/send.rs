use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{getsockopt, sockopt};
use weave_overlay::fastdp::FastdpPath;

use crate::sys;

/// Why a control frame was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It is larger than the path, or than the interface through which it would leave.
    #[error("a packet of {size} bytes exceeds the MTU{}", .mtu.map(|mtu| format!(" of {mtu}")).unwrap_or_default())]
    TooBig {
        /// Bytes of the IP packet.
        size: usize,
        /// The MTU, if the kernel says it.
        mtu: Option<u32>,
    },
    /// The kernel refused to send it.
    #[error("sending a VXLAN packet: {0}")]
    System(io::Error),
}

const VXLAN_HEADER: usize = 8;
/// IPv4 and UDP.
const OUTER_HEADERS: usize = 28;

/// Sockets that send VXLAN packets from user space (docs/spec/data-plane.md A.5).
#[derive(Debug, Default)]
pub(crate) struct FrameSender {
    /// One for each local address.
    sockets: Mutex<BTreeMap<Ipv4Addr, UdpSocket>>,
}

/// The VXLAN header of a packet.
pub(crate) fn vxlan_header(vni: u32) -> [u8; VXLAN_HEADER] {
    let [_, a, b, c] = vni.to_be_bytes();
    [8, 0, 0, 0, a, b, c, 0]
}

impl FrameSender {
    pub(crate) fn send(&self, path: &FastdpPath, vni: u32, frame: &[u8]) -> Result<(), SendError> {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = match sockets.get(&path.local) {
            Some(socket) => socket,
            None => {
                let socket = open(path.local).map_err(SendError::System)?;
                sockets.entry(path.local).or_insert(socket)
            }
        };
        let packet = [&vxlan_header(vni), frame].concat();
        let to = SocketAddrV4::new(path.remote, path.port);
        let error = loop {
            match socket.send_to(&packet, to) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break error,
            }
        };
        if error.raw_os_error() == Some(libc::EMSGSIZE) {
            let size = packet.len() + OUTER_HEADERS;
            return Err(SendError::TooBig { size, mtu: path_mtu(path.local, to).ok() });
        }
        // The address may have gone and come back since the socket was bound to it.
        sockets.remove(&path.local);
        Err(SendError::System(error))
    }
}

fn open(local: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(local, 0))?;
    socket.set_nonblocking(true)?;
    sys::set_option(socket.as_fd(), libc::SOL_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
    sys::set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1)?;
    Ok(socket)
}

/// What the kernel knows of the path.
fn path_mtu(local: Ipv4Addr, to: SocketAddrV4) -> io::Result<u32> {
    let socket = open(local)?;
    socket.connect(to)?;
    Ok(getsockopt(&socket, sockopt::IpMtu)? as u32)
}
