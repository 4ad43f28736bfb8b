//! Which containers have which addresses: `weave ps`, and `container-addrs` and `process-addrs` of the helper (docs/spec/cli.md 2.2, 13).

use std::collections::BTreeSet;
use std::path::Path;

use weave_host::{BridgePorts, ContainerInterface, NamespaceId, NetNs};
use weave_runtime::{Docker, Error as RuntimeError, Reference};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::{Failure, notice, print, target};

/// The bridge's id in lists, and in the allocator for its addresses.
pub(crate) const EXPOSE: &str = "weave:expose";
/// Characters of a Docker id in lists.
pub(crate) const ID_LENGTH: usize = 12;
/// Directory of `ip netns`.
const NAMED_NAMESPACES: &str = "/run/netns";

/// A container that may have an interface on the network.
pub(crate) struct Found {
    /// Docker's full id, `netns:<name>` or `pid:<number>`.
    pub(crate) id: String,
    pub(crate) ns: NetNs,
}

pub(crate) fn ps(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let docker = docker(env);
    if parsed.rest.is_empty() {
        let interfaces = interfaces(&options::bridge(parsed, env), &docker)?;
        return print(&listing(&interfaces));
    }
    let mut ports = scan(&options::bridge(parsed, env))?;
    let mut text = String::new();
    for name in &parsed.rest {
        if name == EXPOSE {
            text.push_str(&line(EXPOSE, &ports.bridge()?));
        } else if let Some(found) = find(name, &docker)? {
            let id = short_id(name);
            text.extend(in_namespace(&mut ports, &found.ns)?.iter().map(|interface| line(&id, interface)));
        }
    }
    print(&text)
}

/// The bridge and the interfaces of all containers, with their ids in lists.
pub(crate) fn interfaces(
    bridge: &str,
    docker: &Docker,
) -> Result<Vec<(String, ContainerInterface)>, Failure> {
    let mut ports = scan(bridge)?;
    let mut all = vec![(EXPOSE.to_owned(), ports.bridge()?)];
    for found in find_all(docker) {
        let id = short_id(&found.id);
        all.extend(in_namespace(&mut ports, &found.ns)?.into_iter().map(|interface| (id.clone(), interface)));
    }
    Ok(all)
}

/// A line for each interface.
pub(crate) fn listing(interfaces: &[(String, ContainerInterface)]) -> String {
    interfaces.iter().map(|(id, interface)| line(id, interface)).collect()
}

/// The bridge's ports; 2.8.1's error if there is no bridge.
pub(crate) fn scan(bridge: &str) -> Result<BridgePorts, Failure> {
    if weave_host::link_mac(bridge)?.is_none() {
        return Err(Failure::new(
            1,
            format_args!("Link not found: bridge {bridge:?}; did you launch weave?"),
        ));
    }
    Ok(BridgePorts::scan(bridge)?)
}

pub(crate) fn docker(env: &dyn Env) -> Docker {
    Docker::at(env.var("DOCKER_HOST").as_deref())
}

/// The container of that name; `None` if it does not exist, does not run, or is in the host's network.
pub(crate) fn find(name: &str, docker: &Docker) -> Result<Option<Found>, Failure> {
    let reference: Reference = name.parse()?;
    match weave_runtime::resolve(&reference, docker) {
        Ok(target) => Ok(Some(Found { id: target.id, ns: target.ns })),
        // Docker did not answer, so the container may exist.
        Err(e @ (RuntimeError::Http { .. } | RuntimeError::Docker(_))) => Err(target::explain(e)),
        Err(RuntimeError::Host(e @ weave_host::Error::Permission { .. })) => Err(e.into()),
        Err(_) => Ok(None),
    }
}

/// Docker's containers, then named namespaces, then those of other processes; each namespace once, without the host's.
pub(crate) fn find_all(docker: &Docker) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    seen.extend(NetNs::current().map(|ns| ns.id()));
    let mut all = Vec::new();
    let mut add = |id: String, ns: NetNs, seen: &mut BTreeSet<NamespaceId>| {
        if seen.insert(ns.id()) {
            all.push(Found { id, ns });
        }
    };
    // Without Docker there are the other two kinds.
    for id in docker.running().unwrap_or_default() {
        if let Ok(Some(found)) = find(&id, docker) {
            add(id, found.ns, &mut seen);
        }
    }
    for name in names_in(Path::new(NAMED_NAMESPACES)) {
        if let Ok(ns) = NetNs::named(&name) {
            add(format!("netns:{name}"), ns, &mut seen);
        }
    }
    for (pid, ns) in NetNs::all_of_processes().unwrap_or_default() {
        add(format!("pid:{pid}"), ns, &mut seen);
    }
    all
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Docker's ids are shortened; a shortened reference to a namespace would mean another one.
fn short_id(id: &str) -> String {
    if id.starts_with("netns:") || id.starts_with("pid:") {
        return id.to_owned();
    }
    id.chars().take(ID_LENGTH).collect()
}

fn in_namespace(ports: &mut BridgePorts, ns: &NetNs) -> Result<Vec<ContainerInterface>, Failure> {
    match ports.in_namespace(ns) {
        Err(e @ weave_host::Error::Permission { .. }) => Err(e.into()),
        // The container has ended if there is another error.
        interfaces => Ok(interfaces.unwrap_or_default()),
    }
}

fn line(id: &str, link: &ContainerInterface) -> String {
    let addresses: String = link.addresses.iter().map(|a| format!(" {a}")).collect();
    format!("{id} {}{addresses}\n", link.mac)
}

/// `container-addrs <bridge> [<id> | weave:expose | weave:allids ...]`: lines with the interface's name.
pub(crate) fn container_addrs(bridge: &str, names: &[String], env: &dyn Env) -> Result<(), Failure> {
    let mut ports = scan(bridge)?;
    let docker = docker(env);
    let mut text = String::new();
    let detailed = |id: &str, link: &ContainerInterface| {
        let line = line(&link.name, link);
        let id: String = id.chars().take(ID_LENGTH).collect();
        format!("{id:>ID_LENGTH$} {line}")
    };
    for name in names {
        match name.as_str() {
            EXPOSE => text.push_str(&detailed(EXPOSE, &ports.bridge()?)),
            "weave:allids" => {
                for found in find_all(&docker) {
                    let links = ports.in_namespace(&found.ns).unwrap_or_default();
                    text.extend(links.iter().map(|l| detailed(&found.id, l)));
                }
            }
            _ => match find(name, &docker)? {
                Some(found) => {
                    let links = ports.in_namespace(&found.ns).unwrap_or_default();
                    text.extend(links.iter().map(|l| detailed(name, l)));
                }
                None => notice(format_args!("No such container: {name}")),
            },
        }
    }
    print(&text)
}

/// `process-addrs <bridge>`: the addresses in all namespaces except the host's.
pub(crate) fn process_addrs(bridge: &str, env: &dyn Env) -> Result<(), Failure> {
    let mut ports = scan(bridge)?;
    let mut text = String::new();
    for found in find_all(&docker(env)) {
        for link in ports.in_namespace(&found.ns).unwrap_or_default() {
            text.extend(link.addresses.iter().map(|a| format!("{a}\n")));
        }
    }
    print(&text)
}
