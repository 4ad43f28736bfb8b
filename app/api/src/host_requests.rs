//! Requests by which commands let the daemon change the host: bodies of `POST /attach`, `/detach`, `/expose`, `/hide` and
//! `/attach-bridge`.
//!
//! `/attach` and `/detach` are accepted only on the unix socket, and a file descriptor of the container's network namespace
//! accompanies them (`SCM_RIGHTS`). Addresses are texts as users write them: `10.2.1.1/24`, `net:10.2.0.0/16`, `net:default`.

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

/// Answer to these requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HostResponse {
    /// The addresses that were attached, detached, exposed or hidden, with prefix lengths, in the order of the request.
    pub addresses: Vec<String>,
    /// Optional parts that failed.
    pub warnings: Vec<String>,
}
