use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use weave_types::{Instant, MacAddr, PeerName};

/// Parameters of a [`MacTable`].
#[derive(Clone, Debug)]
pub struct MacConfig {
    /// Name of this peer; its entries are the local ones.
    pub own: PeerName,
    /// [`MacTable::expire`] removes entries that were silent for longer. 10 min, as in 2.8.1.
    pub max_age: Duration,
    /// How long no frame with a MAC must have arrived at its place, here or at a remote peer, before the MAC moves from here to
    /// a peer or from a peer to here. 2 s, less up to 100 ms because last-seen times are inexact; 2.8.1 never moves a MAC from
    /// a peer to here (docs/spec/data-plane.md 2.5), and moves it to a peer at once.
    pub hold_down: Duration,
    /// Of the frames that are refused because their source is in use at another peer, one passes in this time, so that both
    /// users of an address hear of each other. 1.5 s: a loop stays slow, and of advertisements that are sent every second one
    /// is heard within 3 s.
    pub conflict_interval: Duration,
    /// Maximum number of entries. A further MAC displaces an old one of the peer that has most. 65536; 2.8.1 has no limit,
    /// and a single container can use 2^46 addresses.
    pub max_entries: usize,
    /// Random seed of the hash, so that addresses with colliding hashes cannot be chosen.
    pub hash_seed: u64,
}

impl MacConfig {
    /// Default values for the peer `own`, with a hash seed of 0.
    pub fn new(own: PeerName) -> MacConfig {
        MacConfig {
            own,
            max_age: Duration::from_secs(600),
            hold_down: Duration::from_secs(2),
            conflict_interval: Duration::from_millis(1500),
            max_entries: 65536,
            hash_seed: 0,
        }
    }
}

/// Result of [`MacTable::learn_local`] and [`MacTable::learn_remote`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// The address was unknown. Logged as `Discovered local MAC <mac>` or `Discovered remote MAC <mac> at <peer>`.
    New,
    /// The address was known at this peer already and is refreshed.
    Known,
    /// The address was known at another peer and is moved. Logged with `(was at <from>)`.
    Moved {
        /// The previous peer.
        from: PeerName,
    },
    /// The address has been used at its place within the hold-down and stays there.
    Refused {
        /// The peer that keeps the address, perhaps this one.
        by: PeerName,
    },
    /// The address is a group address or zero: nothing changed.
    Ignored,
}

/// One entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacEntry {
    /// The address.
    pub mac: MacAddr,
    /// The peer that has it.
    pub peer: PeerName,
    /// When its latest frame arrived, up to 100 ms too early.
    pub last_seen: Instant,
    /// How many frames with this source were refused at this peer because another peer uses the address.
    pub refused: u64,
}

/// What data threads write to an entry without sending an event. The table and all snapshots that contain the entry share it.
/// Times are in milliseconds since the origin of the clock.
#[derive(Clone)]
struct Activity(Arc<Times>);

struct Times {
    last_seen: AtomicU64,
    /// When a conflicting frame passed, or the first one was refused; 0 before.
    conflict: AtomicU64,
    refused: AtomicU64,
}

/// A newer time is stored only after this interval: a store per frame would move the cache line between the threads.
const GRANULARITY_MS: u64 = 100;

impl Activity {
    fn new(now: Instant, refused: u64) -> Activity {
        let last_seen = AtomicU64::new(millis(now));
        Activity(Arc::new(Times { last_seen, conflict: AtomicU64::new(0), refused: AtomicU64::new(refused) }))
    }

    /// Whether a local frame passes although another peer uses its source. Refused frames are counted.
    fn passes_despite_conflict(&self, interval: Duration, now: Instant) -> bool {
        let now = millis(now).max(1);
        let previous = self.0.conflict.load(Ordering::Relaxed);
        let due = previous == 0 || u128::from(now.saturating_sub(previous)) >= interval.as_millis();
        if due {
            self.0.conflict.store(now, Ordering::Relaxed);
        }
        // The first frame may be a late one from before the address moved.
        let passes = due && previous != 0;
        if !passes {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        passes
    }

    fn refused(&self) -> u64 {
        self.0.refused.load(Ordering::Relaxed)
    }

    fn touch(&self, now: Instant) {
        let now = millis(now);
        if now.saturating_sub(self.0.last_seen.load(Ordering::Relaxed)) >= GRANULARITY_MS {
            // If two threads race, either value is correct to about a millisecond.
            self.0.last_seen.store(now, Ordering::Relaxed);
        }
    }

    fn at(&self) -> Instant {
        Instant::from_origin(Duration::from_millis(self.0.last_seen.load(Ordering::Relaxed)))
    }

    fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_since(self.at())
    }
}

