//! The control state machine of a connection by sleeve or warp (docs/spec/data-plane.md 4.4 to 4.6, 4.10, 4.11).
//!
//! ```text
//!   connector                                acceptor
//!     | -- heartbeat, every 500 ms -----------> |   learns the connector's UDP address
//!     | <------------------------- heartbeat -- |
//!     | <---- control 1 (over TCP) ------------ |   "your heartbeats arrive"
//!     | ----- control 1 ----------------------> |
//!   established                            established     from now on heartbeats every 10 s, or 20 s
//!     | -- fragmentation test (60001, non-DF) > | -- control 2 -->
//!     | -- initial probe, MTU tests (DF) -----> | -- control 3 -->      and the same the other way
//! ```

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_types::{ConnectionUid, Instant, TokenBucket};

use super::control_event::{ControlMessageError, Event};
use super::control_frame::{
    ControlFrame, FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, INITIAL_PROBE_FRAME, write_segmented_probe,
};
use super::fragmentation::{self, FragmentationTest};
use super::path::UdpPath;
use super::pmtu::{self, Pmtu};
use super::session::{RECORD_OVERHEAD, Sealer, Session};
use crate::heartbeats::Heartbeats;
use crate::liveness::{Action, LIVENESS_FRAME, Liveness, LivenessFrame, LivenessKind, PathQuality, Slowness};
use crate::segmentation::{self, ArrivedBurst, ArrivedSegments, SEGMENTS, SegmentationTest};

/// A connection that is not established after this time has a problem that people should see.
const PROBLEM_DELAY: Duration = Duration::from_secs(2);
/// Heartbeats of an established connection that may be missing before people should see it.
const TOLERATED_HEARTBEATS: u32 = 2;

/// Tags of the control messages over TCP.
const ESTABLISHED: u8 = 1;
const FRAGMENTATION_RECEIVED: u8 = 2;
const MTU_VERIFIED: u8 = 3;
const SEGMENTS_RECEIVED: u8 = 4;

/// Datagrams of a segmented probe are at most so long: a send has 64 kB.
const MAX_PROBE: usize = 16_000;

/// Parameters of a [`UdpControl`].
#[derive(Clone, Debug)]
pub struct UdpControlConfig {
    /// Shared with the data threads.
    pub session: Arc<Session>,
    /// Our UDP address: the local address of the TCP connection with the port that we receive datagrams at.
    pub local: SocketAddr,
    /// The remote address of the TCP connection.
    pub remote: SocketAddr,
    /// Whether we opened the TCP connection: then its remote address is also the neighbour's UDP address. An acceptor learns
    /// that from the first heartbeat.
    pub outbound: bool,
}

/// What the owner must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this sealed datagram.
    Datagram {
        /// Our address, at which the connection was made or accepted.
        from: IpAddr,
        /// The neighbour's UDP address.
        to: SocketAddr,
        /// Whether to set the don't-fragment bit. If the kernel refuses the datagram as too long, call
        /// [`UdpControl::handle_interface_mtu`].
        df: bool,
        /// UDP payload.
        bytes: Vec<u8>,
    },
    /// Send sealed datagrams in one send, which the kernel or the network card cuts, with the don't-fragment bit, and if the kernel takes
    /// them another one.
    SegmentedProbe {
        /// Our address.
        from: IpAddr,
        /// The neighbour's UDP address.
        to: SocketAddr,
        /// The datagrams.
        bytes: Vec<u8>,
        /// Bytes of each.
        segment: u16,
        /// The other datagram.
        plain: Vec<u8>,
    },
    /// Send this control message over the mesh connection.
    Control {
        /// 1 to 4.
        tag: u8,
        /// What follows the tag.
        body: Vec<u8>,
    },
    /// Datagrams pass both ways. Emitted once.
    Established,
    /// The path does not work. The connection goes on: data should take another route until [`Output::PathUp`].
    PathDown,
    /// The path works again, for long enough to be used.
    PathUp,
    /// The connection must end, for this reason. This is the last output.
    Failed(String),
    /// [`UdpControl::path`] has changed: publish it to the data threads.
    PathChanged,
    /// Log this event.
    Event(Event),
}

