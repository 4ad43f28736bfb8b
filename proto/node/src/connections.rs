use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use rand_chacha::ChaCha12Rng;
use weave_mesh::OverlaySetup;
use weave_overlay::fastdp::{
    FastdpControl, FastdpControlConfig, FastdpPath, KernelFrame, KernelNeighbour, SegmentedProbe,
};
use weave_overlay::forward::Neighbour;
use weave_overlay::select::{self, Overlay, OverlaySwitch};
use weave_overlay::udp::{self, ControlFrame, Session, SessionConfig, UdpControl, UdpControlConfig};
use weave_overlay::warp::{Cipher, KeyLimits, WarpControl, WarpControlConfig};
use weave_overlay::{ArrivedSegments, Slowness, TICK};
use weave_types::{ConnectionId, Instant, Now, PeerName, ShortId, TokenBucket};
use zeroize::Zeroizing;

use crate::connection::{Connection, ConnectionOutput};
use crate::kept_paths::KeptPaths;
use crate::status::ConnectionReport;

/// Whether this peer has warp, and its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WarpConfig {
    /// The cipher that is faster on this machine.
    pub preferred: Cipher,
    /// When keys are replaced.
    pub limits: KeyLimits,
}

impl WarpConfig {
    /// The default for a processor with or without instructions for AES-GCM.
    pub fn new(has_aes: bool) -> WarpConfig {
        let preferred = if has_aes { Cipher::Aes256Gcm } else { Cipher::ChaCha20Poly1305 };
        WarpConfig { preferred, limits: KeyLimits::default() }
    }
}

/// A bridge has no larger MTU.
const MAX_MTU: usize = 65535;

/// Handshake feature: the peer tests paths that carry data or are silent ([`UdpControl::with_liveness`]; docs/spec/mesh.md 18.5).
pub(crate) const LIVENESS_FEATURE: &str = "PathLiveness";

/// Handshake feature: the peer answers segmented probes of all overlays ([`UdpControl::with_segmentation_test`]; docs/spec/mesh.md 18.8).
pub(crate) const SEGMENTATION_FEATURE: &str = "SegmentedProbes";

/// How often is looked whether anything has arrived from the neighbours: a path that is silent for twice this time at most is tested.
const LISTEN_INTERVAL: Duration = Duration::from_secs(5);

/// Probes that measure paths are not sent more often.
const MIN_MEASURE_INTERVAL: Duration = Duration::from_millis(900);

/// The overlays of all prepared connections.
pub(crate) struct Connections {
    own: PeerName,
    /// The port of the mesh; that of VXLAN packets is the next one.
    port: u16,
    /// Whether sleeve may be used.
    sleeve: bool,
    /// Whether the kernel can forward frames.
    fastdp: bool,
    warp: Option<WarpConfig>,
    /// For keys and indices of warp.
    rng: ChaCha12Rng,
    /// MTU of the local bridge.
    local_mtu: usize,
    connections: BTreeMap<ConnectionId, Connection>,
    /// The next timeout of each connection that has one.
    timeouts: BTreeSet<(Instant, ConnectionId)>,
    kept: KeptPaths,
    outputs: VecDeque<(ConnectionId, ConnectionOutput)>,
    /// When the paths that carry data are looked at, all together.
    tick_at: Option<Instant>,
    /// When silent neighbours are looked for.
    listen_at: Option<Instant>,
    measured_at: Option<Instant>,
    slowness: Slowness,
    /// For the search of path MTUs.
    probe_budget: TokenBucket,
}

impl Connections {
    pub(crate) fn new(own: PeerName, port: u16, rng: ChaCha12Rng) -> Connections {
        Connections {
            own,
            port,
            sleeve: true,
            fastdp: false,
            warp: None,
            rng,
            local_mtu: usize::MAX,
            connections: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            kept: KeptPaths::default(),
            outputs: VecDeque::new(),
            tick_at: None,
            listen_at: None,
            measured_at: None,
            slowness: Slowness::default(),
            probe_budget: udp::probe_budget(),
        }
    }

