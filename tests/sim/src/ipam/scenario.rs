//! Random lists of what happens; running one must hold every invariant.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::Subnet;
use weave_types::Cidr;

use super::calls::CONTAINERS;
use super::world::World;
use crate::host::Death;
use crate::net::HostId;
use crate::runner::{Budget, describe, guarded};
use crate::sabotage::Sabotage;

/// Everything that can happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transition {
    /// Time passes, milliseconds.
    Wait(u32),
    /// Two hosts are no longer connected.
    Cut(HostId, HostId),
    /// They are again.
    Heal(HostId, HostId),
    /// Nothing gets from the first to the second, until that is healed.
    Mute(HostId, HostId),
    /// All messages are lost that are on their way.
    LoseMessages,
    /// So many messages are lost, per cent.
    Loss(u8),
    /// So many messages take seconds, per cent.
    Slow(u8),
    /// A peer is killed.
    Crash(HostId),
    /// A peer is killed between two of its outputs, after so many more.
    CrashAfter(HostId, u16),
    /// A host loses its power.
    PowerLoss(HostId),
    /// The same between two outputs.
    PowerLossAfter(HostId, u16),
    /// A peer's disk is lost; its containers run on.
    LoseDisk(HostId),
    /// A dead peer is started.
    Start(HostId),
    /// A container wants an address of a subnet.
    Allocate(HostId, u8, usize),
    /// A container wants a certain address. `true`: yes is said where nothing is known.
    Claim(HostId, u8, u8, bool),
    /// Somebody waits for the ring.
    Prime(HostId),
    /// Somebody no longer waits.
    Cancel(HostId, u8),
    /// An address is released.
    Free(HostId, u8),
    /// All of a container's are.
    Delete(HostId, u8),
    /// A Docker container ends.
    Die(HostId, u8),
    /// A Docker container is removed.
    Remove(HostId, u8),
    /// A Docker container is started again.
    Restart(HostId, u8),
    /// `weave reset`.
    Reset(HostId),
    /// A host is destroyed without a word.
    Demolish(HostId),
    /// A destroyed host is installed anew.
    Reinstall(HostId),
    /// `weave rmpeer` of one of those that are gone.
    RemovePeer(HostId, u8),
    /// The peer is started with another range.
    ChangeRange(HostId),
    /// Somebody sets a wall clock, seconds.
    WallClock(HostId, i32),
}

/// Which hosts could be connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Graph {
    /// Each to each.
    Complete,
    /// In a row.
    Line,
    /// All to the first.
    Star,
}

/// How the range is first divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// By election; the number of electors is given.
    Count,
    /// By election; their addresses are.
    Targets,
    /// Everybody knows beforehand.
    Seed,
    /// By election; each peer is launched with the addresses of those before it.
    Chain,
}

/// What a plan varies.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub name: &'static str,
    /// Number of hosts.
    pub hosts: u16,
    /// So many of them, the last, are observers.
    pub observers: u16,
    /// So many of them, the first, behave like 2.8.1.
    pub legacy: u16,
    /// Those tell what they give away before it is on the disk.
    pub early: bool,
    /// Number of transitions.
    pub length: usize,
    /// The range; a second one if it is changed. They are apart.
    pub ranges: Vec<Subnet>,
    /// How the range is divided.
    pub begin: Begin,
    /// There is a ring before anything goes wrong.
    pub calm: bool,
    /// Who could be connected to whom.
    pub graph: Graph,
    /// Chance that a message is lost.
    pub loss: f64,
    /// Chance that it arrives twice.
    pub duplication: f64,
    /// Chance that it takes seconds.
    pub slow: f64,
    /// By so many parts in a million clocks are too fast or too slow, at most.
    pub drift: u64,
    /// How often containers do something, compared to everything else.
    pub requests: u32,
    /// How often peers leave for good.
    pub leave: u32,
    /// Two peers may take over the same one.
    pub contest: bool,
    /// Peers may contradict each other.
    pub conflicts: bool,
    /// The election may come to two results.
    pub may_divide: bool,
    /// Whole nodes, instead of allocators on a network that keeps the mesh's contract.
    pub nodes: bool,
    /// They are connected by one more node only, on which nothing is allocated.
    pub bridge: bool,
    /// The password of those.
    pub password: Option<&'static str>,
    /// A mistake of their driver.
    pub sabotage: Option<Sabotage>,
}

