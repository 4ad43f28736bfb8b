//! Settings under `/proc/sys/net`, which are those of the network namespace of the calling thread.

use std::io::ErrorKind;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::links::check_name;
use crate::{Error, fault_injection};

/// Settings of the neighbour cache on the weave network. Addresses move between containers, so entries are valid for seconds only and
/// are probed soon (docs/spec/data-plane.md 1.2).
pub(crate) const NEIGHBOUR_SETTINGS: [(&str, &str); 3] =
    [("base_reachable_time", "5"), ("delay_first_probe_time", "2"), ("ucast_solicit", "1")];

/// The file of a setting, such as `ipv4/neigh/<interface>/ucast_solicit`.
fn path(tree: &str, interface: &str, key: &str) -> Result<PathBuf, Error> {
    check_name(interface)?;
    Ok(["/proc/sys/net", tree, interface, key].iter().collect())
}

/// Writes a setting unless it has this value. `false` if this kernel does not have the setting.
pub(crate) fn set(tree: &str, interface: &str, key: &str, value: &str) -> Result<bool, Error> {
    let path = path(tree, interface, key)?;
    match std::fs::read_to_string(&path) {
        Ok(present) if present.trim_end() == value => return Ok(true),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        _ => {}
    }
    let write = || {
        fault_injection::io_fail_point(&path.display())?;
        std::fs::write(&path, value)
    };
    write().map_err(|e| {
        let step = format!("writing {value} to {}", path.display());
        match e.raw_os_error().map(Errno::from_raw) {
            Some(errno @ Errno::EROFS) => {
                Error::refused(step, errno, "/proc/sys has to be writable; in a container use --privileged")
            }
            _ => Error::io(step, &e),
        }
    })?;
    Ok(true)
}

/// The present value; `None` if this kernel does not have the setting.
pub(crate) fn read(tree: &str, interface: &str, key: &str) -> Result<Option<String>, Error> {
    let path = path(tree, interface, key)?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("reading {}", path.display()), &e)),
    }
}

/// Disables the processing of router advertisements. A kernel without IPv6 processes none.
pub(crate) fn ignore_router_advertisements(interface: &str) -> Result<(), Error> {
    set("ipv6/conf", interface, "accept_ra", "0").map(|_| ())
}

/// Disables IPv6 on a link that only carries frames of containers.
pub(crate) fn disable_ipv6(interface: &str) -> Result<(), Error> {
    ignore_router_advertisements(interface)?;
    set("ipv6/conf", interface, "disable_ipv6", "1").map(|_| ())
}

/// Applies [`NEIGHBOUR_SETTINGS`]. Returns a warning for each setting that is missing or read-only.
pub(crate) fn tune_neighbours(interface: &str) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for (key, value) in NEIGHBOUR_SETTINGS {
        match set("ipv4/neigh", interface, key, value) {
            Ok(true) => {}
            Ok(false) => {
                warnings.push(format!("no setting {key} for {interface}: its ARP cache is not tuned"))
            }
            Err(e) if e.errno() == Some(Errno::EROFS) => warnings.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok(warnings)
}
