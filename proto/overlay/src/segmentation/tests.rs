use super::*;

const MS: Duration = Duration::from_millis(1);

/// What the path does with probes.
#[derive(Clone, Copy)]
struct Path {
    /// A bit for each segment that arrives.
    segments: u8,
    /// Of this number of plain probes one arrives.
    plain: u32,
}

const WORKS: Path = Path { segments: ALL_SEGMENTS, plain: 1 };
const LOSES_SEGMENTS: Path = Path { segments: 0, plain: 1 };
const SILENT: Path = Path { segments: 0, plain: u32::MAX };

struct Run {
    test: SegmentationTest,
    now: Instant,
    bursts: u32,
    log: Vec<(Duration, Output)>,
}

impl Run {
    fn new() -> Run {
        let mut test = SegmentationTest::default();
        test.start(Duration::ZERO, Instant::ORIGIN);
        Run { test, now: Instant::ORIGIN, bursts: 0, log: Vec::new() }
    }

    /// Lets time pass while data is sent if `traffic`. Answers arrive after 5 ms.
    fn run(&mut self, time: Duration, path: Path, traffic: bool) {
        let end = self.now + time;
        while self.now < end {
            while let Some(output) = self.test.poll_output() {
                let Output::Burst(number) = output else {
                    self.log.push((self.now.saturating_since(Instant::ORIGIN), output));
                    continue;
                };
                self.bursts += 1;
                let answered_at = self.now + 5 * MS;
                for index in (0..SEGMENTS).filter(|index| path.segments & 1 << index != 0) {
                    self.test.handle_arrived(ArrivedSegments { number, first: index, count: 1 }, answered_at);
                }
                if self.bursts.is_multiple_of(path.plain) {
                    let plain = ArrivedSegments { number: number + 1, first: 0, count: 1 };
                    self.test.handle_arrived(plain, answered_at);
                }
            }
            self.now += 10 * MS;
            if traffic {
                self.test.handle_traffic(self.now);
            }
            if self.test.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                self.test.handle_timeout(self.now);
            }
        }
    }

    fn results(&self) -> Vec<Output> {
        self.log.iter().map(|(_, output)| *output).collect()
    }
}

#[test]
fn segments_that_arrive_cost_one_burst_every_two_minutes_of_traffic() {
    let mut run = Run::new();
    run.run(Duration::from_secs(601), WORKS, true);
    assert_eq!((run.bursts, run.results()), (6, vec![]));
    let mut idle = Run::new();
    idle.run(Duration::from_secs(601), WORKS, false);
    assert_eq!((idle.bursts, idle.test.poll_timeout()), (1, None), "no timer runs without traffic");
}

#[test]
fn segments_that_never_arrive_while_plain_probes_do_are_broken() {
    let mut run = Run::new();
    run.run(Duration::from_secs(10), LOSES_SEGMENTS, true);
    assert_eq!(run.results(), [Output::Broken]);
    assert!(run.log[0].0 < Duration::from_secs(3), "{:?}", run.log);
    assert!(run.test.is_broken());
    assert_eq!(run.bursts, MIN_BURSTS);
}

#[test]
fn one_segment_that_never_arrives_is_enough() {
    let mut run = Run::new();
    run.run(Duration::from_secs(10), Path { segments: ALL_SEGMENTS & !(1 << 2), plain: 1 }, true);
    assert_eq!(run.results(), [Output::Broken]);
}

#[test]
fn silence_shows_nothing() {
    let mut run = Run::new();
    run.run(Duration::from_secs(600), SILENT, true);
    assert_eq!(run.results(), []);
    assert!(run.bursts <= 5 * MAX_BURSTS, "{}", run.bursts);
}

#[test]
fn under_loss_more_evidence_is_needed() {
    let mut run = Run::new();
    let lossy = Path { segments: 0, plain: 2 };
    run.run(Duration::from_secs(10), lossy, true);
    assert_eq!(run.results(), [], "a few answers are not enough where many probes are lost");
    run.run(Duration::from_secs(20), lossy, true);
    assert_eq!(run.results(), [Output::Broken]);
    assert!(run.bursts >= 2 * EVIDENCE_UNDER_LOSS);
}

#[test]
fn segments_of_different_bursts_add_up_under_loss() {
    let mut run = Run::new();
    for index in 0..SEGMENTS {
        run.run(250 * MS, Path { segments: 1 << index, plain: 1 }, true);
    }
    run.run(Duration::from_secs(20), LOSES_SEGMENTS, true);
    assert_eq!(run.results(), []);
}

#[test]
fn what_is_handled_late_is_no_evidence() {
    let mut run = Run::new();
    for _ in 0..100 {
        run.run(10 * MS, LOSES_SEGMENTS, true);
        // The machine sleeps.
        run.now += 2 * SLOW_BURST_INTERVAL;
    }
    assert_eq!(run.results(), []);
}

