//! The networks of Docker that the plugin has created, and whether they have multicast. Docker, which knows as well, cannot be asked while
//! it starts its containers at boot.
//!
//! ```text
//! /var/lib/weave/networks.json
//!   {"format":1,"multicast":{"<network id>":true,...}}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "networks.json";
const FORMAT: u32 = 1;
/// Some 10,000 networks.
const MAX_SIZE: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct NetworkStore {
    path: PathBuf,
}

#[derive(Deserialize, Serialize)]
struct Content<M> {
    format: u32,
    multicast: M,
}

impl NetworkStore {
    /// Reads the file in `dir`, if there is one.
    pub(crate) fn open(dir: &Path) -> Result<(NetworkStore, BTreeMap<String, bool>), StoreError> {
        let path = dir.join(FILE_NAME);
        let content: Option<Content<_>> = json_file::read(&path, FORMAT, MAX_SIZE)?;
        Ok((NetworkStore { path }, content.map(|content| content.multicast).unwrap_or_default()))
    }

    pub(crate) fn write(&self, networks: &BTreeMap<String, bool>) -> Result<(), StoreError> {
        json_file::write(&self.path, &Content { format: FORMAT, multicast: networks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let (store, networks) = NetworkStore::open(dir.path()).unwrap();
        assert!(networks.is_empty());
        let networks = BTreeMap::from([("a".to_owned(), true), ("b".to_owned(), false)]);
        store.write(&networks).unwrap();
        assert_eq!(NetworkStore::open(dir.path()).unwrap().1, networks);
    }
}
