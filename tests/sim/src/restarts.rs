//! What others notice of a peer that restarts under traffic.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_mesh::Departure;
use weave_types::PeerName;

use crate::failover::Traffic;
use crate::host::{CrashKind, Host, HostOptions};
use crate::invariants;
use crate::net::{Faults, HostId};
use crate::world::World;

const HOSTS: u16 = 5;
/// Place of a peer that has ended without a word, and of one that has announced its restart.
const ASSUMED: Duration = Duration::from_secs(10);
const ANNOUNCED: Duration = Duration::from_secs(60);
/// From the end of a place until all other peers have removed the peer.
const REMOVAL: Duration = Duration::from_secs(5);

/// A full mesh with traffic between all pairs, after some time.
pub struct Restarts {
    pub world: World,
    traffic: Traffic,
    rng: ChaCha12Rng,
    pub victim: HostId,
    /// Hosts that keep no places, as 2.8.1.
    legacy: BTreeSet<HostId>,
}

impl Restarts {
    /// `legacy` of the hosts behave like 2.8.1; these are not the victim.
    pub fn new(seed: u64, legacy: u16) -> Restarts {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let password = rng.random_bool(0.5).then(|| "secret".to_owned());
        Restarts::start(seed, rng, HostOptions { password, ..HostOptions::default() }, legacy)
    }

    /// The kernels forward frames.
    pub fn with_fastdp(seed: u64) -> Restarts {
        let options = HostOptions { fastdp: true, ..HostOptions::default() };
        Restarts::start(seed, ChaCha12Rng::seed_from_u64(seed), options, 0)
    }

    fn start(seed: u64, mut rng: ChaCha12Rng, options: HostOptions, legacy: u16) -> Restarts {
        let latency = Duration::from_micros(rng.random_range(100..10_000));
        let mut world = World::new(seed, Faults { latency, ..Faults::default() });
        let victim = HostId(rng.random_range(0..HOSTS));
        let others = (0..HOSTS).map(HostId).filter(|id| *id != victim);
        let legacy: BTreeSet<HostId> = others.take(legacy.into()).collect();
        for n in 0..HOSTS {
            let targets: Vec<HostId> = n.checked_sub(1).map(HostId).into_iter().collect();
            world.add_stopped(HostId(n), options.clone());
            world.host_mut(HostId(n)).legacy = legacy.contains(&HostId(n));
            world.start(HostId(n), &targets);
        }
        let mut restarts = Restarts { world, traffic: Traffic::default(), rng, victim, legacy };
        restarts.traffic.may_repeat = !restarts.legacy.is_empty();
        invariants::wait_for_convergence(&mut restarts.world, true);
        restarts.run(Duration::from_secs(5));
        restarts.traffic.longest.clear();
        restarts
    }

    fn run(&mut self, time: Duration) {
        self.traffic.run(&mut self.world, time);
    }

    /// Ends the victim: with an announcement if `departure` is given.
    pub fn end(&mut self, departure: Option<Departure>) {
        if let Some(departure) = departure {
            self.world.shut_down(self.victim, departure);
        }
        self.world.crash(self.victim, CrashKind::Killed);
    }

    /// The connections that other peers (not the legacy ones) know, seen as established by both ends.
    fn view(&self) -> Vec<BTreeSet<(PeerName, PeerName)>> {
        let hosts = self.world.hosts().filter(|(id, _)| **id != self.victim && !self.legacy.contains(id));
        let nodes = hosts.filter_map(|(_, host)| host.node.as_ref());
        nodes
            .map(|node| {
                let peers = node.status(self.world.now()).mesh.peers;
                let links = peers.into_iter().flat_map(|peer| {
                    let from = peer.label.name;
                    let to = peer.connections.into_iter().filter(|c| c.established);
                    to.map(move |c| (from, c.label.name))
                });
                links.collect()
            })
            .collect()
    }

    /// Whether any other peer knows the victim.
    pub fn is_known(&self) -> bool {
        let victim = Host::name(self.victim);
        let mut others = self.world.hosts().filter(|(id, _)| **id != self.victim);
        others.any(|(_, host)| host.tables().is_some_and(|t| t.forwarding.routes.knows(victim)))
    }

    /// Restarts the victim, which is down for a moment. Panics if another peer sees another topology at any time. Returns the
    /// downtime, and the longest silence of a pair of which the victim is one, and of another pair.
    pub fn restart(&mut self) -> [Duration; 3] {
        let before = self.view();
        let mut downtime = Duration::from_millis(self.rng.random_range(50..400));
        let announced = self.rng.random_bool(0.5).then_some(Departure::Restart);
        self.end(announced);
        self.watch(downtime, &before);
        if self.rng.random_bool(0.3) {
            // It is killed while it starts.
            self.world.start(self.victim, &[]);
            let alive = Duration::from_millis(self.rng.random_range(1..60));
            self.watch(alive, &before);
            self.world.crash(self.victim, CrashKind::Killed);
            self.watch(downtime, &before);
            downtime = downtime * 2 + alive;
        }
        self.world.start(self.victim, &[]);
        self.watch(Duration::from_secs(3), &before);
        let longest = |of_victim: bool| {
            let pairs = self.traffic.longest.iter();
            let pairs = pairs.filter(|((a, b), _)| (*a == self.victim || *b == self.victim) == of_victim);
            pairs.map(|(_, silence)| *silence).max().unwrap_or_default()
        };
        let silences = [downtime, longest(true), longest(false)];
        self.watch(ANNOUNCED + REMOVAL, &before);
        invariants::wait_for_convergence(&mut self.world, true);
        silences
    }

