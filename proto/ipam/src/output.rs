use std::fmt;
use std::time::Duration;

use weave_types::{Cidr, PeerName};

use crate::address::{AddrRange, Subnet};
use crate::gossip_error::Conflict;
use crate::owned::Record;
use crate::paxos::Election;
use crate::ring::Ring;

/// Names one request of the driver, which chooses it and does not use it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A container's id; or a label such as `weave:expose`; or [`NO_ID`].
pub type Container = String;

/// `_`: no id. What is obtained under it is filed under its own address, and can be released with that as id.
pub const NO_ID: &str = "_";

/// What an [`Allocator`](crate::Allocator) wants done, in this order.
///
/// Everything that was put out before has to be done first: above all, what follows a [`Persist`] depends on it. A crash
/// between any two outputs is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Store this before anything that follows is done.
    Persist(Persist),
    /// Send this to one peer over channel [`CHANNEL`](crate::CHANNEL). It may be lost.
    Unicast {
        /// To whom.
        to: PeerName,
        /// The message.
        payload: Vec<u8>,
    },
    /// Send this to all peers over channel [`CHANNEL`](crate::CHANNEL).
    Broadcast(Vec<u8>),
    /// The answer to a request; there is exactly one.
    Done(RequestId, Result<Answer, RequestError>),
    /// For the log.
    Event(Event),
}

/// What has to survive a restart. See [`Persist::durability`] for how well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Persist {
    /// Forget all that was stored before: it belongs to another name or range, or there is none.
    Clear,
    /// Replaces the stored ring.
    Ring(Ring),
    /// Replaces the stored election; `None`: there is none any more.
    Election(Option<Election>),
    /// Replaces what a container owns; `None`: nothing any more.
    Owned {
        /// The container.
        container: Container,
        /// Its addresses.
        record: Option<Record>,
    },
}

/// How well something has to be stored (design: two classes of persistence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// On the disk before the next output: it survives a power loss.
    Synced,
    /// In the kernel's hands before the next output, on the disk within a second: it survives the process. After a power
    /// loss the containers are gone, too.
    Record,
}

impl Persist {
    /// How well it has to be stored.
    pub fn durability(&self) -> Durability {
        match self {
            Persist::Clear | Persist::Ring(_) | Persist::Election(_) => Durability::Synced,
            Persist::Owned { .. } => Durability::Record,
        }
    }
}

/// What a request has led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The address, with the prefix length of its subnet. The container had it before, or has it now.
    Allocated(Cidr),
    /// The container may use the address that it claimed. `false`: nothing is known about it yet, and the claim goes on in
    /// silence (only if the caller asked for that).
    Claimed {
        /// It is ours for certain.
        settled: bool,
    },
    /// There is a ring.
    Primed,
}

/// Why a request failed. Shown as 2.8.1 does, without the prefix that the HTTP layer gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestError {
    /// The caller, the container's death, or our end.
    Cancelled(Cancelled),
    /// The subnet has nothing in common with the range.
    OutOfBounds {
        /// What was asked for.
        subnet: Subnet,
        /// What there is.
        range: Subnet,
    },
    /// Nothing but IPv4 can be claimed.
    NotIpv4(Cidr),
    /// Outside the range: somebody on this host has it.
    InUse {
        /// The address.
        cidr: Cidr,
        /// Who; `None` if it was claimed without an id.
        holder: Option<Container>,
    },
    /// Inside the range: somebody on this host has it.
    Owned {
        /// The address.
        cidr: Cidr,
        /// Who.
        holder: Container,
    },
    /// Another peer has it.
    OtherPeer {
        /// The address.
        cidr: Cidr,
        /// Who.
        peer: PeerName,
        /// Its nickname; may be empty.
        nickname: String,
        /// It could not be asked.
        unreachable: bool,
    },
}

/// What was cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cancelled {
    /// An allocation for this container.
    Allocate(Container),
    /// A claim.
    Claim(Container, Cidr),
    /// The wait for a ring.
    Prime,
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RequestError::Cancelled(Cancelled::Allocate(id)) => {
                write!(f, "Allocate request for {id} cancelled")
            }
            RequestError::Cancelled(Cancelled::Claim(id, cidr)) => {
                write!(f, "Claim request for {cidr} by {id} cancelled")
            }
            RequestError::Cancelled(Cancelled::Prime) => f.write_str("prime cancelled"),
            RequestError::OutOfBounds { subnet, range } => {
                write!(f, "range {subnet} out of bounds: {range}")
            }
            RequestError::NotIpv4(cidr) => write!(f, "invalid Non-IPv4 address not supported: {cidr}"),
            RequestError::InUse { cidr, holder: None } => write!(f, "address {cidr} already in use"),
            RequestError::InUse { cidr, holder: Some(holder) } => {
                write!(f, "address {cidr} already in use by {holder}")
            }
            RequestError::Owned { cidr, holder } => {
                write!(f, "address {cidr} is already owned by {holder}")
            }
            RequestError::OtherPeer { cidr, peer, nickname, unreachable } => {
                write!(f, "address {cidr} is owned by other peer {peer}")?;
                if !nickname.is_empty() {
                    write!(f, " ({nickname})")?;
                }
                if *unreachable {
                    write!(f, " - unknown relay destination: {peer}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for RequestError {}

/// Why a release failed; 2.8.1's words. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseError {
    /// The container does not have that address.
    NotFound {
        /// The container.
        container: Container,
        /// The address.
        addr: std::net::IpAddr,
    },
    /// The container has none.
    NoAddresses(Container),
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReleaseError::NotFound { container, addr } => {
                write!(f, "Free: address {addr} not found for {container}")
            }
            ReleaseError::NoAddresses(container) => write!(f, "Delete: no addresses for {container}"),
        }
    }
}

