//! Address allocation without a server: who owns which part of the range, and who uses which address.
//!
//! [`Allocator`] is the machine. Requests, gossip and time go in; [`Output`]s come out, in an order that is part of the
//! contract: what has to be on the disk stands before the messages and answers that depend on it.
//!
//! ```text
//!   requests: allocate, claim, prime, release      gossip: handle_gossip, handle_broadcast, handle_unicast, state
//!                 |                                              |
//!              allocator  --- waits for space: asks other peers --+-- donates, merges
//!                 |                                              |
//!   owned (container -> addresses)    space (free, used)   <---  ring (who owns what)  <---  paxos (first division)
//! ```
//!
//! * [`ring`]: the range as tokens with owners, its merge, and the changes that a peer may make to it.
//! * [`space`]: which of our addresses are free.
//! * [`paxos`]: agreement on the peers among which the range is first divided.
//! * [`message`]: the bytes of gossip and of what is stored.
//! * [`database`]: reads what 2.8.1 has stored.
//!
//! Not here: HTTP, containers' life (the driver says who died), the bridge, the file that things are stored in.
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
    Answer, Cancelled, Container, DiscardReason, Durability, Event, HandOver, NO_ID, Output, Persist,
    QuorumSource, ReleaseError, RemoveError, RequestError, RequestId,
};
pub use owned::Record;
pub use paxos::Election;
pub use persist::Loaded;
pub use ring::{Entry, Ring, RingError};
pub use status::{
    ConflictStatus, ElectionStatus, EntryStatus, OwnerStatus, PendingKind, PendingStatus, State, Status,
    WaitReason,
};

/// The gossip channel.
pub const CHANNEL: &str = "IPallocation";
