//! A simulated host: a peer that may be up or down, its disk, its data path, and the containers on its bridge.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_dns::{HostName, Names, RegistryConfig};
use weave_ipam::{Allocator, Output as IpamOutput};
use weave_mesh::{ConnectionError, ConnectionEvent, Persist};
use weave_node::{Config, Event, IpamConfig, Node, Output, WarpConfig};
use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Forwarder, Tables};
use weave_overlay::{Destination, Io, Slot};
use weave_switch::Offload;
use weave_types::{Instant, MacAddr, Now, PeerName, PeerUid, ShortId};

use crate::clock::{self, Clock};
use crate::driver_fault::DriverFault;
use crate::kernel::{ForUserSpace, Kernel};
use crate::load::Load;
use crate::net::{HostId, IP_UDP_HEADERS, PORT};

/// Configuration of a peer and its host.
#[derive(Clone, Debug)]
pub struct HostOptions {
    pub password: Option<String>,
    pub discovery: bool,
    /// 0 for no limit.
    pub connection_limit: usize,
    /// The short id of its first start; `None` for a random one.
    pub short_id: Option<ShortId>,
    /// The host runs an allocator without a node.
    pub allocator_only: bool,
    /// The node has a registry of names in this domain.
    pub domain: Option<&'static str>,
    /// Timers fire late.
    pub late_timers: bool,
    pub driver_fault: Option<DriverFault>,
    /// The kernel can forward frames.
    pub fastdp: bool,
    pub warp: Option<WarpConfig>,
    /// The network card loses the packets that it has cut from a larger send.
    pub loses_segments: bool,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions {
            password: None,
            discovery: true,
            connection_limit: 200,
            short_id: None,
            allocator_only: false,
            domain: None,
            late_timers: false,
            driver_fault: None,
            fastdp: false,
            warp: None,
            loses_segments: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// SIGKILL: the kernel resets its connections.
    Killed,
    /// The host is off: other peers are not notified.
    PowerLost,
}

/// What the mesh has persisted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    pub targets: Vec<String>,
    pub short_id: Option<ShortId>,
    /// A restarted peer starts at this topology version.
    pub version_ceiling: u64,
}

/// An output of address allocation, for the checks.
pub(crate) enum Observation {
    Output(IpamOutput),
    /// The node has ended a connection because of an error of the other peer, which the text names.
    ConnectionEnded(String),
    /// The planned crash has happened; with the allocator at that time.
    Crashed(CrashKind, Rc<Allocator>),
}

/// An output of a host.
pub(crate) enum HostOutput {
    Node(Output),
    Datagram {
        to: SocketAddr,
        df: bool,
        bytes: Vec<u8>,
    },
    /// An output that the host itself has handled.
    Internal,
}

pub struct Host {
    pub id: HostId,
    /// The running node.
    pub node: Option<Node>,
    /// The running allocator of a host with [`HostOptions::allocator_only`].
    allocator: Option<Rc<Allocator>>,
    pub disk: Disk,
    /// What the peer has asked to persist; equal to `disk` without a driver fault.
    pub(crate) expected_disk: Disk,
    /// Frames that were delivered to the local containers, in order.
    pub(crate) delivered: Vec<Vec<u8>>,
    /// The names that were published last, and how often any were.
    pub names: Names,
    pub(crate) names_published: u64,
    /// MACs of the containers on the bridge.
    pub(crate) containers: BTreeSet<MacAddr>,
    /// Number of crashes: connections and events belong to one incarnation.
    pub incarnation: u32,
    /// The highest topology version of all incarnations.
    pub(crate) highest_version: u64,
    /// Number of times that a timer of the peer has fired.
    pub(crate) wakes: u64,
    /// Number of the planned wake-up; all earlier ones are obsolete.
    pub(crate) wake_id: u32,
    /// Time of the planned wake-up, without the delay of the timer.
    pub(crate) next_wake: Option<Instant>,
    /// The timer for which the wake-up is planned.
    pub(crate) wake_reason: &'static str,
    pub(crate) options: HostOptions,
    /// The name of an allocator; [`Host::name`] unless a test changes it.
    pub(crate) name: PeerName,
    /// Configuration of the allocator at the next start, except for the UID.
    pub(crate) allocation: Option<IpamConfig>,
    /// Outputs of address allocation that were not read yet, in their order.
    pub(crate) observations: Vec<Observation>,
    /// The write that [`DriverFault::LateRecords`] delays.
    late_record: Option<weave_ipam::Persist>,
    pub(crate) clock: Clock,
    pub(crate) load: Load,
    /// The peer behaves like 2.8.1, which aborts when it loses part of its own space.
    pub(crate) legacy: bool,
    /// The tables that [`DriverFault::LateTables`] delays.
    late_tables: Option<Arc<Tables>>,
    /// The write that [`DriverFault::LatePersist`] delays.
    late_persist: Option<Persist>,
    forwarder: Option<Forwarder>,
    io: SimIo,
    pub(crate) kernel: Kernel,
    /// Number of outputs until the crash.
    planned_crash: Option<(u16, CrashKind)>,
    rng: ChaCha12Rng,
}

