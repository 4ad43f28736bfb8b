//! The network as this peer sees it, at one moment: what the live picture and `weave top` show.
//!
//! It is made from the report. Peers tell each other which connections they have, and nothing else about them: overlay, encryption, MTU, round
//! trip, loss and traffic are known for the connections of this peer only.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::facts;
use crate::report::{self, PathQuality, Report, Traffic};

/// Largest numbers of list entries. What is left out is counted.
const MAX_PEERS: usize = 1000;
const MAX_LINKS: usize = 20_000;
const MAX_NAMES: usize = 1000;
const MAX_CONTAINERS: usize = 1000;

/// The network at one moment. Keys are only added, and every key is always there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NetworkView {
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// Program version of this peer.
    pub version: String,
    /// Whether everything that was asked for at launch is in place.
    pub ready: bool,
    /// Name of this peer.
    pub name: String,
    /// Nickname of this peer.
    pub nick_name: String,
    /// Whether a password is set.
    pub encryption: bool,
    /// Peers, this one first, the others by name; then owners of addresses that the mesh does not reach.
    pub peers: Vec<Peer>,
    /// Pairs of peers with a connection, as positions in `peers`; 1,000 peers and 20,000 links at most are listed.
    pub links: Vec<Link>,
    /// The connections of this peer, then targets that are not connected.
    pub connections: Vec<Connection>,
    /// The range of addresses; empty while address allocation is off.
    pub range: String,
    /// State of address allocation, as on the status page; empty while it is off.
    pub allocation: String,
    /// Containers of this host that have addresses, 1,000 at most.
    pub containers: Vec<Container>,
    /// Names that are not deleted, 1,000 at most.
    pub names: Vec<Name>,
    /// What does not work on this host, with peers, connections and targets, and why, as sentences.
    pub problems: Vec<String>,
    /// Recent events of this peer, the oldest first.
    pub events: Vec<Event>,
    /// The sizes of the complete lists.
    pub totals: Totals,
}

/// How many there are, whether or not they are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Totals {
    /// Peers that the mesh reaches, this one included.
    pub peers: usize,
    /// Pairs of peers with a connection.
    pub links: usize,
    /// Containers of this host.
    pub containers: usize,
    /// Names.
    pub names: usize,
}

/// A peer, or an owner of addresses that the mesh does not reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// Name of the peer.
    pub name: String,
    /// Nickname of the peer.
    pub nick_name: String,
    /// Whether the mesh reaches it.
    pub reachable: bool,
    /// The neighbour to which frames for it are sent; empty for this peer and without a route.
    pub via: String,
    /// How it is reached, in words: the overlay of its connection, or which peer relays frames.
    pub reached: String,
    /// Addresses that it owns.
    #[serde(rename = "IPs")]
    pub ips: u64,
    /// Its share of the range, 0 to 100.
    pub percent: f64,
    /// Ethernet addresses of containers and others that were seen there.
    #[serde(rename = "MACs")]
    pub macs: usize,
    /// Names that it has registered.
    pub names: usize,
}

/// Two peers with a connection: their positions in the list of peers, and whether both report that frames can pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link(pub usize, pub usize, pub bool);

/// A connection of this peer, or a target that is not connected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Connection {
    /// The other end's TCP address.
    pub address: String,
    /// Whether this peer dialled.
    pub outbound: bool,
    /// As in the report.
    pub state: String,
    /// The other end's name; empty for targets.
    pub name: String,
    /// Nickname of the peer at the other end.
    pub nick_name: String,
    /// The overlay in use; `null` while there is none.
    pub overlay: Option<String>,
    /// Whether data is encrypted; `null` while there is no overlay.
    pub encrypted: Option<bool>,
    /// Largest packet carried whole; `null` while it is not known.
    #[serde(rename = "MTU")]
    pub mtu: Option<u64>,
    /// Why the connection does not use a better overlay, or is not established; empty if there is nothing to explain.
    pub reason: String,
    /// What has passed; `null` for targets.
    pub traffic: Option<Traffic>,
    /// Round trip and loss; `null` for targets and unless both ends test the path.
    pub quality: Option<PathQuality>,
}

/// Something on this host with addresses of the network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Container {
    /// Its id, or what else the addresses belong to.
    #[serde(rename = "ID")]
    pub id: String,
    /// Addresses with prefix lengths.
    pub addresses: Vec<String>,
}

/// A name that is not deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Name {
    /// Full name with final dot.
    pub hostname: String,
    /// Its address.
    pub address: String,
    /// Full id of the container that has it.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// The peer that registered it.
    pub origin: String,
}

/// An event of this peer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Event {
    /// Milliseconds since the Unix epoch.
    pub time: u64,
    /// As in the log.
    pub text: String,
}

