mod trace;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_dns::{Registry, RegistryConfig};
use weave_ipam::Allocator;
use weave_mesh::{Departure, Mesh, ResolveId, StreamEnd};
use weave_overlay::ForwarderEvent;
use weave_overlay::fastdp::{KernelEvent, KernelTables, vni};
use weave_overlay::forward::Tables;
use weave_switch::{ForwardingTable, Learned, MacConfig, MacTable, SwitchEvent};
use weave_types::{ConnectionId, Instant, MacAddr, Now, PeerName, ShortId};

use crate::blocked_paths::BlockedPaths;
use crate::channels::NodeChannels;
use crate::connection::{Connection, ConnectionOutput};
use crate::connections::{Connections, LIVENESS_FEATURE, SEGMENTATION_FEATURE, WarpConfig};
use crate::dns::{Dns, DnsChannels};
use crate::event::Event;
use crate::ipam::{Ipam, IpamChannels, IpamConfig};
use crate::mac_log::MacLog;
use crate::output::Output;
use crate::status::{MacReport, MacTableReport, Status};
use crate::trace::Traces;

/// Minimum interval between two log lines about conflicts of one MAC.
const CONFLICT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A large MAC table is published once in a while: a flood of new addresses must not keep this peer busy with copies of it.
/// The interval is a millisecond for so many entries.
const MACS_PER_MILLISECOND: u64 = 1024;

/// Parameters of a [`Node`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Parameters of the mesh. The node sets `overlays` itself.
    pub mesh: weave_mesh::Config,
    /// Parameters of address allocation. `None` disables it; its gossip is still forwarded for other peers.
    pub ipam: Option<IpamConfig>,
    /// Parameters of names. `None` disables them; their gossip is still forwarded for other peers.
    pub dns: Option<RegistryConfig>,
}

impl Config {
    /// Creates parameters without address allocation and names.
    pub fn new(mesh: weave_mesh::Config) -> Config {
        Config { mesh, ipam: None, dns: None }
    }
}

/// One whole peer; the crate documentation gives an overview.
pub struct Node {
    mesh: Mesh,
    macs: MacTable,
    connections: Connections,
    blocked_paths: BlockedPaths,
    ipam: Ipam,
    dns: Dns,
    traces: Traces,
    outputs: VecDeque<Output>,
    tables: Option<Arc<Tables>>,
    /// Whether `tables` is out of date.
    stale: bool,
    /// Whether [`Output::TablesChanged`] was emitted since the driver last fetched the tables.
    announced: bool,
    generation: u64,
    local_mtu: usize,
    next_expiry: Instant,
    /// When the latest conflict of a MAC was logged.
    conflicts: BTreeMap<MacAddr, Instant>,
    mac_log: MacLog,
    /// Whether the log says that the MAC table is full.
    macs_full: bool,
    /// When a change of the MAC table is published, if one waits.
    publish_macs_at: Option<Instant>,
    macs_published_at: Instant,
}

impl Node {
    /// Creates a peer that knows no other peer. All randomness, keys included, comes from `rng`, which must be seeded with
    /// entropy of the operating system.
    pub fn new(mut config: Config, mut rng: ChaCha12Rng, now: Now) -> Node {
        let mut rng_of_connections = rng.clone();
        rng_of_connections.set_stream(1);
        let connections = Connections::new(config.mesh.name, config.mesh.port, rng_of_connections);
        config.mesh.overlays = connections.overlays();
        for feature in [LIVENESS_FEATURE, SEGMENTATION_FEATURE, weave_trace::FEATURE] {
            config.mesh.features.insert(feature.to_owned(), "1".to_owned());
        }
        let mut macs = MacConfig::new(config.mesh.name);
        macs.hash_seed = rng.random();
        let policy = config.ipam.as_ref().map(|ipam| ipam.config.policy).unwrap_or_default();
        let allocator = config
            .ipam
            .map(|ipam| Allocator::new(ipam.config, ChaCha12Rng::from_seed(rng.random()), ipam.loaded, now));
        let ipam = Ipam::new(allocator, policy);
        let mut node = Node {
            connections,
            mesh: Mesh::new(config.mesh, rng, now),
            macs: MacTable::new(macs),
            blocked_paths: BlockedPaths::default(),
            ipam,
            dns: Dns::new(config.dns.map(Registry::new)),
            traces: Traces::new(),
            outputs: VecDeque::new(),
            tables: None,
            stale: true,
            announced: false,
            generation: 0,
            local_mtu: usize::MAX,
            next_expiry: now.mono + MacTable::EXPIRY_INTERVAL,
            conflicts: BTreeMap::new(),
            mac_log: MacLog::default(),
            macs_full: false,
            publish_macs_at: None,
            macs_published_at: Instant::ORIGIN,
        };
        node.process_outputs(now);
        node
    }

