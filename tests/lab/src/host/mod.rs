//! One host: commands in it, its daemon and its containers.

pub mod capture;
mod container;
pub mod docker;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::programs::{lab_binary, weave_binary, weave_candidates};
use crate::run::{Background, COMMAND_TIMEOUT, Outcome, run};
use crate::state::{Holder, LabState, Member};
use crate::wait::{Attempt, within};

use capture::Capture;

pub use container::{Chat, Container, Pinger};

/// A host (or a router) of a lab.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    holder: Holder,
    ip: Ipv4Addr,
    disk: Option<PathBuf>,
    /// Where `weave` and `lab` are in the host, if not where they were built.
    program_folder: Option<&'static str>,
}

/// One line of `weave status connections`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `->` (this peer opened it) rather than `<-`.
    pub outbound: bool,
    pub remote: String,
    /// established, pending, retrying, failed, connecting.
    pub state: String,
    /// Overlay, peer and attributes, or the reason of a failure.
    pub info: String,
}

/// Why the topology has not converged, if it has not: a connection that one end has not announced, or no direct route.
fn missing_convergence(router: &Value) -> Option<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let peers = list(&router["Peers"]);
    for peer in &peers {
        for connection in list(&peer["Connections"]) {
            if connection["Established"] != true {
                return Some(format!("{} has not announced {connection}", peer["Name"]));
            }
            let direct = |r: &Value| r["Dest"] == connection["Name"] && r["Via"] == connection["Name"];
            if peer["Name"] == router["Name"] && !list(&router["UnicastRoutes"]).iter().any(direct) {
                return Some(format!("no direct route to {}", connection["Name"]));
            }
        }
    }
    None
}

impl Host {
    pub(crate) fn new(lab: &str, member: &Member) -> Host {
        Host {
            name: member.name.clone(),
            holder: member.holder,
            ip: member.ip,
            disk: Some(LabState::dir(lab).join("disk").join(&member.name)),
            program_folder: None,
        }
    }

    pub(crate) fn bare(name: &str, holder: Holder) -> Host {
        Host { name: name.to_owned(), holder, ip: Ipv4Addr::UNSPECIFIED, disk: None, program_folder: None }
    }

    /// The same host in the namespaces of another of its processes (a pid outside of the host), with the programs in this folder.
    pub(crate) fn inside(&self, pid: i32, program_folder: &'static str) -> Result<Host> {
        Ok(Host { holder: Holder::of(pid)?, program_folder: Some(program_folder), ..self.clone() })
    }

    /// Whether its namespaces still exist.
    pub fn is_up(&self) -> bool {
        self.holder.alive()
    }

    fn weave_program(&self) -> String {
        self.program_folder.map_or_else(|| weave_binary().to_owned(), |folder| format!("{folder}/weave"))
    }

