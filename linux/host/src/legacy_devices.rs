//! The devices that 2.8.1 leaves on a host, and those that it needs after a return to it (docs/spec/data-plane.md 1, docs/spec/cli.md 4.2).
//!
//! ```text
//!   plain bridge (WEAVE_NO_FASTDP)        weave --- vethwe-bridge = vethwe-pcap
//!   bridged fastdp (the default)          weave --- vethwe-bridge = vethwe-datapath --- datapath (Open vSwitch)
//!   this program                          weave --- vethwe-bridge = vethwe-datapath
//! ```
//!
//! Bridge and container interfaces are the same in all cases and are kept; only the uplink is replaced.

use nix::errno::Errno;

use crate::error::ignore_missing_device;
use crate::{
    BridgeKind, BridgePorts, DeviceNames, Error, Link, NetNs, Netlink, bridge_kind, ethtool, openvswitch,
};

/// Suffix of the end of the uplink at which 2.8.1 captures packets without a datapath.
const CAPTURE: &str = "-pcap";
/// Prefix of the tunnel ports of the datapath.
const TUNNEL: &str = "vxlan-";

/// The kind of bridge that 2.8.1 left on this host; `None` if there is no uplink of 2.8.1.
///
/// # Errors
/// The links cannot be listed.
pub fn legacy_bridge_kind(names: &DeviceNames) -> Result<Option<BridgeKind>, Error> {
    let links = Netlink::open()?.links()?;
    Ok(classify(&links, names))
}

fn classify(links: &[Link], names: &DeviceNames) -> Option<BridgeKind> {
    let named = |name: &str| links.iter().find(|l| l.name == name);
    let bridge = named(&names.bridge)?;
    if bridge.is("openvswitch") {
        return Some(BridgeKind::Fastdp);
    }
    if named(&names.legacy_datapath).is_some_and(is_datapath) {
        return Some(BridgeKind::BridgedFastdp);
    }
    named(&format!("{}{CAPTURE}", names.prefix)).map(|_| BridgeKind::Bridge)
}

/// Older kernels do not report the kind.
fn is_datapath(link: &Link) -> bool {
    link.kind.is_none() || link.is("openvswitch")
}

/// Result of [`remove_legacy_datapath`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegacyDatapath {
    /// There is no datapath.
    NotFound,
    /// It was removed, which releases the frames of the uplink and UDP port 6784.
    Removed(String),
    /// It was not removed, because it has a port of another program.
    InUse {
        /// Name of the datapath.
        name: String,
        /// Name of the port.
        port: String,
    },
}

/// Removes the Open vSwitch datapath of 2.8.1. The uplink stays, which was a port of it, and so do bridge and containers. A datapath
/// with a port of another program stays; then the uplink is removed.
///
/// # Errors
/// The kernel refuses the request, or has no Open vSwitch (any more). Then nothing was changed.
pub fn remove_legacy_datapath(names: &DeviceNames) -> Result<LegacyDatapath, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let Some(datapath) = links.iter().find(|l| l.name == names.legacy_datapath && is_datapath(l)) else {
        return Ok(LegacyDatapath::NotFound);
    };
    if let Some(port) = foreign_port(&links, datapath, names) {
        // Deleting the device removes the port; the uplink is created again later.
        let ours = links.iter().find(|l| l.name == names.device && l.master == Some(datapath.index));
        if let Some(device) = ours {
            ignore_missing_device(netlink.delete_link(device))?;
        }
        return Ok(LegacyDatapath::InUse { name: datapath.name.clone(), port });
    }
    openvswitch::delete(datapath)?;
    Ok(LegacyDatapath::Removed(datapath.name.clone()))
}

fn foreign_port(links: &[Link], datapath: &Link, names: &DeviceNames) -> Option<String> {
    let is_foreign = |l: &&Link| {
        l.master == Some(datapath.index) && !l.name.starts_with(&names.prefix) && !l.name.starts_with(TUNNEL)
    };
    links.iter().find(is_foreign).map(|l| l.name.clone())
}

/// Creates an empty datapath for 2.8.1, unless it exists.
///
/// # Errors
/// The kernel refuses the request, or has no Open vSwitch.
pub fn restore_legacy_datapath(names: &DeviceNames) -> Result<(), Error> {
    if Netlink::open()?.link(&names.legacy_datapath)?.is_some() {
        return Ok(());
    }
    openvswitch::create(&names.legacy_datapath)
}

/// Result of [`restore_legacy_devices`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredDevices {
    /// The kind of bridge that 2.8.1 will find.
    pub kind: BridgeKind,
    /// Devices that were removed.
    pub removed: Vec<String>,
    /// Interfaces whose TX checksum offload was switched off, with the processes of their containers.
    pub checksums: Vec<String>,
}

