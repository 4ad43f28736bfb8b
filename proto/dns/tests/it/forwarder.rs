//! Questions to servers: one case at a time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::{Rcode, Rtype};
use domain::rdata::A;
use weave_dns::{ExchangeId, Forwarder, ForwarderConfig, ForwarderOutput, Transport};
use weave_types::Instant;

use crate::support::{Reply, answer_to, bytes, query, query_with, vectors};

const SECOND: Duration = Duration::from_secs(1);

struct Net {
    forwarder: Forwarder<u32>,
    now: Instant,
}

#[derive(Debug)]
struct Asked {
    exchange: ExchangeId,
    server: String,
    query: Vec<u8>,
}

fn server(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Net {
    fn new(servers: &[&str]) -> Net {
        Net::with_config(servers, ForwarderConfig::default())
    }

    fn with_config(servers: &[&str], config: ForwarderConfig) -> Net {
        let mut forwarder = Forwarder::new(config, [7; 32]);
        forwarder.set_servers(servers.iter().map(|text| server(text)).collect());
        Net { forwarder, now: Instant::ORIGIN }
    }

    fn ask(&mut self, client: u32, query: &[u8]) {
        self.ask_from(client, "10.32.0.2", Transport::Udp, query);
    }

    fn ask_from(&mut self, client: u32, from: &str, transport: Transport, query: &[u8]) {
        let from: IpAddr = from.parse().unwrap();
        self.forwarder.handle_query(client, from, transport, query, self.now);
    }

    /// What servers are asked.
    fn asked(&mut self) -> Vec<Asked> {
        let (asked, replies) = self.outputs();
        assert!(replies.is_empty(), "{replies:?}");
        asked
    }

    fn asked_one(&mut self) -> Asked {
        let mut asked = self.asked();
        assert_eq!(asked.len(), 1);
        asked.remove(0)
    }

    /// What clients are told.
    fn replies(&mut self) -> Vec<(u32, Vec<u8>)> {
        let (asked, replies) = self.outputs();
        assert!(asked.is_empty(), "{asked:?}");
        replies
    }

    fn reply(&mut self) -> Vec<u8> {
        let mut replies = self.replies();
        assert_eq!(replies.len(), 1);
        replies.remove(0).1
    }

    fn outputs(&mut self) -> (Vec<Asked>, Vec<(u32, Vec<u8>)>) {
        let (mut asked, mut replies) = (Vec::new(), Vec::new());
        while let Some(output) = self.forwarder.poll_output() {
            match output {
                ForwarderOutput::Ask { exchange, server, query, .. } => {
                    asked.push(Asked { exchange, server: server.to_string(), query });
                }
                ForwarderOutput::Reply { client, answer } => replies.push((client, answer)),
                ForwarderOutput::Close(_) => {}
            }
        }
        (asked, replies)
    }

    fn answer(&mut self, asked: &Asked, answer: &[u8]) {
        self.forwarder.handle_answer(asked.exchange, answer, self.now);
    }

    /// Time passes, with all timers on time.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some((at, _)) = self.forwarder.poll_timeout().filter(|(at, _)| *at <= until) {
            self.now = at;
            self.forwarder.handle_timeout(at);
        }
        self.now = until;
    }
}

fn rcode(answer: &[u8]) -> Rcode {
    Message::from_slice(answer).unwrap().header().rcode()
}

fn example() -> Vec<u8> {
    query(&[("www.example.com", Rtype::A)], None)
}