    pub fn lab_program(&self) -> String {
        let built = || lab_binary().unwrap_or_else(|e| panic!("{e:#}")).to_string_lossy().into_owned();
        self.program_folder.map_or_else(built, |folder| format!("{folder}/lab"))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the wire (behind NAT: the address of the router).
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Pid of its init outside of the host.
    pub fn pid(&self) -> i32 {
        self.holder.pid
    }

    /// A command in the namespaces of the host, with the network namespace of a file or else the host's own.
    pub(crate) fn enter_net(&self, net: Option<&str>, argv: &[&str]) -> Command {
        let pid = self.holder.pid;
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-m", "-p", "-u", "-i"]);
        match net {
            None => command.arg("-n"),
            Some(path) => command.arg(format!("--net=/proc/{pid}/root{path}")),
        };
        command.arg("--").args(argv);
        for (key, _) in std::env::vars_os() {
            let text = key.to_string_lossy();
            if ["WEAVE_", "DOCKER_", "CARGO"].iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&key);
            }
        }
        command.current_dir("/");
        command
    }

    /// One of the lab's probes, as a command like [`Host::enter_net`].
    pub(crate) fn enter_probe(&self, net: Option<&str>, args: &[&str]) -> Command {
        let lab = self.lab_program();
        let mut argv = vec![lab.as_str(), "probe"];
        argv.extend(args);
        self.enter_net(net, &argv)
    }

    pub(crate) fn enter(&self, argv: &[&str]) -> Command {
        self.enter_net(None, argv)
    }

    /// A shell or a command for a person, in the host or in one of its containers, with `weave` and `lab` on the PATH.
    pub fn interactive(&self, container: Option<&str>, prompt: &str, command: &[String]) -> Command {
        let net = container.map(|name| format!("/run/netns/{name}"));
        let mut argv: Vec<&str> = command.iter().map(String::as_str).collect();
        if argv.is_empty() {
            argv = vec!["bash", "--norc"];
        }
        let mut process = self.enter_net(net.as_deref(), &argv);
        let tools = [lab_binary().ok(), weave_candidates().map(PathBuf::from)];
        let mut path: Vec<PathBuf> =
            tools.iter().flatten().filter_map(|t| t.parent().map(PathBuf::from)).collect();
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        if let Ok(path) = std::env::join_paths(path) {
            process.env("PATH", path);
        }
        process.env("PS1", prompt);
        process
    }

    /// Runs a command, for at most 60 s.
    #[track_caller]
    pub fn command(&self, argv: &[&str]) -> Outcome {
        self.command_with(&[], argv, COMMAND_TIMEOUT)
    }

    /// Runs a command that has to succeed and gives its standard output.
    #[track_caller]
    pub fn command_ok(&self, argv: &[&str]) -> String {
        self.command(argv).expect_ok()
    }

    /// Runs a shell script that has to succeed.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.command_ok(&["sh", "-ec", script])
    }

    /// Runs a command with environment variables and a deadline.
    #[track_caller]
    pub fn command_with(&self, env: &[(&str, &str)], argv: &[&str], deadline: Duration) -> Outcome {
        let mut command = self.enter(argv);
        command.envs(env.iter().copied());
        run(command, None, deadline).unwrap_or_else(|e| panic!("{} {argv:?}: {e:#}", self.name))
    }

    /// Starts a command in the background; with `ready` it has to print that word first.
    pub fn background(&self, argv: &[&str], ready: bool) -> Result<Background> {
        Background::start(self.enter(argv), ready)
    }

    /// Runs the `weave` program.
    #[track_caller]
    pub fn weave(&self, args: &[&str]) -> Outcome {
        self.weave_env(&[], args)
    }

    /// Runs the `weave` program, which has to succeed; gives its standard output.
    #[track_caller]
    pub fn weave_ok(&self, args: &[&str]) -> String {
        self.weave(args).expect_ok()
    }

    /// Runs the `weave` program with environment variables.
    #[track_caller]
    pub fn weave_env(&self, env: &[(&str, &str)], args: &[&str]) -> Outcome {
        let program = self.weave_program();
        let mut argv = vec![program.as_str()];
        argv.extend(args);
        self.command_with(env, &argv, COMMAND_TIMEOUT)
    }

    /// Runs the `weave` program without a feature of the kernel: a name of [`crate::without::Feature`].
    #[track_caller]
    pub fn weave_without(&self, feature: &str, args: &[&str]) -> Outcome {
        let (lab, weave) = (self.lab_program(), self.weave_program());
        let mut argv = vec![lab.as_str(), "without", feature, weave.as_str()];
        argv.extend(args);
        self.command(&argv)
    }

    /// Runs one of the lab's own probes (`lab probe ...`) in the host's network.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Value {
        probe(self.enter_probe(None, args))
    }

    /// Starts a probe in the background.
    #[track_caller]
    pub fn probe_background(&self, args: &[&str]) -> Background {
        Background::start(self.enter_probe(None, args), true)
            .unwrap_or_else(|e| panic!("{}: {e:#}", self.name))
    }

    /// The IPv4 addresses of `ethwe` in every network namespace of the host, as the kernel has them.
    pub fn holders(&self) -> Result<BTreeMap<String, Vec<String>>, String> {
        let outcome = self.command(&[&self.lab_program(), "probe", "holders"]);
        if !outcome.success() {
            return Err(outcome.to_string());
        }
        serde_json::from_str(&outcome.stdout).map_err(|e| format!("{e}: {}", outcome.stdout))
    }

    /// Starts a capture on one of its interfaces.
    #[track_caller]
    pub fn capture(&self, device: &str) -> Capture {
        Capture::start(self, None, device)
    }

    /// Makes a container: a process with a network namespace of its own, without any link. Panics if it fails.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        self.try_container(name).unwrap_or_else(|e| panic!("{}: {e:#}", self.name))
    }

    /// Creates a container.
    ///
    /// # Errors
    /// The name is in use, or the host is gone.
    pub fn try_container(&self, name: &str) -> Result<Container> {
        Container::start(self, name)
    }

    /// A bridge `weave` without a daemon, to test probes and the lab itself.
    pub fn plain_bridge(&self) {
        self.sh("ip link add name weave type bridge; ip link set weave up");
    }

    /// The daemon's pid inside the host, from its pid file.
    pub fn daemon_pid(&self) -> Option<i32> {
        let text = self.command(&["cat", "/run/weave/weave.pid"]).stdout;
        let pid: i32 = text.trim().parse().ok()?;
        self.command(&["kill", "-0", &pid.to_string()]).success().then_some(pid)
    }

    /// Open file descriptors of the daemon.
    #[track_caller]
    pub fn daemon_fds(&self) -> usize {
        let pid = self.daemon_pid().expect("the daemon runs");
        self.sh(&format!("ls /proc/{pid}/fd")).lines().count()
    }

    /// Sends a signal (`KILL`, `STOP`, `CONT`, ...) to the daemon.
    #[track_caller]
    pub fn signal_daemon(&self, signal: &str) {
        let Some(pid) = self.daemon_pid() else { panic!("{}: no daemon is running", self.name) };
        self.command_ok(&["kill", &format!("-{signal}"), &pid.to_string()]);
    }

    /// The daemon's resident memory in kilobytes.
    #[track_caller]
    pub fn daemon_rss(&self) -> u64 {
        let Some(pid) = self.daemon_pid() else { panic!("{}: no daemon is running", self.name) };
        let status = self.command_ok(&["cat", &format!("/proc/{pid}/status")]);
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        let number = line.and_then(|l| l.split_whitespace().next());
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no VmRSS in {status}"))
    }

    /// Lines of `weave status connections`.
    pub fn connections(&self) -> Vec<Connection> {
        self.weave(&["status", "connections"]).stdout.lines().filter_map(Connection::parse).collect()
    }

    /// Waits until `n` connections are established and routes use them: a peer announces a new connection up to a second later.
    #[track_caller]
    pub fn wait_established(&self, n: usize, deadline: Duration) {
        self.wait("established connections", deadline, || {
            let all = self.connections();
            let have = all.iter().filter(|c| c.state == "established").count();
            if have != n {
                return Err(format!("{have} of {n} established: {all:#?}"));
            }
            missing_convergence(&self.report()?["Router"]).map_or(Ok(()), Err)
        });
    }

    /// `weave report` as JSON.
    pub fn report(&self) -> Result<Value, String> {
        let outcome = self.weave(&["report"]);
        if !outcome.success() {
            return Err(outcome.to_string());
        }
        serde_json::from_str(&outcome.stdout).map_err(|e| format!("{e}: {}", outcome.stdout))
    }

    /// The daemon's log.
    pub fn log(&self) -> String {
        self.command(&["cat", "/var/log/weave.log"]).stdout
    }

    /// [`crate::eventually`] with the host's name in the message.
    #[track_caller]
    pub fn wait<A: Attempt>(&self, what: &str, deadline: Duration, condition: impl FnMut() -> A) -> A::Value {
        match within(&format!("{}: {what}", self.name), deadline, condition) {
            Ok(value) => value,
            Err(text) => panic!("{text}"),
        }
    }

    /// What a failed command must not change: links, addresses, routes, firewall rules, files of the peer and processes, except for
    /// the programs with which the daemon reads the rules now and then.
    pub fn snapshot(&self) -> String {
        self.command(&[
            "sh",
            "-c",
            "ip -o link | sed 's/ state .*//; s/NO-CARRIER,//'; ip -o addr | sed 's/valid_lft.*//; s/ tentative//'; ip route; ip rule; \
             for t in filter nat mangle raw; do iptables -w -t $t -S; done; \
             find /run /var/lib/weave /etc/cni /opt/cni -mindepth 1 ! -name '*.lock' 2>/dev/null | sort; \
             ps -e -o stat=,comm= | sed '/^Z/d; s/^[^ ]* *//' | grep -v -e '^ps$' -e '^sed$' -e '^sh$' -e '^sort$' -e '^grep$' -e '^nsenter$' -e '^iptables' -e '^nft$' | sort",
        ])
        .stdout
    }

    /// Removes every process and device of the host as a reboot does; files on its disk stay. The namespaces stay too, because
    /// the link to the wire is in them.
    #[track_caller]
    pub fn reboot(&self) {
        self.sh(
            "kill -9 -1 2>/dev/null || true; \
             for n in $(ls /run/netns 2>/dev/null); do umount -l /run/netns/$n 2>/dev/null; rm -f /run/netns/$n; done; \
             for l in $(ip -o link | sed 's/^[0-9]*: //; s/[:@].*//' | grep -v -e '^lo$' -e '^eth0$'); do ip link del $l 2>/dev/null || true; done; \
             for t in filter nat mangle raw; do iptables -w -t $t -F; iptables -w -t $t -X; done; \
             find /run -mindepth 1 -maxdepth 1 ! -name netns ! -name lock -exec rm -rf {} + 2>/dev/null || true",
        );
    }

    /// Path of a file on the disk of the host, outside of the host: `lib/...`, `log/...`, `etc/...`.
    pub fn disk(&self, path: &str) -> PathBuf {
        self.disk.as_ref().unwrap_or_else(|| panic!("{} has no disk", self.name)).join(path)
    }

    pub(crate) fn diagnostics(&self) -> String {
        let mut text = format!("--- {} ({}) ---\n", self.name, self.ip);
        text.push_str(&self.command(&["ip", "-br", "addr"]).stdout);
        if weave_candidates().is_some() && self.daemon_pid().is_some() {
            for page in [&["status"][..], &["status", "connections"], &["status", "peers"]] {
                let program = self.weave_program();
                let mut argv = vec![program.as_str()];
                argv.extend(page);
                text.push_str(&self.command_with(&[], &argv, Duration::from_secs(5)).to_string());
                text.push('\n');
            }
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        for line in &lines[lines.len().saturating_sub(80)..] {
            text.push_str("  log: ");
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

impl Connection {
    fn parse(line: &str) -> Option<Connection> {
        let mut words = line.split_whitespace();
        let outbound = match words.next()? {
            "->" => true,
            "<-" => false,
            _ => return None,
        };
        Some(Connection {
            outbound,
            remote: words.next()?.to_owned(),
            state: words.next()?.to_owned(),
            info: words.collect::<Vec<_>>().join(" "),
        })
    }
}

/// Runs a probe; the last line of its output is JSON.
#[track_caller]
pub(crate) fn probe(command: Command) -> Value {
    let outcome = run(command, None, Duration::from_secs(120)).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(outcome.success(), "probe failed\n{outcome}");
    let last = outcome.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("the probe printed no JSON ({e})\n{outcome}"))
}
