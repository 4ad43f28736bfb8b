//! A complete peer: the mesh, the MAC table, the overlays of each connection and, if they are enabled, address
//! allocation and names.
//!
//! [`Node`] owns these state machines and passes the outputs of one to the inputs of another; it has no protocol logic of its own. The
//! driver carries out the remaining outputs: [`Output`]. The daemon drives the node with sockets and clocks, the simulator
//! with a virtual network.
//!
//! ```text
//!   bytes, dials, time ──▶ mesh ──▶ overlay prepare/confirm/control ──▶ OverlaySwitch + UdpControl per connection
//!                           ▲ ▲                                           │ established, failed, control
//!                           └▶ NodeChannels ⇄ Allocator (channel IPallocation; requests by [`Node::with_allocator`])
//!                           │            └──⇄ Registry (channel nameserver; changes by [`Node::with_registry`])
//!  events of data threads ──┼─┴───────────────────────────────────────────┘
//!                           └▶ MacTable ──▶ Tables (published to the data threads)
//! ```
//!
//! Outputs keep the order in which the state machines produced them, so that `Persist` stays before the writes that depend on
//! it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod blocked_paths;
mod channels;
mod connection;
mod connections;
mod dns;
mod event;
mod ipam;
mod kept_paths;
mod mac_log;
mod node;
mod output;
mod status;
mod trace;

pub use connections::WarpConfig;
pub use event::Event;
pub use ipam::IpamConfig;
pub use node::{Config, Node};
pub use output::Output;
pub use status::{ConnectionReport, MacReport, MacTableReport, Status};
