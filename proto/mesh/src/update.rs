//! Payload of the topology channel: for each peer a struct and the list of its connections (docs/spec/mesh.md 8.1, 8.2).
//!
//! A complete update of a large mesh takes megabytes, so encoding and decoding work on the bytes instead of a tree of values.
//! The encoder writes the type definitions that Go sends as constants. The decoder maps the fields of the sender's types to ours
//! once per type.

use std::borrow::Cow;
use std::sync::Arc;

use thiserror::Error;
use weave_gob::{DecodeError, Decoder, FieldError, Kind, Reader, TypeId, put_bytes, put_uint};
use weave_types::{PeerName, PeerUid, ShortId};

use crate::peers::{GossipAddress, PeerConnection, RecordVersion};

/// The record of a peer in topology gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Name of the peer.
    pub name: PeerName,
    /// Nickname of the peer.
    pub nickname: Arc<str>,
    /// Identifies the run of the peer's process; zero for a placeholder.
    pub uid: PeerUid,
    /// Version of the record, which the peer increments at each change.
    pub version: u64,
    /// Short id of the peer, if it has one.
    pub short_id: Option<ShortId>,
    /// Connections of the peer, in any order.
    pub connections: Vec<PeerConnection>,
}

impl PeerRecord {
    pub(crate) fn record_version(&self) -> RecordVersion {
        RecordVersion { version: self.version, uid: self.uid }
    }
}

/// A decoded update.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Update {
    /// Records in the sender's order.
    pub records: Vec<PeerRecord>,
    /// Number of invalid records, which are left out (docs/spec/mesh.md 15.6): names that are zero or not six bytes,
    /// short ids above 4095, peers with content but without UID, and records larger than any real one, since relaying
    /// them would use up the memory of all peers.
    pub dropped: usize,
}

/// `peerSummary` as type 65, struct of NameByte, NickName, UID, Version, ShortID, HasShortID.
const SUMMARY_TYPE: &[u8] = b"\x62\xff\x81\x03\x01\x01\x0bpeerSummary\x01\xff\x82\x00\x01\x06\x01\x08NameByte\x01\x0a\
\x00\x01\x08NickName\x01\x0c\x00\x01\x03UID\x01\x06\x00\x01\x07Version\x01\x06\x00\x01\x07ShortID\x01\x06\x00\x01\
\x0aHasShortID\x01\x02\x00\x00\x00";

/// Type 67, a slice of type 66: `connectionSummary`, struct of NameByte, RemoteTCPAddr, Outbound, Established.
const CONNECTIONS_TYPE: &[u8] = b"\x0d\xff\x85\x02\x01\x02\xff\x86\x00\x01\xff\x84\x00\x00\x5b\xff\x83\x03\x01\x01\
\x11connectionSummary\x01\xff\x84\x00\x01\x04\x01\x08NameByte\x01\x0a\x00\x01\x0dRemoteTCPAddr\x01\x0c\x00\x01\
\x08Outbound\x01\x02\x00\x01\x0bEstablished\x01\x02\x00\x00\x00";

/// Type ids before the two kinds of values: 65; 67 and the zero byte that precedes a value that is not a struct.
const SUMMARY_TYPE_ID: &[u8] = b"\xff\x82";
const CONNECTIONS_TYPE_ID: &[u8] = b"\xff\x86\x00";

/// Encodes an update as 2.8.1 does.
pub fn encode_update<'r>(records: impl IntoIterator<Item = &'r PeerRecord>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut body = Vec::new();
    for (index, record) in records.into_iter().enumerate() {
        if index == 0 {
            out.extend_from_slice(SUMMARY_TYPE);
        }
        body.clear();
        put_summary(&mut body, record);
        put_bytes(&mut out, &body);
        if index == 0 {
            out.extend_from_slice(CONNECTIONS_TYPE);
        }
        body.clear();
        put_connections(&mut body, &record.connections);
        put_bytes(&mut out, &body);
    }
    out
}

/// Writes the fields of a struct. A field starts with its distance from the last field that was not zero.
struct Fields<'o> {
    out: &'o mut Vec<u8>,
    delta: u8,
}

