use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use weave_types::{Instant, Now, PeerName};

/// The receivers of gossip channels (docs/spec/mesh.md 7.9). Messages on other channels are relayed (7.8).
///
/// An error of a receiver ends the connection on which the message arrived.
pub trait Channels {
    /// Names of the channels.
    fn names(&self) -> &[&'static str];

    /// Handles a unicast from `src`.
    fn on_unicast(&mut self, channel: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String>;

    /// Handles a broadcast from `src`. Returns the payload to relay.
    fn on_broadcast(
        &mut self,
        channel: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String>;

    /// Merges a neighbour's state. Returns the part that is new, for our other neighbours.
    fn on_gossip(&mut self, channel: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String>;

    /// A hash that is equal on peers whose states are equal; `None` if states are not compared.
    fn digest(&mut self, _channel: &str) -> Option<u64> {
        None
    }

    /// The complete state; `None` if there is none.
    fn state(&mut self, channel: &str, now: Now) -> Option<Vec<u8>>;

    /// Merges a message into an earlier one that has not been sent.
    fn merge(&mut self, channel: &str, queued: &mut Vec<u8>, more: &[u8]);
}

/// Gossip that waits to be sent on a connection. New messages are merged into waiting ones, so that a slow connection
/// needs little memory and gets the latest state when it continues (docs/spec/mesh.md 7.5).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    topology: Slots<PeerSelection>,
    /// Peers of whose records only the versions are to be sent (module `digest`).
    versions: BTreeSet<PeerName>,
    channels: BTreeMap<Arc<str>, Slots<Queued>>,
    /// The channel that was sent last, since the channels take turns.
    last_channel: Option<Arc<str>>,
    /// Cost of all messages in [`Queued::Separate`].
    separate_bytes: usize,
}

/// Queued gossip, by kind.
#[derive(Debug)]
struct Slots<T> {
    neighbour: Option<T>,
    /// Broadcasts by source.
    broadcasts: BTreeMap<PeerName, T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { neighbour: None, broadcasts: BTreeMap::new() }
    }
}

/// The peers whose records are to be sent. The records are read when the message is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PeerSelection {
    All,
    Some(BTreeSet<PeerName>),
}

impl PeerSelection {
    fn merge(&mut self, more: PeerSelection) {
        match (&mut *self, more) {
            (PeerSelection::All, _) => {}
            (_, PeerSelection::All) => *self = PeerSelection::All,
            (PeerSelection::Some(names), PeerSelection::Some(more)) => names.extend(more),
        }
    }
}

/// Messages of a channel.
#[derive(Debug)]
pub(crate) enum Queued {
    /// One payload, merged from the messages of a channel that has a receiver here.
    Merged(Vec<u8>),
    /// The messages of a channel without receiver here, and their cost.
    Separate(VecDeque<Vec<u8>>, usize),
}

/// Maximum cost of the messages that wait for one connection, channel and source; beyond it the oldest are dropped. The
/// next complete state of the channel replaces them.
const MAX_SLOT_BYTES: usize = 1 << 20;
/// Maximum cost of the messages that wait for one connection; beyond it new ones are dropped.
const MAX_TOTAL_BYTES: usize = 8 << 20;

/// Memory that a queued message takes, about.
fn cost(message: &[u8]) -> usize {
    message.len() + 64
}

/// How a queued message is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GossipKind {
    Neighbour,
    /// A broadcast from this peer.
    Broadcast(PeerName),
}

#[derive(Debug)]
pub(crate) enum Item {
    Topology(GossipKind, PeerSelection),
    Versions(BTreeSet<PeerName>),
    Channel(GossipKind, Arc<str>, Vec<u8>),
}

impl<T> Slots<T> {
    fn entry(&mut self, kind: GossipKind) -> Option<&mut T> {
        match kind {
            GossipKind::Neighbour => self.neighbour.as_mut(),
            GossipKind::Broadcast(src) => self.broadcasts.get_mut(&src),
        }
    }

    fn insert(&mut self, kind: GossipKind, value: T) {
        match kind {
            GossipKind::Neighbour => self.neighbour = Some(value),
            GossipKind::Broadcast(src) => {
                self.broadcasts.insert(src, value);
            }
        }
    }

