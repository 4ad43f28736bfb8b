//! What is known about connections that end with a process (module `restarts`).

use std::net::SocketAddr;

use weave_types::Instant;

use crate::connection::PathState;
use crate::peers::PeerConnection;

/// Why a peer closes its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It starts again soon: neighbours keep its place.
    Restart,
    /// It leaves the network.
    Leave,
}

/// A connection in our record that does not exist, or is not established, because one end has restarted. It keeps a reference to
/// the record of the peer.
#[derive(Debug)]
pub(crate) struct Interrupted {
    pub(crate) until: Instant,
    /// The peer has said so.
    pub(crate) announced: bool,
    /// When another route is considered; `None` once it was.
    pub(crate) detour_at: Option<Instant>,
    /// As of a connection whose path has failed: [`PathState::Works`] before `detour_at`.
    pub(crate) path: PathState,
    /// What our record lists.
    pub(crate) connection: PeerConnection,
    pub(crate) remote: Option<SocketAddr>,
}

impl Interrupted {
    pub(crate) fn is_listed(&self) -> bool {
        self.path != PathState::Withdrawn
    }
}
