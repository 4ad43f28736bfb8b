//! The control state machine of fastdp on one connection (docs/spec/data-plane.md 5.3 to 5.5, 5.7, 5.8).
//!
//! ```text
//!     | -- heartbeat of full size, repeated ------> |
//!     | <-- control 0 (over TCP) ------------------ |   "your full-size packets arrive"
//!   established: heartbeats every 10 s, or every 5 s between peers of this version
//! ```
//!
//! Both ends do this independently. Silence makes the path unhealthy: another overlay carries the frames, and the heartbeats go on. So does
//! evidence that super-frames do not arrive as other frames do.

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_types::{ConnectionUid, Instant};

use super::event::KernelFrame;
use super::segmented_probe::SegmentedProbe;
use super::tables::FastdpPath;
use crate::heartbeats::Heartbeats;
use crate::liveness::{Action, LIVENESS_FRAME, Liveness, LivenessFrame, LivenessKind, PathQuality, Slowness};
use crate::segmentation::{self, ArrivedBurst, ArrivedSegments, SEGMENTS, SegmentationTest};
use crate::traffic::Traffic;

/// Ethernet header, connection UID and length.
const MIN_HEARTBEAT: usize = ETHERNET_HEADER + 10;

/// How late a heartbeat may be before the path is tested.
const HEARTBEAT_DELAY: Duration = Duration::from_millis(1500);

/// Tag of the control message that acknowledges the first heartbeat.
const HEARTBEAT_RECEIVED: u8 = 0;
/// Tag of the control message that begins encryption by ESP, which this version does not have.
const INIT_ESP: u8 = 1;
/// Tag of the control message that says which segments of a probe have arrived.
const SEGMENTS_RECEIVED: u8 = 2;

/// Parameters of a [`FastdpControl`].
#[derive(Clone, Debug)]
pub struct FastdpControlConfig {
    /// Identifies the connection.
    pub uid: ConnectionUid,
    /// Initial path: the addresses of the TCP connection, and the VXLAN port of the end that accepted it.
    pub path: FastdpPath,
    /// MTU of the local bridge: heartbeats have this size, so that a path that carries them carries every frame.
    pub mtu: usize,
}

/// What the owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this frame by [`FastdpControl::path`], from this peer to the neighbour.
    Frame(Vec<u8>),
    /// Send this control message over the mesh connection.
    Control {
        /// 0, or 2.
        tag: u8,
        /// What follows the tag.
        body: Vec<u8>,
    },
    /// Send the first probe by [`FastdpControl::path`] as a super-frame, and if that is possible the second one as it is, by the same way.
    SegmentedProbe(SegmentedProbe, SegmentedProbe),
    /// Full-size packets reach the neighbour. Emitted once.
    Established,
    /// Whether the path works. It does initially.
    Health(bool),
    /// [`FastdpControl::path`] has changed: publish it.
    PathChanged,
    /// Log this event.
    Event(Event),
}

/// An event for the log, with the text of 2.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The neighbour's packets arrive from another address.
    AddressChanged(Ipv4Addr),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Event::AddressChanged(addr) = self;
        write!(f, "Peer IP address changed to {addr}")
    }
}

/// The neighbour sent an invalid control message. The owner logs the error and ignores the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlMessageError {
    /// The tag is not one of fastdp's.
    #[error("unknown fastdp control message {0}")]
    UnknownTag(u8),
    /// The body has the wrong length.
    #[error("fastdp control message {tag} with {len} bytes")]
    BadLength {
        /// Tag of the message.
        tag: u8,
        /// Bytes after the tag.
        len: usize,
    },
    /// The message acknowledges a heartbeat, but none was sent.
    #[error("fastdp heartbeat acknowledged before any was sent")]
    NothingToAcknowledge,
}

/// The control state machine of fastdp on one connection. It sends nothing before [`confirm`](FastdpControl::confirm).
#[derive(Debug)]
pub struct FastdpControl {
    uid: ConnectionUid,
    path: FastdpPath,
    mtu: usize,
    /// When the mesh accepted the connection; `None` before.
    confirmed_at: Option<Instant>,
    established: bool,
    heartbeats: Heartbeats,
    heartbeat_sent: bool,
    heartbeat_received: bool,
    /// The interface does not carry heartbeats: its MTU.
    too_big: Option<u16>,
    tests_liveness: bool,
    liveness: Option<Liveness>,
    tests_segmentation: bool,
    segmentation: SegmentationTest,
    arrived: ArrivedBurst,
    /// [`TrafficCounts::sent`](crate::TrafficCounts::sent) at the latest heartbeat.
    sent: u32,
    traffic: Arc<Traffic>,
    /// [`Slowness::factor`] of this peer.
    slowness: u8,
    timed_out: bool,
    down: bool,
    /// The latest [`Output::Health`].
    healthy: bool,
    heartbeat_at: Option<Instant>,
    timeout_at: Option<Instant>,
    /// When the path is tested unless another heartbeat arrives.
    expected_at: Option<Instant>,
    outputs: VecDeque<Output>,
}

