//! Three hosts in a full mesh behave like one switch, plain and encrypted.

use weave_lab::packet::Ethernet;
use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-6", "F-2", "F-3", "F-4", "F-5", "F-6");

#[test]
fn all_traffic_kinds_pass_between_all_pairs() {
    let Some(lab) = Lab::start("mesh", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    check_all_traffic(&members);

    // Targets are shown as they were given.
    let targets = lab.host("h2").weave_ok(&["status", "targets"]);
    assert_eq!(targets.trim(), "h1");
    claims(&["S-6", "F-3", "F-4", "F-5"]);
}

#[test]
fn all_traffic_kinds_pass_encrypted() {
    let Some(lab) = Lab::start("crypt", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &["--password", "wEaVe"]);
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    check_all_traffic(&members);
    for host in lab.hosts() {
        for connection in host.connections() {
            assert!(
                connection.info.contains("encrypted") && !connection.info.contains("unencrypted"),
                "{connection:?}"
            );
        }
    }
    claims(&["F-5"]);
}

#[test]
fn unicast_is_learned_and_broadcasts_are_flooded() {
    let Some(lab) = Lab::start("switch", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    let [a, b, c] = &members[..] else { unreachable!() };
    let second = lab.host("h1").container("d1");
    second.attach(&["10.2.1.11/24"]);
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);

    let (at_b, at_c, at_d) = (b.container.capture(), c.container.capture(), second.capture());
    let pings = a.container.ping(&b.ip, 10);
    assert_eq!((pings.received, pings.ttl), (10, Some(64)));
    // ARP for an unused address and frames to an unknown MAC are flooded.
    assert!(a.container.arp("10.2.1.99").is_empty());
    assert!(a.container.raw("02:00:00:00:00:99", 200, &[], 0).is_empty());
    let (at_b, at_c, at_d) = (at_b.finish(), at_c.finish(), at_d.finish());

    let echo = |captured: &weave_lab::capture::Captured| {
        captured.frames().iter().filter(|f| f.get(12..14) == Some(&[8, 0]) && f.get(23) == Some(&1)).count()
    };
    assert!(echo(&at_b) >= 20, "requests and answers at the target");
    assert_eq!((echo(&at_c), echo(&at_d)), (0, 0), "learned unicast goes to its target only");
    for (captured, where_) in [(&at_b, "h2"), (&at_c, "h3"), (&at_d, "the same host")] {
        let frames: Vec<Ethernet<'_>> = captured.frames().into_iter().filter_map(Ethernet::parse).collect();
        assert!(
            frames.iter().any(|f| f.ethertype == 0x0806 && f.payload.ends_with(&[10, 2, 1, 99])),
            "ARP on {where_}"
        );
        assert!(frames.iter().any(|f| f.to == [2, 0, 0, 0, 0, 0x99]), "unknown unicast on {where_}");
        assert!(
            frames.iter().all(|f| f.ethertype != 0x88b5 || hex(f.from) == a.container.mac()),
            "own MAC on {where_}"
        );
    }

    step("ARP and iptables in containers");
    let arping = b.container.arp(&a.ip);
    assert_eq!(arping, [a.container.mac()]);
    b.container.command_ok(&["iptables", "-w", "-A", "INPUT", "-p", "icmp", "-s", &a.ip, "-j", "DROP"]);
    a.container.never_reaches(&b.ip);
    c.container.reaches(&b.ip, SHORT_TIMEOUT);
    claims(&["F-2", "F-6"]);
}

fn hex(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}
