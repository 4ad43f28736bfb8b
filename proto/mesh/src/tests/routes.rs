use std::collections::{BTreeMap, BTreeSet};

use weave_types::PeerName;

use crate::Routes;
use crate::peers::{GossipAddress, PeerConnection};
use crate::test_support::{array, connection, name, names, peer, record, rng, text, topology, vector};
use crate::topology::Topology;

/// `own`'s view of a graph of (from, to, established).
fn view(own: PeerName, peers: &[PeerName], edges: &[(PeerName, PeerName, bool)]) -> Topology {
    let mut topology = topology(own);
    let mut lists: BTreeMap<PeerName, Vec<PeerConnection>> = peers.iter().map(|&p| (p, Vec::new())).collect();
    for &(from, to, established) in edges {
        lists.get_mut(&from).unwrap().push(connection(to, established));
    }
    for own in lists.remove(&own).unwrap() {
        let (peer, established) = (own.peer, own.established);
        let address = GossipAddress::from_text("10.0.0.1:6783");
        topology.connect(PeerConnection { peer, address, outbound: true, established });
    }
    topology.merge(lists.into_iter().map(|(name, list)| record(name, list)).collect(), u64::MAX, &mut rng(1));
    topology
}

fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    items.into_iter().collect()
}

#[test]
fn routes_are_those_of_2_8_1() {
    let mut views = 0;
    for case in array(&vector("routes.json")) {
        let peers = names(&case["peers"]);
        let edges: Vec<_> = array(&case["connections"])
            .iter()
            .map(|c| (name(&c["from"]), name(&c["to"]), c["established"].as_bool().unwrap()))
            .collect();
        for expected in array(&case["views"]) {
            views += 1;
            let own = name(&expected["self"]);
            let about = format!("{} as {own}", text(&case["name"]));
            let mut topology = view(own, &peers, &edges);
            let routes = Routes::compute(&topology);

            let hops = |key: &str| -> Vec<(PeerName, PeerName)> {
                let table = expected[key].as_object().unwrap();
                table.iter().map(|(dst, via)| (dst.parse().unwrap(), name(via))).collect()
            };
            assert_eq!(set(routes.unicast_table()), set(hops("unicast")), "{about}");
            assert_eq!(set(routes.unicast_all_table()), set(hops("unicast_all")), "{about}");
            for (dst, via) in hops("unicast") {
                assert_eq!(routes.unicast(dst).unwrap_or(PeerName::UNKNOWN), via, "{about}");
            }

            let trees = |key: &str| -> Vec<(PeerName, BTreeSet<PeerName>)> {
                let table = expected[key].as_object().unwrap();
                table.iter().map(|(src, to)| (src.parse().unwrap(), set(names(to)))).collect()
            };
            for (src, to) in trees("broadcast") {
                assert_eq!(set(routes.broadcast(src).iter().copied()), to, "{about}, from {src}");
            }
            for (src, to) in trees("broadcast_all") {
                assert_eq!(set(routes.broadcast_all(src).iter().copied()), to, "{about}, from {src}");
            }
            assert_eq!(routes.broadcast_table().count(), peers.len(), "all trees have been computed");

            let weights = expected["neighbour_weights"].as_object().unwrap();
            let weights = set(weights
                .iter()
                .map(|(n, w)| (n.parse::<PeerName>().unwrap(), w.as_u64().unwrap() as u32)));
            assert_eq!(set(routes.neighbour_weights(None)), weights, "{about}");
            let count = |value: &serde_json::Value| value.as_u64().unwrap() as usize;
            assert_eq!(routes.gossip_neighbours(None), count(&expected["gossip_neighbours"]), "{about}");
            for (except, n) in expected["gossip_neighbours_except"].as_object().unwrap() {
                let except = except.parse().unwrap();
                assert_eq!(routes.gossip_neighbours(Some(except)), count(n), "{about} except {except}");
                let chosen = routes.random_neighbours(Some(except), &mut rng(7));
                assert_eq!(set(chosen.iter().copied()).len(), count(n), "distinct");
                assert!(!chosen.contains(&except));
            }

            topology.collect_garbage(&mut rng(1));
            let reachable = set(topology.peers().map(|(name, _)| name));
            assert_eq!(reachable, set(names(&expected["reachable_for_gc"])), "{about}");
        }
    }
    assert!(views > 80, "{views}");
}