/// The control state machine of one connection by sleeve or warp. It sends nothing before [`confirm`](UdpControl::confirm).
#[derive(Debug)]
pub struct UdpControl {
    sealer: Sealer,
    local: SocketAddr,
    /// The neighbour's address in the TCP connection.
    peer: IpAddr,
    remote: Option<SocketAddr>,
    pmtu: Pmtu,
    /// Number of datagrams with data that had been sent at the latest heartbeat.
    sent: u32,
    state: State,
    heartbeats: Heartbeats,
    /// When the latest heartbeat arrived.
    heartbeat_received: Option<Instant>,
    heartbeat_sent: bool,
    /// [`TrafficCounts::heard`](crate::TrafficCounts::heard) at the latest heartbeat or timeout.
    heard: u32,
    /// Whether the neighbour has acknowledged a heartbeat.
    acknowledged: bool,
    confirmed_at: Instant,
    /// How long the neighbour took to answer a heartbeat, at most.
    round_trip: Duration,
    /// Whether the connection was ever established.
    was_established: bool,
    /// [`problem`](UdpControl::problem) when the connection failed.
    final_problem: Option<String>,
    fragmentation: FragmentationTest,
    /// The neighbour answers segmented probes.
    tests_segmentation: bool,
    segmentation: SegmentationTest,
    arrived: ArrivedBurst,
    /// Both ends test the path while it carries data.
    tests_liveness: bool,
    liveness: Option<Liveness>,
    /// [`Slowness::factor`] of this peer.
    slowness: u8,
    heartbeat_at: Option<Instant>,
    timeout_at: Option<Instant>,
    /// The path that the owner knows.
    announced: UdpPath,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Prepared,
    Confirmed,
    Established,
    Failed,
}

impl UdpControl {
    /// Creates the state machine, which waits for [`confirm`](UdpControl::confirm).
    pub fn new(config: UdpControlConfig) -> UdpControl {
        let UdpControlConfig { session, local, remote: peer, outbound } = config;
        let pmtu = Pmtu::new(session.overhead());
        let pmtu = if peer.is_ipv6() { pmtu.with_ipv6() } else { pmtu };
        let remote = outbound.then_some(peer);
        let announced = UdpPath {
            local: local.ip(),
            remote,
            mtu: pmtu.mtu(),
            max_payload: pmtu.max_payload(),
            stack_fragments: false,
            batched: true,
        };
        UdpControl {
            sealer: Sealer::new(session),
            local,
            peer: peer.ip(),
            remote,
            pmtu,
            sent: 0,
            state: State::Prepared,
            heartbeats: Heartbeats::new(),
            heartbeat_received: None,
            heartbeat_sent: false,
            heard: 0,
            acknowledged: false,
            confirmed_at: Instant::ORIGIN,
            round_trip: Duration::ZERO,
            was_established: false,
            final_problem: None,
            fragmentation: FragmentationTest::default(),
            tests_segmentation: false,
            segmentation: SegmentationTest::default(),
            arrived: ArrivedBurst::default(),
            tests_liveness: false,
            liveness: None,
            slowness: 1,
            heartbeat_at: None,
            timeout_at: None,
            announced,
            outputs: VecDeque::new(),
        }
    }

    /// Tests the path while it carries data, so that its failure is noticed within a second, and when [`listen`](UdpControl::listen) finds it
    /// silent. The neighbour must do the same.
    pub fn with_liveness(self) -> UdpControl {
        UdpControl { tests_liveness: true, heartbeats: Heartbeats::quick(), ..self }
    }

    /// Sends datagrams in batches only after a test has shown that they arrive, which begins with the first data. The neighbour must do the
    /// same, since it has to answer the probes.
    pub fn with_segmentation_test(self) -> UdpControl {
        let announced = UdpPath { batched: false, ..self.announced };
        UdpControl { tests_segmentation: true, announced, ..self }
    }

