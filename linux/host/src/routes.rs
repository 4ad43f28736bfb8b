//! Routes of the main table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use weave_types::Cidr;

use crate::addresses::{ip, octets};
use crate::netlink::{Netlink, Reply, Request, attributes, u32_at};
use crate::{Error, Link};

const HEADER: usize = 12;

/// An IPv4 route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` for the default route.
    pub destination: Cidr,
    /// The next hop, if the destination is not on the link.
    pub gateway: Option<IpAddr>,
    /// Index of the outgoing link, if there is exactly one.
    pub index: Option<u32>,
    /// `RT_SCOPE_*`; 0 is global, 253 link.
    pub scope: u8,
}

/// A route over a given link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkRoute {
    /// `0.0.0.0/0` for the default route.
    pub destination: Cidr,
    /// The next hop; `None` if the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// All multicast groups.
const MULTICAST: LinkRoute = LinkRoute {
    destination: match Cidr::new(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4) {
        Some(groups) => groups,
        None => unreachable!(),
    },
    gateway: None,
};

impl fmt::Display for LinkRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.gateway {
            Some(gateway) => write!(f, "{} via {gateway}", self.destination),
            None => self.destination.fmt(f),
        }
    }
}

/// The shortest prefix of a private network (RFC 1918: 10.0.0.0/8).
const SHORTEST_PRIVATE: u8 = 8;

impl Route {
    /// Whether it stands for a default route: VPNs cover the whole address space by two or more routes, which precede the default
    /// route without replacing it. Such a route does not say that a network is in use.
    pub fn is_default(&self) -> bool {
        self.destination.prefix() < SHORTEST_PRIVATE
    }
}

impl Netlink {
    /// The IPv4 unicast routes of the main table.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        Ok(self.raw_routes()?.iter().filter_map(|r| parse(&r.body)).collect())
    }

    /// The index of the link by which the host would send a packet to `addr`; `None` if it would not send it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn output_device(&mut self, addr: Ipv4Addr) -> Result<Option<u32>, Error> {
        let (family, destination) = octets(addr.into());
        let header = [family, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut request = Request::new(libc::RTM_GETROUTE, 0, &header);
        request.attribute(libc::RTA_DST, &destination);
        match self.query(request, format_args!("looking up the route to {addr}")) {
            Ok(replies) => Ok(replies.iter().find_map(|r| parse(&r.body)).and_then(|route| route.index)),
            // Prohibited, a black hole, or no route.
            Err(e)
                if matches!(
                    e.errno(),
                    Some(Errno::EACCES | Errno::EINVAL | Errno::EHOSTUNREACH | Errno::ENETUNREACH)
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn raw_routes(&mut self) -> Result<Vec<Reply>, Error> {
        let mut header = [0; HEADER];
        header[0] = libc::AF_INET as u8;
        let mut replies = self.dump(Request::new(libc::RTM_GETROUTE, 0, &header), "listing routes")?;
        replies.retain(|r| {
            r.kind == libc::RTM_NEWROUTE
                && r.body.get(4) == Some(&libc::RT_TABLE_MAIN)
                && r.body.get(7) == Some(&1)
        });
        Ok(replies)
    }

    /// Adds the route `224.0.0.0/4 dev <link> scope link`. `false` if it exists.
    pub fn add_multicast_route(&mut self, link: &Link) -> Result<bool, Error> {
        let step = format!("adding the multicast route of {}", link.name);
        self.add_route_step(link, MULTICAST, &step)
    }

    /// Removes the route of [`Netlink::add_multicast_route`]. `false` if it does not exist.
    pub fn remove_multicast_route(&mut self, link: &Link) -> Result<bool, Error> {
        let step = format!("removing the multicast route of {}", link.name);
        self.remove_route_step(link, MULTICAST, &step)
    }

    /// Adds a route over a link. `false` if there is one to the same destination.
    pub fn add_route(&mut self, link: &Link, route: LinkRoute) -> Result<bool, Error> {
        self.add_route_step(link, route, &format!("failed to add route '{route} dev {}'", link.name))
    }

    /// Removes a route. `false` if it does not exist.
    pub fn remove_route(&mut self, link: &Link, route: LinkRoute) -> Result<bool, Error> {
        self.remove_route_step(link, route, &format!("removing route '{route} dev {}'", link.name))
    }

    fn add_route_step(&mut self, link: &Link, route: LinkRoute, step: &str) -> Result<bool, Error> {
        let request = route_request(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, link, route);
        match self.execute(request, step) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::EEXIST) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn remove_route_step(&mut self, link: &Link, route: LinkRoute, step: &str) -> Result<bool, Error> {
        match self.execute(route_request(libc::RTM_DELROUTE, 0, link, route), step) {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == Some(Errno::ESRCH) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// The routes, as messages for [`Netlink::restore_routes`].
    pub(crate) fn save_routes(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.raw_routes()?.into_iter().map(|r| r.body).collect())
    }

    /// Restores those saved routes that the kernel did not add by itself, as far as they are still possible after the removal of an
    /// address.
    pub(crate) fn restore_configured_routes(&mut self, saved: &[Vec<u8>]) {
        let configured = |body: &&Vec<u8>| body.get(5) != Some(&libc::RTPROT_KERNEL);
        for body in saved.iter().filter(configured) {
            // Fails for routes that need the removed address.
            let _ = self.restore_routes(std::slice::from_ref(body));
        }
    }

    /// Adds the saved routes that are missing. Those with a gateway come last, because they need the route to it.
    pub(crate) fn restore_routes(&mut self, saved: &[Vec<u8>]) -> Result<(), Error> {
        let present = self.save_routes()?;
        let mut missing: Vec<_> = saved.iter().filter(|r| !present.contains(r)).collect();
        missing.sort_by_key(|r| parse(r).is_some_and(|r| r.gateway.is_some()));
        for body in missing {
            let request = Request::new(libc::RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body);
            match self.execute(request, "restoring a route") {
                Err(e) if e.errno() != Some(Errno::EEXIST) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }
}

fn route_request(kind: u16, flags: u16, link: &Link, route: LinkRoute) -> Request {
    let (protocol, unicast) = (libc::RTPROT_BOOT, 1);
    let scope = if route.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let (family, destination) = octets(route.destination.network().addr());
    let prefix = route.destination.prefix();
    let header = [family, prefix, 0, 0, libc::RT_TABLE_MAIN, protocol, scope, unicast, 0, 0, 0, 0];
    let mut request = Request::new(kind, flags, &header);
    if prefix > 0 {
        request.attribute(libc::RTA_DST, &destination);
    }
    if let Some(gateway) = route.gateway {
        request.attribute(libc::RTA_GATEWAY, &octets(gateway).1);
    }
    request.number(libc::RTA_OIF, link.index);
    request
}

fn parse(body: &[u8]) -> Option<Route> {
    let (head, rest) = body.split_at_checked(HEADER)?;
    let mut route = Route {
        destination: Cidr::new(Ipv4Addr::UNSPECIFIED.into(), head[1])?,
        gateway: None,
        index: None,
        scope: head[6],
    };
    for (kind, value) in attributes(rest) {
        match kind {
            libc::RTA_DST => route.destination = Cidr::new(ip(value)?, head[1])?,
            libc::RTA_GATEWAY => route.gateway = ip(value),
            libc::RTA_OIF => route.index = u32_at(value, 0),
            _ => {}
        }
    }
    Some(route)
}
