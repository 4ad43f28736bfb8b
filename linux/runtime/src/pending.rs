//! Operations on containers that are under way, written down so that a process that is killed does not leave one half-done.
//!
//! ```text
//! /run/weave/pending-0.json   {"container":"netns:c","owned_before":[],"change":{"Attach":{"namespace":{...},...}}}
//!                             ["10.32.0.1/12"]
//!                             true
//! ```
//!
//! The first line is written before an address is requested, the second one, with the addresses, before the host is changed. The file
//! is removed when the operation has ended, well or not; if addresses could not be released then, the third line says that the
//! host needs no more changes. The file survives the process, but not a reboot, after which nothing is left of what it
//! describes; so it is not synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_host::fault_injection::{fail_point, io_fail_point};
use weave_host::{NamespaceKey, NetNs};
use weave_types::Cidr;

use crate::Error;
use crate::etc_hosts::HostsFile;

const PREFIX: &str = "pending-";
const SUFFIX: &str = ".json";
/// No operation is nearly as large.
const MAX_SIZE: u64 = 1 << 20;

/// What an operation is about to change on the host.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Change {
    /// `weave attach`.
    Attach {
        /// The container's namespace.
        namespace: Namespace,
        /// Source of the interface name on the host.
        naming: String,
        /// The bridge to attach to.
        bridge: String,
        /// Whether the route for multicast is added.
        multicast_route: bool,
        /// Whether frames may leave by the bridge port that they came in by.
        hairpin: bool,
        /// The hosts file to rewrite.
        hosts_file: Option<HostsFile>,
    },
    /// `weave detach`.
    Detach {
        /// The container's namespace.
        namespace: Namespace,
        /// A setting of the interface that is changed meanwhile.
        promote_secondaries: Option<String>,
    },
    /// An interface for a network plugin. Its caller learns that it failed if this process is killed, so it is undone then.
    AddInterface {
        /// The container's namespace.
        namespace: Namespace,
        /// The name of the interface in the container.
        interface: String,
        /// Source of the interface name on the host.
        naming: String,
        /// The bridge to attach to.
        bridge: String,
        /// The container had the interface before.
        existed: bool,
    },
    /// The removal of such an interface.
    RemoveInterface {
        /// The container's namespace; `None` if it is gone.
        namespace: Option<Namespace>,
        /// The name of the interface in the container.
        interface: String,
        /// The bridge that it is attached to.
        bridge: String,
    },
    /// Addresses for an interface that another program makes. As with [`Change::AddInterface`], they are released if this process is
    /// killed.
    Allocate,
    /// `weave expose`.
    Expose,
    /// `weave hide`.
    Hide,
    /// Docker's request to create an endpoint, whose container's end it moves afterwards.
    CreateEndpoint {
        /// The end for the container.
        inside: String,
    },
    /// Docker's request to delete an endpoint.
    DeleteEndpoint {
        /// The port of the bridge.
        outside: String,
    },
    /// `weave attach-bridge`.
    JoinBridges {
        /// Our bridge.
        bridge: String,
        /// The bridge that is joined to it.
        other: String,
    },
}

/// Identifies a namespace to another process of the same boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Namespace {
    inode: u64,
    cookie: Option<u64>,
}

impl Namespace {
    /// Identifies a namespace.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn of(ns: &NetNs) -> Result<Namespace, Error> {
        let NamespaceKey { inode, cookie } = ns.key()?;
        Ok(Namespace { inode, cookie })
    }

    /// Opens the namespace if it still exists. `container` may be its name.
    ///
    /// # Errors
    /// Processes cannot be listed.
    pub fn open(self, container: &str) -> Result<Option<NetNs>, Error> {
        let path = container.strip_prefix("netns:");
        Ok(NetNs::find(NamespaceKey { inode: self.inode, cookie: self.cookie }, path)?)
    }
}