    /// The session of the connection.
    pub fn session(&self) -> &Arc<Session> {
        self.sealer.session()
    }

    /// What data threads need to send to the neighbour.
    pub fn path(&self) -> UdpPath {
        UdpPath {
            local: self.local.ip(),
            remote: self.remote,
            mtu: self.pmtu.mtu(),
            max_payload: self.pmtu.max_payload(),
            stack_fragments: self.fragmentation.has_passed(),
            batched: !self.segmentation.is_broken()
                && (self.segmentation.is_tested() || !self.tests_segmentation),
        }
    }

    /// The mesh has accepted the connection: starts sending.
    pub fn confirm(&mut self, now: Instant) {
        if self.state != State::Prepared {
            return;
        }
        self.state = State::Confirmed;
        self.confirmed_at = now;
        self.timeout_at = Some(now + Heartbeats::FIRST_TIMEOUT);
        if self.heartbeat_received.is_some() {
            self.control(ESTABLISHED, Vec::new());
        }
        self.send_heartbeat(now);
    }

    /// Handles a control frame of a datagram from `from`. The session has authenticated it; without encryption only the UID
    /// of a heartbeat proves that the neighbour sent it.
    pub fn handle_control_frame(&mut self, frame: ControlFrame, from: SocketAddr, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        match frame {
            ControlFrame::Heartbeat(uid) => self.handle_heartbeat(uid, from, now),
            // The neighbour tests only after our control message 1, which is sent after the confirmation.
            _ if self.state == State::Prepared => {}
            ControlFrame::Liveness(frame) => self.handle_liveness(frame, now),
            ControlFrame::FragmentationTest => self.control(FRAGMENTATION_RECEIVED, Vec::new()),
            ControlFrame::SegmentedProbe { uid, arrived, .. }
                if self.tests_segmentation && uid == self.session().uid() =>
            {
                for answer in self.arrived.handle(arrived) {
                    self.control(SEGMENTS_RECEIVED, answer.encode());
                }
            }
            ControlFrame::MtuTest { mtu } | ControlFrame::SegmentedProbe { mtu, .. } => {
                self.control(MTU_VERIFIED, mtu.to_be_bytes().to_vec())
            }
            ControlFrame::Malformed => {}
        }
        self.announce();
    }

    fn handle_heartbeat(&mut self, uid: ConnectionUid, from: SocketAddr, now: Instant) {
        if uid != self.session().uid() {
            return;
        }
        let known = self.remote.replace(from);
        let confirmed = self.state != State::Prepared;
        if known != Some(from) {
            if known.is_some() {
                self.push(Output::Event(Event::AddressChanged(from)));
                self.pmtu.verify(now);
            }
            if confirmed {
                self.send_heartbeat(now);
            }
        }
        if confirmed {
            self.timeout_at = Some(now + self.heartbeats.timeout());
            if self.heartbeat_received.is_none() {
                self.control(ESTABLISHED, Vec::new());
            }
        }
        self.heartbeat_received = Some(now);
        if let Some(liveness) = &mut self.liveness {
            liveness.note_heard(now);
        }
        self.heard = self.session().traffic().counts().heard;
        self.establish(now);
        self.drain_pmtu();
    }

    fn handle_liveness(&mut self, frame: LivenessFrame, now: Instant) {
        if frame.uid != self.session().uid() {
            return;
        }
        let Some(liveness) = &mut self.liveness else { return };
        liveness.note_heard(now);
        if let Some(number) = liveness.handle_frame(frame, now) {
            self.send_liveness(LivenessKind::Answer, number);
        }
    }

    /// Data moves, after a time without any.
    pub fn handle_traffic(&mut self, now: Instant) {
        let counts = self.session().traffic().counts();
        if let Some(liveness) = &mut self.liveness {
            liveness.wake(counts, now);
        }
        self.start_segmentation_test(now);
    }

    /// Tests the path if no data moves and nothing of the neighbour has arrived since the latest call. To be called at regular intervals for
    /// the overlay in use.
    pub fn listen(&mut self, is_late: bool, now: Instant) {
        let counts = self.session().traffic().counts();
        if self.state == State::Established
            && let Some(liveness) = &mut self.liveness
        {
            liveness.listen(counts, is_late, now);
        }
    }

