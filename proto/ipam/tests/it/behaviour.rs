//! Single situations that need preparation: requests for space, conflicts, elections, containers.

use std::net::Ipv4Addr;

use crate::support::peer::{Peer, Sent, subnet};
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{
    AddrRange, Answer, Config, Entry, Event, GossipError, Init, Loaded, NO_ID, PendingKind, RequestError,
    Ring, State, WaitReason,
};
use weave_types::{PeerName, PeerUid};

const NET: &str = "10.2.0.0/24";

fn name(n: u64) -> PeerName {
    PeerName::from_number(n).unwrap()
}

fn addr(last: u8) -> u32 {
    Ipv4Addr::new(10, 2, 0, last).into()
}

fn config(n: u64, init: Init) -> Config {
    Config { init, ..Config::new(name(n), PeerUid(n), format!("host{n}"), subnet(NET)) }
}

fn seeded(n: u64, of: u64) -> Peer {
    let mut peer = Peer::new(config(n, Init::Seed((1..=of).map(name).collect())));
    peer.set_reachable(&(1..=of).map(name).collect::<Vec<_>>());
    peer.take_sent();
    peer
}

fn broadcast_of(ring: Ring) -> Sent {
    Sent::Broadcast(StateMessage { ring: Some(ring), ..StateMessage::default() }.encode())
}

fn with_entries(of: &Ring, holder: u64, change: impl FnOnce(&mut Vec<Entry>)) -> Ring {
    let mut entries = of.entries().to_vec();
    change(&mut entries);
    Ring::from_parts(of.range(), name(holder), entries, of.seeds().to_vec())
}

fn requests(sent: &[Sent]) -> usize {
    let is_request = |sent: &&Sent| {
        let Sent::Unicast(_, bytes) = sent else { return false };
        matches!(Unicast::decode(bytes), Ok(Some(Unicast::Request(_))))
    };
    sent.iter().filter(is_request).count()
}

/// The donor behaves like 2.8.1: it donates the unusable end of the subnet, then nothing, but reports free space.
#[test]
fn requester_waits_for_the_next_tick() {
    let mut peer = seeded(1, 2);
    for n in 0..127 {
        peer.allocate(&format!("c{n}"), NET);
    }
    let ids: Vec<_> = (0..50).map(|n| peer.allocate(&format!("more{n}"), NET)).collect();
    let mut asked = requests(&peer.take_sent());
    let mut theirs = with_entries(peer.allocator.ring(), 2, |entries| {
        let last = entries.last_mut().unwrap();
        (last.version, last.free) = (1, 127);
        entries.push(Entry { token: addr(255), peer: name(1), version: 0, free: 1 });
    });
    for _ in 0..20 {
        let state = StateMessage { ring: Some(theirs.clone()), ..StateMessage::default() };
        peer.receive(name(2), &Sent::Unicast(name(1), Unicast::State(state).encode())).unwrap();
        theirs = with_entries(&theirs, 2, |entries| {
            let entry = entries.iter_mut().find(|e| e.peer == name(2)).unwrap();
            entry.version += 1;
        });
        asked += requests(&peer.take_sent());
    }
    assert!(ids.iter().all(|id| peer.result(*id) == "pending"));
    assert_eq!(asked, 1);
}

#[test]
fn denial_leads_to_the_next_donor_at_once() {
    let mut peer = seeded(1, 3);
    for n in 0..127 {
        peer.allocate(&format!("c{n}"), NET);
    }
    peer.take_sent();
    let id = peer.allocate("more", NET);
    let first = peer.take_sent();
    let Sent::Unicast(donor, _) = &first[0] else { panic!("{first:?}") };
    let denied = Unicast::Denied(subnet(NET).range()).encode();
    peer.receive(*donor, &Sent::Unicast(name(1), denied.clone())).unwrap();
    let second = peer.take_sent();
    assert_eq!(requests(&second), 1);
    let Sent::Unicast(other, _) = &second[0] else { panic!("{second:?}") };
    assert_ne!(donor, other);
    peer.receive(*other, &Sent::Unicast(name(1), denied)).unwrap();
    assert_eq!(requests(&peer.take_sent()), 0, "both have been asked in this tick");
    let status = peer.allocator.status(peer.now());
    assert_eq!(status.state, State::WaitingForSpace);
    let WaitReason::Space { asked, denied, .. } = &status.pending[0].reason else { panic!("{status:?}") };
    assert_eq!((asked.len(), denied.len()), (0, 2));
    assert!(status.pending[0].reason.explain().contains("nothing usable"));
    peer.advance(5);
    assert_eq!(requests(&peer.take_sent()), 1, "a peer is asked again in the next tick");
    assert_eq!(peer.result(id), "pending");
    peer.allocator.cancel(id, peer.now());
    peer.drain();
    assert!(peer.allocator.poll_timeout().is_none());
}

