//! Random scenarios: a seed gives a list of transitions; running it must hold every invariant. A failing list is cut down
//! to the shortest that still fails before it is shown.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::host::{CrashKind, HostOptions};
use crate::invariants;
use crate::net::HostId;
use crate::runner::{SeedBudget, catch_failure, shorten_failure};
use crate::suites::{Graph, Plan};
use crate::world::World;

/// Everything that can happen to the mesh.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transition {
    /// Time passes, milliseconds.
    Wait(u32),
    /// The link between two hosts goes down.
    Cut(HostId, HostId),
    /// The link between two hosts is back.
    Heal(HostId, HostId),
    /// A peer is killed.
    Crash(HostId),
    /// A peer is killed between two of its outputs, after so many more.
    CrashAfter(HostId, u16),
    /// A peer is killed, and its disk is lost: a new installation under the old name.
    LoseDisk(HostId),
    /// A host loses its power.
    PowerLoss(HostId),
    /// A host loses its power between two outputs of its peer.
    PowerLossAfter(HostId, u16),
    /// A dead peer is started with its persisted targets.
    Start(HostId),
    /// `weave connect B` on A.
    Connect(HostId, HostId),
    /// `weave forget B` on A.
    Forget(HostId, HostId),
    /// A container of the first sends a frame to one of the second.
    Unicast(HostId, HostId),
    /// A container of the first sends a frame of so many bytes to one of the second.
    Long(HostId, HostId, u16),
    /// A container sends a broadcast.
    Broadcast(HostId),
    /// A container moves with its MAC from one host to another.
    Move(HostId, HostId),
    /// The network loses so many datagrams, per cent.
    Loss(u8),
    /// The largest packet that passes.
    Mtu(u16),
    /// Somebody sets the wall clocks, seconds.
    WallClock(i32),
    /// A firewall keeps the first from beginning anything with the second.
    Block(HostId, HostId),
}

/// The transitions that a seed stands for.
pub fn generate(seed: u64, plan: &Plan) -> Vec<Transition> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let host = |rng: &mut ChaCha12Rng| HostId(rng.random_range(0..plan.hosts));
    (0..plan.length)
        .map(|_| {
            let (a, b) = (host(&mut rng), host(&mut rng));
            match rng.random_range(0..100) {
                0..25 => Transition::Wait(rng.random_range(1..4000)),
                25..28 => Transition::Wait(rng.random_range(30_000..90_000)),
                28..37 => Transition::Cut(a, b),
                37..46 => Transition::Heal(a, b),
                46..48 => Transition::Crash(a),
                48..49 => Transition::LoseDisk(a),
                49..54 => Transition::CrashAfter(a, rng.random_range(0..40)),
                54..55 => Transition::PowerLoss(a),
                55..57 => Transition::PowerLossAfter(a, rng.random_range(0..40)),
                57..66 => Transition::Start(a),
                66..70 => Transition::Connect(a, b),
                70..72 => Transition::Forget(a, b),
                72..80 => Transition::Unicast(a, b),
                80..84 => Transition::Long(a, b, rng.random_range(500..1500)),
                84..90 => Transition::Broadcast(a),
                90..92 => Transition::Move(a, b),
                92..94 => Transition::Loss(rng.random_range(0..30)),
                94..97 => {
                    Transition::Mtu(if rng.random_bool(0.5) { 1500 } else { rng.random_range(620..1500) })
                }
                97..98 => Transition::WallClock(rng.random_range(-100_000..100_000)),
                _ if plan.firewalls => Transition::Block(a, b),
                _ => Transition::Start(b),
            }
        })
        .collect()
}

/// Runs one list of transitions from the start; panics where an invariant fails.
pub fn run(seed: u64, plan: &Plan, transitions: &[Transition]) -> World {
    let mut world = World::new(seed, plan.faults.clone());
    let options = HostOptions {
        password: plan.password.map(str::to_owned),
        discovery: plan.discovery,
        connection_limit: plan.connection_limit,
        short_id: plan.short_id,
        driver_fault: plan.driver_fault,
        ..HostOptions::default()
    };
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    for n in 0..plan.hosts {
        // Each host is targets of the one before it: a chain that is connected, but no more.
        let mut targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        if plan.graph == Graph::Chords && n > 1 && rng.random_bool(0.6) {
            targets.push(HostId(rng.random_range(0..n - 1)));
        }
        world.add(HostId(n), options.clone(), &targets);
    }
    for transition in transitions {
        apply(&mut world, *transition);
        invariants::check_always(&mut world);
    }
    invariants::check_eventually(&mut world, plan);
    world
}

fn apply(world: &mut World, transition: Transition) {
    match transition {
        Transition::Wait(ms) => world.run_for(Duration::from_millis(ms.into())),
        Transition::Cut(a, b) => world.net.set_cut(a, b, true),
        Transition::Heal(a, b) => world.net.set_cut(a, b, false),
        Transition::Crash(a) => world.crash(a),
        Transition::CrashAfter(a, outputs) => world.host_mut(a).crash_after(outputs, CrashKind::Killed),
        Transition::LoseDisk(a) => {
            world.crash(a);
            world.host_mut(a).lose_disk();
        }
        Transition::PowerLoss(a) => world.lose_power(a),
        Transition::PowerLossAfter(a, outputs) => {
            world.host_mut(a).crash_after(outputs, CrashKind::PowerLost)
        }
        Transition::Start(a) => {
            if world.host(a).node.is_none() {
                world.start(a, &[]);
            }
        }
        Transition::Connect(a, b) => world.with_node(a, |node, now| {
            node.connect(&[b.ip().to_string()], false, now);
        }),
        Transition::Forget(a, b) => world.with_node(a, |node, now| node.forget(&[b.ip().to_string()], now)),
        Transition::Unicast(a, b) => {
            world.send_unicast(a, b);
        }
        Transition::Long(a, b, len) => {
            world.send_long(a, b, len.into());
        }
        Transition::Broadcast(a) => {
            world.send_broadcast(a);
        }
        Transition::Move(a, b) => world.move_container(a, b),
        Transition::Loss(percent) => world.net.faults.loss = f64::from(percent) / 100.0,
        Transition::Mtu(mtu) => world.net.faults.mtu = mtu.into(),
        Transition::WallClock(seconds) => world.jump_wall_clock(seconds.into()),
        Transition::Block(a, b) => world.net.block(a, b),
    }
}

/// Runs seeds until the time given by `SIM_SECONDS` is over (one seed given by `SIM_SEED` is replayed alone); prints how
/// many runs it did.
///
/// # Panics
/// At the first failure, with the seed and the shortest list of transitions that fails.
pub fn suite(name: &str, plan: &Plan) {
    let mut budget = SeedBudget::from_environment();
    let mut runs = 0u64;
    let mut events = 0;
    for seed in budget.by_ref() {
        let transitions = generate(seed, plan);
        match attempt(seed, plan, &transitions) {
            Ok(count) => events += count,
            Err(reason) => {
                let again = |transitions: &[Transition]| attempt(seed, plan, transitions).map(|_| ());
                panic!("{}", shorten_failure(name, seed, transitions, reason, again));
            }
        }
        runs += 1;
    }
    println!("{name}: {runs} runs, {events} events, {} s", budget.seconds());
}

/// Runs a list of transitions; the number of events, or what failed.
pub fn attempt(seed: u64, plan: &Plan, transitions: &[Transition]) -> Result<u64, String> {
    catch_failure(|| run(seed, plan, transitions).counters.events)
}
