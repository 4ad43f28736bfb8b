//! Questions for the servers of the host (docs/spec/dns.md 9).
//!
//! ```text
//!   query ──> cache ──> reply
//!               │ miss
//!               v
//!            pending question (shared by all clients that ask it) ── Ask(first server) ──> answer ──> replies
//!                                                    ^                      │
//!                                                    └── next server <── time-out, failure
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use domain::base::iana::Rcode;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_types::Instant;

use crate::cache::Cache;
use crate::query::{PLAIN_UDP_LIMIT, Query, Transport};
use crate::upstream::{Answer, AnswerHead, NotTheAnswer, QuestionKey};

/// Limits of a [`Forwarder`].
#[derive(Clone, Copy, Debug)]
pub struct ForwarderConfig {
    /// How long a server has to answer before the next one is asked.
    pub server_timeout: Duration,
    /// How long a client waits at most, whatever the number of servers.
    pub total_timeout: Duration,
    /// A server that did not answer is asked last for this time.
    pub suspicion: Duration,
    /// Queries that may wait for servers, each of which may need a socket.
    pub max_waiting: usize,
    /// Those of one address.
    pub max_waiting_per_client: usize,
    /// Memory for the cache.
    pub cache_bytes: usize,
}

impl Default for ForwarderConfig {
    fn default() -> ForwarderConfig {
        ForwarderConfig {
            server_timeout: Duration::from_secs(5),
            total_timeout: Duration::from_secs(15),
            suspicion: Duration::from_secs(30),
            max_waiting: 1024,
            max_waiting_per_client: 256,
            cache_bytes: 1 << 20,
        }
    }
}

/// Identifies a question to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExchangeId(u64);

/// What the driver has to do, in order. `C` is what a client's answer is sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwarderOutput<C> {
    /// Ask a server, by a socket of its own that is connected to it, from a random port. What is received goes to
    /// [`Forwarder::handle_answer`], a failure to [`Forwarder::handle_failure`].
    Ask {
        /// Identifies the exchange.
        exchange: ExchangeId,
        /// The server.
        server: SocketAddr,
        /// The protocol, which is that of the client.
        transport: Transport,
        /// The message, without the length that TCP needs.
        query: Vec<u8>,
    },
    /// Close the socket of an exchange.
    Close(ExchangeId),
    /// Answer a client.
    Reply {
        /// Who asked.
        client: C,
        /// The message, without the length that TCP needs.
        answer: Vec<u8>,
    },
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwarderStats {
    /// Queries that were forwarded or answered from the cache.
    pub queries: u64,
    /// Those answered from the cache.
    pub cache_hits: u64,
    /// Questions to servers.
    pub exchanges: u64,
    /// Exchanges without an answer.
    pub failed_exchanges: u64,
    /// Queries that got no answer of a server, because there is none or all failed.
    pub failures: u64,
    /// Queries beyond a limit.
    pub over_limit: u64,
}

struct Waiter<C> {
    client: C,
    from: IpAddr,
    head: AnswerHead,
    /// Largest answer.
    limit: usize,
}

struct Pending<C> {
    waiters: Vec<Waiter<C>>,
    query: Vec<u8>,
    /// Servers that were not asked yet.
    servers: VecDeque<SocketAddr>,
    /// Until when the clients wait.
    deadline: Instant,
}

type PendingKey = (QuestionKey, Transport);

struct Exchange {
    question: PendingKey,
    server: SocketAddr,
    /// The id of the message.
    id: u16,
    deadline: Instant,
    /// The deadline was extended because this machine was late.
    extended: bool,
}

/// Time for an answer that arrived while this machine was asleep or busy to be handled, before the server counts as silent.
const LATE_GRACE: Duration = Duration::from_millis(500);

/// Asks the servers of the host for clients.
///
/// A question is sent to one server after the other until one answers, whatever it answers. Identical questions that wait at the
/// same time are sent once, so that a server that asks us what we ask it (a loop) gets no further than one question to each
/// server.
pub struct Forwarder<C> {
    config: ForwarderConfig,
    rng: ChaCha12Rng,
    servers: Vec<SocketAddr>,
    /// Servers that did not answer, and until when they are asked last.
    suspects: BTreeMap<SocketAddr, Instant>,
    pending: BTreeMap<PendingKey, Pending<C>>,
    exchanges: BTreeMap<ExchangeId, Exchange>,
    timers: BTreeSet<(Instant, ExchangeId)>,
    waiting: usize,
    waiting_by_client: BTreeMap<IpAddr, usize>,
    cache: Cache,
    next_exchange: u64,
    outputs: VecDeque<ForwarderOutput<C>>,
    stats: ForwarderStats,
}

