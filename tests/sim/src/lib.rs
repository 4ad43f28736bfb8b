//! Many peers in one process: real `Node`s and real `Forwarder`s on a virtual network with a virtual clock, seeded.
//!
//! * [`World`]: hosts, network, clock; [`Host`]: one of them; [`Net`]: cuts, loss, delay.
//! * [`scenario`]: random lists of [`Transition`](scenario::Transition)s, replayed from a seed and shortened when they fail.
//! * [`invariants`]: what must hold after each transition, and what must hold once the network is quiet.
#![forbid(unsafe_code)]

pub mod frames;
mod host;
pub mod invariants;
mod net;
pub mod scenario;
mod tcp;
mod world;

pub use host::{Disk, Host, HostOptions};
pub use net::{Faults, HostId, Net};
pub use world::{Counters, PORT, World, container_mac, names};
