//! Both ends of a sleeve connection over a simulated path: loss, delay, NAT, path MTU. Time is virtual.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{addr, config, name};
use weave_overlay::udp::{
    ControlFrame, ControlMessageError, Event, Opener, Output, Session, SessionConfig, UdpControl,
    probe_budget,
};
use weave_types::{ConnectionId, ConnectionUid, Instant};

const UID: u64 = 0x1122_3344_5566_7788;

fn session(own: u8, key: Option<[u8; 32]>) -> Arc<Session> {
    Session::new(SessionConfig {
        own: name(own),
        remote: name(3 - own),
        conn: ConnectionId(u64::from(own)),
        uid: ConnectionUid(UID),
        outbound: own == 1,
        key,
    })
}

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

enum InFlight {
    Datagram { from: SocketAddr, bytes: Vec<u8>, df: bool },
    Control { tag: u8, body: Vec<u8> },
}

struct End {
    control: UdpControl,
    opener: Opener,
    /// Source address of this end's datagrams, after NAT.
    addr: SocketAddr,
    established: u32,
    failed: Option<String>,
    events: Vec<Event>,
    heartbeats: u32,
}

/// Two ends and the path between them.
struct Pair {
    ends: [End; 2],
    now: Instant,
    in_flight: VecDeque<(Instant, usize, InFlight)>,
    delay: Duration,
    /// Percentage of lost packets; each fragment of a datagram counts.
    loss: u64,
    /// State of the random number generator.
    random: u64,
    /// Longer outer packets are dropped silently.
    path_mtu: usize,
    /// The sending kernel refuses longer outer packets.
    local_mtu: usize,
    /// Whether fragments arrive.
    fragments: bool,
    /// The end whose datagrams do not arrive.
    blocked: Option<usize>,
    /// The end whose batches do not arrive.
    loses_batches: Option<usize>,
}

impl Pair {
    fn new(key: Option<[u8; 32]>) -> Pair {
        let end = |own: u8| {
            let session = session(own, key);
            End {
                opener: Opener::new(session.clone()),
                control: UdpControl::new(config(session, own)),
                addr: addr(own),
                established: 0,
                failed: None,
                events: Vec::new(),
                heartbeats: 0,
            }
        };
        Pair {
            ends: [end(1), end(2)],
            now: Instant::ORIGIN,
            in_flight: VecDeque::new(),
            delay: Duration::from_millis(1),
            loss: 0,
            random: 42,
            path_mtu: 1500,
            local_mtu: 1500,
            fragments: true,
            blocked: None,
            loses_batches: None,
        }
    }

    /// Two ends that have established the connection 5 s ago or less.
    fn established(key: Option<[u8; 32]>) -> Pair {
        let mut pair = Pair::new(key);
        pair.confirm();
        pair.run(secs(5));
        assert_eq!(pair.ends.each_ref().map(|end| end.established), [1, 1]);
        pair
    }

    fn confirm(&mut self) {
        for end in &mut self.ends {
            end.control.confirm(self.now);
        }
    }

    fn mtu(&self) -> [usize; 2] {
        self.ends.each_ref().map(|end| end.control.path().mtu)
    }

    fn lost(&mut self, len: usize) -> bool {
        let loss = self.loss;
        (0..len.div_ceil(1480)).any(|_| {
            // xorshift
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.random % 100 < loss
        })
    }