    /// Tests the path, whether or not data moves.
    pub fn test_path(&mut self, now: Instant) {
        let counts = self.session().traffic().counts();
        if let Some(liveness) = &mut self.liveness {
            liveness.test(counts, now);
        }
    }

    /// Sends a probe for [`quality`](UdpControl::quality), unless the path is tested just now.
    pub fn measure(&mut self, now: Instant) {
        if self.state == State::Established
            && let Some(number) = self.liveness.as_mut().and_then(|liveness| liveness.measure(now))
        {
            self.send_liveness(LivenessKind::Probe, number);
        }
    }

    /// What probes have shown about the path; `None` if it is not tested, as with a neighbour of 2.8.1.
    pub fn quality(&self, now: Instant) -> Option<PathQuality> {
        Some(self.liveness.as_ref()?.quality(now))
    }

    /// Whether [`handle_tick`](UdpControl::handle_tick) is to be called at every [`TICK`](crate::TICK).
    pub fn is_watched(&self) -> bool {
        self.state == State::Established && self.liveness.as_ref().is_some_and(Liveness::is_awake)
    }

    /// Whether nothing arrives from the neighbour: then the other overlays of the connection should be tested, so that it is known in time
    /// whether they work.
    pub fn is_silent(&self) -> bool {
        self.state == State::Established && self.liveness.as_ref().is_some_and(Liveness::is_silent)
    }

    /// Looks at the path.
    pub fn handle_tick(&mut self, slowness: &Slowness, now: Instant) {
        self.slowness = slowness.factor();
        if !self.is_watched() {
            return;
        }
        let counts = self.session().traffic().counts();
        let Some(liveness) = &mut self.liveness else { return };
        for action in liveness.handle_tick(counts, slowness, now) {
            match action {
                Action::Probe(number) => self.send_liveness(LivenessKind::Probe, number),
                Action::KeepAlive => self.send_liveness(LivenessKind::KeepAlive, 0),
                Action::Down => {
                    self.push(Output::PathDown);
                    // The neighbour may know an address that a NAT has changed.
                    self.send_heartbeat(now);
                }
                Action::Up => {
                    self.push(Output::PathUp);
                    self.pmtu.verify(now);
                    self.drain_pmtu();
                }
                Action::Sleep => self.session().traffic().unwatch(),
            }
        }
        self.start_segmentation_test(now);
        self.announce();
    }

    /// When anything of the neighbour was last noticed; `None` if the path is not tested.
    pub fn heard_at(&self) -> Option<Instant> {
        self.liveness.as_ref().map(Liveness::heard_at)
    }

    /// Nothing of the neighbour arrives by any overlay: the overlay fails if its path has.
    pub fn give_up(&mut self, now: Instant) {
        if self.state == State::Established && self.liveness.as_ref().is_some_and(Liveness::is_down) {
            self.fail_by_silence(now);
        }
    }

    /// [`Slowness::factor`] of this peer, for the neighbour.
    pub fn set_slowness(&mut self, factor: u8) {
        self.slowness = factor;
    }

    fn send_liveness(&mut self, kind: LivenessKind, number: u32) {
        let frame = LivenessFrame { uid: self.session().uid(), number, kind, slowness: self.slowness };
        self.send(LIVENESS_FRAME, true, |space| {
            space[ETHERNET_HEADER..LIVENESS_FRAME].copy_from_slice(&frame.encode())
        });
    }

