//! Addresses of the network that are in use on this host, and containers that run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use weave_host::{BridgePorts, Error, NamespaceId, NetNs};
use weave_ipam::Container;
use weave_runtime::Docker;
use weave_types::Cidr;

use super::owner::{NamespaceRef, PORT, is_docker_id};

/// Name under which the addresses of the bridge are recorded.
const EXPOSED: &str = "weave:expose";
/// Directory of namespaces that were created by `ip netns add`.
const NAMED: &str = "/run/netns";
/// Docker may be starting, too, and must not delay the start of the daemon.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(2);

/// Addresses of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InUse {
    pub(crate) container: Container,
    pub(crate) namespace: Option<NamespaceId>,
    pub(crate) cidrs: Vec<Cidr>,
    /// Its end releases the addresses.
    pub(crate) is_container: bool,
}

impl InUse {
    /// A container without addresses.
    pub(crate) fn new(container: impl Into<Container>) -> InUse {
        InUse { container: container.into(), namespace: None, cidrs: Vec::new(), is_container: true }
    }
}

pub(crate) struct Inventory {
    in_use: Vec<InUse>,
    /// Namespaces with an interface on the bridge.
    attached: Vec<NamespaceId>,
    docker: RefCell<Option<Docker>>,
}

impl Inventory {
    /// Scans the bridge and everything that is attached to it.
    pub(crate) fn take(bridge: &str, docker: Option<Docker>) -> Result<Inventory, Error> {
        let mut ports = BridgePorts::scan(bridge)?;
        let mut in_use = Vec::new();
        let exposed: Vec<_> = ports.bridge()?.addresses.into_iter().filter(|c| c.addr().is_ipv4()).collect();
        if !exposed.is_empty() {
            in_use.push(InUse { cidrs: exposed, is_container: false, ..InUse::new(EXPOSED) });
        }
        // A namespace without a name is recorded by its first process.
        let mut namespaces: BTreeMap<NamespaceId, (Container, NetNs)> = BTreeMap::new();
        for (pid, ns) in NetNs::all_of_processes()? {
            namespaces.insert(ns.id(), (format!("pid:{pid}"), ns));
        }
        let entries = std::fs::read_dir(NAMED).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
        names.sort();
        // Of several names of one namespace the first is used, as by `weave attach`.
        for name in names.iter().rev() {
            if let Ok(ns) = NetNs::named(name) {
                namespaces.insert(ns.id(), (format!("netns:{name}"), ns));
            }
        }
        let mut attached = Vec::new();
        for (id, (container, ns)) in namespaces {
            // An error means that the container has ended meanwhile.
            let links = ports.in_namespace(&ns).unwrap_or_default();
            if links.is_empty() {
                continue;
            }
            attached.push(id);
            let cidrs = links.into_iter().flat_map(|l| l.addresses).filter(|c| c.addr().is_ipv4()).collect();
            in_use.push(InUse { namespace: Some(id), cidrs, ..InUse::new(container) });
        }
        // Namespaces that nothing leads to, but an open file or a mount elsewhere keeps.
        for (port, cidrs) in ports.addresses()? {
            let known = |cidr: &Cidr| in_use.iter().any(|found| found.cidrs.contains(cidr));
            let hidden: Vec<Cidr> = cidrs.into_iter().filter(|cidr| !known(cidr)).collect();
            if !hidden.is_empty() {
                in_use.push(InUse { cidrs: hidden, ..InUse::new(format!("{PORT}{port}")) });
            }
        }
        let docker = RefCell::new(docker.map(|docker| docker.with_timeout(DOCKER_TIMEOUT)));
        Ok(Inventory { in_use, attached, docker })
    }

    pub(crate) fn in_use(&self) -> &[InUse] {
        &self.in_use
    }

    #[cfg(test)]
    pub(crate) fn of(in_use: Vec<InUse>) -> Inventory {
        Inventory { in_use, attached: Vec::new(), docker: RefCell::new(None) }
    }

    /// Which of these addresses are in use, by the names of the containers that use them. The one that `owner` leads to is called so.
    pub(crate) fn users(&self, owner: &str, cidrs: &[Cidr]) -> BTreeMap<Container, Vec<Cidr>> {
        let namespace = NamespaceRef::of(owner).and_then(|r| r.open().ok()).map(|ns| ns.id());
        let mut users: BTreeMap<Container, Vec<Cidr>> = BTreeMap::new();
        for found in &self.in_use {
            let shared =
                cidrs.iter().filter(|cidr| found.cidrs.iter().any(|seen| seen.addr() == cidr.addr()));
            let shared: Vec<Cidr> = shared.copied().collect();
            if !shared.is_empty() {
                let is_owner = namespace.is_some() && found.namespace == namespace;
                let name = if is_owner { owner } else { &found.container };
                users.entry(name.to_owned()).or_default().extend(shared);
            }
        }
        users
    }

    /// Whether a container with these addresses may be running. If one of the addresses is in use, the container counts as running
    /// although Docker does not know it, because it may belong to another Docker daemon.
    pub(crate) fn runs(&self, container: &str, cidrs: &[Cidr]) -> bool {
        self.uses(cidrs) || self.exists(container)
    }

    /// Whether a container is there to which names of these addresses may lead. Unlike [`Inventory::runs`] it is not there if only
    /// something else uses the addresses, except while Docker does not answer.
    pub(crate) fn has_container(&self, container: &str, cidrs: &[Cidr]) -> bool {
        match NamespaceRef::of(container) {
            Some(NamespaceRef::Port) => self.uses(cidrs),
            Some(reference) => reference.open().is_ok_and(|ns| self.attached.contains(&ns.id())),
            None => self.docker_runs(container) && (self.docker.borrow().is_some() || self.uses(cidrs)),
        }
    }

