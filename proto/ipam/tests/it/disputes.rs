//! Conflicts: another peer claims the same ranges, or divides another range.

use crate::support::peer::{Peer, Sent, subnet};
use weave_ipam::message::StateMessage;
use weave_ipam::{AddrRange, Config, Conflict, Entry, HandOver, Init, RequestError, Ring};
use weave_types::{PeerName, PeerUid};

const NET: &str = "10.2.0.0/24";
const OTHER: &str = "10.3.0.0/24";

fn name(n: u64) -> PeerName {
    PeerName::from_number(n).unwrap()
}

fn elector(n: u64, net: &str) -> Config {
    let init = Init::Consensus(Some(3));
    Config { init, ..Config::new(name(n), PeerUid(n), format!("host{n}"), subnet(net)) }
}

/// One of three peers among which the range was divided; it knows the others.
fn seeded(n: u64) -> Peer {
    let init = Init::Seed((1..=3).map(name).collect());
    let mut peer = Peer::new(Config { init, ..elector(n, NET) });
    peer.set_reachable(&[name(1), name(2), name(3)]);
    peer.take_sent();
    peer
}

/// The state of peer `from`, in which the first range belongs to `by`.
fn taken(of: &Ring, from: u64, by: u64) -> Sent {
    let mut entries: Vec<Entry> = of.entries().to_vec();
    (entries[0].peer, entries[0].version) = (name(by), 101);
    let ring = Ring::from_parts(of.range(), name(from), entries, of.seeds().to_vec());
    Sent::Broadcast(StateMessage { ring: Some(ring), ..StateMessage::default() }.encode())
}

/// Peer 1 uses addresses that peer 2 has taken over, and `from` tells it so.
fn disputed(from: u64) -> Peer {
    disputed_by(2, from)
}

fn disputed_by(claimant: u64, from: u64) -> Peer {
    let mut peer = seeded(1);
    peer.allocate("c", NET);
    let theirs = taken(peer.allocator.ring(), from, claimant);
    peer.receive(name(from), &theirs).unwrap_err();
    assert_eq!(peer.allocator.status(peer.now()).conflicts.len(), 1);
    peer.take_sent();
    peer
}

/// A message of the first election arrives after the second has begun. Found by the simulator (addresses, seeds
/// 486198, 629671 and 846888): the second range was then divided in two ways.
#[test]
fn electors_of_different_ranges_do_not_mix() {
    let decided = |net: &str, receiver: &str| {
        let mut electors = [Peer::new(elector(1, net)), Peer::new(elector(2, net))];
        for peer in &mut electors {
            peer.set_reachable(&[name(1), name(2), name(3)]);
        }
        let mut third = Peer::new(elector(3, receiver));
        third.set_reachable(&[name(1), name(2), name(3)]);
        let waiting = third.prime();
        electors[0].prime();
        // The two electors agree; the third one receives all of their messages.
        for _ in 0..10 {
            for (from, to) in [(0, 1), (1, 0)] {
                for sent in electors[from].take_sent() {
                    let src = name(from as u64 + 1);
                    let _ = third.receive(src, &sent);
                    let _ = electors[to].receive(src, &sent);
                }
            }
        }
        assert!(electors.iter().all(|peer| !peer.allocator.ring().is_empty()));
        (third.result(waiting), third)
    };
    let (result, third) = decided(NET, NET);
    assert_eq!((result.as_str(), third.allocator.ring().seeds().len()), ("ok", 2));
    let (result, third) = decided(NET, OTHER);
    assert_eq!(result, "pending");
    assert!(third.allocator.ring().is_empty());
    // The third one knows of the conflict, although no peer has a ring of its range.
    let conflicts = third.allocator.status(third.now()).conflicts;
    let range = |net| subnet(net).range();
    let expected = Conflict::Range { received: range(NET), ours: range(OTHER) };
    assert!(conflicts.iter().all(|c| c.conflict == expected) && conflicts.len() == 2, "{conflicts:?}");
}

#[test]
fn range_conflict_ends_when_the_ranges_agree() {
    let mut peer = Peer::new(elector(1, NET));
    peer.set_reachable(&[name(1), name(2)]);
    let say = |net| {
        let range = Some(subnet(net).range());
        Sent::Broadcast(StateMessage { range, ..StateMessage::default() }.encode())
    };
    let conflicts = |peer: &Peer| peer.allocator.status(peer.now()).conflicts.len();
    peer.receive(name(2), &say(OTHER)).unwrap();
    assert_eq!(conflicts(&peer), 1);
    assert!(peer.disk.election.is_none(), "no reason to vote");
    peer.receive(name(2), &say(NET)).unwrap();
    assert_eq!(conflicts(&peer), 0);
    assert!(peer.disk.election.is_some());
}