impl<'o> Fields<'o> {
    fn new(out: &'o mut Vec<u8>) -> Fields<'o> {
        Fields { out, delta: 0 }
    }

    /// Starts a field unless its value is zero. Returns whether the value has to follow.
    fn start(&mut self, is_zero: bool) -> bool {
        self.delta += 1;
        if !is_zero {
            self.out.push(self.delta);
            self.delta = 0;
        }
        !is_zero
    }

    fn bytes(&mut self, value: &[u8]) {
        if self.start(value.is_empty()) {
            put_bytes(self.out, value);
        }
    }

    fn uint(&mut self, value: u64) {
        if self.start(value == 0) {
            put_uint(self.out, value);
        }
    }

    fn bool(&mut self, value: bool) {
        self.uint(u64::from(value));
    }

    fn end(self) {
        self.out.push(0);
    }
}

fn put_summary(out: &mut Vec<u8>, record: &PeerRecord) {
    out.extend_from_slice(SUMMARY_TYPE_ID);
    let mut fields = Fields::new(out);
    fields.bytes(&record.name.to_bytes());
    fields.bytes(record.nickname.as_bytes());
    fields.uint(record.uid.0);
    fields.uint(record.version);
    fields.uint(record.short_id.map_or(0, |id| id.get().into()));
    fields.bool(record.short_id.is_some());
    fields.end();
}

fn put_connections(out: &mut Vec<u8>, connections: &[PeerConnection]) {
    let mut address = Vec::new();
    out.extend_from_slice(CONNECTIONS_TYPE_ID);
    put_uint(out, connections.len() as u64);
    for connection in connections {
        address.clear();
        connection.address.append_to(&mut address);
        let mut fields = Fields::new(out);
        fields.bytes(&connection.peer.to_bytes());
        fields.bytes(&address);
        fields.bool(connection.outbound);
        fields.bool(connection.established);
        fields.end();
    }
}

/// The update is malformed. The caller ends the connection, as 2.8.1 does.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// Malformed gob.
    #[error(transparent)]
    Gob(#[from] DecodeError),
    /// The values are not those of an update.
    #[error(transparent)]
    Value(#[from] FieldError),
}

/// Decodes an update. Data that ends between a peer and its connections is accepted without that peer, as in 2.8.1
/// (docs/spec/mesh.md 8.2).
///
/// # Errors
/// The payload is malformed.
pub fn decode_update(payload: &[u8]) -> Result<Update, UpdateError> {
    let mut decoder = Decoder::new(payload);
    let mut update = Update::default();
    let mut summaries = FieldMap::new(&SUMMARY_FIELDS);
    let mut connections = FieldMap::new(&CONNECTION_FIELDS);
    while let Some(mut reader) = decoder.next_reader()? {
        let id = reader.id();
        expect(&reader, id, Kind::Struct)?;
        summaries.prepare(&reader, id)?;
        if !summaries.matches_any() {
            return Err(FieldError::NoFieldsMatched.into());
        }
        let record = read_summary(&mut reader, &summaries)?;
        let Some(mut reader) = decoder.next_reader()? else { break };
        let list = reader.id();
        expect(&reader, list, Kind::List)?;
        // A list always has an element type, so the alternative is refused as a wrong kind.
        let element = reader.types().element(list).unwrap_or(list);
        expect(&reader, element, Kind::Struct)?;
        connections.prepare(&reader, element)?;
        let connections = read_connections(&mut reader, &connections)?;
        match (record, connections) {
            (Some(record), Some(connections))
                if record.uid.0 != 0 || is_placeholder(&record, &connections) =>
            {
                update.records.push(PeerRecord { connections, ..record });
            }
            _ => update.dropped += 1,
        }
    }
    Ok(update)
}

/// Whether a record without UID has no other content either.
fn is_placeholder(record: &PeerRecord, connections: &[PeerConnection]) -> bool {
    record.version == 0 && record.short_id.is_none() && connections.is_empty()
}

fn expect(reader: &Reader<'_, '_>, id: TypeId, wanted: Kind) -> Result<(), FieldError> {
    match reader.types().kind(id) {
        Some(found) if found != wanted => Err(FieldError::WrongKind { field: String::new(), wanted, found }),
        _ => Ok(()),
    }
}

const SUMMARY_FIELDS: [(&str, Kind); 6] = [
    ("NameByte", Kind::Bytes),
    ("NickName", Kind::String),
    ("UID", Kind::Uint),
    ("Version", Kind::Uint),
    ("ShortID", Kind::Uint),
    ("HasShortID", Kind::Bool),
];

const CONNECTION_FIELDS: [(&str, Kind); 4] = [
    ("NameByte", Kind::Bytes),
    ("RemoteTCPAddr", Kind::String),
    ("Outbound", Kind::Bool),
    ("Established", Kind::Bool),
];

/// Maps the field numbers of a sender's struct to ours.
struct FieldMap {
    wanted: &'static [(&'static str, Kind)],
    /// The type that `fields` belongs to.
    id: Option<TypeId>,
    /// For each of the sender's fields, our field number, or the type of a field to skip.
    fields: Vec<Result<usize, TypeId>>,
}

