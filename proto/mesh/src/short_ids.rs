use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, RngExt};
use weave_types::{PeerName, ShortId};

/// Who may be called by which short id (docs/spec/mesh.md 2.6).
///
/// The claimant with the lowest name owns an id, so all peers agree without talking. An id whose owner changes, or that
/// is taken up again after it was free, must be *invalidated* where it was cached.
#[derive(Debug, Default)]
pub(crate) struct ShortIds {
    slots: BTreeMap<ShortId, Slot>,
    invalidated: bool,
}

/// All claimants; the first one owns the id. An empty slot means "was used before".
#[derive(Debug, Default)]
struct Slot {
    claimants: BTreeSet<PeerName>,
}

/// How often [`ShortIds::pick_free`] guesses before it looks at everything.
const GUESSES: usize = 10;

impl ShortIds {
    /// The owner of an id.
    pub(crate) fn owner(&self, id: ShortId) -> Option<PeerName> {
        self.slots.get(&id)?.claimants.first().copied()
    }

    /// Every id that is in use, ascending, with its owner.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (ShortId, PeerName)> + '_ {
        self.slots.iter().filter_map(|(&id, slot)| Some((id, *slot.claimants.first()?)))
    }

    /// Enters a claim. Returns the former owner if the claim has displaced it.
    pub(crate) fn claim(&mut self, id: ShortId, peer: PeerName) -> Option<PeerName> {
        let used_before = self.slots.contains_key(&id);
        let slot = self.slots.entry(id).or_default();
        let before = slot.claimants.first().copied();
        slot.claimants.insert(peer);
        let after = slot.claimants.first().copied();
        self.invalidated |= used_before && before != after;
        before.filter(|_| before != after)
    }

    /// Takes a claim back.
    pub(crate) fn release(&mut self, id: ShortId, peer: PeerName) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let owned = slot.claimants.first() == Some(&peer);
        slot.claimants.remove(&peer);
        self.invalidated |= owned && !slot.claimants.is_empty();
    }

    /// Whether an id changed hands since the last call.
    pub(crate) fn take_invalidated(&mut self) -> bool {
        std::mem::take(&mut self.invalidated)
    }

    /// An id without an owner, uniformly; `None` if all are taken.
    pub(crate) fn pick_free(&self, rng: &mut impl Rng) -> Option<ShortId> {
        for _ in 0..GUESSES {
            let id = random_short_id(rng);
            if self.owner(id).is_none() {
                return Some(id);
            }
        }
        let free: Vec<ShortId> =
            (0..ShortId::COUNT).filter_map(ShortId::new).filter(|&id| self.owner(id).is_none()).collect();
        if free.is_empty() { None } else { Some(free[rng.random_range(0..free.len())]) }
    }
}

/// Any of the 4096.
pub(crate) fn random_short_id(rng: &mut impl Rng) -> ShortId {
    ShortId::new(rng.random_range(0..ShortId::COUNT)).expect("below COUNT")
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;

    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_number(n).unwrap()
    }

    fn id(n: u16) -> ShortId {
        ShortId::new(n).unwrap()
    }

    #[test]
    fn lowest_name_owns_and_changes_invalidate() {
        let mut ids = ShortIds::default();
        assert_eq!(ids.claim(id(7), name(5)), None);
        assert!(!ids.take_invalidated(), "never used before");
        assert_eq!(ids.claim(id(7), name(9)), None);
        assert!(!ids.take_invalidated(), "joined the others");
        assert_eq!(ids.claim(id(7), name(2)), Some(name(5)));
        assert!(ids.take_invalidated(), "a lower name took it");
        ids.release(id(7), name(9));
        assert!(!ids.take_invalidated(), "one of the others left");
        ids.release(id(7), name(2));
        assert_eq!(ids.owner(id(7)), Some(name(5)));
        assert!(ids.take_invalidated(), "the next one took over");
        ids.release(id(7), name(5));
        assert!(!ids.take_invalidated(), "the last one left");
        assert_eq!(ids.owner(id(7)), None);
        assert_eq!(ids.claim(id(7), name(5)), None);
        assert!(ids.take_invalidated(), "free now, but used before");
    }

    #[test]
    fn picks_the_last_free_one_and_none_if_full() {
        let mut rng = ChaCha12Rng::seed_from_u64(1);
        let mut ids = ShortIds::default();
        for n in (0..ShortId::COUNT).filter(|&n| n != 1234) {
            ids.claim(id(n), name(1));
        }
        assert_eq!(ids.pick_free(&mut rng), Some(id(1234)));
        ids.claim(id(1234), name(1));
        assert_eq!(ids.pick_free(&mut rng), None);
    }
}