    pub(crate) fn enable_fastdp(&mut self) {
        self.fastdp = true;
    }

    pub(crate) fn disable_sleeve(&mut self) {
        self.sleeve = false;
    }

    pub(crate) fn enable_warp(&mut self, config: WarpConfig) {
        self.warp = Some(config);
    }

    /// The overlays of this peer, in the order in which they are advertised.
    pub(crate) fn overlays(&self) -> Vec<String> {
        let (warp, fastdp) = (self.warp.map(|_| select::WARP), self.fastdp.then_some(select::FASTDP));
        let sleeve = self.sleeve.then_some(select::SLEEVE);
        warp.into_iter().chain(fastdp).chain(sleeve).map(str::to_owned).collect()
    }

    pub(crate) fn has_fastdp(&self) -> bool {
        self.fastdp
    }

    pub(crate) fn set_local_mtu(&mut self, mtu: usize) {
        self.local_mtu = mtu;
        for (_, fastdp) in self.connections.values_mut().filter_map(|c| c.fastdp.as_mut()) {
            fastdp.set_mtu(mtu);
        }
    }

    pub(crate) fn prepare(&mut self, conn: ConnectionId, setup: OverlaySetup) -> Result<(), String> {
        let label = format!("{}({})", setup.remote, setup.remote_nickname);
        let encrypted = setup.session_key.is_some();
        let mut switch = OverlaySwitch::new(&label, &self.overlays(), setup.overlays.as_deref(), encrypted)
            .map_err(|e| e.to_string())?;
        let sleeve_index = switch.common().position(|name| name == select::SLEEVE);
        let session = Session::new(SessionConfig {
            own: self.own,
            remote: setup.remote,
            conn,
            uid: setup.uid,
            outbound: setup.outbound,
            key: setup.session_key,
        });
        let mut sleeve = UdpControl::new(UdpControlConfig {
            session,
            local: SocketAddr::new(setup.local_addr.ip(), self.port),
            remote: setup.remote_addr,
            outbound: setup.outbound,
        });
        if setup.remote_features.contains_key(LIVENESS_FEATURE) {
            sleeve = sleeve.with_liveness();
        }
        if setup.remote_features.contains_key(SEGMENTATION_FEATURE) {
            sleeve = sleeve.with_segmentation_test();
        }
        let fastdp_index = switch.common().position(|name| name == select::FASTDP);
        let mut fastdp = None;
        if let Some(index) = fastdp_index {
            match self.prepare_fastdp(&setup) {
                Ok(control) => fastdp = Some((index, control)),
                Err(error) => {
                    let text = format!("Unable to use {}: {error}", select::FASTDP);
                    self.outputs.push_back((conn, ConnectionOutput::Event { peer: label.clone(), text }));
                    switch.handle_error(index, &error);
                }
            }
        }
        let warp_index = switch.common().position(|name| name == select::WARP);
        let warp = warp_index.and_then(|index| Some((index, self.prepare_warp(conn, &setup)?)));
        let traces = setup.remote_features.contains_key(weave_trace::FEATURE);
        let (remote, remote_addr) = (setup.remote, setup.remote_addr);
        if fastdp.is_none() {
            self.kept.remove(remote);
        }
        let connection = Connection {
            next_timeout: None,
            remote,
            switch,
            sleeve,
            sleeve_index,
            fastdp,
            warp,
            confirmed: false,
            remote_addr,
            label,
            traces,
        };
        self.connections.insert(conn, connection);
        self.with(conn, |_| {});
        Ok(())
    }