fn millis(at: Instant) -> u64 {
    u64::try_from(at.since_origin().as_millis()).unwrap_or(u64::MAX)
}

#[derive(Clone)]
struct Entry {
    peer: PeerName,
    activity: Activity,
}

/// An entry of the table and its position in the share of its peer.
struct Listed {
    entry: Entry,
    position: u64,
    /// The last-seen time at which the entry got its position.
    listed_at: Instant,
}

/// The MACs of each peer, in the order in which a full table displaces them.
#[derive(Default)]
struct Shares {
    peers: BTreeMap<PeerName, BTreeMap<u64, MacAddr>>,
    by_size: BTreeSet<(usize, PeerName)>,
    next: u64,
}

impl Shares {
    /// Appends a MAC and returns its position.
    fn add(&mut self, peer: PeerName, mac: MacAddr) -> u64 {
        self.next += 1;
        let share = self.peers.entry(peer).or_default();
        self.by_size.remove(&(share.len(), peer));
        share.insert(self.next, mac);
        self.by_size.insert((share.len(), peer));
        self.next
    }

    fn remove(&mut self, peer: PeerName, position: u64) {
        let Some(share) = self.peers.get_mut(&peer) else { return };
        self.by_size.remove(&(share.len(), peer));
        share.remove(&position);
        if share.is_empty() {
            self.peers.remove(&peer);
        } else {
            self.by_size.insert((share.len(), peer));
        }
    }

    /// The peer with most MACs, and their number.
    fn largest(&self) -> Option<(PeerName, usize)> {
        self.by_size.last().map(|(len, peer)| (*peer, *len))
    }

    fn first(&self, peer: PeerName) -> Option<MacAddr> {
        self.peers.get(&peer)?.values().next().copied()
    }
}

/// How many MACs that have been used since they got their position a displacement passes over. The number bounds its time.
const SECOND_CHANCES: usize = 16;

/// Which peer has which MAC (docs/spec/data-plane.md 2.2). The caller passes the events of data threads to it and publishes
/// snapshots.
///
/// Differences from 2.8.1: an address that two places use at the same time does not move between this peer and another one
/// until one of them is silent (docs/spec/data-plane.md 2.5), moves are reported, and the size is bounded: in a full table a
/// peer with many addresses displaces its own.
pub struct MacTable {
    config: MacConfig,
    entries: BTreeMap<MacAddr, Listed>,
    shares: Shares,
    displaced: u64,
    /// Cleared when entries are added, removed or moved. A refresh is visible in the old snapshot, too.
    snapshot: OnceLock<Arc<MacMap>>,
}

impl MacTable {
    /// Interval between calls of [`expire`](MacTable::expire).
    pub const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

    /// Creates an empty table.
    pub fn new(config: MacConfig) -> MacTable {
        MacTable {
            config,
            entries: BTreeMap::new(),
            shares: Shares::default(),
            displaced: 0,
            snapshot: OnceLock::new(),
        }
    }

    /// A frame from `mac` was captured from the local bridge.
    pub fn learn_local(&mut self, mac: MacAddr, now: Instant) -> Learned {
        self.learn(mac, self.config.own, now)
    }

    /// A frame from `mac` arrived from an overlay with source peer `peer`. It moves the address at once from another peer
    /// (docs/spec/data-plane.md 2.4), but not from this one while it is in use here.
    pub fn learn_remote(&mut self, mac: MacAddr, peer: PeerName, now: Instant) -> Learned {
        self.learn(mac, peer, now)
    }

    /// The kernel forwards frames by itself and has counted: the latest frame from `mac` where the table has it, and frames that were
    /// refused.
    pub fn refresh(&mut self, mac: MacAddr, last_seen: Instant, refused: u64) {
        if let Some(Listed { entry, .. }) = self.entries.get(&mac) {
            entry.activity.touch(last_seen);
            entry.activity.0.refused.fetch_max(refused, Ordering::Relaxed);
        }
    }

