//! The ring: the division of the range among peers, as ordered tokens (docs/spec/ipam.md 6).

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use thiserror::Error;
use weave_types::{Cidr, PeerName};

use crate::address::AddrRange;
use crate::space::RangeSet;

/// Added to the version of entries that are taken over or transferred, so that they are newer than unseen changes of
/// the former owner (docs/spec/ipam.md 6.3).
pub const TAKEOVER_STEP: u32 = 100;

/// One token. Its owner owns the addresses from it to the next token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First address of the entry.
    pub token: u32,
    /// The owner of the entry.
    pub peer: PeerName,
    /// Raised with each change of the entry, never lowered.
    pub version: u32,
    /// Number of free addresses as last reported by the owner. For information only.
    pub free: u32,
}

/// One peer's view of all tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    pub(crate) range: AddrRange,
    pub(crate) peer: PeerName,
    pub(crate) entries: Vec<Entry>,
    pub(crate) seeds: Vec<PeerName>,
}

/// Why a ring is invalid, in the words of 2.8.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RingError {
    /// Tokens are not in ascending order.
    #[error("Ring not sorted")]
    NotSorted,
    /// A token occurs twice.
    #[error("Token appears twice in ring")]
    Repeated,
    /// A token is outside the range.
    #[error("Token is out of range")]
    OutOfRange,
    /// An entry reports more free addresses than it has.
    #[error(
        "Entry {}-{} reporting too much free space: {free} > {distance}",
        Ipv4Addr::from(*token),
        Ipv4Addr::from(*next)
    )]
    TooMuchFree {
        /// Token of the entry.
        token: u32,
        /// The next token.
        next: u32,
        /// Number of free addresses reported.
        free: u32,
        /// Number of addresses of the entry.
        distance: u32,
    },
}

impl Ring {
    /// A ring without tokens, held by `peer`.
    pub fn new(range: AddrRange, peer: PeerName) -> Ring {
        Ring { range, peer, entries: Vec::new(), seeds: Vec::new() }
    }

    /// A ring with tokens from a store or a message; not checked.
    pub fn from_parts(range: AddrRange, peer: PeerName, entries: Vec<Entry>, seeds: Vec<PeerName>) -> Ring {
        Ring { range, peer, entries, seeds }
    }

    /// The range that is divided.
    pub fn range(&self) -> AddrRange {
        self.range
    }

    /// The peer whose view this is.
    pub fn peer(&self) -> PeerName {
        self.peer
    }

    /// The tokens in ascending order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The peers among which the range was first divided; empty if not known.
    pub fn seeds(&self) -> &[PeerName] {
        &self.seeds
    }