/// An operation as it was written down.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct PendingOperation {
    /// Owner of the addresses in the allocator.
    pub container: String,
    /// The addresses that it had before.
    #[serde(with = "cidrs")]
    pub owned_before: Vec<Cidr>,
    /// Whether an allocator keeps the addresses.
    pub recorded: bool,
    /// What is changed.
    pub change: Change,
    /// The addresses that are added or removed. `None` until they are known; the host has not been changed by then.
    #[serde(skip)]
    pub addresses: Option<Vec<Cidr>>,
    /// The change of the host is complete, or undone.
    #[serde(skip)]
    pub host_done: bool,
}

impl PendingOperation {
    pub(crate) fn new(container: &str, recorded: bool, change: Change) -> PendingOperation {
        let container = container.to_owned();
        PendingOperation {
            container,
            owned_before: Vec::new(),
            recorded,
            change,
            addresses: None,
            host_done: false,
        }
    }

    /// The addresses to release after an interruption: those of the owner that are not in use and were obtained by this operation,
    /// or were to be removed by it.
    pub fn to_release(&self, owned: &[Cidr], in_use: &[Cidr]) -> Vec<Cidr> {
        let removes =
            matches!(self.change, Change::Detach { .. } | Change::RemoveInterface { .. } | Change::Hide);
        let listed = |cidr: &Cidr| {
            let addresses = self.addresses.iter().flatten();
            if removes { addresses.into_iter().any(|a| a == cidr) } else { !self.owned_before.contains(cidr) }
        };
        let used = |cidr: &Cidr| in_use.iter().any(|u| u.addr() == cidr.addr());
        owned.iter().filter(|cidr| listed(cidr) && !used(cidr)).copied().collect()
    }
}

mod cidrs {
    use serde::{Deserialize, Deserializer, Serializer};
    use weave_types::Cidr;

    pub(super) fn serialize<S: Serializer>(cidrs: &[Cidr], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(cidrs.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Cidr>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|t| t.parse().map_err(serde::de::Error::custom)).collect()
    }
}

/// The file of an operation that this process carries out; removed when dropped.
#[derive(Debug)]
pub(crate) struct PendingFile {
    path: PathBuf,
    file: File,
    keep: bool,
}

impl PendingFile {
    pub(crate) fn create(dir: &Path, operation: &PendingOperation) -> Result<PendingFile, Error> {
        let failed = |source| Error::PendingFile { step: "write", path: dir.to_owned(), source };
        io_fail_point(&"writing down the operation").map_err(failed)?;
        let mut pending = create_new(dir).map_err(failed)?;
        append(&mut pending.file, operation).map_err(failed)?;
        Ok(pending)
    }

    /// Writes down the addresses, right before the host is changed.
    pub(crate) fn begin_change(&mut self, addresses: &[Cidr]) -> Result<(), Error> {
        let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        io_fail_point(&"writing down the addresses")
            .and_then(|()| append(&mut self.file, &texts))
            .map_err(|source| Error::PendingFile { step: "write", path: self.path.clone(), source })
    }

    /// Keeps the file, because addresses could not be released: the next start does that.
    pub(crate) fn keep(&mut self) {
        self.keep = append(&mut self.file, &true).is_ok();
    }
}

/// Writes down that only addresses remain to be released.
pub(crate) fn mark_host_done(path: &Path) -> io::Result<()> {
    append(&mut OpenOptions::new().append(true).open(path)?, &true)
}

/// One line in one call, which SIGKILL does not divide.
fn append<T: Serialize>(file: &mut File, value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    file.write_all(&line)
}

impl Drop for PendingFile {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // The process may be killed here, but the removal itself does not fail.
        let _ = fail_point(&"removing the file of the operation");
        let _ = fs::remove_file(&self.path);
    }
}

