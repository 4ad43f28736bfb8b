//! `scale [PEERS ...]`: sparse meshes of simulated peers (10, 100 and 1,000 unless given). Prints a table with the time to converge, the
//! traffic and the memory per peer (docs/costs.md).
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_node::Node;
use weave_sim::{Faults, HostId, HostOptions, World};

/// Average number of connections of a peer in a large mesh.
const DEGREE: usize = 50;

fn main() {
    let sizes: Vec<u16> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![10, 100, 1000] } else { sizes };
    println!(
        "| peers | connections each | converged after, virtual s | messages per peer | MB sent per peer | MB sent per peer and quiet minute | MB memory per peer | real s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for size in sizes {
        run(size);
    }
}

fn run(peers: u16) {
    let started = std::time::Instant::now();
    let before = resident();
    let mut world = World::new(1, Faults::default());
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    // Each peer dials random earlier ones; later ones dial it, for the other half of its connections.
    let options = HostOptions { discovery: false, connection_limit: 0, ..HostOptions::default() };
    let dials = (DEGREE / 2).min(usize::from(peers) / 2);
    for n in 0..peers {
        let mut targets = BTreeSet::new();
        while targets.len() < dials.min(n.into()) {
            targets.insert(HostId(rng.random_range(0..n)));
        }
        world.add(HostId(n), options.clone(), &targets.into_iter().collect::<Vec<_>>());
    }
    let start = world.now().mono;
    let mut converged = None;
    for _ in 0..600 {
        world.run_for(Duration::from_secs(1));
        if agreed(&world) {
            converged = Some(world.now().mono - start);
            break;
        }
    }
    let Some(converged) = converged else {
        println!("| {peers} | did not converge in 600 virtual seconds |");
        return;
    };
    let counters = world.counters;
    let memory = resident().saturating_sub(before);
    world.run_for(Duration::from_secs(60));
    let quiet = world.counters.tcp_bytes - counters.tcp_bytes;
    let per = f64::from(peers);
    let connections: usize = world.nodes().map(Node::connection_count).sum();
    println!(
        "| {peers} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {} |",
        connections as f64 / per,
        converged.as_secs_f64(),
        counters.tcp_writes as f64 / per,
        counters.tcp_bytes as f64 / per / 1e6,
        quiet as f64 / per / 1e6,
        memory as f64 / per / 1e6,
        started.elapsed().as_secs()
    );
}

/// Whether all peers have the same view of the mesh, and know all peers.
fn agreed(world: &World) -> bool {
    let count = world.nodes().count();
    let digests: BTreeSet<u64> = world.nodes().map(Node::topology_digest).collect();
    digests.len() <= 1 && world.nodes().all(|node| node.peer_count() == count)
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    const PAGE: usize = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * PAGE
}
