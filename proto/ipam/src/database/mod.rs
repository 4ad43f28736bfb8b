//! The database of 2.8.1, read once when a host migrates (docs/spec/ipam.md 9, docs/spec/cli.md 11).
//!
//! It is a BoltDB file with the bucket `top`; all values except `version` are gob streams. It is never written.

mod bolt;

use std::collections::BTreeMap;

use thiserror::Error;
use weave_gob::{FieldError, Value};
use weave_types::PeerName;

use crate::gossip_error::Malformed;
use crate::message;
use crate::owned::Container;
use crate::owned::Record;
use crate::persist::Loaded;
use crate::ring::Ring;

/// The content of the database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// The peer's name.
    pub peer_name: Option<PeerName>,
    /// The peer's ring; may have no tokens.
    pub ring: Option<Ring>,
    /// The addresses of containers; `None` if they were never stored.
    pub owned: Option<BTreeMap<Container, Record>>,
    /// The configured direct peers as typed, for `--resume`.
    pub direct_peers: Option<Vec<String>>,
    /// Values stored by scripts, without the key prefix `flag:`.
    pub flags: BTreeMap<String, String>,
}

const BUCKET: &[u8] = b"top";
const VERSION_KEY: &[u8] = b"version";
const MAJOR_VERSION: u8 = 1;
const FLAG_PREFIX: &[u8] = b"flag:";

fn owned_text(value: &Value) -> Result<String, FieldError> {
    value.as_str().map(str::to_owned)
}

impl Database {
    /// Reads a whole file. Any input is safe; time and memory are a small multiple of its length.
    ///
    /// # Errors
    /// The file is not such a database, is damaged, or has another version. The caller should not start a peer then:
    /// with an old ring, or without one, it could use addresses of others.
    pub fn read(file: &[u8]) -> Result<Database, DatabaseError> {
        let bucket = bolt::read_bucket(file, BUCKET)?.ok_or(DatabaseError::NoBucket)?;
        let version = bucket.get(VERSION_KEY).copied().unwrap_or_default();
        if version.first() != Some(&MAJOR_VERSION) {
            return Err(DatabaseError::Version(version.to_vec()));
        }
        let mut database = Database::default();
        for (&key, &value) in &bucket {
            let wrong = |error: String| DatabaseError::Value {
                key: String::from_utf8_lossy(key).into_owned(),
                error,
            };
            let read = || message::read(value).map_err(|error| wrong(error.to_string()));
            match key {
                b"peername" => {
                    let number: u64 = read()?.as_uint().map_err(|error| wrong(error.to_string()))?;
                    let name = PeerName::from_number(number);
                    database.peer_name =
                        Some(name.ok_or_else(|| wrong(Malformed::PeerName(number).to_string()))?);
                }
                b"ring" => {
                    let ring = Ring::decode(value).map_err(|error| wrong(error.to_string()))?;
                    ring.check().map_err(|error| wrong(error.to_string()))?;
                    database.ring = Some(ring);
                }
                b"ownedAddresses" => {
                    let records = message::decode_records(value);
                    database.owned = Some(records.map_err(|error| wrong(error.to_string()))?);
                }
                b"directPeers" => {
                    let list = read()?;
                    let peers = list.as_list().and_then(|list| list.iter().map(owned_text).collect());
                    database.direct_peers = Some(peers.map_err(|error| wrong(error.to_string()))?);
                }
                _ => {
                    let Some(flag) = key.strip_prefix(FLAG_PREFIX) else { continue };
                    let text = owned_text(&read()?).map_err(|error| wrong(error.to_string()))?;
                    database.flags.insert(String::from_utf8_lossy(flag).into_owned(), text);
                }
            }
        }
        Ok(database)
    }

    /// The state that an [`Allocator`](crate::Allocator) starts with.
    pub fn loaded(&self) -> Loaded {
        // The holder of the ring is the peer that stored it, whatever the field says.
        let ring = self.ring.clone().zip(self.peer_name).map(|(mut ring, name)| {
            ring.peer = name;
            ring
        });
        Loaded { ring, election: None, owned: self.owned.clone().unwrap_or_default() }
    }
}

/// Why a database cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DatabaseError {
    /// The file is not a BoltDB file.
    #[error("not a database of weave 2.8.1")]
    NotBolt,
    /// An unknown version of the BoltDB format.
    #[error("database format {0} is not known: only that of weave 2.8.1 is")]
    Format(u32),
    /// A page or element is damaged; names it.
    #[error("database is damaged ({0}): restore it from a copy, or move it away to start without it")]
    Damaged(&'static str),
    /// There is no bucket `top`.
    #[error("database has no bucket \"top\": not one of weave")]
    NoBucket,
    /// An unknown version of Weave's layout.
    #[error("mismatched version {}", .0.iter().map(|byte| format!("{byte:02x}")).collect::<String>())]
    Version(Vec<u8>),
    /// A value cannot be decoded.
    #[error("database value {key:?} cannot be read: {error}")]
    Value {
        /// The key of the value.
        key: String,
        /// The decoding error.
        error: String,
    },
}
