use std::time::Duration;

use weave_types::{Cidr, PeerName};

use crate::address::{AddrRange, Subnet};
use crate::gossip_error::{Conflict, NamedPeer};
use crate::output::{Container, QuorumSource, RequestId};

/// Everything that `status`, `status ipam`, `report` and the metrics show (docs/spec/ipam.md 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far we are.
    pub state: State,
    /// The range.
    pub range: Subnet,
    /// Where allocations are made that name no subnet.
    pub default_subnet: Subnet,
    /// Addresses of the range in use on this host.
    pub active: u32,
    /// Addresses of the range that are ours and free.
    pub free: u32,
    /// The election, while it goes on here.
    pub election: Option<ElectionStatus>,
    /// Among whom the range was first divided; empty without a ring.
    pub seeds: Vec<NamedPeer>,
    /// The ring, in order; an entry that wraps round as two.
    pub entries: Vec<EntryStatus>,
    /// Who owns how much: ourself first, the others by name.
    pub owners: Vec<OwnerStatus>,
    /// Requests that wait, in the order in which they will be tried.
    pub pending: Vec<PendingStatus>,
    /// Peers whose view contradicts ours.
    pub conflicts: Vec<ConflictStatus>,
    /// We are leaving.
    pub shutting_down: bool,
}

impl Status {
    /// 2.8.1's words for how far we are.
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

    /// The lines of `status ipam`, as 2.8.1 has them: one for each owner.
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

/// How far we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No ring, and nobody has asked for one here.
    Idle,
    /// No ring, and an election has begun here.
    Electing,
    /// No ring; we are an observer and wait for those who vote.
    Priming,
    /// There is a ring.
    Ready,
    /// There is a ring, and an allocation waits for space.
    WaitingForSpace,
    /// There is a ring, and nobody in it is reachable, nor owns this peer anything.
    AllUnreachable,
}

impl State {
    /// The seeds' word for it.
    pub fn consensus(self) -> &'static str {
        match self {
            State::Idle => "deferred",
            State::Electing | State::Priming => "waiting",
            State::Ready | State::WaitingForSpace | State::AllUnreachable => "achieved",
        }
    }
}

/// An election that we wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElectionStatus {
    /// We vote; an observer does not.
    pub elector: bool,
    /// How many must agree; 0 for an observer.
    pub quorum: u32,
    /// Electors known of (those that have answered, ourself included).
    pub known: u32,
    /// Those that have answered, and are reachable now.
    pub present: Vec<NamedPeer>,
    /// Those that have answered once, and are not reachable now.
    pub absent: Vec<NamedPeer>,
    /// Reachable peers that have not taken part: observers, and electors that have not heard of the election yet.
    pub silent: Vec<NamedPeer>,
    /// How many more electors are needed at least.
    pub missing: u32,
    /// Where the quorum comes from.
    pub source: QuorumSource,
    /// For how long it goes on.
    pub waited: Duration,
}

/// One range of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryStatus {
    /// The addresses.
    pub range: AddrRange,
    /// The owner.
    pub peer: PeerName,
    /// Its nickname; empty if not known.
    pub nickname: String,
    /// It is reachable, or ourself.
    pub reachable: bool,
    /// Version of the entry.
    pub version: u32,
    /// Free addresses in it, as the owner last said.
    pub free: u32,
}

/// What one peer owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerStatus {
    /// The peer.
    pub peer: PeerName,
    /// Its nickname; empty if not known.
    pub nickname: String,
    /// Addresses of the range.
    pub addresses: u32,
    /// Free ones among them, as it last said.
    pub free: u32,
    /// It is ourself.
    pub ours: bool,
    /// It is reachable, or ourself.
    pub reachable: bool,
    /// For how long it has not been reachable; `None` if it is, or never was since we run.
    pub unreachable_for: Option<Duration>,
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingStatus {
    /// Its id; `None` if nobody waits for the answer.
    pub request: Option<RequestId>,
    /// What it is.
    pub kind: PendingKind,
    /// For how long it waits.
    pub waited: Duration,
    /// Why it waits.
    pub reason: WaitReason,
}

/// What waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingKind {
    /// For the ring.
    Prime,
    /// For an address.
    Allocate {
        /// For whom.
        container: Container,
        /// In which subnet.
        subnet: Subnet,
    },
    /// For a certain address.
    Claim {
        /// For whom.
        container: Container,
        /// The address.
        cidr: Cidr,
    },
}

/// Why a request waits, and what would help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// There is no ring yet: see [`Status::election`].
    NoRing,
    /// Space in what was asked for belongs to others.
    Space {
        /// Reachable peers with free space; asked now or at the next tick.
        asked: Vec<NamedPeer>,
        /// Those with free space that cannot be reached, and for how long; `None`: never since we run.
        unreachable: Vec<(NamedPeer, Option<Duration>)>,
        /// Reachable peers that have said lately that they have nothing usable.
        denied: Vec<NamedPeer>,
        /// Addresses there that are ours, but in doubt because of a conflict.
        disputed: u32,
    },
    /// The address is another peer's, who is being asked.
    Owner {
        /// Who.
        peer: NamedPeer,
        /// It is reachable.
        reachable: bool,
        /// For how long it has not been; `None` if it is, or never was since we run.
        unreachable_for: Option<Duration>,
    },
    /// The address is ours, but in doubt because of a conflict.
    Disputed,
}

impl WaitReason {
    /// One line for people: what is waited for, and what would help.
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
                    parts.push(format!("{disputed} addresses are in doubt: resolve the conflict shown"));
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
            WaitReason::Disputed => "the address is in doubt: resolve the conflict shown".to_owned(),
        }
    }
}

/// A peer whose view contradicts ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConflictStatus {
    /// Whose view it is: the holder of the ring received.
    pub peer: NamedPeer,
    /// The contradiction. It knows its remedy.
    pub conflict: Conflict,
    /// For how long we know of it.
    pub since: Duration,
    /// What is not handed out because of it.
    pub disputed: Vec<AddrRange>,
}
