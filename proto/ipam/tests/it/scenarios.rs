//! Runs of whole allocators, compared with runs of 2.8.1.

use crate::support;
use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::support::peer::{Peer, Sent, subnet};
use crate::support::{list, name, range, records, ring, state, text, vectors};
use serde_json::{Value, json};
use weave_ipam::message::{StateMessage, Unicast};
use weave_ipam::{
    Config, Entry, Event, GossipError, HandOver, Init, Loaded, Record, RequestError, Ring, State, Subnet,
};
use weave_types::{Cidr, PeerName, PeerUid};

const NET: &str = "10.2.0.0/24";

fn peer_name(text: &str) -> PeerName {
    text.parse().unwrap()
}

fn a() -> PeerName {
    peer_name("01:00:00:00:00:0a")
}

fn b() -> PeerName {
    peer_name("02:00:00:00:00:0b")
}

fn config(name: PeerName, uid: u64, nickname: &str, init: Init) -> Config {
    Config { init, ..Config::new(name, PeerUid(uid), nickname, subnet(NET)) }
}

fn pair(init: Init) -> (Peer, Peer) {
    let mut one = Peer::new(config(a(), 101, "host-a", init.clone()));
    let mut two = Peer::new(config(b(), 202, "host-b", init));
    one.set_reachable(&[a(), b()]);
    two.set_reachable(&[a(), b()]);
    one.take_sent();
    two.take_sent();
    (one, two)
}

fn steps(index: usize) -> Vec<Value> {
    list(&vectors("scenarios.json")["scenarios"][index]["steps"]).to_vec()
}

fn assert_sent(sent: &[Sent], expected: &Value) {
    let expected = list(expected);
    assert_eq!(sent.len(), expected.len(), "{sent:?}");
    let sorted = |mut message: StateMessage| {
        message.paxos.iter_mut().flat_map(|p| p.values_mut()).for_each(|c| c.value.value.sort());
        // 2.8.1 does not send its allocation range.
        assert_eq!(message.range.take().is_some(), message.ring.is_none());
        message
    };
    for (sent, expected) in sent.iter().zip(expected) {
        let decoded = &expected["decoded"];
        match sent {
            Sent::Broadcast(bytes) => {
                assert_eq!(expected["kind"], "broadcast");
                assert_eq!(sorted(StateMessage::decode(bytes).unwrap()), state(decoded));
            }
            Sent::Unicast(to, bytes) => {
                assert_eq!(expected["kind"], "unicast");
                assert_eq!(*to, name(&expected["to"]));
                let expected = match expected["unicast_type"].as_u64().unwrap() {
                    0 => Unicast::Request(range(decoded)),
                    1 => Unicast::State(state(decoded)),
                    _ => Unicast::Denied(range(decoded)),
                };
                assert_eq!(Unicast::decode(bytes).unwrap().unwrap(), expected);
            }
        }
    }
}

fn assert_ring(peer: &Peer, expected: &Value) {
    assert_eq!(*peer.allocator.ring(), ring(expected));
}

