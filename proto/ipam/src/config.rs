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
    /// A planted bug, for tests of tests.
    #[cfg(feature = "mutants")]
    pub mutation: Option<crate::Mutation>,
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
            #[cfg(feature = "mutants")]
            mutation: None,
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

    #[cfg(feature = "mutants")]
    pub(crate) fn mutant(&self, mutation: crate::Mutation) -> bool {
        use crate::Mutation::{DonateBeforePersist, Legacy, LegacyEarly};
        match self.mutation {
            Some(LegacyEarly) if mutation == DonateBeforePersist => true,
            Some(Legacy | LegacyEarly) if mutation.is_legacy() => true,
            only => only == Some(mutation),
        }
    }

    #[cfg(not(feature = "mutants"))]
    #[inline]
    pub(crate) fn mutant(&self, _: crate::Mutation) -> bool {
        false
    }
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
