//! Invariants of the mesh: some hold after every transition, the others some time after all faults have ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use weave_mesh::PeerStatus;
use weave_types::PeerName;

use crate::frames;
use crate::host::{Host, own_record};
use crate::net::{Faults, HostId};
use crate::suites::Plan;
use crate::world::World;

/// Longest time until a healed mesh has converged. The slowest case: a target in a long back-off is reset by `connect`, its
/// handshake meets a stalled stream, and the other end must time out first.
const CONVERGENCE_TIMEOUT: Duration = Duration::from_secs(300);

/// The longest timeout of a connection, and some time for its consequences.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(65);

/// Checks what holds after every transition.
pub fn check_always(world: &mut World) {
    let now = world.now();
    let ids: Vec<HostId> = world.hosts().map(|(id, _)| *id).collect();
    let mut views: BTreeMap<HostId, Vec<PeerStatus>> = BTreeMap::new();
    for id in ids {
        let host = world.host_mut(id);
        for frame in host.delivered.drain(..) {
            let stamp = frames::read(&frame)
                .unwrap_or_else(|| panic!("{id:?} received a frame that no container sent"));
            assert_ne!(stamp.from, id, "{id:?} received its own frame {}", stamp.number);
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
        check_own(host, own);
        for seen in peers {
            if let Some(truth) = records.get(&seen.label.name) {
                check_seen(*id, seen, truth);
            }
        }
    }
}

/// The version and short id of a peer are on its disk before others see them.
fn check_own(host: &Host, own: &PeerStatus) {
    let (id, promised) = (host.id, &host.promised);
    assert!(
        own.version < promised.version_ceiling,
        "{id:?} is at version {}, but would start at {} after a restart",
        own.version,
        promised.version_ceiling
    );
    assert_eq!(own.short_id, promised.short_id, "{id:?} has not persisted its short id");
    let limit = host.options.connection_limit;
    let connections = own.connections.len();
    assert!(limit == 0 || connections <= limit, "{id:?} has {connections} connections, the limit is {limit}");
}

/// No peer has a newer record of another than that peer itself, and records of the same version are equal.
fn check_seen(by: HostId, seen: &PeerStatus, truth: &PeerStatus) {
    if seen.uid != truth.uid {
        return;
    }
    let name = seen.label.name;
    assert!(
        seen.version <= truth.version,
        "{by:?} sees version {} of {name}, which is at {}",
        seen.version,
        truth.version
    );
    // Version 0 is a record made by a handshake.
    if seen.version == truth.version && seen.version > 0 {
        let links = |peer: &PeerStatus| -> Vec<_> {
            let links = peer.connections.iter();
            links.map(|l| (l.label.name, l.address.clone(), l.outbound, l.established)).collect()
        };
        assert_eq!(
            (seen.short_id, links(seen)),
            (truth.short_id, links(truth)),
            "{by:?} sees another version {} of {name} than {name} itself",
            seen.version
        );
    }
}

/// The own topology version never falls, not even by a restart.
fn check_version(host: &mut Host) {
    let Some(node) = host.node.as_ref() else { return };
    let version = node.version();
    assert!(
        version >= host.highest_version,
        "{:?} has version {version}, an earlier incarnation was at {}",
        host.id,
        host.highest_version
    );
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

/// Waits until all peers agree, and continue to.
pub fn wait_for_convergence(world: &mut World, complete: bool) {
    // Dials that a firewall drops time out, and are repeated after a pause.
    let limit = if world.net.is_blocking() { CONVERGENCE_TIMEOUT * 3 } else { CONVERGENCE_TIMEOUT };
    let start = world.now().mono;
    loop {
        let settled = world.run_until(limit, |world| disagreement(world, complete).is_none());
        assert!(
            settled,
            "not settled after {limit:?}: {}",
            disagreement(world, complete).unwrap_or_default()
        );
        // A connection that was cut just before may still time out, and is established again.
        world.run_for(CONNECTION_TIMEOUT);
        if disagreement(world, complete).is_none() {
            break;
        }
        let waited = world.now().mono - start;
        assert!(waited < limit * 3, "flapping: {}", disagreement(world, complete).unwrap_or_default());
    }
}

fn heal(world: &mut World, plan: &Plan) {
    world.net.heal_all();
    world.net.faults = Faults { split_stream_randomly: plan.faults.split_stream_randomly, ..Faults::default() };
    for n in 0..plan.hosts {
        let id = HostId(n);
        world.host_mut(id).cancel_crash();
        if world.host(id).node.is_none() {
            world.start(id, &[]);
        }
    }
    let connect = |world: &mut World, from: HostId, to: HostId| {
        world.with_node(from, |node, now| {
            node.connect(&[to.ip().to_string()], false, now);
        });
    };
    for n in 1..plan.hosts {
        connect(world, HostId(n), HostId(n - 1));
        if plan.firewalls {
            connect(world, HostId(n - 1), HostId(n));
        }
    }
    if plan.firewalls || plan.is_limited() {
        return;
    }
    // A dial after a long back-off would disturb the quiet minute: naming the target makes it due now.
    for n in 0..plan.hosts {
        let targets = world.host(HostId(n)).disk.targets.clone();
        world.with_node(HostId(n), |node, now| {
            node.connect(&targets, false, now);
        });
    }
}

/// Why the mesh has not converged: views differ, or connections are missing or not established.
pub fn disagreement(world: &World, complete: bool) -> Option<String> {
    let now = world.now();
    let mut first: Option<(HostId, Vec<String>)> = None;
    let all = world.hosts().count();
    for (id, host) in world.hosts() {
        let Some(node) = host.node.as_ref() else { return Some(format!("{id:?} is down")) };
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
                return Some(format!("{id:?}: {} - {pending} is not established", peer.label.name));
            }
            if complete && connections.len() + 1 < all {
                return Some(format!("{id:?}: {} has {} connections", peer.label.name, connections.len()));
            }
            view.push(format!(
                "{} {} {} {:?} {connections:?}",
                peer.label.name, peer.uid.0, peer.version, peer.short_id
            ));
        }
        view.sort();
        if view.len() < all {
            return Some(format!("{id:?} knows {} peers", view.len()));
        }
        match &first {
            None => first = Some((*id, view)),
            Some((other, reference)) if *reference != view => {
                return Some(format!("{id:?} and {other:?} see different meshes"));
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
    let any = world.hosts().next().and_then(|(_, host)| host.node.as_ref());
    let peers = any.expect("all hosts are up").status(now).mesh.peers;
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
                let next = tables(at).forwarding.routes.unicast(to);
                at = next.unwrap_or_else(|| panic!("{at} has no route to {to}"));
            }
            assert_eq!(at, to, "{distance} hops from {from} towards {to}");
        }
        let mut reached = BTreeSet::from([from]);
        let mut open = VecDeque::from([from]);
        while let Some(at) = open.pop_front() {
            for &next in tables(at).forwarding.routes.broadcast(from) {
                assert!(
                    graph[&at].contains(&next),
                    "broadcast of {from}: {at} sends to {next}, no neighbour"
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
/// have its old connection needs only one attempt, too.
fn check_simultaneous_dials(world: &mut World) {
    /// No target is dialled again earlier.
    const FIRST_RETRY: Duration = Duration::from_secs(1);
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
    pair.iter().for_each(|id| world.crash(*id));
    world.run_for(Duration::from_secs(5));
    world.start(pair[0], &[pair[1]]);
    world.start(pair[1], &[pair[0]]);
    assert!(
        world.run_until(FIRST_RETRY, connected),
        "two that dial each other at the same time are not connected"
    );

    world.run_for(Duration::from_secs(5));
    world.lose_power(pair[0]);
    world.run_for(Duration::from_secs(2));
    world.start(pair[0], &[pair[1]]);
    assert!(world.run_until(FIRST_RETRY, connected), "a peer that comes back is not connected");
    world.run_for(CONNECTION_TIMEOUT);
    assert!(connected(world), "a peer that has come back is not connected any more");
}

/// A lost peer is forgotten, with its MACs. It is the last one, without which the others are still connected.
fn check_lost_peer_is_forgotten(world: &mut World, plan: &Plan) {
    let dead = HostId(plan.hosts - 1);
    let name = Host::name(dead);
    world.lose_power(dead);
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
    assert!(forgotten, "{:?} does not forget {dead:?}, which is dead", remembers(world));
    world.run_for(Duration::from_secs(2));
    for (id, host) in world.hosts() {
        let Some(node) = host.node.as_ref() else { continue };
        let macs = node.status(world.now()).macs;
        assert!(macs.iter().all(|m| m.peer != name), "{id:?} still has MACs of {dead:?}, which is dead");
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
            assert_eq!(
                known,
                Some(Host::name(*at)),
                "owner of {mac} in the table of {by:?}; it is at {at:?}"
            );
        }
    }
}

/// Long frames arrive after the path MTU was probed again.
fn check_long_frames(world: &mut World) {
    /// Length of the IP packets that must pass, bytes.
    const PACKET: usize = 1300;
    const PROBE_UP_TIMEOUT: Duration = Duration::from_secs(1200);
    let narrow = |world: &World| {
        let hosts = world.hosts().filter_map(|(id, host)| Some((id, host.tables()?)));
        let paths = hosts.flat_map(|(id, tables)| tables.neighbours().iter().map(move |n| (*id, n.path.mtu)));
        paths.filter(|(_, mtu)| *mtu < PACKET).min_by_key(|(_, mtu)| *mtu)
    };
    let wide = world.run_until(PROBE_UP_TIMEOUT, |world| narrow(world).is_none());
    assert!(wide, "path MTU after {PROBE_UP_TIMEOUT:?}: {:?}", narrow(world));
    let ids: Vec<HostId> =
        world.hosts().filter(|(_, h)| !h.containers.is_empty()).map(|(id, _)| *id).collect();
    for pair in ids.windows(2) {
        let number = world.send_long(pair[0], pair[1], PACKET + 14).expect("both have containers");
        world.run_for(Duration::from_millis(100));
        let counts = deliveries(world, number);
        let once = counts.get(&pair[1]) == Some(&1) && counts.values().all(|n| *n == 1);
        assert!(once, "long frame of {:?} to {:?}: {counts:?}, {}", pair[0], pair[1], drops(world));
    }
}

/// On a converged mesh each frame reaches each of its destinations exactly once.
fn check_deliveries(world: &mut World) {
    // Only sealed datagrams are protected from duplication.
    if world.hosts().all(|(_, host)| host.options.password.is_some()) {
        world.net.faults.duplication = 0.25;
    }
    let ids: Vec<HostId> = world
        .hosts()
        .map(|(id, h)| (*id, h.containers.len()))
        .filter(|(_, n)| *n > 0)
        .map(|(id, _)| id)
        .collect();
    let all: Vec<HostId> = world.hosts().map(|(id, _)| *id).collect();
    for &from in &ids {
        let number = world.send_broadcast(from).expect("it has a container");
        world.run_for(Duration::from_millis(200));
        let counts = deliveries(world, number);
        for to in &all {
            let expected = usize::from(*to != from);
            let got = counts.get(to).copied().unwrap_or(0);
            assert_eq!(got, expected, "broadcast of {from:?} at {to:?}");
        }
    }
    // All MACs are known now: unicast reaches its destination only.
    for &from in &ids {
        for &to in ids.iter().filter(|to| **to != from) {
            let number = world.send_unicast(from, to).expect("both have containers");
            world.run_for(Duration::from_millis(100));
            let counts = deliveries(world, number);
            assert_eq!(counts, BTreeMap::from([(to, 1)]), "unicast of {from:?} to {to:?}: {}", drops(world));
        }
    }
    world.net.faults.duplication = 0.0;
}

fn drops(world: &World) -> String {
    let stats = world.hosts().map(|(id, host)| format!("{id:?} {:?}", host.stats()));
    stats.collect::<Vec<_>>().join("; ")
}

fn deliveries(world: &mut World, number: u64) -> BTreeMap<HostId, usize> {
    let ids: Vec<HostId> = world.hosts().map(|(id, _)| *id).collect();
    let mut counts = BTreeMap::new();
    for id in ids {
        let delivered = std::mem::take(&mut world.host_mut(id).delivered);
        let n = delivered.iter().filter(|f| frames::read(f).is_some_and(|s| s.number == number)).count();
        if n > 0 {
            counts.insert(id, n);
        }
    }
    counts
}

/// A converged mesh is quiet: no peer wakes up or sends more than its timers require, and the topology does not change.
fn check_quiet(world: &mut World, plan: &Plan) {
    const WINDOW: Duration = Duration::from_secs(60);
    world.run_for(Duration::from_secs(40));
    let digests = |world: &World| -> Vec<u64> {
        world.hosts().filter_map(|(_, h)| h.node.as_ref()).map(|n| n.topology_digest()).collect()
    };
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
        // Per connection: sleeve heartbeats each 2 s, MTU tests each 10 s, TCP heartbeats each 30 s; per peer: gossip, MAC
        // expiry, dials that are refused.
        let refused = if plan.is_limited() { 40 } else { 0 };
        let bound = own * (30 + 6 + 2 + 4) + 10 + refused;
        let woken = host.wakes - before;
        assert!(
            woken <= bound,
            "{id:?} woke {woken} times in {WINDOW:?}, expected at most {bound}: last for {}",
            host.wake_reason()
        );
    }
    let sent = world.counters.tcp_bytes - bytes;
    // Two heartbeats, two digests, six answers to MTU tests, sometimes other tests: 200 to 450 bytes, measured. A rejected
    // connection is in the topology for a moment.
    let bound = connections * if plan.is_limited() { 5000 } else { 800 } + 2000;
    assert!(sent <= bound, "{sent} bytes in a quiet minute, expected at most {bound}");
}

/// The established connections in the view of each peer.
fn links(world: &World) -> Vec<(PeerName, PeerName)> {
    let now = world.now();
    let peers = world.hosts().filter_map(|(_, h)| h.node.as_ref()).flat_map(|n| n.status(now).mesh.peers);
    let links = peers.flat_map(|p| {
        let name = p.label.name;
        p.connections.into_iter().filter(|c| c.established).map(move |c| (name, c.label.name))
    });
    links.collect()
}
