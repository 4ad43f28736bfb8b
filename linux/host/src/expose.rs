//! Addresses of the host itself on the weave network (docs/spec/cli.md 6, docs/spec/containers.md D.5): on the bridge, told to everybody there.

use std::net::IpAddr;
use std::thread::sleep;

use nix::errno::Errno;
use weave_types::Cidr;

use crate::arp::{SET_UP_DELAY, announce};
use crate::sysctl::SetResult;
use crate::{Error, Link, Netlink, fault_injection, sysctl};

/// Gives the bridge an address and announces it. `true` if it did not have it.
///
/// # Errors
/// There is no bridge, the address cannot be a host's, or the kernel refuses it.
pub fn add_bridge_address(bridge: &str, cidr: Cidr) -> Result<bool, Error> {
    check(cidr)?;
    let mut netlink = Netlink::open()?;
    let link = the_bridge(&mut netlink, bridge)?;
    let added = match netlink.add_address(&link, cidr) {
        Ok(()) => true,
        Err(e) if e.errno() == Some(Errno::EEXIST) => false,
        Err(e) => return Err(e),
    };
    if let IpAddr::V4(ip) = cidr.addr()
        && link.up
    {
        sleep(SET_UP_DELAY);
        // Others find out by asking; it only takes longer.
        let _ = announce(&link, ip);
    }
    Ok(added)
}

/// Takes an address from the bridge. `false` if it does not have exactly this one.
///
/// # Errors
/// The kernel refuses.
pub fn remove_bridge_address(bridge: &str, cidr: Cidr) -> Result<bool, Error> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(bridge)? else { return Ok(false) };
    if !netlink.addresses_of(&link)?.contains(&cidr) {
        return Ok(false);
    }
    // When the first address of a subnet goes, the kernel takes the others with it unless told otherwise, as it was when the bridge
    // was made here.
    let _ = sysctl::set("ipv4/conf", bridge, "promote_secondaries", "1");
    let others: Vec<Cidr> = ipv4(&mut netlink, &link)?.into_iter().filter(|c| *c != cidr).collect();
    match netlink.remove_address(&link, cidr) {
        Ok(()) => {}
        Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => return Ok(false),
        Err(e) => return Err(e),
    }
    let left = ipv4(&mut netlink, &link)?;
    for other in others.into_iter().filter(|c| !left.contains(c)) {
        netlink.add_address(&link, other)?;
    }
    Ok(true)
}

/// Puts back what was taken from `wanted`, the addresses that the bridge had. Which address of a subnet is the primary one goes by
/// order, so subnets that lost one are made anew.
///
/// # Errors
/// There is no bridge, or the kernel refuses.
pub fn restore_bridge_addresses(bridge: &str, wanted: &[Cidr]) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let link = the_bridge(&mut netlink, bridge)?;
    let present = ipv4(&mut netlink, &link)?;
    let lost: Vec<Cidr> = wanted.iter().filter(|c| !present.contains(c)).map(Cidr::network).collect();
    let moved = |c: &&Cidr| lost.contains(&c.network());
    for cidr in present.iter().filter(|c| moved(c) && wanted.contains(c)) {
        netlink.remove_address(&link, *cidr)?;
    }
    wanted.iter().filter(moved).try_for_each(|cidr| netlink.add_address(&link, *cidr))
}

/// The IPv4 addresses of the bridge in the kernel's order; none if there is no bridge.
///
/// # Errors
/// The kernel refuses.
pub fn bridge_addresses(bridge: &str) -> Result<Vec<Cidr>, Error> {
    let mut netlink = Netlink::open()?;
    match netlink.link(bridge)? {
        Some(link) => ipv4(&mut netlink, &link),
        None => Ok(Vec::new()),
    }
}

/// The first IPv4 address of a link; none if there is no link or it has none.
///
/// # Errors
/// The kernel refuses.
pub fn first_address(link: &str) -> Result<Option<std::net::Ipv4Addr>, Error> {
    let addresses = bridge_addresses(link)?;
    Ok(addresses.iter().find_map(|c| match c.addr() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }))
}

/// Lets the host forward packets from and to the bridge. Returns what had to be changed.
///
/// # Errors
/// A setting cannot be read or written.
pub fn ensure_forwarding(bridge: &str) -> Result<Vec<String>, Error> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    let step = |what: &str| format!("{what} {PATH}");
    let mut changes = Vec::new();
    let present = std::fs::read_to_string(PATH).map_err(|e| Error::io(step("reading"), &e))?;
    if present.trim() == "0" {
        // Also sets it for every interface.
        fault_injection::io_fail_point(&format_args!("writing 1 to {PATH}"))
            .and_then(|()| std::fs::write(PATH, "1"))
            .map_err(|e| Error::io(step("writing 1 to"), &e))?;
        changes.push("IP forwarding of this host was off (net.ipv4.ip_forward)".to_owned());
    }
    if sysctl::set("ipv4/conf", bridge, "forwarding", "1")? == SetResult::Changed {
        changes.push(format!("IP forwarding of the bridge was off (net.ipv4.conf.{bridge}.forwarding)"));
    }
    Ok(changes)
}

fn the_bridge(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    netlink.link(name)?.filter(|l| l.is("bridge")).ok_or_else(|| Error::no_bridge(name))
}

fn ipv4(netlink: &mut Netlink, link: &Link) -> Result<Vec<Cidr>, Error> {
    Ok(netlink.addresses_of(link)?.into_iter().filter(|c| c.addr().is_ipv4()).collect())
}

/// What a host cannot have as its address.
fn check(cidr: Cidr) -> Result<(), Error> {
    let IpAddr::V4(ip) = cidr.addr() else {
        return Err(Error::Argument(format!("{cidr} is not an IPv4 address")));
    };
    let wrong = if cidr.prefix() < 31 && cidr == cidr.network() {
        "is the address of the network itself"
    } else if cidr.broadcast() == Some(ip) {
        "is the network's broadcast address"
    } else if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() || ip.is_broadcast() {
        "is not the address of a host"
    } else if cidr.prefix() == 0 {
        "covers the whole world"
    } else {
        return Ok(());
    };
    Err(Error::Argument(format!("{cidr} {wrong}; choose another")))
}
