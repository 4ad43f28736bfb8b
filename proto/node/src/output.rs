use std::fmt;
use std::net::SocketAddr;

use weave_mesh::{Persist, ResolveId};
use weave_types::{ConnectionId, MacAddr, PeerName};

/// What the driver has to do, in this order.
#[derive(Debug)]
pub enum Output {
    /// Write this to stable storage; finish that before draining further: later outputs depend on it.
    Persist(Persist),
    /// The same for address allocation; [`weave_ipam::Persist::class`] says how well.
    PersistIpam(weave_ipam::Persist),
    /// The answer to a request for an address or the like.
    Done {
        /// Which request.
        request: weave_ipam::RequestId,
        /// What it led to.
        result: Result<weave_ipam::Answer, weave_ipam::RequestError>,
    },
    /// Look up the host's addresses; answer with [`Node::handle_resolved`](crate::Node::handle_resolved).
    Resolve {
        /// Names the question in the answer.
        id: ResolveId,
        /// A host name or an address.
        host: String,
    },
    /// Open a TCP connection; answer with `handle_dialled` or `handle_dial_failed`.
    Dial {
        /// The handle of the connection to be.
        conn: ConnectionId,
        /// Where to.
        addr: SocketAddr,
    },
    /// Send these bytes; report with `handle_written` how many the kernel has taken.
    Write {
        /// On which connection.
        conn: ConnectionId,
        /// What to send.
        bytes: Vec<u8>,
    },
    /// Send what was written, then close. Nothing that arrives afterwards matters.
    Close {
        /// Which connection.
        conn: ConnectionId,
    },
    /// Send this UDP datagram; report a packet that was too big for the path as a fact.
    Datagram {
        /// The connection that it belongs to.
        conn: ConnectionId,
        /// Where to.
        to: SocketAddr,
        /// Whether it must not be fragmented.
        df: bool,
        /// The payload.
        bytes: Vec<u8>,
    },
    /// What [`Node::tables`](crate::Node::tables) returns has changed: publish it to the data threads.
    TablesChanged,
    /// Something that a log should have.
    Event(Event),
}

/// What happened, for logs. `Display` gives the lines of 2.8.1 where it had one.
#[derive(Debug)]
pub enum Event {
    /// Of the mesh.
    Mesh(weave_mesh::Event),
    /// Of address allocation.
    Ipam(weave_ipam::Event),
    /// Of one connection's overlays.
    Overlay {
        /// The peer at the other end, `NAME(NICK)`.
        peer: String,
        /// What happened.
        text: String,
    },
    /// A MAC was first seen on the local bridge.
    LocalMac(MacAddr),
    /// A MAC was first seen behind a peer, or moved there.
    RemoteMac {
        /// The MAC.
        mac: MacAddr,
        /// Where it is.
        peer: String,
        /// Where it was, if it moved.
        was: Option<PeerName>,
    },
    /// A frame from the local bridge had the source MAC of a container that is active behind another peer.
    MacConflict {
        /// The MAC.
        mac: MacAddr,
        /// Where it is active.
        peer: String,
    },
    /// A frame of ours came back from a peer.
    OwnPacket {
        /// The peer that it was for.
        peer: PeerName,
        /// The source MAC.
        mac: MacAddr,
        /// The destination MAC.
        dst: MacAddr,
    },
    /// A MAC was silent for too long.
    MacExpired {
        /// The MAC.
        mac: MacAddr,
        /// Where it was.
        peer: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Mesh(event) => event.fmt(f),
            Event::Ipam(event) => crate::ipam::describe(event, f),
            Event::Overlay { peer, text } => write!(f, "overlay_switch ->[{peer}] {text}"),
            Event::LocalMac(mac) => write!(f, "Discovered local MAC {mac}"),
            Event::RemoteMac { mac, peer, was: None } => write!(f, "Discovered remote MAC {mac} at {peer}"),
            Event::RemoteMac { mac, peer, was: Some(old) } => {
                write!(f, "Discovered remote MAC {mac} at {peer} (was at {old})")
            }
            Event::MacConflict { mac, peer } => {
                write!(
                    f,
                    "Captured frame from MAC ({mac}) associated with another peer {peer}, which is still sending"
                )
            }
            Event::OwnPacket { peer, mac, dst } => {
                write!(f, "Received own packet to peer {peer} from MAC ({mac}) to ({dst})")
            }
            Event::MacExpired { mac, peer } => write!(f, "Expired MAC {mac} at {peer}"),
        }
    }
}
