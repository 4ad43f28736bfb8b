use std::collections::BTreeMap;

use proptest::prelude::*;

use weave_types::ConnectionUid;

use super::*;

const MS: Duration = Duration::from_millis(1);

/// One end of a path.
struct End {
    liveness: Liveness,
    counts: TrafficCounts,
    slowness: Slowness,
    /// When the tick is due, and when it is handled.
    tick: (Instant, Instant),
    /// Interval of the data that it sends.
    sends: Option<Duration>,
    down: Vec<Instant>,
    up: Vec<Instant>,
    probes: usize,
}

#[derive(Clone, Copy)]
enum Datagram {
    Data,
    Frame(LivenessFrame),
}

fn frame_of(kind: LivenessKind, number: u32, slowness: u8) -> Datagram {
    Datagram::Frame(LivenessFrame { uid: ConnectionUid(1), number, kind, slowness })
}

/// Two ends and what is between them; a step is a millisecond.
struct Pair {
    now: Instant,
    ends: [End; 2],
    in_flight: BTreeMap<(Instant, u64), (usize, Datagram)>,
    sequence: u64,
    delay: Duration,
    /// The ends whose datagrams do not arrive.
    cut: [bool; 2],
    loss: u64,
    random: u64,
    /// How late ticks of each end are, and datagrams handled.
    lateness: [Duration; 2],
}

impl Pair {
    fn new(sends: [Option<u64>; 2]) -> Pair {
        let now = Instant::ORIGIN + Duration::from_secs(100);
        let end = |ms: Option<u64>| End {
            liveness: Liveness::new(now),
            counts: TrafficCounts::default(),
            slowness: Slowness::default(),
            tick: (now + TICK, now + TICK),
            sends: ms.map(Duration::from_millis),
            down: Vec::new(),
            up: Vec::new(),
            probes: 0,
        };
        Pair {
            now,
            ends: sends.map(end),
            in_flight: BTreeMap::new(),
            sequence: 0,
            delay: MS,
            cut: [false; 2],
            loss: 0,
            random: 42,
            lateness: [Duration::ZERO; 2],
        }
    }

    fn send(&mut self, from: usize, datagram: Datagram) {
        self.random =
            self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let lost = (self.random >> 33) % 100 < self.loss;
        if !self.cut[from] && !lost {
            self.sequence += 1;
            let at = self.now + self.delay + self.lateness[1 - from];
            self.in_flight.insert((at, self.sequence), (1 - from, datagram));
        }
    }

    fn receive(&mut self, at: usize, datagram: Datagram) {
        let end = &mut self.ends[at];
        end.counts.heard += 1;
        match datagram {
            Datagram::Data => {
                end.counts.received += 1;
                end.liveness.wake(end.counts, self.now);
            }
            Datagram::Frame(frame) => {
                if let Some(number) = end.liveness.handle_frame(frame, self.now) {
                    let answer = frame_of(LivenessKind::Answer, number, end.slowness.factor());
                    self.send(at, answer);
                }
            }
        }
    }

