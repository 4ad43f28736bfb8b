//! Scenarios in a small language, recorded with their output.
//!
//! Each line is a command; hosts are letters, in the order in which they were added. Lines that begin with `>` are the
//! output of the command before them; `#` begins a comment.
//!
//! ```text
//! peers 3                       three hosts; options: password=P limit=N no-discovery targets=line|first
//! connect b a                   `weave connect` on b (also: forget b a)
//! partition a b | c             cuts every link between the groups; heal
//! block a b                     a firewall rejects connections and datagrams from a to b
//! crash b                       also: power-loss b, start b
//! wait 30                       seconds
//! stabilize                     until no topology changes for five seconds
//! show peers                    also: connections, connection-count, routes, trees, targets
//! ping a c                      a frame between containers: the hosts that receive it (also: broadcast a)
//! note b                        keeps b's record of itself; later: compare b
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use weave_mesh::{PeerStatus, TargetState};
use weave_node::Node;
use weave_types::PeerName;

use crate::frames;
use crate::host::{CrashKind, Host, HostOptions, own_record};
use crate::net::{Faults, HostId};
use crate::world::{World, addresses};

const STABILIZE_TIMEOUT: Duration = Duration::from_secs(600);
const STABLE_PERIOD: Duration = Duration::from_secs(5);

/// Runs a transcript; returns it with the present output of its commands.
pub fn run(text: &str) -> String {
    let mut session = Session { world: World::new(1, Faults::default()), noted: BTreeMap::new() };
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.starts_with('>')) {
        let _ = writeln!(out, "{line}");
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first().is_some_and(|word| !word.starts_with('#')) {
            for shown in session.execute(&words) {
                let _ = writeln!(out, "{}", format!("> {shown}").trim_end());
            }
        }
    }
    out
}

struct Session {
    world: World,
    noted: BTreeMap<HostId, PeerStatus>,
}

impl Session {
    fn execute(&mut self, words: &[&str]) -> Vec<String> {
        let world = &mut self.world;
        match *words {
            ["peers", count, ref options @ ..] => self.add(number(count), options),
            ["connect", at, to] => world.connect(host(at), &addresses(&[host(to)])),
            ["forget", at, target] => world.forget(host(at), host(target)),
            ["partition", ref groups @ ..] => self.partition(groups),
            ["heal"] => world.net.heal_all(),
            ["block", from, to] => world.net.block(host(from), host(to)),
            ["crash", at] => world.crash(host(at), CrashKind::Killed),
            ["power-loss", at] => world.crash(host(at), CrashKind::PowerLost),
            ["start", at] => world.start(host(at), &[]),
            ["wait", seconds] => world.run_for(Duration::from_secs(number(seconds).into())),
            ["stabilize"] => self.stabilize(),
            ["show", what] => return self.show(what),
            ["ping", from, to] => {
                let sent = world.send_unicast(host(from), host(to), frames::MIN_LEN);
                return vec![self.receivers(sent)];
            }
            ["broadcast", from] => {
                let sent = world.send_broadcast(host(from));
                return vec![self.receivers(sent)];
            }
            ["note", at] => {
                self.noted.insert(host(at), self.record(host(at)));
            }
            ["compare", at] => return vec![self.compare(host(at))],
            _ => panic!("no such command: {}", words.join(" ")),
        }
        Vec::new()
    }

    fn add(&mut self, count: u16, words: &[&str]) {
        let mut options = HostOptions::default();
        let mut targets = None;
        for word in words {
            match word.split_once('=') {
                Some(("password", password)) => options.password = Some(password.to_owned()),
                Some(("limit", limit)) => options.connection_limit = number(limit).into(),
                Some(("targets", kind)) => targets = Some(kind),
                None if *word == "no-discovery" => options.discovery = false,
                _ => panic!("no such option: {word}"),
            }
        }
        let first = self.world.hosts().count() as u16;
        for n in first..first + count {
            let target = match targets {
                None => None,
                Some("line") => n.checked_sub(1),
                Some("first") => (n > 0).then_some(0),
                Some(other) => panic!("targets={other}"),
            };
            let targets: Vec<HostId> = target.map(HostId).into_iter().collect();
            self.world.add(HostId(n), options.clone(), &targets);
        }
    }

    fn partition(&mut self, words: &[&str]) {
        let groups: Vec<Vec<HostId>> = words
            .split(|word| *word == "|")
            .map(|group| group.iter().map(|name| host(name)).collect())
            .collect();
        for (n, group) in groups.iter().enumerate() {
            for a in group {
                for b in groups[n + 1..].iter().flatten() {
                    self.world.net.set_cut(*a, *b, true);
                }
            }
        }
    }

