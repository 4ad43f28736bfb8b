use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::Value;
use weave_types::{PeerName, PeerUid, ShortId};

use crate::peers::{GossipAddress, PeerConnection};
use crate::test_support::{array, connection, name, names, peer, record, rng, text, topology, vector};
use crate::topology::{MAX_PEER_CONNECTIONS, OwnPeer, Topology};
use crate::update::{PeerRecord, decode_update};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| text(value).parse().unwrap())
}

/// The peers of a vector's state in a form that can be compared.
type State =
    BTreeMap<PeerName, (String, u64, u64, Option<u64>, u64, BTreeSet<(PeerName, String, bool, bool)>)>;

fn expected(state: &Value) -> State {
    let peers = array(&state["peers"]).iter().map(|p| {
        let connections = array(&p["connections"]).iter().map(|c| {
            let flags = (c["outbound"].as_bool().unwrap(), c["established"].as_bool().unwrap());
            (name(&c["name"]), text(&c["remote_tcp_addr"]).to_owned(), flags.0, flags.1)
        });
        let short_id = p["has_short_id"].as_bool().unwrap().then(|| number(&p["short_id"]));
        let counts = (number(&p["uid"]), number(&p["version"]), number(&p["local_ref_count"]));
        let nickname = text(&p["nickname"]).to_owned();
        (name(&p["name"]), (nickname, counts.0, counts.1, short_id, counts.2, connections.collect()))
    });
    peers.collect()
}

fn actual(topology: &Topology) -> State {
    let peers = topology.peers().map(|(name, p)| {
        let connections =
            p.connections.iter().map(|c| (c.peer, c.address.to_string(), c.outbound, c.established));
        let short_id = p.short_id.map(|id| u64::from(id.get()));
        let counts = (p.uid.0, p.version, u64::from(p.references));
        (name, (p.nickname.to_string(), counts.0, counts.1, short_id, counts.2, connections.collect()))
    });
    peers.collect()
}

#[test]
fn updates_are_merged_as_in_2_8_1() {
    let cases = vector("topology_merge.json");
    assert_eq!(array(&cases).len(), 5);
    for case in array(&cases) {
        let own = name(&case["self"]);
        let mut topology = topology(own);
        topology.take_changes();
        assert_eq!(actual(&topology), expected(&case["initial"]));
        for (at, step) in array(&case["steps"]).iter().enumerate() {
            let about = format!("{} step {at}: {}", text(&case["name"]), text(&step["note"]));
            let short_id_before = topology.own_peer().short_id;
            match text(&step["op"]) {
                "connect" => {
                    let to = name(&step["peer"]);
                    let (nickname, uid, _, short_id, ..) = expected(&step["state"])[&to].clone();
                    let short_id = ShortId::new(short_id.unwrap() as u16);
                    topology.acquire_peer(to, || (nickname.as_str().into(), PeerUid(uid), short_id));
                    let own_connection =
                        expected(&step["state"])[&own].5.iter().find(|c| c.0 == to).unwrap().clone();
                    let address = GossipAddress::from_text(&own_connection.1);
                    topology.connect(PeerConnection {
                        peer: to,
                        address,
                        outbound: own_connection.2,
                        established: own_connection.3,
                    });
                }
                "disconnect" => {
                    let from = name(&step["peer"]);
                    topology.release_peer(from);
                    topology.disconnect(from);
                    topology.collect_garbage(&mut rng(1));
                }
                "gc" => topology.collect_garbage(&mut rng(1)),
                "update" => {
                    let mut update = decode_update(&hex::decode(text(&step["update"])).unwrap()).unwrap();
                    if update.dropped > 0 {
                        // The vector has a peer with a short id and without UID, which decoding refuses.
                        let d = name(&array(&step["names_in_update"])[0]);
                        let short_id = expected(&step["state"])[&d].3.and_then(|id| ShortId::new(id as u16));
                        let (nickname, uid, version) = ("D".into(), PeerUid(0), 0);
                        let connections = Vec::new();
                        update.records =
                            vec![PeerRecord { name: d, nickname, uid, version, short_id, connections }];
                    }
                    // 2.8.1 ignores a newer record with our UID, which is forged; here our version exceeds it.
                    let own_run = |r: &mut PeerRecord| r.name == own && r.uid == PeerUid(5000);
                    let forged: Vec<_> = update.records.extract_if(.., own_run).map(|r| r.name).collect();
                    let mut merged = topology.merge(update.records, u64::MAX, &mut rng(1));
                    merged.named.extend(forged);
                    let set = |key: &str| names(&step[key]).into_iter().collect::<BTreeSet<_>>();
                    assert_eq!(merged.new, set("new_or_improved"), "{about}");
                    assert_eq!(merged.named, set("names_in_update"), "{about}");
                }
                other => panic!("{other}"),
            }
            let changes = topology.take_changes();
            let changed = step["self_short_id_changed"].as_bool().unwrap();
            assert_eq!(topology.own_peer().short_id != short_id_before, changed, "{about}");
            assert_eq!(changes.short_id.is_some(), changed, "{about}");
            assert_eq!(changes.short_ids_invalidated, number(&step["short_ids_invalidated"]) > 0, "{about}");
            let removed: Vec<PeerName> = changes.removed.iter().map(|p| p.name).collect();
            assert_eq!(removed, names(&step["gc_removed"]), "{about}");

            // In the vector 4094 stands for a short id that was chosen at random.
            let drawn =
                topology.own_peer().short_id.filter(|_| topology.own_peer().short_id != ShortId::new(273));
            let with_vector_id = |id: ShortId| if Some(id) == drawn { 4094 } else { id.get() };
            let mut state = actual(&topology);
            let own_state = state.get_mut(&own).unwrap();
            own_state.3 = topology.own_peer().short_id.map(|id| with_vector_id(id).into());
            assert_eq!(state, expected(&step["state"]), "{about}");
            let owners: BTreeMap<String, PeerName> = topology
                .short_ids()
                .owners()
                .map(|(id, peer)| (with_vector_id(id).to_string(), peer))
                .collect();
            let wanted = step["state"]["short_id_owner"].as_object().unwrap();
            let wanted: BTreeMap<String, PeerName> =
                wanted.iter().map(|(id, peer)| (id.clone(), name(peer))).collect();
            assert_eq!(owners, wanted, "{about}");
        }
    }
}

