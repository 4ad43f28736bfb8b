//! A Docker daemon for one host, and the static program that runs in its containers.

use std::time::Duration;

use super::Host;
use crate::programs::newest_static_binary;
use crate::run::Outcome;

/// Docker takes a few seconds to start, more on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A Docker daemon in a host, with its files on the host's disk and in its `/run`.
#[derive(Debug)]
pub struct Dockerd<'a> {
    host: &'a Host,
    network_options: &'static str,
}

/// Docker gives containers no network.
const NO_NETWORK: &str = "--bridge none --iptables=false";

impl<'a> Dockerd<'a> {
    /// Starts a daemon, or returns `None` after a notice if Docker is not installed.
    #[track_caller]
    pub fn start(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_as(host, NO_NETWORK)
    }

    /// The same with Docker's bridge `docker0` (172.17.0.1/16) and its firewall rules.
    #[track_caller]
    pub fn start_with_bridge(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_as(host, "")
    }

    #[track_caller]
    fn start_as(host: &'a Host, network_options: &'static str) -> Option<Dockerd<'a>> {
        for program in ["dockerd", "docker"] {
            if !host.command(&["sh", "-c", &format!("command -v {program}")]).success() {
                skipped(&format!("{program} is not installed (package docker.io)"));
                return None;
            }
        }
        host.sh("mkdir -p /etc/docker-lab && echo '{}' > /etc/docker-lab/daemon.json");
        let dockerd = Dockerd { host, network_options };
        dockerd.boot();
        Some(dockerd)
    }

    /// Starts the daemon again after a reboot of the host.
    #[track_caller]
    pub fn boot(&self) {
        // All hosts share /sys/fs/cgroup; the containers of each are in a group of their own.
        let group = format!("/weave-lab-{}", self.host.pid());
        let network = self.network_options;
        self.host.sh(&format!(
            "setsid dockerd --config-file /etc/docker-lab/daemon.json --data-root /var/lib/docker-lab \
             --exec-root /run/docker-lab --pidfile /run/docker.pid --host unix:///run/docker.sock --group root \
             --cgroup-parent {group} --storage-driver vfs {network} --ip6tables=false \
             >> /var/log/dockerd.log 2>&1 < /dev/null &",
        ));
        self.host.wait("Docker", START_TIMEOUT, || {
            let info = self.docker(&["info", "--format", "{{.ServerVersion}}"]);
            if info.success() { Ok(()) } else { Err(info.to_string()) }
        });
    }

    /// Ends the daemon as a service manager does, and waits for its end.
    #[track_caller]
    pub fn stop(&self) {
        let pid = self.host.command_ok(&["cat", "/run/docker.pid"]);
        self.host.command_ok(&["kill", pid.trim()]);
        self.host.wait("the end of Docker", START_TIMEOUT, || {
            !self.host.command(&["kill", "-0", pid.trim()]).success()
        });
    }

    /// Runs the Docker client.
    #[track_caller]
    pub fn docker(&self, args: &[&str]) -> Outcome {
        let mut argv = vec!["docker", "--host", "unix:///run/docker.sock"];
        argv.extend(args);
        self.host.command(&argv)
    }

    /// Runs the Docker client, which has to succeed; returns its standard output without the final newline.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.docker(args).expect_ok().trim_end().to_owned()
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        // The hierarchy of control groups is shared and would keep them.
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

/// The static program under test: `WEAVE_STATIC_BIN`, else the newest one that `make lab-test` or `make static` built. `None` after
/// a notice if there is none.
pub fn static_binary() -> Option<String> {
    let newest = newest_static_binary();
    if newest.is_none() {
        skipped("there is no static program (`make static`, or set WEAVE_STATIC_BIN)");
    }
    newest.map(|path| path.to_string_lossy().into_owned())
}

fn skipped(reason: &str) {
    let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
    assert!(!required, "lab tests are required, but: {reason}");
    eprintln!("SKIPPED: lab test with Docker: {reason}");
}