impl Plan {
    /// So many peers on a good network.
    pub fn new(name: &'static str, hosts: u16, length: usize) -> Plan {
        Plan {
            name,
            hosts,
            observers: 0,
            legacy: 0,
            early: false,
            length,
            ranges: vec![subnet("10.32.0.0/27")],
            begin: Begin::Count,
            calm: false,
            graph: Graph::Complete,
            loss: 0.02,
            duplication: 0.02,
            slow: 0.05,
            drift: 50_000,
            requests: 40,
            leave: 0,
            contest: false,
            conflicts: false,
            may_divide: false,
            nodes: false,
            bridge: false,
            password: None,
            sabotage: None,
        }
    }

    /// Number of hosts that vote.
    pub(super) fn electors(&self) -> u16 {
        self.hosts - self.observers
    }

    /// One of the subnets that containers ask for: the range itself, parts of it, one that reaches beyond it, or apart
    /// from it.
    pub(super) fn subnet(&self, range: usize, which: usize) -> Subnet {
        let universe = self.ranges[range];
        let start = universe.range().start();
        let part = |prefix: u8, offset: u32| {
            let addr = std::net::Ipv4Addr::from(start + offset);
            Cidr::new(addr.into(), prefix)
                .and_then(|cidr| Subnet::new(cidr.network()).ok())
                .unwrap_or(universe)
        };
        match which {
            0 => part(universe.prefix() + 1, 0),
            1 => part(30, universe.range().size() / 2),
            2 => part(universe.prefix() - 1, 0),
            3 => part(24, 1 << 16),
            _ => universe,
        }
    }

    /// How an address is shown.
    pub(super) fn cidr(&self, addr: u32) -> Cidr {
        let prefix = self.ranges[0].prefix();
        let ip = std::net::Ipv4Addr::from(addr).into();
        Cidr::new(ip, prefix).unwrap_or_else(|| self.ranges[0].cidr())
    }
}

