//! Attaches containers to the network and detaches them: addresses, hosts file and interface together, or nothing.
//!
//! ```text
//! write down the operation -> obtain addresses -> write down the addresses -> change the host -> remove the file
//!                                     |                                             |
//!                                     +---- failure: give addresses back <--- undo -+
//! ```
//!
//! One process at a time does this on a host: the daemon, or a command while no daemon runs. If it is killed, the next one finds the
//! files of its operations and completes what was begun on the host ([`ContainerNetwork::recover`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use weave_host::{AttachRequest, DetachRequest, Error as HostError, LinkRoute, NetNs};
use weave_types::{Cidr, MacAddr};

use crate::etc_hosts::{self, HostsFile};
use crate::interface::{self, CreatedInterface, NewInterface};
use crate::pending::{self, Change, Namespace, PendingFile, PendingOperation};
use crate::{AddressRequest, Allocator, Error, look_up};

/// Time between two attempts to lock the run directory.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);
/// Interface name in containers.
pub const INTERFACE: &str = "ethwe";

/// A container to attach.
#[derive(Debug)]
pub struct Attachment {
    /// Owner of the addresses in the allocator.
    pub container: String,
    /// The container's namespace.
    pub ns: NetNs,
    /// Source of the interface name on the host.
    pub naming: String,
    /// The bridge to attach to.
    pub bridge: String,
    /// The addresses to attach with.
    pub addresses: Vec<AddressRequest>,
    /// Whether to add the route for multicast.
    pub multicast_route: bool,
    /// Whether frames may leave by the bridge port that they came in by.
    pub hairpin: bool,
    /// The hosts file to rewrite.
    pub hosts_file: Option<HostsFile>,
}

/// Result of an operation on a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The addresses that were attached or detached, in the order of the requests.
    pub addresses: Vec<Cidr>,
    /// Optional parts that failed.
    pub warnings: Vec<String>,
}

/// An operation that was interrupted, after its changes of the host have been completed.
#[derive(Debug)]
pub struct Recovered {
    /// The operation.
    pub operation: PendingOperation,
    /// The addresses that the container uses now.
    pub in_use: Vec<Cidr>,
    path: PathBuf,
}

