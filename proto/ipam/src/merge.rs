//! Taking over what another peer's ring knows better (docs/spec/ipam.md 6.4).

use crate::address::AddrRange;
use crate::gossip_error::Conflict;
use crate::ring::{Entry, Ring, RingError};
use crate::space::RangeSet;

/// What a merge has changed.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Merged {
    /// Something of theirs was taken.
    pub updated: bool,
    /// Anything is other than before, versions and seeds included.
    pub changed: bool,
}

/// Why nothing was merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MergeError {
    /// Theirs breaks the rules of rings.
    Fault(RingError),
    /// Theirs began with other peers.
    Seeds,
    /// Theirs is of another range.
    Range,
    /// It contradicts what is in use here.
    Conflict {
        /// How.
        conflict: Conflict,
        /// What would no longer be ours.
        disputed: Vec<AddrRange>,
    },
}

/// What became of entries of which it could not be told whose they are.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Ties {
    /// Some are ours for certain now, or for certain not, and others have to hear of it.
    pub won: bool,
    /// Some have another owner now, neither of whom is us.
    pub settled: bool,
    /// Some will be the other's, once it says so; until then they are in doubt.
    pub lost: Option<(Conflict, Vec<AddrRange>)>,
}

impl Ring {
    /// Takes over what is newer in `theirs`. `first_used` gives the lowest address in use here in a range.
    ///
    /// Entry by entry the rules are those of 2.8.1, so that views converge in mixed clusters. What they overlook is
    /// caught at the end: no address in use here may belong to another afterwards. That only rejects more than 2.8.1
    /// does, where it would have led to an address in use twice.
    ///
    /// # Errors
    /// Nothing has changed then.
    pub fn merge(
        &mut self,
        theirs: &Ring,
        first_used: impl Fn(AddrRange) -> Option<u32>,
    ) -> Result<Merged, MergeError> {
        theirs.check().map_err(MergeError::Fault)?;
        let both_seeded = !self.seeds.is_empty() && !theirs.seeds.is_empty();
        if both_seeded && self.seeds != theirs.seeds {
            return Err(MergeError::Seeds);
        }
        if self.range != theirs.range {
            return Err(MergeError::Range);
        }

        let Candidate { entries, updated, mut objection } = self.combine(theirs, &first_used);
        let mut result = Ring { entries, ..self.clone() };
        for index in 0..result.entries.len() {
            if result.entries[index].peer == self.peer {
                result.entries[index].free = result.entries[index].free.min(result.size_of(index));
            }
        }
        let owned = |ring: &Ring| ring.ranges_owned_by(self.peer).into_iter().collect::<RangeSet>();
        let lost = if updated { owned(self).minus(&owned(&result)) } else { RangeSet::default() };
        let conflict = |conflict| MergeError::Conflict { conflict, disputed: lost.iter().collect() };
        if objection.is_none() {
            result.check().map_err(|fault| conflict(Conflict::Result(fault)))?;
            let used = lost.iter().find_map(&first_used);
            objection = used.and_then(|addr| self.objection_to(&result, addr));
        }
        if let Some(objection) = objection {
            return Err(conflict(objection));
        }

        if result.seeds.is_empty() {
            result.seeds.clone_from(&theirs.seeds);
        }
        let changed = result != *self;
        *self = result;
        Ok(Merged { updated, changed })
    }

