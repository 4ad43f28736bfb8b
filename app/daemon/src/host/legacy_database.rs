//! The database that 2.8.1 left on this host: where it is searched, and whether it has been imported (docs/spec/cli.md 11,
//! docs/spec/ipam.md 9).
//!
//! | place | used by |
//! | --- | --- |
//! | `<--db-prefix>data.db` | installations with that option; no other place is searched then |
//! | `<state directory>/weave-netdata.db` | the Kubernetes add-on |
//! | `<state directory>/weavedata.db` | the managed plugin, and a daemon outside of containers |
//! | volume `/weavedb` of container `weavedb`, `weavedata.db` | `weave launch` |
//!
//! The file is only read, and it is imported once: when everything in it has been imported, its digest is stored in the state of
//! the peer. A file that has changed since then was written by 2.8.1 during a later period, and is imported again.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use weave_ipam::{Database, Loaded};
use weave_runtime::Docker;

use super::owner::is_docker_id;
use crate::config::Config;
use crate::storage::{Original, PeerState, StoreError};

/// Names of the database in the state directory.
pub const FILE_NAMES: [&str; 2] = ["weave-netdata.db", "weavedata.db"];
/// Far more than the ring of any cluster needs.
const MAX_SIZE: u64 = 256 << 20;
/// Docker may be starting, too, and must not delay the start of the daemon.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Mount point of the volume in its container.
const VOLUME: &str = "/weavedb";
/// Docker's default directory for volumes, searched when Docker does not answer.
const VOLUMES: &str = "/var/lib/docker/volumes";

#[derive(Clone, Debug)]
pub struct LegacyDatabase {
    pub path: PathBuf,
    /// SHA-256 of the file.
    pub digest: String,
    pub database: Database,
}

