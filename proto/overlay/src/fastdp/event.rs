use std::net::Ipv4Addr;

use weave_switch::SwitchEvent;
use weave_types::{Instant, ShortId};

/// How much of a control frame [`KernelFrame`] has.
pub const KERNEL_FRAME_HEAD: usize = 64;

/// What the kernel's programs report to the owner of the [`KernelTables`](super::KernelTables).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// An event for the MAC table or the log.
    Switch {
        /// The event.
        event: SwitchEvent,
        /// When the kernel last saw the MAC where its map has it; `None` if it did not have it.
        last_seen: Option<Instant>,
    },
    /// A control frame arrived.
    Frame(KernelFrame),
    /// Data moves between this peer and a neighbour. Repeated about once a second while it does.
    Traffic {
        /// The neighbour.
        neighbour: ShortId,
    },
}

/// A control frame that arrived in a VXLAN packet: both of its MACs are zero. Nothing authenticates it but the connection UID in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFrame {
    /// Source in the VNI.
    pub src: ShortId,
    /// Destination in the VNI.
    pub dst: ShortId,
    /// Outer source address.
    pub from: Ipv4Addr,
    /// The VXLAN port at which it arrived.
    pub port: u16,
    /// Length of the frame on the wire.
    pub len: usize,
    /// The beginning of the frame, zeros after its end.
    pub head: [u8; KERNEL_FRAME_HEAD],
}
