//! A Docker daemon of a host's own, and the static program that runs in its containers.

use std::path::PathBuf;
use std::time::Duration;

use crate::host::Host;
use crate::run::Outcome;

/// Starting takes a few seconds, more on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A Docker daemon inside a host, with everything of it on that host's disk and in its `/run`.
#[derive(Debug)]
pub struct Dockerd<'a> {
    host: &'a Host,
    /// What it is told about networks.
    network: &'static str,
}

/// Containers get no network from Docker.
const NO_NETWORK: &str = "--bridge none --iptables=false";

impl<'a> Dockerd<'a> {
    /// Starts one: `None` (after a loud line) if Docker is not installed here.
    #[track_caller]
    pub fn start(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_as(host, NO_NETWORK)
    }

    /// The same with Docker's own bridge `docker0` (172.17.0.1/16) and its packet filter rules.
    #[track_caller]
    pub fn start_with_bridge(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_as(host, "")
    }

    #[track_caller]
    fn start_as(host: &'a Host, network: &'static str) -> Option<Dockerd<'a>> {
        for program in ["dockerd", "docker"] {
            if !host.command(&["sh", "-c", &format!("command -v {program}")]).success() {
                skipped(&format!("{program} is not installed (package docker.io)"));
                return None;
            }
        }
        host.sh("mkdir -p /etc/docker-lab && echo '{}' > /etc/docker-lab/daemon.json");
        let dockerd = Dockerd { host, network };
        dockerd.boot();
        Some(dockerd)
    }

    /// What starts it when the host does. Nothing of it stays open here.
    #[track_caller]
    pub fn boot(&self) {
        // Devices and limits of containers are in /sys/fs/cgroup, which all hosts share: each has its own group there.
        let group = format!("/weave-lab-{}", self.host.pid());
        let network = self.network;
        self.host.sh(&format!(
            "setsid dockerd --config-file /etc/docker-lab/daemon.json --data-root /var/lib/docker-lab \
             --exec-root /run/docker-lab --pidfile /run/docker.pid --host unix:///run/docker.sock --group root \
             --cgroup-parent {group} --storage-driver vfs {network} --ip6tables=false \
             >> /var/log/dockerd.log 2>&1 < /dev/null &",
        ));
        self.host.wait("Docker", START, || {
            let info = self.docker(&["info", "--format", "{{.ServerVersion}}"]);
            if info.success() { Ok(()) } else { Err(info.to_string()) }
        });
    }

    /// Ends it as a service manager does, and waits until it has.
    #[track_caller]
    pub fn stop(&self) {
        let pid = self.host.command_ok(&["cat", "/run/docker.pid"]);
        self.host.command_ok(&["kill", pid.trim()]);
        self.host
            .wait("the end of Docker", START, || !self.host.command(&["kill", "-0", pid.trim()]).success());
    }

    /// Runs the Docker client.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Outcome {
        let mut argv = vec!["docker", "--host", "unix:///run/docker.sock"];
        argv.extend(args);
        self.host.command(&argv)
    }

    /// Runs the Docker client, which has to succeed; gives its standard output without the final newline.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.docker(args).expect_ok().trim_end().to_owned()
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        // Its groups would stay behind in the shared hierarchy.
        let group = format!("weave-lab-{}", self.host.pid());
        self.host.command(&[
            "sh",
            "-c",
            &format!(
                "for c in $(docker --host unix:///run/docker.sock ps -q 2>/dev/null); do \
                 docker --host unix:///run/docker.sock rm -f $c >/dev/null 2>&1; done; \
                 kill $(cat /run/docker.pid) 2>/dev/null; \
                 for i in $(seq 100); do [ -e /run/docker.pid ] || break; sleep 0.1; done; \
                 find /sys/fs/cgroup -depth -type d -path '*/{group}*' -exec rmdir {{}} + 2>/dev/null"
            ),
        ]);
    }
}

/// The static program under test: `WEAVE_STATIC_BIN`, else the newest that cargo built for a named target (`make static`, or
/// `make lab-test` without optimisation). `None` (after a loud line) if there is none.
pub fn static_binary() -> Option<String> {
    if let Some(path) = std::env::var_os("WEAVE_STATIC_BIN") {
        return Some(path.to_string_lossy().into_owned());
    }
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
    let targets = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let newest = targets
        .flat_map(|t| ["debug", "release"].map(|profile| t.path().join(profile).join("weave")))
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max_by_key(|(time, _)| *time);
    match newest {
        Some((_, path)) => Some(path.canonicalize().unwrap_or(path).to_string_lossy().into_owned()),
        None => {
            skipped("there is no static program (`make static`, or set WEAVE_STATIC_BIN)");
            None
        }
    }
}

fn skipped(reason: &str) {
    let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
    assert!(!required, "lab tests are required, but: {reason}");
    eprintln!("SKIPPED: lab test with Docker: {reason}");
}
