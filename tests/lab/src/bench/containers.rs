//! Containers that start and end: with our network by each way, and with the own network of Docker and Podman only.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{cleanup, peer, succeed};
use crate::Lab;
use crate::docker::Dockerd;

const IMAGE: &str = "bench";
/// Containers, and `docker ps` of each kind, one after the other in a round.
const CONTAINERS: u32 = 5;
const LISTS: u32 = 100;
const DOCKER: &str = "unix:///run/docker.sock";
const PROXY: &str = "unix:///var/run/weave/weave.sock";

/// How a container gets its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Docker's own network only.
    Plain,
    Proxy,
    OciRuntime,
    /// A network of Docker by our plugin, in place of Docker's own.
    Plugin,
    /// Podman's own network only.
    PlainPodman,
    /// Our network by CNI, in place of Podman's own.
    Cni,
}

/// Those of Docker, the one for comparison first.
pub(super) const OF_DOCKER: [Way; 4] = [Way::Plain, Way::Proxy, Way::OciRuntime, Way::Plugin];
/// Those of Podman.
pub(super) const OF_PODMAN: [Way; 2] = [Way::PlainPodman, Way::Cni];

const PODMAN: &str =
    "podman --cgroup-manager cgroupfs --runtime runc --storage-driver vfs --events-backend file";
const ROOT: &str = "/var/lib/bench-root";

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Plain => "plain Docker",
            Way::Proxy => "the proxy",
            Way::OciRuntime => "the OCI runtime",
            Way::Plugin => "the network plugin",
            Way::PlainPodman => "plain Podman",
            Way::Cni => "CNI",
        }
    }

    /// The command that runs a container to its end.
    fn command(self) -> String {
        let docker =
            |endpoint, options| format!("docker --host {endpoint} run --rm {options} {IMAGE} sh -c :");
        let podman = |network| {
            format!(
                "{PODMAN} run --rm --cgroup-parent /weave-bench --network {network} --rootfs {ROOT} /bin/busybox true"
            )
        };
        match self {
            Way::Plain => docker(DOCKER, ""),
            Way::Proxy => docker(PROXY, ""),
            Way::OciRuntime => docker(DOCKER, "--runtime weave"),
            Way::Plugin => docker(DOCKER, "--network weave"),
            Way::PlainPodman => podman("podman"),
            Way::Cni => podman("weave"),
        }
    }
}

/// Calls `measure` with a host on which Docker and the peer run. `None` if Docker is not installed.
pub(super) fn with_docker<T>(weave: &Path, measure: impl FnOnce(&Lab) -> Result<T>) -> Result<Option<T>> {
    let lab = cleanup::lab(1)?;
    let host = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(host) else { return Ok(None) };
    docker.import_image(IMAGE);
    succeed(peer::weave(host, weave, &["launch", "--no-restart", "--proxy"]))?;
    succeed(peer::weave(host, weave, &["setup-docker", "--config-file", Dockerd::CONFIG_FILE]))?;
    let measured = measure(&lab);
    // All hosts share the control groups; Podman leaves these.
    host.command(&["sh", "-c", "find /sys/fs/cgroup -depth -type d -path '*/weave-bench*' -exec rmdir {} +"]);
    measured.map(Some)
}

/// Whether Podman is installed, uses CNI, and has a root for containers.
pub(super) fn has_podman(lab: &Lab) -> bool {
    let host = lab.host("h1");
    let backend = format!("{PODMAN} info --format '{{{{.Host.NetworkBackend}}}}'");
    let root = format!("mkdir -p {ROOT}/bin; cp $(command -v busybox) {ROOT}/bin");
    host.command(&["sh", "-ec", &root]).success()
        && host.command(&["sh", "-c", &backend]).stdout.trim() == "cni"
}

/// Seconds for a container from the start of the client to its end.
pub(super) fn run(lab: &Lab, way: Way) -> Result<f64> {
    Ok(time(lab, &way.command(), CONTAINERS)? / f64::from(CONTAINERS))
}

/// Seconds for a list of containers, asked of Docker directly or through the proxy.
pub(super) fn list(lab: &Lab, way: Way) -> Result<f64> {
    let endpoint = match way {
        Way::Plain => DOCKER,
        Way::Proxy => PROXY,
        _ => bail!("lists do not depend on the network"),
    };
    Ok(time(lab, &format!("docker --host {endpoint} ps > /dev/null"), LISTS)? / f64::from(LISTS))
}

/// Seconds for a command that is run `count` times.
fn time(lab: &Lab, command: &str, count: u32) -> Result<f64> {
    let script = format!("for i in $(seq {count}); do {command} || exit 1; done");
    let mut shell = lab.host("h1").enter(&["sh", "-c", &script]);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let begin = Instant::now();
    let status = shell.status().context("cannot start nsenter (package util-linux)")?;
    let time = begin.elapsed().as_secs_f64();
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(time)
}
