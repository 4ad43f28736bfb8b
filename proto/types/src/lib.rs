//! Names, addresses and time: parsing, printing, ordering, arithmetic.
//!
//! * identity: [`PeerName`], [`PeerUid`], [`ShortId`], [`ConnectionUid`], and [`ConnectionId`], which is local to a process;
//! * addresses: [`MacAddr`], [`Cidr`];
//! * time: [`Instant`] (monotonic, for timers), [`Now`] (that and wall-clock time), [`TokenBucket`] (a rate limit).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod name;
mod time;
mod token_bucket;

pub use address::{Cidr, MacAddr, ParseCidrError, ParseMacError};
pub use name::{ConnectionId, ConnectionUid, ParsePeerNameError, PeerName, PeerUid, ShortId};
pub use time::{Instant, Now};
pub use token_bucket::TokenBucket;
