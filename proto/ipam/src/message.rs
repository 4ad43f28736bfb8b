//! Encoding of gossip messages (docs/spec/ipam.md 4) and of stored state (9). Each is a gob stream of one value.

use std::collections::BTreeMap;

use weave_gob::{Decoder, Encoder, FieldError, Limits, Struct, Type, Value};
use weave_types::{Cidr, PeerName, PeerUid};

use crate::address::{AddrRange, cidr, ipv4};
use crate::gossip_error::Malformed;
use crate::owned::Container;
use crate::owned::Record;
use crate::paxos::{AcceptedValue, ElectorId, ElectorState, Knowledge, ProposalId};
use crate::ring::{Entry, Ring};

/// The state of a peer: sent as gossip, as a broadcast, and as an answer.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct StateMessage {
    /// The sender's wall clock in seconds since the epoch. Only peers before 1.5 read it.
    pub now: i64,
    /// The nicknames that the sender knows.
    pub nicknames: BTreeMap<PeerName, String>,
    /// Known states of the electors; `None` if the sender has a ring or does not vote.
    pub paxos: Option<Knowledge>,
    /// The sender's ring; `None` if it has no tokens.
    pub ring: Option<Ring>,
    /// The allocation range of a sender without a ring. Our addition: 2.8.1 does not send it, and ignores it.
    pub range: Option<AddrRange>,
}

/// A message to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unicast {
    /// A request for space in this range.
    Request(AddrRange),
    /// The sender's state: the answer to a request.
    State(StateMessage),
    /// The sender has no usable space in this range.
    Denied(AddrRange),
}

const REQUEST: u8 = 0;
const STATE: u8 = 1;
const DENIED: u8 = 2;

impl StateMessage {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let mut types = vec![("Now", Type::Int), ("Nicknames", Type::map(Type::Uint, Type::String))];
        let nicknames = self.nicknames.iter().map(|(name, nick)| (peer(*name), Value::String(nick.clone())));
        let mut fields = vec![("Now", Value::Int(self.now)), ("Nicknames", Value::Map(nicknames.collect()))];
        if let Some(paxos) = &self.paxos {
            types.push(("Paxos", Type::map(elector_id_type(), elector_state_type())));
            let pairs =
                paxos.iter().map(|(elector, state)| (elector_id_value(elector), elector_state_value(state)));
            fields.push(("Paxos", Value::Map(pairs.collect())));
        }
        if let Some(ring) = &self.ring {
            types.push(("Ring", ring_type()));
            fields.push(("Ring", ring_value(ring)));
        }
        if let Some(range) = self.range {
            types.push(("Range", range_type()));
            fields.push(("Range", Value::Struct(range_value(range))));
        }
        write(&Type::structure("gossipState", types), Struct::new(fields))
    }

    /// Decodes a message.
    ///
    /// # Errors
    /// The message is malformed.
    pub fn decode(bytes: &[u8]) -> Result<StateMessage, Malformed> {
        let value = read(bytes)?;
        let state = value.as_struct()?;
        state.require_any(&["Now", "Nicknames", "Paxos", "Ring"])?;
        let mut nicknames = BTreeMap::new();
        for (name, nick) in state.map("Nicknames")?.unwrap_or_default() {
            nicknames.insert(peer_of(name)?, nick.as_str()?.to_owned());
        }
        let paxos = match state.map("Paxos")? {
            None => None,
            Some(pairs) => {
                let mut knowledge = Knowledge::new();
                for (elector, state) in pairs {
                    knowledge
                        .insert(elector_id_of(elector.as_struct()?)?, elector_state_of(state.as_struct()?)?);
                }
                Some(knowledge)
            }
        };
        let ring = state.nested("Ring")?.map(ring_of).transpose()?;
        let range = state.nested("Range")?.map(range_of).transpose()?;
        Ok(StateMessage { now: state.int("Now")?, nicknames, paxos, ring, range })
    }
}

impl Unicast {
    /// Encodes the message.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Unicast::Request(range) => (REQUEST, encode_range(*range)),
            Unicast::State(state) => (STATE, state.encode()),
            Unicast::Denied(range) => (DENIED, encode_range(*range)),
        };
        let mut out = vec![kind];
        out.extend(body);
        out
    }

    /// Decodes a message. Returns `None` if it is empty or of an unknown kind; such messages are ignored.
    ///
    /// # Errors
    /// The message is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Option<Unicast>, Malformed> {
        Ok(match bytes.split_first() {
            Some((&REQUEST, body)) => Some(Unicast::Request(decode_range(body)?)),
            Some((&STATE, body)) => Some(Unicast::State(StateMessage::decode(body)?)),
            Some((&DENIED, body)) => Some(Unicast::Denied(decode_range(body)?)),
            _ => None,
        })
    }
}