    fn drain(&mut self, from: usize) {
        while let Some(output) = self.ends[from].control.poll_output() {
            assert!(self.ends[from].failed.is_none(), "{output:?} after the end");
            match output {
                Output::Datagram { from: source, to, df, bytes } => {
                    assert_eq!(source, addr([1, 2][from]).ip(), "also after a NAT has changed it on the way");
                    let outer = bytes.len() + 28;
                    if df && outer > self.local_mtu {
                        let mtu = self.local_mtu as u16;
                        self.ends[from].control.handle_interface_mtu(mtu, self.now);
                        continue;
                    }
                    let fragmented = !df && outer > self.path_mtu.min(self.local_mtu);
                    let passes = if df { outer <= self.path_mtu } else { !fragmented || self.fragments };
                    if passes
                        && self.blocked != Some(from)
                        && to == self.ends[1 - from].addr
                        && !self.lost(bytes.len())
                    {
                        let from_addr = self.ends[from].addr;
                        let transit = InFlight::Datagram { from: from_addr, bytes, df };
                        self.in_flight.push_back((self.now + self.delay, 1 - from, transit));
                    }
                }
                Output::SegmentedProbe { bytes, segment, plain, .. } => {
                    assert!(
                        bytes.len() <= 65_507 && segment + 28 <= 1500 && plain.len() == usize::from(segment)
                    );
                    assert_eq!(bytes.len() % usize::from(segment), 0);
                    let loses = self.loses_batches == Some(from);
                    let batch = bytes.chunks(segment.into()).filter(|_| !loses).map(<[u8]>::to_vec);
                    let from_addr = self.ends[from].addr;
                    for bytes in batch.chain([plain]).filter(|_| self.blocked != Some(from)) {
                        let transit = InFlight::Datagram { from: from_addr, bytes, df: true };
                        self.in_flight.push_back((self.now + self.delay, 1 - from, transit));
                    }
                }
                Output::Control { tag, body } => {
                    let transit = InFlight::Control { tag, body };
                    self.in_flight.push_back((self.now + self.delay, 1 - from, transit));
                }
                Output::Established => self.ends[from].established += 1,
                Output::Failed(error) => self.ends[from].failed = Some(error),
                Output::Event(event) => self.ends[from].events.push(event),
                Output::PathChanged | Output::PathDown | Output::PathUp => {}
            }
        }
    }

    fn deliver(&mut self, to: usize, transit: InFlight) {
        let end = &mut self.ends[to];
        match transit {
            InFlight::Control { tag, body } => end.control.handle_control(tag, &body, self.now).unwrap(),
            InFlight::Datagram { from, mut bytes, df } => {
                for record in end.opener.open(&mut bytes).unwrap() {
                    let frame = ControlFrame::parse(record.unwrap().frame).unwrap();
                    assert_eq!(df, frame != ControlFrame::FragmentationTest);
                    end.heartbeats += u32::from(matches!(frame, ControlFrame::Heartbeat(_)));
                    end.control.handle_control_frame(frame, from, self.now);
                }
            }
        }
    }

    fn send_first_data(&mut self) {
        for end in &mut self.ends {
            end.control.session().traffic().note_sent();
            end.control.handle_traffic(self.now);
        }
    }

    fn run(&mut self, span: Duration) {
        let until = self.now + span;
        loop {
            self.drain(0);
            self.drain(1);
            let timer = self.ends.iter().filter_map(|end| end.control.poll_timeout()).map(|(at, _)| at).min();
            let arrival = self.in_flight.front().map(|(at, ..)| *at);
            let Some(next) = timer.into_iter().chain(arrival).min().filter(|next| *next <= until) else {
                break;
            };
            self.now = next.max(self.now);
            if arrival == Some(next) {
                let (_, to, transit) = self.in_flight.pop_front().unwrap();
                self.deliver(to, transit);
            } else {
                for end in &mut self.ends {
                    // Data is sent all the time.
                    end.control.session().traffic().note_sent();
                    end.control.handle_timeout(&mut probe_budget(), self.now);
                }
            }
        }
        self.now = until;
    }
}

#[test]
fn connection_is_established_within_20_ms_without_loss() {
    for (key, mtu) in [(None, 1438), (Some([7; 32]), 1414)] {
        let mut pair = Pair::new(key);
        pair.confirm();
        pair.run(Duration::from_millis(20));
        assert_eq!(pair.ends.each_ref().map(|end| end.established), [1, 1]);
        assert_eq!(pair.mtu(), [mtu, mtu]);
        for end in &pair.ends {
            assert!(end.control.path().stack_fragments);
            assert_eq!(end.control.path().max_payload, 1472);
            assert_eq!(end.events, [Event::MtuVerified(mtu)]);
        }
    }
}

#[test]
fn established_connections_send_heartbeats_every_10_s() {
    let mut pair = Pair::established(None);
    pair.ends.iter_mut().for_each(|end| end.heartbeats = 0);
    pair.run(secs(100));
    assert_eq!(pair.ends.each_ref().map(|end| end.heartbeats), [10, 10]);
}

