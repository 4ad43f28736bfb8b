//! Stand-in for the node and the data path until they are there.
#![allow(dead_code, missing_docs, clippy::allow_attributes)]

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use weave_types::{ConnectionId, Instant, Now, PeerName, ShortId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ResolveId(pub(crate) u64);

pub(crate) enum Persist {
    Targets(Vec<String>),
    ShortId(ShortId),
    VersionCeiling(u64),
}

pub(crate) enum Output {
    Persist(Persist),
    Resolve { id: ResolveId, host: String },
    Dial { conn: ConnectionId, addr: SocketAddr },
    Write { conn: ConnectionId, bytes: Vec<u8> },
    Close { conn: ConnectionId },
    Event(String),
}

pub(crate) struct Node {
    pub(crate) name: PeerName,
    pub(crate) nickname: String,
    pub(crate) targets: Vec<String>,
    out: VecDeque<Output>,
}

impl Node {
    pub(crate) fn new(name: PeerName, nickname: String, _rng: ChaCha12Rng, _now: Now) -> Node {
        Node { name, nickname, targets: Vec::new(), out: VecDeque::new() }
    }
    pub(crate) fn connect(&mut self, peers: &[String], replace: bool, _now: Now) -> Vec<String> {
        if replace {
            self.targets.clear();
        }
        let (good, bad): (Vec<_>, Vec<_>) = peers.iter().partition(|p| crate::config::check_peer(p).is_ok());
        self.targets.extend(good.into_iter().cloned());
        self.out.push_back(Output::Persist(Persist::Targets(self.targets.clone())));
        bad.into_iter().map(|p| format!("invalid peer name {p:?}, should be host[:port]")).collect()
    }
    pub(crate) fn forget(&mut self, peers: &[String], _now: Now) {
        self.targets.retain(|t| !peers.contains(t));
        self.out.push_back(Output::Persist(Persist::Targets(self.targets.clone())));
    }
    pub(crate) fn handle_resolved(&mut self, _: ResolveId, _: Result<Vec<IpAddr>, String>, _: Now) {}
    pub(crate) fn handle_accepted(&mut self, _: SocketAddr, _: SocketAddr, _: Now) -> Option<ConnectionId> {
        None
    }
    pub(crate) fn accept_delay(&self, _: Now) -> Duration {
        Duration::ZERO
    }
    pub(crate) fn handle_dialled(&mut self, _: ConnectionId, _: SocketAddr, _: SocketAddr, _: Now) {}
    pub(crate) fn handle_dial_failed(&mut self, _: ConnectionId, _: String, _: Now) {}
    pub(crate) fn handle_stream(&mut self, _: ConnectionId, _: &[u8], _: Now) {}
    pub(crate) fn handle_written(&mut self, _: ConnectionId, _: usize, _: Now) {}
    pub(crate) fn handle_closed(&mut self, _: ConnectionId, _: String, _: Now) {}
    pub(crate) fn handle_timeout(&mut self, _: Now) {}
    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        None
    }
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }
    pub(crate) fn shutdown(&mut self, _: Now) {}
}
