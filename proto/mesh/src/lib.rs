//! One peer's view of the mesh: framing, handshake, session crypto, topology, routes, gossip, whom to dial.
#![forbid(unsafe_code)]

pub mod crypto;
pub mod envelope;
pub mod features;
pub mod handshake;
pub mod update;
pub mod wire;