impl Host {
    pub(crate) fn new(id: HostId, options: HostOptions, seed: u64) -> Host {
        Host {
            id,
            node: None,
            allocator: None,
            disk: Disk { short_id: options.short_id, ..Disk::default() },
            expected_disk: Disk { short_id: options.short_id, ..Disk::default() },
            delivered: Vec::new(),
            names: Names::default(),
            names_published: 0,
            containers: BTreeSet::new(),
            incarnation: 0,
            highest_version: 0,
            wakes: 0,
            wake_id: 0,
            next_wake: None,
            wake_reason: "",
            options,
            name: Host::name(id),
            allocation: None,
            observations: Vec::new(),
            late_record: None,
            clock: Clock::default(),
            load: Load::default(),
            legacy: false,
            late_tables: None,
            late_persist: None,
            forwarder: None,
            io: SimIo::default(),
            kernel: Kernel::default(),
            planned_crash: None,
            rng: ChaCha12Rng::seed_from_u64(seed),
        }
    }

    /// The peer name of a host. Names are not in the order of the numbers, so that no test depends on the order by chance.
    pub fn name(id: HostId) -> PeerName {
        let mixed = (u64::from(id.0) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        PeerName::from_number((mixed & 0xfcff_ffff_ffff) | 0x0200_0000_0000).unwrap_or(PeerName::UNKNOWN)
    }

    pub(crate) fn start(&mut self, now: Now) {
        assert!(!self.is_running(), "{} is running", self.id);
        let uid = PeerUid(self.rng.random_range(1..=u64::MAX));
        let node_rng = ChaCha12Rng::seed_from_u64(self.rng.random());
        if self.options.allocator_only {
            let ipam = self.allocation.take();
            self.allocator = ipam.map(|mut ipam| {
                ipam.config.uid = uid;
                Rc::new(Allocator::new(ipam.config, node_rng, ipam.loaded, now))
            });
            return;
        }
        let mut mesh = weave_mesh::Config::new(self.name, format!("host{}", self.id.0), uid);
        mesh.port = PORT;
        mesh.version = self.disk.version_ceiling;
        mesh.password = self.options.password.as_deref().and_then(weave_mesh::Secret::new);
        mesh.discovery = self.options.discovery;
        mesh.connection_limit = self.options.connection_limit;
        mesh.short_id = self.disk.short_id;
        mesh.digests = !self.legacy;
        let mut config = Config::new(mesh);
        config.ipam = self.allocation.take().map(|mut ipam| {
            ipam.config.name = config.mesh.name;
            ipam.config.uid = uid;
            ipam.config.nickname.clone_from(&config.mesh.nickname);
            ipam
        });
        config.dns = self
            .options
            .domain
            .and_then(|domain| HostName::parse(domain).ok())
            .map(|domain| RegistryConfig { own: self.name, domain });
        self.names = Names::default();
        let mut node = Node::new(config, node_rng, now);
        if self.legacy {
            node.with_registry(now, |registry| registry.set_policy(weave_dns::Policy::legacy()));
        }
        if self.options.fastdp {
            node.enable_fastdp();
            node.set_local_mtu(BRIDGE_MTU, now);
        }
        if let Some(warp) = self.options.warp {
            node.enable_warp(warp);
        }
        self.kernel.start(now.mono);
        self.forwarder = Some(Forwarder::new(node.tables(), 0));
        let own = own_record(&node, now);
        let (id, expected) = (self.id, &self.expected_disk);
        assert!(
            own.version >= expected.version_ceiling,
            "{id} starts at version {}, but may have sent all below {}",
            own.version,
            expected.version_ceiling
        );
        if expected.short_id.is_some() {
            assert_eq!(own.short_id, expected.short_id, "short id of {id} after a restart");
        }
        self.node = Some(node);
    }

    /// Whether the peer is up.
    pub fn is_running(&self) -> bool {
        self.node.is_some() || self.allocator.is_some()
    }

    /// The running allocator, in a node or alone.
    pub(crate) fn allocator(&self) -> Option<&Allocator> {
        self.node.as_ref().map_or(self.allocator.as_deref(), Node::allocator)
    }

    /// A snapshot of the running allocator.
    pub(crate) fn share_allocator(&self) -> Option<Rc<Allocator>> {
        match &self.node {
            Some(node) => node.allocator().map(|allocator| Rc::new(allocator.clone())),
            None => self.allocator.clone(),
        }
    }

    /// An input of the running allocator.
    pub(crate) fn with_allocator<R>(
        &mut self,
        now: Now,
        input: impl FnOnce(&mut Allocator, Now) -> R,
    ) -> Option<R> {
        match &mut self.node {
            Some(node) => node.with_allocator(now, |allocator| input(allocator, now)),
            None => self.allocator.as_mut().map(|allocator| input(Rc::make_mut(allocator), now)),
        }
    }

    /// Runs the timers that are due; false if the peer is down.
    pub(crate) fn handle_timeout(&mut self, now: Now) -> bool {
        match (&mut self.node, &mut self.allocator) {
            (Some(node), _) => {
                node.handle_timeout(now);
                if self.kernel.handle_timeout(now.mono) {
                    self.kernel.publish(&node.tables());
                }
            }
            (None, Some(allocator)) => Rc::make_mut(allocator).handle_timeout(now),
            (None, None) => return false,
        }
        true
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match &self.node {
            Some(node) => {
                let kernel = self.kernel.poll_timeout().map(|at| (at, "tables of the last daemon"));
                [node.poll_timeout(), kernel].into_iter().flatten().min()
            }
            None => self.allocator.as_ref()?.poll_timeout(),
        }
    }

    /// The published tables of a running node.
    pub fn tables(&self) -> Option<&Arc<Tables>> {
        self.forwarder.as_ref().map(Forwarder::tables)
    }

    pub(crate) fn crash(&mut self) {
        self.node = None;
        self.allocator = None;
        self.incarnation += 1;
        self.next_wake = None;
        self.wake_id += 1;
        self.forwarder = None;
        self.io = SimIo::default();
        self.late_tables = None;
        self.late_persist = None;
        self.late_record = None;
        self.planned_crash = None;
    }

    /// Replaces the disk by an empty one.
    pub(crate) fn lose_disk(&mut self) {
        self.disk = Disk { short_id: self.options.short_id, ..Disk::default() };
        self.expected_disk = self.disk.clone();
        self.highest_version = 0;
    }

    /// Plans a crash at the output with this number, before it is handled. A stopped allocator crashes after its next start.
    pub(crate) fn crash_after(&mut self, outputs: u16, kind: CrashKind) {
        if self.is_running() || self.options.allocator_only {
            self.planned_crash = Some((outputs, kind));
        }
    }

    pub(crate) fn cancel_crash(&mut self) {
        self.planned_crash = None;
    }

    /// Whether this fault is planted and occurs now, with a chance of one in `n`.
    pub(crate) fn fault_occurs(&mut self, fault: DriverFault, n: u32) -> bool {
        self.options.driver_fault == Some(fault) && self.rng.random_ratio(1, n)
    }

    /// Until when the next input has to wait, if the host is busy with other things.
    pub(crate) fn busy_until(&mut self, now: Instant) -> Option<Instant> {
        self.load.busy_until(now, &mut self.rng)
    }

    pub(crate) fn timer_delay(&mut self) -> Duration {
        if self.options.late_timers { clock::random_timer_delay(&mut self.rng) } else { Duration::ZERO }
    }

    /// Counters of frames since the start of the peer.
    pub fn stats(&self) -> Vec<(String, u64)> {
        let Some(forwarder) = &self.forwarder else { return Vec::new() };
        let stats = forwarder.stats();
        let drops =
            weave_switch::DropReason::ALL.iter().zip(stats.switch_drops).map(|(r, n)| (format!("{r:?}"), n));
        stats.named().map(|(name, n)| (name.to_owned(), n)).chain(drops).filter(|(_, n)| *n > 0).collect()
    }

    /// The planned crash, if it is due.
    pub(crate) fn crash_due(&self) -> Option<CrashKind> {
        self.planned_crash.filter(|(outputs, _)| *outputs == 0).map(|(_, kind)| kind)
    }

    /// Whether the planned crash happens at the present output: of its effects only a write to the disk may remain.
    fn is_crashing(&self) -> bool {
        matches!(self.planned_crash, Some((0..=1, _)))
    }

    fn persist(&mut self, persist: &Persist) {
        self.expected_disk.store(persist);
        match self.options.driver_fault {
            Some(DriverFault::LosePersist) => {}
            Some(DriverFault::LatePersist) => {
                if let Some(late) = self.late_persist.replace(persist.clone()) {
                    self.disk.store(&late);
                }
            }
            _ => self.disk.store(persist),
        }
    }

    fn persist_record(&mut self, persist: weave_ipam::Persist) {
        let written = match self.options.driver_fault {
            Some(DriverFault::LoseRecords) => None,
            Some(DriverFault::LateRecords) => self.late_record.replace(persist),
            _ => Some(persist),
        };
        self.observations.extend(written.map(|persist| Observation::Output(IpamOutput::Persist(persist))));
    }

    fn publish(&mut self, tables: Arc<Tables>) {
        self.kernel.publish(&tables);
        let Some(forwarder) = &mut self.forwarder else { return };
        match self.options.driver_fault {
            Some(DriverFault::LoseTables) if self.rng.random_ratio(1, 4) => {}
            Some(DriverFault::LateTables) => {
                if let Some(late) = self.late_tables.replace(tables) {
                    forwarder.set_tables(late, &mut self.io);
                }
            }
            _ => forwarder.set_tables(tables, &mut self.io),
        }
    }

    /// A local container sends a frame.
    pub(crate) fn local_frame(&mut self, frame: &[u8], now: Instant) {
        if self.kernel.local_frame(frame, now)
            && let Some(forwarder) = &mut self.forwarder
        {
            forwarder.handle_local(frame, Offload::NONE, now, &mut self.io);
            forwarder.flush(&mut self.io);
        }
        if self.fault_occurs(DriverFault::Echo, 10) {
            self.delivered.push(frame.to_vec());
        }
    }

    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, mut bytes: Vec<u8>, now: Instant) {
        if let Some(forwarder) = &mut self.forwarder {
            forwarder.handle_datagram(from, &mut bytes, now, &mut self.io);
            forwarder.flush(&mut self.io);
        }
    }

