//! The names of all peers (docs/spec/dns.md 3-7).
//!
//! Each peer has all entries. An entry is changed by its origin only, which raises its version; peers keep the state with the
//! highest version. A removed entry stays as a tombstone for some time, so that old gossip does not bring it back.
//!
//! ```text
//!   add, remove ──▶ entries ──▶ Broadcast to all peers       Names ──▶ threads of the server
//!   broadcast, gossip ──▶ origin known? ──▶ entries ──▶ relayed: the broadcast, or what is new
//!                              └─ no ──▶ pending for some seconds, until the topology has the origin
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use weave_types::{Instant, Now, PeerName};

use crate::entry::{Entry, Key};
use crate::message::{self, Malformed, Message, by_key};
use crate::output::{RegistryEvent, RegistryOutput};
use crate::{HostName, Names};

/// Time for which a tombstone is kept, by the clock of this host. 2.8.1 compares wall clocks.
pub const TOMBSTONE_LIFETIME: Duration = Duration::from_secs(1800);
/// Interval between two removals of old tombstones.
const PURGE_INTERVAL: Duration = Duration::from_secs(60);
/// Time for which entries of peers are kept that the topology does not have yet. It usually arrives within milliseconds.
const PENDING_LIFETIME: Duration = Duration::from_secs(10);
/// Time for which no entries are kept of a peer that has left the topology: others that have not noticed yet send those of its
/// earlier life. If it is back sooner, it broadcasts its entries.
const LEFT_MEMORY: Duration = Duration::from_secs(60);
/// Time after which a peer that has joined others broadcasts its entries, and compares: by then they have it in their topology.
const ANNOUNCE_DELAY: Duration = Duration::from_millis(500);
/// Difference of clocks, seconds, up to which 2.8.1 accepts a message.
const MAX_SKEW: i64 = 900;
/// Interval between two log lines about the same problem.
const LOG_INTERVAL: Duration = Duration::from_secs(600);
/// Time for which [`Registry::clock_skews`] shows a difference.
const SKEW_SHOWN: Duration = Duration::from_secs(120);

/// Bytes of all entries of one peer.
const MAX_ORIGIN_BYTES: usize = 1 << 20;
/// Bytes of all entries of other peers. The complete state must fit a frame of the mesh.
const MAX_FOREIGN_BYTES: usize = 4 << 20;
/// Bytes of the entries of peers that the topology does not have.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// Bytes of a message made of several that wait; a frame of the mesh has at most 10 MiB.
const MAX_MERGED_BYTES: usize = 8 << 20;

/// Parameters of a [`Registry`].
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The name of this peer.
    pub own: PeerName,
    /// The domain of the names.
    pub domain: HostName,
}

/// Selects entries. `None` matches any.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Filter {
    /// Id of the container.
    pub container: Option<String>,
    /// The address.
    pub addr: Option<Ipv4Addr>,
    /// The name, in any case of letters.
    pub name: Option<HostName>,
}

/// What peers of version 2.8.1 do otherwise, for the simulation of mixed networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Policy {
    /// Entries of peers that the topology does not have are dropped.
    pub drop_unknown_origins: bool,
}

impl Policy {
    /// The behaviour of 2.8.1.
    pub fn legacy() -> Policy {
        Policy { drop_unknown_origins: true }
    }
}

impl Filter {
    fn matches(&self, key: &Key) -> bool {
        self.container.as_ref().is_none_or(|container| **container == *key.container)
            && self.addr.is_none_or(|addr| addr == key.addr)
            && self.name.as_ref().is_none_or(|name| name.as_str().to_lowercase() == *key.lower)
    }
}

