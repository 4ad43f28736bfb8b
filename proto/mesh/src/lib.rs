//! One peer's view of the mesh: framing, handshake, session crypto, topology, routes, gossip, whom to dial.
//!
//! [`Mesh`] is the machine: bytes, time and the user's wishes go in, [`Output`]s come out. It decides whom to connect to,
//! brings connections up and takes them down, keeps the table of all peers, computes [`Routes`], and passes gossip on
//! for itself and for the services behind [`Channels`].
//!
//! ```text
//!   user: connect, forget      sockets: accepted, dialled, stream, written, closed      overlays: established, failed
//!          |                              |                                                  |
//!       dialer ----- Dial ------>  connection, life  ----- OverlayPrepare, Confirm, Stop ----+
//!          ^                              | messages
//!          | links of others              v
//!       topology <--- records ---  relay, gossip, digest  ---> Channels (ipam, dns)
//!          |
//!          +--> routes (snapshot for gossip and for the threads that move frames)
//! ```
//!
//! It does not know what carries frames (overlays, the node's business), what services gossip about, or how anything is
//! stored: it says in [`Persist`] what has to be on disk before the messages that follow.
//!
//! The parts that are useful alone are public modules: [`handshake`] and [`wire`] (one connection's bytes),
//! [`envelope`] and [`update`] (gossip's bytes), [`crypto`], [`features`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admission;
mod config;
mod connection;
pub mod crypto;
mod dialer;
mod digest;
pub mod envelope;
mod event;
pub mod features;
mod gossip;
pub mod handshake;
mod life;
mod mesh;
mod output;
mod peers;
mod relay;
mod routes;
mod short_ids;
mod status;
mod topology;
pub mod update;
pub mod wire;

pub use config::Config;
pub use crypto::Secret;
pub use dialer::{ParsePlaceError, ResolveId, TargetState, TargetStatus};
pub use event::{ConnectionError, ConnectionEvent, Event, Newcomer};
pub use gossip::{Channels, NoChannels};
pub use mesh::Mesh;
pub use output::{Output, OverlayControl, OverlaySetup, Persist};
pub use peers::{Address, Link, Peer, PeerLabel};
pub use relay::UnicastError;
pub use routes::Routes;
pub use status::{ConnectionStatus, LinkStatus, PeerStatus, Status, TargetLine, Time};

#[cfg(test)]
mod tests;
