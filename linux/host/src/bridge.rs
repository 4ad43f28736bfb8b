//! The devices of the host: the bridge `weave`, and the uplink that connects it to the switch (docs/spec/data-plane.md 1).

use weave_types::MacAddr;

use crate::error::ignore_missing_device;
use crate::tc::IngressDrop;
use crate::{Error, Link, Netlink, endpoint, openvswitch, sysctl};

/// Fits into an underlay of 1460 bytes with the headers of VXLAN and ESP (docs/spec/data-plane.md 1.3).
pub(crate) const DEFAULT_MTU: u32 = 1376;
/// Name of a bridge that is not completely configured yet.
const UNFINISHED: &str = "vethwe-newbr";

/// The names of a peer's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceNames {
    /// The bridge to which containers are attached.
    pub bridge: String,
    /// The end of the uplink that is a port of the bridge.
    pub port: String,
    /// The end of the uplink at which the switch captures and injects frames.
    pub device: String,
    /// The Open vSwitch datapath that 2.8.1 creates; empty if none can exist.
    pub legacy_datapath: String,
    /// Prefix of the names of all other devices.
    pub prefix: String,
    /// Several peers share the host: of the devices with the prefix, only the ports of this bridge belong to this peer.
    pub only_bridge_ports: bool,
}

/// Prefix of the bridges of instances (see [`DeviceNames::instance`]).
pub(crate) const INSTANCE_BRIDGE: &str = "weave-";

impl DeviceNames {
    /// The devices of an instance: one of several peers that share a host. Its name has at most 8 characters, so that device names
    /// have at most 15.
    pub fn instance(name: &str) -> DeviceNames {
        DeviceNames {
            bridge: format!("{INSTANCE_BRIDGE}{name}"),
            port: format!("vethwb-{name}"),
            device: format!("vethwd-{name}"),
            // 2.8.1, which creates this device, has no instances.
            legacy_datapath: String::new(),
            only_bridge_ports: true,
            ..DeviceNames::default()
        }
    }

    /// Those of `links` that belong to this peer.
    fn owned<'a>(&self, links: &'a [Link]) -> Vec<&'a Link> {
        let bridge = links.iter().find(|l| l.name == self.bridge).map(|l| l.index);
        let others: Vec<u32> = links
            .iter()
            .filter(|l| l.name.starts_with(INSTANCE_BRIDGE) && Some(l.index) != bridge)
            .map(|l| l.index)
            .collect();
        let ours = |l: &&Link| {
            [&self.bridge, &self.port, &self.device, &self.legacy_datapath].contains(&&l.name)
                || (l.name.starts_with(&self.prefix) || endpoint::is_endpoint(l))
                    && match l.master {
                        Some(master) if self.only_bridge_ports => Some(master) == bridge,
                        Some(master) => !others.contains(&master),
                        None => !self.only_bridge_ports,
                    }
        };
        links.iter().filter(ours).collect()
    }
}

impl Default for DeviceNames {
    fn default() -> DeviceNames {
        DeviceNames {
            bridge: "weave".into(),
            port: "vethwe-bridge".into(),
            device: "vethwe-datapath".into(),
            legacy_datapath: "datapath".into(),
            prefix: "vethwe".into(),
            only_bridge_ports: false,
        }
    }
}

/// The MTU of the container network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mtu {
    /// The MTU of a new bridge; an existing one keeps its MTU.
    Default(u32),
    /// The MTU of a new or an existing bridge (`WEAVE_MTU`).
    Exactly(u32),
}

impl Default for Mtu {
    fn default() -> Mtu {
        Mtu::Default(DEFAULT_MTU)
    }
}

/// The bridge that [`ensure_bridge`] sets up.
#[derive(Clone, Debug)]
pub struct BridgeConfig {
    /// Usually `weave`.
    pub name: String,
    /// Ethernet address, which is the peer name.
    pub mac: MacAddr,
    /// MTU.
    pub mtu: Mtu,
}

