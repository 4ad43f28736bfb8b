//! The data path on Linux: packet capture, batched UDP, offloads, threads.
//!
//! ```text
//!             publish(tables)          events
//!   daemon ------------------> Datapath -----> EventReceiver --> daemon
//!                               |    |
//!   uplink == packet sockets == device thread == UDP sockets == neighbours
//!   (vethwe-datapath)           UDP thread
//! ```
//!
//! * [`Datapath`] is the daemon's handle: it starts and stops the threads, publishes tables to them, sends control
//!   datagrams and reads counters. The events of the threads arrive at an [`EventReceiver`].
//! * `packet`: capture and injection with virtio headers; `tap`: capture of what fastdp leaves to user space; `udp`: the two sockets of the sleeve port.
//! * [`ServerSocket`], which has nothing to do with frames: requests and answers in batches, for the DNS server.
//!
//! `weave_overlay::forward` decides what happens to frames and datagrams, and runs unchanged in the simulator. This crate moves
//! bytes in large units: super-frames are read from and written to the bridge whole, datagrams are sealed in the send buffer
//! and opened in the receive buffer.
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod datapath;
mod error;
mod events;
mod io;
mod packet;
mod server_socket;
mod stats;
#[expect(unsafe_code, reason = "system calls that take pointers")]
mod sys;
mod tap;
mod threads;
mod transmit;
mod udp;

pub use datapath::{Datapath, DatapathConfig, DatapathStats};
pub use error::StartError;
pub use events::{DatapathEvent, EventReceiver};
pub use server_socket::{Answer, Request, ServerBuffers, ServerSocket};
pub use stats::{Counts, DeviceState};
pub use tap::Taps;
pub use udp::OpenUdpError;

#[cfg(test)]
mod datapath_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod testbed;