    fn tick(&mut self, at: usize) {
        let end = &mut self.ends[at];
        end.slowness.handle_tick(end.tick.0, self.now);
        let factor = end.slowness.factor();
        let due = self.now + TICK;
        end.tick = (due, due + self.lateness[at]);
        for action in end.liveness.handle_tick(end.counts, &end.slowness.clone(), self.now) {
            match action {
                Action::Probe(number) => {
                    self.ends[at].probes += 1;
                    self.send(at, frame_of(LivenessKind::Probe, number, factor));
                }
                Action::KeepAlive => self.send(at, frame_of(LivenessKind::KeepAlive, 0, factor)),
                Action::Down => self.ends[at].down.push(self.now),
                Action::Up => self.ends[at].up.push(self.now),
                Action::Sleep => {}
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += MS;
            while let Some(entry) = self.in_flight.first_entry()
                && entry.key().0 <= self.now
            {
                let (to, datagram) = entry.remove();
                self.receive(to, datagram);
            }
            for at in 0..2 {
                let end = &mut self.ends[at];
                let elapsed = self.now.since_origin().as_millis();
                if end.sends.is_some_and(|interval| elapsed.is_multiple_of(interval.as_millis())) {
                    end.counts.sent += 1;
                    end.liveness.wake(end.counts, self.now);
                    self.send(at, Datagram::Data);
                }
                if self.ends[at].tick.1 <= self.now {
                    self.tick(at);
                }
            }
        }
    }

    fn measure(&mut self, at: usize) {
        if let Some(number) = self.ends[at].liveness.measure(self.now) {
            self.send(at, frame_of(LivenessKind::Probe, number, 1));
        }
    }

    fn downs(&self) -> [usize; 2] {
        self.ends.each_ref().map(|end| end.down.len())
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

proptest! {
    /// Whatever traffic there is, a cut of one or both directions is noticed in time by an end that sends.
    #[test]
    fn cut_is_noticed_within_a_second(
        sends in prop_oneof![
            (1..200u64).prop_map(|ms| [Some(ms), None]),
            (1..200u64, 1..1000u64).prop_map(|(a, b)| [Some(a), Some(b)]),
        ],
        cut in prop_oneof![Just([true, true]), Just([true, false]), Just([false, true])],
        delay in 0..20u32,
        before in 1000..3000u32,
    ) {
        let mut pair = Pair::new(sends);
        pair.delay = MS * delay;
        pair.run(MS * before);
        prop_assert_eq!(pair.downs(), [0, 0]);
        pair.cut = cut;
        let began = pair.now;
        pair.run(secs(2));
        let first = pair.ends.iter().filter_map(|end| end.down.first()).min();
        prop_assert!(first.is_some_and(|at| *at - began <= secs(1)), "{:?}", first.map(|at| *at - began));
    }

    /// Without a cut a path does not fail, however late one end is. Until a round trip is measured it may take 450 ms.
    #[test]
    fn lateness_is_no_evidence(
        sends in (prop::option::of(1..400u64), prop::option::of(1..400u64)),
        lateness in (0..4000u32, 0..200u32),
        delay in 0..120u32,
        slow_for in 1..20u64,
    ) {
        let mut pair = Pair::new([sends.0, sends.1]);
        pair.delay = MS * delay;
        pair.run(secs(2));
        // The first end does nothing in time.
        pair.lateness = [MS * lateness.0, Duration::ZERO];
        pair.run(secs(slow_for));
        pair.lateness = [Duration::ZERO; 2];
        pair.run(secs(3));
        prop_assert_eq!(pair.downs()[0], 0, "the late end accuses the other one");
        // A machine that is a little late is accused by nobody.
        let mut pair = Pair::new([sends.0, sends.1]);
        pair.delay = MS * delay;
        pair.lateness = [MS * lateness.1, Duration::ZERO];
        pair.run(secs(slow_for));
        prop_assert_eq!(pair.downs(), [0, 0]);
    }

    #[test]
    fn loss_of_a_third_is_no_cut(seed in any::<u64>(), loss in 0..33u64) {
        let mut pair = Pair::new([Some(20), Some(30)]);
        (pair.random, pair.loss) = (seed, loss);
        pair.run(secs(30));
        prop_assert_eq!(pair.downs(), [0, 0]);
    }
}

#[test]
fn idle_path_costs_nothing_and_data_in_both_directions_no_probes() {
    let mut pair = Pair::new([None, None]);
    pair.run(secs(20));
    assert!(pair.ends.iter().all(|end| !end.liveness.is_awake()));
    let mut pair = Pair::new([Some(50), Some(50)]);
    pair.run(secs(20));
    assert_eq!(pair.ends.each_ref().map(|end| end.probes), [0, 0]);
    // Data in one direction: the other end says that it is there.
    let mut pair = Pair::new([Some(50), None]);
    pair.run(secs(20));
    assert!(pair.ends[0].probes <= 2, "{}", pair.ends[0].probes);
    // When the data ends, so does this.
    pair.ends[0].sends = None;
    pair.run(secs(10));
    assert!(pair.ends.iter().all(|end| !end.liveness.is_awake()));
}

#[test]
fn path_that_fails_again_and_again_is_held_longer_each_time() {
    let mut pair = Pair::new([Some(10), Some(10)]);
    pair.run(secs(1));
    let mut held = Vec::new();
    for _ in 0..8 {
        pair.cut = [true; 2];
        pair.run(secs(2));
        pair.cut = [false; 2];
        let healed = pair.now;
        let ups = pair.ends[0].up.len();
        while pair.ends[0].up.len() == ups {
            pair.run(MS * 50);
        }
        held.push((pair.now - healed).as_secs());
    }
    assert_eq!(pair.downs(), [8, 8]);
    assert_eq!(held, [1, 2, 4, 8, 16, 32, 60, 60]);
    // After ten quiet minutes only the first seconds count again.
    pair.run(secs(600));
    pair.cut = [true; 2];
    pair.run(secs(2));
    pair.cut = [false; 2];
    let ups = pair.ends[0].up.len();
    pair.run(MS * 1500);
    assert_eq!(pair.ends[0].up.len(), ups + 1);
}

#[test]
fn path_that_works_only_now_and_then_stays_unused() {
    let mut pair = Pair::new([Some(10), Some(10)]);
    pair.run(secs(1));
    for _ in 0..20 {
        pair.cut = [true; 2];
        pair.run(MS * 700);
        pair.cut = [false; 2];
        pair.run(MS * 700);
    }
    assert_eq!(pair.ends[0].up.len(), 0);
}

#[test]
fn measuring_is_no_test_and_hides_no_cut() {
    let mut pair = Pair::new([None, None]);
    let measured = |pair: &mut Pair, seconds| {
        for _ in 0..seconds {
            pair.measure(0);
            pair.run(secs(1));
        }
        pair.ends[0].liveness.quality(pair.now)
    };
    let round_trip = Some(MS * 2);
    assert_eq!(measured(&mut pair, 10), PathQuality { round_trip, probes: 10, lost: 0 });
    assert!(pair.ends.iter().all(|end| !end.liveness.is_awake()));
    pair.cut = [true; 2];
    assert_eq!(measured(&mut pair, 5), PathQuality { round_trip, probes: 15, lost: 5 });
    assert_eq!(pair.downs(), [0, 0]);
    pair.ends[0].sends = Some(MS * 20);
    measured(&mut pair, 1);
    assert_eq!(pair.downs(), [1, 0]);
    // A path that has failed is probed anyway.
    assert_eq!(pair.ends[0].liveness.measure(pair.now), None);
}

#[test]
fn late_ticks_do_not_prove_that_a_path_works() {
    let mut pair = Pair::new([Some(10), Some(10)]);
    pair.run(secs(1));
    pair.cut = [true; 2];
    pair.run(secs(2));
    pair.cut = [false; 2];
    pair.run(MS * 400);
    pair.cut = [true; 2];
    pair.lateness[0] = MS * 100;
    pair.run(secs(3));
    pair.lateness[0] = Duration::ZERO;
    pair.run(secs(10));
    assert_eq!(pair.ends[0].up.len(), 0);
}

#[test]
fn a_silent_path_without_data_is_tested() {
    let (mut counts, slowness) = (TrafficCounts::default(), Slowness::default());
    let mut now = Instant::ORIGIN;
    let mut liveness = Liveness::new(now);
    let interval = Duration::from_secs(3);
    let mut listen = |liveness: &mut Liveness, counts, is_late| {
        now += interval;
        liveness.listen(counts, is_late, now);
        now
    };
    listen(&mut liveness, counts, false);
    counts.heard += 1;
    listen(&mut liveness, counts, false);
    listen(&mut liveness, counts, true);
    assert!(!liveness.is_awake(), "a call that comes late shows nothing");
    let now = listen(&mut liveness, counts, false);
    let tick = |liveness: &mut Liveness, counts, n: u32| {
        liveness.handle_tick(counts, &slowness, now + TICK * n).collect::<Vec<_>>()
    };
    assert_eq!(tick(&mut liveness, counts, 1), [Action::Probe(1)]);
    assert!(!liveness.is_silent(), "other overlays are not tested as well");
    counts.heard += 1;
    assert_eq!(tick(&mut liveness, counts, 2), [Action::Sleep]);
    assert!(!liveness.is_awake());

    listen(&mut liveness, counts, false);
    assert!(!liveness.is_awake(), "the answer has arrived since");
    let silent = listen(&mut liveness, counts, false);
    let down = (1..10).find(|n| {
        let actions = liveness.handle_tick(counts, &slowness, silent + TICK * *n);
        actions.into_iter().any(|action| action == Action::Down)
    });
    assert!(down.is_some_and(|ticks| TICK * ticks <= Duration::from_secs(1)), "{down:?}");
    assert!(liveness.is_down() && liveness.heard_at() < silent);
    counts.heard += 1;
    let _ = liveness.handle_tick(counts, &slowness, silent + TICK * 10);
    assert_eq!(liveness.heard_at(), silent + TICK * 10, "anything that arrives counts, an answer or not");
}

/// What has arrived before a late tick may still wait for this machine.
#[test]
fn time_before_a_late_tick_does_not_count() {
    let (counts, mut slowness) = (TrafficCounts::default(), Slowness::default());
    let mut liveness = Liveness::new(Instant::ORIGIN);
    liveness.wake(counts, Instant::ORIGIN);
    let is_down = |liveness: &mut Liveness, slowness: &mut Slowness, n: u32| {
        let now = Instant::ORIGIN + TICK * n;
        // The third tick is late.
        let due = if n == 3 { Instant::ORIGIN + TICK * 2 } else { now };
        slowness.handle_tick(due, now);
        liveness.handle_tick(counts, slowness, now).any(|action| action == Action::Down)
    };
    let down = (1..40).find(|n| is_down(&mut liveness, &mut slowness, *n)).expect("it fails");
    // Twice the usual time, because this machine is slow.
    assert_eq!(TICK * (down - 3), (TICK * 4 + ANSWER_TIMEOUT * 2).max(TICK * 6));
}

/// A machine that is late again and again notices a failure nevertheless, later.
#[test]
fn ticks_in_time_between_late_ones_are_evidence() {
    let (counts, mut slowness) = (TrafficCounts::default(), Slowness::default());
    let mut liveness = Liveness::new(Instant::ORIGIN);
    let mut now = Instant::ORIGIN;
    let mut in_time = 0;
    for n in 0..1000 {
        liveness.test(counts, now);
        let due = now + TICK;
        let is_late = n % 3 == 0;
        now = due + if is_late { LATE } else { Duration::ZERO };
        in_time += u32::from(!is_late);
        slowness.handle_tick(due, now);
        if liveness.handle_tick(counts, &slowness, now).any(|action| action == Action::Down) {
            assert!(TICK * in_time >= (TICK * 2 + ANSWER_TIMEOUT) * u32::from(MAX_SLOWNESS));
            assert_eq!(
                liveness.heard_at().saturating_since(Instant::ORIGIN),
                now.saturating_since(Instant::ORIGIN) - TICK * in_time
            );
            return;
        }
    }
    panic!("it is never noticed");
}

#[test]
fn what_has_arrived_before_data_moves_is_noticed() {
    let mut liveness = Liveness::new(Instant::ORIGIN);
    let later = Instant::ORIGIN + Duration::from_secs(9);
    liveness.wake(TrafficCounts { heard: 1, ..TrafficCounts::default() }, later);
    assert_eq!(liveness.heard_at(), later);
}

/// Nobody was asked while a path was asleep, so that little of that time is silence.
#[test]
fn silence_before_a_test_counts_for_four_seconds_at_most() {
    let heard = Instant::ORIGIN + Duration::from_secs(100);
    for (idle, silence) in [(2, 2), (4, 4), (60, 4)] {
        let now = heard + Duration::from_secs(idle);
        for begin in [Liveness::test, Liveness::test_idle] {
            let mut liveness = Liveness::new(Instant::ORIGIN);
            liveness.note_heard(heard);
            begin(&mut liveness, TrafficCounts { heard: 7, ..TrafficCounts::default() }, now);
            assert_eq!(now.saturating_since(liveness.heard_at()), Duration::from_secs(silence));
        }
    }
}
