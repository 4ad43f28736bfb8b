use std::net::SocketAddr;
use std::time::Duration;

use weave_types::{ConnectionId, ConnectionUid, Instant, PeerName, PeerUid};

use crate::dialer::TargetAddr;
use crate::event::ConnectionError;
use crate::features::Features;
use crate::gossip::Queue;
use crate::handshake::{Handshake, Session};

/// A TCP connection, from the attempt to its end (docs/spec/mesh.md 4.8).
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: ConnectionId,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    /// The target that we dialled; `None` for an inbound connection.
    pub(crate) target_addr: Option<TargetAddr>,
    /// Whether the remote peer may be one that the topology does not have.
    pub(crate) accept_unknown: bool,
    /// Our features are sent after those of the remote peer, unless it is connected already.
    pub(crate) identify_first: bool,
    /// The attempt is one of many, and not for the log.
    pub(crate) quiet: bool,
    pub(crate) state: State,
    /// Bytes of `Output::Write` that the driver has not written yet.
    pub(crate) unwritten: usize,
    write_deadline: Option<Instant>,
    /// When the mesh's timer for this connection expires; not later than [`Connection::next_deadline`].
    pub(crate) timer: Option<Instant>,
}

#[derive(Debug)]
pub(crate) enum State {
    /// Waits for the driver to open the TCP connection.
    Dialling,
    Handshaking {
        handshake: Box<Handshake>,
        own_features: Box<Features>,
        header_received: bool,
        read_deadline: Instant,
    },
    /// The remote peer is authenticated.
    Running(Box<Running>),
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) session: Session,
    pub(crate) peer: PeerName,
    pub(crate) peer_uid: PeerUid,
    pub(crate) uid: ConnectionUid,
    /// The peer did not announce overlays, so control messages have the old form (docs/spec/mesh.md 6.3).
    pub(crate) legacy_overlay: bool,
    pub(crate) encrypted_overlay: bool,
    /// [`Output::OverlayPrepare`](crate::Output) was sent.
    pub(crate) overlay_prepared: bool,
    /// The connection is in our topology record.
    pub(crate) added: bool,
    pub(crate) established: bool,
    /// Whether the data path works.
    pub(crate) path: PathState,
    /// The peer supports digests of the topology (module `digest`).
    pub(crate) supports_digest: bool,
    /// When the last digest was sent, if it is not answered.
    pub(crate) digest_sent_at: Option<Instant>,
    /// The peer supports digests of channels (module `channel_digest`).
    pub(crate) supports_channel_digest: bool,
    /// The peer understands why it is refused.
    pub(crate) understands_refusal: bool,
    /// The peer expects restarts (module `restarts`).
    pub(crate) understands_restarts: bool,
    /// What the peer has said about the end of the connection.
    pub(crate) ending: Ending,
    /// When the connection was tested ([`Mesh::probe`](crate::Mesh::probe)).
    pub(crate) probed_at: Option<Instant>,
    /// When the test is passed, unless the connection has ended by then.
    pub(crate) probed_until: Option<Instant>,
    /// Whether the latest test was passed.
    pub(crate) passed_probe: bool,
    pub(crate) queue: Queue,
    /// [`ConnectionEvent::ForgedVersion`](crate::ConnectionEvent) was sent.
    pub(crate) forged_version_reported: bool,
    pub(crate) heartbeat_at: Instant,
    pub(crate) read_deadline: Instant,
}

/// What a neighbour has said about the end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Unannounced,
    Restart,
    Final,
}

/// The data path of a connection (module `paths`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathState {
    Works,
    Failed,
    /// Failed, and the connection is not in our record.
    Withdrawn,
    /// Failed, and the connection is in our record again, since there is no other route.
    LastRoute,
}

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// 2.8.1 has no such timeout: a peer that stops reading blocks it (docs/spec/mesh.md 15).
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);

/// A connection that still exists this long after a probe leads to its peer.
pub(crate) const PROBE_PERIOD: Duration = Duration::from_secs(2);

/// Time for what has arrived while this machine was asleep or busy, before silence counts.
pub(crate) const LATE_GRACE: Duration = Duration::from_secs(5);

/// What to do at a deadline.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    Heartbeat,
    Connection(ConnectionError),
}

