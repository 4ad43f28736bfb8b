//! Encoding of gossip, compared with messages of 2.8.1.

use crate::support::{knowledge, list, name, number, range, state, text, vectors};
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::paxos::{ElectorId, ElectorState, Knowledge, Paxos};
use weave_types::{PeerName, PeerUid};

fn assert_round_trip(bytes: &[u8], expected: &StateMessage, what: &str) {
    let mut read = StateMessage::decode(bytes).unwrap();
    // The order of peers in a value has no meaning; the vectors list them sorted.
    for claims in read.paxos.iter_mut().flat_map(|paxos| paxos.values_mut()) {
        claims.value.value.sort();
    }
    assert_eq!(&read, expected, "{what}");
    assert_eq!(&StateMessage::decode(&expected.encode()).unwrap(), expected, "{what}");
}

#[test]
fn rings_round_trip_as_recorded() {
    for case in list(&vectors("ring_gossip.json")["cases"]) {
        assert_round_trip(
            &hex::decode(text(&case["hex"])).unwrap(),
            &state(&case["decoded"]),
            text(&case["name"]),
        );
    }
}

#[test]
fn election_states_round_trip_as_recorded() {
    for case in list(&vectors("paxos_gossip.json")["messages"]) {
        assert_round_trip(
            &hex::decode(text(&case["hex"])).unwrap(),
            &state(&case["decoded"]),
            text(&case["name"]),
        );
    }
}

#[test]
fn encodings_of_other_writers_are_decoded() {
    for case in list(&vectors("minimal_encodings.json")["cases"]) {
        let bytes = hex::decode(text(&case["hex"])).unwrap();
        let decoded = &case["decoded"];
        if decoded.get("now").is_some() {
            assert_round_trip(&bytes, &state(decoded), text(&case["name"]));
        } else {
            assert_eq!(Unicast::decode(&bytes), Ok(Some(Unicast::Request(range(decoded)))));
        }
    }
}

#[test]
fn unicasts_round_trip_as_recorded() {
    for case in list(&vectors("unicast.json")["cases"]) {
        let bytes = hex::decode(text(&case["hex"])).unwrap();
        let expected = match number(&case["type"]) {
            0 => Unicast::Request(range(case)),
            1 => Unicast::State(state(&case["decoded"])),
            2 => Unicast::Denied(range(case)),
            other => panic!("{other}"),
        };
        assert_eq!(Unicast::decode(&bytes).unwrap().unwrap(), expected);
        assert_eq!(Unicast::decode(&expected.encode()).unwrap().unwrap(), expected);
        assert_eq!(expected.encode()[0], bytes[0]);
    }
    assert_eq!(Unicast::decode(&[]), Ok(None));
    assert_eq!(Unicast::decode(&[3]), Ok(None));
    assert_eq!(Unicast::decode(&[77, 1, 2, 3]), Ok(None));
}

/// Replays an election step by step.
#[test]
fn election_states_follow_the_recorded_steps() {
    let vectors = vectors("paxos_gossip.json");
    let steps = list(&vectors["steps"]);
    let a = ElectorId { name: "01:00:00:00:00:0a".parse().unwrap(), uid: PeerUid(1_111_111_111_111_111_111) };
    let b = ElectorId { name: "02:00:00:00:00:0b".parse().unwrap(), uid: PeerUid(2) };
    let c = ElectorId { name: "03:00:00:00:00:0c".parse().unwrap(), uid: PeerUid(3) };
    let mut nodes: std::collections::BTreeMap<&str, Paxos> =
        [("A", a), ("B", b), ("C", c)].map(|(label, id)| (label, Paxos::new(id))).into();
    nodes.values_mut().for_each(|node| node.set_quorum(2));
    for step in &steps[..10] {
        let label = text(&step["node"]);
        let what = text(&step["what"]);
        if what.contains("proposes") {
            nodes.get_mut(label).unwrap().propose(2);
        } else {
            let from = what.split("state of ").nth(1).unwrap().split(' ').next().unwrap();
            let received = nodes[from].knowledge().clone();
            let node = nodes.get_mut(label).unwrap();
            let updated = node.update(&received);
            assert_eq!(serde_json::json!(updated), step["update_changed"], "{what}");
            let changed = updated && node.promise_and_accept();
            assert_eq!(serde_json::json!(changed), step["think_changed"], "{what}");
        }
        check(&nodes[label], step);
    }
    let mut alone = Paxos::new(ElectorId { uid: PeerUid(5), ..a });
    alone.propose(1);
    check(&alone, &steps[10]);

    // A restarted peer without stored state is a new acceptor.
    let again = ElectorId { uid: PeerUid(11), ..a };
    let mut restarted = Paxos::new(again);
    restarted.set_quorum(2);
    let mut received = knowledge(&steps[11]["state_after"]);
    received.remove(&again);
    assert!(restarted.update(&received) && restarted.promise_and_accept());
    check(&restarted, &steps[11]);
    restarted.propose(2);
    let other = knowledge(&steps[12]["state_after"]).into_iter().filter(|(node, _)| node.name == b.name);
    assert!(restarted.update(&other.collect()) && restarted.promise_and_accept());
    check(&restarted, &steps[12]);
}

fn check(node: &Paxos, step: &serde_json::Value) {
    let mut knows = node.knowledge().clone();
    knows.values_mut().for_each(|claims| claims.value.value.sort());
    assert_eq!(knows, knowledge(&step["state_after"]), "{}", step["what"]);
    let consensus = node.consensus();
    assert_eq!(serde_json::json!(consensus.is_some()), step["consensus"], "{}", step["what"]);
    let expected: Vec<_> = list(&step["consensus_value_sorted"]).iter().map(name).collect();
    assert_eq!(consensus.unwrap_or_default(), expected);
}

#[test]
fn number_of_electors_is_limited() {
    let id = |n: u64| ElectorId { name: PeerName::from_number(n).unwrap(), uid: PeerUid(n) };
    let flood: Knowledge = (2..70_000).map(|n| (id(n), ElectorState::default())).collect();
    let mut paxos = Paxos::new(id(1));
    paxos.update(&flood);
    assert_eq!(paxos.knowledge().len(), 65_536);
}