#[test]
fn a_lost_first_heartbeat_delays_establishment_by_500_ms() {
    let mut pair = Pair::new(None);
    pair.ends[0].control.confirm(pair.now);
    // The driver drops datagrams of unconfirmed connections.
    pair.drain(0);
    pair.in_flight.clear();
    pair.ends[1].control.confirm(pair.now);
    pair.run(Duration::from_millis(499));
    assert_eq!(pair.ends.each_ref().map(|end| end.established), [0, 0]);
    pair.run(Duration::from_millis(10));
    assert_eq!(pair.ends.each_ref().map(|end| end.established), [1, 1]);
}

#[test]
fn connections_survive_packet_loss() {
    for loss in [5, 20, 40] {
        for seed in 1..20 {
            let mut pair = Pair::new(Some([1; 32]));
            (pair.loss, pair.random, pair.delay) = (loss, seed * 7919, Duration::from_millis(20));
            pair.confirm();
            pair.run(secs(40));
            assert_eq!(pair.ends.each_ref().map(|end| end.established), [1, 1], "loss {loss}, seed {seed}");
            // With high loss the search may find a smaller size, which is raised later.
            pair.run(secs(600));
            assert!(pair.mtu().iter().all(|mtu| *mtu <= 1414), "{:?}", pair.mtu());
            if loss == 5 {
                assert_eq!(pair.mtu(), [1414, 1414], "seed {seed}");
                assert_eq!(pair.ends.each_ref().map(|end| end.failed.clone()), [None, None]);
            }
        }
    }
}

/// Data shows that the neighbour is there, also while heartbeats are lost.
#[test]
fn data_keeps_a_connection_without_heartbeats() {
    let mut pair = Pair::new(None);
    for end in &mut pair.ends {
        let other = UdpControl::new(config(end.control.session().clone(), 2));
        let control = std::mem::replace(&mut end.control, other);
        end.control = control.with_liveness();
    }
    pair.confirm();
    pair.run(secs(10));
    pair.loss = 100;
    for _ in 0..150 {
        for end in &pair.ends {
            end.control.session().traffic().note_received(true);
        }
        pair.run(secs(1));
        assert_eq!(pair.ends.each_ref().map(|end| end.failed.clone()), [None, None]);
    }
    pair.run(secs(25));
    assert!(pair.ends.iter().all(|end| end.failed.is_some()));
}

#[test]
fn silence_fails_after_60_s() {
    let mut pair = Pair::established(None);
    pair.loss = 100;
    pair.run(secs(49));
    assert_eq!(pair.ends[0].failed, None);
    pair.run(secs(20));
    for end in &mut pair.ends {
        assert!(end.failed.is_some());
        // A failed connection ignores all inputs.
        assert_eq!(end.control.poll_timeout(), None);
        end.control.handle_timeout(&mut probe_budget(), pair.now);
        end.control.handle_control_frame(ControlFrame::Heartbeat(ConnectionUid(UID)), addr(9), pair.now);
        end.control.handle_interface_mtu(1000, pair.now);
        end.control.handle_control(1, &[], pair.now).unwrap();
        end.control.confirm(pair.now);
        assert_eq!(end.control.poll_output(), None);
    }
}

#[test]
fn missing_first_heartbeat_fails_after_60_s() {
    let mut pair = Pair::new(None);
    pair.loss = 100;
    pair.confirm();
    pair.run(Duration::from_millis(59_999));
    assert!(pair.ends.iter().all(|end| end.failed.is_none()));
    pair.run(Duration::from_millis(1));
    assert!(pair.ends.iter().all(|end| end.failed.is_some() && end.established == 0));
}