/// What was recorded between a client, 2.8.1 and a server is the same here.
#[test]
fn forwarded_answers_equal_the_vectors() {
    let mut count = 0;
    for case in vectors("queries.json")["vectors"].as_array().unwrap() {
        let label = &case["name"];
        let Some(seen) = case["upstream_saw"].as_array() else { continue };
        let transport = if case["net"] == "tcp" { Transport::Tcp } else { Transport::Udp };
        let (query, recorded) = (bytes(&case["query_hex"]), bytes(&case["response_hex"]));
        let mut net = Net::new(&["10.0.0.53:53"]);
        net.ask_from(1, "10.32.0.2", transport, &query);
        let asked = net.asked_one();
        let ours = Message::from_slice(&asked.query).unwrap();
        assert_eq!(ours.header().rd(), seen[0]["rd"] == true, "{label}");
        assert_eq!(ours.opt().is_some(), seen[0]["edns"] == true, "{label}");
        if ours.opt().is_none() {
            assert_eq!(asked.query[2..], query[2..], "{label}");
        }
        let mut answer = recorded.clone();
        answer[..2].copy_from_slice(&asked.query[..2]);
        net.answer(&asked, &answer);
        assert_eq!(hex::encode(net.reply()), hex::encode(recorded), "{label}");
        count += 1;
    }
    assert!(count >= 9, "{count}");
    let case = vectors("query_no_upstream.json");
    let mut net = Net::new(&[]);
    net.ask(1, &bytes(&case["query_hex"]));
    assert_eq!(hex::encode(net.reply()), case["response_hex"].as_str().unwrap());
}

#[test]
fn next_server_is_asked_when_one_does_not_answer() {
    let mut net = Net::new(&["10.0.0.1:53", "[fd00::1]:53"]);
    net.ask(1, &example());
    let first = net.asked_one();
    assert_eq!(first.server, "10.0.0.1:53");
    net.wait(SECOND * 5 - Duration::from_nanos(1));
    assert!(net.asked().is_empty());
    net.wait(Duration::from_nanos(1));
    let second = net.asked_one();
    assert_eq!(second.server, "[fd00::1]:53");
    assert_ne!(first.query[..2], second.query[..2], "each exchange has an id of its own");
    // Too late.
    net.answer(&first, &answer_to(&first.query, Reply::address(60)));
    assert!(net.replies().is_empty());
    net.answer(&second, &answer_to(&second.query, Reply::error(Rcode::NXDOMAIN)));
    assert_eq!(rcode(&net.reply()), Rcode::NXDOMAIN, "any answer is final");

    // The first one is asked last for a while.
    net.ask(2, &example());
    assert_eq!(net.asked_one().server, "[fd00::1]:53");
    net.wait(SECOND * 5);
    assert_eq!(net.asked_one().server, "10.0.0.1:53");
    net.wait(SECOND * 5);
    assert_eq!(rcode(&net.reply()), Rcode::SERVFAIL);
    net.wait(SECOND * 30);
    net.ask(3, &example());
    assert_eq!(net.asked_one().server, "10.0.0.1:53");
}

#[test]
fn answer_that_waits_for_a_suspended_peer_counts() {
    let mut net = Net::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    net.ask(1, &example());
    let first = net.asked_one();
    // The timer comes first, then what has arrived meanwhile.
    net.now += SECOND * 8;
    net.forwarder.handle_timeout(net.now);
    assert!(net.asked().is_empty());
    net.answer(&first, &answer_to(&first.query, Reply::error(Rcode::NXDOMAIN)));
    assert_eq!(rcode(&net.reply()), Rcode::NXDOMAIN);
    // Without an answer the next server is asked soon, however late this peer is.
    net.ask(2, &example());
    assert_eq!(net.asked_one().server, "10.0.0.1:53");
    for wait in [6, 2] {
        net.now += SECOND * wait;
        net.forwarder.handle_timeout(net.now);
    }
    assert_eq!(net.asked_one().server, "10.0.0.2:53");
}

#[test]
fn refusal_of_the_socket_leads_to_the_next_server_at_once() {
    let mut net = Net::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    net.ask(1, &example());
    let first = net.asked_one();
    net.forwarder.handle_failure(first.exchange, net.now);
    let second = net.asked_one();
    net.forwarder.handle_failure(second.exchange, net.now);
    assert_eq!(rcode(&net.reply()), Rcode::SERVFAIL);
    assert_eq!(net.forwarder.poll_timeout(), None);
    assert_eq!(net.forwarder.waiting(), 0);
}

