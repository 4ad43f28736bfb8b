//! The address of Docker's bridge (docs/spec/cli.md 2.2).

use std::net::{IpAddr, Ipv4Addr};

use weave_host::Netlink;

use crate::env::Env;
use crate::{Failure, print};

/// Docker's bridge unless `DOCKER_BRIDGE` names another.
pub(crate) const DOCKER_BRIDGE: &str = "docker0";

/// Without a final newline, as 2.8.1.
pub(crate) fn print_ip(env: &dyn Env) -> Result<(), Failure> {
    print(&docker_bridge_address(env)?.to_string())
}

pub(crate) fn docker_bridge_address(env: &dyn Env) -> Result<IpAddr, Failure> {
    if let Some(known) = env.var("DOCKER_BRIDGE_IP").filter(|a| !a.is_empty()) {
        return known
            .parse()
            .map_err(|_| Failure::new(1, format_args!("DOCKER_BRIDGE_IP: {known:?} is not an IP address")));
    }
    let bridge = env.var("DOCKER_BRIDGE").filter(|b| !b.is_empty());
    let bridge = bridge.unwrap_or_else(|| DOCKER_BRIDGE.to_owned());
    Ok(IpAddr::V4(first_address(&bridge)?))
}

/// The first IPv4 address of a device.
pub(crate) fn first_address(device: &str) -> Result<Ipv4Addr, Failure> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(device)? else {
        return Err(Failure::new(1, format_args!("Link not found: {device:?}")));
    };
    let addresses = netlink.addresses_of(&link)?;
    let v4 = addresses.iter().find_map(|a| match a.addr() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    v4.ok_or_else(|| Failure::new(1, format_args!("device {device} has no IPv4 address")))
}
