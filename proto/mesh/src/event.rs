use std::fmt;
use std::net::SocketAddr;

use weave_types::PeerName;

use crate::features::FeatureError;
use crate::handshake::HandshakeError;
use crate::peers::PeerLabel;

/// Something that people may want to know. `Display` gives the log lines of 2.8.1 (docs/spec/mesh.md 4.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// We dial a target.
    Attempting(SocketAddr),
    /// There was no TCP connection.
    AttemptFailed(SocketAddr, String),
    /// Nobody is connected, and the only peer that we were told of (as it was given) cannot be reached. Peers that were discovered
    /// are not remembered over a restart. Not in 2.8.1.
    OnlyTarget(String),
    /// Somebody dialled us.
    Accepted(SocketAddr),
    /// The connection ended before it was known whose it is.
    HandshakeFailed(SocketAddr, ConnectionError),
    /// Something about a connection whose peer is known.
    Connection(SocketAddr, PeerLabel, ConnectionEvent),
    /// A peer was forgotten.
    PeerRemoved(PeerLabel),
    /// Gossip arrived on a channel that nobody serves here; it is passed on.
    SurrogateCreated(String),
    /// A message on a channel could not be passed on or was in vain.
    Gossip(String, String),
}

/// What happened to a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// Handshake done.
    Ready {
        /// Of the protocol, 1 or 2.
        version: u8,
    },
    /// Counted among our connections.
    Added(Newcomer),
    /// The data path works.
    Established,
    /// No longer counted.
    Deleted,
    /// It is at its end.
    Ended(ConnectionError),
    /// A message without content.
    BlankMessage,
    /// A message of an unknown kind.
    UnknownTag(u8),
}

/// What we knew of the peer at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Newcomer {
    /// Data had no way to it yet.
    New,
    /// Another incarnation.
    Restarted,
    /// It is reached in other ways already.
    Known,
}

/// Why a connection ended. Shown as 2.8.1 does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionError {
    /// The peer or the kernel ended it; the driver's text.
    Io(String),
    /// The peer did not even say which protocol it speaks.
    HeaderTimeout(SocketAddr, SocketAddr),
    /// Nothing could be read for too long.
    ReadTimeout(SocketAddr, SocketAddr),
    /// Nothing could be written for too long.
    WriteTimeout(SocketAddr, SocketAddr),
    /// The handshake failed.
    Handshake(HandshakeError),
    /// What the peer told of itself is not acceptable.
    Features(FeatureError),
    /// Another peer than expected lives at a discovered address.
    UnknownName(PeerName, SocketAddr),
    /// Another host has our name.
    NameCollision(PeerLabel, PeerLabel),
    /// We dialled ourself.
    Ourself,
    /// There is another connection between the two (remote, then ourself).
    Duplicate(PeerLabel, PeerLabel),
    /// There are enough connections.
    LimitReached(usize),
    /// The two have no way of carrying frames in common.
    NoCommonOverlay,
    /// An overlay gave up.
    Overlay(String),
    /// The peer sent what it must not.
    Misbehaved(String),
    /// A channel's receiver refused a message.
    Receiver(String),
    /// More unauthenticated connections than we care to hold.
    Crowded,
    /// We are shutting down.
    Shutdown,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Attempting(addr) => write!(f, "->[{addr}] attempting connection"),
            Event::AttemptFailed(addr, error) => {
                write!(f, "->[{addr}] error during connection attempt: {error}")
            }
            Event::OnlyTarget(peer) => write!(
                f,
                "no peer is connected, and {peer}, which cannot be reached, is the only one that this peer was told of: \
                 'weave connect <peer>' names another"
            ),
            Event::Accepted(addr) => write!(f, "->[{addr}] connection accepted"),
            Event::HandshakeFailed(addr, error) => {
                write!(f, "->[{addr}] connection shutting down due to error during handshake: {error}")
            }
            Event::Connection(addr, peer, what) => write!(f, "->[{addr}|{peer}]: {what}"),
            Event::PeerRemoved(peer) => write!(f, "Removed unreachable peer {peer}"),
            Event::SurrogateCreated(channel) => write!(f, "[gossip {channel}]: created surrogate channel"),
            Event::Gossip(channel, what) => write!(f, "[gossip {channel}]: {what}"),
        }
    }
}

impl fmt::Display for ConnectionEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionEvent::Ready { version } => {
                write!(f, "connection ready; using protocol version {version}")
            }
            ConnectionEvent::Added(Newcomer::New) => f.write_str("connection added (new peer)"),
            ConnectionEvent::Added(Newcomer::Restarted) => f.write_str("connection added (restarted peer)"),
            ConnectionEvent::Added(Newcomer::Known) => f.write_str("connection added"),
            ConnectionEvent::Established => f.write_str("connection fully established"),
            ConnectionEvent::Deleted => f.write_str("connection deleted"),
            ConnectionEvent::Ended(error) => write!(f, "connection shutting down due to error: {error}"),
            ConnectionEvent::BlankMessage => f.write_str("ignoring blank msg"),
            ConnectionEvent::UnknownTag(tag) => write!(f, "ignoring unknown protocol tag: {tag}"),
        }
    }
}

impl fmt::Display for ConnectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnectionError::Io(text) | ConnectionError::Overlay(text) | ConnectionError::Receiver(text) => {
                f.write_str(text)
            }
            ConnectionError::Misbehaved(text) => f.write_str(text),
            ConnectionError::HeaderTimeout(local, remote) => {
                write!(f, "failed to receive remote protocol header: read tcp {local}->{remote}: i/o timeout")
            }
            ConnectionError::ReadTimeout(local, remote) => {
                write!(f, "read tcp {local}->{remote}: i/o timeout")
            }
            ConnectionError::WriteTimeout(local, remote) => {
                write!(f, "write tcp {local}->{remote}: i/o timeout")
            }
            ConnectionError::Handshake(error) => error.fmt(f),
            ConnectionError::Features(error) => error.fmt(f),
            ConnectionError::UnknownName(name, addr) => {
                write!(f, "Found unknown remote name: {name} at {addr}")
            }
            ConnectionError::NameCollision(local, remote) => {
                write!(f, "local \"{local}\" and remote \"{remote}\" peer names collision")
            }
            ConnectionError::Ourself => f.write_str("cannot connect to ourself"),
            ConnectionError::Duplicate(remote, local) => {
                write!(f, "Multiple connections to {remote} added to {local}")
            }
            ConnectionError::LimitReached(limit) => write!(f, "Connection limit reached ({limit})"),
            ConnectionError::NoCommonOverlay => f.write_str("no overlays in common with peer"),
            ConnectionError::Crowded => f.write_str("too many connections in handshake"),
            ConnectionError::Shutdown => f.write_str("shutting down"),
        }
    }
}

impl std::error::Error for ConnectionError {}
