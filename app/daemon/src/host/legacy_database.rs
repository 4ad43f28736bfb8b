//! The database that 2.8.1 left on this host: where it may be, and whether it has been taken in already (docs/spec/cli.md 11, docs/spec/ipam.md 9).
//!
//! | place | of |
//! | --- | --- |
//! | `<--db-prefix>data.db` | whoever gave that option; no other place is looked at then |
//! | `<state directory>/weave-netdata.db` | the Kubernetes add-on |
//! | `<state directory>/weavedata.db` | the managed plugin, and a daemon outside of containers |
//! | volume `/weavedb` of container `weavedb`, `weavedata.db` | `weave launch` |
//!
//! The file is only read. What it says counts once: its digest is stored with our own state when everything in it has been taken
//! in. A file that has changed since then was written by 2.8.1 in a later time of its own, and counts again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};
use weave_ipam::Database;
use weave_runtime::Docker;

use crate::config::Config;
use crate::storage::Original;

/// Its names in the state directory.
pub const FILE_NAMES: [&str; 2] = ["weave-netdata.db", "weavedata.db"];
/// No cluster's ring is nearly as large.
const MAX_SIZE: u64 = 256 << 20;
/// A daemon must not wait long for Docker, which may be starting itself.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(2);
/// Where the volume is in its container.
const VOLUME: &str = "/weavedb";
/// Where Docker keeps volumes unless told otherwise, for when it does not answer.
const VOLUMES: &str = "/var/lib/docker/volumes";

/// A database that was found.
#[derive(Clone, Debug)]
pub struct LegacyDatabase {
    /// Its file.
    pub path: PathBuf,
    /// Tells this content from any other.
    pub digest: String,
    /// What it says.
    pub database: Database,
}

/// Why a database that is there cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum LegacyDatabaseError {
    /// The kernel refused.
    #[error("cannot read the database of 2.8.1 {path:?}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is no such database, or damaged. Starting without it could make a second, separate network of addresses.
    #[error("cannot take over from 2.8.1, {path:?}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// The database that 2.8.1 would use on this host, if there is one. Of several the one that was written last.
///
/// # Errors
/// It is there and cannot be read.
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
    // The first of those that are equally old.
    found.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
    let mut found = found.into_iter().map(|(_, path)| path);
    let Some(path) = found.next() else { return Ok(None) };
    for older in found {
        tracing::warn!("{} is older than {} and ignored", older.display(), path.display());
    }
    read(path).map(Some)
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

/// Where a database goes that must not be read any more.
pub fn retired_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".taken-over");
    name.into()
}

/// 2.8.1 comes back to this host: its database is as it was when we took over, but what addresses belong to whom has moved on
/// since, and 2.8.1 would hand out what is taken, or crash. So it is renamed, and 2.8.1 learns from the others and from the
/// containers that are there. Gives its new name. One that 2.8.1 has written since, or that is gone, is left alone.
///
/// # Errors
/// It cannot be read or renamed.
pub fn retire(original: &Original) -> Result<Option<PathBuf>, LegacyDatabaseError> {
    let (Some(path), Some(taken)) = (&original.path, &original.digest) else { return Ok(None) };
    if !path.exists() || digest(&content(path)?) != *taken {
        return Ok(None);
    }
    let aside = retired_path(path);
    fs::rename(path, &aside).map_err(|source| LegacyDatabaseError::Io { path: path.clone(), source })?;
    Ok(Some(aside))
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
    let ask = |docker: &Docker| docker.clone().with_timeout(DOCKER_TIMEOUT).inspect(container);
    // The first may be the proxy of the daemon that is not there any more.
    match ask(docker).or_else(|_| ask(&Docker::at(None))) {
        Ok(found) => {
            let volume = found.as_ref().and_then(|c| c.volume(Path::new(VOLUME)));
            volume.map(Path::to_owned).into_iter().collect()
        }
        Err(e) => {
            tracing::debug!("looking for the volume of {container} in {VOLUMES}: {e}");
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

    const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/ipam/sample-weavedata.db");

    fn config(dir: &Path) -> Config {
        Config { state_dir: dir.to_owned(), ..Config::default() }
    }

    fn put(path: &Path, age: u64) {
        fs::copy(SAMPLE, path).unwrap();
        let time = SystemTime::now() - Duration::from_secs(age);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn places() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert!(find(&config).unwrap().is_none());
        let (kube, plain) = (dir.path().join("weave-netdata.db"), dir.path().join("weavedata.db"));
        put(&plain, 100);
        let import = find(&config).unwrap().unwrap();
        assert_eq!(import.path, plain);
        assert_eq!(import.database.direct_peers.unwrap(), ["10.0.0.1", "10.0.0.2:6783"]);
        assert_eq!(import.database.peer_name.unwrap().to_string(), "01:00:00:00:00:0a");
        put(&kube, 50);
        let newest = find(&config).unwrap().unwrap();
        assert_eq!((newest.path, newest.digest), (kube.clone(), import.digest));
        put(&kube, 200);
        assert_eq!(find(&config).unwrap().unwrap().path, plain);

        // A prefix is no directory, and excludes the other places.
        let prefix = dir.path().join("sub-");
        let only = |prefix: &Path| Config {
            legacy: LegacySources { prefix: Some(prefix.to_owned()), ..LegacySources::default() },
            ..config.clone()
        };
        assert!(find(&only(&prefix)).unwrap().is_none());
        let path = dir.path().join("sub-data.db");
        put(&path, 0);
        assert_eq!(find(&only(&prefix)).unwrap().unwrap().path, path);
        assert!(find(&only(Path::new("/nonexistent/weave"))).unwrap().is_none());
    }

    #[test]
    fn one_that_was_taken_in_is_set_aside_for_the_way_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weavedata.db");
        put(&path, 0);
        let taken = find(&config(dir.path())).unwrap().unwrap();
        let original = Original { digest: Some(taken.digest), path: Some(path.clone()), bridge: None };
        assert_eq!(retire(&Original::default()).unwrap(), None);
        let aside = retire(&original).unwrap().unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&aside).unwrap(), fs::read(SAMPLE).unwrap());
        assert!(find(&config(dir.path())).unwrap().is_none(), "nobody takes it in again");
        assert_eq!(retire(&original).unwrap(), None);
        fs::write(&path, "written by 2.8.1 since").unwrap();
        assert_eq!(retire(&original).unwrap(), None);
        assert!(path.exists());
    }

    #[test]
    fn a_database_that_cannot_be_read_is_an_error_and_stays() {
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
