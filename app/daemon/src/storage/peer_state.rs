//! State of the mesh that survives a restart, in one small JSON file.
//!
//! ```text
//! /var/lib/weave/peer.json   {"format":1,"name":"8a:..","targets":["h2"],"short_id":7,"version_ceiling":4096}
//! ```
//!
//! If the file belongs to another peer name, only the targets are used.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weave_host::fault_injection;
use weave_host::identity::{self, SystemIds};
use weave_types::{PeerName, ShortId};

use super::{StoreError, json_file};

pub(super) const FILE_NAME: &str = "peer.json";
/// Format of the file. A file of a later version is refused.
const FORMAT: u32 = 1;
/// Far more than any state needs.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    format: u32,
    name: Option<String>,
    /// The machine on which the name was stored.
    #[serde(default, skip_serializing_if = "Machine::is_empty")]
    machine: Machine,
    #[serde(default)]
    targets: Vec<String>,
    /// Arguments of the last start that used its arguments; `targets` includes later changes.
    #[serde(default)]
    launched_with: Option<Vec<String>>,
    #[serde(default)]
    short_id: Option<u16>,
    #[serde(default)]
    version_ceiling: u64,
    #[serde(default, skip_serializing_if = "Original::is_empty")]
    original: Original,
}

/// Hashes of the ids of a machine; `None` for an id that it does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Machine {
    id: Option<String>,
    system_uuid: Option<String>,
}

impl Machine {
    fn of(ids: &SystemIds) -> Machine {
        let hash = |id: &[u8]| (!id.is_empty()).then(|| identity::derive(id).to_string());
        Machine { id: hash(&ids.machine_id), system_uuid: hash(&ids.system_uuid) }
    }

    fn is_empty(&self) -> bool {
        *self == Machine::default()
    }

    /// Whether an id that both have differs: the state was copied to this machine together with its disk.
    fn is_other_than(&self, other: &Machine) -> bool {
        let differ = |a: &Option<String>, b: &Option<String>| a.is_some() && b.is_some() && a != b;
        differ(&self.id, &other.id) || differ(&self.system_uuid, &other.system_uuid)
    }
}

/// What was taken over from 2.8.1 on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Original {
    /// Digest of the database.
    pub digest: Option<String>,
    /// File of the database.
    pub path: Option<PathBuf>,
    /// Type of its bridge, as `weave bridge-type` prints it.
    pub bridge: Option<String>,
}

impl Original {
    fn is_empty(&self) -> bool {
        *self == Original::default()
    }
}

#[derive(Debug)]
pub struct PeerState {
    dir: PathBuf,
    content: Content,
    /// What the file contains, as far as it is known.
    stored: Option<Content>,
    /// Whether the directory was created by [`PeerState::open`].
    created: bool,
}

impl PeerState {
    /// Reads the state of the peer `name` and creates the directory. Checks that the file can be written, so that a read-only or full
    /// disk prevents the start.
    pub fn open(dir: &Path, name: PeerName, ids: &SystemIds) -> Result<PeerState, StoreError> {
        let created = !dir.exists();
        fault_injection::io_fail_point(&"creating the state directory")
            .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(dir))
            .map_err(StoreError::io("create directory", dir))?;
        let stored = read(dir)?;
        let mut content = stored.clone().unwrap_or_default();
        if content.name.as_deref() != Some(name.to_string().as_str()) {
            (content.short_id, content.version_ceiling) = (None, 0);
        }
        content.name = Some(name.to_string());
        content.machine = Machine::of(ids);
        content.format = FORMAT;
        json_file::check_writable(&dir.join(FILE_NAME), &content)?;
        Ok(PeerState { dir: dir.to_owned(), content, stored, created })
    }

    /// The name of the last run, unless that was on another machine.
    pub fn stored_name(dir: &Path, ids: &SystemIds) -> Result<Option<PeerName>, StoreError> {
        let Some(content) = read(dir)? else { return Ok(None) };
        let name = content.name.as_deref().and_then(|name| name.parse().ok());
        if content.machine.is_other_than(&Machine::of(ids)) {
            tracing::warn!(
                "the state in {} was stored on another machine, so its peer name {} is not used here",
                dir.display(),
                content.name.unwrap_or_default()
            );
            return Ok(None);
        }
        Ok(name)
    }

    /// Removes a directory that was created by [`PeerState::open`], if nothing was stored.
    pub fn abandon(self) {
        if self.created {
            // Fails if the directory is not empty.
            let _ = fs::remove_dir(&self.dir);
        }
    }

    /// Peers to connect to, as they were added.
    pub fn targets(&self) -> &[String] {
        &self.content.targets
    }

    /// Whether the last run was started with these peers. A start with the same peers continues it with the stored targets
    /// (docs/spec/cli.md 4.4).
    pub fn continues(&self, peers: &[String]) -> bool {
        self.content.launched_with.as_deref() == Some(peers)
    }

    pub fn set_launched_with(&mut self, peers: &[String]) -> Result<(), StoreError> {
        if self.continues(peers) {
            return Ok(());
        }
        self.content.launched_with = Some(peers.to_vec());
        self.write()
    }

    pub fn original(&self) -> &Original {
        &self.content.original
    }

    /// Reads [`PeerState::original`] without a peer name.
    pub fn read_original(dir: &Path) -> Result<Original, StoreError> {
        Ok(read(dir)?.unwrap_or_default().original)
    }

    pub fn set_original(&mut self, original: Original) -> Result<(), StoreError> {
        self.content.original = original;
        self.write()
    }

    /// The short id of the last run.
    pub fn short_id(&self) -> Option<ShortId> {
        self.content.short_id.and_then(ShortId::new)
    }

    /// The version at which a new run begins.
    pub fn version_ceiling(&self) -> u64 {
        self.content.version_ceiling
    }

    /// After a failure the next change writes the new value.
    pub fn set_targets(&mut self, targets: Vec<String>) -> Result<(), StoreError> {
        self.content.targets = targets;
        self.write()
    }

    pub fn set_short_id(&mut self, id: ShortId) -> Result<(), StoreError> {
        self.content.short_id = Some(id.get());
        self.write()
    }

    /// A lower value is ignored.
    pub fn set_version_ceiling(&mut self, ceiling: u64) -> Result<(), StoreError> {
        self.content.version_ceiling = self.content.version_ceiling.max(ceiling);
        self.write()
    }

    /// Writes the content unless the file has it: a restart must not wait for the disk more often than necessary.
    fn write(&mut self) -> Result<(), StoreError> {
        if self.stored.as_ref() != Some(&self.content) {
            self.stored = None;
            json_file::write(&self.dir.join(FILE_NAME), &self.content)?;
            self.stored = Some(self.content.clone());
        }
        Ok(())
    }
}

