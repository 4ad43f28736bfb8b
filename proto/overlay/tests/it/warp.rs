//! Warp: key exchange, sealing, epochs (docs/spec/warp.md).

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::support::{UID, addr, array, bytes, name};
use proptest::prelude::*;
use serde_json::Value;
use weave_overlay::udp::{
    ControlFrame, OpenError, Opener, Output, Sealer, Session, SessionConfig, probe_budget,
};
use weave_overlay::warp::{
    Cipher, HEADER, Header, KeyLimits, LANES, TAG, WarpControl, WarpControlConfig, WarpControlError,
};
use weave_types::{ConnectionId, Instant};
use zeroize::Zeroizing;

const KEY: u8 = 0;
const ESTABLISHED: u8 = 1;

pub(crate) fn config(own: u8) -> WarpControlConfig {
    WarpControlConfig {
        session: SessionConfig {
            own: name(own),
            remote: name(3 - own),
            conn: ConnectionId(u64::from(own)),
            uid: UID,
            outbound: own == 1,
            key: None,
        },
        mesh_key: None,
        local: addr(own),
        remote: addr(3 - own),
        private_key: Zeroizing::new([own; 32]),
        index: u32::from(own) * 1000,
        preferred: Cipher::Aes256Gcm,
        limits: KeyLimits::default(),
        liveness: true,
        segmentation: true,
    }
}

pub(crate) fn config_with_key(own: u8, key: u8, index: u32) -> WarpControlConfig {
    WarpControlConfig { private_key: Zeroizing::new([key; 32]), index, ..config(own) }
}

/// The first control message.
fn key_message(control: &mut WarpControl) -> Vec<u8> {
    control.confirm(Instant::ORIGIN);
    match control.poll_output() {
        Some(Output::Control { tag: KEY, body }) => body,
        other => panic!("{other:?} instead of the key"),
    }
}

/// The sessions of both ends, which have sealed nothing yet.
pub(crate) fn sessions(configs: [WarpControlConfig; 2]) -> [Arc<Session>; 2] {
    let messages = configs.each_ref().map(|config| key_message(&mut WarpControl::new(config.clone())));
    let mut ends = configs.map(WarpControl::new);
    for (end, message) in ends.iter_mut().zip(messages.iter().rev()) {
        end.handle_control(KEY, message, Instant::ORIGIN).unwrap();
    }
    ends.map(|end| end.path_control().expect("keys are exchanged").session().clone())
}

fn with_limits(limits: KeyLimits) -> [Arc<Session>; 2] {
    sessions([1, 2].map(|own| WarpControlConfig { limits, ..config(own) }))
}

fn seal(sealer: &Sealer, frame: &[u8], df: bool) -> Vec<u8> {
    let mut draft = sealer.begin();
    let mut buf = vec![0xa5; sealer.sealed_len_with(&draft, frame.len())];
    assert!(sealer.push(&mut draft, &mut buf, name(1), name(2), frame));
    assert_eq!(sealer.finish(draft, &mut buf, df), Ok(buf.len()));
    buf
}

fn open(opener: &Opener, datagram: &[u8]) -> Result<Vec<Vec<u8>>, OpenError> {
    let mut datagram = datagram.to_vec();
    opener.open(&mut datagram)?.map(|record| Ok(record?.frame.to_vec())).collect()
}

fn header(datagram: &[u8]) -> Header {
    Header::split(&mut datagram.to_vec()).expect("a datagram of warp").0
}

fn epoch(session: &Session) -> u32 {
    session.keys().unwrap().epoch()
}

fn limits(datagrams: u64) -> KeyLimits {
    KeyLimits { datagrams, time: Duration::MAX }
}