/// Result of [`ensure_bridge`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeInfo {
    /// Interface index.
    pub index: u32,
    /// MTU in effect; interfaces of containers get the same.
    pub mtu: u32,
    /// Whether it was created.
    pub created: bool,
    /// Optional settings that this kernel does not have.
    pub warnings: Vec<String>,
    /// What an existing bridge had otherwise and has been changed.
    pub changes: Vec<String>,
}

/// Result of [`ensure_uplink`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkInfo {
    /// Interface index of the bridge port.
    pub port_index: u32,
    /// Interface index of the end at which the switch captures and injects frames.
    pub device_index: u32,
    /// MTU of both ends.
    pub mtu: u32,
    /// Whether it was created.
    pub created: bool,
    /// How the host's network stack is kept from processing the frames of the switch.
    pub ingress_drop: IngressDrop,
    /// What an existing pair had otherwise and has been changed.
    pub changes: Vec<String>,
}

/// The kinds of bridge that 2.8.1 sets up (docs/spec/data-plane.md 1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeKind {
    /// A Linux bridge.
    Bridge,
    /// An Open vSwitch datapath in place of the bridge.
    Fastdp,
    /// A Linux bridge joined to an Open vSwitch datapath.
    BridgedFastdp,
}

impl BridgeKind {
    /// The output of `weave bridge-type`.
    pub fn name(self) -> &'static str {
        match self {
            BridgeKind::Bridge => "bridge",
            BridgeKind::Fastdp => "fastdp",
            BridgeKind::BridgedFastdp => "bridged_fastdp",
        }
    }
}

/// The kind of bridge on this host; `None` if there is none. A combination of devices that 2.8.1 does not make is an error.
pub fn bridge_kind(names: &DeviceNames) -> Result<Option<BridgeKind>, Error> {
    let mut netlink = Netlink::open()?;
    let bridge = netlink.link(&names.bridge)?;
    let datapath = match names.legacy_datapath.as_str() {
        "" => None,
        name => netlink.link(name)?,
    };
    classify(bridge.as_ref(), datapath.as_ref())
}

fn classify(bridge: Option<&Link>, datapath: Option<&Link>) -> Result<Option<BridgeKind>, Error> {
    let is_bridge = |l: &Link| l.is("bridge");
    let is_datapath = |l: &Link| l.kind.is_none() || l.is("openvswitch");
    match (bridge, datapath) {
        (None, None) => Ok(None),
        (Some(b), None) if is_bridge(b) => Ok(Some(BridgeKind::Bridge)),
        (Some(b), None) if is_datapath(b) => Ok(Some(BridgeKind::Fastdp)),
        (Some(b), Some(d)) if is_bridge(b) && is_datapath(d) => Ok(Some(BridgeKind::BridgedFastdp)),
        _ => Err(Error::State(
            "Inconsistent bridge state detected. Please do 'weave reset' and try again".into(),
        )),
    }
}

/// The Ethernet address of an interface; `None` if there is no such interface.
pub fn link_mac(name: &str) -> Result<Option<MacAddr>, Error> {
    Ok(Netlink::open()?.link(name)?.and_then(|l| l.mac))
}

/// Creates the bridge, or configures an existing one: address, MTU, no router advertisements, short neighbour timeouts, up. A bridge
/// that was created is deleted if a later step fails.
pub fn ensure_bridge(config: &BridgeConfig) -> Result<BridgeInfo, Error> {
    if config.mac.is_group() || config.mac == MacAddr::ZERO {
        return Err(Error::Argument(format!(
            "peer name {} cannot be the Ethernet address of bridge {}: choose one that is not zero and has an even first \
             byte",
            config.mac, config.name
        )));
    }
    let mut netlink = Netlink::open()?;
    let (link, created) = match netlink.link(&config.name)? {
        Some(link) if link.is("bridge") => (link, false),
        Some(link) => {
            return Err(Error::State(format!(
                "interface {} exists and is not a Linux bridge but {}; run 'weave reset' or choose another name with \
                 --weave-bridge",
                link.name,
                link.kind.as_deref().map_or("a device without a kind".into(), |k| format!("of kind {k}"))
            )));
        }
        None => (make_bridge(&mut netlink, config)?, true),
    };
    match set_up_bridge(&mut netlink, &link, config) {
        Ok(info) if created => Ok(BridgeInfo { created, changes: Vec::new(), ..info }),
        Ok(info) => Ok(info),
        Err(cause) if created => Err(after_deleting(&mut netlink, &link, cause)),
        Err(cause) => Err(cause),
    }
}

