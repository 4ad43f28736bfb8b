//! Envelopes and topology updates of 2.8.1, decoded and encoded again (docs/spec/mesh.md 7.1, 8, 16).

use proptest::prelude::*;
use serde_json::Value as Json;
use weave_gob::{DecodeError, FieldError, Kind};
use weave_mesh::envelope::{Envelope, EnvelopeError};
use weave_mesh::update::{PeerRecord, UpdateError, decode_update, encode_update};
use weave_mesh::{GossipAddress, PeerConnection};
use weave_types::{PeerName, PeerUid, ShortId};

use crate::support::{bytes, list, text, vectors};

fn name(json: &Json) -> PeerName {
    text(json).parse().unwrap()
}

fn record(json: &Json) -> PeerRecord {
    let short_id = json["short_id"].as_u64().unwrap() as u16;
    let connections = list(&json["connections"]).iter().map(|json| PeerConnection {
        peer: name(&json["name"]),
        address: GossipAddress::from_text(text(&json["remote_tcp_addr"])),
        outbound: json["outbound"].as_bool().unwrap(),
        established: json["established"].as_bool().unwrap(),
    });
    PeerRecord {
        name: name(&json["name"]),
        nickname: text(&json["nickname"]).into(),
        uid: PeerUid(text(&json["uid"]).parse().unwrap()),
        version: text(&json["version"]).parse().unwrap(),
        short_id: json["has_short_id"].as_bool().unwrap().then(|| ShortId::new(short_id).unwrap()),
        connections: connections.collect(),
    }
}

#[test]
fn envelopes_decode_and_encode_as_in_2_8_1() {
    let all = vectors("gossip_envelopes");
    for json in list(&all) {
        let body = bytes(&json["envelope"]);
        let unicast = json["kind"] == "unicast";
        let envelope = Envelope::decode(&body, unicast).unwrap();
        assert_eq!(envelope.channel, text(&json["channel"]));
        assert_eq!(envelope.source, name(&json["src"]));
        assert_eq!(envelope.destination, unicast.then(|| name(&json["dst"])));
        assert_eq!(hex::encode(envelope.payload), text(&json["payload"]));
        assert_eq!(envelope.encode(), body);
        // The other form and every prefix are refused.
        if unicast {
            assert!(Envelope::decode(&body, false).is_err());
        }
        for end in 0..body.len() {
            assert!(Envelope::decode(&body[..end], unicast).is_err());
        }
    }
    let wrong = Envelope::decode(b"\x03\x06\x00\x01", false);
    let kinds = FieldError::WrongKind { field: String::new(), wanted: Kind::String, found: Kind::Uint };
    assert_eq!(wrong, Err(EnvelopeError::Value(kinds)));
    let wide = Envelope::decode(
        b"\x03\x0c\x00\x00\x0a\x06\x00\xf9\x01\x00\x00\x00\x00\x00\x00\x03\x0a\x00\x00",
        false,
    );
    assert_eq!(wide, Err(EnvelopeError::BadName(1 << 48)));
}

#[test]
fn updates_decode_and_encode_as_in_2_8_1() {
    let (mut exact, mut refused) = (0, 0);
    for file in ["topology_updates", "topology_updates_high_type_ids"] {
        let json = vectors(file);
        let cases = ["go_written", "other_writers", "handmade"];
        for (group, json) in
            cases.iter().flat_map(|group| list(&json[group]).iter().map(move |j| (*group, j)))
        {
            let stream = bytes(&json["hex"]);
            let update = decode_update(&stream);
            if json["accepted"] == Json::Bool(false) {
                assert_eq!(update.unwrap_err().to_string(), text(&json["error"]), "{}", json["name"]);
                refused += 1;
                continue;
            }
            let update = update.unwrap_or_else(|error| panic!("{}: {error}", json["name"]));
            if json["name"] == "short_name_bytes" || json["peers"][0]["short_id"] == 65535 {
                // 2.8.1 accepts a name of two bytes and any u16; these records are dropped (docs/spec/mesh.md 15.6).
                assert_eq!((update.records.len(), update.dropped), (0, 1));
                continue;
            }
            let expected: Vec<PeerRecord> = list(&json["peers"]).iter().map(record).collect();
            assert_eq!(update.records, expected, "{}", json["name"]);
            assert_eq!(update.dropped, 0);
            let again = encode_update(&expected);
            assert_eq!(decode_update(&again).unwrap().records, expected);
            if group == "go_written" && file == "topology_updates" {
                assert_eq!(hex::encode(again), text(&json["hex"]), "{}", json["name"]);
                exact += 1;
            }
        }
    }
    assert!(exact > 10 && refused == 3, "{exact} {refused}");
}

