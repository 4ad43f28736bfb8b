use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use weave_switch::{ForwardingTable, Learned, MacConfig, MacTable, SwitchEvent, peer_frame};
use weave_types::{Instant, MacAddr, PeerName};

use crate::verdict::{B, C, OWN, frame, table};

pub(crate) const X: MacAddr = MacAddr([2, 0x42, 0xac, 0x11, 0, 2]);
pub(crate) const Y: MacAddr = MacAddr([2, 0x42, 0xac, 0x11, 0, 3]);

pub(crate) fn at(ms: u64) -> Instant {
    Instant::from_origin(Duration::from_millis(ms))
}

fn new() -> MacTable {
    MacTable::new(MacConfig::new(OWN))
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    Local,
    Remote(PeerName),
}

fn learn(table: &mut MacTable, origin: Origin, now: Instant) -> Learned {
    match origin {
        Origin::Local => table.learn_local(X, now),
        Origin::Remote(peer) => table.learn_remote(X, peer, now),
    }
}

/// Each case: previous entry, event, time between them in ms, result, peer that has the address afterwards.
#[test]
fn all_transitions_of_an_entry() {
    use Learned::{Known, Moved, New, Refused};
    use Origin::{Local, Remote};
    let cases = [
        (None, Local, 0, New, OWN),
        (None, Remote(B), 0, New, B),
        (Some(Local), Local, 0, Known, OWN),
        (Some(Local), Local, 500_000, Known, OWN),
        (Some(Local), Remote(B), 0, Refused { by: OWN }, OWN),
        (Some(Local), Remote(B), 1999, Refused { by: OWN }, OWN),
        (Some(Local), Remote(B), 2000, Moved { from: OWN }, B),
        (Some(Local), Remote(B), 5000, Moved { from: OWN }, B),
        (Some(Remote(B)), Remote(B), 0, Known, B),
        (Some(Remote(B)), Remote(B), 500_000, Known, B),
        (Some(Remote(B)), Remote(C), 0, Moved { from: B }, C),
        (Some(Remote(B)), Remote(C), 5000, Moved { from: B }, C),
        (Some(Remote(B)), Local, 0, Refused { by: B }, B),
        (Some(Remote(B)), Local, 1999, Refused { by: B }, B),
        (Some(Remote(B)), Local, 2000, Moved { from: B }, OWN),
        (Some(Remote(B)), Local, 500_000, Moved { from: B }, OWN),
    ];
    for (before, event, silence, expected, owner) in cases {
        let mut table = new();
        let start = 1_000_000;
        if let Some(before) = before {
            assert_eq!(learn(&mut table, before, at(start)), New);
        }
        let old = table.snapshot();
        assert_eq!(learn(&mut table, event, at(start + silence)), expected, "{before:?} {event:?} {silence}");
        assert_eq!(table.lookup(X), Some(owner));
        let snapshot = table.snapshot();
        assert_eq!(snapshot.lookup(X), Some(owner));
        let unchanged = matches!(expected, Known | Refused { .. });
        assert_eq!(Arc::ptr_eq(&old, &snapshot), unchanged, "a new snapshot is built only after changes");
        let seen = if matches!(expected, Refused { .. }) { start } else { start + silence };
        let entries: Vec<_> = table.entries().collect();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].mac, entries[0].peer, entries[0].last_seen), (X, owner, at(seen)));
    }
}

#[test]
fn invalid_source_addresses_are_not_learnt() {
    let mut table = new();
    for mac in [MacAddr::ZERO, MacAddr::BROADCAST, MacAddr::SPANNING_TREE, MacAddr([1, 0, 0x5e, 0, 0, 1])] {
        assert_eq!(table.learn_local(mac, at(0)), Learned::Ignored);
        assert_eq!(table.learn_remote(mac, B, at(0)), Learned::Ignored);
    }
    assert!(table.is_empty() && table.snapshot().is_empty());
}

fn numbered(i: u32) -> MacAddr {
    let b = i.to_be_bytes();
    MacAddr([2, 0, b[0], b[1], b[2], b[3]])
}

