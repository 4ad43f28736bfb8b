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

mod allocation;
pub mod config;
mod containers;
mod control;
mod core;
mod dns;
mod dns_service;
mod docker_monitor;
mod host;
mod http;
mod kernel_path;
mod names;
mod net;
mod notify;
mod plugin;
mod proxy;
mod reattacher;
mod resource_limits;
mod start;
mod storage;
mod telemetry;
mod trace;
mod trace_command;
mod unix_socket;

pub use host::{find_peer_name, legacy_database};
pub use kernel_path::{kernel_path_devices, remove_kernel_path};
pub use plugin::remove_dead_plugin_sockets;
pub use start::{StartError, run};
pub use storage::{
    ALLOCATION_FILE, HOST_FILE, HostState, Original, PEER_FILES, PeerState, pid_file, was_attached,
};
pub use telemetry::log;

/// Version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The HTTP server without a peer, for integration tests and fuzz targets.
#[doc(hidden)]
pub mod testing {
    pub use crate::control::{Control, Request};
    pub use crate::dns::{DnsCounts, DnsServer, ListenError, MayRecurse, ServerConfig};
    pub use crate::http::{Access, Limits, Listener, serve_connection};
    pub use crate::proxy::ParsedRequest;
    pub use crate::telemetry::metrics::Snapshot;
}
