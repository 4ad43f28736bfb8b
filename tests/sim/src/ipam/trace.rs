//! Texts of messages and outputs for `SIM_TRACE`.

use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{Entry, Output, Persist, Ring};

use super::links::Message;

pub(super) fn show_message(message: &Message) -> String {
    let unicast = |bytes: &[u8]| match Unicast::decode(bytes) {
        Ok(Some(Unicast::State(state))) => format!("state {}", show_state(&state)),
        other => format!("{other:?}"),
    };
    let state = |bytes: &[u8]| StateMessage::decode(bytes).map_or_else(|e| e.to_string(), |s| show_state(&s));
    match message {
        Message::Unicast { src, payload } => format!("{src}: {}", unicast(payload)),
        Message::Broadcast { src, payload } => format!("{src} to all: {}", state(payload)),
        Message::Gossip(payload) => format!("gossip: {}", state(payload)),
    }
}

fn show_state(state: &StateMessage) -> String {
    match &state.ring {
        Some(ring) => show_ring(ring),
        None => format!("paxos {:?}", state.paxos),
    }
}

/// Tokens as distances from the range's start.
pub(super) fn show_ring(ring: &Ring) -> String {
    let entry = |e: &Entry| {
        let peer = e.peer.to_string();
        format!("+{}={} v{} f{}", e.token - ring.range().start(), peer, e.version, e.free)
    };
    ring.entries().iter().map(entry).collect::<Vec<_>>().join(", ")
}

pub(super) fn show_output(output: &Output) -> String {
    match output {
        Output::Unicast { to, payload } => {
            let message = Message::Unicast { src: *to, payload: payload.clone() };
            format!("-> {}", show_message(&message))
        }
        Output::Broadcast(payload) => format!("-> {}", show_message(&Message::Gossip(payload.clone()))),
        Output::Persist(Persist::Ring(ring)) => format!("stores {}", show_ring(ring)),
        other => format!("{other:?}"),
    }
}
