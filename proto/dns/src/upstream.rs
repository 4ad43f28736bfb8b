//! Messages between this server and the servers that it asks.

use std::time::Duration;

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Header, Message, MessageBuilder, ParsedName};
use domain::dep::octseq::Parser;

use crate::query::{HEADER_LEN, Query};

/// Largest answer over UDP that servers are asked for, which is not fragmented on common paths.
const UDP_LIMIT: u16 = 1232;
/// The longest time in the cache.
const MAX_LIFETIME: u32 = 24 * 60 * 60;
/// The longest time in the cache of an answer that there is no such name or record. RFC 2308 5 allows hours, but what is missing
/// now may be what somebody is about to create.
const MAX_NEGATIVE_LIFETIME: u32 = 300;

/// A question as far as it determines the answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QuestionKey {
    /// In wire format, in lower case.
    name: Box<[u8]>,
    qtype: u16,
    qclass: u16,
    flags: QueryFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct QueryFlags {
    recursion_desired: bool,
    authentic_data: bool,
    checking_disabled: bool,
    /// Whether the query has an OPT record, and its DO bit.
    dnssec_ok: Option<bool>,
}

impl QuestionKey {
    pub(crate) fn new(query: &Query<'_>) -> QuestionKey {
        let name: &[u8] = query.name.as_ref();
        QuestionKey {
            name: name.into(),
            qtype: query.qtype().to_int(),
            qclass: query.qclass().to_int(),
            flags: QueryFlags {
                recursion_desired: query.header.rd(),
                authentic_data: query.header.ad(),
                checking_disabled: query.header.cd(),
                dnssec_ok: query.edns.map(|edns| edns.dnssec_ok),
            },
        }
    }

    /// Bytes that it needs.
    pub(crate) fn len(&self) -> usize {
        size_of::<QuestionKey>() + self.name.len()
    }

    /// Bytes of header and question of a message.
    fn head_len(&self) -> usize {
        HEADER_LEN + self.name.len() + 4
    }

    /// Whether the only question of a message is this one.
    fn is_question_of(&self, message: &[u8]) -> bool {
        let Some(question) = message.get(HEADER_LEN..self.head_len()) else { return false };
        let (name, rest) = question.split_at(self.name.len());
        let [qtype, qclass] = [self.qtype, self.qclass].map(u16::to_be_bytes);
        message[4..6] == [0, 1]
            && name.eq_ignore_ascii_case(&self.name)
            && rest[..2] == qtype
            && rest[2..] == qclass
    }

    /// The query that asks a server, in the spelling of the first client. EDNS options are not passed on: those in use concern
    /// two neighbours only.
    pub(crate) fn query(&self, client: &Query<'_>, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(self.flags.recursion_desired);
        header.set_ad(self.flags.authentic_data);
        header.set_cd(self.flags.checking_disabled);
        let mut builder = builder.question();
        // A vector grows, and a question and an OPT record fit a message.
        let _ = builder.push((client.qname(), client.qtype(), client.qclass()));
        let mut builder = builder.additional();
        if let Some(dnssec_ok) = self.flags.dnssec_ok {
            let _ = builder.opt(|opt| {
                opt.set_udp_payload_size(UDP_LIMIT);
                opt.set_dnssec_ok(dnssec_ok);
                Ok(())
            });
        }
        builder.finish()
    }
}

/// Header and question of the answer to a client, with its id and its spelling.
#[derive(Clone, Debug)]
pub(crate) struct AnswerHead(Vec<u8>);

impl AnswerHead {
    pub(crate) fn new(query: &Query<'_>) -> AnswerHead {
        let mut head = Vec::with_capacity(HEADER_LEN + query.name.len() + 4);
        query.start_answer(&mut head);
        AnswerHead(head)
    }

    pub(crate) fn id(&self) -> u16 {
        Header::for_message_slice(&self.0).id()
    }

    /// The answer that consists of an error.
    pub(crate) fn into_error(mut self, rcode: Rcode) -> Vec<u8> {
        Header::for_message_slice_mut(&mut self.0).set_rcode(rcode);
        self.0
    }

    /// The answer of a server for this client, with TC and without records if it exceeds the limit.
    pub(crate) fn into_answer(mut self, answer: &Answer, limit: usize) -> Vec<u8> {
        let records = answer.bytes.get(self.0.len()..).unwrap_or_default();
        let theirs = Header::for_message_slice(&answer.bytes);
        let ours = Header::for_message_slice_mut(&mut self.0);
        ours.set_flags(theirs.flags());
        ours.set_rcode(theirs.rcode());
        if self.0.len() + records.len() > limit {
            Header::for_message_slice_mut(&mut self.0).set_tc(true);
        } else {
            self.0[6..HEADER_LEN].copy_from_slice(&answer.bytes[6..HEADER_LEN]);
            self.0.extend_from_slice(records);
        }
        self.0
    }
}

/// What a server sent is not the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotTheAnswer {
    /// It has another id or question, as a forged answer has.
    Unrelated,
    /// It is the answer, but malformed.
    Malformed,
}

/// The well-formed answer of a server.
#[derive(Debug)]
pub(crate) struct Answer {
    bytes: Vec<u8>,
    /// For how long it may be stored, if at all.
    pub(crate) lifetime: Option<Duration>,
}

