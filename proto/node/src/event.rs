use std::fmt;

use weave_types::{MacAddr, PeerName};

/// An event for the log. `Display` gives the lines of 2.8.1 where it has one.
#[derive(Debug)]
pub enum Event {
    /// An event of the mesh.
    Mesh(weave_mesh::Event),
    /// An event of the mesh that repeats what [`Event::PathBlocked`] says.
    Repeated(weave_mesh::Event),
    /// A connection ended because TCP passes and UDP does not. Further attempts are [`Event::Repeated`].
    PathBlocked {
        /// The peer at the other end, `NAME(NICK)`.
        peer: String,
        /// Which datagrams do not arrive.
        problem: String,
    },
    /// UDP passes to that peer again.
    PathUnblocked {
        /// The peer at the other end, `NAME(NICK)`.
        peer: String,
    },
    /// An event of address allocation.
    Ipam(weave_ipam::Event),
    /// An event of the registry of names.
    Dns(weave_dns::RegistryEvent),
    /// An event of the overlays of one connection.
    Overlay {
        /// The peer at the other end, `NAME(NICK)`.
        peer: String,
        /// Description of the event.
        text: String,
    },
    /// A MAC was learnt on the local bridge.
    LocalMac(MacAddr),
    /// A MAC was learnt at a peer, or moved there.
    RemoteMac {
        /// The MAC.
        mac: MacAddr,
        /// The peer that has it, `NAME(NICK)`.
        peer: String,
        /// The previous peer, if it moved.
        was: Option<PeerName>,
    },
    /// A MAC is in use here and at another peer.
    MacConflict {
        /// The MAC.
        mac: MacAddr,
        /// The other peer, `NAME(NICK)`.
        peer: String,
        /// How many frames of this host were refused because of it, up to now.
        refused: u64,
    },
    /// The MAC table is full: old addresses are displaced.
    MacTableFull {
        /// Number of entries.
        entries: usize,
        /// The peer with most entries, `NAME(NICK)`.
        peer: String,
        /// Number of its entries.
        share: usize,
    },
    /// The MAC table is not full any more.
    MacTableHasRoom {
        /// Number of entries.
        entries: usize,
    },
    /// MACs that were not logged one by one because there were too many.
    FurtherMacs {
        /// The peer that has or had them, `NAME(NICK)`.
        peer: String,
        /// Number of MACs that were discovered.
        discovered: u64,
        /// Number of MACs that expired.
        expired: u64,
    },
    /// A frame of this peer came back from another peer.
    OwnPacket {
        /// The destination peer.
        peer: PeerName,
        /// The source MAC.
        mac: MacAddr,
        /// The destination MAC.
        dst: MacAddr,
    },
    /// A MAC was removed because no frame arrived from it for the maximum age.
    MacExpired {
        /// The MAC.
        mac: MacAddr,
        /// The peer that had it, `NAME(NICK)`.
        peer: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Mesh(event) | Event::Repeated(event) => event.fmt(f),
            Event::PathBlocked { peer, problem } => write!(
                f,
                "no direct connection to {peer}: {problem}; further attempts are logged when one succeeds"
            ),
            Event::PathUnblocked { peer } => write!(f, "UDP passes between this host and {peer}"),
            Event::Ipam(event) => write_ipam_event(event, f),
            Event::Dns(event) => event.fmt(f),
            Event::Overlay { peer, text } => write!(f, "overlay_switch ->[{peer}] {text}"),
            Event::LocalMac(mac) => write!(f, "Discovered local MAC {mac}"),
            Event::RemoteMac { mac, peer, was: None } => write!(f, "Discovered remote MAC {mac} at {peer}"),
            Event::RemoteMac { mac, peer, was: Some(old) } => {
                write!(f, "Discovered remote MAC {mac} at {peer} (was at {old})")
            }
            Event::MacConflict { mac, peer, refused } => {
                write!(
                    f,
                    "MAC {mac} is in use at two places, on this host and at {peer}; frames of this host refused: {refused}"
                )
            }
            Event::MacTableFull { entries, peer, share } => write!(
                f,
                "MAC table full ({entries} entries), mostly from {peer} ({share}): new addresses displace old ones of that peer"
            ),
            Event::MacTableHasRoom { entries } => write!(f, "MAC table has room again ({entries} entries)"),
            Event::FurtherMacs { peer, discovered, expired } => {
                write!(f, "MACs at {peer} that are not listed: {discovered} discovered, {expired} expired")
            }
            Event::OwnPacket { peer, mac, dst } => {
                write!(f, "Received own packet to peer {peer} from MAC ({mac}) to ({dst})")
            }
            Event::MacExpired { mac, peer } => write!(f, "Expired MAC {mac} at {peer}"),
        }
    }
}

/// Writes the log line of an event of address allocation.
fn write_ipam_event(event: &weave_ipam::Event, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use weave_ipam::Event as E;
    f.write_str("[allocator] ")?;
    let list = |items: Vec<String>| items.join(" ");
    match event {
        E::LoadedDiscarded(why) => write!(f, "{why}"),
        E::LoadedRing { owned } => write!(f, "initialising from persisted data, {owned} addresses are ours"),
        E::Electing { quorum: 0, source } => write!(f, "waiting for a ring from {source}"),
        E::Electing { quorum, source } => {
            write!(f, "assuming quorum size of {quorum}: more than half of {} ({source})", source.peers())
        }
        E::RingEstablished { seeds } => {
            let seeds = list(seeds.iter().map(ToString::to_string).collect());
            write!(f, "the range is divided; first among [{seeds}]")
        }
        E::QuorumTooSmall { quorum, known } => write!(
            f,
            "{known} peers elect, with a quorum of {quorum} two groups could decide differently: give all peers the same \
             larger count (--ipalloc-init consensus={known}) before the first address is used"
        ),
        E::Donated { to, range } => write!(f, "gave {range} to {to}"),
        E::Conflict { peer, conflict } => {
            write!(f, "conflict with {peer}: {conflict}; {}", conflict.remedy())
        }
        E::ConflictOver { peer } => write!(f, "the conflict with {peer} is over"),
        E::Yielded { addresses } => write!(f, "yielded {addresses} unused addresses to another peer"),
        E::PreclaimFailed { container, cidr, error } => {
            write!(
                f,
                "{cidr} is in use by {container} but cannot be claimed, it may be given out twice: {error}"
            )
        }
        E::Released { container, cidrs } => {
            let cidrs = list(cidrs.iter().map(ToString::to_string).collect());
            write!(f, "released [{cidrs}] of {container}, which is gone")
        }
        E::Waiting { request, waited } => {
            write!(
                f,
                "request {} has waited for {} s; 'weave status ipam' says why",
                request.0,
                waited.as_secs()
            )
        }
    }
}
