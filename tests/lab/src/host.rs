//! One host: commands in it, its daemon, its containers, and what can be seen from outside.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::capture::Capture;
use crate::container::Container;
use crate::lab::lab_binary;
use crate::run::{Background, Outcome, PATIENCE, run};
use crate::state::{Holder, LabState, Member};
use crate::wait::{Attempt, within};

/// A host (or a router) of a lab.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    holder: Holder,
    ip: Ipv4Addr,
    disk: Option<PathBuf>,
}

/// One line of `weave status connections`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// `->` made here, `<-` made by the other side.
    pub outbound: bool,
    /// Address and port of the other end.
    pub remote: String,
    /// established, pending, retrying, failed, connecting.
    pub state: String,
    /// The rest: overlay, peer and attributes, or the reason of a failure.
    pub info: String,
}

/// What the topology still has to get over, if anything: a connection that is not known to both its ends, or that traffic does
/// not take.
fn unsettled(router: &Value) -> Option<String> {
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
        }
    }

    pub(crate) fn bare(name: &str, holder: Holder) -> Host {
        Host { name: name.to_owned(), holder, ip: Ipv4Addr::UNSPECIFIED, disk: None }
    }

    /// The same host in the namespaces of another of its processes (a pid as seen from outside).
    pub(crate) fn inside(&self, pid: i32) -> Result<Host> {
        Ok(Host { holder: Holder::of(pid)?, ..self.clone() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address under which the others know it (behind NAT: the router's).
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Pid of its init as seen from outside.
    pub fn pid(&self) -> i32 {
        self.holder.pid
    }

    /// A command that runs in the host's namespaces, in the given network namespace file or the host's own.
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
            let tool = ["WEAVE_BIN", "WEAVE_LAB_REQUIRED", "WEAVE_LAB_SKIP"].contains(&&*text);
            if tool || text.starts_with("WEAVE_") || text.starts_with("DOCKER_") || text.starts_with("CARGO")
            {
                command.env_remove(&key);
            }
        }
        command.current_dir("/");
        command
    }

    pub(crate) fn enter(&self, argv: &[&str]) -> Command {
        self.enter_net(None, argv)
    }

    /// A shell (or a command) for a person, in the host or in one of its containers; `weave` and `lab` are on the PATH.
    pub fn interactive(&self, container: Option<&str>, prompt: &str, command: &[String]) -> Command {
        let net = container.map(|name| format!("/run/netns/{name}"));
        let mut argv: Vec<&str> = command.iter().map(String::as_str).collect();
        if argv.is_empty() {
            argv = vec!["bash", "--norc"];
        }
        let mut process = self.enter_net(net.as_deref(), &argv);
        let tools = [Some(lab_binary()), weave_candidates().map(PathBuf::from)];
        let mut path: Vec<PathBuf> =
            tools.iter().flatten().filter_map(|t| t.parent().map(PathBuf::from)).collect();
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        if let Ok(path) = std::env::join_paths(path) {
            process.env("PATH", path);
        }
        process.env("PS1", prompt);
        process
    }

    /// Runs a command to its end (or 60 s).
    #[track_caller]
    pub fn command(&self, argv: &[&str]) -> Outcome {
        self.command_with(&[], argv, PATIENCE)
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

    /// Starts a command beside the test; with `ready` it has to print that word first.
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
        let mut argv = vec![weave_binary()];
        argv.extend(args);
        self.command_with(env, &argv, PATIENCE)
    }

    /// Runs the `weave` program, which finds a feature of the kernel missing: a name of [`crate::without::Feature`].
    #[track_caller]
    pub fn weave_without(&self, feature: &str, args: &[&str]) -> Outcome {
        let lab = lab_binary().to_string_lossy().into_owned();
        let mut argv = vec![lab.as_str(), "without", feature, weave_binary()];
        argv.extend(args);
        self.command(&argv)
    }

    /// Runs one of the lab's own probes (`lab probe ...`) in the host's network.
    #[track_caller]
    pub fn probe(&self, args: &[&str]) -> Value {
        probe(self.enter_net(None, &probe_argv(args)))
    }

    /// Starts a probe beside the test.
    #[track_caller]
    pub fn probe_background(&self, args: &[&str]) -> Background {
        self.background(&probe_argv(args), true).unwrap_or_else(|e| panic!("{}: {e:#}", self.name))
    }

    /// Every network namespace of the host that has an `ethwe`, with its IPv4 addresses, as the kernel says.
    pub fn holders(&self) -> Result<BTreeMap<String, Vec<String>>, String> {
        let outcome = self.command(&probe_argv(&["holders"]));
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

    /// Makes a container: a process with a network namespace of its own, as yet without any link.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        Container::start(self, name)
    }

    /// A plain bridge `weave` without any daemon, to try probes and the lab itself.
    pub fn plain_bridge(&self) {
        self.sh("ip link add name weave type bridge; ip link set weave up");
    }

    /// The daemon's pid inside the host, from its pid file.
    pub fn daemon_pid(&self) -> Option<i32> {
        let text = self.command(&["cat", "/run/weave/weave.pid"]).stdout;
        let pid: i32 = text.trim().parse().ok()?;
        self.command(&["kill", "-0", &pid.to_string()]).success().then_some(pid)
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

    /// Waits until the number of established connections is `n` and frames take them: a peer tells the others about a new
    /// connection up to a second later, and until then everybody's routes go around it.
    #[track_caller]
    pub fn wait_established(&self, n: usize, deadline: Duration) {
        self.wait("established connections", deadline, || {
            let all = self.connections();
            let have = all.iter().filter(|c| c.state == "established").count();
            if have != n {
                return Err(format!("{have} of {n} established: {all:#?}"));
            }
            unsettled(&self.report()?["Router"]).map_or(Ok(()), Err)
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

    /// The parts of the host's configuration that a failed command must leave alone: links, addresses, routes, packet filter
    /// rules and the files of the peer.
    pub fn snapshot(&self) -> String {
        self.command(&[
            "sh",
            "-c",
            "ip -o link | sed 's/ state .*//'; ip -o addr | sed 's/valid_lft.*//; s/ tentative//'; ip route; ip rule; \
             for t in filter nat mangle raw; do iptables -w -t $t -S; done; \
             find /run /var/lib/weave /etc/cni /opt/cni -mindepth 1 ! -name '*.lock' 2>/dev/null | sort; \
             ps -e -o stat=,comm= | sed '/^Z/d; s/^[^ ]* *//' | grep -v -e '^ps$' -e '^sed$' -e '^sh$' -e '^sort$' -e '^grep$' -e '^nsenter$' | sort",
        ])
        .stdout
    }

    /// Turns the machine off and on: every process and device of the host is gone, what is on disk stays.
    /// Only what lives in the network namespace is taken away; the namespaces themselves are kept so that the wire stays joined.
    #[track_caller]
    pub fn reboot(&self) {
        self.sh(
            "kill -9 -1 2>/dev/null || true; \
             for n in $(ls /run/netns 2>/dev/null); do umount /run/netns/$n 2>/dev/null; rm -f /run/netns/$n; done; \
             for l in $(ip -o link | sed 's/^[0-9]*: //; s/[:@].*//' | grep -v -e '^lo$' -e '^eth0$'); do ip link del $l 2>/dev/null || true; done; \
             for t in filter nat mangle raw; do iptables -w -t $t -F; iptables -w -t $t -X; done; \
             find /run -mindepth 1 -maxdepth 1 ! -name netns ! -name lock -exec rm -rf {} + 2>/dev/null || true",
        );
    }

    /// Path of a file of the host's disk as seen from outside: `lib/...`, `log/...`, `etc/...`.
    pub fn disk(&self, path: &str) -> PathBuf {
        self.disk.as_ref().unwrap_or_else(|| panic!("{} has no disk", self.name)).join(path)
    }

    pub(crate) fn diagnostics(&self) -> String {
        let mut text = format!("--- {} ({}) ---\n", self.name, self.ip);
        text.push_str(&self.command(&["ip", "-br", "addr"]).stdout);
        if weave_candidates().is_some() && self.daemon_pid().is_some() {
            for page in [&["status"][..], &["status", "connections"], &["status", "peers"]] {
                let mut argv = vec![weave_binary()];
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

pub(crate) fn probe_argv<'a>(args: &[&'a str]) -> Vec<&'a str> {
    static LAB: OnceLock<String> = OnceLock::new();
    let lab = LAB.get_or_init(|| lab_binary().to_string_lossy().into_owned());
    let mut argv = vec![lab.as_str(), "probe"];
    argv.extend(args);
    argv
}

/// Runs a probe to its end; its last line is JSON.
#[track_caller]
pub(crate) fn probe(command: Command) -> Value {
    let outcome = run(command, None, Duration::from_secs(120)).unwrap_or_else(|e| panic!("{e:#}"));
    assert!(outcome.success(), "probe failed\n{outcome}");
    let last = outcome.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("probe said no JSON ({e})\n{outcome}"))
}

/// The program under test: `WEAVE_BIN`, else the newest of those that cargo built.
#[track_caller]
pub fn weave_binary() -> &'static str {
    match weave_candidates() {
        Some(path) => path,
        None => panic!("no `weave` program: build it (`cargo build -p weave-cli`) or set WEAVE_BIN"),
    }
}

fn weave_candidates() -> Option<&'static str> {
    static WEAVE: OnceLock<Option<String>> = OnceLock::new();
    WEAVE
        .get_or_init(|| {
            if let Some(path) = std::env::var_os("WEAVE_BIN") {
                return Some(path.to_string_lossy().into_owned());
            }
            let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target"));
            let newest = ["lab", "release", "debug"]
                .iter()
                .map(|profile| root.join(profile).join("weave"))
                .chain(lab_binary().parent().map(|dir| dir.join("weave")))
                .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
                .max_by_key(|(time, _)| *time)?;
            Some(newest.1.canonicalize().ok()?.to_string_lossy().into_owned())
        })
        .as_deref()
}