    /// Handles a control message that arrived over the mesh connection.
    pub fn handle_control(&mut self, tag: u8, body: &[u8], now: Instant) -> Result<(), ControlMessageError> {
        if self.state == State::Failed {
            return Ok(());
        }
        match (tag, body) {
            (ESTABLISHED, []) => self.handle_established(now)?,
            (FRAGMENTATION_RECEIVED, []) => {
                if self.state == State::Established {
                    self.fragmentation.handle_received(now);
                }
            }
            (MTU_VERIFIED, &[high, low]) => {
                let size = u16::from_be_bytes([high, low]);
                self.fragmentation.handle_ack(usize::from(size));
                self.pmtu.handle_ack(size, now);
                self.drain_pmtu();
                self.start_segmentation_test(now);
            }
            (SEGMENTS_RECEIVED, body) if self.tests_segmentation => {
                let arrived = ArrivedSegments::decode(body)
                    .ok_or(ControlMessageError::BadLength { tag, len: body.len() })?;
                self.segmentation.handle_arrived(arrived, now);
                self.drain_segmentation(false, now);
            }
            (ESTABLISHED..=MTU_VERIFIED, _) => {
                return Err(ControlMessageError::BadLength { tag, len: body.len() });
            }
            _ => return Err(ControlMessageError::UnknownTag(tag)),
        }
        self.announce();
        Ok(())
    }

    fn handle_established(&mut self, now: Instant) -> Result<(), ControlMessageError> {
        match self.state {
            State::Established | State::Failed => return Ok(()),
            State::Prepared | State::Confirmed if !self.heartbeat_sent => {
                return Err(ControlMessageError::NothingToAcknowledge);
            }
            State::Prepared | State::Confirmed => {}
        }
        self.acknowledged = true;
        self.establish(now);
        Ok(())
    }

    /// Establishes the connection if datagrams pass both ways. 2.8.1 is content if its own arrive; then one end has an
    /// established connection that the other one cannot use.
    fn establish(&mut self, now: Instant) {
        if self.state != State::Confirmed || !self.acknowledged || self.heartbeat_received.is_none() {
            return;
        }
        self.state = State::Established;
        self.was_established = true;
        self.heartbeats.settle();
        self.heartbeat_at = Some(now + self.heartbeats.interval());
        self.push(Output::Established);
        if self.tests_liveness {
            self.liveness = Some(Liveness::new(now));
            self.session().traffic().unwatch();
        } else {
            // Between peers of this program, packets above the MTU are split before they are sealed: that needs no test of 60 kB.
            let action = self.fragmentation.start(now);
            self.test_fragmentation(action);
        }
        self.round_trip = now.saturating_since(self.confirmed_at);
        self.pmtu.start(self.round_trip, now);
        self.drain_pmtu();
    }

    /// Which direction of the path does not work, for people; `None` while there is no reason for doubt.
    pub fn problem(&self, now: Instant) -> Option<String> {
        let since = self.heartbeat_received.unwrap_or(self.confirmed_at);
        let silence = now.saturating_since(since);
        let (here, there) = (self.local, self.remote_text());
        let seconds = silence.as_secs();
        let missing = format!("no UDP datagram from {there} to {here} for {seconds} s");
        let pending = match self.state {
            State::Prepared => return None,
            State::Failed => return self.final_problem.clone(),
            State::Established if silence > self.heartbeats.interval() * TOLERATED_HEARTBEATS => {
                return Some(missing);
            }
            State::Established => return self.liveness.as_ref()?.problem(there, now),
            State::Confirmed if now.saturating_since(self.confirmed_at) < PROBLEM_DELAY => return None,
            State::Confirmed => match (self.heartbeat_received, self.acknowledged) {
                (Some(_), _) => {
                    format!(
                        "UDP datagrams from {here} do not arrive at {there}, those in the other direction do"
                    )
                }
                (None, true) => format!("{missing}, those in the other direction arrive"),
                (None, false) if self.heartbeat_sent => format!("{missing}, and ours do not arrive either"),
                (None, false) => missing,
            },
        };
        Some(format!("{pending}; TCP works, so UDP has to be let through"))
    }

    /// The neighbour's UDP address as far as it is known.
    fn remote_text(&self) -> String {
        self.remote.map_or_else(|| self.peer.to_string(), |remote| remote.to_string())
    }

    /// Whether datagrams passed both ways at any time.
    pub fn was_established(&self) -> bool {
        self.was_established
    }

