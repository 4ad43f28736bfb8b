//! Test vectors and their conversion to our types.

pub(crate) mod peer;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use serde_json::Value;
use weave_ipam::message::StateMessage;
use weave_ipam::paxos::{AcceptedValue, ElectorId, ElectorState, Knowledge, ProposalId};
use weave_ipam::{AddrRange, Entry, Record, Ring};
use weave_types::{PeerName, PeerUid};

pub(crate) fn path(file: &str) -> String {
    format!("{}/../../tests/vectors/ipam/{file}", env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn vectors(file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(file)).unwrap()).unwrap()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

pub(crate) fn list(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        other => other.as_array().unwrap(),
    }
}

pub(crate) fn name(value: &Value) -> PeerName {
    // The vectors print the unknown peer as an empty text.
    if text(value).is_empty() {
        return PeerName::UNKNOWN;
    }
    text(value).parse().unwrap()
}

pub(crate) fn number(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.parse().unwrap(),
        other => other.as_u64().unwrap_or_else(|| panic!("no number: {other}")),
    }
}

pub(crate) fn addr(value: &Value) -> u32 {
    text(value).parse::<Ipv4Addr>().unwrap().into()
}

pub(crate) fn range(value: &Value) -> AddrRange {
    AddrRange::new(addr(&value["start"]), addr(&value["end_exclusive"]))
}

pub(crate) fn entry(value: &Value) -> Entry {
    Entry {
        token: addr(&value["token"]),
        peer: name(&value["peer"]),
        version: number(&value["version"]) as u32,
        free: number(&value["free"]) as u32,
    }
}

pub(crate) fn ring(value: &Value) -> Ring {
    Ring::from_parts(
        AddrRange::new(addr(&value["start"]), addr(&value["end"])),
        name(&value["peer"]),
        list(&value["entries"]).iter().map(entry).collect(),
        list(&value["seeds"]).iter().map(name).collect(),
    )
}

pub(crate) fn records(value: &Value) -> BTreeMap<String, Record> {
    let pairs = value.as_object().unwrap().iter();
    pairs
        .map(|(id, record)| {
            let cidrs = list(&record["cidrs"]).iter().map(|c| text(c).parse().unwrap()).collect();
            (id.clone(), Record { is_container: record["is_container"].as_bool().unwrap(), cidrs })
        })
        .collect()
}

fn node(value: &Value) -> ElectorId {
    ElectorId { name: name(&value["name"]), uid: PeerUid(number(&value["uid"])) }
}

fn proposal(value: &Value) -> ProposalId {
    ProposalId { round: number(&value["round"]), proposer: node(&value["proposer"]) }
}

pub(crate) fn claims(value: &Value) -> (ElectorId, ElectorState) {
    let accepted = &value["accepted_val"];
    let claims = ElectorState {
        promise: proposal(&value["promise"]),
        accepted: proposal(&value["accepted"]),
        value: AcceptedValue {
            value: list(&accepted["value_sorted"]).iter().map(name).collect(),
            origin: proposal(&accepted["origin"]),
        },
    };
    (node(&value["node"]), claims)
}

pub(crate) fn knowledge(value: &Value) -> Knowledge {
    list(value).iter().map(claims).collect()
}

pub(crate) fn state(value: &Value) -> StateMessage {
    let nicknames = value["nicknames"].as_object().unwrap().iter();
    StateMessage {
        now: value["now"].as_i64().unwrap(),
        nicknames: nicknames.map(|(peer, nick)| (peer.parse().unwrap(), text(nick).to_owned())).collect(),
        paxos: if value["paxos"].is_null() { None } else { Some(knowledge(&value["paxos"])) },
        ring: if value["ring"].is_null() { None } else { Some(ring(&value["ring"])) },
        range: None,
    }
}
