//! Random clients and faulty servers, compared with a model of what clients may be told.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use domain::base::Message;
use domain::base::iana::{Rcode, Rtype};
use domain::rdata::A;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_dns::{ExchangeId, Forwarder, ForwarderConfig, ForwarderOutput, Transport};
use weave_types::Instant;

use crate::support::{Reply, answer_to, query};

const NAMES: u8 = 6;
const SERVERS: u8 = 3;
/// Seconds for which records are valid.
const TTL: u32 = 20;

/// What a server does for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Dead,
    /// The socket reports an error.
    Refuses,
    WrongId,
    WrongQuestion,
    Garbage,
    /// Cut in the middle of a record.
    Cut,
    Truncated,
    ServerFailure,
}

const FAULTS: [Fault; 9] = [
    Fault::None,
    Fault::Dead,
    Fault::Refuses,
    Fault::WrongId,
    Fault::WrongQuestion,
    Fault::Garbage,
    Fault::Cut,
    Fault::Truncated,
    Fault::ServerFailure,
];

struct Exchange {
    server: u8,
    transport: Transport,
    name: u8,
    query: Vec<u8>,
    due: Instant,
}

struct Asked {
    name: u8,
    at: Instant,
}

struct World {
    rng: ChaCha12Rng,
    forwarder: Forwarder<u32>,
    now: Instant,
    faults: Vec<Fault>,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    asked: BTreeMap<u32, Asked>,
    next_client: u32,
    /// What the last byte of an address in an answer means: when it was sent. It wraps after 256 s, far above the TTL.
    answered: BTreeMap<(u8, u8), Instant>,
    failures: u32,
    successes: u32,
}

fn name_of(name: u8) -> String {
    format!("n{name}.example.com")
}

impl World {
    fn new(seed: u64) -> World {
        let mut forwarder = Forwarder::new(ForwarderConfig::default(), [seed as u8; 32]);
        forwarder.set_servers((0..SERVERS).map(|n| SocketAddr::from(([10, 0, 0, n], 53))).collect());
        World {
            rng: ChaCha12Rng::seed_from_u64(seed),
            forwarder,
            now: Instant::ORIGIN,
            faults: vec![Fault::None; usize::from(SERVERS)],
            exchanges: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_client: 0,
            answered: BTreeMap::new(),
            failures: 0,
            successes: 0,
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..10) {
            0..5 => {
                let name = self.rng.random_range(0..NAMES);
                let over_tcp = self.rng.random_range(0..4) == 0;
                self.ask(name, if over_tcp { Transport::Tcp } else { Transport::Udp });
            }
            5 => {
                let server = self.rng.random_range(0..usize::from(SERVERS));
                self.faults[server] = FAULTS[self.rng.random_range(0..FAULTS.len())];
            }
            _ => {
                let time = Duration::from_millis(self.rng.random_range(1..1500));
                self.wait(time);
            }
        }
    }

