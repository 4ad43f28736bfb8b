use proptest::prelude::*;

use super::*;

/// A path that drops packets above `passes` bytes silently; the kernel refuses those above `kernel`. Inner sizes.
struct Sim {
    pmtu: Pmtu,
    now: Instant,
    passes: usize,
    kernel: Option<usize>,
    rtt: Duration,
    /// So many of a thousand probes are lost, at random.
    loss: u64,
    /// The neighbour does not read before this time, and drops probes above this size until then.
    stalled: Option<(Instant, usize)>,
    /// How late this peer handles its timers; what arrives meanwhile is handled after them.
    lateness: Duration,
    random: u64,
    probes: Vec<u16>,
    /// Whether data is sent.
    traffic: bool,
    in_flight: VecDeque<(Instant, u16)>,
    budget: TokenBucket,
    /// Times in which the network carries nothing.
    outages: Vec<(Instant, Instant)>,
}

impl Sim {
    fn new(overhead: usize, passes: usize, kernel: Option<usize>) -> Sim {
        let mut pmtu = Pmtu::new(overhead);
        pmtu.start(Duration::ZERO, Instant::ORIGIN);
        Sim {
            pmtu,
            now: Instant::ORIGIN,
            passes,
            kernel,
            rtt: ms(2),
            loss: 0,
            stalled: None,
            lateness: Duration::ZERO,
            random: 1,
            probes: Vec::new(),
            traffic: true,
            in_flight: VecDeque::new(),
            budget: probe_budget(),
            outages: Vec::new(),
        }
    }

