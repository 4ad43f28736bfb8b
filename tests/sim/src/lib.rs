//! Many peers in one process: real `Node`s and real `Forwarder`s on a virtual network with a virtual clock, seeded.
//!
//! * [`World`]: hosts, network, clock, queue of events. [`Host`]: one host. [`Net`]: cuts, firewalls, loss, delay.
//! * [`scenario`]: random lists of [`Transition`](scenario::Transition)s, replayed from a seed and shortened when they fail.
//!   [`plans`]: their parameters.
//! * [`invariants`]: what must hold after each transition, and what must hold after all faults have ended.
//! * [`DriverFault`]: faults of the driver that random runs must find.
//! * [`ipam`]: the same for address allocation, with allocators alone or whole nodes.
//! * [`names`]: the same for the registry of names, over whole nodes.
//! * [`failover`]: silence after a cut under traffic.
//! * [`restarts`]: what others notice of a peer that restarts under traffic.
//! * [`slow_machines`]: nothing is mistaken for a failure while machines are slow.
//! * [`transcript`]: scenarios recorded with their output.
#![forbid(unsafe_code)]

pub mod broken_segmentation;
mod clock;
mod driver_fault;
pub mod failover;
mod frames;
mod host;
pub mod invariants;
pub mod ipam;
mod kernel;
mod load;
pub mod names;
mod net;
pub mod plans;
pub mod restarts;
mod runner;
pub mod scenario;
pub mod slow_machines;
mod tcp;
pub mod transcript;
mod world;

pub use driver_fault::DriverFault;
pub use host::{CrashKind, Disk, Host, HostOptions};
pub use net::{Faults, HostId, Net};
pub use world::{Counters, World};
