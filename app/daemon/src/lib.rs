//! The daemon: composition of a peer (`weave-node`) with sockets, files, clocks and signals.
//!
//! ```text
//!   TCP 6783 ─── net ──┐                    ┌── store   /var/lib/weave/peer.json
//!   UDP, frames ─ datapath ─┼─ core: one task ─┼── log     stderr
//!   HTTP, unix ─ http ─┘   owns the Node    └── notify  whoever started us
//! ```
//!
//! Nothing here decides what the network does: [`run`] brings inputs to the node and does what it says. What a peer is
//! started with is a [`config::Config`].
#![forbid(unsafe_code)]

pub mod config;
pub mod control;
mod core;
mod hostwork;
pub mod http;
pub mod identity;
pub mod lock;
pub mod log;
mod net;
mod notify;
mod refusals;
mod report;
mod start;
pub mod store;

pub use start::{StartError, run};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
