use std::fmt;
use std::time::Duration;

use thiserror::Error;
use weave_types::{Cidr, PeerName};

use crate::address::{AddrRange, Subnet};
use crate::gossip_error::Conflict;
use crate::owned::{Container, Record};
use crate::paxos::Election;
use crate::ring::Ring;

/// Identifies a request. The driver chooses it and never reuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A request without a container id. The address is recorded under its own text, which is then the id to release it
/// with.
pub const NO_ID: &str = "_";

/// What the driver of an [`Allocator`](crate::Allocator) has to do, in this order.
///
/// Each output is carried out before the next one; in particular, everything after a [`Persist`] depends on it. A
/// crash between any two outputs is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Store this before the next output.
    Persist(Persist),
    /// Send this to one peer over channel [`CHANNEL`](crate::CHANNEL). It may be lost.
    Unicast {
        /// The destination.
        to: PeerName,
        /// An encoded [`Unicast`](crate::message::Unicast).
        payload: Vec<u8>,
    },
    /// Send this to all peers over channel [`CHANNEL`](crate::CHANNEL).
    Broadcast(Vec<u8>),
    /// The answer to a request; each request gets exactly one.
    Done(RequestId, Result<Answer, RequestError>),
    /// Something to log.
    Event(Event),
}

/// State that has to survive a restart; [`Persist::durability`] says how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Remove everything stored before: it belongs to another name or range, or is unusable.
    Clear,
    /// Replaces the stored ring.
    Ring(Ring),
    /// Replaces the stored election; `None` removes it.
    Election(Option<Election>),
    /// Replaces the stored addresses of a container.
    Owned {
        /// The key of the record.
        container: Container,
        /// The container's addresses; `None` if it has none left.
        record: Option<Record>,
    },
}

/// How well something has to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk before the next output: survives a power loss.
    Synced,
    /// Written to the kernel before the next output and on the disk within a second: survives the process. A power
    /// loss ends the containers, too.
    Record,
}

impl Persist {
    /// The durability that this state needs.
    pub fn durability(&self) -> Durability {
        match self {
            Persist::Clear | Persist::Ring(_) | Persist::Election(_) => Durability::Synced,
            Persist::Owned { .. } => Durability::Record,
        }
    }
}

/// The successful answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address that the container now has, or had before, with the prefix length of the requested subnet.
    Allocated(Cidr),
    /// The container may use the address that it claimed.
    Claimed {
        /// The address is owned by this peer. If `false`, its owner is not known yet or cannot be reached, and the
        /// claim continues in the background; only with `accept_unknown`.
        settled: bool,
    },
    /// There is a ring.
    Primed,
}

/// Why a request failed. The texts are those of 2.8.1 without the prefix of the HTTP interface.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// Cancelled by the caller, by the death of the container, or because this peer is leaving.
    #[error(transparent)]
    Cancelled(Cancelled),
    /// The subnet does not overlap the allocation range.
    #[error("range {subnet} out of bounds: {range}")]
    OutOfBounds {
        /// The requested subnet.
        subnet: Subnet,
        /// The allocation range.
        range: Subnet,
    },
    /// Only IPv4 addresses can be claimed.
    #[error("invalid Non-IPv4 address not supported: {0}")]
    NotIpv4(Cidr),
    /// Another container of this host has an address outside the allocation range.
    #[error("address {cidr} already in use{}", holder.as_ref().map(|holder| format!(" by {holder}")).unwrap_or_default())]
    InUse {
        /// The claimed address.
        cidr: Cidr,
        /// The container that has it; `None` if it was claimed without an id.
        holder: Option<Container>,
    },
    /// Another container of this host has an address inside the allocation range.
    #[error("address {cidr} is already owned by {holder}")]
    Owned {
        /// The claimed address.
        cidr: Cidr,
        /// The container that has it.
        holder: Container,
    },
    /// Another peer owns the address.
    #[error("address {cidr} is owned by other peer {}", owner_text(*peer, nickname, *unreachable))]
    OtherPeer {
        /// The claimed address.
        cidr: Cidr,
        /// The owner.
        peer: PeerName,
        /// The owner's nickname; may be empty.
        nickname: String,
        /// The owner could not be asked.
        unreachable: bool,
    },
}

/// The kind of request that was cancelled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Cancelled {
    /// An allocation for this container.
    #[error("Allocate request for {0} cancelled")]
    Allocate(Container),
    /// A claim of this container and address.
    #[error("Claim request for {1} by {0} cancelled")]
    Claim(Container, Cidr),
    /// A wait for the ring.
    #[error("prime cancelled")]
    Prime,
}

fn owner_text(peer: PeerName, nickname: &str, unreachable: bool) -> String {
    let nickname = if nickname.is_empty() { String::new() } else { format!(" ({nickname})") };
    let reason = if unreachable { format!(" - unknown relay destination: {peer}") } else { String::new() };
    format!("{peer}{nickname}{reason}")
}