impl<C: PartialEq> Forwarder<C> {
    /// A forwarder without servers. `seed` determines the ids of messages, which must not be predictable.
    pub fn new(config: ForwarderConfig, seed: [u8; 32]) -> Forwarder<C> {
        Forwarder {
            config,
            rng: ChaCha12Rng::from_seed(seed),
            servers: Vec::new(),
            suspects: BTreeMap::new(),
            pending: BTreeMap::new(),
            exchanges: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: 0,
            waiting_by_client: BTreeMap::new(),
            cache: Cache::new(config.cache_bytes),
            next_exchange: 0,
            outputs: VecDeque::new(),
            stats: ForwarderStats::default(),
        }
    }

    /// The servers to ask, in order. Others than before may know other names, so the cache is emptied.
    pub fn set_servers(&mut self, servers: Vec<SocketAddr>) {
        if servers != self.servers {
            self.cache.clear();
            self.suspects.retain(|server, _| servers.contains(server));
            self.servers = servers;
        }
    }

    /// The servers in the order of the configuration.
    pub fn servers(&self) -> &[SocketAddr] {
        &self.servers
    }

    /// A client's query for which [`Responder::answer`](crate::Responder::answer) said
    /// [`Verdict::Forward`](crate::Verdict::Forward).
    pub fn handle_query(
        &mut self,
        client: C,
        from: IpAddr,
        transport: Transport,
        query: &[u8],
        now: Instant,
    ) {
        let Ok(query) = Query::parse(query) else { return };
        self.stats.queries += 1;
        let question = QuestionKey::new(&query);
        let waiter = Waiter {
            client,
            from,
            head: AnswerHead::new(&query),
            limit: query.limit(transport).max(PLAIN_UDP_LIMIT),
        };
        if let Some((stored, age)) = self.cache.lookup(&question, now) {
            self.stats.cache_hits += 1;
            let answer = Answer::aged(stored, &question, age);
            self.reply(waiter, &answer);
            return;
        }
        let key = (question, transport);
        if self.repeats_a_waiting_query(&key, &waiter) {
            return;
        }
        let of_client = self.waiting_by_client.get(&from).copied().unwrap_or(0);
        if self.waiting >= self.config.max_waiting || of_client >= self.config.max_waiting_per_client {
            self.stats.over_limit += 1;
            self.reply_error(waiter);
            return;
        }
        if self.is_loop(&key, from) {
            self.stats.failures += 1;
            self.reply_error(waiter);
            return;
        }
        self.waiting += 1;
        *self.waiting_by_client.entry(from).or_insert(0) += 1;
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.waiters.push(waiter);
            return;
        }
        let pending = Pending {
            waiters: vec![waiter],
            query: key.0.query(&query, 0),
            servers: self.servers_in_order(now),
            deadline: now + self.config.total_timeout,
        };
        self.pending.insert(key.clone(), pending);
        self.ask_next(key, now);
    }

    /// What was received from the server of an exchange.
    pub fn handle_answer(&mut self, exchange: ExchangeId, answer: &[u8], now: Instant) {
        let Some(Exchange { question, id, server, .. }) = self.exchanges.get(&exchange) else { return };
        match Answer::parse(answer, *id, &question.0) {
            Ok(answer) => {
                self.suspects.remove(server);
                let key = self.close(exchange);
                self.finish(key, answer, now);
            }
            // A forged datagram must not displace the answer. A stream has nothing else to say.
            Err(NotTheAnswer::Unrelated) if question.1 == Transport::Udp => {}
            Err(_) => self.handle_failure(exchange, now),
        }
    }

    /// The server cannot be asked, or has closed the connection.
    pub fn handle_failure(&mut self, exchange: ExchangeId, now: Instant) {
        let Some(Exchange { server, .. }) = self.exchanges.get(&exchange) else { return };
        self.suspects.insert(*server, now + self.config.suspicion);
        self.stats.failed_exchanges += 1;
        if let Some(key) = self.close(exchange) {
            self.ask_next(key, now);
        }
    }

    /// When [`handle_timeout`](Forwarder::handle_timeout) has something to do, and what.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        self.timers.first().map(|(at, _)| (*at, "a server does not answer"))
    }

    /// Servers that have not answered in time are given up.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, exchange)) = self.timers.first().copied()
            && at <= now
        {
            if at.is_handled_late(now)
                && let Some(open) = self.exchanges.get_mut(&exchange)
                && !std::mem::replace(&mut open.extended, true)
            {
                open.deadline = now + LATE_GRACE;
                self.timers.remove(&(at, exchange));
                self.timers.insert((open.deadline, exchange));
                continue;
            }
            self.handle_failure(exchange, now);
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<ForwarderOutput<C>> {
        self.outputs.pop_front()
    }

    /// Counters since the start.
    pub fn stats(&self) -> ForwarderStats {
        self.stats
    }

    /// Queries that wait for servers.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Memory that cached answers use.
    pub fn cache_bytes(&self) -> usize {
        self.cache.bytes()
    }

    /// Whether a client sends again what it waits for.
    fn repeats_a_waiting_query(&self, key: &PendingKey, new: &Waiter<C>) -> bool {
        self.pending.get(key).is_some_and(|pending| {
            pending.waiters.iter().any(|w| w.client == new.client && w.head.id() == new.head.id())
        })
    }

    /// Whether the server that is being asked asks us in turn. Programs of this host share its loopback address with servers, so
    /// that one says nothing.
    fn is_loop(&self, key: &PendingKey, from: IpAddr) -> bool {
        !from.is_loopback()
            && self.pending.contains_key(key)
            && self.exchanges.values().any(|e| e.question == *key && e.server.ip() == from)
    }

    fn servers_in_order(&mut self, now: Instant) -> VecDeque<SocketAddr> {
        self.suspects.retain(|_, until| *until > now);
        let (suspects, others): (Vec<_>, Vec<_>) =
            self.servers.iter().partition(|server| self.suspects.contains_key(server));
        others.into_iter().chain(suspects).collect()
    }

    fn ask_next(&mut self, key: PendingKey, now: Instant) {
        let Some(pending) = self.pending.get_mut(&key) else { return };
        let next = if pending.deadline > now { pending.servers.pop_front() } else { None };
        let Some(server) = next else {
            for waiter in self.take_waiters(&key) {
                self.stats.failures += 1;
                self.reply_error(waiter);
            }
            return;
        };
        let (exchange, id) = (ExchangeId(self.next_exchange), self.rng.random::<u16>());
        self.next_exchange += 1;
        self.stats.exchanges += 1;
        let mut query = pending.query.clone();
        query[..2].copy_from_slice(&id.to_be_bytes());
        let transport = key.1;
        self.outputs.push_back(ForwarderOutput::Ask { exchange, server, transport, query });
        let deadline = (now + self.config.server_timeout).min(pending.deadline);
        self.timers.insert((deadline, exchange));
        self.exchanges.insert(exchange, Exchange { question: key, server, id, deadline, extended: false });
    }

    /// Ends an exchange, and returns its question.
    fn close(&mut self, exchange: ExchangeId) -> Option<PendingKey> {
        let Exchange { question, deadline, .. } = self.exchanges.remove(&exchange)?;
        self.timers.remove(&(deadline, exchange));
        self.outputs.push_back(ForwarderOutput::Close(exchange));
        Some(question)
    }

    fn finish(&mut self, key: Option<PendingKey>, answer: Answer, now: Instant) {
        let Some(key) = key else { return };
        for waiter in self.take_waiters(&key) {
            self.reply(waiter, &answer);
        }
        if let Some(lifetime) = answer.lifetime {
            self.cache.insert(key.0, answer.into_bytes(), lifetime, now);
        }
    }

    fn take_waiters(&mut self, key: &PendingKey) -> Vec<Waiter<C>> {
        let waiters = self.pending.remove(key).map_or(Vec::new(), |pending| pending.waiters);
        for waiter in &waiters {
            self.waiting -= 1;
            release(&mut self.waiting_by_client, waiter.from);
        }
        waiters
    }

    fn reply(&mut self, waiter: Waiter<C>, answer: &Answer) {
        let answer = waiter.head.into_answer(answer, waiter.limit);
        self.outputs.push_back(ForwarderOutput::Reply { client: waiter.client, answer });
    }

    fn reply_error(&mut self, waiter: Waiter<C>) {
        let answer = waiter.head.into_error(Rcode::SERVFAIL);
        self.outputs.push_back(ForwarderOutput::Reply { client: waiter.client, answer });
    }
}

fn release(waiting_by_client: &mut BTreeMap<IpAddr, usize>, from: IpAddr) {
    if let Some(count) = waiting_by_client.get_mut(&from) {
        *count -= 1;
        if *count == 0 {
            waiting_by_client.remove(&from);
        }
    }
}
