//! One peer's part in the mesh: framing, handshake, encryption, topology, routes, gossip, and the choice of peers to
//! dial.
//!
//! [`Mesh`] is a state machine: its inputs are bytes, time and commands of the user, its results are [`Output`]s. It
//! decides which peers to dial, establishes and ends connections, keeps the records of all peers, computes [`Routes`],
//! and relays gossip for itself and for the receivers behind [`Channels`].
//!
//! ```text
//!   user: connect, forget      sockets: accepted, dialled, stream, written, closed      overlays: established, failed
//!          |                              |                                                  |
//!       dialer ----- Dial -----> connection_lifecycle ---- OverlayPrepare, Confirm, Stop ----+
//!          ^                              | messages
//!          | connections of others        v
//!       topology <--- records ---  relay, gossip, digest  ---> Channels (ipam, dns)
//!          |
//!          +--> routes (snapshot for gossip and for the threads that forward frames)
//! ```
//!
//! It knows neither the overlays that carry frames nor the content of other channels' gossip. [`Persist`] is the state
//! that has to be stored before the following messages are sent.
//!
//! Modules that are useful alone are public: [`handshake`] and [`wire`] (the bytes of a connection), [`envelope`] and
//! [`update`] (the bytes of gossip), [`crypto`], [`features`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod admission;
mod channel_digest;
mod config;
mod connection;
mod connection_lifecycle;
pub mod crypto;
mod dialer;
mod digest;
pub mod envelope;
mod event;
pub mod features;
mod gossip;
pub mod handshake;
mod interrupted;
mod mesh;
mod output;
mod paths;
mod peers;
mod relay;
mod restarts;
mod routes;
mod short_ids;
mod status;
mod topology;
pub mod update;
pub mod wire;

pub use config::Config;
pub use crypto::Secret;
pub use dialer::{ResolveId, TargetState, TargetStatus};
pub use event::{ConnectionError, ConnectionEvent, Event, PeerStatusOnConnect, StreamEnd};
pub use gossip::Channels;
pub use interrupted::Departure;
pub use mesh::Mesh;
pub use output::{Output, OverlayControl, OverlaySetup, Persist};
pub use peers::{GossipAddress, Peer, PeerConnection, PeerLabel};
pub use relay::UnicastError;
pub use routes::Routes;
pub use status::{ConnectionStatus, PeerConnectionStatus, PeerStatus, Status};

#[cfg(test)]
mod test_support;
#[cfg(test)]
mod tests;
