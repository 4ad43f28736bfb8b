use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;
use weave_ipam::Allocator;
use weave_mesh::{Mesh, ResolveId};
use weave_overlay::forward::{ForwarderEvent, Tables};
use weave_switch::{ForwardingTable, Learned, MacConfig, MacTable};
use weave_types::{ConnectionId, Instant, MacAddr, Now, PeerName};

use crate::ipam::{Ipam, IpamChannels, IpamConfig};
use crate::link::{Effect, FAST_HEARTBEAT_FEATURE, Links};
use crate::output::{Event, Output};
use crate::status::{MacReport, Status};

/// The overlays of this version, in the order in which they are announced.
pub(crate) fn overlays() -> Vec<String> {
    vec![weave_overlay::select::SLEEVE.to_owned()]
}

/// A local MAC conflict is logged at most this often for one MAC.
const CONFLICT_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a [`Node`] is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the mesh: identity, password, targets' policy. `overlays` is filled in here.
    pub mesh: weave_mesh::Config,
    /// Of address allocation; `None`: it is off here, and its gossip is passed on for others.
    pub ipam: Option<IpamConfig>,
}

impl Config {
    /// All defaults but the mesh's.
    pub fn new(mesh: weave_mesh::Config) -> Config {
        Config { mesh, ipam: None }
    }
}

/// One whole peer. See the crate's page.
pub struct Node {
    pub(crate) mesh: Mesh,
    pub(crate) macs: MacTable,
    pub(crate) links: Links,
    pub(crate) ipam: Ipam,
    outputs: VecDeque<Output>,
    tables: Option<Arc<Tables>>,
    /// `tables` is out of date.
    stale: bool,
    /// The driver has been told so, and has not fetched them since.
    announced: bool,
    generation: u64,
    local_mtu: usize,
    next_expiry: Instant,
    conflicts: BTreeMap<MacAddr, Instant>,
}

impl Node {
    /// A peer that knows nobody. Randomness, keys included, is drawn from `rng`: seed it with entropy of the OS.
    pub fn new(mut config: Config, mut rng: ChaCha12Rng, now: Now) -> Node {
        config.mesh.overlays = overlays();
        config.mesh.features.insert(FAST_HEARTBEAT_FEATURE.to_owned(), "1".to_owned());
        let mut macs = MacConfig::new(config.mesh.name);
        macs.hash_seed = rng.random();
        let policy = config.ipam.as_ref().map(|ipam| ipam.config.policy).unwrap_or_default();
        let allocator = config
            .ipam
            .map(|ipam| Allocator::new(ipam.config, ChaCha12Rng::from_seed(rng.random()), ipam.loaded, now));
        let ipam = Ipam::new(allocator, policy);
        let mut node = Node {
            mesh: Mesh::new(config.mesh, rng, now),
            macs: MacTable::new(macs),
            links: Links::default(),
            ipam,
            outputs: VecDeque::new(),
            tables: None,
            stale: true,
            announced: false,
            generation: 0,
            local_mtu: usize::MAX,
            next_expiry: now.mono + MacTable::EXPIRY_INTERVAL,
            conflicts: BTreeMap::new(),
        };
        node.settle(now);
        node
    }

    /// Our name.
    pub fn name(&self) -> PeerName {
        self.mesh.name()
    }

    /// Adds direct peers, or with `replace` makes these the only ones; gives the error texts of those that were refused
    /// (docs/spec/mesh.md 10.1). The others are added.
    pub fn connect(&mut self, peers: &[String], replace: bool, now: Now) -> Vec<String> {
        let refused = self.mesh.connect(peers, replace, now);
        self.settle(now);
        refused
    }

    /// Takes direct peers off the list. Connections stay.
    pub fn forget(&mut self, peers: &[String], now: Now) {
        self.mesh.forget(peers, now);
        self.settle(now);
    }

    /// The answer to [`Output::Resolve`].
    pub fn handle_resolved(&mut self, id: ResolveId, answer: Result<Vec<IpAddr>, String>, now: Now) {
        self.mesh.handle_resolved(id, answer, now);
        self.settle(now);
    }

