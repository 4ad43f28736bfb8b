//! Messages of `weave trace`: received ones become outputs, and what this peer knows about the way of a frame.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use weave_mesh::Channels;
use weave_overlay::forward::FrameWatch;
use weave_trace::{CHANNEL, Endpoint, Flow, Hop, Link, MAX_MESSAGE, Message, NoLink, Overlay};
use weave_types::{Instant, MacAddr, Now, PeerName, TokenBucket};

use crate::node::Node;
use crate::output::Output;

/// Limit of the messages of all peers together. A trace causes about four at a peer.
const BURST: u32 = 64;
const INTERVAL: Duration = Duration::from_millis(50);

/// Receiver of the gossip channel.
pub(crate) struct Traces {
    received: VecDeque<(PeerName, Message)>,
    limit: TokenBucket,
    /// Who looks for frames in the data path.
    watches: Vec<Arc<dyn FrameWatch>>,
}

impl Traces {
    pub(crate) fn new() -> Traces {
        Traces { received: VecDeque::new(), limit: TokenBucket::new(BURST, INTERVAL), watches: Vec::new() }
    }

    pub(crate) fn watches(&self) -> &[Arc<dyn FrameWatch>] {
        &self.watches
    }

    /// Passes a received message on. Returns `false` if there was none.
    pub(crate) fn process_output(&mut self, outputs: &mut VecDeque<Output>) -> bool {
        let Some((from, message)) = self.received.pop_front() else { return false };
        outputs.push_back(Output::TraceMessage { from, message });
        true
    }

    /// A malformed message is ignored: the neighbour that passed it on is not to blame.
    fn receive(&mut self, from: PeerName, payload: &[u8], now: Instant) {
        if payload.len() <= MAX_MESSAGE
            && self.limit.try_take(now)
            && let Ok(message) = Message::decode(payload)
        {
            self.received.push_back((from, message));
        }
    }
}

impl Channels for &mut Traces {
    fn names(&self) -> &[&'static str] {
        &[CHANNEL]
    }

    fn on_unicast(&mut self, _: &str, src: PeerName, payload: &[u8], now: Now) -> Result<(), String> {
        self.receive(src, payload, now.mono);
        Ok(())
    }

    // There are only unicasts.

    fn on_broadcast(&mut self, _: &str, _: PeerName, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn on_gossip(&mut self, _: &str, _: &[u8], _: Now) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }

    fn state(&mut self, _: &str, _: Now) -> Option<Vec<u8>> {
        None
    }

    fn merge(&mut self, _: &str, _: &mut Vec<u8>, _: &[u8]) {}
}

impl Node {
    /// Sends a message of a trace to another peer. It may be lost.
    pub fn send_trace(&mut self, to: PeerName, message: &Message, now: Now) {
        // A peer that cannot be reached does not answer, which says the same.
        let _ = self.mesh.unicast(CHANNEL, to, &message.encode(), now);
        self.process_outputs(now);
    }

    /// Has the data path of user space look for frames. An empty list ends that.
    pub fn set_frame_watches(&mut self, watches: Vec<Arc<dyn FrameWatch>>, now: Now) {
        self.traces.watches = watches;
        self.stale = true;
        self.process_outputs(now);
    }

    /// The peer that has an Ethernet address, as far as this peer knows.
    pub fn mac_owner(&self, mac: MacAddr) -> Option<PeerName> {
        self.macs.lookup(mac)
    }

    /// `NAME(NICK)`, or the name alone of a peer that is not in the network.
    pub fn peer_label(&self, name: PeerName) -> String {
        self.label(name)
    }

    /// The way of data according to the topology, with both ends; empty if there is none.
    pub fn expected_path(&self, from: PeerName, to: PeerName) -> Vec<PeerName> {
        self.mesh.routes().path(from, to)
    }

    /// Where this peer sends the frames of a flow for peer `toward`.
    pub fn trace_hop(&self, flow: &Flow, toward: PeerName, now: Now) -> Hop {
        let at = |end: Endpoint| self.macs.lookup(end.mac);
        Hop { source_at: at(flow.source), destination_at: at(flow.destination), next: self.next(toward, now) }
    }

    fn next(&self, toward: PeerName, now: Now) -> Result<Link, NoLink> {
        let own = self.mesh.name();
        if toward == own {
            return Err(NoLink::End);
        }
        let routes = self.mesh.routes();
        let via = routes.unicast_or_direct(toward).or_else(|| routes.path(own, toward).get(1).copied());
        via.map(|via| self.link(via, now)).ok_or_else(|| {
            NoLink::NoRoute(match self.mesh.peer(toward) {
                Some(_) => format!("no connection leads to {}", self.label(toward)),
                None => format!("{toward} is not connected to the network"),
            })
        })
    }

    fn link(&self, via: PeerName, now: Now) -> Link {
        let own = self.mesh.peer(self.mesh.name());
        let mut connections = own.iter().flat_map(|own| &own.connections);
        let carries_data = connections.any(|c| c.peer == via && c.established);
        let Some((report, traces)) = self.connections.report_of(via, now) else {
            return Link {
                peer: via,
                carries_data,
                overlay: Overlay::None,
                mtu: 0,
                encrypted: false,
                traces: false,
                problem: String::new(),
            };
        };
        let overlay = report.overlay.unwrap_or_default();
        Link {
            peer: via,
            carries_data,
            overlay: Overlay::named(&overlay),
            mtu: report.mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(0),
            encrypted: report.encrypted,
            traces,
            // If all is well it is the name of the overlay.
            problem: if report.reason == overlay { String::new() } else { report.reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_traces_are_limited() {
        let now = Now { mono: Instant::from_origin(Duration::from_secs(1)), wall: Duration::ZERO };
        let from = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let message = Message::Collect { id: 7 };
        let mut traces = Traces::new();
        let mut channel = &mut traces;
        for payload in [vec![1; MAX_MESSAGE + 1], vec![9; 20], Vec::new()] {
            assert_eq!(channel.on_unicast(CHANNEL, from, &payload, now), Ok(()), "no connection is closed");
        }
        for _ in 0..1000 {
            assert_eq!(channel.on_unicast(CHANNEL, from, &message.encode(), now), Ok(()));
        }
        let mut outputs = VecDeque::new();
        while traces.process_output(&mut outputs) {}
        assert!((32..=BURST as usize).contains(&outputs.len()), "{}", outputs.len());
        assert!(matches!(&outputs[0], Output::TraceMessage { message: m, .. } if *m == message));
    }
}