    fn stabilize(&mut self) {
        let digests = |world: &World| -> Vec<u64> { world.nodes().map(Node::topology_digest).collect() };
        let end = self.world.now().mono + STABILIZE_TIMEOUT;
        loop {
            let before = digests(&self.world);
            let mut stable = true;
            for _ in 0..STABLE_PERIOD.as_secs() {
                self.world.run_for(Duration::from_secs(1));
                stable &= digests(&self.world) == before;
            }
            if stable {
                return;
            }
            assert!(self.world.now().mono < end, "not stable after {STABILIZE_TIMEOUT:?}");
        }
    }

    fn record(&self, id: HostId) -> PeerStatus {
        own_record(self.world.host(id).node.as_ref().expect("it is up"), self.world.now())
    }

    fn compare(&self, id: HostId) -> String {
        let (before, after) = (&self.noted[&id], self.record(id));
        let word = |same| if same { "the same" } else { "another" };
        let version = if after.version > before.version { "higher" } else { "no higher" };
        let incarnation = word(before.uid == after.uid);
        let short_id = word(before.short_id == after.short_id);
        format!("{}: {incarnation} incarnation, {short_id} short id, {version} version", letter(id))
    }

    fn receivers(&mut self, sent: Option<u64>) -> String {
        self.world.run_for(Duration::from_millis(500));
        let number = sent.expect("both hosts have a container");
        let counts = self.world.take_deliveries(number);
        let received = counts.into_iter().flat_map(|(id, count)| vec![letter(id); count]);
        let received = received.collect::<Vec<_>>().join(" ");
        if received.is_empty() { "no host".to_owned() } else { received }
    }

    fn show(&self, what: &str) -> Vec<String> {
        let names: BTreeMap<PeerName, String> =
            self.world.hosts().map(|(id, _)| (Host::name(*id), letter(*id))).collect();
        let list = |mut names: Vec<String>| {
            names.sort();
            names.join(" ")
        };
        let mut lines = Vec::new();
        for (id, host) in self.world.hosts() {
            let name = letter(*id);
            let (Some(node), Some(tables)) = (&host.node, host.tables()) else {
                lines.push(format!("{name}: down"));
                continue;
            };
            let mesh = node.status(self.world.now()).mesh;
            let routes = &tables.forwarding.routes;
            let text = match what {
                "peers" => list(mesh.peers.iter().map(|p| names[&p.label.name].clone()).collect()),
                "connections" => {
                    let connections = self.record(*id).connections.into_iter().map(|c| {
                        let state = if c.established { "" } else { "?" };
                        format!("{}{state}", names[&c.label.name])
                    });
                    list(connections.collect())
                }
                "connection-count" => self.record(*id).connections.len().to_string(),
                "routes" => {
                    let routes = names.iter().filter_map(|(to, text)| Some((text, routes.unicast(*to)?)));
                    list(routes.map(|(to, via)| format!("{to}-via-{}", names[&via])).collect())
                }
                "trees" => {
                    let trees = names.iter().map(|(from, text)| (text, routes.broadcast(*from)));
                    let trees = trees.filter(|(_, next)| !next.is_empty());
                    let hops = |next: &[PeerName]| list(next.iter().map(|n| names[n].clone()).collect());
                    list(trees.map(|(from, next)| format!("{from}->({})", hops(next))).collect())
                }
                "targets" => {
                    let targets = mesh.targets.iter().map(|target| {
                        let state = match target.state {
                            TargetState::Waiting => "waiting",
                            TargetState::Attempting => "attempting",
                            TargetState::Connected => "connected",
                            TargetState::Suspended => "suspended",
                        };
                        let error = match (&target.last_error, target.state) {
                            (Some(error), TargetState::Waiting) => format!(" {error}"),
                            _ => String::new(),
                        };
                        format!("{} {state}{error}", target.address)
                    });
                    targets.collect::<Vec<_>>().join("; ")
                }
                _ => panic!("nothing to show: {what}"),
            };
            lines.push(format!("{name}: {text}"));
        }
        lines
    }
}

fn letter(id: HostId) -> String {
    char::from(b'a' + id.0 as u8).to_string()
}

fn host(name: &str) -> HostId {
    match name.as_bytes() {
        [letter @ b'a'..=b'z'] => HostId(u16::from(letter - b'a')),
        _ => panic!("no host: {name}"),
    }
}

fn number(text: &str) -> u16 {
    text.parse().unwrap_or_else(|_| panic!("no number: {text}"))
}
