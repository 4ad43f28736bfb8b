//! The VXLAN devices and the two TAP devices. They outlive the process.

use std::os::fd::OwnedFd;
use std::time::Duration;

use weave_host::{Link, Netlink};

use crate::error::Error;
use crate::sys::{self, Program};

/// Largest MTU of a VXLAN device: frames are as large as those of the bridge, and what the path carries is known elsewhere.
const VXLAN_MTU: u32 = 65_485;
/// Largest MTU of a TAP device.
const TAP_MTU: u32 = 65_521;
const PORT_ATTEMPTS: u32 = 5;
const PORT_RETRY: Duration = Duration::from_millis(10);

/// The name of the VXLAN device of a port, that of 2.8.1.
pub(crate) fn vxlan_name(port: u16) -> String {
    format!("vxlan-{port}")
}

/// The name of such a device until it is complete, so that what a killed process has left is not taken for a device of somebody else.
const UNFINISHED: &str = "weavevx-";

/// The port of a device with such a name.
fn vxlan_port(link: &Link) -> Option<u16> {
    let number = link.name.strip_prefix("vxlan-")?;
    number.parse().ok().filter(|port| link.is("vxlan") && vxlan_name(*port) == link.name)
}

/// The name with which programs are attached, and the alias of VXLAN devices: it tells the peers of one host apart.
pub(crate) fn program_name(uplink: &str) -> String {
    format!("weave-fastdp/{uplink}")
}

/// The VXLAN devices of the peer that has this uplink, with their ports.
pub(crate) fn vxlan_devices(netlink: &mut Netlink, uplink: &str) -> Result<Vec<(u16, Link)>, Error> {
    let owner = program_name(uplink);
    let links = netlink.links()?.into_iter().filter(|link| link.alias.as_ref() == Some(&owner));
    Ok(links.filter_map(|link| Some((vxlan_port(&link)?, link))).collect())
}

/// VXLAN devices that a killed process has not finished.
pub(crate) fn unfinished_devices(netlink: &mut Netlink) -> Result<Vec<Link>, Error> {
    let links = netlink.links()?.into_iter();
    Ok(links.filter(|link| link.is("vxlan") && link.name.starts_with(UNFINISHED)).collect())
}

/// Creates the VXLAN device of a port, with the program of `attach`, and sets it up.
pub(crate) fn create_vxlan(
    netlink: &mut Netlink,
    port: u16,
    program: &Program,
    name: &str,
) -> Result<Link, Error> {
    let mut attempt = 1;
    loop {
        match create_vxlan_once(netlink, port, program, name) {
            Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) && attempt < PORT_ATTEMPTS => {
                // The kernel may not have released the port of a device that was removed just before.
                std::thread::sleep(PORT_RETRY);
                attempt += 1;
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EEXIST)) => {
                return Err(Error::PortInUse(port));
            }
            other => return other,
        }
    }
}

fn create_vxlan_once(netlink: &mut Netlink, port: u16, program: &Program, name: &str) -> Result<Link, Error> {
    let unfinished = format!("{UNFINISHED}{port}");
    if let Some(left) = netlink.link(&unfinished)? {
        netlink.delete_link(&left)?;
    }
    let mut link = netlink.create_vxlan(&unfinished, port, VXLAN_MTU)?;
    let ready = netlink
        .disable_ipv6_address(&link)
        .and_then(|()| netlink.set_ingress_program(&link, program.fd(), name))
        .and_then(|()| netlink.set_alias(&link, name))
        .and_then(|()| netlink.rename(&link, &vxlan_name(port)))
        .and_then(|()| netlink.set_up(&link, true))
        .map_err(Error::from);
    if ready.is_err()
        && let Err(error) = netlink.delete_link(&link)
    {
        tracing::warn!(%error, "after a failure a device could not be removed");
    }
    link.name = vxlan_name(port);
    ready.map(|()| link)
}

/// Attaches a queue of a TAP device, and creates the device if there is none.
pub(crate) fn open_tap(name: &str, multi_queue: bool) -> Result<OwnedFd, Error> {
    Error::at(&format!("opening TAP device {name}"), || sys::open_tap(name, multi_queue)).map_err(|e| {
        e.lacking(&[libc::ENOENT, libc::ENODEV, libc::ENXIO], "TAP devices (CONFIG_TUN, module tun)")
    })
}

/// A queue of a TAP device that somebody reads.
#[derive(Debug)]
pub(crate) struct TapQueue {
    /// A second descriptor of it.
    fd: OwnedFd,
    device: String,
    multi_queue: bool,
}

impl TapQueue {
    /// Opens a queue. The first result is for who reads it.
    pub(crate) fn open(device: &str, multi_queue: bool) -> Result<(OwnedFd, TapQueue), Error> {
        let reader = open_tap(device, multi_queue)?;
        let fd = Error::at("duplicating a descriptor", || reader.try_clone())?;
        Ok((reader, TapQueue { fd, device: device.to_owned(), multi_queue }))
    }

    /// Makes it a queue of the device again, if that has been removed and made anew.
    pub(crate) fn reattach(&self) -> Result<(), Error> {
        Error::at(&format!("attaching to TAP device {}", self.device), || {
            match sys::attach_queue(&self.fd, &self.device, self.multi_queue) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                result => result,
            }
        })
    }
}

/// Makes sure that a TAP device exists and is up. Returns it, and whether it was created.
pub(crate) fn ensure_tap(
    netlink: &mut Netlink,
    name: &str,
    multi_queue: bool,
) -> Result<(Link, bool), Error> {
    let existed = netlink.link(name)?.is_some();
    // A new device goes with this queue until everything has succeeded.
    let queue = open_tap(name, multi_queue)?;
    let Some(link) = netlink.link(name)? else {
        return Err(Error::Host(weave_host::Error::LinkNotFound));
    };
    netlink.disable_ipv6_address(&link)?;
    netlink.set_mtu(&link, TAP_MTU)?;
    netlink.set_up(&link, true)?;
    Error::at(&format!("keeping TAP device {name}"), || sys::keep_tap(&queue))?;
    Ok((link, !existed))
}
