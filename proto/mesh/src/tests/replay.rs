//! Replays connections recorded between two peers of 2.8.1, with our mesh in the place of one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid, ShortId};

use super::harness::Sets;
use crate::envelope::Envelope;
use crate::handshake::{Handshake, HandshakeConfig, Progress, Session};
use crate::test_support::{array, name, rng, text, vector};
use crate::update::{PeerRecord, decode_update};
use crate::wire::Tag;
use crate::{Config, Mesh, Output, OverlaySetup, Secret, StreamEnd};

/// The identity of one side, from its features.
fn config(features: &Value) -> Config {
    let uid = PeerUid(text(&features["UID"]).parse().unwrap());
    let mut config = Config::new(name(&features["Name"]), text(&features["NickName"]), uid);
    config.short_id = ShortId::new(text(&features["ShortID"]).parse().unwrap());
    if let Some(overlays) = features["Overlays"].as_str() {
        config.overlays = overlays.split(' ').map(str::to_owned).collect();
    }
    config
}

fn features(value: &Value) -> BTreeMap<String, String> {
    value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), text(v).to_owned())).collect()
}

/// A mesh with one connection, and its outputs.
struct Replay {
    mesh: Mesh,
    conn: ConnectionId,
    channels: Sets,
    now: Instant,
    written: Vec<u8>,
    setup: Option<OverlaySetup>,
    events: Vec<String>,
    established: bool,
}

impl Replay {
    fn new(config: Config, key: Option<[u8; 32]>, dials: Option<&str>, from: &str) -> Replay {
        let now = Now { mono: Instant::ORIGIN, wall: Duration::ZERO };
        let (port, channels) = (config.port, Sets { names: vec!["chanA"], ..Sets::default() });
        let mut mesh = Mesh::new(config, rng(1), now);
        mesh.private_key = key;
        let conn = match dials {
            None => {
                let local = format!("127.0.0.1:{port}").parse().unwrap();
                mesh.handle_accepted(local, from.parse().unwrap(), now).unwrap()
            }
            Some(to) => {
                assert!(mesh.connect(&[to.to_owned()], false, now).is_empty());
                let dial = std::iter::from_fn(|| mesh.poll_output()).find_map(|output| match output {
                    Output::Dial { conn, .. } => Some(conn),
                    _ => None,
                });
                let conn = dial.unwrap();
                mesh.handle_dialled(conn, from.parse().unwrap(), to.parse().unwrap(), now);
                conn
            }
        };
        let mut replay = Replay {
            mesh,
            conn,
            channels,
            now: Instant::ORIGIN,
            written: Vec::new(),
            setup: None,
            events: Vec::new(),
            established: false,
        };
        replay.drain();
        replay
    }

    fn time(&self) -> Now {
        Now { mono: self.now, wall: self.now.since_origin() }
    }

    fn drain(&mut self) {
        while let Some(output) = self.mesh.poll_output() {
            match output {
                Output::Write { bytes, .. } => {
                    let count = bytes.len();
                    self.written.extend(bytes);
                    self.mesh.handle_written(self.conn, count, self.time());
                }
                Output::OverlayPrepare { setup, .. } => self.setup = Some(*setup),
                Output::OverlayConfirm { .. } => self.established = true,
                Output::Event(event) => self.events.push(event.to_string()),
                _ => {}
            }
        }
        if std::mem::take(&mut self.established) {
            self.mesh.handle_overlay_established(self.conn, self.time());
            self.drain();
        }
    }

    fn until(&mut self, at: Instant) {
        while let Some((due, _)) = self.mesh.poll_timeout().filter(|(due, _)| *due <= at) {
            self.now = self.now.max(due);
            self.mesh.handle_timeout(&mut self.channels, Now { mono: self.now, wall: Duration::ZERO });
            self.drain();
        }
        self.now = at;
    }

    fn receive(&mut self, bytes: &[u8]) {
        let now = self.time();
        self.mesh.handle_stream(self.conn, bytes, &mut self.channels, now);
        self.drain();
    }
}

/// Reads the written bytes as the remote does: the session and its messages.
fn read_by_remote(written: &[u8], side: HandshakeConfig, key: [u8; 32]) -> (Session, Vec<Vec<u8>>) {
    let mut handshake = Handshake::new(side, key);
    let Progress::Done(mut session) = handshake.handle_bytes(written).unwrap() else {
        panic!("the handshake is not complete")
    };
    let messages = std::iter::from_fn(|| session.next().unwrap()).collect();
    (*session, messages)
}

/// The content of a message in a form that can be compared.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Summary {
    /// Tag, source, and each peer's record as text.
    Topology(u8, PeerName, BTreeMap<PeerName, String>),
    Channel(u8, PeerName, Option<PeerName>, Vec<u8>),
}

