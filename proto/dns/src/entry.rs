use std::net::Ipv4Addr;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use weave_types::PeerName;

/// The longest hostname that is kept, bytes. Names in queries have at most 254.
const MAX_HOSTNAME: usize = 255;
/// The longest container id that is kept, bytes. Those of Docker have 64.
const MAX_CONTAINER: usize = 256;
/// The highest version that is kept, so that a version can always be incremented.
const MAX_VERSION: i64 = 1 << 62;
/// Encoded size of an entry without its texts, bytes, at most.
const FIXED_SIZE: usize = 48;

/// A name of a container at an address (docs/spec/dns.md 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The host name as its origin spells it. Those of other peers need not be valid names, nor within our domain.
    pub hostname: Arc<str>,
    /// The peer that registered it, and which alone may change it.
    pub origin: PeerName,
    /// Id of the container.
    pub container: Arc<str>,
    /// The address.
    pub addr: Ipv4Addr,
    /// Number of changes.
    pub version: i64,
    /// 0, or the time of removal by the clock of the origin, seconds since the epoch.
    pub tombstone: i64,
}

/// Identifies an entry, and orders entries as 2.8.1 does.
///
/// Hostnames that differ only in case are one: a peer of version 2.8.1 that receives both of them ends up with duplicates and crashes
/// (docs/spec/dns.md 16.2). It compares them in lower case of all of Unicode.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) lower: Arc<str>,
    pub(crate) origin: PeerName,
    pub(crate) container: Arc<str>,
    pub(crate) addr: Ipv4Addr,
}

impl Key {
    /// A hash of the entry at this version.
    pub(crate) fn hash(&self, version: i64) -> u64 {
        let mut hasher = Sha256::new();
        for text in [&self.lower, &self.container] {
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(self.origin.number().to_be_bytes());
        hasher.update(self.addr.octets());
        hasher.update(version.to_be_bytes());
        let hash: [u8; 32] = hasher.finalize().into();
        hash.first_chunk().map_or(0, |start| u64::from_be_bytes(*start))
    }
}

impl Entry {
    /// Whether the name is not removed.
    pub fn is_live(&self) -> bool {
        self.tombstone == 0
    }

    pub(crate) fn key(&self) -> Key {
        let lower = self.hostname.to_lowercase();
        let lower = if lower == *self.hostname { self.hostname.clone() } else { lower.into() };
        Key { lower, origin: self.origin, container: self.container.clone(), addr: self.addr }
    }

    /// Whether this state replaces that of the same entry.
    ///
    /// Peers of version 2.8.1 register spellings as separate entries: as long as one is live, the name is.
    pub(crate) fn supersedes(&self, other: &Entry) -> bool {
        let state = |entry: &Entry| (entry.version, entry.tombstone);
        if self.hostname == other.hostname {
            state(self) > state(other)
        } else {
            (self.is_live(), state(self)) > (other.is_live(), state(other))
        }
    }

    /// Whether the entry may be kept and sent.
    pub(crate) fn is_acceptable(&self) -> bool {
        self.hostname.len() <= MAX_HOSTNAME
            && self.container.len() <= MAX_CONTAINER
            && (0..=MAX_VERSION).contains(&self.version)
            && self.tombstone >= 0
    }

    /// Size in a message, bytes, at most.
    pub(crate) fn size(&self) -> usize {
        self.hostname.len() + self.container.len() + FIXED_SIZE
    }
}
