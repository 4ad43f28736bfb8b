use std::fmt;
use std::str::FromStr;

use thiserror::Error;
use weave_types::{PeerName, PeerUid};

use crate::address::Subnet;

/// Configuration of an [`Allocator`](crate::Allocator).
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// This peer's name.
    pub name: PeerName,
    /// This peer's UID: its identity in elections, unless a stored election is resumed.
    pub uid: PeerUid,
    /// This peer's nickname, shown by other peers.
    pub nickname: String,
    /// The allocation range (`--ipalloc-range`), the same on all peers.
    pub range: Subnet,
    /// The subnet of allocations that name none (`--ipalloc-default-subnet`). It must overlap the range.
    pub default_subnet: Subnet,
    /// How the range is first divided.
    pub init: Init,
    /// Compatibility decisions; only the simulator changes them.
    pub policy: Policy,
}

impl Config {
    /// A peer that takes part in elections, with the range as default subnet.
    pub fn new(name: PeerName, uid: PeerUid, nickname: impl Into<String>, range: Subnet) -> Config {
        Config {
            name,
            uid,
            nickname: nickname.into(),
            range,
            default_subnet: range,
            init: Init::Consensus(None),
            policy: Policy::default(),
        }
    }

    /// Checks what the types do not exclude.
    ///
    /// # Errors
    /// The default subnet does not overlap the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.range.range().overlaps(self.default_subnet.range()) {
            Ok(())
        } else {
            Err(ConfigError { subnet: self.default_subnet, range: self.range })
        }
    }
}

/// Decisions in which 2.8.1 differs from this implementation. The default is what this implementation does. The simulator sets
/// them in peers that stand for 2.8.1, to test mixed clusters.
///
/// The simulator imitates the rest of 2.8.1 around the allocator: such a peer forgets its election when it restarts
/// (docs/spec/ipam.md 15.11) and ends when it loses part of its space (15.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Every change of the ring leads to the next request for space immediately, without waiting for the answer to the
    /// last one (docs/spec/ipam.md 15.8).
    pub unlimited_requests: bool,
    /// As a donor: gives the ends of a subnet, which the requester cannot use (docs/spec/ipam.md 15.8), gives to
    /// unreachable peers, and denies requests for ranges that it does not own (8.10).
    pub unchecked_donations: bool,
    /// A denial fails all claims in its range, even if another peer owns the address (docs/spec/ipam.md 15.7).
    pub denial_fails_all_claims: bool,
    /// Addresses that another peer claims to own are handed out (docs/spec/ipam.md 8.11).
    pub use_disputed: bool,
    /// A conflict closes the connection over which it was received (docs/spec/ipam.md 8.11).
    pub disconnect_on_conflict: bool,
    /// A donation is sent before it is stored; a crash between the two loses it (docs/spec/ipam.md 9).
    pub send_before_persist: bool,
}

impl Policy {
    /// Everything that 2.8.1 does differently, except that donations are stored before they are sent.
    pub const V2_8_1: Policy = Policy {
        unlimited_requests: true,
        unchecked_donations: true,
        denial_fails_all_claims: true,
        use_disputed: true,
        disconnect_on_conflict: true,
        send_before_persist: false,
    };
}

/// The default subnet does not overlap the allocation range.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("IP address allocation default subnet {subnet} does not overlap with allocation range {range}")]
pub struct ConfigError {
    /// The configured default subnet.
    pub subnet: Subnet,
    /// The configured allocation range.
    pub range: Subnet,
}

/// How the range is first divided (`--ipalloc-init`, docs/spec/ipam.md 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// The peers elect the division. The quorum is computed from this number of peers, or estimated from the configured peer
    /// addresses.
    Consensus(Option<u32>),
    /// The range is divided among these peers, which every peer is given.
    Seed(Vec<PeerName>),
    /// Other peers elect the division; this peer never votes.
    Observer,
}

impl FromStr for Init {
    type Err = ParseInitError;

    fn from_str(text: &str) -> Result<Init, ParseInitError> {
        let (mode, argument) = match text.split_once('=') {
            Some((mode, argument)) => (mode, Some(argument)),
            None => (text, None),
        };
        match (mode, argument) {
            ("consensus", None) => Ok(Init::Consensus(None)),
            ("consensus", Some(count)) => {
                let count: i64 = count.parse().map_err(|_| ParseInitError::BadCount(count.to_owned()))?;
                Ok(Init::Consensus(u32::try_from(count).ok().filter(|&count| count > 0)))
            }
            ("seed", None) => Err(ParseInitError::NoSeedList),
            ("seed", Some("")) => Ok(Init::Consensus(None)),
            ("seed", Some(list)) => {
                let names: Result<Vec<PeerName>, _> = list.split(',').map(str::parse).collect();
                names.map(Init::Seed).map_err(|error| ParseInitError::BadSeed(error.to_string()))
            }
            ("observer", None) => Ok(Init::Observer),
            ("observer", Some(_)) => Err(ParseInitError::ObserverParameter),
            _ => Err(ParseInitError::UnknownMode(mode.to_owned())),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Init::Consensus(None) => f.write_str("consensus"),
            Init::Consensus(Some(count)) => write!(f, "consensus={count}"),
            Init::Observer => f.write_str("observer"),
            Init::Seed(names) => {
                f.write_str("seed=")?;
                for (index, name) in names.iter().enumerate() {
                    write!(f, "{}{name}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

/// Why the value of `--ipalloc-init` is invalid. 2.8.1 puts `Unable to parse --ipalloc-init: ` before the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseInitError {
    /// Neither `consensus`, `seed` nor `observer`.
    #[error("unknown mode: {0}")]
    UnknownMode(String),
    /// `seed` without `=`.
    #[error("seed mode requires peer name list")]
    NoSeedList,
    /// An invalid peer name in the list; contains the reason.
    #[error("bad seed parameter: error parsing peer names: {0}")]
    BadSeed(String),
    /// The count is not a number.
    #[error("bad consensus parameter: strconv.Atoi: parsing {0:?}: invalid syntax")]
    BadCount(String),
    /// `observer=`.
    #[error("observer mode takes no parameter")]
    ObserverParameter,
}