impl std::error::Error for ReleaseError {}

/// Why a peer was not removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoveError {
    /// It is connected, directly or not, and may be using its addresses.
    Reachable {
        /// The peer.
        peer: PeerName,
        /// Its nickname; may be empty.
        nickname: String,
    },
}

impl fmt::Display for RemoveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RemoveError::Reachable { peer, nickname } = self;
        write!(
            f,
            "peer {peer}({nickname}) is reachable and may be using its addresses: run 'weave reset' on it, or 'weave \
             rmpeer --force' here if that is what you want"
        )
    }
}

impl std::error::Error for RemoveError {}

/// What became of our ranges when we left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandOver {
    /// We had none.
    Nothing,
    /// They were given to a peer that was reachable, which does not confirm that; what another says is its own, to that one.
    To {
        /// The heir; who disputed the first of them if all were in dispute.
        peer: PeerName,
        /// Its nickname; may be empty.
        nickname: String,
        /// How many addresses.
        addresses: u32,
    },
    /// Nobody was there to take them. They stay ours for all others, until `rmpeer` there.
    NoPeer {
        /// How many addresses.
        addresses: u32,
    },
}

/// For the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What was stored cannot be used; why.
    LoadedDiscarded(DiscardReason),
    /// What was stored is used.
    LoadedRing {
        /// Addresses of the range that are ours.
        owned: u32,
    },
    /// An election has begun here.
    Electing {
        /// How many must agree; 0 for an observer.
        quorum: u32,
        /// Where that comes from.
        source: QuorumSource,
    },
    /// The ring exists from now on.
    RingEstablished {
        /// Among whom it was first divided.
        seeds: Vec<PeerName>,
    },
    /// More electors take part than the number of peers that we were told allows: groups may form that do not know of each
    /// other.
    QuorumTooSmall {
        /// Our quorum.
        quorum: u32,
        /// Electors seen.
        known: u32,
    },
    /// Range given to another peer.
    Donated {
        /// To whom.
        to: PeerName,
        /// What.
        range: AddrRange,
    },
    /// What a peer says contradicts what we know. Said once per peer and conflict.
    Conflict {
        /// Whose view it is.
        peer: PeerName,
        /// The contradiction and its remedy.
        conflict: Conflict,
    },
    /// The contradiction is resolved.
    ConflictOver {
        /// Whose view it was.
        peer: PeerName,
    },
    /// A peer's message contained ranges of ours that nothing was allocated from; it has them now.
    Yielded {
        /// How many addresses.
        addresses: u32,
    },
    /// A claim made without anybody waiting failed: the address may be used twice.
    PreclaimFailed {
        /// Who uses it.
        container: Container,
        /// The address.
        cidr: Cidr,
        /// Why.
        error: RequestError,
    },
    /// A container has been dead for long enough, or was destroyed, or was gone when we came back.
    Released {
        /// The container.
        container: Container,
        /// Its addresses.
        cidrs: Vec<Cidr>,
    },
    /// A request waits for longer than a tick.
    Waiting {
        /// Which.
        request: RequestId,
        /// Since when it waits.
        waited: Duration,
    },
}

/// Where the number of electors comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuorumSource {
    /// Given: `--ipalloc-init consensus=N`.
    Count(u32),
    /// The peer addresses that we have, plus ourself.
    Targets(u32),
    /// We do not vote.
    Observer,
}

impl QuorumSource {
    /// How many peers that means.
    pub fn peers(self) -> u32 {
        match self {
            QuorumSource::Count(n) => n,
            QuorumSource::Targets(n) => n.saturating_add(1),
            QuorumSource::Observer => 0,
        }
    }

    /// More than half of them.
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

/// Why what was stored is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiscardReason {
    /// There is no ring in it.
    NoRing,
    /// It is another peer's.
    Name(PeerName),
    /// It is of another range.
    Range(AddrRange),
    /// It breaks the rules of rings; says which.
    Invalid(String),
}

impl fmt::Display for DiscardReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiscardReason::NoRing => f.write_str("no valid persisted data"),
            DiscardReason::Name(name) => write!(f, "deleting persisted data for peername {name}"),
            DiscardReason::Range(range) => {
                write!(f, "deleting persisted data for IPAM range {}", range.as_cidr())
            }
            DiscardReason::Invalid(error) => write!(f, "deleting persisted data: {error}"),
        }
    }
}
