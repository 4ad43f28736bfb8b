//! Peers in a line that answer the questions of a trace, and lose frames where a test wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use weave_trace::{
    Delivery, Direction, Endpoint, Flow, Hop, Link, Message, NoLink, Output, Overlay, Port, Probe, Report,
    Sighting, Trace, TraceConfig,
};
use weave_types::{Instant, MacAddr, PeerName};

pub(crate) fn peer(n: u64) -> PeerName {
    PeerName::from_number(n).unwrap()
}

/// Peers 1 to `peers`; the source is at 1, the destination at the last one.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) peers: u64,
    /// They do not answer.
    pub(crate) mute: BTreeSet<PeerName>,
    /// Their version has no traces.
    pub(crate) old: BTreeSet<PeerName>,
    pub(crate) refusing: BTreeSet<PeerName>,
    /// Changes what a peer answers.
    pub(crate) hops: BTreeMap<(PeerName, Direction), Hop>,
    pub(crate) reports: BTreeMap<PeerName, Report>,
    pub(crate) asked: Vec<(PeerName, Message)>,
    pub(crate) took: Duration,
}

pub(crate) fn link(to: u64) -> Link {
    Link {
        peer: peer(to),
        carries_data: true,
        overlay: Overlay::Fastdp,
        mtu: 1376,
        encrypted: false,
        traces: true,
        problem: String::new(),
    }
}

pub(crate) fn port() -> Port {
    Port { name: "vethwepl1".to_owned(), up: true, running: true, bypasses: false }
}

impl Network {
    pub(crate) fn new(peers: u64) -> Network {
        let mut network = Network {
            peers,
            mute: BTreeSet::new(),
            old: BTreeSet::new(),
            refusing: BTreeSet::new(),
            hops: BTreeMap::new(),
            reports: BTreeMap::new(),
            asked: Vec::new(),
            took: Duration::ZERO,
        };
        for n in 1..=peers {
            let mut report = Report::default();
            report.delivery[0] = if n == peers { Delivery::Port(port()) } else { Delivery::Nowhere };
            report.delivery[1] = if n == 1 { Delivery::Port(port()) } else { Delivery::Nowhere };
            network.reports.insert(peer(n), report);
        }
        network
    }

    pub(crate) fn hop(&self, at: PeerName, direction: Direction) -> Hop {
        if let Some(hop) = self.hops.get(&(at, direction)) {
            return hop.clone();
        }
        let n = at.number();
        let next = match direction {
            Direction::There if n < self.peers => Ok(link(n + 1)),
            Direction::Back if n > 1 => Ok(link(n - 1)),
            _ => Err(NoLink::End),
        };
        let next = next.map(|link| Link { traces: !self.old.contains(&link.peer), ..link });
        Hop { source_at: Some(peer(1)), destination_at: Some(peer(self.peers)), next }
    }

    /// A frame is seen up to here: the last peer and the last place there.
    pub(crate) fn seen(&mut self, probe: Probe, direction: Direction, upto: (u64, Sighting)) {
        let way: Vec<u64> = match direction {
            Direction::There => (1..=self.peers).collect(),
            Direction::Back => (1..=self.peers).rev().collect(),
        };
        let (first, last) = (way[0], way[way.len() - 1]);
        for n in way {
            let mut places = Vec::new();
            if n == first {
                places.extend([Sighting::FromContainer, Sighting::FromBridge]);
            } else {
                places.push(Sighting::FromOverlay);
            }
            if n == last {
                places.extend([Sighting::ToBridge, Sighting::ToContainer]);
            } else {
                places.push(Sighting::ToOverlay);
            }
            let report = self.reports.get_mut(&peer(n)).unwrap();
            for place in places {
                report.sightings.note(probe, direction, place);
                if (n, place) == upto {
                    return;
                }
            }
        }
        panic!("{upto:?} is not on the way");
    }

    pub(crate) fn config(&self) -> TraceConfig {
        let end = |n| Endpoint { mac: MacAddr([2, 0, 0, 0, 0, n]), ip: Ipv4Addr::new(10, 32, 0, n) };
        let way: Vec<PeerName> = (1..=self.peers).map(peer).collect();
        TraceConfig {
            id: 77,
            origin: peer(1),
            target: peer(self.peers),
            flow: Flow { source: end(1), destination: end(2), id: 5 },
            expected: [way.clone(), way.into_iter().rev().collect()],
        }
    }

    /// Runs a trace to its end.
    pub(crate) fn run(&mut self) -> Trace {
        let mut now = Instant::ORIGIN;
        let mut trace = Trace::new(self.config(), now);
        loop {
            match trace.poll_output() {
                Some(Output::Send(to, message)) => {
                    self.asked.push((to, message.clone()));
                    if let Some(answer) = self.answer(to, &message) {
                        trace.handle_message(to, answer, now);
                    }
                }
                Some(Output::Ready) => trace.collect(now),
                Some(Output::Done) => break,
                None => {
                    let (at, _) = trace.poll_timeout().expect("it waits for something");
                    now = at;
                    trace.handle_timeout(now);
                }
            }
        }
        self.took = now.since_origin();
        assert_eq!((trace.poll_output(), trace.poll_timeout()), (None, None));
        trace
    }

    fn answer(&self, at: PeerName, message: &Message) -> Option<Message> {
        if self.mute.contains(&at) || self.old.contains(&at) {
            return None;
        }
        match *message {
            Message::Watch { id, .. } if self.refusing.contains(&at) => {
                Some(Message::Refused { id, reason: "busy".to_owned() })
            }
            Message::Watch { id, toward, .. } => {
                let direction = if toward == peer(1) { Direction::Back } else { Direction::There };
                Some(Message::Hop { id, toward, hop: self.hop(at, direction) })
            }
            Message::Collect { id } => Some(Message::Report { id, report: self.reports[&at].clone() }),
            _ => None,
        }
    }
}
