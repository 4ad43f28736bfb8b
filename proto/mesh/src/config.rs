use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use weave_types::{Cidr, PeerName, PeerUid, ShortId};

use crate::crypto::Secret;

/// Configuration of a [`Mesh`](crate::Mesh). The identity has no default; see [`Config::new`] for the rest.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this peer (docs/spec/mesh.md 2.2).
    pub name: PeerName,
    /// Nickname of this peer, shown to people; usually the name of the host.
    pub nickname: String,
    /// Identifies this run of the process: random, not 0.
    pub uid: PeerUid,
    /// Short id of the last run; `None` for a random one. Default `None`.
    pub short_id: Option<ShortId>,
    /// First version of our record: the last [`Persist::VersionCeiling`](crate::Persist) of the last run. Default 0.
    pub version: u64,
    /// TCP port on which we listen; also the port to dial where none is known. Default 6783.
    pub port: u16,
    /// Password of the network; both ends of a connection have the same one or none. Default `None`.
    pub password: Option<Secret>,
    /// Networks to which data is not encrypted, provided that the remote peer trusts ours too. Default empty.
    pub trusted_subnets: Vec<Cidr>,
    /// Whether to dial peers that are learnt from the topology. Default `true`.
    pub discovery: bool,
    /// Maximum number of connections; 0 for no limit. Default 200.
    pub connection_limit: usize,
    /// Most bytes of unfinished messages over all connections: those that are collected and those that are not written yet.
    /// Beyond, the connection with most of them ends. Default 256 MB.
    pub max_buffered: usize,
    /// Most bytes of messages that wait to be relayed on channels without a receiver here, over all connections. Beyond, further
    /// ones are left out. Default 64 MB.
    pub max_surrogate_bytes: usize,
    /// Lowest protocol version to accept, 1 or 2. Default 1.
    pub min_protocol: u8,
    /// Names of our overlays, in order of preference. Default empty: there are no overlays to negotiate, and the driver
    /// alone decides when a connection is established.
    pub overlays: Vec<String>,
    /// Interval between gossips of complete state. Default 30 s.
    pub gossip_interval: Duration,
    /// Whether to compare digests of the topology and of channels with peers that support it, instead of sending complete states.
    /// Default `true`.
    pub digests: bool,
    /// Additional handshake features, for the overlays. 2.8.1 ignores unknown ones. Default empty.
    pub features: BTreeMap<String, String>,
}

impl Config {
    /// A peer of this identity with the defaults of 2.8.1.
    pub fn new(name: PeerName, nickname: impl Into<String>, uid: PeerUid) -> Config {
        Config {
            name,
            nickname: nickname.into(),
            uid,
            short_id: None,
            version: 0,
            port: 6783,
            password: None,
            trusted_subnets: Vec::new(),
            discovery: true,
            connection_limit: 200,
            max_buffered: 256 << 20,
            max_surrogate_bytes: 64 << 20,
            min_protocol: 1,
            overlays: Vec::new(),
            gossip_interval: Duration::from_secs(30),
            digests: true,
            features: BTreeMap::new(),
        }
    }

    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted_subnets.iter().any(|subnet| subnet.contains(ip))
    }
}