#[test]
fn datagrams_equal_those_of_another_implementation() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/warp/warp.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in array(&cases) {
        let what = &case["name"];
        let config = |own: u8| {
            let at = usize::from(own) - 1;
            let mesh_key = bytes(&case["mesh_key"]);
            WarpControlConfig {
                private_key: Zeroizing::new(bytes(&case["private_keys"][at]).try_into().unwrap()),
                mesh_key: mesh_key.first_chunk().map(|key| Zeroizing::new(*key)),
                index: case["indices"][at].as_u64().unwrap() as u32,
                preferred: match case["preferred"][at].as_u64() {
                    Some(1) => Cipher::Aes256Gcm,
                    _ => Cipher::ChaCha20Poly1305,
                },
                limits: limits(1),
                ..config(own)
            }
        };
        for own in [1, 2] {
            let message = key_message(&mut WarpControl::new(config(own)));
            assert_eq!(message, bytes(&case["key_messages"][usize::from(own) - 1]), "{what}");
        }
        let sessions = sessions([config(1), config(2)]);
        let sealers = sessions.each_ref().map(|session| Sealer::new(session.clone()));
        let openers = sessions.each_ref().map(|session| Opener::new(session.clone()));
        let (last, datagrams) = array(&case["datagrams"]).split_last().unwrap();
        assert_eq!(datagrams.len(), 6);
        for datagram in datagrams {
            let sender = datagram["sender"].as_u64().unwrap() as usize;
            let (frame, expected) = (bytes(&datagram["frame"]), bytes(&datagram["datagram"]));
            let sealer = sealers[sender].clone().on_lane(datagram["lane"].as_u64().unwrap() as usize);
            let sealed = seal(&sealer, &frame, datagram["df"].as_bool().unwrap());
            assert_eq!(hex::encode(&sealed), hex::encode(&expected), "{what}");
            assert_eq!(open(&openers[1 - sender], &expected), Ok(vec![frame]), "{what}");
        }
        assert_eq!(last["lane"], LANES);
        assert_eq!(open(&openers[1], &bytes(&last["datagram"])), Err(OpenError::Forged), "{what}");
    }
}

#[test]
fn the_pair_uses_aes_only_if_both_prefer_it() {
    let cipher = |preferred: [Cipher; 2]| {
        let sessions = sessions(
            [1, 2].map(|own| WarpControlConfig { preferred: preferred[usize::from(own) - 1], ..config(own) }),
        );
        sessions.map(|session| session.keys().unwrap().cipher())
    };
    let (aes, chacha) = (Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305);
    assert_eq!(cipher([aes, aes]), [aes, aes]);
    for preferred in [[aes, chacha], [chacha, aes], [chacha, chacha]] {
        assert_eq!(cipher(preferred), [chacha, chacha]);
    }
}

/// Every input of the keys matters: what one end believes differently makes all datagrams worthless.
#[test]
fn keys_are_bound_to_the_password_and_the_connection() {
    let mesh_key = |byte: u8| Some(Zeroizing::new([byte; 32]));
    let mut changed: Vec<WarpControlConfig> = Vec::new();
    changed.push(WarpControlConfig { mesh_key: None, ..config(2) });
    changed.push(WarpControlConfig { mesh_key: mesh_key(8), ..config(2) });
    let base = || WarpControlConfig { mesh_key: mesh_key(7), ..config(2) };
    let session = |change: fn(&mut SessionConfig)| {
        let mut config = base();
        change(&mut config.session);
        config
    };
    changed.push(session(|session| session.uid.0 += 1));
    changed.push(session(|session| session.remote = name(9)));
    changed.push(session(|session| session.own = name(9)));
    changed.push(session(|session| session.outbound = true));
    let opened = |other: WarpControlConfig| {
        let sessions = sessions([WarpControlConfig { mesh_key: mesh_key(7), ..config(1) }, other]);
        let datagram = seal(&Sealer::new(sessions[0].clone()), b"frame of fourteen bytes", true);
        open(&Opener::new(sessions[1].clone()), &datagram)
    };
    assert!(opened(base()).is_ok());
    for other in changed {
        assert_eq!(opened(other), Err(OpenError::Forged));
    }
}

