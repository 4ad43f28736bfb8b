//! Random lists of transitions; a run of one must keep every invariant.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use super::cluster::{NAMES, NameCluster};
use super::plans::{NamePlan, plan_of};
use crate::host::CrashKind;
use crate::net::HostId;
use crate::runner::{self, catch_failure};
use crate::scenario::LONGEST_PAUSE;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NameTransition {
    /// Time passes, milliseconds.
    Wait(u32),
    Cut(HostId, HostId),
    Heal(HostId, HostId),
    /// All connections are reset; messages in transit are lost.
    ResetConnections,
    /// Per cent of the datagrams that are lost.
    Loss(u8),
    /// Packets take up to so many tenths of a second longer.
    Delay(u8),
    Crash(HostId, CrashKind),
    /// A crash between two outputs of the peer, after this number of outputs.
    CrashAfter(HostId, u16, CrashKind),
    Start(HostId),
    /// The host is slow: its peer does not run for this time, milliseconds.
    Pause(HostId, u16),
    /// The host is slow for so many seconds: its peer does not run for seconds, again and again.
    Slow(HostId, u8),
    /// A container registers a name, by number, at an address.
    Add(HostId, usize, u8, u8),
    /// A name is removed from a container.
    Remove(HostId, usize, u8),
    /// A name is removed from all containers.
    RemoveName(HostId, usize),
    ContainerDied(HostId, u8),
    /// A container has the second name instead of the first.
    Rename(HostId, u8, usize, usize),
    /// The wall clock is set, by seconds.
    WallClock(HostId, i32),
}

/// The transitions of a seed.
pub fn generate(seed: u64, plan: &NamePlan) -> Vec<NameTransition> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    (0..plan.length)
        .map(|_| {
            let a = HostId(rng.random_range(0..plan.hosts));
            let b = HostId(rng.random_range(0..plan.hosts));
            let [name, other] = [(); 2].map(|()| rng.random_range(0..NAMES.len()));
            let container = rng.random_range(0..3);
            match rng.random_range(0..100) {
                0..12 => NameTransition::Wait(rng.random_range(1..300)),
                12..22 => NameTransition::Wait(rng.random_range(300..6000)),
                22..26 => NameTransition::Wait(rng.random_range(10_000..50_000)),
                26..27 => NameTransition::Wait(rng.random_range(1_700_000..2_000_000)),
                27..50 => NameTransition::Add(a, name, container, rng.random_range(0..3)),
                50..55 => NameTransition::Remove(a, name, container),
                55..60 => NameTransition::RemoveName(a, name),
                60..64 => NameTransition::ContainerDied(a, container),
                64..68 => NameTransition::Rename(a, container, name, other),
                68..74 => NameTransition::Cut(a, b),
                74..80 => NameTransition::Heal(a, b),
                80..82 => NameTransition::ResetConnections,
                82..83 => NameTransition::Loss(rng.random_range(0..20)),
                83..84 => NameTransition::Delay(rng.random_range(0..20)),
                84..86 => NameTransition::Crash(a, CrashKind::Killed),
                86..89 => NameTransition::CrashAfter(a, rng.random_range(0..20), CrashKind::Killed),
                89..90 => NameTransition::Crash(a, CrashKind::PowerLost),
                90..96 => NameTransition::Start(a),
                96..97 => NameTransition::Pause(a, rng.random_range(1..15_000)),
                97..98 => NameTransition::Slow(a, rng.random_range(1..60)),
                // Peers like 2.8.1 end connections to a peer with a wrong clock.
                _ if plan.legacy > 0 => NameTransition::Start(b),
                _ => NameTransition::WallClock(a, rng.random_range(-4000..4000)),
            }
        })
        .collect()
}

/// Runs seeds of all plans within a quarter of the time of the environment, which is 150 runs in ten seconds; prints the number of runs.
pub fn run_seeds(plans: &[NamePlan]) {
    let plan_of = |seed| {
        let plan = plan_of(seed, plans);
        (plan.name, plan)
    };
    runner::run_seeds("names over nodes", 4, plan_of, generate, attempt);
}

/// Runs a list of transitions; returns the number of events, or the violation.
pub fn attempt(seed: u64, plan: &NamePlan, transitions: &[NameTransition]) -> Result<u64, String> {
    catch_failure(|| {
        let mut cluster = NameCluster::new(seed, plan);
        for transition in transitions {
            apply(&mut cluster, *transition);
            cluster.check_always();
        }
        cluster.check_eventually();
        cluster.world.counters.events
    })
}

fn apply(cluster: &mut NameCluster, transition: NameTransition) {
    let net = &mut cluster.world.net;
    match transition {
        NameTransition::Wait(ms) => cluster.run_for(Duration::from_millis(ms.into())),
        NameTransition::Cut(a, b) => net.set_cut(a, b, true),
        NameTransition::Heal(a, b) => net.set_cut(a, b, false),
        NameTransition::ResetConnections => cluster.reset_connections(),
        NameTransition::Loss(percent) => net.faults.loss = f64::from(percent) / 100.0,
        NameTransition::Delay(tenths) => net.faults.jitter = Duration::from_millis(100 * u64::from(tenths)),
        NameTransition::Crash(a, kind) => cluster.crash(a, kind),
        NameTransition::CrashAfter(a, outputs, kind) => cluster.world.host_mut(a).crash_after(outputs, kind),
        NameTransition::Start(a) => cluster.start(a),
        NameTransition::Pause(a, ms) => cluster.world.pause(a, Duration::from_millis(ms.into())),
        NameTransition::Slow(a, seconds) => {
            cluster.world.slow_down(a, Duration::from_secs(seconds.into()), LONGEST_PAUSE);
        }
        NameTransition::Add(a, name, container, addr) => cluster.add(a, name, container, addr),
        NameTransition::Remove(a, name, container) => cluster.remove(a, Some(name), Some(container)),
        NameTransition::RemoveName(a, name) => cluster.remove(a, Some(name), None),
        NameTransition::ContainerDied(a, container) => cluster.remove(a, None, Some(container)),
        NameTransition::Rename(a, container, from, to) => {
            cluster.remove(a, Some(from), Some(container));
            cluster.add(a, to, container, container);
        }
        NameTransition::WallClock(a, seconds) => {
            cluster.world.host_mut(a).clock.wall_error += i64::from(seconds);
        }
    }
}

/// Peers that learn at different times that a name was removed forget it all the same, instead of telling each other of it for ever.
///
/// # Panics
/// A tombstone is still there.
pub fn forget_tombstones(plan: &NamePlan) {
    let mut cluster = NameCluster::new(1, plan);
    let (first, last) = (HostId(0), HostId(plan.hosts - 1));
    cluster.run_for(Duration::from_secs(60));
    cluster.add(first, 0, 0, 0);
    cluster.run_for(Duration::from_secs(10));
    for other in (0..plan.hosts - 1).map(HostId) {
        cluster.world.net.set_cut(other, last, true);
    }
    cluster.remove(first, Some(0), None);
    cluster.run_for(Duration::from_secs(900));
    cluster.world.net.heal_all();
    cluster.run_for(Duration::from_secs(400));
    assert_eq!(cluster.tombstones(), usize::from(plan.hosts), "all peers have been told");
    cluster.run_for(Duration::from_secs(1800));
    assert_eq!(cluster.tombstones(), 0, "tombstones are forgotten");
}
