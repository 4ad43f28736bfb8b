use std::time::Duration;

use super::super::event::KERNEL_FRAME_HEAD;
use super::*;
use crate::liveness::TICK;

const UID: ConnectionUid = ConnectionUid(99);
const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const MS: Duration = Duration::from_millis(1);

fn control(local: Ipv4Addr, remote: Ipv4Addr) -> FastdpControl {
    let path = FastdpPath { local, remote, port: 6784 };
    FastdpControl::new(FastdpControlConfig { uid: UID, path, mtu: 1376 })
}

/// The frame as the neighbour's programs report it.
fn arrived(frame: &[u8], from: Ipv4Addr) -> KernelFrame {
    let id = weave_types::ShortId::new(1).unwrap();
    let mut head = [0; KERNEL_FRAME_HEAD];
    let len = frame.len().min(KERNEL_FRAME_HEAD);
    head[..len].copy_from_slice(&frame[..len]);
    KernelFrame { src: id, dst: id, from, port: 6784, len: frame.len(), head }
}

/// Two ends. Packets from an end arrive if `passes` of it is at least their length.
struct Pair {
    now: Instant,
    ends: [FastdpControl; 2],
    passes: [usize; 2],
    /// Whether segments that were cut from a super-frame of an end arrive.
    segments_pass: [bool; 2],
    /// Whether the daemon of an end runs; its kernel answers probes without it.
    runs: [bool; 2],
    slowness: Slowness,
    tick_at: Instant,
    log: Vec<(usize, Output)>,
}

impl Pair {
    fn new() -> Pair {
        let new = |local, remote| control(local, remote).with_liveness().with_segmentation_test();
        let mut pair = Pair {
            now: Instant::ORIGIN,
            ends: [new(A, B), new(B, A)],
            passes: [usize::MAX; 2],
            segments_pass: [true; 2],
            runs: [true; 2],
            slowness: Slowness::default(),
            tick_at: Instant::ORIGIN,
            log: Vec::new(),
        };
        for end in &mut pair.ends {
            end.confirm(Instant::ORIGIN);
        }
        pair.deliver();
        pair
    }

    fn deliver(&mut self) {
        while let Some((end, output)) = (0..2).find_map(|end| Some((end, self.ends[end].poll_output()?))) {
            let (now, other) = (self.now, 1 - end);
            match &output {
                Output::Frame(frame) if frame.len() > self.passes[end] => {}
                Output::Frame(frame) => {
                    let _ = self.ends[other].traffic().note_received(false);
                    if self.runs[other] {
                        self.ends[other].handle_frame(&arrived(frame, [A, B][end]), now);
                    } else if frame.len() == LIVENESS_FRAME && self.passes[other] >= frame.len() {
                        let mut answer = frame.clone();
                        answer[ETHERNET_HEADER + 12] = LivenessKind::Answer as u8;
                        let _ = self.ends[end].traffic().note_received(false);
                        self.ends[end].handle_frame(&arrived(&answer, [A, B][other]), now);
                    }
                }
                Output::SegmentedProbe(segmented, plain) if self.runs[other] => {
                    for probe in [segmented, plain] {
                        let arrives =
                            self.passes[end] >= 1000 && (probe.segments == 1 || self.segments_pass[end]);
                        for first in (0..probe.segments).filter(|_| arrives) {
                            let arrived = ArrivedSegments { number: probe.number, first, count: 1 };
                            self.ends[other].handle_segments(probe, arrived);
                        }
                    }
                }
                Output::Control { tag, body } if self.runs[other] => {
                    self.ends[other].handle_control(*tag, body, now).unwrap();
                }
                _ => {}
            }
            if !matches!(
                output,
                Output::Frame(_) | Output::SegmentedProbe(..) | Output::Control { tag: 2, .. }
            ) {
                self.log.push((end, output));
            }
        }
    }

    /// Lets time pass while both ends send data, if `data`.
    fn run(&mut self, time: Duration, data: bool) {
        let end = self.now + time;
        while self.now < end {
            self.now += 10 * MS;
            if self.now >= self.tick_at {
                self.tick_at = self.now + TICK;
                for index in (0..2).filter(|index| self.runs[*index]) {
                    if data {
                        let _ = self.ends[index].traffic().note_sent();
                        if self.passes[index] >= 1000 {
                            let _ = self.ends[1 - index].traffic().note_received(true);
                        }
                        self.ends[index].handle_traffic(self.now);
                    }
                    self.ends[index].handle_tick(&self.slowness, self.now);
                }
            }
            for index in (0..2).filter(|index| self.runs[*index]) {
                if self.ends[index].poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                    self.ends[index].handle_timeout(self.now);
                }
            }
            self.deliver();
        }
    }

    fn health(&mut self) -> Vec<(usize, bool)> {
        let log = std::mem::take(&mut self.log);
        log.into_iter()
            .filter_map(|(end, output)| match output {
                Output::Health(healthy) => Some((end, healthy)),
                _ => None,
            })
            .collect()
    }
}

