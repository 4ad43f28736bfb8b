//! The registry of names in a large mesh: `names_scale [PEERS NAMES]` (100 peers with 10,000 names unless given) registers the names, the
//! same number at each peer, and prints a table.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_dns::HostName;
use weave_sim::{Faults, Host, HostId, HostOptions, World};

/// Average number of connections of a peer.
const DEGREE: usize = 20;

fn main() {
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let (peers, names) = match numbers[..] {
        [peers, names] => (peers as u16, names),
        _ => (100, 10_000),
    };
    let started = std::time::Instant::now();
    let mut world = World::new(1, Faults::default());
    let mut rng = ChaCha12Rng::seed_from_u64(1);
    let options = HostOptions {
        discovery: false,
        connection_limit: 0,
        domain: Some("weave.local"),
        ..HostOptions::default()
    };
    let dials = (DEGREE / 2).min(usize::from(peers) / 2);
    for n in 0..peers {
        let mut targets = BTreeSet::new();
        while targets.len() < dials.min(n.into()) {
            targets.insert(HostId(rng.random_range(0..n)));
        }
        world.add(HostId(n), options.clone(), &targets.into_iter().collect::<Vec<_>>());
    }
    let known = |world: &World| world.nodes().all(|node| node.peer_count() == usize::from(peers));
    assert!(world.run_until(Duration::from_secs(600), known), "the topology has not converged");
    world.run_for(Duration::from_secs(60));

    let quiet = traffic_of_a_minute(&mut world, peers);
    let before = (resident(), world.counters, world.now().mono);
    let each = names / u32::from(peers);
    for n in 0..peers {
        world.with_node(HostId(n), |node, now| {
            for i in 0..each {
                let Ok(name) = HostName::parse(&format!("container-{n}-{i}.weave.local")) else { continue };
                let container = format!("{:064x}", u64::from(n) << 32 | u64::from(i));
                let addr = Ipv4Addr::from(0x0a20_0000 + u32::from(n) * 1024 + i);
                node.with_registry(now, |registry| registry.add(&name, &container, addr, now));
            }
        });
    }
    let all = each as usize * usize::from(peers);
    let complete = |host: &Host| {
        let registry = host.node.as_ref().and_then(|node| node.registry());
        registry.is_some_and(|registry| registry.entries().count() == all)
    };
    let agreed =
        world.run_until(Duration::from_secs(600), |world| world.hosts().all(|(_, host)| complete(host)));
    assert!(agreed, "names are missing after 600 virtual seconds");
    let after = (resident(), world.counters, world.now().mono);
    world.run_for(Duration::from_secs(60));
    let quiet_after = traffic_of_a_minute(&mut world, peers);

    let per = f64::from(peers);
    let mb = |bytes: u64| bytes as f64 / per / 1e6;
    println!(
        "| peers | names | known everywhere after, virtual ms | messages per peer | MB sent per peer | messages and kB sent per peer and quiet minute, without names | the same with names | MB memory per peer | real s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    println!(
        "| {peers} | {all} | {} | {:.0} | {:.2} | {quiet} | {quiet_after} | {:.2} | {} |",
        (after.2 - before.2).as_millis(),
        (after.1.tcp_writes - before.1.tcp_writes) as f64 / per,
        mb(after.1.tcp_bytes - before.1.tcp_bytes),
        mb(after.0.saturating_sub(before.0) as u64),
        started.elapsed().as_secs()
    );
}

/// Messages and kilobytes that each of the peers sends over TCP in a minute.
fn traffic_of_a_minute(world: &mut World, peers: u16) -> String {
    let before = world.counters;
    world.run_for(Duration::from_secs(60));
    let each = |count: u64| count as f64 / f64::from(peers);
    let writes = each(world.counters.tcp_writes - before.tcp_writes);
    format!("{writes:.0}, {:.1}", each(world.counters.tcp_bytes - before.tcp_bytes) / 1e3)
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    const PAGE: usize = 4096;
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * PAGE
}
