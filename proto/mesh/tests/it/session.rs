//! Handshakes, frames and features, compared byte for byte with recordings of 2.8.1 (docs/spec/mesh.md 4, 16).

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value as Json;
use weave_mesh::crypto::{self, Sealer, Secret, WeakKey};
use weave_mesh::envelope::Envelope;
use weave_mesh::features::{FeatureError, Features};
use weave_mesh::handshake::{
    Handshake, HandshakeConfig, HandshakeError, MAX_FEATURES, Progress, Session, encode_features,
};
use weave_mesh::update::decode_update;
use weave_mesh::wire::{MAX_FRAME, SessionError, Tag};

use crate::support::{bytes, list, text, vectors};

fn key(json: &Json) -> [u8; 32] {
    bytes(json).try_into().unwrap()
}

fn features(json: &Json) -> BTreeMap<String, String> {
    json.as_object().unwrap().iter().map(|(k, v)| (k.clone(), text(v).to_owned())).collect()
}

fn password(json: &Json) -> Option<Secret> {
    json.as_str().and_then(Secret::new)
}

fn byte(json: &Json) -> u8 {
    json.as_u64().unwrap().try_into().unwrap()
}

/// A handshake with the configuration of one side of a transcript.
fn side(json: &Json, own: &str) -> Handshake {
    let config = HandshakeConfig {
        features: features(&json[format!("{own}_features_offered")]),
        password: password(&json["password"]),
        min_protocol: byte(&json[format!("{own}_header")]["min"]),
        max_protocol: byte(&json[format!("{own}_header")]["max"]),
        outbound: (own == "a") == json["a_is_outbound"].as_bool().unwrap(),
        ..HandshakeConfig::default()
    };
    let private = &json[format!("{own}_private_key")];
    Handshake::new(config, if private.is_null() { [0; 32] } else { key(private) })
}

/// Handles a stream in pieces of these sizes, repeatedly.
fn feed(
    handshake: &mut Handshake,
    mut stream: &[u8],
    sizes: &[usize],
) -> (Vec<u8>, Vec<Vec<u8>>, Option<Session>) {
    let mut session: Option<Box<Session>> = None;
    let (mut written, mut messages) = (Vec::new(), Vec::new());
    let mut sizes = sizes.iter().cycle();
    written.extend(handshake.poll_write().unwrap());
    while !stream.is_empty() {
        let size = (*sizes.next().unwrap()).clamp(1, stream.len());
        let (piece, rest) = stream.split_at(size);
        stream = rest;
        match &mut session {
            None => match handshake.handle_bytes(piece).unwrap() {
                Progress::Done(done) => session = Some(done),
                Progress::Header => assert!(written.len() == 7),
                Progress::Exchange => {}
            },
            Some(session) => session.push(piece),
        }
        written.extend(handshake.poll_write().unwrap_or_default());
        if let Some(session) = &mut session {
            while let Some(message) = session.next().unwrap() {
                messages.push(message);
            }
        }
    }
    (written, messages, session.map(|session| *session))
}

fn check_transcript(json: &Json, sizes: &[usize]) {
    for (own, remote) in [("a", "b"), ("b", "a")] {
        let mut handshake = side(json, own);
        let incoming = &json[format!("{remote}_to_{own}")];
        let outgoing = &json[format!("{own}_to_{remote}")];
        let (written, messages, session) = feed(&mut handshake, &bytes(&incoming["stream"]), sizes);
        let mut session = session.unwrap();

        assert_eq!(u64::from(session.version), json["negotiated_version"].as_u64().unwrap());
        let received = features(&json[format!("{remote}_features_received_by_{own}")]);
        assert_eq!(session.remote_features, received);
        match &json["session_key"] {
            Json::Null => assert_eq!(session.session_key, None),
            expected => assert_eq!(session.session_key, Some(key(expected))),
        }
        let expected: Vec<Vec<u8>> =
            list(&incoming["messages"]).iter().map(|m| bytes(&m["message"])).collect();
        assert_eq!(messages, expected);

        // Go writes the features in random order; everything else is equal.
        let writes = list(&outgoing["handshake_writes"]);
        let mut exact = bytes(&writes[0]);
        if session.version == 2 {
            exact.extend(bytes(&writes[1]));
        }
        assert_eq!(hex::encode(&written[..exact.len()]), hex::encode(&exact));
        assert_eq!(written.len(), bytes(&outgoing["handshake"]).len());

        for message in list(&outgoing["messages"]) {
            let wire = session.seal(&bytes(&message["message"])).unwrap();
            assert_eq!(hex::encode(wire), text(&message["wire"]));
        }
        assert!(matches!(handshake.handle_bytes(&[]), Err(HandshakeError::Finished)));
    }
}

