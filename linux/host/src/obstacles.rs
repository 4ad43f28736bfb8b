//! What other programs, or the operator, have set up on this host that keeps the peer or its containers from working although everything
//! of ours is right. It is reported and not changed, because it may be wanted.

use std::net::{IpAddr, Ipv4Addr};

use weave_types::Cidr;

use crate::firewall::{PacketClass, dropping_chains};
use crate::{Error, Link, Netlink, sysctl};

/// One line for each obstacle: routes that lead packets of an exposed subnet away from the bridge, an interface that does not forward,
/// and firewalls that drop packets of peers, of containers, or of `exposed` subnets. `port` is the port of the peer.
///
/// # Errors
/// Links or routes cannot be read.
pub fn obstacles(bridge: &str, port: u16, exposed: &[Cidr]) -> Result<Vec<String>, Error> {
    let mut netlink = Netlink::open()?;
    let mut found = Vec::new();
    for subnet in exposed {
        found.extend(wrong_route(&mut netlink, bridge, *subnet)?);
    }
    let outside = outside_device(&mut netlink)?.map(|link| link.name);
    if let Some(name) = outside.as_deref().filter(|_| !exposed.is_empty())
        && sysctl::read("ipv4/conf", name, "forwarding")?.as_deref() == Some("0")
    {
        found.push(format!(
            "containers do not reach other networks because net.ipv4.conf.{name}.forwarding is 0; set it to 1"
        ));
    }
    found.extend(dropping_chains(&classes(bridge, port, outside.as_deref(), !exposed.is_empty())));
    Ok(found)
}

/// The packets that have to pass the firewalls of this host.
fn classes(bridge: &str, port: u16, outside: Option<&str>, exposed: bool) -> Vec<PacketClass> {
    let class = |what: &str, input: &str, output: Option<&str>| PacketClass {
        what: what.to_owned(),
        firewalld: format!("--zone=trusted --add-interface={bridge}"),
        input: input.to_owned(),
        output: output.map(str::to_owned),
        ipv6: false,
        port: None,
    };
    let mut classes = Vec::new();
    // With these settings the packet filter also sees frames that the bridge passes from one port to another.
    for (ipv6, key) in [(false, "bridge-nf-call-iptables"), (true, "bridge-nf-call-ip6tables")] {
        let on =
            std::fs::read_to_string(format!("/proc/sys/net/bridge/{key}")).is_ok_and(|v| v.trim() == "1");
        if on {
            let what =
                format!("IPv{} packets between containers (net.bridge.{key} is 1)", if ipv6 { 6 } else { 4 });
            classes.push(PacketClass { ipv6, ..class(&what, bridge, Some(bridge)) });
        }
    }
    let Some(outside) = outside.filter(|name| *name != bridge) else { return classes };
    if exposed {
        classes.push(class("packets from containers to other networks", bridge, Some(outside)));
        classes.push(class("packets from other networks to containers", outside, Some(bridge)));
    }
    for protocol in ["tcp", "udp"] {
        let what = format!("packets of other peers to {} port {port}", protocol.to_uppercase());
        let firewalld = format!("--add-port={port}/{protocol}");
        classes.push(PacketClass { firewalld, port: Some((protocol, port)), ..class(&what, outside, None) });
    }
    classes
}

/// Whether the host routes packets for a subnet elsewhere than to the bridge.
fn wrong_route(netlink: &mut Netlink, bridge: &str, subnet: Cidr) -> Result<Option<String>, Error> {
    let (IpAddr::V4(first), IpAddr::V4(own)) = (subnet.network().addr(), subnet.addr()) else {
        return Ok(None);
    };
    if subnet.prefix() > 30 {
        return Ok(None);
    }
    // Any address that is not the host's own.
    let candidates = [1, 2].map(|n| Ipv4Addr::from(u32::from(first).wrapping_add(n)));
    let [container, other] = candidates;
    let container = if container == own { other } else { container };
    let out = netlink.output_device(container)?;
    let link = out.map(|index| netlink.link_by_index(index)).transpose()?.flatten();
    if link.as_ref().is_some_and(|l| l.name == bridge || l.name == "lo") {
        return Ok(None);
    }
    let place = link.map_or("nowhere".to_owned(), |l| format!("to {}", l.name));
    Ok(Some(format!(
        "this host routes packets for {} {place} instead of {bridge}; see 'ip rule' and 'ip route get {container}'",
        subnet.network()
    )))
}

/// The link by which packets to the rest of the world leave the host.
///
/// # Errors
/// Links or routes cannot be read.
pub fn outside_device(netlink: &mut Netlink) -> Result<Option<Link>, Error> {
    // An address for documentation (RFC 5737), which only a default route, or routes that stand for one, lead to.
    let index = netlink.output_device(Ipv4Addr::new(192, 0, 2, 1))?;
    Ok(index.map(|index| netlink.link_by_index(index)).transpose()?.flatten())
}
