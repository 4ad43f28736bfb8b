//! The control state machine of a connection by sleeve or warp (docs/spec/data-plane.md 4.4 to 4.6).
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
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weave_switch::frame::ETHERNET_HEADER;
use weave_types::{ConnectionUid, Instant, TokenBucket};

use super::control_frame::{ControlFrame, FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, INITIAL_PROBE_FRAME};
use super::path::UdpPath;
use super::pmtu::{self, Pmtu};
use super::session::{RECORD_OVERHEAD, Sealer, Session};
use crate::heartbeats::Heartbeats;
use crate::liveness::{Action, LIVENESS_FRAME, Liveness, LivenessFrame, LivenessKind, PathQuality, Slowness};

/// A connection that is not established after this time has a problem that people should see.
const PROBLEM_DELAY: Duration = Duration::from_secs(2);
/// Heartbeats of an established connection that may be missing before people should see it.
const TOLERATED_HEARTBEATS: u32 = 2;
const FRAGMENTATION_TEST_INTERVAL: Duration = Duration::from_secs(300);
/// A test consists of 41 fragments and is easily lost: it is repeated before it counts as failed.
const FRAGMENTATION_TEST_TIMEOUT: Duration = Duration::from_secs(1);
const FRAGMENTATION_TEST_ATTEMPTS: u32 = 4;
/// The next test after one that shows nothing.
const FRAGMENTATION_RETRY_INTERVAL: Duration = Duration::from_secs(10);
/// Each test but the first is followed by an MTU test of this size and the number of the attempt, which every path carries unfragmented and
/// no search uses.
const FRAGMENTATION_CONTROL: usize = 40;

/// Tags of the control messages over TCP.
const ESTABLISHED: u8 = 1;
const FRAGMENTATION_RECEIVED: u8 = 2;
const MTU_VERIFIED: u8 = 3;

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
    /// Send this control message over the mesh connection.
    Control {
        /// 1, 2 or 3.
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

/// An event for the log. `Display` gives the texts of 2.8.1 where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The neighbour's datagrams arrive from another address, after a NAT rebinding for example.
    AddressChanged(SocketAddr),
    /// A search for the path MTU ended.
    MtuVerified(usize),
    /// The neighbour did not receive a fragmented datagram: packets are fragmented before they are sealed.
    FragmentsLost,
    /// The session has no sequence numbers left.
    Exhausted,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::AddressChanged(addr) => write!(f, "Peer UDP address changed to {addr}"),
            Event::MtuVerified(mtu) => write!(f, "Effective MTU verified at {mtu}"),
            Event::FragmentsLost => f.write_str("fragmented datagrams do not arrive"),
            Event::Exhausted => f.write_str("sequence numbers exhausted"),
        }
    }
}

/// The neighbour sent an invalid control message. The owner logs the error and ignores the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlMessageError {
    /// The tag is not one of sleeve's.
    #[error("unknown sleeve control message {0}")]
    UnknownTag(u8),
    /// The body has the wrong length.
    #[error("sleeve control message {tag} with {len} bytes")]
    BadLength {
        /// Tag of the message.
        tag: u8,
        /// Bytes after the tag.
        len: usize,
    },
    /// The message acknowledges a heartbeat, but none was sent.
    #[error("sleeve heartbeat acknowledged before any was sent")]
    NothingToAcknowledge,
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
    /// Whether the connection was ever established.
    was_established: bool,
    /// [`problem`](UdpControl::problem) when the connection failed.
    final_problem: Option<String>,
    fragmentation: FragmentationTest,
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