fn peer(number: u64) -> PeerRecord {
    PeerRecord {
        name: PeerName::from_number(number).unwrap(),
        nickname: "n".into(),
        uid: PeerUid(7),
        version: 3,
        short_id: ShortId::new(9),
        connections: vec![PeerConnection {
            peer: PeerName::from_number(0xaabbcc).unwrap(),
            address: GossipAddress::from_text("1.2.3.4:5"),
            outbound: true,
            established: false,
        }],
    }
}

/// Encodes three peers, and replaces `from` by `to` in the bytes of the second one.
fn with_replaced_bytes(from: &str, to: &str) -> Vec<u8> {
    let all = hex::encode(encode_update(&[peer(1), peer(0x222222222222), peer(3)]));
    let at = all.find("222222222222").unwrap();
    let at = at + all[at..].find(from).unwrap();
    assert_eq!(from.len(), to.len());
    hex::decode([&all[..at], to, &all[at + from.len()..]].concat()).unwrap()
}

#[test]
fn invalid_records_are_dropped() {
    let all = [peer(1), peer(0x222222222222), peer(3)];
    assert_eq!(decode_update(&encode_update(&all)).unwrap().records, all);
    // A name of zero, and a connection to a name of zero.
    for (from, to) in [("222222222222", "000000000000"), ("000000aabbcc", "000000000000")] {
        let update = decode_update(&with_replaced_bytes(from, to)).unwrap();
        assert_eq!((update.records, update.dropped), (vec![peer(1), peer(3)], 1));
    }
    let mut without_uid = peer(2);
    without_uid.uid = PeerUid(0);
    let update = decode_update(&encode_update(&[without_uid.clone(), peer(3)])).unwrap();
    assert_eq!((update.records, update.dropped), (vec![peer(3)], 1));
    without_uid =
        PeerRecord { version: 0, short_id: None, connections: vec![], nickname: "".into(), ..without_uid };
    let update = decode_update(&encode_update(&[without_uid.clone()])).unwrap();
    assert_eq!((update.records, update.dropped), (vec![without_uid], 0));

    // Records larger than any real one.
    let long_nickname = PeerRecord { nickname: "x".repeat(1025).into(), ..peer(2) };
    let mut long_address = peer(2);
    long_address.connections[0].address = GossipAddress::from_text(&"1".repeat(101));
    let mut many_connections = peer(2);
    let one = many_connections.connections[0].clone();
    many_connections.connections.resize(16_385, one);
    for record in [long_nickname, long_address, many_connections] {
        let update = decode_update(&encode_update(&[record, peer(3)])).unwrap();
        assert_eq!((update.records, update.dropped), (vec![peer(3)], 1));
    }

    // Short ids: 4095 fits, 4096 is dropped, 65536 does not fit Go's type.
    let with = |id: &str| {
        let mut body = hex::decode(format!("ff82010600000000000a0207010101{id}010100")).unwrap();
        body.insert(0, body.len() as u8);
        let whole = encode_update(&[]);
        assert!(whole.is_empty());
        let sample = encode_update(&[PeerRecord { connections: vec![], ..peer(5) }]);
        let definitions = &sample[..0x63];
        let rest_at = sample.len() - 5 - (0x0e + 0x5c);
        decode_update(&[definitions, &body, &sample[rest_at..]].concat())
    };
    assert_eq!(with("fe0fff").unwrap().records[0].short_id, ShortId::new(4095));
    let update = with("fe1000").unwrap();
    assert_eq!((update.records.len(), update.dropped), (0, 1));
    assert_eq!(with("fd010000"), Err(UpdateError::Value(FieldError::OutOfRange { field: "ShortID".into() })));
}