#[derive(Clone, Debug)]
struct Stored {
    entry: Entry,
    /// When this state arrived here.
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Skew {
    seconds: i64,
    seen: Instant,
    logged: Instant,
}

/// The names of all peers; the module documentation gives an overview.
#[derive(Clone, Debug)]
pub struct Registry {
    config: RegistryConfig,
    policy: Policy,
    entries: BTreeMap<Key, Stored>,
    /// Bytes of the entries of each peer that has any.
    bytes: BTreeMap<PeerName, usize>,
    total_bytes: usize,
    /// Number of entries that are removed.
    tombstones: usize,
    /// Sum of the hashes of all live entries.
    digest: u64,
    /// Entries of peers that the topology does not have, and when they are dropped.
    pending: BTreeMap<Key, (Entry, Instant)>,
    pending_bytes: usize,
    /// When the first pending entries are dropped, if there are any.
    next_pending_expiry: Instant,
    /// The peers of the topology.
    known: BTreeSet<PeerName>,
    /// When peers left it.
    left: BTreeMap<PeerName, Instant>,
    names: Names,
    names_changed: bool,
    /// When our entries are broadcast and compared, if they will be.
    announce_at: Option<Instant>,
    next_purge: Instant,
    /// Differences of clocks, by source.
    skews: BTreeMap<Option<PeerName>, Skew>,
    /// When it was last logged that there are too many names.
    full_logged: Option<Instant>,
    outputs: VecDeque<RegistryOutput>,
}

impl Registry {
    /// Creates a registry without entries, in a topology of this peer alone.
    pub fn new(config: RegistryConfig) -> Registry {
        Registry {
            known: BTreeSet::from([config.own]),
            config,
            policy: Policy::default(),
            entries: BTreeMap::new(),
            bytes: BTreeMap::new(),
            total_bytes: 0,
            tombstones: 0,
            digest: 0,
            pending: BTreeMap::new(),
            pending_bytes: 0,
            next_pending_expiry: Instant::ORIGIN,
            left: BTreeMap::new(),
            names: Names::default(),
            names_changed: false,
            announce_at: None,
            next_purge: Instant::ORIGIN,
            skews: BTreeMap::new(),
            full_logged: None,
            outputs: VecDeque::new(),
        }
    }

    /// Makes the registry behave otherwise than by default.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// The domain of the names.
    pub fn domain(&self) -> &HostName {
        &self.config.domain
    }

    /// A snapshot of the live names within the domain.
    pub fn names(&self) -> Names {
        self.names.clone()
    }

    /// All entries, removed ones included, in the order of 2.8.1.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().map(|stored| &stored.entry)
    }

    /// A hash of the live entries that does not depend on their order. Tombstones do not count: peers drop them at different times, and
    /// where one is missing the entry is live or not there.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Clocks that differ from ours by more than 2.8.1 accepts: the source of the broadcast (`None` for a neighbour) and the
    /// seconds by which the clock is ahead.
    pub fn clock_skews(&self, now: Now) -> impl Iterator<Item = (Option<PeerName>, i64)> {
        let shown = move |skew: &Skew| now.mono - skew.seen < SKEW_SHOWN;
        self.skews.iter().filter(move |(_, skew)| shown(skew)).map(|(src, skew)| (*src, skew.seconds))
    }

    /// Registers a name of a container of this host. Returns `false` if it is outside the domain, or there are too many names.
    pub fn add(&mut self, name: &HostName, container: &str, addr: Ipv4Addr, now: Now) -> bool {
        if !name.is_within(&self.config.domain) {
            return false;
        }
        let entry = Entry {
            hostname: name.as_str().into(),
            origin: self.config.own,
            container: container.into(),
            addr,
            version: 0,
            tombstone: 0,
        };
        let key = entry.key();
        let entry = match self.entries.get(&key) {
            Some(known) if known.entry.is_live() => known.entry.clone(),
            Some(known) => Entry { version: known.entry.version + 1, tombstone: 0, ..known.entry.clone() },
            None if entry.is_acceptable() && self.has_room(&entry) => entry,
            None => return false,
        };
        self.store(key, entry.clone(), now);
        self.broadcast([&entry], now);
        true
    }

    /// Removes names of containers of this host. Returns how many.
    pub fn remove(&mut self, filter: &Filter, now: Now) -> usize {
        let own = self.config.own;
        let matching = |(key, stored): &(&Key, &Stored)| {
            key.origin == own && stored.entry.is_live() && filter.matches(key)
        };
        let removed: Vec<(Key, Entry)> = self
            .entries
            .iter()
            .filter(matching)
            .map(|(key, stored)| (key.clone(), removed(&stored.entry, now)))
            .collect();
        if !removed.is_empty() {
            self.broadcast(removed.iter().map(|(_, entry)| entry), now);
        }
        let count = removed.len();
        removed.into_iter().for_each(|(key, entry)| self.store(key, entry, now));
        count
    }