    /// Somebody has connected to our listener. `None`: too many strangers at once, close it.
    pub fn handle_accepted(
        &mut self,
        local: SocketAddr,
        remote: SocketAddr,
        now: Now,
    ) -> Option<ConnectionId> {
        let conn = self.mesh.handle_accepted(local, remote, now);
        self.settle(now);
        conn
    }

    /// How long the listener waits before it accepts again (docs/spec/mesh.md 11.1).
    pub fn accept_delay(&self, now: Now) -> Duration {
        self.mesh.accept_delay(now)
    }

    /// A dial has led to a TCP connection.
    pub fn handle_dialled(&mut self, conn: ConnectionId, local: SocketAddr, remote: SocketAddr, now: Now) {
        self.mesh.handle_dialled(conn, local, remote, now);
        self.settle(now);
    }

    /// A dial has failed; the text is shown in status.
    pub fn handle_dial_failed(&mut self, conn: ConnectionId, error: String, now: Now) {
        self.mesh.handle_dial_failed(conn, error, now);
        self.settle(now);
    }

    /// Bytes have arrived on a TCP connection.
    pub fn handle_stream(&mut self, conn: ConnectionId, bytes: &[u8], now: Now) {
        let mut channels = IpamChannels { ipam: &mut self.ipam, outputs: &mut self.outputs };
        self.mesh.handle_stream(conn, bytes, &mut channels, now);
        self.settle(now);
    }

    /// The kernel has taken so many more of the bytes to be written.
    pub fn handle_written(&mut self, conn: ConnectionId, bytes: usize, now: Now) {
        self.mesh.handle_written(conn, bytes, now);
        self.settle(now);
    }

    /// The peer or the kernel has ended a TCP connection; the text is shown in status.
    pub fn handle_closed(&mut self, conn: ConnectionId, error: String, now: Now) {
        self.mesh.handle_closed(conn, error, now);
        self.settle(now);
    }

    /// A data thread has something to tell.
    pub fn handle_forwarder_event(&mut self, fact: ForwarderEvent, now: Now) {
        match fact {
            ForwarderEvent::Switch(fact) => self.handle_switch_fact(fact, now),
            ForwarderEvent::Control { conn, frame, from } => {
                self.links.handle_control_frame(conn, frame, from, now)
            }
            ForwarderEvent::PathMtu { conn, mtu } => self.links.handle_path_mtu(conn, mtu, now),
        }
        self.settle(now);
    }

    /// The local bridge takes IP packets of `mtu` bytes. Until this is said, it takes everything.
    pub fn set_local_mtu(&mut self, mtu: usize, now: Now) {
        self.stale |= self.local_mtu != mtu;
        self.local_mtu = mtu;
        self.settle(now);
    }

