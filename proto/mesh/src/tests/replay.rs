//! Conversations recorded between peers of 2.8.1, with ourself in the place of one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use weave_types::{ConnectionId, Instant, Now, PeerName, PeerUid, ShortId};

use super::harness::Sets;
use super::support::{array, name, rng, text, vector};
use crate::envelope::Envelope;
use crate::handshake::{Handshake, HandshakeConfig, Progress, Session};
use crate::update::{PeerRecord, decode_update};
use crate::wire::Tag;
use crate::{Config, Mesh, Output, OverlaySetup, Secret};

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

/// A mesh with one connection, and what it has said.
struct Player {
    mesh: Mesh,
    conn: ConnectionId,
    channels: Sets,
    now: Instant,
    written: Vec<u8>,
    setup: Option<OverlaySetup>,
    events: Vec<String>,
    established: bool,
}

impl Player {
    fn new(config: Config, key: Option<[u8; 32]>, dials: Option<&str>, from: &str) -> Player {
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
        let mut player = Player {
            mesh,
            conn,
            channels,
            now: Instant::ORIGIN,
            written: Vec::new(),
            setup: None,
            events: Vec::new(),
            established: false,
        };
        player.drain();
        player
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

    fn hear(&mut self, bytes: &[u8]) {
        let now = self.time();
        self.mesh.handle_stream(self.conn, bytes, &mut self.channels, now);
        self.drain();
    }
}

/// What the other side would have understood.
fn understood(written: &[u8], side: HandshakeConfig, key: [u8; 32]) -> (Session, Vec<Vec<u8>>) {
    let mut handshake = Handshake::new(side, key);
    let Progress::Done(mut session) = handshake.handle_bytes(written).unwrap() else {
        panic!("the handshake is not complete")
    };
    let messages = std::iter::from_fn(|| session.next().unwrap()).collect();
    (*session, messages)
}

/// A message with what it means, comparable.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Said {
    /// Tag, source, and each peer's record as text.
    Topology(u8, PeerName, BTreeMap<PeerName, String>),
    Channel(u8, PeerName, Option<PeerName>, Vec<u8>),
}

fn said(message: &[u8]) -> Option<Said> {
    let (&tag, body) = message.split_first()?;
    if tag == Tag::Heartbeat.byte() {
        return None;
    }
    let envelope = Envelope::decode(body, tag == Tag::GossipUnicast.byte()).unwrap();
    if envelope.channel != "topology" {
        assert_eq!(envelope.channel, "chanA");
        return Some(Said::Channel(tag, envelope.source, envelope.destination, envelope.payload.to_vec()));
    }
    let peer = |record: PeerRecord| {
        let links: BTreeSet<String> = record.connections.iter().map(|c| format!("{c:?}")).collect();
        (record.name, format!("{:?}", (record.nickname, record.uid, record.version, record.short_id, links)))
    };
    let records = decode_update(envelope.payload).unwrap().records;
    Some(Said::Topology(tag, envelope.source, records.into_iter().map(peer).collect()))
}

/// Plays `ours` against the recorded other side. Returns what was said here, and what was said there.
fn play(ours: &str) -> (Vec<Said>, Vec<Said>, Player) {
    let session = vector("session_v2_plain.json");
    let (theirs, direction) = if ours == "a" { ("b_to_a", "a_to_b") } else { ("a_to_b", "b_to_a") };
    let recorded = array(&session["decoded"][direction]);
    let mut config = config(&recorded[2]["features"]);
    config.gossip_interval = Duration::from_secs(3);
    // The address of a as b sees it, and of b as a does.
    let (a, b) = ("127.0.0.1:35656", "127.0.0.1:36785");
    config.port = 36785;
    let mut player =
        if ours == "a" { Player::new(config, None, Some(b), a) } else { Player::new(config, None, None, a) };
    let state = if ours == "a" { "stateA" } else { "stateB" };
    player.channels.state.entry("chanA".into()).or_default().extend(state.bytes());
    for chunk in array(&session["chunks"]).iter().filter(|c| text(&c["dir"]) == theirs) {
        player.until(Instant::from_origin(Duration::from_millis(chunk["ms"].as_u64().unwrap())));
        player.hear(&hex::decode(text(&chunk["hex"])).unwrap());
    }
    player.until(Instant::from_origin(Duration::from_millis(3100)));
    let their_features = &array(&session["decoded"][theirs])[2]["features"];
    let side =
        HandshakeConfig { features: features(their_features), outbound: ours == "b", ..Default::default() };
    let (session, messages) = understood(&player.written, side, [0; 32]);
    let mut told = session.remote_features.clone();
    let mut expected = features(&recorded[2]["features"]);
    assert!(told.remove("ConnID").is_some() && expected.remove("ConnID").is_some());
    assert_eq!(told.remove("TopologyDigest").as_deref(), Some("1"));
    assert_eq!(told, expected);
    let recorded = recorded.iter().filter_map(|m| m["message"].as_str());
    let there = recorded.filter_map(|m| said(&hex::decode(m).unwrap())).collect();
    (messages.iter().filter_map(|m| said(m)).collect(), there, player)
}