    /// Whether one of these addresses is in use.
    pub(crate) fn uses(&self, cidrs: &[Cidr]) -> bool {
        let mut seen = self.in_use.iter().flat_map(|found| &found.cidrs);
        seen.any(|seen| cidrs.iter().any(|cidr| cidr.addr() == seen.addr()))
    }

    fn exists(&self, container: &str) -> bool {
        match NamespaceRef::of(container) {
            // The pid may belong to another process by now. A process of the container is attached to the bridge.
            Some(reference @ NamespaceRef::Pid(_)) => match reference.open() {
                Ok(ns) => self.attached.contains(&ns.id()),
                Err(error) => !matches!(error, Error::NamespaceGone(_)),
            },
            Some(reference) => !matches!(reference.open(), Err(Error::NamespaceGone(_))),
            None => self.docker_runs(container),
        }
    }

    /// The containers of Docker that run, by their network namespaces. Of several in one namespace it is the one that brought it.
    pub(crate) fn docker_containers(&self) -> BTreeMap<NamespaceId, Container> {
        let mut docker = self.docker.borrow_mut();
        let Some(asked) = docker.as_ref() else { return BTreeMap::new() };
        let running = asked.running().inspect_err(|e| {
            tracing::info!("cannot ask Docker which containers use addresses: {e}");
        });
        let Ok(running) = running else {
            *docker = None;
            return BTreeMap::new();
        };
        let infos = running.iter().filter_map(|id| asked.inspect(id).ok().flatten());
        let owners = infos.filter(|info| !info.network_mode.starts_with("container:"));
        owners.filter_map(|info| Some((NetNs::of_process(info.pid?).ok()?.id(), info.id))).collect()
    }

    fn docker_runs(&self, container: &str) -> bool {
        let mut docker = self.docker.borrow_mut();
        let Some(asked) = docker.as_ref().filter(|_| is_docker_id(container)) else { return true };
        match asked.inspect(container) {
            Ok(info) => info.is_some_and(|info| info.is_running() || info.is_restarting()),
            Err(e) => {
                tracing::info!(
                    "cannot ask Docker which containers run, all of them keep their addresses: {e}"
                );
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

    /// A Docker daemon with these answers to `GET`, by path.
    fn docker(path: &std::path::Path, answers: BTreeMap<String, String>) -> Docker {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]);
                let answer = request.split(' ').nth(1).and_then(|path| answers.get(path));
                let (status, body) = match answer {
                    Some(body) => ("200 OK", body.as_str()),
                    None => ("404 Not Found", r#"{"message":"No such container"}"#),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}",
                    body.len()
                );
                let _ = write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}");
            }
        });
        Docker::at(Some(&format!("unix://{}", path.display())))
    }

    #[test]
    fn addresses_in_use_are_not_released() {
        let cidr = |text: &str| text.parse::<Cidr>().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let docker = docker(&dir.path().join("docker.sock"), BTreeMap::new());
        let inventory_with = |docker: Option<Docker>| {
            let cidrs = vec![cidr("10.2.1.1/24")];
            let found = InUse { cidrs, ..InUse::new("pid:7") };
            Inventory { in_use: vec![found], attached: Vec::new(), docker: RefCell::new(docker) }
        };
        let (used, free) = ([cidr("10.2.1.2/24"), cidr("10.2.1.1/32")], [cidr("10.2.1.2/24")]);
        let (unknown_to_docker, missing_namespace) = ("a".repeat(64), "netns:no-such");
        let inventory = inventory_with(Some(docker));
        for container in [unknown_to_docker.as_str(), missing_namespace] {
            assert!(inventory.runs(container, &used), "{container} may belong to another Docker daemon");
            assert!(!inventory.runs(container, &free), "{container}");
        }
        let inventory = inventory_with(None);
        assert!(inventory.runs(&unknown_to_docker, &free), "without Docker it is not known");
        assert!(!inventory.runs(missing_namespace, &free));
    }

    #[test]
    fn namespaces_of_dockers_containers() {
        let dir = tempfile::tempdir().unwrap();
        let own = NetNs::current().unwrap().id();
        let pid = std::process::id();
        let described = [
            ("shares", pid, "container:brings"),
            ("brings", pid, "bridge"),
            ("shares2", pid, "container:brings"),
            ("ended", 0, "bridge"),
            ("gone", u32::MAX >> 1, "bridge"),
        ];
        let mut answers: BTreeMap<String, String> = described
            .iter()
            .map(|(id, pid, mode)| {
                let body = serde_json::json!({
                    "Id": id, "State": { "Running": *pid != 0, "Pid": pid }, "HostConfig": { "NetworkMode": mode },
                });
                (format!("/containers/{id}/json"), body.to_string())
            })
            .collect();
        // The last one has been removed meanwhile.
        let rows: Vec<_> = described
            .iter()
            .map(|(id, ..)| *id)
            .chain(["removed"])
            .map(|id| serde_json::json!({ "Id": id }))
            .collect();
        answers.insert("/containers/json".to_owned(), serde_json::Value::from(rows).to_string());
        let inventory_with =
            |docker: Docker| Inventory { docker: RefCell::new(Some(docker)), ..Inventory::of(Vec::new()) };
        let inventory = inventory_with(docker(&dir.path().join("docker.sock"), answers));
        assert_eq!(inventory.docker_containers(), BTreeMap::from([(own, "brings".to_owned())]));

        let inventory = inventory_with(Docker::at(Some("unix:///no/such.sock")));
        assert_eq!(inventory.docker_containers(), BTreeMap::new());
        assert!(inventory.docker.borrow().is_none(), "Docker is not asked again");
        assert_eq!(Inventory::of(Vec::new()).docker_containers(), BTreeMap::new());
    }
}
