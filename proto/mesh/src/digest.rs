//! Compares topologies without sending them: an extension between peers that announce `TopologyDigest` in the handshake.
//!
//! 2.8.1 repeats the complete topology to its neighbours in case that they have missed something; its size grows with the
//! square of the number of peers. Here two neighbours first compare digests of all records.
//!
//! ```text
//! A                                     B
//!  -- digest of all records ------------> equal: done
//!  <-- otherwise: version of each record
//!  -- news of those older at B ---------> (as below)
//!  -- request for those newer at B -----> (unless already requested)
//!  <-- these records -------------------- (as ordinary gossip)
//! ```
//! New records of many peers reach each peer from several neighbours. So the neighbours send the versions of the
//! new records first, and the receiver requests missing records from one of them. A few new records are sent without
//! asking.
//!
//! ```text
//! A                                     B
//!  -- version of each new record -------> all known, or already requested: done
//!  <-- otherwise: request for the missing
//!  -- these records --------------------> (as ordinary gossip)
//! ```
//! Layout of a message: tag 64, a byte for the kind, the content. Numbers are big-endian.
//!
//! | kind | content |
//! | --- | --- |
//! | 0, digest | 8 bytes |
//! | 1, versions | for each peer: name (6 bytes), version (8), UID (8) |
//! | 2, request | for each peer: name (6) |
//! | 3, news | as versions, of some peers |
//!
//! Placeholders are not included. If both ends send a digest at the same time, only the end with the lower name answers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weave_types::{ConnectionId, Now, PeerName, PeerUid};

use crate::event::ConnectionError;
use crate::gossip::{GossipKind, PeerSelection};
use crate::mesh::Mesh;
use crate::peers::{Peer, RecordVersion};
use crate::topology::{self, Topology};

/// Tag of the extension's messages, which are only sent to peers with the feature.
pub(crate) const TAG: u8 = 64;

/// A digest without an answer after this time is given up.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(10);

/// If more records than this are new, or they have more connections, their versions are sent first: most receivers have the records from
/// others.
const MAX_NEWS_AS_RECORDS: usize = 4;
const MAX_NEWS_CONNECTIONS: usize = 64;
/// After this time, and so many intervals of reactions ([`Mesh::interval`]), requested records that are still missing are requested from
/// another neighbour.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_INTERVALS: u32 = 10;
/// Limits the memory for requests.
const MAX_REQUESTED: usize = 65_536;

/// A message of the extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Digest(u64),
    Versions(BTreeMap<PeerName, RecordVersion>),
    Request(BTreeSet<PeerName>),
    News(BTreeMap<PeerName, RecordVersion>),
}

impl Message {
    /// Encodes the message with its tag.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![TAG];
        match self {
            Message::Digest(digest) => {
                out.push(0);
                out.extend(digest.to_be_bytes());
            }
            Message::Versions(versions) | Message::News(versions) => {
                out.push(if matches!(self, Message::Versions(_)) { 1 } else { 3 });
                for (name, RecordVersion { version, uid }) in versions {
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

    /// Decodes the bytes after the tag.
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
                    let version = u64::from_be_bytes(*version);
                    Some((PeerName::from_bytes(*name), RecordVersion { version, uid }))
                };
                let versions = entries.iter().map(entry).collect::<Option<_>>()?;
                Some(if *kind == 1 { Message::Versions(versions) } else { Message::News(versions) })
            }
            2 => {
                let (names, []) = body.as_chunks::<6>() else { return None };
                Some(Message::Request(names.iter().map(|&name| PeerName::from_bytes(name)).collect()))
            }
            _ => None,
        }
    }
}

fn versions(topology: &Topology) -> impl Iterator<Item = (PeerName, RecordVersion)> + '_ {
    let known = topology.peers().filter(|(_, peer)| peer.uid != PeerUid(0));
    known.map(|(name, peer)| (name, peer.record_version()))
}

/// A hash of all records that does not depend on their order.
fn digest(topology: &Topology) -> u64 {
    versions(topology).fold(0, |sum, (name, RecordVersion { version, uid })| {
        let one = [name.number(), version, uid.0].into_iter().fold(0, |h, n| mix(h ^ n));
        sum.wrapping_add(one)
    })
}

/// The finaliser of SplitMix64: a change of any bit changes about half of all bits.
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ n >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ n >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ n >> 31
}

impl Mesh {
    /// A hash of all records, equal on peers that have the same topology.
    pub fn topology_digest(&self) -> u64 {
        digest(&self.topology)
    }

