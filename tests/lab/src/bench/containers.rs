//! Containers of Docker that start and end: with the network by our proxy and by our OCI runtime, and without it.

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
}

pub(super) const WAYS: [Way; 3] = [Way::Plain, Way::Proxy, Way::OciRuntime];

impl Way {
    pub(super) fn name(self) -> &'static str {
        match self {
            Way::Plain => "plain Docker",
            Way::Proxy => "the proxy",
            Way::OciRuntime => "the OCI runtime",
        }
    }

    /// The command that runs a container to its end.
    fn command(self) -> String {
        let (endpoint, options) = match self {
            Way::Plain => (DOCKER, ""),
            Way::Proxy => (PROXY, ""),
            Way::OciRuntime => (DOCKER, "--runtime weave"),
        };
        format!("docker --host {endpoint} run --rm {options} {IMAGE} sh -c :")
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
    measure(&lab).map(Some)
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
        Way::OciRuntime => bail!("lists do not depend on the runtime"),
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
