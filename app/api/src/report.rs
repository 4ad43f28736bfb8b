//! The report on the daemon's state, in the schema of 2.8.1 (docs/spec/cli.md 9, docs/spec/mesh.md 13).
//!
//! Field order is key order. Empty lists are `null` unless a field says otherwise. Fields marked *addition* are not in
//! 2.8.1; they come last in their object and are left out when there is nothing to say.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// `GET /report` with `Accept: application/json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Report {
    /// Whether everything that was asked for at launch is in place.
    pub ready: bool,
    /// Program version.
    pub version: String,
    /// State of the check for newer versions; always disabled in this implementation.
    pub version_check: VersionCheck,
    /// The mesh and the switch.
    pub router: Router,
    /// Address allocation, if on.
    #[serde(rename = "IPAM", default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// Names, if on.
    #[serde(rename = "DNS", default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    /// The Docker API proxy, if on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    /// The Docker network plugin, if on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plugin: Option<Plugin>,
    /// *Addition.* Waiting requests and conflicts of address allocation.
    #[serde(rename = "IPAMNotes", default, skip_serializing_if = "Option::is_none")]
    pub ipam_notes: Option<IpamNotes>,
    /// *Addition.* What on this host keeps the peer or its containers from working, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_problems: Vec<String>,
}

/// What is known about newer versions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct VersionCheck {
    /// Whether the check is enabled.
    pub enabled: bool,
    /// Whether the last check got an answer.
    pub success: bool,
    /// A newer version, or empty.
    pub new_version: String,
    /// Time of the next check; the zero time when disabled.
    pub next_check_at: Timestamp,
}

/// The mesh and the switch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Router {
    /// `weave`.
    pub protocol: String,
    /// Lowest protocol version spoken.
    pub protocol_min_version: u8,
    /// Highest protocol version spoken.
    pub protocol_max_version: u8,
    /// Whether a password is set.
    pub encryption: bool,
    /// Whether peers learnt by gossip are dialled.
    pub peer_discovery: bool,
    /// Our name.
    pub name: String,
    /// Our nickname.
    pub nick_name: String,
    /// Port of control connections.
    pub port: u16,
    /// All known peers, including ourself.
    #[serde(with = "nil_slice")]
    pub peers: Vec<Peer>,
    /// Next hop to each peer.
    #[serde(with = "nil_slice")]
    pub unicast_routes: Vec<UnicastRoute>,
    /// Next hops of frames that a peer broadcasts.
    #[serde(with = "nil_slice")]
    pub broadcast_routes: Vec<BroadcastRoute>,
    /// Our connections, then targets that are not connected.
    #[serde(with = "nil_slice")]
    pub connections: Vec<Connection>,
    /// Number of connections that have ended.
    pub termination_count: u64,
    /// Peers named by `launch` and `connect`, as typed.
    #[serde(with = "nil_slice")]
    pub targets: Vec<String>,
    /// Diagnostics of each overlay, by its name.
    pub overlay_diagnostics: BTreeMap<String, serde_json::Value>,
    /// Networks inside which traffic is not encrypted. `[]` when none.
    pub trusted_subnets: Vec<String>,
    /// Device and method of packet capture, as `vethwe-datapath (via AF_PACKET)`.
    pub interface: String,
    /// Counters of the capture.
    pub capture_stats: Option<BTreeMap<String, u64>>,
    /// Ethernet addresses and the peers that they belong to.
    #[serde(rename = "MACs", with = "nil_slice")]
    pub macs: Vec<Mac>,
    /// *Addition.* Frames not delivered, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub drops: BTreeMap<String, u64>,
    /// *Addition.* The table of Ethernet addresses, once it was full.
    #[serde(rename = "MACTable", default, skip_serializing_if = "Option::is_none")]
    pub mac_table: Option<MacTable>,
}

/// The size of the table of Ethernet addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct MacTable {
    /// Number of addresses.
    pub entries: usize,
    /// The largest number.
    pub max_entries: usize,
    /// How many addresses were displaced because the table was full.
    pub displaced: u64,
    /// The peer with most addresses, `name(nickname)`.
    pub largest_peer: String,
    /// Number of its addresses.
    pub largest_entries: usize,
}

impl MacTable {
    /// `full (65536 addresses), mostly from 8a:..(h1)`; `None` if there is room.
    pub fn full(&self) -> Option<String> {
        let text = || format!("full ({} addresses), mostly from {}", self.entries, self.largest_peer);
        (self.entries >= self.max_entries).then(text)
    }
}

/// One peer of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its nickname.
    pub nick_name: String,
    /// Its UID, which changes with each start; all 64 bits as a JSON number.
    #[serde(rename = "UID")]
    pub uid: u64,
    /// Its short id of 12 bits.
    #[serde(rename = "ShortID")]
    pub short_id: u16,
    /// Version of its topology record.
    pub version: u64,
    /// Its connections.
    #[serde(with = "nil_slice")]
    pub connections: Vec<PeerConnection>,
}