    /// A VXLAN packet arrives.
    pub(crate) fn handle_packet(&mut self, from: Ipv4Addr, packet: &[u8], now: Instant) {
        let Some(rest) = self.kernel.handle_packet(from, packet, now) else { return };
        if let Some(forwarder) = &mut self.forwarder {
            let ForUserSpace { src, dst, frame } = rest;
            forwarder.handle_relayed(src, dst, &frame, now, &mut self.io);
            forwarder.flush(&mut self.io);
        }
    }

    /// The next output of the host. Events between node and forwarder are handled on the way.
    pub(crate) fn next_output(&mut self, now: Now) -> Option<HostOutput> {
        let output = self.take_output(now);
        // With address allocation datagrams are not counted: most crashes would not be between outputs of the allocator.
        let counts = match &output {
            Some(HostOutput::Datagram { .. }) => self.allocator().is_none(),
            other => other.is_some(),
        };
        if let (true, Some((outputs, _))) = (counts, &mut self.planned_crash) {
            *outputs = outputs.saturating_sub(1);
        }
        output
    }

    fn take_output(&mut self, now: Now) -> Option<HostOutput> {
        loop {
            if let Some((to, bytes)) = self.kernel.sent.pop_front() {
                return Some(HostOutput::Datagram { to, df: true, bytes });
            }
            self.delivered.extend(self.kernel.injected.drain(..));
            let Some(node) = self.node.as_mut() else {
                self.kernel.events.clear();
                return self.take_allocator_output();
            };
            if let Some(event) = self.kernel.events.pop_front() {
                node.handle_kernel_event(event, now);
                continue;
            }
            if let Some((to, bytes)) = self.io.sent.pop_front() {
                if exceeds_local_mtu(to.df, &bytes) {
                    self.io.events.push_back(ForwarderEvent::InterfaceMtu { conn: to.conn, mtu: LOCAL_MTU });
                    continue;
                }
                return Some(HostOutput::Datagram { to: to.to, df: to.df, bytes });
            }
            if let Some(frame) = self.io.injected.pop_front() {
                if self.fault_occurs(DriverFault::InjectTwice, 10) {
                    self.delivered.push(frame.clone());
                }
                self.delivered.push(frame);
                continue;
            }
            if let Some(event) = self.io.events.pop_front() {
                match (event, self.options.driver_fault) {
                    (ForwarderEvent::Control { .. }, Some(DriverFault::LoseControlFrames)) => {}
                    (ForwarderEvent::Switch(_), Some(DriverFault::LoseMacs)) => {}
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
                Output::KernelFrame { path, vni, bytes, .. } => {
                    self.kernel.send_frame(path.remote, path.port, vni, &bytes);
                }
                Output::SegmentedProbe { path, vni, probes } => {
                    self.kernel.send_probes(&path, vni, &probes, self.options.loses_segments);
                }
                Output::Batch { destination, bytes, segment, plain } => {
                    if !self.options.loses_segments {
                        let datagrams = bytes.chunks(segment.into());
                        self.io.sent.extend(datagrams.map(|datagram| (destination, datagram.to_vec())));
                    }
                    self.io.sent.push_back((destination, plain));
                }
                Output::TablesChanged => {
                    let tables = node.tables();
                    self.publish(tables);
                }
                Output::NamesChanged => {
                    self.names_published += 1;
                    if let Some(registry) = node.registry() {
                        self.names = registry.names();
                    }
                }
                Output::Persist(persist) => {
                    if !self.is_crashing() || self.rng.random_bool(0.5) {
                        self.persist(&persist);
                    }
                    return Some(HostOutput::Internal);
                }
                Output::PersistIpam(persist) => {
                    self.observe(IpamOutput::Persist(persist));
                    return Some(HostOutput::Internal);
                }
                Output::Done { request, result } => {
                    self.observe(IpamOutput::Done(request, result));
                    return Some(HostOutput::Internal);
                }
                Output::Event(Event::Ipam(event)) => self.observe(IpamOutput::Event(event)),
                Output::Event(Event::Mesh(weave_mesh::Event::Connection(
                    _,
                    peer,
                    ConnectionEvent::Ended(
                        why @ (ConnectionError::Receiver(_) | ConnectionError::ProtocolViolation(_)),
                    ),
                ))) if node.allocator().is_some() => {
                    self.observations.push(Observation::ConnectionEnded(format!("{}: {why}", peer.name)));
                }
                Output::Datagram { destination: Destination { conn, df, .. }, bytes }
                    if exceeds_local_mtu(df, &bytes) =>
                {
                    node.handle_forwarder_event(ForwarderEvent::InterfaceMtu { conn, mtu: LOCAL_MTU }, now);
                }
                Output::Datagram { destination: Destination { to, df, .. }, bytes } => {
                    return Some(HostOutput::Datagram { to, df, bytes });
                }
                Output::Event(_) => {}
                other => return Some(HostOutput::Node(other)),
            }
        }
    }

    fn take_allocator_output(&mut self) -> Option<HostOutput> {
        loop {
            let output = Rc::make_mut(self.allocator.as_mut()?).poll_output()?;
            let is_event = matches!(output, IpamOutput::Event(_));
            self.observe(output);
            if !is_event {
                return Some(HostOutput::Internal);
            }
        }
    }

    /// Keeps an output of address allocation for the checks.
    fn observe(&mut self, output: IpamOutput) {
        let crashing = self.is_crashing();
        match output {
            IpamOutput::Event(event) => {
                // The disk of 2.8.1 is consistent then.
                if self.legacy && matches!(event, weave_ipam::Event::Yielded { .. }) {
                    self.planned_crash = Some((0, CrashKind::Killed));
                }
                self.observations.push(Observation::Output(IpamOutput::Event(event)));
            }
            IpamOutput::Persist(persist) if !crashing || self.rng.random_bool(0.5) => {
                self.persist_record(persist)
            }
            IpamOutput::Persist(_) => {}
            other if !crashing => self.observations.push(Observation::Output(other)),
            _ => {}
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

/// MTU of the bridge with the containers.
const BRIDGE_MTU: usize = 1376;

/// MTU of the interface of each host: the kernel rejects longer packets, whereas the network drops what exceeds its MTU.
const LOCAL_MTU: u16 = 1500;

fn exceeds_local_mtu(df: bool, payload: &[u8]) -> bool {
    df && payload.len() + IP_UDP_HEADERS > usize::from(LOCAL_MTU)
}

/// The I/O of a forwarder, as lists.
#[derive(Default)]
struct SimIo {
    /// Reserved slots that were not committed yet.
    open: BTreeMap<u32, (Destination, Vec<u8>)>,
    last_slot: u32,
    sent: VecDeque<(Destination, Vec<u8>)>,
    injected: VecDeque<Vec<u8>>,
    events: VecDeque<ForwarderEvent>,
}

impl Io for SimIo {
    fn reserve(&mut self, to: Destination, room: usize) -> Slot {
        self.last_slot += 1;
        assert!(!self.open.values().any(|(open, _)| *open == to), "two open slots for one destination");
        self.open.insert(self.last_slot, (to, vec![0xa5; room]));
        Slot(self.last_slot)
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
