//! One simulated host: a peer that may be up or down, its disk, its data path, and the containers on its bridge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_mesh::Persist;
use weave_node::{Config, Node, Output};
use weave_overlay::forward::{Fact, Forwarder};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Offload;
use weave_types::{Instant, MacAddr, Now, PeerName, PeerUid, ShortId};

use crate::net::HostId;
use crate::world::PORT;

/// How a host's peer is configured.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The password, if any.
    pub password: Option<String>,
    /// Whether it connects to peers that it only heard of.
    pub discovery: bool,
    /// Most connections; 0 for no limit.
    pub connection_limit: usize,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { password: None, discovery: true, connection_limit: 200 }
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Persisted targets.
    pub targets: Vec<String>,
    /// Persisted short id.
    pub short_id: Option<ShortId>,
    /// A restarted peer begins at this topology version.
    pub version_ceiling: u64,
}

/// An output on its way out of a host.
pub(crate) enum Sent {
    Node(Output),
    Datagram { to: SocketAddr, df: bool, bytes: Vec<u8> },
}

/// A simulated host.
pub struct Host {
    /// Its number.
    pub id: HostId,
    /// The peer, if it is running.
    pub node: Option<Node>,
    /// What the peer has persisted.
    pub disk: Disk,
    /// Frames that reached the local bridge from elsewhere, in order.
    pub delivered: Vec<Vec<u8>>,
    /// MACs of the containers on the bridge.
    pub containers: BTreeSet<MacAddr>,
    /// Counts crashes: connections belong to one incarnation.
    pub incarnation: u32,
    /// Versions that earlier incarnations have shown to others.
    pub highest_version: u64,
    pub(crate) wake: u32,
    pub(crate) next_wake: Option<Instant>,
    pub(crate) wake_reason: &'static str,
    options: HostOptions,
    forwarder: Forwarder,
    io: SimIo,
    crash_after: Option<u16>,
    rng: ChaCha12Rng,
}

impl Host {
    pub(crate) fn new(id: HostId, options: HostOptions, seed: u64) -> Host {
        Host {
            id,
            node: None,
            disk: Disk::default(),
            delivered: Vec::new(),
            containers: BTreeSet::new(),
            incarnation: 0,
            highest_version: 0,
            wake: 0,
            next_wake: None,
            wake_reason: "",
            options,
            forwarder: Forwarder::new(),
            io: SimIo::default(),
            crash_after: None,
            rng: ChaCha12Rng::seed_from_u64(seed),
        }
    }

