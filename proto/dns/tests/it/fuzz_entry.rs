//! Handles arbitrary messages. The fuzz targets and the tests that replay their corpora share this module.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use domain::base::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_dns::message::Message as Gossip;
use weave_dns::{
    AnswerConfig, Entry, ErrorCode, Forwarder, ForwarderConfig, ForwarderOutput, HostName, Names, Registry,
    RegistryConfig, RegistryOutput, Responder, TOMBSTONE_LIFETIME, Transport, Verdict, answer_with_error,
};
use weave_types::{Instant, Now, PeerName};

/// Any bytes as a query to local names. An answer has the id of the query, is well-formed and no longer than what the client
/// accepts.
pub(crate) fn query(data: &[u8]) {
    let name = |text| HostName::parse(text).expect("a valid name");
    let mut names = Names::default();
    let peer = PeerName::from_number(1).expect("a valid name");
    let container: Arc<str> = "c1".into();
    names.insert(&name("pingme.weave.local"), peer, &container, Ipv4Addr::new(10, 32, 0, 2));
    for n in 0..200 {
        names.insert(&name("fifty.weave.local"), peer, &container, Ipv4Addr::new(10, 32, 9, n));
    }
    let config = AnswerConfig { domain: name("weave.local"), ttl: 1 };
    let mut responder = Responder::new(config, ChaCha12Rng::seed_from_u64(1));
    let mut out = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        match responder.answer(data, &names, transport, &mut out) {
            Verdict::Ignore => {}
            Verdict::Answer(_) => check_answer(data, &out, transport),
            Verdict::Forward => {
                assert!(answer_with_error(data, ErrorCode::Refused, &mut out));
                check_answer(data, &out, transport);
                assert!(out.len() <= data.len(), "an error is never longer than its query");
            }
        }
    }
}

fn check_answer(query: &[u8], answer: &[u8], transport: Transport) {
    assert_eq!(query[..2], answer[..2]);
    let message = Message::from_slice(answer).expect("a message");
    assert!(message.header().qr());
    let (mut questions, answers, authority, additional) = message.sections().expect("whole sections");
    assert!(questions.all(|question| question.is_ok()));
    assert!(answers.chain(authority).chain(additional).all(|record| record.is_ok()));
    let edns =
        Message::from_slice(query).ok().and_then(|query| query.opt()).map(|opt| opt.udp_payload_size());
    let limit = match transport {
        Transport::Udp => usize::from(edns.unwrap_or(512).clamp(512, 4096)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(answer.len() <= limit, "{} bytes for a limit of {limit}", answer.len());
}

/// A sequence of queries of clients, messages of servers and time. Each step has three bytes (what, for whom, length) and a
/// message. What a server sends gets the id of its exchange, so that its content is looked at. Every query has one reply at most,
/// and in the end each has one.
pub(crate) fn answers(mut data: &[u8]) {
    let config = ForwarderConfig {
        max_waiting: 8,
        max_waiting_per_client: 4,
        cache_bytes: 32 << 10,
        ..Default::default()
    };
    let mut forwarder = Forwarder::new(config, [1; 32]);
    forwarder.set_servers(vec![([10, 0, 0, 1], 53).into(), ([10, 0, 0, 2], 53).into()]);
    let mut now = Instant::ORIGIN;
    let mut queries: Vec<(Transport, &[u8])> = Vec::new();
    let mut replied = Vec::new();
    let mut exchanges = BTreeMap::new();
    while let Some((&[what, whom, len], rest)) = data.split_first_chunk::<3>() {
        let (message, rest) = rest.split_at(usize::from(len).min(rest.len()));
        data = rest;
        let transport = if what & 8 == 0 { Transport::Udp } else { Transport::Tcp };
        match what % 4 {
            0 => {
                let from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, whom % 4));
                forwarder.handle_query(queries.len(), from, transport, message, now);
                queries.push((transport, message));
            }
            1 => {
                let open = exchanges.len().max(1);
                if let Some((exchange, query)) = exchanges.iter().nth(usize::from(whom) % open) {
                    let query: &Vec<u8> = query;
                    let mut message = message.to_vec();
                    if message.len() >= 2 && what & 16 == 0 {
                        message[..2].copy_from_slice(&query[..2]);
                    }
                    forwarder.handle_answer(*exchange, &message, now);
                }
            }
            2 => {
                now += Duration::from_millis(u64::from(whom) * 100);
                forwarder.handle_timeout(now);
            }
            _ => {
                let open = exchanges.len().max(1);
                if let Some(exchange) = exchanges.keys().nth(usize::from(whom) % open).copied() {
                    forwarder.handle_failure(exchange, now);
                }
            }
        }
        drain(&mut forwarder, &queries, &mut replied, &mut exchanges);
        assert!(forwarder.waiting() <= 8 && exchanges.len() <= 8);
        assert!(forwarder.cache_bytes() <= 32 << 10);
    }
    while let Some((at, _)) = forwarder.poll_timeout() {
        now = at;
        forwarder.handle_timeout(now);
        drain(&mut forwarder, &queries, &mut replied, &mut exchanges);
    }
    assert_eq!((forwarder.waiting(), exchanges.len()), (0, 0));
    replied.sort_unstable();
    let mut whole = Vec::new();
    let mut out = Vec::new();
    for (n, (_, query)) in queries.iter().enumerate() {
        if answer_with_error(query, ErrorCode::ServerFailure, &mut out) {
            whole.push(n);
        }
    }
    assert_eq!(replied, whole, "each query has one reply");
}

