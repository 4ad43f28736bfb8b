//! Decodes the bytes that 2.8.1 wrote, and encodes them again where their order is defined (docs/spec/mesh.md 16).

use serde_json::Value as Json;
use weave_gob::{Encoder, FieldError, Kind, Limits, Struct, Type, Value};

use crate::fuzz_entry::decode_both_ways;
use crate::support::{bytes, list, vectors};

fn text<'j>(json: &'j Json, key: &str) -> &'j str {
    json[key].as_str().unwrap()
}

fn decode_all(stream: &[u8]) -> Vec<Value> {
    let (values, error) = decode_both_ways(stream, Limits::default(), 1);
    assert_eq!(error, None);
    values
}

fn decode_one(stream: &[u8]) -> Value {
    let mut values = decode_all(stream);
    assert_eq!(values.len(), 1);
    values.remove(0)
}

fn name(number: u64) -> String {
    let b = number.to_be_bytes();
    b[2..].iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

fn address(number: u32) -> String {
    std::net::Ipv4Addr::from(number).to_string()
}

#[test]
fn primitives_decode_and_encode_as_in_go() {
    let all = vectors("mesh/gob_values.json");
    let check = |json: &Json, ty: &Type, value: Value| {
        let stream = bytes(&json["top_level"]);
        assert_eq!(decode_one(&stream), value);
        let mut encoder = Encoder::new();
        encoder.value(ty, &value);
        assert_eq!(hex::encode(encoder.finish()), text(json, "top_level"));
    };
    for json in list(&all["uint"]) {
        let value = text(json, "value").parse().unwrap();
        check(json, &Type::Uint, Value::Uint(value));
        let mut bare = Vec::new();
        weave_gob::put_uint(&mut bare, value);
        assert_eq!(hex::encode(bare), text(json, "bare"));
    }
    for json in list(&all["int"]) {
        let value = text(json, "value").parse().unwrap();
        check(json, &Type::Int, Value::Int(value));
        let mut bare = Vec::new();
        weave_gob::put_int(&mut bare, value);
        assert_eq!(hex::encode(bare), text(json, "bare"));
    }
    for json in list(&all["string"]) {
        check(json, &Type::String, Value::String(text(json, "value").to_owned()));
    }
    for json in list(&all["bytes"]) {
        check(json, &Type::Bytes, Value::Bytes(bytes(&json["value"])));
    }
    for json in list(&all["bool"]) {
        check(json, &Type::Bool, Value::Bool(json["value"].as_bool().unwrap()));
    }
    for json in list(&all["float64"]) {
        check(json, &Type::Float, Value::Float(json["value"].as_f64().unwrap()));
    }
}

/// Compares a value with Go's JSON encoding of it, in which absent fields are zero and bytes are base64.
fn same(value: Option<&Value>, json: &Json) -> bool {
    match (value, json) {
        (None, Json::Null) => true,
        (None, Json::String(s)) => s.is_empty(),
        (None, Json::Number(n)) => n.as_i64() == Some(0),
        (None, Json::Array(a)) => a.is_empty(),
        (None, _) => false,
        (Some(Value::Uint(v)), _) => json.as_u64() == Some(*v),
        (Some(Value::Int(v)), _) => json.as_i64() == Some(*v),
        (Some(Value::String(v)), _) => json.as_str() == Some(v),
        (Some(Value::Bytes(v)), _) => v == &[1] && json == "AQ==",
        (Some(Value::List(v)), Json::Array(a)) => {
            v.len() == a.len() && v.iter().zip(a).all(|(v, j)| same(Some(v), j))
        }
        (Some(Value::Map(v)), Json::Object(o)) => {
            v.len() == o.len()
                && v.iter().all(|(k, v)| {
                    let key = match k {
                        Value::String(s) => s.clone(),
                        Value::Uint(n) => n.to_string(),
                        _ => return false,
                    };
                    o.get(&key).is_some_and(|j| same(Some(v), j))
                })
        }
        (Some(Value::Struct(v)), Json::Object(o)) => o.iter().all(|(name, j)| same(v.get(name), j)),
        _ => false,
    }
}

#[test]
fn composite_values_decode_as_in_go() {
    let all = vectors("mesh/gob_values.json");
    for json in list(&all["composite"]) {
        let value = decode_one(&bytes(&json["hex"]));
        match &json["value"] {
            Json::Null => {}
            expected => assert!(same(Some(&value), expected), "{}: {value:?}", json["name"]),
        }
    }
    let find = |name: &str| {
        let json = list(&all["composite"]).iter().find(|json| json["name"] == name).unwrap();
        decode_one(&bytes(&json["hex"]))
    };
    // Zero structs and arrays are sent, unlike other zero values.
    let zeros = find("nested_zero_structs_are_sent");
    let zeros = zeros.as_struct().unwrap();
    let promise = zeros.nested("Promise").unwrap().unwrap();
    assert_eq!(promise.uint::<u64>("Round"), Ok(0));
    assert_eq!(promise.nested("Proposer").unwrap().unwrap().uint::<u64>("UID"), Ok(0));
    assert_eq!(zeros.nested("Val").unwrap().unwrap().map("Value"), Ok(None));
    let array = find("struct_zero_array_is_sent");
    assert_eq!(array.as_struct().unwrap().list("A").unwrap(), [Value::Int(0), Value::Int(0)]);
    let set = find("map_to_empty_struct");
    let [(Value::Uint(300), Value::Struct(empty))] = set.as_map().unwrap() else { panic!("{set:?}") };
    assert!(empty.shape().fields.is_empty() && empty.require_any(&["X"]).is_ok());
    let keyed = find("map_struct_key");
    let (key, claim) = &keyed.as_map().unwrap()[0];
    assert_eq!(key.as_struct().unwrap().uint::<u64>("UID"), Ok(2));
    assert_eq!(claim.as_struct().unwrap().nested("Promise").unwrap().unwrap().uint::<u64>("Round"), Ok(1));
    let embedded = find("embedded_slice_is_a_field_named_after_its_type");
    let embedded = embedded.as_struct().unwrap();
    assert_eq!(embedded.list("Entries").unwrap()[0].as_struct().unwrap().uint::<u8>("UID"), Ok(2));
}

#[test]
fn kinds_and_ranges_are_checked_like_go_does() {
    let value = decode_one(
        &hex::decode(concat!(
            "26ff91030102ff92000104010141010400010142010c0001014d01ff940001015301ff84000000",
            "1eff930401010e6d61705b737472696e675d696e7401ff9400010c010400000cff83020102ff8400010c0000",
            "05ff92030000"
        ))
        .unwrap(),
    );
    let value = value.as_struct().unwrap();
    assert_eq!(value.map("M"), Ok(Some(&[][..])));
    // An absent field is zero, but its declared kind still has to match.
    assert_eq!(
        value.uint::<u64>("A"),
        Err(FieldError::WrongKind { field: "A".into(), wanted: Kind::Uint, found: Kind::Int })
    );
    assert_eq!(value.int::<i64>("A"), Ok(0));
    assert!(value.map("S").is_err() && value.list("M").is_err() && value.bytes("B").is_err());
    assert_eq!(value.list("Unknown"), Ok(&[][..]));
    assert_eq!(value.require_any(&["X", "Y"]), Err(FieldError::NoFieldsMatched));
    assert_eq!(value.require_any(&["X", "S"]), Ok(()));
    let wide = Struct::new([("N", Value::Uint(65536)), ("I", Value::Int(-129))]);
    assert_eq!(wide.uint::<u16>("N"), Err(FieldError::OutOfRange { field: "N".into() }));
    assert_eq!(wide.uint::<u32>("N"), Ok(65536));
    assert!(wide.int::<i8>("I").is_err());
    assert_eq!(wide.uint::<u16>("N").unwrap_err().to_string(), "value for \"N\" out of range");
}

#[test]
fn definitions_are_written_as_in_go() {
    let definitions = |ty: &Type, value: Value| {
        let mut encoder = Encoder::new();
        encoder.value(ty, &value);
        hex::encode(encoder.finish())
    };
    let map = Type::map(Type::String, Type::String);
    assert_eq!(definitions(&map, Value::Map(vec![])), "0eff81040102ff8200010c010c000004ff820000");
    let slice = Type::slice(Type::String);
    assert_eq!(definitions(&slice, Value::List(vec![])), "0cff81020102ff8200010c000004ff820000");

    let peer = Type::structure(
        "peerSummary",
        [
            ("NameByte", Type::Bytes),
            ("NickName", Type::String),
            ("UID", Type::Uint),
            ("Version", Type::Uint),
            ("ShortID", Type::Uint),
            ("HasShortID", Type::Bool),
        ],
    );
    let connections = Type::slice(Type::structure(
        "connectionSummary",
        [
            ("NameByte", Type::Bytes),
            ("RemoteTCPAddr", Type::String),
            ("Outbound", Type::Bool),
            ("Established", Type::Bool),
        ],
    ));
    // Every update that Go wrote is encoded to the same bytes.
    let mut written = 0;
    for json in list(&vectors("mesh/topology_updates.json")["go_written"]) {
        let stream = bytes(&json["hex"]);
        let mut encoder = Encoder::new();
        for value in decode_all(&stream) {
            encoder.value(if value.kind() == Kind::Struct { &peer } else { &connections }, &value);
        }
        assert_eq!(hex::encode(encoder.take()), text(json, "hex"), "{}", json["name"]);
        assert!(encoder.finish().is_empty());
        written += 1;
    }
    assert!(written > 10);
}

#[test]
fn topology_updates_decode_or_fail_as_in_go() {
    for file in ["mesh/topology_updates.json", "mesh/topology_updates_high_type_ids.json"] {
        let file = vectors(file);
        let cases = ["go_written", "other_writers", "handmade"];
        for json in cases.iter().flat_map(|key| list(&file[key])) {
            let stream = bytes(&json["hex"]);
            if json["accepted"] == Json::Bool(false) {
                let (_, error) = decode_both_ways(&stream, Limits::default(), 1);
                let error = error.unwrap_or_else(|| panic!("{} is accepted", json["name"]));
                assert_eq!(error.to_string(), text(json, "error"));
                continue;
            }
            let values = decode_all(&stream);
            for (pair, json) in values.chunks_exact(2).zip(list(&json["peers"])) {
                let peer = pair[0].as_struct().unwrap();
                assert_eq!(peer.string("NickName"), Ok(text(json, "nickname")));
                assert_eq!(peer.uint::<u64>("UID").unwrap().to_string(), text(json, "uid"));
                assert_eq!(peer.uint::<u64>("Version").unwrap().to_string(), text(json, "version"));
                assert_eq!(peer.bool("HasShortID").unwrap(), json["has_short_id"]);
                assert_eq!(pair[1].as_list().unwrap().len(), list(&json["connections"]).len());
            }
        }
    }
}

#[test]
fn fields_of_unknown_kinds_are_decoded() {
    let file = vectors("mesh/topology_updates.json");
    let json = list(&file["other_writers"]).iter().find(|j| j["name"] == "future_peer_with_unknown_fields");
    let values = decode_all(&bytes(&json.unwrap()["hex"]));
    let future = values[0].as_struct().unwrap();
    assert_eq!(future.get("Cplx"), Some(&Value::Complex(1.0, -2.0)));
    assert_eq!(future.get("Iface"), Some(&Value::Interface("string".into())));
    assert_eq!(future.int::<i32>("Signed"), Ok(-129));
    assert_eq!(future.list("Arr").unwrap(), [1, 0, 300].map(Value::Uint));
    assert_eq!(future.uint::<u16>("ShortID"), Ok(2748));
}

#[test]
fn dns_gossip_decodes_and_encodes() {
    let one = vectors("dns/gossip_gob_other_ids.json");
    let all = vectors("dns/gossip_gob.json");
    let entry = Type::structure(
        "Entry",
        [
            ("ContainerID", Type::String),
            ("Origin", Type::Uint),
            ("Addr", Type::Uint),
            ("Hostname", Type::String),
            ("Version", Type::Int),
            ("Tombstone", Type::Int),
        ],
    );
    let entries = Type::Slice { name: "Entries".into(), elem: Box::new(entry) };
    let ty = Type::structure("GossipData", [("Timestamp", Type::Int), ("Entries", entries)]);
    for (json, expected) in list(&all["vectors"])
        .iter()
        .map(|json| (json, &json["entries_after_decode_order"]))
        .chain([(&one, &one["entries"])])
    {
        // 2.8.1 sorts the entries after decoding.
        let sort = |mut entries: Vec<[String; 6]>| {
            entries.sort();
            entries
        };
        let value = decode_one(&bytes(&json["hex"]));
        let data = value.as_struct().unwrap();
        assert_eq!(data.int::<i64>("Timestamp").unwrap(), json["timestamp"].as_i64().unwrap());
        let entries = data.list("Entries").unwrap().iter().map(|entry| {
            let entry = entry.as_struct().unwrap();
            [
                entry.string("ContainerID").unwrap().to_owned(),
                name(entry.uint("Origin").unwrap()),
                address(entry.uint("Addr").unwrap()),
                entry.string("Hostname").unwrap().to_owned(),
                entry.int::<i64>("Version").unwrap().to_string(),
                entry.int::<i64>("Tombstone").unwrap().to_string(),
            ]
        });
        let expected = list(expected).iter().map(|json| {
            [
                text(json, "container_id").to_owned(),
                text(json, "origin").to_owned(),
                text(json, "addr").to_owned(),
                text(json, "hostname").to_owned(),
                json["version"].to_string(),
                json["tombstone"].to_string(),
            ]
        });
        assert_eq!(sort(entries.collect()), sort(expected.collect()));
        let mut encoder = Encoder::new();
        encoder.value(&ty, &value);
        let again = encoder.finish();
        assert_eq!(decode_one(&again), value);
        if !std::ptr::eq(json, &one) {
            assert_eq!(hex::encode(again), text(json, "hex"));
        }
    }
}

fn check_ring(ring: &Struct, json: &Json) {
    assert_eq!(address(ring.uint("Start").unwrap()), text(json, "start"));
    assert_eq!(address(ring.uint("End").unwrap()), text(json, "end"));
    assert_eq!(name(ring.uint("Peer").unwrap()), text(json, "peer"));
    let entries = ring.list("Entries").unwrap();
    assert_eq!(entries.len(), list(&json["entries"]).len());
    for (entry, json) in entries.iter().zip(list(&json["entries"])) {
        let entry = entry.as_struct().unwrap();
        assert_eq!(address(entry.uint("Token").unwrap()), text(json, "token"));
        assert_eq!(name(entry.uint("Peer").unwrap()), text(json, "peer"));
        assert_eq!(entry.uint::<u32>("Version").unwrap(), json["version"]);
        assert_eq!(entry.uint::<u32>("Free").unwrap(), json["free"]);
    }
    let seeds: Vec<String> =
        ring.list("Seeds").unwrap().iter().map(|seed| name(seed.as_uint().unwrap())).collect();
    assert_eq!(seeds, list(&json["seeds"]).iter().map(|s| s.as_str().unwrap()).collect::<Vec<_>>());
}

fn check_ipam_gossip(stream: &[u8], json: &Json) {
    let value = decode_one(stream);
    let state = value.as_struct().unwrap();
    assert_eq!(state.int::<i64>("Now").unwrap(), json["now"]);
    let nicknames = state.map("Nicknames").unwrap().unwrap_or_default();
    assert_eq!(nicknames.len(), json["nicknames"].as_object().unwrap().len());
    for (peer, nickname) in nicknames {
        assert_eq!(json["nicknames"][name(peer.as_uint().unwrap())], nickname.as_str().unwrap());
    }
    match state.nested("Ring").unwrap() {
        None => assert!(json["ring"].is_null()),
        Some(ring) => check_ring(ring, &json["ring"]),
    }
    let claims = state.map("Paxos").unwrap();
    assert_eq!(claims.is_some(), json["paxos"].is_array());
    let claims = claims.unwrap_or_default();
    assert_eq!(claims.len(), list(&json["paxos"]).len());
    for (node, claim) in claims {
        let node = node.as_struct().unwrap();
        let claim = claim.as_struct().unwrap();
        let uid = node.uint::<u64>("UID").unwrap().to_string();
        let json = list(&json["paxos"]).iter().find(|json| json["node"]["uid"] == *uid).unwrap();
        for (field, key) in [("Promise", "promise"), ("Accepted", "accepted")] {
            // Encodings written by hand leave out zero structs.
            let round = claim.nested(field).unwrap().map_or(Ok(0), |id| id.uint::<u32>("Round"));
            assert_eq!(round.unwrap(), json[key]["round"]);
        }
        let accepted = claim.nested("AcceptedVal").unwrap();
        let value = accepted.and_then(|v| v.get("Value")).map_or(&[][..], |v| v.as_list().unwrap());
        assert_eq!(value.len(), list(&json["accepted_val"]["value_sorted"]).len());
    }
}

#[test]
fn ipam_gossip_decodes() {
    let mut seen = 0;
    for (file, key) in
        [("minimal_encodings", "cases"), ("ring_gossip", "cases"), ("paxos_gossip", "messages")]
    {
        for json in list(&vectors(&format!("ipam/{file}.json"))[key]) {
            if json["hex"].is_string() && json["decoded"].is_object() && json["decoded"]["now"].is_number() {
                check_ipam_gossip(&bytes(&json["hex"]), &json["decoded"]);
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn ipam_database_and_unicasts_decode() {
    let entry = Type::structure(
        "",
        [("Token", Type::Uint), ("Peer", Type::Uint), ("Version", Type::Uint), ("Free", Type::Uint)],
    );
    let entries = Type::Slice { name: "entries".into(), elem: Box::new(entry) };
    let seeds = Type::Slice { name: "[]mesh.PeerName".into(), elem: Box::new(Type::Uint) };
    let ring = Type::structure(
        "Ring",
        [
            ("Start", Type::Uint),
            ("End", Type::Uint),
            ("Peer", Type::Uint),
            ("Entries", entries),
            ("Seeds", seeds),
        ],
    );
    for json in list(&vectors("ipam/persistence.json")["keys"]) {
        if !json["hex"].is_string() {
            continue;
        }
        let value = decode_one(&bytes(&json["hex"]));
        let mut encoder = Encoder::new();
        match text(json, "key") {
            "peername" => {
                assert_eq!(name(value.as_uint().unwrap()), json["decoded"]);
                encoder.value(&Type::Uint, &value);
            }
            "ring" => {
                check_ring(value.as_struct().unwrap(), &json["decoded"]);
                encoder.value(&ring, &value);
            }
            _ => continue,
        }
        assert_eq!(hex::encode(encoder.finish()), text(json, "hex"));
    }
    for json in list(&vectors("ipam/unicast.json")["cases"]) {
        let Some(hex) = json["hex"].as_str() else { continue };
        let stream = hex::decode(&hex[2..]).unwrap();
        if !json["start"].is_string() {
            decode_all(&stream);
            continue;
        }
        let value = decode_one(&stream);
        let range = value.as_struct().unwrap();
        assert_eq!(address(range.uint("Start").unwrap()), text(json, "start"));
        assert_eq!(address(range.uint("End").unwrap()), text(json, "end_exclusive"));
    }
}
