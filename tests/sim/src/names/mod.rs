//! Simulation of the registry of names over whole nodes: random registrations and removals, crashes, partitions, wrong clocks.
//!
//! The model is the set of names that the driver of each peer has registered. After a quiet time every peer answers every
//! name with exactly the addresses of peers that are up.

mod cluster;
pub mod plans;
pub mod scenario;

pub use cluster::NameCluster;