impl Ring {
    /// Encodes the ring as it is stored, in the format of 2.8.1 (docs/spec/ipam.md 9).
    pub fn to_bytes(&self) -> Vec<u8> {
        match ring_value(self) {
            Value::Struct(fields) => write(&ring_type(), fields),
            _ => Vec::new(),
        }
    }

    /// Decodes a stored ring.
    ///
    /// # Errors
    /// The bytes are damaged, or the ring is invalid.
    pub fn from_bytes(bytes: &[u8]) -> Result<Ring, Malformed> {
        let ring = Ring::decode(bytes)?;
        ring.check().map_err(Malformed::Ring)?;
        Ok(ring)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Ring, Malformed> {
        let value = read(bytes)?;
        let ring = value.as_struct()?;
        ring.require_any(&["Start", "End", "Peer", "Entries", "Seeds"])?;
        ring_of(ring)
    }
}

impl Record {
    /// Encodes the record as it is stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let element = Type::structure("CIDR", [("Addr", Type::Uint), ("PrefixLen", Type::Int)]);
        let ty = Type::structure("Record", [("IsContainer", Type::Bool), ("Cidrs", Type::slice(element))]);
        let cidrs = self.cidrs.iter().filter_map(|&cidr| {
            let addr = Value::Uint(ipv4(cidr)?.into());
            let len = Value::Int(cidr.prefix().into());
            Some(Value::Struct(Struct::new([("Addr", addr), ("PrefixLen", len)])))
        });
        write(
            &ty,
            Struct::new([
                ("IsContainer", Value::Bool(self.is_container)),
                ("Cidrs", Value::List(cidrs.collect())),
            ]),
        )
    }

    /// Decodes a stored record.
    ///
    /// # Errors
    /// The bytes are damaged.
    pub fn from_bytes(bytes: &[u8]) -> Result<Record, Malformed> {
        let value = read(bytes)?;
        record_of(&value)
    }
}

/// Decodes all records as 2.8.1 stores them.
pub(crate) fn decode_records(bytes: &[u8]) -> Result<BTreeMap<Container, Record>, Malformed> {
    let value = read(bytes)?;
    let pairs = value.as_map()?;
    pairs.iter().map(|(id, record)| Ok((id.as_str()?.to_owned(), record_of(record)?))).collect()
}

/// Reads the first value of a stream and ignores the rest, like Go's decoder.
pub(crate) fn read(bytes: &[u8]) -> Result<Value, Malformed> {
    let limits = Limits::default();
    // Limits memory in proportion to the length of the input, so that a short hostile message cannot allocate up to
    // the general limit.
    let max_memory = limits.max_memory.min(4096 + bytes.len().saturating_mul(256));
    Decoder::with_limits(bytes, Limits { max_memory, ..limits }).next()?.ok_or(Malformed::Empty)
}

fn write(ty: &Type, fields: Struct) -> Vec<u8> {
    let mut encoder = Encoder::new();
    encoder.value(ty, &Value::Struct(fields));
    encoder.finish()
}

// For each struct, `*_type` is its gob type, `*_value` encodes it and `*_of` decodes it.

fn range_type() -> Type {
    Type::structure("Range", [("Start", Type::Uint), ("End", Type::Uint)])
}

fn range_value(range: AddrRange) -> Struct {
    Struct::new([("Start", uint(range.start())), ("End", uint(range.end()))])
}

fn range_of(range: &Struct) -> Result<AddrRange, Malformed> {
    Ok(AddrRange::new(range.uint("Start")?, range.uint("End")?))
}

fn encode_range(range: AddrRange) -> Vec<u8> {
    write(&range_type(), range_value(range))
}

fn decode_range(bytes: &[u8]) -> Result<AddrRange, Malformed> {
    let value = read(bytes)?;
    let range = value.as_struct()?;
    range.require_any(&["Start", "End"])?;
    range_of(range)
}

fn uint(value: u32) -> Value {
    Value::Uint(value.into())
}

fn peer(name: PeerName) -> Value {
    Value::Uint(name.number())
}

fn name_of(number: u64) -> Result<PeerName, Malformed> {
    PeerName::from_number(number).ok_or(Malformed::PeerName(number))
}

fn peer_of(value: &Value) -> Result<PeerName, Malformed> {
    name_of(value.as_uint()?)
}

fn peers(names: &[PeerName]) -> Value {
    Value::List(names.iter().map(|&name| peer(name)).collect())
}

fn peers_of(list: &[Value]) -> Result<Vec<PeerName>, Malformed> {
    list.iter().map(peer_of).collect()
}

/// Reads a struct field; the default if it is absent.
fn nested<T: Default>(
    of: &Struct,
    name: &str,
    read: impl FnOnce(&Struct) -> Result<T, Malformed>,
) -> Result<T, Malformed> {
    Ok(of.nested(name)?.map(read).transpose()?.unwrap_or_default())
}