#[test]
fn bootstrap_and_donation_follow_the_recorded_messages() {
    let steps = steps(0);
    let (mut one, mut two) = pair(Init::Consensus(Some(2)));
    let c1 = one.allocate("c1", NET);
    let mut sent = one.take_sent();
    assert_sent(&sent, &steps[0]["A_sends"]);
    for (index, step) in steps[1..6].iter().enumerate() {
        let (receiver, from, who) = if index % 2 == 0 { (&mut two, a(), "B") } else { (&mut one, b(), "A") };
        for message in &sent {
            receiver.receive(from, message).unwrap();
        }
        sent = receiver.take_sent();
        assert_sent(&sent, &step[format!("{who}_sends")]);
        assert_ring(receiver, &step[format!("{who}_state")]["ring"]);
        let answered = if index < 3 { "pending" } else { "10.2.0.1" };
        assert_eq!(one.result(c1), answered, "{}", step["what"]);
    }
    for n in 2..=127 {
        let id = one.allocate(&format!("c{n}"), NET);
        assert_ne!(one.result(id), "pending");
    }
    let more = one.allocate("more", NET);
    assert_ring(&one, &steps[6]["A_ring"]);
    let sent = one.take_sent();
    assert_sent(&sent, &steps[6]["A_sends"]);
    two.receive(a(), &sent[0]).unwrap();
    let sent = two.take_sent();
    assert_sent(&sent, &steps[7]["B_sends"]);
    assert_ring(&two, &steps[7]["B_ring"]);
    one.receive(b(), &sent[1]).unwrap();
    assert_eq!(one.result(more), text(&steps[8]["allocate_result"]));
    assert_ring(&one, &steps[8]["A_ring"]);
    assert_sent(&one.take_sent(), &json!([]));

    assert!(one.allocator.remove_peer("host-b", false, one.now()).is_err(), "it is reachable");
    one.set_reachable(&[a()]);
    let moved = one.allocator.remove_peer("host-b", false, one.now()).unwrap();
    one.drain();
    assert_eq!(json!(moved), steps[9]["transferred"]);
    assert_sent(&one.take_sent(), &steps[9]["A_sends"]);
    assert_ring(&one, &steps[9]["A_ring"]);
    for unknown in ["nobody", "host-a", "01:00:00:00:00:0a", "host-b"] {
        assert_eq!(one.allocator.remove_peer(unknown, true, one.now()), Ok(0), "{unknown}");
    }
}

#[test]
fn claims_of_another_peers_address() {
    let steps = steps(1);
    let (mut one, mut two) = pair(Init::Seed(vec![a(), b()]));
    assert_ring(&one, &steps[0]["A_ring"]);
    let id = two.allocate("cb", NET);
    assert_eq!(two.result(id), text(&steps[1]["allocate_result"]));
    // As in the recorded run, A knows B's nickname.
    let hello = two.allocator.state(two.now());
    two.drain();
    one.allocator.handle_gossip(&hello, one.now()).unwrap();
    one.drain();
    let hello = Peer::new(config(a(), 101, "host-a", Init::Seed(vec![a(), b()]))).allocator.state(one.now());
    two.allocator.handle_gossip(&hello, two.now()).unwrap();
    two.drain();

    let granted = one.claim("ca", "10.2.0.200/24", false);
    let sent = one.take_sent();
    assert_sent(&sent, &steps[2]["A_sends"]);
    assert_eq!(one.result(granted), "pending");
    two.receive(a(), &sent[0]).unwrap();
    let sent = two.take_sent();
    for (sent, expected) in sent.iter().zip(list(&steps[3]["B_sends"])) {
        let rings = |bytes: &[u8]| StateMessage::decode(bytes).unwrap().ring.unwrap();
        let bytes = match sent {
            Sent::Broadcast(bytes) => &bytes[..],
            Sent::Unicast(_, bytes) => &bytes[1..],
        };
        assert_eq!(rings(bytes), ring(&expected["decoded"]["ring"]));
    }
    assert_ring(&two, &steps[3]["B_ring"]);
    one.receive(b(), &sent[1]).unwrap();
    assert_eq!(one.result(granted), text(&steps[4]["claim_result"]));

    let denied = one.claim("ca", "10.2.0.128/24", false);
    let sent = one.take_sent();
    assert_sent(&sent, &steps[5]["A_sends"]);
    two.receive(a(), &sent[0]).unwrap();
    let sent = two.take_sent();
    assert_eq!(sent.len(), 2, "denied, then the ring");
    one.receive(b(), &sent[0]).unwrap();
    assert_eq!(one.result(denied), text(&steps[7]["claim_result"]));
    one.receive(b(), &sent[1]).unwrap();

    one.set_reachable(&[a()]);
    let unreachable = one.claim("ca", "10.2.0.140/24", false);
    let mut results = vec![one.result(unreachable)];
    for _ in 0..5 {
        one.advance(5);
        results.push(one.result(unreachable));
    }
    assert_eq!(json!(results), json!(list(&steps[8]["claim_results"])[..6]));
    let silent = one.claim("ca", "10.2.0.141/24", true);
    assert_eq!(one.result(silent), text(&steps[9]["claim_result"]));
    let pending = one.allocator.status(one.now()).pending;
    assert_eq!(json!(pending.len()), steps[9]["still_pending"]);
    // The claim continues and succeeds in the end.
    one.set_reachable(&[a(), b()]);
    for message in one.take_sent() {
        two.receive(a(), &message).unwrap();
    }
    for message in two.take_sent() {
        one.receive(b(), &message).unwrap();
    }
    assert!(one.allocator.status(one.now()).pending.is_empty());
    assert_eq!(one.allocator.lookup("ca", subnet(NET)).len(), 2);
}