impl LegacyDatabase {
    /// The state to continue with. 2.8.1 does not write down that the addresses which it found at its start, under the ids of Docker's
    /// containers, end with these.
    pub(crate) fn loaded(&self) -> Loaded {
        let mut loaded = self.database.loaded();
        for (owner, record) in &mut loaded.owned {
            record.is_container |= is_docker_id(owner);
        }
        loaded
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LegacyDatabaseError {
    #[error("cannot read the database of 2.8.1 {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
    /// Starting without the database could create a second, separate ring.
    #[error("cannot take over from 2.8.1, {path:?}: {what}")]
    Damaged { path: PathBuf, what: String },
    /// With another range the addresses of all containers would be forgotten.
    #[error(
        "the addresses of 2.8.1 on this host are those of {theirs} ({path:?}), not of {ours}: launch with --ipalloc-range {theirs}, \
         or, if these addresses are to be given up, with --ipalloc-range {ours} --give-up-addresses"
    )]
    OtherRange { path: PathBuf, theirs: String, ours: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The database that 2.8.1 would use on this host. Of several the one that was written last.
pub fn find(config: &Config) -> Result<Option<LegacyDatabase>, LegacyDatabaseError> {
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for path in candidates(config) {
        match fs::metadata(&path) {
            Ok(meta) if meta.is_file() => {
                found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(source) => return Err(LegacyDatabaseError::Io { path, source }),
        }
    }
    // The sort is stable: of equally old files the first is used.
    found.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
    let mut found = found.into_iter().map(|(_, path)| path);
    let Some(path) = found.next() else { return Ok(None) };
    for older in found {
        tracing::warn!("ignoring the database {}, which is older than {}", older.display(), path.display());
    }
    read(path).map(Some)
}

/// Checks that the database of this host, if it has not been imported before, can be.
pub fn check(config: &Config) -> Result<(), LegacyDatabaseError> {
    let imported = PeerState::read_original(&config.state_dir)?.digest;
    match find(config)?.filter(|found| Some(&found.digest) != imported.as_ref()) {
        Some(found) => check_range(&found, config),
        None => Ok(()),
    }
}

/// Refuses a database whose addresses are those of another range, unless they are to be given up.
pub(crate) fn check_range(found: &LegacyDatabase, config: &Config) -> Result<(), LegacyDatabaseError> {
    let (Some(ring), Some(allocation)) = (&found.database.ring, &config.allocation) else { return Ok(()) };
    let (theirs, ours) = (ring.range(), allocation.range.range());
    if ring.is_empty() || theirs == ours || config.give_up_addresses {
        return Ok(());
    }
    let (start, size) = (Ipv4Addr::from(theirs.start()), theirs.size());
    let theirs =
        if size.is_power_of_two() { format!("{start}/{}", 32 - size.ilog2()) } else { theirs.to_string() };
    Err(LegacyDatabaseError::OtherRange {
        path: found.path.clone(),
        theirs,
        ours: allocation.range.to_string(),
    })
}

fn read(path: PathBuf) -> Result<LegacyDatabase, LegacyDatabaseError> {
    let bytes = content(&path)?;
    let damaged = |e: weave_ipam::DatabaseError| LegacyDatabaseError::Damaged {
        path: path.clone(),
        what: e.to_string(),
    };
    let database = Database::read(&bytes).map_err(damaged)?;
    Ok(LegacyDatabase { path, digest: digest(&bytes), database })
}

fn content(path: &Path) -> Result<Vec<u8>, LegacyDatabaseError> {
    let io = |source| LegacyDatabaseError::Io { path: path.to_owned(), source };
    if fs::metadata(path).map_err(io)?.len() > MAX_SIZE {
        return Err(LegacyDatabaseError::Damaged { path: path.to_owned(), what: "it is too large".into() });
    }
    fs::read(path).map_err(io)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// New name of a database that must not be read any more.
pub fn moved_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".taken-over");
    name.into()
}

/// Renames the imported database before 2.8.1 returns to this host, and returns the new name. The owners of addresses have changed
/// since the takeover, and with the old database 2.8.1 would allocate used addresses, or crash. Without it 2.8.1 learns the owners
/// from its peers and from the containers. A database that 2.8.1 has changed since the takeover is kept.
pub fn move_away(original: &Original) -> Result<Option<PathBuf>, LegacyDatabaseError> {
    let (Some(path), Some(imported)) = (&original.path, &original.digest) else { return Ok(None) };
    if !path.exists() || digest(&content(path)?) != *imported {
        return Ok(None);
    }
    let moved = moved_path(path);
    fs::rename(path, &moved).map_err(|source| LegacyDatabaseError::Io { path: path.clone(), source })?;
    Ok(Some(moved))
}

fn candidates(config: &Config) -> Vec<PathBuf> {
    if let Some(prefix) = &config.legacy.prefix {
        let mut name = prefix.as_os_str().to_owned();
        name.push("data.db");
        return vec![name.into()];
    }
    let mut places = FILE_NAMES.map(|f| config.state_dir.join(f)).to_vec();
    if let Some(docker) = &config.legacy.docker {
        places.extend(volumes(docker, &config.legacy.container).iter().map(|v| v.join("weavedata.db")));
    }
    places
}

/// Directories that may be the container's volume.
fn volumes(docker: &Docker, container: &str) -> Vec<PathBuf> {
    let inspect = |docker: &Docker| docker.clone().with_timeout(DOCKER_TIMEOUT).inspect(container);
    // The first may be the proxy of a weave daemon that has been stopped.
    match inspect(docker).or_else(|_| inspect(&Docker::at(None))) {
        Ok(found) => {
            let volume = found.as_ref().and_then(|c| c.volume(Path::new(VOLUME)));
            volume.map(Path::to_owned).into_iter().collect()
        }
        Err(e) => {
            tracing::debug!("cannot ask Docker for the volume of {container}, searching {VOLUMES}: {e}");
            let entries = fs::read_dir(VOLUMES).into_iter().flatten().flatten();
            entries.map(|entry| entry.path().join("_data")).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LegacySources;
    use std::fs::File;

    /// Of 2.8.1 that was launched after a hand-back, with containers of Docker's network on the host, and has started others since.
    const HANDED_BACK: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/ipam/handed-back-weavedata.db");
    const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/ipam/sample-weavedata.db");

    fn config(dir: &Path) -> Config {
        Config { state_dir: dir.to_owned(), ..Config::default() }
    }

    fn write_sample(path: &Path, age: u64) {
        fs::copy(SAMPLE, path).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn addresses_that_2_8_1_found_end_with_their_containers() {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(HANDED_BACK, dir.path().join("weavedata.db")).unwrap();
        let found = find(&config(dir.path())).unwrap().unwrap();
        let stored = found.database.owned.as_ref().unwrap();
        assert!(stored.len() > 2 && stored.values().all(|record| !record.is_container), "{stored:?}");
        let loaded = found.loaded().owned;
        let containers = loaded.iter().filter(|(_, record)| record.is_container).count();
        assert_eq!(containers, stored.keys().filter(|owner| owner.len() == 64).count());
        assert!(!loaded["10.2.0.4"].is_container && containers > 0, "{loaded:?}");
    }

    #[test]
    fn newest_database_of_all_places_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert!(find(&config).unwrap().is_none());
        let (kube, plain) = (dir.path().join("weave-netdata.db"), dir.path().join("weavedata.db"));
        write_sample(&plain, 100);
        let import = find(&config).unwrap().unwrap();
        assert_eq!(import.path, plain);
        assert_eq!(import.database.direct_peers.unwrap(), ["10.0.0.1", "10.0.0.2:6783"]);
        assert_eq!(import.database.peer_name.unwrap().to_string(), "01:00:00:00:00:0a");
        write_sample(&kube, 50);
        let newest = find(&config).unwrap().unwrap();
        assert_eq!((newest.path, newest.digest), (kube.clone(), import.digest));
        write_sample(&kube, 200);
        assert_eq!(find(&config).unwrap().unwrap().path, plain);

        // A prefix may end within a file name, and excludes the other places.
        let prefix = dir.path().join("sub-");
        let only = |prefix: &Path| Config {
            legacy: LegacySources { prefix: Some(prefix.to_owned()), ..LegacySources::default() },
            ..config.clone()
        };
        assert!(find(&only(&prefix)).unwrap().is_none());
        let path = dir.path().join("sub-data.db");
        write_sample(&path, 0);
        assert_eq!(find(&only(&prefix)).unwrap().unwrap().path, path);
        assert!(find(&only(Path::new("/nonexistent/weave"))).unwrap().is_none());
    }

    #[test]
    fn imported_database_is_renamed_before_the_original_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weavedata.db");
        write_sample(&path, 0);
        let imported = find(&config(dir.path())).unwrap().unwrap();
        let original = Original { digest: Some(imported.digest), path: Some(path.clone()), bridge: None };
        assert_eq!(move_away(&Original::default()).unwrap(), None);
        let moved = move_away(&original).unwrap().unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&moved).unwrap(), fs::read(SAMPLE).unwrap());
        assert!(find(&config(dir.path())).unwrap().is_none(), "the renamed file is not imported again");
        assert_eq!(move_away(&original).unwrap(), None);
        fs::write(&path, "written by 2.8.1 since").unwrap();
        assert_eq!(move_away(&original).unwrap(), None);
        assert!(path.exists());
    }

    #[test]
    fn damaged_database_is_an_error_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weavedata.db");
        for text in ["", "no database", "\0\0\0\0"] {
            fs::write(&path, text).unwrap();
            let error = find(&config(dir.path())).unwrap_err().to_string();
            assert!(error.starts_with("cannot take over from 2.8.1, "), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let half = &fs::read(SAMPLE).unwrap()[..5000];
        fs::write(&path, half).unwrap();
        assert!(matches!(find(&config(dir.path())), Err(LegacyDatabaseError::Damaged { .. })));
    }
}
