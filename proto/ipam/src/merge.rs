//! Merge of another peer's ring (docs/spec/ipam.md 6.4).

use crate::address::AddrRange;
use crate::gossip_error::Conflict;
use crate::ring::{Entry, Ring, RingError};
use crate::space::RangeSet;

/// What a merge has changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Merged {
    /// An entry was taken from the other ring.
    pub updated: bool,
    /// Anything changed, including versions and seeds.
    pub changed: bool,
}

/// Why a ring was not merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// The other ring is invalid.
    Invalid(RingError),
    /// The other ring was first divided among other peers.
    Seeds,
    /// The other ring divides another range.
    Range,
    /// The other ring contradicts the use of addresses here.
    Conflict {
        /// The first contradiction found.
        conflict: Conflict,
        /// Own ranges that the other ring gives to others.
        disputed: Vec<AddrRange>,
    },
}

/// What [`Ring::break_ties`] has done with entries of which it is undecided who owns them.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TieBreak {
    /// The version of an entry was raised; others must learn of it.
    pub raised: bool,
    /// The owner of an entry changed from one other peer to another.
    pub changed: bool,
    /// Own ranges that the other owner will get; disputed until it raises their version.
    pub conceded: Option<(Conflict, Vec<AddrRange>)>,
}

impl Ring {
    /// Merges newer entries of `theirs`. `first_used` returns the lowest address in use here in a range.
    ///
    /// The rules for single entries are those of 2.8.1, so that views converge in mixed clusters. A final check
    /// covers the cases that they miss: no address in use here may belong to another peer in the result. The check
    /// only rejects rings that 2.8.1 would accept and then use an address twice (docs/spec/ipam.md 15.2).
    ///
    /// # Errors
    /// The ring is unchanged.
    pub fn merge(
        &mut self,
        theirs: &Ring,
        first_used: impl Fn(AddrRange) -> Option<u32>,
    ) -> Result<Merged, MergeError> {
        theirs.check().map_err(MergeError::Invalid)?;
        let both_seeded = !self.seeds.is_empty() && !theirs.seeds.is_empty();
        if both_seeded && self.seeds != theirs.seeds {
            return Err(MergeError::Seeds);
        }
        if self.range != theirs.range {
            return Err(MergeError::Range);
        }

        let Candidate { entries, updated, mut conflict } = self.combine(theirs, &first_used);
        let mut result = Ring { entries, ..self.clone() };
        for index in 0..result.entries.len() {
            if result.entries[index].peer == self.peer {
                result.entries[index].free = result.entries[index].free.min(result.size_of(index));
            }
        }
        let owned = |ring: &Ring| ring.ranges_owned_by(self.peer).into_iter().collect::<RangeSet>();
        let lost = if updated { owned(self).minus(&owned(&result)) } else { RangeSet::default() };
        let rejected = |conflict| MergeError::Conflict { conflict, disputed: lost.iter().collect() };
        if conflict.is_none() {
            result.check().map_err(|error| rejected(Conflict::Result(error)))?;
            let used = lost.iter().find_map(&first_used);
            conflict = used.and_then(|addr| self.conflict_at(&result, addr));
        }
        if let Some(conflict) = conflict {
            return Err(rejected(conflict));
        }

        if result.seeds.is_empty() {
            result.seeds.clone_from(&theirs.seeds);
        }
        let changed = result != *self;
        *self = result;
        Ok(Merged { updated, changed })
    }

    /// After a merge: decides on entries that `theirs` gives to another peer at the same version and with the same free
    /// count, as when two peers take over the same one concurrently. By the rules of the merge both sides would keep their own
    /// view for ever. Instead
    ///
    /// * of two peers that both consider themselves the owner, the one with the lower name raises the version, and the
    ///   other one then yields; until then it does not hand out these addresses;
    /// * a peer that is named as owner of what it has given away, or never got, denies that with a higher version, because
    ///   it knows what it does not use. (If each names the other, the different steps end the tie.)
    /// * all other peers take the lower name for the owner.
    ///
    /// 2.8.1 does none of this (docs/spec/ipam.md 15.4), but also yields to the higher version.
    pub fn break_ties(&mut self, theirs: &Ring) -> TieBreak {
        let mut ties = TieBreak::default();
        for index in 0..self.entries.len() {
            let mine = self.entries[index];
            let same = theirs.entries.binary_search_by_key(&mine.token, |entry| entry.token);
            let Some(other) = same.ok().and_then(|at| theirs.entries.get(at)) else { continue };
            if mine.peer == other.peer || (mine.version, mine.free) != (other.version, other.free) {
                continue;
            }
            if other.peer == self.peer {
                let step = if self.peer < mine.peer { 2 } else { 1 };
                self.entries[index].version = mine.version.saturating_add(step);
                ties.raised = true;
            } else if mine.peer != self.peer {
                self.entries[index].peer = mine.peer.min(other.peer);
                ties.changed |= other.peer < mine.peer;
            } else if self.peer < other.peer {
                self.entries[index].version = mine.version.saturating_add(1);
                ties.raised = true;
            } else {
                let ranges = self.ranges_of(index).collect::<Vec<_>>();
                let (token, ours, theirs) = (mine.token, mine.peer, other.peer);
                let conflict = Conflict::Inconsistent { token, ours, theirs };
                ties.conceded.get_or_insert((conflict, Vec::new())).1.extend(ranges);
            }
        }
        ties
    }