#[test]
fn observer_triggers_an_election() {
    let steps = steps(2);
    let o = peer_name("03:00:00:00:00:0c");
    let mut observer = Peer::new(config(o, 303, "host-o", Init::Observer));
    let mut elector = Peer::new(config(a(), 101, "host-a", Init::Consensus(Some(1))));
    let mut other = Peer::new(config(a(), 101, "host-a", Init::Consensus(Some(1))));
    let nick = text(&steps[0]["O_sends"][0]["decoded"]["nicknames"]["03:00:00:00:00:0c"]).to_owned();
    observer.allocator = Peer::new(config(o, 303, &nick, Init::Observer)).allocator;
    observer.set_reachable(&[a(), o]);
    elector.set_reachable(&[a(), o]);

    let wanted = observer.allocate("co", NET);
    let sent = observer.take_sent();
    assert_sent(&sent, &steps[0]["O_sends"]);
    assert_eq!(observer.allocator.status(observer.now()).state, State::Priming);
    elector.receive(o, &sent[0]).unwrap();
    let from_elector = elector.take_sent();
    assert_sent(&from_elector, &steps[1]["A_sends"]);
    assert_ring(&elector, &steps[1]["A_ring"]);
    let Sent::Broadcast(bytes) = &sent[0] else { panic!() };
    other.allocator.handle_gossip(bytes, other.now()).unwrap();
    other.drain();
    assert_eq!(other.take_sent(), [], "periodic gossip starts no election");

    for message in &from_elector {
        observer.receive(a(), message).unwrap();
    }
    let sent = observer.take_sent();
    assert_sent(&sent, &steps[3]["O_sends"]);
    elector.receive(o, &sent[0]).unwrap();
    let sent = elector.take_sent();
    assert_sent(&sent, &steps[4]["A_sends"]);
    observer.receive(a(), &sent[1]).unwrap();
    assert_eq!(observer.result(wanted), text(&steps[5]["allocate_result"]));
    assert_ring(&observer, &steps[5]["O_ring"]);

    let late = peer_name("00:00:00:00:00:01");
    let hello = hex::decode(text(&steps[6]["E_sends"][0]["hex"])).unwrap();
    elector.receive(late, &Sent::Broadcast(hello)).unwrap();
    let sent = elector.take_sent();
    assert_eq!(sent.len(), 1);
    let Sent::Unicast(to, bytes) = &sent[0] else { panic!("{sent:?}") };
    assert_eq!(*to, late);
    let Some(Unicast::State(answer)) = Unicast::decode(bytes).unwrap() else { panic!() };
    assert_eq!(answer.ring.as_ref(), Some(elector.allocator.ring()));
}

/// A reachable peer may allocate no addresses: it would lose the ranges. One that has sent its ring does allocate.
#[test]
fn leaving_transfers_nothing_to_a_peer_that_does_not_allocate() {
    let leave = |hello: Option<Vec<u8>>| {
        let (mut one, _) = pair(Init::Seed(vec![a()]));
        if let Some(hello) = hello {
            one.allocator.handle_gossip(&hello, one.now()).unwrap();
        }
        one.allocate("c1", NET);
        one.allocator.leave(one.now())
    };
    assert!(matches!(leave(None), HandOver::Nothing | HandOver::NoPeer { .. }));
    let (_, mut two) = pair(Init::Seed(vec![a()]));
    let hello = two.allocator.state(two.now());
    assert!(matches!(leave(Some(hello)), HandOver::To { peer, addresses: 256, .. } if peer == b()));
}

