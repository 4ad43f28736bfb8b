//! The kernel's part of fastdp: what the programs do with frames and VXLAN packets (docs/spec/data-plane.md 5). It goes on while the peer
//! is down.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weave_overlay::fastdp::{
    FastdpPath, KERNEL_FRAME_HEAD, KernelEvent, KernelFrame, KernelNeighbour, KernelPeer, KernelRoute,
    KernelTables, Returning, SegmentedProbe, vni,
};
use weave_overlay::forward::Tables;
use weave_overlay::{LIVENESS_FRAME, LivenessKind};
use weave_switch::frame::ETHERNET_HEADER;
use weave_switch::{LocalVerdict, PeerVerdict, Segments, SwitchEvent, local_frame, peer_frame};
use weave_types::{Instant, PeerName, ShortId};

use crate::net::VXLAN_PORT;

const VXLAN_HEADER: usize = 8;
const VXLAN_FLAGS: u8 = 0x08;
/// Position of the kind in a liveness frame.
const LIVENESS_KIND: usize = 14 + 12;
const TRAFFIC_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(crate) struct Kernel {
    tables: Option<(Arc<Tables>, Arc<KernelTables>)>,
    returning: Option<Returning>,
    /// The peer ends: its tables stay as they are.
    is_left: bool,
    /// Packets to send.
    pub(crate) sent: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Frames for the local bridge.
    pub(crate) injected: VecDeque<Vec<u8>>,
    pub(crate) events: VecDeque<KernelEvent>,
    /// When traffic of a neighbour was last reported.
    reported: BTreeMap<ShortId, Instant>,
}

/// A frame that user space has to forward.
pub(crate) struct ForUserSpace {
    pub(crate) src: ShortId,
    pub(crate) dst: ShortId,
    pub(crate) frame: Vec<u8>,
}

impl Kernel {
    /// The peer starts, and takes over what the last one has left.
    pub(crate) fn start(&mut self, now: Instant) {
        let reached = self.tables.as_ref().map_or(0, |(_, kernel)| kernel.reached());
        self.returning = Some(Returning::new(reached, now));
        self.is_left = false;
    }

    /// The peer ends, and lets the kernel go on.
    pub(crate) fn leave(&mut self) {
        self.is_left = true;
    }

    pub(crate) fn publish(&mut self, tables: &Arc<Tables>) {
        let Some(kernel) = tables.kernel.as_ref().filter(|_| !self.is_left) else { return };
        if !self.returning.as_mut().is_some_and(|returning| returning.holds(kernel)) {
            self.tables = Some((tables.clone(), kernel.clone()));
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.returning.as_ref()?.poll_timeout()
    }

    /// Whether to publish the peer's own tables now.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.returning.as_mut().is_some_and(|returning| returning.handle_timeout(now))
    }

    /// A frame from the local bridge. Returns whether user space has to forward it, too.
    pub(crate) fn local_frame(&mut self, frame: &[u8], now: Instant) -> bool {
        let Some((tables, kernel)) = self.tables.clone() else { return true };
        let (verdict, event) = local_frame(&tables.forwarding, frame, now);
        self.report(&tables, event);
        match verdict {
            LocalVerdict::Drop(_) => false,
            LocalVerdict::Unicast { dst, .. } => match peer(&kernel, dst) {
                Some(KernelPeer { route: KernelRoute::Kernel(index), short_id, .. }) => {
                    self.send(&kernel, *index, vni(kernel.own_id, *short_id), frame, now);
                    false
                }
                Some(KernelPeer { route: KernelRoute::None, .. }) => false,
                Some(KernelPeer { route: KernelRoute::User, .. }) | None => true,
            },
            LocalVerdict::Flood(_) => self.flood(&kernel, kernel.own_id, frame, now),
        }
    }

    /// Sends the copies of a broadcast that started at `src`. Returns whether user space has to send others.
    fn flood(&mut self, kernel: &KernelTables, src: ShortId, frame: &[u8], now: Instant) -> bool {
        let Some(peer) = kernel.peers.iter().find(|peer| peer.short_id == src) else { return true };
        for &index in &peer.broadcast {
            let to = kernel.neighbours[usize::from(index)].short_id;
            self.send(kernel, index, vni(src, to), frame, now);
        }
        peer.broadcast_user
    }

    fn send(&mut self, kernel: &KernelTables, index: u16, vni: u32, frame: &[u8], now: Instant) {
        let neighbour = &kernel.neighbours[usize::from(index)];
        let _ = neighbour.traffic.note_sent();
        self.note_traffic(neighbour, now);
        self.sent.push_back(packet(neighbour.path.remote, neighbour.path.port, vni, frame));
    }

