use std::fmt;
use std::net::Ipv4Addr;

use weave_types::PeerName;

use crate::address::AddrRange;
use crate::ring::RingError;

/// Why a message was not taken over. Nothing has changed then, but for nicknames and what is in doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GossipError {
    /// Not a message of this channel.
    Malformed(Malformed),
    /// It contradicts what we know.
    Conflict(Conflict),
}

impl fmt::Display for GossipError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GossipError::Malformed(error) => error.fmt(f),
            GossipError::Conflict(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for GossipError {}

impl From<Malformed> for GossipError {
    fn from(error: Malformed) -> GossipError {
        GossipError::Malformed(error)
    }
}

/// The sender's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// There is no value in the stream.
    Empty,
    /// Not a gob stream.
    Gob(weave_gob::DecodeError),
    /// Another value than this channel carries.
    Value(weave_gob::FieldError),
    /// A number above 48 bits where a peer name stands.
    PeerName(u64),
    /// The ring breaks the rules of rings.
    Ring(RingError),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Empty => f.write_str("EOF"),
            Malformed::Gob(error) => error.fmt(f),
            Malformed::Value(error) => error.fmt(f),
            Malformed::PeerName(number) => write!(f, "peer name {number:#x} has more than 48 bits"),
            Malformed::Ring(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for Malformed {}

impl From<weave_gob::DecodeError> for Malformed {
    fn from(error: weave_gob::DecodeError) -> Malformed {
        Malformed::Gob(error)
    }
}

impl From<weave_gob::FieldError> for Malformed {
    fn from(error: weave_gob::FieldError) -> Malformed {
        Malformed::Value(error)
    }
}

/// A peer with its nickname, as messages show it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPeer {
    /// The peer.
    pub name: PeerName,
    /// Its nickname; empty if not known.
    pub nickname: String,
}

impl fmt::Display for NamedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        if self.nickname.is_empty() { Ok(()) } else { write!(f, "({})", self.nickname) }
    }
}

/// Two peers disagree about addresses. Shown in 2.8.1's words; [`Conflict::remedy`] says what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Two clusters that began apart have met.
    Seeds {
        /// Those among whom the other one was divided first.
        received: Vec<NamedPeer>,
        /// Those among whom ours was.
        ours: Vec<NamedPeer>,
    },
    /// The peers were given different ranges.
    Range {
        /// The other one.
        received: AddrRange,
        /// Ours.
        ours: AddrRange,
    },
    /// E1: at the same version, the owner differs, and it matters to us.
    Inconsistent {
        /// First address of the range.
        token: u32,
        /// Owner according to us.
        ours: PeerName,
        /// Owner according to the message.
        theirs: PeerName,
    },
    /// E2: part of a range of ours, with addresses in use, is said to be another's.
    Split {
        /// First address of that part.
        token: u32,
        /// Owner according to the message.
        theirs: PeerName,
    },
    /// A range of ours is counted to another's by one that took that over without having heard that we were given part of it.
    Overlooked {
        /// First address of the range.
        token: u32,
        /// Owner according to the message.
        theirs: PeerName,
    },
    /// E3: a range of ours, with addresses in use, is said to have been given to another later.
    Taken {
        /// First address of the range.
        token: u32,
        /// Our version.
        version: u32,
        /// Owner according to the message.
        theirs: PeerName,
        /// Version according to the message.
        their_version: u32,
    },
    /// What would come of merging breaks the rules of rings.
    Result(RingError),
}

impl Conflict {
    /// Who owns the range in question according to the message, where it is about one.
    pub fn claimant(&self) -> Option<PeerName> {
        match self {
            Conflict::Inconsistent { theirs, .. }
            | Conflict::Split { theirs, .. }
            | Conflict::Overlooked { theirs, .. }
            | Conflict::Taken { theirs, .. } => Some(*theirs),
            Conflict::Seeds { .. } | Conflict::Range { .. } | Conflict::Result(_) => None,
        }
    }

    /// What people can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Conflict::Seeds { .. } => {
                "two clusters have met: run 'weave reset' on the peers of one of them and launch them again with a peer of \
                 the other, then 'weave prime'"
            }
            Conflict::Range { .. } => {
                "give all peers the same --ipalloc-range: 'weave stop' and launch again where it differs"
            }
            Conflict::Inconsistent { .. }
            | Conflict::Split { .. }
            | Conflict::Overlooked { .. }
            | Conflict::Taken { .. } => {
                "the same range was given to two peers, probably by 'weave rmpeer' of a peer that was running: run 'weave \
                 reset' on one of them, or 'weave rmpeer' of the other owner here if it is gone for good; until then the range in \
                 doubt is not handed out here"
            }
            Conflict::Result(_) => {
                "wait for newer gossip; if it stays, run 'weave reset' on the peer that sends this"
            }
        }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |names: &[NamedPeer]| {
            let texts: Vec<String> = names.iter().map(NamedPeer::to_string).collect();
            format!("[{}]", texts.join(" "))
        };
        match self {
            Conflict::Seeds { received, ours } => write!(
                f,
                "IP allocation was seeded by different peers (received: {}, ours: {})",
                list(received),
                list(ours)
            ),
            Conflict::Range { received, ours } => write!(
                f,
                "Incompatible IP allocation ranges (received: {}, ours: {})",
                received.as_cidr(),
                ours.as_cidr()
            ),
            Conflict::Inconsistent { token, ours, theirs } => write!(
                f,
                "Inconsistent entries for {}: owned by {ours} but incoming message says {theirs}",
                Ipv4Addr::from(*token)
            ),
            Conflict::Split { token, theirs } => write!(
                f,
                "Peer {theirs} says it owns the IP range from {}, which I think I own",
                Ipv4Addr::from(*token)
            ),
            Conflict::Overlooked { token, theirs } => write!(
                f,
                "Peer {theirs} took over the IP range before {} without knowing that it ends where mine begins",
                Ipv4Addr::from(*token)
            ),
            Conflict::Taken { token, version, theirs, their_version } => write!(
                f,
                "Received update for IP range I own at {} v{version}: incoming message says owner {theirs} \
                 v{their_version}",
                Ipv4Addr::from(*token)
            ),
            Conflict::Result(fault) => write!(f, "Merge of incoming data causes: {fault}"),
        }
    }
}

impl std::error::Error for Conflict {}
