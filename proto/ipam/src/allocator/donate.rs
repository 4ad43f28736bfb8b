//! Space that changes hands: asking for it, and giving it (docs/spec/ipam.md 8.10).

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use weave_types::{Now, PeerName};

use super::{Allocator, Stale};
use crate::address::AddrRange;
use crate::message::Unicast;
use crate::output::{Event, Output};

/// Whom we have asked for what.
///
/// However many requests wait for a range, one peer at a time is asked for it, and none twice before the next tick, unless
/// something came of it: donors that answer without giving, as 2.8.1 does when only the ends of a subnet are left, would
/// otherwise be asked without end (docs/spec/ipam.md 15.8).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asks(BTreeMap<AddrRange, Ask>);

#[derive(Clone, Debug, Default, PartialEq)]
struct Ask {
    /// Whose answer is awaited.
    outstanding: Option<PeerName>,
    /// Those asked in this tick.
    tried: BTreeSet<PeerName>,
    /// Those of them that may still say no: what they know may arrive earlier, and answers nothing but that there is one.
    undecided: BTreeSet<PeerName>,
    /// Those whose last answer was no.
    denied: BTreeSet<PeerName>,
}

impl Asks {
    fn of(&mut self, range: AddrRange) -> &mut Ask {
        self.0.entry(range).or_default()
    }

    /// Answers may have been lost, and others may have released something.
    pub(super) fn new_tick(&mut self) {
        for ask in self.0.values_mut() {
            ask.outstanding = None;
            ask.tried.clear();
            ask.undecided.clear();
        }
    }

    /// An address of the range was obtained.
    pub(super) fn progress(&mut self, range: AddrRange) {
        self.0.remove(&range);
    }

    /// A peer has answered: on `range`, or in general.
    fn answered(&mut self, by: PeerName, range: Option<AddrRange>, denied: bool) -> bool {
        let mut awaited = false;
        for (asked, ask) in &mut self.0 {
            if ask.outstanding == Some(by) && range.is_none_or(|range| range == *asked) {
                ask.outstanding = None;
                awaited = true;
                if denied {
                    ask.denied.insert(by);
                }
            }
        }
        awaited
    }

    /// A peer has denied a range; whether it was asked for that, and has not said no since.
    pub(super) fn decided(&mut self, by: PeerName, range: AddrRange) -> bool {
        self.0.get_mut(&range).is_some_and(|ask| ask.undecided.remove(&by))
    }

    /// The peer will not answer.
    pub(super) fn lost(&mut self, peer: PeerName) {
        self.answered(peer, None, false);
        for ask in self.0.values_mut() {
            ask.undecided.remove(&peer);
        }
    }

    /// Keeps what is still waited for.
    fn retain(&mut self, waited_for: impl Fn(AddrRange) -> bool) {
        self.0.retain(|range, _| waited_for(*range));
    }

    /// Those whose last answer was no.
    pub(super) fn denied(&self, range: AddrRange) -> BTreeSet<PeerName> {
        self.0.get(&range).map(|ask| ask.denied.clone()).unwrap_or_default()
    }
}

impl Allocator {
    /// Asks one of those who have free space in a range.
    pub(super) fn ask_for(&mut self, range: AddrRange) {
        let unlimited = self.config.policy.unlimited_requests;
        let ask = self.asks.of(range);
        if ask.outstanding.is_some() && !unlimited {
            return;
        }
        let tried = if unlimited { BTreeSet::new() } else { ask.tried.clone() };
        let mut best: Option<(f64, PeerName)> = None;
        for (peer, weight) in self.ring.candidates(range) {
            if tried.contains(&peer) || !self.reachable.contains_key(&peer) {
                continue;
            }
            // Who has more is asked first more often.
            let score = weight as f64 * self.rng.random::<f64>();
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, peer));
            }
        }
        if let Some((_, peer)) = best {
            self.send_request(peer, range);
        }
    }

    /// Asks a certain peer, unless it was asked in this tick.
    pub(super) fn ask(&mut self, peer: PeerName, range: AddrRange) {
        if !self.asks.of(range).tried.contains(&peer) {
            self.send_request(peer, range);
        }
    }

    fn send_request(&mut self, to: PeerName, range: AddrRange) {
        let ask = self.asks.of(range);
        ask.outstanding = Some(to);
        ask.tried.insert(to);
        ask.undecided.insert(to);
        self.output(Output::Unicast { to, payload: Unicast::Request(range).encode() });
    }

    /// A peer has said something to us alone: an answer, if we have asked it.
    pub(super) fn answered(&mut self, by: PeerName, range: Option<AddrRange>, denied: bool, now: Now) {
        if self.asks.answered(by, range, denied) && !self.config.policy.unlimited_requests {
            self.retry(now);
        }
    }

    /// Somebody asks for some of these addresses.
    pub(super) fn handle_space_request(&mut self, from: PeerName, range: AddrRange, now: Now) {
        if self.ring.is_empty() || from == self.me() {
            // It will ask again.
            return;
        }
        if !self.is_reachable(from) && !self.config.policy.unchecked_donations {
            // What is given to a peer that has died since it asked is lost until somebody removes that peer again. One
            // that is on its way up asks again.
            return;
        }
        let Some(gift) = self.gift(range) else {
            // Whoever asks may have heard that this is ours before we do. That is no denial: the asker goes on waiting, and
            // asks again with its next tick, as 2.8.1 does, too.
            let ours = self.ring.ranges_owned_by(self.me()).into_iter().any(|own| own.overlaps(range));
            if ours || self.config.policy.unchecked_donations {
                self.output(Output::Unicast { to: from, payload: Unicast::Denied(range).encode() });
            }
            self.send_state(from, now);
            return;
        };
        self.space.remove(gift);
        self.ring.grant(gift, from);
        self.ring_unsaved = true;
        self.stale = Stale::All;
        // On the disk before anybody hears of it: were it forgotten, two peers would own it.
        self.broadcast(now);
        self.send_state(from, now);
        self.event(Event::Donated { to: from, range: gift });
    }

    /// What to give of a range.
    ///
    /// The ends of a subnet are of no use to who asks for it. 2.8.1 gives them all the same when there is nothing else;
    /// then all who are in want pass them round (docs/spec/ipam.md 15.8).
    fn gift(&self, range: AddrRange) -> Option<AddrRange> {
        if self.leaving {
            return None;
        }
        let universe = self.config.range.range();
        let offer = |range: AddrRange| self.space.offer(range.intersection(universe), &self.disputed);
        let first = offer(range)?;
        if range.size() < 4 || self.config.policy.unchecked_donations {
            return Some(first);
        }
        let hosts = AddrRange::new(range.start() + 1, range.end() - 1);
        if first.overlaps(hosts) { Some(first) } else { offer(hosts) }
    }

    /// Drops the memory of requests that nobody waits for any more.
    pub(super) fn forget_asks(&mut self) {
        use crate::address::ipv4;
        let (claims, allocations) = (&self.claims, &self.allocations);
        self.asks.retain(|range| {
            allocations.iter().any(|a| a.subnet.range() == range)
                || claims.iter().any(|c| ipv4(c.cidr) == Some(range.start()) && range.size() == 1)
        });
    }
}
