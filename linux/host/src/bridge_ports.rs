//! The interfaces and addresses of containers on the weave network (docs/spec/containers.md D.4).

use weave_types::{Cidr, MacAddr};

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::bridge::INSTANCE_BRIDGE;
use crate::{DeviceNames, Error, Link, NamespaceId, NetNs, Netlink};

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
    /// Interface index of the bridge port, the other end; `None` for the bridge itself and on kernels before 4.0.
    pub port: Option<u32>,
    /// Ethernet address.
    pub mac: MacAddr,
    /// MTU.
    pub mtu: u32,
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

    /// The names of the ports, and the IPv4 addresses of the interfaces at their other ends, whether or not a process or a name leads to
    /// their namespaces. Empty on kernels before 4.20.
    pub fn addresses(&self) -> Result<Vec<(String, Vec<Cidr>)>, Error> {
        let mut netlink = Netlink::open()?;
        let mut found = Vec::new();
        for port in &self.ports {
            let (Some(peer), Some(nsid)) = (port.peer, port.peer_nsid) else { continue };
            let Some(addresses) = netlink.addresses_in(nsid)? else { return Ok(Vec::new()) };
            let of_peer = addresses.into_iter().filter(|a| a.index == peer);
            found.push((port.name.clone(), of_peer.map(|a| a.cidr).collect()));
        }
        Ok(found)
    }

    /// The port at whose other end an address is. `None` if there is none, and on kernels before 4.20.
    pub fn with_address(&self, addr: IpAddr) -> Result<Option<Link>, Error> {
        let found = self.addresses()?;
        let name = found.iter().find(|(_, cidrs)| cidrs.iter().any(|cidr| cidr.addr() == addr));
        Ok(name.and_then(|(name, _)| self.ports.iter().find(|port| port.name == *name)).cloned())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }

    /// The ports that have another MTU than the bridge.
    pub(crate) fn with_other_mtu(&self) -> Vec<Link> {
        // The other end of the uplink is here.
        let of_container = |port: &&Link| port.peer.is_none() || port.peer_nsid.is_some();
        self.ports.iter().filter(of_container).filter(|port| port.mtu != self.bridge.mtu).cloned().collect()
    }

    /// Gives both ends of a container's interface the MTU of the bridge. If the container's end has a smaller MTU than its port,
    /// somebody has lowered it on purpose. Returns what was changed.
    pub(crate) fn update_mtu(
        &mut self,
        ns: &NetNs,
        interface: &ContainerInterface,
    ) -> Result<Option<String>, Error> {
        let wanted = self.bridge.mtu;
        let port = self.ports.iter().find(|port| Some(port.index) == interface.port);
        let lowered = port.is_some_and(|port| interface.mtu < port.mtu) && interface.mtu < wanted;
        if let Some(port) = port.filter(|port| port.mtu != wanted) {
            self.netlink.set_mtu(port, wanted)?;
        }
        if interface.mtu == wanted || lowered {
            return Ok(None);
        }
        let mut inner = ns.netlink()?;
        let Some(link) = inner.link(&interface.name)? else { return Ok(None) };
        inner.set_mtu(&link, wanted)?;
        Ok(Some(format!("changed the MTU of {} from {} to {wanted}", interface.name, interface.mtu)))
    }
}

/// Result of [`restore_ports`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RestoredPorts {
    /// What was wrong and has been changed.
    pub changes: Vec<String>,
    /// Ports that are left alone because another program has given them to another bridge.
    pub problems: Vec<String>,
}

/// Makes the ports of containers pass frames: on the bridge, up, and with its MTU. `known` keeps the indexes of ports that were seen on
/// the bridge. A port without a bridge belongs to this peer if it was seen there, or if there is no other peer on this host.
///
/// # Errors
/// The kernel refuses.
pub fn restore_ports(names: &DeviceNames, known: &mut BTreeSet<u32>) -> Result<RestoredPorts, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let is_bridge = |l: &&Link| l.is("bridge") && l.name == names.bridge;
    let bridge = links.iter().find(is_bridge).ok_or_else(|| Error::no_bridge(&names.bridge))?;
    let is_instance = |l: &Link| l.is("bridge") && l.name.starts_with(INSTANCE_BRIDGE);
    let alone = !names.only_bridge_ports && !links.iter().any(is_instance);
    let (start, joint) = (format!("{}pl", names.prefix), format!("{}bg", names.prefix));
    let mut restored = RestoredPorts::default();
    known.retain(|index| links.iter().any(|l| l.index == *index));
    for port in links.iter().filter(|l| l.is("veth") && l.name.starts_with(&start)) {
        // One whose other end is here as well is still being attached.
        if port.peer.is_some() && port.peer_nsid.is_none() {
            continue;
        }
        let name = &port.name;
        let steps = match port.master {
            Some(master) if master == bridge.index => None,
            None if alone || known.contains(&port.index) => Some(netlink.set_master(port, Some(bridge))),
            // Joined bridges are one network (`weave attach-bridge`).
            Some(master) if links.iter().any(|l| l.master == Some(master) && l.name.starts_with(&joint)) => {
                continue;
            }
            Some(master) if alone || known.contains(&port.index) => {
                let other = links.iter().find(|l| l.index == master).map_or("another bridge", |l| &l.name);
                restored.problems.push(format!(
                    "{name} is a port of {other} instead of {}, so its container is cut off; 'ip link set {name} master {}' \
                     connects it",
                    bridge.name, bridge.name
                ));
                continue;
            }
            _ => continue,
        };
        known.insert(port.index);
        let mut changed = |what: String, result: Result<(), Error>| match result {
            Ok(()) => {
                restored.changes.push(what);
                Ok(())
            }
            // The container has ended meanwhile.
            Err(e) if e.errno() == Some(nix::errno::Errno::ENODEV) => Ok(()),
            Err(e) => Err(e),
        };
        if let Some(added) = steps {
            changed(format!("{name} was not a port of {}", bridge.name), added)?;
        }
        if !port.up {
            changed(format!("{name} was down"), netlink.set_up(port, true))?;
        }
        if port.mtu != bridge.mtu {
            changed(format!("the MTU of {name} was {}", port.mtu), netlink.set_mtu(port, bridge.mtu))?;
        }
    }
    Ok(restored)
}

fn describe(link: &Link, netlink: &mut Netlink) -> Result<ContainerInterface, Error> {
    const LINK_LOCAL: u8 = 253;
    let addresses = netlink.addresses()?;
    let own = addresses.into_iter().filter(|a| a.index == link.index && a.scope != LINK_LOCAL);
    Ok(ContainerInterface {
        index: link.index,
        name: link.name.clone(),
        port: link.peer,
        mtu: link.mtu,
        mac: link.mac.unwrap_or(MacAddr::ZERO),
        addresses: own.map(|a| a.cidr).collect(),
    })
}
