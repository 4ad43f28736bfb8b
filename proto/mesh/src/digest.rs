//! Comparing topologies without sending them: an extension between peers that say `TopologyDigest` in the handshake.
//!
//! 2.8.1 sends the complete topology to a neighbour again and again, in case that it has missed something; the size
//! grows with the square of the number of peers. Here the neighbour is asked first whether its records are the same.
//!
//! ```text
//! A                                  B
//!  -- digest of all records ---------> the same: nothing to do
//!  <-- else: age of each record ------
//!  -- records that are older at B ---> (as ordinary gossip)
//!  -- names of those newer at B ----->
//!  <-- these records ----------------- (as ordinary gossip)
//! ```
//! The same goes for news about many peers at once: it reaches everybody over several neighbours, so they tell the ages
//! first, and whoever lacks something asks one of them. (A few records are sent as they are.)
//!
//! ```text
//! A                                  B
//!  -- age of each new record --------> all known, or asked for already: nothing to do
//!  <-- else: names of those lacking --
//!  -- these records -----------------> (as ordinary gossip)
//! ```
//! One message: tag 64, a byte for the kind, then
//!
//! | kind | content |
//! | --- | --- |
//! | 0, digest | 8 bytes |
//! | 1, ages | for each peer: name (6 bytes), version (8), UID (8) |
//! | 2, request | for each peer: name (6) |
//! | 3, news | as ages, of some peers |
//!
//! All numbers are big-endian. Placeholders are left out. If both ends send a digest at the same time, only the one with
//! the lower name answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName, PeerUid};

use crate::event::ConnectionError;
use crate::gossip::{Names, Route};
use crate::mesh::Mesh;
use crate::peers::Peer;
use crate::topology::Topology;

/// Never sent to a peer without the feature.
pub(crate) const TAG: u8 = 64;

/// A digest that nobody has answered for so long will not be answered.
const PATIENCE: Duration = Duration::from_secs(10);

/// Version and incarnation decide which of two records is newer.
pub(crate) type Age = (u64, PeerUid);

/// News about more peers than this is told by age.
const FEW: usize = 4;
/// An answer takes a round trip. After this time whatever is still missing is looked for elsewhere.
const ANSWER: Duration = Duration::from_secs(2);
/// What is not there is not waited for without bounds.
const MAX_WANTED: usize = 65_536;

/// A message of the extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Digest(u64),
    Ages(BTreeMap<PeerName, Age>),
    Request(BTreeSet<PeerName>),
    News(BTreeMap<PeerName, Age>),
}

impl Message {
    /// With the tag.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![TAG];
        match self {
            Message::Digest(digest) => {
                out.push(0);
                out.extend(digest.to_be_bytes());
            }
            Message::Ages(ages) | Message::News(ages) => {
                out.push(if matches!(self, Message::Ages(_)) { 1 } else { 3 });
                for (name, (version, uid)) in ages {
                    out.extend(name.to_bytes());
                    out.extend(version.to_be_bytes());
                    out.extend(uid.0.to_be_bytes());
                }
            }
            Message::Request(names) => {
                out.push(2);
                names.iter().for_each(|name| out.extend(name.to_bytes()));
            }
        }
        out
    }

    /// From what follows the tag.
    pub(crate) fn decode(body: &[u8]) -> Option<Message> {
        let (kind, body) = body.split_first()?;
        match kind {
            0 => Some(Message::Digest(u64::from_be_bytes(body.try_into().ok()?))),
            1 | 3 => {
                let (entries, []) = body.as_chunks::<22>() else { return None };
                let entry = |e: &[u8; 22]| {
                    let (name, rest) = e.split_first_chunk::<6>()?;
                    let (version, uid) = rest.split_first_chunk::<8>()?;
                    let uid = PeerUid(u64::from_be_bytes(uid.try_into().ok()?));
                    Some((PeerName::from_bytes(*name), (u64::from_be_bytes(*version), uid)))
                };
                let ages = entries.iter().map(entry).collect::<Option<_>>()?;
                Some(if *kind == 1 { Message::Ages(ages) } else { Message::News(ages) })
            }
            2 => {
                let (names, []) = body.as_chunks::<6>() else { return None };
                Some(Message::Request(names.iter().map(|&name| PeerName::from_bytes(name)).collect()))
            }
            _ => None,
        }
    }
}

