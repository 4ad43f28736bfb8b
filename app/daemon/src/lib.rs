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

mod adopt;
pub mod allocation;
pub mod allocation_store;
pub mod config;
pub mod control;
mod core;
pub mod host_state;
mod hostwork;
pub mod http;
pub mod identity;
mod impatient;
pub mod import;
mod inventory;
mod ipam_report;
mod journal;
mod limits;
pub mod lock;
pub mod log;
mod logfile;
pub mod metrics;
mod net;
mod notify;
mod own_names;
mod process;
mod refusals;
mod report;
mod start;
pub mod store;
mod warden;
mod watch;

pub use start::{StartError, run};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
