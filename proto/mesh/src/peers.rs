use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use weave_types::{PeerName, PeerUid, ShortId};

/// The record of a peer, which it publishes by topology gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Nickname, which need not be unique. Empty for a placeholder.
    pub nickname: Arc<str>,
    /// Identifies the run of the peer's process; 0 for a placeholder.
    pub uid: PeerUid,
    /// Version of this record, raised by the peer at each change.
    pub version: u64,
    /// Short id; `None` for old peers and placeholders.
    pub short_id: Option<ShortId>,
    /// The peer's connections as it reports them, ascending by the name of the other end.
    pub connections: Vec<PeerConnection>,
    /// Number of our connections that keep the record (from step 3 of docs/spec/mesh.md 4.8 on). Our own record has one
    /// more.
    pub(crate) references: u32,
}

impl Peer {
    /// A peer that is only known as another peer's neighbour.
    pub(crate) fn placeholder() -> Peer {
        Peer {
            nickname: Arc::from(""),
            uid: PeerUid(0),
            version: 0,
            short_id: None,
            connections: Vec::new(),
            references: 0,
        }
    }

    pub(crate) fn record_version(&self) -> RecordVersion {
        RecordVersion { version: self.version, uid: self.uid }
    }
}

/// Orders the records of one peer: the record with the higher version, then with the higher UID, is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RecordVersion {
    pub(crate) version: u64,
    pub(crate) uid: PeerUid,
}

/// A connection as the peer at one of its ends reports it. A large mesh has tens of thousands, so the size matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConnection {
    /// The peer at the other end.
    pub peer: PeerName,
    /// The remote end as the reporting peer sees it: the address that it dialled, or the source address that it accepted.
    pub address: GossipAddress,
    /// The reporting peer dialled.
    pub outbound: bool,
    /// The reporting peer has verified the data path.
    pub established: bool,
}

/// The text of a socket address in topology gossip. Any text is kept unchanged; an IPv4 address needs no allocation.
#[derive(Clone, PartialEq, Eq)]
pub enum GossipAddress {
    /// `a.b.c.d:port`.
    V4(Ipv4Addr, u16),
    /// Any other text.
    Text(Arc<str>),
}

impl GossipAddress {
    /// Stores a text. Only an address that prints as the same text is stored as numbers.
    pub fn from_text(text: &str) -> GossipAddress {
        // The parser of the standard library accepts leading zeros in the port only.
        let has_padding =
            text.rsplit_once(':').is_some_and(|(_, port)| port.len() > 1 && port.starts_with('0'));
        match text.parse::<SocketAddrV4>() {
            Ok(a) if !has_padding => GossipAddress::V4(*a.ip(), a.port()),
            _ => GossipAddress::Text(text.into()),
        }
    }

    /// Appends the text. Ten times as fast as `Display`, since large meshes gossip millions of addresses.
    pub(crate) fn append_to(&self, out: &mut Vec<u8>) {
        match self {
            GossipAddress::V4(ip, port) => {
                for (octet, end) in ip.octets().into_iter().zip(*b"...:") {
                    append_decimal(out, octet.into());
                    out.push(end);
                }
                append_decimal(out, *port);
            }
            GossipAddress::Text(text) => out.extend_from_slice(text.as_bytes()),
        }
    }

    /// The socket address, if the text is one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            GossipAddress::V4(ip, port) => Some(SocketAddr::from((*ip, *port))),
            GossipAddress::Text(text) => text.parse().ok(),
        }
    }
}

fn append_decimal(out: &mut Vec<u8>, mut number: u16) {
    let mut digits = [b'0'; 5];
    let mut first = digits.len();
    while number > 0 || first == digits.len() {
        first -= 1;
        digits[first] += (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&digits[first..]);
}

impl From<SocketAddr> for GossipAddress {
    fn from(addr: SocketAddr) -> GossipAddress {
        match addr {
            SocketAddr::V4(a) => GossipAddress::V4(*a.ip(), a.port()),
            SocketAddr::V6(a) => GossipAddress::Text(a.to_string().into()),
        }
    }
}

impl fmt::Display for GossipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GossipAddress::V4(ip, port) => write!(f, "{ip}:{port}"),
            GossipAddress::Text(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for GossipAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A peer as it is shown to people, `NAME(NICKNAME)` (docs/spec/mesh.md 2.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLabel {
    /// Name of the peer.
    pub name: PeerName,
    /// Nickname of the peer.
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
        for text in [
            "10.0.0.1:6783",
            "255.0.100.20:65535",
            "0.0.0.0:0",
            "010.0.0.1:6783",
            "10.0.0.1:06783",
            "10.0.0.1:00",
            "[fd00::3]:1",
            "",
            "host:x",
            "1.2.3.4",
        ] {
            let address = GossipAddress::from_text(text);
            assert_eq!(address.to_string(), text);
            let mut appended = Vec::new();
            address.append_to(&mut appended);
            assert_eq!(appended, text.as_bytes());
        }
        assert_eq!(
            GossipAddress::from_text("10.0.0.1:6783"),
            GossipAddress::V4(Ipv4Addr::new(10, 0, 0, 1), 6783)
        );
        assert!(matches!(GossipAddress::from_text("10.0.0.1:06783"), GossipAddress::Text(_)));
        assert_eq!(GossipAddress::from_text("[fd00::3]:1").socket(), "[fd00::3]:1".parse().ok());
    }

    #[test]
    fn a_peer_connection_takes_32_bytes_at_most() {
        assert!(size_of::<PeerConnection>() <= 32, "{}", size_of::<PeerConnection>());
    }
}
