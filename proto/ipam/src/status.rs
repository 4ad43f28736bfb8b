use std::time::Duration;

use weave_types::{Cidr, PeerName};

use crate::address::{AddrRange, Subnet};
use crate::gossip_error::{Conflict, NamedPeer};
use crate::output::{QuorumSource, RequestId};
use crate::owned::Container;

/// Everything that `status`, `status ipam`, `report` and the metrics show (docs/spec/ipam.md 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The state of the ring.
    pub state: State,
    /// The allocation range.
    pub range: Subnet,
    /// The subnet of allocations that name none.
    pub default_subnet: Subnet,
    /// Number of addresses of the range in use on this host.
    pub active: u32,
    /// Number of own free addresses of the range.
    pub free: u32,
    /// The election, while one is running.
    pub election: Option<ElectionStatus>,
    /// The peers among which the range was first divided; empty without a ring.
    pub seeds: Vec<NamedPeer>,
    /// The ring in ascending order; an entry that wraps around is shown as two.
    pub entries: Vec<EntryStatus>,
    /// All owners: this peer first, the others by name.
    pub owners: Vec<OwnerStatus>,
    /// Requests that wait, in the order in which they are retried.
    pub pending: Vec<PendingStatus>,
    /// Peers whose state contradicts this peer's.
    pub conflicts: Vec<ConflictStatus>,
    /// This peer is leaving the network.
    pub shutting_down: bool,
}

impl Status {
    /// The state in the words of 2.8.1.
    pub fn state_text(&self) -> String {
        match (self.state, &self.election) {
            (State::Idle, _) => "idle".to_owned(),
            (State::Electing, Some(election)) => {
                format!("awaiting consensus (quorum: {}, known: {})", election.quorum, election.known)
            }
            (State::Electing | State::Priming, _) => "priming".to_owned(),
            (State::Ready, _) => "ready".to_owned(),
            (State::WaitingForSpace, _) => "waiting for IP(s) to become available".to_owned(),
            (State::AllUnreachable, _) => {
                "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead".to_owned()
            }
        }
    }

    /// The lines of `status ipam` as in 2.8.1, one for each owner.
    pub fn owner_lines(&self) -> String {
        let total = self.range.range().size() as f32;
        let line = |owner: &OwnerStatus| {
            let label = format!("{}({})", owner.peer, owner.nickname);
            let percent = owner.addresses as f32 * 100.0 / total;
            let info = match owner {
                OwnerStatus { ours: true, .. } => format!("({} active)", self.active),
                OwnerStatus { reachable: true, .. } => String::new(),
                _ => "- unreachable!".to_owned(),
            };
            format!("{label:<37} {:>8} IPs ({percent:04.1}% of total) {info}\n", owner.addresses)
        };
        self.owners.iter().map(line).collect()
    }
}

/// The state of the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no ring, and none was requested here.
    Idle,
    /// There is no ring, and an election is running.
    Electing,
    /// There is no ring, and this peer is an observer that waits for the election of others.
    Priming,
    /// There is a ring.
    Ready,
    /// There is a ring, and an allocation waits for space.
    WaitingForSpace,
    /// There is a ring, but this peer owns nothing in it and no owner is reachable.
    AllUnreachable,
}

impl State {
    /// The word that the status summary shows for it.
    pub fn consensus(self) -> &'static str {
        match self {
            State::Idle => "deferred",
            State::Electing | State::Priming => "waiting",
            State::Ready | State::WaitingForSpace | State::AllUnreachable => "achieved",
        }
    }
}

/// A running election.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionStatus {
    /// Whether this peer votes; an observer does not.
    pub elector: bool,
    /// Number of electors that must agree; 0 for an observer.
    pub quorum: u32,
    /// Number of electors that have answered, including this peer.
    pub known: u32,
    /// Electors that have answered and are reachable.
    pub present: Vec<NamedPeer>,
    /// Electors that have answered and are no longer reachable.
    pub absent: Vec<NamedPeer>,
    /// Reachable peers that have not answered: observers, and electors that have not yet received a message of the
    /// election.
    pub silent: Vec<NamedPeer>,
    /// Least number of further electors needed.
    pub missing: u32,
    /// How the quorum was determined.
    pub source: QuorumSource,
    /// Time since the start of the election.
    pub waited: Duration,
}

/// One range of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// The addresses of the entry.
    pub range: AddrRange,
    /// The owner of the entry.
    pub peer: PeerName,
    /// The owner's nickname; empty if not known.
    pub nickname: String,
    /// Whether the owner is reachable, or this peer.
    pub reachable: bool,
    /// The version of the entry.
    pub version: u32,
    /// Number of free addresses as last reported by the owner.
    pub free: u32,
}

