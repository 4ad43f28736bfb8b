//! What a trace has found, in words.

use std::collections::BTreeMap;

use weave_api::trace::{TraceHop, TraceLink, TraceVerdict};
use weave_trace::{Direction, Overlay, Place, Reason, Silence, Trace};
use weave_types::PeerName;

use crate::telemetry::printable::printable;

/// `NAME(NICK)` of peers.
pub(super) struct Labels(pub(super) BTreeMap<PeerName, String>);

impl Labels {
    pub(super) fn of(&self, peer: PeerName) -> String {
        self.0.get(&peer).map_or_else(|| peer.to_string(), |label| printable(label))
    }
}

/// The peers on the way.
pub(super) fn hops(trace: &Trace, direction: Direction, labels: &Labels) -> Vec<TraceHop> {
    let hop = |peer: &PeerName| {
        let link = trace.hop(direction, *peer).and_then(|hop| hop.next.as_ref().ok());
        let next = link.map(|link| TraceLink {
            peer: labels.of(link.peer),
            overlay: if link.carries_data { link.overlay } else { Overlay::None }.name().to_owned(),
            mtu: link.mtu,
            encrypted: link.encrypted,
            problem: printable(&link.problem),
        });
        TraceHop { peer: labels.of(*peer), silent: trace.silence(*peer).map(silence), next }
    };
    trace.path(direction).iter().map(hop).collect()
}

fn silence(silence: &Silence) -> String {
    match silence {
        Silence::Unsupported => "cannot be asked, its version has no traces".to_owned(),
        Silence::NoAnswer => "has not answered".to_owned(),
        Silence::Refused(why) => format!("does not look for the frames: {}", printable(why)),
    }
}

/// The verdict about a probe that was not answered.
pub(super) fn verdict(
    trace: &Trace,
    direction: Direction,
    place: Place,
    reason: &Reason,
    labels: &Labels,
) -> TraceVerdict {
    let (at, before) = match place {
        Place::At(peer) => (peer, None),
        Place::Between(from, to) => (from, Some(to)),
    };
    let (at_label, before_label) = (labels.of(at), before.map(|peer| labels.of(peer)));
    let place = match &before_label {
        None => format!("on the host of {at_label}"),
        Some(before) => format!("between {at_label} and {before}"),
    };
    let subject = match (direction, reason) {
        (_, Reason::NoAnswer) => "not answered",
        (Direction::There, _) => "lost",
        (Direction::Back, _) => "the answer was lost",
    };
    let mut text = format!("{subject} {place}: {}", words(reason, direction, labels));
    let silent = before.and_then(|peer| Some((peer, trace.silence(peer)?)));
    if let Some((peer, why)) = silent {
        text.push_str(&format!("; {} {}", labels.of(peer), silence(why)));
    }
    TraceVerdict {
        reason: reason.code().to_owned(),
        on_the_way_back: direction == Direction::Back,
        at: at_label,
        before: before_label,
        text,
    }
}

fn words(reason: &Reason, direction: Direction, labels: &Labels) -> String {
    let explained = |text: &str, why: &str| {
        if why.is_empty() { text.to_owned() } else { format!("{text} ({})", printable(why)) }
    };
    match reason {
        Reason::NotSent(why) => format!("it could not be sent: {}", printable(why)),
        Reason::NotEmitted => {
            "it did not arrive at the host's end of the container's interface; something in the container drops it"
                .to_owned()
        }
        Reason::Filtered(filter) => {
            format!("the bridge did not pass it on; look at what filters there: {}", printable(filter))
        }
        Reason::NotBridged => "the bridge did not pass it on, though no filter is known".to_owned(),
        Reason::AddressInUse(peer) => {
            let at = labels.of(*peer);
            format!("{at} has a container with this Ethernet address, too; most frames of one of them are dropped")
        }
        Reason::NoRoute(why) => printable(why),
        Reason::NoPath(problem) => explained("the connection does not carry frames", problem),
        Reason::Dropped(why) => format!("dropped by the router: {}", printable(why)),
        Reason::NotForwarded => {
            "it arrived there and did not leave; something between the network devices drops it".to_owned()
        }
        Reason::Underlay { overlay, only_large, problem } => {
            let what = if *only_large { "smaller packets pass, those of this size" } else { "packets" };
            let by = if *overlay == Overlay::None { String::new() } else { format!(" by {}", overlay.name()) };
            let text = format!(
                "{what} leave{by} and do not arrive; the network between the hosts or a firewall on them drops them"
            );
            explained(&text, problem)
        }
        Reason::TooBig(mtu) => format!("packets of more than {mtu} bytes do not pass, as the sender is told"),
        Reason::NoContainer => "no container there has the address".to_owned(),
        Reason::InterfaceDown(port) => format!("the container's interface behind {port} is down"),
        Reason::NoAnswer if direction == Direction::There => {
            "it was passed to the container, which has not answered; look at its firewall and its routes".to_owned()
        }
        Reason::NoAnswer => "it was passed to the container that had asked".to_owned(),
    }
}
