//! What a peer does to its Linux host: links, bridge, veth, namespaces, addresses, routes, sysctls, firewall rules of host and
//! containers. Verbs are idempotent and undo what they did when a step fails.
//!
//! ```text
//!   container namespace            host namespace
//!   +-----------------+   veth    +--------------------------------------------------------------+
//!   | ethwe  10.32/12 |===========| vethwepl<id> --+                                             |
//!   +-----------------+           |                +-- bridge `weave` --- vethwe-bridge          |
//!   | ethwe           |===========| vethwepl<id> --+   (MAC = peer name)       || veth           |
//!   +-----------------+           |                                       vethwe-datapath        |
//!                                 |                            packet sockets | tc ingress: drop |
//!                                 +--------------------------------------------------------------+
//! ```
//!
//! * [`ensure_bridge`], [`ensure_uplink`], [`bridge_kind`], [`remove_all`]: the host's own devices (docs/spec/data-plane.md 1);
//! * [`attach()`], [`detach()`]: a container's interface (docs/spec/containers.md D.2, D.3);
//! * [`Ports`]: which addresses containers have (docs/spec/containers.md D.4);
//! * [`NetNs`], [`Netlink`]: namespaces, and the verbs on links, addresses and routes in one of them;
//! * [`original_kind`], [`remove_old_datapath`], [`hand_back`]: what 2.8.1 left, and what it needs to come back;
//! * [`identity`]: the peer name a host has without being told (docs/spec/mesh.md 2.2).
//!
//! * [`firewall`]: the host's packet filter rules (docs/spec/cli.md 4.3); [`add_bridge_address`] and its sisters: the host's own addresses
//!   on the network (docs/spec/cli.md 6);
//! * [`unmanaged`]: files that keep other programs from changing these devices.
//!
//! What it does not do: decide when to do any of this, or know what a container is (`weave-runtime`).
#![warn(clippy::undocumented_unsafe_blocks)]

mod addrs;
mod arp;
mod attach;
mod bpf;
mod bridge;
mod conntrack;
pub mod critical;
mod datapath;
mod error;
mod ethtool;
mod expose;
pub mod faults;
pub mod firewall;
pub mod identity;
mod ipset;
mod join;
mod links;
mod lookups;
mod multicast_rules;
mod netlink;
mod netns;
mod original;
mod ports;
mod routes;
mod steps;
mod sysctl;
mod tc;
pub mod unmanaged;

pub use addrs::Address;
pub use arp::announce;
pub use attach::{
    AttachRequest, Attached, DetachRequest, Detached, attach, attach_with, detach, detach_with,
};
pub use bridge::{
    BridgeConfig, BridgeInfo, BridgeKind, Mtu, Names, UplinkInfo, bridge_kind, ensure_bridge, ensure_uplink,
    link_mac, owned_devices, remove_all, stale_links,
};
pub use conntrack::forget_udp;
pub use error::Error;
pub use ethtool::{disable_tx_checksum, tx_checksum};
pub use expose::{
    add_bridge_address, adopt_orphans, bridge_addresses, enable_forwarding, first_address,
    remove_bridge_address, restore_bridge_addresses,
};
pub use join::join_bridges;
pub use links::Link;
pub use lookups::use_built_in_lookups;
pub use multicast_rules::{Firewall, FirewallError, Rule};
pub use netlink::Netlink;
pub use netns::{NamespaceId, NamespaceLock, NetNs};
pub use original::{
    Datapath, HandedBack, hand_back, original_kind, remove_old_datapath, restore_old_datapath,
};
pub use ports::{ContainerLink, Ports};
pub use routes::Route;
pub use steps::Steps;
pub use tc::IngressDrop;