#[test]
fn a_path_that_works_in_one_direction_is_established_at_neither_end() {
    for blocked in [0, 1] {
        let mut pair = Pair::new(None);
        pair.blocked = Some(blocked);
        pair.confirm();
        pair.run(Duration::from_millis(1500));
        assert_eq!(pair.ends.each_ref().map(|end| end.control.problem(pair.now)), [None, None], "too early");
        pair.run(Duration::from_millis(8500));
        assert_eq!(pair.ends.each_ref().map(|end| end.established), [0, 0]);
        let problems = pair.ends.each_ref().map(|end| end.control.problem(pair.now).unwrap());
        let (from, to) = ("172.30.1.1:6783", "172.30.1.2:6783");
        let expected = if blocked == 0 {
            // An acceptor does not know where to send to before a datagram arrives.
            [
                format!("no UDP datagram from {to} to {from} for 10 s, and ours do not arrive either"),
                format!("no UDP datagram from 172.30.1.1 to {to} for 10 s"),
            ]
        } else {
            [
                format!("no UDP datagram from {to} to {from} for 10 s, those in the other direction arrive"),
                format!("UDP datagrams from {to} do not arrive at {from}, those in the other direction do"),
            ]
        };
        let tail = "; TCP works, so UDP has to be let through";
        assert_eq!(problems, expected.map(|text| text + tail));
        assert_eq!(pair.ends.each_ref().map(|end| end.control.known_mtu()), [None, None]);
        pair.blocked = None;
        pair.run(secs(1));
        assert_eq!(pair.ends.each_ref().map(|end| end.established), [1, 1]);
        assert_eq!(pair.ends.each_ref().map(|end| end.control.problem(pair.now)), [None, None]);
        assert_eq!(pair.ends.each_ref().map(|end| end.control.known_mtu()), [Some(1438), Some(1438)]);
    }
}

#[test]
fn changed_udp_address_is_adopted() {
    let mut pair = Pair::established(Some([3; 32]));
    let rebound = addr(77);
    pair.ends[0].addr = rebound;
    pair.run(secs(10));
    assert_eq!(pair.ends[1].control.path().remote, Some(rebound));
    assert!(pair.ends[1].events.contains(&Event::AddressChanged(rebound)));
    assert_eq!(Event::AddressChanged(rebound).to_string(), "Peer UDP address changed to 172.30.1.77:6783");
    pair.run(secs(300));
    assert!(pair.ends.iter().all(|end| end.failed.is_none()));
    assert_eq!(pair.mtu(), [1414, 1414]);
}

#[test]
fn mtu_follows_the_path_mtu() {
    let mut pair = Pair::established(None);
    // The kernel learns the path MTU by ICMP after the next packet that is too long, here a periodic test.
    (pair.local_mtu, pair.path_mtu) = (1400, 1400);
    pair.run(secs(31));
    assert_eq!(pair.mtu(), [1338, 1338]);
    // The cached path MTUs expire.
    (pair.local_mtu, pair.path_mtu) = (1500, 1500);
    pair.run(secs(130));
    assert_eq!(pair.mtu(), [1438, 1438]);
    // Routers drop longer packets silently.
    pair.path_mtu = 1280;
    pair.run(secs(40));
    assert_eq!(pair.mtu(), [1218, 1218]);
    pair.path_mtu = 1500;
    pair.run(secs(130));
    assert_eq!(pair.mtu(), [1438, 1438]);
    assert!(pair.ends.iter().all(|end| end.failed.is_none()));
}

#[test]
fn mtu_below_a_black_hole_is_found() {
    let mut pair = Pair::new(None);
    pair.path_mtu = 700;
    pair.confirm();
    pair.run(secs(4));
    assert_eq!(pair.mtu(), [638, 638]);
    assert_eq!(pair.ends[0].control.path().max_payload, 672);
    assert_eq!(Event::MtuVerified(638).to_string(), "Effective MTU verified at 638");
}

#[test]
fn a_path_without_limit_has_the_maximum_mtu() {
    let mut pair = Pair::new(None);
    (pair.local_mtu, pair.path_mtu) = (65536, 65536);
    pair.confirm();
    pair.run(secs(500));
    assert_eq!(pair.mtu(), [65535, 65535]);
    assert_eq!(pair.ends[0].control.path().max_payload, 65507);
}

#[test]
fn silence_and_lateness_show_nothing_about_fragments() {
    let pass = |pair: &Pair| pair.ends.each_ref().map(|end| end.control.path().stack_fragments);
    // The next test is sent into silence.
    let mut pair = Pair::established(None);
    pair.run(secs(294));
    pair.loss = 100;
    pair.run(secs(20));
    assert_eq!(pass(&pair), [true, true]);
    pair.loss = 0;
    pair.run(secs(20));
    assert_eq!(pass(&pair), [true, true]);
    assert!(pair.ends.iter().all(|end| !end.events.contains(&Event::FragmentsLost)));
    // The answers wait while this peer is busy.
    let mut pair = Pair::established(None);
    pair.run(secs(294));
    for _ in 0..10 {
        pair.now += secs(2);
        for end in &mut pair.ends {
            end.control.handle_timeout(&mut probe_budget(), pair.now);
        }
        pair.drain(0);
        pair.drain(1);
    }
    assert_eq!(pass(&pair), [true, true]);
}