#[test]
fn keys_differ_after_a_restart_and_in_both_directions() {
    let restarted = WarpControlConfig { private_key: Zeroizing::new([77; 32]), ..config(1) };
    let runs = [sessions([config(1), config(2)]), sessions([restarted, config(2)])];
    // The same nonce and the same text each time.
    let bodies = runs.iter().flatten().map(|session| {
        let sealed = seal(&Sealer::new(session.clone()), &[0; 100], true);
        assert_eq!(header(&sealed).word, 1 << 63);
        sealed[HEADER..].to_vec()
    });
    let bodies: BTreeSet<Vec<u8>> = bodies.collect();
    assert_eq!(bodies.len(), 4);
}

#[test]
fn invalid_keys_end_the_overlay_and_messages_out_of_order_do_not() {
    let good = key_message(&mut WarpControl::new(config(1)));
    let failed = |body: &[u8]| {
        let mut control = WarpControl::new(config(2));
        control.handle_control(KEY, body, Instant::ORIGIN).unwrap();
        let Some(Output::Failed(error)) = control.poll_output() else { panic!("{body:?} is accepted") };
        assert!(control.path_control().is_none());
        // Nothing that follows is an error or has an effect.
        assert_eq!(control.handle_control(KEY, &good, Instant::ORIGIN), Ok(()));
        assert!(control.path_control().is_none());
        error
    };
    assert_eq!(failed(&good[..37]), "warp key of 37 bytes");
    assert_eq!(failed(&[]), "warp key of 0 bytes");
    assert_eq!(failed(&[&[2], &good[1..]].concat()), "unknown version 2 of warp");
    // Zero and one, the points of low order that are easy to write.
    for low in [0, 1] {
        assert_eq!(failed(&[&good[..6], &[low], &[0; 31]].concat()), "warp key of low order");
    }
    let mut control = WarpControl::new(config(2));
    let out_of_order = |tag| Err(WarpControlError::OutOfOrder(tag));
    assert_eq!(control.handle_control(ESTABLISHED, &[], Instant::ORIGIN), out_of_order(ESTABLISHED));
    // A newer version may have more to say.
    control.handle_control(KEY, &[&good[..], b"more"].concat(), Instant::ORIGIN).unwrap();
    assert!(control.path_control().is_some());
    assert_eq!(control.handle_control(KEY, &good, Instant::ORIGIN), out_of_order(KEY));
}

#[test]
fn the_session_is_announced_before_its_first_datagram() {
    let mut control = WarpControl::new(config(1));
    key_message(&mut control);
    let key = key_message(&mut WarpControl::new(config(2)));
    control.handle_control(KEY, &key, Instant::ORIGIN).unwrap();
    let outputs: Vec<Output> = std::iter::from_fn(|| control.poll_output()).collect();
    assert_eq!(outputs[0], Output::PathChanged);
    assert!(matches!(&outputs[1], Output::Datagram { df: true, .. }), "{outputs:?}");
}

#[test]
fn debug_output_has_no_keys() {
    let [session, _] = sessions([config(1), config(2)]);
    let text = format!("{session:?} {:?} {:?}", session.keys(), Opener::new(session.clone()));
    assert!(text.contains("Aes256Gcm") && !text.contains("secret") && !text.contains("sending"), "{text}");
}

#[test]
fn silence_of_the_neighbour_keeps_the_epoch() {
    let [session, remote] = with_limits(limits(10));
    let sealer = Sealer::new(session.clone());
    let datagrams: Vec<_> = (0..100).map(|_| seal(&sealer, &[1; 60], true)).collect();
    assert_eq!(epoch(&session), 0, "the neighbour has not used the epoch");
    // What has been sent meanwhile can be opened.
    let opener = Opener::new(remote.clone());
    assert!(datagrams.iter().all(|datagram| open(&opener, datagram).is_ok()));
    let answer = seal(&Sealer::new(remote), &[1; 60], true);
    open(&Opener::new(session.clone()), &answer).unwrap();
    seal(&sealer, &[1; 60], true);
    assert_eq!(epoch(&session), 1);
}

