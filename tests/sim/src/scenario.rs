//! Random scenarios of the mesh: a seed determines a list of transitions, and a run of it must keep every invariant. A failing
//! list is shortened before it is printed.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::host::{CrashKind, HostOptions};
use crate::invariants;
use crate::net::HostId;
use crate::runner::{self, catch_failure};
use crate::suites::{Graph, Plan};
use crate::world::World;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transition {
    /// Time passes, milliseconds.
    Wait(u32),
    Cut(HostId, HostId),
    Heal(HostId, HostId),
    Crash(HostId),
    /// A crash between two outputs of the peer, after this number of outputs.
    CrashAfter(HostId, u16),
    /// The peer crashes and its disk is lost: a new installation under the old name.
    LoseDisk(HostId),
    PowerLoss(HostId),
    PowerLossAfter(HostId, u16),
    /// A stopped peer is started with its persisted targets.
    Start(HostId),
    /// `weave connect B` on A.
    Connect(HostId, HostId),
    /// `weave forget B` on A.
    Forget(HostId, HostId),
    /// A container of the first sends a frame to one of the second.
    Unicast(HostId, HostId),
    /// The same with a length in bytes.
    Long(HostId, HostId, u16),
    Broadcast(HostId),
    /// A container moves with its MAC from one host to another.
    Move(HostId, HostId),
    /// Per cent of the datagrams.
    Loss(u8),
    /// The largest packet that passes.
    Mtu(u16),
    /// All wall clocks are set, by seconds.
    WallClock(i32),
    /// A firewall rejects connections and flows from the first to the second.
    Block(HostId, HostId),
}

/// The transitions of a seed.
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

/// Runs one list of transitions from the start; panics when an invariant is violated.
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
        // Each host has the one before it as target: the mesh is connected, but no more.
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

/// Runs seeds within the budget of the environment; prints the number of runs.
pub fn suite(name: &str, plan: &Plan) {
    runner::suite(name, |_| (name, plan), generate, attempt);
}

/// Runs a list of transitions; returns the number of events, or the violation.
pub fn attempt(seed: u64, plan: &Plan, transitions: &[Transition]) -> Result<u64, String> {
    catch_failure(|| run(seed, plan, transitions).counters.events)
}