#[test]
fn a_session_from_either_side() {
    for ours in ["a", "b"] {
        let (here, there, player) = play(ours);
        assert!(!player.events.iter().any(|line| line.contains("error")), "{:#?}", player.events);
        let topologies = |said: &[Said]| {
            let of = |s: &Said| matches!(s, Said::Topology(..)).then(|| format!("{s:?}"));
            said.iter().filter_map(of).collect::<Vec<_>>()
        };
        let (mine, recorded) = (topologies(&here), topologies(&there));
        // At the start, one second later, and with the periodic round. The first one shows how far the overlay was at
        // that moment, which is chance; the others must be the same to the letter.
        assert_eq!(mine.len(), 3, "{mine:#?}");
        assert_eq!(mine[1..], recorded[1..], "{ours}");
        let Said::Topology(4, source, peers) = &here[0] else { panic!("{here:#?}") };
        assert_eq!((*source, peers.len()), (player.mesh.name(), 2));

        // State of the other channel: at the start and with the periodic round (the rest of the recording are messages
        // that a user of the channel sent).
        let gossips = |said: &[Said]| {
            let of = |s: &&Said| matches!(s, Said::Channel(4, ..));
            said.iter().filter(of).count()
        };
        assert_eq!((gossips(&here), gossips(&there)), (2, 2));
        let heard: Vec<u8> = player.channels.state["chanA"].iter().copied().collect();
        assert_eq!(heard, b"ABaest", "both states");
        if ours == "a" {
            assert_eq!(
                player.channels.unicasts,
                [(name(&"02:00:00:00:00:0b".into()), b"unicast from B".to_vec())]
            );
        } else {
            assert_eq!(
                player.channels.broadcasts,
                [(name(&"02:00:00:00:00:0a".into()), b"bcast from A".to_vec())]
            );
        }
        let routes = player.mesh.routes();
        assert_eq!(routes.unicast_table().count(), 2, "data has a way");
    }
}

#[test]
fn handshakes_from_either_side() {
    let cases = vector("handshakes.json");
    for case in array(&cases["transcripts"]) {
        for (ours, theirs, direction) in [("a", "b", "b_to_a"), ("b", "a", "a_to_b")] {
            let about = format!("{} as {ours}", text(&case["name"]));
            if case[&format!("{ours}_header")]["max"] != 2 {
                continue; // An old peer, which we cannot play.
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
            let mut player = Player::new(config.clone(), key(ours), dials, a);
            let stream = hex::decode(text(&case[direction]["handshake"])).unwrap();
            for piece in stream.chunks(5) {
                player.hear(piece);
            }
            let version = case["negotiated_version"].as_u64().unwrap();
            let ready = format!("connection ready; using protocol version {version}");
            assert!(player.events.iter().any(|line| line.contains(&ready)), "{about}: {:#?}", player.events);

            let setup = player.setup.clone().unwrap();
            let received = features(&case[&format!("{theirs}_features_received_by_{ours}")]);
            assert_eq!(setup.remote_features, received, "{about}");
            assert_eq!(setup.remote, offered(theirs)["Name"].parse().unwrap());
            assert_eq!(setup.outbound, ours == "a");
            let key_text = setup.session_key.map(hex::encode);
            assert_eq!(key_text.as_deref(), case["session_key"].as_str(), "{about}");
            let overlays = received.get("Overlays").map(|o| o.split(' ').map(str::to_owned).collect());
            assert_eq!(setup.overlays, overlays, "{about}");

            // And the other side has understood us.
            let header = &case[&format!("{theirs}_header")];
            let side = HandshakeConfig {
                features: offered(theirs),
                password: config.password.clone(),
                min_protocol: header["min"].as_u64().unwrap() as u8,
                max_protocol: header["max"].as_u64().unwrap() as u8,
                outbound: theirs == "a",
            };
            let (session, messages) = understood(&player.written, side, key(theirs).unwrap_or_default());
            let mut expected = features(&case[&format!("{ours}_features_received_by_{theirs}")]);
            let mut told = session.remote_features.clone();
            let ours_id: u64 = told.remove("ConnID").unwrap().parse().unwrap();
            let theirs_id: u64 = received["ConnID"].parse().unwrap();
            assert_eq!(setup.uid.0, ours_id ^ theirs_id, "{about}");
            expected.remove("ConnID");
            told.remove("TopologyDigest");
            // Who trusts whom is up to the side's own subnets, of which we have none here.
            for map in [&mut expected, &mut told] {
                map.remove("Trusted");
            }
            assert_eq!(told, expected, "{about}");
            assert!(said(&messages[0]).is_some(), "all our state follows at once");

            // The recorded messages include topology gossip that is none: 2.8.1 ends the connection as well.
            for message in array(&case[direction]["messages"]) {
                player.hear(&hex::decode(text(&message["wire"])).unwrap());
            }
            let end = player.events.iter().filter(|line| line.contains("shutting down due to error")).count();
            assert_eq!(end, 1, "{about}: {:#?}", player.events);
        }
    }
}

#[test]
fn handshakes_that_fail() {
    let cases = vector("handshakes.json");
    assert_eq!(array(&cases["failures"]).len(), 12);
    for case in array(&cases["failures"]) {
        if case["our_max"] != 2 {
            continue;
        }
        let mut config = Config::new(name(&"02:00:00:00:00:01".into()), "us", PeerUid(1));
        config.password = case["password"].as_str().and_then(Secret::new);
        config.min_protocol = case["our_min"].as_u64().unwrap() as u8;
        let mut player = Player::new(config, None, None, "10.0.0.2:40000");
        player.hear(&hex::decode(text(&case["remote_bytes"])).unwrap());
        if case["remote_then_closes"] == true {
            player.mesh.handle_closed(player.conn, "EOF".to_owned(), player.time());
            player.drain();
        }
        let error = text(&case["error"]);
        let line =
            format!("->[10.0.0.2:40000] connection shutting down due to error during handshake: {error}");
        assert!(player.events.contains(&line), "{}: {:#?}", text(&case["name"]), player.events);
    }
}
