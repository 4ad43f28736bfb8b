//! Invariants of the mesh: some hold after every transition, the others some time after all faults have ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use weave_mesh::PeerStatus;
use weave_node::Node;
use weave_types::PeerName;

use crate::frames;
use crate::host::{CrashKind, Host, own_record};
use crate::net::{Faults, HostId};
use crate::plans::Plan;
use crate::world::{World, addresses};

/// Longest time until a healed mesh has converged. The slowest case: `connect` dials a target that was in a long back-off, the
/// handshake waits for a stalled stream, and the other end must time out first.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest timeout of a connection, and some time for the topology to change.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(65);

/// Checks what holds after every transition.
pub fn check_always(world: &mut World) {
    let now = world.now();
    let mut views: BTreeMap<HostId, Vec<PeerStatus>> = BTreeMap::new();
    for id in world.ids() {
        let host = world.host_mut(id);
        for frame in host.delivered.drain(..) {
            let stamp = frames::read(&frame)
                .unwrap_or_else(|| panic!("{id} received a frame that no container sent"));
            assert_ne!(stamp.from, id, "{id} received its own frame {}", stamp.number);
        }
        check_version(host);
        if let Some(node) = &host.node {
            views.insert(id, node.status(now).mesh.peers);
        }
    }
    let records: BTreeMap<PeerName, PeerStatus> = views
        .iter()
        .filter_map(|(id, peers)| peers.iter().find(|p| p.label.name == Host::name(*id)))
        .map(|own| (own.label.name, own.clone()))
        .collect();
    for (id, peers) in &views {
        let host = world.host(*id);
        let own = &records[&Host::name(*id)];
        check_own_record(host, own);
        for seen in peers {
            if let Some(actual) = records.get(&seen.label.name) {
                check_seen_record(*id, seen, actual);
            }
        }
    }
}

/// The version and short id of a peer are persisted before others see them; its connections do not exceed the limit.
fn check_own_record(host: &Host, own: &PeerStatus) {
    let (id, persisted) = (host.id, &host.expected_disk);
    assert!(
        own.version < persisted.version_ceiling,
        "{id} is at version {}, but would start at {} after a restart",
        own.version,
        persisted.version_ceiling
    );
    assert_eq!(own.short_id, persisted.short_id, "{id} has not persisted its short id");
    let limit = host.options.connection_limit;
    let connections = own.connections.len();
    assert!(limit == 0 || connections <= limit, "{id} has {connections} connections, the limit is {limit}");
}

/// No peer has a newer record of another than that peer itself, and records of the same version are equal.
fn check_seen_record(by: HostId, seen: &PeerStatus, actual: &PeerStatus) {
    if seen.uid != actual.uid {
        return;
    }
    let name = seen.label.name;
    assert!(
        seen.version <= actual.version,
        "{by} sees version {} of {name}, which is at {}",
        seen.version,
        actual.version
    );
    // A record of version 0 was made by a handshake, and is incomplete.
    if seen.version == actual.version && seen.version > 0 {
        let links = |peer: &PeerStatus| -> Vec<_> {
            let links = peer.connections.iter();
            links.map(|l| (l.label.name, l.address.clone(), l.outbound, l.established)).collect()
        };
        assert_eq!(
            (seen.short_id, links(seen)),
            (actual.short_id, links(actual)),
            "{by} sees a record of version {} of {name} that differs from the record of {name} itself",
            seen.version
        );
    }
}

/// The topology version of a peer never decreases, not even after a restart.
fn check_version(host: &mut Host) {
    let Some(node) = host.node.as_ref() else { return };
    let version = node.version();
    let (id, highest) = (host.id, host.highest_version);
    assert!(version >= highest, "{id} has version {version}, an earlier incarnation was at {highest}");
    host.highest_version = version;
}

