//! The names that containers of this host have, by container.
//!
//! ```text
//! /var/lib/weave/names.json   {"format":1,"containers":{"netns:blue":[["blue.weave.local.","10.32.0.1"]]}}
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_dns::HostName;

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "names.json";
const FORMAT: u32 = 1;
/// Some 500,000 names.
const MAX_SIZE: u64 = 64 << 20;

/// Names with their addresses, by container. A container without names was attached without one.
pub(crate) type NamesByContainer = BTreeMap<String, BTreeSet<(HostName, Ipv4Addr)>>;

#[derive(Debug)]
pub(crate) struct NameStore {
    path: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Content {
    format: u32,
    #[serde(default)]
    containers: BTreeMap<String, Vec<(String, Ipv4Addr)>>,
}

impl NameStore {
    /// Reads the file in `dir`, if there is one.
    pub(crate) fn open(dir: &Path) -> Result<(NameStore, NamesByContainer), StoreError> {
        let path = dir.join(FILE_NAME);
        let content: Option<Content> = json_file::read(&path, FORMAT, MAX_SIZE)?;
        let mut names = NamesByContainer::new();
        for (container, entries) in content.map(|content| content.containers).unwrap_or_default() {
            let of_container = names.entry(container).or_default();
            for (name, addr) in entries {
                let name = HostName::parse(&name)
                    .map_err(|e| StoreError::Damaged { path: path.clone(), what: e.to_string() })?;
                of_container.insert((name, addr));
            }
        }
        Ok((NameStore { path }, names))
    }

    /// Whether there is no file yet.
    pub(crate) fn is_new(&self) -> bool {
        !self.path.exists()
    }

    pub(crate) fn write(&self, names: &NamesByContainer) -> Result<(), StoreError> {
        let entry = |(name, addr): &(HostName, Ipv4Addr)| (name.as_str().to_owned(), *addr);
        let containers =
            names.iter().map(|(container, names)| (container.clone(), names.iter().map(entry).collect()));
        json_file::write(&self.path, &Content { format: FORMAT, containers: containers.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_names_are_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let (store, names) = NameStore::open(dir.path()).unwrap();
        assert!(names.is_empty());
        let name = |text: &str| HostName::parse(text).unwrap();
        let of_c1 = BTreeSet::from([
            (name("A.weave.local"), Ipv4Addr::new(10, 32, 0, 1)),
            (name("a.weave.local"), Ipv4Addr::new(10, 32, 0, 2)),
        ]);
        let names = NamesByContainer::from([("c1".to_owned(), of_c1), ("c2".to_owned(), BTreeSet::new())]);
        store.write(&names).unwrap();
        let (_, again) = NameStore::open(dir.path()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{names:?}"));
    }

    #[test]
    fn damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in [
            "",
            "{\"format\":1,\"containers\":{\"c\":[[\"a..b\",\"10.32.0.1\"]]}}",
            "{\"format\":1,\"containers\":7}",
        ] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(NameStore::open(dir.path()), Err(StoreError::Damaged { .. })), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
