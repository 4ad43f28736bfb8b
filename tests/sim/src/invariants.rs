//! What must hold: some things after every transition, the rest once the network has been healed and left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::frames;
use crate::host::Host;
use crate::net::{Faults, HostId};
use crate::scenario::Plan;
use crate::world::World;

/// Longest time to a converged mesh after everything was healed. The slowest way: a target that is in a long back-off was
/// reset by `connect`, its handshake runs into a stalled stream, and the other end must time out first.
const CONVERGENCE: Duration = Duration::from_secs(300);

/// Holds after every transition.
///
/// # Panics
/// If it does not.
pub fn always(world: &mut World) {
    let ids: Vec<HostId> = world.hosts().map(|(id, _)| *id).collect();
    for id in ids {
        let now = world.now();
        let host = world.host_mut(id);
        for frame in host.delivered.drain(..) {
            let stamp = frames::read(&frame).unwrap_or_else(|| panic!("{id:?} was given a frame that nobody sent"));
            assert_ne!(stamp.from, id, "{id:?} was given its own frame {}", stamp.number);
        }
        check_version(host, now);
    }
}

/// The own topology version never falls below what an earlier incarnation may have shown to others.
fn check_version(host: &mut Host, now: weave_types::Now) {
    let Some(node) = host.node.as_ref() else { return };
    let version = node.status(now).mesh.own_version();
    assert!(
        version >= host.highest_version,
        "{:?} has version {version}, an earlier incarnation was at {}",
        host.id,
        host.highest_version
    );
    host.highest_version = version;
}

/// Heals everything, waits for the mesh to settle, and checks that it is as it should be.
///
/// # Panics
/// If it is not.
pub fn eventually(world: &mut World, plan: &Plan) {
    heal(world, plan);
    let complete = plan.discovery;
    let settled = world.run_until(CONVERGENCE, |world| disagreement(world, complete).is_none());
    assert!(settled, "not settled after {CONVERGENCE:?}: {}", disagreement(world, complete).unwrap_or_default());
    // Whoever heard a container last must have been silent for the hold-down before it may be heard elsewhere.
    world.run_for(Duration::from_secs(5));
    always(world);
    frames_arrive_once(world);
    quiet(world);
}

fn heal(world: &mut World, plan: &Plan) {
    world.net.heal_all();
    world.net.faults = Faults::default();
    for n in 0..plan.hosts {
        let id = HostId(n);
        world.host_mut(id).cancel_crash();
        if world.host(id).node.is_none() {
            world.start(id, &[]);
        }
    }
    for n in 1..plan.hosts {
        let before = HostId(n - 1).ip().to_string();
        world.with_node(HostId(n), |node, now| {
            node.connect(&[before], false, now);
        });
    }
}

/// Why the mesh has not settled: views differ, connections are missing or not established.
pub fn disagreement(world: &World, complete: bool) -> Option<String> {
    let now = world.now();
    let mut first: Option<(HostId, Vec<String>)> = None;
    let all = world.hosts().count();
    for (id, host) in world.hosts() {
        let Some(node) = host.node.as_ref() else { return Some(format!("{id:?} is down")) };
        let status = node.status(now);
        let mut view: Vec<String> = Vec::new();
        for peer in &status.mesh.peers {
            let mut connections: Vec<String> =
                peer.connections.iter().map(|c| format!("{}{}", c.name, if c.established { "" } else { "?" })).collect();
            connections.sort();
            if let Some(pending) = connections.iter().find(|c| c.ends_with('?')) {
                return Some(format!("{id:?}: {} - {pending} is not established", peer.name));
            }
            if complete && connections.len() + 1 < all {
                return Some(format!("{id:?}: {} has {} connections", peer.name, connections.len()));
            }
            view.push(format!("{} {} {} {connections:?}", peer.name, peer.uid.0, peer.version));
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

/// On a settled mesh each frame reaches each of its destinations exactly once.
fn frames_arrive_once(world: &mut World) {
    let ids: Vec<HostId> = world.hosts().map(|(id, h)| (*id, h.containers.len())).filter(|(_, n)| *n > 0).map(|(id, _)| id).collect();
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
    // Every host has heard of every container that sent: unicast goes to its destination and nowhere else.
    for &from in &ids {
        for &to in ids.iter().filter(|to| **to != from) {
            let number = world.send_unicast(from, to).expect("both have containers");
            world.run_for(Duration::from_millis(100));
            let counts = deliveries(world, number);
            assert_eq!(counts, BTreeMap::from([(to, 1)]), "unicast of {from:?} to {to:?}");
        }
    }
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

/// A settled mesh is quiet: no peer wakes or talks more than its timers say.
fn quiet(world: &mut World) {
    const WINDOW: Duration = Duration::from_secs(60);
    world.run_for(Duration::from_secs(40));
    let (wakes, bytes) = (world.counters.wakes, world.counters.tcp_bytes);
    world.run_for(WINDOW);
    let hosts = world.hosts().count() as u64;
    let connections: u64 = {
        let now = world.now();
        world.hosts().filter_map(|(_, h)| h.node.as_ref()).map(|n| n.status(now).connections.len() as u64).sum()
    };
    // Per connection: sleeve heartbeats each 10 s, TCP heartbeats each 30 s, tests every few minutes; per peer: gossip, MAC expiry, and slack.
    let wake_bound = connections * (6 + 2 + 8) + hosts * 20;
    let woken = world.counters.wakes - wakes;
    assert!(woken <= wake_bound, "{woken} wake-ups in {WINDOW:?}, expected at most {wake_bound}: {}", wake_reasons(world));
    let said = world.counters.tcp_bytes - bytes;
    // Complete state twice a minute to each neighbour at the worst.
    let state = 400 + hosts * (60 + hosts * 40);
    let byte_bound = connections * (2 * state + 200);
    assert!(said <= byte_bound, "{said} bytes of gossip in a quiet minute, expected at most {byte_bound}");
}

fn wake_reasons(world: &World) -> String {
    let reasons: Vec<&str> = world.hosts().map(|(_, h)| h.wake_reason()).collect();
    reasons.join(", ")
}
