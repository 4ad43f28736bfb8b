//! State of address allocation that survives a restart, in a [`Journal`].
//!
//! ```text
//! ring               {"range":[start,end],"peer":"8a:..","entries":[[token,"8a:..",version,free],...],"seeds":[...]}
//! election           {"node":[..],"promise":..,"accepted":..,"value":..,"origin":..}
//! owned/<container>  {"container":true,"addresses":["10.32.0.1/12"]}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use weave_ipam::paxos::{AcceptedValue, ElectorId, ElectorState, ProposalId};
use weave_ipam::{AddrRange, Durability, Election, Entry, Loaded, Persist, Record, Ring};
use weave_types::{Cidr, PeerName, PeerUid};

use super::StoreError;
use super::journal::Journal;

pub(super) const FILE_NAME: &str = "ipam.journal";

const RING: &[u8] = b"ring";
const ELECTION: &[u8] = b"election";
const OWNED: &[u8] = b"owned/";

#[derive(Debug)]
pub(crate) struct AllocationStore {
    journal: Journal,
    path: std::path::PathBuf,
}

impl AllocationStore {
    /// Reads the journal in `dir`. An error must stop the start, because without the state addresses could be allocated twice.
    pub(crate) fn open(dir: &Path) -> Result<AllocationStore, StoreError> {
        let path = dir.join(FILE_NAME);
        Ok(AllocationStore { journal: Journal::open(&path)?, path })
    }

    /// Whether anything was ever stored.
    pub(crate) fn is_new(&self) -> bool {
        self.journal.is_empty() && !self.path.exists()
    }

    pub(crate) fn load(&self) -> Result<Loaded, StoreError> {
        let damaged = |what: String| StoreError::Damaged { path: self.path.clone(), what };
        let json = |e: serde_json::Error| damaged(e.to_string());
        let mut loaded = Loaded::default();
        if let Some(bytes) = self.journal.value(RING) {
            let ring: RingText = serde_json::from_slice(bytes).map_err(json)?;
            loaded.ring = Some(ring.read().ok_or_else(|| damaged("a peer name in the ring".to_owned()))?);
        }
        if let Some(bytes) = self.journal.value(ELECTION) {
            let election: ElectionText = serde_json::from_slice(bytes).map_err(json)?;
            loaded.election =
                Some(election.read().ok_or_else(|| damaged("a peer name in the election".to_owned()))?);
        }
        for (key, value) in self.journal.with_prefix(OWNED) {
            let container = String::from_utf8_lossy(&key[OWNED.len()..]).into_owned();
            let record: RecordText = serde_json::from_slice(value).map_err(json)?;
            let record = record.read().ok_or_else(|| damaged(format!("the addresses of {container:?}")))?;
            loaded.owned.insert(container, record);
        }
        Ok(loaded)
    }

    /// Replaces all stored state, and syncs it.
    pub(crate) fn replace(&mut self, loaded: &Loaded) -> Result<(), StoreError> {
        let owned = loaded.owned.iter();
        let all = owned
            .map(|(container, record)| Persist::Owned {
                container: container.clone(),
                record: Some(record.clone()),
            })
            .chain(loaded.ring.clone().map(Persist::Ring))
            .chain(loaded.election.clone().map(|e| Persist::Election(Some(e))));
        let mut map = BTreeMap::new();
        for persist in all {
            if let Some((key, Some(value))) = self.encode(&persist)? {
                map.insert(key, value);
            }
        }
        self.journal.replace(map)
    }

    /// Writes one change without syncing it, so that several changes can be synced together. After an error the next change
    /// writes everything.
    pub(crate) fn store(&mut self, persist: &Persist) -> Result<(), StoreError> {
        match self.encode(persist)? {
            None => self.journal.replace(BTreeMap::new()),
            Some((key, value)) => {
                self.journal.append(&key, value.as_deref(), persist.durability() == Durability::Synced)
            }
        }
    }

