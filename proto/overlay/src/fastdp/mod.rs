//! fastdp, the VXLAN overlay: the kernel forwards frames, user space tells it where (docs/spec/data-plane.md 5).
//!
//! ```text
//!            control, in the node                                   data, in the kernel
//!   mesh <-- control message 0 --> FastdpControl --+
//!                                     ^            +-- KernelTables --> maps of the programs --> VXLAN packets
//!                                     +--------------- KernelEvent ---- programs <-------------- VXLAN packets
//! ```
//!
//! * [`FastdpControl`]: heartbeats of full size, health, the neighbour's address.
//! * [`SegmentedProbe`] finds out whether super-frames arrive.
//! * [`KernelTables`] is what the kernel's programs decide from; a driver writes it to their maps.
//! * [`KernelEvent`] is what they report.
//! * [`Returning`]: from when on a new process's tables replace those of the last one.

mod control;
mod event;
mod returning;
mod segmented_probe;
mod tables;

pub use control::{ControlMessageError, Event, FastdpControl, FastdpControlConfig, Output};
pub use event::{KERNEL_FRAME_HEAD, KernelEvent, KernelFrame};
pub use returning::Returning;
pub use segmented_probe::SegmentedProbe;
pub use tables::{
    FastdpPath, KernelNeighbour, KernelPeer, KernelRoute, KernelTables, MAX_KERNEL_NEIGHBOURS, vni,
};
