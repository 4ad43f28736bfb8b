use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rand::Rng;
use weave_types::{PeerName, PeerUid, ShortId};

use crate::peers::{Address, Link, Peer, PeerLabel};
use crate::short_ids::ShortIds;
use crate::update::{ConnectionRecord, PeerRecord};

/// All peers that we know of, ourself included, and the rules by which news about them is taken over (docs/spec/mesh.md 8).
///
/// Each peer counts a *version* of its own record up; whoever hears of a higher one takes it over. What has to happen
/// because of a change is collected in [`Effects`].
#[derive(Debug)]
pub(crate) struct Topology {
    own: PeerName,
    peers: BTreeMap<PeerName, Peer>,
    short_ids: ShortIds,
    /// Links in the records of the others.
    links: usize,
    /// All versions that we use are below it; a restart begins there.
    ceiling: u64,
    /// How far beyond a version that others force upon us the next ceiling will be.
    margin: u64,
    /// Links or references have changed since the last garbage collection.
    garbage: bool,
    effects: Effects,
}

/// What a change of the topology demands of the others.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Our versions may rise to just below this: to be persisted before anything else is sent.
    pub(crate) ceiling: Option<u64>,
    /// Our new short id: likewise.
    pub(crate) short_id: Option<ShortId>,
    /// Who may be called by which short id has changed.
    pub(crate) short_ids_invalidated: bool,
    /// Our record has to be gossiped.
    pub(crate) announce: bool,
    /// Records have changed: routes and targets have to be computed again.
    pub(crate) changed: bool,
    /// Peers that are gone.
    pub(crate) removed: Vec<PeerLabel>,
}

/// What an update brought (docs/spec/mesh.md 8.3 rule 3).
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Merged {
    /// Those about whom there was news: the delta to pass on from neighbour gossip.
    pub(crate) new: BTreeSet<PeerName>,
    /// Those about whom the sender knows just as much as we do.
    pub(crate) same: BTreeSet<PeerName>,
    /// Those who are known as somebody's neighbours only.
    pub(crate) mentioned: BTreeSet<PeerName>,
    /// All whose records came: what to pass on from a broadcast.
    pub(crate) named: BTreeSet<PeerName>,
}

/// Versions are reserved in blocks of this size, so that the disk is not asked at each of them.
const VERSION_BLOCK: u64 = 1024;
/// Somebody else's idea of our version is outbid below this only. Nobody counts that far, so more is a forgery, and outbidding
/// that would leave no room to count on. Those who believe it forget it when they lose sight of us.
const HIGHEST_OUTBID: u64 = 1 << 63;

/// More peers than this are not taken in: memory must not depend on what a peer makes up. The short ids end at 4096.
const MAX_PEERS: usize = 65_536;
/// Nor more links in all, those of a full mesh of 2,000 peers. What is beyond is left out, as if it were not there.
pub(crate) const MAX_LINKS: usize = 4 << 20;

