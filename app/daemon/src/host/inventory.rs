//! Which addresses of the network are in use on this host already, and which containers run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use weave_host::{BridgePorts, Error, NamespaceId, NetNs};
use weave_ipam::Container;
use weave_runtime::Docker;
use weave_types::Cidr;

use crate::host::container_monitor::NamespaceRef;

/// The address of the bridge is kept under this label.
const EXPOSED: &str = "weave:expose";
/// Where `ip netns add` puts names.
const NAMED: &str = "/run/netns";
/// A daemon must not wait long for Docker, which may be starting itself.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(2);

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
    /// Looks at the bridge and at everything that is attached to it. `docker` knows the containers, if there is one.
    pub(crate) fn take(bridge: &str, docker: Option<Docker>) -> Result<Inventory, Error> {
        let mut ports = BridgePorts::scan(bridge)?;
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
        let docker = RefCell::new(docker.map(|docker| docker.with_timeout(DOCKER_TIMEOUT)));
        Ok(Inventory { in_use, attached, docker })
    }

    /// What is in use.
    pub(crate) fn in_use(&self) -> &[InUse] {
        &self.in_use
    }

    /// Whether a container with these addresses runs: yes if nobody can tell, and if one of them is in use, whatever is said of
    /// the container; it may be another Docker's.
    pub(crate) fn runs(&self, container: &str, cidrs: &[Cidr]) -> bool {
        self.uses(cidrs) || self.is_there(container)
    }

    fn uses(&self, cidrs: &[Cidr]) -> bool {
        let mut seen = self.in_use.iter().flat_map(|found| &found.cidrs);
        seen.any(|seen| cidrs.iter().any(|cidr| cidr.addr() == seen.addr()))
    }

    fn is_there(&self, container: &str) -> bool {
        match NamespaceRef::of(container) {
            // A number may belong to another process since the last time; a container of ours is attached.
            Some(place @ NamespaceRef::Pid(_)) => match place.open() {
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A Docker that knows no container.
    fn stranger(path: &std::path::Path) -> Docker {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 4096]);
                let body = r#"{"message":"No such container"}"#;
                let head = format!(
                    "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: {}",
                    body.len()
                );
                let _ = write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}");
            }
        });
        Docker::at(Some(&format!("unix://{}", path.display())))
    }

    #[test]
    fn what_is_in_use_is_not_released() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let docker = stranger(&dir.path().join("docker.sock"));
        let look = |docker: Option<Docker>| {
            let cidrs = vec![cidr("10.2.1.1/24")];
            let found = InUse { container: "pid:7".into(), cidrs, is_container: true };
            Inventory { in_use: vec![found], attached: Vec::new(), docker: RefCell::new(docker) }
        };
        let (used, free) = ([cidr("10.2.1.2/24"), cidr("10.2.1.1/32")], [cidr("10.2.1.2/24")]);
        let (known_to_nobody, unnamed) = ("a".repeat(64), "netns:no-such");
        let inventory = look(Some(docker));
        for container in [known_to_nobody.as_str(), unnamed] {
            assert!(inventory.runs(container, &used), "{container}: another Docker's, perhaps");
            assert!(!inventory.runs(container, &free), "{container}");
        }
        let inventory = look(None);
        assert!(inventory.runs(&known_to_nobody, &free), "nobody can tell");
        assert!(!inventory.runs(unnamed, &free));
    }
}
