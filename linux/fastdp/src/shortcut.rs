//! The shortcut by which frames of containers bypass the bridge: the program `port` at the ingress of the bridge's ports.
//!
//! ```text
//!   container == port [port] --+--> vxlan-6784 --> neighbours
//!                              +--> another container
//!                              +--> bridge: what the program does not know, and one frame of each MAC in 20 s
//!   container <----------------------------------- [tunnel] vxlan-6784
//! ```
//!
//! It is attached as tcx (Linux 6.6), beside which other programs and qdiscs may be attached.

use std::collections::BTreeSet;
use std::sync::Arc;

use weave_host::{Link, Netlink};

use crate::error::Error;
use crate::layout::{PORT_SIZE, u32_at};
use crate::sys::{Map, Program};

/// The name of the program in the kernel.
const NAME: &[u8] = b"weave_port";

/// Decides which ports of the bridge have the shortcut. It may be used by another thread than [`Fastdp`](crate::Fastdp), in the same
/// network namespace.
#[derive(Debug)]
pub struct Shortcuts {
    program: Arc<Program>,
    /// The program's map: MAC to port.
    ports: Arc<Map>,
    attached: BTreeSet<u32>,
}

impl Shortcuts {
    pub(crate) fn new(program: Arc<Program>, ports: Arc<Map>) -> Shortcuts {
        Shortcuts { program, ports, attached: BTreeSet::new() }
    }

    /// Gives the ports `wanted` the shortcut, and takes it from `others`. Devices that have gone are no error.
    ///
    /// # Errors
    /// [`Error::Unsupported`] before Linux 6.6: nothing has a shortcut then.
    pub fn set(&mut self, wanted: &[Link], others: &[Link]) -> Result<(), Error> {
        for link in others {
            detach(link)?;
        }
        let mut attached = BTreeSet::new();
        for link in wanted {
            if self.attach(link)? {
                attached.insert(link.index);
            }
        }
        let before = std::mem::replace(&mut self.attached, attached);
        if before.is_subset(&self.attached) { Ok(()) } else { self.forget_ports() }
    }

    /// `false` if the device has gone.
    fn attach(&self, link: &Link) -> Result<bool, Error> {
        let own = Error::at("reading the number of an eBPF program", || self.program.id())?;
        let present = port_programs(link)?;
        if present.iter().any(|(id, _)| *id == own) {
            return Ok(true);
        }
        let old = present.first().map(|(_, program)| program);
        match Error::at(&format!("attaching a program to {}", link.name), || {
            self.program.attach(link.index, old)
        }) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Removes what leads to ports without a shortcut.
    fn forget_ports(&self) -> Result<(), Error> {
        Error::at("removing ports of the kernel path", || {
            let (keys, values) = self.ports.entries()?;
            for (key, value) in keys.chunks_exact(8).zip(values.chunks_exact(PORT_SIZE)) {
                if u32_at(value, 0).is_none_or(|index| !self.attached.contains(&index)) {
                    self.ports.delete(key)?;
                }
            }
            Ok(())
        })
    }
}

/// Takes the shortcut from all devices, whichever process gave it to them.
pub(crate) fn remove_all(netlink: &mut Netlink) -> Result<(), Error> {
    for link in netlink.links()?.iter().filter(|link| link.is("veth")) {
        match detach(link) {
            Err(Error::Unsupported { .. }) => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

fn detach(link: &Link) -> Result<(), Error> {
    for (_, program) in port_programs(link)? {
        match Error::at(&format!("removing a program from {}", link.name), || program.detach(link.index)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The programs `port` of a device, with their numbers.
fn port_programs(link: &Link) -> Result<Vec<(u32, Program)>, Error> {
    let step = format!("listing the programs of {}", link.name);
    let ids = match Error::at(&step, || Program::at_ingress(link.index)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(Vec::new()),
        other => other.map_err(|e| e.lacking(&[libc::EINVAL], "programs of the kind tcx (Linux 6.6)"))?,
    };
    let mut found = Vec::new();
    for id in ids {
        // A program may have gone since.
        let Ok(program) = Program::by_id(id) else { continue };
        if Error::at(&step, || program.has_name(NAME))? {
            found.push((id, program));
        }
    }
    Ok(found)
}
