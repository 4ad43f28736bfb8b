//! The control half of a sleeve connection (docs/spec/data-plane.md 4.4 to 4.6).
//!
//! ```text
//!   connector                                acceptor
//!     | -- heartbeat, each 500 ms ------------> |   learns the connector's UDP address
//!     | <------------------------- heartbeat -- |
//!     | <---- control 1 (over TCP) ------------ |   "your heartbeats arrive"
//!     | ----- control 1 ----------------------> |
//!   established                            established     then heartbeats each 10 s
//!     | -- fragmentation test (60001, non-DF) > | -- control 2 -->
//!     | -- kick-off, MTU tests (DF) ----------> | -- control 3 -->      and the same the other way
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use weave_types::{ConnectionUid, Instant};

use super::control_frame::{ControlFrame, FRAGMENTATION_TEST_FRAME, HEARTBEAT_FRAME, INITIAL_PROBE_FRAME};
use super::path::SleevePath;
use super::pmtu::{self, Pmtu};
use super::session::{RECORD_OVERHEAD, Sealer, Session};

/// Until the neighbour acknowledges.
const FAST_HEARTBEAT: Duration = Duration::from_millis(500);
/// From then on.
const SLOW_HEARTBEAT: Duration = Duration::from_secs(10);
/// Six slow heartbeats; also for the first heartbeat.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Between neighbours that both say so in the handshake, instead of [`SLOW_HEARTBEAT`]: traffic finds another way sooner.
const LIVELY_HEARTBEAT: Duration = Duration::from_secs(2);
/// Six of them.
const LIVELY_TIMEOUT: Duration = Duration::from_secs(12);
const FRAGMENTATION_TEST_INTERVAL: Duration = Duration::from_secs(300);
/// A test of 41 fragments is easily lost: it is repeated before it counts as failed.
const FRAGMENTATION_TEST_WAIT: Duration = Duration::from_secs(1);
const FRAGMENTATION_TESTS: u32 = 3;

/// Control messages over TCP.
const ESTABLISHED: u8 = 1;
const FRAGMENTATION_RECEIVED: u8 = 2;
const MTU_VERIFIED: u8 = 3;

/// What makes a [`SleeveControl`].
#[derive(Clone, Debug)]
pub struct SleeveControlConfig {
    /// Shared with the data threads.
    pub session: Arc<Session>,
    /// The neighbour's UDP address, if we opened the TCP connection: its remote end. An acceptor learns it from datagrams.
    pub remote: Option<SocketAddr>,
}

/// What the owner is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this datagram, which is sealed.
    Datagram {
        /// The neighbour's UDP address.
        to: SocketAddr,
        /// With the don't-fragment bit. If the kernel refuses it as too long, tell [`SleeveControl::handle_path_mtu`].
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
    /// The neighbour receives our datagrams. Once.
    Established,
    /// The connection must end. Nothing comes after it.
    Failed(String),
    /// [`SleeveControl::path`] has changed: tell the data threads.
    PathChanged,
    /// For the log.
    Event(Event),
}

/// What a log tells. The texts are the original's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The neighbour's datagrams come from elsewhere (NAT).
    AddressChanged(SocketAddr),
    /// A search for the path MTU ended.
    MtuVerified(usize),
    /// The neighbour did not receive a fragmented datagram: packets are fragmented before they are sealed.
    FragmentsLost,
    /// Nothing can be sent any more with this key.
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

/// The neighbour sent a control message that makes no sense. It is to be logged and otherwise ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlMessageError {
    /// Not one of sleeve's.
    UnknownTag(u8),
    /// The wrong number of bytes after the tag.
    BadLength {
        /// The message.
        tag: u8,
        /// Bytes after the tag.
        len: usize,
    },
    /// It acknowledges heartbeats, but none was sent.
    NothingToAcknowledge,
}

impl fmt::Display for ControlMessageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlMessageError::UnknownTag(tag) => write!(f, "unknown sleeve control message {tag}"),
            ControlMessageError::BadLength { tag, len } => {
                write!(f, "sleeve control message {tag} with {len} bytes")
            }
            ControlMessageError::NothingToAcknowledge => {
                f.write_str("sleeve heartbeat acknowledged before any was sent")
            }
        }
    }
}

impl std::error::Error for ControlMessageError {}