#[test]
fn transcripts_are_reproduced() {
    let all = vectors("handshakes");
    let transcripts = list(&all["transcripts"]);
    assert_eq!(transcripts.len(), 4);
    for json in transcripts {
        for sizes in [&[1][..], &[usize::MAX], &[7, 1], &[3, 50]] {
            check_transcript(json, sizes);
        }
        // Two handshakes of ours complete with each other.
        let (mut a, mut b) = (side(json, "a"), side(json, "b"));
        let (mut at_a, mut at_b) = (None, None);
        for _ in 0..4 {
            let (to_b, to_a) = (a.poll_write().unwrap_or_default(), b.poll_write().unwrap_or_default());
            for (side, bytes, done) in [(&mut a, to_a, &mut at_a), (&mut b, to_b, &mut at_b)] {
                if bytes.is_empty() {
                    continue;
                }
                if let Progress::Done(session) = side.handle_bytes(&bytes).unwrap() {
                    *done = Some(session);
                }
            }
        }
        let (mut at_a, mut at_b) = (at_a.unwrap(), at_b.unwrap());
        assert_eq!(at_a.session_key, at_b.session_key);
        assert_eq!(at_b.remote_features, features(&json["a_features_received_by_b"]));
        for message in [&b""[..], b"\x00", b"hello"] {
            at_b.push(&at_a.seal(message).unwrap());
            assert_eq!(at_b.next().unwrap().as_deref(), Some(message));
            at_a.push(&at_b.seal(message).unwrap());
            assert_eq!(at_a.next().unwrap().as_deref(), Some(message));
        }
        assert_eq!(at_a.next(), Ok(None));
    }
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_result(
        index in 0usize..4,
        sizes in prop::collection::vec(1usize..200, 1..20),
    ) {
        check_transcript(&vectors("handshakes")["transcripts"][index], &sizes);
    }
}

#[test]
fn failures_have_the_errors_of_2_8_1() {
    let all = vectors("handshakes");
    for json in list(&all["failures"]) {
        for size in [1, 2, 1000] {
            let config = HandshakeConfig {
                features: BTreeMap::new(),
                password: password(&json["password"]),
                min_protocol: byte(&json["our_min"]),
                max_protocol: byte(&json["our_max"]),
                outbound: true,
                ..HandshakeConfig::default()
            };
            let mut handshake = Handshake::new(config, [7; 32]);
            let stream = bytes(&json["remote_bytes"]);
            let result = stream.chunks(size).try_for_each(|piece| match handshake.handle_bytes(piece)? {
                Progress::Done(session) => panic!("{session:?}"),
                _ => Ok::<(), HandshakeError>(()),
            });
            let error = match result {
                Err(error) => error,
                Ok(()) => handshake.handle_eof(),
            };
            assert_eq!(error.to_string(), text(&json["error"]), "{}", json["name"]);
            assert!(handshake.poll_write().is_some());
            assert!(matches!(handshake.handle_bytes(b"weave"), Err(HandshakeError::Finished)));
        }
    }
}

fn without_password(outbound: bool) -> Handshake {
    let features = BTreeMap::from([("Name".to_owned(), "x".to_owned())]);
    Handshake::new(HandshakeConfig { features, outbound, ..HandshakeConfig::default() }, [1; 32])
}

