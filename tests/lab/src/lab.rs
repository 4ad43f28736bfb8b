//! A lab: hosts on a wire, and the failures that a network can have.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host::Host;
use crate::programs::{lab_binary, program_folders};
use crate::run::{must, run};
use crate::state::{Holder, LabState, Member, neighbour_limits, remove_abandoned};
use crate::wait::{current_step, step, within};

/// Addresses on the wire; h1 is .1 (RFC 2544 reserves 198.18.0.0/15 for benchmarks).
const WIRE: [u8; 3] = [198, 18, 0];
/// The address of the router between the hosts.
const GATEWAY: &str = "198.18.0.254";

/// Limited by the addresses on the wire.
const MAX_HOSTS: usize = 250;

/// The hosts of a lab.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    hosts: Vec<(String, bool)>,
    /// The tree that hosts have as their root; `None`: that of this machine.
    root: Option<PathBuf>,
}

impl Topology {
    /// `h1` to `hN`.
    pub fn hosts(n: usize) -> Topology {
        Topology { hosts: (1..=n).map(|i| (format!("h{i}"), false)).collect(), root: None }
    }

    /// Gives the hosts another root: a tree of a distribution, which stays as it is.
    pub fn with_root(self, root: &Path) -> Topology {
        Topology { root: Some(root.to_owned()), ..self }
    }

    /// Adds a host, named by its number.
    pub fn and_host(mut self) -> Topology {
        self.hosts.push((format!("h{}", self.hosts.len() + 1), false));
        self
    }

    /// Adds a host behind a router that masquerades: it can connect to the others, but they cannot connect to it.
    pub fn and_behind_nat(mut self) -> Topology {
        self.hosts.push((format!("h{}", self.hosts.len() + 1), true));
        self
    }
}

/// A running lab. Dropping the value ends all of it, unless it was made to stay.
#[derive(Debug)]
pub struct Lab {
    state: LabState,
    hosts: Vec<Host>,
    wire: Host,
    /// The init of each host ends when its pipe closes.
    lifelines: Vec<ChildStdin>,
    owned: bool,
}