/// One sleeve connection, without its data. Passive until it is confirmed.
#[derive(Debug)]
pub struct SleeveControl {
    sealer: Sealer,
    remote: Option<SocketAddr>,
    pmtu: Pmtu,
    state: State,
    /// Both ends send heartbeats each 2 s.
    lively: bool,
    /// Whether a heartbeat has come.
    heard: bool,
    /// Whether a heartbeat has gone, so that one can be acknowledged.
    sent: bool,
    fragments: Fragments,
    heartbeat_at: Option<Instant>,
    timeout_at: Option<Instant>,
    announced: SleevePath,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Prepared,
    Confirmed,
    Established,
    Failed,
}

/// Whether the neighbour receives fragmented datagrams.
#[derive(Debug, Default)]
struct Fragments {
    arrive: bool,
    /// Tests sent since the last answer or verdict.
    tests: u32,
    next: Option<Instant>,
}

impl SleeveControl {
    /// A link that waits for [`confirm`](SleeveControl::confirm).
    pub fn new(config: SleeveControlConfig) -> SleeveControl {
        let SleeveControlConfig { session, remote } = config;
        let pmtu = Pmtu::new(session.overhead());
        let announced =
            SleevePath { remote, mtu: pmtu.mtu(), max_payload: pmtu.max_payload(), stack_fragments: false };
        SleeveControl {
            sealer: Sealer::new(session),
            remote,
            pmtu,
            state: State::Prepared,
            lively: false,
            heard: false,
            sent: false,
            fragments: Fragments::default(),
            heartbeat_at: None,
            timeout_at: None,
            announced,
            outputs: VecDeque::new(),
        }
    }

    /// The same, for a neighbour that sends heartbeats each 2 s once it is established, and expects as much: silence is noticed
    /// after 12 s instead of 60.
    pub fn with_fast_heartbeats(self) -> SleeveControl {
        SleeveControl { lively: true, ..self }
    }

    /// The session it works for.
    pub fn session(&self) -> &Arc<Session> {
        self.sealer.session()
    }

    /// What data threads must know.
    pub fn path(&self) -> SleevePath {
        SleevePath {
            remote: self.remote,
            mtu: self.pmtu.mtu(),
            max_payload: self.pmtu.max_payload(),
            stack_fragments: self.fragments.arrive,
        }
    }

    /// The mesh has accepted the connection.
    pub fn confirm(&mut self, now: Instant) {
        if self.state != State::Prepared {
            return;
        }
        self.state = State::Confirmed;
        self.timeout_at = Some(now + HEARTBEAT_TIMEOUT);
        if self.heard {
            self.control(ESTABLISHED, Vec::new());
        }
        self.send_heartbeat(now);
    }

    /// A control frame came in a datagram from `from`. It has been authenticated as far as the session allows: in plain
    /// mode only the UID in a heartbeat tells that it is the neighbour's.
    pub fn handle_control_frame(&mut self, control: ControlFrame, from: SocketAddr, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        match control {
            ControlFrame::Heartbeat(uid) => self.handle_heartbeat(uid, from, now),
            // Passive before: a neighbour that tests has had our control message 1.
            _ if self.state == State::Prepared => {}
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
            self.timeout_at = Some(now + if self.lively { LIVELY_TIMEOUT } else { HEARTBEAT_TIMEOUT });
            if !self.heard {
                self.control(ESTABLISHED, Vec::new());
            }
        }
        self.heard = true;
        self.drain_pmtu();
    }