    /// Brings a neighbour's topology up to date: with a digest if it supports them, otherwise with the complete topology.
    pub(crate) fn sync_topology(&mut self, conn: ConnectionId, now: Now) {
        let digest = Message::Digest(digest(&self.topology));
        let mut compares = false;
        self.with_running(conn, |running| {
            compares = running.supports_digest;
            if !compares {
                running.queue.push_topology(GossipKind::Neighbour, PeerSelection::All);
            }
        });
        if !compares {
            self.flush_queue(conn, now);
        } else if self.send_unless_busy(conn, &digest.encode(), now) {
            // A digest that was not sent is not recorded: theirs would then count as being answered by them.
            self.with_running(conn, |running| running.digest_sent_at = Some(now.mono));
        }
    }

    pub(crate) fn handle_digest(
        &mut self,
        conn: ConnectionId,
        peer: PeerName,
        body: &[u8],
        now: Now,
    ) -> Result<(), ConnectionError> {
        let Some(message) = Message::decode(body) else {
            return Err(ConnectionError::ProtocolViolation("malformed topology digest".to_owned()));
        };
        let mut awaits_answer = false;
        self.with_running(conn, |running| {
            awaits_answer = running.digest_sent_at.is_some_and(|at| now.mono - at <= DIGEST_TIMEOUT);
            if matches!(message, Message::Versions(_)) {
                running.digest_sent_at = None;
            }
        });
        let max_version = topology::max_version(now.wall);
        match message {
            Message::Digest(theirs) => {
                let answered_by_them = awaits_answer && peer < self.config.name;
                if theirs != digest(&self.topology) && !answered_by_them {
                    let versions = Message::Versions(versions(&self.topology).collect());
                    self.send_unless_busy(conn, &versions.encode(), now);
                }
            }
            Message::Versions(mut theirs) => {
                theirs.retain(|_, known| known.version <= max_version);
                let newer = versions(&self.topology)
                    .filter(|(name, version)| theirs.get(name).is_none_or(|theirs| version > theirs));
                let newer = newer.map(|(name, _)| name).collect();
                self.push_news(conn, newer, now);
                self.handle_news(conn, peer, &theirs, now);
            }
            Message::Request(mut names) => {
                // They wait while the neighbour does not read, and it can make up names.
                names.retain(|&name| self.topology.peer(name).is_some());
                self.send_records(conn, names, now);
            }
            Message::News(mut theirs) => {
                theirs.retain(|_, known| known.version <= max_version);
                self.handle_news(conn, peer, &theirs, now);
            }
        }
        Ok(())
    }

    fn handle_news(
        &mut self,
        conn: ConnectionId,
        peer: PeerName,
        theirs: &BTreeMap<PeerName, RecordVersion>,
        now: Now,
    ) {
        let mut missing = BTreeSet::new();
        for (&name, theirs) in theirs {
            let known = self.topology.peer(name).map(Peer::record_version);
            if known.as_ref() == Some(theirs) {
                self.mark_as_known(name, peer);
            } else if known.as_ref() < Some(theirs)
                && self.requested.get(&name).is_none_or(|(requested, _)| requested < theirs)
                && self.requested.len() < MAX_REQUESTED
            {
                missing.insert(name);
                self.requested.insert(name, (*theirs, now.mono));
            }
        }
        self.request(conn, missing, now);
    }

    /// Requests records that have been written down as requested.
    fn request(&mut self, conn: ConnectionId, names: BTreeSet<PeerName>, now: Now) {
        if !names.is_empty() {
            self.send_unless_busy(conn, &Message::Request(names).encode(), now);
            let due = now.mono + self.request_timeout();
            self.timers.requested.get_or_insert(due);
        }
    }

    /// Many records take their time on a busy machine, and requesting them again would take more.
    fn request_timeout(&self) -> Duration {
        REQUEST_TIMEOUT + self.interval() * REQUEST_INTERVALS
    }

    /// Requests the records of peers that are only known from a neighbour's update as neighbours of others.
    pub(crate) fn request_mentioned(&mut self, neighbour: PeerName, names: &BTreeSet<PeerName>, now: Now) {
        let Some(&conn) = self.by_peer.get(&neighbour) else { return };
        let supported =
            self.connections.get(&conn).and_then(|c| c.running()).is_some_and(|r| r.supports_digest);
        if names.is_empty() || !supported || self.requested.len() + names.len() > MAX_REQUESTED {
            return;
        }
        // The lowest version of a record that is not a placeholder.
        let lowest = RecordVersion { version: 0, uid: PeerUid(1) };
        for name in names {
            self.requested.entry(*name).or_insert((lowest, now.mono));
        }
        self.request(conn, names.clone(), now);
    }

