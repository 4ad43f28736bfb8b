//! Many peers in one process: real `Node`s and real `Forwarder`s on a virtual network with a virtual clock, seeded.
//!
//! * [`World`]: hosts, network, clock; [`Host`]: one of them; [`Net`]: cuts, firewalls, loss, delay.
//! * [`scenario`]: random lists of [`Transition`](scenario::Transition)s, replayed from a seed and shortened when they fail.
//! * [`invariants`]: what must hold after each transition, and what must hold once the network is quiet.
//! * [`suites`]: what is run; [`Sabotage`]: mistakes that the suites must notice.
//! * [`ipam`]: address allocation alone, on a network of its own.
//! * [`transcript`]: scenarios written down with what they show.
#![forbid(unsafe_code)]

mod clock;
pub mod frames;
mod host;
pub mod invariants;
pub mod ipam;
mod net;
mod runner;
mod sabotage;
pub mod scenario;
pub mod suites;
mod tcp;
pub mod transcript;
mod world;

pub use host::{Death, Disk, Host, HostOptions};
pub use net::{Faults, HostId, Net};
pub use sabotage::Sabotage;
pub use world::{Counters, PORT, World, container_mac, names};
