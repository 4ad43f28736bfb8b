//! Vectors and messages.

use std::net::Ipv4Addr;
use std::sync::Arc;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::name::Name;
use domain::base::record::Ttl;
use domain::base::{Header, Message, MessageBuilder, Question, Serial};
use domain::rdata::{A, Soa};
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
    query_with(questions, edns, |_| {})
}

/// The same with other flags.
pub(crate) fn query_with(
    questions: &[(&str, Rtype)],
    edns: Option<u16>,
    change: impl FnOnce(&mut Header),
) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    change(builder.header_mut());
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

/// What a server answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    rcode: Rcode,
    ttl: u32,
    addrs: Vec<Ipv4Addr>,
    /// TTL and minimum of a SOA record.
    soa: Option<(u32, u32)>,
    truncated: bool,
    authoritative: bool,
}

impl Reply {
    pub(crate) fn error(rcode: Rcode) -> Reply {
        Reply { rcode, ttl: 0, addrs: Vec::new(), soa: None, truncated: false, authoritative: false }
    }

    pub(crate) fn addresses(ttl: u32, count: u8) -> Reply {
        let addrs = (0..count).map(|n| Ipv4Addr::new(192, 0, 2, n)).collect();
        Reply { ttl, addrs, ..Reply::error(Rcode::NOERROR) }
    }

    pub(crate) fn address(ttl: u32) -> Reply {
        Reply::addresses(ttl, 1)
    }

    pub(crate) fn with_address(ttl: u32, addr: Ipv4Addr) -> Reply {
        Reply { addrs: vec![addr], ..Reply::address(ttl) }
    }

    pub(crate) fn soa(self, ttl: u32, minimum: u32) -> Reply {
        Reply { soa: Some((ttl, minimum)), ..self }
    }

    pub(crate) fn truncated(self) -> Reply {
        Reply { truncated: true, ..self }
    }

    pub(crate) fn authoritative(self) -> Reply {
        Reply { authoritative: true, ..self }
    }
}

/// The answer of a server to a query.
pub(crate) fn answer_to(query: &[u8], reply: Reply) -> Vec<u8> {
    let query = Message::from_slice(query).unwrap();
    let question = query.first_question().unwrap();
    let mut builder = MessageBuilder::new_vec();
    let header = builder.header_mut();
    *header = query.header();
    header.set_qr(true);
    header.set_ra(true);
    header.set_aa(reply.authoritative);
    header.set_tc(reply.truncated);
    header.set_rcode(reply.rcode);
    let mut builder = builder.question();
    builder.push(question).unwrap();
    let mut builder = builder.answer();
    for addr in reply.addrs {
        builder.push((question.qname(), Class::IN, Ttl::from_secs(reply.ttl), A::new(addr))).unwrap();
    }
    let mut builder = builder.authority();
    if let Some((ttl, minimum)) = reply.soa {
        let name = || "example.com".parse::<Name<Vec<u8>>>().unwrap();
        let seconds = Ttl::from_secs(minimum);
        let soa = Soa::new(name(), name(), Serial(1), seconds, seconds, seconds, seconds);
        builder.push((name(), Class::IN, Ttl::from_secs(ttl), soa)).unwrap();
    }
    builder.finish()
}