    fn take(&mut self) -> Option<(GossipKind, T)> {
        if let Some(value) = self.neighbour.take() {
            return Some((GossipKind::Neighbour, value));
        }
        self.broadcasts.pop_first().map(|(src, value)| (GossipKind::Broadcast(src), value))
    }

    fn is_empty(&self) -> bool {
        self.neighbour.is_none() && self.broadcasts.is_empty()
    }
}

impl Queue {
    pub(crate) fn push_topology(&mut self, kind: GossipKind, names: PeerSelection) {
        match self.topology.entry(kind) {
            Some(slot) => slot.merge(names),
            None => self.topology.insert(kind, names),
        }
    }

    pub(crate) fn push_versions(&mut self, names: BTreeSet<PeerName>) {
        self.versions.extend(names);
    }

    /// Queues a message of a channel that has a receiver here.
    pub(crate) fn push(
        &mut self,
        kind: GossipKind,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
    ) {
        let slots = self.channels.entry(channel.clone()).or_default();
        match slots.entry(kind) {
            Some(Queued::Merged(queued)) => channels.merge(channel, queued, payload),
            _ => slots.insert(kind, Queued::Merged(payload.to_vec())),
        }
    }

    /// Queues a message of a channel without receiver here.
    pub(crate) fn push_surrogate(&mut self, kind: GossipKind, channel: &Arc<str>, payload: &[u8]) {
        if self.separate_bytes > MAX_TOTAL_BYTES {
            return;
        }
        let slots = self.channels.entry(channel.clone()).or_default();
        if !matches!(slots.entry(kind), Some(Queued::Separate(..))) {
            slots.insert(kind, Queued::Separate(VecDeque::new(), 0));
        }
        if let Some(Queued::Separate(list, total)) = slots.entry(kind) {
            let before = *total;
            list.push_back(payload.to_vec());
            *total += cost(payload);
            while *total > MAX_SLOT_BYTES && list.len() > 1 {
                *total -= list.pop_front().map_or(0, |m| cost(&m));
            }
            self.separate_bytes = self.separate_bytes - before + *total;
        }
    }

    /// Bytes of the queued messages without a receiver here.
    pub(crate) fn surrogate_bytes(&self) -> usize {
        self.separate_bytes
    }

    /// Number of peers whose records are queued by name.
    #[cfg(test)]
    pub(crate) fn queued_records(&self) -> usize {
        let slots = self.topology.neighbour.iter().chain(self.topology.broadcasts.values());
        let names = slots.map(|slot| match slot {
            PeerSelection::All => 0,
            PeerSelection::Some(names) => names.len(),
        });
        names.sum()
    }

    /// Removes the next item: the topology first, then the channels in turn, and neighbour gossip before broadcasts.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        if let Some((kind, names)) = self.topology.take() {
            return Some(Item::Topology(kind, names));
        }
        if !self.versions.is_empty() {
            return Some(Item::Versions(std::mem::take(&mut self.versions)));
        }
        let next = self.last_channel.take().and_then(|last| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.channels
                .range::<Arc<str>, _>((Excluded(last), Unbounded))
                .next()
                .map(|(name, _)| name.clone())
        });
        let channel = next.or_else(|| self.channels.keys().next().cloned())?;
        let slots = self.channels.get_mut(&channel)?;
        let (kind, waiting) = slots.take()?;
        let payload = match waiting {
            Queued::Merged(payload) => payload,
            Queued::Separate(mut list, total) => {
                let first = list.pop_front().unwrap_or_default();
                self.separate_bytes -= cost(&first);
                if !list.is_empty() {
                    slots.insert(kind, Queued::Separate(list, total - cost(&first)));
                }
                first
            }
        };
        if slots.is_empty() {
            self.channels.remove(&channel);
        }
        self.last_channel = Some(channel.clone());
        Some(Item::Channel(kind, channel, payload))
    }
}

/// The channels of others that have no receiver here (docs/spec/mesh.md 7.8), with the messages relayed recently.
#[derive(Debug, Default)]
pub(crate) struct Surrogates {
    /// Arrival time and hash of each message, oldest first. Hashes, since messages may be long.
    channels: BTreeMap<Arc<str>, VecDeque<(Instant, [u8; 32])>>,
}