impl Lab {
    /// A lab for a test, or `None` after a notice if this process has no right to make one. Panics if it fails.
    pub fn start(name: &str, topology: &Topology) -> Option<Lab> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !crate::privileged() {
            return None;
        }
        remove_abandoned();
        step("");
        let id = format!("{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        match Lab::create(&id, topology, false) {
            Ok(lab) => Some(lab),
            Err(e) => panic!("cannot make the lab {id}: {e:#}"),
        }
    }

    /// Makes a lab. With `stays` it outlives this process, and [`LabState::remove`] ends it.
    pub fn create(id: &str, topology: &Topology, stays: bool) -> Result<Lab> {
        let owner = if stays { None } else { Some(Holder::of(std::process::id() as i32)?) };
        let large = topology.hosts.len() > neighbour_limits::HOSTS_WITHIN_DEFAULTS;
        let mut state = LabState::create(id, owner, large)?;
        if large && let Err(e) = neighbour_limits::raise() {
            eprintln!("NOTICE: neighbour tables may overflow, because their limits cannot be raised: {e:#}");
        }
        match build(&mut state, topology, stays) {
            Ok((wire, hosts, lifelines)) => Ok(Lab { state, hosts, wire, lifelines, owned: !stays }),
            Err(e) => {
                let _ = state.remove();
                Err(e)
            }
        }
    }

    /// A lab that another process made; dropping the value does not end it.
    pub fn open(id: &str) -> Result<Lab> {
        let state = LabState::load(id)?;
        let hosts = state.members.iter().map(|m| Host::new(&state.id, m)).collect();
        let wire = state.wire.filter(Holder::alive);
        let wire =
            wire.with_context(|| format!("lab `{id}` is not running (`lab --id {id} down` removes it)"))?;
        let wire = Host::bare("wire", wire);
        Ok(Lab { state, hosts, wire, lifelines: Vec::new(), owned: false })
    }

    pub fn id(&self) -> &str {
        &self.state.id
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    #[track_caller]
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|h| h.name() == name)
            .unwrap_or_else(|| panic!("no host {name} in lab {}", self.id()))
    }

    /// The router between the hosts, for captures; its interfaces are named after the hosts.
    pub fn wire(&self) -> &Host {
        &self.wire
    }

    /// Drops everything between two hosts, silently and in both directions.
    pub fn cut(&self, a: &str, b: &str) {
        self.add_rule(&["-i", a, "-o", b, "-j", "DROP"]);
        self.add_rule(&["-i", b, "-o", a, "-j", "DROP"]);
    }

    /// Drops what `a` sends to `b`, silently.
    pub fn cut_one_way(&self, a: &str, b: &str) {
        self.add_rule(&["-i", a, "-o", b, "-j", "DROP"]);
    }

    /// Ends `cut`, `cut_one_way` and `block` between two hosts, in both directions.
    pub fn heal(&self, a: &str, b: &str) {
        for (a, b) in [(a, b), (b, a)] {
            self.remove_rule(&["-i", a, "-o", b, "-j", "DROP"]);
            self.remove_rule(&["-i", a, "-o", b, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"]);
        }
    }

    /// Drops what `a` sends to `b`, unless it belongs to a connection that `b` opened: a firewall in front of `b`.
    pub fn block(&self, a: &str, b: &str) {
        self.add_rule(&["-i", a, "-o", b, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"]);
    }

    /// A firewall in front of `host` that lets in only answers and what matches `allowed`: `tcp:6783`, `udp:6783`, ...
    pub fn firewall(&self, host: &str, allowed: &[&str]) {
        for rule in allowed {
            let (protocol, port) =
                rule.split_once(':').unwrap_or_else(|| panic!("rule `{rule}`: protocol:port"));
            self.add_rule(&["-o", host, "-p", protocol, "--dport", port, "-j", "RETURN"]);
        }
        self.add_rule(&["-o", host, "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP"]);
    }

    /// Drops this share (0 to 1) of the packets that are sent to `host`.
    pub fn loss(&self, host: &str, share: f64) {
        let share = format!("{share:.4}");
        self.add_rule(&[
            "-o",
            host,
            "-m",
            "statistic",
            "--mode",
            "random",
            "--probability",
            &share,
            "-j",
            "DROP",
        ]);
    }

    /// Ends every cut, block, firewall and loss.
    pub fn heal_all(&self) {
        self.wire.command_ok(&["iptables", "-w", "-F", "LAB"]);
    }

    /// Limits the path to and from `host` to packets of `mtu` bytes, while its own interface keeps its MTU. Without
    /// `icmp` the router drops larger packets without an ICMP message: a black hole (RFC 2923 2.1).
    pub fn path_mtu(&self, host: &str, mtu: u16, icmp: bool) {
        // A locked MTU on a route applies to forwarded packets; a rule selects the table for those that come from the host.
        let mtu = mtu.to_string();
        let ip = self.host(host).ip().to_string();
        self.wire.command_ok(&[
            "ip",
            "route",
            "replace",
            &format!("{ip}/32"),
            "dev",
            host,
            "mtu",
            "lock",
            &mtu,
        ]);
        let table = (1000 + u32::from(self.host(host).ip().octets()[3])).to_string();
        for other in self.hosts.iter().filter(|h| h.name() != host) {
            let to = format!("{}/32", other.ip());
            self.wire.command_ok(&[
                "ip",
                "route",
                "replace",
                &to,
                "dev",
                other.name(),
                "table",
                &table,
                "mtu",
                "lock",
                &mtu,
            ]);
        }
        self.wire.command(&["ip", "rule", "del", "iif", host, "lookup", &table]);
        self.wire.command_ok(&["ip", "rule", "add", "iif", host, "lookup", &table]);
        let drop_icmp = ["OUTPUT", "-p", "icmp", "--icmp-type", "fragmentation-needed", "-j", "DROP"];
        let iptables = |verb| {
            let mut args = vec!["iptables", "-w", verb];
            args.extend(drop_icmp);
            self.wire.command(&args).success()
        };
        while icmp && iptables("-D") {}
        if !icmp && !iptables("-C") {
            iptables("-A");
        }
    }

    /// Switches segmentation, coalescing and checksum offloads of every link of the wire on or off. Without them captures show
    /// what a real wire would carry.
    pub fn wire_offloads(&self, on: bool) {
        let value = if on { "on" } else { "off" };
        for host in &self.hosts {
            let features: Vec<&str> =
                ["tso", "gso", "gro", "tx-udp-segmentation", "tx"].iter().flat_map(|f| [*f, value]).collect();
            let mut args = vec!["ethtool", "-K", "eth0"];
            args.extend(&features);
            host.command_ok(&args);
            args[2] = host.name();
            self.wire.command_ok(&args);
        }
    }

    fn add_rule(&self, rule: &[&str]) {
        let mut args = vec!["iptables", "-w", "-C", "LAB"];
        args.extend(rule);
        if !self.wire.command(&args).success() {
            args[2] = "-A";
            self.wire.command_ok(&args);
        }
    }

    fn remove_rule(&self, rule: &[&str]) {
        let mut args = vec!["iptables", "-w", "-D", "LAB"];
        args.extend(rule);
        while self.wire.command(&args).success() {}
    }

    /// Interfaces, status pages and the end of the log of every host, to explain a failure.
    pub fn diagnostics(&self) -> String {
        let mut text = format!("=== diagnostics of lab {} ===\n", self.id());
        for host in &self.hosts {
            text.push_str(&host.diagnostics());
        }
        text.push_str("--- wire rules ---\n");
        text.push_str(&self.wire.command(&["iptables", "-w", "-S", "LAB"]).stdout);
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.diagnostics());
            eprintln!("FAILED in lab {}, step: {}", self.id(), current_step());
        }
        self.lifelines.clear();
        if let Err(e) = self.state.remove() {
            eprintln!("lab {}: {e:#}", self.state.id);
        }
    }
}

type Built = (Host, Vec<Host>, Vec<ChildStdin>);

fn build(state: &mut LabState, topology: &Topology, stays: bool) -> Result<Built> {
    if topology.hosts.is_empty() || topology.hosts.len() > MAX_HOSTS {
        bail!("a lab has 1 to {MAX_HOSTS} hosts");
    }
    let dir = LabState::dir(&state.id);
    // All inits start concurrently; each takes some ten milliseconds for its mounts.
    let root = topology.root.as_deref();
    let wire = spawn_init("wire", None, None, true, stays)?;
    let mut starting = Vec::new();
    for (name, nat) in &topology.hosts {
        let disk = dir.join("disk").join(name);
        let host = spawn_init(name, Some(&disk), root, false, stays)?;
        let nat =
            if *nat { Some(spawn_init(&format!("nat-{name}"), None, None, true, stays)?) } else { None };
        starting.push((name, host, nat));
    }
    let mut lifelines = Vec::new();
    let mut await_ready = |child: Child| -> Result<Holder> {
        let (holder, line) = ready(child)?;
        lifelines.extend(line);
        Ok(holder)
    };
    let wire_holder = await_ready(wire)?;
    state.wire = Some(wire_holder);
    let mut failure = None;
    for (i, (name, host, nat)) in starting.into_iter().enumerate() {
        let outcome =
            await_ready(host).and_then(|holder| Ok((holder, nat.map(&mut await_ready).transpose()?)));
        match outcome {
            Ok((holder, nat)) => state.members.push(Member {
                name: name.clone(),
                holder,
                ip: Ipv4Addr::new(WIRE[0], WIRE[1], WIRE[2], i as u8 + 1),
                nat,
            }),
            Err(e) => failure = Some(e),
        }
    }
    state.save()?;
    if let Some(e) = failure {
        return Err(e);
    }

    let wire = Host::bare("wire", wire_holder);
    let mut links = String::new();
    for m in &state.members {
        let end = m.nat.unwrap_or(m.holder);
        links.push_str(&format!(
            "link add {} type veth peer name eth0 netns {}\nlink set {} up\naddr add {GATEWAY}/32 dev {}\nroute add {}/32 dev {}\n",
            m.name, end.pid, m.name, m.name, m.ip, m.name
        ));
    }
    batch(&wire, &links)?;
    // The router answers ARP for the other hosts without the default delay of up to 0.8 s.
    let no_delay = "for d in /proc/sys/net/ipv4/neigh/*/proxy_delay; do echo 0 > $d || true; done";
    must(wire.enter(&["sh", "-c", no_delay]), None)?;
    for rule in ["-N LAB", "-A FORWARD -j LAB"] {
        let args: Vec<&str> = ["iptables", "-w"].into_iter().chain(rule.split(' ')).collect();
        must(wire.enter(&args), None)?;
    }
    let names: String = std::iter::once("127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned())
        .chain(state.members.iter().map(|m| format!("{} {}\n", m.ip, m.name)))
        .collect();
    let mut hosts = Vec::new();
    for m in &state.members {
        let on_wire =
            format!("addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {GATEWAY}\n", m.ip);
        let host = Host::new(&state.id, m);
        if let Some(nat) = m.nat {
            let router = Host::bare(&format!("nat-{}", m.name), nat);
            batch(
                &router,
                &format!(
                    "{on_wire}link add lan type veth peer name eth0 netns {}\naddr add 192.168.66.1/24 dev lan\nlink set lan up\n",
                    m.holder.pid
                ),
            )?;
            must(
                router.enter(&[
                    "iptables",
                    "-w",
                    "-t",
                    "nat",
                    "-A",
                    "POSTROUTING",
                    "-o",
                    "eth0",
                    "-j",
                    "MASQUERADE",
                ]),
                None,
            )?;
            batch(
                &host,
                "addr add 192.168.66.2/24 dev eth0\nlink set eth0 up\nroute add default via 192.168.66.1\n",
            )?;
        } else {
            batch(&host, &on_wire)?;
        }
        std::fs::write(dir.join("disk").join(&m.name).join("etc/hosts"), &names)?;
        hosts.push(host);
    }
    // The kernel brings a new link up as much as a second after both ends are there, and drops what is sent until then.
    for host in hosts.iter().chain([&wire]) {
        let up = within(&format!("{} to be on the wire", host.name()), Duration::from_secs(10), || {
            let links = must(host.enter(&["ip", "-o", "link"]), None)?;
            let down = links.lines().find(|l| !l.contains(" lo: ") && !l.contains("state UP"));
            down.map_or(Ok(()), |l| Err(anyhow::Error::msg(l.to_owned())))
        });
        up.map_err(anyhow::Error::msg)?;
    }
    Ok((wire, hosts, lifelines))
}

fn spawn_init(
    name: &str,
    disk: Option<&Path>,
    root: Option<&Path>,
    router: bool,
    detached: bool,
) -> Result<Child> {
    let mut command = Command::new(lab_binary()?);
    command.args(["init", "--name", name]);
    if let Some(disk) = disk {
        command.arg("--disk").arg(disk);
        for folder in program_folders() {
            command.arg("--program-folder").arg(folder);
        }
    }
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    if router {
        command.arg("--router");
    }
    if detached {
        command.arg("--detached").stdin(Stdio::null()).stderr(Stdio::null());
    } else {
        command.stdin(Stdio::piped());
    }
    command.stdout(Stdio::piped()).spawn().context("cannot start `lab init`")
}

fn ready(mut child: Child) -> Result<(Holder, Option<ChildStdin>)> {
    let lifeline = child.stdin.take();
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let pid = text.trim().parse().with_context(|| format!("`lab init` failed: {} {text}", output.status))?;
    Ok((Holder::of(pid)?, lifeline))
}

fn batch(host: &Host, lines: &str) -> Result<()> {
    // Only the network namespace is entered: the pids in these lines are those of the outer pid namespace.
    let mut command = Command::new("nsenter");
    command.args(["-t", &host.pid().to_string(), "-n", "--", "ip", "-batch", "-"]);
    let outcome = run(command, Some(lines), crate::run::COMMAND_TIMEOUT)?;
    if !outcome.success() {
        bail!("{outcome}\n{lines}");
    }
    Ok(())
}