#[test]
fn subnet_ends_are_not_donated() {
    let mut donor = seeded(1, 1);
    donor.set_reachable(&[name(1), name(2)]);
    for _ in 0..254 {
        donor.allocate(NO_ID, NET);
    }
    donor.take_sent();
    let ask = |donor: &mut Peer, range: AddrRange| {
        donor.receive(name(2), &Sent::Unicast(name(1), Unicast::Request(range).encode())).unwrap();
        let sent = donor.take_sent();
        let Sent::Unicast(_, bytes) = &sent[0] else { return "given" };
        if matches!(Unicast::decode(bytes), Ok(Some(Unicast::Denied(r))) if r == range) {
            "denied"
        } else {
            "other"
        }
    };
    assert_eq!(ask(&mut donor, subnet(NET).range()), "denied", "only the ends are free");
    assert_eq!(ask(&mut donor, AddrRange::single(addr(255))), "given", "exactly that address is requested");
    donor.allocator.free("10.2.0.77", "10.2.0.77".parse().unwrap(), donor.now()).unwrap();
    donor.drain();
    assert_eq!(ask(&mut donor, subnet(NET).range()), "given");
    assert_eq!(donor.allocator.ring().owner_of(addr(77)), Some(name(2)));
}

#[test]
fn denial_fails_only_the_claim_of_its_address() {
    let mut peer = seeded(1, 2);
    let id = peer.claim("c", "10.2.0.200/24", false);
    let denied = Unicast::Denied(subnet(NET).range()).encode();
    peer.receive(name(2), &Sent::Unicast(name(1), denied)).unwrap();
    assert_eq!(peer.result(id), "pending");
    let denied = Unicast::Denied(AddrRange::single(addr(200))).encode();
    peer.receive(name(3), &Sent::Unicast(name(1), denied.clone())).unwrap();
    assert_eq!(peer.result(id), "pending");
    peer.receive(name(2), &Sent::Unicast(name(1), denied)).unwrap();
    assert_eq!(peer.result(id), "error: address 10.2.0.200/24 is owned by other peer 00:00:00:00:00:02");
}

/// The owner may have released the address since it denied it.
#[test]
fn denied_address_is_requested_again_by_the_next_claim() {
    let mut peer = seeded(1, 2);
    peer.set_reachable(&[name(1), name(2)]);
    for container in ["c", "d"] {
        let id = peer.claim(container, "10.2.0.200/24", false);
        let request = Unicast::Request(AddrRange::single(addr(200))).encode();
        assert_eq!(peer.take_sent(), [Sent::Unicast(name(2), request)], "{container}");
        let denied = Unicast::Denied(AddrRange::single(addr(200))).encode();
        peer.receive(name(2), &Sent::Unicast(name(1), denied)).unwrap();
        assert!(peer.result(id).starts_with("error"), "{container}");
    }
}

/// A range was given to peer 1, and peer 3 learned of it before peer 1. Found by the simulator (addresses, seeds 2663
/// and 9867).
#[test]
fn request_for_an_unowned_range_is_not_denied() {
    let mut peer = seeded(1, 2);
    peer.set_reachable(&[name(1), name(2), name(3)]);
    let request = Unicast::Request(AddrRange::single(addr(200))).encode();
    peer.receive(name(3), &Sent::Unicast(name(1), request)).unwrap();
    let sent = peer.take_sent();
    let unicast = |sent: &Sent| match sent {
        Sent::Unicast(to, bytes) if *to == name(3) => Unicast::decode(bytes).unwrap(),
        _ => None,
    };
    let answer: Vec<Unicast> = sent.iter().filter_map(unicast).collect();
    assert!(matches!(answer[..], [Unicast::State(_)]), "{answer:?}");
}

