//! Addresses of links.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use weave_types::Cidr;

use crate::netlink::{Netlink, Request, attributes};
use crate::{Error, Link};

/// The namespace that a request is about.
const IFA_TARGET_NETNSID: u16 = 10;

/// An address on a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Interface index.
    pub index: u32,
    /// Address with its prefix length.
    pub cidr: Cidr,
    /// `RT_SCOPE_*`; 0 is global, 253 link-local.
    pub scope: u8,
}

impl Netlink {
    /// All addresses in the namespace, IPv4 first.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = Request::new(libc::RTM_GETADDR, 0, &header(family as u8, 0, 0));
            match self.dump(request, "listing addresses") {
                Ok(replies) => all.extend(replies.iter().filter_map(|r| parse(&r.body))),
                // This kernel has no IPv6.
                Err(e) if family == libc::AF_INET6 && e.errno() == Some(Errno::EOPNOTSUPP) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(all)
    }

    /// The IPv4 addresses in the namespace with this number (`nsid`); none if it is gone. `None` on kernels before 4.20, which do not
    /// answer such questions.
    pub(crate) fn addresses_in(&mut self, nsid: i32) -> Result<Option<Vec<Address>>, Error> {
        if self.check_requests().is_err() {
            return Ok(None);
        }
        let mut request = Request::new(libc::RTM_GETADDR, 0, &header(libc::AF_INET as u8, 0, 0));
        request.number(IFA_TARGET_NETNSID, nsid as u32);
        match self.dump(request, "listing addresses of another namespace") {
            Err(e) if e.errno() == Some(Errno::EINVAL) => Ok(Some(Vec::new())),
            replies => Ok(Some(replies?.iter().filter_map(|r| parse(&r.body)).collect())),
        }
    }

    /// The addresses of a link, in the kernel's order.
    pub fn addresses_of(&mut self, link: &Link) -> Result<Vec<Cidr>, Error> {
        let all = self.addresses()?;
        Ok(all.into_iter().filter(|a| a.index == link.index).map(|a| a.cidr).collect())
    }

    /// Adds an address, with the broadcast address of its subnet.
    pub fn add_address(&mut self, link: &Link, cidr: Cidr) -> Result<(), Error> {
        let mut request = request(libc::RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, link, cidr);
        if let Some(broadcast) = cidr.broadcast() {
            request.attribute(libc::IFA_BROADCAST, &broadcast.octets());
        }
        self.execute(request, format_args!("adding address {cidr} to {}", link.name))
    }

    /// Removes an address.
    pub fn remove_address(&mut self, link: &Link, cidr: Cidr) -> Result<(), Error> {
        let request = request(libc::RTM_DELADDR, 0, link, cidr);
        self.execute(request, format_args!("removing address {cidr} from {}", link.name))
    }
}

fn request(kind: u16, flags: u16, link: &Link, cidr: Cidr) -> Request {
    let (family, octets) = octets(cidr.addr());
    let mut request = Request::new(kind, flags, &header(family, cidr.prefix(), link.index));
    request.attribute(libc::IFA_LOCAL, &octets).attribute(libc::IFA_ADDRESS, &octets);
    request
}

/// Address family and bytes.
pub(crate) fn octets(addr: IpAddr) -> (u8, Vec<u8>) {
    match addr {
        IpAddr::V4(a) => (libc::AF_INET as u8, a.octets().to_vec()),
        IpAddr::V6(a) => (libc::AF_INET6 as u8, a.octets().to_vec()),
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// `struct ifaddrmsg`, scope global.
fn header(family: u8, prefix: u8, index: u32) -> [u8; 8] {
    let i = index.to_ne_bytes();
    [family, prefix, 0, 0, i[0], i[1], i[2], i[3]]
}

/// IPv4 has the address of the link in LOCAL (ADDRESS is the other end of a point-to-point link), IPv6 has it in ADDRESS.
fn parse(body: &[u8]) -> Option<Address> {
    let (head, rest) = body.split_at_checked(8)?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => address = ip(value),
            _ => {}
        }
    }
    Some(Address {
        index: u32::from_ne_bytes(head[4..8].try_into().ok()?),
        cidr: Cidr::new(local.or(address)?, head[1])?,
        scope: head[3],
    })
}
