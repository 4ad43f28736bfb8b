//! Address allocation: the allocators of a cluster, alone (with gossip as the mesh would carry it) or in whole nodes.
//!
//! * `cluster`: a [`Cluster`] on the simulated network, and the model of who uses which address.
//! * [`plans`]: what is run; [`scenario`]: random transitions; [`scripted`]: fixed sequences of events.
//! * `answers`, `gossip`, `invariants`: what must hold for each answer and message, after each transition, and in the end.

mod answers;
mod calls;
mod cluster;
mod disk;
mod gossip;
mod invariants;
mod lifecycle;
mod links;
mod member;
pub mod plans;
pub mod scenario;
pub mod scripted;
mod trace;

pub use cluster::Cluster;