fn ages(topology: &Topology) -> impl Iterator<Item = (PeerName, Age)> + '_ {
    let known = topology.peers().filter(|(_, peer)| peer.uid != PeerUid(0));
    known.map(|(name, peer)| (name, age(peer)))
}

fn age(peer: &Peer) -> Age {
    (peer.version, peer.uid)
}

/// The same for the same records, whatever their order.
fn digest(topology: &Topology) -> u64 {
    ages(topology).fold(0, |sum, (name, (version, uid))| {
        let one = [name.number(), version, uid.0].into_iter().fold(0, |h, n| mix(h ^ n));
        sum.wrapping_add(one)
    })
}

/// Spreads a change of any bit over all (the finaliser of SplitMix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

impl Mesh {
    /// A hash of all records: equal on peers that see the same topology.
    pub fn topology_digest(&self) -> u64 {
        digest(&self.topology)
    }

    /// Makes sure that the neighbour learns what we know: by asking first, if it can be asked.
    pub(crate) fn offer_topology(&mut self, conn: ConnectionId, now: Now) {
        let digest = Message::Digest(digest(&self.topology));
        let mut asks = false;
        self.with_running(conn, |running| {
            asks = running.digests;
            if !asks {
                running.queue.push_topology(Route::Gossip, Names::All);
            }
        });
        if !asks {
            self.pump(conn, now);
        } else if self.send_if_idle(conn, &digest.encode(), now) {
            // Only what was sent can be answered: otherwise theirs would be taken as answered by them.
            self.with_running(conn, |running| running.digest_sent = Some(now.mono));
        }
    }

    /// A message of the extension came.
    pub(crate) fn handle_digest(
        &mut self,
        conn: ConnectionId,
        peer: PeerName,
        body: &[u8],
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some(message) = Message::decode(body) else {
            return Err(ConnectionError::Misbehaved("malformed topology digest".to_owned()));
        };
        let mut asked = false;
        self.with_running(conn, |running| {
            asked = running.digest_sent.is_some_and(|at| now.mono - at <= PATIENCE);
            if matches!(message, Message::Ages(_)) {
                running.digest_sent = None;
            }
        });
        match message {
            Message::Digest(theirs) => {
                let answered_by_them = asked && peer < self.config.name;
                if theirs != digest(&self.topology) && !answered_by_them {
                    let ages = Message::Ages(ages(&self.topology).collect());
                    self.send_if_idle(conn, &ages.encode(), now);
                }
            }
            Message::Ages(theirs) => {
                let ours: BTreeMap<PeerName, Age> = ages(&self.topology).collect();
                let newer =
                    |a: &BTreeMap<PeerName, Age>, b: &BTreeMap<PeerName, Age>| -> BTreeSet<PeerName> {
                        a.iter()
                            .filter(|(name, age)| b.get(name).is_none_or(|b| *age > b))
                            .map(|(n, _)| *n)
                            .collect()
                    };
                let (here, there) = (newer(&ours, &theirs), newer(&theirs, &ours));
                self.send_records(conn, here, now);
                if !there.is_empty() {
                    self.send_if_idle(conn, &Message::Request(there).encode(), now);
                }
            }
            Message::Request(names) => self.send_records(conn, names, now),
            Message::News(theirs) => self.handle_news(conn, peer, &theirs, now),
        }
        Ok(())
    }

    fn handle_news(
        &mut self,
        conn: ConnectionId,
        peer: PeerName,
        theirs: &BTreeMap<PeerName, Age>,
        now: Now,
    ) {
        let mut lacking = BTreeSet::new();
        for (&name, theirs) in theirs {
            let known = self.topology.peer(name).map(age);
            if known.as_ref() == Some(theirs) {
                self.knows_too(name, peer);
            } else if known.as_ref() < Some(theirs)
                && self.wanted.get(&name).is_none_or(|asked| asked < theirs)
                && self.wanted.len() < MAX_WANTED
            {
                self.wanted.insert(name, *theirs);
                lacking.insert(name);
            }
        }
        if !lacking.is_empty() {
            self.send_if_idle(conn, &Message::Request(lacking).encode(), now);
            self.timers.wanted.get_or_insert(now.mono + ANSWER);
        }
    }

