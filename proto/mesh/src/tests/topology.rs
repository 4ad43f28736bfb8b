use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;
use weave_types::{PeerName, PeerUid, ShortId};

use super::support::{array, connection, name, names, peer, record, rng, text, topology, vector};
use crate::peers::{Address, Link};
use crate::topology::{MAX_LINKS, OwnPeer, Topology};
use crate::update::{PeerRecord, decode_update};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| text(value).parse().unwrap())
}

/// The peers of a vector's state, ready to be compared.
type State =
    BTreeMap<PeerName, (String, u64, u64, Option<u64>, u64, BTreeSet<(PeerName, String, bool, bool)>)>;

fn expected(state: &Value) -> State {
    let peers = array(&state["peers"]).iter().map(|p| {
        let links = array(&p["connections"]).iter().map(|c| {
            let flags = (c["outbound"].as_bool().unwrap(), c["established"].as_bool().unwrap());
            (name(&c["name"]), text(&c["remote_tcp_addr"]).to_owned(), flags.0, flags.1)
        });
        let short_id = p["has_short_id"].as_bool().unwrap().then(|| number(&p["short_id"]));
        let counts = (number(&p["uid"]), number(&p["version"]), number(&p["local_ref_count"]));
        let nickname = text(&p["nickname"]).to_owned();
        (name(&p["name"]), (nickname, counts.0, counts.1, short_id, counts.2, links.collect()))
    });
    peers.collect()
}

fn actual(topology: &Topology) -> State {
    let peers = topology.peers().map(|(name, p)| {
        let links = p.links.iter().map(|l| (l.peer, l.address.to_string(), l.outbound, l.established));
        let short_id = p.short_id.map(|id| u64::from(id.get()));
        let counts = (p.uid.0, p.version, u64::from(p.references));
        (name, (p.nickname.to_string(), counts.0, counts.1, short_id, counts.2, links.collect()))
    });
    peers.collect()
}

#[test]
fn vectors() {
    let cases = vector("topology_merge.json");
    assert_eq!(array(&cases).len(), 5);
    for case in array(&cases) {
        let own = name(&case["self"]);
        let mut topology = topology(own);
        topology.take_effects();
        assert_eq!(actual(&topology), expected(&case["initial"]));
        for (at, step) in array(&case["steps"]).iter().enumerate() {
            let about = format!("{} step {at}: {}", text(&case["name"]), text(&step["note"]));
            let short_id_before = topology.own_peer().short_id;
            match text(&step["op"]) {
                "connect" => {
                    let to = name(&step["peer"]);
                    let (nickname, uid, _, short_id, ..) = expected(&step["state"])[&to].clone();
                    let short_id = ShortId::new(short_id.unwrap() as u16);
                    topology.refer(to, || (nickname.as_str().into(), PeerUid(uid), short_id));
                    let link = expected(&step["state"])[&own].5.iter().find(|l| l.0 == to).unwrap().clone();
                    let address = Address::from_text(&link.1);
                    topology.connect(Link { peer: to, address, outbound: link.2, established: link.3 });
                }
                "disconnect" => {
                    let from = name(&step["peer"]);
                    topology.release(from);
                    topology.disconnect(from);
                    topology.collect(&mut rng(1));
                }
                "gc" => topology.collect(&mut rng(1)),
                "update" => {
                    let mut update = decode_update(&hex::decode(text(&step["update"])).unwrap()).unwrap();
                    if update.dropped > 0 {
                        // The merge rules are the same for a record that reading refuses (a peer with a short id and
                        // no UID): put it back.
                        let d = name(&array(&step["names_in_update"])[0]);
                        let short_id = expected(&step["state"])[&d].3.and_then(|id| ShortId::new(id as u16));
                        let (nickname, uid, version) = ("D".to_owned(), PeerUid(0), 0);
                        let connections = Vec::new();
                        update.records =
                            vec![PeerRecord { name: d, nickname, uid, version, short_id, connections }];
                    }
                    let merged = topology.merge(update.records, &mut rng(1));
                    let set = |key: &str| names(&step[key]).into_iter().collect::<BTreeSet<_>>();
                    assert_eq!(merged.new, set("new_or_improved"), "{about}");
                    assert_eq!(merged.named, set("names_in_update"), "{about}");
                }
                other => panic!("{other}"),
            }
            let effects = topology.take_effects();
            let changed = step["self_short_id_changed"].as_bool().unwrap();
            assert_eq!(topology.own_peer().short_id != short_id_before, changed, "{about}");
            assert_eq!(effects.short_id.is_some(), changed, "{about}");
            assert_eq!(effects.short_ids_invalidated, number(&step["short_ids_invalidated"]) > 0, "{about}");
            let removed: Vec<PeerName> = effects.removed.iter().map(|p| p.name).collect();
            assert_eq!(removed, names(&step["gc_removed"]), "{about}");

            // The vector shows a short id that was drawn as 4094.
            let drawn =
                topology.own_peer().short_id.filter(|_| topology.own_peer().short_id != ShortId::new(273));
            let mend = |id: ShortId| if Some(id) == drawn { 4094 } else { id.get() };
            let mut state = actual(&topology);
            let own_state = state.get_mut(&own).unwrap();
            own_state.3 = topology.own_peer().short_id.map(|id| mend(id).into());
            assert_eq!(state, expected(&step["state"]), "{about}");
            let owners: BTreeMap<String, PeerName> =
                topology.short_ids().owners().map(|(id, peer)| (mend(id).to_string(), peer)).collect();
            let wanted = step["state"]["short_id_owner"].as_object().unwrap();
            let wanted: BTreeMap<String, PeerName> =
                wanted.iter().map(|(id, peer)| (id.clone(), name(peer))).collect();
            assert_eq!(owners, wanted, "{about}");
        }
    }
}