#[test]
fn fragmentation_is_tested_periodically() {
    let mut pair = Pair::established(None);
    assert!(pair.ends.iter().all(|end| end.control.path().stack_fragments));
    pair.fragments = false;
    pair.run(secs(290));
    assert!(pair.ends.iter().all(|end| end.control.path().stack_fragments), "not due yet");
    pair.run(secs(15));
    assert!(pair.ends.iter().all(|end| !end.control.path().stack_fragments));
    assert!(pair.ends[0].events.contains(&Event::FragmentsLost));
    pair.fragments = true;
    pair.run(secs(301));
    assert!(pair.ends.iter().all(|end| end.control.path().stack_fragments));
    // One of three tests is enough.
    pair.loss = 2;
    pair.run(secs(3000));
    let lost = pair.ends[0].events.iter().filter(|event| **event == Event::FragmentsLost).count();
    assert!(lost <= 4, "{lost} of 10 verdicts wrong");
}

#[test]
fn nothing_is_sent_before_confirmation() {
    let mut control = UdpControl::new(config(session(2, None), 2));
    let (heartbeat, now) = (ControlFrame::Heartbeat(ConnectionUid(UID)), Instant::ORIGIN);
    assert_eq!(control.poll_timeout(), None);
    control.handle_timeout(&mut probe_budget(), now + secs(1000));
    control.handle_control_frame(heartbeat, addr(1), now);
    control.handle_control_frame(ControlFrame::FragmentationTest, addr(1), now);
    control.handle_control_frame(ControlFrame::MtuTest { mtu: 1438 }, addr(1), now);
    assert_eq!(control.handle_control(1, &[], now), Err(ControlMessageError::NothingToAcknowledge));
    assert_eq!(control.poll_output(), Some(Output::PathChanged), "it has learnt the address");
    assert_eq!(control.poll_output(), None);
    // The heartbeat that was received before counts.
    control.confirm(now);
    assert_eq!(control.poll_output(), Some(Output::Control { tag: 1, body: vec![] }));
    assert!(matches!(control.poll_output(), Some(Output::Datagram { to, df: true, .. }) if to == addr(1)));
    assert_eq!(control.poll_output(), None);
    assert_eq!(control.handle_control(1, &[], now), Ok(()));
    assert_eq!(control.poll_output(), Some(Output::Established));
}

#[test]
fn control_message_1_is_sent_once_after_the_first_heartbeat() {
    let controls = |control: &mut UdpControl| -> Vec<u8> {
        std::iter::from_fn(|| control.poll_output())
            .filter_map(|output| if let Output::Control { tag, .. } = output { Some(tag) } else { None })
            .collect()
    };
    let now = Instant::ORIGIN;
    let mut control = UdpControl::new(config(session(1, None), 1));
    control.confirm(now);
    control.handle_control(1, &[], now).unwrap();
    control.handle_control_frame(ControlFrame::Heartbeat(ConnectionUid(UID + 1)), addr(5), now);
    assert_eq!(control.path().remote, Some(addr(2)), "another connection's heartbeat");
    assert_eq!(controls(&mut control), [0; 0]);
    for _ in 0..3 {
        control.handle_control_frame(ControlFrame::Heartbeat(ConnectionUid(UID)), addr(2), now);
    }
    assert_eq!(controls(&mut control), [1]);
}

#[test]
fn repeated_acknowledgements_are_ignored() {
    let mut pair = Pair::established(None);
    let before = pair.ends[0].control.poll_timeout();
    pair.ends[0].control.handle_control(1, &[], pair.now).unwrap();
    assert_eq!(pair.ends[0].control.poll_output(), None);
    assert_eq!(pair.ends[0].control.poll_timeout(), before);
}