/// One peer has more addresses than there is room for: it displaces its own and leaves a place for everybody.
#[test]
fn a_flood_of_addresses_displaces_itself() {
    let mut table = MacTable::new(MacConfig { max_entries: 100, ..MacConfig::new(OWN) });
    table.learn_local(X, at(0));
    table.learn_remote(Y, C, at(0));
    let active = numbered(7);
    for i in 0..1000 {
        assert_eq!(table.learn_remote(numbered(i), B, at(u64::from(i) * 10)), Learned::New);
        if i > 7 {
            assert_eq!(table.learn_remote(active, B, at(u64::from(i) * 10 + 200)), Learned::Known, "{i}");
        }
    }
    assert_eq!((table.len(), table.displaced()), (100, 902));
    assert_eq!(table.largest_share(), Some((B, 98)));
    assert_eq!(table.snapshot().len(), 100);
    let newcomer = MacAddr([2; 6]);
    assert_eq!(table.learn_remote(newcomer, C, at(10_000)), Learned::New);
    assert_eq!(table.learn_local(MacAddr([6; 6]), at(10_000)), Learned::New);
    assert_eq!([X, Y, newcomer, active].map(|mac| table.lookup(mac)), [Some(OWN), Some(C), Some(C), Some(B)]);
    // The oldest unused addresses went first.
    let mut left: Vec<_> = table.entries().filter(|e| e.peer == B).map(|e| e.mac).collect();
    left.sort();
    let expected: Vec<_> = std::iter::once(7).chain(905..1000).map(numbered).collect();
    assert_eq!(left, expected);
    // Shares follow moves, expiry and peers that leave.
    table.learn_remote(active, C, at(10_000));
    assert_eq!(table.largest_share(), Some((B, 95)));
    table.forget_peer(B);
    assert_eq!((table.len(), table.largest_share()), (5, Some((C, 3))));
    table.expire(at(700_000));
    assert_eq!(table.largest_share(), None);
}

/// Many peers with few addresses each: any of the largest loses one, and the table stays within its bound.
#[test]
fn number_of_entries_is_limited() {
    let mut table = MacTable::new(MacConfig { max_entries: 1, ..MacConfig::new(OWN) });
    assert_eq!(table.learn_remote(X, B, at(0)), Learned::New);
    assert_eq!(table.learn_remote(Y, C, at(0)), Learned::New);
    assert_eq!(table.learn_local(X, at(0)), Learned::New);
    assert_eq!((table.len(), table.snapshot().len()), (1, 1));
    let mut full = new();
    for i in 0..70_000 {
        full.learn_remote(numbered(i), B, at(0));
    }
    assert_eq!((full.len(), full.displaced()), (65_536, 70_000 - 65_536));
}

#[test]
fn silent_entries_expire() {
    let mut table = new();
    table.learn_local(X, at(0));
    table.learn_remote(Y, B, at(60_000));
    assert_eq!(table.expire(at(600_000)), []);
    let before = table.snapshot();
    assert_eq!(table.expire(at(600_001)), [(X, OWN)]);
    assert_eq!((table.lookup(X), table.snapshot().lookup(X)), (None, None));
    assert_eq!(before.lookup(X), Some(OWN), "a snapshot does not change");
    assert_eq!(table.expire(at(660_001)), [(Y, B)]);
    assert!(table.is_empty());
}

#[test]
fn entries_of_a_removed_peer_are_removed() {
    let mut table = new();
    let z = MacAddr([2; 6]);
    table.learn_remote(Y, B, at(0));
    table.learn_remote(z, C, at(0));
    table.learn_remote(X, B, at(0));
    table.snapshot();
    assert_eq!(table.forget_peer(B), [X, Y]);
    assert_eq!(table.snapshot().lookup(X), None);
    assert_eq!(table.entries().map(|e| (e.mac, e.peer)).collect::<Vec<_>>(), [(z, C)]);
    let unchanged = table.snapshot();
    assert!(table.forget_peer(B).is_empty());
    assert!(Arc::ptr_eq(&unchanged, &table.snapshot()));
}

/// Data threads refresh last-seen times through a snapshot, which is visible in the table.
#[test]
fn last_seen_times_are_shared_with_snapshots() {
    let mut macs = new();
    macs.learn_remote(X, B, at(1000));
    let fwd = table(&macs);
    let last_seen = |macs: &MacTable| macs.entries().next().unwrap().last_seen;
    let see = |fwd: &ForwardingTable, peer, ms| peer_frame(fwd, peer, OWN, &frame(X, Y), at(ms)).1;
    assert_eq!(see(&fwd, B, 1099), None);
    assert_eq!(last_seen(&macs), at(1000), "younger than 100 ms: no store");
    assert_eq!(see(&fwd, B, 1100), None);
    assert_eq!(last_seen(&macs), at(1100));
    assert_eq!(fwd.macs.last_seen(X), Some(at(1100)));
    assert_eq!(see(&fwd, B, 500), None);
    assert_eq!(last_seen(&macs), at(1100), "never goes back");
    assert_eq!(macs.learn_local(X, at(3099)), Learned::Refused { by: B });

    // Another peer's frames do not keep the entry alive, and an old snapshot does not touch a moved entry.
    assert_eq!(see(&fwd, C, 3000), Some(SwitchEvent::RemoteMac { mac: X, peer: C }));
    assert_eq!(last_seen(&macs), at(1100));
    assert_eq!(macs.learn_remote(X, C, at(3000)), Learned::Moved { from: B });
    assert_eq!(see(&fwd, B, 9000), None);
    assert_eq!(last_seen(&macs), at(3000));
    assert_eq!(macs.learn_local(X, at(5000)), Learned::Moved { from: C });
}