    fn prepare_fastdp(&self, setup: &OverlaySetup) -> Result<FastdpControl, String> {
        if setup.session_key.is_some() {
            return Err("it cannot encrypt, and this connection has to be encrypted".to_owned());
        }
        let ipv4 = |addr: SocketAddr| match addr.ip() {
            IpAddr::V4(addr) => Ok(addr),
            IpAddr::V6(addr) => Err(format!("IP address {addr} is not IPv4")),
        };
        // Both ends use the port of the end that accepted the connection (docs/spec/data-plane.md 5.2).
        let port = if setup.outbound { setup.remote_addr.port() } else { self.port };
        let path = FastdpPath {
            local: ipv4(setup.local_addr)?,
            remote: ipv4(setup.remote_addr)?,
            port: port.checked_add(1).ok_or("there is no port after 65535")?,
        };
        let control = FastdpControl::new(FastdpControlConfig {
            uid: setup.uid,
            path,
            mtu: self.local_mtu.min(MAX_MTU),
        });
        let has = |feature| setup.remote_features.contains_key(feature);
        let control = if has(LIVENESS_FEATURE) { control.with_liveness() } else { control };
        Ok(if has(SEGMENTATION_FEATURE) { control.with_segmentation_test() } else { control })
    }

    fn prepare_warp(&mut self, conn: ConnectionId, setup: &OverlaySetup) -> Option<WarpControl> {
        let WarpConfig { preferred, limits } = self.warp?;
        let is_taken = |connections: &Connections, index| {
            connections
                .connections
                .values()
                .any(|c| c.warp.as_ref().is_some_and(|(_, warp)| warp.index() == index))
        };
        let mut index = self.rng.random();
        while is_taken(self, index) {
            index = self.rng.random();
        }
        let session = SessionConfig {
            own: self.own,
            remote: setup.remote,
            conn,
            uid: setup.uid,
            outbound: setup.outbound,
            key: None,
        };
        Some(WarpControl::new(WarpControlConfig {
            session,
            mesh_key: setup.session_key.map(Zeroizing::new),
            local: SocketAddr::new(setup.local_addr.ip(), self.port),
            remote: setup.remote_addr,
            private_key: Zeroizing::new(self.rng.random()),
            index,
            preferred,
            limits,
            liveness: setup.remote_features.contains_key(LIVENESS_FEATURE),
            segmentation: setup.remote_features.contains_key(SEGMENTATION_FEATURE),
        }))
    }

    pub(crate) fn confirm(&mut self, conn: ConnectionId, now: Now) {
        let remote = self.connections.get(&conn).map(|connection| connection.remote);
        self.listen_at.get_or_insert(now.mono + LISTEN_INTERVAL);
        if let Some(remote) = remote {
            self.kept.confirm(remote, now.mono);
        }
        self.with(conn, |connection| {
            connection.confirmed = true;
            if connection.sleeve_index.is_some() {
                connection.sleeve.confirm(now.mono);
            }
            if let Some((_, fastdp)) = &mut connection.fastdp {
                fastdp.confirm(now.mono);
            }
            if let Some((_, warp)) = &mut connection.warp {
                warp.confirm(now.mono);
            }
        });
        self.outputs.push_back((conn, ConnectionOutput::NeighbourChanged));
    }

    /// Removes a connection and returns it, if it was prepared.
    pub(crate) fn stop(&mut self, conn: ConnectionId) -> Option<Connection> {
        let connection = self.connections.remove(&conn)?;
        if let Some(at) = connection.next_timeout {
            self.timeouts.remove(&(at, conn));
        }
        if let (Overlay::Fastdp, Some((_, fastdp))) = (connection.overlay(), &connection.fastdp) {
            self.kept.insert(connection.remote, fastdp.path(), fastdp.traffic().clone());
        }
        Some(connection)
    }

    /// Forgets the paths of peers to which there is no direct route any more.
    pub(crate) fn review_kept_paths(&mut self, is_direct: impl Fn(PeerName) -> bool) {
        self.kept.review(is_direct);
    }