fn ring_type() -> Type {
    let entry = Type::structure(
        "entry",
        [("Token", Type::Uint), ("Peer", Type::Uint), ("Version", Type::Uint), ("Free", Type::Uint)],
    );
    Type::structure(
        "Ring",
        [
            ("Start", Type::Uint),
            ("End", Type::Uint),
            ("Peer", Type::Uint),
            ("Entries", Type::slice(entry)),
            ("Seeds", Type::slice(Type::Uint)),
        ],
    )
}

fn ring_value(ring: &Ring) -> Value {
    let entries = ring.entries.iter().map(|e| {
        Value::Struct(Struct::new([
            ("Token", uint(e.token)),
            ("Peer", peer(e.peer)),
            ("Version", uint(e.version)),
            ("Free", uint(e.free)),
        ]))
    });
    Value::Struct(Struct::new([
        ("Start", uint(ring.range.start())),
        ("End", uint(ring.range.end())),
        ("Peer", peer(ring.peer)),
        ("Entries", Value::List(entries.collect())),
        ("Seeds", peers(&ring.seeds)),
    ]))
}

fn ring_of(ring: &Struct) -> Result<Ring, Malformed> {
    let entries = ring.list("Entries")?.iter().map(|entry| {
        let entry = entry.as_struct()?;
        Ok(Entry {
            token: entry.uint("Token")?,
            peer: name_of(entry.uint("Peer")?)?,
            version: entry.uint("Version")?,
            free: entry.uint("Free")?,
        })
    });
    Ok(Ring {
        range: AddrRange::new(ring.uint("Start")?, ring.uint("End")?),
        peer: name_of(ring.uint("Peer")?)?,
        entries: entries.collect::<Result<_, Malformed>>()?,
        seeds: peers_of(ring.list("Seeds")?)?,
    })
}

fn elector_id_type() -> Type {
    Type::structure("NodeID", [("Name", Type::Uint), ("UID", Type::Uint)])
}

fn elector_id_value(elector: &ElectorId) -> Value {
    Value::Struct(Struct::new([("Name", peer(elector.name)), ("UID", Value::Uint(elector.uid.0))]))
}

fn elector_id_of(elector: &Struct) -> Result<ElectorId, Malformed> {
    Ok(ElectorId { name: name_of(elector.uint("Name")?)?, uid: PeerUid(elector.uint("UID")?) })
}

fn proposal_type() -> Type {
    Type::structure("ProposalID", [("Round", Type::Uint), ("Proposer", elector_id_type())])
}

fn proposal_value(id: &ProposalId) -> Value {
    Value::Struct(Struct::new([
        ("Round", Value::Uint(id.round)),
        ("Proposer", elector_id_value(&id.proposer)),
    ]))
}

fn proposal_of(id: &Struct) -> Result<ProposalId, Malformed> {
    Ok(ProposalId { round: id.uint("Round")?, proposer: nested(id, "Proposer", elector_id_of)? })
}

fn elector_state_type() -> Type {
    let accepted =
        Type::structure("AcceptedValue", [("Value", Type::slice(Type::Uint)), ("Origin", proposal_type())]);
    Type::structure(
        "NodeClaims",
        [("Promise", proposal_type()), ("Accepted", proposal_type()), ("AcceptedVal", accepted)],
    )
}

fn elector_state_value(state: &ElectorState) -> Value {
    let accepted = [("Value", peers(&state.value.value)), ("Origin", proposal_value(&state.value.origin))];
    Value::Struct(Struct::new([
        ("Promise", proposal_value(&state.promise)),
        ("Accepted", proposal_value(&state.accepted)),
        ("AcceptedVal", Value::Struct(Struct::new(accepted))),
    ]))
}

fn elector_state_of(state: &Struct) -> Result<ElectorState, Malformed> {
    Ok(ElectorState {
        promise: nested(state, "Promise", proposal_of)?,
        accepted: nested(state, "Accepted", proposal_of)?,
        value: nested(state, "AcceptedVal", |accepted| {
            Ok(AcceptedValue {
                value: peers_of(accepted.list("Value")?)?,
                origin: nested(accepted, "Origin", proposal_of)?,
            })
        })?,
    })
}

fn record_of(value: &Value) -> Result<Record, Malformed> {
    let record = value.as_struct()?;
    let cidrs = record.list("Cidrs")?.iter().map(|element| -> Result<Cidr, Malformed> {
        let element = element.as_struct()?;
        let prefix: u8 = element.int("PrefixLen")?;
        if prefix > 32 {
            return Err(FieldError::OutOfRange { field: "PrefixLen".to_owned() }.into());
        }
        Ok(cidr(element.uint("Addr")?, prefix))
    });
    Ok(Record { is_container: record.bool("IsContainer")?, cidrs: cidrs.collect::<Result<_, _>>()? })
}
