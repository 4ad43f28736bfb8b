use std::collections::BTreeMap;
use std::net::SocketAddr;

use weave_types::{ConnectionId, ConnectionUid, PeerName, ShortId};

use crate::dialer::ResolveId;
use crate::event::Event;

/// What the driver of a [`Mesh`](crate::Mesh) has to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Store this durably before any following output is carried out.
    Persist(Persist),
    /// Look up a host name, then call [`Mesh::handle_resolved`](crate::Mesh::handle_resolved).
    Resolve {
        /// Identifies the lookup in [`Mesh::handle_resolved`](crate::Mesh::handle_resolved).
        id: ResolveId,
        /// Host name to look up.
        host: String,
    },
    /// Open a TCP connection, then call [`Mesh::handle_dialled`](crate::Mesh::handle_dialled) or
    /// [`Mesh::handle_dial_failed`](crate::Mesh::handle_dial_failed).
    Dial {
        /// Identifies the attempt in [`Mesh::handle_dialled`](crate::Mesh::handle_dialled).
        conn: ConnectionId,
        /// Address to dial.
        addr: SocketAddr,
    },
    /// Write bytes; report with [`Mesh::handle_written`](crate::Mesh::handle_written) how many have been written.
    Write {
        /// Connection to use.
        conn: ConnectionId,
        /// One or more complete messages.
        bytes: Vec<u8>,
    },
    /// Close the connection with an error ([`Mesh::handle_closed`](crate::Mesh::handle_closed)) if the remote host does not
    /// acknowledge what was written, within 1.5 seconds.
    Probe {
        /// Connection to test.
        conn: ConnectionId,
    },
    /// Close the connection, or cancel the attempt. Bytes that have not been written may be lost. The connection needs no
    /// further call.
    Close {
        /// Connection to close.
        conn: ConnectionId,
    },
    /// A connection is about to be added: prepare the overlays without sending (docs/spec/mesh.md 6.4). On failure call
    /// [`Mesh::handle_overlay_failed`](crate::Mesh::handle_overlay_failed).
    OverlayPrepare {
        /// Connection to use.
        conn: ConnectionId,
        /// Properties of the connection.
        setup: Box<OverlaySetup>,
    },
    /// The connection has been added: verify the data path, then call
    /// [`Mesh::handle_overlay_established`](crate::Mesh::handle_overlay_established).
    OverlayConfirm {
        /// Connection to use.
        conn: ConnectionId,
    },
    /// The connection has ended: stop its overlays.
    OverlayStop {
        /// Connection to use.
        conn: ConnectionId,
    },
    /// The peer does not use the connection: test its data path.
    TestPath {
        /// Connection to test.
        conn: ConnectionId,
    },
    /// The peer's overlay has sent a message.
    OverlayControl {
        /// Connection to use.
        conn: ConnectionId,
        /// Content of the message.
        control: OverlayControl,
    },
    /// [`Mesh::routes`](crate::Mesh::routes) has changed.
    RoutesChanged,
    /// Records of peers have changed.
    PeersChanged,
    /// Some short ids belong to other peers than before.
    ShortIdsInvalidated,
    /// A peer was removed. State that other components keep for it can be removed as well.
    PeerRemoved(PeerName),
    /// An event for the log.
    Event(Event),
}

/// State that has to survive a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Direct peers, for `--resume`.
    Targets(Vec<String>),
    /// Our short id.
    ShortId(ShortId),
    /// Upper bound of the versions of our record. A restarted process begins with this version.
    VersionCeiling(u64),
}

/// The properties of a connection that its overlays need.
#[derive(Clone, PartialEq, Eq)]
pub struct OverlaySetup {
    /// Name of the remote peer.
    pub remote: PeerName,
    /// Nickname of the remote peer.
    pub remote_nickname: String,
    /// Local address of the TCP connection.
    pub local_addr: SocketAddr,
    /// Remote address of the TCP connection. Datagrams can be sent to it only if we dialled it.
    pub remote_addr: SocketAddr,
    /// Whether we dialled.
    pub outbound: bool,
    /// Identifies the connection at both ends.
    pub uid: ConnectionUid,
    /// Key for encrypting data; `None` without a password, and if both sides trust each other's network.
    pub session_key: Option<[u8; 32]>,
    /// Overlays that the peer announced; `None` from an old peer, which uses sleeve.
    pub overlays: Option<Vec<String>>,
    /// All features that the peer sent in the handshake.
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

/// A message between the overlays at the two ends of a connection (docs/spec/mesh.md 6.3). The numbers are not validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayControl {
    /// Index among the common overlays; `None` in the old form, which always means sleeve.
    pub index: Option<u8>,
    /// Tag, defined by the overlay.
    pub tag: u8,
    /// Content, defined by the overlay.
    pub body: Vec<u8>,
}