    fn learn(&mut self, mac: MacAddr, peer: PeerName, now: Instant) -> Learned {
        if !is_learnable(mac) {
            return Learned::Ignored;
        }
        let own = self.config.own;
        let learned = match self.entries.get_mut(&mac) {
            Some(Listed { entry, .. }) if entry.peer == peer => {
                entry.activity.touch(now);
                return Learned::Known;
            }
            Some(Listed { entry, .. })
                if (entry.peer == own || peer == own)
                    && entry.activity.silent_for(now) < self.config.hold_down =>
            {
                return Learned::Refused { by: entry.peer };
            }
            Some(Listed { entry, position, listed_at }) => {
                self.shares.remove(entry.peer, *position);
                (*position, *listed_at) = (self.shares.add(peer, mac), now);
                let from = std::mem::replace(&mut entry.peer, peer);
                // A new value: data threads with an older snapshot still refresh the value of the old peer.
                entry.activity = Activity::new(now, entry.activity.refused());
                Learned::Moved { from }
            }
            None => {
                if self.entries.len() >= self.config.max_entries {
                    self.displace();
                }
                let entry = Entry { peer, activity: Activity::new(now, 0) };
                let position = self.shares.add(peer, mac);
                self.entries.insert(mac, Listed { entry, position, listed_at: now });
                Learned::New
            }
        };
        self.snapshot.take();
        learned
    }

    /// Removes an entry of the peer that has most, so that a flood of addresses displaces itself: the oldest one that has not
    /// been used since, or one of the oldest.
    fn displace(&mut self) {
        let Some((peer, _)) = self.shares.largest() else { return };
        for _ in 0..SECOND_CHANCES {
            let Some(mac) = self.shares.first(peer) else { return };
            let Some(Listed { entry, position, listed_at }) = self.entries.get_mut(&mac) else { return };
            let used = entry.activity.at();
            if used <= *listed_at {
                break;
            }
            self.shares.remove(peer, *position);
            (*position, *listed_at) = (self.shares.add(peer, mac), used);
        }
        let Some(mac) = self.shares.first(peer) else { return };
        if let Some(listed) = self.entries.remove(&mac) {
            self.shares.remove(peer, listed.position);
            self.displaced += 1;
        }
    }

    /// Removes the entries of a peer that left the topology. Returns their addresses, sorted.
    pub fn forget_peer(&mut self, peer: PeerName) -> Vec<MacAddr> {
        self.remove(|entry| entry.peer == peer).into_iter().map(|(mac, _)| mac).collect()
    }

    /// Removes entries that were silent for longer than the maximum age and returns them, sorted by address. To be called
    /// every [`EXPIRY_INTERVAL`](MacTable::EXPIRY_INTERVAL); logged as `Expired MAC <mac> at <peer>`.
    pub fn expire(&mut self, now: Instant) -> Vec<(MacAddr, PeerName)> {
        let max_age = self.config.max_age;
        self.remove(|entry| entry.activity.silent_for(now) > max_age)
    }

    fn remove(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<(MacAddr, PeerName)> {
        let removed: Vec<_> = self.entries.extract_if(.., |_, listed| which(&listed.entry)).collect();
        for (_, listed) in &removed {
            self.shares.remove(listed.entry.peer, listed.position);
        }
        if !removed.is_empty() {
            self.snapshot.take();
        }
        removed.into_iter().map(|(mac, listed)| (mac, listed.entry.peer)).collect()
    }

    /// The largest number of entries.
    pub fn max_entries(&self) -> usize {
        self.config.max_entries
    }

    /// How many entries were displaced because the table was full.
    pub fn displaced(&self) -> u64 {
        self.displaced
    }

    /// The peer with most entries, and their number.
    pub fn largest_share(&self) -> Option<(PeerName, usize)> {
        self.shares.largest()
    }

    /// How many frames from `mac` were refused at this peer because another peer uses the address.
    pub fn refused(&self, mac: MacAddr) -> u64 {
        self.entries.get(&mac).map_or(0, |listed| listed.entry.activity.refused())
    }

    /// The peer that has `mac`.
    pub fn lookup(&self, mac: MacAddr) -> Option<PeerName> {
        self.entries.get(&mac).map(|listed| listed.entry.peer)
    }

    /// The snapshot for data threads: the same `Arc` as before, unless an entry was added, removed or moved since. Building a
    /// new one takes time proportional to the number of entries, so the caller should handle several events first.
    pub fn snapshot(&self) -> Arc<MacMap> {
        let build = || {
            let hasher = SeededHasher { seed: self.config.hash_seed };
            let mut entries = HashMap::with_capacity_and_hasher(self.entries.len(), hasher);
            entries.extend(self.entries.iter().map(|(mac, listed)| (key(*mac), listed.entry.clone())));
            let MacConfig { hold_down, conflict_interval, .. } = self.config;
            Arc::new(MacMap { entries, hold_down, conflict_interval })
        };
        self.snapshot.get_or_init(build).clone()
    }

    /// All entries, sorted by address.
    pub fn entries(&self) -> impl Iterator<Item = MacEntry> + '_ {
        self.entries.iter().map(|(mac, Listed { entry, .. })| MacEntry {
            mac: *mac,
            peer: entry.peer,
            last_seen: entry.activity.at(),
            refused: entry.activity.refused(),
        })
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl fmt::Debug for MacTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// Whether an address is a valid source: neither a group address nor zero. Linux bridges drop invalid ones as well.
pub(crate) fn is_learnable(mac: MacAddr) -> bool {
    !mac.is_group() && mac != MacAddr::ZERO
}

/// Snapshot of a [`MacTable`], immutable except for the last-seen times.
pub struct MacMap {
    entries: HashMap<u64, Entry, SeededHasher>,
    hold_down: Duration,
    conflict_interval: Duration,
}

/// Result of [`MacMap::refresh_source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceState {
    Unknown,
    /// Known at this peer; its last-seen time is refreshed.
    SamePeer,
    /// Known at another peer. `active` is whether that peer has sent from it within the hold-down.
    OtherPeer {
        peer: PeerName,
        active: bool,
    },
}

impl MacMap {
    /// Creates an empty map.
    pub fn empty() -> Arc<MacMap> {
        let entries = HashMap::with_hasher(SeededHasher { seed: 0 });
        Arc::new(MacMap { entries, hold_down: Duration::ZERO, conflict_interval: Duration::ZERO })
    }

