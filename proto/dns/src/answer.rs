//! Answers from the names of this network (docs/spec/dns.md 8).

use std::net::Ipv4Addr;

use domain::base::Header;
use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::name::Name;
use domain::base::record::Ttl;
use domain::dep::octseq::OctetsBuilder;
use domain::rdata::{A, Ptr};
use rand::seq::SliceRandom;
use rand_chacha::ChaCha12Rng;

use crate::names::{HostName, Names, is_within};
use crate::query::{HEADER_LEN, NameKey, NotAQuery, PLAIN_UDP_LIMIT, Query, Transport, start_message};

/// Bytes of a question besides its name.
const QUESTION_LEN: usize = 4;
/// Bytes of an A record besides its name.
const ADDRESS_RECORD_LEN: usize = 14;
/// `in-addr.arpa.` in wire format.
const REVERSE_ZONE: &[u8] = b"\x07in-addr\x04arpa\0";

/// How a query is answered from the local names.
#[derive(Clone, Debug)]
pub struct AnswerConfig {
    /// The names in this domain are answered here and nowhere else.
    pub domain: HostName,
    /// Seconds for which an answer may be cached.
    pub ttl: u32,
}

/// What becomes of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no query.
    Ignore,
    /// The answer is in the caller's buffer.
    Answer(AnswerKind),
    /// The question is for the servers of the host ([`Forwarder`](crate::Forwarder)).
    Forward,
}

/// Kinds of answers, to be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
    /// Addresses of a name.
    Addresses,
    /// The name of an address.
    Pointer,
    /// The name exists and has no records of this type.
    NoData,
    /// There is no such name.
    NoSuchName,
    /// The query was malformed or of an unknown kind.
    Refused,
}

/// Answers queries from the local names. Each thread has its own.
#[derive(Debug)]
pub struct Responder {
    config: AnswerConfig,
    rng: ChaCha12Rng,
    /// Kept to be allocated once.
    shuffled: Vec<Ipv4Addr>,
}

impl Responder {
    /// `rng` determines the order of addresses.
    pub fn new(config: AnswerConfig, rng: ChaCha12Rng) -> Responder {
        Responder { config, rng, shuffled: Vec::new() }
    }

    /// Answers a query into `out`, which is overwritten.
    pub fn answer(
        &mut self,
        query: &[u8],
        names: &Names,
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let query = match Query::parse(query) {
            Ok(query) => query,
            Err(NotAQuery::Ignored) => return Verdict::Ignore,
            Err(NotAQuery::Malformed(header)) => return malformed(header, out),
            Err(NotAQuery::NoQuestion(header)) => return no_question(header, out),
        };
        let labels = query.qname().label_count() - 1;
        if labels <= 1 && query.is_sole_question {
            return self.answer_single_label(&query, names, transport, out);
        }
        let name: &[u8] = query.name.as_ref();
        if query.qtype() != Rtype::DS {
            if is_within(name, self.config.domain.key()) {
                let addrs = if query.is_sole_question { names.addresses(name) } else { &[] };
                return self.answer_addresses(&query, addrs, transport, out);
            }
            if is_within(name, REVERSE_ZONE) {
                let addr =
                    reverse_address(name).filter(|_| query.is_sole_question && query.qtype() == Rtype::PTR);
                match addr.map(|addr| names.name_of(addr)) {
                    None => return no_such_name(&query, out),
                    Some(Some(target)) => return self.answer_pointer(&query, target, out),
                    Some(None) => {}
                }
            }
        }
        match rcode_instead_of_forwarding(&query) {
            None => Verdict::Forward,
            Some(rcode) => {
                finish_error(&query, rcode, out);
                Verdict::Answer(AnswerKind::Refused)
            }
        }
    }

    /// A name of one label is completed with the domain, and never forwarded.
    fn answer_single_label(
        &mut self,
        query: &Query<'_>,
        names: &Names,
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let name: &[u8] = query.name.as_ref();
        let mut completed = NameKey::new();
        let label = &name[..name.len() - 1];
        let fits = completed
            .append_slice(label)
            .and_then(|()| completed.append_slice(self.config.domain.key()))
            .is_ok();
        let addrs = if fits && !label.is_empty() { names.addresses(completed.as_ref()) } else { &[] };
        self.answer_addresses(query, addrs, transport, out)
    }