/// Creates a bridge with address and MTU, which is down. It is renamed last: the bridge of a launch that was killed before the address
/// was set would be taken for that of a peer with another name.
fn make_bridge(netlink: &mut Netlink, config: &BridgeConfig) -> Result<Link, Error> {
    if let Some(left) = netlink.link(UNFINISHED)? {
        ignore_missing_device(netlink.delete_link(&left))?;
    }
    let link = netlink.create_bridge_step(UNFINISHED, &format!("creating bridge {}", config.name))?;
    let (Mtu::Exactly(mtu) | Mtu::Default(mtu)) = config.mtu;
    // Set after the creation, because kernels before 3.14 lose the local entry of the forwarding table otherwise. An address that was
    // set does not change with the ports. Errors name the bridge by its final name.
    let named = Link { name: config.name.clone(), ..link.clone() };
    let made = netlink
        .set_mac(&named, config.mac)
        .and_then(|()| netlink.set_mtu(&named, mtu))
        .and_then(|()| netlink.rename(&link, &config.name));
    match made {
        Ok(()) => Ok(Link { mac: Some(config.mac), mtu, ..named }),
        Err(cause) => Err(after_deleting(netlink, &link, cause)),
    }
}

fn set_up_bridge(netlink: &mut Netlink, link: &Link, config: &BridgeConfig) -> Result<BridgeInfo, Error> {
    let name = &link.name;
    let mut changes = Vec::new();
    if link.mac != Some(config.mac) {
        netlink.set_mac(link, config.mac)?;
        changes.push(format!("the Ethernet address of {name} was not {}", config.mac));
    }
    let wanted = match config.mtu {
        Mtu::Exactly(mtu) => mtu,
        Mtu::Default(_) => link.mtu,
    };
    if wanted != link.mtu {
        netlink.set_mtu(link, wanted)?;
        changes.push(format!("the MTU of {name} was {}", link.mtu));
    }
    let warnings = sysctl::apply(name, &sysctl::BRIDGE, &mut changes)?;
    if !link.up {
        netlink.set_up(link, true)?;
        // Text of 2.8.1, which scripts look for.
        changes.push(format!(
            "Interface \"{name}\" which needs to be in UP state for Weave functioning is found to be in DOWN state"
        ));
    }
    Ok(BridgeInfo { index: link.index, mtu: wanted, created: false, warnings, changes })
}

/// Creates the veth pair between bridge and switch, or configures an existing one: MTU of the bridge, up, and without packets of the
/// host's network stack.
pub fn ensure_uplink(names: &DeviceNames) -> Result<UplinkInfo, Error> {
    let mut netlink = Netlink::open()?;
    let bridge = match netlink.link(&names.bridge)? {
        Some(link) if link.is("bridge") => link,
        _ => return Err(Error::no_bridge(&names.bridge)),
    };
    if let Some((port, device)) = existing_uplink(&mut netlink, names)? {
        return set_up_uplink(&mut netlink, &bridge, &port, &device, false);
    }
    let (port, device) = netlink.create_veth(&names.port, &names.device, Some(bridge.mtu))?;
    set_up_uplink(&mut netlink, &bridge, &port, &device, true)
        .map_err(|cause| after_deleting(&mut netlink, &port, cause))
}