fn drain(
    forwarder: &mut Forwarder<usize>,
    queries: &[(Transport, &[u8])],
    replied: &mut Vec<usize>,
    exchanges: &mut BTreeMap<weave_dns::ExchangeId, Vec<u8>>,
) {
    while let Some(output) = forwarder.poll_output() {
        match output {
            ForwarderOutput::Ask { exchange, query, .. } => drop(exchanges.insert(exchange, query)),
            ForwarderOutput::Close(exchange) => drop(exchanges.remove(&exchange).expect("it is open")),
            ForwarderOutput::Reply { client, answer } => {
                let (transport, query) = queries[client];
                check_answer(query, &answer, transport);
                replied.push(client);
            }
        }
    }
}

/// Any bytes as gossip, at the peer that registered the names and at another. Nothing that is sent on would crash a peer of version 2.8.1,
/// and a repeated message has no news.
pub(crate) fn gossip(data: &[u8]) {
    let peers = [1, 0x7a9f_ebb6_0c6e].map(|n| PeerName::from_number(n).expect("a valid name"));
    let time = Duration::from_secs(1_447_000_200);
    let now = Now { mono: Instant::from_origin(time), wall: time };
    for own in peers {
        let domain = HostName::parse("weave.local").expect("a valid name");
        let mut registry = Registry::new(RegistryConfig { own, domain });
        registry.handle_topology_change(&peers.into(), now);
        let Ok(news) = registry.handle_gossip(data, now) else { continue };
        let relayed = registry.handle_broadcast(peers[1], data, now).expect("accepted before");
        assert_eq!(registry.handle_gossip(data, now), Ok(None), "no news");
        let mut sent: Vec<Vec<u8>> = [news, relayed, registry.state(now)].into_iter().flatten().collect();
        while let Some(output) = registry.poll_output() {
            if let RegistryOutput::Broadcast(payload) = output {
                sent.push(payload);
            }
        }
        let mut merged = Vec::new();
        for payload in &sent {
            check_gossip(payload);
            Registry::merge(&mut merged, payload);
        }
        if !sent.is_empty() {
            check_gossip(&merged);
        }
        let late = Now { mono: now.mono + TOMBSTONE_LIFETIME, ..now };
        registry.handle_timeout(late);
        assert!(registry.entries().all(Entry::is_live), "no tombstone stays");
    }
}

fn check_gossip(payload: &[u8]) {
    let entries = Gossip::decode(payload).expect("a message of ours").entries;
    let identity =
        |entry: &Entry| (entry.hostname.to_lowercase(), entry.origin, entry.container.clone(), entry.addr);
    let identities: BTreeSet<_> = entries.iter().map(identity).collect();
    assert_eq!(identities.len(), entries.len(), "{entries:?}");
}