    fn answer_addresses(
        &mut self,
        query: &Query<'_>,
        addrs: &[Ipv4Addr],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Verdict {
        if addrs.is_empty() {
            return no_such_name(query, out);
        }
        let mut builder = query.start_answer(out);
        builder.header_mut().set_aa(true);
        if query.qtype() != Rtype::A {
            return Verdict::Answer(AnswerKind::NoData);
        }
        let name_len = query.name.len();
        let limit = query.limit(transport);
        // A lone record is sent to a client with a smaller limit, as 2.8.1 does, but never above that of clients without EDNS.
        let limit = if addrs.len() == 1 { limit.max(PLAIN_UDP_LIMIT) } else { limit };
        let room = limit.saturating_sub(HEADER_LEN + name_len + QUESTION_LEN);
        let count = addrs.len().min(room / (name_len + ADDRESS_RECORD_LEN));
        self.shuffled.clear();
        self.shuffled.extend_from_slice(addrs);
        let (chosen, _) = self.shuffled.partial_shuffle(&mut self.rng, count);
        builder.header_mut().set_tc(count < addrs.len());
        let mut builder = builder.answer();
        let ttl = Ttl::from_secs(self.config.ttl);
        for addr in chosen {
            // A vector grows, and `count` records fit a message.
            let _ = builder.push((query.qname(), Class::IN, ttl, A::new(*addr)));
        }
        Verdict::Answer(AnswerKind::Addresses)
    }

    fn answer_pointer(&self, query: &Query<'_>, target: &HostName, out: &mut Vec<u8>) -> Verdict {
        let mut spelt = NameKey::new();
        for label in target.as_str().split_terminator('.') {
            // A host name's labels and length are within the limits of the wire format.
            let _ = spelt.append_slice(&[label.len() as u8]);
            let _ = spelt.append_slice(label.as_bytes());
        }
        let _ = spelt.append_slice(&[0]);
        let Ok(target) = Name::from_slice(spelt.as_ref()) else { return no_such_name(query, out) };
        let mut builder = query.start_answer(out);
        builder.header_mut().set_aa(true);
        let mut builder = builder.answer();
        let ttl = Ttl::from_secs(self.config.ttl);
        let _ = builder.push((query.qname(), Class::IN, ttl, Ptr::new(target)));
        Verdict::Answer(AnswerKind::Pointer)
    }
}

/// Answers a query with an error into `out`. `false` if it is no query with a question.
pub fn answer_with_error(query: &[u8], error: ErrorCode, out: &mut Vec<u8>) -> bool {
    let Ok(query) = Query::parse(query) else { return false };
    finish_error(&query, error.rcode(), out);
    true
}

/// Why a question is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCode {
    /// The servers of the host did not answer, or cannot be asked now.
    ServerFailure,
    /// The client may not ask the servers of the host.
    Refused,
}

impl ErrorCode {
    fn rcode(self) -> Rcode {
        match self {
            ErrorCode::ServerFailure => Rcode::SERVFAIL,
            ErrorCode::Refused => Rcode::REFUSED,
        }
    }
}

fn finish_error(query: &Query<'_>, rcode: Rcode, out: &mut Vec<u8>) {
    query.start_answer(out).header_mut().set_rcode(rcode);
}

fn no_such_name(query: &Query<'_>, out: &mut Vec<u8>) -> Verdict {
    finish_error(query, Rcode::NXDOMAIN, out);
    Verdict::Answer(AnswerKind::NoSuchName)
}

fn malformed(query: Header, out: &mut Vec<u8>) -> Verdict {
    let mut header = Header::new();
    header.set_id(query.id());
    start_message(out, header).header_mut().set_rcode(Rcode::FORMERR);
    Verdict::Answer(AnswerKind::Refused)
}

fn no_question(query: Header, out: &mut Vec<u8>) -> Verdict {
    start_message(out, query).header_mut().set_rcode(Rcode::SERVFAIL);
    Verdict::Answer(AnswerKind::Refused)
}

/// The answer to what no server is asked: several questions (RFC 9619), zone transfers, which have answers of many messages, and
/// other operations than queries.
fn rcode_instead_of_forwarding(query: &Query<'_>) -> Option<Rcode> {
    if query.header.opcode() != Opcode::QUERY || matches!(query.qtype(), Rtype::AXFR | Rtype::IXFR) {
        Some(Rcode::NOTIMP)
    } else if !query.is_sole_question {
        Some(Rcode::FORMERR)
    } else {
        None
    }
}

/// The address of a name below `in-addr.arpa.`, if it has all four octets.
fn reverse_address(name: &[u8]) -> Option<Ipv4Addr> {
    let mut rest = name.strip_suffix(REVERSE_ZONE)?;
    let mut octets = [0; 4];
    for octet in octets.iter_mut().rev() {
        let (len, tail) = rest.split_first()?;
        let (label, tail) = tail.split_at_checked(usize::from(*len))?;
        let is_decimal = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || label[0] != b'0');
        *octet = std::str::from_utf8(label).ok().filter(|_| is_decimal)?.parse().ok()?;
        rest = tail;
    }
    rest.is_empty().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reverse_names_have_four_decimal_labels() {
        let parse = |text: &str| reverse_address(HostName::parse(text).unwrap().key());
        assert_eq!(parse("1.2.32.10.IN-ADDR.arpa"), Some(Ipv4Addr::new(10, 32, 2, 1)));
        for text in ["2.32.10", "1.1.2.32.10", "256.2.32.10", "01.2.32.10", "+1.2.32.10", "a.2.32.10"] {
            assert_eq!(parse(&format!("{text}.in-addr.arpa")), None, "{text}");
        }
        assert_eq!(parse("1.2.3.4.example.com"), None);
    }
}