#[test]
fn both_ends_are_established_at_once_and_stay_so() {
    let mut pair = Pair::new();
    assert_eq!(
        pair.log,
        [
            (0, Output::Control { tag: 0, body: Vec::new() }),
            (1, Output::Control { tag: 0, body: Vec::new() }),
            (0, Output::Established),
            (1, Output::Established)
        ]
    );
    pair.log.clear();
    pair.run(Duration::from_secs(300), false);
    assert_eq!(pair.log, []);
    assert_eq!([pair.ends[0].problem(pair.now), pair.ends[1].problem(pair.now)], [None, None]);
}

#[test]
fn a_path_that_carries_no_full_size_packets_is_not_established() {
    let mut pair = Pair::new();
    let mut fresh = control(A, B);
    fresh.confirm(pair.now);
    let Some(Output::Frame(mut heartbeat)) = fresh.poll_output() else { panic!("no heartbeat") };
    heartbeat.truncate(1000);
    let mut other = control(B, A);
    other.confirm(pair.now);
    assert!(matches!(other.poll_output(), Some(Output::Frame(_))));
    other.handle_frame(&arrived(&heartbeat, A), pair.now);
    assert_eq!(other.poll_output(), None);
    fresh.handle_interface_mtu(1400);
    assert!(fresh.problem(pair.now).unwrap().contains("packets of 1426 bytes exceed the MTU 1400"));
    // The same after the establishment: small packets pass, full-size ones do not.
    pair.log.clear();
    pair.passes = [1000; 2];
    pair.run(Duration::from_secs(16), false);
    assert_eq!(pair.health(), [(0, false), (1, false)]);
    pair.passes = [usize::MAX; 2];
    pair.run(Duration::from_secs(6), false);
    assert_eq!(pair.health(), [(0, true), (1, true)]);
}

#[test]
fn a_cut_under_traffic_is_noticed_within_a_second() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(5), true);
    assert_eq!(pair.health(), []);
    pair.passes = [0; 2];
    let cut = pair.now;
    while pair.health().is_empty() {
        pair.run(10 * MS, true);
    }
    assert!(pair.now - cut <= Duration::from_secs(1), "{:?}", pair.now - cut);
    let problem = [0, 1].iter().find_map(|end: &usize| pair.ends[*end].problem(pair.now)).unwrap();
    assert!(problem.ends_with("until it has worked for 1 s"), "{problem}");
    pair.passes = [usize::MAX; 2];
    pair.run(Duration::from_secs(5), true);
    let health = pair.health();
    assert!(health.contains(&(0, true)) && health.contains(&(1, true)), "{health:?}");
}

#[test]
fn a_path_that_loses_segments_is_not_used_until_they_arrive() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(5), true);
    pair.segments_pass[0] = false;
    pair.run(Duration::from_secs(140), true);
    assert_eq!(pair.health(), [(0, false)], "only the end whose segments are lost notices");
    let problem = pair.ends[0].problem(pair.now).unwrap();
    assert_eq!(
        problem,
        "segmentation offload of the tunnel is broken: plain probes arrive, segmented ones do not"
    );
    assert_eq!(pair.ends[1].problem(pair.now), None);
    // The path fails otherwise and works again: it is not used for that.
    pair.passes = [0; 2];
    pair.run(Duration::from_secs(3), true);
    pair.passes = [usize::MAX; 2];
    pair.run(Duration::from_secs(10), true);
    assert_eq!(pair.health().iter().filter(|(end, _)| *end == 0).count(), 0);
    pair.segments_pass[0] = true;
    pair.run(Duration::from_secs(130), true);
    assert!(pair.health().contains(&(0, true)));
    assert_eq!(pair.ends[0].problem(pair.now), None);
}

#[test]
fn a_path_that_loses_segments_is_not_used_from_the_beginning() {
    let mut pair = Pair::new();
    pair.ends = [A, B].map(|local| {
        let remote = if local == A { B } else { A };
        control(local, remote).with_liveness().with_segmentation_test()
    });
    pair.segments_pass = [false; 2];
    for end in &mut pair.ends {
        end.confirm(pair.now);
    }
    pair.log.clear();
    pair.run(Duration::from_secs(4), false);
    assert_eq!(pair.health(), [(0, false), (1, false)]);
}

