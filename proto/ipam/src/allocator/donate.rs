//! Requests for space of other peers, and donations to them (docs/spec/ipam.md 8.10).

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use weave_types::{Now, PeerName};

use super::{Allocator, StaleFreeCounts};
use crate::address::AddrRange;
use crate::message::Unicast;
use crate::output::{Event, Output};

/// Requests for space that were sent to other peers.
///
/// At most one request per range is outstanding, however many containers wait for it, and no peer is asked twice for
/// the same range in one tick unless an address was obtained. Otherwise donors that answer without giving anything
/// usable, such as 2.8.1 when only the ends of a subnet are free, would be asked in an endless loop
/// (docs/spec/ipam.md 15.8).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct SpaceRequests(BTreeMap<AddrRange, SpaceRequest>);

#[derive(Clone, Debug, Default, PartialEq)]
struct SpaceRequest {
    /// The peer whose answer is outstanding.
    awaited_from: Option<PeerName>,
    /// Peers that were asked in this tick.
    asked: BTreeSet<PeerName>,
    /// Peers that were asked in this tick and may still send a denial. Their state may arrive before the denial and
    /// does not answer a claim.
    may_deny: BTreeSet<PeerName>,
    /// Peers whose last answer was a denial.
    denied: BTreeSet<PeerName>,
}

impl SpaceRequests {
    fn of(&mut self, range: AddrRange) -> &mut SpaceRequest {
        self.0.entry(range).or_default()
    }

    /// Allows all peers to be asked again: answers may have been lost, and peers may have released addresses.
    pub(super) fn new_tick(&mut self) {
        for request in self.0.values_mut() {
            request.awaited_from = None;
            request.asked.clear();
            request.may_deny.clear();
        }
    }

    /// An address of the range was obtained.
    pub(super) fn satisfied(&mut self, range: AddrRange) {
        self.0.remove(&range);
    }

    /// A peer has answered: for `range`, or for all ranges. Returns whether an answer was outstanding.
    fn answered(&mut self, by: PeerName, range: Option<AddrRange>, denied: bool) -> bool {
        let mut awaited = false;
        for (requested, request) in &mut self.0 {
            if request.awaited_from == Some(by) && range.is_none_or(|range| range == *requested) {
                request.awaited_from = None;
                awaited = true;
                if denied {
                    request.denied.insert(by);
                }
            }
        }
        awaited
    }

    /// Whether a denial of `range` by this peer is expected. A second denial is not.
    pub(super) fn take_denial(&mut self, by: PeerName, range: AddrRange) -> bool {
        self.0.get_mut(&range).is_some_and(|request| request.may_deny.remove(&by))
    }

    /// The peer was disconnected and will not answer.
    pub(super) fn peer_lost(&mut self, peer: PeerName) {
        self.answered(peer, None, false);
        for request in self.0.values_mut() {
            request.may_deny.remove(&peer);
        }
    }

    fn retain(&mut self, waited_for: impl Fn(AddrRange) -> bool) {
        self.0.retain(|range, _| waited_for(*range));
    }

    /// Peers whose last answer was a denial.
    pub(super) fn denied(&self, range: AddrRange) -> BTreeSet<PeerName> {
        self.0.get(&range).map(|request| request.denied.clone()).unwrap_or_default()
    }
}

impl Allocator {
    /// Requests space in `range` from a peer that has free addresses there.
    pub(super) fn request_space(&mut self, range: AddrRange) {
        let unlimited = self.config.policy.unlimited_requests;
        let request = self.space_requests.of(range);
        if request.awaited_from.is_some() && !unlimited {
            return;
        }
        let asked = if unlimited { BTreeSet::new() } else { request.asked.clone() };
        let mut best: Option<(f64, PeerName)> = None;
        for (peer, weight) in self.ring.candidates(range) {
            if asked.contains(&peer) || !self.reachable.contains_key(&peer) {
                continue;
            }
            // A random choice, weighted by the number of free addresses.
            let score = weight as f64 * self.rng.random::<f64>();
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, peer));
            }
        }
        if let Some((_, peer)) = best {
            self.send_request(peer, range);
        }
    }

    /// Requests space in `range` from a specific peer, unless it was asked in this tick.
    pub(super) fn request_space_from(&mut self, peer: PeerName, range: AddrRange) {
        if !self.space_requests.of(range).asked.contains(&peer) {
            self.send_request(peer, range);
        }
    }

    fn send_request(&mut self, to: PeerName, range: AddrRange) {
        let request = self.space_requests.of(range);
        request.awaited_from = Some(to);
        request.asked.insert(to);
        request.may_deny.insert(to);
        self.output(Output::Unicast { to, payload: Unicast::Request(range).encode() });
    }

    /// Handles a unicast message that may answer a request.
    pub(super) fn answered(&mut self, by: PeerName, range: Option<AddrRange>, denied: bool) {
        if self.space_requests.answered(by, range, denied) && !self.config.policy.unlimited_requests {
            self.retry();
        }
    }

    /// Handles another peer's request for space: donates some, or denies.
    pub(super) fn handle_space_request(&mut self, from: PeerName, range: AddrRange, now: Now) {
        if self.ring.is_empty() || from == self.me() {
            // The requester repeats the request.
            return;
        }
        if !self.is_reachable(from) && !self.config.policy.unchecked_donations {
            // A donation to a peer that has died since it sent the request would be lost until that peer is removed
            // again. A peer that is just connecting repeats the request.
            return;
        }
        let Some(donation) = self.donation(range) else {
            // The requester may know of a donation to this peer before this peer does. Without a denial it repeats
            // the request with its next tick, as with 2.8.1.
            let ours = self.ring.ranges_owned_by(self.me()).into_iter().any(|own| own.overlaps(range));
            if ours || self.config.policy.unchecked_donations {
                self.output(Output::Unicast { to: from, payload: Unicast::Denied(range).encode() });
            }
            self.send_state(from, now);
            return;
        };
        self.space.remove(donation);
        self.ring.grant(donation, from);
        self.ring_unsaved = true;
        self.stale_free_counts = StaleFreeCounts::All;
        // The donation is stored before it is sent: if it were forgotten, two peers would own the range.
        self.broadcast(now);
        self.send_state(from, now);
        self.event(Event::Donated { to: from, range: donation });
    }

    /// The part of `range` to donate.
    ///
    /// A requester cannot use the first and last address of a subnet. 2.8.1 donates them nevertheless if nothing else
    /// is free, and peers without space then pass them around (docs/spec/ipam.md 15.8).
    fn donation(&self, range: AddrRange) -> Option<AddrRange> {
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

    /// Forgets requests for ranges that no container waits for.
    pub(super) fn drop_stale_requests(&mut self) {
        use crate::address::ipv4;
        let (claims, allocations) = (&self.claims, &self.allocations);
        self.space_requests.retain(|range| {
            allocations.iter().any(|a| a.subnet.range() == range)
                || claims.iter().any(|c| ipv4(c.cidr) == Some(range.start()) && range.size() == 1)
        });
    }
}