    /// Whether the ring has no tokens.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Checks the rules of docs/spec/ipam.md 6.1.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), RingError> {
        let tokens = || self.entries.windows(2).map(|pair| (pair[0].token, pair[1].token));
        if tokens().any(|(a, b)| a > b) {
            return Err(RingError::NotSorted);
        }
        if tokens().any(|(a, b)| a == b) {
            return Err(RingError::Repeated);
        }
        let (Some(first), Some(last)) = (self.entries.first(), self.entries.last()) else { return Ok(()) };
        if first.token < self.range.start() || last.token >= self.range.end() {
            return Err(RingError::OutOfRange);
        }
        for (index, entry) in self.entries.iter().enumerate() {
            let next = self.next_token(index);
            let distance = self.distance(entry.token, next);
            if entry.free > distance {
                return Err(RingError::TooMuchFree { token: entry.token, next, free: entry.free, distance });
            }
        }
        Ok(())
    }

    /// The token after the entry at `index`; after the last one follows the first.
    pub(crate) fn next_token(&self, index: usize) -> u32 {
        self.entries.get(index + 1).or(self.entries.first()).map_or(self.range.end(), |e| e.token)
    }

    /// Number of addresses from `a` up to `b`, wrapping around the end; from a token to itself it is the whole range.
    pub(crate) fn distance(&self, a: u32, b: u32) -> u32 {
        if b > a { b - a } else { self.range.end().saturating_sub(a) + b.saturating_sub(self.range.start()) }
    }

    /// The entry that an address belongs to; `None` without tokens.
    pub(crate) fn position(&self, addr: u32) -> Option<usize> {
        let behind = self.entries.partition_point(|e| e.token <= addr);
        behind.checked_sub(1).or_else(|| self.entries.len().checked_sub(1))
    }

    /// The owner of an address; `None` without tokens.
    pub fn owner_of(&self, addr: u32) -> Option<PeerName> {
        self.position(addr).map(|index| self.entries[index].peer)
    }

    /// The ranges of the entry at `index`: one, or two in ascending order if it wraps around.
    pub(crate) fn ranges_of(&self, index: usize) -> impl Iterator<Item = AddrRange> + use<> {
        let token = self.entries[index].token;
        let (first, second) = if index + 1 < self.entries.len() {
            (AddrRange::new(token, self.entries[index + 1].token), None)
        } else {
            let wrapped = AddrRange::new(self.range.start(), self.entries[0].token);
            let tail = AddrRange::new(token, self.range.end());
            if wrapped.is_empty() { (tail, None) } else { (wrapped, Some(tail)) }
        };
        [Some(first), second].into_iter().flatten()
    }

    /// All ranges that a peer owns, ascending; adjacent ones are not joined.
    pub fn ranges_owned_by(&self, peer: PeerName) -> Vec<AddrRange> {
        let mut ranges: Vec<AddrRange> = (0..self.entries.len())
            .filter(|&index| self.entries[index].peer == peer)
            .flat_map(|index| self.ranges_of(index))
            .collect();
        ranges.sort();
        ranges
    }

    /// All that a peer owns as the smallest set of networks, ascending.
    pub fn networks_of(&self, peer: PeerName) -> Vec<Cidr> {
        let joined: RangeSet = self.ranges_owned_by(peer).into_iter().collect();
        joined.iter().flat_map(AddrRange::cover).collect()
    }

    /// Number of addresses of the entry at `index`.
    pub(crate) fn size_of(&self, index: usize) -> u32 {
        self.distance(self.entries[index].token, self.next_token(index))
    }

    /// All owners.
    pub fn owners(&self) -> BTreeSet<PeerName> {
        self.entries.iter().map(|e| e.peer).collect()
    }

    /// Divides the whole range among peers (docs/spec/ipam.md 6.2). All peers compute the same result.
    pub fn divide(&mut self, peers: &[PeerName]) {
        let unique: BTreeSet<PeerName> = peers.iter().copied().collect();
        self.seeds = unique.into_iter().collect();
        let mut entries = Vec::new();
        divide(self.range, &self.seeds, &mut entries);
        self.entries = entries;
    }

    /// Gives part of the holder's ranges to another peer (docs/spec/ipam.md 6.3). The caller has checked that the
    /// holder owns all of it.
    pub fn grant(&mut self, what: AddrRange, to: PeerName) {
        let Some(at) = self.position(what.start()) else { return };
        if what.is_empty() {
            return;
        }
        let own = self.peer;
        let (start, end) = (what.start(), what.end());
        let free = self.distance(start, self.next_token(at)).min(what.size());
        let mut next = at + 1;
        if self.entries[at].token == start {
            let entry = &mut self.entries[at];
            *entry = Entry { peer: to, free, version: entry.version.saturating_add(1), ..*entry };
        } else {
            let distance = self.distance(self.entries[at].token, start);
            let entry = &mut self.entries[at];
            *entry = Entry { peer: own, free: distance, version: entry.version.saturating_add(1), ..*entry };
            let token = Entry { token: start, peer: to, version: 0, free };
            let place = self.entries.partition_point(|e| e.token < start);
            self.entries.insert(place, token);
            next = place + 1;
        }
        while let Some(entry) = self.entries.get(next).copied().filter(|e| e.token < end) {
            let free = entry.free.min(self.distance(entry.token, end));
            self.entries[next] = Entry { peer: to, free, version: entry.version.saturating_add(1), ..entry };
            next += 1;
        }
        let end = if end == self.range.end() { self.range.start() } else { end };
        let place = self.entries.partition_point(|e| e.token < end);
        if self.entries.get(place).is_none_or(|e| e.token != end) {
            self.entries.insert(place, Entry { token: end, peer: own, version: 0, free: 0 });
            self.entries[place].free = self.size_of(place);
        }
    }

    /// Gives all ranges of `from` to `to` and returns them.
    pub fn transfer(&mut self, from: PeerName, to: PeerName, step: u32) -> Vec<AddrRange> {
        let ranges = self.ranges_owned_by(from);
        for entry in self.entries.iter_mut().filter(|e| e.peer == from) {
            entry.peer = to;
            entry.version = entry.version.saturating_add(step);
        }
        ranges
    }

    /// Sets the free counts of the holder's entries and raises the version of those that change; returns whether any
    /// did.
    pub fn report_free(&mut self, free_in: impl Fn(AddrRange) -> u32) -> bool {
        let mut changed = false;
        for index in 0..self.entries.len() {
            changed |= self.report_entry(index, &free_in);
        }
        changed
    }

    /// Does the same for the entry that an address belongs to.
    pub(crate) fn report_free_at(&mut self, addr: u32, free_in: impl Fn(AddrRange) -> u32) -> bool {
        self.position(addr).is_some_and(|index| self.report_entry(index, &free_in))
    }

    fn report_entry(&mut self, index: usize, free_in: &impl Fn(AddrRange) -> u32) -> bool {
        if self.entries[index].peer != self.peer {
            return false;
        }
        let free = self.ranges_of(index).map(free_in).sum();
        let entry = &mut self.entries[index];
        if entry.free == free {
            return false;
        }
        entry.free = free;
        entry.version = entry.version.saturating_add(1);
        true
    }

    /// Other owners with free addresses in a range, weighted by the free counts of their entries there
    /// (docs/spec/ipam.md 6.5).
    pub fn candidates(&self, range: AddrRange) -> BTreeMap<PeerName, u64> {
        let mut weights = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let last = index + 1 == self.entries.len();
            let overlaps = entry.token < range.end() && (last || self.next_token(index) > range.start());
            if entry.peer != self.peer && entry.free > 0 && overlaps {
                *weights.entry(entry.peer).or_default() += u64::from(entry.free);
            }
        }
        weights
    }
}

fn divide(range: AddrRange, peers: &[PeerName], entries: &mut Vec<Entry>) {
    let Some(&first) = peers.first() else { return };
    if range.is_empty() {
        return;
    }
    if range.size() == 1 || peers.len() == 1 {
        entries.push(Entry { token: range.start(), peer: first, version: 0, free: range.size() });
        return;
    }
    let middle = range.start() + range.size() / 2;
    let (lower, upper) = peers.split_at(peers.len() / 2);
    divide(AddrRange::new(range.start(), middle), lower, entries);
    divide(AddrRange::new(middle, range.end()), upper, entries);
}
