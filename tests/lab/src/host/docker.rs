//! A Docker daemon for one host, and the static program that runs in its containers.

use std::path::PathBuf;
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

/// What tests run in containers.
const IMAGE_PROGRAMS: &str = "sh sleep cat ls grep ping getent ip";

/// Docker gives containers no network.
const NO_NETWORK: &str = "--bridge none --iptables=false";

impl<'a> Dockerd<'a> {
    /// The daemon's configuration in the host.
    pub const CONFIG_FILE: &'static str = "/etc/docker-lab/daemon.json";

    /// Starts a daemon, or returns `None` after a notice if Docker is not installed.
    #[track_caller]
    pub fn start(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_with_options(host, NO_NETWORK)
    }

    /// The same with Docker's bridge `docker0` (172.17.0.1/16) and its firewall rules.
    #[track_caller]
    pub fn start_with_bridge(host: &'a Host) -> Option<Dockerd<'a>> {
        Dockerd::start_with_options(host, "")
    }

    /// The same with options of the daemon, as `--icc=false`.
    #[track_caller]
    pub fn start_with_options(host: &'a Host, network_options: &'static str) -> Option<Dockerd<'a>> {
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

    pub fn host(&self) -> &'a Host {
        self.host
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
            // `docker info` of newer versions succeeds without a daemon.
            let version = self.docker(&["version", "--format", "{{.Server.Version}}"]);
            if version.success() { Ok(()) } else { Err(version.to_string()) }
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

    /// See [`import_image`].
    #[track_caller]
    pub fn import_image(&self, name: &str) {
        import_image(self.host, name);
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

/// Makes an image for the Docker of a host, of some programs of this machine with their libraries. It runs a shell.
#[track_caller]
pub fn import_image(host: &Host, name: &str) {
    host.sh(&format!(
        "cd /run && mkdir image && cd image && mkdir -p etc tmp bin && \
         for p in {IMAGE_PROGRAMS}; do f=$(command -v $p); cp -L $f bin/; \
         for l in $(ldd $f | grep -o '/[^ ]*'); do mkdir -p .${{l%/*}}; cp -L $l .$l; done; done; \
         echo 'root:x:0:0::/:/bin/sh' > etc/passwd; \
         tar -cf - . | docker --host unix:///run/docker.sock import -c 'CMD [\"sh\"]' - {name}; cd ..; rm -r image"
    ));
}

/// Trees with newer versions of Docker, which `make engines` makes. A notice if there is none.
pub fn newer_engines() -> Vec<PathBuf> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/engines"));
    let trees = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let trees: Vec<PathBuf> = trees
        .filter(|tree| tree.is_dir() && tree.extension().is_none())
        .filter_map(|t| t.canonicalize().ok())
        .collect();
    if trees.is_empty() {
        eprintln!(
            "SKIPPED: lab tests with newer versions of Docker: there is no tree of one (`make engines`)"
        );
    }
    trees
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