impl FieldMap {
    fn new(wanted: &'static [(&'static str, Kind)]) -> FieldMap {
        FieldMap { wanted, id: None, fields: Vec::new() }
    }

    fn prepare(&mut self, reader: &Reader<'_, '_>, id: TypeId) -> Result<(), FieldError> {
        if self.id == Some(id) {
            return Ok(());
        }
        self.id = Some(id);
        self.fields.clear();
        let Some(shape) = reader.types().shape(id) else { return Ok(()) };
        for field in &shape.fields {
            let ours = self.wanted.iter().position(|(name, _)| *name == field.name);
            if let Some(ours) = ours
                && self.wanted[ours].1 != field.kind
            {
                let (field, wanted, found) = (field.name.clone(), self.wanted[ours].1, field.kind);
                return Err(FieldError::WrongKind { field, wanted, found });
            }
            self.fields.push(ours.ok_or(field.id));
        }
        Ok(())
    }

    /// As in Go, a struct without any fields is accepted.
    fn matches_any(&self) -> bool {
        self.fields.is_empty() || self.fields.iter().any(Result::is_ok)
    }

    /// The next field that is ours; others are skipped.
    #[inline]
    fn next(&self, reader: &mut Reader<'_, '_>, at: &mut usize) -> Result<Option<usize>, DecodeError> {
        while let Some(number) = reader.field(at, self.fields.len())? {
            match self.fields[number] {
                Ok(ours) => return Ok(Some(ours)),
                Err(id) => reader.skip(id)?,
            }
        }
        Ok(None)
    }
}

fn read_name(reader: &mut Reader<'_, '_>) -> Result<Option<PeerName>, DecodeError> {
    let name = reader.bytes()?.try_into().ok().map(PeerName::from_bytes);
    Ok(name.filter(|name| *name != PeerName::UNKNOWN))
}

/// Returns `None` for an invalid record.
fn read_summary(reader: &mut Reader<'_, '_>, map: &FieldMap) -> Result<Option<PeerRecord>, UpdateError> {
    let mut name = None;
    let mut nickname: Arc<str> = Arc::from("");
    let (mut uid, mut version, mut short_id, mut has_short_id) = (0, 0, 0, false);
    let mut at = 0;
    while let Some(field) = map.next(reader, &mut at)? {
        match field {
            0 => name = read_name(reader)?,
            1 => nickname = Arc::from(&*reader.string()?),
            2 => uid = reader.uint()?,
            3 => version = reader.uint()?,
            4 => {
                short_id = u16::try_from(reader.uint()?)
                    .map_err(|_| FieldError::OutOfRange { field: "ShortID".to_owned() })?;
            }
            _ => has_short_id = reader.uint()? != 0,
        }
    }
    if nickname.len() > MAX_NICKNAME {
        return Ok(None);
    }
    let short_id = match (has_short_id, ShortId::new(short_id)) {
        (false, _) => None,
        (true, Some(id)) => Some(id),
        (true, None) => return Ok(None),
    };
    let uid = PeerUid(uid);
    Ok(name.map(|name| PeerRecord { name, nickname, uid, version, short_id, connections: Vec::new() }))
}

/// Encoded size in bytes of the shortest connection that has a name.
const SHORTEST_CONNECTION: usize = 9;
/// Maximum length of a nickname in bytes. The name of a host has at most 64.
pub(crate) const MAX_NICKNAME: usize = 1024;
/// Maximum length of an address in bytes. IPv6 with scope and port has about 70.
const MAX_ADDRESS: usize = 100;
/// Maximum number of connections of a peer. There are 4096 short ids.
const MAX_CONNECTIONS: usize = 16_384;

/// Returns `None` if a connection makes the record invalid.
fn read_connections(
    reader: &mut Reader<'_, '_>,
    map: &FieldMap,
) -> Result<Option<Vec<PeerConnection>>, UpdateError> {
    let count = reader.count()?;
    let capacity = count.min(reader.remaining() / SHORTEST_CONNECTION).min(MAX_CONNECTIONS);
    let mut connections = Vec::with_capacity(capacity);
    let mut valid = count <= MAX_CONNECTIONS;
    for _ in 0..count {
        let mut name = None;
        let mut address = Cow::Borrowed("");
        let (mut outbound, mut established) = (false, false);
        let mut at = 0;
        while let Some(field) = map.next(reader, &mut at)? {
            match field {
                0 => name = read_name(reader)?,
                1 => address = reader.string()?,
                2 => outbound = reader.uint()? != 0,
                _ => established = reader.uint()? != 0,
            }
        }
        match name {
            None => valid = false,
            Some(_) if address.len() > MAX_ADDRESS => valid = false,
            Some(peer) if valid => {
                let address = GossipAddress::from_text(&address);
                connections.push(PeerConnection { peer, address, outbound, established });
            }
            Some(_) => {}
        }
    }
    Ok(valid.then_some(connections))
}
