//! Frames between the bridge, the switch and UDP sockets: packet capture, batched UDP, offloads, threads.
//!
//! ```text
//!             publish(tables)          facts
//!   daemon ------------------> Datapath ----> EventReceiver --> daemon
//!                               |    |
//!   uplink == packet sockets == device thread == UDP sockets == neighbours
//!   (vethwe-datapath)           UDP thread
//! ```
//!
//! * [`Datapath`] is the daemon's handle: it starts and stops the threads, publishes tables to them, sends control
//!   datagrams and reads counters. What the threads see comes out of a [`EventReceiver`].
//! * [`packet`]: capture and injection with virtio headers; [`udp`]: the two sockets of the sleeve port.
//!
//! It decides nothing: what becomes of a frame or a datagram is the business of `weave_overlay::forward`, which runs
//! unchanged in a simulator. This crate moves bytes in large pieces: super-frames come from and go to the bridge whole,
//! datagrams are sealed where they are sent from and opened where they were received.
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod datapath;
mod events;
mod io;
pub mod packet;
mod stats;
#[expect(unsafe_code, reason = "system calls with pointers")]
mod sys;
mod threads;
mod transmit;
pub mod udp;

pub use datapath::{Datapath, DatapathConfig, DatapathStats, StartError};
pub use events::{DatapathEvent, EventReceiver};
pub use stats::{Counts, DeviceState};

#[cfg(test)]
extern crate self as weave_datapath;
#[cfg(test)]
mod datapath_tests;
#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod testbed;
