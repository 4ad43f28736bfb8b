use std::fmt;
use std::path::Path;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use weave_host::{Error as HostError, NetNs};

use crate::{ContainerInfo, Docker, Error};

/// How much of a naming id an interface name has room for.
const NAMING_LENGTH: usize = 7;
/// Where `ip netns` keeps its names, by both of the usual paths.
const NAMED: [&str; 2] = ["/var/run/netns/", "/run/netns/"];

/// How a person names a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// `netns:<name or path>`
    NetNs(String),
    /// `pid:<number>`
    Pid(u32),
    /// The name or id of a Docker container.
    Docker(String),
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference, Error> {
        if let Some(name) = text.strip_prefix("netns:") {
            if name.is_empty() {
                return Err(Error::Reference(
                    "netns: wants the name of a network namespace or a path".into(),
                ));
            }
            // Both spellings of a name are one namespace, and so one id.
            let plain = NAMED
                .iter()
                .find_map(|dir| name.strip_prefix(dir))
                .filter(|n| !n.is_empty() && !n.contains('/'));
            return Ok(Reference::NetNs(plain.unwrap_or(name).to_owned()));
        }
        if let Some(pid) = text.strip_prefix("pid:") {
            let number = pid.parse().ok().filter(|p| *p != 0 && pid.bytes().all(|b| b.is_ascii_digit()));
            return number
                .map(Reference::Pid)
                .ok_or_else(|| Error::Reference(format!("pid: wants the number of a process, not {pid:?}")));
        }
        if text.is_empty() {
            return Err(Error::Reference("the name of a container is empty".into()));
        }
        Ok(Reference::Docker(text.to_owned()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::NetNs(name) => write!(f, "netns:{name}"),
            Reference::Pid(pid) => write!(f, "pid:{pid}"),
            Reference::Docker(name) => f.write_str(name),
        }
    }
}

/// What a target is, beyond its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bare namespace.
    NetNs,
    /// A process.
    Pid,
    /// A Docker container.
    Docker(Box<ContainerInfo>),
    /// A container of Podman. [`resolve`] does not tell it from one of Docker, the caller may ([`Docker::is_podman`]).
    Podman(Box<ContainerInfo>),
}

/// A container that was found, and can be attached.
#[derive(Debug)]
pub struct Target {
    /// Under which its addresses and names are kept: Docker's full id, or the reference as written.
    pub id: String,
    /// A process in it, if one is known.
    pub pid: Option<u32>,
    /// Its namespace, held open: it does not vanish, even if the container dies.
    pub ns: NetNs,
    /// What its host-side interface is named after: at most 7 characters, different for different containers.
    pub naming: String,
    /// What it is.
    pub kind: Kind,
}

/// Finds the container. The host's own namespace (that of the calling thread) is refused. `docker` is asked only if
/// `reference` is Docker's.
pub fn resolve(reference: &Reference, docker: &Docker) -> Result<Target, Error> {
    let host = NetNs::current()?.id();
    let target = match reference {
        Reference::NetNs(name) => Target {
            id: reference.to_string(),
            pid: None,
            ns: NetNs::named(name)?,
            naming: naming(name),
            kind: Kind::NetNs,
        },
        Reference::Pid(pid) => Target {
            id: reference.to_string(),
            pid: Some(*pid),
            ns: NetNs::of_process(*pid)?,
            naming: pid.to_string(),
            kind: Kind::Pid,
        },
        Reference::Docker(name) => return by_docker(name, docker, host),
    };
    if target.ns.id() == host {
        return Err(Error::HostNamespace(target.ns.to_string()));
    }
    Ok(target)
}

fn by_docker(name: &str, docker: &Docker, host: weave_host::NamespaceId) -> Result<Target, Error> {
    let info = docker.inspect(name)?.ok_or_else(|| Error::Unknown(name.to_owned()))?;
    let pid = info.pid.ok_or_else(|| Error::NotRunning(name.to_owned()))?;
    if info.network_mode == "host" {
        return Err(Error::HostNetwork);
    }
    let ns = NetNs::of_process(pid).map_err(|e| match e {
        HostError::NamespaceGone(_) => Error::Died(name.to_owned()),
        other => other.into(),
    })?;
    // Also when it shares the network of a container that shares the host's.
    if ns.id() == host {
        return Err(Error::HostNetwork);
    }
    // The number may have gone to another process between the two questions.
    if docker.inspect(&info.id)?.and_then(|i| i.pid) != Some(pid) {
        return Err(Error::Died(name.to_owned()));
    }
    Ok(Target {
        id: info.id.clone(),
        pid: Some(pid),
        ns,
        naming: pid.to_string(),
        kind: Kind::Docker(Box::new(info)),
    })
}

/// The name itself if it fits and cannot be taken for a process number, else the beginning of its hash.
fn naming(name: &str) -> String {
    let last = Path::new(name).file_name().and_then(|n| n.to_str()).unwrap_or(name);
    let plain = last == name
        && name.len() <= NAMING_LENGTH
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic());
    if plain {
        return name.to_owned();
    }
    let hash = Sha256::digest(name.as_bytes());
    // A capital first: no plain name is written like that by chance, and no process number at all.
    format!("N{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let read = |text: &str| text.parse::<Reference>().unwrap();
        assert_eq!(read("netns:blue"), Reference::NetNs("blue".into()));
        assert_eq!(read("netns:/var/run/netns/blue"), Reference::NetNs("blue".into()));
        assert_eq!(read("netns:/run/netns/blue").to_string(), "netns:blue");
        assert_eq!(read("netns:/proc/7/ns/net"), Reference::NetNs("/proc/7/ns/net".into()));
        assert_eq!(read("netns:/run/netns/a/b"), Reference::NetNs("/run/netns/a/b".into()));
        assert_eq!(read("pid:4194304"), Reference::Pid(4_194_304));
        assert_eq!(read("web"), Reference::Docker("web".into()));
        assert_eq!(read("pid"), Reference::Docker("pid".into()));
        for bad in ["", "netns:", "pid:", "pid:0", "pid:+1", "pid:-1", "pid:1x", "pid:99999999999"] {
            assert!(matches!(bad.parse::<Reference>(), Err(Error::Reference(_))), "{bad}");
        }
    }

    #[test]
    fn naming_ids_fit_and_differ() {
        assert_eq!(naming("blue"), "blue");
        assert_eq!(naming("seven-7"), "seven-7");
        let names =
            ["eight-88", "1234567", "12", "-x", "a.b", "/proc/7/ns/net", "/proc/8/ns/net", "/x/blue", "blue"];
        let all: std::collections::BTreeSet<_> = names.iter().map(|n| naming(n)).collect();
        assert_eq!(all.len(), names.len());
        for n in &all {
            assert!(n.len() <= NAMING_LENGTH && !n.bytes().all(|b| b.is_ascii_digit()), "{n}");
        }
    }

    #[test]
    fn texts_of_the_original() {
        assert_eq!(Error::NotRunning("web".into()).to_string(), "container web not running");
        assert_eq!(Error::Died("web".into()).to_string(), "Container web died");
        assert_eq!(
            Error::HostNetwork.to_string(),
            "Container is running in the host network namespace, and therefore cannot be\nconnected to weave - perhaps \
             the container was started with --net=host"
        );
    }
}