/// The pair, if it exists. One end alone, or an end of another pair (with `vethwe-pcap` of 2.8.1), is unused and is deleted.
fn existing_uplink(netlink: &mut Netlink, names: &DeviceNames) -> Result<Option<(Link, Link)>, Error> {
    let port = netlink.link(&names.port)?;
    let device = netlink.link(&names.device)?;
    if let (Some(port), Some(device)) = (&port, &device)
        && port.peer == Some(device.index)
        && port.peer_nsid.is_none()
    {
        return Ok(Some((port.clone(), device.clone())));
    }
    for link in [port, device].into_iter().flatten() {
        if !link.is("veth") {
            return Err(Error::State(format!(
                "interface {} exists and is not a veth device; remove it and try again",
                link.name
            )));
        }
        ignore_missing_device(netlink.delete_link(&link))?;
    }
    Ok(None)
}

fn set_up_uplink(
    netlink: &mut Netlink,
    bridge: &Link,
    port: &Link,
    device: &Link,
    created: bool,
) -> Result<UplinkInfo, Error> {
    let mut changes = Vec::new();
    for end in [port, device] {
        if end.mtu != bridge.mtu {
            netlink.set_mtu(end, bridge.mtu)?;
            changes.push(format!("the MTU of {} was {}", end.name, end.mtu));
        }
        // Set before the links are up, when the kernel would send router solicitations.
        sysctl::apply(&end.name, &sysctl::UPLINK, &mut changes)?;
    }
    sysctl::apply(&device.name, &sysctl::UPLINK_DEVICE, &mut changes)?;
    let ingress_drop = netlink.ensure_ingress_drop(device)?;
    if let Some(master) = device.master {
        // A packet socket gets no frames of a device that belongs to another bridge.
        netlink.set_master(device, None)?;
        changes.push(format!("{} was a port of device number {master}", device.name));
    }
    if port.master != Some(bridge.index) {
        netlink.set_master(port, Some(bridge))?;
        changes.push(format!("{} was not a port of {}", port.name, bridge.name));
    } else {
        changes.extend(netlink.restore_uplink_port(port)?);
    }
    // The bridge must not return frames that the switch injects.
    if port.hairpin != Some(false) {
        netlink.set_hairpin(port, false)?;
        if port.hairpin == Some(true) {
            // Text of 2.8.1, which scripts look for.
            changes.push(format!("Hairpin mode enabled on \"{}\"", port.name));
        }
    }
    for end in [device, port] {
        if !end.up {
            netlink.set_up(end, true)?;
            changes.push(format!("{} was down", end.name));
        }
    }
    if bridge.up && !changes.is_empty() {
        netlink.wait_until_forwarding(port)?;
    }
    if created {
        changes.clear();
    }
    Ok(UplinkInfo {
        port_index: port.index,
        device_index: device.index,
        mtu: bridge.mtu,
        created,
        ingress_drop,
        changes,
    })
}

fn after_deleting(netlink: &mut Netlink, link: &Link, cause: Error) -> Error {
    match ignore_missing_device(netlink.delete_link(link)) {
        Ok(()) => cause,
        Err(left) => Error::Undo { cause: Box::new(cause), left: vec![left] },
    }
}

/// Links that operations which were killed left behind, and unused ones of 2.8.1.
pub fn stale_links(names: &DeviceNames) -> Result<Vec<Link>, Error> {
    let links = Netlink::open()?.links()?;
    let container_end = format!("{}pg", names.prefix);
    let is_stale = |link: &&Link| {
        let half_uplink = (link.name == names.port || link.name == names.device)
            && !links
                .iter()
                .any(|l| Some(l.index) == link.peer && (l.name == names.port || l.name == names.device));
        // A container's end is moved into the namespace of the container before it is used.
        let unfinished = link.is("veth") && link.name.starts_with(&container_end);
        half_uplink || unfinished || link.name == UNFINISHED || link.name == format!("{}du", names.prefix)
    };
    Ok(links.iter().filter(is_stale).cloned().collect())
}

