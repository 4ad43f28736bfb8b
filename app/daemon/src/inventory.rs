//! Which addresses of the network are in use on this host already, and which containers run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use weave_host::{Error, NamespaceId, NetNs, Ports};
use weave_ipam::Container;
use weave_runtime::Docker;
use weave_types::Cidr;

use crate::watch::Place;

/// The address of the bridge is kept under this label.
const EXPOSED: &str = "weave:expose";
/// Where `ip netns add` puts names.
const NAMED: &str = "/run/netns";
/// A daemon must not wait long for Docker, which may be starting itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InUse {
    /// Under what to keep it.
    pub(crate) container: Container,
    /// Its addresses.
    pub(crate) cidrs: Vec<Cidr>,
    /// Its end releases them.
    pub(crate) is_container: bool,
}

/// A look at the host.
pub(crate) struct Inventory {
    in_use: Vec<InUse>,
    /// Namespaces with an interface on the bridge.
    attached: Vec<NamespaceId>,
    docker: RefCell<Option<Docker>>,
}

impl Inventory {
    /// Looks at the bridge and at everything that is attached to it.
    pub(crate) fn take(bridge: &str) -> Result<Inventory, Error> {
        let mut ports = Ports::scan(bridge)?;
        let mut in_use = Vec::new();
        let exposed: Vec<_> = ports.bridge()?.addresses.into_iter().filter(|c| c.addr().is_ipv4()).collect();
        if !exposed.is_empty() {
            in_use.push(InUse { container: EXPOSED.to_owned(), cidrs: exposed, is_container: false });
        }
        // A namespace by its name if it has one, else by its first process.
        let mut namespaces: BTreeMap<NamespaceId, (Container, NetNs)> = BTreeMap::new();
        for (pid, ns) in NetNs::all_of_processes()? {
            namespaces.insert(ns.id(), (format!("pid:{pid}"), ns));
        }
        let entries = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        // The first name counts, as for `weave attach`.
        for name in names.iter().rev() {
            if let Ok(ns) = NetNs::named(name) {
                namespaces.insert(ns.id(), (format!("netns:{name}"), ns));
            }
        }
        let mut attached = Vec::new();
        for (id, (container, ns)) in namespaces {
            // One that ends meanwhile is none.
            let links = ports.in_namespace(&ns).unwrap_or_default();
            if links.is_empty() {
                continue;
            }
            attached.push(id);
            let cidrs = links.into_iter().flat_map(|l| l.addresses).filter(|c| c.addr().is_ipv4()).collect();
            in_use.push(InUse { container, cidrs, is_container: true });
        }
        let docker = RefCell::new(Some(Docker::at(None).with_patience(PATIENCE)));
        Ok(Inventory { in_use, attached, docker })
    }

    /// What is in use.
    pub(crate) fn in_use(&self) -> &[InUse] {
        &self.in_use
    }

    /// Whether a container runs; yes if nobody can tell.
    pub(crate) fn runs(&self, container: &str) -> bool {
        match Place::of(container) {
            // A number may belong to another process since the last time; a container of ours is attached.
            Some(place @ Place::Pid(_)) => match place.open() {
                Ok(ns) => self.attached.contains(&ns.id()),
                Err(error) => !matches!(error, Error::NamespaceGone(_)),
            },
            Some(place) => !matches!(place.open(), Err(Error::NamespaceGone(_))),
            None => self.docker_runs(container),
        }
    }

    fn docker_runs(&self, container: &str) -> bool {
        let is_id = container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit());
        let mut docker = self.docker.borrow_mut();
        let Some(asked) = docker.as_ref().filter(|_| is_id) else { return true };
        match asked.inspect(container) {
            Ok(info) => info.is_some_and(|i| i.pid.is_some()),
            Err(e) => {
                tracing::info!("Docker does not say which containers run, all keep their addresses: {e}");
                *docker = None;
                true
            }
        }
    }
}
