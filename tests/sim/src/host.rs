//! One simulated host: a peer that may be up or down, its disk, its data path, and the containers on its bridge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::Allocator;
use weave_mesh::{ConnectionError, ConnectionEvent, Persist};
use weave_node::{Config, Event, IpamConfig, Node, Output};
use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Forwarder, Tables};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Offload;
use weave_types::{Instant, MacAddr, Now, PeerName, PeerUid, ShortId};

use crate::clock::{self, Clock};
use crate::net::HostId;
use crate::sabotage::Sabotage;
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
    /// The short id of its first start; `None`: any.
    pub short_id: Option<ShortId>,
    /// Its timers fire late.
    pub late_timers: bool,
    /// A mistake of its driver.
    pub sabotage: Option<Sabotage>,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions {
            password: None,
            discovery: true,
            connection_limit: 200,
            short_id: None,
            late_timers: false,
            sabotage: None,
        }
    }
}

/// How a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL: the kernel resets its connections.
    Killed,
    /// The whole host is gone without a word.
    PowerLost,
}

/// What survives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// Persisted targets.
    pub targets: Vec<String>,
    /// Persisted short id.
    pub short_id: Option<ShortId>,
    /// A restarted peer begins at this topology version.
    pub version_ceiling: u64,
}

/// What a node with address allocation has put out, for those who keep the books.
pub(crate) enum Noted {
    /// To be stored.
    Persist(weave_ipam::Persist),
    /// An answer.
    Done(weave_ipam::RequestId, Result<weave_ipam::Answer, weave_ipam::RequestError>),
    /// Something for the log.
    Event(weave_ipam::Event),
    /// It has ended a connection to a peer because of what that said.
    Refused(String),
    /// It has died where it was to die; what it was then.
    Died(Death, Box<Allocator>),
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
    /// What the peer has been told is persisted. The same, unless the driver is sabotaged.
    pub promised: Disk,
    /// Frames that reached the local bridge from elsewhere, in order.
    pub delivered: Vec<Vec<u8>>,
    /// MACs of the containers on the bridge.
    pub containers: BTreeSet<MacAddr>,
    /// Counts crashes: connections belong to one incarnation.
    pub incarnation: u32,
    /// Versions that earlier incarnations have shown to others.
    pub highest_version: u64,
    /// Times that the peer was woken by its timer.
    pub wakes: u64,
    pub(crate) wake: u32,
    pub(crate) next_wake: Option<Instant>,
    pub(crate) wake_reason: &'static str,
    /// How the peer is configured.
    pub options: HostOptions,
    /// Its peer's name.
    pub(crate) name: PeerName,
    /// What address allocation starts with next time; name, nickname and uid are filled in.
    pub(crate) allocation: Option<IpamConfig>,
    /// Of address allocation, in order, since somebody looked.
    pub(crate) noted: Vec<Noted>,
    /// What [`Sabotage::LateRecords`] holds back.
    late_record: Option<weave_ipam::Persist>,
    /// The host's clocks.
    pub(crate) clock: Clock,
    /// It behaves like 2.8.1, which ends itself where it loses part of its own space.
    pub(crate) legacy: bool,
    /// The tables that [`Sabotage::LateTables`] holds back.
    late_tables: Option<Arc<Tables>>,
    /// What [`Sabotage::LatePersist`] holds back.
    late_persist: Option<Persist>,
    forwarder: Option<Forwarder>,
    io: SimIo,
    death: Option<(u16, Death)>,
    rng: ChaCha12Rng,
}

