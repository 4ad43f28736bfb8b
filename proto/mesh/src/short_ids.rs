use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, RngExt};
use weave_types::{PeerName, ShortId};

/// The owners of short ids (docs/spec/mesh.md 2.6).
///
/// The claimant with the lowest name owns an id, so that all peers decide the same. If the owner of an id changes, or
/// an id is claimed that was used and free, caches of owners must be *invalidated*.
#[derive(Debug, Default)]
pub(crate) struct ShortIds {
    slots: BTreeMap<ShortId, Slot>,
    invalidated: bool,
}

/// The claimants of an id, of which the first is the owner. An empty slot belongs to an id that was used before.
#[derive(Debug, Default)]
struct Slot {
    claimants: BTreeSet<PeerName>,
}

/// Number of random tries of [`ShortIds::pick_free`] before it lists all free ids.
const GUESSES: usize = 10;

impl ShortIds {
    pub(crate) fn owner(&self, id: ShortId) -> Option<PeerName> {
        self.slots.get(&id)?.claimants.first().copied()
    }

    /// Every id in use, ascending, with its owner.
    #[cfg(test)]
    pub(crate) fn owners(&self) -> impl Iterator<Item = (ShortId, PeerName)> + '_ {
        self.slots.iter().filter_map(|(&id, slot)| Some((id, *slot.claimants.first()?)))
    }

    /// Adds a claim. Returns the previous owner if it is no longer the owner.
    pub(crate) fn claim(&mut self, id: ShortId, peer: PeerName) -> Option<PeerName> {
        let used_before = self.slots.contains_key(&id);
        let slot = self.slots.entry(id).or_default();
        let before = slot.claimants.first().copied();
        slot.claimants.insert(peer);
        let after = slot.claimants.first().copied();
        self.invalidated |= used_before && before != after;
        before.filter(|_| before != after)
    }

    /// Removes a claim.
    pub(crate) fn release(&mut self, id: ShortId, peer: PeerName) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        let owned = slot.claimants.first() == Some(&peer);
        slot.claimants.remove(&peer);
        self.invalidated |= owned && !slot.claimants.is_empty();
    }

    /// Whether caches have become invalid since the last call.
    pub(crate) fn take_invalidated(&mut self) -> bool {
        std::mem::take(&mut self.invalidated)
    }

    /// A random id without an owner; `None` if there is none.
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

pub(crate) fn random_short_id(rng: &mut impl Rng) -> ShortId {
    ShortId::new(rng.random_range(0..ShortId::COUNT)).expect("the random number is below COUNT")
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
    fn lowest_name_is_owner_and_changes_of_owner_invalidate() {
        let mut ids = ShortIds::default();
        assert_eq!(ids.claim(id(7), name(5)), None);
        assert!(!ids.take_invalidated(), "never used before");
        assert_eq!(ids.claim(id(7), name(9)), None);
        assert!(!ids.take_invalidated(), "the owner stays");
        assert_eq!(ids.claim(id(7), name(2)), Some(name(5)));
        assert!(ids.take_invalidated(), "a lower name becomes the owner");
        ids.release(id(7), name(9));
        assert!(!ids.take_invalidated(), "the owner stays");
        ids.release(id(7), name(2));
        assert_eq!(ids.owner(id(7)), Some(name(5)));
        assert!(ids.take_invalidated(), "the next lowest name becomes the owner");
        ids.release(id(7), name(5));
        assert!(!ids.take_invalidated(), "no new owner");
        assert_eq!(ids.owner(id(7)), None);
        assert_eq!(ids.claim(id(7), name(5)), None);
        assert!(ids.take_invalidated(), "the id was used before");
    }

    #[test]
    fn the_last_free_id_is_found() {
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
