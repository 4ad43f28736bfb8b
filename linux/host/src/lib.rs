//! Operations on the Linux host of a peer: links, bridge, veth, namespaces, addresses, routes, sysctls, firewall rules of host and
//! containers. They are idempotent, and undo their changes when a step fails.
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
//! * [`ensure_bridge`], [`ensure_uplink`], [`bridge_kind`], [`remove_all`]: the devices of the host (docs/spec/data-plane.md 1);
//! * [`attach()`], [`detach()`]: the interface of a container (docs/spec/containers.md D.2, D.3);
//! * [`create_endpoint`] and others: interfaces that Docker moves into containers by itself (docs/spec/containers.md B);
//! * [`BridgePorts`]: interfaces and addresses of containers (docs/spec/containers.md D.4);
//! * [`add_bridge_address`] and others: addresses of the host on the network (docs/spec/cli.md 6);
//! * [`restore_ports`], [`update_containers`], [`obstacles()`]: what earlier launches and other programs have left otherwise;
//! * [`firewall`]: packet filter rules (docs/spec/cli.md 4.3);
//! * [`NetNs`], [`Netlink`]: network namespaces, and links, addresses and routes in one of them;
//! * [`legacy_bridge_kind`], [`remove_legacy_datapath`], [`restore_legacy_devices`]: takeover from 2.8.1, and the return to it;
//! * [`identity`]: the default name of a peer (docs/spec/mesh.md 2.2);
//! * [`FrameSocket`]: sends and sees the frames of `weave trace`;
//! * [`tcp_socket_owner`]: who sends a request to a TCP port of the daemon; [`port_holder()`]: who uses a port;
//! * [`unmanaged`]: configuration files by which other programs do not change the devices.
//!
//! The crate does not decide when these operations happen, and does not know containers, only namespaces (`weave-runtime`).
#![warn(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

mod addresses;
mod arp;
mod attach;
mod bpf;
mod bridge;
mod bridge_ports;
mod conntrack;
mod container_settings;
mod endpoint;
mod error;
mod ethtool;
mod expose;
pub mod fault_injection;
pub mod fd_passing;
pub mod files;
pub mod firewall;
mod frame_socket;
pub mod host_resolver;
pub mod identity;
mod ipset;
mod join;
mod legacy_devices;
mod links;
mod memory;
mod name_resolution;
mod netlink;
mod netns;
mod network_changes;
mod obstacles;
mod openvswitch;
mod port_holder;
mod routes;
mod shortcut_ports;
mod socket_owner;
mod sysctl;
mod tc;
pub mod unmanaged;

pub use addresses::Address;
pub use arp::announce;
pub use attach::{
    AttachRequest, Attached, DetachRequest, Detached, InterfaceState, attach, detach, interface_addresses,
    interface_state, is_id_taken, promote_secondaries, remove_pair, remove_unfinished_pair,
    set_promote_secondaries,
};
pub use bridge::{
    BridgeConfig, BridgeInfo, BridgeKind, DeviceNames, Mtu, UplinkInfo, bridge_kind, ensure_bridge,
    ensure_uplink, link_mac, owned_devices, remove_all, stale_links,
};
pub use bridge_ports::{BridgePorts, ContainerInterface, RestoredPorts, restore_ports};
pub use conntrack::flush_udp_connections;
pub use container_settings::{UpdatedContainers, update_containers};
pub use endpoint::{
    announce_interfaces, create_endpoint, has_multicast_route, remove_endpoint, remove_unused_endpoint,
};
pub use error::Error;
pub use ethtool::{disable_tx_checksum, tx_checksum};
pub use expose::{
    add_bridge_address, bridge_addresses, ensure_forwarding, first_address, remove_bridge_address,
    restore_bridge_addresses,
};
pub use firewall::FirewallError;
pub use frame_socket::{FrameSocket, SeenFrame};
pub use join::join_bridges;
pub use legacy_devices::{
    LegacyDatapath, RestoredDevices, legacy_bridge_kind, remove_legacy_datapath, restore_legacy_datapath,
    restore_legacy_devices,
};
pub use links::Link;
pub use memory::{keep_long_pieces_off_the_heap, release_free_memory};
pub use name_resolution::use_builtin_name_resolution;
pub use netlink::Netlink;
pub use netns::{NamespaceId, NamespaceKey, NetNs};
pub use network_changes::NetworkMonitor;
pub use obstacles::{obstacles, outside_device};
pub use port_holder::port_holder;
pub use routes::{LinkRoute, Route};
pub use shortcut_ports::{ShortcutPorts, shortcut_ports};
pub use socket_owner::tcp_socket_owner;
pub use tc::{IngressDrop, IngressProgram};
