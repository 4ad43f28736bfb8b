//! Hosts on which 2.8.1 runs or ran. Only one of the two daemons may run: `launch` refuses while 2.8.1's runs, or stops it with
//! `--take-over`; `stop --hand-back` prepares the host for 2.8.1.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use weave_daemon::config::{Config, DnsConfig};
use weave_daemon::{PeerState, legacy_database};
use weave_host::BridgeKind;
use weave_runtime::{ContainerInfo, Docker, LegacyProcess, legacy_processes};

use crate::args::{self, Parsed};
use crate::env::{Env, NoEnv};
use crate::options;
use crate::{Failure, commands, docker_bridge, notice, proxy_options};

/// Seconds after which 2.8.1's daemon should have ended.
const STOP_TIMEOUT: u32 = 10;
/// Interval between checks whether it has ended; short, because containers are disconnected until the new daemon runs.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
const DOCKER_TIMEOUT: Duration = Duration::from_secs(5);

/// 2.8.1 on this host.
#[derive(Debug)]
pub(crate) struct Original {
    docker: Docker,
    /// Running daemons.
    processes: Vec<LegacyProcess>,
    /// Their containers, and the container that has ended but would be started again.
    containers: Vec<ContainerInfo>,
}

impl Original {
    /// Looks for 2.8.1. Without an answer from Docker, containers that have ended are not found, but running daemons are.
    pub(crate) fn find(parsed: &Parsed, env: &dyn Env) -> Result<Original, Failure> {
        let api = parsed.text("docker-api").map(str::to_owned).or_else(|| proxy_options::docker_host(env));
        let docker = Docker::at(api.as_deref()).with_timeout(DOCKER_TIMEOUT);
        let processes = legacy_processes()?;
        let mut names: Vec<String> = processes.iter().filter_map(|p| p.container.clone()).collect();
        if parsed.text("docker-api") != Some("") {
            names.push(options::original_container(env));
        }
        let (docker, containers) = ask(docker, &names);
        Ok(Original { docker, processes, containers })
    }

    /// Whether a daemon runs.
    pub(crate) fn runs(&self) -> bool {
        !self.processes.is_empty() || self.containers.iter().any(|c| c.is_running())
    }

    /// The error of a launch while 2.8.1 runs.
    pub(crate) fn refusal(&self) -> Failure {
        if self.in_kubernetes() {
            return self.kubernetes();
        }
        let by_hand = match self.containers.iter().find(|c| c.is_running()) {
            Some(container) => format!("'docker stop {}'", container.name),
            None => self.processes.iter().map(|p| format!("'kill {}'", p.pid)).collect::<Vec<_>>().join(", "),
        };
        Failure::new(
            3,
            format_args!(
                "the original Weave Net is running on this host ({self}); 'weave launch --take-over' replaces it, \
                 or stop it first with {by_hand}"
            ),
        )
    }

    /// Refuses a launch that would lose settings of the running daemon without a word. What the command line or the environment sets
    /// differently is meant so.
    pub(crate) fn compare_options(
        &self,
        parsed: &Parsed,
        range_given: bool,
        config: &Config,
    ) -> Result<(), Failure> {
        let mut missing = Vec::new();
        for process in &self.processes {
            missing.extend(missing_options(process, parsed, range_given, config));
        }
        missing.sort();
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Failure::new(
            3,
            format_args!(
                "the original Weave Net on this host ({self}) has settings that this launch does not have: {}; give the same, or \
                 others, to 'weave launch --take-over'",
                missing.join(" ")
            ),
        ))
    }

    fn in_kubernetes(&self) -> bool {
        self.processes.iter().any(|p| p.kubernetes)
    }

    fn kubernetes(&self) -> Failure {
        Failure::new(
            3,
            format_args!(
                "the original Weave Net is running on this host as a Kubernetes pod ({self}), which would come back; \
                 keep its DaemonSet off this node first"
            ),
        )
    }

    /// Stops the daemons, and prevents Docker from starting them again.
    pub(crate) fn stop(self) -> Result<Stopped, Failure> {
        if self.in_kubernetes() {
            return Err(self.kubernetes());
        }
        let description = self.to_string();
        let mut stopped = Stopped { docker: self.docker, containers: Vec::new(), bare: Vec::new() };
        let result = stopped.all(&self.processes, &self.containers);
        match result {
            Ok(()) => {
                notice(format_args!("stopped the original Weave Net ({description})"));
                Ok(stopped)
            }
            Err(failure) => {
                stopped.undo();
                Err(failure)
            }
        }
    }

    /// Prevents Docker from starting a container that has ended already: at the next boot both daemons would run.
    pub(crate) fn disable_restart(&self) {
        for container in self.containers.iter().filter(|c| !c.is_running() && comes_back(c)) {
            match self.docker.set_restart_policy(&container.id, "no") {
                Ok(()) => notice(format_args!(
                    "container {} of the original Weave Net will not be started by Docker any more (its restart policy \
                     was {})",
                    container.name, container.restart_policy
                )),
                Err(e) => notice(format_args!(
                    "Docker will start container {} of the original Weave Net again; remove it: {e}",
                    container.name
                )),
            }
        }
    }
}

