//! Stand-in until merged.
use weave_types::{PeerName, PeerUid, ShortId};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    pub name: PeerName,
    pub nickname: String,
    pub uid: PeerUid,
    pub version: u64,
    pub short_id: Option<ShortId>,
    pub connections: Vec<ConnectionRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionRecord {
    pub name: PeerName,
    pub remote_tcp_addr: String,
    pub outbound: bool,
    pub established: bool,
}
