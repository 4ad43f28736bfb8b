use std::fmt;
use std::net::{IpAddr, SocketAddr};

use thiserror::Error;
use weave_types::PeerName;

use crate::features::FeatureError;
use crate::handshake::HandshakeError;
use crate::peers::PeerLabel;

/// An event for the log. `Display` gives the log lines of 2.8.1 (docs/spec/mesh.md 4.11).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A target is dialled.
    Attempting(SocketAddr),
    /// No TCP connection could be made.
    AttemptFailed(SocketAddr, String),
    /// No peer is connected, and the only direct peer (as it was given) cannot be reached. Discovered peers are not
    /// stored, so after a restart nothing else can be dialled. 2.8.1 does not log this.
    OnlyTargetUnreachable(String),
    /// An inbound connection was accepted.
    Accepted(SocketAddr),
    /// A connection ended before its peer was authenticated.
    HandshakeFailed(SocketAddr, ConnectionError),
    /// An event of a connection whose peer is authenticated.
    Connection(SocketAddr, PeerLabel, ConnectionEvent),
    /// A peer was removed from the topology.
    PeerRemoved(PeerLabel),
    /// Gossip arrived on a channel without a receiver here; it is relayed.
    SurrogateCreated(String),
    /// A message on a channel could not be relayed.
    Gossip(String, String),
}

/// An event of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionEvent {
    /// The handshake is complete.
    Ready {
        /// Protocol version, 1 or 2.
        version: u8,
    },
    /// The connection was added to our topology record.
    Added(PeerStatusOnConnect),
    /// The overlay has verified the data path.
    Established,
    /// The connection was removed from our topology record.
    Deleted,
    /// The data path has failed.
    PathFailed,
    /// The data path works again.
    PathWorks,
    /// The data path has failed and there is another route, so the connection was removed from our topology record.
    Withdrawn,
    /// The connection is in our topology record again although its data path has failed, because no other route is left.
    LastRoute,
    /// The process of the peer has ended. Its place is kept for so many seconds, since it is expected to return.
    Interrupted {
        /// For how long.
        seconds: u64,
        /// Whether the peer has announced it.
        announced: bool,
    },
    /// The connection ended.
    Ended(ConnectionError),
    /// The peer sent an empty message.
    BlankMessage,
    /// The peer sent a message with an unknown tag.
    UnknownTag(u8),
    /// The peer sent a record of this peer with a version that no peer can have reached. Logged once per connection.
    ForgedVersion(PeerLabel, u64),
}

/// How a TCP connection has ended, with the driver's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The remote host has closed or reset it.
    ByRemote(String),
    /// The kernel of this host has given it up.
    Broken(String),
}

/// What is known about the remote peer when a connection is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStatusOnConnect {
    /// There was no route for data to the peer.
    New,
    /// The peer has restarted.
    Restarted,
    /// There was a route for data to the peer.
    Known,
}

