//! Frames between the bridge, the switch and UDP sockets: packet capture, batched UDP, offloads, threads.
#![warn(clippy::undocumented_unsafe_blocks)]
