//! Transport of frames to neighbours.
//!
//! * [`select`]: which overlays a connection has, and which one it uses.
//! * [`sleeve`]: the UDP encapsulation of 2.8.1: sealing and opening, connection control, path MTU discovery.
//! * [`forward`]: the data path, shared by the kernel driver's threads and the simulator. Frames from the local bridge and
//!   datagrams from neighbours are inputs; datagrams and frames for the local bridge are outputs through [`Io`].
//!
//! This crate opens no socket and starts no thread. `weave-switch` decides where a frame goes; `weave-mesh` decides which
//! connections exist.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod event;
pub mod forward;
mod io;
pub mod select;
pub mod sleeve;

pub use event::ForwarderEvent;
pub use io::{Destination, Io, Slot};