#[test]
fn time_of_a_client_is_limited() {
    let servers = ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53", "10.0.0.4:53", "10.0.0.5:53"];
    let mut net = Net::new(&servers);
    net.ask(1, &example());
    net.wait(SECOND * 15);
    let (asked, replies) = net.outputs();
    assert_eq!((asked.len(), replies.len()), (3, 1));
    assert_eq!(rcode(&replies[0].1), Rcode::SERVFAIL);
}

#[test]
fn what_is_not_the_answer_is_ignored_over_udp_and_final_over_tcp() {
    let unrelated: [fn(&mut Vec<u8>); 3] = [
        |answer| answer[1] ^= 1,
        |answer| answer[13] ^= 1,
        // The QR bit.
        |answer| answer[2] ^= 0x80,
    ];
    for change in unrelated {
        for transport in [Transport::Udp, Transport::Tcp] {
            let mut net = Net::new(&["10.0.0.1:53", "10.0.0.2:53"]);
            net.ask_from(1, "10.32.0.2", transport, &example());
            let asked = net.asked_one();
            let answer = answer_to(&asked.query, Reply::address(60));
            let mut forged = answer.clone();
            change(&mut forged);
            net.answer(&asked, &forged);
            if transport == Transport::Udp {
                assert!(net.asked().is_empty());
                net.answer(&asked, &answer);
                assert_eq!(rcode(&net.reply()), Rcode::NOERROR);
            } else {
                assert_eq!(net.asked_one().server, "10.0.0.2:53");
            }
        }
    }
}

#[test]
fn malformed_answer_leads_to_the_next_server() {
    let mut net = Net::new(&["10.0.0.1:53", "10.0.0.2:53"]);
    net.ask(1, &example());
    let asked = net.asked_one();
    let mut cut = answer_to(&asked.query, Reply::address(60));
    cut.pop();
    net.answer(&asked, &cut);
    let asked = net.asked_one();
    assert_eq!(asked.server, "10.0.0.2:53");
    // A server that cannot read the query repeats no question.
    let mut refusal = asked.query[..12].to_vec();
    refusal[2] |= 0x80;
    refusal[3] = 1;
    refusal[4..].fill(0);
    net.answer(&asked, &refusal);
    let reply = net.reply();
    assert_eq!(rcode(&reply), Rcode::FORMERR);
    assert_eq!(reply[12..], example()[12..]);
}

#[test]
fn truncated_answers_are_passed_on_and_not_stored() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    for cut in [0, 1] {
        net.ask(1, &example());
        let asked = net.asked_one();
        let mut answer = answer_to(&asked.query, Reply::address(60).truncated());
        answer.truncate(answer.len() - cut);
        net.answer(&asked, &answer);
        let reply = net.reply();
        assert!(Message::from_slice(&reply).unwrap().header().tc());
        assert_eq!(reply[12..example().len()], example()[12..]);
        assert_eq!(Message::from_slice(&reply).unwrap().header_counts().ancount(), 1 - cut as u16);
    }
    // Over TCP the same question is another exchange, and its answer is stored for both.
    net.ask(1, &example());
    let over_udp = net.asked_one();
    net.ask_from(2, "10.32.0.3", Transport::Tcp, &example());
    let over_tcp = net.asked_one();
    net.answer(&over_tcp, &answer_to(&over_tcp.query, Reply::address(60)));
    assert_eq!(net.replies()[0].0, 2);
    net.answer(&over_udp, &answer_to(&over_udp.query, Reply::address(60).truncated()));
    assert_eq!(net.replies()[0].0, 1);
    net.ask(3, &example());
    assert!(!Message::from_slice(&net.reply()).unwrap().header().tc());
}

