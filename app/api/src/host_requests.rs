//! Requests by which commands let the daemon change the host: bodies of `POST /attach`, `/detach`, `/interface`, `/expose`, `/hide` and
//! `/attach-bridge`.
//!
//! `/attach`, `/detach` and `/interface` are accepted only on the unix socket, and a file descriptor of the container's network namespace
//! accompanies them (`SCM_RIGHTS`) where there is one. Addresses are texts as users write them: `10.2.1.1/24`, `net:10.2.0.0/16`, `net:default`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Body of `POST /attach`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AttachRequest {
    /// Id under which the allocator keeps the container's addresses.
    pub container: String,
    /// Source of the interface name on the host, at most 7 characters.
    pub naming: String,
    /// The bridge to attach to.
    pub bridge: String,
    /// The addresses to attach with. None stands for those with which a container of Docker was attached before, else for
    /// `net:default`.
    pub addresses: Vec<String>,
    /// Whether a container of Docker also gets the addresses with which it was attached before.
    #[serde(default)]
    pub former: bool,
    /// Whether the allocator records the addresses.
    pub record: bool,
    /// Whether to add the route for multicast.
    pub multicast_route: bool,
    /// Whether frames may leave by the bridge port that they came in by.
    pub hairpin: bool,
    /// The container's hosts file, if it is to be rewritten.
    pub hosts_file: Option<HostsFile>,
    /// The name to register for the addresses.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether the container is just being started: its engine does not answer questions about it until that is done.
    #[serde(default)]
    pub starting: bool,
}

/// A hosts file to rewrite.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostsFile {
    /// The file on the host.
    pub path: PathBuf,
    /// `Hostname.Domainname` of the container.
    pub fqdn: String,
    /// Further names with their addresses.
    pub extra: Vec<(String, IpAddr)>,
}

/// Body of `POST /detach`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct DetachRequest {
    /// Id under which the allocator keeps the container's addresses.
    pub container: String,
    /// The addresses to detach.
    pub addresses: Vec<String>,
    /// Whether the allocator has recorded the addresses.
    pub record: bool,
}

/// Body of `POST /expose` and `POST /hide`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ExposeRequest {
    /// The addresses to expose or hide.
    pub addresses: Vec<String>,
    /// Whether the host translates addresses of the network when they leave it; without meaning for `/hide`.
    pub masquerade: bool,
    /// The name to register for the addresses; without meaning for `/hide`.
    #[serde(default)]
    pub name: Option<String>,
}

/// Body of `POST /attach-bridge`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AttachBridgeRequest {
    /// The bridge that containers are attached to.
    pub bridge: String,
    /// The bridge to join to it.
    pub other: String,
}

/// Identifies an attachment that a network plugin makes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct AttachmentId {
    /// The name of the network, as the engine calls it.
    pub network: String,
    /// Id of the container.
    pub container: String,
    /// The name of the interface in the container; empty if only addresses are kept.
    pub interface: String,
}

/// Body of `POST /interface`: requests of network plugins. Addresses stay the container's until they are released by such a request.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum InterfaceRequest {
    /// Gives the container an interface, with addresses and routes. The namespace accompanies it.
    Add(AddInterface),
    /// Removes the interface and releases its addresses, as far as they are there. Without the namespace that of [`Self::Add`] is taken,
    /// if it still exists.
    Remove(AttachmentId),
    /// Allocates an address, for a plugin that makes the interface itself.
    Allocate(AttachmentId, Vec<String>),
    /// Releases what [`Self::Allocate`] has allocated.
    Release(AttachmentId),
    /// Asks for the addresses of an attachment.
    Show(AttachmentId),
    /// Removes all attachments of this network that are not listed: pairs of container and interface.
    Collect(String, Vec<(String, String)>),
}

/// An interface to create in a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct AddInterface {
    /// Under which it is known later.
    pub id: AttachmentId,
    /// The bridge to attach to.
    pub bridge: String,
    /// MTU in bytes; `None` takes the bridge's.
    pub mtu: Option<u32>,
    /// The Ethernet address; `None` for any.
    pub mac: Option<String>,
    /// Whether frames may leave by the bridge port that they came in by.
    pub hairpin: bool,
    /// The addresses to attach with.
    pub addresses: Vec<String>,
    /// Whether the allocator records the addresses.
    pub record: bool,
    /// The container's routes.
    pub routes: Routes,
    /// The names to register for the addresses.
    pub names: Vec<String>,
}

/// Routes of a container, besides those to its subnets (docs/spec/containers.md C.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Routes {
    /// The next hop of routes that have none. Without one, and without a list, it is an address of the bridge, which gets one if it has
    /// none.
    pub gateway: Option<IpAddr>,
    /// Destinations and next hops; `None` stands for a default route.
    pub list: Option<Vec<(String, Option<IpAddr>)>>,
}

/// An interface that was created.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct CreatedInterface {
    /// The name of the other end on the host.
    pub port: String,
    /// The Ethernet address of the other end.
    pub port_mac: String,
    /// The Ethernet address of the container's end.
    pub mac: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The next hop of routes that have none.
    pub gateway: Option<IpAddr>,
}

/// Answer to these requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostResponse {
    /// The addresses that were attached, detached, exposed or hidden, with prefix lengths, in the order of the request.
    pub addresses: Vec<String>,
    /// Optional parts that failed.
    pub warnings: Vec<String>,
    /// The interface of [`InterfaceRequest::Add`].
    #[serde(default)]
    pub interface: Option<CreatedInterface>,
}
