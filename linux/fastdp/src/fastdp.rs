use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use weave_host::{Link, Netlink};
use weave_overlay::fastdp::{FastdpPath, KernelNeighbour, KernelPeer, KernelTables, SegmentedProbe};
use weave_overlay::{Traffic, TrafficCounts};
use weave_switch::MacMap;
use weave_types::{Instant, MacAddr, PeerName, ShortId};

use crate::devices::{self, TapQueue, program_name, unfinished_devices, vxlan_devices, vxlan_name};
use crate::error::Error;
use crate::events::{EventReader, SharedNames};
use crate::layout::{
    self, COUNT_SIZE, Counter, Devices, Globals, MAC_ENTRY_SIZE, MacValue, REMOTE_SIZE, TRAFFIC_SIZE,
    mac_key, mac_of, u64_at,
};
use crate::maps::{Maps, ONLY, tables_map};
use crate::send::{FrameSender, SendError};
use crate::shortcut::{self, Shortcuts};
use crate::sys::{self, Map, Program};
use crate::time::Clock;

/// Parameters of [`Fastdp::start`].
#[derive(Clone, Debug)]
pub struct FastdpConfig {
    /// The end of the uplink that is not a port of the bridge, usually `vethwe-datapath`.
    pub uplink: String,
    /// TAP device for local frames that user space has to forward.
    pub tap: String,
    /// TAP device for frames of peers that user space has to forward.
    pub relay_tap: String,
    /// The VXLAN port of this peer.
    pub port: u16,
    /// Maximum number of MACs. It should exceed that of [`MacConfig`](weave_switch::MacConfig), because MACs that the program has just
    /// learnt come on top.
    pub max_macs: u32,
    /// The origin of [`Instant`] in this process.
    pub origin: std::time::Instant,
}

impl FastdpConfig {
    /// Usual values for this uplink and port.
    pub fn new(uplink: &str, port: u16, origin: std::time::Instant) -> FastdpConfig {
        FastdpConfig {
            uplink: uplink.into(),
            tap: "weavetap".into(),
            relay_tap: "weaverelay".into(),
            port,
            max_macs: 65536 + 4096,
            origin,
        }
    }
}

/// What the program knows about a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacActivity {
    /// The address.
    pub mac: MacAddr,
    /// The peer that has it.
    pub peer: ShortId,
    /// When its latest frame arrived, up to 100 ms too early.
    pub last_seen: Instant,
    /// How many frames with this source were refused because another peer uses the address.
    pub refused: u64,
}

/// Frames of a kind and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Number of frames.
    pub frames: u64,
    /// Their bytes, with Ethernet headers.
    pub bytes: u64,
}

/// A device of the kernel path, as the report lists it (docs/spec/data-plane.md 5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vport {
    /// Index of the device.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `netdev`, `vxlan` or `internal`.
    pub kind: &'static str,
}

/// A forwarding entry, as the report lists it (docs/spec/data-plane.md 5.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// What frames it applies to.
    pub keys: Vec<String>,
    /// What happens to them.
    pub actions: Vec<String>,
    /// When the address was last used as a source.
    pub used: Instant,
}

/// How long the program's knowledge about a MAC counts more than the tables', which may have been made before it was reported.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The kernel path: programs, maps and devices, which stay and go on forwarding when this is dropped.
///
/// All methods work on the network namespace in which it was started; those that open devices or sockets have to be called there.
#[derive(Debug)]
pub struct Fastdp {
    config: FastdpConfig,
    netlink: Netlink,
    maps: Maps,
    uplink_program: Program,
    tunnel_program: Program,
    port_program: Arc<Program>,
    devices: Devices,
    /// The queues that have been opened, to attach them again if their device is removed.
    taps: Vec<TapQueue>,
    /// VXLAN devices by port.
    ports: BTreeMap<u16, Link>,
    /// Programs of another version forward until tables have been published.
    switch_over: bool,
    adopted: bool,
    names: SharedNames,
    clock: Clock,
    frames: FrameSender,
    /// For probes, from the first one on.
    probe_socket: Option<OwnedFd>,
    /// What has been published, with its generation.
    published: Option<Vec<u8>>,
    /// What had been published before, or room for the next tables: they are large.
    spare: Vec<u8>,
    tables: Option<KernelTables>,
    macs: Option<Arc<MacMap>>,
    peers: BTreeMap<u16, PeerName>,
    /// On the programs' clock: since when an id belongs to its peer.
    id_since: BTreeMap<u16, u64>,
    /// The program knew something else about a MAC, which could be newer.
    unsettled: bool,
    /// The counters of neighbours, by short id.
    traffic: Vec<(u16, Arc<Traffic>)>,
    /// What the map of neighbours by address has.
    remotes: BTreeMap<[u8; REMOTE_SIZE], u16>,
}