impl FastdpControl {
    /// Creates the state machine, which waits for [`confirm`](FastdpControl::confirm).
    pub fn new(config: FastdpControlConfig) -> FastdpControl {
        let FastdpControlConfig { uid, path, mtu } = config;
        FastdpControl {
            uid,
            path,
            mtu,
            confirmed_at: None,
            established: false,
            heartbeats: Heartbeats::new(),
            heartbeat_sent: false,
            heartbeat_received: false,
            too_big: None,
            tests_liveness: false,
            liveness: None,
            tests_segmentation: false,
            segmentation: SegmentationTest::default(),
            arrived: ArrivedBurst::default(),
            sent: 0,
            traffic: Arc::default(),
            slowness: 1,
            timed_out: false,
            down: false,
            healthy: true,
            heartbeat_at: None,
            timeout_at: None,
            expected_at: None,
            outputs: VecDeque::new(),
        }
    }

    /// Exchanges heartbeats every 5 s once established, and tests the path while it carries data, and when a heartbeat is missing. The neighbour must do the same; its programs must answer probes.
    pub fn with_liveness(self) -> FastdpControl {
        FastdpControl { tests_liveness: true, heartbeats: Heartbeats::of_full_size(), ..self }
    }

    /// Tests whether super-frames arrive. The neighbour must answer probes.
    pub fn with_segmentation_test(self) -> FastdpControl {
        FastdpControl { tests_segmentation: true, ..self }
    }

    /// How to send to the neighbour.
    pub fn path(&self) -> FastdpPath {
        self.path
    }

    /// The counters of what the kernel has sent to the neighbour and received from it. The driver keeps them up to date before
    /// each tick.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// The mesh has accepted the connection: starts sending.
    pub fn confirm(&mut self, now: Instant) {
        if self.confirmed_at.is_some() {
            return;
        }
        self.confirmed_at = Some(now);
        self.timeout_at = Some(now + Heartbeats::FIRST_TIMEOUT);
        if self.heartbeat_received {
            self.control(HEARTBEAT_RECEIVED, Vec::new());
        }
        self.send_heartbeat(now);
    }

    /// Handles a control frame that arrived from the neighbour.
    pub fn handle_frame(&mut self, frame: &KernelFrame, now: Instant) {
        let (header, body) = frame.head.split_at(ETHERNET_HEADER);
        let uid = body.first_chunk().map(|uid| ConnectionUid(u64::from_be_bytes(*uid)));
        if header != [0; ETHERNET_HEADER] || uid != Some(self.uid) {
            return;
        }
        if frame.len == LIVENESS_FRAME && self.tests_liveness {
            if let Some(frame) = LivenessFrame::parse(&body[..LIVENESS_FRAME - ETHERNET_HEADER]) {
                self.handle_liveness(frame, now);
            }
        } else if frame.len >= MIN_HEARTBEAT {
            // The length is what this peer has received: a truncated heartbeat does not count.
            let declared = u16::from_be_bytes([body[8], body[9]]);
            if usize::from(declared) == frame.len % (1 << 16) {
                self.handle_heartbeat(frame, now);
            }
        }
    }

    fn handle_heartbeat(&mut self, frame: &KernelFrame, now: Instant) {
        if frame.from != self.path.remote || frame.port != self.path.port {
            (self.path.remote, self.path.port) = (frame.from, frame.port);
            self.push(Output::Event(Event::AddressChanged(frame.from)));
            self.push(Output::PathChanged);
        }
        let first = !std::mem::replace(&mut self.heartbeat_received, true);
        if self.confirmed_at.is_some() {
            if first {
                self.control(HEARTBEAT_RECEIVED, Vec::new());
            }
            self.timeout_at = Some(now + self.heartbeats.timeout());
            self.timed_out = false;
            self.expect_heartbeat(now);
            self.update_health();
        }
    }

    fn expect_heartbeat(&mut self, now: Instant) {
        if let Some(liveness) = &mut self.liveness {
            liveness.note_heard(now);
            self.expected_at = Some(now + self.heartbeats.interval() + HEARTBEAT_DELAY);
        }
    }

    /// Packets of a probe of the neighbour have arrived.
    pub fn handle_segments(&mut self, probe: &SegmentedProbe, arrived: ArrivedSegments) {
        if self.confirmed_at.is_some() && self.tests_segmentation && probe.uid == self.uid {
            for answer in self.arrived.handle(arrived) {
                self.control(SEGMENTS_RECEIVED, answer.encode());
            }
        }
    }