    /// Handles a broadcast of `src`. Returns the message to pass on in its place.
    ///
    /// # Errors
    /// The message is malformed: the connection that it came over should be closed.
    pub fn handle_broadcast(
        &mut self,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, Malformed> {
        let message = Message::decode(payload)?;
        let src = self.known.contains(&src).then_some(src);
        let (relayed, _) = self.receive(src, message, now);
        Ok(encode_unless_empty(&relayed, now))
    }

    /// Handles gossip of a neighbour. Returns the part that is new, to pass on.
    ///
    /// # Errors
    /// The message is malformed: the connection that it came over should be closed.
    pub fn handle_gossip(&mut self, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, Malformed> {
        let message = Message::decode(payload)?;
        let (_, news) = self.receive(None, message, now);
        Ok(encode_unless_empty(&news, now))
    }

    /// The complete state; `None` if there are no entries.
    pub fn state(&self, now: Now) -> Option<Vec<u8>> {
        (!self.entries.is_empty()).then(|| message::encode(seconds(now), self.entries()))
    }

    /// Merges a message into an earlier one that has not been sent (docs/spec/dns.md 5).
    pub fn merge(queued: &mut Vec<u8>, more: &[u8]) {
        if let (Ok(before), Ok(after)) = (Message::decode(queued), Message::decode(more)) {
            let entries = by_key(before.entries.into_iter().chain(after.entries));
            let merged = message::encode(before.timestamp.max(after.timestamp), entries.values());
            if merged.len() <= MAX_MERGED_BYTES {
                *queued = merged;
                return;
            }
        }
        // The next complete state contains what is lost.
        *queued = more.to_vec();
    }

    /// The peers of the topology have changed.
    pub fn handle_topology_change(&mut self, known: &BTreeSet<PeerName>, now: Now) {
        let (gained, before) = (known.difference(&self.known).count(), self.known.len());
        let gone: Vec<PeerName> = self.known.iter().filter(|peer| !known.contains(peer)).copied().collect();
        gone.into_iter().for_each(|peer| self.handle_peer_removed(peer, now));
        // Neighbours pass our state on to random neighbours of theirs, so that it may take minutes to arrive everywhere. Where two
        // meshes meet, peers of the smaller one broadcast.
        if gained >= before {
            self.announce_at = Some(now.mono + ANNOUNCE_DELAY);
        }
        self.known.clone_from(known);
        self.known.insert(self.config.own);
        let is_known = |key: &Key| self.known.contains(&key.origin);
        let appeared: Vec<Key> = self.pending.keys().filter(|key| is_known(key)).cloned().collect();
        for key in appeared {
            if let Some(entry) = self.take_pending(&key) {
                self.merge_entry(key, entry, now);
            }
        }
    }

    /// A peer has left the topology: its entries are removed, as every peer does by itself.
    pub fn handle_peer_removed(&mut self, peer: PeerName, now: Now) {
        if peer != self.config.own && self.known.remove(&peer) {
            self.left.retain(|_, at| now.mono - *at < LEFT_MEMORY);
            self.left.insert(peer, now.mono);
            self.remove_origin(peer);
        }
    }

    /// Handles all timers that are due. Calling it late or too often is harmless.
    pub fn handle_timeout(&mut self, now: Now) {
        if !self.pending.is_empty() && now.mono >= self.next_pending_expiry {
            let is_over = |(_, (_, until)): &(&Key, &(Entry, Instant))| *until <= now.mono;
            let over: Vec<Key> = self.pending.iter().filter(is_over).map(|(key, _)| key.clone()).collect();
            over.iter().for_each(|key| drop(self.take_pending(key)));
            let next = self.pending.values().map(|(_, until)| *until).min();
            self.next_pending_expiry = next.unwrap_or(now.mono);
        }
        if self.announce_at.take_if(|at| *at <= now.mono).is_some() {
            let own: Vec<Entry> =
                self.entries().filter(|entry| entry.origin == self.config.own).cloned().collect();
            if !own.is_empty() {
                self.broadcast(&own, now);
            }
            self.outputs.push_back(RegistryOutput::Compare);
        }
        if self.tombstones > 0 && now.mono >= self.next_purge {
            self.next_purge = now.mono + PURGE_INTERVAL;
            let is_old =
                |stored: &Stored| !stored.entry.is_live() && now.mono - stored.since >= TOMBSTONE_LIFETIME;
            let old: Vec<Key> =
                self.entries.iter().filter(|(_, s)| is_old(s)).map(|(key, _)| key.clone()).collect();
            old.iter().for_each(|key| self.drop_entry(key));
        }
        self.skews.retain(|_, skew| now.mono - skew.logged < LOG_INTERVAL.max(SKEW_SHOWN));
    }

    /// When to call [`handle_timeout`](Registry::handle_timeout), and the reason.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let pending =
            (!self.pending.is_empty()).then_some((self.next_pending_expiry, "entries of unknown peers"));
        let purge = (self.tombstones > 0).then_some((self.next_purge, "removal of tombstones"));
        let announce = self.announce_at.map(|at| (at, "comparison of names with those of other peers"));
        pending.into_iter().chain(purge).chain(announce).min()
    }

    /// The next output, or `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<RegistryOutput> {
        let changed = || std::mem::take(&mut self.names_changed).then_some(RegistryOutput::NamesChanged);
        self.outputs.pop_front().or_else(changed)
    }

