use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use weave_types::{PeerName, PeerUid, ShortId};

/// What is known about a peer: its own claims, spread by topology gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Free text, need not be unique. Empty for a placeholder.
    pub nickname: Arc<str>,
    /// Incarnation; 0 for a placeholder, a peer only heard of as somebody's neighbour.
    pub uid: PeerUid,
    /// Age of this record, counted by the peer itself.
    pub version: u64,
    /// `None`: too old to have one, or placeholder.
    pub short_id: Option<ShortId>,
    /// Its connections as it reports them, ascending by the remote peer's name.
    pub links: Vec<Link>,
    /// Our connections (from step 3 of docs/spec/mesh.md 4.8 on) that keep the record alive; ourself counts as one.
    pub(crate) references: u32,
}

impl Peer {
    pub(crate) fn placeholder() -> Peer {
        Peer {
            nickname: Arc::from(""),
            uid: PeerUid(0),
            version: 0,
            short_id: None,
            links: Vec::new(),
            references: 0,
        }
    }
}

/// One entry of a peer's connection list. Kept small: a large mesh holds tens of thousands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The peer at the other end.
    pub peer: PeerName,
    /// The remote end as the reporting peer sees it: the address it dialled, or the source address it accepted.
    pub address: Address,
    /// Made by the reporting peer.
    pub outbound: bool,
    /// The reporting peer has verified the data path too.
    pub established: bool,
}

/// The text of a socket address as it is gossiped. Any text of any peer is kept as it came; the usual kind takes no
/// memory of its own.
#[derive(Clone, PartialEq, Eq)]
pub enum Address {
    /// `a.b.c.d:port`.
    V4(Ipv4Addr, u16),
    /// Everything else.
    Text(Arc<str>),
}

impl Address {
    /// As text came in. Only what prints as it was read is stored as numbers.
    pub fn from_text(text: &str) -> Address {
        match text.parse::<SocketAddrV4>() {
            Ok(a) if a.to_string() == text => Address::V4(*a.ip(), a.port()),
            _ => Address::Text(text.into()),
        }
    }

    /// The address, if it is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Address::V4(ip, port) => Some(SocketAddr::from((*ip, *port))),
            Address::Text(text) => text.parse().ok(),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Address {
        match addr {
            SocketAddr::V4(a) => Address::V4(*a.ip(), a.port()),
            SocketAddr::V6(a) => Address::Text(a.to_string().into()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::V4(ip, port) => write!(f, "{ip}:{port}"),
            Address::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `NAME(NICK)`, as people see a peer (docs/spec/mesh.md 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLabel {
    /// The name.
    pub name: PeerName,
    /// The nickname.
    pub nickname: Arc<str>,
}

impl fmt::Display for PeerLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name, self.nickname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_text() {
        for text in
            ["10.0.0.1:6783", "010.0.0.1:6783", "10.0.0.1:06783", "[fd00::3]:1", "", "host:x", "1.2.3.4"]
        {
            assert_eq!(Address::from_text(text).to_string(), text);
        }
        assert_eq!(Address::from_text("10.0.0.1:6783"), Address::V4(Ipv4Addr::new(10, 0, 0, 1), 6783));
        assert!(matches!(Address::from_text("10.0.0.1:06783"), Address::Text(_)));
        assert_eq!(Address::from_text("[fd00::3]:1").socket(), "[fd00::3]:1".parse().ok());
    }

    #[test]
    fn a_link_is_small() {
        assert!(size_of::<Link>() <= 32, "{}", size_of::<Link>());
    }
}
