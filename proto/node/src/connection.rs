use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use weave_overlay::fastdp::{self, FastdpControl, FastdpPath, SegmentedProbe};
use weave_overlay::select::{self, Overlay, OverlaySwitch};
use weave_overlay::udp::{self, UdpControl, UdpPath};
use weave_overlay::warp::WarpControl;
use weave_overlay::{Destination, PathQuality, Slowness, TrafficCounts};
use weave_types::{ConnectionId, Instant, PeerName};

/// What the caller must do for the overlays of one connection.
pub(crate) enum ConnectionOutput {
    Datagram {
        destination: Destination,
        bytes: Vec<u8>,
    },
    /// As [`udp::Output::SegmentedProbe`].
    Batch {
        destination: Destination,
        bytes: Vec<u8>,
        segment: u16,
        plain: Vec<u8>,
    },
    /// A frame for the kernel to send by fastdp.
    KernelFrame {
        path: FastdpPath,
        bytes: Vec<u8>,
    },
    /// Probes for the kernel to send by fastdp: the first one as a super-frame, and if that is possible the second one.
    SegmentedProbe {
        path: FastdpPath,
        probes: [SegmentedProbe; 2],
    },
    Control {
        index: usize,
        tag: u8,
        body: Vec<u8>,
    },
    Established,
    PathDown,
    PathUp,
    Failed(String),
    NeighbourChanged,
    /// The datagrams of the neighbour come from another address than before.
    NeighbourMoved,
    Event {
        peer: String,
        text: String,
    },
}

/// Overlays whose paths have failed are given up when nothing of the neighbour arrives by any for this time. Their paths have been tested in
/// at least three seconds of it.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(7);

/// The overlays of one connection: the selection among them, and the control state machine of each.
pub(crate) struct Connection {
    /// As in [`Connections::timeouts`](crate::connections::Connections).
    pub(crate) next_timeout: Option<Instant>,
    pub(crate) remote: PeerName,
    pub(crate) switch: OverlaySwitch,
    pub(crate) sleeve: UdpControl,
    /// Position of sleeve in the common list. Without one sleeve is not used.
    pub(crate) sleeve_index: Option<usize>,
    /// fastdp and its position in the common list, if it was prepared.
    pub(crate) fastdp: Option<(usize, FastdpControl)>,
    /// warp and its position in the common list, if both peers have it.
    pub(crate) warp: Option<(usize, WarpControl)>,
    pub(crate) confirmed: bool,
    /// Remote address of the TCP connection.
    pub(crate) remote_addr: SocketAddr,
    /// `NAME(NICK)` of the peer.
    pub(crate) label: String,
    /// Whether the peer can be asked where frames go.
    pub(crate) traces: bool,
}

impl Connection {
    /// The overlay that frames are sent with.
    pub(crate) fn overlay(&self) -> Overlay {
        let Some((best, _)) = self.switch.best().filter(|_| self.confirmed) else { return Overlay::Sleeve };
        // Until then the kernel goes on with the path of the last connection, if there was one.
        if self.fastdp.as_ref().is_some_and(|(index, _)| *index == best) && self.switch.is_established(best) {
            Overlay::Fastdp
        } else if self
            .warp
            .as_ref()
            .is_some_and(|(index, warp)| *index == best && warp.path_control().is_some())
        {
            Overlay::Warp
        } else {
            Overlay::Sleeve
        }
    }

    /// How frames are sent that user space sends: also those to a neighbour that is reached by fastdp, if they come from another one that
    /// is not.
    pub(crate) fn user_space_overlay(&self) -> Overlay {
        let only_warp = self.sleeve_index.is_none() && self.warp_path_control().is_some();
        if only_warp || self.overlay() == Overlay::Warp { Overlay::Warp } else { Overlay::Sleeve }
    }

    /// How frames are sent by sleeve. Without sleeve they are not.
    pub(crate) fn sleeve_path(&self) -> UdpPath {
        let path = self.sleeve.path();
        UdpPath { remote: path.remote.filter(|_| self.sleeve_index.is_some()), ..path }
    }

    pub(crate) fn warp_path_control(&self) -> Option<&UdpControl> {
        self.warp.as_ref()?.1.path_control()
    }

    /// The state machine of an overlay over UDP.
    pub(crate) fn udp_control(&mut self, overlay: Overlay) -> Option<&mut UdpControl> {
        match overlay {
            Overlay::Sleeve => Some(&mut self.sleeve),
            Overlay::Warp => self.warp.as_mut()?.1.path_control_mut(),
            _ => None,
        }
    }

    pub(crate) fn test_path(&mut self, now: Instant) {
        if let Some((_, fastdp)) = &mut self.fastdp {
            fastdp.test_path(now);
        }
        for overlay in [Overlay::Warp, Overlay::Sleeve] {
            if let Some(control) = self.udp_control(overlay) {
                control.test_path(now);
            }
        }
    }

    /// Measures the path of the overlay in use.
    pub(crate) fn measure(&mut self, now: Instant) {
        match self.overlay() {
            Overlay::Fastdp => {
                if let Some((_, fastdp)) = &mut self.fastdp {
                    fastdp.measure(now);
                }
            }
            overlay => {
                if let Some(control) = self.udp_control(overlay) {
                    control.measure(now);
                }
            }
        }
    }

    /// What is known about the path of the overlay in use.
    pub(crate) fn quality(&self, now: Instant) -> Option<PathQuality> {
        match self.overlay() {
            Overlay::Fastdp => self.fastdp.as_ref()?.1.quality(now),
            Overlay::Warp => self.warp_path_control()?.quality(now),
            _ => self.sleeve.quality(now),
        }
    }

