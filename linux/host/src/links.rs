//! Network interfaces, which route-netlink calls links.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use nix::errno::Errno;
use weave_types::MacAddr;

use crate::error::ignore_missing_device;
use crate::netlink::{Netlink, Reply, Request, attributes, find, text, u16_at, u32_at};
use crate::{Error, NetNs};

/// Longest name of a link, in bytes.
pub(crate) const NAME_MAX: usize = 15;

const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const BR_STATE_DISABLED: u8 = 0;
const BR_STATE_FORWARDING: u8 = 3;
/// Whether the bridge filters VLANs, and whether iptables, ip6tables and arptables see its frames.
const BRIDGE_FILTERS: [u16; 4] = [7, 36, 37, 38];
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_MCAST_FLOOD: u16 = 27;
const IFLA_BRPORT_BCAST_FLOOD: u16 = 30;
const IFLA_BRPORT_ISOLATED: u16 = 33;
/// Settings of the uplink's bridge port besides hairpin mode: attribute, value, and what another value means. They are those of a new
/// port. Kernels that do not list an attribute do not have it.
const UPLINK_PORT: [(u16, u8, &str); 5] = [
    (IFLA_BRPORT_LEARNING, 1, "did not learn Ethernet addresses"),
    (IFLA_BRPORT_UNICAST_FLOOD, 1, "did not get frames to addresses that the bridge does not know"),
    (IFLA_BRPORT_MCAST_FLOOD, 1, "did not get multicast"),
    (IFLA_BRPORT_BCAST_FLOOD, 1, "did not get broadcasts"),
    (IFLA_BRPORT_ISOLATED, 0, "was isolated from containers"),
];
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_COLLECT_METADATA: u16 = 25;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IF_OPER_UP: u8 = 6;
/// Usually it takes microseconds, on a busy host longer. With the spanning tree protocol it would take half a minute.
const FORWARDING_TIMEOUT: Duration = Duration::from_secs(1);
const FORWARDING_POLL_INTERVAL: Duration = Duration::from_millis(1);
const IFINFO: usize = 16;

/// A network interface, as it was when it was looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// A text that [`Netlink::set_alias`] or another program has set.
    pub alias: Option<String>,
    /// Ethernet address, if it has one.
    pub mac: Option<MacAddr>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is operationally up: it also has a carrier.
    pub running: bool,
    /// `bridge`, `veth`, `openvswitch`, ...; `None` for hardware.
    pub kind: Option<String>,
    /// Index of the bridge, or of another master, of which it is a port.
    pub master: Option<u32>,
    /// Index of the other end of a veth pair, or of the underlying link, in the namespace `peer_nsid`.
    pub peer: Option<u32>,
    /// The id of the namespace of `peer` in this namespace; `None` if it is the same namespace.
    pub peer_nsid: Option<i32>,
    /// Whether the bridge may send a frame back by the port on which it arrived; `None` if this is no bridge port.
    pub hairpin: Option<bool>,
    /// Whether the bridge forwards frames from and to this port; `None` if this is no bridge port.
    pub forwarding: Option<bool>,
    /// Whether it is a bridge that filters VLANs, or whose frames the packet filter sees by its own setting.
    pub filters: bool,
    /// UDP port of a VXLAN device.
    pub vxlan_port: Option<u16>,
    /// Settings of a bridge port that differ from [`UPLINK_PORT`], by their index there.
    pub(crate) unusual: Vec<usize>,
    /// Whether the port was disabled by hand; the bridge disables one without a carrier itself.
    pub(crate) disabled: bool,
}