fn summary(message: &[u8]) -> Option<Summary> {
    let (&tag, body) = message.split_first()?;
    if tag == Tag::Heartbeat.byte() {
        return None;
    }
    let envelope = Envelope::decode(body, tag == Tag::GossipUnicast.byte()).unwrap();
    if envelope.channel != "topology" {
        assert_eq!(envelope.channel, "chanA");
        return Some(Summary::Channel(tag, envelope.source, envelope.destination, envelope.payload.to_vec()));
    }
    let peer = |record: PeerRecord| {
        let links: BTreeSet<String> = record.connections.iter().map(|c| format!("{c:?}")).collect();
        (record.name, format!("{:?}", (record.nickname, record.uid, record.version, record.short_id, links)))
    };
    let records = decode_update(envelope.payload).unwrap().records;
    Some(Summary::Topology(tag, envelope.source, records.into_iter().map(peer).collect()))
}

/// Replays the side `ours` against the recorded other side. Returns the messages sent here and those sent in the
/// recording.
fn play(ours: &str) -> (Vec<Summary>, Vec<Summary>, Replay) {
    let session = vector("session_v2_plain.json");
    let (theirs, direction) = if ours == "a" { ("b_to_a", "a_to_b") } else { ("a_to_b", "b_to_a") };
    let recorded = array(&session["decoded"][direction]);
    let mut config = config(&recorded[2]["features"]);
    config.gossip_interval = Duration::from_secs(3);
    // The addresses of a and b in the recording.
    let (a, b) = ("127.0.0.1:35656", "127.0.0.1:36785");
    config.port = 36785;
    let mut replay =
        if ours == "a" { Replay::new(config, None, Some(b), a) } else { Replay::new(config, None, None, a) };
    let state = if ours == "a" { "stateA" } else { "stateB" };
    replay.channels.state.entry("chanA".into()).or_default().extend(state.bytes());
    for chunk in array(&session["chunks"]).iter().filter(|c| text(&c["dir"]) == theirs) {
        replay.until(Instant::from_origin(Duration::from_millis(chunk["ms"].as_u64().unwrap())));
        replay.receive(&hex::decode(text(&chunk["hex"])).unwrap());
    }
    replay.until(Instant::from_origin(Duration::from_millis(3100)));
    let their_features = &array(&session["decoded"][theirs])[2]["features"];
    let side =
        HandshakeConfig { features: features(their_features), outbound: ours == "b", ..Default::default() };
    let (session, messages) = read_by_remote(&replay.written, side, [0; 32]);
    let mut announced = session.remote_features.clone();
    let mut expected = features(&recorded[2]["features"]);
    assert!(announced.remove("ConnID").is_some() && expected.remove("ConnID").is_some());
    for extension in ["TopologyDigest", "ChannelDigest", "Refusal", "Restart"] {
        assert_eq!(announced.remove(extension).as_deref(), Some("1"), "{extension}");
    }
    assert_eq!(announced, expected);
    let recorded = recorded.iter().filter_map(|m| m["message"].as_str());
    let there = recorded.filter_map(|m| summary(&hex::decode(m).unwrap())).collect();
    (messages.iter().filter_map(|m| summary(m)).collect(), there, replay)
}

#[test]
fn recorded_session_is_replayed_from_either_side() {
    for ours in ["a", "b"] {
        let (here, there, replay) = play(ours);
        assert!(!replay.events.iter().any(|line| line.contains("error")), "{:#?}", replay.events);
        let topologies = |summary: &[Summary]| {
            let of = |s: &Summary| matches!(s, Summary::Topology(..)).then(|| format!("{s:?}"));
            summary.iter().filter_map(of).collect::<Vec<_>>()
        };
        let (mine, recorded) = (topologies(&here), topologies(&there));
        // At the start, one second later, and periodically. The first message depends on the state of the overlay at that
        // moment; the others must be equal.
        assert_eq!(mine.len(), 3, "{mine:#?}");
        assert_eq!(mine[1..], recorded[1..], "{ours}");
        let Summary::Topology(4, source, peers) = &here[0] else { panic!("{here:#?}") };
        assert_eq!((*source, peers.len()), (replay.mesh.name(), 2));

        // State of the other channel: at the start and periodically. The other recorded messages were sent by a user of
        // the channel.
        let gossips = |summary: &[Summary]| {
            let of = |s: &&Summary| matches!(s, Summary::Channel(4, ..));
            summary.iter().filter(of).count()
        };
        assert_eq!((gossips(&here), gossips(&there)), (2, 2));
        let merged: Vec<u8> = replay.channels.state["chanA"].iter().copied().collect();
        assert_eq!(merged, b"ABaest", "both states");
        if ours == "a" {
            assert_eq!(
                replay.channels.unicasts,
                [(name(&"02:00:00:00:00:0b".into()), b"unicast from B".to_vec())]
            );
        } else {
            assert_eq!(
                replay.channels.broadcasts,
                [(name(&"02:00:00:00:00:0a".into()), b"bcast from A".to_vec())]
            );
        }
        let routes = replay.mesh.routes();
        assert_eq!(routes.unicast_table().count(), 2, "data has a route");
    }
}