    fn ask(&mut self, name: u8, transport: Transport) {
        let client = self.next_client;
        self.next_client += 1;
        let mut query = query(&[(&name_of(name), Rtype::A)], None);
        query[..2].copy_from_slice(&(client as u16).to_be_bytes());
        let from = IpAddr::V4(Ipv4Addr::new(10, 32, 0, (client % 5) as u8));
        self.asked.insert(client, Asked { name, at: self.now });
        self.forwarder.handle_query(client, from, transport, &query, self.now);
        self.drain();
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let answer = self.exchanges.iter().map(|(id, exchange)| (exchange.due, *id)).min();
            let timer = self.forwarder.poll_timeout().map(|(at, _)| at);
            match (answer, timer) {
                (Some((due, id)), timer) if due <= until && timer.is_none_or(|at| due < at) => {
                    self.now = due;
                    self.answer(id);
                }
                (_, Some(at)) if at <= until => {
                    self.now = at;
                    self.forwarder.handle_timeout(at);
                }
                _ => break,
            }
            self.drain();
        }
        self.now = until;
    }

    /// A server's turn in an exchange.
    fn answer(&mut self, id: ExchangeId) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        // Nothing more comes, unless it is asked again.
        exchange.due = self.now + Duration::from_secs(3600);
        let fault = self.faults[usize::from(exchange.server)];
        let second = self.now.since_origin().as_secs() as u8;
        let addr = Ipv4Addr::new(192, 0, exchange.name, second);
        let whole = answer_to(&exchange.query, Reply::with_address(TTL, addr));
        let mut answer = whole.clone();
        match fault {
            Fault::None => {}
            Fault::Dead => return,
            Fault::Refuses => return self.forwarder.handle_failure(id, self.now),
            Fault::WrongId => answer[0] ^= 0x80,
            Fault::WrongQuestion => answer[14] = b'x',
            Fault::Garbage => answer[12..].fill(0xff),
            Fault::Cut => answer.truncate(whole.len() - 3),
            Fault::Truncated => {
                answer = answer_to(&exchange.query, Reply::with_address(TTL, addr).truncated());
            }
            Fault::ServerFailure => answer = answer_to(&exchange.query, Reply::error(Rcode::SERVFAIL)),
        }
        if fault == Fault::None {
            self.answered.insert((exchange.name, second), self.now);
        }
        self.forwarder.handle_answer(id, &answer, self.now);
    }

    fn drain(&mut self) {
        while let Some(output) = self.forwarder.poll_output() {
            match output {
                ForwarderOutput::Ask { exchange, server, transport, query } => {
                    let IpAddr::V4(server) = server.ip() else { panic!("{server} was not configured") };
                    let message = Message::from_slice(&query).unwrap();
                    let question = message.sole_question().unwrap();
                    let name = (0..NAMES).find(|n| question.qname().to_string() == name_of(*n)).unwrap();
                    let delay = Duration::from_millis(self.rng.random_range(1..200));
                    let due = self.now + delay;
                    let new = Exchange { server: server.octets()[3], transport, name, query, due };
                    assert!(
                        !self.exchanges.values().any(|e| (e.name, e.transport) == (name, transport)),
                        "a question is sent once at a time"
                    );
                    self.exchanges.insert(exchange, new);
                }
                ForwarderOutput::Close(exchange) => {
                    self.exchanges.remove(&exchange).expect("it is open");
                }
                ForwarderOutput::Reply { client, answer } => self.check_reply(client, &answer),
            }
        }
        assert_eq!(self.forwarder.waiting(), self.asked.len(), "who has no reply waits");
    }

    fn check_reply(&mut self, client: u32, answer: &[u8]) {
        let asked = self.asked.remove(&client).expect("one reply for each query");
        let message = Message::from_slice(answer).unwrap();
        assert_eq!(message.header().id(), client as u16);
        let question = message.sole_question().unwrap();
        assert_eq!(question.qname().to_string(), name_of(asked.name));
        assert!(self.now - asked.at <= Duration::from_secs(15), "waited too long");
        let header = message.header();
        if header.rcode() == Rcode::SERVFAIL {
            self.failures += 1;
        } else if header.tc() {
            assert_eq!(header.rcode(), Rcode::NOERROR);
        } else {
            self.successes += 1;
            let record = message.answer().unwrap().limit_to::<A>().next().unwrap().unwrap();
            let [_, _, name, second] = record.data().addr().octets();
            assert_eq!(name, asked.name, "the answer to another question");
            let sent = self.answered.get(&(name, second)).expect("a server has sent it");
            let age = self.now - *sent;
            assert!(age < Duration::from_secs(TTL.into()), "stored for {age:?}");
            assert_eq!(u64::from(record.ttl().as_secs()), u64::from(TTL) - age.as_secs());
        }
    }
}

#[test]
fn clients_of_faulty_servers_get_one_true_answer_in_time() {
    let (mut failures, mut successes) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        for _ in 0..300 {
            world.step();
        }
        world.wait(Duration::from_secs(60));
        assert!(world.asked.is_empty() && world.exchanges.is_empty(), "seed {seed}");
        failures += world.failures;
        successes += world.successes;
        // When all faults are gone, every question has an answer.
        world.faults.fill(Fault::None);
        let before = (world.failures, world.successes);
        for name in 0..NAMES {
            world.ask(name, Transport::Udp);
            world.wait(Duration::from_secs(1));
        }
        assert_eq!((world.failures, world.successes), (before.0, before.1 + u32::from(NAMES)), "seed {seed}");
    }
    assert!(failures > 1000 && successes > 10_000, "{failures} failures, {successes} successes");
}