impl Link {
    /// Whether it is of this kind.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    fn parse(body: &[u8]) -> Option<Link> {
        let flags = u32_at(body, 8)?;
        let mut link =
            Link { index: u32_at(body, 4)?, up: flags & libc::IFF_UP as u32 != 0, ..Link::default() };
        let mut disabled = false;
        for (kind, value) in attributes(body.get(IFINFO..)?) {
            let number = u32_at(value, 0);
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = Some(text(value)),
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok().map(MacAddr),
                libc::IFLA_MTU => link.mtu = number?,
                libc::IFLA_MASTER => link.master = number,
                libc::IFLA_LINK => link.peer = number.filter(|n| *n != 0),
                libc::IFLA_LINK_NETNSID => link.peer_nsid = number.map(|n| n as i32),
                libc::IFLA_OPERSTATE => link.running = link.up && value.first() == Some(&IF_OPER_UP),
                libc::IFLA_LINKINFO => {
                    link.kind = find(value, libc::IFLA_INFO_KIND).map(text);
                    let data = find(value, libc::IFLA_INFO_DATA).unwrap_or(&[]);
                    if link.is("bridge") {
                        link.filters =
                            BRIDGE_FILTERS.iter().any(|kind| find(data, *kind).is_some_and(|v| v != [0]));
                    } else if link.is("vxlan") {
                        let port = find(data, IFLA_VXLAN_PORT).and_then(|v| u16_at(v, 0));
                        link.vxlan_port = port.map(u16::from_be);
                    }
                    let port = find(value, libc::IFLA_INFO_SLAVE_KIND).map(text);
                    if port.as_deref() == Some("bridge") {
                        let data = find(value, libc::IFLA_INFO_SLAVE_DATA).unwrap_or(&[]);
                        let byte = |kind| find(data, kind).and_then(|v| v.first()).copied();
                        link.hairpin = byte(IFLA_BRPORT_MODE).map(|mode| mode != 0);
                        link.forwarding = byte(IFLA_BRPORT_STATE).map(|state| state == BR_STATE_FORWARDING);
                        disabled = byte(IFLA_BRPORT_STATE) == Some(BR_STATE_DISABLED);
                        let differs =
                            |(kind, wanted, _): &(u16, u8, &str)| byte(*kind).is_some_and(|v| v != *wanted);
                        link.unusual = (0..UPLINK_PORT.len()).filter(|i| differs(&UPLINK_PORT[*i])).collect();
                    }
                }
                _ => {}
            }
        }
        link.disabled = disabled && link.running;
        Some(link)
    }
}

/// `struct ifinfomsg`.
fn header(family: libc::c_int, index: u32, flags: u32, change: u32) -> [u8; IFINFO] {
    let mut h = [0; IFINFO];
    h[0] = family as u8;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&change.to_ne_bytes());
    h
}

/// Rejects names that the kernel rejects; accepted ones are safe in paths under `/proc/sys`.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let fits = !name.is_empty() && name.len() <= NAME_MAX && name != "." && name != "..";
    if fits && !name.bytes().any(|b| b == b'/' || b == b':' || b == 0 || b.is_ascii_whitespace()) {
        Ok(())
    } else {
        Err(Error::Argument(format!("{name:?} is not a valid interface name (1 to {NAME_MAX} bytes)")))
    }
}

impl Netlink {
    /// All links in the namespace, in the kernel's order.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let mut request = Request::new(libc::RTM_GETLINK, 0, &header(libc::AF_UNSPEC, 0, 0, 0));
        request.number(libc::IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        let replies = self.dump(request, "listing links")?;
        Ok(parse_links(&replies).collect())
    }

