//! What became of a probe, from what all peers have seen.
//!
//! The peer that has seen it last, on the way there or, if it was answered, on the way back, is where it was lost, or in front of the
//! next one. What that peer knows about its connections and its containers says why.

use weave_types::PeerName;

use crate::flow::{Direction, Probe};
use crate::message::{Delivery, Link, NoLink, Overlay, Sighting};
use crate::trace::Trace;

/// What the container that sent a probe has seen of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It could not be sent.
    NotSent(String),
    /// The answer has arrived.
    Answered,
    /// A peer has answered that packets of at most this size pass.
    TooBig(u16),
    /// Nothing has arrived.
    Unanswered,
}

/// What became of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was answered.
    Answered,
    /// It, or its answer, was lost.
    Lost {
        /// Whether it was lost or its answer.
        direction: Direction,
        /// Where.
        place: Place,
        /// Why.
        reason: Reason,
    },
}

/// Where a frame was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the host of this peer.
    At(PeerName),
    /// Between these peers. If they are not neighbours those between them cannot be asked.
    Between(PeerName, PeerName),
}

/// Why a frame was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The container could not send it.
    NotSent(String),
    /// It did not reach the host's end of the container's interface.
    NotEmitted,
    /// The bridge did not pass it on, and this can drop frames there.
    Filtered(String),
    /// The bridge did not pass it on, although nothing is known that drops frames there.
    NotBridged,
    /// Another peer has the Ethernet address that it came from.
    AddressInUse(PeerName),
    /// The peer has no connection that leads on.
    NoRoute(String),
    /// The connection that leads on does not carry frames.
    NoPath(String),
    /// The router has dropped it.
    Dropped(String),
    /// It arrived, and did not leave.
    NotForwarded,
    /// It left, and did not arrive.
    Underlay {
        /// How it was carried.
        overlay: Overlay,
        /// Whether smaller frames pass.
        only_large: bool,
        /// What is wrong with the connection; may be empty.
        problem: String,
    },
    /// Packets of at most this size pass.
    TooBig(u16),
    /// No container there has the address.
    NoContainer,
    /// The interface of the container is down; this is its other end.
    InterfaceDown(String),
    /// It was passed to the container, which did not answer.
    NoAnswer,
}

impl Reason {
    /// A short word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Reason::NotSent(_) => "not-sent",
            Reason::NotEmitted => "not-emitted",
            Reason::Filtered(_) => "host-filter",
            Reason::NotBridged => "bridge",
            Reason::AddressInUse(_) => "address-in-use",
            Reason::NoRoute(_) => "no-route",
            Reason::NoPath(_) => "no-path",
            Reason::Dropped(_) => "dropped",
            Reason::NotForwarded => "not-forwarded",
            Reason::Underlay { .. } => "underlay",
            Reason::TooBig(_) => "too-big",
            Reason::NoContainer => "no-container",
            Reason::InterfaceDown(_) => "interface-down",
            Reason::NoAnswer => "no-answer",
        }
    }
}

/// How far a frame got on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Entered,
    /// Between bridge and router.
    Handed,
    Left,
}

/// What became of a probe. `smaller_passed` tells whether smaller ones were answered.
pub fn conclude(trace: &Trace, probe: Probe, outcome: &Outcome, smaller_passed: bool) -> Verdict {
    let lost = |direction, place, reason| Verdict::Lost { direction, place, reason };
    let origin = Place::At(trace.config().origin);
    let way = |direction| Way { trace, probe, direction, smaller_passed };
    // Some frames pass despite a conflict, so an answer does not mean that there is none.
    let conflict =
        Direction::ALL.into_iter().find_map(|direction| Some((direction, way(direction).conflict()?)));
    match (outcome, conflict) {
        (Outcome::NotSent(why), _) => lost(Direction::There, origin, Reason::NotSent(why.clone())),
        (_, Some((direction, (peer, other)))) => {
            lost(direction, Place::At(peer), Reason::AddressInUse(other))
        }
        (Outcome::Answered, None) => Verdict::Answered,
        (Outcome::TooBig(mtu), None) => {
            lost(Direction::There, narrowest(trace).unwrap_or(origin), Reason::TooBig(*mtu))
        }
        (Outcome::Unanswered, None) => {
            // If the answer was seen, it is what was lost.
            for direction in [Direction::Back, Direction::There] {
                let way = way(direction);
                if let Some(furthest) = way.furthest() {
                    let (place, reason) = way.loss(furthest);
                    return lost(direction, place, reason);
                }
            }
            lost(Direction::There, origin, Reason::NotEmitted)
        }
    }
}

/// The connection on the way there that carries the smallest packets.
fn narrowest(trace: &Trace) -> Option<Place> {
    let link = |peer: &PeerName| {
        let link = trace.hop(Direction::There, *peer)?.next.as_ref().ok().filter(|link| link.mtu > 0)?;
        Some((link.mtu, Place::Between(*peer, link.peer)))
    };
    let links = trace.path(Direction::There).iter().filter_map(link);
    links.min_by_key(|(mtu, _)| *mtu).map(|(_, place)| place)
}

/// The way of a probe, or of its answer.
struct Way<'a> {
    trace: &'a Trace,
    probe: Probe,
    direction: Direction,
    smaller_passed: bool,
}