#[test]
fn leaving_transfers_all_ranges() {
    let steps = steps(3);
    let (mut one, mut two) = pair(Init::Seed(vec![a(), b()]));
    let hello = two.allocator.state(two.now());
    two.drain();
    one.allocator.handle_gossip(&hello, one.now()).unwrap();
    one.allocate("c1", NET);
    let hand_over = one.allocator.leave(one.now());
    one.drain();
    assert_eq!(hand_over, HandOver::To { peer: b(), nickname: "host-b".to_owned(), addresses: 128 });
    let sent = one.take_sent();
    assert_sent(&sent, &steps[0]["A_sends"]);
    assert_ring(&one, &steps[0]["A_ring"]);
    let late = one.allocate("c2", NET);
    assert_eq!(one.done[&late].as_ref().unwrap_err().to_string(), text(&steps[1]["error"]));
    two.receive(a(), &sent[0]).unwrap();
    assert_ring(&two, &steps[2]["B_ring"]);

    // A range that arrives after the transfer is transferred, too.
    let mut late = two.allocator.ring().clone();
    late.grant(weave_ipam::AddrRange::new(late.range().start(), late.range().start() + 64), a());
    let state = StateMessage { ring: Some(late), ..StateMessage::default() };
    one.receive(b(), &Sent::Broadcast(state.encode())).unwrap();
    assert!(one.allocator.ring().ranges_owned_by(a()).is_empty());
    assert_eq!(one.take_sent().len(), 1);

    // The number of transfers to a peer that returns the range each time is limited.
    let (mut one, mut two) = pair(Init::Seed(vec![a(), b()]));
    one.allocator.leave(one.now());
    one.drain();
    two.allocator.leave(two.now());
    two.drain();
    let mut hops = 0;
    let mut sent: Vec<(bool, Sent)> = one.take_sent().into_iter().map(|sent| (true, sent)).collect();
    sent.extend(two.take_sent().into_iter().map(|sent| (false, sent)));
    while let Some((to_two, message)) = sent.pop() {
        hops += 1;
        assert!(hops < 20, "to and fro");
        let (from, to) = if to_two { (a(), &mut two) } else { (b(), &mut one) };
        to.receive(from, &message).unwrap();
        sent.extend(to.take_sent().into_iter().map(|sent| (!to_two, sent)));
    }

    // Without a reachable peer nothing is transferred, and the result says so.
    let (mut alone, _) = pair(Init::Seed(vec![a(), b()]));
    alone.set_reachable(&[a()]);
    assert_eq!(alone.allocator.leave(alone.now()), HandOver::NoPeer { addresses: 128 });
    alone.drain();
    assert_eq!(alone.take_sent(), []);

    // Without any other peer, nobody has to take over.
    let mut only = Peer::new(config(a(), 101, "host-a", Init::Seed(vec![a()])));
    only.set_reachable(&[a()]);
    assert_eq!(only.allocator.leave(only.now()), HandOver::Nothing);
    // A peer that was reachable once and owns nothing knows that the ranges are taken.
    let (mut left, _) = pair(Init::Seed(vec![a()]));
    left.set_reachable(&[a(), b()]);
    left.set_reachable(&[a()]);
    assert_eq!(left.allocator.leave(left.now()), HandOver::NoPeer { addresses: 256 });
}

