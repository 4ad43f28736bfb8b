//! The daemon: composition of a peer (`weave-node`) with sockets, files, clocks and signals.
//!
//! ```text
//!   net        TCP of the mesh ─┐                ┌─ storage    files in /var/lib/weave
//!   datapath   UDP and frames  ─┼─ core: 1 task ─┼─ host       bridge, addresses, firewall
//!   http       control API     ─┘  owns the Node └─ telemetry  log, report, metrics
//! ```
//!
//! [`run`] passes inputs to the node and carries out its outputs. What a peer is started with is a [`config::Config`].
#![forbid(unsafe_code)]

pub mod allocation;
pub mod config;
pub mod control;
mod core;
pub mod host;
pub mod http;
mod net;
mod notify;
mod resource_limits;
mod start;
pub mod storage;
pub mod telemetry;

pub use start::{StartError, run};

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
