//! Which frames of containers may bypass the bridge: those that nothing else on this host wants to see.

use std::collections::BTreeSet;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::netlink::{Netlink, Request, find, text, u32_at};
use crate::{Error, Link};

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE`.
const GET_TABLE: u16 = 10 << 8 | 1;
const NFPROTO_BRIDGE: u8 = 7;
/// `struct tcmsg`.
const TCMSG: usize = 20;

/// The ports of containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShortcutPorts {
    /// Frames may bypass the bridge at these.
    pub with: Vec<Link>,
    /// Here they may not; and devices that are no port of any bridge, which may have been one.
    pub without: Vec<Link>,
    /// What keeps all of them from having one.
    pub why_none: Option<String>,
}

/// Sorts the ports of a bridge. None may have a shortcut while the packet filter or filters of bridges see the frames of this bridge; one
/// with a qdisc or unusual settings may not.
///
/// # Errors
/// Links or qdiscs cannot be read.
pub fn shortcut_ports(bridge: &str) -> Result<ShortcutPorts, Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let bridge = links.iter().find(|l| l.name == bridge).ok_or_else(|| Error::no_bridge(bridge))?.clone();
    let why_none = what_sees_frames(&bridge);
    let shaped = if why_none.is_some() { BTreeSet::new() } else { links_with_qdisc(&mut netlink)? };
    let of_bridge = |l: &Link| l.is("veth") && l.master.is_none_or(|master| master == bridge.index);
    let (with, without) = links.into_iter().filter(of_bridge).partition(|port| {
        // The other end of the uplink is here.
        let of_container = port.master.is_some() && port.peer_nsid.is_some();
        of_container
            && why_none.is_none()
            && port.forwarding == Some(true)
            && port.unusual.is_empty()
            && !shaped.contains(&port.index)
    });
    Ok(ShortcutPorts { with, without, why_none })
}

/// What wants to see all frames that the bridge forwards.
fn what_sees_frames(bridge: &Link) -> Option<String> {
    // They exist where the module br_netfilter is loaded.
    for which in ["iptables", "ip6tables", "arptables"] {
        let value = std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{which}"));
        if value.is_ok_and(|value| value.trim() != "0") {
            return Some(format!("{which} sees them (net.bridge.bridge-nf-call-{which} is 1)"));
        }
    }
    if bridge.filters {
        return Some(format!("{} filters VLANs, or has iptables see them", bridge.name));
    }
    let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    if modules.lines().any(|line| line.starts_with("ebtable_")) {
        return Some("ebtables may have rules for bridges".to_owned());
    }
    has_nft_bridge_tables().unwrap_or(false).then(|| "nftables has a table for bridges".to_owned())
}

fn has_nft_bridge_tables() -> Result<bool, Error> {
    let mut netlink = Netlink::open_protocol(NETLINK_NETFILTER)?;
    let request = Request::new(GET_TABLE, 0, &[NFPROTO_BRIDGE, 0, 0, 0]);
    Ok(!netlink.dump(request, "listing the bridge tables of nftables")?.is_empty())
}

/// The links with a qdisc that queues, polices or filters.
fn links_with_qdisc(netlink: &mut Netlink) -> Result<BTreeSet<u32>, Error> {
    let replies = netlink.dump(Request::new(libc::RTM_GETQDISC, 0, &[0; TCMSG]), "listing qdiscs")?;
    let qdisc = |body: &[u8]| {
        let kind = find(body.get(TCMSG..)?, libc::TCA_KIND).map(text)?;
        u32_at(body, 4).filter(|_| kind != "noqueue")
    };
    Ok(replies.iter().filter_map(|reply| qdisc(&reply.body)).collect())
}
