//! One allocator with a disk that records its outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_ipam::{Allocator, Answer, Config, Event, Loaded, Output, RequestError, RequestId, Subnet};
use weave_types::{Instant, Now, PeerName};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Broadcast(Vec<u8>),
    Unicast(PeerName, Vec<u8>),
}

pub(crate) struct Peer {
    pub(crate) allocator: Allocator,
    pub(crate) config: Config,
    pub(crate) disk: Loaded,
    pub(crate) sent: Vec<Sent>,
    pub(crate) done: BTreeMap<RequestId, Result<Answer, RequestError>>,
    pub(crate) events: Vec<Event>,
    pub(crate) seconds: u64,
    next: u64,
}

pub(crate) fn now(seconds: u64) -> Now {
    Now { mono: Instant::from_origin(Duration::from_secs(seconds)), wall: Duration::from_secs(1_700_000_000) }
}

pub(crate) fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

impl Peer {
    pub(crate) fn new(config: Config) -> Peer {
        Peer::restored(config, Loaded::default())
    }

    pub(crate) fn restored(config: Config, disk: Loaded) -> Peer {
        let rng = ChaCha12Rng::seed_from_u64(config.name.number());
        let allocator = Allocator::new(config.clone(), rng, disk.clone(), now(0));
        let mut peer = Peer {
            allocator,
            config,
            disk,
            sent: Vec::new(),
            done: BTreeMap::new(),
            events: Vec::new(),
            seconds: 0,
            next: 0,
        };
        peer.drain();
        peer
    }

    pub(crate) fn now(&self) -> Now {
        now(self.seconds)
    }

    pub(crate) fn drain(&mut self) {
        while let Some(output) = self.allocator.poll_output() {
            match output {
                Output::Persist(persist) => self.disk.apply(&persist),
                Output::Broadcast(bytes) => self.sent.push(Sent::Broadcast(bytes)),
                Output::Unicast { to, payload } => self.sent.push(Sent::Unicast(to, payload)),
                Output::Done(id, result) => assert_eq!(self.done.insert(id, result), None, "answered twice"),
                Output::Event(event) => self.events.push(event),
            }
        }
        self.allocator.check_invariants().unwrap();
    }

    pub(crate) fn take_sent(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    pub(crate) fn request(&mut self) -> RequestId {
        self.next += 1;
        RequestId(self.next)
    }

    pub(crate) fn allocate(&mut self, container: &str, text: &str) -> RequestId {
        let id = self.request();
        self.allocator.allocate(id, container.to_owned(), subnet(text), true, self.now());
        self.drain();
        id
    }

    pub(crate) fn claim(&mut self, container: &str, cidr: &str, no_error: bool) -> RequestId {
        let id = self.request();
        let cidr = cidr.parse().unwrap();
        self.allocator.claim(id, container.to_owned(), cidr, true, no_error, self.now());
        self.drain();
        id
    }

    pub(crate) fn prime(&mut self) -> RequestId {
        let id = self.request();
        self.allocator.prime(id, self.now());
        self.drain();
        id
    }

    /// The answer as the vectors print it.
    pub(crate) fn result(&self, id: RequestId) -> String {
        match self.done.get(&id) {
            None => "pending".to_owned(),
            Some(Ok(Answer::Allocated(cidr))) => cidr.addr().to_string(),
            Some(Ok(_)) => "ok".to_owned(),
            Some(Err(error)) => format!("error: {error}"),
        }
    }

    pub(crate) fn receive(&mut self, from: PeerName, sent: &Sent) -> Result<(), String> {
        let now = self.now();
        let result = match sent {
            Sent::Broadcast(bytes) => self.allocator.handle_broadcast(from, bytes, now).map(drop),
            Sent::Unicast(to, bytes) if *to == self.config.name => {
                self.allocator.handle_unicast(from, bytes, now)
            }
            Sent::Unicast(..) => Ok(()),
        };
        self.drain();
        result.map_err(|error| error.to_string())
    }

    pub(crate) fn set_reachable(&mut self, names: &[PeerName]) {
        let peers: BTreeSet<PeerName> = names.iter().copied().collect();
        let peers = peers.into_iter().map(|name| (name, String::new())).collect();
        self.allocator.handle_topology_change(&peers, self.now());
        self.drain();
    }

    pub(crate) fn advance(&mut self, seconds: u64) {
        self.seconds += seconds;
        self.allocator.handle_timeout(self.now());
        self.drain();
    }
}