    /// The link of this name, if it exists.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, Error> {
        check_name(name)?;
        let mut request = Request::new(libc::RTM_GETLINK, 0, &header(libc::AF_UNSPEC, 0, 0, 0));
        request.string(libc::IFLA_IFNAME, name);
        match self.query(request, format_args!("looking up link {name}")) {
            Ok(replies) => Ok(parse_links(&replies).next()),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The link with this index, if it exists.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, Error> {
        let request = Request::new(libc::RTM_GETLINK, 0, &header(libc::AF_UNSPEC, index, 0, 0));
        match self.query(request, format_args!("looking up link number {index}")) {
            Ok(replies) => Ok(parse_links(&replies).next()),
            Err(e) if e.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn existing(&mut self, name: &str) -> Result<Link, Error> {
        self.link(name)?.ok_or(Error::LinkNotFound)
    }

    /// Creates a Linux bridge, which is down and has a random address.
    pub fn create_bridge(&mut self, name: &str) -> Result<Link, Error> {
        self.create_bridge_step(name, &format!("creating bridge {name}"))
    }

    pub(crate) fn create_bridge_step(&mut self, name: &str, step: &str) -> Result<Link, Error> {
        check_name(name)?;
        let mut request = create();
        request.string(libc::IFLA_IFNAME, name).nested(libc::IFLA_LINKINFO, |r| {
            r.string(libc::IFLA_INFO_KIND, "bridge");
        });
        self.execute(request, step).map_err(|e| missing_kind(e, step, "Linux bridges (CONFIG_BRIDGE)"))?;
        let made = self.existing(name);
        self.or_delete(name, made)
    }

    /// Creates a veth pair, whose ends are down. Without `mtu` they have the default of the kernel (1500).
    pub fn create_veth(&mut self, name: &str, peer: &str, mtu: Option<u32>) -> Result<(Link, Link), Error> {
        self.create_veth_step(name, peer, mtu, &format!("creating veth pair {name}-{peer}"))
    }

    pub(crate) fn create_veth_step(
        &mut self,
        name: &str,
        peer: &str,
        mtu: Option<u32>,
        step: &str,
    ) -> Result<(Link, Link), Error> {
        check_name(name)?;
        check_name(peer)?;
        let mut request = create();
        let ends = |r: &mut Request, name: &str| {
            r.string(libc::IFLA_IFNAME, name);
            if let Some(mtu) = mtu {
                r.number(libc::IFLA_MTU, mtu);
            }
        };
        ends(&mut request, name);
        request.nested(libc::IFLA_LINKINFO, |r| {
            r.string(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |r| {
                r.nested(VETH_INFO_PEER, |r| {
                    r.raw(&header(libc::AF_UNSPEC, 0, 0, 0));
                    ends(r, peer);
                });
            });
        });
        self.execute(request, step).map_err(|e| missing_kind(e, step, "veth devices (CONFIG_VETH)"))?;
        let made = self.existing(name).and_then(|link| Ok((link, self.existing(peer)?)));
        self.or_delete(name, made)
    }

    /// Creates a VXLAN device on this UDP port for programs that choose VNI and addresses of each frame (`external`), which is down.
    /// It does not learn: with learning the kernel drops frames whose source address is zero.
    pub fn create_vxlan(&mut self, name: &str, port: u16, mtu: u32) -> Result<Link, Error> {
        check_name(name)?;
        let step = format!("creating VXLAN device {name} on port {port}");
        let mut request = create();
        request.string(libc::IFLA_IFNAME, name).number(libc::IFLA_MTU, mtu).nested(
            libc::IFLA_LINKINFO,
            |r| {
                r.string(libc::IFLA_INFO_KIND, "vxlan").nested(libc::IFLA_INFO_DATA, |r| {
                    r.attribute(IFLA_VXLAN_COLLECT_METADATA, &[1])
                        .attribute(IFLA_VXLAN_LEARNING, &[0])
                        .attribute(IFLA_VXLAN_PORT, &port.to_be_bytes());
                });
            },
        );
        self.execute(request, &step)
            .map_err(|e| missing_kind(e, &step, "VXLAN devices (CONFIG_VXLAN, module vxlan)"))?;
        let made = self.existing(name);
        self.or_delete(name, made)
    }

    /// Keeps the kernel from giving the link an IPv6 address when it is set up. Succeeds without IPv6.
    pub fn disable_ipv6_address(&mut self, link: &Link) -> Result<(), Error> {
        let step = format!("switching off IPv6 addresses of {}", link.name);
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &header(libc::AF_UNSPEC, link.index, 0, 0));
        request.nested(libc::IFLA_AF_SPEC, |r| {
            r.nested(libc::AF_INET6 as u16, |r| {
                r.attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
        match self.execute(request, step) {
            Err(e) if matches!(e.errno(), Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP)) => Ok(()),
            other => other,
        }
    }

    /// Deletes a link that has just been created if the next step failed.
    fn or_delete<T>(&mut self, name: &str, next: Result<T, Error>) -> Result<T, Error> {
        next.map_err(|cause| {
            let mut request = Request::new(libc::RTM_DELLINK, 0, &header(libc::AF_UNSPEC, 0, 0, 0));
            request.string(libc::IFLA_IFNAME, name);
            match ignore_missing_device(self.execute(request, format_args!("deleting link {name}"))) {
                Ok(()) => cause,
                Err(left) => Error::Undo { cause: Box::new(cause), left: vec![left] },
            }
        })
    }

    /// Deletes a link, and with it the other end if it belongs to a veth pair.
    pub fn delete_link(&mut self, link: &Link) -> Result<(), Error> {
        let request = Request::new(libc::RTM_DELLINK, 0, &header(libc::AF_UNSPEC, link.index, 0, 0));
        self.execute(request, format_args!("deleting link {}", link.name))
    }

    /// Sets a link up or down.
    pub fn set_up(&mut self, link: &Link, up: bool) -> Result<(), Error> {
        let flag = libc::IFF_UP as u32;
        let flags = if up { flag } else { 0 };
        let request = Request::new(libc::RTM_NEWLINK, 0, &header(libc::AF_UNSPEC, link.index, flags, flag));
        self.execute(request, format_args!("setting {} {}", link.name, if up { "up" } else { "down" }))
    }

    /// Sets the MTU in bytes.
    pub fn set_mtu(&mut self, link: &Link, mtu: u32) -> Result<(), Error> {
        let step = format!("setting the MTU of {} to {mtu}", link.name);
        self.change(link, step, |r| r.number(libc::IFLA_MTU, mtu))
    }

    /// Sets the Ethernet address.
    pub fn set_mac(&mut self, link: &Link, mac: MacAddr) -> Result<(), Error> {
        let step = format!("setting the address of {} to {mac}", link.name);
        self.change(link, step, |r| r.attribute(libc::IFLA_ADDRESS, &mac.0))
    }

    /// Adds the link to a bridge, or removes it from the one to which it belongs.
    pub fn set_master(&mut self, link: &Link, bridge: Option<&Link>) -> Result<(), Error> {
        let (step, index) = match bridge {
            Some(b) => (format!("adding {} to bridge {}", link.name, b.name), b.index),
            None => (format!("taking {} from its bridge", link.name), 0),
        };
        self.change(link, step, |r| r.number(libc::IFLA_MASTER, index))
    }

    /// Renames a link, which older kernels require to be down.
    pub fn rename(&mut self, link: &Link, name: &str) -> Result<(), Error> {
        check_name(name)?;
        let step = format!("renaming {} to {name}", link.name);
        self.change(link, step, |r| r.string(libc::IFLA_IFNAME, name))
    }

    /// Sets the text that says whose link it is.
    pub fn set_alias(&mut self, link: &Link, alias: &str) -> Result<(), Error> {
        let step = format!("setting the alias of {}", link.name);
        self.change(link, step, |r| r.string(libc::IFLA_IFALIAS, alias))
    }

    /// Moves a link into another namespace. It keeps its name and address; its index may change.
    pub fn move_to(&mut self, link: &Link, ns: &NetNs) -> Result<(), Error> {
        let step = format!("moving {} into {ns}", link.name);
        self.change(link, step, |r| r.number(libc::IFLA_NET_NS_FD, ns.as_raw_fd() as u32))
    }

    /// Sets whether the bridge may send a frame back by the port on which it arrived.
    pub fn set_hairpin(&mut self, link: &Link, on: bool) -> Result<(), Error> {
        let state = if on { "on" } else { "off" };
        let step = format!("switching hairpin mode of {} {state}", link.name);
        self.set_port(link, &[(IFLA_BRPORT_MODE, u8::from(on))], step)
    }

    /// Restores the settings of the uplink's bridge port. Returns what was wrong.
    pub(crate) fn restore_uplink_port(&mut self, link: &Link) -> Result<Vec<String>, Error> {
        let mut wanted = Vec::new();
        let mut changes = Vec::new();
        for (kind, value, meaning) in link.unusual.iter().filter_map(|i| UPLINK_PORT.get(*i)) {
            wanted.push((*kind, *value));
            changes.push(format!("bridge port {} {meaning}", link.name));
        }
        if link.disabled {
            wanted.push((IFLA_BRPORT_STATE, BR_STATE_FORWARDING));
            changes.push(format!("bridge port {} was disabled", link.name));
        }
        if !wanted.is_empty() {
            self.set_port(link, &wanted, format!("restoring the settings of bridge port {}", link.name))?;
        }
        Ok(changes)
    }

    fn set_port(&mut self, link: &Link, settings: &[(u16, u8)], step: String) -> Result<(), Error> {
        let mut request = Request::new(libc::RTM_SETLINK, 0, &header(libc::AF_BRIDGE, link.index, 0, 0));
        request.nested(libc::IFLA_PROTINFO, |r| {
            for (kind, value) in settings {
                r.attribute(*kind, &[*value]);
            }
        });
        self.execute(request, step)
    }

    /// Waits until `link` has a carrier and, if it is a bridge port, the bridge forwards its frames. A worker of the kernel changes both
    /// some time after the links were set up, and until then frames are lost silently. `false` after a timeout.
    pub(crate) fn wait_until_forwarding(&mut self, link: &Link) -> Result<bool, Error> {
        let deadline = Instant::now() + FORWARDING_TIMEOUT;
        loop {
            match self.link_by_index(link.index)? {
                Some(l) if !l.running || l.forwarding == Some(false) => {}
                _ => return Ok(true),
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(FORWARDING_POLL_INTERVAL);
        }
    }

    fn change(
        &mut self,
        link: &Link,
        step: String,
        fill: impl FnOnce(&mut Request) -> &mut Request,
    ) -> Result<(), Error> {
        let mut request = Request::new(libc::RTM_NEWLINK, 0, &header(libc::AF_UNSPEC, link.index, 0, 0));
        fill(&mut request);
        self.execute(request, step)
    }
}

fn create() -> Request {
    Request::new(libc::RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &header(libc::AF_UNSPEC, 0, 0, 0))
}

/// For kinds of links that it does not have, the kernel returns `EOPNOTSUPP`.
fn missing_kind(error: Error, step: &str, feature: &'static str) -> Error {
    if error.errno() == Some(Errno::EOPNOTSUPP) {
        Error::MissingFeature { step: step.into(), feature }
    } else {
        error
    }
}

fn parse_links(replies: &[Reply]) -> impl Iterator<Item = Link> {
    replies.iter().filter(|r| r.kind == libc::RTM_NEWLINK).filter_map(|r| Link::parse(&r.body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_interface_names_are_refused() {
        for good in ["weave", "vethwe-datapath", "eth0.5", "a"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a:1", "sixteen-bytes-xx", "nul\0"] {
            assert!(matches!(check_name(bad), Err(Error::Argument(_))), "{bad}");
        }
    }

    #[test]
    fn error_for_a_kind_that_the_kernel_lacks() {
        let refused = |errno| Error::refused("creating veth pair a-b", errno, "Unknown device type");
        let error =
            missing_kind(refused(Errno::EOPNOTSUPP), "creating veth pair a-b", "veth devices (CONFIG_VETH)");
        let text = "creating veth pair a-b: this kernel lacks veth devices (CONFIG_VETH); load the module, or use a kernel that \
                    has it";
        assert_eq!(error.to_string(), text);
        assert_eq!(missing_kind(refused(Errno::EEXIST), "x", "y"), refused(Errno::EEXIST));
    }

    #[test]
    fn truncated_messages_are_no_links() {
        assert_eq!(Link::parse(&[]), None);
        assert_eq!(Link::parse(&[0; 15]), None);
        assert!(Link::parse(&[0; 16]).is_some_and(|l| l.name.is_empty() && !l.up));
    }
}
