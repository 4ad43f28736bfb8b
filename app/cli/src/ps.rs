//! Who has which addresses: `weave ps`, and `container-addrs` and `process-addrs` of the helper (docs/spec/cli.md 2.2, 13).

use std::collections::BTreeSet;
use std::path::Path;

use weave_host::{BridgePorts, ContainerInterface, NamespaceId, NetNs};
use weave_runtime::{Docker, Error as RuntimeError, Reference};

use crate::args::Parsed;
use crate::options::{self, Env};
use crate::{Failure, notice, print};

/// Name of the bridge itself in lists, and of its addresses in the allocator.
pub(crate) const EXPOSE: &str = "weave:expose";
/// So much of a Docker id is shown.
const SHOWN: usize = 12;
/// Where `ip netns` keeps namespaces.
const NAMED: &str = "/run/netns";

/// A container that may have an interface on the network.
pub(crate) struct Found {
    /// Docker's full id, `netns:<name>` or `pid:<number>`.
    pub(crate) id: String,
    pub(crate) ns: NetNs,
}

pub(crate) fn ps(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let mut ports = scan(&options::bridge(parsed, env))?;
    let docker = docker(env);
    let mut text = String::new();
    if parsed.rest.is_empty() {
        text.push_str(&line(EXPOSE, &ports.bridge()?));
        for found in everybody(&docker) {
            text.push_str(&lines(&mut ports, &shown(&found.id), &found.ns)?);
        }
    }
    for name in &parsed.rest {
        if name == EXPOSE {
            text.push_str(&line(EXPOSE, &ports.bridge()?));
        } else if let Some(found) = known(name, &docker)? {
            text.push_str(&lines(&mut ports, &shown(name), &found.ns)?);
        }
    }
    print(&text)
}

/// The bridge's ports; 2.8.1's words if there is no bridge.
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

/// The container of that name; none if there is none that runs in a network of its own.
pub(crate) fn known(name: &str, docker: &Docker) -> Result<Option<Found>, Failure> {
    let reference: Reference = name.parse()?;
    match weave_runtime::resolve(&reference, docker) {
        Ok(target) => Ok(Some(Found { id: target.id, ns: target.ns })),
        // Not being able to ask is not the same as not being there.
        Err(e @ (RuntimeError::Http { .. } | RuntimeError::Docker(_))) => Err(e.into()),
        Err(RuntimeError::Host(e @ weave_host::Error::Permission { .. })) => Err(e.into()),
        Err(_) => Ok(None),
    }
}

/// Docker's containers, then named namespaces, then those of other processes; each namespace once, the host's not.
pub(crate) fn everybody(docker: &Docker) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    seen.extend(NetNs::current().map(|ns| ns.id()));
    let mut all = Vec::new();
    let mut add = |id: String, ns: NetNs, seen: &mut BTreeSet<NamespaceId>| {
        if seen.insert(ns.id()) {
            all.push(Found { id, ns });
        }
    };
    // A host without Docker has the other two kinds.
    for id in docker.running().unwrap_or_default() {
        if let Ok(Some(found)) = known(&id, docker) {
            add(id, found.ns, &mut seen);
        }
    }
    for name in names_in(Path::new(NAMED)) {
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

/// Docker's ids are cut, so that a line has room; a reference of ours would be another one.
fn shown(id: &str) -> String {
    if id.starts_with("netns:") || id.starts_with("pid:") {
        return id.to_owned();
    }
    id.chars().take(SHOWN).collect()
}

fn lines(ports: &mut BridgePorts, id: &str, ns: &NetNs) -> Result<String, Failure> {
    let links = match ports.in_namespace(ns) {
        Ok(links) => links,
        Err(e @ weave_host::Error::Permission { .. }) => return Err(e.into()),
        // It ended meanwhile.
        Err(_) => return Ok(String::new()),
    };
    Ok(links.iter().map(|link| line(id, link)).collect())
}

fn line(id: &str, link: &ContainerInterface) -> String {
    let addresses: String = link.addresses.iter().map(|a| format!(" {a}")).collect();
    format!("{id} {}{addresses}\n", link.mac)
}

/// `container-addrs <bridge> [<id> | weave:expose | weave:allids ...]`: also the interface's name.
pub(crate) fn container_addrs(bridge: &str, names: &[String], env: &dyn Env) -> Result<(), Failure> {
    let mut ports = scan(bridge)?;
    let docker = docker(env);
    let mut text = String::new();
    let detailed = |id: &str, link: &ContainerInterface| {
        let line = line(&link.name, link);
        let id: String = id.chars().take(SHOWN).collect();
        format!("{id:>SHOWN$} {line}")
    };
    for name in names {
        match name.as_str() {
            EXPOSE => text.push_str(&detailed(EXPOSE, &ports.bridge()?)),
            "weave:allids" => {
                for found in everybody(&docker) {
                    let links = ports.in_namespace(&found.ns).unwrap_or_default();
                    text.extend(links.iter().map(|l| detailed(&found.id, l)));
                }
            }
            _ => match known(name, &docker)? {
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

/// `process-addrs <bridge>`: of all namespaces but the host's.
pub(crate) fn process_addrs(bridge: &str, env: &dyn Env) -> Result<(), Failure> {
    let mut ports = scan(bridge)?;
    let mut text = String::new();
    for found in everybody(&docker(env)) {
        for link in ports.in_namespace(&found.ns).unwrap_or_default() {
            text.extend(link.addresses.iter().map(|a| format!("{a}\n")));
        }
    }
    print(&text)
}