impl fmt::Display for Original {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let containers =
            self.containers.iter().filter(|c| c.is_running()).map(|c| format!("container {}", c.name));
        let processes = self.processes.iter().map(|p| format!("process {}", p.pid));
        f.write_str(&containers.chain(processes).collect::<Vec<_>>().join(", "))
    }
}

/// The options of a daemon that `config` differs from although `parsed` does not name them.
fn missing_options(
    process: &LegacyProcess,
    parsed: &Parsed,
    range_given: bool,
    config: &Config,
) -> Vec<String> {
    let theirs = commands::find("daemon").ok_or_else(String::new).and_then(|command| {
        let theirs = args::parse(command, &process.arguments).map_err(|e| e.to_string())?;
        let config = options::config(&theirs, &NoEnv, &config.nickname).map_err(|e| e.to_string())?;
        Ok((theirs, config))
    });
    let (options, theirs) = match theirs {
        Ok(theirs) => theirs,
        Err(e) => {
            notice(format_args!(
                "Warning: the options of the original Weave Net (process {}) cannot be compared: {e}",
                process.pid
            ));
            return Vec::new();
        }
    };
    let ranges = |c: &Config| c.allocation.as_ref().map(|a| a.range);
    let times = |c: &Config| c.dns.as_ref().map(|d| (d.ttl, d.fallback_timeout));
    let domains = |c: &Config| c.dns.as_ref().map(|d| d.domain.clone());
    let listens = |c: &Config| c.dns.as_ref().and_then(|d| d.listen);
    // The script of 2.8.1 always names the address of Docker's bridge, which is our default.
    let docker_bridge = || {
        let address = docker_bridge::first_address(config.docker_bridge.as_deref()?).ok()?;
        Some(SocketAddr::new(address.into(), DnsConfig::PORT))
    };
    let subnets = |c: &Config| c.allocation.as_ref().map(|a| a.default_subnet);
    let differs = [
        ("port", theirs.port != config.port && config.port == Config::default().port),
        ("name", theirs.name.is_some() && theirs.name != weave_daemon::find_peer_name(config).ok()),
        ("host", theirs.host != config.host),
        ("trusted-subnets", theirs.trusted_subnets != config.trusted_subnets),
        ("no-discovery", theirs.discovery != config.discovery),
        ("ipalloc-range", ranges(&theirs) != ranges(config)),
        ("ipalloc-default-subnet", subnets(&theirs) != subnets(config)),
        ("ipalloc-init", true),
        ("no-dns", theirs.dns.is_none() && config.dns.is_some()),
        ("dns-domain", domains(&theirs) != domains(config)),
        (
            "dns-listen-address",
            listens(&theirs).is_some_and(|addr| listens(config).or_else(docker_bridge) != Some(addr)),
        ),
        ("dns-ttl", times(&theirs) != times(config)),
        ("dns-fallback-timeout", times(&theirs) != times(config)),
        ("expect-npc", theirs.expect_npc != config.expect_npc),
        ("no-masq-local", theirs.no_masq_local != config.no_masq_local),
        ("H", theirs.proxy.endpoints != config.proxy.endpoints),
        ("no-default-ipalloc", theirs.proxy.attach_by_default != config.proxy.attach_by_default),
        ("rewrite-inspect", theirs.proxy.rewrite_inspect != config.proxy.rewrite_inspect),
        ("no-rewrite-hosts", theirs.proxy.rewrite_hosts != config.proxy.rewrite_hosts),
        ("without-dns", theirs.proxy.without_dns != config.proxy.without_dns),
        ("no-multicast-route", theirs.proxy.multicast_route != config.proxy.multicast_route),
        ("plugin-socket", theirs.plugin != config.plugin),
        ("plugin-mesh-socket", theirs.plugin != config.plugin),
        ("hostname-from-label", true),
        ("hostname-match", true),
        ("hostname-replacement", true),
        ("tls", theirs.proxy.tls.is_some() && config.proxy.tls.is_none()),
        ("tlsverify", theirs.proxy.tls.is_some() && config.proxy.tls.is_none()),
    ];
    // `launch` has added its default.
    let is_default = |name: &str| name == "ipalloc-range" && !range_given;
    // An empty range means no allocator; with other options an empty value means the same as none.
    let says_nothing =
        |name: &str, value: &str| value == "false" || value.is_empty() && name != "ipalloc-range";
    let given = |name: &str| options.text(name).filter(|value| !says_nothing(name, value));
    let mut missing: Vec<String> = differs
        .into_iter()
        .filter(|(name, differs)| *differs && (parsed.text(name).is_none() || is_default(name)))
        .filter_map(|(name, _)| given(name).map(|value| format!("{}={value}", args::dashed(name))))
        .collect();
    if (process.has_password || theirs.password.is_some()) && config.password.is_none() {
        missing.push("--password=...".to_owned());
    }
    missing
}

