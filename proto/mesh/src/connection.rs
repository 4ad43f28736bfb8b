use std::net::SocketAddr;
use std::time::Duration;

use weave_types::{ConnectionId, ConnectionUid, Instant, PeerName, PeerUid};

use crate::dialer::Place;
use crate::event::ConnectionError;
use crate::features::Features;
use crate::gossip::Queue;
use crate::handshake::{Handshake, Session};

/// One TCP connection, from the attempt to its end (docs/spec/mesh.md 4.8).
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The target that we dialled; `None` if they dialled us.
    pub(crate) place: Option<Place>,
    /// Whether a peer that nobody has told us of may live there.
    pub(crate) accept_new: bool,
    pub(crate) state: State,
    /// Bytes of `Output::Write` that the kernel has not taken yet.
    pub(crate) unwritten: usize,
    write_by: Option<Instant>,
    /// The entry in the mesh's table of timers, not later than [`Connection::next_deadline`].
    pub(crate) wake: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum State {
    /// We wait for TCP.
    Dialling,
    /// We do not know yet who is there.
    Handshaking {
        handshake: Box<Handshake>,
        /// What we tell of ourself.
        ours: Box<Features>,
        /// The header has come.
        greeted: bool,
        read_by: Instant,
    },
    /// We do.
    Running(Box<Running>),
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) session: Session,
    pub(crate) peer: PeerName,
    pub(crate) peer_uid: PeerUid,
    pub(crate) uid: ConnectionUid,
    /// The peer named no overlays: control messages have their old form.
    pub(crate) legacy_overlay: bool,
    pub(crate) encrypted_overlay: bool,
    /// The node was told to prepare an overlay.
    pub(crate) prepared: bool,
    /// One of our connections, in the topology.
    pub(crate) added: bool,
    pub(crate) established: bool,
    /// The peer compares digests of the topology.
    pub(crate) digests: bool,
    /// When we sent one that is not answered yet.
    pub(crate) digest_sent: Option<Instant>,
    pub(crate) queue: Queue,
    pub(crate) heartbeat_at: Instant,
    pub(crate) read_by: Instant,
}

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// 2.8.1 has none and hangs with its peer (docs/spec/mesh.md 15.2).
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(30);

/// What a deadline asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Heartbeat,
    End(ConnectionError),
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, local: SocketAddr, remote: SocketAddr) -> Connection {
        Connection {
            id,
            local,
            remote,
            place: None,
            accept_new: true,
            state: State::Dialling,
            unwritten: 0,
            write_by: None,
            wake: None,
        }
    }

    pub(crate) fn outbound(&self) -> bool {
        self.place.is_some()
    }

    pub(crate) fn start(&mut self, handshake: Handshake, ours: Features, now: Instant) {
        let (handshake, ours) = (Box::new(handshake), Box::new(ours));
        self.state = State::Handshaking { handshake, ours, greeted: false, read_by: now + HEADER_TIMEOUT };
    }

    /// The header has come: the rest gets more time.
    pub(crate) fn greeted(&mut self, now: Instant) {
        if let State::Handshaking { greeted, read_by, .. } = &mut self.state
            && !std::mem::replace(greeted, true)
        {
            *read_by = now + HANDSHAKE_TIMEOUT;
        }
    }

    pub(crate) fn running(&self) -> Option<&Running> {
        match &self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(crate) fn running_mut(&mut self) -> Option<&mut Running> {
        match &mut self.state {
            State::Running(running) => Some(running),
            _ => None,
        }
    }

    pub(crate) fn heard(&mut self, now: Instant) {
        if let State::Running(running) = &mut self.state {
            running.read_by = now + READ_TIMEOUT;
        }
    }

    /// Bytes were handed to the driver.
    pub(crate) fn wrote(&mut self, bytes: usize, now: Instant) {
        self.unwritten += bytes;
        self.write_by.get_or_insert(now + WRITE_TIMEOUT);
    }

    /// The kernel took some.
    pub(crate) fn drained(&mut self, bytes: usize, now: Instant) {
        self.unwritten = self.unwritten.saturating_sub(bytes);
        self.write_by = (self.unwritten > 0).then(|| now + WRITE_TIMEOUT);
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let (read_by, heartbeat) = match &self.state {
            State::Dialling => (None, None),
            State::Handshaking { read_by, .. } => (Some(*read_by), None),
            State::Running(running) => (Some(running.read_by), Some(running.heartbeat_at)),
        };
        [read_by, heartbeat, self.write_by].into_iter().flatten().min()
    }

    /// What has become due.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Due> {
        let (local, remote) = (self.local, self.remote);
        let read_by = match &self.state {
            State::Dialling => None,
            State::Handshaking { read_by, .. } => Some(*read_by),
            State::Running(running) => Some(running.read_by),
        };
        if read_by.is_some_and(|at| at <= now) {
            if matches!(self.state, State::Handshaking { greeted: false, .. }) {
                return Some(Due::End(ConnectionError::HeaderTimeout(local, remote)));
            }
            return Some(Due::End(ConnectionError::ReadTimeout(local, remote)));
        }
        if self.write_by.is_some_and(|at| at <= now) {
            return Some(Due::End(ConnectionError::WriteTimeout(local, remote)));
        }
        match &mut self.state {
            State::Running(running) if running.heartbeat_at <= now => {
                running.heartbeat_at = now + HEARTBEAT;
                Some(Due::Heartbeat)
            }
            _ => None,
        }
    }
}