/// Heals everything, waits for convergence, and checks what holds then.
pub fn check_eventually(world: &mut World, plan: &Plan) {
    heal(world, plan);
    wait_for_convergence(world, plan.is_complete());
    check_always(world);
    check_tables(world);
    check_deliveries(world);
    check_macs(world);
    check_quiet(world, plan);
    check_long_frames(world);
    if plan.is_complete() && !plan.firewalls {
        check_simultaneous_dials(world);
    }
    check_lost_peer_is_forgotten(world, plan);
}

/// Waits until all peers agree, and still agree after the timeout of a connection.
pub fn wait_for_convergence(world: &mut World, complete: bool) {
    // Dials that a firewall drops time out, and are repeated after a pause.
    let limit = if world.net.is_blocking() { CONVERGENCE_TIMEOUT * 3 } else { CONVERGENCE_TIMEOUT };
    let start = world.now().mono;
    loop {
        let converged = world.run_until(limit, |world| disagreement(world, complete).is_none());
        assert!(
            converged,
            "not converged after {limit:?}: {}",
            disagreement(world, complete).unwrap_or_default()
        );
        // A connection that was cut just before may still time out and be established again.
        world.run_for(CONNECTION_TIMEOUT);
        if disagreement(world, complete).is_none() {
            break;
        }
        let waited = world.now().mono - start;
        assert!(waited < limit * 3, "flapping: {}", disagreement(world, complete).unwrap_or_default());
    }
}

/// Ends all faults but firewalls, starts all peers, and connects each to the one before it.
fn heal(world: &mut World, plan: &Plan) {
    world.net.heal_all();
    world.end_load();
    world.net.faults =
        Faults { split_stream_randomly: plan.faults.split_stream_randomly, ..Faults::default() };
    for id in world.ids() {
        world.host_mut(id).cancel_crash();
        if world.host(id).node.is_none() {
            world.start(id, &[]);
        }
    }
    for n in 1..plan.hosts {
        let (previous, this) = (HostId(n - 1), HostId(n));
        world.connect(this, &addresses(&[previous]));
        if plan.firewalls {
            world.connect(previous, &addresses(&[this]));
        }
    }
    if plan.firewalls || plan.is_limited() {
        return;
    }
    // A dial after a long back-off would disturb the quiet minute: `connect` makes it due now.
    for id in world.ids() {
        let targets = world.host(id).disk.targets.clone();
        world.connect(id, &targets);
    }
}

/// Why the mesh has not converged: views differ, or connections are missing or not established.
pub fn disagreement(world: &World, complete: bool) -> Option<String> {
    let now = world.now();
    let mut first: Option<(HostId, Vec<String>)> = None;
    let all = world.hosts().count();
    for (id, host) in world.hosts() {
        let Some(node) = host.node.as_ref() else { return Some(format!("{id} is down")) };
        let status = node.status(now);
        let mut view: Vec<String> = Vec::new();
        for peer in &status.mesh.peers {
            let mut connections: Vec<String> = peer
                .connections
                .iter()
                .map(|c| format!("{}{}", c.label.name, if c.established { "" } else { "?" }))
                .collect();
            connections.sort();
            if let Some(pending) = connections.iter().find(|c| c.ends_with('?')) {
                return Some(format!("{id}: {} - {pending} is not established", peer.label.name));
            }
            if complete && connections.len() + 1 < all {
                return Some(format!("{id}: {} has {} connections", peer.label.name, connections.len()));
            }
            view.push(format!(
                "{} {} {} {:?} {connections:?}",
                peer.label.name, peer.uid.0, peer.version, peer.short_id
            ));
        }
        view.sort();
        if view.len() < all {
            return Some(format!("{id} knows {} peers", view.len()));
        }
        match &first {
            None => first = Some((*id, view)),
            Some((other, reference)) if *reference != view => {
                return Some(format!("{id} and {other} see different meshes"));
            }
            Some(_) => {}
        }
    }
    None
}

