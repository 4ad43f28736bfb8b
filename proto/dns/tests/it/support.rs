//! Vectors and messages.

use std::net::Ipv4Addr;
use std::sync::Arc;

use domain::base::iana::{Class, Rtype};
use domain::base::name::Name;
use domain::base::{MessageBuilder, Question};
use serde_json::Value;
use weave_dns::{HostName, Names};
use weave_types::PeerName;

pub(crate) fn vectors(file: &str) -> Value {
    let path = format!("{}/../../tests/vectors/dns/{file}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap()
}

pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

pub(crate) fn host_name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

/// The names of `queries.json`.
pub(crate) fn recorded_names() -> Names {
    let mut names = Names::default();
    for entry in vectors("queries.json")["entries"].as_array().unwrap() {
        if entry["tombstone"] == 0 {
            let text = |key: &str| entry[key].as_str().unwrap();
            let origin: PeerName = text("origin").parse().unwrap();
            let addr: Ipv4Addr = text("addr").parse().unwrap();
            names.insert(&host_name(text("hostname")), origin, &Arc::from(text("container_id")), addr);
        }
    }
    names
}

/// A query with a question for each of the names, and an OPT record if `edns` is given.
pub(crate) fn query(questions: &[(&str, Rtype)], edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    for (name, rtype) in questions {
        let name: Name<Vec<u8>> = name.parse().unwrap();
        builder.push(Question::new(name, *rtype, Class::IN)).unwrap();
    }
    let mut builder = builder.additional();
    if let Some(size) = edns {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}