#[test]
fn answers_do_not_exceed_the_limit_of_the_client() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    net.ask_from(1, "10.32.0.2", Transport::Tcp, &example());
    let asked = net.asked_one();
    let answer = answer_to(&asked.query, Reply::addresses(60, 100));
    net.answer(&asked, &answer);
    assert_eq!(net.reply().len(), answer.len());
    net.ask(2, &example());
    let reply = net.reply();
    let message = Message::from_slice(&reply).unwrap();
    assert!(message.header().tc() && message.header_counts().ancount() == 0);
    assert_eq!(reply.len(), example().len());
    // A query with EDNS has another answer.
    net.ask(3, &query(&[("www.example.com", Rtype::A)], Some(100)));
    let asked = net.asked_one();
    let size = Message::from_slice(&asked.query).unwrap().opt().unwrap().udp_payload_size();
    assert_eq!(size, 1232, "the size that we accept");
    net.answer(&asked, &answer_to(&asked.query, Reply::addresses(60, 14)));
    let reply = net.reply();
    assert!(reply.len() <= 512 && !Message::from_slice(&reply).unwrap().header().tc());
}

#[test]
fn identical_questions_share_an_exchange() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    let spelt = query(&[("WWW.Example.COM", Rtype::A)], None);
    net.ask(1, &example());
    let asked = net.asked_one();
    net.ask_from(2, "10.32.0.3", Transport::Udp, &spelt);
    // The first client asks again, because it got no answer yet.
    net.ask(1, &example());
    assert!(net.asked().is_empty());
    assert_eq!(net.forwarder.waiting(), 2);
    net.answer(&asked, &answer_to(&asked.query, Reply::address(60)));
    let replies = net.replies();
    assert_eq!(replies.len(), 2);
    for (client, reply) in replies {
        let asked = if client == 1 { example() } else { spelt.clone() };
        assert_eq!(reply[12..asked.len()], asked[12..], "in the spelling of the client");
        assert_eq!(reply[..2], asked[..2]);
    }
    // What differs in a flag is another question.
    net.ask(1, &query_with(&[("www.example.com", Rtype::A)], None, |header| header.set_cd(true)));
    net.asked_one();
    net.ask(1, &query(&[("www.example.com", Rtype::AAAA)], None));
    net.asked_one();
}

#[test]
fn question_that_comes_back_from_its_server_is_refused() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    net.ask(1, &example());
    let asked = net.asked_one();
    net.ask_from(2, "10.0.0.1", Transport::Udp, &asked.query);
    let replies = net.replies();
    assert_eq!((replies[0].0, rcode(&replies[0].1)), (2, Rcode::SERVFAIL));
    // A server of this host asks from another address than it is asked at: its question waits, and is not sent again.
    net.ask_from(3, "172.17.0.1", Transport::Udp, &asked.query);
    assert!(net.asked().is_empty());
    net.wait(SECOND * 5);
    assert!(net.replies().iter().all(|(_, reply)| rcode(reply) == Rcode::SERVFAIL));
}

#[test]
fn waiting_queries_are_limited_in_all_and_per_client() {
    let config = ForwarderConfig { max_waiting: 10, max_waiting_per_client: 4, ..ForwarderConfig::default() };
    let mut net = Net::with_config(&["10.0.0.1:53"], config);
    let mut refused = [0; 3];
    for n in 0..30 {
        let client = n % 3;
        let name = format!("n{n}.example.com");
        net.ask_from(
            client,
            &format!("10.32.0.{client}"),
            Transport::Udp,
            &query(&[(&name, Rtype::A)], None),
        );
        for (client, reply) in net.outputs().1 {
            assert_eq!(rcode(&reply), Rcode::SERVFAIL);
            refused[client as usize] += 1;
        }
    }
    assert_eq!(net.forwarder.waiting(), 10);
    assert_eq!(refused.iter().sum::<u32>(), 20);
    assert!(refused.iter().all(|count| *count >= 6), "{refused:?}");
    assert_eq!(net.forwarder.stats().over_limit, 20);
    net.wait(SECOND * 5);
    assert_eq!(net.forwarder.waiting(), 0);
    net.ask(1, &example());
    assert_eq!(net.outputs().0.len(), 1, "there is room again");
}