#[test]
fn invalid_control_messages_are_rejected() {
    let mut pair = Pair::established(None);
    let (control, now) = (&mut pair.ends[0].control, pair.now);
    assert_eq!(control.handle_control(0, &[], now), Err(ControlMessageError::UnknownTag(0)));
    assert_eq!(control.handle_control(4, &[1, 2], now), Err(ControlMessageError::UnknownTag(4)));
    for (tag, body) in [(1, &[0][..]), (2, &[0, 0]), (3, &[]), (3, &[1]), (3, &[1, 2, 3])] {
        let expected = Err(ControlMessageError::BadLength { tag, len: body.len() });
        assert_eq!(control.handle_control(tag, body, now), expected);
    }
    assert_eq!(control.poll_output(), None);
}

fn batched(pair: &Pair) -> [bool; 2] {
    pair.ends.each_ref().map(|end| end.control.path().batched)
}

/// Two ends that answer segmented probes, from the start.
fn pair_with_segmentation_test(loses_batches: Option<usize>) -> Pair {
    let mut pair = Pair::new(Some([7; 32]));
    pair.loses_batches = loses_batches;
    for (own, end) in (1..).zip(&mut pair.ends) {
        let session = end.control.session().clone();
        end.control = UdpControl::new(config(session, own)).with_segmentation_test();
    }
    pair.confirm();
    pair.run(secs(1));
    assert_eq!(batched(&pair), [false; 2], "nothing is tested before data is sent");
    pair.send_first_data();
    pair.run(secs(9));
    pair
}

#[test]
fn batches_that_arrive_are_used() {
    let pair = pair_with_segmentation_test(None);
    assert_eq!(batched(&pair), [true; 2]);
    assert_eq!(pair.ends[0].events, [Event::MtuVerified(1414)]);
}

#[test]
fn an_end_whose_batches_are_lost_sends_one_by_one_until_they_arrive() {
    let mut pair = pair_with_segmentation_test(Some(0));
    assert_eq!(batched(&pair), [false, true]);
    assert_eq!(pair.ends[0].events, [Event::MtuVerified(1414), Event::BatchesOff(false)]);
    assert_eq!(pair.mtu(), [1414; 2], "the path MTU is another matter");
    pair.loses_batches = None;
    pair.run(secs(60));
    assert_eq!(batched(&pair), [true; 2]);
    assert_eq!(pair.ends[0].events.last(), Some(&Event::BatchesOn));
}

#[test]
fn a_silent_neighbour_shows_nothing_about_batches() {
    let mut pair = Pair::new(None);
    for (own, end) in (1..).zip(&mut pair.ends) {
        let session = end.control.session().clone();
        end.control = UdpControl::new(config(session, own)).with_segmentation_test();
    }
    pair.confirm();
    pair.run(Duration::from_millis(700));
    pair.blocked = Some(0);
    pair.loses_batches = Some(0);
    pair.send_first_data();
    pair.run(secs(50));
    assert_eq!(batched(&pair), [true; 2]);
}

#[test]
fn a_refused_batch_ends_them_for_a_while_also_with_a_neighbour_of_2_8_1() {
    let mut pair = Pair::established(None);
    for _ in 0..3 {
        let now = pair.now;
        pair.ends[0].control.handle_batch_refused(now);
    }
    assert_eq!(batched(&pair), [false, true]);
    pair.run(secs(20));
    assert_eq!(batched(&pair), [false, true]);
    pair.run(secs(11));
    assert_eq!(batched(&pair), [true; 2]);
    assert_eq!(pair.ends[0].events[1..], [Event::BatchesOff(true), Event::BatchesOn]);
    // Refused again: for longer.
    let now = pair.now;
    pair.ends[0].control.handle_batch_refused(now);
    pair.run(secs(40));
    assert_eq!(batched(&pair), [false, true]);
}

#[test]
fn control_message_4_is_checked_and_unknown_without_the_test() {
    let mut pair = pair_with_segmentation_test(None);
    let now = pair.now;
    assert!(pair.ends[0].control.handle_control(4, &[0; 6], now).is_ok());
    let error = pair.ends[0].control.handle_control(4, &[0; 7], now);
    assert_eq!(error, Err(ControlMessageError::BadLength { tag: 4, len: 7 }));
    let mut plain = Pair::established(None);
    let error = plain.ends[0].control.handle_control(4, &[0; 6], now);
    assert_eq!(error, Err(ControlMessageError::UnknownTag(4)));
}