/// The share of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerStatus {
    /// The name of the owner.
    pub peer: PeerName,
    /// The owner's nickname; empty if not known.
    pub nickname: String,
    /// Number of addresses owned.
    pub addresses: u32,
    /// Number of free addresses as last reported by the owner.
    pub free: u32,
    /// Whether the owner is this peer.
    pub ours: bool,
    /// Whether the owner is reachable, or this peer.
    pub reachable: bool,
    /// Time since the owner became unreachable; `None` if it is reachable, or has been unreachable since this peer started.
    pub unreachable_for: Option<Duration>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingStatus {
    /// The request; `None` for a claim without a waiting caller.
    pub request: Option<RequestId>,
    /// The kind of request.
    pub kind: PendingKind,
    /// Time since the request.
    pub waited: Duration,
    /// The reason for the wait.
    pub reason: WaitReason,
}

/// The kind of a waiting request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingKind {
    /// A wait for the ring.
    Prime,
    /// An allocation.
    Allocate {
        /// The container that gets the address.
        container: Container,
        /// The requested subnet.
        subnet: Subnet,
    },
    /// A claim.
    Claim {
        /// The container that gets the address.
        container: Container,
        /// The claimed address.
        cidr: Cidr,
    },
}

/// Why a request waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// There is no ring; [`Status::election`] has details.
    NoRing,
    /// No usable address in the requested subnet is free here.
    Space {
        /// Reachable peers with free space, which are asked now or at the next timeout.
        asked: Vec<NamedPeer>,
        /// Unreachable peers with free space, and for how long they have been; `None`: since this peer started.
        unreachable: Vec<(NamedPeer, Option<Duration>)>,
        /// Reachable peers whose last answer was that they have nothing usable.
        denied: Vec<NamedPeer>,
        /// Number of own free addresses that are disputed.
        disputed: u32,
    },
    /// The address belongs to another peer.
    Owner {
        /// The owner.
        peer: NamedPeer,
        /// Whether the owner is reachable, and therefore asked.
        reachable: bool,
        /// Time since the owner became unreachable; `None` if it is reachable, or has been unreachable since this peer started.
        unreachable_for: Option<Duration>,
    },
    /// The address is owned by this peer, but disputed.
    Disputed,
}

impl WaitReason {
    /// One line of text: what the request waits for, and what would help.
    pub fn explain(&self) -> String {
        let names = |list: &[NamedPeer]| list.iter().map(NamedPeer::to_string).collect::<Vec<_>>().join(" ");
        let ago = |since: &Option<Duration>| match since {
            Some(duration) => format!("unreachable for {} s", duration.as_secs()),
            None => "not seen since this peer started".to_owned(),
        };
        match self {
            WaitReason::NoRing => {
                "waiting for a quorum of peers: 'weave status ipam' says who is missing; connect them"
                    .to_owned()
            }
            WaitReason::Space { asked, unreachable, denied, disputed } => {
                let mut parts = Vec::new();
                if !asked.is_empty() {
                    parts.push(format!("asking {} for space", names(asked)));
                }
                if !unreachable.is_empty() {
                    let list: Vec<String> =
                        unreachable.iter().map(|(peer, since)| format!("{peer} ({})", ago(since))).collect();
                    parts.push(format!(
                        "free space belongs to {}: reconnect it, or run 'weave rmpeer' if it is dead",
                        list.join(", ")
                    ));
                }
                if !denied.is_empty() {
                    parts.push(format!("{} had nothing usable", names(denied)));
                }
                if *disputed > 0 {
                    parts.push(format!("{disputed} addresses are disputed: resolve the conflict shown"));
                }
                if asked.is_empty() && unreachable.is_empty() && *disputed == 0 {
                    parts.push("all addresses are in use: release some, or use another subnet".to_owned());
                }
                parts.join("; ")
            }
            WaitReason::Owner { peer, reachable: true, .. } => {
                format!("asking {peer}, which owns the address")
            }
            WaitReason::Owner { peer, unreachable_for, .. } => format!(
                "the address belongs to {peer}, {}: reconnect it, or run 'weave rmpeer' if it is dead",
                ago(unreachable_for)
            ),
            WaitReason::Disputed => "the address is disputed: resolve the conflict shown".to_owned(),
        }
    }
}

/// A peer whose state contradicts this peer's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictStatus {
    /// The peer that sent the contradicting ring.
    pub peer: NamedPeer,
    /// The contradiction; it names a remedy.
    pub conflict: Conflict,
    /// Time since the conflict was found.
    pub since: Duration,
    /// Ranges that are not handed out because of the conflict.
    pub disputed: Vec<AddrRange>,
}