fn read(dir: &Path) -> Result<Option<Content>, StoreError> {
    json_file::read(&dir.join(FILE_NAME), FORMAT, MAX_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: u64) -> PeerName {
        PeerName::from_number(n).unwrap()
    }

    #[test]
    fn written_state_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made");
        let store = PeerState::open(&path, name(1), &SystemIds::default()).unwrap();
        assert_eq!((store.targets(), store.short_id(), store.version_ceiling()), (&[][..], None, 0));
        store.abandon();
        assert!(!path.exists(), "nothing was stored");
        let mut store = PeerState::open(&path, name(1), &SystemIds::default()).unwrap();
        store.set_targets(vec!["h2".into(), "h3:7000".into()]).unwrap();
        store.set_short_id(ShortId::new(0).unwrap()).unwrap();
        store.set_version_ceiling(4096).unwrap();
        store.set_version_ceiling(7).unwrap();
        store.abandon();
        let store = PeerState::open(&path, name(1), &SystemIds::default()).unwrap();
        assert_eq!(store.targets(), ["h2", "h3:7000"]);
        assert_eq!((store.short_id(), store.version_ceiling()), (ShortId::new(0), 4096));
        let other = PeerState::open(&path, name(2), &SystemIds::default()).unwrap();
        assert_eq!(other.targets(), ["h2", "h3:7000"], "targets do not depend on the peer name");
        assert_eq!((other.short_id(), other.version_ceiling()), (None, 0));
    }

    #[test]
    fn the_stored_name_is_that_of_the_same_machine() {
        let dir = tempfile::tempdir().unwrap();
        let ids = |machine_id: &str, system_uuid: &str| SystemIds {
            machine_id: machine_id.into(),
            system_uuid: system_uuid.into(),
        };
        assert_eq!(PeerState::stored_name(dir.path(), &ids("m\n", "u\n")).unwrap(), None);
        let mut first = PeerState::open(dir.path(), name(1), &ids("", "u\n")).unwrap();
        first.set_targets(Vec::new()).unwrap();
        let stored = |ids: &SystemIds| PeerState::stored_name(dir.path(), ids).unwrap();
        assert_eq!(stored(&ids("m\n", "u\n")), Some(name(1)), "an id that did not exist before");
        assert_eq!(stored(&ids("", "")), Some(name(1)));
        assert_eq!(stored(&ids("", "other\n")), None, "a copy on another machine");
        let mut again = PeerState::open(dir.path(), name(1), &ids("m\n", "u\n")).unwrap();
        again.set_targets(Vec::new()).unwrap();
        assert_eq!(stored(&ids("other\n", "u\n")), None);
        assert_eq!(stored(&ids("m\n", "")), Some(name(1)));
    }

    #[test]
    fn a_crash_while_writing_leaves_the_old_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap();
        store.set_targets(vec!["h2".into()]).unwrap();
        let good = fs::read(dir.path().join(FILE_NAME)).unwrap();
        // Before the rename only the temporary file is written.
        for cut in 0..good.len() {
            fs::write(dir.path().join(".peer.json.new"), &good[..cut]).unwrap();
            assert_eq!(
                PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap().targets(),
                ["h2"]
            );
        }
    }

    #[test]
    fn damaged_file_is_refused_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for text in ["", "{", "[]", "{\"format\":1,\"targets\":3}", "\0\0\0"] {
            fs::write(&path, text).unwrap();
            let error = PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap_err();
            assert!(matches!(error, StoreError::Damaged { .. }), "{text}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::write(&path, "{\"format\":9,\"new\":[]}").unwrap();
        let error = PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap_err();
        assert!(matches!(error, StoreError::LaterFormat { format: 9, .. }), "{error}");
    }

    #[test]
    fn open_fails_if_the_directory_cannot_be_created() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = PeerState::open(&file, name(1), &SystemIds::default()).unwrap_err();
        assert!(error.to_string().starts_with("cannot create directory"), "{error}");
    }

    #[test]
    fn next_write_includes_a_failed_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap();
        // A directory in the way of the temporary file fails for root, too.
        let temporary = dir.path().join(".peer.json.new");
        fs::create_dir(&temporary).unwrap();
        assert!(store.set_targets(vec!["h2".into()]).is_err());
        fs::remove_dir(&temporary).unwrap();
        store.set_version_ceiling(5).unwrap();
        assert_eq!(PeerState::open(dir.path(), name(1), &SystemIds::default()).unwrap().targets(), ["h2"]);
    }
}
