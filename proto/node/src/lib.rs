//! One whole peer as one value: the mesh, the MAC table and, for each connection, the overlays that carry its frames; and, if it is on, address allocation.
//!
//! [`Node`] owns those machines and routes the outputs of one to the inputs of another; it decides nothing itself. What is
//! left over, the driver does: [`Output`]. A daemon drives it with sockets and clocks, the simulator with a virtual
//! network; both run this same code.
//!
//! ```text
//!   bytes, dials, time ──▶ mesh ──▶ overlay prepare/confirm/control ──▶ OverlaySwitch + sleeve::Link per connection
//!                           ▲ ▲                                           │ established, failed, control
//!                           └▶ IpamChannels ⇄ Allocator (channel IPallocation; requests by [`Node::with_allocator`])
//!   facts of data threads ──┼─┴───────────────────────────────────────────┘
//!                           └▶ MacTable ──▶ Tables (published to the data threads)
//! ```
//!
//! The order of outputs is the order in which the machines produced them, so that `Persist` stays before the writes that
//! depend on it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod ipam;
mod link;
mod node;
mod output;
mod status;

pub use ipam::IpamConfig;
pub use node::{Config, Node};
pub use output::{Event, Output};
pub use status::{ConnectionReport, MacReport, Status};