#[test]
fn conflicts_with_other_seeds_and_ranges() {
    let steps = steps(4);
    let (mut one, _) = pair(Init::Seed(vec![a(), b()]));
    one.set_reachable(&[a(), peer_name("03:00:00:00:00:0c")]);
    let is_conflict = |error: &GossipError| matches!(error, GossipError::Conflict(_));
    let receive = |peer: &mut Peer, bytes: &[u8]| {
        let error =
            peer.allocator.handle_broadcast(peer_name("03:00:00:00:00:0c"), bytes, peer.now()).unwrap_err();
        peer.drain();
        (error.to_string(), is_conflict(&error))
    };
    let expected = |step: usize, conflict: bool| (text(&steps[step]["error"]).to_owned(), conflict);
    let payload = hex::decode(text(&steps[0]["payload"]["hex"])).unwrap();
    assert_eq!(receive(&mut one, &payload), expected(0, true));
    for (step, other) in [(1, "10.3.0.0/24"), (2, "10.2.0.0/25")] {
        let ring = Ring::new(subnet(other).range(), peer_name("03:00:00:00:00:0c"));
        let state = StateMessage { ring: Some(ring), ..StateMessage::default() };
        assert_eq!(receive(&mut one, &state.encode()), expected(step, true));
    }
    let undecodable = payload[..payload.len() / 2].to_vec();
    assert_eq!(receive(&mut one, &undecodable), expected(3, false));
    assert_eq!(receive(&mut one, &[]), expected(4, false));
    // Both sides continue to serve their own requests, and their status names a remedy.
    let id = one.allocate("c1", NET);
    assert_eq!(one.result(id), "10.2.0.1");
    let status = one.allocator.status(one.now());
    assert_eq!(status.conflicts.len(), 1);
    assert!(status.conflicts[0].conflict.remedy().contains("--ipalloc-range"));
    // The remedy concerns the other peer, so it is not shown any longer than that peer is there.
    one.set_reachable(&[a()]);
    assert_eq!(one.allocator.status(one.now()).conflicts, []);
}

#[test]
fn restart_with_stored_state() {
    let vectors = vectors("persistence.json");
    let keys = list(&vectors["keys"]);
    let key = |name: &str| keys.iter().find(|k| k["key"] == name).unwrap();
    let stored = Loaded {
        ring: Some(Ring::from_bytes(&hex::decode(text(&key("ring")["hex"])).unwrap()).unwrap()),
        election: None,
        owned: records(&key("ownedAddresses")["decoded"]),
    };
    assert_eq!(stored.ring, Some(ring(&key("ring")["decoded"])));
    for case in list(&vectors["restart_cases"]) {
        let what = text(&case["name"]);
        let mut config = config(a(), 77, "host-a", Init::Consensus(Some(2)));
        let mut disk = stored.clone();
        if what.contains("other name") {
            config.name = peer_name("03:00:00:00:00:0c");
        }
        if what.starts_with("other range") {
            config.range = subnet("10.2.0.0/25");
        }
        if what.contains("other seed") {
            config.init = Init::Seed(vec![a()]);
        } else if what.contains("with seed") {
            config.init = Init::Seed(vec![a(), b()]);
        }
        if what.starts_with("nothing") {
            disk = Loaded::default();
        } else if what.contains("owned addresses missing") {
            disk.owned.clear();
        }
        let mut peer = Peer::restored(config, disk);
        assert_eq!(*peer.allocator.ring(), ring(&case["state"]["ring"]), "{what}");
        let owned: BTreeMap<&String, Vec<String>> = peer
            .allocator
            .owned()
            .iter()
            .map(|(id, record)| (id, record.cidrs.iter().map(Cidr::to_string).collect()))
            .collect();
        assert_eq!(json!(owned), case["state"]["owned"], "{what}");
        // The number of free addresses may be stored later, but before it is sent.
        peer.allocator.state(peer.now());
        peer.drain();
        let stored =
            peer.disk.ring.clone().unwrap_or_else(|| Ring::new(peer.config.range.range(), peer.config.name));
        assert_eq!(stored, ring(&case["db_ring_after"]), "{what}");
        assert_eq!(peer.disk.owned.len(), peer.allocator.owned().len());
    }
}