#[test]
fn answers_that_arrive_together_count_once() {
    let mut test = SegmentationTest::default();
    test.start(Duration::ZERO, Instant::ORIGIN);
    let mut now = Instant::ORIGIN;
    let mut bursts = 0;
    while bursts < MAX_BURSTS {
        while test.poll_output().is_some() {
            bursts += 1;
        }
        // The neighbour was stopped, and answers all plain probes at once.
        if bursts == MAX_BURSTS {
            break;
        }
        now = test.poll_timeout().unwrap().0;
        test.handle_timeout(now);
    }
    for burst in 0..MAX_BURSTS {
        test.handle_arrived(ArrivedSegments { number: 2 * burst + 1, first: 0, count: 1 }, now);
    }
    let (due, _) = test.poll_timeout().unwrap();
    test.handle_timeout(due);
    assert!(!test.is_broken());
}

#[test]
fn broken_segmentation_is_tried_again_with_growing_intervals_and_used_when_it_works() {
    let mut run = Run::new();
    run.run(Duration::from_secs(4 * 3600), LOSES_SEGMENTS, false);
    assert_eq!(run.results(), [Output::Broken]);
    let rounds = run.bursts / MIN_BURSTS;
    assert!((20..40).contains(&rounds), "{rounds} rounds in four hours");
    run.run(Duration::from_secs(700), WORKS, false);
    assert_eq!(run.results(), [Output::Broken, Output::Works]);
    // It broke soon after it had worked: the interval goes on growing.
    run.run(Duration::from_secs(200), LOSES_SEGMENTS, true);
    assert_eq!(run.results(), [Output::Broken, Output::Works, Output::Broken]);
    let (next, _) = run.test.poll_timeout().unwrap();
    assert!(next.saturating_since(run.now) > Duration::from_secs(400));
}

#[test]
fn a_refusal_of_the_kernel_counts_at_once() {
    let mut run = Run::new();
    run.run(Duration::from_secs(1), WORKS, true);
    run.test.handle_refused(run.now);
    run.test.handle_refused(run.now);
    run.run(Duration::from_secs(1), WORKS, true);
    assert_eq!(run.results(), [Output::Broken]);
    run.run(Duration::from_secs(60), WORKS, true);
    assert_eq!(run.results(), [Output::Broken, Output::Works]);
}

#[test]
fn answers_to_probes_of_other_rounds_and_nonsense_are_ignored() {
    let mut test = SegmentationTest::default();
    let arrived = |number| ArrivedSegments { number, first: 0, count: SEGMENTS };
    test.handle_arrived(arrived(0), Instant::ORIGIN);
    test.start(Duration::ZERO, Instant::ORIGIN);
    for number in [2, 3, 100, u32::MAX] {
        test.handle_arrived(arrived(number), Instant::ORIGIN);
    }
    test.handle_arrived(ArrivedSegments { number: 0, first: 255, count: 255 }, Instant::ORIGIN);
    assert_eq!(test.poll_output(), Some(Output::Burst(0)));
    assert!(test.poll_timeout().is_some(), "the round goes on");
    test.handle_arrived(arrived(0), Instant::ORIGIN);
    assert_eq!(test.poll_timeout(), None);
    for len in (0..20).filter(|len| *len != ANSWER) {
        assert_eq!(ArrivedSegments::decode(&vec![0; len]), None);
    }
    let answer = ArrivedSegments { number: 7, first: 1, count: 3 };
    assert_eq!(ArrivedSegments::decode(&answer.encode()), Some(answer));
}

fn arrived(number: u32, first: u8, count: u8) -> ArrivedSegments {
    ArrivedSegments { number, first, count }
}

#[test]
fn a_burst_that_arrives_whole_is_answered_once() {
    let mut burst = ArrivedBurst::default();
    for number in [0, 2, 8] {
        for index in 0..SEGMENTS - 1 {
            assert_eq!(burst.handle(arrived(number, index, 1)), []);
        }
        assert_eq!(burst.handle(arrived(number, SEGMENTS - 1, 1)), [arrived(number, 0, SEGMENTS)]);
        assert_eq!(burst.handle(arrived(number, 0, 1)), [], "a duplicate");
        assert_eq!(burst.handle(arrived(number + 1, 0, 1)), []);
    }
    assert_eq!(burst.handle(arrived(10, 0, SEGMENTS)), [arrived(10, 0, SEGMENTS)]);
}

#[test]
fn what_arrives_of_an_incomplete_burst_is_answered_in_any_order() {
    let mut burst = ArrivedBurst::default();
    assert_eq!(burst.handle(arrived(4, 0, 2)), []);
    assert_eq!(burst.handle(arrived(4, 3, 1)), []);
    let answers = [arrived(4, 0, 1), arrived(4, 1, 1), arrived(4, 3, 1), arrived(5, 0, 1)];
    assert_eq!(burst.handle(arrived(5, 0, 1)), answers);
    assert_eq!(burst.handle(arrived(4, 2, 1)), [arrived(4, 0, SEGMENTS)]);
    // The plain probe arrives first.
    assert_eq!(burst.handle(arrived(7, 0, 1)), [arrived(7, 0, 1)]);
    assert_eq!(burst.handle(arrived(6, 1, 1)), [arrived(6, 1, 1)]);
    // Hostile numbers.
    assert_eq!(burst.handle(arrived(u32::MAX, 255, 255)), [arrived(u32::MAX, 255, 255)]);
    assert_eq!(burst.handle(arrived(u32::MAX - 1, 255, 255)), [arrived(u32::MAX - 1, 255, 255)]);
}