/// Why a release failed, in the words of 2.8.1. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ReleaseError {
    /// The container does not have that address.
    #[error("Free: address {addr} not found for {container}")]
    NotFound {
        /// The container of the request.
        container: Container,
        /// The address of the request.
        addr: std::net::IpAddr,
    },
    /// The container has no address.
    #[error("Delete: no addresses for {0}")]
    NoAddresses(Container),
}

/// Why a peer was not removed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RemoveError {
    /// The peer is connected, directly or not, and may be using its addresses.
    #[error(
        "peer {peer}({nickname}) is reachable and may be using its addresses: run 'weave reset' on it, or 'weave rmpeer \
         --force' here if that is what you want"
    )]
    Reachable {
        /// The name of the peer.
        peer: PeerName,
        /// The nickname of the peer; may be empty.
        nickname: String,
    },
}

/// The result of leaving the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// This peer owned no range, or no other peer ever knew of its ranges.
    Nothing,
    /// The ranges were given to a reachable peer, which does not confirm that. Disputed ranges were given to their
    /// claimant.
    To {
        /// The new owner; if all ranges were disputed, the claimant of the first one.
        peer: PeerName,
        /// The nickname of that peer; may be empty.
        nickname: String,
        /// Number of addresses transferred.
        addresses: u32,
    },
    /// No peer was reachable. All other peers count the ranges as this peer's until it is removed with `rmpeer`.
    NoPeer {
        /// Number of addresses not transferred.
        addresses: u32,
    },
}

/// An event for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Stored state is not used.
    LoadedDiscarded(DiscardReason),
    /// Stored state is used.
    LoadedRing {
        /// Number of addresses of the range that this peer owns.
        owned: u32,
    },
    /// An election was started here.
    Electing {
        /// Number of electors that must agree; 0 for an observer.
        quorum: u32,
        /// How the quorum was determined.
        source: QuorumSource,
    },
    /// The ring exists from now on.
    RingEstablished {
        /// The peers among which the range was first divided.
        seeds: Vec<PeerName>,
    },
    /// More electors take part than the configured number of peers allows. Separate groups may reach different
    /// decisions.
    QuorumTooSmall {
        /// The quorum of this peer.
        quorum: u32,
        /// Number of electors seen.
        known: u32,
    },
    /// A range was given to another peer.
    Donated {
        /// The new owner.
        to: PeerName,
        /// The range given.
        range: AddrRange,
    },
    /// A peer's state contradicts this peer's. Emitted once per peer and conflict.
    Conflict {
        /// The peer that sent the state.
        peer: PeerName,
        /// The contradiction; it names a remedy.
        conflict: Conflict,
    },
    /// The contradiction is resolved.
    ConflictOver {
        /// The peer that had sent the contradicting state.
        peer: PeerName,
    },
    /// A received state gives unused ranges of this peer to another one; they are now that peer's.
    Yielded {
        /// Number of addresses lost.
        addresses: u32,
    },
    /// A claim without a waiting caller failed: the address may be used twice.
    PreclaimFailed {
        /// The container that uses the address.
        container: Container,
        /// The address that could not be claimed.
        cidr: Cidr,
        /// The reason.
        error: RequestError,
    },
    /// The addresses of a container that has ended were released.
    Released {
        /// The container that has ended.
        container: Container,
        /// Its former addresses.
        cidrs: Vec<Cidr>,
    },
    /// A request has waited for longer than a tick.
    Waiting {
        /// The request that waits.
        request: RequestId,
        /// Time since the request.
        waited: Duration,
    },
}

/// How the quorum was determined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumSource {
    /// Computed from the configured number of peers (`--ipalloc-init consensus=N`).
    Count(u32),
    /// Computed from the number of configured peer addresses, not counting this peer.
    Targets(u32),
    /// There is no quorum: an observer does not vote.
    Observer,
}

impl QuorumSource {
    /// The assumed number of peers.
    pub fn peers(self) -> u32 {
        match self {
            QuorumSource::Count(n) => n,
            QuorumSource::Targets(n) => n.saturating_add(1),
            QuorumSource::Observer => 0,
        }
    }

    /// The number of electors that must agree: more than half of the peers.
    pub fn quorum(self) -> u32 {
        match self {
            QuorumSource::Observer => 0,
            other => other.peers() / 2 + 1,
        }
    }
}

impl fmt::Display for QuorumSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuorumSource::Count(n) => write!(f, "the peer count given at launch, {n}"),
            QuorumSource::Targets(n) => write!(f, "the {n} peer addresses given, and this peer"),
            QuorumSource::Observer => f.write_str("other peers: this one is an observer"),
        }
    }
}

/// Why stored state is not used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DiscardReason {
    /// It contains no ring.
    #[error("no valid persisted data")]
    NoRing,
    /// It belongs to a peer of another name.
    #[error("deleting persisted data for peername {0}")]
    Name(PeerName),
    /// It belongs to another allocation range.
    #[error("deleting persisted data for IPAM range {}", .0.as_cidr())]
    Range(AddrRange),
    /// The ring is invalid; contains the reason.
    #[error("deleting persisted data: {0}")]
    Invalid(String),
}
