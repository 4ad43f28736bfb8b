use std::fmt;
use std::net::Ipv4Addr;

use thiserror::Error;
use weave_types::PeerName;

use crate::address::AddrRange;
use crate::ring::RingError;

/// Why a message was not merged. Nothing has changed except nicknames and disputed ranges.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GossipError {
    /// The message is malformed: the connection that it came over should be closed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The sender and this peer disagree about addresses. The connection stays, so that containers remain connected;
    /// the conflict is in [`Status::conflicts`](crate::Status::conflicts) until it is resolved.
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// A message, or stored state, that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The stream contains no value.
    #[error("EOF")]
    Empty,
    /// The message is not a gob stream.
    #[error(transparent)]
    Gob(#[from] weave_gob::DecodeError),
    /// A value of another type than expected.
    #[error(transparent)]
    Value(#[from] weave_gob::FieldError),
    /// A number above 48 bits in the place of a peer name.
    #[error("peer name {0:#x} has more than 48 bits")]
    PeerName(u64),
    /// The ring is invalid.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// A peer name with its nickname. Displayed as `name(nickname)`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamedPeer {
    /// The peer's name.
    pub name: PeerName,
    /// The peer's nickname; empty if not known.
    pub nickname: String,
}

impl fmt::Display for NamedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)?;
        if self.nickname.is_empty() { Ok(()) } else { write!(f, "({})", self.nickname) }
    }
}

/// A disagreement of two peers about addresses. The texts are those of 2.8.1 where it has one; [`Conflict::remedy`]
/// says what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Conflict {
    /// Two clusters that were created separately have met.
    #[error(
        "IP allocation was seeded by different peers (received: [{}], ours: [{}])",
        joined(received),
        joined(ours)
    )]
    Seeds {
        /// The peers among which the sender's range was first divided.
        received: Vec<NamedPeer>,
        /// The peers among which this peer's range was first divided.
        ours: Vec<NamedPeer>,
    },
    /// The peers have different allocation ranges.
    #[error(
        "Incompatible IP allocation ranges (received: {}, ours: {})",
        received.as_cidr(),
        ours.as_cidr()
    )]
    Range {
        /// The sender's range.
        received: AddrRange,
        /// This peer's range.
        ours: AddrRange,
    },
    /// E1: the same version of an entry has different owners, and this peer uses addresses of it.
    #[error(
        "Inconsistent entries for {}: owned by {ours} but incoming message says {theirs}",
        Ipv4Addr::from(*token)
    )]
    Inconsistent {
        /// First address of the range.
        token: u32,
        /// The owner as known here.
        ours: PeerName,
        /// The owner according to the message.
        theirs: PeerName,
    },
    /// E2: part of an own range with addresses in use has another owner.
    #[error("Peer {theirs} says it owns the IP range from {}, which I think I own", Ipv4Addr::from(*token))]
    Split {
        /// First address of that part.
        token: u32,
        /// The owner according to the message.
        theirs: PeerName,
    },
    /// A peer has taken over the range before an own range without knowing that part of it had been given to this
    /// peer.
    #[error(
        "Peer {theirs} took over the IP range before {} without knowing that it ends where mine begins",
        Ipv4Addr::from(*token)
    )]
    Overlooked {
        /// First address of the own range.
        token: u32,
        /// The owner according to the message.
        theirs: PeerName,
    },
    /// E3: an own range with addresses in use was given to another peer at a later version.
    #[error(
        "Received update for IP range I own at {} v{version}: incoming message says owner {theirs} v{their_version}",
        Ipv4Addr::from(*token)
    )]
    Taken {
        /// First address of the range.
        token: u32,
        /// The version known here.
        version: u32,
        /// The owner according to the message.
        theirs: PeerName,
        /// The version according to the message.
        their_version: u32,
    },
    /// The merged ring would be invalid.
    #[error("Merge of incoming data causes: {0}")]
    Result(RingError),
}

impl Conflict {
    /// The other owner of the disputed range according to the message, if the conflict is about a range.
    pub fn claimant(&self) -> Option<PeerName> {
        match self {
            Conflict::Inconsistent { theirs, .. }
            | Conflict::Split { theirs, .. }
            | Conflict::Overlooked { theirs, .. }
            | Conflict::Taken { theirs, .. } => Some(*theirs),
            Conflict::Seeds { .. } | Conflict::Range { .. } | Conflict::Result(_) => None,
        }
    }

    /// What an operator can do about the conflict.
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

fn joined(peers: &[NamedPeer]) -> String {
    let texts: Vec<String> = peers.iter().map(NamedPeer::to_string).collect();
    texts.join(" ")
}
