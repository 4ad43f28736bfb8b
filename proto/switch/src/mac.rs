use std::collections::{BTreeMap, HashMap};
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
    /// How long no frame with a remote MAC must have arrived before a local capture takes it over. 2 s, less up to 100 ms
    /// because last-seen times are inexact; 2.8.1 never takes over (docs/spec/data-plane.md 2.5).
    pub hold_down: Duration,
    /// Maximum number of entries. Further MACs are not learnt, so frames to them are flooded. 65536; 2.8.1 has no limit,
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
    /// Local captures only: another peer has sent from this address within the hold-down.
    Refused {
        /// The peer that keeps the address.
        by: PeerName,
    },
    /// The table is full, or the address is a group address or zero: nothing changed.
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
}

/// When the latest frame of an entry arrived, in milliseconds since the origin of the clock. Shared by the table and all
/// snapshots that contain the entry, so that data threads refresh it without sending an event.
#[derive(Clone)]
struct LastSeen(Arc<AtomicU64>);

/// A newer time is stored only after this interval: a store per frame would move the cache line between the threads.
const GRANULARITY_MS: u64 = 100;

impl LastSeen {
    fn new(now: Instant) -> LastSeen {
        LastSeen(Arc::new(AtomicU64::new(millis(now))))
    }

    fn touch(&self, now: Instant) {
        let now = millis(now);
        if now.saturating_sub(self.0.load(Ordering::Relaxed)) >= GRANULARITY_MS {
            // If two threads race, either value is correct to about a millisecond.
            self.0.store(now, Ordering::Relaxed);
        }
    }

    fn at(&self) -> Instant {
        Instant::from_origin(Duration::from_millis(self.0.load(Ordering::Relaxed)))
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
    last_seen: LastSeen,
}

/// Which peer has which MAC (docs/spec/data-plane.md 2.2). The caller passes the events of data threads to it and publishes
/// snapshots.
///
/// Differences from 2.8.1: a local capture takes over an address that its remote peer has not used for the hold-down
/// (docs/spec/data-plane.md 2.5), and moves are reported.
pub struct MacTable {
    config: MacConfig,
    entries: BTreeMap<MacAddr, Entry>,
    /// Cleared when entries are added, removed or moved. A refresh is visible in the old snapshot, too.
    snapshot: OnceLock<Arc<MacMap>>,
}

impl MacTable {
    /// Interval between calls of [`expire`](MacTable::expire).
    pub const EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

    /// Creates an empty table.
    pub fn new(config: MacConfig) -> MacTable {
        MacTable { config, entries: BTreeMap::new(), snapshot: OnceLock::new() }
    }

    /// A frame from `mac` was captured from the local bridge.
    pub fn learn_local(&mut self, mac: MacAddr, now: Instant) -> Learned {
        let own = self.config.own;
        if let Some(entry) = self.entries.get(&mac)
            && entry.peer != own
            && entry.last_seen.silent_for(now) < self.config.hold_down
        {
            return Learned::Refused { by: entry.peer };
        }
        self.learn(mac, own, now)
    }

    /// A frame from `mac` arrived from an overlay with source peer `peer`. Replaces any previous entry immediately, even a local
    /// one (docs/spec/data-plane.md 2.4).
    pub fn learn_remote(&mut self, mac: MacAddr, peer: PeerName, now: Instant) -> Learned {
        self.learn(mac, peer, now)
    }

    fn learn(&mut self, mac: MacAddr, peer: PeerName, now: Instant) -> Learned {
        let known = self.entries.len();
        if !is_learnable(mac) {
            return Learned::Ignored;
        }
        let learned = match self.entries.get_mut(&mac) {
            Some(entry) if entry.peer == peer => {
                entry.last_seen.touch(now);
                return Learned::Known;
            }
            Some(entry) => {
                let from = std::mem::replace(&mut entry.peer, peer);
                // A new value: data threads with an older snapshot still refresh the value of the old peer.
                entry.last_seen = LastSeen::new(now);
                Learned::Moved { from }
            }
            None if known >= self.config.max_entries => return Learned::Ignored,
            None => {
                self.entries.insert(mac, Entry { peer, last_seen: LastSeen::new(now) });
                Learned::New
            }
        };
        self.snapshot.take();
        learned
    }

    /// Removes the entries of a peer that left the topology. Returns their addresses, sorted.
    pub fn forget_peer(&mut self, peer: PeerName) -> Vec<MacAddr> {
        self.remove(|entry| entry.peer == peer).into_iter().map(|(mac, _)| mac).collect()
    }

    /// Removes entries that were silent for longer than the maximum age and returns them, sorted by address. To be called
    /// every [`EXPIRY_INTERVAL`](MacTable::EXPIRY_INTERVAL); logged as `Expired MAC <mac> at <peer>`.
    pub fn expire(&mut self, now: Instant) -> Vec<(MacAddr, PeerName)> {
        let max_age = self.config.max_age;
        self.remove(|entry| entry.last_seen.silent_for(now) > max_age)
    }

    fn remove(&mut self, which: impl Fn(&Entry) -> bool) -> Vec<(MacAddr, PeerName)> {
        let removed: Vec<_> =
            self.entries.extract_if(.., |_, entry| which(entry)).map(|(mac, e)| (mac, e.peer)).collect();
        if !removed.is_empty() {
            self.snapshot.take();
        }
        removed
    }

    /// The peer that has `mac`.
    pub fn lookup(&self, mac: MacAddr) -> Option<PeerName> {
        self.entries.get(&mac).map(|entry| entry.peer)
    }

    /// The snapshot for data threads: the same `Arc` as before, unless an entry was added, removed or moved since. Building a
    /// new one takes time proportional to the number of entries, so the caller should handle several events first.
    pub fn snapshot(&self) -> Arc<MacMap> {
        let build = || {
            let hasher = SeededHasher { seed: self.config.hash_seed };
            let mut entries = HashMap::with_capacity_and_hasher(self.entries.len(), hasher);
            entries.extend(self.entries.iter().map(|(mac, entry)| (key(*mac), entry.clone())));
            Arc::new(MacMap { entries, hold_down: self.config.hold_down })
        };
        self.snapshot.get_or_init(build).clone()
    }

    /// All entries, sorted by address.
    pub fn entries(&self) -> impl Iterator<Item = MacEntry> + '_ {
        self.entries.iter().map(|(mac, e)| MacEntry { mac: *mac, peer: e.peer, last_seen: e.last_seen.at() })
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
        Arc::new(MacMap { entries, hold_down: Duration::ZERO })
    }

    /// The peer that has `mac`.
    pub fn lookup(&self, mac: MacAddr) -> Option<PeerName> {
        self.entries.get(&key(mac)).map(|entry| entry.peer)
    }

    /// When the latest frame from `mac` arrived, up to 100 ms too early.
    pub fn last_seen(&self, mac: MacAddr) -> Option<Instant> {
        self.entries.get(&key(mac)).map(|entry| entry.last_seen.at())
    }

    /// Looks up the source of a frame from `peer` and refreshes its last-seen time.
    pub(crate) fn refresh_source(&self, mac: MacAddr, peer: PeerName, now: Instant) -> SourceState {
        match self.entries.get(&key(mac)) {
            None => SourceState::Unknown,
            Some(entry) if entry.peer == peer => {
                entry.last_seen.touch(now);
                SourceState::SamePeer
            }
            Some(entry) => SourceState::OtherPeer {
                peer: entry.peer,
                active: entry.last_seen.silent_for(now) < self.hold_down,
            },
        }
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