/// A connection that a peer reports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PeerConnection {
    /// Name of the other end.
    pub name: String,
    /// The other end's nickname.
    pub nick_name: String,
    /// The other end's TCP address.
    pub address: String,
    /// Whether the reporting peer dialled.
    pub outbound: bool,
    /// Whether frames can pass.
    pub established: bool,
}

/// Next hop to a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct UnicastRoute {
    /// The peer.
    pub dest: String,
    /// The neighbour; `00:00:00:00:00:00` for ourself.
    pub via: String,
}

/// Next hops of a peer's broadcasts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct BroadcastRoute {
    /// The peer whose broadcasts these are.
    pub source: String,
    /// The neighbours to which we send a copy.
    #[serde(with = "nil_slice")]
    pub via: Vec<String>,
}

/// One of our connections, or a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Connection {
    /// The other end's TCP address.
    pub address: String,
    /// Whether we dialled.
    pub outbound: bool,
    /// `established`, `pending`, `retrying`, `failed`, `connecting` or `waiting`.
    pub state: String,
    /// Overlay and peer, or why there is no connection.
    pub info: String,
    /// Attributes of the overlay; `null` for targets.
    pub attrs: Option<BTreeMap<String, serde_json::Value>>,
    /// *Addition.* Why no better overlay is used; absent if the best is in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlay_reason: Option<String>,
    /// *Addition.* The peer at the other end; absent for targets and while it is not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// *Addition.* Its nickname.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub nick_name: String,
    /// *Addition.* What has passed; absent for targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// *Addition.* The path of the overlay in use; absent for targets and unless both ends test it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<PathQuality>,
}

/// Datagrams with data on a connection since it was made. The counters wrap at 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Traffic {
    /// Sent by this peer.
    pub sent: u32,
    /// Arrived here.
    pub received: u32,
}

/// What probes of the last 30 seconds have shown about a path. A healthy one is probed only while somebody looks at the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PathQuality {
    /// Microseconds, a mean of the latest five; `null` if no probe was answered.
    pub round_trip: Option<u64>,
    /// Probes that were answered or lost.
    pub probes: u32,
    /// Those that were not answered within a second.
    pub lost: u32,
}

/// An Ethernet address and the peer that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Mac {
    /// The Ethernet address.
    pub mac: String,
    /// Name of the peer.
    pub name: String,
    /// That peer's nickname.
    pub nick_name: String,
    /// When a frame from it was last seen.
    pub last_seen: Timestamp,
    /// *Addition.* Frames from it that were refused on this host because another peer uses the address.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refused: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Address allocation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Ipam {
    /// The election, while it runs.
    pub paxos: Option<Paxos>,
    /// The whole range.
    pub range: String,
    /// Number of addresses in the range.
    #[serde(rename = "RangeNumIPs")]
    pub range_num_ips: u64,
    /// Addresses in use here.
    #[serde(rename = "ActiveIPs")]
    pub active_ips: u64,
    /// Subnet of `net:default`.
    pub default_subnet: String,
    /// Ranges and their owners.
    #[serde(with = "nil_slice")]
    pub entries: Vec<RingEntry>,
    /// Claims that wait.
    #[serde(with = "nil_slice")]
    pub pending_claims: Vec<PendingClaim>,
    /// Allocations that wait, as `<id> <subnet>`.
    #[serde(with = "nil_slice")]
    pub pending_allocates: Vec<String>,
}

/// Waiting requests and conflicts of address allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IpamNotes {
    /// Why requests wait and what would help, as sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<String>,
    /// Conflicts with other peers and their remedies, as sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<String>,
    /// Addresses whose owners cannot be found any more, as sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost_owners: Vec<String>,
}

/// The election of the first owners.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Paxos {
    /// Whether this peer votes.
    pub elector: bool,
    /// Known voters.
    pub known_nodes: u64,
    /// Votes needed.
    pub quorum: u64,
}

/// A range and its owner.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RingEntry {
    /// First address.
    pub token: String,
    /// Number of addresses.
    pub size: u64,
    /// The owner.
    pub peer: String,
    /// Its nickname.
    pub nickname: String,
    /// Whether the mesh reaches the owner.
    pub is_known_peer: bool,
    /// Version of the entry.
    pub version: u64,
}

/// A claim that waits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PendingClaim {
    /// Container id.
    pub ident: String,
    /// Its address; an object here, a string everywhere else.
    #[serde(rename = "CIDR")]
    pub cidr: ClaimedCidr,
}