    /// Merges a message. Returns the entries to relay if it was a broadcast, and those that are new.
    fn receive(&mut self, src: Option<PeerName>, message: Message, now: Now) -> (Vec<Entry>, Vec<Entry>) {
        self.note_skew(src, message.timestamp, now);
        let (mut relayed, mut news) = (Vec::new(), Vec::new());
        let (mut overridden, mut confirmed) = (Vec::new(), Vec::new());
        for (key, mut entry) in by_key(message.entries) {
            if self.policy.drop_unknown_origins && !self.known.contains(&key.origin) {
                continue;
            }
            if key.origin == self.config.own {
                let stored = self.entries.get(&key).map(|stored| &stored.entry);
                match stored {
                    // A spelling of an earlier life, which others must not keep besides ours.
                    Some(ours) if ours.hostname != entry.hostname => {
                        if entry.is_live() {
                            entry = removed(&entry, now);
                            overridden.push(entry.clone());
                            confirmed.extend(ours.is_live().then(|| ours.clone()));
                        }
                        relayed.push(entry);
                        continue;
                    }
                    Some(ours)
                        if ours.version < entry.version
                            || (ours.version == entry.version && ours.tombstone != entry.tombstone) =>
                    {
                        entry = Entry { version: entry.version + 1, ..ours.clone() };
                        overridden.push(entry.clone());
                    }
                    None if entry.is_live() => {
                        entry = removed(&entry, now);
                        overridden.push(entry.clone());
                    }
                    _ => {}
                }
            }
            relayed.push(entry.clone());
            let is_new = if self.known.contains(&key.origin) {
                self.merge_entry(key, entry.clone(), now)
            } else {
                self.hold(key, entry.clone(), now)
            };
            if is_new {
                news.push(entry);
            }
        }
        // Never in one message with the other spelling.
        for entries in [overridden, confirmed] {
            if !entries.is_empty() {
                self.broadcast(&entries, now);
            }
        }
        (relayed, news)
    }

    /// Keeps an entry of a peer that the topology does not have. 2.8.1 drops it, and gets it again with later gossip. Returns whether
    /// it is new.
    fn hold(&mut self, key: Key, entry: Entry, now: Now) -> bool {
        let has_left = self.left.get(&key.origin).is_some_and(|at| now.mono - *at < LEFT_MEMORY);
        if has_left || self.pending.get(&key).is_some_and(|(known, _)| !entry.supersedes(known)) {
            return false;
        }
        self.take_pending(&key);
        if self.pending_bytes + entry.size() > MAX_PENDING_BYTES {
            return false;
        }
        if self.pending.is_empty() {
            self.next_pending_expiry = now.mono + PENDING_LIFETIME;
        }
        self.pending_bytes += entry.size();
        self.pending.insert(key, (entry, now.mono + PENDING_LIFETIME));
        true
    }

    fn take_pending(&mut self, key: &Key) -> Option<Entry> {
        let (entry, _) = self.pending.remove(key)?;
        self.pending_bytes -= entry.size();
        Some(entry)
    }

    /// Merges the state of an entry. Returns whether anything changed.
    fn merge_entry(&mut self, key: Key, entry: Entry, now: Now) -> bool {
        match self.entries.get(&key) {
            Some(known) if !entry.supersedes(&known.entry) => return false,
            Some(_) => {}
            // There is nothing to remove, and without this rule peers would give each other a tombstone again for ever.
            None if !entry.is_live() && age(&entry, now) > TOMBSTONE_LIFETIME.as_secs() as i64 => {
                return false;
            }
            None if !self.has_room(&entry) => {
                if self.full_logged.is_none_or(|last| now.mono - last >= LOG_INTERVAL) {
                    self.full_logged = Some(now.mono);
                    let event = RegistryEvent::Full { origin: entry.origin };
                    self.outputs.push_back(RegistryOutput::Event(event));
                }
                return false;
            }
            None => {}
        }
        self.store(key, entry, now);
        true
    }

