//! What `weave trace` asks of the node, in the task that owns it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::oneshot;
use weave_node::Node;
use weave_overlay::forward::FrameWatch;
use weave_trace::{Flow, Hop, Message};
use weave_types::{MacAddr, Now, PeerName};

#[derive(Debug)]
pub enum TraceCommand {
    /// Where this peer sends the frames of a trace for another peer.
    Hop(Flow, PeerName, oneshot::Sender<Hop>),
    /// Where a trace to an address goes, whose Ethernet address may be known.
    Plan(Ipv4Addr, Option<MacAddr>, oneshot::Sender<TracePlan>),
    /// Sends a message of a trace to another peer.
    Send(PeerName, Message),
    /// Has the data path look for frames.
    SetWatches(Vec<Arc<dyn FrameWatch>>, oneshot::Sender<()>),
    /// Names of peers with their nicknames.
    Labels(Vec<PeerName>, oneshot::Sender<BTreeMap<PeerName, String>>),
}

impl TraceCommand {
    /// The outputs of the node have to be carried out afterwards.
    pub(crate) fn carry_out(self, node: &mut Node, now: Now) {
        // The thread may have ended.
        match self {
            TraceCommand::Hop(flow, toward, answer) => {
                let _ = answer.send(node.trace_hop(&flow, toward, now));
            }
            TraceCommand::Plan(to, mac, answer) => {
                let _ = answer.send(plan(node, to, mac));
            }
            TraceCommand::Send(to, message) => node.send_trace(to, &message, now),
            TraceCommand::SetWatches(watches, answer) => {
                node.set_frame_watches(watches, now);
                let _ = answer.send(());
            }
            TraceCommand::Labels(peers, answer) => {
                let labels = peers.into_iter().map(|peer| (peer, node.peer_label(peer)));
                let _ = answer.send(labels.collect());
            }
        }
    }
}

/// Where a trace goes.
#[derive(Clone, Debug)]
pub struct TracePlan {
    /// This peer, with its nickname.
    pub own_label: String,
    /// The peer that has the destination, and whether frames to it go there; otherwise it only should have it.
    pub target: Option<(PeerName, bool)>,
    /// The ways there and back according to the topology.
    pub expected: [Vec<PeerName>; 2],
}

/// A plan for a destination; `mac` is its Ethernet address, if that is known.
fn plan(node: &Node, to: Ipv4Addr, mac: Option<MacAddr>) -> TracePlan {
    let own = node.name();
    let learnt = mac.and_then(|mac| node.mac_owner(mac)).map(|peer| (peer, true));
    let target = learnt.or_else(|| Some((registered(node, to).or_else(|| owner(node, to))?, false)));
    let expected = match target {
        Some((target, _)) => [node.expected_path(own, target), node.expected_path(target, own)],
        None => Default::default(),
    };
    TracePlan { own_label: node.peer_label(own), target, expected }
}

/// The peer whose container has a name with this address.
fn registered(node: &Node, address: Ipv4Addr) -> Option<PeerName> {
    let mut entries = node.registry()?.entries();
    entries.find(|entry| entry.addr == address && entry.is_live()).map(|entry| entry.origin)
}

/// The peer that gives out this address.
fn owner(node: &Node, address: Ipv4Addr) -> Option<PeerName> {
    let ring = node.allocator()?.ring();
    let address = u32::from(address);
    ring.owner_of(address).filter(|_| ring.range().contains(address))
}