fn error_after(stream: &[u8], mut handshake: Handshake) -> String {
    match handshake.handle_bytes(stream) {
        Ok(Progress::Done(session)) => panic!("{session:?}"),
        Ok(_) => handshake.handle_eof().to_string(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn end_of_stream_gives_the_error_of_2_8_1() {
    for (stream, error) in [
        (&b"weave\x01\x02"[..], "EOF"),
        (b"weave\x01\x02\x00", "EOF"),
        (b"weave\x01\x02\x00\x00\x00", "unexpected EOF"),
        (b"weave\x01\x02\x00\x00\x00\x00\x09", "EOF"),
        (b"weave\x01\x02\x00\x00\x00\x00\x09a", "unexpected EOF"),
        (b"weave\x01\x01", "EOF"),
        (b"weave\x01\x01\x0e", "unexpected EOF"),
        (b"weave\x01\x01\x0e\xff\x81\x04\x01\x02\xff\x82\x00\x01\x0c\x01\x0c\x00\x00", "unexpected EOF"),
    ] {
        assert_eq!(error_after(stream, without_password(true)), error, "{stream:?}");
    }
    let secret = HandshakeConfig { password: Secret::new("x"), ..HandshakeConfig::default() };
    let started = || Handshake::new(secret.clone(), [1; 32]);
    assert_eq!(error_after(b"weave\x01\x02\x01", started()), "EOF");
    assert_eq!(error_after(b"weave\x01\x02\x01k", started()), "unexpected EOF");
}

#[test]
fn different_passwords_fail_at_the_first_encrypted_message() {
    for version in [1, 2] {
        let config = |word: &str, outbound| HandshakeConfig {
            features: features(&vectors("handshakes")["transcripts"][0]["a_features_offered"]),
            password: Secret::new(word),
            max_protocol: version,
            outbound,
            ..HandshakeConfig::default()
        };
        let mut a = Handshake::new(config("right", true), [1; 32]);
        let mut b = Handshake::new(config("wrong", false), [2; 32]);
        let mut result = Ok(Progress::Header);
        for _ in 0..3 {
            let _ = b.handle_bytes(&a.poll_write().unwrap_or_default());
            if let Some(bytes) = b.poll_write() {
                result = a.handle_bytes(&bytes);
            }
        }
        let error = match result {
            // Protocol 1 sends its features unencrypted.
            Ok(Progress::Done(mut session)) if version == 1 => {
                let key = [9; 32];
                let mut sealed = Vec::new();
                Sealer::new(key, false).seal(b"\x00", &mut sealed);
                session.push(&[0x14, 0x0a, 0, 0x11]);
                session.push(&sealed);
                let error = session.next().unwrap_err();
                assert_eq!(session.next(), Err(error.clone()));
                error.to_string()
            }
            other => other.unwrap_err().to_string(),
        };
        assert_eq!(error, "Unable to decrypt TCP msg");
    }
}

#[test]
fn public_keys_of_low_order_are_refused() {
    for weak in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        assert_eq!(crypto::shared_key(&[5; 32], &weak), Err(WeakKey));
        let config = HandshakeConfig { password: Secret::new("x"), ..HandshakeConfig::default() };
        let mut stream = b"weave\x01\x02\x01".to_vec();
        stream.extend(weak);
        assert_eq!(error_after(&stream, Handshake::new(config, [5; 32])), WeakKey.to_string());
    }
}

#[test]
fn debug_does_not_show_secrets() {
    assert!(Secret::new("").is_none());
    let config = HandshakeConfig { password: Secret::new("hunter2"), ..HandshakeConfig::default() };
    assert!(format!("{config:?}").contains("<redacted>"));
    let handshake = Handshake::new(config, [0xab; 32]);
    let shown = format!("{handshake:?} {:?}", Sealer::new([0xab; 32], true));
    assert!(!shown.contains("hunter2") && !shown.contains("171"), "{shown}");
}

#[test]
fn size_and_kind_of_features_are_checked() {
    let mut stream = b"weave\x01\x02\x00".to_vec();
    stream.extend((MAX_FEATURES as u32 + 1).to_be_bytes());
    assert_eq!(
        error_after(&stream, without_password(false)),
        "incoming message exceeds maximum size: 65537 > 65536"
    );
    let stream = b"weave\x01\x01\xfd\x01\x00\x01";
    assert_eq!(
        error_after(stream, without_password(false)),
        "incoming message exceeds maximum size: 65537 > 65536"
    );
    // The features are not a map of strings.
    let mut stream = b"weave\x01\x02\x00\x00\x00\x00\x04".to_vec();
    stream.extend(b"\x03\x06\x00\x01");
    assert_eq!(error_after(&stream, without_password(false)), "gob: wrong type: wanted map, received uint");
    let stream = b"weave\x01\x02\x00\x00\x00\x00\x00";
    assert_eq!(error_after(stream, without_password(false)), "unexpected EOF");
}

#[test]
fn size_of_messages_is_limited() {
    for max_protocol in [1, 2] {
        let config = |outbound| HandshakeConfig { max_protocol, outbound, ..HandshakeConfig::default() };
        let (mut a, mut b) = (Handshake::new(config(true), [0; 32]), Handshake::new(config(false), [0; 32]));
        let mut done = None;
        for _ in 0..3 {
            if let Ok(Progress::Done(session)) = a.handle_bytes(&b.poll_write().unwrap_or_default()) {
                done = Some(session);
                break;
            }
            let _ = b.handle_bytes(&a.poll_write().unwrap_or_default());
        }
        let mut session = done.unwrap();
        let longest = vec![3; MAX_FRAME];
        let frame = session.seal(&longest).unwrap();
        session.push(&frame);
        assert!(session.next().unwrap().unwrap() == longest);
        let error = session.seal(&vec![3; MAX_FRAME + 1]).unwrap_err();
        assert_eq!(error.to_string(), "outgoing message exceeds maximum size: 10485761 > 10485760");
        // The length alone is refused.
        session.push(if max_protocol == 2 { &[0x00, 0xa0, 0, 1] } else { &[0xfc, 0x00, 0xa0, 0x00, 0x11] });
        assert!(matches!(session.next(), Err(SessionError::IncomingTooLarge { .. })));
    }
}

#[test]
fn session_keys_are_those_of_2_8_1() {
    for json in list(&vectors("encrypted_frames")["session_keys"]) {
        let (a, b) = (key(&json["a_private"]), key(&json["b_private"]));
        assert_eq!(crypto::public_key(&a), key(&json["a_public"]));
        assert_eq!(crypto::shared_key(&a, &key(&json["b_public"])), Ok(key(&json["box_precompute"])));
        let password = password(&json["password"]).unwrap();
        for (own, remote) in [(a, "b_public"), (b, "a_public")] {
            let session = crypto::session_key(&own, &key(&json[remote]), &password);
            assert_eq!(session, Ok(key(&json["session_key"])));
        }
    }
}

#[test]
fn features_are_checked_as_in_2_8_1() {
    let all = vectors("handshakes");
    let ours = Features {
        name: "02:42:ac:11:00:01".parse().unwrap(),
        nickname: String::new(),
        uid: weave_types::PeerUid(1),
        connection_id: 18374686479671623681,
        short_id: None,
        trusted: false,
        overlays: None,
    };
    for json in list(&all["feature_checks"]) {
        let map = features(&json["features"]);
        match (Features::from_map(&map), json["error"].as_str()) {
            (Err(error), Some(expected)) => assert_eq!(error.to_string(), expected, "{}", json["name"]),
            (Ok(features), None) => {
                let peer = &json["peer"];
                assert_eq!(features.name.to_string(), peer["name"]);
                assert_eq!(features.nickname, peer["nickname"]);
                assert_eq!(features.uid.0.to_string(), peer["uid"]);
                assert_eq!(features.short_id.is_some(), peer["has_short_id"]);
                assert_eq!(features.short_id.map_or(0, |id| id.get()), peer["short_id"]);
                assert_eq!(features.trusted, json["trusted_by_remote"]);
                let uid = text(&json["connection_uid_if_ours_is_18374686479671623681"]);
                assert_eq!(ours.connection_uid(&features).0.to_string(), uid);
                assert_eq!(Features::from_map(&features.to_map()), Ok(features));
            }
            (result, expected) => panic!("{}: {result:?}, expected {expected:?}", json["name"]),
        }
    }
    let full = features(&all["transcripts"][0]["a_features_offered"]);
    let parsed = Features::from_map(&full).unwrap();
    assert_eq!(parsed.overlays.as_deref(), Some(&["fastdp".to_owned(), "sleeve".to_owned()][..]));
    assert_eq!(parsed.to_map(), full);
    for (key, value) in [("UID", "0"), ("Name", "00:00:00:00:00:00")] {
        let mut map = full.clone();
        map.insert(key.into(), value.into());
        assert_eq!(Features::from_map(&map), Err(FeatureError::Reserved));
    }
    for (value, error) in [
        ("", "strconv.ParseUint: parsing \"\": invalid syntax"),
        ("+1", "strconv.ParseUint: parsing \"+1\": invalid syntax"),
        ("99999x", "strconv.ParseUint: parsing \"99999x\": value out of range"),
    ] {
        let mut map = full.clone();
        map.insert("ShortID".into(), value.into());
        assert_eq!(Features::from_map(&map).unwrap_err().to_string(), error);
    }
}

/// A connection between two complete routers of 2.8.1, read as its receiver does.
#[test]
fn recorded_session_is_read() {
    let json = vectors("session_v2_plain");
    for (direction, outbound) in [("a_to_b", false), ("b_to_a", true)] {
        let config = HandshakeConfig { outbound, ..HandshakeConfig::default() };
        let stream = bytes(&json[format!("{direction}_stream")]);
        let (_, messages, session) = feed(&mut Handshake::new(config, [0; 32]), &stream, &[11, 300, 2]);
        let decoded = list(&json["decoded"][direction]);
        let remote = decoded.iter().find_map(|item| item.get("features")).unwrap();
        assert_eq!(session.unwrap().remote_features, features(remote));
        let expected: Vec<&Json> = decoded.iter().filter(|item| item["message"].is_string()).collect();
        assert_eq!(messages.len(), expected.len());
        for (message, json) in messages.iter().zip(expected) {
            assert_eq!(hex::encode(message), text(&json["message"]));
            let (tag, body) = message.split_first().unwrap();
            let tag = Tag::from_byte(*tag).unwrap();
            assert_eq!(u64::from(tag.byte()), json["tag"].as_u64().unwrap());
            let envelope = Envelope::decode(body, tag == Tag::GossipUnicast).unwrap();
            assert_eq!(envelope.channel, text(&json["channel"]));
            assert_eq!(envelope.source.to_string(), text(&json["src"]));
            assert_eq!(hex::encode(envelope.payload), text(&json["payload"]));
            assert_eq!(envelope.encode(), body);
            if let Some(peers) = json["topology"].as_array() {
                let update = decode_update(envelope.payload).unwrap();
                let names: Vec<String> = update.records.iter().map(|peer| peer.name.to_string()).collect();
                assert_eq!(names, peers.iter().map(|peer| text(&peer["name"])).collect::<Vec<_>>());
            }
        }
    }
}

#[test]
fn features_are_written_as_go_does() {
    let one = BTreeMap::from([("Name".to_owned(), "A".to_owned())]);
    let expected = "0eff81040102ff8200010c010c00000bff820001044e616d650141";
    assert_eq!(hex::encode(encode_features(&one)), expected);
}
