//! Address allocation without a server: which peer owns which part of the range, and which container uses which
//! address.
//!
//! [`Allocator`] is the state machine. Its inputs are requests, gossip and time; its results are [`Output`]s. Their
//! order is part of the contract: state to be stored precedes the messages and answers that depend on it.
//!
//! ```text
//!   requests: allocate, claim, prime, free       gossip: handle_gossip, handle_broadcast, handle_unicast, state
//!                  |                                            |
//!              allocator --- requests space from other peers ---+--- donates, merges
//!                  |                                            |
//!   owned (container -> addresses)   space (free, used)  <---  ring (owners)  <---  paxos (first division)
//! ```
//!
//! * [`ring`]: the division of the range as tokens with owners, and a peer's changes of it; [`merge`]: its merge.
//! * [`space`]: which own addresses are free.
//! * [`paxos`]: agreement on the peers among which the range is first divided.
//! * [`message`]: the encoding of gossip and of stored state.
//! * [`database`]: reads what 2.8.1 has stored.
//!
//! The driver serves HTTP, watches containers, configures the bridge and stores files.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod allocator;
mod config;
pub mod database;
mod gossip_error;
pub mod merge;
pub mod message;
mod output;
mod owned;
pub mod paxos;
mod persist;
pub mod ring;
pub mod space;
mod status;

pub use address::{AddrRange, Subnet, SubnetError};
pub use allocator::Allocator;
pub use config::{Config, ConfigError, Init, ParseInitError, Policy};
pub use database::{Database, DatabaseError};
pub use gossip_error::{Conflict, GossipError, Malformed, NamedPeer};
pub use output::{
    Answer, Cancelled, DiscardReason, Durability, Event, HandOver, NO_ID, Output, Persist, QuorumSource,
    ReleaseError, RemoveError, RequestError, RequestId,
};
pub use owned::{Container, Record};
pub use paxos::Election;
pub use persist::Loaded;
pub use ring::{Entry, Ring, RingError};
pub use status::{
    ConflictStatus, ElectionStatus, EntryStatus, OwnerStatus, PendingKind, PendingStatus, State, Status,
    WaitReason,
};

/// The name of the gossip channel (docs/spec/ipam.md 4.1).
pub const CHANNEL: &str = "IPallocation";
