//! Own addresses, used and free (docs/spec/ipam.md 7).

use std::collections::BTreeMap;

use crate::address::AddrRange;

/// A set of addresses as ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet(BTreeMap<u32, u32>);

impl RangeSet {
    /// The ranges in ascending order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = AddrRange> + '_ {
        self.0.iter().map(|(&start, &end)| AddrRange::new(start, end))
    }

    /// The parts within a range, in ascending order.
    pub fn within(&self, range: AddrRange) -> impl DoubleEndedIterator<Item = AddrRange> + '_ {
        // A part that begins before the range may reach into it.
        let first = self.0.range(..=range.start()).next_back().map_or(range.start(), |(&start, _)| start);
        self.0
            .range(first..range.end().max(first))
            .map(move |(&start, &end)| AddrRange::new(start, end).intersection(range))
            .filter(|part| !part.is_empty())
    }

    /// Number of addresses.
    pub fn count(&self) -> u32 {
        self.iter().map(AddrRange::size).sum()
    }

    /// Number of addresses within a range.
    pub fn count_in(&self, range: AddrRange) -> u32 {
        self.within(range).map(AddrRange::size).sum()
    }

    /// Whether an address is in the set.
    pub fn contains(&self, addr: u32) -> bool {
        self.0.range(..=addr).next_back().is_some_and(|(_, &end)| addr < end)
    }

    /// Whether the set contains no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds addresses; some may be in the set already.
    pub fn insert(&mut self, range: AddrRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start(), range.end());
        // Ranges that touch or overlap are joined.
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|&(_, &to)| to >= start) {
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Removes addresses; some may not be in the set.
    pub fn remove(&mut self, range: AddrRange) {
        let parts: Vec<AddrRange> = self.within(range).collect();
        for part in parts {
            let Some((&from, &to)) = self.0.range(..=part.start()).next_back() else { continue };
            self.0.remove(&from);
            if from < part.start() {
                self.0.insert(from, part.start());
            }
            if part.end() < to {
                self.0.insert(part.end(), to);
            }
        }
    }

    /// The addresses that are in this set and not in the other.
    pub fn minus(&self, other: &RangeSet) -> RangeSet {
        let mut rest = self.clone();
        other.iter().for_each(|range| rest.remove(range));
        rest
    }
}

impl FromIterator<AddrRange> for RangeSet {
    fn from_iter<I: IntoIterator<Item = AddrRange>>(ranges: I) -> RangeSet {
        let mut set = RangeSet::default();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

/// This peer's own addresses, used and free. Together they are what it owns in the ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    used: RangeSet,
    free: RangeSet,
}

impl Space {
    /// Addresses in use.
    pub fn used(&self) -> &RangeSet {
        &self.used
    }

    /// Addresses that can be allocated or donated.
    pub fn free(&self) -> &RangeSet {
        &self.free
    }

    /// The lowest address in use in a range.
    pub fn first_used(&self, range: AddrRange) -> Option<u32> {
        self.used.within(range).next().map(AddrRange::start)
    }

    /// Sets the owned ranges. New addresses are free; returns the free addresses that are no longer owned. An address
    /// in use stays in use.
    pub fn set_owned(&mut self, ranges: impl IntoIterator<Item = AddrRange>) -> RangeSet {
        let free = ranges.into_iter().collect::<RangeSet>().minus(&self.used);
        let lost = self.free.minus(&free);
        self.free = free;
        lost
    }

    /// Allocates the lowest free address in a range that is not in `avoid`.
    pub fn allocate(&mut self, range: AddrRange, avoid: &RangeSet) -> Option<u32> {
        let addr = self.lowest(range, avoid)?;
        self.claim(addr);
        Some(addr)
    }

    fn lowest(&self, range: AddrRange, avoid: &RangeSet) -> Option<u32> {
        self.free.within(range).find_map(|part| {
            if avoid.is_empty() {
                return Some(part.start());
            }
            let usable = [part].into_iter().collect::<RangeSet>().minus(avoid);
            usable.iter().next().map(AddrRange::start)
        })
    }

    /// Marks a free address as used; returns whether it was free.
    pub fn claim(&mut self, addr: u32) -> bool {
        let free = self.free.contains(addr);
        if free {
            self.free.remove(AddrRange::single(addr));
            self.used.insert(AddrRange::single(addr));
        }
        free
    }

    /// Marks a used address as free; returns whether it was used.
    pub fn release(&mut self, addr: u32) -> bool {
        let used = self.used.contains(addr);
        if used {
            self.used.remove(AddrRange::single(addr));
            self.free.insert(AddrRange::single(addr));
        }
        used
    }

    /// The range to donate to a peer that requests `range`: the largest aligned block of free addresses, and the last one
    /// if several have this size. If it has more than half of the free addresses in `range`, only its upper half is
    /// donated. No address of `avoid` is donated.
    pub fn offer(&self, range: AddrRange, avoid: &RangeSet) -> Option<AddrRange> {
        let free: RangeSet = self.free.within(range).collect::<RangeSet>().minus(avoid);
        let block = free.iter().map(AddrRange::biggest_block).max_by_key(|block| block.size())?;
        if block.size() > free.count() / 2 {
            return Some(AddrRange::new(block.start() + block.size() / 2, block.end()));
        }
        Some(block)
    }

    /// Removes free addresses that were donated.
    pub fn remove(&mut self, range: AddrRange) {
        self.free.remove(range);
    }

    /// Removes all addresses.
    pub fn clear(&mut self) {
        *self = Space::default();
    }
}
