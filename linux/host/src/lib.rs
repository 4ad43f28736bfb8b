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
//! * [`BridgePorts`]: which addresses containers have (docs/spec/containers.md D.4);
//! * [`NetNs`], [`Netlink`]: namespaces, and the verbs on links, addresses and routes in one of them;
//! * [`legacy_bridge_kind`], [`remove_legacy_datapath`], [`restore_legacy_devices`]: what 2.8.1 left, and what it needs to come back;
//! * [`identity`]: the peer name a host has without being told (docs/spec/mesh.md 2.2).
//!
//! * [`firewall`]: the host's packet filter rules (docs/spec/cli.md 4.3); [`add_bridge_address`] and its sisters: the host's own addresses
//!   on the network (docs/spec/cli.md 6);
//! * [`unmanaged`]: files that keep other programs from changing these devices.
//!
//! What it does not do: decide when to do any of this, or know what a container is (`weave-runtime`).
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

mod addresses;
mod arp;
mod attach;
mod bpf;
mod bridge;
mod bridge_ports;
mod conntrack;
pub mod critical;
mod error;
mod ethtool;
mod expose;
pub mod fault_injection;
pub mod files;
pub mod firewall;
pub mod identity;
mod ipset;
mod join;
mod legacy_devices;
mod links;
mod name_resolution;
mod netlink;
mod netns;
mod openvswitch;
mod routes;
mod sysctl;
mod tc;
pub mod unmanaged;

pub use addresses::Address;
pub use arp::announce;
pub use attach::{AttachRequest, Attached, DetachRequest, Detached, attach, detach};
pub use bridge::{
    BridgeConfig, BridgeInfo, BridgeKind, DeviceNames, Mtu, UplinkInfo, bridge_kind, ensure_bridge,
    ensure_uplink, link_mac, owned_devices, remove_all, stale_links,
};
pub use bridge_ports::{BridgePorts, ContainerInterface};
pub use conntrack::flush_udp_connections;
pub use error::Error;
pub use ethtool::{disable_tx_checksum, tx_checksum};
pub use expose::{
    add_bridge_address, adopt_orphans, bridge_addresses, enable_forwarding, first_address,
    remove_bridge_address, restore_bridge_addresses,
};
pub use firewall::FirewallError;
pub use join::join_bridges;
pub use legacy_devices::{
    LegacyDatapath, RestoredDevices, legacy_bridge_kind, remove_legacy_datapath, restore_legacy_datapath,
    restore_legacy_devices,
};
pub use links::Link;
pub use name_resolution::use_builtin_name_resolution;
pub use netlink::Netlink;
pub use netns::{NamespaceId, NamespaceLock, NetNs};
pub use routes::Route;
pub use tc::IngressDrop;
