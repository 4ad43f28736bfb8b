//! The registry beyond what the vectors show.

use std::net::Ipv4Addr;
use std::time::Duration;

use weave_dns::message::Message;
use weave_dns::{Entry, Filter, Registry, RegistryEvent, TOMBSTONE_LIFETIME};
use weave_types::Now;

use crate::registry_support::{all_entries, at, drain, entries_of, entry, message, peer, registry};
use crate::support::host_name;

const FOO: &str = "foo.weave.local.";

fn addresses(registry: &Registry, name: &str) -> Vec<Ipv4Addr> {
    registry.names().addresses(host_name(name).key()).to_vec()
}

fn resolves(registry: &Registry, name: &str) -> bool {
    !addresses(registry, name).is_empty()
}

fn receive(registry: &mut Registry, entries: &[Entry], now: Now) -> Vec<Entry> {
    entries_of(registry.handle_gossip(&message(now, entries), now).unwrap())
}

#[test]
fn entries_of_unknown_peers_wait_for_the_topology() {
    let (own, other, now) = (peer(1), peer(2), at(1000));
    let mut registry = registry(own, [own], now);
    let foo = [entry(FOO, other, 1, 0, 0)];
    assert_eq!(receive(&mut registry, &foo, now), foo, "passed on at once");
    assert_eq!(receive(&mut registry, &foo, now), [], "and once only");
    assert!(!resolves(&registry, FOO) && registry.state(now).is_none());
    let mut late = registry.clone();
    registry.handle_topology_change(&[own, other].into(), at(1001));
    assert!(resolves(&registry, FOO) && drain(&mut registry).1);
    assert_eq!(registry.poll_timeout().unwrap().1, "comparison of names with those of other peers");
    registry.handle_timeout(at(1002));
    assert_eq!(registry.poll_timeout(), None);
    assert_eq!(drain(&mut registry).0.len(), 0, "there are none of ours");

    let (due, _) = late.poll_timeout().unwrap();
    assert_eq!(due, at(1010).mono);
    late.handle_timeout(at(1009));
    assert_eq!(late.poll_timeout().unwrap().0, at(1010).mono);
    late.handle_timeout(at(1010));
    late.handle_topology_change(&[own, other].into(), at(1010));
    late.handle_timeout(at(1011));
    assert!(!resolves(&late, FOO) && late.poll_timeout().is_none());
}

#[test]
fn a_peer_that_joins_others_broadcasts_its_entries() {
    let own = peer(1);
    let mut registry = registry(own, [own], at(0));
    registry.add(&host_name(FOO), "c1", Ipv4Addr::new(10, 32, 0, 1), at(0));
    drain(&mut registry);
    let broadcasts = |registry: &mut Registry, known: &[u64], seconds| {
        registry.handle_topology_change(&known.iter().map(|n| peer(*n)).collect(), at(seconds));
        registry.handle_timeout(at(seconds + 1));
        drain(registry).0
    };
    assert_eq!(broadcasts(&mut registry, &[1, 2, 3, 4], 10), [all_entries(&registry)]);
    assert_eq!(broadcasts(&mut registry, &[1, 2, 3, 4, 5, 6, 7], 20).len(), 0, "the others are fewer");
    assert_eq!(broadcasts(&mut registry, &[1, 2], 30).len(), 0);
    assert_eq!(broadcasts(&mut registry, &[1, 2, 3, 4], 40).len(), 1, "after a partition");
}

