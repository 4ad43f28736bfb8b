//! Vectors captured from 2.8.1.

use serde_json::Value;
use weave_switch::fragment::{Fragments, MAX_ICMP_FRAME, frag_needed, too_big};
use weave_switch::frame::{Class, classify};
use weave_switch::{
    DropReason, Learned, LocalVerdict, MacConfig, MacTable, PeerVerdict, SwitchEvent, local_frame, peer_frame,
};
use weave_types::{MacAddr, PeerName};

use crate::mac::{X, Y, at};
use crate::verdict::{B, C, OWN, frame, table};

fn vectors(name: &str) -> Value {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/data-plane/");
    serde_json::from_str(&std::fs::read_to_string(format!("{dir}{name}")).unwrap()).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn hex(value: &Value) -> Vec<u8> {
    ::hex::decode(text(value)).unwrap()
}

#[test]
fn mac_table_equals_the_vectors() {
    let vectors = vectors("mac_cache.json");
    let steps = list(&vectors["steps"]);
    let max_age = std::time::Duration::from_millis(1000);
    // Seen from C: "add" is a local capture, "add-forced" any frame from a peer.
    let mut macs = MacTable::new(MacConfig { max_age, ..MacConfig::new(C) });
    let check = |i: usize, op: &str, learned: Learned| {
        assert_eq!(text(&steps[i]["op"]), op);
        assert_eq!(steps[i]["new"], learned == Learned::New, "{op}");
        learned
    };
    assert_eq!(check(0, "add X->B", macs.learn_remote(X, B, at(0))), Learned::New);
    assert_eq!(check(1, "add X->B", macs.learn_remote(X, B, at(0))), Learned::Known);
    let refused = check(2, "add X->C (not forced: refused)", macs.learn_local(X, at(0)));
    assert_eq!(refused, Learned::Refused { by: B });
    assert_eq!(steps[2]["conflict"], true);
    // Deviations: the move is reported (docs/spec/data-plane.md 2.2), and an address moves between this peer and another one after
    // the hold-down.
    let moved = check(3, "add-forced X->C", macs.learn_remote(X, C, at(2000)));
    assert_eq!(moved, Learned::Moved { from: B });
    assert_eq!(steps[3]["conflict_reported"], false);
    assert_eq!(macs.lookup(X) == Some(C), steps[4]["result"] == true);
    assert_eq!(text(&steps[5]["op"]), "after 1300 ms lookup X is nil");
    macs.expire(at(3300));
    assert_eq!(macs.lookup(X).is_none(), steps[5]["result"] == true);
    assert_eq!(steps.len(), 6);
}

/// The input of a scenario.
enum Input {
    Captured(MacAddr),
    Received { src: PeerName, dst: PeerName, to: MacAddr },
}

#[test]
fn switching_decisions_equal_the_vectors() {
    use Input::{Captured, Received};
    let from_b = Received { src: B, dst: OWN, to: Y };
    let from_b_again = || Received { src: B, dst: OWN, to: Y };
    let known: [(&[(MacAddr, PeerName)], Input); 15] = [
        (&[], Captured(Y)),
        (&[], Captured(MacAddr::BROADCAST)),
        (&[], Captured(MacAddr([1, 0, 0x5e, 0, 0, 1]))),
        (&[], Captured(MacAddr::SPANNING_TREE)),
        (&[(Y, B)], Captured(Y)),
        (&[(Y, OWN)], Captured(Y)),
        (&[(X, B)], Captured(Y)),
        (&[(Y, OWN)], from_b),
        (&[], from_b_again()),
        (&[(Y, C)], from_b_again()),
        (&[], Received { src: B, dst: OWN, to: MacAddr::BROADCAST }),
        (&[], Received { src: B, dst: C, to: Y }),
        (&[(X, C), (Y, OWN)], from_b_again()),
        (&[(X, OWN), (Y, OWN)], from_b_again()),
        (&[], Received { src: OWN, dst: OWN, to: Y }),
    ];
    let vectors = vectors("switching_decisions.json");
    let scenarios = list(&vectors["scenarios"]);
    assert_eq!(scenarios.len(), known.len());
    for (scenario, (known, input)) in scenarios.iter().zip(known) {
        let name = text(&scenario["scenario"]);
        assert_eq!(matches!(input, Captured(_)), name.starts_with("captured"), "{name}");
        let mut macs = MacTable::new(MacConfig::new(OWN));
        for (mac, peer) in known {
            macs.learn_remote(*mac, *peer, at(0));
        }
        let table = table(&macs);
        let mut actions = vec![];
        let event = match input {
            Captured(to) => {
                let (verdict, event) = local_frame(&table, &frame(X, to), at(1));
                actions.push("Captured");
                match verdict {
                    LocalVerdict::Flood(to) => {
                        assert_eq!(to, [B, C]);
                        actions.push("Broadcasting");
                    }
                    LocalVerdict::Unicast { dst, .. } => {
                        assert_eq!(dst, B);
                        actions.push("Forwarding");
                    }
                    LocalVerdict::Drop(_) => {}
                }
                event
            }
            Received { src, dst, to } => {
                let (verdict, event) = peer_frame(&table, src, dst, &frame(X, to), at(1));
                match verdict {
                    PeerVerdict::Deliver { flood } => {
                        actions.extend(["Injecting", "INJECT-INTO-LOCAL-BRIDGE"]);
                        if !flood.is_empty() {
                            actions.push("Relaying broadcast");
                        }
                    }
                    PeerVerdict::Relay { via } => {
                        assert_eq!(via, B);
                        actions.push("Relaying");
                    }
                    PeerVerdict::Drop(reason) => {
                        // Deviation: 2.8.1 forwards its own packets (see `peer_frame`).
                        assert!(name.contains("received own packet"), "{name}");
                        assert_eq!(reason, DropReason::OwnPacket);
                        assert_eq!(event, Some(SwitchEvent::OwnPacket { peer: OWN, mac: X, dst: to }));
                        continue;
                    }
                }
                event
            }
        };
        let expected: Vec<_> = list(&scenario["actions"]).iter().map(text).collect();
        assert_eq!(actions, expected, "{name}");
        match event {
            Some(SwitchEvent::LocalMac(mac)) => assert_ne!(macs.learn_local(mac, at(1)), Learned::Ignored),
            Some(SwitchEvent::RemoteMac { mac, peer }) => {
                // Deviation: 2.8.1 moves an address of this peer at once.
                assert_ne!(macs.learn_remote(mac, peer, at(2000)), Learned::Ignored)
            }
            _ => {}
        }
        for (label, mac) in [("X(02:42:ac:11:00:02)", X), ("Y(02:42:ac:11:00:03)", Y)] {
            let place = match macs.lookup(mac) {
                None => "unknown",
                Some(OWN) => "self",
                Some(B) => "B",
                Some(_) => "C",
            };
            assert_eq!(place, text(&scenario["mac_cache_after"][label]), "{name}: {label}");
        }
    }
}

#[test]
fn frame_classes_equal_the_vectors() {
    let vectors = vectors("frame_classification.json");
    for case in list(&vectors["frames"]) {
        let frame = match &case["frame"] {
            Value::Null => vec![0; number(&case["frame_len"])],
            frame => hex(frame),
        };
        assert_eq!(frame.len(), number(&case["frame_len"]));
        let class = classify(&frame);
        let name = text(&case["name"]);
        let layers = match class {
            Class::TooShort => 0,
            Class::Ipv4 { .. } => 2,
            Class::Control | Class::Ipv6 | Class::Other => 1,
        };
        assert_eq!(layers, number(&case["layers_decoded"]), "{name}");
        assert_eq!(class == Class::Control, case["special"] == true, "{name}");
        assert_eq!(class == Class::Ipv4 { df: true }, case["df"] == true, "{name}");
        assert_eq!(class == Class::TooShort, case["ignored"] == true, "{name}");
    }
    assert_eq!(list(&vectors["frames"]).len(), 13);
}

#[test]
fn fragments_equal_the_vectors() {
    let vectors = vectors("sleeve_fragmentation.json");
    for case in list(&vectors["fragment"]) {
        let frame = hex(&case["frame"]);
        let mut fragments = Fragments::new(&frame, number(&case["mtu"])).unwrap();
        let mut buf = [0xee; 2000];
        for expected in list(&case["fragments"]) {
            let expected = hex(expected);
            assert_eq!(fragments.next_len(), Some(expected.len()));
            assert_eq!(fragments.next_into(&mut buf), Some(expected.len()), "{}", case["name"]);
            assert_eq!(buf[..expected.len()], expected, "{}", case["name"]);
        }
        assert_eq!(fragments.next_len(), None);
        assert_eq!(fragments.next_into(&mut buf), None);
    }
    for case in list(&vectors["frame_too_big"]) {
        let expected = case["too_big"] == true;
        assert_eq!(too_big(number(&case["frame_len"]), number(&case["mtu"])), expected, "{case}");
    }
    for case in list(&vectors["icmp_frag_needed"]) {
        let mut buf = [0xee; MAX_ICMP_FRAME];
        let len = frag_needed(&hex(&case["frame"]), number(&case["mtu"]) as u16, &mut buf).unwrap();
        assert_eq!(buf[..len], hex(&case["icmp_frame"]), "{}", case["name"]);
    }
    assert_eq!(list(&vectors["fragment"]).len(), 5);
    assert_eq!(list(&vectors["icmp_frag_needed"]).len(), 3);
}
