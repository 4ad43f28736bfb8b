//! Handles arbitrary bytes. The fuzz target and the test that replays its corpus share this module.

use std::net::Ipv4Addr;

use weave_trace::{Endpoint, Flow, Message};
use weave_types::MacAddr;

/// Any bytes as a message of a peer, and as a frame. What can be decoded is encoded to the same bytes.
pub(crate) fn message(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        assert_eq!(message.encode(), data);
    }
    let end = |n| Endpoint { mac: MacAddr([2, 0, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 32, 0, n) };
    let flow = Flow { source: end(1), destination: end(2), id: 7 };
    flow.recognise(data);
    flow.arp_answer(data);
}