#[test]
fn stored_answers_age() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    net.ask(1, &example());
    let asked = net.asked_one();
    net.answer(&asked, &answer_to(&asked.query, Reply::address(60).authoritative()));
    assert!(Message::from_slice(&net.reply()).unwrap().header().aa());
    net.wait(Duration::from_millis(20_900));
    net.ask(2, &query(&[("WWW.example.com", Rtype::A)], None));
    let reply = net.reply();
    let message = Message::from_slice(&reply).unwrap();
    assert!(!message.header().aa());
    let record = message.answer().unwrap().limit_to::<A>().next().unwrap().unwrap();
    assert_eq!(record.ttl().as_secs(), 40);
    net.wait(SECOND * 40);
    net.ask(3, &example());
    net.asked_one();
    assert_eq!(net.forwarder.stats().cache_hits, 1);
}

/// For how many seconds an answer is stored.
fn stored_for(reply: Reply) -> u64 {
    let mut net = Net::new(&["10.0.0.1:53"]);
    net.ask(1, &example());
    let asked = net.asked_one();
    net.answer(&asked, &answer_to(&asked.query, reply));
    net.reply();
    let mut seconds = 0;
    loop {
        net.ask(2, &example());
        let (asked, replies) = net.outputs();
        if replies.is_empty() {
            assert_eq!(asked.len(), 1);
            return seconds;
        }
        // Whole steps of an hour first, since some are stored for a day.
        let step = if seconds >= 3600 { 3600 } else { 1 };
        seconds += step;
        net.wait(Duration::from_secs(step));
    }
}

#[test]
fn answers_are_stored_as_long_as_their_records_say() {
    assert_eq!(stored_for(Reply::address(7)), 7);
    assert_eq!(stored_for(Reply::address(0)), 0);
    assert_eq!(stored_for(Reply::address(u32::MAX)), 0, "a TTL with the highest bit is zero");
    assert_eq!(stored_for(Reply::address(10_000_000)), 24 * 3600);
    assert_eq!(stored_for(Reply::error(Rcode::SERVFAIL)), 0);
    assert_eq!(stored_for(Reply::error(Rcode::NXDOMAIN)), 0, "without SOA");
    assert_eq!(stored_for(Reply::error(Rcode::NXDOMAIN).soa(60, 20)), 20);
    assert_eq!(stored_for(Reply::error(Rcode::NXDOMAIN).soa(10, 20)), 10);
    assert_eq!(stored_for(Reply::error(Rcode::NXDOMAIN).soa(10_000, 10_000)), 300);
    assert_eq!(stored_for(Reply::error(Rcode::NOERROR).soa(60, 20)), 20, "no records of this type");
    assert_eq!(stored_for(Reply::error(Rcode::NOERROR)), 0);
    assert_eq!(stored_for(Reply::address(60).soa(20, 30)), 20);
}

#[test]
fn other_servers_empty_the_cache() {
    let mut net = Net::new(&["10.0.0.1:53"]);
    net.ask(1, &example());
    let asked = net.asked_one();
    net.answer(&asked, &answer_to(&asked.query, Reply::address(60)));
    net.reply();
    net.forwarder.set_servers(vec![server("10.0.0.1:53")]);
    assert!(net.forwarder.cache_bytes() > 0);
    net.forwarder.set_servers(vec![server("10.0.0.2:53")]);
    assert_eq!(net.forwarder.cache_bytes(), 0);
    assert_eq!(net.forwarder.servers(), [server("10.0.0.2:53")]);
}