/// The denied address was claimed before; the claim was cancelled.
#[test]
fn late_denial_does_not_fail_a_later_claim() {
    let mut peer = seeded(1, 2);
    let first = peer.claim("c", "10.2.0.200/24", false);
    peer.allocator.cancel(first, peer.now());
    peer.drain();
    peer.prime();
    peer.advance(5);
    peer.set_reachable(&[name(1)]);
    let second = peer.claim("c", "10.2.0.200/24", false);
    let denied = Unicast::Denied(AddrRange::single(addr(200))).encode();
    peer.receive(name(2), &Sent::Unicast(name(1), denied)).unwrap();
    assert_eq!(peer.result(second), "pending");
}

/// A request arrives after its sender has died. What it was given would be lost until the dead peer is removed again.
/// Found by the simulator (addresses, seed 4535).
#[test]
fn unreachable_requester_gets_nothing() {
    let mut peer = seeded(1, 2);
    peer.set_reachable(&[name(1), name(3)]);
    let request = Unicast::Request(subnet(NET).range()).encode();
    peer.receive(name(2), &Sent::Unicast(name(1), request.clone())).unwrap();
    assert!(peer.take_sent().is_empty());
    peer.set_reachable(&[name(1), name(2)]);
    peer.receive(name(2), &Sent::Unicast(name(1), request)).unwrap();
    assert!(!peer.take_sent().is_empty());
}

/// Another peer took over a range that is in use here.
#[test]
fn disputed_range_is_not_handed_out() {
    let mut peer = seeded(1, 2);
    peer.allocate("c1", NET);
    let theirs = with_entries(peer.allocator.ring(), 2, |entries| {
        (entries[0].peer, entries[0].version) = (name(2), 101);
    });
    let error = peer.receive(name(2), &broadcast_of(theirs)).unwrap_err();
    assert!(error.starts_with("Received update for IP range I own at 10.2.0.0"), "{error}");
    let id = peer.allocate("c2", NET);
    assert_eq!(peer.result(id), "pending");
    let status = peer.allocator.status(peer.now());
    assert_eq!(status.conflicts.len(), 1);
    assert_eq!(status.conflicts[0].disputed, [AddrRange::new(addr(0), addr(128))]);
    let WaitReason::Space { disputed, .. } = &status.pending[0].reason else { panic!() };
    assert_eq!(*disputed, 126);
    assert_eq!(peer.events.iter().filter(|e| matches!(e, Event::Conflict { .. })).count(), 1);
    // A disputed range is not donated either.
    peer.set_reachable(&[name(1), name(2), name(3)]);
    peer.take_sent();
    let request = Unicast::Request(subnet(NET).range()).encode();
    peer.receive(name(3), &Sent::Unicast(name(1), request)).unwrap();
    let sent = peer.take_sent();
    let Sent::Unicast(_, bytes) = &sent[0] else { panic!("{sent:?}") };
    assert!(matches!(Unicast::decode(bytes), Ok(Some(Unicast::Denied(_)))));
    // A claim of a disputed address waits.
    let claim = peer.claim("c3", "10.2.0.50/24", false);
    assert_eq!(peer.result(claim), "pending");
    // The other peer yields, and the requests continue.
    let agreed = with_entries(peer.allocator.ring(), 2, |_| {});
    peer.receive(name(2), &broadcast_of(agreed)).unwrap();
    peer.advance(5);
    assert_eq!(peer.result(claim), "ok");
    assert!(peer.allocator.status(peer.now()).conflicts.is_empty());
    assert!(peer.events.iter().any(|e| matches!(e, Event::ConflictOver { .. })));
}

#[test]
fn unused_ranges_are_yielded() {
    let mut peer = seeded(1, 2);
    let theirs = with_entries(peer.allocator.ring(), 2, |entries| {
        (entries[0].peer, entries[0].version) = (name(2), 101);
    });
    peer.receive(name(2), &broadcast_of(theirs)).unwrap();
    assert_eq!(peer.allocator.space().free().count(), 0);
    assert!(peer.events.contains(&Event::Yielded { addresses: 128 }));
    let id = peer.allocate("c", NET);
    assert_eq!(peer.result(id), "pending");
}