    fn handle_liveness(&mut self, frame: LivenessFrame, now: Instant) {
        let Some(liveness) = &mut self.liveness else { return };
        liveness.note_heard(now);
        // The kernel has answered a probe already, if its programs do: another answer costs little.
        if let Some(number) = liveness.handle_frame(frame, now) {
            self.send_liveness(LivenessKind::Answer, number);
        }
    }

    /// Handles a control message that arrived over the mesh connection.
    pub fn handle_control(&mut self, tag: u8, body: &[u8], now: Instant) -> Result<(), ControlMessageError> {
        match tag {
            HEARTBEAT_RECEIVED if !self.heartbeat_sent => Err(ControlMessageError::NothingToAcknowledge),
            HEARTBEAT_RECEIVED => {
                if !self.established {
                    self.established = true;
                    self.too_big = None;
                    self.heartbeats.settle();
                    self.heartbeat_at = Some(self.heartbeats.next(now));
                    if self.heartbeat_received {
                        self.timeout_at = Some(now + self.heartbeats.timeout());
                    }
                    self.liveness = self.tests_liveness.then(|| Liveness::new(now));
                    self.expect_heartbeat(now);
                    self.push(Output::Established);
                    if self.tests_segmentation {
                        let since = self.confirmed_at.unwrap_or(now);
                        self.segmentation.start(now.saturating_since(since), now);
                        self.drain_segmentation();
                    }
                }
                Ok(())
            }
            INIT_ESP => Ok(()),
            SEGMENTS_RECEIVED => {
                let arrived = ArrivedSegments::decode(body)
                    .ok_or(ControlMessageError::BadLength { tag, len: body.len() })?;
                self.segmentation.handle_arrived(arrived, now);
                self.drain_segmentation();
                Ok(())
            }
            _ => Err(ControlMessageError::UnknownTag(tag)),
        }
    }

    /// Sets the MTU of the local bridge, with the next heartbeat.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// The kernel refused a heartbeat: the interface carries IP packets of at most `mtu` bytes.
    pub fn handle_interface_mtu(&mut self, mtu: u16) {
        self.too_big = Some(mtu);
    }

    /// Data moves, after a time without any.
    pub fn handle_traffic(&mut self, now: Instant) {
        let counts = self.traffic.counts();
        if let Some(liveness) = &mut self.liveness {
            liveness.wake(counts, now);
        }
    }

    /// Tests the path, whether or not data moves.
    pub fn test_path(&mut self, now: Instant) {
        let counts = self.traffic.counts();
        if let Some(liveness) = &mut self.liveness {
            liveness.test(counts, now);
        }
    }

    /// As [`UdpControl::measure`](crate::udp::UdpControl::measure).
    pub fn measure(&mut self, now: Instant) {
        if let Some(number) = self.liveness.as_mut().and_then(|liveness| liveness.measure(now)) {
            self.send_liveness(LivenessKind::Probe, number);
        }
    }

    /// As [`UdpControl::quality`](crate::udp::UdpControl::quality).
    pub fn quality(&self, now: Instant) -> Option<PathQuality> {
        Some(self.liveness.as_ref()?.quality(now))
    }

    /// Whether [`handle_tick`](FastdpControl::handle_tick) is to be called at every [`TICK`](crate::TICK).
    pub fn is_watched(&self) -> bool {
        self.liveness.as_ref().is_some_and(Liveness::is_awake)
    }

    /// Whether nothing arrives from the neighbour: then the other overlays of the connection should be tested, so that it is known in time
    /// whether they work.
    pub fn is_silent(&self) -> bool {
        self.liveness.as_ref().is_some_and(Liveness::is_silent)
    }

    /// Whether [`traffic`](FastdpControl::traffic) is looked at at this time.
    pub fn reads_traffic(&self, now: Instant) -> bool {
        self.is_watched() || self.expected_at.is_some_and(|at| now >= at)
    }

    /// Looks at the path.
    pub fn handle_tick(&mut self, slowness: &Slowness, now: Instant) {
        self.slowness = slowness.factor();
        let counts = self.traffic.counts();
        let Some(liveness) = &mut self.liveness else { return };
        for action in liveness.handle_tick(counts, slowness, now) {
            match action {
                Action::Probe(number) => self.send_liveness(LivenessKind::Probe, number),
                // The neighbour's kernel answers probes, so that nothing has to be said without being asked.
                Action::KeepAlive | Action::Sleep => {}
                Action::Down => self.down = true,
                Action::Up => self.down = false,
            }
        }
        self.update_health();
    }

    /// When anything of the neighbour was last noticed; `None` if the path is not tested.
    pub fn heard_at(&self) -> Option<Instant> {
        self.liveness.as_ref().map(Liveness::heard_at)
    }

    /// Sets [`Slowness::factor`] of this peer, for the neighbour.
    pub fn set_slowness(&mut self, factor: u8) {
        self.slowness = factor;
    }