#[test]
fn entries_of_a_peer_that_is_gone_are_removed() {
    let peers = [peer(1), peer(2), peer(3)];
    let mut registry = registry(peers[0], peers, at(0));
    registry.add(&host_name(FOO), "c1", Ipv4Addr::new(10, 32, 0, 1), at(0));
    receive(&mut registry, &[entry(FOO, peers[1], 2, 0, 0), entry(FOO, peers[2], 3, 0, 0)], at(0));
    drain(&mut registry);
    registry.handle_peer_removed(peers[1], at(0));
    assert_eq!(addresses(&registry, FOO).len(), 2);
    registry.handle_topology_change(&[peers[0]].into(), at(0));
    assert_eq!(addresses(&registry, FOO), [Ipv4Addr::new(10, 32, 0, 1)]);
    assert_eq!(drain(&mut registry).0.len(), 0, "without gossip");
    registry.handle_peer_removed(peers[0], at(0));
    assert!(resolves(&registry, FOO), "never our own");
}

#[test]
fn old_gossip_about_a_peer_that_has_left_is_not_kept() {
    let (own, other) = (peer(1), peer(2));
    let mut registry = registry(own, [own, other], at(0));
    registry.handle_peer_removed(other, at(10));
    let foo = [entry(FOO, other, 1, 0, 0)];
    assert_eq!(receive(&mut registry, &foo, at(11)), []);
    registry.handle_topology_change(&[own, other].into(), at(12));
    assert!(!resolves(&registry, FOO));
    registry.handle_peer_removed(other, at(20));
    assert_eq!(receive(&mut registry, &foo, at(80)), foo, "kept again after a minute");
}

#[test]
fn a_name_is_registered_again_after_a_restart() {
    let (own, now) = (peer(1), at(1_000_000));
    let addr = Ipv4Addr::new(10, 32, 0, 1);
    // The old entry arrives before or after the name is registered, live or removed.
    for tombstone in [0, 999_990] {
        for add_first in [false, true] {
            let mut registry = registry(own, [own], now);
            let old = entry(FOO, own, 1, 7, tombstone);
            if add_first {
                registry.add(&host_name(FOO), "c1", addr, now);
                receive(&mut registry, &[old], now);
            } else {
                receive(&mut registry, &[old], now);
                assert!(!resolves(&registry, FOO));
                registry.add(&host_name(FOO), "c1", addr, now);
            }
            assert!(resolves(&registry, FOO));
            let last = drain(&mut registry).0.pop().unwrap();
            assert!(last[0].version >= 8 && last[0].is_live(), "{last:?}");
            assert_eq!(all_entries(&registry), last);
        }
    }
}

#[test]
fn tombstones_are_dropped_by_the_clock_of_this_host() {
    let peers = [peer(1), peer(2)];
    let mut registry = registry(peers[0], peers, at(0));
    // The other host's clock is at zero, ours days later.
    let now = |seconds| Now { wall: Duration::from_secs(1_000_000 + seconds), ..at(seconds) };
    receive(&mut registry, &[entry(FOO, peers[1], 1, 0, 0)], now(0));
    receive(&mut registry, &[entry(FOO, peers[1], 1, 1, 5)], now(10));
    let end = now(10 + TOMBSTONE_LIFETIME.as_secs());
    registry.handle_timeout(now(end.mono.since_origin().as_secs() - 1));
    assert_eq!(receive(&mut registry, &[entry(FOO, peers[1], 1, 0, 0)], now(20)), [], "still removed");
    assert_eq!(all_entries(&registry).len(), 1);
    assert_eq!(registry.poll_timeout().unwrap().0, end.mono);
    registry.handle_timeout(end);
    assert_eq!(all_entries(&registry), []);
    assert_eq!(registry.poll_timeout(), None);
    // Another peer, which got it later, still has it: it must not come back for ever.
    assert_eq!(receive(&mut registry, &[entry(FOO, peers[1], 1, 1, 5)], end), []);
    assert_eq!(all_entries(&registry), []);
    // Live entries stay.
    receive(&mut registry, &[entry(FOO, peers[1], 1, 2, 0)], end);
    registry.handle_timeout(now(1_000_000));
    assert!(resolves(&registry, FOO));
}