impl Answer {
    /// Checks what a server sent against the question.
    pub(crate) fn parse(bytes: &[u8], id: u16, question: &QuestionKey) -> Result<Answer, NotTheAnswer> {
        let message = Message::from_slice(bytes).map_err(|_| NotTheAnswer::Unrelated)?;
        let header = message.header();
        if header.id() != id || !header.qr() {
            return Err(NotTheAnswer::Unrelated);
        }
        if !question.is_question_of(bytes) {
            // Servers that cannot read a query answer without question.
            let errors = [Rcode::FORMERR, Rcode::SERVFAIL, Rcode::NOTIMP, Rcode::REFUSED];
            if message.header_counts().qdcount() == 0 && errors.contains(&header.rcode()) {
                return Ok(Answer::without_records(bytes, question));
            }
            return Err(NotTheAnswer::Unrelated);
        }
        match walk(bytes, question.head_len()) {
            Some(walk) => {
                let lifetime = walk.lifetime(header).map(|secs| Duration::from_secs(secs.into()));
                Ok(Answer { bytes: bytes[..walk.end].to_vec(), lifetime })
            }
            // Some servers cut within a record. The client has to ask again over TCP anyway.
            None if header.tc() => Ok(Answer::without_records(bytes, question)),
            None => Err(NotTheAnswer::Malformed),
        }
    }

    /// The header, and a place for the question.
    fn without_records(bytes: &[u8], question: &QuestionKey) -> Answer {
        let mut head = vec![0; question.head_len()];
        head[..4].copy_from_slice(&bytes[..4]);
        head[5] = 1;
        Answer { bytes: head, lifetime: None }
    }

    /// The answer as it is stored: TTLs are counted down from when it came, and its source is no authority.
    pub(crate) fn aged(stored: &[u8], question: &QuestionKey, age: Duration) -> Answer {
        let mut bytes = stored.to_vec();
        Header::for_message_slice_mut(&mut bytes).set_aa(false);
        if let Some(walk) = walk(stored, question.head_len()) {
            let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
            for record in walk.records.iter().filter(|record| record.rtype != Rtype::OPT) {
                let ttl = record.ttl.saturating_sub(age);
                bytes[record.ttl_at..record.ttl_at + 4].copy_from_slice(&ttl.to_be_bytes());
            }
        }
        Answer { bytes, lifetime: None }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

struct RecordPlace {
    rtype: Rtype,
    ttl: u32,
    /// Offset of the TTL in the message.
    ttl_at: usize,
    /// The last field of a SOA record.
    soa_minimum: Option<u32>,
    in_authority: bool,
}

struct Walk {
    records: Vec<RecordPlace>,
    answers: usize,
    /// Where the message ends; what follows belongs to nothing.
    end: usize,
}

/// Reads all records from `start` on. `None` if one is malformed.
fn walk(bytes: &[u8], start: usize) -> Option<Walk> {
    let counts = Message::from_slice(bytes).ok()?.header_counts();
    let (answers, authority) = (usize::from(counts.ancount()), usize::from(counts.nscount()));
    let total = answers + authority + usize::from(counts.arcount());
    let mut parser = Parser::from_ref(bytes);
    parser.advance(start).ok()?;
    // A record has at least 11 bytes, so the message bounds what is allocated here.
    let mut records = Vec::with_capacity(total.min(bytes.len() / 11));
    for n in 0..total {
        let name_at = parser.pos();
        ParsedName::parse_ref(&mut parser).ok()?;
        if is_in_header(bytes, name_at) {
            return None;
        }
        let rtype = Rtype::from_int(parser.parse_u16_be().ok()?);
        parser.advance(2).ok()?;
        let ttl_at = parser.pos();
        let ttl = parser.parse_u32_be().ok()?;
        let data_len = usize::from(parser.parse_u16_be().ok()?);
        let data = bytes.get(parser.pos()..parser.pos() + data_len)?;
        parser.advance(data_len).ok()?;
        let soa_minimum = (rtype == Rtype::SOA).then(|| data.last_chunk::<4>()).flatten();
        records.push(RecordPlace {
            rtype,
            ttl,
            ttl_at,
            soa_minimum: soa_minimum.map(|minimum| u32::from_be_bytes(*minimum)),
            in_authority: (answers..answers + authority).contains(&n),
        });
    }
    Some(Walk { records, answers, end: parser.pos() })
}

/// Whether a part of the name at `pos`, which is well-formed, is in the header. Such a name would be another one in the answer to the
/// client, whose header has another id.
fn is_in_header(bytes: &[u8], mut pos: usize) -> bool {
    loop {
        match bytes.get(pos..) {
            Some(&[first, second, ..]) if first >= 0xc0 => {
                pos = usize::from(first & 0x3f) << 8 | usize::from(second)
            }
            Some(&[len, ..]) if len > 0 => pos += usize::from(len) + 1,
            _ => return false,
        }
        if pos < HEADER_LEN {
            return true;
        }
    }
}

impl Walk {
    /// Seconds for which the message may be stored (RFC 2308 5), if at all.
    fn lifetime(&self, header: Header) -> Option<u32> {
        let has_soa = self.records.iter().any(|r| r.in_authority && r.soa_minimum.is_some());
        let is_negative = header.rcode() == Rcode::NXDOMAIN || self.answers == 0;
        let extended_rcode = self.records.iter().any(|r| r.rtype == Rtype::OPT && r.ttl >> 24 != 0);
        let is_definite = matches!(header.rcode(), Rcode::NOERROR | Rcode::NXDOMAIN) && !header.tc();
        if !is_definite || extended_rcode || is_negative && !has_soa {
            return None;
        }
        let ttls = self.records.iter().filter(|r| r.rtype != Rtype::OPT).map(|r| {
            // A TTL with the highest bit counts as zero (RFC 2181 8).
            let ttl = if r.ttl >> 31 == 0 { r.ttl } else { 0 };
            if r.in_authority { ttl.min(r.soa_minimum.unwrap_or(u32::MAX)) } else { ttl }
        });
        let most = if is_negative { MAX_NEGATIVE_LIFETIME } else { MAX_LIFETIME };
        ttls.min().map(|secs| secs.min(most)).filter(|secs| *secs > 0)
    }
}