    /// A neighbour has told of links to peers that we know nothing of. It usually knows more.
    pub(crate) fn ask_for_mentioned(&mut self, neighbour: PeerName, names: &BTreeSet<PeerName>, now: Now) {
        let Some(&conn) = self.by_peer.get(&neighbour) else { return };
        let asks = self.connections.get(&conn).and_then(|c| c.running()).is_some_and(|r| r.digests);
        if names.is_empty() || !asks || self.wanted.len() + names.len() > MAX_WANTED {
            return;
        }
        // Anything is newer than a placeholder.
        for name in names {
            self.wanted.entry(*name).or_insert((0, PeerUid(1)));
        }
        self.send_if_idle(conn, &Message::Request(names.clone()).encode(), now);
        self.timers.wanted.get_or_insert(now.mono + ANSWER);
    }

    /// What we have asked for has had time to come. If it has not, somebody else may have it.
    pub(crate) fn ask_again(&mut self, now: Now) {
        let wanted = std::mem::take(&mut self.wanted);
        let lacks =
            |(name, age): (&PeerName, &Age)| self.topology.peer(*name).map(self::age).as_ref() < Some(age);
        if wanted.iter().any(lacks) {
            self.offer_topology_to_some(now);
        }
    }

    /// Tells a neighbour what is new.
    pub(crate) fn push_news(&mut self, hop: PeerName, names: BTreeSet<PeerName>, now: Now) {
        let Some(&conn) = self.by_peer.get(&hop) else { return };
        let mut by_age = false;
        self.with_running(conn, |running| by_age = running.digests && names.len() > FEW);
        if by_age {
            self.with_running(conn, |running| running.queue.push_ages(names));
            self.pump(conn, now);
        } else {
            self.push_topology(hop, Route::Gossip, Names::Some(names), now);
        }
    }

    /// The ages of what we know of these.
    pub(crate) fn ages_of(&self, names: &BTreeSet<PeerName>) -> Message {
        let known = names.iter().filter_map(|name| Some((*name, age(self.topology.peer(*name)?))));
        Message::News(known.filter(|(_, (_, uid))| *uid != PeerUid(0)).collect())
    }

    fn send_records(&mut self, conn: ConnectionId, names: BTreeSet<PeerName>, now: Now) {
        if !names.is_empty() {
            self.with_running(conn, |running| {
                running.queue.push_topology(Route::Gossip, Names::Some(names));
            });
            self.pump(conn, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tests::support::{peer, record, rng, topology};

    #[test]
    fn layout() {
        let name = peer(0x0200_0000_0001);
        let bytes = Message::Digest(0x0102_0304_0506_0708).encode();
        assert_eq!(bytes, [64, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let bytes = Message::Ages(BTreeMap::from([(name, (7, PeerUid(9)))])).encode();
        assert_eq!(bytes, [64, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(Message::Request(BTreeSet::from([name])).encode(), [64, 2, 2, 0, 0, 0, 0, 1]);
        for bad in [&[][..], &[4], &[0, 1], &[1, 1], &[3, 1], &[2, 1, 2, 3, 4, 5]] {
            assert_eq!(Message::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_digest_tells_records_apart_but_not_placeholders() {
        let (mut a, mut b) = (topology(peer(1)), topology(peer(1)));
        assert_eq!(digest(&a), digest(&b));
        let news = |version| crate::update::PeerRecord { version, ..record(peer(2), Vec::new()) };
        a.merge(vec![news(3)], &mut rng(1));
        b.merge(vec![news(2)], &mut rng(1));
        assert_ne!(digest(&a), digest(&b));
        b.merge(vec![news(3)], &mut rng(1));
        assert_eq!(digest(&a), digest(&b));
        let placeholder =
            |n| crate::update::PeerRecord { uid: PeerUid(0), version: 0, ..record(peer(n), Vec::new()) };
        b.merge(vec![placeholder(5)], &mut rng(1));
        assert_eq!(digest(&a), digest(&b));
    }

    proptest! {
        #[test]
        fn messages_round_trip(
            number: u64,
            ages in prop::collection::btree_map(0..1u64 << 48, (any::<u64>(), any::<u64>()), 0..20),
        ) {
            let ages: BTreeMap<_, _> = ages.into_iter().map(|(n, (v, u))| (peer(n), (v, PeerUid(u)))).collect();
            let names = ages.keys().copied().collect();
            let news = Message::News(ages.clone());
            for message in [Message::Digest(number), Message::Ages(ages), Message::Request(names), news] {
                prop_assert_eq!(Message::decode(&message.encode()[1..]), Some(message));
            }
        }

        #[test]
        fn no_bytes_do_harm(body: Vec<u8>) {
            Message::decode(&body);
        }
    }
}