/// A subnet of a plan.
///
/// # Panics
/// If it is none.
pub fn subnet(text: &str) -> Subnet {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The transitions that a seed stands for.
pub fn generate(seed: u64, plan: &Plan) -> Vec<Transition> {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let range = plan.ranges[0].range().size().min(64) as u8;
    (0..plan.length)
        .map(|_| {
            let a = HostId(rng.random_range(0..plan.hosts));
            let b = HostId(rng.random_range(0..plan.hosts));
            let container = rng.random_range(0..CONTAINERS);
            let kinds = [30, plan.requests, 25, plan.leave];
            let mut kind = rng.random_range(0..kinds.iter().sum::<u32>());
            let mut group = 0;
            while kind >= kinds[group] {
                kind -= kinds[group];
                group += 1;
            }
            let roll = rng.random_range(0..100_u8);
            match group {
                0 => match roll {
                    0..50 => Transition::Wait(rng.random_range(1..300)),
                    50..90 => Transition::Wait(rng.random_range(300..6000)),
                    _ => Transition::Wait(rng.random_range(10_000..50_000)),
                },
                1 => match roll {
                    0..45 => Transition::Allocate(a, container, rng.random_range(0..9)),
                    45..60 => {
                        let offset = rng.random_range(0..range + 2);
                        Transition::Claim(a, container, offset, rng.random_bool(0.2))
                    }
                    60..64 => Transition::Prime(a),
                    64..72 => Transition::Cancel(a, rng.random()),
                    72..78 => Transition::Free(a, container),
                    78..84 => Transition::Delete(a, container),
                    84..90 => Transition::Die(a, container),
                    90..95 => Transition::Remove(a, container),
                    _ => Transition::Restart(a, container),
                },
                2 => match roll {
                    0..14 => Transition::Cut(a, b),
                    14..32 => Transition::Heal(a, b),
                    32..36 => Transition::Mute(a, b),
                    36..39 => Transition::LoseMessages,
                    39..42 => Transition::Loss(rng.random_range(0..40)),
                    42..45 => Transition::Slow(rng.random_range(0..40)),
                    45..49 => Transition::Crash(a),
                    49..58 => Transition::CrashAfter(a, rng.random_range(0..12)),
                    58..61 => Transition::PowerLoss(a),
                    61..66 => Transition::PowerLossAfter(a, rng.random_range(0..12)),
                    66..70 => Transition::LoseDisk(a),
                    70..72 if plan.ranges.len() > 1 => Transition::ChangeRange(a),
                    70..96 => Transition::Start(a),
                    _ => Transition::WallClock(a, rng.random_range(-100_000..100_000)),
                },
                _ => match roll {
                    0..20 => Transition::Reset(a),
                    20..40 => Transition::Demolish(a),
                    40..65 => Transition::Reinstall(a),
                    _ => Transition::RemovePeer(a, rng.random()),
                },
            }
        })
        .collect()
}

/// Runs one list from the start; gives the number of events. Panics where an invariant fails.
pub fn run(seed: u64, plan: &Plan, transitions: &[Transition]) -> u64 {
    let mut world = World::new(seed, plan);
    if plan.calm {
        world.begin_calmly();
    }
    for transition in transitions {
        world.apply(*transition);
        world.always();
    }
    world.eventually();
    world.events
}

/// Runs a list of transitions; the number of events, or what failed.
pub fn attempt(seed: u64, plan: &Plan, transitions: &[Transition]) -> Result<u64, String> {
    guarded(|| run(seed, plan, transitions))
}

/// Runs the plans in turns, a seed each, as long as the environment says; prints how many runs it did.
///
/// # Panics
/// At the first failure, with the seed and the shortest list of transitions that fails.
pub fn suite(name: &str, plans: &[Plan]) {
    let mut budget = Budget::from_environment();
    let (mut runs, mut events) = (0u64, 0);
    while let Some(seed) = budget.next() {
        let plan = plan_of(seed, plans);
        let transitions = generate(seed, plan);
        match attempt(seed, plan, &transitions) {
            Ok(count) => events += count,
            Err(reason) => {
                let again = |transitions: &[Transition]| attempt(seed, plan, transitions).map(|_| ());
                let what = format!("{name}, {} (run {})", plan.name, runs + 1);
                panic!("{}", describe(&what, seed, transitions, reason, again));
            }
        }
        runs += 1;
        if runs.is_multiple_of(10_000) {
            println!("{name}: {runs} runs so far, {} s", budget.seconds());
        }
    }
    println!("{name}: {runs} runs, {events} events, {} s", budget.seconds());
}

/// Which plan a seed is for.
pub fn plan_of(seed: u64, plans: &[Plan]) -> &Plan {
    &plans[(seed % plans.len() as u64) as usize]
}

impl World {
    /// Lets the peers find a ring before anything else happens.
    fn begin_calmly(&mut self) {
        let (loss, slow) = (self.network.loss, self.network.slow);
        (self.network.loss, self.network.slow) = (0.0, 0.0);
        self.run_for(Duration::from_secs(3));
        self.prime(HostId(0));
        self.run_for(Duration::from_secs(60));
        (self.network.loss, self.network.slow) = (loss, slow);
    }

    fn apply(&mut self, transition: Transition) {
        self.trace(HostId(0), || format!("==== {transition:?}"));
        if self.nodes.is_some() && self.apply_to_nodes(transition) {
            return;
        }
        match transition {
            Transition::Wait(ms) => self.run_for(Duration::from_millis(ms.into())),
            Transition::Cut(a, b) => {
                self.network.set_cut(a, b, true);
                self.relink();
            }
            Transition::Heal(a, b) => {
                self.network.set_cut(a, b, false);
                self.relink();
            }
            Transition::Mute(a, b) => self.network.mute(a, b),
            Transition::LoseMessages => self.lose_messages(),
            Transition::Loss(percent) => self.network.loss = f64::from(percent) / 100.0,
            Transition::Slow(percent) => self.network.slow = f64::from(percent) / 100.0,
            Transition::Crash(a) => self.kill(a, Death::Killed),
            Transition::CrashAfter(a, outputs) => self.host_mut(a).fuse = Some((outputs, Death::Killed)),
            Transition::PowerLoss(a) => self.kill(a, Death::PowerLost),
            Transition::PowerLossAfter(a, outputs) => {
                self.host_mut(a).fuse = Some((outputs, Death::PowerLost));
            }
            Transition::LoseDisk(a) => self.lose_disk(a),
            Transition::Start(a) => self.start(a),
            Transition::Allocate(a, container, subnet) => self.allocate(a, container, subnet),
            Transition::Claim(a, container, offset, lenient) => self.claim(a, container, offset, lenient),
            Transition::Prime(a) => self.prime(a),
            Transition::Cancel(a, which) => self.cancel(a, which),
            Transition::Free(a, container) => self.release(a, container, false),
            Transition::Delete(a, container) => self.release(a, container, true),
            Transition::Die(a, container) => self.container_ends(a, container, false),
            Transition::Remove(a, container) => self.container_ends(a, container, true),
            Transition::Restart(a, container) => self.container_starts(a, container),
            Transition::Reset(a) => self.reset(a),
            Transition::Demolish(a) => self.demolish(a),
            Transition::Reinstall(a) => self.reinstall(a),
            Transition::RemovePeer(a, which) => self.remove_peer(a, which),
            Transition::ChangeRange(a) => self.change_range(a),
            Transition::WallClock(a, seconds) => self.host_mut(a).time.wall_error += i64::from(seconds),
        }
    }
}
