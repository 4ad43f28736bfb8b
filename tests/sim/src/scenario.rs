//! Random scenarios: a seed gives a list of transitions; running it must hold every invariant. A failing list is cut down
//! to the shortest that still fails before it is shown.

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use crate::host::HostOptions;
use crate::invariants;
use crate::net::{Faults, HostId};
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
    /// A dead peer is started with its persisted targets.
    Start(HostId),
    /// `weave connect B` on A.
    Connect(HostId, HostId),
    /// `weave forget B` on A.
    Forget(HostId, HostId),
    /// A container of the first sends a frame to one of the second.
    Unicast(HostId, HostId),
    /// A container sends a broadcast.
    Broadcast(HostId),
    /// A container moves with its MAC from one host to another.
    Move(HostId, HostId),
    /// The network loses so many datagrams, per cent.
    Loss(u8),
    /// The largest packet that passes.
    Mtu(u16),
}

/// What a suite varies.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Number of hosts.
    pub hosts: u16,
    /// Number of transitions.
    pub length: usize,
    /// Shared password of all peers.
    pub password: Option<&'static str>,
    /// Whether peers connect to peers that they only heard of.
    pub discovery: bool,
    /// Faults of the network from the start.
    pub faults: Faults,
}

/// The transitions that a seed stands for.
pub fn generate(seed: u64, plan: &Plan) -> Vec<Transition> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut host = |rng: &mut ChaCha12Rng| HostId(rng.random_range(0..plan.hosts));
    (0..plan.length)
        .map(|_| {
            let (a, b) = (host(&mut rng), host(&mut rng));
            match rng.random_range(0..100) {
                0..25 => Transition::Wait(rng.random_range(1..4000)),
                25..28 => Transition::Wait(rng.random_range(30_000..90_000)),
                28..38 => Transition::Cut(a, b),
                38..48 => Transition::Heal(a, b),
                48..52 => Transition::Crash(a),
                52..57 => Transition::CrashAfter(a, rng.random_range(0..40)),
                57..65 => Transition::Start(a),
                65..70 => Transition::Connect(a, b),
                70..73 => Transition::Forget(a, b),
                73..85 => Transition::Unicast(a, b),
                85..92 => Transition::Broadcast(a),
                92..94 => Transition::Move(a, b),
                94..98 => Transition::Loss(rng.random_range(0..30)),
                _ => Transition::Mtu(if rng.random_bool(0.5) { 1500 } else { rng.random_range(620..1500) }),
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
        ..HostOptions::default()
    };
    for n in 0..plan.hosts {
        // Each host is told of the one before it: a chain that is connected, but no more.
        let targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
        world.add(HostId(n), options.clone(), &targets);
    }
    for transition in transitions {
        apply(&mut world, *transition);
        invariants::always(&mut world);
    }
    invariants::eventually(&mut world, plan);
    world
}

fn apply(world: &mut World, transition: Transition) {
    match transition {
        Transition::Wait(ms) => world.run_for(Duration::from_millis(ms.into())),
        Transition::Cut(a, b) => world.net.set_cut(a, b, true),
        Transition::Heal(a, b) => world.net.set_cut(a, b, false),
        Transition::Crash(a) => world.crash(a),
        Transition::CrashAfter(a, outputs) => world.host_mut(a).crash_after(outputs),
        Transition::Start(a) => {
            if world.host(a).node.is_none() {
                world.start(a, &[]);
            }
        }
        Transition::Connect(a, b) => world.with_node(a, |node, now| {
            node.connect(&[b.ip().to_string()], false, now);
        }),
        Transition::Forget(a, b) => world.with_node(a, |node, now| node.forget(&[b.ip().to_string()], now)),
        Transition::Unicast(a, b) => world.send_unicast(a, b),
        Transition::Broadcast(a) => world.send_broadcast(a),
        Transition::Move(a, b) => world.move_container(a, b),
        Transition::Loss(percent) => world.net.faults.loss = f64::from(percent) / 100.0,
        Transition::Mtu(mtu) => world.net.faults.mtu = mtu.into(),
    }
}

/// Runs seeds until the time given by `SIM_SECONDS` is over (one seed given by `SIM_SEED` is replayed alone); prints how
/// many runs it did.
///
/// # Panics
/// At the first failure, with the seed and the shortest list of transitions that fails.
#[expect(clippy::disallowed_methods, reason = "the share of real time that a suite gets is not simulated time")]
pub fn suite(name: &str, plan: &Plan) {
    let replay = std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok());
    let seconds = std::env::var("SIM_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10);
    let started = std::time::Instant::now();
    let first = replay.unwrap_or(1);
    let mut runs = 0u64;
    let mut events = 0;
    for seed in first.. {
        if replay.is_some() && seed != first || runs > 0 && started.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        let transitions = generate(seed, plan);
        match attempt(seed, plan, &transitions) {
            Ok(count) => events += count,
            Err(reason) => panic!("{}", describe(name, seed, plan, transitions, reason)),
        }
        runs += 1;
    }
    println!("{name}: {runs} runs, {events} events, {} s", started.elapsed().as_secs());
}

fn attempt(seed: u64, plan: &Plan, transitions: &[Transition]) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, plan, transitions).counters.events)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
    })
}

/// Leaves out transitions, ever smaller groups, as long as the rest still fails.
fn describe(name: &str, seed: u64, plan: &Plan, mut transitions: Vec<Transition>, mut reason: String) -> String {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut group = transitions.len().div_ceil(2);
    while group > 0 {
        let mut start = 0;
        while start < transitions.len() {
            let mut shorter = transitions.clone();
            shorter.drain(start..(start + group).min(transitions.len()));
            match attempt(seed, plan, &shorter) {
                Err(text) => (transitions, reason) = (shorter, text),
                Ok(_) => start += group,
            }
        }
        group /= 2;
    }
    std::panic::set_hook(hook);
    let mut text = format!("{name}: seed {seed} fails (SIM_SEED={seed} replays it): {reason}\nshortest transitions:\n");
    for transition in &transitions {
        let _ = writeln!(text, "  {transition:?}");
    }
    text
}