#[test]
fn spellings_are_one_name_and_a_live_one_wins() {
    let (own, other, now) = (peer(1), peer(2), at(1000));
    let mut registry = registry(own, [own, other], now);
    let upper = "FOO.weave.local.";
    receive(&mut registry, &[entry(FOO, other, 1, 0, 0), entry(upper, other, 1, 0, 0)], now);
    assert_eq!(all_entries(&registry).len(), 1);
    // 2.8.1 has removed one spelling and keeps the other.
    for messages in [[FOO, upper], [upper, FOO]] {
        let mut registry = registry.clone();
        // Each of its states contains both, so both arrive again and again.
        for name in messages.repeat(2) {
            let (version, tombstone) = if name == FOO { (1, 990) } else { (0, 0) };
            receive(&mut registry, &[entry(name, other, 1, version, tombstone)], now);
        }
        assert_eq!(addresses(&registry, FOO).len(), 1, "{messages:?}");
        receive(&mut registry, &[entry(upper, other, 1, 1, 995)], now);
        assert!(!resolves(&registry, FOO));
    }
}

#[test]
fn another_spelling_of_an_earlier_life_is_removed_elsewhere() {
    let (own, now) = (peer(1), at(1000));
    let mut registry = registry(own, [own], now);
    registry.add(&host_name(FOO), "c1", Ipv4Addr::new(10, 32, 0, 1), now);
    drain(&mut registry);
    receive(&mut registry, &[entry("FOO.weave.local.", own, 1, 4, 0)], now);
    let removed = entry("FOO.weave.local.", own, 1, 5, 1000);
    assert_eq!(drain(&mut registry).0, [vec![removed], vec![entry(FOO, own, 1, 0, 0)]]);
    assert!(resolves(&registry, FOO));
}

#[test]
fn names_that_cannot_be_served_are_relayed_only() {
    let peers = [peer(1), peer(2)];
    let mut registry = registry(peers[0], peers, at(0));
    let names = ["foo.example.com.", "no-dot.weave.local", "a..weave.local.", "a b.weave.local.", ""];
    let list: Vec<Entry> = names.iter().map(|name| entry(name, peers[1], 1, 0, 0)).collect();
    assert_eq!(receive(&mut registry, &list, at(0)).len(), names.len());
    assert_eq!(entries_of(registry.state(at(0))).len(), names.len());
    assert!(registry.names().name_of(list[0].addr).is_none() && !drain(&mut registry).1);
}

#[test]
fn hostile_entries_are_left_out() {
    let peers = [peer(1), peer(2)];
    let mut registry = registry(peers[0], peers, at(0));
    let long = "x".repeat(300);
    let good = entry(FOO, peers[1], 1, 0, 0);
    let list = [
        Entry { hostname: long.as_str().into(), ..good.clone() },
        Entry { container: long.as_str().into(), ..good.clone() },
        Entry { version: -1, ..good.clone() },
        Entry { version: i64::MAX, ..good.clone() },
        Entry { tombstone: -1, ..good.clone() },
    ];
    assert_eq!(receive(&mut registry, &list, at(0)), []);
    assert!(!registry.add(&host_name(FOO), &long, good.addr, at(0)));
    assert!(registry.handle_gossip(b"\x03\xff\x81\x01", at(0)).is_err());
}

