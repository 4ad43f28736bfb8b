use std::collections::BTreeMap;
use std::net::SocketAddr;

use weave_types::{ConnectionId, ConnectionUid, PeerName, ShortId};

use crate::dialer::ResolveId;
use crate::event::Event;

/// What a [`Mesh`](crate::Mesh) wants done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Store this, durably, before anything that follows is done.
    Persist(Persist),
    /// Look a host name up, then call [`Mesh::handle_resolved`](crate::Mesh::handle_resolved).
    Resolve {
        /// To be given back.
        id: ResolveId,
        /// The name.
        host: String,
    },
    /// Open a TCP connection, then call [`Mesh::handle_dialled`](crate::Mesh::handle_dialled) or
    /// [`Mesh::handle_dial_failed`](crate::Mesh::handle_dial_failed).
    Dial {
        /// The handle of what comes of it.
        conn: ConnectionId,
        /// Whither.
        addr: SocketAddr,
    },
    /// Send bytes; say with [`Mesh::handle_written`](crate::Mesh::handle_written) how many the kernel has taken.
    Write {
        /// Over this connection.
        conn: ConnectionId,
        /// A whole number of messages.
        bytes: Vec<u8>,
    },
    /// Close the connection, or give the attempt up. What was not sent yet may be lost. The handle is not used again, and
    /// no answer is expected.
    Close {
        /// This one.
        conn: ConnectionId,
    },
    /// A connection is about to be added: get the overlays ready, passively (docs/spec/mesh.md 6.4). On failure call
    /// [`Mesh::handle_overlay_failed`](crate::Mesh::handle_overlay_failed).
    OverlayPrepare {
        /// Over this connection.
        conn: ConnectionId,
        /// What the overlays must know.
        setup: Box<OverlaySetup>,
    },
    /// It has been added: try the data path, then call
    /// [`Mesh::handle_overlay_established`](crate::Mesh::handle_overlay_established).
    OverlayConfirm {
        /// Over this connection.
        conn: ConnectionId,
    },
    /// It is gone: let the overlays go.
    OverlayStop {
        /// Over this connection.
        conn: ConnectionId,
    },
    /// The peer's overlay says something.
    OverlayControl {
        /// Over this connection.
        conn: ConnectionId,
        /// The message.
        control: OverlayControl,
    },
    /// [`Mesh::routes`](crate::Mesh::routes) gives another table.
    RoutesChanged,
    /// Records of peers have changed.
    PeersChanged,
    /// Short ids stand for other peers than before.
    ShortIdsInvalidated,
    /// A peer was forgotten: so must be what it had.
    PeerRemoved(PeerName),
    /// For the log.
    Event(Event),
}

/// What has to survive a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Persist {
    /// The direct peers, for `--resume`.
    Targets(Vec<String>),
    /// Our short id.
    ShortId(ShortId),
    /// The version of our record may rise to just below this. A restart begins here.
    VersionCeiling(u64),
}

/// What the overlays of a connection are told about it.
#[derive(Clone, PartialEq, Eq)]
pub struct OverlaySetup {
    /// The peer at the other end.
    pub remote: PeerName,
    /// Its nickname.
    pub remote_nickname: String,
    /// Our end of the TCP connection.
    pub local_addr: SocketAddr,
    /// The other end. A destination for datagrams only if we dialled it.
    pub remote_addr: SocketAddr,
    /// We dialled.
    pub outbound: bool,
    /// The number by which both ends know the connection.
    pub uid: ConnectionUid,
    /// Only if data is to be encrypted with it: there is a password, and one side does not trust the other's network.
    pub session_key: Option<[u8; 32]>,
    /// What the peer announced; `None`: it is too old to, and means sleeve.
    pub overlays: Option<Vec<String>>,
    /// All that the peer said in the handshake.
    pub remote_features: BTreeMap<String, String>,
}

impl std::fmt::Debug for OverlaySetup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OverlaySetup")
            .field("remote", &self.remote)
            .field("local_addr", &self.local_addr)
            .field("remote_addr", &self.remote_addr)
            .field("outbound", &self.outbound)
            .field("uid", &self.uid)
            .field("encrypted", &self.session_key.is_some())
            .field("overlays", &self.overlays)
            .finish_non_exhaustive()
    }
}

/// A message between the overlays of a connection's two ends (docs/spec/mesh.md 6.3). Neither number has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayControl {
    /// Which of the common overlays; `None` for the old form, which means sleeve.
    pub index: Option<u8>,
    /// The overlay's own.
    pub tag: u8,
    /// The overlay's own.
    pub body: Vec<u8>,
}
