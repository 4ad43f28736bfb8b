//! The interfaces and addresses of containers on the weave network (docs/spec/containers.md D.4).

use weave_types::{Cidr, MacAddr};

use crate::{Error, Link, NamespaceId, NetNs, Netlink};

/// The ports of a bridge that belong to containers. One scan serves queries about many containers.
#[derive(Debug)]
pub struct BridgePorts {
    host: NamespaceId,
    netlink: Netlink,
    bridge: Link,
    ports: Vec<Link>,
}

/// A container's interface on the weave network, or the bridge itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerInterface {
    /// Interface index in the container.
    pub index: u32,
    /// Name in the container.
    pub name: String,
    /// Ethernet address.
    pub mac: MacAddr,
    /// Addresses, except link-local ones.
    pub addresses: Vec<Cidr>,
}

impl BridgePorts {
    /// Lists the ports of `bridge` in the namespace of the calling thread.
    pub fn scan(bridge: &str) -> Result<BridgePorts, Error> {
        let host = NetNs::current()?.id();
        let mut netlink = Netlink::open()?;
        let links = netlink.links()?;
        let bridge = links.iter().find(|l| l.name == bridge).ok_or_else(|| Error::no_bridge(bridge))?.clone();
        let ports = links.into_iter().filter(|l| l.is("veth") && l.master == Some(bridge.index)).collect();
        Ok(BridgePorts { host, netlink, bridge, ports })
    }

    /// The bridge itself, which `weave ps` shows as `weave:expose`.
    pub fn bridge(&mut self) -> Result<ContainerInterface, Error> {
        describe(&self.bridge, &mut self.netlink)
    }

    /// The interfaces in `ns` whose other end is a port of the bridge. The namespace of the host has none.
    pub fn in_namespace(&mut self, ns: &NetNs) -> Result<Vec<ContainerInterface>, Error> {
        if ns.id() == self.host {
            return Ok(Vec::new());
        }
        // Interface indexes are unique within a namespace only, so the namespace has to match too. Kernels before 4.0 report neither
        // the namespace nor the peer; its index is the previous one there.
        let number = ns.number(&mut self.netlink)?;
        let mut candidates = Vec::new();
        for port in &self.ports {
            match (port.peer, port.peer_nsid) {
                (Some(peer), Some(nsid)) if Some(nsid) == number => candidates.push(peer),
                (None, None) => candidates.push(port.index - 1),
                _ => {}
            }
        }
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let mut inner = ns.netlink()?;
        let links = inner.links()?;
        let ours = links.iter().filter(|l| l.is("veth") && candidates.contains(&l.index));
        ours.map(|l| describe(l, &mut inner)).collect()
    }
}

fn describe(link: &Link, netlink: &mut Netlink) -> Result<ContainerInterface, Error> {
    const LINK_LOCAL: u8 = 253;
    let addresses = netlink.addresses()?;
    let own = addresses.into_iter().filter(|a| a.index == link.index && a.scope != LINK_LOCAL);
    Ok(ContainerInterface {
        index: link.index,
        name: link.name.clone(),
        mac: link.mac.unwrap_or(MacAddr::ZERO),
        addresses: own.map(|a| a.cidr).collect(),
    })
}