/// The tables of the data paths of a converged mesh: short ids are unique, unicast routes are the shortest, and a broadcast
/// reaches all peers once.
pub fn check_tables(world: &World) {
    let now = world.now();
    let ids: BTreeMap<PeerName, HostId> = world.hosts().map(|(id, _)| (Host::name(*id), *id)).collect();
    let peers = world.nodes().next().expect("all hosts are up").status(now).mesh.peers;
    let short_ids: BTreeSet<_> = peers.iter().filter_map(|p| p.short_id).collect();
    assert_eq!(short_ids.len(), peers.len(), "short ids are not unique: {short_ids:?}");

    let graph: BTreeMap<PeerName, BTreeSet<PeerName>> =
        peers.iter().map(|p| (p.label.name, p.connections.iter().map(|c| c.label.name).collect())).collect();
    let tables = |name: PeerName| {
        let host = world.host(ids[&name]);
        &**host.tables().expect("all hosts are up")
    };
    for (&from, links) in &graph {
        for to in links {
            assert!(graph[to].contains(&from), "{from} is connected to {to}, but not the other way round");
        }
        let known: BTreeSet<PeerName> =
            tables(from).neighbours().iter().map(|n| n.session.remote()).collect();
        assert_eq!(known, *links, "neighbours of the data path of {from}");
        assert!(tables(from).neighbours().iter().all(|n| n.confirmed), "{from} has unconfirmed neighbours");
        for (&to, &distance) in &distances(&graph, from) {
            let mut at = from;
            for _ in 0..distance {
                let next_hop = tables(at).forwarding.routes.unicast(to);
                at = next_hop.unwrap_or_else(|| panic!("{at} has no route to {to}"));
            }
            assert_eq!(at, to, "{distance} hops from {from} towards {to}");
        }
        let mut reached = BTreeSet::from([from]);
        let mut open = VecDeque::from([from]);
        while let Some(at) = open.pop_front() {
            for &next in tables(at).forwarding.routes.broadcast(from) {
                assert!(
                    graph[&at].contains(&next),
                    "broadcast of {from}: {at} sends to {next}, which is no neighbour"
                );
                assert!(
                    reached.insert(next),
                    "broadcast of {from} reaches {next} twice, the second time from {at}"
                );
                open.push_back(next);
            }
        }
        assert_eq!(reached.len(), graph.len(), "broadcast of {from} does not reach all peers");
    }
}

/// Of two simultaneous connections both ends keep the same one, without another attempt. A peer that returns while others still
/// have its old connection is refused until that has been tested, and connected by its second attempt.
fn check_simultaneous_dials(world: &mut World) {
    /// Shortest time until a target is dialled again.
    const FIRST_RETRY: Duration = Duration::from_secs(1);
    /// Every target is dialled again, and connected, before.
    const LAST_FIRST_RETRY: Duration = Duration::from_secs(4);
    let pair = [HostId(0), HostId(1)];
    let connected = |world: &World| {
        pair.iter().all(|id| {
            let node = world.host(*id).node.as_ref().expect("it was started");
            let own = own_record(node, world.now());
            own.connections
                .iter()
                .any(|c| c.established && pair.iter().any(|p| Host::name(*p) == c.label.name))
        })
    };
    pair.iter().for_each(|id| world.crash(*id, CrashKind::Killed));
    world.run_for(Duration::from_secs(5));
    world.start(pair[0], &[pair[1]]);
    world.start(pair[1], &[pair[0]]);
    assert!(
        world.run_until(FIRST_RETRY, connected),
        "two peers that dial each other at the same time are not connected"
    );

    world.run_for(Duration::from_secs(5));
    world.crash(pair[0], CrashKind::PowerLost);
    world.run_for(Duration::from_secs(2));
    world.start(pair[0], &[pair[1]]);
    assert!(world.run_until(LAST_FIRST_RETRY, connected), "a restarted peer is not connected");
    world.run_for(CONNECTION_TIMEOUT);
    assert!(connected(world), "a restarted peer has lost its connection");
}