/// The test whether the neighbour receives fragmented datagrams.
#[derive(Debug, Default)]
struct FragmentationTest {
    /// The latest result.
    passed: bool,
    /// Tests sent since the latest result.
    attempts: u32,
    /// How many of these, from the second one on, were followed by a datagram that the neighbour acknowledged before the next test.
    acknowledged: u32,
    next_at: Option<Instant>,
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
            was_established: false,
            final_problem: None,
            fragmentation: FragmentationTest::default(),
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
            stack_fragments: self.fragmentation.passed,
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
            ControlFrame::MtuTest { mtu } => self.control(MTU_VERIFIED, mtu.to_be_bytes().to_vec()),
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
        self.heard = self.session().traffic().counts().heard;
        self.establish(now);
        self.drain_pmtu();
    }

    fn handle_liveness(&mut self, frame: LivenessFrame, now: Instant) {
        if frame.uid != self.session().uid() {
            return;
        }
        let Some(liveness) = &mut self.liveness else { return };
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
                // A late answer counts too: it replaces an earlier negative result.
                if self.state == State::Established {
                    self.finish_fragmentation_test(true, now);
                }
            }
            (MTU_VERIFIED, &[high, low]) => {
                let size = u16::from_be_bytes([high, low]);
                self.handle_fragmentation_control(usize::from(size));
                self.pmtu.handle_ack(size, now);
                self.drain_pmtu();
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
        }
        self.send_fragmentation_test(now);
        self.pmtu.start(now);
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

    /// When to call [`handle_timeout`](UdpControl::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.state == State::Failed {
            return None;
        }
        [
            self.heartbeat_at.map(|at| (at, "UDP heartbeat")),
            self.timeout_at.map(|at| (at, "UDP heartbeat timeout")),
            self.fragmentation.next_at.map(|at| (at, "UDP fragmentation test")),
            self.pmtu.poll_timeout(),
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
        if let Some(due) = self.fragmentation.next_at.filter(|at| now >= *at) {
            self.handle_fragmentation_timeout(due, now);
        }
        self.pmtu.handle_timeout(probe_budget, now);
        self.drain_pmtu();
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

    /// Silence of the neighbour shows nothing about fragments, nor does silence while this machine was asleep or busy.
    fn handle_fragmentation_timeout(&mut self, due: Instant, now: Instant) {
        let test = &mut self.fragmentation;
        if due.is_handled_late(now) {
            (test.attempts, test.acknowledged) = (0, 0);
        }
        if test.attempts < FRAGMENTATION_TEST_ATTEMPTS {
            return self.send_fragmentation_test(now);
        }
        if test.acknowledged + 1 < test.attempts {
            (test.attempts, test.acknowledged) = (0, 0);
            test.next_at = Some(now + FRAGMENTATION_RETRY_INTERVAL);
            return;
        }
        if test.passed {
            self.push(Output::Event(Event::FragmentsLost));
        }
        self.finish_fragmentation_test(false, now);
    }

    fn handle_fragmentation_control(&mut self, size: usize) {
        let test = &mut self.fragmentation;
        let is_latest = size == FRAGMENTATION_CONTROL + test.attempts as usize;
        if is_latest && test.acknowledged + 2 == test.attempts {
            test.acknowledged += 1;
        }
    }

    fn finish_fragmentation_test(&mut self, passed: bool, now: Instant) {
        let next_at = Some(now + FRAGMENTATION_TEST_INTERVAL);
        self.fragmentation = FragmentationTest { passed, attempts: 0, acknowledged: 0, next_at };
    }

    /// The previous result remains valid until the test is answered or has failed four times. (2.8.1 assumes failure for
    /// that time.)
    fn send_fragmentation_test(&mut self, now: Instant) {
        self.fragmentation.attempts += 1;
        self.fragmentation.next_at = Some(now + FRAGMENTATION_TEST_TIMEOUT);
        self.send_zeros(FRAGMENTATION_TEST_FRAME, false);
        if self.fragmentation.attempts > 1 {
            let control = FRAGMENTATION_CONTROL + self.fragmentation.attempts as usize;
            self.send_zeros(ETHERNET_HEADER + control, true);
        }
    }

    fn send_heartbeat(&mut self, now: Instant) {
        self.session().handle_time(now);
        self.heartbeat_at = Some(self.heartbeats.next(now));
        let sent = self.session().traffic().counts().sent;
        if std::mem::replace(&mut self.sent, sent) != sent {
            self.pmtu.handle_traffic();
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

    fn send_zeros(&mut self, len: usize, df: bool) {
        self.send(len, df, |_| {});
    }

    /// Sends a control frame of zeros that `fill` may change.
    fn send(&mut self, len: usize, df: bool, fill: impl FnOnce(&mut [u8])) {
        let Some(to) = self.remote else { return };
        let session = self.session();
        let (own, remote) = (session.own(), session.remote());
        let mut bytes = vec![0; session.packet_overhead() + RECORD_OVERHEAD + len];
        let mut builder = self.sealer.begin();
        if let Some(space) = self.sealer.space(&builder, &mut bytes) {
            fill(space);
        }
        self.sealer.add(&mut builder, &mut bytes, own, remote, len);
        match self.sealer.finish(builder, &mut bytes, df) {
            Ok(_) => self.push(Output::Datagram { from: self.local.ip(), to, df, bytes }),
            Err(error) => {
                self.push(Output::Event(Event::Exhausted));
                self.fail(error.to_string());
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