/// The first free number.
fn create_new(dir: &Path) -> io::Result<PendingFile> {
    for n in 0_u64.. {
        let path = dir.join(format!("{PREFIX}{n}{SUFFIX}"));
        match OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path) {
            Ok(file) => return Ok(PendingFile { path, file, keep: false }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::StorageFull.into())
}

/// The files of operations in a run directory.
///
/// # Errors
/// The directory cannot be read.
pub fn pending_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(paths),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX)) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads the file of an operation that was interrupted. `None` if its first line is incomplete: nothing was done yet.
pub(crate) fn read(path: &Path) -> io::Result<Option<PendingOperation>> {
    if fs::metadata(path)?.len() > MAX_SIZE {
        return Ok(None);
    }
    let text = fs::read_to_string(path)?;
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let operation = lines.next().and_then(|line| serde_json::from_str::<PendingOperation>(line).ok());
    let addresses = lines.next().and_then(|line| {
        let texts = serde_json::from_str::<Vec<String>>(line).ok()?;
        texts.iter().map(|text| text.parse().ok()).collect()
    });
    let host_done = lines.next().is_some();
    Ok(operation.map(|operation| PendingOperation { addresses, host_done, ..operation }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidrs(text: &str) -> Vec<Cidr> {
        text.split_whitespace().map(|c| c.parse().expect("an address")).collect()
    }

    fn operation(change: Change) -> PendingOperation {
        let owned_before = cidrs("10.2.1.1/24");
        PendingOperation { owned_before, ..PendingOperation::new("netns:c", true, change) }
    }

    #[test]
    fn file_is_read_back_at_each_stage_and_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let namespace = Namespace { inode: 7, cookie: Some(u64::MAX) };
        let detach = operation(Change::Detach { namespace, promote_secondaries: Some("0".into()) });
        let mut first = PendingFile::create(dir.path(), &detach).expect("written");
        let second = PendingFile::create(dir.path(), &operation(Change::Expose)).expect("written");
        let files = pending_files(dir.path()).expect("readable");
        assert_eq!(files, [first.path.clone(), second.path.clone()]);
        assert_eq!(read(&first.path).expect("readable"), Some(detach.clone()));
        first.begin_change(&cidrs("10.2.1.1/24")).expect("written");
        let begun = PendingOperation { addresses: Some(cidrs("10.2.1.1/24")), ..detach };
        assert_eq!(read(&first.path).expect("readable"), Some(begun.clone()));
        let done = PendingOperation { host_done: true, ..begun.clone() };
        mark_host_done(&first.path).expect("written");
        assert_eq!(read(&first.path).expect("readable"), Some(done));
        // As a kill in the middle of a line would leave it.
        let text = fs::read_to_string(&first.path).expect("readable");
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        for length in 0..text.len() {
            fs::write(&first.path, &text[..length]).expect("written");
            let read = read(&first.path).expect("readable");
            assert_eq!(read.is_some(), length > ends[0]);
            assert_eq!(read.as_ref().is_some_and(|r| r.addresses.is_some()), length > ends[1]);
            assert!(read.is_none_or(|r| !r.host_done));
        }
        drop((first, second));
        assert!(pending_files(dir.path()).expect("readable").is_empty());
        assert!(pending_files(Path::new("/no/such")).expect("no directory is no error").is_empty());
    }

    #[test]
    fn addresses_without_use_are_released() {
        let owned = cidrs("10.2.1.1/24 10.2.1.2/24 10.2.1.3/24");
        let in_use = cidrs("10.2.1.3/24");
        assert_eq!(operation(Change::Expose).to_release(&owned, &in_use), cidrs("10.2.1.2/24"));
        let mut hide = operation(Change::Hide);
        assert_eq!(hide.to_release(&owned, &in_use), []);
        hide.addresses = Some(cidrs("10.2.1.1/24 10.2.1.3/24 10.9.9.9/24"));
        assert_eq!(hide.to_release(&owned, &in_use), cidrs("10.2.1.1/24"));
    }
}