    /// A number below `limit`.
    fn random(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn drain(&mut self) {
        if self.traffic {
            self.pmtu.handle_traffic();
        }
        while let Some(output) = self.pmtu.poll_output() {
            let size = match output {
                Output::Verified => continue,
                Output::InitialProbe => INITIAL_PROBE as u16,
                Output::Probe(size) => {
                    self.probes.push(size);
                    let lost = self.outages.iter().any(|(from, to)| (*from..*to).contains(&self.now));
                    if lost || self.random(1000) < self.loss {
                        continue;
                    }
                    size
                }
            };
            match self.kernel {
                Some(kernel) if usize::from(size) > kernel => {
                    self.pmtu.handle_interface_mtu((kernel + self.pmtu.overhead) as u16, self.now);
                }
                _ if usize::from(size) > self.passes => {}
                _ => match self.stalled {
                    Some((until, room)) if self.now < until => {
                        if usize::from(size) <= room {
                            self.in_flight.push_back((until + self.rtt, size));
                        }
                    }
                    _ => self.in_flight.push_back((self.now + self.rtt, size)),
                },
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            self.drain();
            let ack = self.in_flight.front().copied();
            let timer = self.pmtu.poll_timeout().map_or(end + ms(1), |(at, _)| at + self.lateness);
            let ack = ack.filter(|(at, _)| self.lateness.is_zero() || *at + self.lateness < timer);
            match ack {
                Some((at, size)) if at <= timer && at <= end => {
                    self.in_flight.pop_front();
                    self.now = at;
                    self.pmtu.handle_ack(size, at);
                }
                _ if timer <= end => {
                    self.now = timer.max(self.now);
                    self.pmtu.handle_timeout(&mut self.budget, self.now);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    /// The MTU, if the search is complete.
    fn found(&self) -> Option<usize> {
        matches!(self.pmtu.phase, Phase::SearchComplete(_)).then_some(self.pmtu.mtu())
    }
}

#[test]
fn a_path_without_black_hole_needs_one_probe() {
    for (overhead, mtu) in [(62, 1438), (86, 1414)] {
        let mut sim = Sim::new(overhead, mtu, Some(mtu));
        sim.run(ms(10));
        assert_eq!((sim.found(), sim.probes.as_slice()), (Some(mtu), &[mtu as u16][..]));
        assert_eq!(sim.pmtu.max_payload(), 1472);
    }
}

#[test]
fn headers_of_ipv6_are_taken_into_account() {
    let mut pmtu = Pmtu::new(62).with_ipv6();
    pmtu.start(Duration::ZERO, Instant::ORIGIN);
    assert_eq!((pmtu.poll_output(), pmtu.known_mtu()), (Some(Output::InitialProbe), None));
    pmtu.handle_interface_mtu(1500, Instant::ORIGIN);
    assert_eq!((pmtu.poll_output(), pmtu.known_mtu()), (Some(Output::Probe(1418)), None));
    pmtu.handle_ack(1418, Instant::ORIGIN);
    assert_eq!((pmtu.known_mtu(), pmtu.max_payload()), (Some(1418), 1452));
}

#[test]
fn every_black_hole_is_found_within_three_seconds() {
    for passes in (SEARCH_FLOOR..1438).step_by(7).chain([638, 1437]) {
        let mut sim = Sim::new(62, passes, Some(1438));
        sim.run(ms(3000));
        assert_eq!(sim.found(), Some(passes));
        assert!(sim.probes.len() <= 300, "{} probes", sim.probes.len());
    }
    for passes in (SEARCH_FLOOR..8938).step_by(101) {
        let mut sim = Sim::new(62, passes, Some(8938));
        sim.run(ms(4000));
        assert_eq!(sim.found(), Some(passes));
    }
}

#[test]
fn an_unconfirmed_mtu_is_used_for_less_than_half_a_second() {
    let mut sim = Sim::new(62, 638, Some(1438));
    sim.run(ms(10));
    assert_eq!(sim.pmtu.mtu(), 1438, "assumed to pass, as in 2.8.1");
    sim.run(ms(500));
    assert_eq!(sim.pmtu.mtu(), 638, "a size known to pass is used immediately");
    assert_eq!(sim.found(), None);
}

#[test]
fn loss_and_long_round_trips_do_not_change_the_result() {
    for (rtt, loss) in [(700, 0), (3000, 0), (20, 500), (20, 300), (400, 300)] {
        for (passes, random) in [(1000, 1), (1438, 1), (1000, 2), (1438, 3), (700, 4), (1438, 5)] {
            let mut sim = Sim::new(62, passes, Some(1438));
            (sim.rtt, sim.loss, sim.random) = (ms(rtt), loss, random);
            sim.run(Duration::from_secs(60));
            assert_eq!(sim.found(), Some(passes), "rtt {rtt}, {loss} of a thousand lost, {random}");
        }
    }
}

#[test]
fn silence_does_not_change_the_mtu() {
    let mut sim = Sim::new(62, 1438, Some(1438));
    sim.run(ms(100));
    sim.passes = 0;
    let before = sim.probes.len();
    sim.run(Duration::from_secs(600));
    assert_eq!((sim.found(), sim.pmtu.known_mtu()), (Some(1438), Some(1438)));
    let probes = sim.probes.len() - before;
    assert!(probes < 250, "{probes} probes into silence");
    // It is the same for a search: what it has found so far remains, and it goes on when there are answers.
    let mut sim = Sim::new(62, 0, Some(1438));
    sim.run(Duration::from_secs(600));
    assert_eq!((sim.found(), sim.pmtu.mtu(), sim.pmtu.known_mtu()), (None, 1438, None));
    sim.passes = 900;
    sim.run(Duration::from_secs(70));
    assert_eq!(sim.found(), Some(900));
}

#[test]
fn a_late_neighbour_is_no_evidence() {
    for seconds in [1, 3, 8, 20, 100] {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(ms(100));
        sim.run(VERIFY_INTERVAL - ms(200));
        // Its full receive queue has room for small packets only.
        sim.stalled = Some((sim.now + Duration::from_secs(seconds), 1000));
        for _ in 0..3000 {
            sim.run(ms(100));
            assert!(sim.pmtu.mtu() == 1438, "{} after a stall of {seconds} s", sim.pmtu.mtu());
        }
    }
    // During the first search as well.
    let mut sim = Sim::new(62, 1438, None);
    sim.stalled = Some((sim.now + Duration::from_secs(30), 1000));
    sim.run(Duration::from_secs(29));
    assert!(sim.pmtu.mtu() > 1438 && sim.pmtu.known_mtu().is_none());
    sim.run(Duration::from_secs(30));
    assert_eq!(sim.found(), Some(1438));
}

#[test]
fn own_lateness_is_no_evidence() {
    for lateness in [ms(200), ms(1000), ms(10_000)] {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.run(ms(100));
        // The large probes are lost in the queues of this peer.
        (sim.lateness, sim.passes) = (lateness, 1000);
        for _ in 0..3000 {
            sim.run(ms(100));
            assert_eq!(sim.pmtu.mtu(), 1438, "{lateness:?}");
        }
        sim.lateness = Duration::ZERO;
        sim.run(Duration::from_secs(30));
        assert_eq!(sim.found(), Some(1000), "{lateness:?}");
    }
}

#[test]
fn slow_machines_never_lower_the_mtu_below_what_passes() {
    for seed in 0..200 {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.random = seed;
        for _ in 0..60 {
            let (lateness, stall, room) = (sim.random(3), sim.random(8000), sim.random(2000));
            sim.lateness = if lateness == 0 { ms(sim.random(3000)) } else { Duration::ZERO };
            sim.rtt = ms(1 + sim.random(400));
            sim.loss = sim.random(400);
            if sim.random(3) == 0 {
                sim.stalled = Some((sim.now + ms(stall), room as usize));
            }
            let span = ms(sim.random(20_000));
            sim.run(span);
            assert!(sim.pmtu.mtu() >= 1438, "seed {seed}: {}", sim.pmtu.mtu());
        }
        (sim.lateness, sim.loss, sim.stalled) = (Duration::ZERO, 0, None);
        sim.run(Duration::from_secs(60));
        assert_eq!(sim.found(), Some(1438), "seed {seed}");
    }
}

proptest! {
    /// Loss that hits all sizes alike, in whatever pattern, lowers nothing.
    #[test]
    fn outages_never_lower_the_mtu(
        outages in prop::collection::vec((0..60_000u64, 1..20_000u64), 0..30),
        round_trip in 1..2000u64,
        begin in 0..12_000u64,
    ) {
        let mut sim = Sim::new(62, 1438, Some(1438));
        sim.rtt = ms(round_trip);
        sim.run(ms(begin));
        let at = |time| sim.now + ms(time);
        sim.outages = outages.iter().map(|(from, time)| (at(*from), at(from + time))).collect();
        for _ in 0..900 {
            sim.run(ms(100));
            prop_assert!(sim.pmtu.mtu() >= 1438, "{} at {:?}", sim.pmtu.mtu(), sim.now);
        }
        sim.run(Duration::from_secs(30));
        prop_assert_eq!(sim.found(), Some(1438));
    }
}

#[test]
fn paths_share_a_budget() {
    // A hundred paths lose what is longer than 1000 bytes, all at once; each alone would send twenty probes every 50 ms.
    const PATHS: usize = 100;
    let mut budget = probe_budget();
    let mut paths: Vec<Pmtu> = (0..PATHS).map(|_| Pmtu::new(62)).collect();
    let (mut acks, mut now) = (BTreeSet::new(), Instant::ORIGIN);
    let mut sent = Vec::new();
    for pmtu in &mut paths {
        pmtu.start(Duration::ZERO, now);
        assert_eq!(pmtu.poll_output(), Some(Output::InitialProbe));
        pmtu.handle_interface_mtu(1500, now);
    }
    while paths.iter().any(|pmtu| !matches!(pmtu.phase, Phase::SearchComplete(_))) {
        for (i, pmtu) in paths.iter_mut().enumerate() {
            while let Some(output) = pmtu.poll_output() {
                let Output::Probe(size) = output else { continue };
                sent.push(now);
                if size <= 1000 {
                    acks.insert((now + ms(2), sent.len(), i, size));
                }
            }
        }
        let timer = paths.iter().filter_map(|pmtu| Some(pmtu.poll_timeout()?.0)).min().unwrap();
        match acks.first().copied().filter(|(at, ..)| *at <= timer) {
            Some(ack @ (at, _, i, size)) => {
                acks.remove(&ack);
                now = at;
                paths[i].handle_ack(size, now);
            }
            None => {
                now = timer;
                paths.iter_mut().for_each(|pmtu| pmtu.handle_timeout(&mut budget, now));
            }
        }
        assert!(now < Instant::ORIGIN + Duration::from_secs(120), "{} probes", sent.len());
    }
    assert!(paths.iter().all(|pmtu| pmtu.mtu() == 1000));
    // What an acknowledgement leads to is sent at once.
    let begin = Instant::ORIGIN + ms(1000);
    let most = (0..100).map(|s| begin + ms(1000) * s);
    let most = most.map(|from| sent.iter().filter(|at| (from..from + ms(1000)).contains(at)).count()).max();
    assert!(most <= Some(1000), "{most:?} probes in a second, {} in {now:?}", sent.len());
}

#[test]
fn a_path_without_a_limit_stays_unlimited() {
    let mut sim = Sim::new(62, 65535, None);
    sim.run(Duration::from_secs(600));
    assert_eq!((sim.found(), sim.pmtu.max_payload()), (Some(UNLIMITED), MAX_DATAGRAM));
}

#[test]
fn search_starts_without_an_answer_of_the_interface() {
    let mut sim = Sim::new(86, 1414, None);
    sim.run(ms(3000 + 3000));
    assert_eq!(sim.found(), Some(1414));
}

#[test]
fn a_black_hole_that_appears_later_is_noticed() {
    let mut sim = Sim::new(62, 1438, Some(1438));
    sim.run(Duration::from_secs(100));
    sim.passes = 900;
    sim.run(VERIFY_INTERVAL + ms(5000 + 3000));
    assert_eq!(sim.found(), Some(900));
}

#[test]
fn mtu_is_raised_when_the_path_mtu_grows() {
    // A black hole disappears.
    let mut sim = Sim::new(62, 900, Some(1438));
    sim.run(Duration::from_secs(10));
    assert_eq!(sim.found(), Some(900));
    sim.passes = 1438;
    sim.run(PROBE_UP_INTERVAL + ms(3000));
    assert_eq!(sim.found(), Some(1438));
    // The MTU of the interface is raised.
    let mut sim = Sim::new(62, 1438, Some(1238));
    sim.run(Duration::from_secs(10));
    assert_eq!(sim.found(), Some(1238));
    sim.kernel = Some(1438);
    sim.run(PROBE_UP_INTERVAL + ms(3000));
    assert_eq!(sim.found(), Some(1438));
    // The path MTU shrinks, which only verification detects, and grows again.
    sim.passes = 700;
    sim.run(VERIFY_INTERVAL + ms(8000));
    assert_eq!(sim.found(), Some(700));
    sim.passes = 1438;
    sim.run(PROBE_UP_INTERVAL + ms(3000));
    assert_eq!(sim.found(), Some(1438));
}

#[test]
fn a_smaller_interface_mtu_is_used() {
    let mut sim = Sim::new(62, 1438, Some(1438));
    sim.run(ms(100));
    (sim.kernel, sim.passes) = (Some(1138), 1138);
    sim.pmtu.handle_interface_mtu(1200, sim.now);
    sim.run(ms(100));
    assert_eq!(sim.found(), Some(1138));
    // Repeated and invalid reports have no effect.
    let probes = sim.probes.len();
    sim.pmtu.handle_interface_mtu(1200, sim.now);
    sim.pmtu.handle_interface_mtu(0, sim.now);
    sim.pmtu.handle_interface_mtu(100, sim.now);
    sim.run(ms(100));
    assert_eq!((sim.found(), sim.probes.len()), (Some(1138), probes));
}

#[test]
fn a_complete_search_sends_only_verifications() {
    let mut sim = Sim::new(62, 1438, Some(1438));
    let hour = Duration::from_secs(3600);
    sim.run(hour);
    let verifications = (hour.as_secs() / VERIFY_INTERVAL.as_secs()) as usize;
    assert!(sim.probes.len() <= verifications + 1, "{} probes in an hour", sim.probes.len());
}

#[test]
fn acknowledgements_of_sizes_not_probed_are_ignored() {
    let mut pmtu = Pmtu::new(62);
    pmtu.handle_ack(1438, Instant::ORIGIN);
    pmtu.start(Duration::ZERO, Instant::ORIGIN);
    pmtu.handle_ack(1438, Instant::ORIGIN);
    pmtu.handle_interface_mtu(1500, Instant::ORIGIN);
    for size in [0, 552, 1437, 1439, 59986, 65535] {
        pmtu.handle_ack(size, Instant::ORIGIN);
        assert!(matches!(pmtu.phase, Phase::Searching(_)), "{size}");
    }
    pmtu.handle_ack(1438, Instant::ORIGIN);
    assert_eq!(pmtu.mtu(), 1438);
    assert!(matches!(pmtu.phase, Phase::SearchComplete(_)));
}

#[test]
fn idle_paths_are_not_tested() {
    let mut sim = Sim::new(62, 1438, Some(1438));
    sim.traffic = false;
    sim.run(Duration::from_secs(3600));
    assert_eq!((sim.found(), sim.probes.len(), sim.pmtu.poll_timeout()), (Some(1438), 1, None));
    // The first data after the pause is followed by a test.
    sim.passes = 900;
    sim.pmtu.handle_traffic();
    sim.run(ms(5000 + 3000));
    assert_eq!(sim.found(), Some(900));
}
