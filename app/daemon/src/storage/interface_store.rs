//! Attachments that network plugins have made, with the addresses that the allocator keeps for them.
//!
//! ```text
//! /var/lib/weave/interfaces.json
//!   {"format":1,"attachments":[{"network":"weave","container":"<id>","interface":"eth0","owner":"<id>","addresses":["10.32.0.1/12"],...}]}
//! ```
//!
//! An attachment is written down before the host is changed, and forgotten after it is removed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_api::host_requests::AttachmentId;
use weave_host::files::temporary_path;
use weave_runtime::Namespace;
use weave_types::Cidr;

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "interfaces.json";
const FORMAT: u32 = 1;
/// Some 100,000 attachments.
const MAX_SIZE: u64 = 64 << 20;

#[derive(Debug)]
pub(crate) struct InterfaceStore {
    path: PathBuf,
    attachments: BTreeMap<AttachmentId, Attached>,
}

/// What is kept about an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Attached {
    /// Under which the allocator keeps the addresses: the container's id, as with 2.8.1, for its first attachment.
    pub(crate) owner: String,
    /// The recorded addresses.
    pub(crate) addresses: Vec<String>,
    /// Empty if there is no interface.
    pub(crate) bridge: String,
    /// Where the interface is.
    pub(crate) namespace: Option<Namespace>,
}

impl Attached {
    pub(crate) fn cidrs(&self) -> Vec<Cidr> {
        self.addresses.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

#[derive(Deserialize, Serialize)]
struct Content {
    format: u32,
    attachments: Vec<Entry>,
}

#[derive(Deserialize, Serialize)]
struct Entry {
    #[serde(flatten)]
    id: AttachmentId,
    #[serde(flatten)]
    attached: Attached,
}

impl InterfaceStore {
    /// Reads the file in `dir`, if there is one.
    pub(crate) fn open(dir: &Path) -> Result<InterfaceStore, StoreError> {
        let path = dir.join(FILE_NAME);
        // Of a write that was interrupted.
        let _ = std::fs::remove_file(temporary_path(&path));
        let content: Option<Content> = json_file::read(&path, FORMAT, MAX_SIZE)?;
        let entries = content.map(|content| content.attachments).unwrap_or_default();
        let attachments = entries.into_iter().map(|entry| (entry.id, entry.attached)).collect();
        Ok(InterfaceStore { path, attachments })
    }

    pub(crate) fn get(&self, id: &AttachmentId) -> Option<&Attached> {
        self.attachments.get(id)
    }

    /// All attachments.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&AttachmentId, &Attached)> {
        self.attachments.iter()
    }

    /// The attachments of a network, without those that are being made.
    pub(crate) fn of_network(&self, network: &str) -> Vec<AttachmentId> {
        let written = |attached: &Attached| attached.namespace.is_some() || !attached.addresses.is_empty();
        let all = self.attachments.iter().filter(|(id, attached)| id.network == network && written(attached));
        all.map(|(id, _)| id.clone()).collect()
    }

    /// Whether an attachment has its addresses under this name.
    pub(crate) fn has_owner(&self, owner: &str) -> bool {
        self.attachments.values().any(|attached| attached.owner == owner)
    }

    /// Whether the container has an interface of this name by another network.
    pub(crate) fn conflict(&self, id: &AttachmentId) -> Option<&AttachmentId> {
        let same = |other: &&AttachmentId| other.container == id.container && other.interface == id.interface;
        self.attachments.keys().filter(same).find(|other| other.network != id.network)
    }

    /// Keeps a name for an attachment until [`InterfaceStore::insert`] or [`InterfaceStore::remove`]. It is not written down yet.
    pub(crate) fn reserve(&mut self, id: &AttachmentId, owner: String) {
        self.attachments.insert(id.clone(), Attached { owner, ..Attached::default() });
    }

    /// Writes down an attachment.
    pub(crate) fn insert(&mut self, id: &AttachmentId, attached: Attached) -> Result<(), StoreError> {
        let before = self.attachments.insert(id.clone(), attached);
        self.write().inspect_err(|_| {
            if let Some(before) = before {
                self.attachments.insert(id.clone(), before);
            }
        })
    }

    /// Forgets an attachment.
    pub(crate) fn remove(&mut self, id: &AttachmentId) {
        if self.attachments.remove(id).is_some()
            && let Err(e) = self.write()
        {
            tracing::warn!("the end of an attachment is not stored: {e}");
        }
    }

    fn write(&self) -> Result<(), StoreError> {
        let entry =
            |(id, attached): (&AttachmentId, &Attached)| Entry { id: id.clone(), attached: attached.clone() };
        let attachments = self.attachments.iter().map(entry).collect();
        json_file::write(&self.path, &Content { format: FORMAT, attachments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_attachments_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = InterfaceStore::open(dir.path()).unwrap();
        let id = |network: &str, interface: &str| AttachmentId {
            network: network.to_owned(),
            container: "c1".to_owned(),
            interface: interface.to_owned(),
        };
        let attached = |owner: &str| Attached {
            owner: owner.to_owned(),
            addresses: vec!["10.32.0.1/12".to_owned()],
            bridge: "weave".to_owned(),
            namespace: None,
        };
        store.insert(&id("weave", "eth0"), attached("c1")).unwrap();
        store.insert(&id("other", "eth1"), attached("x")).unwrap();
        store.remove(&id("weave", "eth1"));
        let again = InterfaceStore::open(dir.path()).unwrap();
        assert_eq!(again.attachments, store.attachments);
        assert_eq!(again.of_network("weave"), [id("weave", "eth0")]);
        assert!(again.has_owner("c1") && !again.has_owner("c2"));
        assert_eq!(again.conflict(&id("third", "eth1")), Some(&id("other", "eth1")));
        assert_eq!(again.conflict(&id("weave", "eth0")), None);
        store.remove(&id("weave", "eth0"));
        store.remove(&id("other", "eth1"));
        assert!(InterfaceStore::open(dir.path()).unwrap().attachments.is_empty());
        std::fs::write(dir.path().join(FILE_NAME), "{\"format\":1}").unwrap();
        assert!(matches!(InterfaceStore::open(dir.path()), Err(StoreError::Damaged { .. })));
    }
}
