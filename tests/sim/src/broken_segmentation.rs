//! A mesh in which the network card of one host loses what it has cut from larger sends.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_node::WarpConfig;
use weave_types::{ConnectionId, PeerName};

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

/// A connection of a host.
struct View {
    conn: ConnectionId,
    peer: PeerName,
    reason: String,
    /// For sleeve and warp, if there is one: whether it has carried data, and whether its datagrams may be sent in batches.
    overlays: Vec<(bool, bool)>,
}

impl View {
    /// Whether datagrams may be sent in batches by all overlays that have carried data; others have not been tested.
    fn is_batched(&self) -> bool {
        self.overlays.iter().all(|(has_carried, batched)| *batched || !has_carried)
    }
}

fn view(world: &World, id: HostId) -> Vec<View> {
    let host = world.host(id);
    let Some(status) = host.node.as_ref().map(|node| node.status(world.now())) else { return Vec::new() };
    let neighbours = host.tables().map(|tables| tables.neighbours()).unwrap_or_default();
    let overlays = |peer| -> Vec<(bool, bool)> {
        let neighbour = neighbours.iter().filter(|neighbour| neighbour.session.remote() == peer);
        let paths = neighbour.flat_map(|neighbour| {
            let warp = neighbour.warp.as_ref().map(|(session, path)| (session, path));
            std::iter::once((&neighbour.session, &neighbour.path)).chain(warp)
        });
        paths.map(|(session, path)| (session.traffic().counts().sent != 0, path.batched)).collect()
    };
    let connections = status.mesh.connections.iter();
    connections
        .filter_map(|c| {
            let report = status.connections.get(&c.conn)?;
            let (peer, reason) = (c.peer.name, report.reason.clone());
            Some(View { conn: c.conn, peer, reason, overlays: overlays(peer) })
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
    for view in view(&world, BROKEN) {
        let reason = &view.reason;
        assert!(reason.ends_with(REASON) && !reason.starts_with("fastdp"), "seed {seed}: {reason}");
        assert!(!view.is_batched(), "seed {seed}");
    }
    for id in (0..HOSTS).map(HostId).filter(|id| *id != BROKEN) {
        for view in view(&world, id) {
            let View { peer, reason, .. } = &view;
            assert!(view.is_batched() && reason == "fastdp", "seed {seed}: {id} to {peer}: {reason}");
        }
    }
    world.repair_segmentation(BROKEN);
    traffic.run(&mut world, RETRIED);
    for view in view(&world, BROKEN) {
        let reason = &view.reason;
        assert!(view.is_batched() && reason == "fastdp", "seed {seed} after the repair: {reason}");
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
    // With loss the first test takes a while.
    let mut tested = BTreeSet::new();
    for _ in 0..150 {
        traffic.run(&mut world, Duration::from_secs(2));
        let id = HostId(rng.random_range(0..HOSTS));
        if rng.random_bool(0.3) {
            world.pause(id, Duration::from_millis(rng.random_range(100..8000)));
        } else if rng.random_bool(0.3) {
            world.slow_down(id, Duration::from_secs(rng.random_range(2..20)), LONGEST_PAUSE);
        }
        for id in (0..HOSTS).map(HostId) {
            for View { conn, peer, reason, overlays } in view(&world, id) {
                for (overlay, (_, batched)) in overlays.into_iter().enumerate() {
                    let is_lost = !batched && tested.contains(&(id, conn, overlay));
                    assert!(
                        !is_lost && !reason.contains(REASON),
                        "seed {seed}: {} to {peer}: {reason}",
                        Host::name(id)
                    );
                    if batched {
                        tested.insert((id, conn, overlay));
                    }
                }
            }
        }
    }
}