    /// Time has passed. Late or too often is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        let mut channels = IpamChannels { ipam: &mut self.ipam, outputs: &mut self.outputs };
        self.mesh.handle_timeout(&mut channels, now);
        if let Some(allocator) = &mut self.ipam.allocator {
            allocator.handle_timeout(now);
        }
        self.links.handle_timeout(now);
        if now.mono >= self.next_expiry {
            self.next_expiry = now.mono + MacTable::EXPIRY_INTERVAL;
            self.conflicts.retain(|_, last| now.mono - *last < CONFLICT_LOG_INTERVAL);
            for (mac, peer) in self.macs.expire(now.mono) {
                self.stale = true;
                let peer = self.label(peer);
                self.outputs.push_back(Output::Event(Event::MacExpired { mac, peer }));
            }
        }
        self.settle(now);
    }

    /// Gives the allocator an input and carries out what comes of it; `None` if address allocation is off.
    pub fn with_allocator<R>(&mut self, now: Now, input: impl FnOnce(&mut Allocator) -> R) -> Option<R> {
        let result = self.ipam.allocator.as_mut().map(input);
        self.settle(now);
        result
    }

    /// Address allocation as it is now, to look at: the ring, who owns what. `None` if it is off. Inputs go through
    /// [`Node::with_allocator`].
    pub fn allocator(&self) -> Option<&Allocator> {
        self.ipam.allocator.as_ref()
    }

    /// Closes every connection. The driver drains the outputs and lets go.
    pub fn shutdown(&mut self, now: Now) {
        self.mesh.shutdown(now);
        self.settle(now);
    }

    /// When to call [`handle_timeout`](Node::handle_timeout), and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let ipam = self.ipam.allocator.as_ref().and_then(Allocator::poll_timeout);
        let expiry = Some((self.next_expiry, "MAC expiry"));
        [self.mesh.poll_timeout(), self.links.poll_timeout(), ipam, expiry]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// The next thing to do; drain until `None`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What the data threads have to know now.
    pub fn tables(&mut self) -> Arc<Tables> {
        self.announced = false;
        if let Some(tables) = &self.tables {
            return tables.clone();
        }
        self.generation += 1;
        let forwarding = ForwardingTable {
            own: self.mesh.name(),
            macs: self.macs.snapshot(),
            routes: Arc::new(Routes(self.mesh.routes())),
        };
        let tables = Tables::new(self.generation, forwarding, self.links.neighbours());
        let tables = Arc::new(tables.with_local_mtu(self.local_mtu));
        self.tables = Some(tables.clone());
        tables
    }

    /// All that status pages show.
    pub fn status(&self, now: Now) -> Status {
        let mesh = self.mesh.status(now);
        let macs = self.macs.entries().map(|entry| MacReport {
            mac: entry.mac,
            peer: entry.peer,
            nickname: self.mesh.peer(entry.peer).map(|p| p.nickname.to_string()).unwrap_or_default(),
            last_seen: now.wall_at(entry.last_seen),
        });
        let macs = macs.collect();
        let ipam = self.ipam.allocator.as_ref().map(|allocator| allocator.status(now));
        Status::new(mesh, macs, &self.links, ipam)
    }

    /// The version of our own topology record (docs/spec/mesh.md 8.4).
    pub fn version(&self) -> u64 {
        self.mesh.peer(self.mesh.name()).map_or(0, |own| own.version)
    }

    /// How many peers we know, ourself included.
    pub fn peer_count(&self) -> usize {
        self.mesh.peers().len()
    }

    /// How many connections the overlays are prepared for.
    pub fn connection_count(&self) -> usize {
        self.links.len()
    }

    /// A hash of the topology as we see it: equal on peers that see the same.
    pub fn topology_digest(&self) -> u64 {
        self.mesh.topology_digest()
    }

    fn handle_switch_fact(&mut self, fact: weave_switch::SwitchEvent, now: Now) {
        match fact {
            weave_switch::SwitchEvent::LocalMac(mac) => {
                let learned = self.macs.learn_local(mac, now.mono);
                self.learned(mac, self.mesh.name(), learned, now);
            }
            weave_switch::SwitchEvent::RemoteMac { mac, peer } => {
                let learned = self.macs.learn_remote(mac, peer, now.mono);
                self.learned(mac, peer, learned, now);
            }
            weave_switch::SwitchEvent::LocalConflict { mac, peer, .. } => self.conflict(mac, peer, now),
            weave_switch::SwitchEvent::OwnPacket { mac, peer, dst } => {
                self.outputs.push_back(Output::Event(Event::OwnPacket { peer, mac, dst }));
            }
        }
    }

    fn learned(&mut self, mac: MacAddr, at: PeerName, learned: Learned, now: Now) {
        let own = self.mesh.name();
        match learned {
            Learned::Known => return,
            Learned::Refused { by } => return self.conflict(mac, by, now),
            Learned::New if at == own => self.outputs.push_back(Output::Event(Event::LocalMac(mac))),
            Learned::New => {
                let event = Event::RemoteMac { mac, peer: self.label(at), was: None };
                self.outputs.push_back(Output::Event(event));
            }
            Learned::Moved { from } => {
                let event = Event::RemoteMac { mac, peer: self.label(at), was: Some(from) };
                self.outputs.push_back(Output::Event(event));
            }
            Learned::Ignored => return,
        }
        self.stale = true;
    }

    fn conflict(&mut self, mac: MacAddr, peer: PeerName, now: Now) {
        let due = self.conflicts.get(&mac).is_none_or(|last| now.mono - *last >= CONFLICT_LOG_INTERVAL);
        if due {
            self.conflicts.insert(mac, now.mono);
            let peer = self.label(peer);
            self.outputs.push_back(Output::Event(Event::MacConflict { mac, peer }));
        }
    }

    /// `NAME(NICK)`.
    fn label(&self, name: PeerName) -> String {
        match self.mesh.peer(name) {
            Some(peer) => format!("{name}({})", peer.nickname),
            None => name.to_string(),
        }
    }

    /// Routes outputs of one machine to inputs of another until none is left.
    fn settle(&mut self, now: Now) {
        loop {
            if let Some(output) = self.mesh.poll_output() {
                self.mesh_output(output, now);
            } else if self.ipam.settle(&mut self.mesh, &mut self.outputs, now) {
            } else if let Some((conn, effect)) = self.links.poll_effect() {
                self.link_effect(conn, effect, now);
            } else {
                break;
            }
        }
        if self.stale {
            self.stale = false;
            self.tables = None;
            if !self.announced {
                self.announced = true;
                self.outputs.push_back(Output::TablesChanged);
            }
        }
    }

    fn mesh_output(&mut self, output: weave_mesh::Output, now: Now) {
        use weave_mesh::Output as Mesh;
        // A connection that has ended may have been one to ourself.
        self.ipam.targets_stale |= matches!(output, Mesh::Close { .. } | Mesh::Persist(_));
        let passed_on = match output {
            Mesh::Persist(persist) => Output::Persist(persist),
            Mesh::Resolve { id, host } => Output::Resolve { id, host },
            Mesh::Dial { conn, addr } => Output::Dial { conn, addr },
            Mesh::Write { conn, bytes } => Output::Write { conn, bytes },
            Mesh::Close { conn } => Output::Close { conn },
            Mesh::Event(event) => Output::Event(Event::Mesh(event)),
            Mesh::OverlayPrepare { conn, setup } => {
                match self.links.prepare(conn, self.mesh.name(), *setup) {
                    // The peer may have confirmed already: its first heartbeat must find its session.
                    Ok(()) => self.stale = true,
                    Err(error) => self.mesh.handle_overlay_failed(conn, error, now),
                }
                return;
            }
            Mesh::OverlayConfirm { conn } => return self.links.confirm(conn, now),
            Mesh::OverlayStop { conn } => {
                self.stale |= self.links.stop(conn);
                return;
            }
            Mesh::OverlayControl { conn, control } => {
                return self.links.handle_control(conn, control.index, control.tag, &control.body, now);
            }
            Mesh::RoutesChanged => {
                self.stale = true;
                self.ipam.peers_stale = true;
                return;
            }
            Mesh::PeerRemoved(peer) => {
                self.stale |= !self.macs.forget_peer(peer).is_empty();
                self.ipam.peers_stale = true;
                if let Some(allocator) = &mut self.ipam.allocator {
                    allocator.peer_gone(peer, now);
                }
                return;
            }
            Mesh::PeersChanged => {
                self.ipam.peers_stale = true;
                return;
            }
            Mesh::ShortIdsInvalidated => return,
        };
        self.outputs.push_back(passed_on);
    }

    fn link_effect(&mut self, conn: ConnectionId, effect: Effect, now: Now) {
        match effect {
            Effect::Datagram { to, df, bytes } => {
                self.outputs.push_back(Output::Datagram { conn, to, df, bytes })
            }
            Effect::Control { index, tag, body } => {
                // The common list has at most 256 entries.
                let index = u8::try_from(index).unwrap_or(u8::MAX);
                self.mesh.send_overlay_control(conn, index, tag, &body, now);
            }
            Effect::Established => self.mesh.handle_overlay_established(conn, now),
            Effect::Failed(error) => self.mesh.handle_overlay_failed(conn, error, now),
            Effect::NeighbourChanged => self.stale = true,
            Effect::Event { peer, text } => {
                self.outputs.push_back(Output::Event(Event::Overlay { peer, text }))
            }
        }
    }
}

/// The mesh's routes, as the switch wants them.
struct Routes(Arc<weave_mesh::Routes>);

impl weave_switch::Routes for Routes {
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
