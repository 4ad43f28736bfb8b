//! One peer's view of the mesh: framing, handshake, session crypto, topology, routes, gossip, whom to dial.
#![forbid(unsafe_code)]

mod dialer;
mod peers;
mod routes;
mod short_ids;
mod topology;
mod update;

pub use dialer::{ParsePlaceError, ResolveId, TargetState, TargetStatus};
pub use peers::{Address, Link, Peer, PeerLabel};
pub use routes::Routes;

#[cfg(test)]
mod tests;