    fn watch(&mut self, time: Duration, before: &[BTreeSet<(PeerName, PeerName)>]) {
        let end = self.world.now().mono + time;
        while self.world.now().mono < end {
            let left = end.saturating_since(self.world.now().mono);
            self.run(left.min(Duration::from_millis(20)));
            if self.legacy.is_empty() {
                assert!(self.view() == before, "the topology changes {left:?} before {end:?}");
            }
        }
    }

    /// The victim ends and does not return, or ends again while it starts. Its place is kept for the time stated, and not longer.
    pub fn vanish(&mut self, departure: Option<Departure>) {
        let before = self.view();
        self.end(departure);
        let mut place = match departure {
            None => ASSUMED,
            Some(Departure::Restart) => ANNOUNCED,
            Some(Departure::Leave) => Duration::ZERO,
        };
        if departure.is_none() && self.rng.random_bool(0.5) {
            let pause = Duration::from_millis(self.rng.random_range(1..5000));
            self.watch(pause, &before);
            self.world.start(self.victim, &[]);
            // Not long enough for a connection to be established.
            self.world.run_for(Duration::from_micros(self.rng.random_range(0..1000)));
            self.world.crash(self.victim, CrashKind::Killed);
            place -= pause;
        }
        if let Some(time) = place.checked_sub(Duration::from_secs(1)) {
            self.watch(time, &before);
            assert!(self.is_known());
        }
        self.world.run_for(Duration::from_secs(1) + REMOVAL);
        assert!(!self.is_known(), "the peer is still known {REMOVAL:?} after its place has ended");
        self.world.start(self.victim, &[]);
        invariants::wait_for_convergence(&mut self.world, true);
    }

    /// Two peers restart at the same time.
    pub fn restart_two(&mut self) {
        // While both are new, they and the others have different broadcast trees for a moment.
        self.traffic.may_repeat = true;
        let before = self.view();
        let other = HostId((self.victim.0 + 1) % HOSTS);
        let announced = self.rng.random_bool(0.5).then_some(Departure::Restart);
        let pauses = [300, 200].map(|most| Duration::from_millis(self.rng.random_range(1..most)));
        self.end(announced);
        self.world.crash(other, CrashKind::Killed);
        self.run(pauses[0]);
        let mut both = [self.victim, other];
        both.rotate_left(usize::from(self.rng.random_bool(0.5)));
        self.world.start(both[0], &[]);
        self.run(pauses[1]);
        self.world.start(both[1], &[]);
        self.run(Duration::from_secs(3));
        self.traffic.longest.clear();
        self.run(Duration::from_secs(1));
        let longest = self.traffic.longest.values().max().copied().unwrap_or_default();
        assert!(longest <= Duration::from_millis(100), "{longest:?}");
        let after = self.view();
        assert_eq!(after.len(), before.len());
        invariants::wait_for_convergence(&mut self.world, true);
        let complete = usize::from(HOSTS) * usize::from(HOSTS - 1);
        assert!(self.view().iter().all(|links| links.len() == complete));
    }
}

/// A square of which one corner ends under traffic. Returns the longest silence between its neighbours, over which time they have
/// another way.
pub fn silence_after_the_end_of_a_relay(seed: u64) -> Duration {
    let mut rng = ChaCha12Rng::seed_from_u64(seed);
    let mut world = World::new(seed, Faults::default());
    let options = HostOptions { discovery: false, ..HostOptions::default() };
    let targets: [&[HostId]; 4] = [&[], &[HostId(0)], &[HostId(1)], &[HostId(0), HostId(2)]];
    for (n, targets) in (0..).zip(targets) {
        world.add(HostId(n), options.clone(), targets);
    }
    invariants::wait_for_convergence(&mut world, false);
    let mut traffic = Traffic::default();
    traffic.run(&mut world, Duration::from_secs(5));
    traffic.longest.clear();
    let victim = HostId(rng.random_range(0..4));
    if rng.random_bool(0.5) {
        world.shut_down(victim, Departure::Restart);
    }
    world.crash(victim, CrashKind::Killed);
    traffic.run(&mut world, Duration::from_secs(5));
    let between = traffic.longest.iter().filter(|((a, b), _)| *a != victim && *b != victim);
    between.map(|(_, silence)| *silence).max().unwrap_or_default()
}