impl Connection {
    /// Whether frames can pass.
    pub fn is_established(&self) -> bool {
        self.state == "established"
    }
}

impl NetworkView {
    /// The view at `time`, milliseconds since the Unix epoch. `containers` and `events` are what the report does not have.
    pub fn new(report: &Report, containers: Vec<Container>, events: Vec<Event>, time: u64) -> NetworkView {
        let router = &report.router;
        let connections: Vec<_> = router.connections.iter().map(connection).collect();
        let (peers, reachable) = peers(report, &connections);
        let (links, all_links) = links(&router.peers, peers.len());
        let entries: Vec<_> = report.dns.iter().flat_map(facts::active_entries).collect();
        let totals =
            Totals { peers: reachable, links: all_links, containers: containers.len(), names: entries.len() };
        let names = entries.into_iter().take(MAX_NAMES).map(|entry| Name {
            hostname: entry.hostname.clone(),
            address: entry.address.clone(),
            container_id: entry.container_id.clone(),
            origin: entry.origin.clone(),
        });
        NetworkView {
            time,
            version: report.version.clone(),
            ready: report.ready,
            name: router.name.clone(),
            nick_name: router.nick_name.clone(),
            encryption: router.encryption,
            problems: problems(report, &peers, &connections),
            peers,
            links,
            connections,
            range: report.ipam.as_ref().map(|ipam| ipam.range.clone()).unwrap_or_default(),
            allocation: report.ipam.as_ref().map(facts::ipam_state).unwrap_or_default(),
            containers: containers.into_iter().take(MAX_CONTAINERS).collect(),
            names: names.collect(),
            events,
            totals,
        }
    }

    /// Compact JSON on one line.
    pub fn to_json(&self) -> String {
        report::to_go_json(self, false)
    }

    /// Reads what a daemon sent.
    ///
    /// # Errors
    /// The text is not JSON or lacks a key.
    pub fn from_json(text: &str) -> Result<NetworkView, serde_json::Error> {
        serde_json::from_str(text)
    }
}