    pub(crate) fn get(&self, conn: ConnectionId) -> Option<&Connection> {
        self.connections.get(&conn)
    }

    pub(crate) fn handle_control_frame(
        &mut self,
        conn: ConnectionId,
        overlay: Overlay,
        frame: ControlFrame,
        from: SocketAddr,
        now: Now,
    ) {
        let remote =
            |connections: &Connections| Some(connections.connections.get(&conn)?.sleeve.path().remote);
        let before = remote(self);
        let slowness = self.slowness.factor();
        self.with(conn, |connection| {
            if let Some(control) = connection.udp_control(overlay) {
                control.set_slowness(slowness);
                control.handle_control_frame(frame, from, now.mono);
            }
        });
        if let (Some(Some(before)), Some(Some(after))) = (before, remote(self))
            && before != after
        {
            self.outputs.push_back((conn, ConnectionOutput::NeighbourMoved));
        }
    }

    /// A control frame of a neighbour arrived in a VXLAN packet.
    pub(crate) fn handle_kernel_frame(&mut self, peer: PeerName, frame: &KernelFrame, now: Now) {
        let slowness = self.slowness.factor();
        for conn in self.of_peer(peer) {
            self.with(conn, |connection| {
                if let Some((_, fastdp)) = &mut connection.fastdp {
                    fastdp.set_slowness(slowness);
                    fastdp.handle_frame(frame, now.mono);
                }
            });
        }
    }

    /// Packets of a probe of a neighbour have arrived by fastdp.
    pub(crate) fn handle_segments(
        &mut self,
        peer: PeerName,
        probe: &SegmentedProbe,
        arrived: ArrivedSegments,
    ) {
        for conn in self.of_peer(peer) {
            self.with(conn, |connection| {
                if let Some((_, fastdp)) = &mut connection.fastdp {
                    fastdp.handle_segments(probe, arrived);
                }
            });
        }
    }

    /// The kernel refused to cut a send into datagrams of a connection.
    pub(crate) fn handle_batch_refused(&mut self, conn: ConnectionId, now: Now) {
        self.with(conn, |connection| {
            // They go the same way.
            for overlay in [Overlay::Sleeve, Overlay::Warp] {
                if let Some(control) = connection.udp_control(overlay) {
                    control.handle_batch_refused(now.mono);
                }
            }
        });
    }

    /// The kernel forwards data from or to a neighbour.
    pub(crate) fn handle_kernel_traffic(&mut self, peer: PeerName, now: Now) {
        for conn in self.of_peer(peer) {
            self.with(conn, |connection| {
                if let Some((_, fastdp)) = &mut connection.fastdp {
                    fastdp.handle_traffic(now.mono);
                }
            });
            self.arm_tick(conn, now);
        }
    }

    /// The kernel cannot send a packet of a connection by fastdp: the interface carries IP packets of at most `mtu` bytes.
    pub(crate) fn handle_kernel_mtu(&mut self, conn: ConnectionId, mtu: u16) {
        if let Some((_, fastdp)) = self.connections.get_mut(&conn).and_then(|c| c.fastdp.as_mut()) {
            fastdp.handle_interface_mtu(mtu);
        }
    }

    /// The kernel cannot receive VXLAN packets at a port.
    pub(crate) fn handle_kernel_port_failed(&mut self, port: u16, error: &str) {
        let uses = |c: &Connection| c.fastdp.as_ref().is_some_and(|(_, fastdp)| fastdp.path().port == port);
        let affected: Vec<ConnectionId> =
            self.connections.iter().filter(|(_, c)| uses(c)).map(|(conn, _)| *conn).collect();
        for conn in affected {
            self.with(conn, |connection| {
                if let Some((index, _)) = connection.fastdp.take() {
                    connection.switch.handle_error(index, error);
                }
            });
        }
    }

