//! Random lists of transitions of the mesh; a run of one must keep every invariant.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::host::{CrashKind, HostOptions};
use crate::net::HostId;
use crate::plans::{Graph, Plan};
use crate::runner::{self, catch_failure};
use crate::world::{World, addresses};
use crate::{frames, invariants};

/// Longest pause of a slow host.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transition {
    /// Time passes, milliseconds.
    Wait(u32),
    Cut(HostId, HostId),
    Heal(HostId, HostId),
    Crash(HostId, CrashKind),
    /// A crash between two outputs of the peer, after this number of outputs.
    CrashAfter(HostId, u16, CrashKind),
    /// The peer crashes and its disk is lost: a new installation under the old name.
    LoseDisk(HostId),
    /// A stopped peer is started with its persisted targets.
    Start(HostId),
    /// `weave connect B` on A.
    Connect(HostId, HostId),
    /// `weave forget B` on A.
    Forget(HostId, HostId),
    /// A container of the first sends a frame of this length to one of the second.
    Unicast(HostId, HostId, usize),
    Broadcast(HostId),
    /// A container moves with its MAC from the first to the second.
    MoveContainer(HostId, HostId),
    /// Per cent of the datagrams that are lost.
    Loss(u8),
    /// Size of the largest packet that passes.
    Mtu(u16),
    /// All wall clocks are set, by seconds.
    WallClock(i32),
    /// The host is slow: its peer does not run for this time, milliseconds.
    Pause(HostId, u16),
    /// The host is slow for so many seconds: its peer does not run for seconds, again and again.
    Slow(HostId, u8),
    /// A firewall rejects connections and datagrams from the first to the second.
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
                46..48 => Transition::Crash(a, CrashKind::Killed),
                48..49 => Transition::LoseDisk(a),
                49..54 => Transition::CrashAfter(a, rng.random_range(0..40), CrashKind::Killed),
                54..55 => Transition::Crash(a, CrashKind::PowerLost),
                55..57 => Transition::CrashAfter(a, rng.random_range(0..40), CrashKind::PowerLost),
                57..66 => Transition::Start(a),
                66..70 => Transition::Connect(a, b),
                70..72 => Transition::Forget(a, b),
                72..80 => Transition::Unicast(a, b, frames::MIN_LEN),
                80..84 => Transition::Unicast(a, b, rng.random_range(500..1500_u16).into()),
                84..90 => Transition::Broadcast(a),
                90..92 => Transition::MoveContainer(a, b),
                92..94 => Transition::Loss(rng.random_range(0..30)),
                94..97 => {
                    Transition::Mtu(if rng.random_bool(0.5) { 1500 } else { rng.random_range(620..1500) })
                }
                97..98 => Transition::WallClock(rng.random_range(-100_000..100_000)),
                98..99 if rng.random_bool(0.5) => Transition::Pause(a, rng.random_range(1..15_000)),
                98..99 => Transition::Slow(a, rng.random_range(1..60)),
                _ if plan.firewalls => Transition::Block(a, b),
                _ => Transition::Start(b),
            }
        })
        .collect()
}

/// Runs a list of transitions; returns the number of events. Panics when an invariant is violated.
fn run(seed: u64, plan: &Plan, transitions: &[Transition]) -> u64 {
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
    world.counters.events
}

fn apply(world: &mut World, transition: Transition) {
    match transition {
        Transition::Wait(ms) => world.run_for(Duration::from_millis(ms.into())),
        Transition::Cut(a, b) => world.net.set_cut(a, b, true),
        Transition::Heal(a, b) => world.net.set_cut(a, b, false),
        Transition::Crash(a, kind) => world.crash(a, kind),
        Transition::CrashAfter(a, outputs, kind) => world.host_mut(a).crash_after(outputs, kind),
        Transition::LoseDisk(a) => {
            world.crash(a, CrashKind::Killed);
            world.host_mut(a).lose_disk();
        }
        Transition::Start(a) => {
            if world.host(a).node.is_none() {
                world.start(a, &[]);
            }
        }
        Transition::Connect(a, b) => world.connect(a, &addresses(&[b])),
        Transition::Forget(a, b) => world.forget(a, b),
        Transition::Unicast(a, b, len) => {
            world.send_unicast(a, b, len);
        }
        Transition::Broadcast(a) => {
            world.send_broadcast(a);
        }
        Transition::MoveContainer(a, b) => world.move_container(a, b),
        Transition::Loss(percent) => world.net.faults.loss = f64::from(percent) / 100.0,
        Transition::Mtu(mtu) => world.net.faults.mtu = mtu.into(),
        Transition::WallClock(seconds) => world.jump_wall_clock(seconds.into()),
        Transition::Pause(a, ms) => world.pause(a, Duration::from_millis(ms.into())),
        Transition::Slow(a, seconds) => {
            world.slow_down(a, Duration::from_secs(seconds.into()), LONGEST_PAUSE);
        }
        Transition::Block(a, b) => world.net.block(a, b),
    }
}

/// Runs seeds within the budget of the environment; prints the number of runs.
pub fn run_seeds(plan: &Plan) {
    runner::run_seeds(plan.name, 1, |_| (plan.name, plan), generate, attempt);
}

/// Runs a list of transitions; returns the number of events, or the violation.
pub fn attempt(seed: u64, plan: &Plan, transitions: &[Transition]) -> Result<u64, String> {
    catch_failure(|| run(seed, plan, transitions))
}
