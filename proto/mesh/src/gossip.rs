use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use weave_types::{Instant, Now, PeerName};

/// The services that gossip over the mesh (docs/spec/mesh.md 7.9). What arrives on a channel that is not listed is passed on
/// for others (7.8).
///
/// An error of a receiver ends the connection over which the message came.
pub trait Channels {
    /// The channels that are served here.
    fn names(&self) -> &[&'static str];

    /// A message from `src` for us alone.
    fn on_unicast(&mut self, channel: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String>;

    /// A message from `src` for everybody. Returns what to pass on.
    fn on_broadcast(
        &mut self,
        channel: &str,
        src: PeerName,
        payload: &[u8],
        now: Now,
    ) -> Result<Option<Vec<u8>>, String>;

    /// State that a neighbour knows. Returns what was news of it, for our other neighbours.
    fn on_gossip(&mut self, channel: &str, payload: &[u8], now: Now) -> Result<Option<Vec<u8>>, String>;

    /// All state that there is; `None` if there is none.
    fn state(&mut self, channel: &str, now: Now) -> Option<Vec<u8>>;

    /// Adds a later message to one that could not be sent yet.
    fn merge(&mut self, channel: &str, queued: &mut Vec<u8>, more: &[u8]);
}

/// Serves no channel.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoChannels;

impl Channels for NoChannels {
    fn names(&self) -> &[&'static str] {
        &[]
    }

    fn on_unicast(&mut self, _: &str, _: PeerName, _: &[u8], _: Now) -> Result<(), String> {
        Ok(())
    }

    fn on_broadcast(&mut self, _: &str, _: PeerName, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn on_gossip(&mut self, _: &str, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn state(&mut self, _: &str, _: Now) -> Option<Vec<u8>> {
        None
    }

    fn merge(&mut self, _: &str, queued: &mut Vec<u8>, more: &[u8]) {
        *queued = more.to_vec();
    }
}

/// What waits to be sent over one connection. News is merged into what waits already, so that a slow connection costs
/// little memory and gets the latest state when it moves again (docs/spec/mesh.md 7.5).
#[derive(Debug, Default)]
pub(crate) struct Queue {
    topology: Slots<Names>,
    /// Peers of whose records only the age is to be told (module `digest`).
    ages: BTreeSet<PeerName>,
    channels: BTreeMap<Arc<str>, Slots<Waiting>>,
    /// The channel that was served last: they take turns.
    last: Option<Arc<str>>,
    /// What all messages of [`Waiting::Each`] together count.
    held: usize,
}

#[derive(Debug)]
struct Slots<T> {
    gossip: Option<T>,
    /// By source.
    broadcasts: BTreeMap<PeerName, T>,
}

impl<T> Default for Slots<T> {
    fn default() -> Slots<T> {
        Slots { gossip: None, broadcasts: BTreeMap::new() }
    }
}

/// Peers whose records, as they are when they are sent, are to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    All,
    Some(BTreeSet<PeerName>),
}

impl Names {
    fn merge(&mut self, more: Names) {
        match (&mut *self, more) {
            (Names::All, _) => {}
            (_, Names::All) => *self = Names::All,
            (Names::Some(names), Names::Some(more)) => names.extend(more),
        }
    }
}

/// A message of a channel.
#[derive(Debug)]
pub(crate) enum Waiting {
    /// Of a channel that is served here, and can be merged.
    Merged(Vec<u8>),
    /// Of a channel that is not, and what they count together.
    Each(VecDeque<Vec<u8>>, usize),
}

/// Bytes of messages that one connection, channel and source may hold up for others; the oldest are dropped. Whoever
/// misses them gets them with the next complete state.
const MAX_SURROGATE_BYTES: usize = 1 << 20;
/// The same of all channels and sources; what comes beyond it is dropped.
const MAX_HELD_BYTES: usize = 8 << 20;

/// What a message counts: short ones take memory, too.
fn weight(message: &[u8]) -> usize {
    message.len() + 64
}

/// How a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To this neighbour.
    Gossip,
    /// To everybody, from this peer.
    Broadcast(PeerName),
}

/// The next thing to send.
#[derive(Debug)]
pub(crate) enum Item {
    Topology(Route, Names),
    Ages(BTreeSet<PeerName>),
    Channel(Route, Arc<str>, Vec<u8>),
}

impl<T> Slots<T> {
    fn entry(&mut self, route: Route) -> Option<&mut T> {
        match route {
            Route::Gossip => self.gossip.as_mut(),
            Route::Broadcast(src) => self.broadcasts.get_mut(&src),
        }
    }

    fn insert(&mut self, route: Route, value: T) {
        match route {
            Route::Gossip => self.gossip = Some(value),
            Route::Broadcast(src) => {
                self.broadcasts.insert(src, value);
            }
        }
    }

    fn take(&mut self) -> Option<(Route, T)> {
        if let Some(gossip) = self.gossip.take() {
            return Some((Route::Gossip, gossip));
        }
        self.broadcasts.pop_first().map(|(src, value)| (Route::Broadcast(src), value))
    }

    fn is_empty(&self) -> bool {
        self.gossip.is_none() && self.broadcasts.is_empty()
    }
}

impl Queue {
    pub(crate) fn push_topology(&mut self, route: Route, names: Names) {
        match self.topology.entry(route) {
            Some(slot) => slot.merge(names),
            None => self.topology.insert(route, names),
        }
    }

    pub(crate) fn push_ages(&mut self, names: BTreeSet<PeerName>) {
        self.ages.extend(names);
    }

    /// Queues a message of a channel that is served here.
    pub(crate) fn push(
        &mut self,
        route: Route,
        channel: &Arc<str>,
        payload: &[u8],
        channels: &mut dyn Channels,
    ) {
        let slots = self.channels.entry(channel.clone()).or_default();
        match slots.entry(route) {
            Some(Waiting::Merged(queued)) => channels.merge(channel, queued, payload),
            _ => slots.insert(route, Waiting::Merged(payload.to_vec())),
        }
    }

    /// Queues a message of a channel that is not.
    pub(crate) fn push_surrogate(&mut self, route: Route, channel: &Arc<str>, payload: &[u8]) {
        if self.held > MAX_HELD_BYTES {
            return;
        }
        let slots = self.channels.entry(channel.clone()).or_default();
        if !matches!(slots.entry(route), Some(Waiting::Each(..))) {
            slots.insert(route, Waiting::Each(VecDeque::new(), 0));
        }
        if let Some(Waiting::Each(list, total)) = slots.entry(route) {
            let before = *total;
            list.push_back(payload.to_vec());
            *total += weight(payload);
            while *total > MAX_SURROGATE_BYTES && list.len() > 1 {
                *total -= list.pop_front().map_or(0, |m| weight(&m));
            }
            self.held = self.held - before + *total;
        }
    }

    /// Takes the next item out: the topology first, then the channels in turn; each channel's gossip before its
    /// broadcasts.
    pub(crate) fn pop(&mut self) -> Option<Item> {
        if let Some((route, names)) = self.topology.take() {
            return Some(Item::Topology(route, names));
        }
        if !self.ages.is_empty() {
            return Some(Item::Ages(std::mem::take(&mut self.ages)));
        }
        let after = self.last.take();
        let next = after.and_then(|last| {
            use std::ops::Bound::{Excluded, Unbounded};
            self.channels
                .range::<Arc<str>, _>((Excluded(last), Unbounded))
                .next()
                .map(|(name, _)| name.clone())
        });
        let channel = next.or_else(|| self.channels.keys().next().cloned())?;
        let slots = self.channels.get_mut(&channel)?;
        let (route, waiting) = slots.take()?;
        let payload = match waiting {
            Waiting::Merged(payload) => payload,
            Waiting::Each(mut list, total) => {
                let first = list.pop_front().unwrap_or_default();
                self.held -= weight(&first);
                if !list.is_empty() {
                    slots.insert(route, Waiting::Each(list, total - weight(&first)));
                }
                first
            }
        };
        if slots.is_empty() {
            self.channels.remove(&channel);
        }
        self.last = Some(channel.clone());
        Some(Item::Channel(route, channel, payload))
    }
}

/// Channels that somebody uses and nobody serves here (docs/spec/mesh.md 7.8): remembers what was passed on lately.
#[derive(Debug, Default)]
pub(crate) struct Surrogates {
    /// When each message came, oldest first, and its hash: messages may be long.
    channels: BTreeMap<Arc<str>, VecDeque<(Instant, [u8; 32])>>,
}

/// A made-up channel name must cost nothing.
const MAX_SURROGATES: usize = 64;
/// Nobody names channels like that.
const MAX_NAME: usize = 256;
/// Messages remembered per channel.
const MAX_RECENT: usize = 1024;

impl Surrogates {
    /// The channel, and whether it is new; `None` if there are too many.
    pub(crate) fn open(&mut self, channel: &str) -> Option<(Arc<str>, bool)> {
        if let Some((name, _)) = self.channels.get_key_value(channel) {
            return Some((name.clone(), false));
        }
        if self.channels.len() >= MAX_SURROGATES || channel.len() > MAX_NAME {
            return None;
        }
        let name: Arc<str> = channel.into();
        self.channels.insert(name.clone(), VecDeque::new());
        Some((name, true))
    }

    /// Whether neighbour gossip is news, that is: not the same bytes as lately. Whatever is said to be news goes round
    /// until everybody has remembered it, so nothing is too long for that.
    pub(crate) fn is_news(&mut self, channel: &str, payload: &[u8], memory: Duration, now: Instant) -> bool {
        let Some(seen) = self.channels.get_mut(channel) else { return false };
        while seen.front().is_some_and(|(at, _)| now - *at > memory) {
            seen.pop_front();
        }
        let hash: [u8; 32] = Sha256::digest(payload).into();
        if seen.iter().any(|(_, known)| *known == hash) {
            return false;
        }
        if seen.len() >= MAX_RECENT {
            seen.pop_front();
        }
        seen.push_back((now, hash));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u64) -> Route {
        Route::Broadcast(PeerName::from_number(n).unwrap())
    }

    #[test]
    fn gossip_for_others_is_news_once() {
        let mut surrogates = Surrogates::default();
        let (memory, at) = (Duration::from_secs(30), |s| Instant::from_origin(Duration::from_secs(s)));
        surrogates.open("x").unwrap();
        // Longer than any bound on memory would like: it must not go round for ever.
        let long = vec![7; 6 << 20];
        assert!(surrogates.is_news("x", &long, memory, at(0)));
        assert!(!surrogates.is_news("x", &long, memory, at(1)));
        assert!(surrogates.is_news("x", b"other", memory, at(1)));
        assert!(surrogates.is_news("x", &long, memory, at(31)), "again, after a while");
        assert!(!surrogates.is_news("never opened", b"", memory, at(31)));
    }

    #[test]
    fn made_up_channels_cost_nothing() {
        let mut surrogates = Surrogates::default();
        assert_eq!(surrogates.open(&"x".repeat(1 << 20)), None);
        let opened = (0..1000).filter(|n| surrogates.open(&n.to_string()).is_some()).count();
        assert_eq!(opened, MAX_SURROGATES);
    }

    #[test]
    fn what_waits_for_others_is_bounded_over_all_sources() {
        let channel: Arc<str> = "x".into();
        let mut queue = Queue::default();
        for n in 1..=1000 {
            queue.push_surrogate(peer(n), &channel, &[0; 100_000]);
        }
        assert!(queue.held < MAX_HELD_BYTES + 200_000, "{}", queue.held);
        let mut sent = 0;
        while let Some(Item::Channel(_, _, payload)) = queue.pop() {
            assert_eq!(payload.len(), 100_000);
            sent += 1;
        }
        assert_eq!((sent, queue.held), (MAX_HELD_BYTES / 100_064 + 1, 0));
        // Empty ones take memory, too.
        for _ in 0..100_000 {
            queue.push_surrogate(Route::Gossip, &channel, &[]);
        }
        assert!(queue.held <= MAX_SURROGATE_BYTES);
        assert_eq!(std::iter::from_fn(|| queue.pop()).count(), MAX_SURROGATE_BYTES / 64);
    }
}