    /// New connections do not use sleeve, so that there are none to peers that have no other overlay in common.
    pub fn disable_sleeve(&mut self) {
        self.connections.disable_sleeve();
        self.mesh.set_overlays(self.connections.overlays());
    }

    /// The kernel can forward frames: new connections use fastdp if the other peer has it, too.
    pub fn enable_fastdp(&mut self) {
        self.connections.enable_fastdp();
        self.mesh.set_overlays(self.connections.overlays());
        self.stale = true;
    }

    /// New connections use warp if the other peer has it, too.
    pub fn enable_warp(&mut self, config: WarpConfig) {
        self.connections.enable_warp(config);
        self.mesh.set_overlays(self.connections.overlays());
    }

    /// Name of this peer.
    pub fn name(&self) -> PeerName {
        self.mesh.name()
    }

    /// Adds direct peers, or replaces all direct peers (docs/spec/mesh.md 10.1). Returns the error texts of those that were
    /// refused; the others are added.
    pub fn connect(&mut self, peers: &[String], replace: bool, now: Now) -> Vec<String> {
        let refused = self.mesh.connect(peers, replace, now);
        self.process_outputs(now);
        refused
    }

    /// Removes direct peers from the list. Their connections stay.
    pub fn forget(&mut self, peers: &[String], now: Now) {
        self.mesh.forget(peers, now);
        self.process_outputs(now);
    }

    /// The answer to [`Output::Resolve`].
    pub fn handle_resolved(&mut self, id: ResolveId, answer: Result<Vec<IpAddr>, String>, now: Now) {
        self.mesh.handle_resolved(id, answer, now);
        self.process_outputs(now);
    }

