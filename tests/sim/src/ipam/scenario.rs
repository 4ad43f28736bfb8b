//! Random lists of transitions; a run of one must keep every invariant.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

use super::actions::CONTAINERS;
use super::cluster::Cluster;
use super::plans::{AllocationPlan, plan_of};
use crate::host::CrashKind;
use crate::net::HostId;
use crate::runner::{self, catch_failure};
use crate::scenario::LONGEST_PAUSE;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AllocationTransition {
    /// Time passes, milliseconds.
    Wait(u32),
    Cut(HostId, HostId),
    Heal(HostId, HostId),
    /// Packets of the first do not reach the second until the link is healed.
    CutOneWay(HostId, HostId),
    /// All messages in transit are lost.
    LoseMessages,
    /// Per cent of the messages that are lost.
    Loss(u8),
    /// Per cent of the messages that take seconds.
    Stall(u8),
    Crash(HostId, CrashKind),
    /// A crash between two outputs of the peer, after this number of outputs.
    CrashAfter(HostId, u16, CrashKind),
    /// The peer crashes and its disk is lost; the containers continue to run.
    LoseDisk(HostId),
    Start(HostId),
    /// The host is slow: its peer does not run for this time, milliseconds.
    Pause(HostId, u16),
    /// The host is slow for so many seconds: its peer does not run for seconds, again and again.
    Slow(HostId, u8),
    /// A container, by number, requests an address of a subnet.
    Allocate(HostId, u8, usize),
    /// A container claims an address, given as offset in the range; with `true` the claim succeeds at once if there is no ring.
    Claim(HostId, u8, u8, bool),
    /// `weave prime`: a client waits until there is a ring.
    Prime(HostId),
    /// A client cancels one of the pending requests.
    Cancel(HostId, u8),
    /// One address of a container is released.
    Free(HostId, u8),
    /// All addresses of a container are released.
    Delete(HostId, u8),
    /// A Docker container ends.
    Die(HostId, u8),
    /// A Docker container is removed.
    Remove(HostId, u8),
    /// A Docker container is started again.
    Restart(HostId, u8),
    /// `weave reset`.
    Reset(HostId),
    /// The host fails for good.
    DestroyHost(HostId),
    /// A destroyed host is installed again.
    Reinstall(HostId),
    /// `weave rmpeer` of one of the removed peers.
    RemovePeer(HostId, u8),
    /// The peer is restarted with another range.
    ChangeRange(HostId),
    /// The wall clock is set, by seconds.
    WallClock(HostId, i32),
}

/// The transitions of a seed.
pub fn generate(seed: u64, plan: &AllocationPlan) -> Vec<AllocationTransition> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let range = plan.ranges[0].range().size().min(64) as u8;
    (0..plan.length)
        .map(|_| {
            let a = HostId(rng.random_range(0..plan.hosts));
            let b = HostId(rng.random_range(0..plan.hosts));
            let container = rng.random_range(0..CONTAINERS);
            let kinds = [30, plan.request_weight, 25, plan.leave_weight];
            let mut kind = rng.random_range(0..kinds.iter().sum::<u32>());
            let mut group = 0;
            while kind >= kinds[group] {
                kind -= kinds[group];
                group += 1;
            }
            let roll = rng.random_range(0..100_u8);
            match group {
                0 => match roll {
                    0..50 => AllocationTransition::Wait(rng.random_range(1..300)),
                    50..90 => AllocationTransition::Wait(rng.random_range(300..6000)),
                    _ => AllocationTransition::Wait(rng.random_range(10_000..50_000)),
                },
                1 => match roll {
                    0..45 => AllocationTransition::Allocate(a, container, rng.random_range(0..9)),
                    45..60 => {
                        let offset = rng.random_range(0..range + 2);
                        AllocationTransition::Claim(a, container, offset, rng.random_bool(0.2))
                    }
                    60..64 => AllocationTransition::Prime(a),
                    64..72 => AllocationTransition::Cancel(a, rng.random()),
                    72..78 => AllocationTransition::Free(a, container),
                    78..84 => AllocationTransition::Delete(a, container),
                    84..90 => AllocationTransition::Die(a, container),
                    90..95 => AllocationTransition::Remove(a, container),
                    _ => AllocationTransition::Restart(a, container),
                },
                2 => match roll {
                    0..14 => AllocationTransition::Cut(a, b),
                    14..32 => AllocationTransition::Heal(a, b),
                    32..36 => AllocationTransition::CutOneWay(a, b),
                    36..39 => AllocationTransition::LoseMessages,
                    39..42 => AllocationTransition::Loss(rng.random_range(0..40)),
                    42..45 => AllocationTransition::Stall(rng.random_range(0..40)),
                    45..49 => AllocationTransition::Crash(a, CrashKind::Killed),
                    49..58 => AllocationTransition::CrashAfter(a, rng.random_range(0..12), CrashKind::Killed),
                    58..61 => AllocationTransition::Crash(a, CrashKind::PowerLost),
                    61..66 => {
                        AllocationTransition::CrashAfter(a, rng.random_range(0..12), CrashKind::PowerLost)
                    }
                    66..70 => AllocationTransition::LoseDisk(a),
                    70..72 if plan.ranges.len() > 1 => AllocationTransition::ChangeRange(a),
                    70..94 => AllocationTransition::Start(a),
                    94..95 => AllocationTransition::Pause(a, rng.random_range(1..15_000)),
                    95..96 => AllocationTransition::Slow(a, rng.random_range(1..60)),
                    _ => AllocationTransition::WallClock(a, rng.random_range(-100_000..100_000)),
                },
                _ => match roll {
                    0..20 => AllocationTransition::Reset(a),
                    20..40 => AllocationTransition::DestroyHost(a),
                    40..65 => AllocationTransition::Reinstall(a),
                    _ => AllocationTransition::RemovePeer(a, rng.random()),
                },
            }
        })
        .collect()
}

