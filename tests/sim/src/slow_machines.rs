//! A mesh on a good network whose machines are slow for a while: nothing is mistaken for a failure.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_node::WarpConfig;
use weave_types::{ConnectionId, Instant, PeerName};

use crate::failover::Traffic;
use crate::host::HostOptions;
use crate::invariants::{disagreement, wait_for_convergence};
use crate::net::{Faults, HostId};
use crate::scenario::LONGEST_PAUSE;
use crate::world::World;

const HOSTS: u16 = 5;
const LOADED: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);
/// A neighbour from which nothing arrives for 10 s is given up.
const MAX_PAUSE: u64 = 8;
/// A path that has failed several times is used again after a minute without failure.
const RECOVERY: Duration = Duration::from_secs(75);
/// Longest silence of a pair after that.
const MAX_SILENCE: Duration = Duration::from_millis(200);

/// What must not change: the connections of a host, how many of them have ended, and the path MTU to each neighbour.
#[derive(Debug, PartialEq)]
struct View {
    connections: Vec<(PeerName, ConnectionId)>,
    terminations: u64,
    mtus: BTreeMap<PeerName, Vec<usize>>,
}

fn view(world: &World, id: HostId) -> View {
    let host = world.host(id);
    let mesh = host.node.as_ref().map(|node| node.status(world.now()).mesh);
    let mesh = mesh.unwrap_or_else(|| panic!("{id} is down"));
    let mut connections: Vec<_> = mesh.connections.iter().map(|c| (c.peer.name, c.conn)).collect();
    connections.sort();
    let neighbours = host.tables().map(|tables| tables.neighbours()).unwrap_or_default();
    let mtus = neighbours.iter().map(|neighbour| {
        let warp = neighbour.warp.as_ref().map(|(_, path)| path.mtu);
        (neighbour.session.remote(), [Some(neighbour.path.mtu), warp].into_iter().flatten().collect())
    });
    View { connections, terminations: mesh.terminations, mtus: mtus.collect() }
}

/// Some machines of a full mesh with traffic are slow for a minute. Returns how long the mesh needs afterwards.
///
/// # Panics
/// A connection ends, a path MTU falls, or the mesh does not recover.
pub fn run(seed: u64, fastdp: bool, warp: Option<WarpConfig>) -> Duration {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let latency = Duration::from_micros(rng.random_range(100..30_000));
    let mut world = World::new(seed, Faults { latency, ..Faults::default() });
    let password = rng.random_bool(0.5).then(|| "secret".to_owned());
    let options = HostOptions { password, fastdp, warp, ..HostOptions::default() };
    for n in 0..HOSTS {
        let targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        world.add(HostId(n), options.clone(), &targets);
    }
    wait_for_convergence(&mut world, true);
    let mut traffic = Traffic::default();
    traffic.may_repeat = true;
    traffic.run(&mut world, Duration::from_secs(5));
    let ids: Vec<HostId> = (0..HOSTS).map(HostId).collect();
    let before: Vec<View> = ids.iter().map(|id| view(&world, *id)).collect();
    let check = |world: &World| {
        for (id, before) in ids.iter().zip(&before) {
            let now = view(world, *id);
            assert_eq!(now, *before, "seed {seed}, {id} at {:?}", world.clock());
        }
    };
    let slow = rng.random_range(1..=HOSTS);
    let (mut next, end) = (Instant::ORIGIN, world.clock() + LOADED);
    while world.clock() < end {
        if next <= world.clock() {
            let id = HostId(rng.random_range(0..slow));
            if rng.random_bool(0.5) {
                world.pause(id, Duration::from_millis(rng.random_range(100..MAX_PAUSE * 1000)));
            } else {
                world.slow_down(id, Duration::from_secs(rng.random_range(2..20)), LONGEST_PAUSE);
            }
            next = world.clock() + Duration::from_millis(rng.random_range(1000..8000));
        }
        traffic.run(&mut world, STEP);
        check(&world);
    }
    world.end_load();
    let (begin, last) = (world.clock(), world.clock() + Duration::from_secs(MAX_PAUSE));
    while world.clock() < last {
        traffic.run(&mut world, STEP);
        check(&world);
    }
    let recovered = |world: &World| disagreement(world, true).is_none();
    while !recovered(&world) {
        assert!(world.clock() - begin < RECOVERY, "seed {seed}: {:?}", disagreement(&world, true));
        traffic.run(&mut world, STEP);
        check(&world);
    }
    let needed = world.clock() - begin;
    traffic.longest.clear();
    traffic.run(&mut world, Duration::from_secs(1));
    traffic.longest.clear();
    traffic.run(&mut world, Duration::from_secs(2));
    let longest = traffic.longest.values().max().copied().unwrap_or_default();
    assert!(longest <= MAX_SILENCE, "seed {seed}: {longest:?} after the load");
    check(&world);
    needed
}