/// Why a connection ended. The texts are those of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectionError {
    /// The kernel gave the connection up; the text is the driver's.
    #[error("{0}")]
    Io(String),
    /// The remote host closed the connection; the text is the driver's.
    #[error("{0}")]
    Closed(String),
    /// The header did not arrive in time.
    #[error("failed to receive remote protocol header: read tcp {0}->{1}: i/o timeout")]
    HeaderTimeout(SocketAddr, SocketAddr),
    /// Nothing was received in time.
    #[error("read tcp {0}->{1}: i/o timeout")]
    ReadTimeout(SocketAddr, SocketAddr),
    /// The driver could not write anything in time.
    #[error("write tcp {0}->{1}: i/o timeout")]
    WriteTimeout(SocketAddr, SocketAddr),
    /// The handshake failed.
    #[error(transparent)]
    Handshake(HandshakeError),
    /// The features of the remote peer are not acceptable.
    #[error(transparent)]
    Features(FeatureError),
    /// A peer that the topology does not have answered at a discovered address.
    #[error("Found unknown remote name: {0} at {1}")]
    UnknownName(PeerName, SocketAddr),
    /// Another host has our name (ours, then theirs).
    #[error(
        "local \"{0}\" and remote \"{1}\" peer names collision: is one host a copy of the other? Give one of them another \
         name with --name, or another machine id, after 'weave reset'"
    )]
    NameCollision(PeerLabel, PeerLabel),
    /// Another run of a peer that is connected at this address. Whether that connection still works is being tested.
    #[error("{0} is still connected at {1}, testing that connection")]
    StillConnected(PeerLabel, SocketAddr),
    /// Another host with the name of a connected peer: the connected one (at this address), then the other.
    #[error(
        "another host has the name of {0}, which is connected at {1}: is one a copy of the other? Give one of them another \
         name with --name, or another machine id, after 'weave reset'"
    )]
    NameInUse(PeerLabel, SocketAddr),
    /// The remote peer has refused us, because another host with our name is connected to it. The text is the nickname and
    /// address of that host.
    #[error(
        "another host has our name ({0}) and is connected to {1}: is this host a copy of it? Give one of them another name \
         with --name, or another machine id, after 'weave reset'"
    )]
    OwnNameInUse(String, PeerLabel),
    /// The peer that answered is connected at this address.
    #[error("{0} is connected at {1}")]
    AlreadyConnected(PeerLabel, SocketAddr),
    /// The host has lost this address, from which the connection was made.
    #[error("this host has lost its address {0}")]
    LocalAddressLost(IpAddr),
    /// The attempt was ended because the addresses or routes of this host have changed.
    #[error("the addresses or routes of this host have changed")]
    NetworkChanged,
    /// We dialled ourselves.
    #[error("cannot connect to ourself")]
    SelfConnection,
    /// Another connection to the same peer is kept (the remote peer, then ours).
    #[error("Multiple connections to {0} added to {1}")]
    Duplicate(PeerLabel, PeerLabel),
    /// The maximum number of connections is reached.
    #[error("Connection limit reached ({0})")]
    LimitReached(usize),
    /// The two peers have no overlay in common.
    #[error("no overlays in common with peer")]
    NoCommonOverlay,
    /// The overlay reported a failure.
    #[error("{0}")]
    Overlay(String),
    /// The peer violated the protocol.
    #[error("{0}")]
    ProtocolViolation(String),
    /// The receiver of a channel refused a message.
    #[error("{0}")]
    Receiver(String),
    /// Too many inbound connections have not completed their handshake; this was the oldest one.
    #[error("too many connections in handshake")]
    TooManyPending,
    /// The unfinished messages of all connections have too many bytes; this connection had most of them.
    #[error("too many bytes of unfinished messages ({0} of this connection)")]
    TooMuchBuffered(usize),
    /// This peer is shutting down.
    #[error("shutting down")]
    Shutdown,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Attempting(addr) => write!(f, "->[{addr}] attempting connection"),
            Event::AttemptFailed(addr, error) => {
                write!(f, "->[{addr}] error during connection attempt: {error}")
            }
            Event::OnlyTargetUnreachable(peer) => write!(
                f,
                "no peer is connected, and the only known peer {peer} cannot be reached: \
                 'weave connect <peer>' adds another"
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
            ConnectionEvent::Added(PeerStatusOnConnect::New) => f.write_str("connection added (new peer)"),
            ConnectionEvent::Added(PeerStatusOnConnect::Restarted) => {
                f.write_str("connection added (restarted peer)")
            }
            ConnectionEvent::Added(PeerStatusOnConnect::Known) => f.write_str("connection added"),
            ConnectionEvent::Established => f.write_str("connection fully established"),
            ConnectionEvent::Deleted => f.write_str("connection deleted"),
            ConnectionEvent::PathFailed => f.write_str("no datagrams arrive: the path has failed"),
            ConnectionEvent::PathWorks => f.write_str("the path works again"),
            ConnectionEvent::Withdrawn => f.write_str("connection not used: there is another route"),
            ConnectionEvent::LastRoute => {
                f.write_str("connection used although its path has failed: there is no other route")
            }
            ConnectionEvent::Interrupted { seconds, announced: true } => {
                write!(f, "the peer restarts; its routes are kept for {seconds} s")
            }
            ConnectionEvent::Interrupted { seconds, announced: false } => {
                write!(
                    f,
                    "the peer has ended the connection unexpectedly; its routes are kept for {seconds} s"
                )
            }
            ConnectionEvent::Ended(error) => write!(f, "connection shutting down due to error: {error}"),
            ConnectionEvent::BlankMessage => f.write_str("ignoring blank msg"),
            ConnectionEvent::UnknownTag(tag) => write!(f, "ignoring unknown protocol tag: {tag}"),
            ConnectionEvent::ForgedVersion(peer, version) => write!(
                f,
                "ignoring topology records with impossible versions, as that of {peer} with version {version}: \
                 this neighbour, or a peer behind it, forges them"
            ),
        }
    }
}