    /// After a merge: entries that `theirs` gives to another at the same version and with as many free addresses, as when two
    /// take over the same peer at once. By the rules of the merge both sides keep theirs, for ever. Here
    ///
    /// * of two owners that both take an entry for theirs the lower name raises its version, and the other one then yields;
    ///   until it hears that, it does not hand these addresses out;
    /// * who is told that it owns what it has given away, or never got, says so with a higher version: it knows best what it
    ///   does not use. (If each says so of the other, one of them gets further ahead.)
    /// * everybody else takes the lower name for the owner.
    ///
    /// 2.8.1 does none of this, but yields to the higher version just the same.
    pub fn break_ties(&mut self, theirs: &Ring) -> Ties {
        let mut ties = Ties::default();
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
                ties.won = true;
            } else if mine.peer != self.peer {
                self.entries[index].peer = mine.peer.min(other.peer);
                ties.settled |= other.peer < mine.peer;
            } else if self.peer < other.peer {
                self.entries[index].version = mine.version.saturating_add(1);
                ties.won = true;
            } else {
                let ranges = self.ranges_of(index).collect::<Vec<_>>();
                let (token, ours, theirs) = (mine.token, mine.peer, other.peer);
                let conflict = Conflict::Inconsistent { token, ours, theirs };
                ties.lost.get_or_insert((conflict, Vec::new())).1.extend(ranges);
            }
        }
        ties
    }

    /// What is ours, and `theirs` counts to the range of another before it, although it knows all that has happened to
    /// that range. Whoever gives away a part of a range raises the version of the rest, so a ring that has this version has the
    /// part as well; unless somebody took the range over (`rmpeer`) without having heard of the gift. That one hands the part
    /// out, too. Of 2.8.1 only the one who took it over would notice.
    pub fn overlooked_by(&self, theirs: &Ring) -> Option<(Conflict, Vec<AddrRange>)> {
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

    /// Applies the rules for each token. Where they forbid what is received, the first such case is noted, and the entry
    /// is taken all the same: the caller throws the result away, and sees from it what is in doubt.
    fn combine(&self, theirs: &Ring, first_used: &impl Fn(AddrRange) -> Option<u32>) -> Candidate {
        let me = self.peer;
        let in_use = |from: u32, to: u32| self.parts(from, to).any(|part| first_used(part).is_some());
        let mut candidate = Candidate::default();
        // Owner of the entry of ours that was taken last, if nothing of theirs has come since.
        let mut before = None;
        let (mut i, mut j) = (0, 0);
        loop {
            match (self.entries.get(i), theirs.entries.get(j)) {
                (None, None) => return candidate,
                (Some(mine), other) if other.is_none_or(|other| mine.token < other.token) => {
                    candidate.entries.push(*mine);
                    before = Some(mine.peer);
                    i += 1;
                }
                (mine, Some(other)) if mine.is_none_or(|mine| other.token < mine.token) => {
                    let next = mine.or(self.entries.first()).map_or(self.range.end(), |e| e.token);
                    if before == Some(me) && other.peer != me && in_use(other.token, next) {
                        candidate.object(Conflict::Split { token: other.token, theirs: other.peer });
                    }
                    candidate.take(*other);
                    before = None;
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
                            candidate.object(Conflict::Inconsistent {
                                token: mine.token,
                                ours: mine.peer,
                                theirs: other.peer,
                            });
                        } else if mine.peer == other.peer || mine.free >= other.free {
                            keep = Some(*mine);
                        }
                    } else if mine.peer == me && other.peer == me {
                        // Nobody knows better what is ours; we have lost state since.
                        let version = other.version.saturating_add(1);
                        candidate.entries.push(Entry { version, ..*mine });
                        i += 1;
                        j += 1;
                        continue;
                    } else if mine.peer == me && in_use() {
                        candidate.object(Conflict::Taken {
                            token: mine.token,
                            version: mine.version,
                            theirs: other.peer,
                            their_version: other.version,
                        });
                    }
                    match keep {
                        Some(entry) => {
                            candidate.entries.push(entry);
                            before = Some(entry.peer);
                        }
                        None => {
                            candidate.take(*other);
                            before = None;
                        }
                    }
                    i += 1;
                    j += 1;
                }
                // The guards above have taken all these.
                (None, Some(_)) | (Some(_), None) => return candidate,
            }
        }
    }

    /// From one token until the next comes, which may be round the end.
    fn parts(&self, from: u32, to: u32) -> impl Iterator<Item = AddrRange> + use<> {
        if to > from {
            [AddrRange::new(from, to), AddrRange::new(0, 0)].into_iter()
        } else {
            [AddrRange::new(from, self.range.end()), AddrRange::new(self.range.start(), to)].into_iter()
        }
    }

    /// In `result` an address in use is not ours.
    fn objection_to(&self, result: &Ring, addr: u32) -> Option<Conflict> {
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

/// The result, unless there is an objection.
#[derive(Default)]
struct Candidate {
    entries: Vec<Entry>,
    updated: bool,
    objection: Option<Conflict>,
}

impl Candidate {
    fn take(&mut self, theirs: Entry) {
        self.entries.push(theirs);
        self.updated = true;
    }

    fn object(&mut self, conflict: Conflict) {
        self.objection.get_or_insert(conflict);
    }
}
