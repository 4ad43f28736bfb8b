//! The container that a command names.

use weave_host::NetNs;
use weave_runtime::{Docker, Error, Kind, Reference, Target};

use crate::Failure;
use crate::env::Env;

/// The id under which the addresses of a container are kept. A namespace may be named in several ways, and is one container all the
/// same: its id is its name if it has one, else its first process. The daemon names what it finds in the same way.
pub(crate) fn id_of(target: &Target) -> String {
    if matches!(target.kind, Kind::Docker(_)) {
        return target.id.clone();
    }
    id_of_namespace(&target.ns).unwrap_or_else(|| target.id.clone())
}

/// The same for a namespace; `None` if nothing leads to it.
pub(crate) fn id_of_namespace(ns: &NetNs) -> Option<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut named: Vec<String> = names.filter_map(|e| e.file_name().into_string().ok()).collect();
    named.sort();
    if let Some(name) = named.iter().find(|n| NetNs::named(n).is_ok_and(|named| named.id() == ns.id())) {
        return Some(format!("netns:{name}"));
    }
    let processes = NetNs::all_of_processes().unwrap_or_default();
    processes.iter().find(|(_, other)| other.id() == ns.id()).map(|(pid, _)| format!("pid:{pid}"))
}

pub(crate) fn find(container: &str, env: &dyn Env) -> Result<Target, Failure> {
    let reference: Reference = container.parse()?;
    let given = env.var("DOCKER_HOST").filter(|host| !host.is_empty());
    let mut engine = Docker::at(given.as_deref());
    let mut found = weave_runtime::resolve(&reference, &engine);
    // A container that Docker does not have may be one of Podman.
    let unknown =
        |found: &Result<Target, Error>| matches!(found, Err(Error::Unknown(_) | Error::Http { .. }));
    if given.is_none()
        && unknown(&found)
        && let Some(podman) = Docker::podman()
    {
        let there = weave_runtime::resolve(&reference, &podman);
        if !unknown(&there) {
            (found, engine) = (there, podman);
        }
    }
    let mut target = found.map_err(explain)?;
    if let Kind::Docker(info) = &target.kind
        && engine.is_podman()
    {
        target.kind = Kind::Podman(info.clone());
    }
    Ok(target)
}

/// The failure of a command that any container can be named to.
pub(crate) fn explain(error: Error) -> Failure {
    match error {
        Error::Http { .. } => Failure::new(
            1,
            format_args!("{error}; without docker, name a container by netns:<name> or pid:<number>"),
        ),
        error => error.into(),
    }
}