/// Two peers take over the same one concurrently, and neither has used any of its addresses. In 2.8.1 both remain owners
/// for ever. Found by the simulator (addresses, seed 228).
#[test]
fn concurrent_takeover_leaves_one_owner() {
    let mut peers: Vec<Peer> = (1..=2).map(|n| seeded(n, 3)).collect();
    let all: Vec<PeerName> = (1..=2).map(name).collect();
    for peer in &mut peers {
        peer.set_reachable(&all);
        let now = peer.now();
        peer.allocator.remove_peer(&name(3).to_string(), false, now).unwrap();
        peer.drain();
        peer.take_sent();
    }
    let views: Vec<Ring> = peers.iter().map(|peer| peer.allocator.ring().clone()).collect();
    // The peer with the higher name waits and reports the conflict.
    peers[1].receive(name(1), &broadcast_of(views[0].clone())).unwrap();
    let now = peers[1].now();
    assert_eq!(peers[1].allocator.status(now).conflicts.len(), 1);
    // The peer with the lower name raises the version; the other one yields.
    peers[0].receive(name(2), &broadcast_of(views[1].clone())).unwrap();
    assert!(!peers[0].take_sent().is_empty());
    let settled = peers[0].allocator.ring().clone();
    peers[1].receive(name(1), &broadcast_of(settled.clone())).unwrap();
    assert!(peers[1].allocator.status(now).conflicts.is_empty());
    assert_eq!(peers[1].allocator.ring().entries(), settled.entries());
}

/// Two peers took over the same one at the same version. One of them has yielded, and third peers still name it as
/// the owner. Found by the simulator (addresses, seed 7238).
#[test]
fn wrongly_named_owner_raises_the_version() {
    let owner = |peer: &Peer| peer.allocator.ring().entries()[0];
    let entry = |n: u64, version| Entry { token: addr(0), peer: name(n), version, free: 64 };
    let tell = |peer: &mut Peer, from: u64, n: u64, version| {
        let theirs = with_entries(peer.allocator.ring(), from, |entries| entries[0] = entry(n, version));
        peer.receive(name(from), &broadcast_of(theirs)).unwrap();
    };
    let view = |me: u64, n: u64| {
        let mut peer = seeded(me, 4);
        tell(&mut peer, 4, n, 200);
        peer.take_sent();
        peer
    };
    // The peer that is named as the owner.
    let mut named = view(1, 3);
    tell(&mut named, 2, 1, 200);
    assert_eq!((owner(&named).peer, owner(&named).version), (name(3), 202));
    assert!(!named.take_sent().is_empty(), "other peers learn of it");
    assert_eq!(named.allocator.space().free().count(), 0);
    // If each of the two names the other, one of them becomes the owner.
    let mut other = view(3, 1);
    tell(&mut other, 2, 3, 200);
    assert_eq!((owner(&other).peer, owner(&other).version), (name(1), 201));
    tell(&mut other, 1, 3, 202);
    assert_eq!(owner(&other).peer, name(3));
    tell(&mut named, 3, 1, 201);
    assert_eq!(owner(&named).peer, name(3));
    // A third peer takes the lower name for the owner, in whichever order it learns of them.
    for (first, second) in [(1, 3), (3, 1)] {
        let mut third = view(2, first);
        tell(&mut third, 4, second, 200);
        assert_eq!(owner(&third).peer, name(1));
        // What is passed on is stored.
        assert_eq!(third.disk.ring.as_ref().map(|ring| ring.entries()[0].peer), Some(name(1)));
    }
}

#[test]
fn ring_with_other_seeds_is_rejected() {
    let mut peer = seeded(1, 2);
    let mut other = Ring::new(subnet(NET).range(), name(3));
    other.divide(&[name(3)]);
    let other = with_entries(&other, 3, |entries| entries[0].free = 0);
    let state = StateMessage { ring: Some(other), ..StateMessage::default() };
    let result = peer.allocator.handle_gossip(&state.encode(), peer.now());
    assert!(matches!(result, Err(GossipError::Conflict(_))), "{result:?}");
}

