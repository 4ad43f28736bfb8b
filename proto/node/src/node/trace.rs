//! What this peer knows about the way of a frame, for `weave trace`.

use std::sync::Arc;

use weave_overlay::forward::FrameWatch;
use weave_trace::{CHANNEL, Endpoint, Flow, Hop, Link, Message, NoLink, Overlay};
use weave_types::{MacAddr, Now, PeerName};

use super::Node;

impl Node {
    /// Sends a message of a trace to another peer. It may be lost.
    pub fn send_trace(&mut self, to: PeerName, message: &Message, now: Now) {
        // A peer that cannot be reached does not answer, which says the same.
        let _ = self.mesh.unicast(CHANNEL, to, &message.encode(), now);
        self.process_outputs(now);
    }

    /// Has the data path of user space look for frames. An empty list ends that.
    pub fn set_frame_watches(&mut self, watches: Vec<Arc<dyn FrameWatch>>, now: Now) {
        self.traces.set_watches(watches);
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
