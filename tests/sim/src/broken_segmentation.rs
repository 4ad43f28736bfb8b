//! A mesh in which the network card of one host loses what it has cut from larger sends.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_node::WarpConfig;
use weave_types::PeerName;

use crate::failover::Traffic;
use crate::host::{Host, HostOptions};
use crate::net::{Faults, HostId};
use crate::scenario::LONGEST_PAUSE;
use crate::world::World;

const HOSTS: u16 = 3;
/// The host with the broken card.
const BROKEN: HostId = HostId(0);
/// Longest time until a fault is noticed that was there from the beginning, with loss.
const NOTICED: Duration = Duration::from_secs(60);
/// The longest interval between two tests.
const RETRIED: Duration = Duration::from_secs(660);
const REASON: &str =
    "segmentation offload of the tunnel is broken: plain probes arrive, segmented ones do not";

/// The reason of each connection of a host, and whether its datagrams may be sent in batches.
fn view(world: &World, id: HostId) -> Vec<(PeerName, String, bool)> {
    let host = world.host(id);
    let Some(status) = host.node.as_ref().map(|node| node.status(world.now())) else { return Vec::new() };
    let neighbours = host.tables().map(|tables| tables.neighbours()).unwrap_or_default();
    let batched = |peer| {
        neighbours.iter().filter(|neighbour| neighbour.session.remote() == peer).all(|neighbour| {
            neighbour.path.batched && neighbour.warp.as_ref().is_none_or(|(_, path)| path.batched)
        })
    };
    let connections = status.mesh.connections.iter();
    connections
        .filter_map(|c| {
            let report = status.connections.get(&c.conn)?;
            Some((c.peer.name, report.reason.clone(), batched(c.peer.name)))
        })
        .collect()
}

fn mesh(seed: u64, rng: &mut ChaCha12Rng, loss: f64, broken: Option<HostId>) -> World {
    let latency = Duration::from_micros(rng.random_range(100..30_000));
    let mut world = World::new(seed, Faults { latency, loss, ..Faults::default() });
    for n in 0..HOSTS {
        let targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        let warp = rng.random_bool(0.5).then(|| WarpConfig::new(true));
        let loses_segments = broken == Some(HostId(n));
        world.add(
            HostId(n),
            HostOptions { fastdp: true, warp, loses_segments, ..HostOptions::default() },
            &targets,
        );
    }
    world
}

/// The fault is there from the beginning; later the card is repaired.
///
/// # Panics
/// It is not noticed in time, or other hosts are affected, or fastdp is not used again after the repair.
pub fn notices_and_recovers(seed: u64) {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let loss = f64::from(rng.random_range(0..5u8)) / 100.0;
    let mut world = mesh(seed, &mut rng, loss, Some(BROKEN));
    let mut traffic = Traffic::default();
    traffic.may_repeat = true;
    traffic.run(&mut world, NOTICED);
    for (_, reason, batched) in view(&world, BROKEN) {
        assert!(reason.ends_with(REASON) && !reason.starts_with("fastdp"), "seed {seed}: {reason}");
        assert!(!batched, "seed {seed}");
    }
    for id in (0..HOSTS).map(HostId).filter(|id| *id != BROKEN) {
        for (peer, reason, batched) in view(&world, id) {
            assert!(batched && reason == "fastdp", "seed {seed}: {id} to {peer}: {reason}");
        }
    }
    world.repair_segmentation(BROKEN);
    traffic.run(&mut world, RETRIED);
    for (_, reason, batched) in view(&world, BROKEN) {
        assert!(batched && reason == "fastdp", "seed {seed} after the repair: {reason}");
    }
}

/// No card is broken, but many packets are lost, and machines are slow.
///
/// # Panics
/// Segmentation is taken for broken.
pub fn loss_and_slowness_are_no_evidence(seed: u64) {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let loss = f64::from(rng.random_range(0..40u8)) / 100.0;
    let mut world = mesh(seed, &mut rng, loss, None);
    let mut traffic = Traffic::default();
    traffic.may_repeat = true;
    for _ in 0..150 {
        traffic.run(&mut world, Duration::from_secs(2));
        let id = HostId(rng.random_range(0..HOSTS));
        if rng.random_bool(0.3) {
            world.pause(id, Duration::from_millis(rng.random_range(100..8000)));
        } else if rng.random_bool(0.3) {
            world.slow_down(id, Duration::from_secs(rng.random_range(2..20)), LONGEST_PAUSE);
        }
        for id in (0..HOSTS).map(HostId) {
            for (peer, reason, batched) in view(&world, id) {
                assert!(
                    batched && !reason.contains(REASON),
                    "seed {seed}: {} to {peer}: {reason}",
                    Host::name(id)
                );
            }
        }
    }
}