    /// The path MTU, once it is known.
    pub fn known_mtu(&self) -> Option<usize> {
        self.pmtu.known_mtu()
    }

    /// The kernel refused a datagram of this connection: the interface carries IP packets of at most `interface_mtu` bytes.
    pub fn handle_interface_mtu(&mut self, interface_mtu: u16, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        self.pmtu.handle_interface_mtu(interface_mtu, now);
        self.drain_pmtu();
        self.announce();
    }

    /// The kernel refused to cut a send into datagrams.
    pub fn handle_batch_refused(&mut self, now: Instant) {
        if self.state != State::Failed {
            self.segmentation.handle_refused(now);
            self.drain_segmentation(true, now);
            self.announce();
        }
    }

    /// When to call [`handle_timeout`](UdpControl::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.state == State::Failed {
            return None;
        }
        [
            self.heartbeat_at.map(|at| (at, "UDP heartbeat")),
            self.timeout_at.map(|at| (at, "UDP heartbeat timeout")),
            self.fragmentation.poll_timeout(),
            self.pmtu.poll_timeout(),
            self.segmentation.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Handles all timers that are due. `probe_budget` ([`probe_budget`](super::probe_budget)) is shared by all connections.
    pub fn handle_timeout(&mut self, probe_budget: &mut TokenBucket, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        if let Some(at) = self.timeout_at.filter(|at| now >= *at) {
            if at.is_handled_late(now) || self.has_heard() {
                self.timeout_at = Some(now + self.heartbeats.interval());
                return;
            }
            return self.fail_by_silence(now);
        }
        if self.heartbeat_at.is_some_and(|at| now >= at) {
            self.send_heartbeat(now);
        }
        if let Some(action) = self.fragmentation.handle_timeout(now) {
            self.test_fragmentation(action);
        }
        self.pmtu.handle_timeout(probe_budget, now);
        self.drain_pmtu();
        self.start_segmentation_test(now);
        self.segmentation.handle_timeout(now);
        self.drain_segmentation(false, now);
        self.announce();
    }

    fn fail_by_silence(&mut self, now: Instant) {
        self.final_problem = self.problem(now);
        let why = self.final_problem.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        self.fail(format!("timed out waiting for UDP heartbeat{why}"));
    }

    /// Whether anything has arrived from the neighbour since the latest heartbeat or call. With a neighbour of 2.8.1 only heartbeats count, as
    /// there.
    fn has_heard(&mut self) -> bool {
        let heard = self.session().traffic().counts().heard;
        std::mem::replace(&mut self.heard, heard) != heard && self.tests_liveness
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn test_fragmentation(&mut self, action: fragmentation::Action) {
        match action {
            fragmentation::Action::Send(control) => {
                self.send_zeros(FRAGMENTATION_TEST_FRAME, false);
                if let Some(size) = control {
                    self.send_zeros(ETHERNET_HEADER + size, true);
                }
            }
            fragmentation::Action::ReportLoss => self.push(Output::Event(Event::FragmentsLost)),
        }
    }

    fn send_heartbeat(&mut self, now: Instant) {
        self.session().handle_time(now);
        self.heartbeat_at = Some(self.heartbeats.next(now));
        let sent = self.session().traffic().counts().sent;
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.pmtu.handle_traffic();
            self.segmentation.handle_traffic(now);
            self.drain_segmentation(false, now);
        }
        if self.remote.is_some() {
            self.heartbeat_sent = true;
            let uid = self.session().uid().0.to_be_bytes();
            self.send(HEARTBEAT_FRAME, true, |frame| {
                frame[HEARTBEAT_FRAME - uid.len()..HEARTBEAT_FRAME].copy_from_slice(&uid);
            });
        }
    }

    fn drain_pmtu(&mut self) {
        while let Some(output) = self.pmtu.poll_output() {
            match output {
                pmtu::Output::InitialProbe => self.send_zeros(INITIAL_PROBE_FRAME, true),
                pmtu::Output::Probe(size) => self.send_zeros(ETHERNET_HEADER + usize::from(size), true),
                pmtu::Output::Verified => {
                    self.push(Output::Event(Event::MtuVerified(self.pmtu.mtu())));
                }
            }
        }
    }

    /// Once data is sent and the size of the datagrams is known.
    fn start_segmentation_test(&mut self, now: Instant) {
        if !self.tests_segmentation || self.segmentation.is_tested() || self.state != State::Established {
            return;
        }
        if self.session().traffic().counts().sent != 0 && self.pmtu.known_mtu().is_some() {
            self.segmentation.start(self.round_trip, now);
            self.drain_segmentation(false, now);
        }
    }

    fn drain_segmentation(&mut self, is_refused: bool, now: Instant) {
        while let Some(output) = self.segmentation.poll_output() {
            match output {
                segmentation::Output::Burst(number) if self.tests_segmentation => {
                    self.send_segmented_probe(number);
                }
                // The neighbour cannot say whether batches arrive: they are used until the kernel refuses one again.
                segmentation::Output::Burst(_) => self.segmentation.end_round(now),
                segmentation::Output::Broken => self.push(Output::Event(Event::BatchesOff(is_refused))),
                segmentation::Output::Works => self.push(Output::Event(Event::BatchesOn)),
            }
        }
    }

    /// Sends a segmented probe with this number, and a plain one with the next.
    fn send_segmented_probe(&mut self, number: u32) {
        let Some(to) = self.remote else { return };
        let (uid, overhead) = (self.session().uid(), self.session().packet_overhead() + RECORD_OVERHEAD);
        let len = self.pmtu.max_payload().min(MAX_PROBE).saturating_sub(overhead);
        let datagram = |control: &mut UdpControl, number, index| {
            control.seal(len, true, |frame| write_segmented_probe(frame, uid, number, index))
        };
        let mut batch = Vec::new();
        let mut segment = 0;
        for index in 0..SEGMENTS {
            let Some(bytes) = datagram(self, number, index) else { return };
            segment = bytes.len() as u16;
            batch.extend(bytes);
        }
        let Some(plain) = datagram(self, number + 1, 0) else { return };
        self.push(Output::SegmentedProbe { from: self.local.ip(), to, bytes: batch, segment, plain });
    }

    fn send_zeros(&mut self, len: usize, df: bool) {
        self.send(len, df, |_| {});
    }

    /// Sends a control frame of zeros that `fill` may change.
    fn send(&mut self, len: usize, df: bool, fill: impl FnOnce(&mut [u8])) {
        let Some(to) = self.remote else { return };
        if let Some(bytes) = self.seal(len, df, fill) {
            self.push(Output::Datagram { from: self.local.ip(), to, df, bytes });
        }
    }

    /// A datagram with such a frame. `None` if the session is exhausted, which ends the overlay.
    fn seal(&mut self, len: usize, df: bool, fill: impl FnOnce(&mut [u8])) -> Option<Vec<u8>> {
        let session = self.session();
        let (own, remote) = (session.own(), session.remote());
        let mut bytes = vec![0; session.packet_overhead() + RECORD_OVERHEAD + len];
        let mut builder = self.sealer.begin();
        if let Some(space) = self.sealer.space(&builder, &mut bytes) {
            fill(space);
        }
        self.sealer.add(&mut builder, &mut bytes, own, remote, len);
        match self.sealer.finish(builder, &mut bytes, df) {
            Ok(_) => Some(bytes),
            Err(error) => {
                self.push(Output::Event(Event::Exhausted));
                self.fail(error.to_string());
                None
            }
        }
    }

    fn control(&mut self, tag: u8, body: Vec<u8>) {
        self.push(Output::Control { tag, body });
    }

    fn push(&mut self, output: Output) {
        if self.state != State::Failed {
            self.outputs.push_back(output);
        }
    }

    fn announce(&mut self) {
        let path = self.path();
        if path != self.announced {
            self.announced = path;
            self.push(Output::PathChanged);
        }
    }

    fn fail(&mut self, error: String) {
        self.push(Output::Failed(error));
        self.state = State::Failed;
    }
}