    /// The peer name of a host: the order of names is not the order of numbers, so that nothing depends on it by chance.
    pub fn name(id: HostId) -> PeerName {
        let mixed = (u64::from(id.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        PeerName::from_number((mixed & 0xfcff_ffff_ffff) | 0x0200_0000_0000).unwrap_or(PeerName::UNKNOWN)
    }

    pub(crate) fn start(&mut self, now: Now) {
        assert!(self.node.is_none(), "{:?} is running", self.id);
        let mut mesh = weave_mesh::Config::new(
            Host::name(self.id),
            PeerUid(self.rng.random_range(1..=u64::MAX)),
            ShortId::new(self.rng.random_range(0..ShortId::COUNT)).expect("below the count"),
        );
        mesh.nickname = format!("host{}", self.id.0);
        mesh.port = PORT;
        mesh.version = self.disk.version_ceiling;
        mesh.password = self.options.password.as_deref().map(Into::into);
        mesh.discovery = self.options.discovery;
        mesh.connection_limit = self.options.connection_limit;
        if let Some(id) = self.disk.short_id {
            mesh.short_id = Some(id);
        }
        self.node = Some(Node::new(Config::new(mesh), ChaCha12Rng::seed_from_u64(self.rng.random()), now));
    }

    pub(crate) fn crash(&mut self) {
        self.node = None;
        self.incarnation += 1;
        self.next_wake = None;
        self.wake += 1;
        self.forwarder = Forwarder::new();
        self.io = SimIo::default();
        self.crash_after = None;
    }

    pub(crate) fn crash_after(&mut self, outputs: u16) {
        if self.node.is_some() {
            self.crash_after = Some(outputs);
        }
    }

    pub(crate) fn cancel_crash(&mut self) {
        self.crash_after = None;
    }

    /// What the peer last asked to be woken for.
    pub fn wake_reason(&self) -> &'static str {
        self.wake_reason
    }

    /// Whether the crash that was asked for has come.
    pub(crate) fn crash_due(&self) -> bool {
        self.crash_after == Some(0)
    }

    pub(crate) fn local_frame(&mut self, frame: &[u8], now: Instant) {
        if self.node.is_some() {
            self.forwarder.handle_local(frame, Offload::NONE, now, &mut self.io);
            self.forwarder.flush(&mut self.io);
        }
    }

    pub(crate) fn datagram(&mut self, from: SocketAddr, mut bytes: Vec<u8>, now: Instant) {
        if self.node.is_some() {
            self.forwarder.handle_datagram(from, &mut bytes, now, &mut self.io);
            self.forwarder.flush(&mut self.io);
        }
    }

    /// The next thing that leaves the host. Facts are given to the node, tables to the forwarder, on the way.
    pub(crate) fn next_output(&mut self, now: Now) -> Option<Sent> {
        let sent = self.take_output(now);
        if let (Some(_), Some(left)) = (&sent, &mut self.crash_after) {
            *left = left.saturating_sub(1);
        }
        sent
    }

    fn take_output(&mut self, now: Now) -> Option<Sent> {
        let node = self.node.as_mut()?;
        loop {
            if let Some((to, bytes)) = self.io.sent.pop_front() {
                return Some(Sent::Datagram { to: to.to, df: to.df, bytes });
            }
            self.delivered.append(&mut self.io.injected);
            if let Some(fact) = self.io.facts.pop_front() {
                node.handle_fact(fact, now);
                continue;
            }
            match node.poll_output()? {
                Output::Resolve { id, host } => {
                    let answer = host.parse().map(|ip| vec![ip]).map_err(|_| format!("lookup {host}: no such host"));
                    node.handle_resolved(id, answer, now);
                }
                Output::TablesChanged => self.forwarder.set_tables(node.tables()),
                Output::Persist(persist) => {
                    match &persist {
                        Persist::Targets(targets) => self.disk.targets.clone_from(targets),
                        Persist::ShortId(id) => self.disk.short_id = Some(*id),
                        Persist::VersionCeiling(version) => self.disk.version_ceiling = *version,
                    }
                    return Some(Sent::Node(Output::Persist(persist)));
                }
                Output::Datagram { to, df, bytes, .. } => return Some(Sent::Datagram { to, df, bytes }),
                Output::Event(_) => {}
                other => return Some(Sent::Node(other)),
            }
        }
    }
}

/// The forwarder's world: lists.
#[derive(Default)]
struct SimIo {
    open: BTreeMap<u32, (Destination, Vec<u8>)>,
    next: u32,
    sent: VecDeque<(Destination, Vec<u8>)>,
    injected: Vec<Vec<u8>>,
    facts: VecDeque<Fact>,
}

impl Io for SimIo {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        self.next += 1;
        assert!(!self.open.values().any(|(open, _)| *open == to), "two open slots for one destination");
        self.open.insert(self.next, (to, vec![0xa5; room]));
        Slot(self.next)
    }

    fn buffer(&mut self, slot: Slot) -> &mut [u8] {
        &mut self.open.get_mut(&slot.0).expect("slot is open").1
    }

    fn commit(&mut self, slot: Slot, len: usize) {
        let (to, mut bytes) = self.open.remove(&slot.0).expect("slot is open");
        if len > 0 {
            bytes.truncate(len);
            self.sent.push_back((to, bytes));
        }
    }

    fn inject(&mut self, frame: &[u8]) {
        self.injected.push(frame.to_vec());
    }

    fn fact(&mut self, fact: Fact) {
        self.facts.push_back(fact);
    }
}