#[test]
fn threads_never_use_a_number_twice_while_epochs_change() {
    let [session, remote] = with_limits(limits(50));
    let (sender, receiver) = std::sync::mpsc::sync_channel(8);
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let sealer = Sealer::new(session.clone()).on_lane(usize::from(thread) / 2);
            let sender = sender.clone();
            scope.spawn(move || {
                for n in 0..2000u32 {
                    sender.send(seal(&sealer, &[thread; 60], (n + u32::from(thread)) % 3 > 0)).unwrap();
                }
            });
        }
        drop(sender);
        let (there, back) = (Opener::new(remote.clone()), Opener::new(session.clone()));
        let answers = Sealer::new(remote.clone());
        let mut words = BTreeSet::new();
        while let Ok(datagram) = receiver.recv() {
            let header = header(&datagram);
            assert!(words.insert((header.lane, header.word)));
            // A thread may be two epochs behind the others: such a datagram is lost.
            _ = open(&there, &datagram);
            open(&back, &seal(&answers, &[9; 60], true)).unwrap();
        }
        assert_eq!(words.len(), 8000);
    });
    assert!(epoch(&session) > 5, "{}", epoch(&session));
}

/// What happens to datagrams between two ends.
#[derive(Clone, Debug)]
enum Step {
    Seal {
        end: usize,
        lane: usize,
        df: bool,
        len: usize,
    },
    /// The datagram in flight at this position arrives.
    Arrive(prop::sample::Index),
    /// The same, but it stays in flight.
    ArriveTwice(prop::sample::Index),
    Lose(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        5 => (0usize..2, 0usize..3, any::<bool>(), 14usize..200)
            .prop_map(|(end, lane, df, len)| Step::Seal { end, lane, df, len }),
        4 => at().prop_map(Step::Arrive),
        1 => at().prop_map(Step::ArriveTwice),
        1 => at().prop_map(Step::Lose),
    ]
}

struct Flying {
    sender: usize,
    epoch: u32,
    bytes: Vec<u8>,
    frame: Vec<u8>,
    arrived: bool,
}

