//! ARP announcements (RFC 5227 section 2.3): all hosts on the segment learn the Ethernet address of an IP address.

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use weave_types::MacAddr;

use crate::{Error, Link, fault_injection};

const ETH_P_ARP: u16 = 0x0806;
const REQUEST: u16 = 1;

/// Time after which a link that was set up sends frames; until then they are dropped silently. (A worker of the kernel attaches the
/// queue after the call that sets the link up.)
pub(crate) const SET_UP_DELAY: Duration = Duration::from_millis(1);

/// Sends an ARP announcement of `addr` from `link`, which is in the namespace of the calling thread.
pub fn announce(link: &Link, addr: Ipv4Addr) -> Result<(), Error> {
    let step = || format!("announcing {addr} on {}", link.name);
    let mac = link.mac.ok_or_else(|| Error::Argument(format!("{} has no Ethernet address", link.name)))?;
    fault_injection::fail_point(&step()).map_err(|e| Error::refused(step(), e, ""))?;
    // With protocol 0 the socket receives nothing.
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| Error::socket(step(), e, "packet sockets (CONFIG_PACKET, module af_packet)"))?;
    let frame = request(mac, addr);
    // SAFETY: all-zero bytes are a valid `sockaddr_ll` (integers and a byte array).
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = ETH_P_ARP.to_be();
    to.sll_ifindex = link.index as i32;
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&MacAddr::BROADCAST.0);
    // SAFETY: pointer and length describe `frame` and `to`, which outlive the call.
    let sent = unsafe {
        libc::sendto(
            fd.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(Error::refused(step(), Errno::last(), "")) } else { Ok(()) }
}

/// A broadcast request whose sender and target addresses are the same.
fn request(mac: MacAddr, addr: Ipv4Addr) -> [u8; 42] {
    let mut f = [0; 42];
    f[0..6].copy_from_slice(&MacAddr::BROADCAST.0);
    f[6..12].copy_from_slice(&mac.0);
    f[12..14].copy_from_slice(&ETH_P_ARP.to_be_bytes());
    // Ethernet, IPv4, lengths 6 and 4.
    f[14..20].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    f[20..22].copy_from_slice(&REQUEST.to_be_bytes());
    f[22..28].copy_from_slice(&mac.0);
    f[28..32].copy_from_slice(&addr.octets());
    f[38..42].copy_from_slice(&addr.octets());
    f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_has_the_layout_of_rfc_826() {
        let f = request(MacAddr([2, 0, 0, 0, 0, 7]), Ipv4Addr::new(10, 32, 0, 1));
        let hex = "ffffffffffff020000000007080600010800060400010200000000070a200001000000000000\
                   0a200001";
        assert_eq!(hex::encode(f), hex);
    }
}