#[test]
fn a_neighbour_without_the_test_is_not_tested() {
    let mut plain = control(A, B).with_liveness();
    plain.confirm(Instant::ORIGIN);
    plain.handle_control(0, &[], Instant::ORIGIN).unwrap();
    let outputs: Vec<Output> = std::iter::from_fn(|| plain.poll_output()).collect();
    assert!(!outputs.iter().any(|output| matches!(output, Output::SegmentedProbe(..))), "{outputs:?}");
    let probe = SegmentedProbe::new(UID, 0, 1, 1376);
    plain.handle_segments(&probe, ArrivedSegments { number: 0, first: 0, count: 1 });
    assert_eq!(plain.poll_output(), None);
}

#[test]
fn the_kernel_answers_for_a_daemon_that_does_not_run() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(5), true);
    pair.runs[1] = false;
    pair.run(Duration::from_secs(10), true);
    assert_eq!(pair.health(), []);
    pair.passes[0] = 0;
    pair.run(Duration::from_secs(1), true);
    assert_eq!(pair.health(), [(0, false)]);
}

#[test]
fn without_data_a_missing_heartbeat_has_the_path_tested_and_a_late_timeout_does_not_count() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(6), false);
    pair.passes = [0; 2];
    pair.run(Duration::from_secs(5), false);
    assert_eq!(pair.health(), []);
    // This machine sleeps; afterwards the neighbour is heard again.
    pair.now += Duration::from_secs(100);
    pair.passes = [usize::MAX; 2];
    pair.run(Duration::from_secs(5), false);
    assert_eq!(pair.health(), []);
    pair.passes = [0; 2];
    pair.run(Duration::from_millis(7200), false);
    assert_eq!(pair.health(), [(0, false), (1, false)]);
}

#[test]
fn one_lost_heartbeat_is_no_failure() {
    let mut pair = Pair::new();
    pair.run(Duration::from_secs(6), false);
    // Longer packets than probes are lost.
    pair.passes = [100; 2];
    pair.run(Duration::from_secs(5), false);
    pair.passes = [usize::MAX; 2];
    pair.run(Duration::from_secs(20), false);
    assert_eq!(pair.health(), []);
    assert!(!pair.ends[0].is_watched());
}

#[test]
fn the_address_of_the_latest_heartbeat_counts() {
    let mut pair = Pair::new();
    pair.log.clear();
    let mut sender = control(A, B);
    sender.confirm(pair.now);
    let Some(Output::Frame(heartbeat)) = sender.poll_output() else { panic!("no heartbeat") };
    let moved = Ipv4Addr::new(192, 0, 2, 9);
    pair.ends[1].handle_frame(&arrived(&heartbeat, moved), pair.now);
    pair.deliver();
    assert_eq!(pair.log, [(1, Output::Event(Event::AddressChanged(moved))), (1, Output::PathChanged)]);
    assert_eq!(pair.ends[1].path().remote, moved);
    // Another connection's heartbeat changes nothing.
    let mut stranger = heartbeat;
    stranger[ETHERNET_HEADER] ^= 1;
    pair.ends[1].handle_frame(&arrived(&stranger, B), pair.now);
    assert_eq!(pair.ends[1].path().remote, moved);
}

#[test]
fn control_messages_are_checked() {
    let mut control = control(A, B);
    let mut handle = |tag, body: &[u8]| control.handle_control(tag, body, Instant::ORIGIN);
    assert_eq!(handle(0, &[]), Err(ControlMessageError::NothingToAcknowledge));
    assert_eq!(handle(1, &[]), Ok(()));
    assert_eq!(handle(2, &[0; 6]), Ok(()));
    assert_eq!(handle(2, &[0; 5]), Err(ControlMessageError::BadLength { tag: 2, len: 5 }));
    assert_eq!(handle(3, &[]), Err(ControlMessageError::UnknownTag(3)));
}

#[test]
fn hostile_frames_are_ignored() {
    let mut pair = Pair::new();
    pair.log.clear();
    for len in [0, 13, 14, 22, 23, 24, 28, 29, 64, 70_000] {
        for byte in [0, 1, 99, 255] {
            let mut frame = vec![byte; len];
            frame.iter_mut().take(14).for_each(|b| *b = 0);
            pair.ends[0].handle_frame(&arrived(&frame, B), pair.now);
        }
    }
    pair.deliver();
    assert_eq!(pair.log, []);
}