/// Whether Docker starts it at the next boot. With any other policy a container that was stopped by hand stays stopped.
fn comes_back(container: &ContainerInfo) -> bool {
    container.restart_policy == "always"
}

fn ask(docker: Docker, names: &[String]) -> (Docker, Vec<ContainerInfo>) {
    // DOCKER_HOST may name the proxy that is part of 2.8.1.
    let usual = Docker::at(None).with_timeout(DOCKER_TIMEOUT);
    let mut containers: Vec<ContainerInfo> = Vec::new();
    let mut answering = docker;
    for name in names {
        let mut found = answering.inspect(name);
        if found.is_err() {
            found = usual.inspect(name);
            if found.is_ok() {
                answering = usual.clone();
            }
        }
        // The same name may be that of a container of ours.
        if let Ok(Some(container)) = found
            && container.is_legacy_daemon()
            && !containers.iter().any(|c| c.id == container.id)
        {
            containers.push(container);
        }
    }
    (answering, containers)
}

/// What was stopped, to start it again if the launch fails.
#[derive(Debug)]
pub(crate) struct Stopped {
    docker: Docker,
    containers: Vec<ContainerInfo>,
    /// Processes without a container, which cannot be started again.
    bare: Vec<u32>,
}

impl Stopped {
    fn all(&mut self, processes: &[LegacyProcess], containers: &[ContainerInfo]) -> Result<(), Failure> {
        for container in containers.iter().filter(|c| c.is_running()) {
            self.containers.push(container.clone());
            self.docker.set_restart_policy(&container.id, "no")?;
            self.docker.stop(&container.id, STOP_TIMEOUT)?;
        }
        let deadline = Instant::now() + Duration::from_secs(STOP_TIMEOUT.into());
        for process in processes {
            // It ended with its container.
            if has_ended(process.pid) {
                continue;
            }
            if process.container.is_none() {
                end(process.pid)?;
                self.bare.push(process.pid);
            }
            while !has_ended(process.pid) {
                if Instant::now() >= deadline {
                    let what = format_args!("the original Weave Net (process {}) does not end", process.pid)
                        .to_string();
                    return Err(Failure::new(1, what));
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Starts the containers again after a failed launch.
    pub(crate) fn undo(self) {
        for container in &self.containers {
            let again = self
                .docker
                .set_restart_policy(&container.id, &container.restart_policy)
                .and_then(|()| self.docker.start(&container.id));
            match again {
                Ok(()) => notice(format_args!("started container {} again", container.name)),
                Err(e) => notice(format_args!("container {} cannot be started again: {e}", container.name)),
            }
        }
        for pid in &self.bare {
            notice(format_args!(
                "the original Weave Net (it was process {pid}) has ended; start it again as it was started before"
            ));
        }
    }
}

fn end(pid: u32) -> Result<(), Failure> {
    match kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => {
            Err(Failure::new(1, format_args!("cannot stop the original Weave Net (process {pid}): {e}")))
        }
    }
}

/// Whether the process has ended. A zombie has ended when the last of its threads has released files and ports.
fn has_ended(pid: u32) -> bool {
    let ended = |stat: std::path::PathBuf| {
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
    };
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().all(|thread| ended(thread.path().join("stat")))
}

/// `weave stop --hand-back`, after the daemon has ended: removes what would prevent 2.8.1 from starting, and restores what it had.
/// Returns what failed.
pub(crate) fn hand_back(parsed: &Parsed, env: &dyn Env) -> Vec<String> {
    let mut failures = Vec::new();
    let names = options::devices(parsed, env);
    let original = PeerState::read_original(&options::state_dir(parsed, env)).unwrap_or_else(|e| {
        failures.push(e.to_string());
        weave_daemon::Original::default()
    });
    let kinds = [BridgeKind::Bridge, BridgeKind::Fastdp, BridgeKind::BridgedFastdp];
    let kind = kinds.into_iter().find(|k| original.bridge.as_deref() == Some(k.name()));
    let removed = weave_daemon::remove_kernel_path(&names.device, options::instance(parsed, env).as_deref());
    failures.extend(removed.err());
    match weave_host::restore_legacy_devices(&names, kind) {
        Ok(done) => {
            let option = match done.kind {
                BridgeKind::Bridge => " with WEAVE_NO_FASTDP=1",
                _ => "",
            };
            notice(format_args!(
                "the devices of this host are ready for the original Weave Net; launch it{option} (a bridge of type {})",
                done.kind.name()
            ));
        }
        Err(e) => failures.push(e.to_string()),
    }
    match legacy_database::move_away(&original) {
        Ok(None) => {}
        Ok(Some(aside)) => notice(format_args!(
            "its database is out of date and now called {}; name peers when launching, they know the addresses",
            aside.display()
        )),
        Err(e) => failures.push(format!("{e}; the original Weave Net must not be launched with this file")),
    }
    failures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn original(processes: &[(u32, bool)], containers: &[(&str, bool, &str)]) -> Original {
        Original {
            docker: Docker::at(Some("unix:///nonexistent")),
            processes: processes
                .iter()
                .map(|&(pid, kubernetes)| LegacyProcess { pid, kubernetes, ..LegacyProcess::default() })
                .collect(),
            containers: containers
                .iter()
                .map(|&(name, running, policy)| ContainerInfo {
                    id: name.repeat(3),
                    name: name.into(),
                    pid: running.then_some(1),
                    restart_policy: policy.into(),
                    ..ContainerInfo::default()
                })
                .collect(),
        }
    }

    #[test]
    fn refusals_name_what_runs() {
        assert!(!original(&[], &[("weave", false, "always")]).runs());
        let container = original(&[(7, false)], &[("weave", true, "always")]);
        assert!(container.runs());
        let failure = container.refusal();
        assert_eq!(failure.code, 3);
        assert_eq!(
            failure.message,
            "the original Weave Net is running on this host (container weave, process 7); 'weave launch --take-over' \
             replaces it, or stop it first with 'docker stop weave'"
        );
        let bare = original(&[(7, false), (8, false)], &[]).refusal().message;
        assert!(
            bare.contains("(process 7, process 8)") && bare.ends_with("with 'kill 7', 'kill 8'"),
            "{bare}"
        );
        let pod = original(&[(7, true)], &[]);
        assert!(pod.refusal().message.contains("DaemonSet"), "{:?}", pod.refusal());
        assert!(pod.stop().is_err());
    }

    #[test]
    fn settings_of_the_original_are_not_lost() {
        let words =
            |line: &str| line.split(' ').filter(|w| !w.is_empty()).map(str::to_owned).collect::<Vec<_>>();
        let missing = |theirs: &str, has_password, ours: &str, range_given| {
            let process =
                LegacyProcess { arguments: words(theirs), has_password, ..LegacyProcess::default() };
            let parsed = args::parse(commands::find("launch").unwrap(), &words(ours)).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let config = options::config(&parsed, &NoEnv, "h1").unwrap();
            let config = Config { state_dir: dir.path().to_owned(), ..config };
            missing_options(&process, &parsed, range_given, &config).join(" ")
        };
        let default = "--ipalloc-range=10.32.0.0/12 --docker-api=";
        let theirs = "--port 7000 --ipalloc-range 10.2.0.0/16 -dns-domain=x.local. --ipalloc-init observer --nickname n h2";
        assert_eq!(
            missing(theirs, true, default, false),
            "--port=7000 --ipalloc-range=10.2.0.0/16 --ipalloc-init=observer --dns-domain=x.local. --password=..."
        );
        let same = "--port 7000 --ipalloc-range 10.2.0.0/16 --dns-domain x.local. --observer --password p --docker-api=";
        assert_eq!(missing(theirs, true, same, true), "");
        let others = "--port 7001 --ipalloc-range 10.3.0.0/16 --dns-domain y. --ipalloc-init seed=::1 --password p --docker-api=";
        assert_eq!(missing(theirs, true, others, true), "", "what is given is meant so");
        assert_eq!(missing("--port 6783 --ipalloc-range 10.32.0.0/12 h2", false, default, false), "");
        let listens = "--dns-listen-address=192.0.2.1:53 --ipalloc-range 10.32.0.0/12";
        assert_eq!(missing(listens, false, default, false), "--dns-listen-address=192.0.2.1:53");
        let others = format!("{default} --dns-listen-address=192.0.2.2:53");
        assert_eq!(missing(listens, false, &others, false), "", "what is given is meant so");
        let no_allocator = "--ipalloc-range= --dns-domain= h2";
        assert_eq!(missing(no_allocator, false, default, false), "--ipalloc-range=");
        assert_eq!(missing(no_allocator, false, "--ipalloc-range= --docker-api=", true), "");
        assert_eq!(missing("--password=x", false, default, false), "--password=...");
        assert_eq!(missing("--no-such-option", true, default, false), "");
    }

    #[test]
    fn zombies_have_ended() {
        assert!(!has_ended(std::process::id()));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !has_ended(child.id()) {
            assert!(Instant::now() < deadline, "a zombie has ended");
        }
        child.wait().unwrap();
        assert!(has_ended(child.id()));
    }
}