/// An address with prefix length as an object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClaimedCidr {
    /// The address.
    pub addr: String,
    /// Bits of the network prefix.
    pub prefix_len: u8,
}

/// Names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Dns {
    /// Our domain, with final dot.
    pub domain: String,
    /// Resolvers for other names.
    #[serde(with = "nil_slice")]
    pub upstream: Vec<String>,
    /// Listening address of the server.
    pub address: String,
    /// Seconds that answers may be kept.
    #[serde(rename = "TTL")]
    pub ttl: u32,
    /// All names, including deleted ones.
    #[serde(with = "nil_slice")]
    pub entries: Vec<DnsEntry>,
    /// What people should know about the server; not in 2.8.1.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// *Addition.* Clocks of other hosts that differ from ours by more than 2.8.1 accepts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clock_skews: Vec<ClockSkew>,
}

/// The clock of another host, compared with that of this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ClockSkew {
    /// The peer that sent a message, which another may have relayed; empty if it was a neighbour.
    pub peer: String,
    /// Seconds by which the clock is ahead of ours.
    pub seconds: i64,
}

impl fmt::Display for ClockSkew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.peer.as_str() {
            "" => f.write_str("the clock of a neighbour")?,
            peer => write!(f, "the clock of {peer}, or of a peer that relays its messages,")?,
        }
        let direction = if self.seconds < 0 { "behind" } else { "ahead of" };
        write!(f, " is {} s {direction} that of this host", self.seconds.unsigned_abs())
    }
}

/// One name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DnsEntry {
    /// Full name with final dot.
    pub hostname: String,
    /// The peer that registered it.
    pub origin: String,
    /// Container id.
    #[serde(rename = "ContainerID")]
    pub container_id: String,
    /// Its address.
    pub address: String,
    /// Version of the entry.
    pub version: u64,
    /// Unix time of the deletion; 0 for names that are not deleted.
    pub tombstone: i64,
}

/// The Docker API proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Proxy {
    /// Its listening addresses.
    #[serde(with = "nil_slice")]
    pub addresses: Vec<String>,
    /// What keeps it from working.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The Docker network plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Plugin {
    /// Its settings.
    pub config: PluginConfig,
    /// Name of the network driver.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub driver_name: String,
    /// Name of the driver that needs no cluster store.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mesh_driver_name: String,
}

/// Settings of the plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PluginConfig {
    /// Socket of the first driver.
    pub socket: String,
    /// Socket of the second driver.
    pub mesh_socket: String,
    /// Whether the legacy plugin is on.
    pub enable: bool,
    /// Whether the second plugin form is on.
    pub enable_v2: bool,
    /// Whether its networks get a multicast route.
    pub enable_v2_multicast: bool,
    /// Whether names are served.
    #[serde(rename = "DNS")]
    pub dns: bool,
    /// Default subnet of networks; `0.0.0.0/0` without address allocation.
    pub default_subnet: String,
    /// Where the host's `/proc` is.
    pub proc_path: String,
}

impl Report {
    /// The body of `GET /report`: four blanks of indentation, no final newline, Go's escapes.
    pub fn to_json(&self) -> String {
        to_go_json(self, true)
    }

    /// Reads what a daemon of this version or 2.8.1 sent.
    ///
    /// # Errors
    /// The text is not JSON or lacks a key.
    pub fn from_json(text: &str) -> Result<Report, serde_json::Error> {
        serde_json::from_str(text)
    }
}

impl Router {
    /// `name(nickname)` of ourself.
    pub fn identity(&self) -> String {
        format!("{}({})", self.name, self.nick_name)
    }
}

/// JSON as Go's encoder writes it: `<`, `>`, `&` and the two Unicode line separators are escaped. They occur inside
/// strings only, so that replacing them in the finished text is exact.
pub fn to_go_json<T: Serialize>(value: &T, indent: bool) -> String {
    let mut bytes = Vec::new();
    let result = if indent {
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
        value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
    } else {
        value.serialize(&mut serde_json::Serializer::new(&mut bytes))
    };
    debug_assert!(result.is_ok(), "memory takes every byte and all keys are strings");
    let text = String::from_utf8(bytes).unwrap_or_default();
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

/// Name under which an empty list is handed to the serializer, so that [`crate::template`] can tell Go's nil slice
/// (printed `[]`) from a nil pointer (printed `<nil>`); both are `null` in JSON.
pub(crate) const NIL_SLICE: &str = "$nil_slice";

mod nil_slice {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(list: &Vec<T>, to: S) -> Result<S::Ok, S::Error> {
        if list.is_empty() {
            to.serialize_newtype_struct(super::NIL_SLICE, &None::<()>)
        } else {
            list.serialize(to)
        }
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        Ok(Option::<Vec<T>>::deserialize(from)?.unwrap_or_default())
    }
}