impl Fastdp {
    /// Loads the programs and attaches them. If those of an earlier process are there, their maps and devices are taken over without
    /// interruption, provided that they have the same layout; others forward until the first [`publish`](Fastdp::publish).
    ///
    /// Until then the program at the uplink decides nothing if there was none, so that packet sockets can be used.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the kernel lacks what is needed. Nothing is left of what was made.
    pub fn start(config: &FastdpConfig) -> Result<(Fastdp, EventReader), Error> {
        let mut netlink = Netlink::open()?;
        let Some(uplink) = netlink.link(&config.uplink)? else {
            return Err(Error::Host(weave_host::Error::LinkNotFound));
        };
        let present = netlink.ingress_program(&uplink)?;
        let old = present.as_ref().and_then(|program| Maps::adopt(program.id, config.max_macs));
        let adopted = old.is_some();
        let maps = match old {
            Some(maps) => maps,
            None => Maps::create(config.max_macs)?,
        };
        let local_address = takes_local_address(&maps)?;
        Error::at("writing the layout of eBPF maps", || {
            maps.globals.update(&ONLY, &Globals::new(local_address).encode())
        })?;
        let (uplink_program, tunnel_program) = (maps.load("uplink")?, maps.load("tunnel")?);
        let port_program = Arc::new(maps.load("port")?);
        let (names, clock) = (SharedNames::default(), Clock::new(config.origin));
        let reader = EventReader::new(&maps.events, names.clone(), clock)?;
        let (tap, tap_made) = devices::ensure_tap(&mut netlink, &config.tap, true)?;
        let relay = devices::ensure_tap(&mut netlink, &config.relay_tap, false);
        let (relay, relay_made) = match relay {
            Ok(relay) => relay,
            Err(error) => {
                if tap_made {
                    let _ = netlink.delete_link(&tap);
                }
                return Err(error);
            }
        };
        let mut fastdp = Fastdp {
            config: config.clone(),
            netlink,
            uplink_program,
            tunnel_program,
            port_program,
            devices: Devices { uplink: uplink.index, tap: tap.index, relay_tap: relay.index },
            taps: Vec::new(),
            ports: BTreeMap::new(),
            switch_over: present.is_some() && !adopted,
            adopted,
            names,
            clock,
            frames: FrameSender::default(),
            probe_socket: None,
            published: current_tables(&maps),
            spare: Vec::new(),
            tables: None,
            macs: None,
            peers: BTreeMap::new(),
            id_since: BTreeMap::new(),
            unsettled: false,
            traffic: Vec::new(),
            remotes: BTreeMap::new(),
            maps,
        };
        match fastdp.set_up(&uplink) {
            Ok(()) => Ok((fastdp, reader)),
            Err(error) => {
                if present.is_none() {
                    fastdp.undo(&uplink);
                }
                for (link, _) in [(tap, tap_made), (relay, relay_made)].iter().filter(|(_, made)| *made) {
                    let _ = fastdp.netlink.delete_link(link);
                }
                Err(error)
            }
        }
    }

    fn set_up(&mut self, uplink: &Link) -> Result<(), Error> {
        for (port, link) in vxlan_devices(&mut self.netlink, &self.config.uplink)? {
            self.add_port(port, link);
        }
        self.ensure_port(self.config.port)?;
        if !self.switch_over {
            self.attach(uplink)?;
        }
        Ok(())
    }

    /// Removes what a start has made that failed.
    fn undo(&mut self, uplink: &Link) {
        for link in std::mem::take(&mut self.ports).values() {
            let _ = self.netlink.delete_link(link);
        }
        let _ = self.netlink.remove_ingress_program(uplink);
    }