    /// A VXLAN packet.
    pub(crate) fn handle_packet(
        &mut self,
        from: Ipv4Addr,
        packet: &[u8],
        now: Instant,
    ) -> Option<ForUserSpace> {
        let (tables, kernel) = self.tables.clone()?;
        let (header, frame) = packet.split_first_chunk::<VXLAN_HEADER>()?;
        let number = u32::from_be_bytes([0, header[4], header[5], header[6]]);
        let id = |bits: u32| ShortId::new((bits & 0xfff) as u16);
        let (src_id, dst_id) = (id(number)?, id(number >> 12)?);
        let by_id = |id| kernel.peers.iter().find(|peer| peer.short_id == id);
        let (src, dst) = (by_id(src_id)?, by_id(dst_id)?);
        let hop = kernel.neighbours.iter().find(|neighbour| neighbour.path.remote == from);
        let is_control = frame.get(..12)? == [0; 12];
        if let Some(hop) = hop {
            let _ = hop.traffic.note_received(!is_control);
        }
        if is_control && frame.get(12..ETHERNET_HEADER)? == [8, 0] {
            return (dst_id == kernel.own_id).then(|| ForUserSpace {
                src: src_id,
                dst: dst_id,
                frame: frame.to_vec(),
            });
        }
        if is_control {
            let mut head = [0; KERNEL_FRAME_HEAD];
            let len = frame.len().min(KERNEL_FRAME_HEAD);
            head[..len].copy_from_slice(&frame[..len]);
            let event =
                KernelFrame { src: src_id, dst: dst_id, from, port: VXLAN_PORT, len: frame.len(), head };
            self.events.push_back(KernelEvent::Frame(event));
            if frame.len() == LIVENESS_FRAME
                && dst_id == kernel.own_id
                && frame[LIVENESS_KIND] == LivenessKind::Probe as u8
            {
                let mut answer = frame.to_vec();
                answer[LIVENESS_KIND] = LivenessKind::Answer as u8;
                self.sent.push_back(self::packet(from, VXLAN_PORT, vni(dst_id, src_id), &answer));
            }
            return None;
        }
        if let Some(hop) = hop {
            self.note_traffic(hop, now);
        }
        let (verdict, event) = peer_frame(&tables.forwarding, src.name, dst.name, frame, now);
        self.report(&tables, event);
        let user_space = match verdict {
            PeerVerdict::Drop(_) => false,
            PeerVerdict::Relay { .. } => match dst.route {
                KernelRoute::Kernel(index) if kernel.neighbours[usize::from(index)].path.remote == from => {
                    false
                }
                KernelRoute::Kernel(index) => {
                    self.send(&kernel, index, number, frame, now);
                    false
                }
                KernelRoute::User => true,
                KernelRoute::None => false,
            },
            PeerVerdict::Deliver { flood } => {
                self.injected.push_back(frame.to_vec());
                !flood.is_empty() && self.flood(&kernel, src_id, frame, now)
            }
        };
        user_space.then(|| ForUserSpace { src: src_id, dst: dst_id, frame: frame.to_vec() })
    }

    /// User space asks to send a frame.
    pub(crate) fn send_frame(&mut self, to: Ipv4Addr, port: u16, vni: u32, frame: &[u8]) {
        self.sent.push_back(packet(to, port, vni, frame));
    }

    /// User space asks to send probes, which the kernel and the network card cut; a broken card loses what it has cut.
    pub(crate) fn send_probes(
        &mut self,
        path: &FastdpPath,
        vni: u32,
        probes: &[SegmentedProbe],
        loses_segments: bool,
    ) {
        if self.tables.is_none() {
            return;
        }
        for probe in probes.iter().filter(|probe| probe.segments == 1 || !loses_segments) {
            let (frame, offload) = probe.frame(path, vni, 1);
            let Ok(mut segments) = Segments::new(&frame, offload) else { continue };
            while let Some(len) = segments.next_len() {
                let mut segment = vec![0; len];
                segments.next_into(&mut segment);
                self.sent.push_back(packet(path.remote, path.port, vni, &segment));
            }
        }
    }

    fn report(&mut self, tables: &Tables, event: Option<SwitchEvent>) {
        if let Some(event) = event {
            let (SwitchEvent::LocalMac(mac)
            | SwitchEvent::RemoteMac { mac, .. }
            | SwitchEvent::LocalConflict { mac, .. }
            | SwitchEvent::OwnPacket { mac, .. }) = event;
            let last_seen = tables.forwarding.macs.last_seen(mac);
            self.events.push_back(KernelEvent::Switch { event, last_seen });
        }
    }

    fn note_traffic(&mut self, neighbour: &KernelNeighbour, now: Instant) {
        let id = neighbour.short_id;
        if self.reported.get(&id).is_none_or(|at| now.saturating_since(*at) >= TRAFFIC_INTERVAL) {
            self.reported.insert(id, now);
            self.events.push_back(KernelEvent::Traffic { neighbour: id });
        }
    }
}

fn peer(kernel: &KernelTables, name: PeerName) -> Option<&KernelPeer> {
    kernel.peers.iter().find(|peer| peer.name == name)
}

fn packet(to: Ipv4Addr, port: u16, vni: u32, frame: &[u8]) -> (SocketAddr, Vec<u8>) {
    let [_, a, b, c] = vni.to_be_bytes();
    let header = [VXLAN_FLAGS, 0, 0, 0, a, b, c, 0];
    (SocketAddr::new(IpAddr::V4(to), port), [&header[..], frame].concat())
}
