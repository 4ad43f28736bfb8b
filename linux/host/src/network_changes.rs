//! Notifications of changes of the host's addresses, links and routes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::Error;
use crate::netlink::{Netlink, attributes, u16_at, u32_at};

const HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;
const RTN_UNICAST: u8 = 1;
const RTA_VIA: u16 = 18;
/// One change makes several notifications, which are handled together.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// A routing daemon changes routes all the time.
const ROUTE_INTERVAL: Duration = Duration::from_secs(10);

/// Waits for changes of the network in the namespace in which it was opened.
#[derive(Debug)]
pub struct NetworkMonitor {
    notifications: Socket,
    netlink: Netlink,
    usable: BTreeSet<IpAddr>,
    /// All addresses. The kernel says of a new link up to a second late that it is usable, when connections may exist already.
    assigned: BTreeSet<IpAddr>,
    /// When a change of a route was last reported.
    route_reported: Option<Instant>,
}

impl NetworkMonitor {
    /// Begins to watch.
    pub fn open() -> Result<NetworkMonitor, Error> {
        let io = |e: std::io::Error| Error::io("watching addresses and routes", &e);
        let mut notifications = Socket::new(NETLINK_ROUTE).map_err(io)?;
        let groups = libc::RTMGRP_LINK
            | libc::RTMGRP_IPV4_IFADDR
            | libc::RTMGRP_IPV6_IFADDR
            | libc::RTMGRP_IPV4_ROUTE
            | libc::RTMGRP_IPV6_ROUTE;
        notifications.bind(&SocketAddr::new(0, groups as u32)).map_err(io)?;
        let mut netlink = Netlink::open()?;
        let (usable, assigned) = netlink.host_addresses()?;
        Ok(NetworkMonitor { notifications, netlink, usable, assigned, route_reported: None })
    }

    /// Waits until the host gains or loses an address that it can use, or a route over a gateway changes. Returns the addresses
    /// that it has lost.
    pub fn wait(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        loop {
            let mut route_changed = self.receive(true)?;
            std::thread::sleep(SETTLE_TIME);
            route_changed |= self.receive(false)?;
            let (usable, assigned) = self.netlink.host_addresses()?;
            let before = std::mem::replace(&mut self.usable, usable);
            let assigned_before = std::mem::replace(&mut self.assigned, assigned);
            let mut lost: BTreeSet<IpAddr> = before.difference(&self.usable).copied().collect();
            lost.extend(assigned_before.difference(&self.assigned));
            let due = self.route_reported.is_none_or(|at| at.elapsed() >= ROUTE_INTERVAL);
            if route_changed && due {
                self.route_reported = Some(Instant::now());
            }
            if before != self.usable || !lost.is_empty() || route_changed && due {
                return Ok(lost);
            }
        }
    }

    /// Reads all notifications, after waiting for the first one if `wait`. Returns whether a route over a gateway has changed.
    fn receive(&mut self, wait: bool) -> Result<bool, Error> {
        let io = |e: std::io::Error| Error::io("watching addresses and routes", &e);
        let mut route_changed = false;
        self.notifications.set_non_blocking(!wait).map_err(io)?;
        loop {
            match self.notifications.recv_from_full() {
                Ok((datagram, from)) if from.port_number() == 0 => {
                    route_changed |= has_gateway_route(&datagram);
                }
                Ok(_) => continue,
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(route_changed),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                // Notifications were lost.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => route_changed = true,
                Err(e) => return Err(io(e)),
            }
            self.notifications.set_non_blocking(true).map_err(io)?;
        }
    }
}

impl Netlink {
    /// The addresses from which other hosts can be reached, those on links that are up and have a carrier; and all addresses. Those that
    /// are only valid on their link are left out, since each container's interface has one.
    fn host_addresses(&mut self) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>), Error> {
        let links = self.links()?;
        let running: BTreeSet<u32> = links.iter().filter(|l| l.up && l.running).map(|l| l.index).collect();
        let is_link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let (mut usable, mut assigned) = (BTreeSet::new(), BTreeSet::new());
        for address in self.addresses()? {
            let ip = address.cidr.addr();
            if !is_link_local(&ip) {
                assigned.insert(ip);
                usable.extend(running.contains(&address.index).then_some(ip));
            }
        }
        Ok((usable, assigned))
    }
}

/// Whether a datagram has a notification about a unicast route of the main table over a gateway. Routes without one belong to
/// addresses, which are watched themselves, or to containers.
fn has_gateway_route(datagram: &[u8]) -> bool {
    let mut rest = datagram;
    while rest.len() >= HEADER {
        let length = u32_at(rest, 0).unwrap_or(0) as usize;
        if length < HEADER || length > rest.len() {
            return false;
        }
        let kind = u16_at(rest, 4).unwrap_or(0);
        if let libc::RTM_NEWROUTE | libc::RTM_DELROUTE = kind
            && let Some((head, attrs)) = rest[HEADER..length].split_at_checked(ROUTE_HEADER)
            && (head[4], head[7]) == (libc::RT_TABLE_MAIN, RTN_UNICAST)
            && attributes(attrs)
                .any(|(kind, _)| matches!(kind, libc::RTA_GATEWAY | libc::RTA_MULTIPATH | RTA_VIA))
        {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Request;

    fn route(kind: u16, table: u8, gateway: bool) -> Vec<u8> {
        let mut request = Request::new(kind, 0, &[2, 24, 0, 0, table, 3, 0, RTN_UNICAST, 0, 0, 0, 0]);
        request.number(libc::RTA_DST, 1);
        if gateway {
            request.number(libc::RTA_GATEWAY, 2);
        }
        let mut bytes = request.encoded().to_vec();
        let length = (bytes.len() as u32).to_ne_bytes();
        bytes[..4].copy_from_slice(&length);
        bytes
    }

    #[test]
    fn only_routes_over_a_gateway_count() {
        let link = route(libc::RTM_NEWLINK, libc::RT_TABLE_MAIN, true);
        let with = route(libc::RTM_DELROUTE, libc::RT_TABLE_MAIN, true);
        let without = route(libc::RTM_NEWROUTE, libc::RT_TABLE_MAIN, false);
        let local = route(libc::RTM_NEWROUTE, libc::RT_TABLE_LOCAL, true);
        assert!(has_gateway_route(&[&link[..], &without, &with].concat()));
        assert!(!has_gateway_route(&[&link[..], &without, &local].concat()));
        for cut in 0..with.len() {
            assert!(!has_gateway_route(&with[..cut]));
        }
    }
}