/// A lost peer is forgotten, with its MACs. It is the last one: the others are still connected without it.
fn check_lost_peer_is_forgotten(world: &mut World, plan: &Plan) {
    let dead = HostId(plan.hosts - 1);
    let name = Host::name(dead);
    world.crash(dead, CrashKind::PowerLost);
    let remembers = |world: &World| {
        let knows = |host: &Host| {
            host.tables().is_some_and(|tables| {
                tables.forwarding.routes.knows(name)
                    || tables.neighbours().iter().any(|n| n.session.remote() == name)
            })
        };
        world.hosts().find(|(_, host)| knows(host)).map(|(id, _)| *id)
    };
    let forgotten = world.run_until(CONNECTION_TIMEOUT * 2, |world| remembers(world).is_none());
    assert!(forgotten, "{:?} still knows {dead}, which is down", remembers(world));
    world.run_for(Duration::from_secs(2));
    for (id, host) in world.hosts() {
        let Some(node) = host.node.as_ref() else { continue };
        let macs = node.status(world.now()).macs;
        assert!(macs.iter().all(|m| m.peer != name), "{id} still has MACs of {dead}, which is down");
    }
}

/// Number of hops to each peer.
fn distances(graph: &BTreeMap<PeerName, BTreeSet<PeerName>>, from: PeerName) -> BTreeMap<PeerName, usize> {
    let mut distances = BTreeMap::from([(from, 0)]);
    let mut open = VecDeque::from([from]);
    while let Some(at) = open.pop_front() {
        for &next in &graph[&at] {
            if !distances.contains_key(&next) {
                distances.insert(next, distances[&at] + 1);
                open.push_back(next);
            }
        }
    }
    distances
}

/// All peers know the host of each MAC that has sent a frame.
fn check_macs(world: &World) {
    for (at, host) in world.hosts() {
        let Some(mac) = host.containers.first() else { continue };
        for (by, other) in world.hosts() {
            let known = other.tables().and_then(|tables| tables.forwarding.macs.lookup(*mac));
            assert_eq!(known, Some(Host::name(*at)), "owner of {mac} in the table of {by}; it is at {at}");
        }
    }
}

/// Long frames arrive after the path MTU was probed again.
fn check_long_frames(world: &mut World) {
    /// Length of the IP packets that must pass, bytes.
    const PACKET: usize = 1300;
    const ETHERNET_HEADER: usize = 14;
    const PROBE_UP_TIMEOUT: Duration = Duration::from_secs(1200);
    const TRAFFIC_INTERVAL: Duration = Duration::from_secs(5);
    let ids = hosts_with_containers(world);
    let names: BTreeSet<PeerName> = ids.iter().map(|id| Host::name(*id)).collect();
    let narrow = |world: &World| {
        let hosts = ids.iter().filter_map(|&id| Some((id, world.host(id).tables()?)));
        let paths = hosts.flat_map(|(id, tables)| tables.neighbours().iter().map(move |n| (id, n)));
        let paths =
            paths.filter(|(_, n)| names.contains(&n.session.remote())).map(|(id, n)| (id, n.path.mtu));
        paths.filter(|(_, mtu)| *mtu < PACKET).min_by_key(|(_, mtu)| *mtu)
    };
    // Only paths that carry data are tested.
    let end = world.clock() + PROBE_UP_TIMEOUT;
    while narrow(world).is_some() && world.clock() < end {
        for (from, to) in ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to))) {
            if from != to {
                world.send_unicast(from, to, frames::MIN_LEN);
            }
        }
        world.run_for(TRAFFIC_INTERVAL);
    }
    assert!(narrow(world).is_none(), "path MTU after {PROBE_UP_TIMEOUT:?}: {:?}", narrow(world));
    for pair in hosts_with_containers(world).windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let number = world.send_unicast(from, to, PACKET + ETHERNET_HEADER).expect("both have containers");
        world.run_for(Duration::from_millis(100));
        let counts = world.take_deliveries(number);
        let once = counts.get(&to) == Some(&1) && counts.values().all(|n| *n == 1);
        assert!(once, "long frame of {from} to {to}: {counts:?}, {}", stats(world));
    }
}

