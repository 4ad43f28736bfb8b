use std::fmt;
use std::str::FromStr;

/// A peer name: 48 bits, shown like a MAC address. The numeric order decides about routes and the ownership of short ids
/// (docs/spec/mesh.md 2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerName(u64);

impl PeerName {
    /// `00:00:00:00:00:00`, which is no peer's name.
    pub const UNKNOWN: PeerName = PeerName(0);

    /// Reads the number that gob streams carry; `None` if it has more than 48 bits.
    pub const fn from_number(number: u64) -> Option<PeerName> {
        if number >> 48 == 0 { Some(PeerName(number)) } else { None }
    }

    /// Reads six bytes, most significant first.
    pub const fn from_bytes(b: [u8; 6]) -> PeerName {
        PeerName(u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]]))
    }

    /// The number that gob streams carry.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The name as six bytes, most significant first.
    pub const fn to_bytes(self) -> [u8; 6] {
        let b = self.0.to_be_bytes();
        [b[2], b[3], b[4], b[5], b[6], b[7]]
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.to_bytes();
        write!(f, "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0], b[1], b[2], b[3], b[4], b[5])
    }
}

impl fmt::Debug for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a peer name. The message is that of 2.8.1, with Go's quoting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid peer name format: {0:?}")]
pub struct ParsePeerNameError(String);

impl FromStr for PeerName {
    type Err = ParsePeerNameError;

    /// Accepts six groups of one or two hex digits, or one to four groups around one `::`, which stands for groups of
    /// zero (docs/spec/mesh.md 2.1).
    fn from_str(text: &str) -> Result<PeerName, ParsePeerNameError> {
        parse_groups(text).map(PeerName::from_bytes).ok_or_else(|| ParsePeerNameError(text.to_owned()))
    }
}

fn parse_groups(text: &str) -> Option<[u8; 6]> {
    fn groups(part: &str) -> Option<Vec<u8>> {
        if part.is_empty() {
            return Some(Vec::new());
        }
        part.split(':').map(parse_group).collect()
    }
    let mut bytes = [0u8; 6];
    match text.split_once("::") {
        None => {
            let all = groups(text)?;
            bytes = all.try_into().ok()?;
        }
        Some((head, tail)) => {
            let (head, tail) = (groups(head)?, groups(tail)?);
            if !(1..=4).contains(&(head.len() + tail.len())) {
                return None;
            }
            bytes[..head.len()].copy_from_slice(&head);
            bytes[6 - tail.len()..].copy_from_slice(&tail);
        }
    }
    Some(bytes)
}

/// Blanks before a group are accepted, as in 2.8.1 (`peer_names.json`).
fn parse_group(group: &str) -> Option<u8> {
    let group = group.trim_start_matches(' ');
    let valid = (1..=2).contains(&group.len()) && group.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u8::from_str_radix(group, 16).ok()).flatten()
}

/// Identifies one run of a peer's process: random, not zero, chosen at each start (docs/spec/mesh.md 2.3). Zero marks a
/// placeholder: a peer that is only known as another peer's neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PeerUid(pub u64);

/// The 12-bit number that identifies a peer in VXLAN headers (docs/spec/mesh.md 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId(u16);

impl ShortId {
    /// Number of possible short ids.
    pub const COUNT: u16 = 4096;

    /// Returns `None` above 4095.
    pub const fn new(id: u16) -> Option<ShortId> {
        if id < Self::COUNT { Some(ShortId(id)) } else { None }
    }

    /// The number, 0 to 4095.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identifies a connection at both of its ends: the exclusive or of their random `ConnID`s (docs/spec/mesh.md 4.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionUid(pub u64);

/// Identifies a TCP connection, or an attempt to make one, within this process. It is never reused and never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);