/// Maximum number of channels, since any peer can make up names.
const MAX_SURROGATES: usize = 64;
/// Bytes of a channel name. Real names are shorter.
const MAX_CHANNEL_NAME: usize = 256;
/// Messages remembered per channel.
const MAX_RECENT_MESSAGES: usize = 1024;

impl Surrogates {
    /// Returns the channel, and whether it is new; `None` if there are too many.
    pub(crate) fn open(&mut self, channel: &str) -> Option<(Arc<str>, bool)> {
        if let Some((name, _)) = self.channels.get_key_value(channel) {
            return Some((name.clone(), false));
        }
        if self.channels.len() >= MAX_SURROGATES || channel.len() > MAX_CHANNEL_NAME {
            return None;
        }
        let name: Arc<str> = channel.into();
        self.channels.insert(name.clone(), VecDeque::new());
        Some((name, true))
    }

    /// Whether the same gossip has not arrived within `interval`. New gossip is relayed until every peer has recorded
    /// it, so messages of any length are recorded.
    pub(crate) fn is_new(&mut self, channel: &str, payload: &[u8], interval: Duration, now: Instant) -> bool {
        let Some(seen) = self.channels.get_mut(channel) else { return false };
        while seen.front().is_some_and(|(at, _)| now - *at > interval) {
            seen.pop_front();
        }
        let hash: [u8; 32] = Sha256::digest(payload).into();
        if seen.iter().any(|(_, known)| *known == hash) {
            return false;
        }
        if seen.len() >= MAX_RECENT_MESSAGES {
            seen.pop_front();
        }
        seen.push_back((now, hash));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u64) -> GossipKind {
        GossipKind::Broadcast(PeerName::from_number(n).unwrap())
    }

    #[test]
    fn surrogate_gossip_is_new_once_per_interval() {
        let mut surrogates = Surrogates::default();
        let (interval, at) = (Duration::from_secs(30), |s| Instant::from_origin(Duration::from_secs(s)));
        surrogates.open("x").unwrap();
        // A long message must be recorded as well, or it would be relayed for ever.
        let long = vec![7; 6 << 20];
        assert!(surrogates.is_new("x", &long, interval, at(0)));
        assert!(!surrogates.is_new("x", &long, interval, at(1)));
        assert!(surrogates.is_new("x", b"other", interval, at(1)));
        assert!(surrogates.is_new("x", &long, interval, at(31)), "new again after the interval");
        assert!(!surrogates.is_new("never opened", b"", interval, at(31)));
    }

    #[test]
    fn number_of_recent_messages_is_limited() {
        let mut surrogates = Surrogates::default();
        surrogates.open("x").unwrap();
        for n in 0..5000u32 {
            let now = Instant::from_origin(Duration::from_millis(n.into()));
            assert!(surrogates.is_new("x", &n.to_be_bytes(), Duration::from_secs(30), now));
        }
        assert_eq!(surrogates.channels["x"].len(), MAX_RECENT_MESSAGES);
    }

    #[test]
    fn number_and_length_of_channel_names_are_limited() {
        let mut surrogates = Surrogates::default();
        assert_eq!(surrogates.open(&"x".repeat(1 << 20)), None);
        let opened = (0..1000).filter(|n| surrogates.open(&n.to_string()).is_some()).count();
        assert_eq!(opened, MAX_SURROGATES);
    }

    #[test]
    fn queued_surrogate_messages_are_limited_over_all_sources() {
        let channel: Arc<str> = "x".into();
        let mut queue = Queue::default();
        for n in 1..=1000 {
            queue.push_surrogate(peer(n), &channel, &[0; 100_000]);
        }
        assert!(queue.separate_bytes < MAX_TOTAL_BYTES + 200_000, "{}", queue.separate_bytes);
        let mut sent = 0;
        while let Some(Item::Channel(_, _, payload)) = queue.pop() {
            assert_eq!(payload.len(), 100_000);
            sent += 1;
        }
        assert_eq!((sent, queue.separate_bytes), (MAX_TOTAL_BYTES / 100_064 + 1, 0));
        // Empty messages have a cost too.
        for _ in 0..100_000 {
            queue.push_surrogate(GossipKind::Neighbour, &channel, &[]);
        }
        assert!(queue.separate_bytes <= MAX_SLOT_BYTES);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), MAX_SLOT_BYTES / 64);
    }
}
