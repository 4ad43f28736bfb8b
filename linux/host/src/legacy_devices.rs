//! The devices that 2.8.1 leaves on a host, and what it needs to find when it comes back (docs/spec/data-plane.md 1, docs/spec/cli.md 4.2).
//!
//! ```text
//!   plain bridge (WEAVE_NO_FASTDP)        weave --- vethwe-bridge = vethwe-pcap
//!   bridged fastdp (the default)          weave --- vethwe-bridge = vethwe-datapath --- datapath (Open vSwitch)
//!   ours                                  weave --- vethwe-bridge = vethwe-datapath
//! ```
//!
//! Bridge and container interfaces are the same in all three, so that they stay as they are: only the uplink changes
//! hands.

use nix::errno::Errno;

use crate::error::ignore_missing_device;
use crate::{
    BridgeKind, BridgePorts, DeviceNames, Error, Link, NetNs, Netlink, bridge_kind, ethtool, openvswitch,
};

/// The end of the uplink at which 2.8.1 captures packets if it has no datapath.
const CAPTURE: &str = "-pcap";
/// 2.8.1's tunnels are ports of its datapath by these names.
const TUNNEL: &str = "vxlan-";

/// Which set-up of 2.8.1 is on this host; none if its uplink is not there (any more).
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

/// Older kernels do not name the kind.
fn is_datapath(link: &Link) -> bool {
    link.kind.is_none() || link.is("openvswitch")
}

/// What became of the Open vSwitch datapath of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegacyDatapath {
    /// There is none.
    NotFound,
    /// It was removed. While it was there it took all frames of the uplink, and UDP port 6784.
    Removed(String),
    /// Somebody else's port is in it, so it stays.
    InUse {
        /// Its name.
        name: String,
        /// The port that is not of 2.8.1.
        port: String,
    },
}

/// Removes the Open vSwitch datapath that 2.8.1 hung the uplink into. The uplink itself stays, and so do bridge and
/// containers. One in which a stranger's port hangs stays, without the uplink, which is removed.
///
/// # Errors
/// The kernel refuses, or has no Open vSwitch (any more); nothing was changed then.
pub fn remove_legacy_datapath(names: &DeviceNames) -> Result<LegacyDatapath, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let Some(datapath) = links.iter().find(|l| l.name == names.legacy_datapath && is_datapath(l)) else {
        return Ok(LegacyDatapath::NotFound);
    };
    if let Some(port) = strangers_port(&links, datapath, names) {
        // A port of a datapath goes with its device; the uplink is made again.
        let ours = links.iter().find(|l| l.name == names.device && l.master == Some(datapath.index));
        if let Some(device) = ours {
            ignore_missing_device(netlink.delete_link(device))?;
        }
        return Ok(LegacyDatapath::InUse { name: datapath.name.clone(), port });
    }
    openvswitch::delete(datapath)?;
    Ok(LegacyDatapath::Removed(datapath.name.clone()))
}

fn strangers_port(links: &[Link], datapath: &Link, names: &DeviceNames) -> Option<String> {
    let strange = |l: &&Link| {
        l.master == Some(datapath.index) && !l.name.starts_with(&names.prefix) && !l.name.starts_with(TUNNEL)
    };
    links.iter().find(strange).map(|l| l.name.clone())
}

/// Makes the datapath again, empty, as 2.8.1 wants to find it.
///
/// # Errors
/// The kernel refuses, or has no Open vSwitch.
pub fn restore_legacy_datapath(names: &DeviceNames) -> Result<(), Error> {
    if Netlink::open()?.link(&names.legacy_datapath)?.is_some() {
        return Ok(());
    }
    openvswitch::create(&names.legacy_datapath)
}

/// What [`restore_legacy_devices`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoredDevices {
    /// What 2.8.1 will find.
    pub kind: BridgeKind,
    /// Devices that are gone.
    pub removed: Vec<String>,
    /// Container interfaces, by process, whose TX checksum offload was switched off.
    pub checksums: Vec<String>,
}

/// Leaves the devices so that 2.8.1 can start on them: bridge and containers stay, the uplink goes, since it makes its own.
/// `kind` is what the host had before; none lets the kernel decide as 2.8.1 does, by whether it has Open vSwitch.
/// No daemon may be running.
///
/// # Errors
/// A step failed; doing it again goes on from there.
pub fn restore_legacy_devices(
    names: &DeviceNames,
    kind: Option<BridgeKind>,
) -> Result<RestoredDevices, Error> {
    let kind = match kind {
        // Containers on an unbridged datapath are never taken over, so there is none to go back to.
        Some(BridgeKind::Fastdp | BridgeKind::BridgedFastdp) => BridgeKind::BridgedFastdp,
        Some(BridgeKind::Bridge) => BridgeKind::Bridge,
        None if openvswitch::supported()? => BridgeKind::BridgedFastdp,
        None => BridgeKind::Bridge,
    };
    let has_bridge = bridge_kind(names)?.is_some();
    // First what may fail: until then everything is as it was.
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

/// 2.8.1's packet capture sees what a container sends as it is, so that checksums have to be complete by then. It sees to that for
/// containers that it attaches itself.
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
                // It has ended meanwhile.
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
        Link {
            index,
            name: name.into(),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            kind: kind.map(str::to_owned),
            master,
            peer: None,
            peer_nsid: None,
            hairpin: None,
            forwarding: None,
        }
    }

    #[test]
    fn set_ups_of_2_8_1() {
        let names = DeviceNames::default();
        let bridge = link(1, "weave", Some("bridge"), None);
        let port = link(2, "vethwe-bridge", Some("veth"), Some(1));
        let kind = |more: &[Link]| {
            let links: Vec<Link> = [bridge.clone(), port.clone()].iter().chain(more).cloned().collect();
            classify(&links, &names)
        };
        assert_eq!(kind(&[]), None);
        assert_eq!(kind(&[link(3, "vethwe-datapath", Some("veth"), None)]), None, "ours");
        assert_eq!(kind(&[link(3, "vethwe-pcap", Some("veth"), None)]), Some(BridgeKind::Bridge));
        for k in [Some("openvswitch"), None] {
            let fast = [link(3, "datapath", k, None), link(4, "vethwe-datapath", Some("veth"), Some(3))];
            assert_eq!(kind(&fast), Some(BridgeKind::BridgedFastdp));
        }
        assert_eq!(kind(&[link(3, "datapath", Some("dummy"), None)]), None, "somebody else's");
        let unbridged = [link(1, "weave", Some("openvswitch"), None)];
        assert_eq!(classify(&unbridged, &names), Some(BridgeKind::Fastdp));
        assert_eq!(classify(&[], &names), None);
    }

    #[test]
    fn a_datapath_with_a_strangers_port_stays() {
        let names = DeviceNames::default();
        let datapath = link(3, "datapath", Some("openvswitch"), None);
        let ours = [
            datapath.clone(),
            link(4, "vethwe-datapath", Some("veth"), Some(3)),
            link(5, "vxlan-6784", Some("vxlan"), Some(3)),
            link(6, "eth1", None, Some(9)),
        ];
        assert_eq!(strangers_port(&ours, &datapath, &names), None);
        let strange: Vec<Link> = ours.iter().cloned().chain([link(7, "eth0", None, Some(3))]).collect();
        assert_eq!(strangers_port(&strange, &datapath, &names).as_deref(), Some("eth0"));
    }
}
