//! Helpers of the unit tests.

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use serde_json::Value;
use weave_types::{PeerName, PeerUid, ShortId};

use crate::peers::{GossipAddress, PeerConnection};
use crate::topology::{OwnPeer, Topology};
use crate::update::PeerRecord;

/// A file of `tests/vectors/mesh`.
pub(crate) fn vector(file: &str) -> Value {
    let path = format!("{}/../../tests/vectors/mesh/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect(&path)
}

pub(crate) fn array(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

pub(crate) fn name(value: &Value) -> PeerName {
    text(value).parse().unwrap()
}

pub(crate) fn names(value: &Value) -> Vec<PeerName> {
    array(value).iter().map(name).collect()
}

pub(crate) fn peer(n: u64) -> PeerName {
    PeerName::from_number(n).unwrap()
}

pub(crate) fn rng(seed: u64) -> ChaCha12Rng {
    ChaCha12Rng::seed_from_u64(seed)
}

pub(crate) fn topology(own: PeerName) -> Topology {
    Topology::new(OwnPeer {
        name: own,
        nickname: "self".into(),
        uid: PeerUid(5000),
        version: 0,
        short_id: ShortId::new(273).unwrap(),
    })
}

pub(crate) fn record(name: PeerName, connections: Vec<PeerConnection>) -> PeerRecord {
    PeerRecord { name, nickname: "".into(), uid: PeerUid(1), version: 1, short_id: None, connections }
}

pub(crate) fn connection(name: PeerName, established: bool) -> PeerConnection {
    let address = GossipAddress::from_text("10.0.0.1:6783");
    PeerConnection { peer: name, address, outbound: true, established }
}
