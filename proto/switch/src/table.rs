use std::fmt;
use std::sync::Arc;

use weave_types::PeerName;

use crate::mac::MacMap;

/// Routes to peers, which the mesh computes from the topology (docs/spec/mesh.md 9).
pub trait Routes: Send + Sync {
    /// The neighbour through which `dst` is reached; `None` if there is no route.
    fn unicast(&self, dst: PeerName) -> Option<PeerName>;
    /// The neighbours to which this peer forwards a broadcast that started at `src`.
    fn broadcast(&self, src: PeerName) -> &[PeerName];
    /// Whether the peer is part of the topology.
    fn knows(&self, peer: PeerName) -> bool;
}

/// The state that verdicts are made from: an immutable snapshot, published by its owner and read by the data threads. Only
/// the last-seen times inside [`MacMap`] are written through it.
#[derive(Clone)]
pub struct ForwardingTable {
    /// Name of this peer.
    pub own: PeerName,
    /// Which peer each MAC is behind.
    pub macs: Arc<MacMap>,
    /// Which neighbour each peer is behind.
    pub routes: Arc<dyn Routes>,
}

impl fmt::Debug for ForwardingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardingTable")
            .field("own", &self.own)
            .field("macs", &self.macs.len())
            .finish_non_exhaustive()
    }
}
