//! The L2 switch of a peer: a frame and a forwarding table give a verdict.
//!
//! ```text
//!            facts (MAC seen)                     snapshots
//!   data   ------------------>  MacTable (node)  ------------->  ForwardingTable
//!  threads                                                             |
//!     ^                local_frame / peer_frame                        |
//!     +----------------------------------------------------------------+
//! ```
//!
//! * Who is where: [`MacTable`] is the owner's side, [`MacMap`] the snapshot that data threads read.
//! * What happens to a frame: [`local_frame`] for one captured from the local bridge, [`peer_frame`] for one
//!   that came with a source and a destination peer from a neighbour. Both read a [`ForwardingTable`] and
//!   return at most one [`SwitchEvent`] for its owner; [`DuplicateFilter`] keeps the stream of facts thin.
//! * What is in a frame: [`frame`], bounds-checked views.
//! * Work the sending kernel left over: [`offload`] (the virtio header), [`segment`] (segmentation and
//!   checksums), and its inverse towards the local bridge, [`coalesce`].
//! * Frames too long for a link: [`fragment`].
//!
//! What it does not do: it knows no overlay, no mesh, no socket and no clock. Nothing on the path of a frame
//! allocates, and no bytes make it panic.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod checksum;
pub mod coalesce;
mod duplicate_filter;
pub mod fragment;
pub mod frame;
mod mac;
pub mod offload;
pub mod segment;
mod table;
mod verdict;

pub use coalesce::Coalescer;
pub use duplicate_filter::DuplicateFilter;
pub use mac::{Learned, MacConfig, MacEntry, MacMap, MacTable};
pub use offload::{Csum, Gso, GsoKind, Offload};
pub use segment::Segments;
pub use table::{ForwardingTable, Routes};
pub use verdict::{DropReason, LocalVerdict, PeerVerdict, SwitchEvent, local_frame, peer_frame};
