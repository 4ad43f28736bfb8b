use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use weave_types::{Cidr, PeerName, PeerUid, ShortId};

use crate::crypto::Secret;

/// What a [`Mesh`](crate::Mesh) is told at its start. Identity has no default; see [`Config::new`] for the rest.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name (docs/spec/mesh.md 2.2).
    pub name: PeerName,
    /// Free text that people know us by; the host's name.
    pub nickname: String,
    /// Random at each start of the process, not 0.
    pub uid: PeerUid,
    /// The short id of the last run; `None`: a random one. Default `None`.
    pub short_id: Option<ShortId>,
    /// Our record's version begins here: what [`Persist::VersionCeiling`](crate::Persist) said last. Default 0.
    pub version: u64,
    /// The TCP port on which we and, as far as we do not know better, all others listen. Default 6783.
    pub port: u16,
    /// Both ends of a connection have the same one, or none. Default `None`.
    pub password: Option<Secret>,
    /// Connections to these networks need no encryption of data if the other side agrees. Default empty.
    pub trusted_subnets: Vec<Cidr>,
    /// Whether to dial peers that others tell of. Default `true`.
    pub discovery: bool,
    /// How many connections there may be, 0: any number. Default 200.
    pub connection_limit: usize,
    /// 1 or 2: the lowest version of the protocol that is spoken. Default 1.
    pub min_protocol: u8,
    /// Names of the overlays that we have, in the order in which they are announced (design 4). Default empty: no
    /// overlays at all, the node says itself when a connection is established.
    pub overlays: Vec<String>,
    /// Pause between two rounds of complete state. Default 30 s.
    pub gossip_interval: Duration,
    /// Whether to compare digests with peers that can, before the complete topology is sent. Default `true`.
    pub topology_digest: bool,
    /// Handshake features beyond the mesh's own, for the overlays. 2.8.1 ignores what it does not know. Default empty.
    pub features: BTreeMap<String, String>,
}

impl Config {
    /// The defaults of 2.8.1 for a peer of this identity.
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
            min_protocol: 1,
            overlays: Vec::new(),
            gossip_interval: Duration::from_secs(30),
            topology_digest: true,
            features: BTreeMap::new(),
        }
    }

    pub(crate) fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted_subnets.iter().any(|subnet| subnet.contains(ip))
    }
}
