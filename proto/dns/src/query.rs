//! Reads queries.

use domain::base::header::HeaderSection;
use domain::base::iana::{Class, Opcode, Rtype};
use domain::base::message_builder::QuestionBuilder;
use domain::base::opt::Opt;
use domain::base::{Header, Message, MessageBuilder, ParsedName, Question, ToName};
use domain::dep::octseq::array::Array;

/// Bytes of a message's header.
pub(crate) const HEADER_LEN: usize = size_of::<HeaderSection>();
/// The longest name in wire format (RFC 1035 2.3.4).
const MAX_NAME_LEN: usize = 255;
/// Largest answer over UDP to a client without EDNS (RFC 1035 4.2.1).
pub(crate) const PLAIN_UDP_LIMIT: usize = 512;
/// Largest answer over UDP, whatever a client offers: an address that is forged cannot be flooded with much.
const MAX_UDP_LIMIT: usize = 4096;
/// The DO bit in the TTL of an OPT record (RFC 6891 6.1.3).
const DNSSEC_OK: u32 = 0x8000;

/// How a query arrived and its answer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// Datagrams, with a limit that the query says.
    Udp,
    /// A stream, each message of which has two bytes of length.
    Tcp,
}

/// What the OPT record of a query says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edns {
    /// Largest answer over UDP.
    udp_limit: u16,
    pub(crate) dnssec_ok: bool,
}

/// A name in wire format, in lower case.
pub(crate) type NameKey = Array<MAX_NAME_LEN>;

/// A message that is a query, with its first question.
pub(crate) struct Query<'a> {
    pub(crate) header: Header,
    question: Question<ParsedName<&'a [u8]>>,
    /// Whether there are no more questions.
    pub(crate) is_sole_question: bool,
    pub(crate) edns: Option<Edns>,
    pub(crate) name: NameKey,
}

/// The message is not a query with a question.
pub(crate) enum NotAQuery {
    /// Shorter than a header, or an answer.
    Ignored,
    Malformed(Header),
    NoQuestion(Header),
}

impl<'a> Query<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Query<'a>, NotAQuery> {
        let message = Message::from_slice(bytes).map_err(|_| NotAQuery::Ignored)?;
        let header = message.header();
        if header.qr() {
            return Err(NotAQuery::Ignored);
        }
        // 2.8.1 takes a header that is alone for one without questions (vector `bad_packet`).
        if message.header_counts().qdcount() == 0 || bytes.len() == HEADER_LEN {
            return Err(NotAQuery::NoQuestion(header));
        }
        Query::parse_sections(message, header).ok_or(NotAQuery::Malformed(header))
    }

    fn parse_sections(message: &'a Message<[u8]>, header: Header) -> Option<Query<'a>> {
        let mut questions = message.question();
        let question = questions.next()?.ok()?;
        // Only the header precedes the name, and the answer, which has it in full, would be longer than the query.
        if question.qname().is_compressed() {
            return None;
        }
        let mut edns = None;
        for record in message.additional().ok()? {
            let record = record.ok()?;
            if record.rtype() == Rtype::OPT && edns.is_none() {
                // Options that do not fit make the query malformed (RFC 6891 6.1.2).
                record.to_record::<Opt<_>>().ok()?;
                let dnssec_ok = record.ttl().as_secs() & DNSSEC_OK != 0;
                edns = Some(Edns { udp_limit: record.class().to_int(), dnssec_ok });
            }
        }
        let mut name = NameKey::new();
        question.qname().compose_canonical(&mut name).ok()?;
        let is_sole_question = message.header_counts().qdcount() == 1;
        Some(Query { header, question, is_sole_question, edns, name })
    }

    /// The name in the spelling of the client.
    pub(crate) fn qname(&self) -> &ParsedName<&'a [u8]> {
        self.question.qname()
    }

    pub(crate) fn qtype(&self) -> Rtype {
        self.question.qtype()
    }

    pub(crate) fn qclass(&self) -> Class {
        self.question.qclass()
    }

    /// Largest answer that the client accepts. A size below 512 is taken literally, as 2.8.1 does (vector
    /// `fifty_udp_edns_100`).
    pub(crate) fn limit(&self, transport: Transport) -> usize {
        match (transport, self.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => PLAIN_UDP_LIMIT,
            (Transport::Udp, Some(edns)) => usize::from(edns.udp_limit).min(MAX_UDP_LIMIT),
        }
    }

    /// Begins an answer: header and question. The buffer keeps its capacity.
    pub(crate) fn start_answer<'o>(&self, out: &'o mut Vec<u8>) -> QuestionBuilder<&'o mut Vec<u8>> {
        let mut builder = start_message(out, self.header);
        builder.header_mut().set_ra(true);
        let mut builder = builder.question();
        // A vector grows, and the message has room for a question.
        let _ = builder.push(self.question);
        builder
    }
}

/// Begins an answer: a header with what is repeated from that of the query.
pub(crate) fn start_message(out: &mut Vec<u8>, query: Header) -> MessageBuilder<&mut Vec<u8>> {
    out.clear();
    let Ok(mut builder) = MessageBuilder::from_target(out);
    let header = builder.header_mut();
    header.set_id(query.id());
    header.set_qr(true);
    header.set_opcode(query.opcode());
    if query.opcode() == Opcode::QUERY {
        header.set_rd(query.rd());
        header.set_cd(query.cd());
    }
    builder
}
