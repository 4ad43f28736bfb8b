//! Many peers in one process: real `Node`s and real `Forwarder`s on a virtual network with a virtual clock, seeded.
//!
//! * [`World`]: hosts, network, clock; [`Host`]: one of them; [`Net`]: cuts, firewalls, loss, delay.
//! * [`scenario`]: random lists of [`Transition`](scenario::Transition)s, replayed from a seed and shortened when they fail.
//! * [`invariants`]: what must hold after each transition, and what must hold after all faults have ended.
//! * [`suites`]: what is run; [`DriverFault`]: faults of the driver that the suites must find.
//! * [`ipam`]: address allocation, over allocators alone or over whole nodes.
//! * [`transcript`]: scenarios recorded with their output.
#![forbid(unsafe_code)]

mod clock;
mod driver_fault;
pub mod frames;
mod host;
pub mod invariants;
pub mod ipam;
mod net;
mod runner;
pub mod scenario;
pub mod suites;
mod tcp;
pub mod transcript;
mod world;

pub use driver_fault::DriverFault;
pub use host::{CrashKind, Disk, Host, HostOptions};
pub use net::{Faults, HostId, Net};
pub use world::{Counters, World, addresses};