impl Way<'_> {
    fn path(&self) -> &[PeerName] {
        self.trace.path(self.direction)
    }

    fn stage(&self, index: usize) -> Option<Stage> {
        let report = self.trace.report(*self.path().get(index)?)?;
        let has = |sighting| report.sightings.has(self.probe, self.direction, sighting);
        let (is_first, is_last) = (index == 0, index + 1 == self.path().len());
        let (entry, handed, exit) = match (is_first, is_last && self.is_complete()) {
            (true, true) => (Sighting::FromContainer, None, Sighting::ToContainer),
            (true, false) => (Sighting::FromContainer, Some(Sighting::FromBridge), Sighting::ToOverlay),
            (false, true) => (Sighting::FromOverlay, Some(Sighting::ToBridge), Sighting::ToContainer),
            (false, false) => (Sighting::FromOverlay, None, Sighting::ToOverlay),
        };
        let stages = [(Stage::Left, Some(exit)), (Stage::Handed, handed), (Stage::Entered, Some(entry))];
        stages.into_iter().find(|(_, sighting)| sighting.is_some_and(has)).map(|(stage, _)| stage)
    }

    /// Whether the path ends where it should.
    fn is_complete(&self) -> bool {
        let config = self.trace.config();
        let end = if self.direction == Direction::There { config.target } else { config.origin };
        self.path().last() == Some(&end)
    }

    /// The last peer that has seen the frame, and how far it got there.
    fn furthest(&self) -> Option<(usize, Stage)> {
        (0..self.path().len()).rev().find_map(|index| Some((index, self.stage(index)?)))
    }

    /// The first peer of the way and another one where the Ethernet address of the sender is. The former drops most of the sender's frames.
    fn conflict(&self) -> Option<(PeerName, PeerName)> {
        let [first, _, ..] = self.path() else { return None };
        let hop = self.trace.hop(self.direction, *first)?;
        let sender_at = match self.direction {
            Direction::There => hop.source_at,
            Direction::Back => hop.destination_at,
        };
        // Only a frame that has come to the router shows that the sender is there, too.
        let other = sender_at.filter(|other| other != first && self.stage(0) >= Some(Stage::Handed))?;
        Some((*first, other))
    }

    fn loss(&self, (index, stage): (usize, Stage)) -> (Place, Reason) {
        let path = self.path();
        let peer = path[index];
        let is_last = index + 1 == path.len() && self.is_complete();
        let at = Place::At(peer);
        let report = self.trace.report(peer);
        // On one host the router rightly drops what the bridge has delivered.
        let mut dropped = report.iter().flat_map(|r| &r.dropped).filter(|_| path.len() > 1);
        if let Some((_, _, why)) = dropped.find(|(p, d, _)| (*p, *d) == (self.probe, self.direction)) {
            return (at, Reason::Dropped(why.clone()));
        }
        let delivery = report.map(|report| &report.delivery[self.direction as usize]);
        if is_last {
            return (at, self.undelivered(stage, delivery, index > 0, report.map_or("", |r| &r.filter)));
        }
        if index == 0 && stage == Stage::Entered {
            return (at, filtered(report.map_or("", |r| &r.filter)));
        }
        let hop = self.trace.hop(self.direction, peer);
        match hop.map(|hop| &hop.next) {
            Some(Err(NoLink::NoRoute(why))) => (at, Reason::NoRoute(why.clone())),
            Some(Ok(link)) if !link.carries_data => {
                (Place::Between(peer, link.peer), Reason::NoPath(link.problem.clone()))
            }
            Some(Ok(link)) if stage == Stage::Left => self.lost_between(index, Some(link)),
            _ if stage == Stage::Left => self.lost_between(index, None),
            _ => (at, Reason::NotForwarded),
        }
    }

    /// The frame left the peer at `index`, and the next one that was asked has not seen it.
    fn lost_between(&self, index: usize, link: Option<&Link>) -> (Place, Reason) {
        let path = self.path();
        let next = path[index + 1..].iter().find(|peer| self.trace.report(**peer).is_some()).or(path.last());
        let place = next.map_or(Place::At(path[index]), |next| Place::Between(path[index], *next));
        let reason = Reason::Underlay {
            overlay: link.map_or(Overlay::None, |link| link.overlay),
            only_large: self.probe == Probe::Full && self.smaller_passed,
            problem: link.map(|link| link.problem.clone()).unwrap_or_default(),
        };
        (place, reason)
    }

    /// The frame has arrived where the container is.
    fn undelivered(
        &self,
        stage: Stage,
        delivery: Option<&Delivery>,
        by_overlay: bool,
        filter: &str,
    ) -> Reason {
        match (stage, delivery) {
            (Stage::Left, _) => Reason::NoAnswer,
            (_, Some(Delivery::Nowhere)) => Reason::NoContainer,
            (_, Some(Delivery::Port(port))) if !port.up || !port.running => {
                Reason::InterfaceDown(port.name.clone())
            }
            // What bypasses the bridge is seen by the container alone.
            (Stage::Entered, Some(Delivery::Port(port))) if port.bypasses => Reason::NoAnswer,
            (Stage::Entered, _) if by_overlay => Reason::NotForwarded,
            _ => filtered(filter),
        }
    }
}

fn filtered(filter: &str) -> Reason {
    if filter.is_empty() { Reason::NotBridged } else { Reason::Filtered(filter.to_owned()) }
}
