//! The database of 2.8.1, read once when a host moves over (docs/spec/ipam.md 9, docs/spec/cli.md 11).
//!
//! A BoltDB file with the bucket `top`; all values but `version` are gob streams. Nothing is written.

mod bolt;

use std::collections::BTreeMap;
use std::fmt;

use weave_gob::{FieldError, Value};
use weave_types::PeerName;

use crate::gossip_error::Malformed;
use crate::message;
use crate::output::Container;
use crate::owned::Record;
use crate::persist::Loaded;
use crate::ring::Ring;

/// What 2.8.1 has stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Database {
    /// Name of the peer.
    pub peer_name: Option<PeerName>,
    /// Its ring; may be without tokens.
    pub ring: Option<Ring>,
    /// Who has which addresses; `None` if that was never stored.
    pub owned: Option<BTreeMap<Container, Record>>,
    /// The direct peers, as typed: for `--resume`.
    pub direct_peers: Option<Vec<String>>,
    /// What scripts have kept there, without the prefix `flag:`.
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
    /// Reads a whole file. Any bytes are safe to give; it costs no more time and memory than a small multiple of their
    /// number.
    ///
    /// # Errors
    /// It is no such database, or a damaged one, or of another version. Nothing should be started with it then: an old
    /// ring is worse than none, and none is worse than the right one.
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

    /// What an [`Allocator`](crate::Allocator) takes over from it.
    pub fn loaded(&self) -> Loaded {
        // The ring's holder is who stored it, even if the field should say something else.
        let ring = self.ring.clone().zip(self.peer_name).map(|(mut ring, name)| {
            ring.peer = name;
            ring
        });
        Loaded { ring, election: None, owned: self.owned.clone().unwrap_or_default() }
    }
}

/// Why a database cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseError {
    /// Not a BoltDB file; nothing of it matches.
    NotBolt,
    /// Another format, by its number.
    Format(u32),
    /// A page or element makes no sense; which.
    Damaged(&'static str),
    /// It has no bucket `top`: no Weave database.
    NoBucket,
    /// Another version of Weave's own layout.
    Version(Vec<u8>),
    /// A value is not what it should be.
    Value {
        /// Its key.
        key: String,
        /// What is wrong with it.
        error: String,
    },
}

impl fmt::Display for DatabaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DatabaseError::NotBolt => f.write_str("not a database of weave 2.8.1"),
            DatabaseError::Format(version) => {
                write!(f, "database format {version} is not known: only that of weave 2.8.1 is")
            }
            DatabaseError::Damaged(what) => {
                write!(
                    f,
                    "database is damaged ({what}): restore it from a copy, or move it away to start afresh"
                )
            }
            DatabaseError::NoBucket => f.write_str("database has no bucket \"top\": not one of weave"),
            DatabaseError::Version(bytes) => {
                f.write_str("mismatched version ")?;
                bytes.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
            DatabaseError::Value { key, error } => {
                write!(f, "database value {key:?} cannot be read: {error}")
            }
        }
    }
}

impl std::error::Error for DatabaseError {}