impl Recovered {
    /// Removes the file, after addresses have been released.
    pub fn finish(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Leaves the release of addresses, if there are any, to the next daemon.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn defer(self) -> Result<(), Error> {
        if !self.operation.recorded {
            self.finish();
            return Ok(());
        }
        let path = self.path;
        pending::mark_host_done(&path).map_err(|source| Error::PendingFile { step: "write", path, source })
    }
}

/// The right to change the containers of a host.
#[derive(Debug)]
pub struct ContainerNetwork {
    run_dir: PathBuf,
    _lock: Flock<File>,
    /// Namespaces (by inode) and interface names that a thread works on.
    busy: Mutex<BTreeSet<String>>,
    released: Condvar,
}

impl ContainerNetwork {
    /// Locks `run_dir`, which must exist.
    ///
    /// # Errors
    /// Another process has held the lock for `timeout`, or the directory cannot be opened.
    pub fn open(run_dir: &Path, timeout: Duration) -> Result<ContainerNetwork, Error> {
        let failed = |source| Error::PendingFile { step: "lock", path: run_dir.to_owned(), source };
        let mut dir = File::open(run_dir).map_err(failed)?;
        let deadline = Instant::now() + timeout;
        loop {
            match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    return Ok(ContainerNetwork {
                        run_dir: run_dir.to_owned(),
                        _lock: lock,
                        busy: Mutex::default(),
                        released: Condvar::new(),
                    });
                }
                Err((back, Errno::EWOULDBLOCK)) if Instant::now() < deadline => {
                    dir = back;
                    std::thread::sleep(LOCK_INTERVAL);
                }
                Err((_, Errno::EWOULDBLOCK)) => {
                    return Err(Error::Busy(timeout.as_secs()));
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Attaches a container. Repeating it changes nothing.
    ///
    /// # Errors
    /// An address cannot be obtained, or the host cannot be changed. Everything is as before then.
    pub fn attach(&self, allocator: &dyn Allocator, attachment: &Attachment) -> Result<Outcome, Error> {
        let mut naming = attachment.naming.clone();
        if weave_host::is_id_taken(&naming, &attachment.ns)? {
            naming = format!("M{:06x}", attachment.ns.id().inode() & 0xff_ffff);
        }
        let change = Change::Attach {
            namespace: Namespace::of(&attachment.ns)?,
            naming,
            bridge: attachment.bridge.clone(),
            multicast_route: attachment.multicast_route,
            hairpin: attachment.hairpin,
            hosts_file: attachment.hosts_file.clone(),
        };
        self.with_addresses(
            allocator,
            &attachment.container,
            change.clone(),
            &attachment.addresses,
            |cidrs| self.connect(&attachment.ns, &change, cidrs),
        )
    }

    /// Obtains addresses for an owner and calls `work` with them. If that fails, those that the owner did not have before are given
    /// back.
    ///
    /// # Errors
    /// An address cannot be obtained, or `work` failed.
    pub fn with_addresses(
        &self,
        allocator: &dyn Allocator,
        owner: &str,
        change: Change,
        requests: &[AddressRequest],
        work: impl FnOnce(&[Cidr]) -> Result<Vec<String>, Error>,
    ) -> Result<Outcome, Error> {
        let owned_before = allocator.owned(owner)?;
        let operation = PendingOperation {
            owned_before: owned_before.clone(),
            ..PendingOperation::new(owner, allocator.records(), change)
        };
        let mut pending = PendingFile::create(&self.run_dir, &operation)?;
        let mut obtained: Vec<Cidr> = Vec::new();
        let result = requests
            .iter()
            .try_for_each(|request| {
                obtained.push(allocator.obtain(owner, request)?);
                Ok(())
            })
            .and_then(|()| pending.begin_change(&obtained))
            .and_then(|()| work(&obtained));
        match result {
            Ok(warnings) => Ok(Outcome { addresses: obtained, warnings }),
            Err(error) => {
                let new: BTreeSet<Cidr> =
                    obtained.into_iter().filter(|cidr| !owned_before.contains(cidr)).collect();
                for cidr in new {
                    if let Err(e) = allocator.release(owner, cidr) {
                        tracing::warn!(
                            "{cidr} of {owner} is not used, and is released at the next start: {e}"
                        );
                        pending.keep();
                    }
                }
                Err(error)
            }
        }
    }

    /// Creates the devices of an endpoint of Docker (see [`weave_host::create_endpoint`]).
    ///
    /// # Errors
    /// The pair exists, or the host cannot be changed. Everything is as before then.
    pub fn create_endpoint(
        &self,
        bridge: &str,
        outside: &str,
        inside: &str,
        replace: bool,
    ) -> Result<MacAddr, Error> {
        let _busy = self.reserve([format!("name {inside}")]);
        let change = Change::CreateEndpoint { inside: inside.to_owned() };
        let _pending = PendingFile::create(&self.run_dir, &PendingOperation::new(inside, false, change))?;
        Ok(weave_host::create_endpoint(bridge, outside, inside, replace)?)
    }

    /// Removes the devices of an endpoint of Docker. `false` if there are none.
    ///
    /// # Errors
    /// The host cannot be changed.
    pub fn delete_endpoint(&self, outside: &str) -> Result<bool, Error> {
        let _busy = self.reserve([format!("name {outside}")]);
        let change = Change::DeleteEndpoint { outside: outside.to_owned() };
        let _pending = PendingFile::create(&self.run_dir, &PendingOperation::new(outside, false, change))?;
        Ok(weave_host::remove_endpoint(outside)?)
    }

    /// Detaches addresses from a container, and releases them.
    ///
    /// # Errors
    /// The container is not attached, or the host cannot be changed. Everything is as before then.
    pub fn detach(
        &self,
        allocator: &dyn Allocator,
        container: &str,
        ns: &NetNs,
        requests: &[AddressRequest],
    ) -> Result<Outcome, Error> {
        let addresses = look_up(allocator, container, requests)?;
        if addresses.is_empty() {
            // The container may not even have an interface.
            return Ok(Outcome::default());
        }
        let change = Change::Detach {
            namespace: Namespace::of(ns)?,
            promote_secondaries: weave_host::promote_secondaries(ns, INTERFACE).unwrap_or_default(),
        };
        self.releasing(allocator, container, change, addresses, |cidrs| {
            let _busy = self.reserve([ns_key(ns)]);
            Ok(weave_host::detach(&DetachRequest::new(ns, cidrs))?.warnings)
        })
    }

    /// Calls `work`, which stops the use of `addresses`, and releases them.
    ///
    /// # Errors
    /// `work` failed.
    pub fn releasing(
        &self,
        allocator: &dyn Allocator,
        owner: &str,
        change: Change,
        addresses: Vec<Cidr>,
        work: impl FnOnce(&[Cidr]) -> Result<Vec<String>, Error>,
    ) -> Result<Outcome, Error> {
        let operation = PendingOperation::new(owner, allocator.records(), change);
        let mut pending = PendingFile::create(&self.run_dir, &operation)?;
        pending.begin_change(&addresses)?;
        let warnings = work(&addresses)?;
        let released = addresses.iter().try_for_each(|cidr| allocator.release(owner, *cidr));
        released.inspect_err(|_| pending.keep())?;
        Ok(Outcome { addresses, warnings })
    }

    /// Gives a container an interface for a network plugin, with addresses. `routes` says which routes it gets; addresses are known by
    /// then.
    ///
    /// # Errors
    /// An address cannot be obtained, the container has another interface of that name, or the host cannot be changed. Everything is
    /// as before then.
    pub fn add_interface(
        &self,
        allocator: &dyn Allocator,
        owner: &str,
        new: &NewInterface,
        routes: impl FnOnce(&[Cidr]) -> Result<Vec<LinkRoute>, Error>,
    ) -> Result<(CreatedInterface, Outcome), Error> {
        let change = new.change()?;
        let mut created = None;
        let outcome = self.with_addresses(allocator, owner, change.clone(), &new.addresses, |cidrs| {
            let routes = routes(cidrs)?;
            let Change::AddInterface { naming, .. } = &change else { return Ok(Vec::new()) };
            let _busy = self.reserve([ns_key(&new.ns), format!("name {naming}")]);
            let (interface, warnings) = new.create(naming, cidrs, &routes)?;
            created = Some(interface);
            Ok(warnings)
        })?;
        let created = created.ok_or_else(|| Error::Died(new.ns.to_string()))?;
        Ok((created, outcome))
    }

    /// Removes an interface that [`ContainerNetwork::add_interface`] has made, if the container has it, and releases addresses.
    ///
    /// # Errors
    /// The host cannot be changed.
    pub fn remove_interface(
        &self,
        allocator: &dyn Allocator,
        owner: &str,
        ns: Option<&NetNs>,
        (interface, bridge): (&str, &str),
        addresses: Vec<Cidr>,
    ) -> Result<Outcome, Error> {
        let change = Change::RemoveInterface {
            namespace: ns.map(Namespace::of).transpose()?,
            interface: interface.to_owned(),
            bridge: bridge.to_owned(),
        };
        self.releasing(allocator, owner, change, addresses, |_| {
            let Some(ns) = ns else { return Ok(Vec::new()) };
            let _busy = self.reserve([ns_key(ns)]);
            interface::remove(ns, interface, bridge)
        })
    }

    /// Joins another bridge to ours.
    ///
    /// # Errors
    /// See [`weave_host::join_bridges`].
    pub fn join_bridges(&self, bridge: &str, other: &str) -> Result<(), Error> {
        let change = Change::JoinBridges { bridge: bridge.to_owned(), other: other.to_owned() };
        let operation = PendingOperation::new("", false, change);
        let _pending = PendingFile::create(&self.run_dir, &operation)?;
        let _busy = self.reserve([format!("bridge {other}")]);
        Ok(weave_host::join_bridges(bridge, other).map(drop)?)
    }

    /// Rewrites the hosts file and attaches the interface; both or nothing. Returns warnings.
    fn connect(&self, ns: &NetNs, change: &Change, cidrs: &[Cidr]) -> Result<Vec<String>, Error> {
        let Change::Attach { naming, bridge, multicast_route, hairpin, hosts_file, .. } = change else {
            return Ok(Vec::new());
        };
        let _busy = self.reserve([ns_key(ns), format!("name {naming}")]);
        let before = hosts_file.as_ref().map(|file| file.rewrite(cidrs)).transpose()?;
        let attached = weave_host::attach(&AttachRequest {
            bridge,
            multicast_route: *multicast_route,
            hairpin: *hairpin,
            ifname: INTERFACE,
            ..AttachRequest::new(ns, naming, cidrs)
        });
        attached.map(|attached| attached.warnings).map_err(|e| {
            if let (Some(file), Some(before)) = (hosts_file, before) {
                let _ = etc_hosts::rewrite(&file.path, &before);
            }
            e.into()
        })
    }

    /// Completes the changes of the host that interrupted operations have begun; where a container is gone, removes what is left of
    /// it. The caller releases addresses ([`PendingOperation::to_release`]) and then calls [`Recovered::finish`]. What cannot be
    /// completed is logged and stays for the next time.
    ///
    /// # Errors
    /// The run directory cannot be read.
    pub fn recover(&self) -> Result<Vec<Recovered>, Error> {
        let failed = |path: PathBuf| move |source| Error::PendingFile { step: "read", path, source };
        let mut recovered = Vec::new();
        for path in pending::pending_files(&self.run_dir).map_err(failed(self.run_dir.clone()))? {
            let Some(operation) = pending::read(&path).map_err(failed(path.clone()))? else {
                let _ = std::fs::remove_file(&path);
                continue;
            };
            match self.complete(&operation) {
                Ok(in_use) => recovered.push(Recovered { operation, in_use, path }),
                Err(e) => tracing::error!(
                    "cannot complete an interrupted operation on {}, it is tried again at the next start: {e}",
                    operation.container
                ),
            }
        }
        Ok(recovered)
    }

    /// Returns the addresses that the container uses afterwards.
    fn complete(&self, operation: &PendingOperation) -> Result<Vec<Cidr>, Error> {
        let PendingOperation { container, change, addresses, .. } = operation;
        let namespace = match change {
            Change::Attach { namespace, .. } | Change::Detach { namespace, .. } => namespace,
            Change::AddInterface { namespace, interface, naming, bridge, existed } => {
                let ns = namespace.open(container)?;
                if *existed {
                    let addresses = ns.map(|ns| weave_host::interface_addresses(&ns, interface));
                    return Ok(addresses.transpose()?.unwrap_or_default());
                }
                if !operation.host_done {
                    tracing::info!("undoing the interrupted attachment of {container}");
                    if let Some(ns) = &ns {
                        interface::remove(ns, interface, bridge)?;
                    }
                    weave_host::remove_pair(naming, ns.as_ref())?;
                }
                return Ok(Vec::new());
            }
            Change::RemoveInterface { namespace, interface, bridge } => {
                let ns = namespace.map(|namespace| namespace.open(container)).transpose()?.flatten();
                if let Some(ns) = ns.filter(|_| !operation.host_done) {
                    tracing::info!("completing the interrupted detachment of {container}");
                    interface::remove(&ns, interface, bridge)?;
                }
                return Ok(Vec::new());
            }
            Change::JoinBridges { bridge, other } => {
                tracing::info!("completing the interrupted operation that joins bridge {other}");
                weave_host::join_bridges(bridge, other)?;
                return Ok(Vec::new());
            }
            // Docker got no answer, and creates another endpoint.
            Change::CreateEndpoint { inside } => {
                weave_host::remove_unused_endpoint(inside)?;
                return Ok(Vec::new());
            }
            Change::DeleteEndpoint { outside } => {
                weave_host::remove_endpoint(outside)?;
                return Ok(Vec::new());
            }
            Change::Allocate | Change::Expose | Change::Hide => return Ok(Vec::new()),
        };
        let Some(ns) = namespace.open(container)? else {
            if let Change::Attach { naming, .. } = change
                && !operation.host_done
            {
                weave_host::remove_unfinished_pair(naming)?;
            }
            return Ok(Vec::new());
        };
        match (change, addresses.as_ref().filter(|_| !operation.host_done)) {
            (Change::Attach { .. }, Some(cidrs)) => {
                tracing::info!("completing the interrupted attachment of {container}");
                self.connect(&ns, change, cidrs)?;
            }
            (Change::Detach { promote_secondaries, .. }, Some(cidrs)) => {
                tracing::info!("completing the interrupted detachment of {container}");
                match weave_host::detach(&DetachRequest::new(&ns, cidrs)) {
                    Ok(_) | Err(HostError::LinkNotFound) => {}
                    Err(e) => return Err(e.into()),
                }
                if let Some(value) = promote_secondaries {
                    weave_host::set_promote_secondaries(&ns, INTERFACE, value)?;
                }
            }
            _ => {}
        }
        Ok(weave_host::interface_addresses(&ns, INTERFACE)?)
    }

    /// Waits until no other thread has reserved one of `keys`.
    fn reserve<const N: usize>(&self, keys: [String; N]) -> Reservation<'_, N> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while keys.iter().any(|key| busy.contains(key)) {
            busy = self.released.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        busy.extend(keys.iter().cloned());
        Reservation { network: self, keys }
    }

    /// Waits until no thread changes the host any more; `false` at the timeout.
    pub fn wait_until_idle(&self, timeout: Duration) -> bool {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.released.wait_timeout_while(busy, timeout, |busy| !busy.is_empty());
        wait.unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }
}

fn ns_key(ns: &NetNs) -> String {
    format!("namespace {}", ns.id().inode())
}

struct Reservation<'a, const N: usize> {
    network: &'a ContainerNetwork,
    keys: [String; N],
}

impl<const N: usize> Drop for Reservation<'_, N> {
    fn drop(&mut self) {
        let mut busy = self.network.busy.lock().unwrap_or_else(PoisonError::into_inner);
        for key in &self.keys {
            busy.remove(key);
        }
        self.network.released.notify_all();
    }
}