    fn of_peer(&self, peer: PeerName) -> Vec<ConnectionId> {
        self.connections.iter().filter(|(_, c)| c.remote == peer).map(|(conn, _)| *conn).collect()
    }

    /// Data moves on a connection, after a time without any.
    pub(crate) fn handle_traffic(&mut self, conn: ConnectionId, overlay: Overlay, now: Now) {
        self.with(conn, |connection| {
            if let Some(control) = connection.udp_control(overlay) {
                control.handle_traffic(now.mono);
            }
        });
        self.arm_tick(conn, now);
    }

    /// Tests the path to a neighbour.
    pub(crate) fn test_path(&mut self, conn: ConnectionId, now: Now) {
        self.with(conn, |connection| {
            connection.test_path(now.mono);
        });
        self.arm_tick(conn, now);
    }

    /// Sends a probe on each path in use, unless that was done just before.
    pub(crate) fn measure(&mut self, now: Now) {
        if self.measured_at.is_some_and(|at| now.mono.saturating_since(at) < MIN_MEASURE_INTERVAL) {
            return;
        }
        self.measured_at = Some(now.mono);
        for conn in self.connections.keys().copied().collect::<Vec<_>>() {
            self.with(conn, |connection| connection.measure(now.mono));
        }
    }

    pub(crate) fn reads_kernel_counters(&self, now: Now) -> bool {
        let mut of_fastdp = self.connections.values().filter_map(|c| c.fastdp.as_ref());
        of_fastdp.any(|(_, fastdp)| fastdp.reads_traffic(now.mono))
    }

    /// Looks which neighbours have been silent.
    fn listen(&mut self, due: Instant, now: Now) {
        let is_late = due.is_handled_late(now.mono);
        for conn in self.connections.keys().copied().collect::<Vec<_>>() {
            self.with(conn, |connection| connection.listen(is_late, now.mono));
            self.arm_tick(conn, now);
        }
        self.listen_at = (!self.connections.is_empty()).then(|| now.mono + LISTEN_INTERVAL);
    }

    fn arm_tick(&mut self, conn: ConnectionId, now: Now) {
        if self.connections.get(&conn).is_some_and(Connection::is_watched) {
            self.tick_at.get_or_insert(now.mono + TICK);
        }
    }

    fn handle_tick(&mut self, due: Instant, now: Now) {
        self.slowness.handle_tick(due, now.mono);
        let slowness = self.slowness;
        let watched = |(conn, c): (&ConnectionId, &Connection)| c.is_watched().then_some(*conn);
        let watched: Vec<ConnectionId> = self.connections.iter().filter_map(watched).collect();
        for conn in watched {
            self.with(conn, |connection| {
                connection.handle_tick(&slowness, now.mono);
            });
        }
        let any_watched = self.connections.values().any(Connection::is_watched);
        self.tick_at = any_watched.then(|| now.mono + TICK);
    }

    pub(crate) fn handle_interface_mtu(&mut self, conn: ConnectionId, mtu: u16, now: Now) {
        // The route is the same for both.
        self.with(conn, |connection| {
            for overlay in [Overlay::Sleeve, Overlay::Warp] {
                if let Some(control) = connection.udp_control(overlay) {
                    control.handle_interface_mtu(mtu, now.mono);
                }
            }
        });
    }

    /// Handles a control message of the peer. An invalid one is logged and ignored (docs/spec/mesh.md 6.3).
    pub(crate) fn handle_control(
        &mut self,
        conn: ConnectionId,
        index: Option<u8>,
        tag: u8,
        body: &[u8],
        now: Now,
    ) {
        let mut problem = None;
        self.with(conn, |connection| {
            problem = match connection.switch.control_target(index) {
                Ok(target) if Some(target) == connection.sleeve_index => {
                    connection.sleeve.handle_control(tag, body, now.mono).err().map(|e| e.to_string())
                }
                Ok(target) => match (&mut connection.fastdp, &mut connection.warp) {
                    (Some((index, fastdp)), _) if *index == target => {
                        fastdp.handle_control(tag, body, now.mono).err().map(|e| e.to_string())
                    }
                    (_, Some((index, warp))) if *index == target => {
                        warp.handle_control(tag, body, now.mono).err().map(|e| e.to_string())
                    }
                    _ => None,
                },
                Err(error) => Some(error.to_string()),
            };
        });
        if let (Some(text), Some(connection)) = (problem, self.connections.get(&conn)) {
            let peer = connection.label.clone();
            self.outputs.push_back((conn, ConnectionOutput::Event { peer, text }));
        }
    }