    /// What prevents or has ended the use of the path, for people.
    pub fn problem(&self, now: Instant) -> Option<String> {
        let size = ETHERNET_HEADER + self.mtu;
        if let Some(mtu) = self.too_big {
            let needed = self.mtu + FASTDP_OVERHEAD;
            Some(format!(
                "packets of {needed} bytes exceed the MTU {mtu} of the interface: a smaller WEAVE_MTU would fit"
            ))
        } else if !self.established {
            let port = self.path.port;
            let text = match (self.heartbeat_sent, self.heartbeat_received) {
                (false, _) => return None,
                (true, true) => format!(
                    "heartbeats of {size} bytes to {} port {port} are not acknowledged",
                    self.path.remote
                ),
                (true, false) => {
                    format!("no heartbeats pass to or from {} at UDP port {port}", self.path.remote)
                }
            };
            Some(text)
        } else if self.timed_out {
            Some(format!("no heartbeats arrive from {}", self.path.remote))
        } else if self.segmentation.is_broken() {
            Some(
                "segmentation offload of the tunnel is broken: plain probes arrive, segmented ones do not"
                    .to_owned(),
            )
        } else {
            self.liveness.as_ref()?.problem(self.path.remote, now)
        }
    }

    /// When to call [`handle_timeout`](FastdpControl::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let heartbeat = self.heartbeat_at.map(|at| (at, "fastdp heartbeat"));
        let timeout = self.timeout_at.map(|at| (at, "fastdp heartbeat timeout"));
        let expected = self.expected_at.map(|at| (at, "fastdp heartbeat expected"));
        [heartbeat, timeout, expected, self.segmentation.poll_timeout()].into_iter().flatten().min()
    }

    /// Handles all timers that are due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(at) = self.timeout_at.filter(|at| now >= *at) {
            if at.is_handled_late(now) {
                self.timeout_at = Some(now + self.heartbeats.interval());
            } else {
                // It is armed again by the next heartbeat.
                self.timeout_at = None;
                self.heartbeats.settle();
                self.timed_out = true;
                self.update_health();
            }
        }
        if let Some(at) = self.expected_at.take_if(|at| now >= *at) {
            let counts = self.traffic.counts();
            if at.is_handled_late(now) {
                self.expected_at = Some(now + HEARTBEAT_DELAY);
            } else if let Some(liveness) = &mut self.liveness {
                liveness.test_idle(counts, now);
            }
        }
        self.segmentation.handle_timeout(now);
        self.drain_segmentation();
        if self.heartbeat_at.is_some_and(|at| now >= at) {
            self.send_heartbeat(now);
        }
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn update_health(&mut self) {
        let healthy = !self.timed_out && !self.down && !self.segmentation.is_broken();
        if std::mem::replace(&mut self.healthy, healthy) != healthy {
            self.push(Output::Health(healthy));
        }
    }

    fn drain_segmentation(&mut self) {
        while let Some(output) = self.segmentation.poll_output() {
            if let segmentation::Output::Burst(number) = output {
                let probe = |number, segments| SegmentedProbe::new(self.uid, number, segments, self.mtu);
                let (segmented, plain) = (probe(number, SEGMENTS), probe(number + 1, 1));
                self.push(Output::SegmentedProbe(segmented, plain));
            }
        }
        self.update_health();
    }

    fn send_heartbeat(&mut self, now: Instant) {
        self.heartbeat_at = Some(self.heartbeats.next(now));
        self.heartbeat_sent = true;
        let sent = self.traffic.counts().sent;
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.segmentation.handle_traffic(now);
            self.drain_segmentation();
        }
        let mut frame = vec![0; ETHERNET_HEADER + self.mtu];
        let len = (frame.len() % (1 << 16)) as u16;
        if let Some(body) = frame.get_mut(ETHERNET_HEADER..MIN_HEARTBEAT) {
            body[..8].copy_from_slice(&self.uid.0.to_be_bytes());
            body[8..].copy_from_slice(&len.to_be_bytes());
        }
        self.push(Output::Frame(frame));
    }

    fn send_liveness(&mut self, kind: LivenessKind, number: u32) {
        let body = LivenessFrame { uid: self.uid, number, kind, slowness: self.slowness }.encode();
        self.push(Output::Frame([&[0; ETHERNET_HEADER][..], &body].concat()));
    }

    fn control(&mut self, tag: u8, body: Vec<u8>) {
        self.push(Output::Control { tag, body });
    }

    fn push(&mut self, output: Output) {
        self.outputs.push_back(output);
    }
}

/// Outer IPv4, UDP and VXLAN headers and the inner Ethernet header.
const FASTDP_OVERHEAD: usize = 50;

#[cfg(test)]
mod tests;