impl Connection {
    pub(crate) fn new(id: ConnectionId, local: SocketAddr, remote: SocketAddr) -> Connection {
        Connection {
            id,
            local,
            remote,
            target_addr: None,
            accept_unknown: true,
            identify_first: false,
            quiet: false,
            state: State::Dialling,
            unwritten: 0,
            write_deadline: None,
            timer: None,
        }
    }

    pub(crate) fn outbound(&self) -> bool {
        self.target_addr.is_some()
    }

    pub(crate) fn start_handshake(&mut self, handshake: Handshake, own_features: Features, now: Instant) {
        self.state = State::Handshaking {
            handshake: Box::new(handshake),
            own_features: Box::new(own_features),
            header_received: false,
            read_deadline: now + HEADER_TIMEOUT,
        };
    }

    /// The header has arrived: the rest of the handshake has a longer timeout.
    pub(crate) fn on_header(&mut self, now: Instant) {
        if let State::Handshaking { header_received, read_deadline, .. } = &mut self.state
            && !std::mem::replace(header_received, true)
        {
            *read_deadline = now + HANDSHAKE_TIMEOUT;
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

    pub(crate) fn on_message(&mut self, now: Instant) {
        if let State::Running(running) = &mut self.state {
            running.read_deadline = now + READ_TIMEOUT;
        }
    }

    pub(crate) fn on_write_queued(&mut self, bytes: usize, now: Instant) {
        self.unwritten += bytes;
        self.write_deadline.get_or_insert(now + WRITE_TIMEOUT);
    }

    pub(crate) fn on_written(&mut self, bytes: usize, now: Instant) {
        self.unwritten = self.unwritten.saturating_sub(bytes);
        self.write_deadline = (self.unwritten > 0).then(|| now + WRITE_TIMEOUT);
    }

    /// Bytes of messages that are collected or not written yet. A handshake has a small limit of its own.
    pub(crate) fn buffered(&self) -> usize {
        let collected = match &self.state {
            State::Running(running) => running.session.buffered(),
            State::Dialling | State::Handshaking { .. } => 0,
        };
        self.unwritten + collected
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let (heartbeat, probe) = match &self.state {
            State::Dialling | State::Handshaking { .. } => (None, None),
            State::Running(running) => (Some(running.heartbeat_at), running.probed_until),
        };
        [self.read_deadline(), heartbeat, probe, self.write_deadline].into_iter().flatten().min()
    }

    fn read_deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Dialling => None,
            State::Handshaking { read_deadline, .. } => Some(*read_deadline),
            State::Running(running) => Some(running.read_deadline),
        }
    }

    /// What the deadlines that have passed require.
    pub(crate) fn on_timeout(&mut self, now: Instant) -> Option<Expired> {
        self.extend_late_deadlines(now);
        let (local, remote) = (self.local, self.remote);
        if self.read_deadline().is_some_and(|at| at <= now) {
            if matches!(self.state, State::Handshaking { header_received: false, .. }) {
                return Some(Expired::Connection(ConnectionError::HeaderTimeout(local, remote)));
            }
            return Some(Expired::Connection(ConnectionError::ReadTimeout(local, remote)));
        }
        if self.write_deadline.is_some_and(|at| at <= now) {
            return Some(Expired::Connection(ConnectionError::WriteTimeout(local, remote)));
        }
        let State::Running(running) = &mut self.state else { return None };
        if running.probed_until.take_if(|at| *at <= now).is_some() {
            running.passed_probe = true;
        }
        if running.heartbeat_at <= now {
            running.heartbeat_at = now + HEARTBEAT_INTERVAL;
            return Some(Expired::Heartbeat);
        }
        None
    }

    /// What has arrived while this machine was asleep or busy is handled before silence counts.
    fn extend_late_deadlines(&mut self, now: Instant) {
        let silence = match &mut self.state {
            State::Dialling => [None, None],
            State::Handshaking { read_deadline, .. } => [Some(read_deadline), None],
            State::Running(running) => [Some(&mut running.read_deadline), running.probed_until.as_mut()],
        };
        for deadline in silence.into_iter().flatten().chain(self.write_deadline.as_mut()) {
            if deadline.is_handled_late(now) {
                *deadline = now + LATE_GRACE;
            }
        }
    }
}