    /// If requested records have not arrived in time, compares digests with some neighbours, since another one may have
    /// them.
    pub(crate) fn retry_requests(&mut self, now: Now) {
        let timeout = self.request_timeout();
        let topology = &self.topology;
        self.requested
            .retain(|name, (version, _)| topology.peer(*name).map(Peer::record_version) < Some(*version));
        let before = self.requested.len();
        self.requested.retain(|_, (_, at)| now.mono < *at + timeout);
        self.timers.requested = self.requested.values().map(|(_, at)| *at + timeout).min();
        if self.requested.len() < before {
            self.sync_topology_with_random_neighbours(now);
        }
    }

    /// Sends new records of peers, or their versions, to a neighbour.
    pub(crate) fn push_news(&mut self, conn: ConnectionId, names: BTreeSet<PeerName>, now: Now) {
        let connections: usize =
            names.iter().filter_map(|name| self.topology.peer(*name)).map(|p| p.connections.len()).sum();
        let is_large = names.len() > MAX_NEWS_AS_RECORDS || connections > MAX_NEWS_CONNECTIONS;
        if names.is_empty() {
            return;
        }
        self.with_running(conn, |running| {
            if running.supports_digest && is_large {
                running.queue.push_versions(names);
            } else {
                running.queue.push_topology(GossipKind::Neighbour, PeerSelection::Some(names));
            }
        });
        self.flush_queue(conn, now);
    }

    /// The message with the versions of these peers' records.
    pub(crate) fn versions_of(&self, names: &BTreeSet<PeerName>) -> Message {
        let known =
            names.iter().filter_map(|name| Some((*name, self.topology.peer(*name)?.record_version())));
        Message::News(known.filter(|(_, version)| version.uid != PeerUid(0)).collect())
    }

    fn send_records(&mut self, conn: ConnectionId, names: BTreeSet<PeerName>, now: Now) {
        if !names.is_empty() {
            self.with_running(conn, |running| {
                running.queue.push_topology(GossipKind::Neighbour, PeerSelection::Some(names));
            });
            self.flush_queue(conn, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::{peer, record, rng, topology};

    #[test]
    fn messages_have_the_documented_layout() {
        let name = peer(0x0200_0000_0001);
        let bytes = Message::Digest(0x0102_0304_0506_0708).encode();
        assert_eq!(bytes, [64, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let bytes =
            Message::Versions(BTreeMap::from([(name, RecordVersion { version: 7, uid: PeerUid(9) })]))
                .encode();
        assert_eq!(bytes, [64, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(Message::Request(BTreeSet::from([name])).encode(), [64, 2, 2, 0, 0, 0, 0, 1]);
        for bad in [&[][..], &[4], &[0, 1], &[1, 1], &[3, 1], &[2, 1, 2, 3, 4, 5]] {
            assert_eq!(Message::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn digests_depend_on_versions_but_not_on_placeholders() {
        let (mut a, mut b) = (topology(peer(1)), topology(peer(1)));
        assert_eq!(digest(&a), digest(&b));
        let news = |version| crate::update::PeerRecord { version, ..record(peer(2), Vec::new()) };
        a.merge(vec![news(3)], u64::MAX, &mut rng(1));
        b.merge(vec![news(2)], u64::MAX, &mut rng(1));
        assert_ne!(digest(&a), digest(&b));
        b.merge(vec![news(3)], u64::MAX, &mut rng(1));
        assert_eq!(digest(&a), digest(&b));
        let placeholder =
            |n| crate::update::PeerRecord { uid: PeerUid(0), version: 0, ..record(peer(n), Vec::new()) };
        b.merge(vec![placeholder(5)], u64::MAX, &mut rng(1));
        assert_eq!(digest(&a), digest(&b));
    }

    proptest! {
        #[test]
        fn messages_round_trip(
            number: u64,
            versions in prop::collection::btree_map(0..1u64 << 48, (any::<u64>(), any::<u64>()), 0..20),
        ) {
            let record = |(n, (version, u))| (peer(n), RecordVersion { version, uid: PeerUid(u) });
            let versions: BTreeMap<_, _> = versions.into_iter().map(record).collect();
            let names = versions.keys().copied().collect();
            let news = Message::News(versions.clone());
            for message in [Message::Digest(number), Message::Versions(versions), Message::Request(names), news] {
                prop_assert_eq!(Message::decode(&message.encode()[1..]), Some(message));
            }
        }

        #[test]
        fn random_bytes_do_not_panic(body: Vec<u8>) {
            Message::decode(&body);
        }
    }
}