    /// Whether a further entry fits the limits.
    fn has_room(&self, entry: &Entry) -> bool {
        let bytes_of = |origin| self.bytes.get(&origin).copied().unwrap_or_default();
        let own = self.config.own;
        bytes_of(entry.origin) + entry.size() <= MAX_ORIGIN_BYTES
            && (entry.origin == own || self.total_bytes - bytes_of(own) + entry.size() <= MAX_FOREIGN_BYTES)
    }

    /// Replaces the state of an entry.
    fn store(&mut self, key: Key, entry: Entry, now: Now) {
        if self.entries.get(&key).is_some_and(|stored| stored.entry == entry) {
            return;
        }
        self.drop_entry(&key);
        *self.bytes.entry(entry.origin).or_default() += entry.size();
        self.total_bytes += entry.size();
        if entry.is_live() {
            self.digest = self.digest.wrapping_add(key.hash(entry.version));
            if let Some(name) = self.served_name(&entry) {
                self.names.insert(&name, entry.origin, &entry.container, entry.addr);
                self.names_changed = true;
            }
        } else {
            if self.tombstones == 0 {
                self.next_purge = now.mono + TOMBSTONE_LIFETIME;
            }
            self.tombstones += 1;
        }
        self.entries.insert(key, Stored { entry, since: now.mono });
    }

    fn drop_entry(&mut self, key: &Key) {
        let Some(Stored { entry, .. }) = self.entries.remove(key) else { return };
        self.total_bytes -= entry.size();
        if let Some(bytes) = self.bytes.get_mut(&entry.origin) {
            *bytes -= entry.size();
            if *bytes == 0 {
                self.bytes.remove(&entry.origin);
            }
        }
        if entry.is_live() {
            self.digest = self.digest.wrapping_sub(key.hash(entry.version));
            if let Some(name) = self.served_name(&entry) {
                self.names.remove(&name, entry.origin, &entry.container, entry.addr);
                self.names_changed = true;
            }
        } else {
            self.tombstones -= 1;
        }
    }

    fn remove_origin(&mut self, peer: PeerName) {
        if !self.bytes.contains_key(&peer) {
            return;
        }
        let keys: Vec<Key> = self.entries.keys().filter(|key| key.origin == peer).cloned().collect();
        keys.iter().for_each(|key| self.drop_entry(key));
    }

    /// The name under which an entry can be looked up. Other peers may have another domain.
    fn served_name(&self, entry: &Entry) -> Option<HostName> {
        if !entry.hostname.ends_with('.') {
            return None;
        }
        HostName::parse(&entry.hostname).ok().filter(|name| name.is_within(&self.config.domain))
    }

    fn note_skew(&mut self, src: Option<PeerName>, timestamp: i64, now: Now) {
        let ahead = timestamp.saturating_sub(seconds(now));
        if ahead.unsigned_abs() <= MAX_SKEW.unsigned_abs() {
            return;
        }
        let logged = self.skews.get(&src).map(|skew| skew.logged);
        let logged = logged.filter(|last| now.mono - *last < LOG_INTERVAL);
        if logged.is_none() {
            let event = RegistryEvent::ClockSkew { src, seconds: ahead };
            self.outputs.push_back(RegistryOutput::Event(event));
        }
        let skew = Skew { seconds: ahead, seen: now.mono, logged: logged.unwrap_or(now.mono) };
        self.skews.insert(src, skew);
    }

    fn broadcast<'e>(&mut self, entries: impl IntoIterator<Item = &'e Entry>, now: Now) {
        self.outputs.push_back(RegistryOutput::Broadcast(message::encode(seconds(now), entries)));
    }
}

fn seconds(now: Now) -> i64 {
    i64::try_from(now.wall.as_secs()).unwrap_or(i64::MAX)
}

/// Seconds since an entry was removed, if the clocks of the hosts agree.
fn age(entry: &Entry, now: Now) -> i64 {
    seconds(now).saturating_sub(entry.tombstone)
}

fn removed(entry: &Entry, now: Now) -> Entry {
    Entry { version: entry.version + 1, tombstone: seconds(now).max(1), ..entry.clone() }
}

fn encode_unless_empty(entries: &[Entry], now: Now) -> Option<Vec<u8>> {
    (!entries.is_empty()).then(|| message::encode(seconds(now), entries))
}
