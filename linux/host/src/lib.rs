//! What a peer does to its Linux host: links, bridge, veth, namespaces, addresses, routes, sysctls, the few firewall
//! rules of a container. Verbs are idempotent and undo what they did when a step fails.
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
//! * [`ensure_bridge`], [`ensure_uplink`], [`bridge_kind`], [`remove_all`]: the host's own devices (spec data-plane 1);
//! * [`attach()`], [`detach()`]: a container's interface (spec containers D.2, D.3);
//! * [`Ports`]: which addresses containers have (spec containers D.4);
//! * [`NetNs`], [`Netlink`]: namespaces, and the verbs on links, addresses and routes in one of them;
//! * [`identity`]: the peer name a host has without being told (spec mesh 2.2).
//!
//! What it does not do: decide when to do any of this, or know what a container is (`weave-runtime`). Of the host's own
//! firewall it only touches one rule ([`ensure_forwarding`]).
#![warn(clippy::undocumented_unsafe_blocks)]

mod addrs;
mod arp;
mod attach;
mod bpf;
mod bridge;
mod datapath;
mod error;
mod ethtool;
mod forwarding;
pub mod identity;
mod links;
mod multicast_rules;
mod netlink;
mod netns;
mod ports;
mod routes;
mod steps;
mod sysctl;
mod tc;

pub use addrs::Address;
pub use arp::announce;
pub use attach::{
    AttachRequest, Attached, DetachRequest, Detached, attach, attach_with, detach, detach_with,
};
pub use bridge::{
    BridgeConfig, BridgeInfo, BridgeKind, Mtu, Names, UplinkInfo, bridge_kind, ensure_bridge, ensure_uplink,
    link_mac, remove_all, stale_links,
};
pub use error::Error;
pub use ethtool::{disable_tx_checksum, tx_checksum};
pub use forwarding::{ensure_forwarding, remove_forwarding};
pub use links::Link;
pub use multicast_rules::{Firewall, FirewallError, Rule};
pub use netlink::Netlink;
pub use netns::{NamespaceId, NamespaceLock, NetNs};
pub use ports::{ContainerLink, Ports};
pub use routes::Route;
pub use steps::Steps;
pub use tc::IngressDrop;