    /// `None` if everything is to be removed.
    fn encode(&self, persist: &Persist) -> Result<Option<Change>, StoreError> {
        let (key, value) = match persist {
            Persist::Clear => return Ok(None),
            Persist::Ring(ring) => (RING.to_vec(), Some(serde_json::to_vec(&RingText::write(ring)))),
            Persist::Election(election) => {
                let value = election.as_ref().map(|e| serde_json::to_vec(&ElectionText::write(e)));
                (ELECTION.to_vec(), value)
            }
            Persist::Owned { container, record } => {
                let value = record.as_ref().map(|r| serde_json::to_vec(&RecordText::write(r)));
                ([OWNED, container.as_bytes()].concat(), value)
            }
        };
        let value = value.transpose().map_err(|e| StoreError::io("encode", &self.path)(e.into()))?;
        Ok(Some((key, value)))
    }

    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        self.journal.sync()
    }

    /// Whether the last write failed.
    pub(crate) fn write_failed(&self) -> bool {
        self.journal.write_failed()
    }

    /// Writes everything after a failure.
    pub(crate) fn retry_write(&mut self) -> Result<(), StoreError> {
        self.journal.rewrite()
    }

    pub(crate) fn flush_in_background(&mut self) {
        let path = self.path.clone();
        self.journal.flush_in_background(move |e| {
            tracing::error!(
                "addresses of containers may be lost if the host loses power: cannot sync {path:?}: {e}"
            );
        });
    }
}

/// A key and its new value; `None` removes the key.
type Change = (Vec<u8>, Option<Vec<u8>>);

#[derive(Serialize, Deserialize)]
struct RingText {
    range: (u32, u32),
    peer: String,
    entries: Vec<(u32, String, u32, u32)>,
    seeds: Vec<String>,
}

fn names(texts: &[String]) -> Option<Vec<PeerName>> {
    texts.iter().map(|t| t.parse().ok()).collect()
}

impl RingText {
    fn write(ring: &Ring) -> RingText {
        RingText {
            range: (ring.range().start(), ring.range().end()),
            peer: ring.peer().to_string(),
            entries: ring
                .entries()
                .iter()
                .map(|e| (e.token, e.peer.to_string(), e.version, e.free))
                .collect(),
            seeds: ring.seeds().iter().map(ToString::to_string).collect(),
        }
    }

    fn read(self) -> Option<Ring> {
        let entry = |(token, peer, version, free): &(u32, String, u32, u32)| {
            Some(Entry { token: *token, peer: peer.parse().ok()?, version: *version, free: *free })
        };
        let entries = self.entries.iter().map(entry).collect::<Option<Vec<_>>>()?;
        let range = AddrRange::new(self.range.0, self.range.1);
        Some(Ring::from_parts(range, self.peer.parse().ok()?, entries, names(&self.seeds)?))
    }
}

type NodeText = (String, u64);
type ProposalText = (u64, NodeText);

#[derive(Serialize, Deserialize)]
struct ElectionText {
    /// Missing in files of an earlier version; the election then covers an empty range.
    #[serde(default)]
    range: (u32, u32),
    node: NodeText,
    promise: ProposalText,
    accepted: ProposalText,
    value: Vec<String>,
    origin: ProposalText,
}

fn node(text: &NodeText) -> Option<ElectorId> {
    Some(ElectorId { name: text.0.parse().ok()?, uid: PeerUid(text.1) })
}

fn proposal(text: &ProposalText) -> Option<ProposalId> {
    Some(ProposalId { round: text.0, proposer: node(&text.1)? })
}

impl ElectionText {
    fn write(election: &Election) -> ElectionText {
        let node = |n: &ElectorId| (n.name.to_string(), n.uid.0);
        let proposal = |p: &ProposalId| (p.round, node(&p.proposer));
        let state = &election.state;
        ElectionText {
            range: (election.range.start(), election.range.end()),
            node: node(&election.elector),
            promise: proposal(&state.promise),
            accepted: proposal(&state.accepted),
            value: state.value.value.iter().map(ToString::to_string).collect(),
            origin: proposal(&state.value.origin),
        }
    }