proptest! {
    /// Key and nonce are never used twice, over restarts, directions, epochs, and lanes: with the same text, equal pairs would give equal
    /// bytes.
    #[test]
    fn nonces_are_unique(runs in prop::collection::vec(1usize..60, 1..4), limit in 1u64..6, cipher in any::<bool>(), df in any::<u64>(), lanes in any::<u64>()) {
        let preferred = if cipher { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        let mut seen = BTreeSet::new();
        let mut total = 0;
        for (run, rounds) in (1..).zip(runs) {
            // A restarted peer keeps names and index at worst, and has another key pair.
            let config = |own: u8| {
                let fresh = Zeroizing::new([own + 10 * run; 32]);
                WarpControlConfig { limits: limits(limit), preferred, private_key: fresh, ..config(own) }
            };
            let sessions = sessions([config(1), config(2)]);
            let sealers = sessions.each_ref().map(|session| Sealer::new(session.clone()));
            let openers = sessions.each_ref().map(|session| Opener::new(session.clone()));
            for round in 0..rounds {
                for end in 0..2 {
                    let lane = (lanes >> (round % 64) & 1) as u16;
                    let sealer = sealers[end].clone().on_lane(lane.into());
                    let sealed = seal(&sealer, &[0; 60], df >> (round % 64) & 1 == 1);
                    prop_assert_eq!(header(&sealed).lane, lane);
                    prop_assert!(open(&openers[1 - end], &sealed).is_ok());
                    seen.insert(sealed[HEADER..].to_vec());
                    total += 1;
                }
            }
            prop_assert!(rounds < 50 || epoch(&sessions[0]) > 0);
        }
        prop_assert_eq!(seen.len(), total);
    }

    /// Each datagram is opened exactly once, unless its epoch is over; the ends never differ by more than one epoch.
    #[test]
    fn loss_reordering_and_repetition(steps in prop::collection::vec(step(), 1..300), limit in 1u64..8, cipher in any::<bool>()) {
        let preferred = if cipher { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        let sessions = sessions([1, 2].map(|own| WarpControlConfig { limits: limits(limit), preferred, ..config(own) }));
        let sealers = sessions.each_ref().map(|session| Sealer::new(session.clone()));
        let openers = sessions.each_ref().map(|session| Opener::new(session.clone()));
        let mut flying: Vec<Flying> = Vec::new();
        let mut used = BTreeSet::new();
        for (number, step) in steps.into_iter().enumerate() {
            let (at, stays) = match step {
                Step::Seal { end, lane, df, len } => {
                    let frame = vec![number as u8; len];
                    let bytes = seal(&sealers[end].clone().on_lane(lane), &frame, df);
                    let (header, epoch) = (header(&bytes), epoch(&sessions[end]));
                    let expected = (epoch as u8, lane as u16, u64::from(df));
                    prop_assert_eq!((header.epoch, header.lane, header.word >> 63), expected);
                    prop_assert!(used.insert((end, lane, header.word)), "a nonce is used twice");
                    flying.push(Flying { sender: end, epoch, bytes, frame, arrived: false });
                    continue;
                }
                Step::Lose(at) => {
                    if !flying.is_empty() {
                        flying.swap_remove(at.index(flying.len()));
                    }
                    continue;
                }
                Step::Arrive(at) => (at, false),
                Step::ArriveTwice(at) => (at, true),
            };
            if flying.is_empty() {
                continue;
            }
            let at = at.index(flying.len());
            let datagram = &mut flying[at];
            let receiver = 1 - datagram.sender;
            let behind = i64::from(epoch(&sessions[receiver])) - i64::from(datagram.epoch);
            let expected = if behind > 1 {
                Err(OpenError::Forged)
            } else if datagram.arrived {
                Err(OpenError::Replayed)
            } else {
                Ok(vec![datagram.frame.clone()])
            };
            prop_assert_eq!(open(&openers[receiver], &datagram.bytes), expected);
            datagram.arrived |= behind <= 1;
            if !stays {
                flying.swap_remove(at);
            }
            let epochs = sessions.each_ref().map(|session| epoch(session));
            prop_assert!(epochs[0].abs_diff(epochs[1]) <= 1, "{:?}", epochs);
        }
    }

    #[test]
    fn changed_datagrams_are_rejected(len in 14usize..1400, at in any::<prop::sample::Index>(), bit in 0..8, cut in any::<prop::sample::Index>()) {
        let sessions = with_limits(KeyLimits::default());
        let sealed = seal(&Sealer::new(sessions[0].clone()), &vec![3; len], true);
        let opener = Opener::new(sessions[1].clone());
        let mut changed = sealed.clone();
        changed[at.index(sealed.len())] ^= 1u8 << bit;
        prop_assert!(open(&opener, &changed).is_err());
        prop_assert!(open(&opener, &sealed[..cut.index(sealed.len())]).is_err());
        prop_assert!(open(&opener, &[&sealed[..], &[0]].concat()).is_err());
        // Nothing of this has moved the replay window or the epoch.
        prop_assert_eq!(open(&opener, &sealed), Ok(vec![vec![3; len]]));
        prop_assert_eq!(epoch(&sessions[1]), 0);
        let text = sealed.windows(8).filter(|window| window == &[3; 8]).count();
        prop_assert_eq!(text, 0);
        prop_assert_eq!(sealed.len(), HEADER + 14 + len + TAG);
    }
}

/// Two ends with a path that takes 1 ms, control messages and datagrams.
struct Pair {
    ends: [WarpControl; 2],
    openers: [Option<Opener>; 2],
    now: Instant,
    in_flight: VecDeque<(Instant, usize, Output)>,
    established: [bool; 2],
    cut: bool,
}

impl Pair {
    fn new(limits: KeyLimits) -> Pair {
        Pair {
            ends: [1, 2].map(|own| WarpControl::new(WarpControlConfig { limits, ..config(own) })),
            openers: [None, None],
            now: Instant::ORIGIN,
            in_flight: VecDeque::new(),
            established: [false; 2],
            cut: false,
        }
    }

    fn drain(&mut self) {
        for end in 0..2 {
            while let Some(output) = self.ends[end].poll_output() {
                match output {
                    Output::Datagram { .. } if self.cut => {}
                    Output::Datagram { ref bytes, .. } if bytes.len() > 1472 => {
                        let control = self.ends[end].path_control_mut().unwrap();
                        control.handle_interface_mtu(1500, self.now);
                    }
                    Output::Datagram { .. } | Output::Control { .. } => {
                        self.in_flight.push_back((self.now + Duration::from_millis(1), 1 - end, output));
                    }
                    Output::PathChanged if self.openers[end].is_none() => {
                        let session = self.ends[end].path_control().unwrap().session().clone();
                        self.openers[end] = Some(Opener::new(session));
                    }
                    Output::Established => self.established[end] = true,
                    Output::Failed(error) => panic!("end {end}: {error}"),
                    _ => {}
                }
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            self.drain();
            let timers = self.ends.iter().filter_map(|end| end.poll_timeout().map(|(at, _)| at));
            let next = timers.chain(self.in_flight.front().map(|(at, ..)| *at)).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            while let Some((_, to, output)) = self.in_flight.pop_front_if(|(at, ..)| *at <= self.now) {
                self.arrive(to, output);
            }
            for end in &mut self.ends {
                end.handle_timeout(&mut probe_budget(), self.now);
            }
        }
        self.now = until;
    }

    fn arrive(&mut self, to: usize, output: Output) {
        match output {
            Output::Control { tag, body } => {
                self.ends[to].handle_control(tag, &body, self.now).unwrap();
            }
            Output::Datagram { bytes, .. } => {
                let Some(opener) = &self.openers[to] else { return };
                for frame in open(opener, &bytes).unwrap() {
                    let frame = ControlFrame::parse(&frame).unwrap();
                    let control = self.ends[to].path_control_mut().unwrap();
                    control.handle_control_frame(frame, addr(2 - to as u8), self.now);
                }
            }
            _ => {}
        }
    }

    fn epochs(&self) -> [u32; 2] {
        self.ends.each_ref().map(|end| epoch(end.path_control().unwrap().session()))
    }
}

#[test]
fn keys_change_with_time_and_the_path_is_found() {
    let mut pair = Pair::new(KeyLimits::default());
    pair.ends.iter_mut().for_each(|end| end.confirm(Instant::ORIGIN));
    pair.run(Duration::from_secs(5));
    assert_eq!((pair.established, pair.epochs()), ([true; 2], [0; 2]));
    // 1500 bytes less outer headers 28, header 16, tag 16, record 14 and Ethernet header 14.
    let mtu = pair.ends.each_ref().map(|end| end.path_control().unwrap().known_mtu());
    assert_eq!(mtu, [Some(1412); 2]);
    pair.run(Duration::from_secs(140));
    assert_eq!(pair.epochs(), [1; 2]);
    pair.run(Duration::from_secs(480));
    assert!(pair.epochs().iter().all(|epoch| (4..=5).contains(epoch)), "{:?}", pair.epochs());
}

/// However long nothing arrives, both ends understand each other afterwards.
#[test]
fn keys_wait_for_a_path_that_is_cut() {
    let mut pair = Pair::new(KeyLimits { datagrams: 3, time: Duration::from_secs(1) });
    pair.ends.iter_mut().for_each(|end| end.confirm(Instant::ORIGIN));
    pair.run(Duration::from_secs(300));
    let before = pair.epochs();
    assert!(before[0] > 5, "{before:?}");
    pair.cut = true;
    pair.run(Duration::from_secs(10));
    let during = pair.epochs();
    assert!(during.iter().all(|epoch| *epoch <= before[0].max(before[1]) + 1), "{before:?} {during:?}");
    pair.cut = false;
    pair.run(Duration::from_secs(300));
    assert!(pair.epochs()[0] > during[0] + 5, "{during:?} {:?}", pair.epochs());
}