#[test]
fn nicknames_and_conflicts_are_limited() {
    let mut peer = seeded(1, 2);
    let mut flood = |nickname: String, names: std::ops::Range<u64>| {
        let nicknames = names.map(|n| (name(n), nickname.clone())).collect();
        let state = StateMessage { nicknames, ..StateMessage::default() };
        peer.allocator.handle_gossip(&state.encode(), peer.now()).unwrap();
    };
    flood("x".repeat(1025), 10..100);
    flood("x".repeat(1000), 1000..9000);
    flood("x".to_owned(), 10_000..70_000);
    // Rings with many other seeds, under many names, each of a peer that can be reached and has a long nickname.
    let reachable = (2..3000).map(|n| (name(n), "y".repeat(1000))).collect();
    peer.allocator.handle_topology_change(&reachable, peer.now());
    let seeds: Vec<PeerName> = (10..250).map(name).collect();
    for n in 10..2000 {
        let mut other = Ring::new(subnet(NET).range(), name(n));
        other.divide(&seeds);
        let state = StateMessage { ring: Some(other), ..StateMessage::default() };
        assert!(peer.allocator.handle_gossip(&state.encode(), peer.now()).is_err());
    }
    let told = StateMessage::decode(&peer.allocator.state(peer.now())).unwrap();
    let total: usize = told.nicknames.values().map(String::len).sum();
    assert!(told.nicknames.len() > 900 && total < 1 << 20, "{} of {total} bytes", told.nicknames.len());
    assert!(told.nicknames.values().all(|nickname| nickname.len() <= 1024));
    let conflicts = peer.allocator.status(peer.now()).conflicts;
    assert_eq!(conflicts.len(), 1024);
    let longest = conflicts.iter().map(|c| c.conflict.to_string().len()).max();
    assert!(longest.is_some_and(|length| length < 2000), "{longest:?}");
}

/// The rules for single entries alone would accept this ring.
#[test]
fn address_in_use_keeps_its_owner() {
    let mut peer = seeded(1, 1);
    for _ in 0..150 {
        peer.allocate(NO_ID, NET);
    }
    let theirs = with_entries(peer.allocator.ring(), 2, |entries| {
        entries[0].free = 0;
        for (token, owner) in [(64, 1), (128, 3), (192, 1)] {
            entries.push(Entry { token: addr(token), peer: name(owner), version: 0, free: 0 });
        }
    });
    assert_eq!(
        peer.receive(name(2), &broadcast_of(theirs)).unwrap_err(),
        "Peer 00:00:00:00:00:03 says it owns the IP range from 10.2.0.128, which I think I own"
    );
}

/// The removed peer had changed its entries, and a third peer knows the newer versions.
#[test]
fn takeover_is_newer_than_unseen_changes() {
    let mut new_owner = seeded(1, 3);
    let third = with_entries(new_owner.allocator.ring(), 3, |entries| {
        entries.iter_mut().filter(|e| e.peer == name(2)).for_each(|e| (e.version, e.free) = (40, 24));
    });
    new_owner.set_reachable(&[name(1)]);
    assert_eq!(new_owner.allocator.remove_peer("host2", false, new_owner.now()), Ok(0), "nickname not known");
    let gained = new_owner.allocator.remove_peer("::2", false, new_owner.now()).unwrap();
    new_owner.drain();
    assert_eq!(gained, 64);
    new_owner.receive(name(3), &broadcast_of(third)).unwrap();
    assert!(new_owner.allocator.ring().ranges_owned_by(name(2)).is_empty());
}

#[test]
fn own_address_does_not_count_for_the_quorum() {
    let mut peer = Peer::new(config(1, Init::Consensus(None)));
    peer.allocator.handle_target_count(1, peer.now());
    let id = peer.prime();
    assert_eq!(peer.result(id), "pending");
    let election = peer.allocator.status(peer.now()).election.unwrap();
    assert_eq!((election.quorum, election.known, election.missing), (2, 1, 1));
    // The connection attempt has shown that the address is this peer's own.
    peer.allocator.handle_target_count(0, peer.now());
    peer.drain();
    assert_eq!(peer.result(id), "ok");
}

#[test]
fn restarted_elector_keeps_its_promise() {
    let mut config = config(1, Init::Consensus(Some(3)));
    let mut peer = Peer::new(config.clone());
    peer.prime();
    let range = subnet(NET).range();
    let before = peer.allocator.paxos().unwrap().election(range).unwrap();
    assert_eq!(peer.disk.election.as_ref(), Some(&before), "stored");
    config.uid = PeerUid(999);
    let peer = Peer::restored(config, peer.disk.clone());
    assert_eq!(peer.allocator.paxos().unwrap().election(range), Some(before));
}

#[test]
fn status_of_a_waiting_election() {
    let mut peer = Peer::new(config(1, Init::Consensus(Some(10))));
    peer.set_reachable(&[name(1), name(2), name(3)]);
    peer.prime();
    let status = peer.allocator.status(peer.now());
    assert_eq!(status.state.consensus(), "waiting");
    let election = status.election.unwrap();
    assert_eq!((election.quorum, election.missing, election.silent.len()), (6, 5, 2));
    assert_eq!(election.source.to_string(), "the peer count given at launch, 10");
    assert_eq!(status.pending[0].kind, PendingKind::Prime);
    assert!(status.pending[0].reason.explain().contains("quorum"));
}

