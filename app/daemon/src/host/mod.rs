//! Changes to the host, and what is found on it.

mod container_monitor;
mod devices;
mod dns_listener;
mod inventory;
pub mod legacy_database;
mod legacy_takeover;
mod owner;
pub(crate) mod peer_name;
mod reconciler;

pub(crate) use container_monitor::{Change, ContainerMonitor};
pub(crate) use devices::device_names;
pub(crate) use dns_listener::{Clients, DnsListener, ListenAddresses};
pub(crate) use inventory::{InUse, Inventory};
pub(crate) use legacy_takeover::LegacyTakeover;
pub(crate) use owner::{NamespaceRef, is_docker_id};
pub use peer_name::find_peer_name;
pub(crate) use reconciler::{Command, HostReconciler, ReconcilerHandle};
