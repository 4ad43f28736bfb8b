use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use weave_types::{PeerName, PeerUid, ShortId};

use crate::peers::{Peer, PeerConnection, PeerLabel};
use crate::short_ids::ShortIds;
use crate::update::PeerRecord;

/// The records of all known peers, including our own, and the rules for merging updates (docs/spec/mesh.md 8).
///
/// Each peer raises the *version* of its own record at each change; a record with a higher version replaces the known
/// one. The consequences of changes are collected in [`TopologyChanges`].
#[derive(Debug)]
pub(crate) struct Topology {
    own: PeerName,
    peers: BTreeMap<PeerName, Peer>,
    short_ids: ShortIds,
    /// Number of connections in the records of other peers.
    connection_count: usize,
    /// All versions of our record are below this persisted number, at which a restart begins.
    version_ceiling: u64,
    /// Distance of the next ceiling from a version that another peer has made us exceed.
    foreign_version_margin: u64,
    /// Connections or references have changed since the last garbage collection.
    collection_due: bool,
    changes: TopologyChanges,
}

/// The consequences of changes in the topology.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct TopologyChanges {
    /// The new version ceiling, to be persisted before any message is sent.
    pub(crate) version_ceiling: Option<u64>,
    /// Our new short id, to be persisted before any message is sent.
    pub(crate) short_id: Option<ShortId>,
    /// Short ids have changed their owners.
    pub(crate) short_ids_invalidated: bool,
    /// Our record has changed and has to be gossiped.
    pub(crate) announce: bool,
    /// Our record has to be gossiped soon, because the one that others have says more than is true: a connection is lost, for example.
    pub(crate) is_urgent: bool,
    /// Records have changed, so routes and targets have to be computed again.
    pub(crate) changed: bool,
    /// Peers that were removed.
    pub(crate) removed: Vec<PeerLabel>,
}

/// The result of merging an update (docs/spec/mesh.md 8.3 rule 3).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct MergeResult {
    /// Peers whose records are new or newer: the delta of neighbour gossip to relay.
    pub(crate) new: BTreeSet<PeerName>,
    /// Peers whose records are the same as ours.
    pub(crate) same: BTreeSet<PeerName>,
    /// New peers that are only known as neighbours of others.
    pub(crate) mentioned: BTreeSet<PeerName>,
    /// All peers in the update: the records of a broadcast to relay.
    pub(crate) named: BTreeSet<PeerName>,
    /// A peer whose record had an impossible version, and that version.
    pub(crate) forged: Option<(PeerName, u64)>,
}

/// Number of versions that are reserved together, so that not every version is written to disk.
const VERSION_BLOCK: u64 = 1024;
/// The highest version that a record can have at this wall-clock time: the microseconds since 1970. A peer counts its
/// changes, so it never reaches this, and a higher version is forged. The limit rises faster than any peer counts, so
/// a forged version below it can always be exceeded by the peer that it is about, again and again. A host without a
/// clock begins in 1970, therefore the limit is not below that of 2026.
pub(crate) fn max_version(wall: Duration) -> u64 {
    const START_OF_2026: Duration = Duration::from_secs(1_767_225_600);
    u64::try_from(wall.max(START_OF_2026).as_micros()).unwrap_or(u64::MAX)
}

/// Maximum number of peers, which limits the memory that forged updates can use. There are 4096 short ids.
const MAX_PEERS: usize = 65_536;
/// Maximum number of connections in all records, enough for a full mesh of 2,000 peers. Further ones are left out.
pub(crate) const MAX_PEER_CONNECTIONS: usize = 4 << 20;

/// The initial content of our own record.
pub(crate) struct OwnPeer {
    pub(crate) name: PeerName,
    pub(crate) nickname: Arc<str>,
    pub(crate) uid: PeerUid,
    pub(crate) version: u64,
    pub(crate) short_id: ShortId,
}

impl Topology {
    pub(crate) fn new(own: OwnPeer) -> Topology {
        let OwnPeer { name, nickname, uid, version, short_id } = own;
        let peer =
            Peer { nickname, uid, version, short_id: Some(short_id), connections: Vec::new(), references: 1 };
        let mut short_ids = ShortIds::default();
        short_ids.claim(short_id, name);
        let changes = TopologyChanges { short_id: Some(short_id), ..TopologyChanges::default() };
        let peers = BTreeMap::from([(name, peer)]);
        let mut topology = Topology {
            own: name,
            peers,
            short_ids,
            connection_count: 0,
            version_ceiling: version,
            foreign_version_margin: VERSION_BLOCK,
            collection_due: false,
            changes,
        };
        topology.reserve(version);
        topology
    }

    pub(crate) fn own(&self) -> PeerName {
        self.own
    }

    pub(crate) fn own_peer(&self) -> &Peer {
        self.peers.get(&self.own).expect("our own record is never removed")
    }