    /// Attaches the programs to all devices, the uplink last.
    fn attach(&mut self, uplink: &Link) -> Result<(), Error> {
        let name = program_name(&self.config.uplink);
        if self.switch_over {
            // Those of the other version have its routes.
            shortcut::remove_all(&mut self.netlink)?;
        }
        for link in self.ports.values() {
            self.netlink.set_ingress_program(link, self.tunnel_program.fd(), &name)?;
        }
        self.netlink.set_ingress_program(uplink, self.uplink_program.fd(), &name)?;
        self.switch_over = false;
        Ok(())
    }

    fn add_port(&mut self, port: u16, link: Link) {
        self.names.lock().ports.insert(link.index, port);
        self.ports.insert(port, link);
    }

    /// Makes sure that devices and programs are where they should be, as another program may have changed or removed them. Returns what
    /// was wrong and has been repaired.
    pub fn repair(&mut self) -> Result<Vec<String>, Error> {
        let mut repaired = Vec::new();
        if self.switch_over {
            return Ok(repaired);
        }
        let taps = [(self.config.tap.clone(), true), (self.config.relay_tap.clone(), false)];
        let mut devices = self.devices;
        for ((name, multi_queue), index) in taps.iter().zip([&mut devices.tap, &mut devices.relay_tap]) {
            match self.netlink.link(name)? {
                Some(link) if link.index == *index && link.up => {}
                Some(link) if link.index == *index => {
                    self.netlink.set_up(&link, true)?;
                    repaired.push(format!("TAP device {name} was down"));
                }
                _ => {
                    *index = devices::ensure_tap(&mut self.netlink, name, *multi_queue)?.0.index;
                    repaired.push(format!("TAP device {name} was missing"));
                }
            }
        }
        // Those that a device lost when it was removed; whoever reads them goes on.
        self.taps.iter().try_for_each(TapQueue::reattach)?;
        let Some(uplink) = self.netlink.link(&self.config.uplink)? else {
            return Err(Error::Host(weave_host::Error::LinkNotFound));
        };
        devices.uplink = uplink.index;
        for port in self.ports() {
            let before = self.ports.get(&port).cloned();
            self.ensure_port(port)?;
            if self.ports.get(&port) != before.as_ref() {
                repaired.push(format!("VXLAN device {} was missing", vxlan_name(port)));
            }
        }
        let mut wanted = vec![(uplink, self.uplink_program.id())];
        wanted.extend(self.ports.values().map(|link| (link.clone(), self.tunnel_program.id())));
        let mut attach = false;
        for (link, id) in wanted {
            let id = id.map_err(|error| Error::new("reading the number of an eBPF program", error))?;
            if self.netlink.ingress_program(&link)?.is_none_or(|program| program.id != id) {
                repaired.push(format!("{} did not have its program", link.name));
                attach = true;
            }
        }
        if attach && let Some(uplink) = self.netlink.link(&self.config.uplink)? {
            self.attach(&uplink)?;
        }
        self.devices = devices;
        // The tables refer to devices by number.
        if let Some(tables) = self.tables.clone() {
            self.publish(&tables)?;
        }
        Ok(repaired)
    }

    /// Whether maps of an earlier process have been taken over, with routes and MACs. The first [`publish`](Fastdp::publish) replaces
    /// both: it should wait until the routes are known, and [`activity`](Fastdp::activity) tells the MACs.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The shortcut by which frames of containers bypass the bridge. No port has it yet, or still that of an earlier process.
    pub fn shortcuts(&self) -> Shortcuts {
        Shortcuts::new(self.port_program.clone(), self.maps.own.ports.clone())
    }

    /// Number of peers that the programs reach by the kernel, with the tables that they use.
    pub fn reached(&self) -> usize {
        self.published.as_deref().map_or(0, layout::reached)
    }

