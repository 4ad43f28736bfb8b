//! Answers from local names, compared with those of 2.8.1.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use domain::base::Message;
use domain::base::iana::{Opcode, Rcode, Rtype};
use domain::rdata::A;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_dns::{
    AnswerConfig, AnswerKind, ErrorCode, Names, Responder, Transport, Verdict, answer_with_error,
};
use weave_types::PeerName;

use crate::support::{bytes, host_name, query, recorded_names, vectors};

fn responder(seed: u64) -> Responder {
    let config = AnswerConfig { domain: host_name("weave.local"), ttl: 1 };
    Responder::new(config, ChaCha12Rng::seed_from_u64(seed))
}

fn addresses(answer: &[u8]) -> Vec<Ipv4Addr> {
    let message = Message::from_slice(answer).unwrap();
    let records = message.answer().unwrap().limit_to::<A>();
    records.map(|record| record.unwrap().data().addr()).collect()
}

fn rcode(answer: &[u8]) -> Rcode {
    Message::from_slice(answer).unwrap().header().rcode()
}

#[test]
fn answers_equal_the_vectors() {
    let names = recorded_names();
    let mut responder = responder(1);
    let (mut exact, mut forwarded) = (0, 0);
    for case in vectors("queries.json")["vectors"].as_array().unwrap() {
        let label = &case["name"];
        let transport = if case["net"] == "tcp" { Transport::Tcp } else { Transport::Udp };
        let (query, recorded) = (bytes(&case["query_hex"]), bytes(&case["response_hex"]));
        let mut out = Vec::new();
        let verdict = responder.answer(&query, &names, transport, &mut out);
        if !case["upstream_saw"].is_null() {
            assert_eq!(verdict, Verdict::Forward, "{label}");
            forwarded += 1;
        } else if recorded.is_empty() {
            assert_eq!(verdict, Verdict::Ignore, "{label}");
        } else if case["exact_bytes_expected"] == true {
            assert_eq!(hex::encode(&out), hex::encode(&recorded), "{label}");
            exact += 1;
        } else {
            // The order is random, and so is what was cut. Header, counts, question and length are not.
            assert_eq!(out.len(), recorded.len(), "{label}");
            assert_eq!(out[..12], recorded[..12], "{label}");
            let [ours, theirs] = [&out, &recorded].map(|answer| addresses(answer));
            let all: BTreeSet<_> = theirs.iter().collect();
            let cut = Message::from_slice(&out).unwrap().header().tc();
            assert_eq!(ours.len(), theirs.len(), "{label}");
            assert!(cut || ours.iter().all(|addr| all.contains(addr)), "{label}");
        }
    }
    assert!(exact >= 20 && forwarded >= 9, "{exact} exact, {forwarded} forwarded");
    let case = vectors("query_no_upstream.json");
    let (query, mut out) = (bytes(&case["query_hex"]), Vec::new());
    assert_eq!(responder.answer(&query, &names, Transport::Udp, &mut out), Verdict::Forward);
    assert!(answer_with_error(&query, ErrorCode::ServerFailure, &mut out));
    assert_eq!(hex::encode(out), case["response_hex"].as_str().unwrap());
}

/// Each address must come first, and each be left out, equally often.
#[test]
fn shuffle_is_uniform() {
    const RUNS: usize = 20_000;
    let (mut names, mut responder, mut out) = (Names::default(), responder(7), Vec::new());
    let peer = PeerName::from_number(1).unwrap();
    for n in 0..20 {
        names.insert(&host_name("x.weave.local"), peer, &"c".into(), Ipv4Addr::new(10, 32, 0, n));
    }
    // 16 of the 20 records fit: 15 + 14 bytes each in 512 - 12 - 19.
    let query = query(&[("x.weave.local", Rtype::A)], None);
    let (mut first, mut last, mut present) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for _ in 0..RUNS {
        let verdict = responder.answer(&query, &names, Transport::Udp, &mut out);
        assert_eq!(verdict, Verdict::Answer(AnswerKind::Addresses));
        let found = addresses(&out);
        assert_eq!(found.len(), 16);
        *first.entry(found[0]).or_insert(0) += 1;
        *last.entry(found[15]).or_insert(0) += 1;
        found.iter().for_each(|addr| *present.entry(*addr).or_insert(0) += 1);
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 16);
    }
    for (what, counts, expected) in
        [("first", first, RUNS / 20), ("last", last, RUNS / 20), ("present", present, RUNS / 20 * 16)]
    {
        assert_eq!(counts.len(), 20, "{what}");
        for count in counts.into_values() {
            // Five standard deviations of the former are 15 %.
            assert!(f64::from(count) / expected as f64 - 1.0 < 0.16, "{what}: {count} of {expected}");
            assert!(f64::from(count) / expected as f64 - 1.0 > -0.16, "{what}: {count} of {expected}");
        }
    }
}