#[test]
fn versions_are_reserved_before_they_are_used() {
    let mut topology = topology(peer(1));
    let mut ceiling = topology.take_effects().ceiling.expect("at the start");
    for n in 0..5000 {
        topology.connect(Link {
            peer: peer(2),
            address: Address::from_text("10.0.0.1:1"),
            outbound: true,
            established: n % 2 == 0,
        });
        if let Some(higher) = topology.take_effects().ceiling {
            assert!(higher > ceiling);
            ceiling = higher;
        }
        assert!(topology.own_peer().version < ceiling);
    }
    let jump = PeerRecord { version: 1 << 40, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
    topology.merge(vec![jump], &mut rng(1));
    assert_eq!(topology.own_peer().version, (1 << 40) + 1);
    let effects = topology.take_effects();
    assert!(effects.announce && effects.ceiling > Some(1 << 40));
    // Nobody can push it over the edge.
    let edge = PeerRecord { version: u64::MAX, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
    topology.merge(vec![edge.clone()], &mut rng(1));
    topology.take_effects();
    topology.merge(vec![edge], &mut rng(1));
    assert!(!topology.take_effects().announce);
    assert_eq!(topology.own_peer().version, (1 << 40) + 1);
}

/// Each of them makes us outbid it, as far as the counter goes; few of them reach the disk, and there is room left to count.
#[test]
fn a_storm_of_forged_versions() {
    let mut topology = topology(peer(1));
    let mut ceiling = topology.take_effects().ceiling.expect("at the start");
    let mut written = 0;
    for n in 0..20_000u64 {
        // One time as far as the ceiling, one time a step: the worst for either rule.
        let forged = if n % 2 == 0 { ceiling } else { topology.own_peer().version };
        let forged = PeerRecord { version: forged, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
        topology.merge(vec![forged], &mut rng(1));
        if let Some(higher) = topology.take_effects().ceiling {
            assert!(higher > ceiling);
            (written, ceiling) = (written + 1, higher);
        }
        assert!(topology.own_peer().version < ceiling);
    }
    assert!((1..=64).contains(&written), "{written}");
    let last = topology.own_peer().version;
    assert!(last <= 1 << 63);
    let address = Address::from_text("10.0.0.1:1");
    topology.connect(Link { peer: peer(2), address, outbound: true, established: true });
    assert_eq!(topology.own_peer().version, last + 1, "our own changes still count");
}

#[test]
fn made_up_peers_are_bounded() {
    let mut topology = topology(peer(1));
    for block in 0..100u64 {
        let links = (0..1000).map(|i| connection(peer(1_000_000 + block * 1000 + i), true)).collect();
        topology.merge(vec![record(peer(2 + block), links)], &mut rng(1));
    }
    assert_eq!(topology.peers().len(), 65_536);
    topology.collect(&mut rng(1));
    assert_eq!(topology.peers().len(), 1);
}

fn records() -> impl Strategy<Value = Vec<PeerRecord>> {
    let links = prop::collection::vec((1..6u64, any::<bool>()), 0..4);
    let one = (1..6u64, 1..4u64, 0..4u64, prop::option::of(0..3u16), links);
    let record = one.prop_map(|(n, uid, version, short_id, links)| PeerRecord {
        name: peer(n),
        nickname: format!("n{uid}.{version}"),
        uid: PeerUid(uid),
        version,
        short_id: short_id.and_then(ShortId::new),
        connections: links.into_iter().map(|(to, established)| connection(peer(to), established)).collect(),
    });
    prop::collection::vec(record, 0..6)
}

fn observer() -> Topology {
    let short_id = ShortId::new(4000).unwrap();
    Topology::new(OwnPeer { name: peer(100), nickname: "o".into(), uid: PeerUid(1), version: 0, short_id })
}

/// What decides whether a record is taken.
fn ages(topology: &Topology) -> BTreeMap<PeerName, (u64, PeerUid, bool)> {
    topology.peers().map(|(name, p)| (name, (p.version, p.uid, p.short_id.is_some()))).collect()
}

proptest! {
    #[test]
    fn known_news_is_no_news(update in records()) {
        let mut topology = observer();
        topology.merge(update.clone(), &mut rng(1));
        let before = (actual(&topology), topology.own_peer().version);
        let again = topology.merge(update, &mut rng(1));
        prop_assert!(again.new.is_empty());
        prop_assert_eq!((actual(&topology), topology.own_peer().version), before);
    }

    /// Whatever the order, the newest record of each peer is kept.
    #[test]
    fn order_does_not_matter(a in records(), b in records()) {
        let (mut ab, mut ba) = (observer(), observer());
        for (topology, updates) in [(&mut ab, [&a, &b]), (&mut ba, [&b, &a])] {
            for update in updates {
                topology.merge(update.clone(), &mut rng(1));
            }
        }
        // Peers that only a superseded record mentions may be known in one order and not in the other, until they
        // are collected.
        let ages = |t: &Topology| {
            let mut ages = ages(t);
            ages.retain(|_, (version, uid, _)| (*version, uid.0) != (0, 0));
            ages
        };
        prop_assert_eq!(ages(&ab), ages(&ba));
    }

    /// The records of a merged table, told to another peer, leave nothing to tell.
    #[test]
    fn a_told_table_is_known(a in records(), b in records()) {
        let mut teller = observer();
        teller.merge(a, &mut rng(1));
        teller.merge(b, &mut rng(1));
        let all: Vec<PeerRecord> = teller.peers().map(|(n, p)| crate::topology::record(n, p)).collect();
        let mut other = topology(peer(200));
        other.merge(all.clone(), &mut rng(1));
        prop_assert!(other.merge(all, &mut rng(2)).new.is_empty());
        for (name, known) in teller.peers() {
            let theirs = other.peer(name).unwrap();
            prop_assert_eq!(&theirs.links, &known.links);
            prop_assert_eq!(theirs.short_id, known.short_id);
        }
    }

    #[test]
    fn our_version_never_falls(updates in prop::collection::vec(records(), 1..6), own in 1..6u64) {
        let mut topology = topology(peer(own));
        let mut ceiling = topology.take_effects().ceiling.unwrap();
        for update in updates {
            let before = topology.own_peer().version;
            topology.merge(update, &mut rng(1));
            topology.collect(&mut rng(1));
            prop_assert!(topology.own_peer().version >= before);
            ceiling = topology.take_effects().ceiling.unwrap_or(ceiling);
            prop_assert!(topology.own_peer().version < ceiling);
            // Each id has the lowest claimant, and ours is ours.
            for (id, owner) in topology.short_ids().owners() {
                let lowest = topology.peers().find(|(_, p)| p.short_id == Some(id)).map(|(n, _)| n);
                prop_assert_eq!(Some(owner), lowest);
            }
            let id = topology.own_peer().short_id.unwrap();
            prop_assert_eq!(topology.short_ids().owner(id), Some(peer(own)));
        }
    }
}

#[test]
fn links_are_bounded_in_number() {
    let mut topology = topology(peer(1));
    let links = |n: u64| (0..10_000).map(|i| connection(peer(1000 + n * 7 + i), true)).collect::<Vec<_>>();
    let count = |topology: &Topology| topology.peers().map(|(_, p)| p.links.len()).sum::<usize>();
    for n in 0..450 {
        topology.merge(vec![record(peer(100 + n), links(n))], &mut rng(1));
    }
    assert_eq!(count(&topology), MAX_LINKS);
    // What goes makes room.
    topology.merge(vec![PeerRecord { version: 2, ..record(peer(100), Vec::new()) }], &mut rng(1));
    topology.merge(vec![PeerRecord { version: 2, ..record(peer(549), links(549)) }], &mut rng(1));
    assert_eq!(count(&topology), MAX_LINKS);
    topology.collect(&mut rng(1));
    assert_eq!(topology.peers().len(), 1);
    topology.merge(vec![record(peer(100), links(1))], &mut rng(1));
    assert_eq!(count(&topology), 10_000);
}

#[test]
fn a_neighbour_is_redundant_if_another_leads_to_it() {
    // 2 and 3 are joined by way of 5; 4 hangs on us alone, as do all if we are not looked at.
    let mut topology = topology(peer(1));
    for n in [2, 3, 4] {
        let address = Address::from_text("10.0.0.1:1");
        topology.connect(Link { peer: peer(n), address, outbound: true, established: true });
    }
    let lists = [(2, vec![1, 5]), (5, vec![2, 3]), (3, vec![1, 5]), (4, vec![1])];
    let records =
        lists.map(|(n, to)| record(peer(n), to.iter().map(|&m| connection(peer(m), true)).collect()));
    topology.merge(records.into(), &mut rng(1));
    assert_eq!(topology.redundant_neighbours(), [peer(2), peer(3)]);
    topology.disconnect(peer(3));
    assert_eq!(topology.redundant_neighbours(), []);
    assert!(topology.is_reachable(peer(3)) && !topology.is_reachable(peer(9)));
}