    /// Makes sure that there is a VXLAN device for this port.
    ///
    /// # Errors
    /// [`Error::PortInUse`] if another program has it.
    pub fn ensure_port(&mut self, port: u16) -> Result<(), Error> {
        if let Some(known) = self.ports.get(&port) {
            let present = self.netlink.link(&vxlan_name(port))?;
            if let Some(present) = present.filter(|link| link.index == known.index) {
                if !present.up {
                    self.netlink.set_up(&present, true)?;
                }
                return Ok(());
            }
            // Somebody has removed it.
            self.forget_port(port);
        }
        let name = program_name(&self.config.uplink);
        let link = devices::create_vxlan(&mut self.netlink, port, &self.tunnel_program, &name)?;
        self.add_port(port, link);
        Ok(())
    }

    fn forget_port(&mut self, port: u16) -> Option<Link> {
        let link = self.ports.remove(&port)?;
        self.names.lock().ports.remove(&link.index);
        Some(link)
    }

    /// Removes the VXLAN device of a port, if there is one. No published table may refer to it.
    pub fn remove_port(&mut self, port: u16) -> Result<(), Error> {
        let Some(link) = self.forget_port(port) else { return Ok(()) };
        match self.netlink.delete_link(&link) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV) => Ok(()),
            other => other.map_err(Error::from),
        }
    }

    /// The ports for which there are VXLAN devices, those of an earlier process included.
    pub fn ports(&self) -> Vec<u16> {
        self.ports.keys().copied().collect()
    }

    /// Opens a queue of the TAP device for local frames. Each frame has a virtio header of 10 bytes in front; the frames of a flow
    /// arrive at one queue. Without open queues such frames are lost. Reading fails while the device is missing, until
    /// [`repair`](Fastdp::repair).
    pub fn open_tap(&mut self) -> Result<OwnedFd, Error> {
        let (reader, queue) = TapQueue::open(&self.config.tap, true)?;
        self.taps.push(queue);
        Ok(reader)
    }

    /// Opens the TAP device for frames of peers, as [`open_tap`](Fastdp::open_tap). Each has two VLAN tags of type 0x88a8 behind its
    /// MACs: the first has the short id of its source, the second that of its destination. If that is this peer, the frame has been
    /// delivered and is to be sent to those neighbours in the broadcast tree of its source that the kernel does not reach. The frames are
    /// complete: the kernel has segmented them and computed their checksums.
    pub fn open_relay_tap(&mut self) -> Result<OwnedFd, Error> {
        let (reader, queue) = TapQueue::open(&self.config.relay_tap, false)?;
        self.taps.push(queue);
        Ok(reader)
    }

    /// Has the programs forward with these tables from now on. A frame sees either the old or the new routes. What is the same already is
    /// not written.
    ///
    /// Waits until no program uses the old routes, some milliseconds. What the program has learnt in the last two seconds counts more
    /// than `tables.macs`, until a later call.
    ///
    /// # Errors
    /// [`Error::NoPort`] if a neighbour has a port without device; the old tables remain.
    pub fn publish(&mut self, tables: &KernelTables) -> Result<(), Error> {
        let device = |port| self.ports.get(&port).map(|link: &Link| link.index);
        let mut encoded =
            layout::encode_tables(tables, &self.devices, device, std::mem::take(&mut self.spare))?;
        let old = self.published.as_deref();
        let generation = old.map_or(0, layout::generation);
        layout::set_generation(&mut encoded, generation);
        let changed = old != Some(&encoded[..]);
        let ids_changed = self.name_peers(tables, generation + u64::from(changed));
        if changed {
            layout::set_generation(&mut encoded, generation + 1);
            let map = tables_map()?;
            Error::at("writing routes of the kernel path", || {
                map.update(&ONLY, &encoded)?;
                self.maps.tables.update_map(&ONLY, &map)
            })?;
            self.spare = self.published.replace(encoded).unwrap_or_default();
        } else {
            self.spare = encoded;
        }
        self.tables = Some(tables.clone());
        self.publish_remotes(tables)?;
        let same_macs = self.macs.as_ref().is_some_and(|macs| Arc::ptr_eq(macs, &tables.macs));
        if !same_macs || ids_changed || self.unsettled {
            self.publish_macs(&tables.macs)?;
            self.macs = Some(tables.macs.clone());
        }
        if self.switch_over
            && let Some(uplink) = self.netlink.link(&self.config.uplink)?
        {
            self.attach(&uplink)?;
        }
        Ok(())
    }

    /// Notes the neighbours, for counting what arrives from them.
    fn publish_remotes(&mut self, tables: &KernelTables) -> Result<(), Error> {
        let id = |neighbour: &KernelNeighbour| neighbour.short_id.get();
        let key = |neighbour: &KernelNeighbour| {
            let device = self.ports.get(&neighbour.path.port)?;
            Some((layout::remote_key(neighbour.path.remote, device.index), id(neighbour)))
        };
        let wanted: BTreeMap<_, u16> = tables.neighbours.iter().filter_map(key).collect();
        let map = &self.maps.own.remotes;
        Error::at("writing the neighbours of the kernel path", || {
            for key in self.remotes.keys().filter(|key| !wanted.contains_key(*key)) {
                map.delete(key)?;
            }
            for (key, id) in wanted.iter().filter(|(key, id)| self.remotes.get(*key) != Some(id)) {
                map.update(key, &u32::from(*id).to_ne_bytes())?;
            }
            Ok(())
        })?;
        self.remotes = wanted;
        let tree = |peer: &KernelPeer| {
            let neighbour = |index: &u16| tables.neighbours.get(usize::from(*index)).map(|n| n.short_id);
            (peer.short_id.get(), peer.broadcast.iter().filter_map(neighbour).collect())
        };
        self.names.lock().trees = tables.peers.iter().filter(|p| !p.broadcast.is_empty()).map(tree).collect();
        self.traffic = tables.neighbours.iter().map(|n| (id(n), n.traffic.clone())).collect();
        Ok(())
    }

    /// Writes what the programs have counted to the counters of the neighbours in the published tables. To be called before each look at
    /// a path.
    pub fn update_traffic(&self) -> Result<(), Error> {
        for (id, traffic) in &self.traffic {
            let key = u32::from(*id).to_ne_bytes();
            let values = Error::at("reading counters of neighbours", || self.maps.own.traffic.lookup(&key))?;
            let mut sum = TrafficCounts::default();
            for value in values.unwrap_or_default().chunks_exact(TRAFFIC_SIZE) {
                sum += layout::decode_traffic(value);
            }
            traffic.set(sum);
        }
        Ok(())
    }

    /// Notes which peer has which id. `true` if something has changed.
    fn name_peers(&mut self, tables: &KernelTables, generation: u64) -> bool {
        let peers: BTreeMap<u16, PeerName> =
            tables.peers.iter().map(|peer| (peer.short_id.get(), peer.name)).collect();
        if peers == self.peers {
            return false;
        }
        let now = sys::monotonic_nanos();
        let mut names = self.names.lock();
        names.peers.retain(|id, _| peers.contains_key(id));
        self.id_since.retain(|id, _| peers.contains_key(id));
        for (id, name) in &peers {
            if names.peers.get(id).is_none_or(|(known, _)| known != name) {
                // Of adopted tables it is not known which peers they were made for.
                names.peers.insert(*id, (*name, generation));
                self.id_since.insert(*id, now);
            }
        }
        self.peers = peers;
        true
    }

    fn mac_entries(&self) -> Result<Vec<(MacAddr, MacValue)>, Error> {
        let (keys, values) = Error::at("reading the MACs of the kernel path", || self.maps.macs.entries())?;
        let (keys, _) = keys.as_chunks::<8>();
        let (values, _) = values.as_chunks::<MAC_ENTRY_SIZE>();
        Ok(keys.iter().zip(values).map(|(k, v)| (mac_of(*k), MacValue::decode(v))).collect())
    }

    /// Repairs what the program knows otherwise about MACs.
    fn publish_macs(&mut self, macs: &MacMap) -> Result<(), Error> {
        let ids: BTreeMap<PeerName, u16> = self.peers.iter().map(|(id, name)| (*name, *id)).collect();
        let now = sys::monotonic_nanos();
        let settled = u64::try_from(SETTLE_TIME.as_nanos()).unwrap_or(u64::MAX);
        let mut known = BTreeMap::new();
        self.unsettled = false;
        for (mac, value) in self.mac_entries()? {
            known.insert(mac, value.peer);
            let wanted = macs.lookup(mac).and_then(|peer| ids.get(&peer)).copied();
            let may_be_newer = value.learnt != 0
                && now.saturating_sub(value.learnt) < settled
                && self.id_since.get(&value.peer).is_some_and(|since| *since <= value.learnt);
            match wanted {
                Some(id) if id == value.peer => {
                    if value.pending {
                        self.write_mac(mac, &MacValue { pending: false, ..value })?;
                    }
                }
                _ if may_be_newer => self.unsettled = true,
                Some(peer) => {
                    let last_seen = macs.last_seen(mac).map_or(now, |at| self.clock.nanos(at));
                    let refused = value.refused;
                    self.write_mac(mac, &MacValue { last_seen, peer, refused, ..MacValue::default() })?;
                }
                None => {
                    Error::at("removing a MAC from the kernel path", || {
                        self.maps.macs.delete(&mac_key(mac))
                    })?;
                }
            }
        }
        for entry in macs.entries() {
            if let Some(&peer) = ids.get(&entry.peer)
                && !known.contains_key(&entry.mac)
            {
                let last_seen = self.clock.nanos(entry.last_seen);
                let refused = u32::try_from(entry.refused).unwrap_or(u32::MAX);
                self.write_mac(entry.mac, &MacValue { last_seen, peer, refused, ..MacValue::default() })?;
            }
        }
        Ok(())
    }

    fn write_mac(&self, mac: MacAddr, value: &MacValue) -> Result<(), Error> {
        match Error::at("writing a MAC of the kernel path", || {
            self.maps.macs.update(&mac_key(mac), &value.encode())
        }) {
            // There is no room: frames to it are flooded.
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(()),
            other => other,
        }
    }

    /// Sends a control frame to a neighbour in a VXLAN packet that may not be fragmented.
    ///
    /// # Errors
    /// [`SendError::TooBig`] if the path is known not to carry it.
    pub fn send_frame(&self, path: &FastdpPath, vni: u32, frame: &[u8]) -> Result<(), SendError> {
        self.frames.send(path, vni, frame)
    }

    /// Sends probes by the way of the frames of containers: the first one as a super-frame, and the second one only if that succeeds.
    /// Nothing is sent before the programs have tables.
    pub fn send_probes(
        &mut self,
        path: &FastdpPath,
        vni: u32,
        probes: &[SegmentedProbe],
    ) -> Result<(), Error> {
        if self.switch_over || self.published.is_none() {
            return Ok(());
        }
        let device = self.ports.get(&path.port).ok_or(Error::NoPort(path.port))?.index;
        let port = self.netlink.link(&self.config.uplink)?.filter(|link| link.peer_nsid.is_none());
        let Some(port) = port.and_then(|link| link.peer) else {
            return Err(Error::Host(weave_host::Error::LinkNotFound));
        };
        let step = "sending a probe through the uplink";
        let socket = match self.probe_socket.take() {
            Some(socket) => socket,
            None => Error::at(step, sys::open_frame_socket)?,
        };
        let socket = self.probe_socket.insert(socket);
        for probe in probes {
            let (frame, offload) = probe.frame(path, vni, device);
            Error::at(step, || sys::send_frame(socket, port, offload.to_virtio(), &frame))?;
        }
        Ok(())
    }

    /// All MACs that the programs know, in no particular order.
    pub fn activity(&self) -> Result<Vec<MacActivity>, Error> {
        let activity = |(mac, value): (MacAddr, MacValue)| {
            Some(MacActivity {
                mac,
                peer: ShortId::new(value.peer)?,
                last_seen: self.clock.instant(value.last_seen),
                refused: u64::from(value.refused),
            })
        };
        Ok(self.mac_entries()?.into_iter().filter_map(activity).collect())
    }

    /// What the programs have counted since their maps were made, in the order of [`Counter::ALL`].
    pub fn statistics(&self) -> Result<Vec<(Counter, Count)>, Error> {
        let mut all = Vec::with_capacity(Counter::ALL.len());
        for (i, counter) in Counter::ALL.into_iter().enumerate() {
            let key = (i as u32).to_ne_bytes();
            let values =
                Error::at("reading counters of the kernel path", || self.maps.counters.lookup(&key))?;
            let mut count = Count::default();
            for value in values.unwrap_or_default().chunks_exact(COUNT_SIZE) {
                count.frames += u64_at(value, 0).unwrap_or_default();
                count.bytes += u64_at(value, 8).unwrap_or_default();
            }
            all.push((counter, count));
        }
        Ok(all)
    }

    /// The devices, for the report.
    pub fn vports(&self) -> Vec<Vport> {
        let Devices { uplink, tap, relay_tap } = self.devices;
        let vport = |id, name: &str, kind| Vport { id, name: name.into(), kind };
        let mut all = vec![
            vport(uplink, &self.config.uplink, "netdev"),
            vport(tap, &self.config.tap, "internal"),
            vport(relay_tap, &self.config.relay_tap, "internal"),
        ];
        all.extend(self.ports.values().map(|link| vport(link.index, &link.name, "vxlan")));
        all
    }

    /// The forwarding entries, for the report: one for each MAC.
    pub fn flows(&self) -> Result<Vec<Flow>, Error> {
        let own = self.published.as_deref().map(layout::own_id);
        let flow = |entry: MacActivity| {
            let peer = entry.peer.get();
            let name = self.peers.get(&peer);
            let action = match name {
                _ if own == Some(peer) => format!("output({})", self.config.uplink),
                Some(name) => format!("tunnel(peer={name}, id={peer})"),
                None => format!("tunnel(id={peer})"),
            };
            let keys = vec![format!("eth(dst={})", entry.mac)];
            Flow { keys, actions: vec![action], used: entry.last_seen }
        };
        Ok(self.activity()?.into_iter().map(flow).collect())
    }
}