    /// A control message came over the mesh connection.
    pub fn handle_control(&mut self, tag: u8, body: &[u8], now: Instant) -> Result<(), ControlMessageError> {
        if self.state == State::Failed {
            return Ok(());
        }
        match (tag, body) {
            (ESTABLISHED, []) => self.handle_established(now)?,
            (FRAGMENTATION_RECEIVED, []) => {
                // However late: a verdict against it was premature then.
                if self.state == State::Established {
                    self.fragments =
                        Fragments { arrive: true, tests: 0, next: Some(now + FRAGMENTATION_TEST_INTERVAL) };
                }
            }
            (MTU_VERIFIED, &[high, low]) => {
                self.pmtu.handle_ack(u16::from_be_bytes([high, low]), now);
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
            State::Prepared | State::Confirmed if !self.sent => {
                return Err(ControlMessageError::NothingToAcknowledge);
            }
            State::Prepared | State::Confirmed => {}
        }
        self.state = State::Established;
        self.heartbeat_at = Some(now + self.heartbeat_interval());
        self.push(Output::Established);
        self.test_fragments(now);
        self.pmtu.start(now);
        self.drain_pmtu();
        Ok(())
    }

    /// The kernel refused a datagram of this connection: the path carries IP packets of `path_mtu` bytes.
    pub fn handle_path_mtu(&mut self, path_mtu: u16, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        self.pmtu.handle_path_mtu(path_mtu, now);
        self.drain_pmtu();
        self.announce();
    }

    /// When to call [`handle_timeout`](SleeveControl::handle_timeout), and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.state == State::Failed {
            return None;
        }
        [
            self.heartbeat_at.map(|at| (at, "sleeve heartbeat")),
            self.timeout_at.map(|at| (at, "sleeve heartbeat timeout")),
            self.fragments.next.map(|at| (at, "sleeve fragmentation test")),
            self.pmtu.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Failed {
            return;
        }
        if self.timeout_at.is_some_and(|at| now >= at) {
            return self.fail("timed out waiting for UDP heartbeat".to_owned());
        }
        if self.heartbeat_at.is_some_and(|at| now >= at) {
            self.send_heartbeat(now);
        }
        if self.fragments.next.is_some_and(|at| now >= at) {
            self.handle_fragments_timeout(now);
        }
        self.pmtu.handle_timeout(now);
        self.drain_pmtu();
        self.announce();
    }

    /// What to do next; `None` when that is all.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn handle_fragments_timeout(&mut self, now: Instant) {
        if self.fragments.tests < FRAGMENTATION_TESTS {
            return self.test_fragments(now);
        }
        if self.fragments.arrive {
            self.push(Output::Event(Event::FragmentsLost));
        }
        self.fragments = Fragments { arrive: false, tests: 0, next: Some(now + FRAGMENTATION_TEST_INTERVAL) };
    }

    /// What was found out stays in force until the test is answered or has failed three times; the original fragments
    /// packets itself for that while.
    fn test_fragments(&mut self, now: Instant) {
        self.fragments.tests += 1;
        self.fragments.next = Some(now + FRAGMENTATION_TEST_WAIT);
        self.send_zeros(FRAGMENTATION_TEST_FRAME, false);
    }

    fn send_heartbeat(&mut self, now: Instant) {
        self.heartbeat_at = Some(now + self.heartbeat_interval());
        if self.remote.is_some() {
            self.sent = true;
            let uid = self.session().uid().0.to_be_bytes();
            self.send(HEARTBEAT_FRAME, true, |frame| {
                frame[HEARTBEAT_FRAME - uid.len()..HEARTBEAT_FRAME].copy_from_slice(&uid);
            });
        }
    }

    fn heartbeat_interval(&self) -> Duration {
        match self.state {
            State::Established if self.lively => LIVELY_HEARTBEAT,
            State::Established => SLOW_HEARTBEAT,
            _ => FAST_HEARTBEAT,
        }
    }

    fn drain_pmtu(&mut self) {
        while let Some(output) = self.pmtu.poll_output() {
            match output {
                pmtu::Output::InitialProbe => self.send_zeros(INITIAL_PROBE_FRAME, true),
                pmtu::Output::Probe(size) => self.send_zeros(usize::from(size) + 14, true),
                pmtu::Output::Verified => {
                    self.push(Output::Event(Event::MtuVerified(self.pmtu.mtu())));
                }
            }
        }
    }

    fn send_zeros(&mut self, len: usize, df: bool) {
        self.send(len, df, |_| {});
    }

    /// Sends a control frame: zeros, but for what `fill` does.
    fn send(&mut self, len: usize, df: bool, fill: impl FnOnce(&mut [u8])) {
        let Some(to) = self.remote else { return };
        let session = self.session();
        let (own, remote) = (session.own(), session.remote());
        let mut bytes = vec![0; session.packet_overhead() + RECORD_OVERHEAD + len];
        let mut draft = self.sealer.begin();
        if let Some(space) = self.sealer.space(&draft, &mut bytes) {
            fill(space);
        }
        self.sealer.add(&mut draft, &mut bytes, own, remote, len);
        match self.sealer.finish(draft, &mut bytes, df) {
            Ok(_) => self.push(Output::Datagram { to, df, bytes }),
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