/// Runs a list of transitions; returns the number of events. Panics when an invariant is violated.
fn run(seed: u64, plan: &AllocationPlan, transitions: &[AllocationTransition]) -> u64 {
    let mut cluster = Cluster::new(seed, plan);
    if plan.ring_first {
        cluster.establish_ring();
    }
    for transition in transitions {
        cluster.apply(*transition);
        cluster.check_always();
    }
    cluster.check_eventually();
    cluster.world.counters.events
}

/// Runs a list of transitions; returns the number of events, or the violation.
pub fn attempt(
    seed: u64,
    plan: &AllocationPlan,
    transitions: &[AllocationTransition],
) -> Result<u64, String> {
    catch_failure(|| run(seed, plan, transitions))
}

/// Runs the plans in turn, one seed each, within the budget of the environment; prints the number of runs.
pub fn run_seeds(name: &str, plans: &[AllocationPlan]) {
    let plan_of = |seed| {
        let plan = plan_of(seed, plans);
        (plan.name, plan)
    };
    runner::run_seeds(name, 1, plan_of, generate, attempt);
}

impl Cluster {
    /// Lets the peers establish a ring on a network without loss.
    fn establish_ring(&mut self) {
        let faults = &mut self.world.net.faults;
        let (loss, stall) = (std::mem::take(&mut faults.loss), std::mem::take(&mut faults.stall));
        self.run_for(Duration::from_secs(3));
        self.prime(HostId(0));
        self.run_for(Duration::from_secs(60));
        (self.world.net.faults.loss, self.world.net.faults.stall) = (loss, stall);
    }

    fn apply(&mut self, transition: AllocationTransition) {
        self.trace(HostId(0), || format!("==== {transition:?}"));
        // With a hub each host has only one link, to the hub.
        let peer = |a: HostId, b: HostId| if self.plan.hub && a != b { self.plan.hub_id() } else { b };
        match transition {
            AllocationTransition::Wait(ms) => self.run_for(Duration::from_millis(ms.into())),
            AllocationTransition::Cut(a, b) => {
                self.world.net.set_cut(a, peer(a, b), true);
                self.update_links();
            }
            AllocationTransition::Heal(a, b) => {
                self.world.net.set_cut(a, peer(a, b), false);
                self.update_links();
            }
            AllocationTransition::CutOneWay(a, b) => self.world.net.cut_one_way(a, peer(a, b)),
            AllocationTransition::LoseMessages => self.lose_messages(),
            AllocationTransition::Loss(percent) => self.world.net.faults.loss = f64::from(percent) / 100.0,
            // Jitter of seconds lets streams of nodes overtake each other; messages of allocators are delayed one by one.
            AllocationTransition::Stall(percent) if self.plan.nodes => {
                self.world.net.faults.jitter = Duration::from_millis(100 * u64::from(percent));
            }
            AllocationTransition::Stall(percent) => self.world.net.faults.stall = f64::from(percent) / 100.0,
            AllocationTransition::Crash(a, kind) => self.crash(a, kind),
            AllocationTransition::CrashAfter(a, outputs, kind) => {
                self.world.host_mut(a).crash_after(outputs, kind);
            }
            AllocationTransition::LoseDisk(a) => self.lose_disk(a),
            AllocationTransition::Start(a) => self.start(a),
            AllocationTransition::Pause(a, ms) => self.world.pause(a, Duration::from_millis(ms.into())),
            AllocationTransition::Slow(a, seconds) => {
                self.world.slow_down(a, Duration::from_secs(seconds.into()), LONGEST_PAUSE);
            }
            AllocationTransition::Allocate(a, container, subnet) => self.allocate(a, container, subnet),
            AllocationTransition::Claim(a, container, offset, lenient) => {
                self.claim(a, container, offset, lenient)
            }
            AllocationTransition::Prime(a) => self.prime(a),
            AllocationTransition::Cancel(a, which) => self.cancel(a, which),
            AllocationTransition::Free(a, container) => self.release(a, container, false),
            AllocationTransition::Delete(a, container) => self.release(a, container, true),
            AllocationTransition::Die(a, container) => self.end_container(a, container, false),
            AllocationTransition::Remove(a, container) => self.end_container(a, container, true),
            AllocationTransition::Restart(a, container) => self.restart_container(a, container),
            AllocationTransition::Reset(a) => self.reset(a),
            AllocationTransition::DestroyHost(a) => self.destroy_host(a),
            AllocationTransition::Reinstall(a) => self.reinstall(a),
            AllocationTransition::RemovePeer(a, which) => self.remove_peer(a, which),
            AllocationTransition::ChangeRange(a) => self.change_range(a),
            AllocationTransition::WallClock(a, seconds) => {
                self.world.host_mut(a).clock.wall_error += i64::from(seconds);
            }
        }
    }
}
