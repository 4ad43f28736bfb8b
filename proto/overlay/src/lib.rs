//! Carrying frames to a neighbour.
//!
//! * [`select`]: which overlays a connection has, and which one it uses.
//! * [`sleeve`]: the original's UDP encapsulation: seal and open, link control, path MTU.
//! * [`forward`]: the data path, shared by the kernel driver's threads and the simulator: a frame from the local bridge or a
//!   datagram from a neighbour goes in, datagrams and frames for the local bridge come out through [`Io`].
//!
//! What it does not do: it opens no socket and starts no thread. What becomes of a frame is decided by `weave-switch`, which
//! connections there are by `weave-mesh`.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod forward;
mod io;
pub mod select;
pub mod sleeve;

pub use io::{Destination, Io, Slot};
