//! One peer's view of the mesh: framing, handshake, session crypto, topology, routes, gossip, whom to dial.
#![forbid(unsafe_code)]

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