    fn read(self) -> Option<Election> {
        let value = AcceptedValue { value: names(&self.value)?, origin: proposal(&self.origin)? };
        let state =
            ElectorState { promise: proposal(&self.promise)?, accepted: proposal(&self.accepted)?, value };
        let range = AddrRange::new(self.range.0, self.range.1);
        Some(Election { range, elector: node(&self.node)?, state })
    }
}

#[derive(Serialize, Deserialize)]
struct RecordText {
    container: bool,
    addresses: Vec<String>,
}

impl RecordText {
    fn write(record: &Record) -> RecordText {
        let addresses = record.cidrs.iter().map(ToString::to_string).collect();
        RecordText { container: record.is_container, addresses }
    }

    fn read(self) -> Option<Record> {
        let cidrs = self.addresses.iter().map(|a| a.parse::<Cidr>().ok()).collect::<Option<Vec<_>>>()?;
        Some(Record { is_container: self.container, cidrs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_number(n).unwrap()
    }

    fn state() -> Loaded {
        let range = AddrRange::new(0x0a20_0000, 0x0a30_0000);
        let entries = vec![
            Entry { token: 0x0a20_0000, peer: name(1), version: 7, free: 12 },
            Entry { token: 0x0a28_0000, peer: name(2), version: u32::MAX, free: 0x8_0000 },
        ];
        let node = |n| ElectorId { name: name(n), uid: PeerUid(u64::MAX - n) };
        let proposal = |round| ProposalId { round, proposer: node(2) };
        let value = AcceptedValue { value: vec![name(2), name(1)], origin: proposal(3) };
        let state = ElectorState { promise: proposal(u64::MAX), accepted: proposal(4), value };
        let record = |is_container, cidrs: &[&str]| Record {
            is_container,
            cidrs: cidrs.iter().map(|c| c.parse().unwrap()).collect(),
        };
        Loaded {
            ring: Some(Ring::from_parts(range, name(1), entries, vec![name(1), name(2)])),
            election: Some(Election { range, elector: node(1), state }),
            owned: BTreeMap::from([
                ("weave:expose".to_owned(), record(false, &["10.32.0.1/12"])),
                ("netns:/proc/7/ns/net".to_owned(), record(true, &["10.32.0.2/12", "10.2.1.1/24"])),
            ]),
        }
    }

    #[test]
    fn written_state_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = AllocationStore::open(dir.path()).unwrap();
        assert!(store.is_new());
        assert_eq!(store.load().unwrap(), Loaded::default());
        let all = state();
        store.replace(&all).unwrap();
        let reopened = AllocationStore::open(dir.path()).unwrap();
        assert!(!reopened.is_new());
        assert_eq!(reopened.load().unwrap(), all);
        // Each change must have the effect of `Loaded::apply`.
        let mut expected = all.clone();
        for persist in [
            Persist::Owned { container: "weave:expose".into(), record: None },
            Persist::Election(None),
            Persist::Owned { container: "c".into(), record: all.owned.values().next().cloned() },
            Persist::Ring(Ring::new(AddrRange::new(0, 16), name(9))),
            Persist::Clear,
            Persist::Election(all.election.clone()),
        ] {
            expected.apply(&persist);
            store.store(&persist).unwrap();
            let reopened = AllocationStore::open(dir.path()).unwrap();
            assert_eq!(reopened.load().unwrap(), expected, "{persist:?}");
        }
    }

    #[test]
    fn invalid_values_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&dir.path().join(FILE_NAME)).unwrap();
        for (key, value) in [
            ("ring", "{}"),
            ("ring", r#"{"range":[1,2],"peer":"zz","entries":[],"seeds":[]}"#),
            ("election", "[]"),
            ("owned/c", r#"{"container":true,"addresses":["10.32.0.1"]}"#),
        ] {
            journal.replace(BTreeMap::from([(key.into(), value.into())])).unwrap();
            let error = AllocationStore::open(dir.path()).unwrap().load().unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{value}: {error}");
        }
    }
}
