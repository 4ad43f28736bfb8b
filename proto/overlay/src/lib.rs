//! Transport of frames to neighbours.
//!
//! * [`select`]: which overlays a connection has, and which one it uses.
//! * [`udp`]: frames in UDP datagrams: sealing and opening, connection control, path MTU discovery. This is sleeve, the encapsulation of
//!   2.8.1, and warp with the keys and ciphers of [`warp`].
//! * [`fastdp`]: VXLAN by the kernel.
//! * [`forward`]: the data path, shared by the kernel driver's threads and the simulator. Frames from the local bridge and
//!   datagrams from neighbours are inputs; datagrams and frames for the local bridge are outputs through [`Io`].
//!
//! [`Traffic`] and `liveness` notice within a second that a path fails, whatever the overlay. `segmentation` notices that a path loses what a
//! kernel or a network card has cut into packets.
//!
//! This crate opens no socket and starts no thread. `weave-switch` decides where a frame goes; `weave-mesh` decides which
//! connections exist.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod event;
pub mod fastdp;
pub mod forward;
mod heartbeats;
mod io;
mod liveness;
mod segmentation;
pub mod select;
mod traffic;
pub mod udp;
pub mod warp;

pub use event::ForwarderEvent;
pub use io::{Destination, Io, Slot};
pub use liveness::{LIVENESS_FRAME, LivenessFrame, LivenessKind, PathQuality, Slowness, TICK};
pub use segmentation::ArrivedSegments;
pub use traffic::{Traffic, TrafficCounts};