#[test]
fn capital_letters_in_the_domain_make_no_difference() {
    let config = AnswerConfig { domain: host_name("Weave.Local"), ttl: 30 };
    let mut responder = Responder::new(config, ChaCha12Rng::seed_from_u64(1));
    let names = recorded_names();
    let mut out = Vec::new();
    for name in ["pingme.weave.local", "PINGME.WEAVE.LOCAL", "pingme"] {
        let verdict = responder.answer(&query(&[(name, Rtype::A)], None), &names, Transport::Udp, &mut out);
        assert_eq!(verdict, Verdict::Answer(AnswerKind::Addresses), "{name}");
        assert_eq!(addresses(&out), [Ipv4Addr::new(10, 32, 0, 2)], "{name}");
    }
}

#[test]
fn answers_over_udp_are_limited() {
    let mut names = Names::default();
    let peer = PeerName::from_number(1).unwrap();
    let (mut responder, mut out) = (responder(1), Vec::new());
    for n in 0..=u8::MAX {
        names.insert(&host_name("many.weave.local"), peer, &"c".into(), Ipv4Addr::new(10, 32, 0, n));
    }
    let long = format!("{0}.{0}.{0}.{1}.weave.local", "a".repeat(63), "a".repeat(49));
    names.insert(&host_name(&long), peer, &"c".into(), Ipv4Addr::new(10, 32, 1, 1));

    let offered = query(&[("many.weave.local", Rtype::A)], Some(65_000));
    responder.answer(&offered, &names, Transport::Udp, &mut out);
    assert!(out.len() <= 4096 && Message::from_slice(&out).unwrap().header().tc());
    responder.answer(&offered, &names, Transport::Tcp, &mut out);
    assert_eq!(addresses(&out).len(), 256);
    // Question and record of the longest name exceed 512 bytes.
    let longest = query(&[(&long, Rtype::A)], None);
    responder.answer(&longest, &names, Transport::Udp, &mut out);
    assert!(addresses(&out).is_empty() && Message::from_slice(&out).unwrap().header().tc());
    responder.answer(&longest, &names, Transport::Tcp, &mut out);
    assert_eq!(addresses(&out).len(), 1);
}

#[test]
fn long_single_label_has_no_address() {
    let config = AnswerConfig { domain: host_name(&format!("{0}.{0}.{0}", "d".repeat(63))), ttl: 1 };
    let mut responder = Responder::new(config, ChaCha12Rng::seed_from_u64(1));
    let mut out = Vec::new();
    let query = query(&[(&"a".repeat(63), Rtype::A)], None);
    let verdict = responder.answer(&query, &Names::default(), Transport::Udp, &mut out);
    assert_eq!(verdict, Verdict::Answer(AnswerKind::NoSuchName));
}

#[test]
fn what_is_no_ordinary_question_is_not_forwarded() {
    let (mut responder, mut out, names) = (responder(1), Vec::new(), Names::default());
    let mut refused = |query: &[u8]| {
        let verdict = responder.answer(query, &names, Transport::Tcp, &mut out);
        assert_eq!(verdict, Verdict::Answer(AnswerKind::Refused));
        rcode(&out)
    };
    assert_eq!(refused(&query(&[("example.com", Rtype::AXFR)], None)), Rcode::NOTIMP);
    let two = query(&[("example.com", Rtype::A), ("example.com", Rtype::AAAA)], None);
    assert_eq!(refused(&two), Rcode::FORMERR);
    let mut update = query(&[("example.com", Rtype::SOA)], None);
    update[2] = Opcode::UPDATE.to_int() << 3;
    assert_eq!(refused(&update), Rcode::NOTIMP);
    let mut cut = query(&[("example.com", Rtype::A)], Some(1232));
    cut.truncate(cut.len() - 1);
    assert_eq!(refused(&cut), Rcode::FORMERR);
}

/// The threads keep their buffers: answers must not allocate new ones.
#[test]
fn buffer_is_reused() {
    let (mut responder, mut out) = (responder(1), Vec::with_capacity(4096));
    let names = recorded_names();
    let start = out.as_ptr();
    for name in ["pingme.weave.local", "fifty.weave.local", "nosuch.weave.local", "example.com"] {
        responder.answer(&query(&[(name, Rtype::A)], Some(4096)), &names, Transport::Udp, &mut out);
        assert_eq!(out.as_ptr(), start, "{name}");
    }
}

#[test]
fn names_of_the_same_container_are_not_merged() {
    let mut names = Names::default();
    let peer = PeerName::from_number(1).unwrap();
    let addr = Ipv4Addr::new(10, 32, 0, 1);
    for container in ["c1", "c2"] {
        names.insert(&host_name("twice.weave.local"), peer, &Arc::from(container), addr);
    }
    let mut out = Vec::new();
    responder(1).answer(&query(&[("twice.weave.local", Rtype::A)], None), &names, Transport::Udp, &mut out);
    assert_eq!(addresses(&out), [addr, addr]);
}