impl Host {
    pub(crate) fn new(id: HostId, options: HostOptions, seed: u64) -> Host {
        Host {
            id,
            node: None,
            disk: Disk { short_id: options.short_id, ..Disk::default() },
            promised: Disk { short_id: options.short_id, ..Disk::default() },
            delivered: Vec::new(),
            containers: BTreeSet::new(),
            incarnation: 0,
            highest_version: 0,
            wakes: 0,
            wake: 0,
            next_wake: None,
            wake_reason: "",
            options,
            name: Host::name(id),
            allocation: None,
            noted: Vec::new(),
            late_record: None,
            clock: Clock::default(),
            legacy: false,
            late_tables: None,
            late_persist: None,
            forwarder: None,
            io: SimIo::default(),
            death: None,
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
        let uid = PeerUid(self.rng.random_range(1..=u64::MAX));
        let mut mesh = weave_mesh::Config::new(self.name, format!("host{}", self.id.0), uid);
        mesh.port = PORT;
        mesh.version = self.disk.version_ceiling;
        mesh.password = self.options.password.as_deref().and_then(weave_mesh::Secret::new);
        mesh.discovery = self.options.discovery;
        mesh.connection_limit = self.options.connection_limit;
        mesh.short_id = self.disk.short_id;
        let mut config = Config::new(mesh);
        config.ipam = self.allocation.take().map(|mut ipam| {
            ipam.config.name = config.mesh.name;
            ipam.config.uid = uid;
            ipam.config.nickname.clone_from(&config.mesh.nickname);
            ipam
        });
        let mut node = Node::new(config, ChaCha12Rng::seed_from_u64(self.rng.random()), now);
        self.forwarder = Some(Forwarder::new(node.tables()));
        let own = own_record(&node, now);
        let promised = &self.promised;
        assert!(
            own.version >= promised.version_ceiling,
            "{:?} begins at version {}, it may have shown all below {}",
            self.id,
            own.version,
            promised.version_ceiling
        );
        if promised.short_id.is_some() {
            assert_eq!(own.short_id, promised.short_id, "short id of {:?} after a restart", self.id);
        }
        self.node = Some(node);
    }

    /// What the data path of a running peer knows.
    pub fn tables(&self) -> Option<&Arc<Tables>> {
        self.forwarder.as_ref().map(Forwarder::tables)
    }

    pub(crate) fn crash(&mut self) {
        self.node = None;
        self.incarnation += 1;
        self.next_wake = None;
        self.wake += 1;
        self.forwarder = None;
        self.io = SimIo::default();
        self.late_tables = None;
        self.late_persist = None;
        self.late_record = None;
        self.death = None;
    }

    /// A new disk. The peer is down.
    pub(crate) fn lose_disk(&mut self) {
        self.disk = Disk { short_id: self.options.short_id, ..Disk::default() };
        self.promised = self.disk.clone();
        self.highest_version = 0;
    }

    /// The peer is to die at its so many-th output from now, before it is carried out.
    pub(crate) fn die_after(&mut self, outputs: u16, how: Death) {
        if self.node.is_some() {
            self.death = Some((outputs, how));
        }
    }

    pub(crate) fn survive(&mut self) {
        self.death = None;
    }

    /// With a chance of one in `n`: whether the driver makes this mistake now.
    pub(crate) fn fumbles(&mut self, sabotage: Sabotage, n: u32) -> bool {
        self.options.sabotage == Some(sabotage) && self.rng.random_ratio(1, n)
    }

    /// How late its next timer is.
    pub(crate) fn lateness(&mut self) -> Duration {
        if self.options.late_timers { clock::lateness(&mut self.rng) } else { Duration::ZERO }
    }

    /// What happened to frames here, since the peer's start.
    pub fn stats(&self) -> Vec<(String, u64)> {
        let Some(forwarder) = &self.forwarder else { return Vec::new() };
        let stats = forwarder.stats();
        let drops =
            weave_switch::DropReason::ALL.iter().zip(stats.switch_drops).map(|(r, n)| (format!("{r:?}"), n));
        stats.named().map(|(name, n)| (name.to_owned(), n)).chain(drops).filter(|(_, n)| *n > 0).collect()
    }

    /// What the peer last asked to be woken for.
    pub fn wake_reason(&self) -> &'static str {
        self.wake_reason
    }

    /// Whether the death that was asked for has come.
    pub(crate) fn death_due(&self) -> Option<Death> {
        self.death.filter(|(left, _)| *left == 0).map(|(_, how)| how)
    }

    fn persist(&mut self, persist: &Persist) {
        self.promised.store(persist);
        match self.options.sabotage {
            Some(Sabotage::LosePersist) => {}
            Some(Sabotage::LatePersist) => {
                if let Some(late) = self.late_persist.replace(persist.clone()) {
                    self.disk.store(&late);
                }
            }
            _ => self.disk.store(persist),
        }
    }

    fn persist_record(&mut self, persist: weave_ipam::Persist) {
        let written = match self.options.sabotage {
            Some(Sabotage::LoseRecords) => None,
            Some(Sabotage::LateRecords) => self.late_record.replace(persist),
            _ => Some(persist),
        };
        self.noted.extend(written.map(Noted::Persist));
    }

    fn publish(&mut self, tables: Arc<Tables>) {
        let Some(forwarder) = &mut self.forwarder else { return };
        match self.options.sabotage {
            Some(Sabotage::LoseTables) if self.rng.random_ratio(1, 4) => {}
            Some(Sabotage::LateTables) => {
                if let Some(late) = self.late_tables.replace(tables) {
                    forwarder.set_tables(late, &mut self.io);
                }
            }
            _ => forwarder.set_tables(tables, &mut self.io),
        }
    }

