//! One peer's view of the mesh: framing, handshake, session crypto, topology, routes, gossip, whom to dial.
#![forbid(unsafe_code)]
