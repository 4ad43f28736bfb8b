//! Interfaces of containers that Docker moves by itself: the endpoints of its networks (docs/spec/containers.md B.2, B.3).
//!
//! ```text
//!   bridge weave --- vethwl<id> = vethwg<id>   made here, both ends on the host; Docker moves and renames the second one
//! ```

use std::net::IpAddr;

use nix::errno::Errno;
use weave_types::MacAddr;

use crate::error::ignore_missing_device;
use crate::{Error, Link, NetNs, Netlink, arp, ethtool, sysctl};

/// Prefixes of the names of the two ends, as long as both are on the host.
pub(crate) const PREFIXES: [&str; 2] = ["vethwl", "vethwg"];

/// Whether it is an end of such a pair.
pub(crate) fn is_endpoint(link: &Link) -> bool {
    link.is("veth") && PREFIXES.iter().any(|prefix| link.name.starts_with(prefix))
}

/// A veth pair to create.
#[derive(Debug)]
pub(crate) struct NewPair<'a> {
    pub(crate) outside: &'a str,
    pub(crate) inside: &'a str,
    /// The bridge that the outer end becomes a port of.
    pub(crate) bridge: &'a str,
    /// `None` takes the bridge's.
    pub(crate) mtu: Option<u32>,
    pub(crate) keep_tx_on: bool,
    pub(crate) hairpin: bool,
}

impl NewPair<'_> {
    /// The bridge, with which the pair can be created.
    pub(crate) fn bridge(&self, netlink: &mut Netlink) -> Result<Link, Error> {
        let bridge = netlink.link(self.bridge)?.ok_or_else(|| Error::no_bridge(self.bridge))?;
        if !bridge.is("bridge") {
            return Err(Error::State(format!(
                "interface {} is not a Linux bridge; run 'weave reset' and launch again",
                bridge.name
            )));
        }
        Ok(bridge)
    }

    /// Creates the pair, whose outer end is set up (docs/spec/containers.md D.2, steps 3 and 4). Returns the outer and the inner end. If a
    /// step fails, no pair is left.
    pub(crate) fn create(&self, netlink: &mut Netlink, bridge: &Link) -> Result<(Link, Link), Error> {
        let step = format!("could not create veth pair {}-{}", self.outside, self.inside);
        let mtu = self.mtu.unwrap_or(bridge.mtu);
        let (port, end) = netlink.create_veth_step(self.outside, self.inside, Some(mtu), &step)?;
        match self.connect(netlink, &port, &end, bridge) {
            Ok(()) => Ok((Link { master: Some(bridge.index), ..port }, end)),
            Err(cause) => Err(match ignore_missing_device(netlink.delete_link(&port)) {
                Ok(()) => cause,
                Err(left) => Error::Undo { cause: Box::new(cause), left: vec![left] },
            }),
        }
    }

    fn connect(&self, netlink: &mut Netlink, port: &Link, end: &Link, bridge: &Link) -> Result<(), Error> {
        netlink.set_master(port, Some(bridge))?;
        sysctl::ignore_router_advertisements(&port.name)?;
        sysctl::ignore_router_advertisements(&end.name)?;
        if !self.keep_tx_on {
            ethtool::disable_tx_checksum(&end.name)?;
        }
        netlink.set_hairpin(port, self.hairpin)?;
        netlink.set_up(port, true)
    }
}

/// Creates the veth pair of an endpoint; both ends stay here. Returns the Ethernet address of the inner end. `replace`: a pair of the same
/// name whose inner end no container has is removed first.
///
/// # Errors
/// There is no bridge, the pair exists, or the kernel refuses an operation. Nothing is left then.
pub fn create_endpoint(bridge: &str, outside: &str, inside: &str, replace: bool) -> Result<MacAddr, Error> {
    let pair = NewPair { outside, inside, bridge, mtu: None, keep_tx_on: true, hairpin: true };
    let mut netlink = Netlink::open()?;
    let bridge = pair.bridge(&mut netlink)?;
    if replace {
        remove_unused_endpoint(inside)?;
    }
    let (port, end) = pair.create(&mut netlink, &bridge)?;
    match end.mac {
        Some(mac) => Ok(mac),
        None => {
            ignore_missing_device(netlink.delete_link(&port))?;
            Err(Error::Argument(format!("{inside} has no Ethernet address")))
        }
    }
}

/// Removes the veth pair of an endpoint, wherever its inner end is. `false` if there is none.
///
/// # Errors
/// The kernel refuses.
pub fn remove_endpoint(outside: &str) -> Result<bool, Error> {
    remove(outside)
}

/// Removes the veth pair of an endpoint if Docker has not moved its inner end into a container. `false` if there is none.
///
/// # Errors
/// The kernel refuses.
pub fn remove_unused_endpoint(inside: &str) -> Result<bool, Error> {
    remove(inside)
}

fn remove(name: &str) -> Result<bool, Error> {
    let mut netlink = Netlink::open()?;
    match netlink.link(name)? {
        Some(link) if link.is("veth") => ignore_missing_device(netlink.delete_link(&link)).map(|()| true),
        _ => Ok(false),
    }
}

/// Whether a container has a route for multicast.
///
/// # Errors
/// The kernel refuses.
pub fn has_multicast_route(ns: &NetNs) -> Result<bool, Error> {
    let routes = ns.netlink()?.routes()?;
    Ok(routes.iter().any(|route| route.destination.prefix() == 4 && route.destination.addr().is_multicast()))
}

/// Gives the interfaces of a container whose names begin with `prefix` the settings for addresses that move between containers, and
/// announces their addresses. Returns warnings.
///
/// # Errors
/// The kernel refuses. Other interfaces are not tried then.
pub fn announce_interfaces(ns: &NetNs, prefix: &str) -> Result<Vec<String>, Error> {
    let mut netlink = ns.netlink()?;
    let mut warnings = Vec::new();
    for link in netlink.links()?.into_iter().filter(|link| link.name.starts_with(prefix)) {
        warnings.extend(ns.run(|| sysctl::apply(&link.name, &sysctl::NEIGHBOURS, &mut Vec::new()))??);
        let addresses = netlink.addresses_of(&link)?;
        netlink.wait_until_forwarding(&link)?;
        for cidr in addresses {
            let IpAddr::V4(addr) = cidr.addr() else { continue };
            match ns.run(|| arp::announce(&link, addr))? {
                // The container has set it down.
                Err(e) if e.errno() == Some(Errno::ENETDOWN) => warnings.push(e.to_string()),
                announced => announced?,
            }
        }
    }
    Ok(warnings)
}