#[test]
fn stored_rings_and_records_round_trip() {
    let vectors = vectors("persistence.json");
    for key in list(&vectors["keys"]) {
        if key["key"] == "ring" && key.get("hex").is_some() {
            let expected = ring(&key["decoded"]);
            assert_eq!(Ring::from_bytes(&hex::decode(text(&key["hex"])).unwrap()), Ok(expected.clone()));
            assert_eq!(Ring::from_bytes(&expected.to_bytes()), Ok(expected));
        }
        if key["key"] == "ownedAddresses" {
            for record in records(&key["decoded"]).into_values() {
                assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record));
            }
        }
    }
}

#[test]
fn quorum_of_each_init_mode() {
    let vectors = vectors("quorum.json");
    for case in list(&vectors["from_count"]) {
        let count = case["consensus_count"].as_i64().unwrap();
        let init: Init = format!("consensus={count}").parse().unwrap();
        assert_eq!(init, Init::Consensus(u32::try_from(count).ok().filter(|&n| n > 0)));
        assert_eq!(quorum(init, 2), case["quorum"].as_u64().unwrap(), "{count}");
    }
    for case in list(&vectors["from_peer_addresses"]) {
        let given = case["usable_peer_addresses"].as_u64().unwrap() as u32;
        assert_eq!(quorum(Init::Consensus(None), given), case["quorum"].as_u64().unwrap(), "{given}");
    }
}

fn quorum(init: Init, targets: u32) -> u64 {
    let mut peer = Peer::new(config(a(), 1, "host-a", init));
    peer.allocator.handle_target_count(targets, peer.now());
    peer.prime();
    let quorum = peer.events.iter().find_map(|event| match event {
        Event::Electing { quorum, .. } => Some(u64::from(*quorum)),
        _ => None,
    });
    quorum.unwrap()
}

