//! The original on this host: whether a daemon of it runs, as what, and what of it Docker keeps (docs/spec/cli.md 1).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weave_host::NetNs;

use crate::docker::Docker;
use crate::{Error, docker};

/// Name of its daemon's process.
const DAEMON: &str = "weaver";
/// Where its image has the daemon.
const DAEMON_PATH: &str = "/home/weave/weaver";
/// Length of a container's full id.
const ID_LENGTH: usize = 64;

/// A running daemon of the original.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalProcess {
    /// Its process id.
    pub pid: u32,
    /// The container it is in.
    pub container: Option<String>,
    /// It belongs to a pod, and Kubernetes would start it again.
    pub kubernetes: bool,
}

/// A container of the original as Docker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginalContainer {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Whether it runs.
    pub running: bool,
    /// `no`, `always`, `unless-stopped`, `on-failure`.
    pub restart_policy: String,
}

/// The daemons of the original that run in the network namespace of the caller, in order of their process ids. What this process
/// may not look at is left out.
///
/// # Errors
/// The namespace, or the list of processes, cannot be read.
pub fn original_processes() -> Result<Vec<OriginalProcess>, Error> {
    let here = NetNs::current()?.id();
    let unreadable = |e| Error::Processes(format!("listing processes: {e}"));
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").map_err(unreadable)?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("comm").trim_end() != DAEMON || !NetNs::of_process(pid).is_ok_and(|ns| ns.id() == here) {
            continue;
        }
        // A zombie has no program any more.
        if std::fs::read(entry.path().join("cmdline")).unwrap_or_default().is_empty() || !seen.insert(pid) {
            continue;
        }
        let groups = read("cgroup");
        let container = container_id(&groups).or_else(|| container_id(&read("mountinfo")));
        found.push(OriginalProcess { pid, container, kubernetes: groups.contains("kubepods") });
    }
    found.sort_by_key(|p| p.pid);
    Ok(found)
}

/// The first id of a container in a process's list of control groups or mounts.
fn container_id(text: &str) -> Option<String> {
    let is_id = |word: &&str| word.len() == ID_LENGTH && word.bytes().all(|b| b.is_ascii_hexdigit());
    // `/docker/<id>`, `docker-<id>.scope`, `.../containers/<id>/hostname`.
    let named =
        |line: &&str| line.contains("docker") || line.contains("/containers/") || line.contains("cri-");
    let mut words = text.lines().filter(named).flat_map(|l| l.split(['/', '-', '.', ':', ' ']));
    words.find(is_id).map(str::to_owned)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspect {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    path: String,
    state: State,
    #[serde(default)]
    config: Config,
    #[serde(default)]
    host_config: HostConfig,
    #[serde(default)]
    mounts: Vec<Mount>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    image: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    restart_policy: RestartPolicy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RestartPolicy {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Mount {
    source: PathBuf,
    destination: PathBuf,
}

impl Inspect {
    /// The same name may be that of a container of ours.
    fn is_original(&self) -> bool {
        self.path == DAEMON_PATH || self.config.image.starts_with("weaveworks/weave:")
    }
}

impl Docker {
    /// The container of that name or id, if it is one of the original's.
    ///
    /// # Errors
    /// Docker does not answer, or not sensibly.
    pub fn original(&self, name: &str) -> Result<Option<OriginalContainer>, Error> {
        let found: Option<Inspect> = self.describe(name)?;
        Ok(found.filter(Inspect::is_original).map(|i| OriginalContainer {
            id: i.id,
            name: i.name.trim_start_matches('/').to_owned(),
            running: i.state.running,
            restart_policy: i.host_config.restart_policy.name,
        }))
    }

    /// Where on the host the directory `destination` of a container is kept; none if there is no such container, or it has no
    /// such volume.
    ///
    /// # Errors
    /// Docker does not answer, or not sensibly.
    pub fn volume(&self, container: &str, destination: &Path) -> Result<Option<PathBuf>, Error> {
        let found: Option<Inspect> = self.describe(container)?;
        let mounts = found.map(|i| i.mounts).unwrap_or_default();
        let volume = mounts.into_iter().find(|m| m.destination == destination);
        Ok(volume.map(|m| m.source).filter(|source| source.is_absolute()))
    }

    /// Ends a container: it has `grace` seconds to end by itself.
    ///
    /// # Errors
    /// Docker does not answer or refuses.
    pub fn stop(&self, id: &str, grace: u32) -> Result<(), Error> {
        self.post(&docker::path(id, &format!("stop?t={grace}")), None, "stop", id)
    }

    /// Starts a container that has ended.
    ///
    /// # Errors
    /// Docker does not answer or refuses.
    pub fn start(&self, id: &str) -> Result<(), Error> {
        self.post(&docker::path(id, "start"), None, "start", id)
    }

    /// Chooses whether Docker starts a container again by itself.
    ///
    /// # Errors
    /// Docker does not answer or refuses.
    pub fn set_restart_policy(&self, id: &str, policy: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "RestartPolicy": { "Name": policy } }).to_string();
        self.post(&docker::path(id, "update"), Some(&body), "change the restart policy of", id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_containers() {
        let id = "0123456789abcdef".repeat(4);
        for text in [
            format!("12:pids:/docker/{id}\n"),
            format!("0::/system.slice/docker-{id}.scope\n"),
            format!("0::/kubepods/besteffort/pod1-2/cri-containerd-{id}.scope\n"),
            format!(
                "700 600 8:1 /var/lib/docker/containers/{id}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"
            ),
        ] {
            assert_eq!(container_id(&text).as_deref(), Some(&id[..]), "{text}");
        }
        for text in ["0::/user.slice/session-1.scope\n", "", "0::/docker/abc\n"] {
            assert_eq!(container_id(text), None, "{text}");
        }
    }

    #[test]
    fn nobody_runs_here() {
        if let Ok(found) = original_processes() {
            assert!(found.iter().all(|p| p.pid > 1), "{found:?}");
        }
    }
}