#[test]
fn number_of_entries_is_limited() {
    let peers: Vec<_> = (1..=20).map(peer).collect();
    let mut registry = registry(peers[0], peers.clone(), at(0));
    let list = |origin, count: u32| -> Vec<Entry> {
        let container = "c".repeat(200);
        let base = Entry { container: container.as_str().into(), ..entry(FOO, origin, 0, 0, 0) };
        (0..count).map(|n| Entry { addr: n.into(), ..base.clone() }).collect()
    };
    let count = |registry: &Registry, origin| registry.entries().filter(|e| e.origin == origin).count();
    receive(&mut registry, &list(peers[1], 10_000), at(0));
    let of_one = count(&registry, peers[1]);
    assert!((3000..5000).contains(&of_one), "{of_one}");
    for origin in &peers[2..] {
        receive(&mut registry, &list(*origin, 2000), at(0));
    }
    let all = registry.entries().count();
    assert!((15_000..20_000).contains(&all), "{all}");
    let events = drain(&mut registry).2;
    assert!(matches!(events[..], [RegistryEvent::Full { origin }] if origin == peers[1]), "{events:?}");
    for n in 0..10_000_u32 {
        registry.add(&host_name(FOO), &"c".repeat(200), n.into(), at(0));
        drain(&mut registry);
    }
    assert_eq!(count(&registry, peers[0]), of_one, "there is room for our own");
    let mut state = registry.state(at(0)).unwrap();
    assert!(state.len() < 6 << 20);
    Registry::merge(&mut state, &message(at(0), &list(peer(21), 30_000)));
    assert!(state.len() < 9 << 20);
    // Tombstones and changes still pass.
    let removed: Vec<Entry> =
        list(peers[1], 2000).into_iter().map(|entry| Entry { version: 1, tombstone: 1, ..entry }).collect();
    assert_eq!(receive(&mut registry, &removed, at(0)).len(), 2000);
    // Pending entries too.
    receive(&mut registry, &list(peer(30), 10_000), at(0));
    registry.handle_topology_change(&[peers[0], peer(30)].into(), at(0));
    assert!((3000..5000).contains(&count(&registry, peer(30))));
}

#[test]
fn a_wrong_clock_is_reported_and_the_message_merged() {
    let peers = [peer(1), peer(2)];
    let mut registry = registry(peers[0], peers, at(10_000));
    let list = vec![entry(FOO, peers[1], 1, 0, 0)];
    let payload = Message { timestamp: 10_000 + 3600, entries: list.clone() }.encode();
    for _ in 0..3 {
        let relay = registry.handle_broadcast(peers[1], &payload, at(10_000)).unwrap().unwrap();
        assert_eq!(Message::decode(&relay).unwrap(), Message { timestamp: 10_000, entries: list.clone() });
    }
    assert!(resolves(&registry, FOO));
    let skew = RegistryEvent::ClockSkew { src: Some(peers[1]), seconds: 3600 };
    assert_eq!(drain(&mut registry).2, std::slice::from_ref(&skew));
    assert_eq!(registry.clock_skews(at(10_060)).collect::<Vec<_>>(), [(Some(peers[1]), 3600)]);
    assert_eq!(registry.clock_skews(at(10_200)).count(), 0);
    registry.handle_broadcast(peers[1], &payload, at(10_600)).unwrap();
    assert_eq!(drain(&mut registry).2.len(), 1, "again after the interval");
}

#[test]
fn removal_by_container_address_and_name() {
    let own = peer(1);
    let mut registry = registry(own, [own, peer(2)], at(0));
    receive(&mut registry, &[entry(FOO, peer(2), 9, 0, 0)], at(0));
    let addr = |n| Ipv4Addr::new(10, 32, 0, n);
    for (name, container, n) in [("a", "c1", 1), ("b", "c1", 2), ("a", "c2", 3), ("b", "c2", 1)] {
        assert!(registry.add(&host_name(&format!("{name}.weave.local")), container, addr(n), at(1)));
    }
    let remove = |filter: Filter| registry.clone().remove(&filter, at(2));
    assert_eq!(remove(Filter::default()), 4, "not those of other peers");
    assert_eq!(remove(Filter { container: Some("c1".into()), ..Filter::default() }), 2);
    assert_eq!(remove(Filter { addr: Some(addr(1)), ..Filter::default() }), 2);
    let name = Some(host_name("A.WEAVE.local"));
    assert_eq!(remove(Filter { name: name.clone(), ..Filter::default() }), 2);
    assert_eq!(remove(Filter { name, addr: Some(addr(3)), container: Some("c1".into()) }), 0);
}