#[test]
fn cancelled_requests_allocate_nothing() {
    let mut peer = Peer::new(config(1, Init::Consensus(Some(2))));
    let allocation = peer.allocate("c1", NET);
    let claim = peer.claim("c2", "10.2.0.9/24", false);
    let prime = peer.prime();
    for id in [allocation, claim, prime] {
        peer.allocator.cancel(id, peer.now());
        peer.drain();
        assert!(matches!(peer.done[&id], Err(RequestError::Cancelled(_))));
    }
    let mut ring = Ring::new(subnet(NET).range(), name(2));
    ring.divide(&[name(1), name(2)]);
    peer.receive(name(2), &broadcast_of(ring)).unwrap();
    assert!(peer.allocator.owned().is_empty());
    assert_eq!(peer.allocator.space().used().count(), 0);
}

#[test]
fn thousand_concurrent_requests_get_different_addresses() {
    let mut peer = Peer::new(config(1, Init::Consensus(Some(2))));
    peer.config.range = subnet(NET);
    let ids: Vec<_> = (0..1000).map(|n| peer.allocate(&format!("c{n}"), NET)).collect();
    assert!(peer.done.is_empty());
    let mut ring = Ring::new(subnet(NET).range(), name(2));
    ring.divide(&[name(1)]);
    peer.receive(name(2), &broadcast_of(ring)).unwrap();
    let answered: Vec<String> =
        ids.iter().map(|id| peer.result(*id)).filter(|result| result != "pending").collect();
    assert_eq!(answered.len(), 254);
    let different: std::collections::BTreeSet<&String> = answered.iter().collect();
    assert_eq!(different.len(), 254, "no address was allocated twice");
    // A release serves the next request in the queue.
    peer.allocator.delete("c0", peer.now()).unwrap();
    peer.drain();
    assert_eq!(peer.done[&ids[254]], Ok(Answer::Allocated("10.2.0.1/24".parse().unwrap())));
}

#[test]
fn container_that_starts_while_its_peer_is_suspended_keeps_its_addresses() {
    let mut peer = seeded(1, 1);
    peer.allocate("c1", NET);
    peer.allocator.handle_container_died("c1", peer.now());
    // The timer comes first, then what has waited.
    peer.advance(45);
    assert_eq!(peer.allocator.lookup("c1", subnet(NET)).len(), 1);
    peer.allocator.handle_container_started("c1", peer.now());
    peer.advance(60);
    assert_eq!(peer.allocator.lookup("c1", subnet(NET)).len(), 1);
    peer.allocator.handle_container_died("c1", peer.now());
    peer.advance(45);
    peer.advance(5);
    assert!(peer.allocator.owned().is_empty(), "it has not started again");
}

#[test]
fn addresses_are_released_after_container_death() {
    let mut peer = seeded(1, 1);
    peer.allocate("c1", NET);
    peer.allocator.handle_container_died("c1", peer.now());
    peer.advance(29);
    assert_eq!(peer.allocator.lookup("c1", subnet(NET)).len(), 1);
    peer.allocator.handle_container_started("c1", peer.now());
    peer.advance(60);
    assert_eq!(peer.allocator.lookup("c1", subnet(NET)).len(), 1, "it came back");
    peer.allocator.handle_container_died("c1", peer.now());
    assert_eq!(peer.allocator.poll_timeout().unwrap().1, "addresses of dead containers");
    peer.advance(20);
    // A second report of the death does not start the time again. Found by the simulator (addresses, seed 4586).
    peer.allocator.handle_container_died("c1", peer.now());
    peer.advance(10);
    assert!(peer.allocator.owned().is_empty());
    assert!(peer.disk.owned.is_empty());
    peer.allocate("c2", NET);
    peer.allocator.handle_container_destroyed("c2", peer.now());
    peer.drain();
    assert!(peer.allocator.owned().is_empty(), "released immediately");
    // A container that dies while it waits gets no address.
    let mut waits = Peer::new(config(1, Init::Consensus(Some(2))));
    let id = waits.allocate("c3", NET);
    waits.allocator.handle_container_died("c3", waits.now());
    waits.drain();
    assert!(matches!(waits.done[&id], Err(RequestError::Cancelled(_))));
    // Addresses of other users are not released.
    let id = peer.request();
    peer.allocator.allocate(id, "weave:expose".to_owned(), subnet(NET), false, peer.now());
    peer.allocator.handle_container_destroyed("weave:expose", peer.now());
    peer.allocator.prune(&Default::default(), peer.now());
    peer.drain();
    assert_eq!(peer.allocator.owned().len(), 1);
}

