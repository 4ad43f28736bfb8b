//! The layer 2 switch of a peer: it decides from a frame and a forwarding table what happens to the frame.
//!
//! ```text
//!           events (MAC seen)                     snapshots
//!   data   ------------------>  MacTable (node)  ------------->  ForwardingTable
//!  threads                                                             |
//!     ^                local_frame / peer_frame                        |
//!     +----------------------------------------------------------------+
//! ```
//!
//! * MAC learning: [`MacTable`] belongs to the owner, data threads read a snapshot of it, [`MacMap`].
//! * Verdicts: [`local_frame`] for a frame captured from the local bridge, [`peer_frame`] for a frame that a neighbour
//!   sent with a source and a destination peer. Both read a [`ForwardingTable`] and return at most one [`SwitchEvent`] for
//!   its owner; [`DuplicateFilter`] suppresses repeated events.
//! * Parsing: [`frame`], bounds-checked views of headers.
//! * Offloads of the sending kernel: [`offload`] (the virtio header), [`segment`] (segmentation and checksums), and the
//!   inverse towards the local bridge, [`coalesce`].
//! * Frames that exceed an MTU: [`fragment`].
//!
//! The crate knows no overlay, mesh, socket or clock. Nothing on the path of a frame allocates, and no input makes it
//! panic.
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