/// The peers in the view, and how many the mesh reaches.
fn peers(report: &Report, connections: &[Connection]) -> (Vec<Peer>, usize) {
    let router = &report.router;
    let mut macs: BTreeMap<&str, usize> = BTreeMap::new();
    for mac in &router.macs {
        *macs.entry(&mac.name).or_default() += 1;
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in report.dns.iter().flat_map(|dns| &dns.entries).filter(|entry| entry.tombstone == 0) {
        *names.entry(&entry.origin).or_default() += 1;
    }
    let via: BTreeMap<&str, &str> =
        router.unicast_routes.iter().map(|route| (route.dest.as_str(), route.via.as_str())).collect();
    let nicknames: BTreeMap<&str, &str> =
        router.peers.iter().map(|peer| (peer.name.as_str(), peer.nick_name.as_str())).collect();
    // An established one, if there are several.
    let mut to: BTreeMap<&str, &Connection> = BTreeMap::new();
    for connection in connections {
        if connection.is_established() || !to.contains_key(connection.name.as_str()) {
            to.insert(&connection.name, connection);
        }
    }
    let mut shares: BTreeMap<&str, _> =
        facts::shares(report).into_iter().map(|share| (share.peer, share)).collect();
    let mut peers: Vec<Peer> = Vec::new();
    for peer in router.peers.iter().take(MAX_PEERS) {
        let name = peer.name.as_str();
        let share = shares.remove(name);
        let via = via.get(name).filter(|_| name != router.name).copied().unwrap_or_default();
        let reached = match (via, to.get(name)) {
            _ if name == router.name => "this peer".to_owned(),
            (_, Some(connection)) if connection.is_established() && (via.is_empty() || via == name) => {
                connection.overlay.clone().unwrap_or_else(|| "direct".to_owned())
            }
            (via, connection) => {
                let route = match via {
                    "" => "no route".to_owned(),
                    via => {
                        format!("{} relays", text_of(nicknames.get(via).copied().unwrap_or_default(), via))
                    }
                };
                let state = connection.map(|c| format!(", direct connection {}", c.state));
                route + &state.unwrap_or_default()
            }
        };
        peers.push(Peer {
            name: name.to_owned(),
            nick_name: peer.nick_name.clone(),
            reachable: true,
            via: via.to_owned(),
            reached,
            ips: share.as_ref().map_or(0, |share| share.ips),
            percent: share.as_ref().map_or(0.0, |share| share.percent),
            macs: macs.get(name).copied().unwrap_or(0),
            names: names.get(name).copied().unwrap_or(0),
        });
    }
    let lost = shares.into_values().filter(|share| !share.reachable);
    let room = MAX_PEERS - peers.len();
    peers.extend(lost.take(room).map(|share| Peer {
        name: share.peer.to_owned(),
        nick_name: share.nickname.to_owned(),
        reached: "not reached".to_owned(),
        ips: share.ips,
        percent: share.percent,
        names: names.get(share.peer).copied().unwrap_or(0),
        ..Peer::default()
    }));
    (peers, router.peers.len())
}

fn text_of<'a>(nickname: &'a str, name: &'a str) -> &'a str {
    if nickname.is_empty() { name } else { nickname }
}

fn problems(report: &Report, peers: &[Peer], connections: &[Connection]) -> Vec<String> {
    let mut problems = report.host_problems.clone();
    if !report.ready {
        problems.push("this peer is not ready".to_owned());
    }
    for peer in peers {
        let Peer { name, nick_name, reached, .. } = peer;
        if !peer.reachable {
            problems.push(format!("{name}({nick_name}) is not reached and owns {} addresses", peer.ips));
        } else if *name != report.router.name && peer.via != *name {
            problems.push(format!("{name}({nick_name}): {reached}"));
        }
    }
    for Connection { address, state, name, nick_name, reason, .. } in connections {
        let other = if name.is_empty() { address.clone() } else { format!("{name}({nick_name})") };
        match (state.as_str(), reason.as_str()) {
            ("waiting", _) | ("established", "") => {}
            (_, "") => problems.push(format!("{other}: {state}")),
            _ => problems.push(format!("{other}: {state}, {reason}")),
        }
    }
    problems
}

/// The links among the first `listed` peers, and the number of all links.
fn links(peers: &[report::Peer], listed: usize) -> (Vec<Link>, usize) {
    let positions: HashMap<&str, usize> =
        peers.iter().enumerate().map(|(position, peer)| (peer.name.as_str(), position)).collect();
    let mut ends: BTreeMap<(usize, usize), u8> = BTreeMap::new();
    for (from, peer) in peers.iter().enumerate() {
        for connection in &peer.connections {
            if let Some(&to) = positions.get(connection.name.as_str()) {
                *ends.entry((from.min(to), from.max(to))).or_default() += u8::from(connection.established);
            }
        }
    }
    let all = ends.len();
    let links = ends.into_iter().filter(|((_, b), _)| *b < listed).take(MAX_LINKS);
    (links.map(|((a, b), established)| Link(a, b, established >= 2)).collect(), all)
}

fn connection(connection: &report::Connection) -> Connection {
    let attribute = |key: &str| connection.attrs.as_ref().and_then(|attributes| attributes.get(key));
    let overlay = attribute("name").and_then(|value| value.as_str()).map(str::to_owned);
    let encrypted = || attribute("encrypted").and_then(|value| value.as_bool()).unwrap_or(false);
    // The information about a connection is overlay and peer, that about a target why there is no connection.
    let is_target = connection.name.is_empty() && connection.attrs.is_none();
    let reason = connection.overlay_reason.as_ref().or(is_target.then_some(&connection.info));
    Connection {
        address: connection.address.clone(),
        outbound: connection.outbound,
        state: connection.state.clone(),
        name: connection.name.clone(),
        nick_name: connection.nick_name.clone(),
        encrypted: overlay.as_ref().map(|_| encrypted()),
        overlay,
        mtu: attribute("mtu").and_then(|value| value.as_u64()),
        reason: reason.cloned().unwrap_or_default(),
        traffic: connection.traffic,
        quality: connection.quality,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(case: &str) -> Report {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/cli");
        let text = std::fs::read_to_string(format!("{root}/{case}/report.json")).expect(case);
        Report::from_json(&text).expect(case)
    }

    /// Of host3, host2 and host1, with the names at the other ends, which 2.8.1 did not report.
    fn three_hosts() -> Report {
        let mut report = vector("three-peers-host3");
        for (connection, number) in report.router.connections.iter_mut().zip([2, 1]) {
            connection.name = format!("8a:3e:3e:3e:3e:0{number}");
            connection.nick_name = format!("host{number}");
        }
        report
    }

    #[test]
    fn peers_links_and_targets_of_three_hosts() {
        let report = three_hosts();
        let container = Container { id: "c1".to_owned(), addresses: vec!["10.32.0.1/12".to_owned()] };
        let view = NetworkView::new(&report, vec![container.clone()], Vec::new(), 1_700_000_000_123);
        let names: Vec<_> = view.peers.iter().map(|peer| peer.nick_name.as_str()).collect();
        assert_eq!(names, ["host3", "host2", "host1"]);
        assert_eq!(view.links, [Link(0, 1, true), Link(0, 2, true), Link(1, 2, true)]);
        assert_eq!(view.totals, Totals { peers: 3, links: 3, containers: 1, names: view.names.len() });
        let shares: f64 = view.peers.iter().map(|peer| peer.percent).sum();
        assert!((shares - 100.0).abs() < 1e-9, "{shares}");
        let first = &view.connections[0];
        assert_eq!(
            (first.overlay.as_deref(), first.mtu, first.reason.as_str()),
            (Some("sleeve"), Some(1438), "")
        );
        assert_eq!(first.encrypted, Some(false));
        let target = &view.connections[2];
        assert_eq!((target.overlay.as_deref(), target.name.as_str()), (None, ""));
        assert!(target.reason.contains("no route to host"), "{target:?}");
        let reached: Vec<_> = view.peers.iter().map(|peer| peer.reached.as_str()).collect();
        assert_eq!(reached, ["this peer", "sleeve", "sleeve"]);
        let unreachable = |problem: &String| {
            problem.contains("192.168.48.99:6783: ") && problem.contains("no route to host")
        };
        assert!(view.problems.iter().any(unreachable), "{:?}", view.problems);
        assert_eq!(view.containers, [container]);
        assert_eq!(NetworkView::from_json(&view.to_json()).expect("JSON"), view);
        assert!(!view.to_json().contains('\n'), "one line, for an event stream");
    }

    #[test]
    fn relayed_peers_are_problems() {
        let mut report = three_hosts();
        let [own, near, far] = [0, 1, 2].map(|at| report.router.peers[at].name.clone());
        report.router.connections[1].state = "pending".to_owned();
        report.router.unicast_routes.retain(|route| route.dest != far);
        report.router.unicast_routes.push(report::UnicastRoute { dest: far.clone(), via: near });
        let view = NetworkView::new(&report, Vec::new(), Vec::new(), 0);
        let relayed = "host2 relays, direct connection pending";
        assert_eq!(view.peers[2].reached, relayed);
        assert!(view.problems.contains(&format!("{far}(host1): {relayed}")), "{:?}", view.problems);
        assert!(!view.problems.iter().any(|problem| problem.contains(&own)), "{:?}", view.problems);
        report.router.unicast_routes.pop();
        let view = NetworkView::new(&report, Vec::new(), Vec::new(), 0);
        assert_eq!(view.peers[2].reached, "no route, direct connection pending");
    }

    #[test]
    fn a_link_is_established_if_both_ends_say_so() {
        let mut report = three_hosts();
        report.router.peers[0].connections.remove(1);
        report.router.peers[1].connections[0].established = false;
        report.router.peers[2].connections.clear();
        let view = NetworkView::new(&report, Vec::new(), Vec::new(), 0);
        assert_eq!(view.links.iter().filter(|link| link.2).count(), 0, "{:?}", view.links);
        assert_eq!(view.totals.links, view.links.len());
    }

    #[test]
    fn owners_that_are_not_reached_are_listed_last() {
        let mut report = three_hosts();
        let lost = report.router.peers.remove(2).name;
        for entry in &mut report.ipam.as_mut().expect("on").entries {
            entry.is_known_peer = entry.peer != lost;
        }
        let view = NetworkView::new(&report, Vec::new(), Vec::new(), 0);
        let last = view.peers.last().expect("peers");
        assert_eq!((last.name.as_str(), last.reachable, view.totals.peers), (lost.as_str(), false, 2));
        assert!(last.ips > 0 && view.links.iter().all(|link| link.1 < 2));
    }

    #[test]
    fn lists_are_bounded_and_counted() {
        let mut report = vector("one-peer-active");
        let peer = |n: usize| report::Peer { name: format!("p{n}"), ..report::Peer::default() };
        report.router.peers = (0..1200).map(peer).collect();
        let connection = |n: usize| report::PeerConnection {
            name: format!("p{n}"),
            established: true,
            ..report::PeerConnection::default()
        };
        for peer in &mut report.router.peers {
            peer.connections = (0..100).map(connection).collect();
        }
        let entry = report.dns.as_ref().expect("on").entries[0].clone();
        report.dns.as_mut().expect("on").entries = vec![report::DnsEntry { tombstone: 0, ..entry }; 5000];
        let containers = vec![Container::default(); 2000];
        let view = NetworkView::new(&report, containers, Vec::new(), 0);
        assert_eq!((view.peers.len(), view.totals.peers), (MAX_PEERS, 1200));
        assert_eq!(view.links.len(), MAX_LINKS);
        assert!(view.totals.links > 100_000);
        assert_eq!((view.names.len(), view.totals.names), (MAX_NAMES, 5000));
        assert_eq!((view.containers.len(), view.totals.containers), (MAX_CONTAINERS, 2000));
    }
}