    /// The peer that has `mac`.
    pub fn lookup(&self, mac: MacAddr) -> Option<PeerName> {
        self.entries.get(&key(mac)).map(|entry| entry.peer)
    }

    /// When the latest frame from `mac` arrived, up to 100 ms too early.
    pub fn last_seen(&self, mac: MacAddr) -> Option<Instant> {
        self.entries.get(&key(mac)).map(|entry| entry.activity.at())
    }

    /// Looks up the source of a frame from `peer` and refreshes its last-seen time.
    pub(crate) fn refresh_source(&self, mac: MacAddr, peer: PeerName, now: Instant) -> SourceState {
        match self.entries.get(&key(mac)) {
            None => SourceState::Unknown,
            Some(entry) if entry.peer == peer => {
                entry.activity.touch(now);
                SourceState::SamePeer
            }
            Some(entry) => SourceState::OtherPeer {
                peer: entry.peer,
                active: entry.activity.silent_for(now) < self.hold_down,
            },
        }
    }

    /// Whether a local frame passes although another peer uses its source; refused frames are counted.
    pub(crate) fn passes_despite_conflict(&self, mac: MacAddr, now: Instant) -> bool {
        let entry = self.entries.get(&key(mac));
        entry.is_none_or(|entry| entry.activity.passes_despite_conflict(self.conflict_interval, now))
    }

    /// All entries, sorted by address, for a copy of the map elsewhere.
    pub fn entries(&self) -> Vec<MacEntry> {
        #[expect(clippy::disallowed_methods, reason = "the entries are sorted")]
        let all = self.entries.iter();
        let mut entries: Vec<MacEntry> = all
            .map(|(key, entry)| {
                let [_, _, mac @ ..] = key.to_be_bytes();
                MacEntry {
                    mac: MacAddr(mac),
                    peer: entry.peer,
                    last_seen: entry.activity.at(),
                    refused: entry.activity.refused(),
                }
            })
            .collect();
        entries.sort_unstable_by_key(|entry| entry.mac);
        entries
    }

    /// [`MacConfig::hold_down`].
    pub fn hold_down(&self) -> Duration {
        self.hold_down
    }

    /// [`MacConfig::conflict_interval`].
    pub fn conflict_interval(&self) -> Duration {
        self.conflict_interval
    }

    /// Number of addresses.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl fmt::Debug for MacMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MacMap").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn key(mac: MacAddr) -> u64 {
    let b = mac.0;
    u64::from_be_bytes([0, 0, b[0], b[1], b[2], b[3], b[4], b[5]])
}

/// A hash of one multiplication. The default hash costs as much as the rest of a verdict.
#[derive(Clone)]
struct SeededHasher {
    seed: u64,
}

impl BuildHasher for SeededHasher {
    type Hasher = MacHasher;

    fn build_hasher(&self) -> MacHasher {
        MacHasher { seed: self.seed, state: 0 }
    }
}

struct MacHasher {
    seed: u64,
    state: u64,
}

impl Hasher for MacHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        /// 2^64 divided by the golden ratio; any odd number with well-spread bits would do.
        const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
        let spread = (SPREAD ^ self.seed.rotate_left(32)) | 1;
        let product = u128::from(self.state ^ value ^ self.seed) * u128::from(spread);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }

    fn finish(&self) -> u64 {
        self.state
    }
}