    fn own_peer_mut(&mut self) -> &mut Peer {
        self.peers.get_mut(&self.own).expect("our own record is never removed")
    }

    /// All peers, ascending by name.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = (PeerName, &Peer)> + '_ {
        self.peers.iter().map(|(&name, peer)| (name, peer))
    }

    pub(crate) fn peer(&self, name: PeerName) -> Option<&Peer> {
        self.peers.get(&name)
    }

    /// Name and nickname of a peer; an unknown peer has no nickname.
    pub(crate) fn label(&self, name: PeerName) -> PeerLabel {
        let nickname = self.peers.get(&name).map_or_else(|| Arc::from(""), |p| p.nickname.clone());
        PeerLabel { name, nickname }
    }

    pub(crate) fn short_ids(&self) -> &ShortIds {
        &self.short_ids
    }

    /// The consequences of all changes since the last call.
    pub(crate) fn take_changes(&mut self) -> TopologyChanges {
        self.changes.short_ids_invalidated |= self.short_ids.take_invalidated();
        std::mem::take(&mut self.changes)
    }

    // ---- our own connections ----------------------------------------------------------------------------------

    /// Adds a reference to the peer of an authenticated connection, which keeps its record (docs/spec/mesh.md 4.8 step
    /// 3). An unknown peer is added with the properties from the handshake.
    pub(crate) fn acquire_peer(
        &mut self,
        name: PeerName,
        from_handshake: impl FnOnce() -> (Arc<str>, PeerUid, Option<ShortId>),
    ) {
        if !self.peers.contains_key(&name) {
            let (nickname, uid, short_id) = from_handshake();
            self.insert(name, Peer { nickname, uid, short_id, ..Peer::placeholder() });
        }
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.references += 1;
        }
    }

    /// Removes the reference of a connection that has ended.
    pub(crate) fn release_peer(&mut self, name: PeerName) {
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.references = peer.references.saturating_sub(1);
            self.collection_due = true;
        }
    }

    /// Adds or replaces one of our connections (docs/spec/mesh.md 4.8 step 6).
    pub(crate) fn connect(&mut self, connection: PeerConnection) {
        let connections = &mut self.own_peer_mut().connections;
        match connections.binary_search_by_key(&connection.peer, |c| c.peer) {
            Ok(at) if connections[at] == connection => return,
            Ok(at) => connections[at] = connection,
            Err(at) => connections.insert(at, connection),
        }
        self.raise_version();
        self.changes.announce = true;
        self.changes.changed = true;
    }

    /// Removes one of our connections.
    pub(crate) fn disconnect(&mut self, peer: PeerName) {
        let connections = &mut self.own_peer_mut().connections;
        if let Ok(at) = connections.binary_search_by_key(&peer, |c| c.peer) {
            connections.remove(at);
            self.collection_due = true;
            self.raise_version();
            self.changes.announce = true;
            self.changes.is_urgent = true;
            self.changes.changed = true;
        }
    }

    /// Sets whether our connection to `peer` is established.
    pub(crate) fn set_established(&mut self, peer: PeerName, established: bool) {
        let connections = &mut self.own_peer_mut().connections;
        if let Ok(at) = connections.binary_search_by_key(&peer, |c| c.peer)
            && std::mem::replace(&mut connections[at].established, established) != established
        {
            self.raise_version();
            self.changes.announce = true;
            self.changes.is_urgent |= !established;
            self.changes.changed = true;
        }
    }

    // ---- our own version --------------------------------------------------------------------------------------

    fn raise_version(&mut self) {
        let next = self.own_peer().version.saturating_add(1);
        self.set_version(next);
    }

    fn set_version(&mut self, version: u64) {
        debug_assert!(version >= self.own_peer().version, "our version never falls");
        self.own_peer_mut().version = version;
        self.reserve(version);
    }

    fn reserve(&mut self, version: u64) {
        self.reserve_beyond(version, VERSION_BLOCK);
    }

    fn reserve_beyond(&mut self, version: u64, margin: u64) {
        if version >= self.version_ceiling {
            self.version_ceiling = version.saturating_add(margin);
            self.changes.version_ceiling = Some(self.version_ceiling);
        }
    }

    // ---- updates ----------------------------------------------------------------------------------------------

    /// Merges an update (docs/spec/mesh.md 8.3). Records with a version above `max_version` are left out.
    pub(crate) fn merge(
        &mut self,
        mut update: Vec<PeerRecord>,
        max_version: u64,
        rng: &mut impl Rng,
    ) -> MergeResult {
        let mut merged = MergeResult::default();
        let forged = update.extract_if(.., |record| record.version > max_version);
        merged.forged = forged.map(|record| (record.name, record.version)).min();
        // All peers of the update are added first, so that none of them becomes a placeholder.
        for record in &update {
            merged.named.insert(record.name);
            if !self.peers.contains_key(&record.name) && self.peers.len() < MAX_PEERS {
                let PeerRecord { name, nickname, uid, version, short_id, .. } = record;
                let (nickname, connections) = (nickname.clone(), Vec::new());
                let (uid, version, short_id) = (*uid, *version, *short_id);
                self.insert(*name, Peer { nickname, uid, version, short_id, connections, references: 0 });
                merged.new.insert(*name);
            }
        }
        let mut linked = BTreeSet::new();
        for record in update {
            if record.name == self.own {
                self.merge_own(&record);
            } else if merged.new.contains(&record.name) && linked.insert(record.name) {
                self.replace_connections(record.name, record.connections, &mut merged);
            } else if let Some(known) = self.peers.get(&record.name) {
                if is_newer(&record, known) {
                    merged.new.insert(record.name);
                    linked.insert(record.name);
                    self.replace_record(record, &mut merged);
                } else if record.record_version() == known.record_version() {
                    merged.same.insert(record.name);
                }
            }
        }
        if !merged.new.is_empty() {
            self.collection_due = true;
            self.changes.changed = true;
        }
        self.ensure_own_short_id(rng);
        merged
    }

    /// If other peers have a record of an earlier run of ours, of another host with our name, or a forged one, our record
    /// must become newer.
    fn merge_own(&mut self, record: &PeerRecord) {
        let own = self.own_peer();
        if record.record_version() > own.record_version()
            || record.uid != own.uid && record.version == own.version
        {
            let beyond = record.version.saturating_add(1);
            // The ceiling is written to disk when it is reached. The margin doubles each time, so that forged versions
            // cause a few dozen writes at most, not one per message.
            if beyond >= self.version_ceiling {
                self.foreign_version_margin = self.foreign_version_margin.saturating_mul(2);
                self.reserve_beyond(beyond, self.foreign_version_margin);
            }
            self.set_version(beyond);
            self.changes.announce = true;
            self.changes.is_urgent = true;
        }
    }

    fn insert(&mut self, name: PeerName, peer: Peer) {
        if let Some(id) = peer.short_id {
            self.short_ids.claim(id, name);
        }
        self.peers.insert(name, peer);
        self.collection_due = true;
        self.changes.changed = true;
    }

    fn replace_record(&mut self, record: PeerRecord, merged: &mut MergeResult) {
        let Some(peer) = self.peers.get_mut(&record.name) else { return };
        peer.uid = record.uid;
        peer.version = record.version;
        if *peer.nickname != *record.nickname {
            peer.nickname = record.nickname;
        }
        let before = std::mem::replace(&mut peer.short_id, record.short_id);
        if before != record.short_id {
            if let Some(id) = before {
                self.short_ids.release(id, record.name);
            }
            if let Some(id) = record.short_id {
                self.short_ids.claim(id, record.name);
            }
        }
        self.replace_connections(record.name, record.connections, merged);
    }

    fn replace_connections(
        &mut self,
        name: PeerName,
        mut connections: Vec<PeerConnection>,
        merged: &mut MergeResult,
    ) {
        connections.sort_by_key(|c| c.peer);
        connections.dedup_by_key(|c| c.peer);
        let before = self.peers.get(&name).map_or(0, |peer| peer.connections.len());
        connections.truncate(MAX_PEER_CONNECTIONS - (self.connection_count - before));
        connections.shrink_to_fit();
        for to in connections.iter().map(|c| c.peer) {
            if !self.peers.contains_key(&to) && self.peers.len() < MAX_PEERS {
                self.insert(to, Peer::placeholder());
                merged.mentioned.insert(to);
            }
        }
        if let Some(peer) = self.peers.get_mut(&name) {
            self.connection_count = self.connection_count - before + connections.len();
            peer.connections = connections;
        }
    }

    /// Chooses another short id if a peer with a lower name has ours.
    fn ensure_own_short_id(&mut self, rng: &mut impl Rng) {
        let Some(id) = self.own_peer().short_id else { return };
        if self.short_ids.owner(id) == Some(self.own) {
            return;
        }
        let Some(free) = self.short_ids.pick_free(rng) else { return };
        self.short_ids.release(id, self.own);
        self.short_ids.claim(free, self.own);
        self.own_peer_mut().short_id = Some(free);
        self.changes.short_id = Some(free);
        self.raise_version();
        self.changes.announce = true;
        self.changes.is_urgent = true;
    }

    // ---- garbage collection and reachability ------------------------------------------------------------------

    /// Whether [`Topology::collect_garbage`] may find something to remove.
    pub(crate) fn collection_due(&self) -> bool {
        self.collection_due
    }

    /// Removes the peers that are unreachable and not referenced (docs/spec/mesh.md 8.6).
    pub(crate) fn collect_garbage(&mut self, rng: &mut impl Rng) {
        if !std::mem::take(&mut self.collection_due) {
            return;
        }
        let reached = self.reachable();
        if reached.len() == self.peers.len() {
            return;
        }
        let gone = self.peers.extract_if(.., |name, peer| peer.references == 0 && !reached.contains(name));
        let mut any = false;
        for (name, peer) in gone {
            any = true;
            self.connection_count -= peer.connections.len();
            if let Some(id) = peer.short_id {
                self.short_ids.release(id, name);
            }
            self.changes.removed.push(PeerLabel { name, nickname: peer.nickname });
        }
        if any {
            self.changes.changed = true;
            self.ensure_own_short_id(rng);
        }
    }

    /// Whether a path of reported connections leads from us to the peer.
    pub(crate) fn is_reachable(&self, peer: PeerName) -> bool {
        self.reachable().contains(&peer)
    }

    /// Whether the record of `from` lists an established connection to `to`.
    pub(crate) fn is_established(&self, from: PeerName, to: PeerName) -> bool {
        let connections = self.peers.get(&from).map_or(&[][..], |record| &record.connections);
        let at = connections.binary_search_by_key(&to, |c| c.peer);
        at.is_ok_and(|at| connections[at].established)
    }

    /// Whether the record of another peer than ourself lists a connection to the peer.
    pub(crate) fn is_known_by_others(&self, peer: PeerName) -> bool {
        let mut others = self.peers.iter().filter(|(name, _)| **name != self.own);
        others.any(|(_, other)| other.connections.binary_search_by_key(&peer, |c| c.peer).is_ok())
    }

    /// Whether data can reach the peer without our own connection to it.
    pub(crate) fn has_other_route(&self, peer: PeerName) -> bool {
        let is_edge = |from: PeerName, to: PeerName| self.is_established(from, to);
        let mut reached = HashSet::from([self.own]);
        let mut open = vec![self.own];
        while let Some(from) = open.pop() {
            for to in self.peers.get(&from).into_iter().flat_map(|record| &record.connections).map(|c| c.peer)
            {
                let own_connection = from == self.own && to == peer;
                if !own_connection && is_edge(from, to) && is_edge(to, from) && reached.insert(to) {
                    if to == peer {
                        return true;
                    }
                    open.push(to);
                }
            }
        }
        false
    }

    /// Our neighbours that would be reachable through another neighbour without our connection to them.
    pub(crate) fn redundant_neighbours(&self) -> Vec<PeerName> {
        // Two neighbours can replace each other if they are in one component of the graph without this peer.
        let neighbours: Vec<PeerName> = self.own_peer().connections.iter().map(|c| c.peer).collect();
        let mut component: HashMap<PeerName, usize> = HashMap::new();
        let mut sizes = vec![0; neighbours.len()];
        for (number, &start) in neighbours.iter().enumerate() {
            if let Some(&seen) = component.get(&start) {
                sizes[seen] += 1;
                continue;
            }
            sizes[number] = 1;
            component.insert(start, number);
            let mut open = vec![start];
            while let Some(peer) = open.pop().and_then(|name| self.peers.get(&name)) {
                for to in peer.connections.iter().map(|c| c.peer).filter(|&to| to != self.own) {
                    if self.peers.contains_key(&to) && !component.contains_key(&to) {
                        component.insert(to, number);
                        open.push(to);
                    }
                }
            }
        }
        neighbours.into_iter().filter(|n| sizes[component[n]] > 1).collect()
    }

    /// The peers to which a path of reported connections leads from us, and this one.
    pub(crate) fn reachable(&self) -> HashSet<PeerName> {
        let mut reached = HashSet::from([self.own]);
        let mut open = vec![self.own];
        while let Some(peer) = open.pop().and_then(|name| self.peers.get(&name)) {
            // In a mesh with many connections all peers are reached after a few steps.
            if reached.len() == self.peers.len() {
                break;
            }
            for to in peer.connections.iter().map(|c| c.peer) {
                if !reached.contains(&to) && self.peers.contains_key(&to) {
                    reached.insert(to);
                    open.push(to);
                }
            }
        }
        reached
    }
}

/// Whether a record replaces the known one (docs/spec/mesh.md 8.3 rule 2).
pub(crate) fn is_newer(record: &PeerRecord, known: &Peer) -> bool {
    let (version, known_version) = (record.record_version(), known.record_version());
    version > known_version
        || version == known_version && record.short_id.is_some() && known.short_id.is_none()
}

/// The record of a peer for topology gossip.
pub(crate) fn record(name: PeerName, peer: &Peer) -> PeerRecord {
    PeerRecord {
        name,
        nickname: peer.nickname.clone(),
        uid: peer.uid,
        version: peer.version,
        short_id: peer.short_id,
        connections: peer.connections.clone(),
    }
}
