//! Frames between the bridge, the switch and UDP sockets: packet capture, batched UDP, offloads, threads.
#![warn(clippy::undocumented_unsafe_blocks)]
#![deny(unsafe_code)]

pub mod packet;
#[expect(unsafe_code, reason = "system calls with pointers")]
mod sys;
pub mod udp;

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod namespace;