#[test]
fn lookups_work_with_many_entries_and_any_seed() {
    for seed in [0, 1, u64::MAX, 0x9e37_79b9_7f4a_7c15, 0x0123_4567_89ab_cdef] {
        let mut table = MacTable::new(MacConfig { hash_seed: seed, ..MacConfig::new(OWN) });
        let mac = |i: u32| {
            let b = i.to_be_bytes();
            MacAddr([2, 0, b[0], b[1], b[2], b[3]])
        };
        for i in 0..3000 {
            table.learn_remote(mac(i), if i % 2 == 0 { B } else { C }, at(0));
        }
        let snapshot = table.snapshot();
        assert_eq!(snapshot.len(), 3000);
        for i in 0..3000 {
            assert_eq!(snapshot.lookup(mac(i)), Some(if i % 2 == 0 { B } else { C }));
        }
        assert_eq!(snapshot.lookup(mac(3000)), None);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Local(u8),
    Remote(u8, u8),
    Forget(u8),
    Expire,
    Advance(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u8..4).prop_map(Op::Local),
        (0u8..4, 2u8..5).prop_map(|(m, p)| Op::Remote(m, p)),
        (2u8..5).prop_map(Op::Forget),
        Just(Op::Expire),
        prop_oneof![0u64..3000, 0u64..700_000].prop_map(Op::Advance),
    ]
}

proptest! {
    /// The model is a map from address to (peer, last seen).
    #[test]
    fn agrees_with_the_model(ops in proptest::collection::vec(op(), 0..60)) {
        let peer = |p: u8| PeerName::from_bytes([0x7a, 0, 0, 0, 0, p]);
        let mac = |m: u8| MacAddr([2, 0, 0, 0, 0, m]);
        let mut table = new();
        let mut model: BTreeMap<MacAddr, (PeerName, u64)> = BTreeMap::new();
        let mut now = 0;
        // Last-seen times are refreshed in steps of 100 ms.
        let refreshed = |old: u64, now: u64| if now - old >= 100 { now } else { old };
        for op in ops {
            match op {
                Op::Local(m) => {
                    let expected = match model.get(&mac(m)).copied() {
                        None => Learned::New,
                        Some((p, _)) if p == OWN => Learned::Known,
                        Some((p, seen)) if now - seen < 2000 => Learned::Refused { by: p },
                        Some((p, _)) => Learned::Moved { from: p },
                    };
                    prop_assert_eq!(table.learn_local(mac(m), at(now)), expected);
                    match expected {
                        Learned::Refused { .. } => {}
                        Learned::Known => model.entry(mac(m)).and_modify(|e| e.1 = refreshed(e.1, now)).or_default().0 = OWN,
                        _ => { model.insert(mac(m), (OWN, now)); }
                    }
                }
                Op::Remote(m, p) => {
                    let expected = match model.get(&mac(m)).copied() {
                        None => Learned::New,
                        Some((q, _)) if q == peer(p) => Learned::Known,
                        Some((q, seen)) if q == OWN && now - seen < 2000 => Learned::Refused { by: q },
                        Some((q, _)) => Learned::Moved { from: q },
                    };
                    prop_assert_eq!(table.learn_remote(mac(m), peer(p), at(now)), expected);
                    if matches!(expected, Learned::Refused { .. }) {
                        continue;
                    }
                    let seen = match (expected, model.get(&mac(m))) {
                        (Learned::Known, Some((_, old))) => refreshed(*old, now),
                        _ => now,
                    };
                    model.insert(mac(m), (peer(p), seen));
                }
                Op::Forget(p) => {
                    table.forget_peer(peer(p));
                    model.retain(|_, (q, _)| *q != peer(p));
                }
                Op::Expire => {
                    let gone: Vec<_> = model.iter().filter(|(_, e)| now - e.1 > 600_000).map(|(m, e)| (*m, e.0)).collect();
                    prop_assert_eq!(table.expire(at(now)), gone);
                    model.retain(|_, e| now - e.1 <= 600_000);
                }
                Op::Advance(ms) => now += ms,
            }
            let expected: Vec<_> = model.iter().map(|(m, (p, seen))| (*m, *p, at(*seen))).collect();
            let entries: Vec<_> = table.entries().map(|e| (e.mac, e.peer, e.last_seen)).collect();
            prop_assert_eq!(&entries, &expected);
            let snapshot = table.snapshot();
            for m in 0..4 {
                prop_assert_eq!(snapshot.lookup(mac(m)), model.get(&mac(m)).map(|e| e.0));
            }
        }
    }
}