#[test]
fn values_of_other_types_are_refused() {
    use weave_gob::{Encoder, Struct, Type, Value};
    let update = |ty: &Type, value: &Value| {
        let mut encoder = Encoder::new();
        encoder.value(ty, value);
        decode_update(&encoder.finish()).unwrap_err()
    };
    let fields = |name: &'static str, ty: Type, value: Value| {
        let ty = Type::structure("s", [(name, ty)]);
        update(&ty, &Value::Struct(Struct::new([(name, value)])))
    };
    assert_eq!(fields("Other", Type::Uint, Value::Uint(1)), UpdateError::Value(FieldError::NoFieldsMatched));
    let wrong = |field: &str, wanted, found| {
        UpdateError::Value(FieldError::WrongKind { field: field.into(), wanted, found })
    };
    assert_eq!(fields("UID", Type::Int, Value::Int(0)), wrong("UID", Kind::Uint, Kind::Int));
    assert_eq!(update(&Type::Uint, &Value::Uint(1)), wrong("", Kind::Struct, Kind::Uint));
    // A summary that is followed by a list of strings.
    let mut encoder = Encoder::new();
    let summary = Type::structure("s", [("UID", Type::Uint)]);
    encoder.value(&summary, &Value::Struct(Struct::new([("UID", Value::Uint(1))])));
    encoder.value(&Type::slice(Type::String), &Value::List(vec![]));
    assert_eq!(decode_update(&encoder.finish()), Err(wrong("", Kind::Struct, Kind::String)));
    assert_eq!(
        decode_update(&encode_update(&[peer(1)])[..0x63]),
        Err(UpdateError::Gob(DecodeError::UnexpectedEof))
    );
}

fn records() -> impl Strategy<Value = Vec<PeerRecord>> {
    let name = || (1u64..1 << 48).prop_map(|number| PeerName::from_number(number).unwrap());
    let connection = (name(), "[0-9.:]{0,22}", any::<bool>(), any::<bool>()).prop_map(
        |(peer, address, outbound, established)| PeerConnection {
            peer,
            address: GossipAddress::from_text(&address),
            outbound,
            established,
        },
    );
    let short_id = prop::option::of((0u16..4096).prop_map(|id| ShortId::new(id).unwrap()));
    let record = (name(), ".{0,12}", 1u64.., any::<u64>(), short_id, prop::collection::vec(connection, 0..5));
    let record = record.prop_map(|(name, nickname, uid, version, short_id, connections)| PeerRecord {
        name,
        nickname: nickname.into(),
        uid: PeerUid(uid),
        version,
        short_id,
        connections,
    });
    prop::collection::vec(record, 0..6)
}

proptest! {
    #[test]
    fn updates_round_trip(records in records()) {
        let update = decode_update(&encode_update(&records)).unwrap();
        prop_assert_eq!(update.records, records);
        prop_assert_eq!(update.dropped, 0);
    }

    #[test]
    fn envelopes_round_trip(
        channel in ".{0,20}",
        source in 0u64..1 << 48,
        destination in prop::option::of(0u64..1 << 48),
        payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let name = |number| PeerName::from_number(number).unwrap();
        let envelope = Envelope {
            channel: channel.into(),
            source: name(source),
            destination: destination.map(name),
            payload: &payload,
        };
        let body = envelope.encode();
        prop_assert_eq!(Envelope::decode(&body, destination.is_some()), Ok(envelope));
    }

    #[test]
    fn update_decoder_agrees_with_generic_decoder(
        records in records(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut stream = encode_update(&records);
        for (at, byte) in changes {
            if !stream.is_empty() {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
        }
        let mut decoder = weave_gob::Decoder::new(&stream);
        let mut values = 0;
        let generic = loop {
            match decoder.next() {
                Ok(Some(_)) => values += 1,
                Ok(None) => break Ok(values),
                Err(error) => break Err(error),
            }
        };
        match (decode_update(&stream), generic) {
            (Ok(update), Ok(values)) => prop_assert_eq!(update.records.len() + update.dropped, values / 2),
            (Err(UpdateError::Gob(direct)), Err(generic)) => prop_assert_eq!(direct, generic),
            // The update decoder may find a wrong kind before the generic decoder finds malformed bytes.
            (Err(UpdateError::Value(_)), _) => {}
            (direct, generic) => prop_assert!(false, "{:?} {:?}", direct, generic),
        }
    }
}
