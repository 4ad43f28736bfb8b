//! Address allocation: the allocators of a cluster, alone (with gossip as the mesh would carry it) or in whole nodes.
//!
//! * `cluster`: a [`Cluster`] on the simulated network, and the model of who uses which address; `member`: one of its peers.
//! * [`scenario`]: random lists of transitions; [`plans`]: their parameters; [`scripted`]: fixed sequences of events.
//! * `actions`, `lifecycle`: what clients, containers and operators do; start, crash and removal of hosts.
//! * `answers`, `gossip`, `invariants`: what must hold for each answer and message, after each transition, and in the end.

mod actions;
mod answers;
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
