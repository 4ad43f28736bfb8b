//! Address allocation alone: many `Allocator`s on a network that keeps the mesh's contract (unicast, broadcast along a tree,
//! periodic gossip of complete state to a neighbour), with a virtual clock and disks with two classes of persistence.
//!
//! * [`World`]: hosts, network, clock, and the ledger of who was given which address.
//! * [`scenario`]: random lists of transitions, replayed from a seed and shortened when they fail.
//! * [`stories`]: what happens in a certain order.
//! * `answers`, `invariants`: what must hold with each output, after each transition, and once all is quiet.
//! * `nodes`: whole nodes in the place of allocators, over a mesh of theirs: [`crate::World`].
//! * [`plans`]: what is run.

mod answers;
mod calls;
mod disk;
mod host;
mod invariants;
mod network;
mod nodes;
pub mod plans;
pub mod scenario;
pub mod stories;
mod trace;
mod world;

pub use scenario::{Plan, Transition};
pub use world::World;

/// Ends a run: something that must hold does not.
macro_rules! violation {
    ($($text:tt)*) => {
        panic!($($text)*)
    };
}
use violation;