#[test]
fn recorded_handshakes_are_replayed_from_either_side() {
    let cases = vector("handshakes.json");
    for case in array(&cases["transcripts"]) {
        for (ours, theirs, direction) in [("a", "b", "b_to_a"), ("b", "a", "a_to_b")] {
            let about = format!("{} as {ours}", text(&case["name"]));
            if case[&format!("{ours}_header")]["max"] != 2 {
                continue; // The mesh cannot offer only protocol 1.
            }
            let offered = |side: &str| features(&case[&format!("{side}_features_offered")]);
            let key = |side: &str| -> Option<[u8; 32]> {
                let hex = case[&format!("{side}_private_key")].as_str()?;
                hex::decode(hex).unwrap().try_into().ok()
            };
            let mut config = config(&case[&format!("{ours}_features_offered")]);
            config.password = case["password"].as_str().and_then(Secret::new);
            let (a, b) = ("10.0.0.1:40000", "10.0.0.2:6783");
            let dials = (ours == "a").then_some(b);
            let mut replay = Replay::new(config.clone(), key(ours), dials, a);
            let stream = hex::decode(text(&case[direction]["handshake"])).unwrap();
            for piece in stream.chunks(5) {
                replay.receive(piece);
            }
            let version = case["negotiated_version"].as_u64().unwrap();
            let ready = format!("connection ready; using protocol version {version}");
            assert!(replay.events.iter().any(|line| line.contains(&ready)), "{about}: {:#?}", replay.events);

            let setup = replay.setup.clone().unwrap();
            let received = features(&case[&format!("{theirs}_features_received_by_{ours}")]);
            assert_eq!(setup.remote_features, received, "{about}");
            assert_eq!(setup.remote, offered(theirs)["Name"].parse().unwrap());
            assert_eq!(setup.outbound, ours == "a");
            let key_text = setup.session_key.map(hex::encode);
            assert_eq!(key_text.as_deref(), case["session_key"].as_str(), "{about}");
            let overlays = received.get("Overlays").map(|o| o.split(' ').map(str::to_owned).collect());
            assert_eq!(setup.overlays, overlays, "{about}");

            // The other side reads our features.
            let header = &case[&format!("{theirs}_header")];
            let side = HandshakeConfig {
                features: offered(theirs),
                password: config.password.clone(),
                min_protocol: header["min"].as_u64().unwrap() as u8,
                max_protocol: header["max"].as_u64().unwrap() as u8,
                outbound: theirs == "a",
                ..HandshakeConfig::default()
            };
            let (session, messages) = read_by_remote(&replay.written, side, key(theirs).unwrap_or_default());
            let mut expected = features(&case[&format!("{ours}_features_received_by_{theirs}")]);
            let mut announced = session.remote_features.clone();
            let ours_id: u64 = announced.remove("ConnID").unwrap().parse().unwrap();
            let theirs_id: u64 = received["ConnID"].parse().unwrap();
            assert_eq!(setup.uid.0, ours_id ^ theirs_id, "{about}");
            expected.remove("ConnID");
            for extension in ["TopologyDigest", "ChannelDigest", "Refusal", "Restart"] {
                announced.remove(extension);
            }
            // `Trusted` depends on the configured subnets, of which there are none here.
            for map in [&mut expected, &mut announced] {
                map.remove("Trusted");
            }
            assert_eq!(announced, expected, "{about}");
            assert!(summary(&messages[0]).is_some(), "complete state follows immediately");

            // The recorded messages include malformed topology gossip, which ends the connection in 2.8.1 as well.
            for message in array(&case[direction]["messages"]) {
                replay.receive(&hex::decode(text(&message["wire"])).unwrap());
            }
            let end = replay.events.iter().filter(|line| line.contains("shutting down due to error")).count();
            assert_eq!(end, 1, "{about}: {:#?}", replay.events);
        }
    }
}

#[test]
fn recorded_handshake_failures_have_the_same_error() {
    let cases = vector("handshakes.json");
    assert_eq!(array(&cases["failures"]).len(), 12);
    for case in array(&cases["failures"]) {
        if case["our_max"] != 2 {
            continue;
        }
        let mut config = Config::new(name(&"02:00:00:00:00:01".into()), "us", PeerUid(1));
        config.password = case["password"].as_str().and_then(Secret::new);
        config.min_protocol = case["our_min"].as_u64().unwrap() as u8;
        let mut replay = Replay::new(config, None, None, "10.0.0.2:40000");
        replay.receive(&hex::decode(text(&case["remote_bytes"])).unwrap());
        if case["remote_then_closes"] == true {
            replay.mesh.handle_closed(replay.conn, StreamEnd::ByRemote("EOF".to_owned()), replay.time());
            replay.drain();
        }
        let error = text(&case["error"]);
        let line =
            format!("->[10.0.0.2:40000] connection shutting down due to error during handshake: {error}");
        assert!(replay.events.contains(&line), "{}: {:#?}", text(&case["name"]), replay.events);
    }
}