    /// What has passed by all overlays.
    pub(crate) fn traffic(&self) -> TrafficCounts {
        let mut counts = self.sleeve.session().traffic().counts();
        if let Some(warp) = self.warp_path_control() {
            counts += warp.session().traffic().counts();
        }
        if let Some((_, fastdp)) = &self.fastdp {
            counts += fastdp.traffic().counts();
        }
        counts
    }

    /// Looks at the paths in the order of preference, so that those that may replace a silent one are tested with it.
    pub(crate) fn handle_tick(&mut self, slowness: &Slowness, now: Instant) {
        let mut is_silent = false;
        if let Some((_, fastdp)) = &mut self.fastdp {
            fastdp.handle_tick(slowness, now);
            is_silent |= fastdp.is_silent();
        }
        for overlay in [Overlay::Warp, Overlay::Sleeve] {
            if let Some(control) = self.udp_control(overlay) {
                if is_silent {
                    control.test_path(now);
                }
                control.handle_tick(slowness, now);
                is_silent |= control.is_silent();
            }
        }
        if self.heard_at().is_some_and(|at| now.saturating_since(at) >= SILENCE_TIMEOUT) {
            for overlay in [Overlay::Warp, Overlay::Sleeve] {
                if let Some(control) = self.udp_control(overlay) {
                    control.give_up(now);
                }
            }
        }
    }

    /// When anything of the neighbour was last noticed, by any overlay.
    fn heard_at(&self) -> Option<Instant> {
        let fastdp = self.fastdp.as_ref().and_then(|(_, fastdp)| fastdp.heard_at());
        let warp = self.warp_path_control().and_then(UdpControl::heard_at);
        [self.sleeve.heard_at(), fastdp, warp].into_iter().flatten().max()
    }

    /// Tests the overlay in use, if it is silent. fastdp expects heartbeats instead.
    pub(crate) fn listen(&mut self, is_late: bool, now: Instant) {
        if let Some(control) = self.udp_control(self.overlay()) {
            control.listen(is_late, now);
        }
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.sleeve.is_watched()
            || self.fastdp.as_ref().is_some_and(|(_, fastdp)| fastdp.is_watched())
            || self.warp_path_control().is_some_and(UdpControl::is_watched)
    }

    pub(crate) fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let fastdp = self.fastdp.as_ref().and_then(|(_, fastdp)| fastdp.poll_timeout());
        let warp = self.warp.as_ref().and_then(|(_, warp)| warp.poll_timeout());
        [self.sleeve.poll_timeout(), fastdp, warp].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Collects the outputs of sleeve and warp.
    pub(crate) fn drain_udp(
        &mut self,
        conn: ConnectionId,
        outputs: &mut VecDeque<(ConnectionId, ConnectionOutput)>,
    ) {
        while let Some(output) = self.sleeve.poll_output() {
            if let Some(index) = self.sleeve_index {
                self.handle_udp_output(conn, index, select::SLEEVE, output, outputs);
            }
        }
        while let Some((index, warp)) = &mut self.warp
            && let Some(output) = warp.poll_output()
        {
            let index = *index;
            self.handle_udp_output(conn, index, select::WARP, output, outputs);
        }
    }

    pub(crate) fn handle_udp_output(
        &mut self,
        conn: ConnectionId,
        index: usize,
        name: &str,
        output: udp::Output,
        outputs: &mut VecDeque<(ConnectionId, ConnectionOutput)>,
    ) {
        let output = match output {
            udp::Output::Datagram { from, to, df, bytes } => {
                let destination = Destination { conn, from, to, df, batched: false };
                ConnectionOutput::Datagram { destination, bytes }
            }
            udp::Output::SegmentedProbe { from, to, bytes, segment, plain } => {
                let destination = Destination { conn, from, to, df: true, batched: true };
                ConnectionOutput::Batch { destination, bytes, segment, plain }
            }
            udp::Output::Control { tag, body } => ConnectionOutput::Control { index, tag, body },
            udp::Output::PathChanged => ConnectionOutput::NeighbourChanged,
            udp::Output::Event(event) => {
                ConnectionOutput::Event { peer: self.label.clone(), text: format!("{name}: {event}") }
            }
            udp::Output::PathDown => return self.switch.handle_health(index, false),
            udp::Output::PathUp => return self.switch.handle_health(index, true),
            udp::Output::Established => return self.switch.handle_established(index),
            udp::Output::Failed(error) => return self.switch.handle_error(index, &error),
        };
        outputs.push_back((conn, output));
    }

    pub(crate) fn drain_fastdp(
        &mut self,
        conn: ConnectionId,
        outputs: &mut VecDeque<(ConnectionId, ConnectionOutput)>,
    ) {
        let Some((index, fastdp)) = &mut self.fastdp else { return };
        while let Some(output) = fastdp.poll_output() {
            let output = match output {
                fastdp::Output::Frame(bytes) => ConnectionOutput::KernelFrame { path: fastdp.path(), bytes },
                fastdp::Output::SegmentedProbe(segmented, plain) => {
                    ConnectionOutput::SegmentedProbe { path: fastdp.path(), probes: [segmented, plain] }
                }
                fastdp::Output::Control { tag, body } => {
                    ConnectionOutput::Control { index: *index, tag, body }
                }
                fastdp::Output::PathChanged => ConnectionOutput::NeighbourChanged,
                fastdp::Output::Event(event) => ConnectionOutput::Event {
                    peer: self.label.clone(),
                    text: format!("{}: {event}", select::FASTDP),
                },
                fastdp::Output::Established => {
                    self.switch.handle_established(*index);
                    continue;
                }
                fastdp::Output::Health(healthy) => {
                    self.switch.handle_health(*index, healthy);
                    continue;
                }
            };
            outputs.push_back((conn, output));
        }
    }
}