/// A promise in the election over one range does not bind in the election over another.
#[test]
fn promise_is_valid_for_one_range() {
    let mut before = Peer::new(elector(1, NET));
    before.prime();
    let stored = before.disk.election.clone().unwrap();
    let again = |net| {
        let mut config = elector(1, net);
        config.uid = PeerUid(77);
        let mut peer = Peer::restored(config, before.disk.clone());
        peer.prime();
        peer.disk.election.clone().unwrap()
    };
    assert_eq!(again(NET).elector, stored.elector);
    assert_eq!((again(OTHER).elector.uid, again(OTHER).range), (PeerUid(77), subnet(OTHER).range()));
}

/// The removed peer had claimed a range before it left. Found by the simulator (addresses, seed 585395): the range
/// stayed disputed until the next restart.
#[test]
fn removing_the_claimant_ends_the_dispute() {
    // Peer 3 has reported the take-over by peer 2, and both are gone.
    let mut peer = disputed(3);
    peer.set_reachable(&[name(1)]);
    let waiting = peer.allocate("d", NET);
    assert_eq!(peer.result(waiting), "pending");
    let mut remove = |n: u64| {
        let now = peer.now();
        let gained = peer.allocator.remove_peer(&name(n).to_string(), false, now).unwrap();
        peer.drain();
        (gained, peer.allocator.status(now).conflicts.len(), peer.result(waiting) == "pending")
    };
    // Peer 3 only reported it; peer 2 may be using the range.
    let (gained, conflicts, _) = remove(3);
    assert!(gained > 0);
    assert_eq!(conflicts, 1);
    let (_, conflicts, waits) = remove(2);
    assert_eq!((conflicts, waits), (0, false));
}

/// The peer to remove owns nothing in the ring of the peer that removes it.
#[test]
fn claimant_without_ranges_can_be_removed() {
    let mut peer = disputed(3);
    peer.set_reachable(&[name(1), name(3)]);
    let now = peer.now();
    peer.allocator.remove_peer(&name(2).to_string(), false, now).unwrap();
    peer.drain();
    let theirs = taken(peer.allocator.ring(), 3, 2);
    peer.receive(name(3), &theirs).unwrap_err();
    assert_eq!(peer.allocator.status(now).conflicts.len(), 1);
    peer.set_reachable(&[name(1), name(2), name(3)]);
    assert!(peer.allocator.remove_peer(&name(2).to_string(), false, now).is_err(), "it is there");
    peer.set_reachable(&[name(1), name(3)]);
    assert_eq!(peer.allocator.remove_peer(&name(2).to_string(), false, now), Ok(0));
    assert!(peer.allocator.status(now).conflicts.is_empty());
}

/// Disputed ranges go to their claimant, which may be using them.
#[test]
fn leaving_peer_gives_disputed_ranges_to_the_claimant() {
    for claimant in [2, 3] {
        let mut peer = disputed_by(claimant, claimant);
        let range = AddrRange::new(subnet(NET).range().start(), peer.allocator.ring().entries()[1].token);
        let now = peer.now();
        let HandOver::To { peer: new_owner, .. } = peer.allocator.leave(now) else {
            panic!("no range was transferred")
        };
        peer.drain();
        // The result names the claimant if everything was disputed. Found by the simulator (addresses over nodes,
        // seed 284750).
        assert_eq!(new_owner, name(claimant));
        let ring = peer.allocator.ring();
        assert_eq!(ring.owner_of(range.start()), Some(name(claimant)));
        assert_eq!(ring.owner_of(range.end() - 1), Some(name(claimant)));
        assert!(!ring.owners().contains(&name(1)));
        assert_eq!(peer.disk.ring.as_ref(), Some(ring), "stored");
    }
}

/// The state of a donor may arrive before its denial. Found by the simulator (addresses, seeds 578595 and 641460):
/// the state was taken for the answer, and the claim waited for ever.
#[test]
fn denial_after_a_state_message_fails_the_claim() {
    use weave_ipam::message::Unicast;
    let mut peer = seeded(1);
    let addr = subnet(NET).range().end() - 2;
    let claim = peer.claim("c", "10.2.0.254/24", false);
    let owner = peer.allocator.ring().owner_of(addr).unwrap();
    let ring = peer.allocator.ring();
    let known = Ring::from_parts(ring.range(), owner, ring.entries().to_vec(), ring.seeds().to_vec());
    let state = Unicast::State(StateMessage { ring: Some(known), ..StateMessage::default() }).encode();
    peer.receive(owner, &Sent::Unicast(name(1), state)).unwrap();
    assert_eq!(peer.result(claim), "pending");
    let denied = Unicast::Denied(AddrRange::single(addr)).encode();
    peer.receive(owner, &Sent::Unicast(name(1), denied)).unwrap();
    assert!(matches!(peer.done.values().next_back(), Some(Err(RequestError::OtherPeer { .. }))));
}