#[test]
fn versions_stay_below_the_persisted_ceiling() {
    let mut topology = topology(peer(1));
    let mut ceiling = topology.take_changes().version_ceiling.expect("at the start");
    for n in 0..5000 {
        topology.connect(PeerConnection {
            peer: peer(2),
            address: GossipAddress::from_text("10.0.0.1:1"),
            outbound: true,
            established: n % 2 == 0,
        });
        if let Some(higher) = topology.take_changes().version_ceiling {
            assert!(higher > ceiling);
            ceiling = higher;
        }
        assert!(topology.own_peer().version < ceiling);
    }
    let jump = PeerRecord { version: 1 << 40, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
    topology.merge(vec![jump], u64::MAX, &mut rng(1));
    assert_eq!(topology.own_peer().version, (1 << 40) + 1);
    let changes = topology.take_changes();
    assert!(changes.announce && changes.version_ceiling > Some(1 << 40));
    // A version that no peer can have is ignored.
    let edge = PeerRecord { version: 1 << 51, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
    topology.merge(vec![edge], (1 << 51) - 1, &mut rng(1));
    assert!(!topology.take_changes().announce);
    assert_eq!(topology.own_peer().version, (1 << 40) + 1);
}

#[test]
fn forged_versions_cause_few_writes() {
    let mut topology = topology(peer(1));
    let mut ceiling = topology.take_changes().version_ceiling.expect("at the start");
    let mut written = 0;
    for n in 0..20_000u64 {
        // Alternately at the ceiling and at our version, the worst case of either rule.
        let forged = if n % 2 == 0 { ceiling } else { topology.own_peer().version };
        let forged = PeerRecord { version: forged, uid: PeerUid(9), ..record(peer(1), Vec::new()) };
        topology.merge(vec![forged], 1 << 51, &mut rng(1));
        if let Some(higher) = topology.take_changes().version_ceiling {
            assert!(higher > ceiling);
            (written, ceiling) = (written + 1, higher);
        }
        assert!(topology.own_peer().version < ceiling);
    }
    assert!((1..=64).contains(&written), "{written}");
    let last = topology.own_peer().version;
    assert!(last <= (1 << 51) + 20_000);
    let address = GossipAddress::from_text("10.0.0.1:1");
    topology.connect(PeerConnection { peer: peer(2), address, outbound: true, established: true });
    assert_eq!(topology.own_peer().version, last + 1, "our own changes still raise the version");
}

#[test]
fn number_of_peers_is_limited() {
    let mut topology = topology(peer(1));
    for block in 0..100u64 {
        let connections = (0..1000).map(|i| connection(peer(1_000_000 + block * 1000 + i), true)).collect();
        topology.merge(vec![record(peer(2 + block), connections)], u64::MAX, &mut rng(1));
    }
    assert_eq!(topology.peers().len(), 65_536);
    topology.collect_garbage(&mut rng(1));
    assert_eq!(topology.peers().len(), 1);
}

fn records() -> impl Strategy<Value = Vec<PeerRecord>> {
    let connections = prop::collection::vec((1..6u64, any::<bool>()), 0..4);
    let one = (1..6u64, 1..4u64, 0..4u64, prop::option::of(0..3u16), connections);
    let record = one.prop_map(|(n, uid, version, short_id, connections)| PeerRecord {
        name: peer(n),
        nickname: format!("n{uid}.{version}").into(),
        uid: PeerUid(uid),
        version,
        short_id: short_id.and_then(ShortId::new),
        connections: connections
            .into_iter()
            .map(|(to, established)| connection(peer(to), established))
            .collect(),
    });
    prop::collection::vec(record, 0..6)
}

fn observer() -> Topology {
    let short_id = ShortId::new(4000).unwrap();
    Topology::new(OwnPeer { name: peer(100), nickname: "o".into(), uid: PeerUid(1), version: 0, short_id })
}

/// The properties that decide whether a record replaces another.
fn versions(topology: &Topology) -> BTreeMap<PeerName, (u64, PeerUid, bool)> {
    topology.peers().map(|(name, p)| (name, (p.version, p.uid, p.short_id.is_some()))).collect()
}

proptest! {
    #[test]
    fn merging_twice_changes_nothing(update in records()) {
        let mut topology = observer();
        topology.merge(update.clone(), u64::MAX, &mut rng(1));
        let before = (actual(&topology), topology.own_peer().version);
        let again = topology.merge(update, u64::MAX, &mut rng(1));
        prop_assert!(again.new.is_empty());
        prop_assert_eq!((actual(&topology), topology.own_peer().version), before);
    }

    #[test]
    fn order_of_updates_does_not_matter(a in records(), b in records()) {
        let (mut ab, mut ba) = (observer(), observer());
        for (topology, updates) in [(&mut ab, [&a, &b]), (&mut ba, [&b, &a])] {
            for update in updates {
                topology.merge(update.clone(), u64::MAX, &mut rng(1));
            }
        }
        // Peers that only a replaced record mentions may be known in one order and not in the other.
        let versions = |t: &Topology| {
            let mut versions = versions(t);
            versions.retain(|_, (version, uid, _)| (*version, uid.0) != (0, 0));
            versions
        };
        prop_assert_eq!(versions(&ab), versions(&ba));
    }

    #[test]
    fn sent_table_contains_everything(a in records(), b in records()) {
        let mut sender = observer();
        sender.merge(a, u64::MAX, &mut rng(1));
        sender.merge(b, u64::MAX, &mut rng(1));
        let all: Vec<PeerRecord> = sender.peers().map(|(n, p)| crate::topology::record(n, p)).collect();
        let mut receiver = topology(peer(200));
        receiver.merge(all.clone(), u64::MAX, &mut rng(1));
        prop_assert!(receiver.merge(all, u64::MAX, &mut rng(2)).new.is_empty());
        for (name, known) in sender.peers() {
            let theirs = receiver.peer(name).unwrap();
            prop_assert_eq!(&theirs.connections, &known.connections);
            prop_assert_eq!(theirs.short_id, known.short_id);
        }
    }

    #[test]
    fn own_version_and_short_id_stay_consistent(updates in prop::collection::vec(records(), 1..6), own in 1..6u64) {
        let mut topology = topology(peer(own));
        let mut ceiling = topology.take_changes().version_ceiling.unwrap();
        for update in updates {
            let before = topology.own_peer().version;
            topology.merge(update, u64::MAX, &mut rng(1));
            topology.collect_garbage(&mut rng(1));
            prop_assert!(topology.own_peer().version >= before);
            ceiling = topology.take_changes().version_ceiling.unwrap_or(ceiling);
            prop_assert!(topology.own_peer().version < ceiling);
            // Each short id has the lowest claimant as its owner, and we own ours.
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
fn number_of_connections_is_limited() {
    let mut topology = topology(peer(1));
    let connections =
        |n: u64| (0..10_000).map(|i| connection(peer(1000 + n * 7 + i), true)).collect::<Vec<_>>();
    let count = |topology: &Topology| topology.peers().map(|(_, p)| p.connections.len()).sum::<usize>();
    for n in 0..450 {
        topology.merge(vec![record(peer(100 + n), connections(n))], u64::MAX, &mut rng(1));
    }
    assert_eq!(count(&topology), MAX_PEER_CONNECTIONS);
    // A record without connections makes room for others.
    topology.merge(vec![PeerRecord { version: 2, ..record(peer(100), Vec::new()) }], u64::MAX, &mut rng(1));
    topology.merge(
        vec![PeerRecord { version: 2, ..record(peer(549), connections(549)) }],
        u64::MAX,
        &mut rng(1),
    );
    assert_eq!(count(&topology), MAX_PEER_CONNECTIONS);
    topology.collect_garbage(&mut rng(1));
    assert_eq!(topology.peers().len(), 1);
    topology.merge(vec![record(peer(100), connections(1))], u64::MAX, &mut rng(1));
    assert_eq!(count(&topology), 10_000);
}

#[test]
fn neighbour_is_redundant_if_reachable_through_another() {
    // 2 and 3 are connected through 5, and 4 only to us.
    let mut topology = topology(peer(1));
    for n in [2, 3, 4] {
        let address = GossipAddress::from_text("10.0.0.1:1");
        topology.connect(PeerConnection { peer: peer(n), address, outbound: true, established: true });
    }
    let lists = [(2, vec![1, 5]), (5, vec![2, 3]), (3, vec![1, 5]), (4, vec![1])];
    let records =
        lists.map(|(n, to)| record(peer(n), to.iter().map(|&m| connection(peer(m), true)).collect()));
    topology.merge(records.into(), u64::MAX, &mut rng(1));
    assert_eq!(topology.redundant_neighbours(), [peer(2), peer(3)]);
    topology.disconnect(peer(3));
    assert_eq!(topology.redundant_neighbours(), []);
    assert!(topology.is_reachable(peer(3)) && !topology.is_reachable(peer(9)));
}