/// What is known of ourself at the start.
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
            Peer { nickname, uid, version, short_id: Some(short_id), links: Vec::new(), references: 1 };
        let mut short_ids = ShortIds::default();
        short_ids.claim(short_id, name);
        let effects = Effects { short_id: Some(short_id), ..Effects::default() };
        let peers = BTreeMap::from([(name, peer)]);
        let mut topology = Topology {
            own: name,
            peers,
            short_ids,
            links: 0,
            ceiling: version,
            margin: VERSION_BLOCK,
            garbage: false,
            effects,
        };
        topology.reserve(version);
        topology
    }

    /// Our name.
    pub(crate) fn own(&self) -> PeerName {
        self.own
    }

    /// Our record.
    pub(crate) fn own_peer(&self) -> &Peer {
        self.peers.get(&self.own).expect("we are never collected")
    }

    fn own_peer_mut(&mut self) -> &mut Peer {
        self.peers.get_mut(&self.own).expect("we are never collected")
    }

    /// All peers, ascending by name.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = (PeerName, &Peer)> + '_ {
        self.peers.iter().map(|(&name, peer)| (name, peer))
    }

    pub(crate) fn peer(&self, name: PeerName) -> Option<&Peer> {
        self.peers.get(&name)
    }

    /// `NAME(NICK)`; an unknown peer has no nickname.
    pub(crate) fn label(&self, name: PeerName) -> PeerLabel {
        let nickname = self.peers.get(&name).map_or_else(|| Arc::from(""), |p| p.nickname.clone());
        PeerLabel { name, nickname }
    }

    pub(crate) fn short_ids(&self) -> &ShortIds {
        &self.short_ids
    }

    /// What has to be done because of the calls since the last time.
    pub(crate) fn take_effects(&mut self) -> Effects {
        self.effects.short_ids_invalidated |= self.short_ids.take_invalidated();
        std::mem::take(&mut self.effects)
    }

    // ---- connections of our own -------------------------------------------------------------------------------

    /// A connection has learnt who is at its other end: makes the peer known and keeps it (docs/spec/mesh.md 4.8 step 3). What
    /// the handshake said is only for a peer that is not known yet.
    pub(crate) fn refer(
        &mut self,
        name: PeerName,
        said: impl FnOnce() -> (Arc<str>, PeerUid, Option<ShortId>),
    ) {
        if !self.peers.contains_key(&name) {
            let (nickname, uid, short_id) = said();
            self.insert(name, Peer { nickname, uid, short_id, ..Peer::placeholder() });
        }
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.references += 1;
        }
    }

    /// The connection is gone.
    pub(crate) fn release(&mut self, name: PeerName) {
        if let Some(peer) = self.peers.get_mut(&name) {
            peer.references = peer.references.saturating_sub(1);
            self.garbage = true;
        }
    }

    /// Enters a connection of ours (docs/spec/mesh.md 4.8 step 6).
    pub(crate) fn connect(&mut self, link: Link) {
        let links = &mut self.own_peer_mut().links;
        match links.binary_search_by_key(&link.peer, |l| l.peer) {
            Ok(at) => links[at] = link,
            Err(at) => links.insert(at, link),
        }
        self.raise_version();
        self.effects.announce = true;
        self.effects.changed = true;
    }

    /// Strikes a connection of ours out; garbage collection is due.
    pub(crate) fn disconnect(&mut self, peer: PeerName) {
        let links = &mut self.own_peer_mut().links;
        if let Ok(at) = links.binary_search_by_key(&peer, |l| l.peer) {
            links.remove(at);
            self.garbage = true;
            self.raise_version();
            self.effects.announce = true;
            self.effects.changed = true;
        }
    }

    /// The data path to `peer` works.
    pub(crate) fn establish(&mut self, peer: PeerName) {
        let links = &mut self.own_peer_mut().links;
        if let Ok(at) = links.binary_search_by_key(&peer, |l| l.peer) {
            links[at].established = true;
            self.raise_version();
            self.effects.announce = true;
            self.effects.changed = true;
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
        if version >= self.ceiling {
            self.ceiling = version.saturating_add(margin);
            self.effects.ceiling = Some(self.ceiling);
        }
    }

    // ---- news -------------------------------------------------------------------------------------------------

    /// Takes over what is news in an update (docs/spec/mesh.md 8.3).
    pub(crate) fn merge(&mut self, update: Vec<PeerRecord>, rng: &mut impl Rng) -> Merged {
        let mut merged = Merged::default();
        // All peers of the update come first, so that none of them is taken for a mere neighbour.
        for record in &update {
            merged.named.insert(record.name);
            if !self.peers.contains_key(&record.name) && self.peers.len() < MAX_PEERS {
                let PeerRecord { name, nickname, uid, version, short_id, .. } = record;
                let (nickname, links) = (nickname.as_str().into(), Vec::new());
                let (uid, version, short_id) = (*uid, *version, *short_id);
                self.insert(*name, Peer { nickname, uid, version, short_id, links, references: 0 });
                merged.new.insert(*name);
            }
        }
        let mut linked = BTreeSet::new();
        for record in update {
            if record.name == self.own {
                self.merge_own(&record);
            } else if merged.new.contains(&record.name) && linked.insert(record.name) {
                self.take_links(record.name, record.connections, &mut merged);
            } else if let Some(known) = self.peers.get(&record.name) {
                if improves(&record, known) {
                    merged.new.insert(record.name);
                    linked.insert(record.name);
                    self.take_record(record, &mut merged);
                } else if (record.version, record.uid) == (known.version, known.uid) {
                    merged.same.insert(record.name);
                }
            }
        }
        if !merged.new.is_empty() {
            self.garbage = true;
            self.effects.changed = true;
        }
        self.keep_short_id(rng);
        merged
    }

    /// Somebody remembers an earlier incarnation of ours (or a host with our name): what we say must be newer.
    fn merge_own(&mut self, record: &PeerRecord) {
        let own = self.own_peer();
        if record.uid != own.uid && record.version >= own.version && record.version < HIGHEST_OUTBID {
            let beyond = record.version + 1;
            // The disk is written to each time that the ceiling is reached. With a margin that doubles then, whoever sends
            // ever higher versions makes that happen a few dozen times, not once for each message.
            if beyond >= self.ceiling {
                self.margin = self.margin.saturating_mul(2);
                self.reserve_beyond(beyond, self.margin);
            }
            self.set_version(beyond);
            self.effects.announce = true;
        }
    }

    fn insert(&mut self, name: PeerName, peer: Peer) {
        if let Some(id) = peer.short_id {
            self.short_ids.claim(id, name);
        }
        self.peers.insert(name, peer);
        self.garbage = true;
        self.effects.changed = true;
    }

    fn take_record(&mut self, record: PeerRecord, merged: &mut Merged) {
        let Some(peer) = self.peers.get_mut(&record.name) else { return };
        peer.uid = record.uid;
        peer.version = record.version;
        if *peer.nickname != *record.nickname {
            peer.nickname = record.nickname.into();
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
        self.take_links(record.name, record.connections, merged);
    }

    fn take_links(&mut self, name: PeerName, connections: Vec<ConnectionRecord>, merged: &mut Merged) {
        let mut links: Vec<Link> = connections.into_iter().map(link).collect();
        links.sort_by_key(|l| l.peer);
        links.dedup_by_key(|l| l.peer);
        let before = self.peers.get(&name).map_or(0, |peer| peer.links.len());
        links.truncate(MAX_LINKS - (self.links - before));
        links.shrink_to_fit();
        for to in links.iter().map(|l| l.peer) {
            if !self.peers.contains_key(&to) && self.peers.len() < MAX_PEERS {
                self.insert(to, Peer::placeholder());
                merged.mentioned.insert(to);
            }
        }
        if let Some(peer) = self.peers.get_mut(&name) {
            self.links = self.links - before + links.len();
            peer.links = links;
        }
    }

    /// If a lower name has our short id, another one is chosen.
    fn keep_short_id(&mut self, rng: &mut impl Rng) {
        let Some(id) = self.own_peer().short_id else { return };
        if self.short_ids.owner(id) == Some(self.own) {
            return;
        }
        let Some(free) = self.short_ids.pick_free(rng) else { return };
        self.short_ids.release(id, self.own);
        self.short_ids.claim(free, self.own);
        self.own_peer_mut().short_id = Some(free);
        self.effects.short_id = Some(free);
        self.raise_version();
        self.effects.announce = true;
    }

    // ---- garbage ----------------------------------------------------------------------------------------------

    /// Whether [`Topology::collect`] could find anything.
    pub(crate) fn has_garbage(&self) -> bool {
        self.garbage
    }

    /// Forgets the peers that nobody leads to and nothing refers to (docs/spec/mesh.md 8.6).
    pub(crate) fn collect(&mut self, rng: &mut impl Rng) {
        if !std::mem::take(&mut self.garbage) {
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
            self.links -= peer.links.len();
            if let Some(id) = peer.short_id {
                self.short_ids.release(id, name);
            }
            self.effects.removed.push(PeerLabel { name, nickname: peer.nickname });
        }
        if any {
            self.effects.changed = true;
            self.keep_short_id(rng);
        }
    }

    /// Whether links lead from us to the peer.
    pub(crate) fn is_reachable(&self, peer: PeerName) -> bool {
        self.reachable().contains(&peer)
    }

    /// Those neighbours of ours that we would still reach without the link to them, by way of another neighbour.
    pub(crate) fn redundant_neighbours(&self) -> Vec<PeerName> {
        // Two neighbours can do for each other if they are in the same component of the graph without ourself.
        let neighbours: Vec<PeerName> = self.own_peer().links.iter().map(|l| l.peer).collect();
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
                for to in peer.links.iter().map(|l| l.peer).filter(|&to| to != self.own) {
                    if self.peers.contains_key(&to) && !component.contains_key(&to) {
                        component.insert(to, number);
                        open.push(to);
                    }
                }
            }
        }
        neighbours.into_iter().filter(|n| sizes[component[n]] > 1).collect()
    }

    fn reachable(&self) -> HashSet<PeerName> {
        let mut reached = HashSet::from([self.own]);
        let mut open = vec![self.own];
        while let Some(peer) = open.pop().and_then(|name| self.peers.get(&name)) {
            // A well-connected mesh has seen everybody after a few peers.
            if reached.len() == self.peers.len() {
                break;
            }
            for to in peer.links.iter().map(|l| l.peer) {
                if !reached.contains(&to) && self.peers.contains_key(&to) {
                    reached.insert(to);
                    open.push(to);
                }
            }
        }
        reached
    }
}

/// Whether a record is news compared with what is known (docs/spec/mesh.md 8.3 rule 2).
pub(crate) fn improves(record: &PeerRecord, known: &Peer) -> bool {
    let order = record.version.cmp(&known.version).then(record.uid.cmp(&known.uid));
    order.is_gt() || order.is_eq() && record.short_id.is_some() && known.short_id.is_none()
}

fn link(record: ConnectionRecord) -> Link {
    let address = Address::from_text(&record.remote_tcp_addr);
    Link { peer: record.name, address, outbound: record.outbound, established: record.established }
}

/// A peer as it is gossiped.
pub(crate) fn record(name: PeerName, peer: &Peer) -> PeerRecord {
    let connections = peer.links.iter().map(|l| ConnectionRecord {
        name: l.peer,
        remote_tcp_addr: l.address.to_string(),
        outbound: l.outbound,
        established: l.established,
    });
    PeerRecord {
        name,
        nickname: peer.nickname.to_string(),
        uid: peer.uid,
        version: peer.version,
        short_id: peer.short_id,
        connections: connections.collect(),
    }
}