#[test]
fn broadcasts_reach_every_peer_once() {
    use rand::RngExt;
    let mut rng = rng(3);
    for _ in 0..30 {
        let n = rng.random_range(2..15u64);
        let peers: Vec<PeerName> = (1..=n).map(peer).collect();
        let mut edges = set((1..n).map(|i| (peer(rng.random_range(1..=i)), peer(i + 1))));
        for _ in 0..rng.random_range(0..2 * n) {
            let (a, b) = (rng.random_range(1..=n), rng.random_range(1..=n));
            if a < b {
                edges.insert((peer(a), peer(b)));
            }
        }
        let edges: Vec<_> = edges.iter().flat_map(|&(a, b)| [(a, b, true), (b, a, true)]).collect();
        let routes: BTreeMap<PeerName, Routes> =
            peers.iter().map(|&p| (p, Routes::compute(&view(p, &peers, &edges)))).collect();
        for &source in &peers {
            let mut received = vec![source];
            let mut open = vec![source];
            while let Some(at) = open.pop() {
                for &to in routes[&at].broadcast(source) {
                    received.push(to);
                    open.push(to);
                }
            }
            received.sort();
            assert_eq!(received, peers, "from {source}, edges {edges:?}");
        }
    }
}

#[test]
fn routes_are_recomputed_only_after_a_change() {
    let peers = [peer(1), peer(2), peer(3)];
    let edges = [(peer(1), peer(2), true), (peer(2), peer(1), true), (peer(2), peer(3), false)];
    let mut topology = view(peer(1), &peers, &edges);
    let routes = Routes::compute(&topology);
    assert!(routes.recompute(&topology).is_none());
    topology.disconnect(peer(2));
    let routes = routes.recompute(&topology).expect("changed");
    assert_eq!(routes.unicast_all(peer(2)), None);
    assert!(routes.knows(peer(2)) && !routes.knows(peer(9)));
}

#[test]
fn data_for_a_neighbour_does_not_wait_for_its_report() {
    let [own, a, b, c] = [1, 2, 3, 4].map(|n| PeerName::from_number(n).unwrap());
    let peers = [own, a, b, c];
    // a has not reported its connection to us, we have not verified the one to b, and c is behind a.
    let edges =
        [(own, a, true), (a, own, false), (own, b, false), (b, own, true), (a, c, true), (c, a, true)];
    let before = Routes::compute(&view(own, &peers, &edges));
    assert_eq!([a, b, c].map(|p| before.unicast(p)), [None; 3]);
    assert_eq!([own, a, b, c].map(|p| before.unicast_or_direct(p)), [None, Some(a), None, None]);
    assert!(before.broadcast(own).is_empty(), "broadcasts wait for the report of the other side");
    // Our own report alone changes the routes as well.
    let without = view(own, &peers, &[(own, a, false), (a, own, false), (own, b, false), (b, own, true)]);
    let with = view(own, &peers, &[(own, a, true), (a, own, false), (own, b, false), (b, own, true)]);
    let routes = Routes::compute(&without);
    assert_eq!(routes.unicast_or_direct(a), None);
    assert_eq!(routes.recompute(&with).unwrap().unicast_or_direct(a), Some(a));
    // A route in the table has precedence.
    let detour =
        [(own, a, true), (a, own, false), (own, b, true), (b, own, true), (b, a, true), (a, b, true)];
    let routes = Routes::compute(&view(own, &peers, &detour));
    assert_eq!(routes.unicast_or_direct(a), Some(b));
}

#[test]
fn paths_are_those_that_the_peers_on_them_choose() {
    let peers: Vec<PeerName> = (1..=5).map(peer).collect();
    // A square 1-2-3-4 with 5 behind 3; no data passes between 3 and 5.
    let links = [(1, 2, true), (2, 3, true), (3, 4, true), (1, 4, true), (3, 5, false)];
    let edges: Vec<_> =
        links.iter().flat_map(|&(a, b, ok)| [(peer(a), peer(b), ok), (peer(b), peer(a), ok)]).collect();
    let routes: Vec<Routes> = peers.iter().map(|&p| Routes::compute(&view(p, &peers, &edges))).collect();
    for (from, to) in peers.iter().flat_map(|a| peers.iter().map(move |b| (*a, *b))) {
        let path = routes[0].path(from, to);
        assert_eq!((path.first(), path.last()), (Some(&from), Some(&to)));
        for pair in path.windows(2).filter(|_| from != peer(5) && to != peer(5)) {
            let own = &routes[pair[0].number() as usize - 1];
            assert_eq!(own.unicast(to), Some(pair[1]), "{from} to {to}: {path:?}");
        }
    }
    assert_eq!(routes[0].path(peer(1), peer(5)), [1, 2, 3, 5].map(peer), "gossip passes");
    assert_eq!(routes[0].path(peer(1), peer(6)), [], "unknown");
    let apart = Routes::compute(&view(peer(1), &peers, &edges[..2]));
    assert_eq!(apart.path(peer(1), peer(3)), []);
}