    pub(crate) fn handle_timeout(&mut self, now: Now) {
        if let Some(due) = self.tick_at.filter(|at| *at <= now.mono) {
            self.handle_tick(due, now);
        }
        if let Some(due) = self.listen_at.filter(|at| *at <= now.mono) {
            self.listen(due, now);
        }
        for peer in self.kept.handle_timeout(now.mono) {
            if let Some(conn) = self.of_peer(peer).first() {
                self.outputs.push_back((*conn, ConnectionOutput::NeighbourChanged));
            }
        }
        let due: BTreeSet<ConnectionId> =
            self.timeouts.iter().take_while(|(at, _)| *at <= now.mono).map(|(_, conn)| *conn).collect();
        let mut budget = self.probe_budget;
        for conn in due {
            self.with(conn, |connection| {
                connection.sleeve.handle_timeout(&mut budget, now.mono);
                if let Some((_, fastdp)) = &mut connection.fastdp {
                    fastdp.handle_timeout(now.mono);
                }
                if let Some((_, warp)) = &mut connection.warp {
                    warp.handle_timeout(&mut budget, now.mono);
                }
            });
            self.arm_tick(conn, now);
        }
        self.probe_budget = budget;
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let next = self.timeouts.first().and_then(|(_, conn)| self.connections.get(conn));
        let connection = next.and_then(Connection::poll_timeout);
        let kept = self.kept.poll_timeout().map(|at| (at, "path of the last connection"));
        let tick = self.tick_at.map(|at| (at, "path liveness"));
        let listen = self.listen_at.map(|at| (at, "silent neighbours"));
        [connection, kept, tick, listen].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    pub(crate) fn poll_output(&mut self) -> Option<(ConnectionId, ConnectionOutput)> {
        self.outputs.pop_front()
    }

    pub(crate) fn len(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn reports(&self, now: Now) -> impl Iterator<Item = (ConnectionId, ConnectionReport)> {
        self.connections.iter().map(move |(conn, c)| (*conn, self.report(c, now)))
    }

    /// The connection to a peer, and whether the peer can be asked where frames go.
    pub(crate) fn report_of(&self, peer: PeerName, now: Now) -> Option<(ConnectionReport, bool)> {
        let of_peer = self.connections.values().filter(|c| c.remote == peer);
        of_peer.max_by_key(|c| c.confirmed).map(|c| (self.report(c, now), c.traces))
    }

    fn report(&self, c: &Connection, now: Now) -> ConnectionReport {
        let overlay = c.overlay();
        let uses_fastdp = overlay == Overlay::Fastdp;
        let (name, control) = match c.warp_path_control() {
            Some(control) if overlay == Overlay::Warp => (select::WARP, control),
            _ => (select::SLEEVE, &c.sleeve),
        };
        let of_fastdp = c.fastdp.as_ref().and_then(|(_, fastdp)| fastdp.problem(now.mono));
        let reason = match (control.problem(now.mono), of_fastdp) {
            (_, Some(problem)) if uses_fastdp => format!("{}: {problem}", select::FASTDP),
            (Some(problem), _) if !uses_fastdp => format!("{name}: {problem}"),
            (_, Some(problem)) => format!("{}: {problem}", c.switch.reason()),
            _ => c.switch.reason(),
        };
        ConnectionReport {
            overlay: c.switch.best().map(|(_, name)| name.to_owned()),
            reason,
            mtu: if uses_fastdp { Some(self.local_mtu) } else { control.known_mtu() },
            // The encryption of warp proves nothing about the peer if there is no password.
            encrypted: c.sleeve.session().is_encrypted(),
            traffic: c.traffic(),
            quality: c.quality(now.mono),
        }
    }

    /// The neighbours for the data threads.
    pub(crate) fn neighbours(&self) -> Vec<Arc<Neighbour>> {
        let neighbour = |connection: &Connection| {
            Arc::new(Neighbour {
                session: connection.sleeve.session().clone(),
                confirmed: connection.confirmed,
                path: connection.sleeve_path(),
                warp: connection
                    .warp_path_control()
                    .map(|control| (control.session().clone(), control.path())),
                overlay: connection.user_space_overlay(),
            })
        };
        // An unconfirmed connection may be a duplicate: it must not replace the one that works.
        let (ready, waiting): (Vec<_>, Vec<_>) = self.connections.values().partition(|c| c.confirmed);
        let taken = |c: &&&Connection| !ready.iter().any(|r| r.remote == c.remote);
        ready.iter().chain(waiting.iter().filter(taken)).map(|c| neighbour(c)).collect()
    }

    /// The neighbours that the kernel sends to, and the ports at which VXLAN packets are expected.
    pub(crate) fn kernel_neighbours(
        &self,
        short_id: impl Fn(PeerName) -> Option<ShortId>,
    ) -> (BTreeMap<PeerName, KernelNeighbour>, BTreeSet<u16>) {
        let mut ports = BTreeSet::from_iter(self.port.checked_add(1));
        let mut neighbours = BTreeMap::new();
        for (name, path, traffic) in self.kept.iter() {
            ports.insert(path.port);
            if let Some(short_id) = short_id(name) {
                neighbours.insert(name, KernelNeighbour { name, short_id, path, traffic: traffic.clone() });
            }
        }
        for connection in self.connections.values() {
            let Some((_, fastdp)) = &connection.fastdp else { continue };
            let path = fastdp.path();
            ports.insert(path.port);
            if let Some(short_id) =
                short_id(connection.remote).filter(|_| connection.overlay() == Overlay::Fastdp)
            {
                let traffic = fastdp.traffic().clone();
                let name = connection.remote;
                neighbours.insert(name, KernelNeighbour { name, short_id, path, traffic });
            }
        }
        (neighbours, ports)
    }

    /// Passes an input to one connection and collects its outputs.
    fn with(&mut self, conn: ConnectionId, input: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        input(connection);
        let next_timeout = connection.poll_timeout().map(|(at, _)| at);
        if next_timeout != connection.next_timeout {
            let before = std::mem::replace(&mut connection.next_timeout, next_timeout);
            before.map(|at| self.timeouts.remove(&(at, conn)));
            next_timeout.map(|at| self.timeouts.insert((at, conn)));
        }
        connection.drain_udp(conn, &mut self.outputs);
        connection.drain_fastdp(conn, &mut self.outputs);
        if connection.overlay() == Overlay::Fastdp {
            self.kept.remove(connection.remote);
        }
        while let Some(output) = connection.switch.poll_output() {
            let output = match output {
                select::Output::PathDown => ConnectionOutput::PathDown,
                select::Output::PathUp => ConnectionOutput::PathUp,
                select::Output::Established => ConnectionOutput::Established,
                select::Output::Failed(error) => ConnectionOutput::Failed(error),
                select::Output::BestChanged { name, .. } => {
                    let text = format!("using {name}");
                    self.outputs
                        .push_back((conn, ConnectionOutput::Event { peer: connection.label.clone(), text }));
                    ConnectionOutput::NeighbourChanged
                }
            };
            self.outputs.push_back((conn, output));
        }
    }
}