#[cfg(test)]
impl Fastdp {
    /// Makes the maps look like those of another version.
    pub(crate) fn claim_version(&self, version: u32) {
        let mut globals = self.maps.globals.lookup(&ONLY).expect("a map").expect("an entry");
        globals[4..8].copy_from_slice(&version.to_ne_bytes());
        self.maps.globals.update(&ONLY, &globals).expect("written");
    }

    pub(crate) fn generation(&self) -> Option<u64> {
        self.published.as_deref().map(layout::generation)
    }
}

/// Removes the programs, maps and devices of a peer, whether or not its process runs. It is no error if there are none.
pub fn remove_all(config: &FastdpConfig) -> Result<(), Error> {
    remove_devices(&mut Netlink::open()?, &config.uplink, &[&config.tap, &config.relay_tap])
}

/// The names of the devices that [`remove_all`] removes.
pub fn device_names(config: &FastdpConfig) -> Result<Vec<String>, Error> {
    let links = owned_devices(&mut Netlink::open()?, &config.uplink, &[&config.tap, &config.relay_tap])?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

fn owned_devices(netlink: &mut Netlink, uplink: &str, taps: &[&String]) -> Result<Vec<Link>, Error> {
    let mut links: Vec<Link> = vxlan_devices(netlink, uplink)?.into_iter().map(|(_, link)| link).collect();
    links.extend(unfinished_devices(netlink)?);
    for name in taps {
        links.extend(netlink.link(name)?.filter(|link| link.is("tun")));
    }
    Ok(links)
}

fn remove_devices(netlink: &mut Netlink, uplink: &str, taps: &[&String]) -> Result<(), Error> {
    if let Some(link) = netlink.link(uplink)? {
        netlink.remove_ingress_program(&link)?;
    }
    shortcut::remove_all(netlink)?;
    for link in owned_devices(netlink, uplink, taps)? {
        match netlink.delete_link(&link) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENODEV) => {}
            other => other?,
        }
    }
    Ok(())
}

/// The tables that the programs of an earlier process use.
fn current_tables(maps: &Maps) -> Option<Vec<u8>> {
    let id = maps.tables.lookup(&ONLY).ok()??;
    let (fd, info) = Map::by_id(layout::u32_at(&id, 0)?).ok()?;
    crate::maps::adopt_tables(fd, &info)?.lookup(&ONLY).ok()?
}

/// Whether the kernel takes a tunnel key with a local address.
fn takes_local_address(maps: &Maps) -> Result<bool, Error> {
    let probe = maps.load("probe")?;
    let mut packet = [0u8; 64];
    Ok(Error::at("running an eBPF program", || probe.test_run(&mut packet))? == 0)
}
