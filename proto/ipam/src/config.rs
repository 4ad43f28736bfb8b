use std::fmt;
use std::str::FromStr;

use weave_types::{PeerName, PeerUid};

use crate::address::Subnet;

/// What an [`Allocator`](crate::Allocator) is told at its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Our name.
    pub name: PeerName,
    /// Our incarnation: stands for us in elections, unless a stored election continues.
    pub uid: PeerUid,
    /// What people call us; other peers show it.
    pub nickname: String,
    /// The range that all peers share (`--ipalloc-range`). The same on all.
    pub range: Subnet,
    /// Where an allocation is made that names no subnet. It should overlap the range.
    pub default_subnet: Subnet,
    /// How the ring comes to be.
    pub init: Init,
    /// Decisions in which 2.8.1 differs; only the simulator changes them.
    pub policy: Policy,
}

impl Config {
    /// A peer that elects, with the range as default subnet.
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

    /// Checks what no type excludes.
    ///
    /// # Errors
    /// The default subnet lies outside the range.
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
    /// Every change of the ring leads to the next request for space at once, without waiting for the answer to the last
    /// one (docs/spec/ipam.md 15.8).
    pub unlimited_requests: bool,
    /// As a donor: gives the ends of a subnet, which the requester cannot use (docs/spec/ipam.md 15.8), gives to peers that
    /// it cannot reach, and denies requests for ranges that it does not own (8.10).
    pub unchecked_donations: bool,
    /// A denial fails all claims in its range, also those of which another peer is the owner (docs/spec/ipam.md 15.7).
    pub denial_fails_all_claims: bool,
    /// Addresses of which another peer says that it owns them are handed out (docs/spec/ipam.md 8.11).
    pub use_disputed: bool,
    /// A conflict ends the connection over which it was received (docs/spec/ipam.md 8.11).
    pub disconnect_on_conflict: bool,
    /// A donation is sent before it is stored; a crash in between loses it (docs/spec/ipam.md 9).
    pub send_before_persist: bool,
}

impl Policy {
    /// All that 2.8.1 does differently, but it stores donations before it sends them.
    pub const V2_8_1: Policy = Policy {
        unlimited_requests: true,
        unchecked_donations: true,
        denial_fails_all_claims: true,
        use_disputed: true,
        disconnect_on_conflict: true,
        send_before_persist: false,
    };
}

/// The default subnet lies outside the range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The default subnet.
    pub subnet: Subnet,
    /// The range.
    pub range: Subnet,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "IP address allocation default subnet {} does not overlap with allocation range {}",
            self.subnet, self.range
        )
    }
}

impl std::error::Error for ConfigError {}

/// How the first division of the range is found (`--ipalloc-init`, docs/spec/ipam.md 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Init {
    /// Elect. The number of peers decides the quorum; without one it is guessed from the addresses that we were given.
    Consensus(Option<u32>),
    /// Everybody knows it beforehand: divided among these.
    Seed(Vec<PeerName>),
    /// Never vote, take what the others decide.
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

/// The text after `--ipalloc-init` is not understood. 2.8.1 puts `Unable to parse --ipalloc-init: ` before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParseInitError {
    /// Neither consensus, seed nor observer.
    UnknownMode(String),
    /// `seed` without `=`.
    NoSeedList,
    /// One of the names is none; says which.
    BadSeed(String),
    /// The count is no number.
    BadCount(String),
    /// `observer=`.
    ObserverParameter,
}

impl fmt::Display for ParseInitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ParseInitError::UnknownMode(mode) => write!(f, "unknown mode: {mode}"),
            ParseInitError::NoSeedList => f.write_str("seed mode requires peer name list"),
            ParseInitError::BadSeed(error) => {
                write!(f, "bad seed parameter: error parsing peer names: {error}")
            }
            ParseInitError::BadCount(text) => {
                write!(f, "bad consensus parameter: strconv.Atoi: parsing {text:?}: invalid syntax")
            }
            ParseInitError::ObserverParameter => f.write_str("observer mode takes no parameter"),
        }
    }
}

impl std::error::Error for ParseInitError {}