/// Prepares the devices for a start of 2.8.1: bridge and containers stay, the uplink is removed, because 2.8.1 creates its own. `kind` is
/// the kind of bridge before the takeover; without it, it depends on Open vSwitch in the kernel, as in 2.8.1. No daemon may be running.
///
/// # Errors
/// A step failed; a repetition continues there.
pub fn restore_legacy_devices(
    names: &DeviceNames,
    kind: Option<BridgeKind>,
) -> Result<RestoredDevices, Error> {
    let kind = match kind {
        // An unbridged datapath is never taken over, so that there are no containers on it.
        Some(BridgeKind::Fastdp | BridgeKind::BridgedFastdp) => BridgeKind::BridgedFastdp,
        Some(BridgeKind::Bridge) => BridgeKind::Bridge,
        None if openvswitch::supported()? => BridgeKind::BridgedFastdp,
        None => BridgeKind::Bridge,
    };
    let has_bridge = bridge_kind(names)?.is_some();
    // These steps come first because they may fail; the uplink is kept in that case.
    let mut checksums = Vec::new();
    match kind {
        BridgeKind::Bridge if has_bridge => checksums = complete_checksums(names)?,
        BridgeKind::Bridge => {}
        _ => restore_legacy_datapath(names)?,
    }
    let mut netlink = Netlink::open()?;
    let mut removed = Vec::new();
    for name in [&names.port, &names.device, &format!("{}du", names.prefix)] {
        if let Some(link) = netlink.link(name)? {
            ignore_missing_device(netlink.delete_link(&link))?;
            removed.push(name.clone());
        }
    }
    Ok(RestoredDevices { kind, removed, checksums })
}

/// Switches off the TX checksum offload of all containers: 2.8.1 captures packets as containers send them, so that their checksums have
/// to be complete. It does the same for containers that it attaches itself.
fn complete_checksums(names: &DeviceNames) -> Result<Vec<String>, Error> {
    let mut changed = Vec::new();
    if ethtool::disable_tx_checksum(&names.bridge)? {
        changed.push(names.bridge.clone());
    }
    let mut ports = BridgePorts::scan(&names.bridge)?;
    for (pid, ns) in NetNs::all_of_processes()? {
        for link in ports.in_namespace(&ns)? {
            match ns.run(|| ethtool::disable_tx_checksum(&link.name))? {
                Ok(true) => changed.push(format!("{} of process {pid}", link.name)),
                Ok(false) => {}
                // The container has ended meanwhile.
                Err(Error::LinkNotFound) => {}
                Err(e) if e.errno() == Some(Errno::ENODEV) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, kind: Option<&str>, master: Option<u32>) -> Link {
        Link { index, name: name.into(), kind: kind.map(str::to_owned), master, ..Link::default() }
    }

    #[test]
    fn kinds_of_bridge_of_2_8_1() {
        let names = DeviceNames::default();
        let bridge = link(1, "weave", Some("bridge"), None);
        let port = link(2, "vethwe-bridge", Some("veth"), Some(1));
        let kind = |more: &[Link]| {
            let links: Vec<Link> = [bridge.clone(), port.clone()].iter().chain(more).cloned().collect();
            classify(&links, &names)
        };
        assert_eq!(kind(&[]), None);
        assert_eq!(
            kind(&[link(3, "vethwe-datapath", Some("veth"), None)]),
            None,
            "the uplink of this program"
        );
        assert_eq!(kind(&[link(3, "vethwe-pcap", Some("veth"), None)]), Some(BridgeKind::Bridge));
        for k in [Some("openvswitch"), None] {
            let fast = [link(3, "datapath", k, None), link(4, "vethwe-datapath", Some("veth"), Some(3))];
            assert_eq!(kind(&fast), Some(BridgeKind::BridgedFastdp));
        }
        assert_eq!(kind(&[link(3, "datapath", Some("dummy"), None)]), None, "a device of another program");
        let unbridged = [link(1, "weave", Some("openvswitch"), None)];
        assert_eq!(classify(&unbridged, &names), Some(BridgeKind::Fastdp));
        assert_eq!(classify(&[], &names), None);
    }

    #[test]
    fn port_of_another_program_is_found() {
        let names = DeviceNames::default();
        let datapath = link(3, "datapath", Some("openvswitch"), None);
        let ours = [
            datapath.clone(),
            link(4, "vethwe-datapath", Some("veth"), Some(3)),
            link(5, "vxlan-6784", Some("vxlan"), Some(3)),
            link(6, "eth1", None, Some(9)),
        ];
        assert_eq!(foreign_port(&ours, &datapath, &names), None);
        let foreign: Vec<Link> = ours.iter().cloned().chain([link(7, "eth0", None, Some(3))]).collect();
        assert_eq!(foreign_port(&foreign, &datapath, &names).as_deref(), Some("eth0"));
    }
}