    pub(crate) fn local_frame(&mut self, frame: &[u8], now: Instant) {
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.handle_local(frame, Offload::NONE, now, &mut self.io);
            forwarder.flush(&mut self.io);
        }
        if self.fumbles(Sabotage::Echo, 10) {
            self.delivered.push(frame.to_vec());
        }
    }

    pub(crate) fn datagram(&mut self, from: SocketAddr, mut bytes: Vec<u8>, now: Instant) {
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.handle_datagram(from, &mut bytes, now, &mut self.io);
            forwarder.flush(&mut self.io);
        }
    }

    /// The next thing that leaves the host. Facts are given to the node, tables to the forwarder, on the way.
    pub(crate) fn next_output(&mut self, now: Now) -> Option<Sent> {
        let sent = self.take_output(now);
        // Where addresses are watched, so few of the outputs have to do with them that datagrams are not counted.
        let counts = match &sent {
            Some(Sent::Datagram { .. }) => self.node.as_ref().is_some_and(|n| n.allocator().is_none()),
            other => other.is_some(),
        };
        if let (true, Some((left, _))) = (counts, &mut self.death) {
            *left = left.saturating_sub(1);
        }
        sent
    }

    fn take_output(&mut self, now: Now) -> Option<Sent> {
        loop {
            let node = self.node.as_mut()?;
            if let Some((to, bytes)) = self.io.sent.pop_front() {
                if refused(to.df, &bytes) {
                    self.io.events.push_back(ForwarderEvent::PathMtu { conn: to.conn, mtu: LOCAL_MTU });
                    continue;
                }
                return Some(Sent::Datagram { to: to.to, df: to.df, bytes });
            }
            if let Some(frame) = self.io.injected.pop_front() {
                if self.fumbles(Sabotage::InjectTwice, 10) {
                    self.delivered.push(frame.clone());
                }
                self.delivered.push(frame);
                continue;
            }
            if let Some(event) = self.io.events.pop_front() {
                match (event, self.options.sabotage) {
                    (ForwarderEvent::Control { .. }, Some(Sabotage::LoseSpecials)) => {}
                    (ForwarderEvent::Switch(_), Some(Sabotage::LoseMacs)) => {}
                    _ => node.handle_forwarder_event(event, now),
                }
                continue;
            }
            match node.poll_output()? {
                Output::Resolve { id, host } => {
                    let answer =
                        host.parse().map(|ip| vec![ip]).map_err(|_| format!("lookup {host}: no such host"));
                    node.handle_resolved(id, answer, now);
                }
                Output::TablesChanged => {
                    let tables = node.tables();
                    self.publish(tables);
                }
                Output::Persist(persist) => {
                    let dying = matches!(self.death, Some((0..=1, _)));
                    if !dying || self.rng.random_bool(0.5) {
                        self.persist(&persist);
                    }
                    return Some(Sent::Node(Output::Persist(persist)));
                }
                Output::PersistIpam(persist) => {
                    let dying = matches!(self.death, Some((0..=1, _)));
                    if !dying || self.rng.random_bool(0.5) {
                        self.persist_record(persist.clone());
                    }
                    return Some(Sent::Node(Output::PersistIpam(persist)));
                }
                Output::Done { request, result } => {
                    let dying = matches!(self.death, Some((0..=1, _)));
                    if !dying {
                        self.noted.push(Noted::Done(request, result.clone()));
                    }
                    return Some(Sent::Node(Output::Done { request, result }));
                }
                Output::Event(Event::Ipam(event)) => {
                    // What it had stored is consistent.
                    if self.legacy && matches!(event, weave_ipam::Event::Yielded { .. }) {
                        self.death = Some((0, Death::Killed));
                    }
                    self.noted.push(Noted::Event(event));
                }
                Output::Event(Event::Mesh(weave_mesh::Event::Connection(
                    _,
                    peer,
                    ConnectionEvent::Ended(
                        why @ (ConnectionError::Receiver(_) | ConnectionError::ProtocolViolation(_)),
                    ),
                ))) if node.allocator().is_some() => {
                    self.noted.push(Noted::Refused(format!("{}: {why}", peer.name)));
                }
                Output::Datagram { conn, df, bytes, .. } if refused(df, &bytes) => {
                    node.handle_forwarder_event(ForwarderEvent::PathMtu { conn, mtu: LOCAL_MTU }, now);
                }
                Output::Datagram { to, df, bytes, .. } => return Some(Sent::Datagram { to, df, bytes }),
                Output::Event(_) => {}
                other => return Some(Sent::Node(other)),
            }
        }
    }
}

impl Disk {
    fn store(&mut self, persist: &Persist) {
        match persist {
            Persist::Targets(targets) => self.targets.clone_from(targets),
            Persist::ShortId(id) => self.short_id = Some(*id),
            Persist::VersionCeiling(version) => self.version_ceiling = *version,
        }
    }
}

/// A peer's record of itself.
pub(crate) fn own_record(node: &Node, now: Now) -> weave_mesh::PeerStatus {
    let own = node.name();
    let peers = node.status(now).mesh.peers;
    peers.into_iter().find(|p| p.label.name == own).expect("a peer knows itself")
}

/// MTU of each host's own interface: the kernel refuses what is longer. A smaller MTU on the way is a black hole.
const LOCAL_MTU: u16 = 1500;

fn refused(df: bool, payload: &[u8]) -> bool {
    const IP_UDP_HEADERS: usize = 28;
    df && payload.len() + IP_UDP_HEADERS > usize::from(LOCAL_MTU)
}

/// The forwarder's world: lists.
#[derive(Default)]
struct SimIo {
    open: BTreeMap<u32, (Destination, Vec<u8>)>,
    next: u32,
    sent: VecDeque<(Destination, Vec<u8>)>,
    injected: VecDeque<Vec<u8>>,
    events: VecDeque<ForwarderEvent>,
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
        self.injected.push_back(frame.to_vec());
    }

    fn event(&mut self, event: ForwarderEvent) {
        self.events.push_back(event);
    }
}
