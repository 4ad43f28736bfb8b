//! Payload of the channel `nameserver` (docs/spec/dns.md 4): a gob stream of one value.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use thiserror::Error;
use weave_gob::{Decoder, Limits, Struct, Value, put_bytes, put_int, put_uint};
use weave_types::PeerName;

use crate::entry::{Entry, Key};

/// A list of entries, sent as gossip and as a broadcast.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Message {
    /// The sender's wall clock in seconds since the epoch.
    pub timestamp: i64,
    /// The entries, in any order.
    pub entries: Vec<Entry>,
}

/// A message that cannot be decoded: the connection that it came over should be closed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The stream contains no value.
    #[error("EOF")]
    Empty,
    /// The message is not a gob stream.
    #[error(transparent)]
    Gob(#[from] weave_gob::DecodeError),
    /// A value of another type than expected.
    #[error(transparent)]
    Value(#[from] weave_gob::FieldError),
}

/// `GossipData` as type 65, struct of Timestamp, Entries; `Entries` as type 67, slice of type 66; `Entry` as type 66, struct of
/// ContainerID, Origin, Addr, Hostname, Version, Tombstone.
const TYPES: &[u8] = b"\x33\xff\x81\x03\x01\x01\x0aGossipData\x01\xff\x82\x00\x01\x02\x01\x09Timestamp\x01\x04\x00\x01\
\x07Entries\x01\xff\x86\x00\x00\x00\x16\xff\x85\x02\x01\x01\x07Entries\x01\xff\x86\x00\x01\xff\x84\x00\x00\x5e\xff\x83\x03\x01\
\x01\x05Entry\x01\xff\x84\x00\x01\x06\x01\x0bContainerID\x01\x0c\x00\x01\x06Origin\x01\x06\x00\x01\x04Addr\x01\x06\x00\x01\
\x08Hostname\x01\x0c\x00\x01\x07Version\x01\x04\x00\x01\x09Tombstone\x01\x04\x00\x00\x00";
/// Type id of the value: 65.
const TYPE_ID: &[u8] = b"\xff\x82";

impl Message {
    /// Encodes the message, with its entries in the order of 2.8.1. Of entries with one identity only one is sent: a peer of version
    /// 2.8.1 that receives duplicates crashes (docs/spec/dns.md 16.1).
    pub fn encode(&self) -> Vec<u8> {
        encode(self.timestamp, by_key(self.entries.iter().cloned()).values())
    }

    /// Decodes a message. Entries that no peer would register are left out.
    ///
    /// # Errors
    /// The message is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        let limits = Limits::default();
        // A short hostile message must not allocate up to the general limit.
        let max_memory = limits.max_memory.min(4096 + bytes.len().saturating_mul(256));
        let value = Decoder::with_limits(bytes, Limits { max_memory, ..limits }).next()?;
        let value = value.ok_or(Malformed::Empty)?;
        let message = value.as_struct()?;
        message.require_any(&["Timestamp", "Entries"])?;
        let mut entries = Vec::new();
        for entry in message.list("Entries")? {
            entries.extend(entry_of(entry)?.filter(Entry::is_acceptable));
        }
        Ok(Message { timestamp: message.int("Timestamp")?, entries })
    }
}

/// Returns `None` for an origin that cannot be the name of a peer.
fn entry_of(value: &Value) -> Result<Option<Entry>, Malformed> {
    let entry: &Struct = value.as_struct()?;
    let origin = PeerName::from_number(entry.uint("Origin")?);
    let addr: u32 = entry.uint("Addr")?;
    let (hostname, container) = (entry.string("Hostname")?.into(), entry.string("ContainerID")?.into());
    let (version, tombstone) = (entry.int("Version")?, entry.int("Tombstone")?);
    let addr = Ipv4Addr::from(addr);
    Ok(origin.map(|origin| Entry { hostname, origin, container, addr, version, tombstone }))
}

/// The entries by identity; where several have the same, the state that replaces the others.
pub(crate) fn by_key(entries: impl IntoIterator<Item = Entry>) -> BTreeMap<Key, Entry> {
    let mut map = BTreeMap::<Key, Entry>::new();
    for entry in entries {
        let key = entry.key();
        if map.get(&key).is_none_or(|known| entry.supersedes(known)) {
            map.insert(key, entry);
        }
    }
    map
}

/// Encodes entries with different identities.
pub(crate) fn encode<'e>(timestamp: i64, entries: impl IntoIterator<Item = &'e Entry>) -> Vec<u8> {
    let mut entries: Vec<&Entry> = entries.into_iter().collect();
    // The order of the bytes of the hostnames, unlike that in memory.
    entries.sort_by_key(|e| (&*e.hostname, e.origin, &*e.container, e.addr));
    let mut body = TYPE_ID.to_vec();
    let mut delta = 1;
    if timestamp != 0 {
        body.push(delta);
        put_int(&mut body, timestamp);
    } else {
        delta += 1;
    }
    if !entries.is_empty() {
        body.push(delta);
        put_uint(&mut body, entries.len() as u64);
        entries.iter().for_each(|entry| put_entry(&mut body, entry));
    }
    body.push(0);
    let mut out = TYPES.to_vec();
    put_bytes(&mut out, &body);
    out
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let mut delta = 0;
    // Fields that are zero are left out; the next one begins with its distance from the last one sent.
    let mut field = |out: &mut Vec<u8>, is_zero: bool, put: &dyn Fn(&mut Vec<u8>)| {
        delta += 1;
        if !is_zero {
            out.push(std::mem::take(&mut delta));
            put(out);
        }
    };
    let (origin, addr) = (entry.origin.number(), u64::from(u32::from(entry.addr)));
    field(out, entry.container.is_empty(), &|out| put_bytes(out, entry.container.as_bytes()));
    field(out, origin == 0, &|out| put_uint(out, origin));
    field(out, addr == 0, &|out| put_uint(out, addr));
    field(out, entry.hostname.is_empty(), &|out| put_bytes(out, entry.hostname.as_bytes()));
    field(out, entry.version == 0, &|out| put_int(out, entry.version));
    field(out, entry.tombstone == 0, &|out| put_int(out, entry.tombstone));
    out.push(0);
}