    /// Own ranges that `theirs` counts as part of another peer's range, although it knows the latest version of that
    /// range. A donor raises the version of the rest, so a ring with that version contains the donation; unless the
    /// range was taken over (`rmpeer`) by a peer that did not know of the donation. That peer hands out the same
    /// addresses. In 2.8.1 only the peer that took it over would notice.
    pub fn find_overlooked(&self, theirs: &Ring) -> Option<(Conflict, Vec<AddrRange>)> {
        let mut found: Option<(Conflict, Vec<AddrRange>)> = None;
        for (index, mine) in self.entries.iter().enumerate().filter(|(_, mine)| mine.peer == self.peer) {
            let Err(place) = theirs.entries.binary_search_by_key(&mine.token, |entry| entry.token) else {
                continue;
            };
            let Some(owner) = theirs.owner_of(mine.token).filter(|&owner| owner != self.peer) else {
                continue;
            };
            let (before, after) = theirs.entries.split_at(place);
            let rest = before.iter().rev().chain(after.iter().rev()).find_map(|other| {
                let at = self.entries.binary_search_by_key(&other.token, |entry| entry.token).ok()?;
                Some(other.version >= self.entries[at].version)
            });
            if rest == Some(true) {
                let conflict = Conflict::Overlooked { token: mine.token, theirs: owner };
                found.get_or_insert((conflict, Vec::new())).1.extend(self.ranges_of(index));
            }
        }
        found
    }

    /// Applies the rules for each token. If they forbid a received entry, the first such conflict is recorded and the
    /// entry is taken nevertheless: the caller discards the result, and finds the disputed ranges by it.
    fn combine(&self, theirs: &Ring, first_used: &impl Fn(AddrRange) -> Option<u32>) -> Candidate {
        let me = self.peer;
        let in_use = |from: u32, to: u32| self.parts(from, to).any(|part| first_used(part).is_some());
        let mut candidate = Candidate::default();
        // Owner of the previous entry if it was taken from this ring.
        let mut previous = None;
        let (mut i, mut j) = (0, 0);
        loop {
            match (self.entries.get(i), theirs.entries.get(j)) {
                (None, None) => return candidate,
                (Some(mine), other) if other.is_none_or(|other| mine.token < other.token) => {
                    candidate.entries.push(*mine);
                    previous = Some(mine.peer);
                    i += 1;
                }
                (mine, Some(other)) if mine.is_none_or(|mine| other.token < mine.token) => {
                    let next = mine.or(self.entries.first()).map_or(self.range.end(), |e| e.token);
                    if previous == Some(me) && other.peer != me && in_use(other.token, next) {
                        candidate.note(Conflict::Split { token: other.token, theirs: other.peer });
                    }
                    candidate.take(*other);
                    previous = None;
                    j += 1;
                }
                (Some(mine), Some(other)) => {
                    let newer = other.version > mine.version;
                    let in_use = || in_use(mine.token, self.next_token(i));
                    let mut keep = None;
                    if mine.version > other.version {
                        keep = Some(*mine);
                    } else if !newer {
                        if mine.peer != other.peer && mine.peer == me && in_use() {
                            candidate.note(Conflict::Inconsistent {
                                token: mine.token,
                                ours: mine.peer,
                                theirs: other.peer,
                            });
                        } else if mine.peer == other.peer || mine.free >= other.free {
                            keep = Some(*mine);
                        }
                    } else if mine.peer == me && other.peer == me {
                        // This peer knows its own ranges best. Its state was lost since that version.
                        let version = other.version.saturating_add(1);
                        candidate.entries.push(Entry { version, ..*mine });
                        i += 1;
                        j += 1;
                        continue;
                    } else if mine.peer == me && in_use() {
                        candidate.note(Conflict::Taken {
                            token: mine.token,
                            version: mine.version,
                            theirs: other.peer,
                            their_version: other.version,
                        });
                    }
                    match keep {
                        Some(entry) => {
                            candidate.entries.push(entry);
                            previous = Some(entry.peer);
                        }
                        None => {
                            candidate.take(*other);
                            previous = None;
                        }
                    }
                    i += 1;
                    j += 1;
                }
                // The guards above cover these cases.
                (None, Some(_)) | (Some(_), None) => return candidate,
            }
        }
    }

    /// The range from one token to the next one, which may wrap around the end.
    fn parts(&self, from: u32, to: u32) -> impl Iterator<Item = AddrRange> + use<> {
        if to > from {
            [AddrRange::new(from, to), AddrRange::new(0, 0)].into_iter()
        } else {
            [AddrRange::new(from, self.range.end()), AddrRange::new(self.range.start(), to)].into_iter()
        }
    }

    /// The conflict about an address in use that is another peer's in `result`.
    fn conflict_at(&self, result: &Ring, addr: u32) -> Option<Conflict> {
        let other = result.entries.get(result.position(addr)?)?;
        Some(match self.entries.iter().find(|mine| mine.token == other.token) {
            Some(mine) => Conflict::Taken {
                token: mine.token,
                version: mine.version,
                theirs: other.peer,
                their_version: other.version,
            },
            None => Conflict::Split { token: other.token, theirs: other.peer },
        })
    }
}

/// The merged entries, valid unless a conflict was found.
#[derive(Default)]
struct Candidate {
    entries: Vec<Entry>,
    updated: bool,
    conflict: Option<Conflict>,
}

impl Candidate {
    fn take(&mut self, theirs: Entry) {
        self.entries.push(theirs);
        self.updated = true;
    }

    fn note(&mut self, conflict: Conflict) {
        self.conflict.get_or_insert(conflict);
    }
}
