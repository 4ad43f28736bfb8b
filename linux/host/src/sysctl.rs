//! Settings under `/proc/sys/net`, which are those of the network namespace of the calling thread.

use std::io::ErrorKind;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::links::check_name;
use crate::{Error, fault_injection};

/// A setting that a device needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    tree: &'static str,
    key: &'static str,
    value: &'static str,
    /// What it is needed for, as the end of `...: <purpose>`.
    purpose: &'static str,
    /// Whether the device cannot be used without it. A kernel that does not have the setting does not need it.
    required: bool,
}

const fn setting(
    tree: &'static str,
    key: &'static str,
    value: &'static str,
    required: bool,
    purpose: &'static str,
) -> Setting {
    Setting { tree, key, value, purpose, required }
}

const NO_ROUTER_ADVERTISEMENTS: Setting = setting(
    "ipv6/conf",
    "accept_ra",
    "0",
    true,
    "router advertisements of containers would change the routes of this host",
);

/// Addresses move between containers, so entries of the neighbour cache are valid for seconds only and are probed soon
/// (docs/spec/data-plane.md 1.2).
pub(crate) const NEIGHBOURS: [Setting; 3] = {
    const PURPOSE: &str = "its ARP cache is not tuned";
    [
        setting("ipv4/neigh", "base_reachable_time", "5", false, PURPOSE),
        setting("ipv4/neigh", "delay_first_probe_time", "2", false, PURPOSE),
        setting("ipv4/neigh", "ucast_solicit", "1", false, PURPOSE),
    ]
};

/// Settings of the bridge.
pub(crate) const BRIDGE: [Setting; 5] = [
    NO_ROUTER_ADVERTISEMENTS,
    setting(
        "ipv4/conf",
        "promote_secondaries",
        "1",
        false,
        "the kernel removes all exposed addresses of a subnet together with the first one",
    ),
    NEIGHBOURS[0],
    NEIGHBOURS[1],
    NEIGHBOURS[2],
];

/// Settings of both ends of the uplink, which only carry frames of containers.
pub(crate) const UPLINK: [Setting; 2] = [
    NO_ROUTER_ADVERTISEMENTS,
    setting(
        "ipv6/conf",
        "disable_ipv6",
        "1",
        true,
        "this host would send packets of its own to all containers",
    ),
];

/// Settings of the end of the uplink that the switch uses.
pub(crate) const UPLINK_DEVICE: [Setting; 1] = [setting(
    "ipv4/conf",
    "arp_ignore",
    // For no local address.
    "8",
    true,
    "this host would answer ARP requests of containers of other hosts",
)];

/// What [`set`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetResult {
    /// This kernel does not have the setting.
    Missing,
    /// The setting had the value.
    Unchanged,
    /// The setting had another value.
    Changed,
}

/// The file of a setting, such as `ipv4/neigh/<interface>/ucast_solicit`.
fn path(tree: &str, interface: &str, key: &str) -> Result<PathBuf, Error> {
    check_name(interface)?;
    Ok(["/proc/sys/net", tree, interface, key].iter().collect())
}

/// Writes a setting unless it has this value.
pub(crate) fn set(tree: &str, interface: &str, key: &str, value: &str) -> Result<SetResult, Error> {
    let path = path(tree, interface, key)?;
    match std::fs::read_to_string(&path) {
        Ok(present) if present.trim_end() == value => return Ok(SetResult::Unchanged),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(SetResult::Missing),
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
    Ok(SetResult::Changed)
}

/// Applies settings to a device. `changes` gets those that had another value; returns a warning for each that is not required and is
/// missing or cannot be changed.
pub(crate) fn apply(
    interface: &str,
    settings: &[Setting],
    changes: &mut Vec<String>,
) -> Result<Vec<String>, Error> {
    let mut warnings = Vec::new();
    for Setting { tree, key, value, purpose, required } in settings {
        match set(tree, interface, key, value) {
            Ok(SetResult::Changed) => {
                changes.push(format!("{key} of {interface} was not {value}: {purpose}"))
            }
            Ok(SetResult::Unchanged) => {}
            Ok(SetResult::Missing) if *required => {}
            Ok(SetResult::Missing) => warnings.push(format!("no setting {key} for {interface}: {purpose}")),
            Err(e) if !required && e.errno() == Some(Errno::EROFS) => warnings.push(e.to_string()),
            Err(e) => return Err(e),
        }
    }
    Ok(warnings)
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
