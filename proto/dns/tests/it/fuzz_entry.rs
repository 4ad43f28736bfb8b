//! Handles arbitrary messages. The fuzz targets and the tests that replay their corpora share this module.

use std::net::Ipv4Addr;
use std::sync::Arc;

use domain::base::Message;
use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;
use weave_dns::{AnswerConfig, ErrorCode, HostName, Names, Responder, Transport, Verdict, answer_with_error};
use weave_types::PeerName;

/// Any bytes as a query to local names. An answer has the id of the query, is well-formed and no longer than what the client
/// accepts.
pub(crate) fn query(data: &[u8]) {
    let name = |text| HostName::parse(text).expect("a valid name");
    let mut names = Names::default();
    let peer = PeerName::from_number(1).expect("a valid name");
    let container: Arc<str> = "c1".into();
    names.insert(&name("pingme.weave.local"), peer, &container, Ipv4Addr::new(10, 32, 0, 2));
    for n in 0..200 {
        names.insert(&name("fifty.weave.local"), peer, &container, Ipv4Addr::new(10, 32, 9, n));
    }
    let config = AnswerConfig { domain: name("weave.local"), ttl: 1 };
    let mut responder = Responder::new(config, ChaCha12Rng::seed_from_u64(1));
    let mut out = Vec::new();
    for transport in [Transport::Udp, Transport::Tcp] {
        match responder.answer(data, &names, transport, &mut out) {
            Verdict::Ignore => {}
            Verdict::Answer(_) => check_answer(data, &out, transport),
            Verdict::Forward => {
                assert!(answer_with_error(data, ErrorCode::Refused, &mut out));
                check_answer(data, &out, transport);
                assert!(out.len() <= data.len(), "an error is never longer than its query");
            }
        }
    }
}

fn check_answer(query: &[u8], answer: &[u8], transport: Transport) {
    assert_eq!(query[..2], answer[..2]);
    let message = Message::from_slice(answer).expect("a message");
    assert!(message.header().qr());
    let (mut questions, answers, authority, additional) = message.sections().expect("whole sections");
    assert!(questions.all(|question| question.is_ok()));
    assert!(answers.chain(authority).chain(additional).all(|record| record.is_ok()));
    let edns =
        Message::from_slice(query).ok().and_then(|query| query.opt()).map(|opt| opt.udp_payload_size());
    let limit = match transport {
        Transport::Udp => usize::from(edns.unwrap_or(512).clamp(512, 4096)),
        Transport::Tcp => usize::from(u16::MAX),
    };
    assert!(answer.len() <= limit, "{} bytes for a limit of {limit}", answer.len());
}