/// On a converged mesh each frame reaches each of its destinations exactly once.
fn check_deliveries(world: &mut World) {
    // Only sealed datagrams are protected from duplication.
    if world.hosts().all(|(_, host)| host.options.password.is_some()) {
        world.net.faults.duplication = 0.25;
    }
    let ids = hosts_with_containers(world);
    for &from in &ids {
        let number = world.send_broadcast(from).expect("it has a container");
        world.run_for(Duration::from_millis(200));
        let counts = world.take_deliveries(number);
        let others = world.ids().into_iter().filter(|&to| to != from);
        assert_eq!(counts, others.map(|to| (to, 1)).collect(), "hosts that received a broadcast of {from}");
    }
    // All MACs are known now: unicast reaches its destination only.
    for &from in &ids {
        for &to in ids.iter().filter(|to| **to != from) {
            let number = world.send_unicast(from, to, frames::MIN_LEN).expect("both have containers");
            world.run_for(Duration::from_millis(100));
            let counts = world.take_deliveries(number);
            assert_eq!(counts, BTreeMap::from([(to, 1)]), "unicast of {from} to {to}: {}", stats(world));
        }
    }
    world.net.faults.duplication = 0.0;
}

fn stats(world: &World) -> String {
    let stats = world.hosts().map(|(id, host)| format!("{id} {:?}", host.stats()));
    stats.collect::<Vec<_>>().join("; ")
}

fn hosts_with_containers(world: &World) -> Vec<HostId> {
    world.hosts().filter(|(_, host)| !host.containers.is_empty()).map(|(id, _)| *id).collect()
}

/// A converged mesh is quiet: no peer wakes up or sends more than its timers require, and the topology does not change.
fn check_quiet(world: &mut World, plan: &Plan) {
    const WINDOW: Duration = Duration::from_secs(60);
    world.run_for(Duration::from_secs(40));
    let digests = |world: &World| -> Vec<u64> { world.nodes().map(Node::topology_digest).collect() };
    let before = digests(world);
    let established = links(world);
    let wakes: Vec<u64> = world.hosts().map(|(_, h)| h.wakes).collect();
    let bytes = world.counters.tcp_bytes;
    world.run_for(WINDOW);
    assert_eq!(links(world), established, "connections before and after a quiet minute");
    // Peers below their connection limit continue to dial peers at their limit, which reject the connection.
    if !plan.is_limited() {
        assert_eq!(digests(world), before, "topology before and after a quiet minute");
    }
    let mut connections = 0;
    for ((id, host), before) in world.hosts().zip(wakes) {
        let own = host.node.as_ref().map_or(0, |n| n.connection_count() as u64);
        connections += own;
        // Per connection: heartbeats of each overlay, MTU tests every 10 s, TCP heartbeats every 30 s; per peer: tests of silent
        // paths, gossip, MAC expiry, dials that are refused.
        let refused = if plan.is_limited() { 40 } else { 0 };
        let bound = own * (30 + 6 + 2 + 4) + 10 + refused;
        let woken = host.wakes - before;
        assert!(
            woken <= bound,
            "{id} woke {woken} times in {WINDOW:?}, expected at most {bound}; next for {}",
            host.wake_reason
        );
    }
    let sent = world.counters.tcp_bytes - bytes;
    // Two heartbeats, two digests, six answers to MTU tests, sometimes other tests: 200 to 450 bytes were measured. A rejected
    // connection is in the topology for a moment.
    let bound = connections * if plan.is_limited() { 5000 } else { 800 } + 2000;
    assert!(sent <= bound, "{sent} bytes in a quiet minute, expected at most {bound}");
}

/// The established connections in the view of each peer.
fn links(world: &World) -> Vec<(PeerName, PeerName)> {
    let now = world.now();
    let peers = world.nodes().flat_map(|node| node.status(now).mesh.peers);
    let links = peers.flat_map(|p| {
        let name = p.label.name;
        p.connections.into_iter().filter(|c| c.established).map(move |c| (name, c.label.name))
    });
    links.collect()
}