    /// The listener has accepted a TCP connection. The driver closes it if the result is `None`, which means that too many
    /// handshakes are pending.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Now,
    ) -> Option<ConnectionId> {
        let conn = self.mesh.handle_accepted(local, remote, now);
        self.process_outputs(now);
        conn
    }

    /// How long the listener waits before it accepts again (docs/spec/mesh.md 11.1).
    pub fn accept_delay(&self, now: Now) -> Duration {
        self.mesh.accept_delay(now)
    }

    /// A dial has succeeded.
    pub fn handle_dialled(&mut self, conn: ConnectionId, local: SocketAddr, remote: SocketAddr, now: Now) {
        self.mesh.handle_dialled(conn, local, remote, now);
        self.process_outputs(now);
    }

    /// A dial has failed. The status shows the error.
    pub fn handle_dial_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        self.mesh.handle_dial_failed(conn, error, now);
        self.process_outputs(now);
    }

    /// Bytes have arrived on a TCP connection.
    pub fn handle_stream(&mut self, conn: ConnectionId, bytes: &[u8], now: Now) {
        let mut channels = NodeChannels {
            ipam: IpamChannels { ipam: &mut self.ipam, outputs: &mut self.outputs },
            dns: DnsChannels { dns: &mut self.dns },
            traces: &mut self.traces,
        };
        self.mesh.handle_stream(conn, bytes, &mut channels, now);
        self.process_outputs(now);
    }

    /// The kernel has accepted `bytes` more bytes of [`Output::Write`].
    pub fn handle_written(&mut self, conn: ConnectionId, bytes: usize, now: Now) {
        self.mesh.handle_written(conn, bytes, now);
        self.process_outputs(now);
    }

    /// The peer or the kernel has closed a TCP connection. The status shows the error.
    pub fn handle_closed(&mut self, conn: ConnectionId, end: StreamEnd, now: Now) {
        self.mesh.handle_closed(conn, end, now);
        self.process_outputs(now);
    }

    /// Handles an event of a data thread.
    pub fn handle_forwarder_event(&mut self, event: ForwarderEvent, now: Now) {
        match event {
            ForwarderEvent::Switch(event) => self.handle_switch_event(event, now),
            ForwarderEvent::Control { conn, overlay, frame, from } => {
                self.connections.handle_control_frame(conn, overlay, frame, from, now)
            }
            ForwarderEvent::Traffic { conn, overlay } => self.connections.handle_traffic(conn, overlay, now),
            ForwarderEvent::SegmentedProbe { src, probe, arrived } => {
                self.connections.handle_segments(src, &probe, arrived);
            }
            ForwarderEvent::BatchRefused { conn } => self.connections.handle_batch_refused(conn, now),
            ForwarderEvent::InterfaceMtu { conn, mtu } => {
                self.connections.handle_interface_mtu(conn, mtu, now)
            }
        }
        self.process_outputs(now);
    }

    /// Handles an event of the kernel's programs.
    pub fn handle_kernel_event(&mut self, event: KernelEvent, now: Now) {
        match event {
            KernelEvent::Switch { event, last_seen } => {
                let (SwitchEvent::LocalMac(mac)
                | SwitchEvent::RemoteMac { mac, .. }
                | SwitchEvent::LocalConflict { mac, .. }
                | SwitchEvent::OwnPacket { mac, .. }) = event;
                if let Some(last_seen) = last_seen {
                    self.macs.refresh(mac, last_seen, 0);
                }
                self.handle_switch_event(event, now);
            }
            KernelEvent::Frame(frame) if Some(frame.dst) == self.mesh.short_id(self.mesh.name()) => {
                if let Some(peer) = self.mesh.short_id_owner(frame.src) {
                    self.connections.handle_kernel_frame(peer, &frame, now);
                }
            }
            KernelEvent::Frame(_) => {}
            KernelEvent::Traffic { neighbour } => {
                if let Some(peer) = self.mesh.short_id_owner(neighbour) {
                    self.connections.handle_kernel_traffic(peer, now);
                }
            }
        }
        self.process_outputs(now);
    }

    /// Sends a probe on the path of each connection, once in 0.9 s at most, for [`ConnectionReport::quality`](crate::ConnectionReport::quality).
    /// Paths that carry data both ways are not measured otherwise.
    pub fn measure_paths(&mut self, now: Now) {
        self.connections.measure(now);
        self.process_outputs(now);
    }

    /// Whether [`KernelNeighbour::traffic`](weave_overlay::fastdp::KernelNeighbour::traffic) is read at the next timeout.
    pub fn reads_kernel_counters(&self, now: Now) -> bool {
        self.connections.reads_kernel_counters(now)
    }

    /// What the kernel has counted for a MAC: when its latest frame arrived, and frames that were refused. To be called for all MACs
    /// from time to time, so that they do not expire.
    pub fn handle_kernel_activity(&mut self, mac: MacAddr, last_seen: Instant, refused: u64) {
        self.macs.refresh(mac, last_seen, refused);
    }

    /// The kernel knows this MAC from an earlier process.
    pub fn adopt_kernel_mac(&mut self, mac: MacAddr, id: ShortId, now: Now) {
        let event = match self.mesh.short_id_owner(id) {
            Some(peer) if peer == self.mesh.name() => SwitchEvent::LocalMac(mac),
            Some(peer) => SwitchEvent::RemoteMac { mac, peer },
            None => return,
        };
        self.handle_switch_event(event, now);
        self.process_outputs(now);
    }

    /// The kernel cannot send [`Output::KernelFrame`]: the interface carries IP packets of at most `mtu` bytes.
    pub fn handle_kernel_mtu(&mut self, conn: ConnectionId, mtu: u16) {
        self.connections.handle_kernel_mtu(conn, mtu);
    }

    /// The kernel cannot receive VXLAN packets at a port of [`KernelTables::ports`](weave_overlay::fastdp::KernelTables::ports).
    pub fn handle_kernel_port_failed(&mut self, port: u16, error: &str, now: Now) {
        self.connections.handle_kernel_port_failed(port, error);
        self.process_outputs(now);
    }

    /// Sets the MTU of the local bridge, which is unlimited initially.
    pub fn set_local_mtu(&mut self, mtu: usize, now: Now) {
        self.stale |= self.local_mtu != mtu;
        self.local_mtu = mtu;
        self.connections.set_local_mtu(mtu);
        self.process_outputs(now);
    }

    /// The addresses or routes of the host have changed; `lost` are addresses that it has no more.
    pub fn handle_network_change(&mut self, lost: &BTreeSet<IpAddr>, now: Now) {
        self.mesh.handle_network_change(lost, now);
        self.process_outputs(now);
    }

    /// Handles all timers that are due. Calling it late or too often is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        let mut channels = NodeChannels {
            ipam: IpamChannels { ipam: &mut self.ipam, outputs: &mut self.outputs },
            dns: DnsChannels { dns: &mut self.dns },
            traces: &mut self.traces,
        };
        self.mesh.handle_timeout(&mut channels, now);
        if let Some(allocator) = &mut self.ipam.allocator {
            allocator.handle_timeout(now);
        }
        if let Some(registry) = &mut self.dns.registry {
            registry.handle_timeout(now);
        }
        self.connections.handle_timeout(now);
        if now.mono >= self.next_expiry {
            self.next_expiry = now.mono + MacTable::EXPIRY_INTERVAL;
            self.conflicts.retain(|_, last| now.mono - *last < CONFLICT_LOG_INTERVAL);
            for (mac, peer) in self.macs.expire(now.mono) {
                self.stale = true;
                if self.mac_log.expired(peer, now.mono) {
                    let peer = self.label(peer);
                    self.outputs.push_back(Output::Event(Event::MacExpired { mac, peer }));
                }
            }
            if self.macs_full && self.macs.len() < self.macs.max_entries() / 10 * 9 {
                self.macs_full = false;
                let entries = self.macs.len();
                self.outputs.push_back(Output::Event(Event::MacTableHasRoom { entries }));
            }
        }
        for (peer, counts) in self.mac_log.take_summaries(now.mono) {
            let (peer, discovered, expired) = (self.label(peer), counts.discovered, counts.expired);
            self.outputs.push_back(Output::Event(Event::FurtherMacs { peer, discovered, expired }));
        }
        self.process_outputs(now);
    }

    /// Gives the allocator an input and processes its outputs; `None` if address allocation is disabled.
    pub fn with_allocator<R>(&mut self, now: Now, input: impl FnOnce(&mut Allocator) -> R) -> Option<R> {
        let result = self.ipam.allocator.as_mut().map(input);
        self.process_outputs(now);
        result
    }

    /// The allocator for inspection; `None` if address allocation is disabled. Inputs go through [`Node::with_allocator`].
    pub fn allocator(&self) -> Option<&Allocator> {
        self.ipam.allocator.as_ref()
    }

    /// Gives the registry of names an input and processes its outputs; `None` if names are disabled.
    pub fn with_registry<R>(&mut self, now: Now, input: impl FnOnce(&mut Registry) -> R) -> Option<R> {
        let result = self.dns.registry.as_mut().map(input);
        self.process_outputs(now);
        result
    }

    /// The registry of names for inspection; `None` if names are disabled. Inputs go through [`Node::with_registry`].
    pub fn registry(&self) -> Option<&Registry> {
        self.dns.registry.as_ref()
    }

    /// Why no address may be given out, if another host has our name.
    pub fn name_conflict(&self) -> Option<&str> {
        self.mesh.name_conflict()
    }

    /// Closes every connection. The driver drains the outputs and drops the node.
    pub fn shutdown(&mut self, departure: Departure, now: Now) {
        self.mesh.shutdown(departure, now);
        self.process_outputs(now);
    }

    /// When to call [`handle_timeout`](Node::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let ipam = self.ipam.allocator.as_ref().and_then(Allocator::poll_timeout);
        let expiry = Some((self.next_expiry, "MAC expiry"));
        let publish = self.publish_macs_at.map(|at| (at, "publication of MACs"));
        let summary = self.mac_log.poll_timeout();
        let dns = self.dns.registry.as_ref().and_then(Registry::poll_timeout);
        [self.mesh.poll_timeout(), self.connections.poll_timeout(), ipam, dns, expiry, publish, summary]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The tables for the data threads.
    pub fn tables(&mut self) -> Arc<Tables> {
        self.announced = false;
        if let Some(tables) = &self.tables {
            return tables.clone();
        }
        self.generation += 1;
        let forwarding = ForwardingTable {
            own: self.mesh.name(),
            macs: self.macs.snapshot(),
            routes: Arc::new(MeshRoutes(self.mesh.routes())),
        };
        let kernel = self.kernel_tables(&forwarding);
        let tables = Tables::new(self.generation, forwarding, self.connections.neighbours());
        let tables = tables.with_local_mtu(self.local_mtu).with_kernel(kernel);
        let tables = Arc::new(tables.with_watches(self.traces.watches().to_vec()));
        self.tables = Some(tables.clone());
        tables
    }

    fn kernel_tables(&self, forwarding: &ForwardingTable) -> Option<Arc<KernelTables>> {
        let own_id = self.mesh.short_id(self.mesh.name()).filter(|_| self.connections.has_fastdp())?;
        let (neighbours, ports) = self.connections.kernel_neighbours(|peer| self.mesh.short_id(peer));
        let ids = self.mesh.peers().filter_map(|(name, _)| Some((name, self.mesh.short_id(name)?)));
        Some(Arc::new(KernelTables::new(own_id, forwarding, ids, neighbours, ports)))
    }

    /// Content of the status pages.
    pub fn status(&self, now: Now) -> Status {
        let mesh = self.mesh.status(now);
        let macs = self.macs.entries().map(|entry| MacReport {
            mac: entry.mac,
            peer: entry.peer,
            nickname: self.mesh.peer(entry.peer).map(|p| p.nickname.to_string()).unwrap_or_default(),
            last_seen: now.wall_at(entry.last_seen),
            refused: entry.refused,
        });
        let macs = macs.collect();
        let ipam = self.ipam.allocator.as_ref().map(|allocator| allocator.status(now));
        let mac_table = MacTableReport {
            max_entries: self.macs.max_entries(),
            displaced: self.macs.displaced(),
            largest: self.macs.largest_share().map(|(peer, entries)| (self.label(peer), entries)),
        };
        Status { mesh, connections: self.connections.reports(now).collect(), macs, mac_table, ipam }
    }

    /// The version of this peer's topology record (docs/spec/mesh.md 8.4).
    pub fn version(&self) -> u64 {
        self.mesh.peer(self.mesh.name()).map_or(0, |own| own.version)
    }

    /// Number of known peers, this one included.
    pub fn peer_count(&self) -> usize {
        self.mesh.peers().len()
    }

    /// Number of connections with prepared overlays.
    pub fn connection_count(&self) -> usize {
        self.connections.len()
    }

    /// A hash of the topology, equal on peers with the same view.
    pub fn topology_digest(&self) -> u64 {
        self.mesh.topology_digest()
    }

    fn handle_switch_event(&mut self, event: SwitchEvent, now: Now) {
        match event {
            SwitchEvent::LocalMac(mac) => {
                let learned = self.macs.learn_local(mac, now.mono);
                self.handle_learned(mac, self.mesh.name(), learned, now);
            }
            SwitchEvent::RemoteMac { mac, peer } => {
                let learned = self.macs.learn_remote(mac, peer, now.mono);
                self.handle_learned(mac, peer, learned, now);
            }
            SwitchEvent::LocalConflict { mac, peer, .. } => self.report_conflict(mac, peer, now),
            SwitchEvent::OwnPacket { mac, peer, dst } => {
                self.outputs.push_back(Output::Event(Event::OwnPacket { peer, mac, dst }));
            }
        }
    }

    fn handle_learned(&mut self, mac: MacAddr, at: PeerName, learned: Learned, now: Now) {
        let own = self.mesh.name();
        let was = match learned {
            Learned::Known | Learned::Ignored => return,
            Learned::Refused { by } => {
                return self.report_conflict(mac, if by == own { at } else { by }, now);
            }
            Learned::New => None,
            Learned::Moved { from } => Some(from),
        };
        if self.mac_log.discovered(at, now.mono) {
            let event = if at == own && was.is_none() {
                Event::LocalMac(mac)
            } else {
                Event::RemoteMac { mac, peer: self.label(at), was }
            };
            self.outputs.push_back(Output::Event(event));
        }
        if !self.macs_full
            && self.macs.displaced() > 0
            && self.macs.len() == self.macs.max_entries()
            && let Some((peer, share)) = self.macs.largest_share()
        {
            self.macs_full = true;
            let (peer, entries) = (self.label(peer), self.macs.len());
            self.outputs.push_back(Output::Event(Event::MacTableFull { entries, peer, share }));
        }
        let interval = Duration::from_millis(self.macs.len() as u64 / MACS_PER_MILLISECOND);
        self.publish_macs_at.get_or_insert(self.macs_published_at + interval);
    }

    fn report_conflict(&mut self, mac: MacAddr, peer: PeerName, now: Now) {
        let due = self.conflicts.get(&mac).is_none_or(|last| now.mono - *last >= CONFLICT_LOG_INTERVAL);
        if due {
            self.conflicts.insert(mac, now.mono);
            let (peer, refused) = (self.label(peer), self.macs.refused(mac));
            self.outputs.push_back(Output::Event(Event::MacConflict { mac, peer, refused }));
        }
    }

    /// Reports a connection that ended although TCP works, the first time.
    fn note_blocked_path(&mut self, connection: &Connection, now: Now) {
        if let Some(problem) = connection.sleeve.problem(now.mono)
            && !connection.sleeve.was_established()
            && self.blocked_paths.begin(connection.remote, connection.remote_addr.ip())
        {
            let peer = connection.label.clone();
            self.outputs.push_back(Output::Event(Event::PathBlocked { peer, problem }));
        }
    }

    /// `NAME(NICK)`.
    fn label(&self, name: PeerName) -> String {
        match self.mesh.peer(name) {
            Some(peer) => format!("{name}({})", peer.nickname),
            None => name.to_string(),
        }
    }

    /// Passes outputs of one state machine to inputs of another until none is left.
    fn process_outputs(&mut self, now: Now) {
        loop {
            if let Some(output) = self.mesh.poll_output() {
                self.handle_mesh_output(output, now);
            } else if self.ipam.process_output(&mut self.mesh, &mut self.outputs, now)
                || self.dns.process_output(&mut self.mesh, &mut self.outputs, now)
                || self.traces.process_output(&mut self.outputs)
            {
            } else if let Some((conn, output)) = self.connections.poll_output() {
                self.handle_connection_output(conn, output, now);
            } else {
                break;
            }
        }
        self.stale |= self.publish_macs_at.is_some_and(|at| at <= now.mono);
        if self.stale {
            self.stale = false;
            self.publish_macs_at = None;
            self.macs_published_at = now.mono;
            self.tables = None;
            if !self.announced {
                self.announced = true;
                self.outputs.push_back(Output::TablesChanged);
            }
        }
    }

    fn handle_mesh_output(&mut self, output: weave_mesh::Output, now: Now) {
        use weave_mesh::Output as Mesh;
        // The closed connection may have led to this peer itself, which changes the number of direct peers.
        self.ipam.targets_stale |= matches!(output, Mesh::Close { .. } | Mesh::Persist(_));
        let passed_on = match output {
            Mesh::Persist(persist) => Output::Persist(persist),
            Mesh::Resolve { id, host } => Output::Resolve { id, host },
            Mesh::Dial { conn, addr } => Output::Dial { conn, addr },
            Mesh::Write { conn, bytes } => Output::Write { conn, bytes },
            Mesh::Close { conn } => Output::Close { conn },
            Mesh::Probe { conn } => Output::Probe { conn },
            Mesh::Event(event) if self.blocked_paths.repeats(&event) => Output::Event(Event::Repeated(event)),
            Mesh::Event(event) => Output::Event(Event::Mesh(event)),
            Mesh::OverlayPrepare { conn, setup } => {
                match self.connections.prepare(conn, *setup) {
                    // The peer may have confirmed already: the data threads need the session for its first heartbeat.
                    Ok(()) => self.stale = true,
                    Err(error) => self.mesh.handle_overlay_failed(conn, error, now),
                }
                return;
            }
            Mesh::OverlayConfirm { conn } => return self.connections.confirm(conn, now),
            Mesh::OverlayStop { conn } => {
                if let Some(connection) = self.connections.stop(conn) {
                    self.stale = true;
                    self.note_blocked_path(&connection, now);
                }
                return;
            }
            Mesh::TestPath { conn } => return self.connections.test_path(conn, now),
            Mesh::OverlayControl { conn, control } => {
                return self.connections.handle_control(conn, control.index, control.tag, &control.body, now);
            }
            Mesh::RoutesChanged => {
                let routes = self.mesh.routes();
                self.connections.review_kept_paths(|peer| routes.unicast_or_direct(peer) == Some(peer));
                self.stale = true;
                self.set_peers_stale();
                return;
            }
            Mesh::PeerRemoved(peer) => {
                self.blocked_paths.end(peer);
                self.stale |= !self.macs.forget_peer(peer).is_empty();
                self.set_peers_stale();
                if let Some(allocator) = &mut self.ipam.allocator {
                    allocator.handle_peer_removed(peer, now);
                }
                if let Some(registry) = &mut self.dns.registry {
                    registry.handle_peer_removed(peer, now);
                }
                return;
            }
            Mesh::PeersChanged => {
                self.set_peers_stale();
                return;
            }
            Mesh::ShortIdsInvalidated => {
                self.stale |= self.connections.has_fastdp();
                return;
            }
        };
        self.outputs.push_back(passed_on);
    }

    fn set_peers_stale(&mut self) {
        self.ipam.peers_stale = true;
        self.dns.peers_stale = true;
    }

    fn vni_to_neighbour(&self, conn: ConnectionId) -> Option<u32> {
        let own = self.mesh.short_id(self.mesh.name())?;
        let remote = self.mesh.short_id(self.connections.get(conn)?.remote)?;
        Some(vni(own, remote))
    }

    fn handle_connection_output(&mut self, conn: ConnectionId, output: ConnectionOutput, now: Now) {
        match output {
            ConnectionOutput::Datagram { destination, bytes } => {
                self.outputs.push_back(Output::Datagram { destination, bytes })
            }
            ConnectionOutput::Batch { destination, bytes, segment, plain } => {
                self.outputs.push_back(Output::Batch { destination, bytes, segment, plain })
            }
            ConnectionOutput::KernelFrame { path, bytes } => {
                if let Some(vni) = self.vni_to_neighbour(conn) {
                    self.outputs.push_back(Output::KernelFrame { conn, path, vni, bytes });
                }
            }
            ConnectionOutput::SegmentedProbe { path, probes } => {
                if let Some(vni) = self.vni_to_neighbour(conn) {
                    self.outputs.push_back(Output::SegmentedProbe { path, vni, probes });
                }
            }
            ConnectionOutput::Control { index, tag, body } => {
                // Cannot overflow: the common list has at most 256 entries.
                let index = u8::try_from(index).unwrap_or(u8::MAX);
                self.mesh.send_overlay_control(conn, index, tag, &body, now);
            }
            ConnectionOutput::Established => {
                if let Some(connection) = self.connections.get(conn)
                    && self.blocked_paths.end(connection.remote)
                {
                    let event = Event::PathUnblocked { peer: connection.label.clone() };
                    self.outputs.push_back(Output::Event(event));
                }
                self.mesh.handle_overlay_established(conn, now);
            }
            ConnectionOutput::PathDown => self.mesh.handle_path_down(conn, now),
            ConnectionOutput::PathUp => self.mesh.handle_path_up(conn, now),
            ConnectionOutput::Failed(error) => self.mesh.handle_overlay_failed(conn, error, now),
            ConnectionOutput::NeighbourChanged => self.stale = true,
            ConnectionOutput::NeighbourMoved => self.mesh.probe(conn, now),
            ConnectionOutput::Event { peer, text } => {
                self.outputs.push_back(Output::Event(Event::Overlay { peer, text }));
            }
        }
    }
}

/// Adapts the routes of the mesh to the switch.
struct MeshRoutes(Arc<weave_mesh::Routes>);

impl weave_switch::Routes for MeshRoutes {
    fn unicast(&self, dst: PeerName) -> Option<PeerName> {
        self.0.unicast_or_direct(dst)
    }

    fn broadcast(&self, src: PeerName) -> &[PeerName] {
        self.0.broadcast(src)
    }

    fn knows(&self, peer: PeerName) -> bool {
        self.0.knows(peer)
    }
}

#[cfg(test)]
mod tests;
