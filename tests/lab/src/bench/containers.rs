//! Containers that start and end: with our network by each way, and with the own network of their engine only.

use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::{cleanup, peer, succeed};
use crate::docker::{Dockerd, newer_engines};
use crate::{Lab, Topology};

const IMAGE: &str = "bench";
/// Containers, and `docker ps` of each kind, one after the other in a round.
const CONTAINERS: u32 = 5;
const LISTS: u32 = 100;
const DOCKER_SOCKET: &str = "unix:///run/docker.sock";
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
    /// Our network by netavark, in place of Podman's own.
    Netavark,
    /// The CNI plugin `bridge`: containerd has no network of its own.
    PlainContainerd,
    /// Our CNI plugin in its place.
    Containerd,
}

/// The ways of an engine, the one for comparison first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Engine {
    /// Its command.
    pub(super) name: &'static str,
    pub(super) ways: &'static [Way],
}

const DOCKER: Engine =
    Engine { name: "docker run --rm", ways: &[Way::Plain, Way::Proxy, Way::OciRuntime, Way::Plugin] };
const PODMAN_CNI: Engine = Engine { name: "podman run --rm", ways: &[Way::PlainPodman, Way::Cni] };
const PODMAN_NETAVARK: Engine = Engine { name: "podman run --rm", ways: &[Way::PlainPodman, Way::Netavark] };
const CONTAINERD: Engine =
    Engine { name: "ctr run --rm --cni", ways: &[Way::PlainContainerd, Way::Containerd] };

const PODMAN: &str =
    "podman --cgroup-manager cgroupfs --runtime runc --storage-driver vfs --events-backend file";
/// That of Docker's own containerd.
const CONTAINERD_SOCKET: &str = "/run/docker-lab/containerd/containerd.sock";
const ROOT: &str = "/var/lib/bench-root";
/// The network for comparison; the first file in the directory counts.
const BRIDGE_FILE: &str = "/etc/cni/net.d/05-bridge.conflist";
const BRIDGE: &str = r#"{ "cniVersion": "0.4.0", "name": "bridge", "plugins": [
    { "type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true,
      "ipam": { "type": "host-local", "ranges": [[{ "subnet": "172.30.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
    { "type": "portmap", "capabilities": { "portMappings": true } } ] }"#;

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Plain => "plain Docker",
            Way::Proxy => "the proxy",
            Way::OciRuntime => "the OCI runtime",
            Way::Plugin => "the network plugin",
            Way::PlainPodman => "plain Podman",
            Way::Cni => "CNI",
            Way::Netavark => "netavark",
            Way::PlainContainerd => "the CNI plugin bridge",
            Way::Containerd => "weave-net",
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
            Way::Plain => docker(DOCKER_SOCKET, ""),
            Way::Proxy => docker(PROXY, ""),
            Way::OciRuntime => docker(DOCKER_SOCKET, "--runtime weave"),
            Way::Plugin => docker(DOCKER_SOCKET, "--network weave"),
            Way::PlainPodman => podman("podman"),
            Way::Cni | Way::Netavark => podman("weave"),
            Way::PlainContainerd | Way::Containerd => format!(
                "ctr -a {CONTAINERD_SOCKET} run --rm --cni --cgroup /weave-bench/ctr --rootfs {ROOT} bench /bin/busybox true"
            ),
        }
    }

    /// The command that makes the host ready for it.
    fn preparation(self) -> String {
        match self {
            Way::PlainContainerd => format!("cat > {BRIDGE_FILE} <<'E'\n{BRIDGE}\nE"),
            _ => format!("rm -f {BRIDGE_FILE}"),
        }
    }
}

/// Calls `measure` with a host on which engines and the peer run, for those of this machine, and for netavark of the tree of newer engines
/// if there is one.
pub(super) fn with_engines<T>(
    weave: &Path,
    measure: impl Fn(&Lab, &[Engine]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut measured = with_engines_of(&Topology::hosts(1), weave, &measure)?;
    if let Some(tree) = newer_engines().into_iter().max() {
        measured.extend(with_engines_of(&Topology::hosts(1).with_root(&tree), weave, &measure)?);
    }
    Ok(measured)
}

fn with_engines_of<T>(
    topology: &Topology,
    weave: &Path,
    measure: impl Fn(&Lab, &[Engine]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let lab = cleanup::lab_of(topology)?;
    let host = lab.host("h1");
    let prepare = "mkdir -p /etc/cni/net.d /opt/cni/bin $0/bin; cp $(command -v busybox) $0/bin; \
                   for p in bridge host-local portmap; do ln -s /usr/lib/cni/$p /opt/cni/bin; done";
    succeed(host.command(&["sh", "-ec", prepare, ROOT]))?;
    let docker = Dockerd::start_with_bridge(host);
    if let Some(docker) = &docker {
        docker.import_image(IMAGE);
    }
    succeed(peer::weave(host, weave, &["launch", "--no-restart", "--proxy"]))?;
    let podman =
        host.command(&["sh", "-c", &format!("{PODMAN} info --format '{{{{.Host.NetworkBackend}}}}'")]);
    let podman = match podman.stdout.trim() {
        "cni" => Some(PODMAN_CNI),
        "netavark" => Some(PODMAN_NETAVARK),
        _ => None,
    };
    let mut engines: Vec<Engine> = podman.into_iter().collect();
    if podman.is_some_and(|engine| engine.ways.contains(&Way::Netavark)) {
        succeed(peer::weave(host, weave, &["setup-podman"]))?;
        succeed(host.command(&["sh", "-c", &format!("{PODMAN} network create -d weave weave")]))?;
    } else if docker.is_some() {
        succeed(peer::weave(host, weave, &["setup-docker", "--config-file", Dockerd::CONFIG_FILE]))?;
        engines.push(DOCKER);
        engines.extend(host.command(&["test", "-x", "/usr/lib/cni/bridge"]).success().then_some(CONTAINERD));
    }
    let measured = measure(&lab, &engines);
    // All hosts share the control groups; Podman leaves these.
    host.command(&["sh", "-c", "find /sys/fs/cgroup -depth -type d -path '*/weave-bench*' -exec rmdir {} +"]);
    measured
}

/// Seconds for a container from the start of the client to its end.
pub(super) fn run(lab: &Lab, way: Way) -> Result<f64> {
    succeed(lab.host("h1").command(&["sh", "-ec", &way.preparation()]))?;
    Ok(time(lab, &way.command(), CONTAINERS)? / f64::from(CONTAINERS))
}

/// Seconds for a list of containers, asked of Docker directly or through the proxy.
pub(super) fn list(lab: &Lab, way: Way) -> Result<f64> {
    let endpoint = match way {
        Way::Plain => DOCKER_SOCKET,
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
