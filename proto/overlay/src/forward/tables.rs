use std::sync::Arc;

use weave_switch::ForwardingTable;
use weave_types::PeerName;

use super::watch::FrameWatch;
use crate::fastdp::KernelTables;
use crate::select::Overlay;
use crate::udp::{Session, UdpPath};

/// A connection as data threads see it.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Keys and counters. The session's remote name identifies the neighbour, both as next hop and as sender of datagrams.
    pub session: Arc<Session>,
    /// Whether the mesh has accepted the connection. Before that only heartbeats are accepted: the neighbour may have
    /// accepted it already, and its first heartbeat carries its UDP address. (2.8.1 loses that heartbeat, which delays the
    /// connection by 500 ms.)
    pub confirmed: bool,
    /// How to reach the neighbour by sleeve.
    pub path: UdpPath,
    /// The session and path of warp, once there are keys.
    pub warp: Option<(Arc<Session>, UdpPath)>,
    /// The overlay that user space sends frames with, sleeve or warp. If the kernel sends to the neighbour (docs/spec/data-plane.md 5),
    /// these are the frames that have come by such an overlay themselves, or for which the kernel's tables were older. Datagrams of every overlay are accepted at any time
    /// (docs/spec/data-plane.md 3.2).
    pub overlay: Overlay,
}

/// The state that the data path reads: an immutable snapshot, replaced as a whole.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Number of the snapshot, counted up for each publication.
    pub generation: u64,
    /// Where MACs and peers are.
    pub forwarding: ForwardingTable,
    /// The longest IP packet that the local bridge accepts.
    pub local_mtu: usize,
    /// What the kernel forwards with, if it does.
    pub kernel: Option<Arc<KernelTables>>,
    watches: Vec<Arc<dyn FrameWatch>>,
    neighbours: Vec<Arc<Neighbour>>,
}

impl Tables {
    /// Creates a snapshot with an unlimited local MTU. Of several neighbours of the same name the last is used.
    pub fn new(generation: u64, forwarding: ForwardingTable, mut neighbours: Vec<Arc<Neighbour>>) -> Tables {
        neighbours.reverse();
        neighbours.sort_by_key(|n| n.session.remote());
        neighbours.dedup_by_key(|n| n.session.remote());
        Tables {
            generation,
            forwarding,
            local_mtu: usize::MAX,
            kernel: None,
            watches: Vec::new(),
            neighbours,
        }
    }

    /// Sets the MTU of the local bridge.
    pub fn with_local_mtu(self, local_mtu: usize) -> Tables {
        Tables { local_mtu, ..self }
    }

    /// Sets what the kernel forwards with.
    pub fn with_kernel(self, kernel: Option<Arc<KernelTables>>) -> Tables {
        Tables { kernel, ..self }
    }

    /// Sets who looks for frames.
    pub fn with_watches(self, watches: Vec<Arc<dyn FrameWatch>>) -> Tables {
        Tables { watches, ..self }
    }

    /// Who looks for this frame.
    pub(super) fn watches(&self, frame: &[u8]) -> impl Iterator<Item = &dyn FrameWatch> {
        self.watches.iter().map(|watch| &**watch).filter(move |watch| watch.wants(frame))
    }

    /// Whether the kernel forwards frames to the neighbour.
    pub fn is_kernel_neighbour(&self, peer: PeerName) -> bool {
        self.kernel.as_ref().is_some_and(|kernel| kernel.has_neighbour(peer))
    }

    /// All neighbours, ordered by name.
    pub fn neighbours(&self) -> &[Arc<Neighbour>] {
        &self.neighbours
    }
}