/// Names of the devices that [`remove_all`] removes.
pub fn owned_devices(names: &DeviceNames) -> Result<Vec<String>, Error> {
    let links = Netlink::open()?.links()?;
    Ok(names.owned(&links).iter().map(|l| l.name.clone()).collect())
}

/// Removes all devices: the bridge, its uplink, and the interfaces of containers. Returns the names of those that were removed, and the
/// errors of those that were not.
pub fn remove_all(names: &DeviceNames) -> (Vec<String>, Vec<Error>) {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    let links = Netlink::open().and_then(|mut n| n.links().map(|links| (n, links)));
    let (mut netlink, links) = match links {
        Ok(both) => both,
        Err(e) => return (removed, vec![e]),
    };
    for link in names.owned(&links) {
        // The deletion of one end of a pair has deleted the other.
        match netlink.link_by_index(link.index) {
            Ok(Some(present)) if present.name == link.name => {}
            Ok(_) => {
                removed.push(link.name.clone());
                continue;
            }
            Err(e) => {
                errors.push(e);
                continue;
            }
        }
        let deleted =
            if link.is("openvswitch") { openvswitch::delete(link) } else { netlink.delete_link(link) };
        match ignore_missing_device(deleted) {
            Ok(()) => removed.push(link.name.clone()),
            Err(e) => errors.push(e),
        }
    }
    (removed, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(kind: Option<&str>) -> Link {
        Link { index: 1, name: "x".into(), kind: kind.map(str::to_owned), ..Link::default() }
    }

    #[test]
    fn devices_of_an_instance_are_its_bridge_ports() {
        let named = |index, name: &str, master| Link { index, name: name.into(), master, ..link(None) };
        let links = [
            named(1, "weave", None),
            named(2, "weave-b", None),
            named(3, "vethwe-bridge", Some(1)),
            named(4, "vethwepl7", Some(1)),
            named(5, "vethwepl8", Some(2)),
            named(6, "vethwb-b", Some(2)),
            named(7, "vethwd-b", None),
            named(8, "vethwebldocker0", Some(9)),
            named(9, "docker0", None),
            named(10, "vethwepg9", None),
        ];
        let owned = |names: &DeviceNames| {
            names.owned(&links).iter().map(|l| l.name.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(owned(&DeviceNames::default()), "weave vethwe-bridge vethwepl7 vethwebldocker0 vethwepg9");
        assert_eq!(owned(&DeviceNames::instance("b")), "weave-b vethwepl8 vethwb-b vethwd-b");
        assert_eq!(owned(&DeviceNames::instance("c")), "");
        let longest = DeviceNames::instance("12345678");
        for name in [&longest.bridge, &longest.port, &longest.device] {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn bridge_kind_of_devices() {
        let (bridge, ovs, bare, veth) =
            (link(Some("bridge")), link(Some("openvswitch")), link(None), link(Some("veth")));
        assert_eq!(classify(None, None), Ok(None));
        assert_eq!(classify(Some(&bridge), None), Ok(Some(BridgeKind::Bridge)));
        assert_eq!(classify(Some(&ovs), None), Ok(Some(BridgeKind::Fastdp)));
        assert_eq!(classify(Some(&bare), None), Ok(Some(BridgeKind::Fastdp)));
        assert_eq!(classify(Some(&bridge), Some(&ovs)), Ok(Some(BridgeKind::BridgedFastdp)));
        assert_eq!(classify(Some(&bridge), Some(&bare)), Ok(Some(BridgeKind::BridgedFastdp)));
        for (b, d) in [
            (None, Some(&ovs)),
            (Some(&veth), None),
            (Some(&ovs), Some(&ovs)),
            (Some(&bridge), Some(&bridge)),
            (Some(&bridge), Some(&veth)),
        ] {
            let text = "Inconsistent bridge state detected. Please do 'weave reset' and try again";
            assert_eq!(classify(b, d), Err(Error::State(text.into())));
        }
    }
}