#[test]
fn addresses_in_use_are_claimed_before_allocations() {
    // The stored state was lost, and the containers still run.
    let mut peer = Peer::new(config(1, Init::Observer));
    peer.allocator.preclaim("c1".to_owned(), &["10.2.0.1/24".parse().unwrap()], true, peer.now());
    peer.allocator.preclaim(NO_ID.to_owned(), &["10.2.0.2/24".parse().unwrap()], false, peer.now());
    peer.drain();
    let id = peer.allocate("c3", NET);
    let mut ring = Ring::new(subnet(NET).range(), name(2));
    ring.divide(&[name(1)]);
    peer.receive(name(2), &broadcast_of(ring)).unwrap();
    assert_eq!(peer.result(id), "10.2.0.3");
    assert!(peer.allocator.owned()["c1"].is_container, "its death releases it");
    peer.allocator.free("10.2.0.2", "10.2.0.2".parse().unwrap(), peer.now()).unwrap();
}

#[test]
fn stored_addresses_of_other_owners_are_claimed_again() {
    let mut first = seeded(1, 2);
    first.allocate("c1", NET);
    let mut disk: Loaded = first.disk.clone();
    let record = weave_ipam::Record { is_container: true, cidrs: vec!["10.2.0.200/24".parse().unwrap()] };
    disk.owned.insert("c9".to_owned(), record);
    let mut peer = Peer::restored(first.config.clone(), disk);
    assert!(!peer.allocator.owned().contains_key("c9"));
    assert_eq!(peer.allocator.status(peer.now()).pending.len(), 1);
    peer.set_reachable(&[name(2)]);
    assert_eq!(requests(&peer.take_sent()), 1);
    let denied = Unicast::Denied(AddrRange::single(addr(200))).encode();
    peer.receive(name(2), &Sent::Unicast(name(1), denied)).unwrap();
    assert!(peer.events.iter().any(|e| matches!(e, Event::PreclaimFailed { .. })));
    assert!(!peer.disk.owned.contains_key("c9"));
}

#[test]
fn unknown_unicasts_are_not_answered() {
    let mut peer = seeded(1, 2);
    for bytes in [vec![], vec![3], vec![200, 1, 2]] {
        peer.receive(name(2), &Sent::Unicast(name(1), bytes)).unwrap();
    }
    assert_eq!(peer.take_sent(), []);
}

#[test]
fn invalid_configuration_is_rejected_with_a_reason() {
    let error = |text: &str| text.parse::<weave_ipam::Subnet>().unwrap_err().to_string();
    assert!(error("240.0.0.0/4").contains("ends at 255.255.255.255"));
    assert!(error("128.0.0.0/1").contains("ends at 255.255.255.255"));
    assert!(error("0.0.0.0/0").contains("smaller than minimum size 4"));
    assert!(error("fe80::/64").contains("Non-IPv4"));
    assert!("0.0.0.0/1".parse::<weave_ipam::Subnet>().is_ok());
    let mut config = config(1, Init::Observer);
    config.default_subnet = subnet("10.3.0.0/24");
    assert_eq!(
        config.validate().unwrap_err().to_string(),
        "IP address allocation default subnet 10.3.0.0/24 does not overlap with allocation range 10.2.0.0/24"
    );
    for (text, expected) in [
        ("banana", "unknown mode: banana"),
        ("seed", "seed mode requires peer name list"),
        ("seed=xx", "bad seed parameter: error parsing peer names: invalid peer name format: \"xx\""),
        ("observer=1", "observer mode takes no parameter"),
    ] {
        assert_eq!(text.parse::<Init>().unwrap_err().to_string(), expected);
    }
    assert_eq!("seed=".parse(), Ok(Init::Consensus(None)));
    assert_eq!("seed=::1,::2".parse(), Ok(Init::Seed(vec![name(1), name(2)])));
}