/// The HTTP handlers of the daemon turn these answers into responses.
#[test]
fn answers_to_http_requests() {
    let vectors = vectors("http.json");
    let mut config = config(a(), 1, "host-a", Init::Consensus(Some(1)));
    config.range = subnet("10.2.0.0/24");
    config.default_subnet = subnet("10.2.0.0/25");
    let mut peer = Peer::new(config);
    let mut replayed = 0;
    for step in list(&vectors["steps"]) {
        let path = text(&step["path"]).split('?').next().unwrap().trim_start_matches('/');
        let parts: Vec<&str> = path.split('/').collect();
        let answer: Result<String, String> = match (text(&step["method"]), &parts[..]) {
            (_, ["ipinfo", ..] | ["nonsense"]) | ("POST", ["ip"]) | ("PUT", ["ip", _, _]) => continue,
            ("GET", ["ip"]) => {
                let got: BTreeMap<String, Vec<String>> = peer
                    .allocator
                    .owned()
                    .iter()
                    .map(|(id, r)| (id.clone(), r.cidrs.iter().map(Cidr::to_string).collect()))
                    .collect();
                let body: Value = serde_json::from_str(text(&step["body"])).unwrap();
                let expected: BTreeMap<String, Vec<String>> = list(&body["owned"])
                    .iter()
                    .map(|o| {
                        let addrs = list(&o["addrs"]).iter().map(|a| text(a).to_owned()).collect();
                        (text(&o["containerid"]).to_owned(), addrs)
                    })
                    .collect();
                assert_eq!(got, expected);
                replayed += 1;
                continue;
            }
            ("GET", ["ring"]) => {
                let id = peer.prime();
                assert!(peer.done[&id].is_ok());
                Ok(String::new())
            }
            ("GET", ["ip", id, rest @ ..]) => subnet_of(&peer, rest).map(|subnet| {
                let cidrs: Vec<String> =
                    peer.allocator.lookup(id, subnet).iter().map(Cidr::to_string).collect();
                cidrs.join(" ")
            }),
            ("POST", ["ip", id, rest @ ..]) => subnet_of(&peer, rest).and_then(|subnet| {
                let request = peer.allocate(id, &subnet.to_string());
                match &peer.done[&request] {
                    Ok(weave_ipam::Answer::Allocated(cidr)) => Ok(cidr.to_string()),
                    Ok(other) => panic!("{other:?}"),
                    Err(RequestError::Cancelled(_)) => Ok("cancelled".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            }),
            ("PUT", ["ip", id, addr, len]) => {
                let cidr: Result<Cidr, _> = format!("{addr}/{len}").parse();
                cidr.map_err(|error| error.to_string()).and_then(|cidr| {
                    let request = peer.claim(id, &cidr.to_string(), false);
                    match &peer.done[&request] {
                        Ok(_) => Ok(String::new()),
                        Err(RequestError::Cancelled(_)) => Ok("cancelled".to_owned()),
                        Err(error) => Err(format!("Unable to claim: {error}")),
                    }
                })
            }
            ("DELETE", ["ip", id, addr]) => {
                let addr: Result<IpAddr, String> =
                    addr.parse().map_err(|_| format!("invalid IP Address: {addr}"));
                addr.and_then(|addr| {
                    let result = peer.allocator.free(id, addr, peer.now());
                    result.map(|()| String::new()).map_err(|error| format!("Unable to free: {error}"))
                })
            }
            ("DELETE", ["ip", id]) => {
                let result = peer.allocator.delete(id, peer.now());
                result.map(|()| String::new()).map_err(|error| error.to_string())
            }
            ("DELETE", ["peer", id]) => {
                let taken = peer.allocator.remove_peer(id, true, peer.now()).unwrap();
                Ok(format!("{taken} IPs taken over from {id}\n"))
            }
            ("DELETE", ["peer"]) => {
                peer.allocator.leave(peer.now());
                Ok(String::new())
            }
            other => panic!("{other:?}"),
        };
        if text(&step["note"]).contains("after shutdown: cancelled") && replayed > 0 {
            peer.allocator.leave(peer.now());
        }
        peer.drain();
        let expected = text(&step["body"]);
        if expected == "cancelled" {
            // The shutdown of the vector has no step of its own.
            continue;
        }
        match answer {
            Ok(body) => assert_eq!(
                (body.as_str(), step["status"].as_u64().unwrap() < 300),
                (expected, true),
                "{step}"
            ),
            Err(error) => assert_eq!(
                (format!("{error}\n").as_str(), &step["status"]),
                (expected, &json!(400)),
                "{step}"
            ),
        }
        replayed += 1;
    }
    assert!(replayed > 40, "{replayed}");
    let late = peer.allocate("c9", NET);
    assert!(matches!(peer.done[&late], Err(RequestError::Cancelled(_))));
    let late = peer.claim("c9", "10.2.0.99/24", false);
    assert!(matches!(peer.done[&late], Err(RequestError::Cancelled(_))));
    let late = peer.prime();
    assert!(peer.done[&late].is_ok(), "there is a ring");
}

fn subnet_of(peer: &Peer, rest: &[&str]) -> Result<Subnet, String> {
    match rest {
        [] => Ok(peer.config.default_subnet),
        [addr, len] => {
            format!("{addr}/{len}").parse().map_err(|error: weave_ipam::SubnetError| error.to_string())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn status_pages_equal_the_vectors() {
    for case in list(&vectors("status.json")["cases"]) {
        let what = text(&case["name"]);
        let report = &case["report_ipam_json"];
        if report.is_null() {
            continue;
        }
        let default = subnet("10.32.0.0/12");
        let elector = !what.starts_with("observer");
        let init = if elector { Init::Consensus(Some(2)) } else { Init::Observer };
        let mut config = config(a(), 1, "host-a", init);
        (config.range, config.default_subnet) = (default, default);
        let entries = list(&report["Entries"]);
        if let Some(own) = entries.iter().find(|e| e["Peer"] == "01:00:00:00:00:0a") {
            config.nickname = text(&own["Nickname"]).to_owned();
        }
        let mut disk = Loaded::default();
        if !entries.is_empty() {
            let tokens = entries.iter().map(|e| Entry {
                token: support::addr(&e["Token"]),
                peer: name(&e["Peer"]),
                version: e["Version"].as_u64().unwrap() as u32,
                // No donor has free addresses, so that requests continue to wait.
                free: 0,
            });
            disk.ring = Some(Ring::from_parts(default.range(), a(), tokens.collect(), vec![a(), b()]));
        }
        let active = report["ActiveIPs"].as_u64().unwrap();
        let mut peer = Peer::restored(config, disk);
        let known = entries.iter().filter(|e| e["IsKnownPeer"] == true);
        let known: BTreeMap<PeerName, String> =
            known.map(|e| (name(&e["Peer"]), text(&e["Nickname"]).to_owned())).collect();
        peer.allocator.handle_topology_change(&known, peer.now());
        let nicknames: BTreeMap<PeerName, String> = entries
            .iter()
            .map(|e| (name(&e["Peer"]), text(&e["Nickname"]).to_owned()))
            .filter(|(peer, _)| *peer != a())
            .collect();
        let ring = (!entries.is_empty()).then(|| peer.allocator.ring().clone());
        if ring.is_some() {
            let state = StateMessage { nicknames, ring, ..StateMessage::default() };
            peer.allocator.handle_gossip(&state.encode(), peer.now()).unwrap();
        }
        peer.drain();
        if what.starts_with("waiting") {
            // A request cannot wait while there is free space; any waiting peer will do here.
            continue;
        }
        for n in 0..active {
            let own = peer.allocator.space().free().iter().next().unwrap();
            peer.claim(&format!("own{n}"), &format!("{}/12", std::net::Ipv4Addr::from(own.start())), false);
        }
        for claim in list(&report["PendingClaims"]) {
            let cidr = format!("{}/{}", text(&claim["CIDR"]["Addr"]), claim["CIDR"]["PrefixLen"]);
            let container = text(&claim["Ident"]).to_owned();
            peer.allocator.preclaim(container, &[cidr.parse().unwrap()], true, peer.now());
        }
        for pending in list(&report["PendingAllocates"]) {
            let (id, net) = text(pending).split_once(' ').unwrap();
            peer.allocate(id, net);
        }
        if what.starts_with("observer") {
            peer.prime();
        }
        let status = peer.allocator.status(peer.now());
        let line = text(&case["status_text"]).lines().find(|line| line.contains(" Status: ")).unwrap();
        assert_eq!(status.state_text(), line.split_once("Status: ").unwrap().1, "{what}");
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(sorted(&status.owner_lines()), sorted(text(&case["status_ipam_text"])), "{what}");
        assert_eq!(u64::from(status.active), active);
        assert_eq!(u64::from(status.range.range().size()), report["RangeNumIPs"].as_u64().unwrap());
        assert_eq!(
            status.pending.len(),
            list(&report["PendingClaims"]).len()
                + list(&report["PendingAllocates"]).len()
                + usize::from(what.starts_with("observer"))
        );
        let shown: Vec<Value> = status
            .entries
            .iter()
            .map(|e| json!({"Token": std::net::Ipv4Addr::from(e.range.start()).to_string(), "Size": e.range.size(), "Peer": e.peer.to_string(), "Nickname": e.nickname, "IsKnownPeer": e.reachable}))
            .collect();
        let expected: Vec<Value> = entries
            .iter()
            .map(|e| json!({"Token": e["Token"], "Size": e["Size"], "Peer": e["Peer"], "Nickname": e["Nickname"], "IsKnownPeer": e["IsKnownPeer"]}))
            .collect();
        assert_eq!(shown, expected, "{what}");
        match (&status.election, &report["Paxos"]) {
            (None, paxos) => assert!(paxos.is_null(), "{what}"),
            (Some(election), paxos) => assert_eq!(
                json!({"Elector": election.elector, "KnownNodes": election.known, "Quorum": election.quorum}),
                *paxos,
                "{what}"
            ),
        }
    }
}
