//! What leaves the machine has complete checksums, whatever the containers left to their devices.

use std::collections::BTreeMap;

use weave_lab::packet::{Checksum, Reassembly, checksum, sleeve_records};
use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-3", "F-4", "F-5");

#[test]
fn checksums_are_complete_on_the_wire() {
    let Some(lab) = Lab::start("sums", &Topology::hosts(2)) else { return };
    lab.wire_offloads(false);
    // The datagrams of sleeve can be read here.
    launch_mesh(&lab, &["--overlays=sleeve"]);
    let members = attach_each(&[lab.host("h1"), lab.host("h2")]);
    let [a, b] = &members[..] else { unreachable!() };
    // All offloads on, so that the devices of the containers leave checksums to be completed later.
    for m in &members {
        m.container.command_ok(&["ethtool", "-K", "ethwe", "tx", "on", "tso", "on", "gso", "on"]);
    }
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    // Both ends have finished duplicate address detection.
    a.container.link_local();
    let v6 = format!("{}%ethwe", b.container.link_local());
    let capture = lab.wire().capture("h2");
    assert_eq!(a.container.ping(&b.ip, 3).received, 3);
    a.container.tcp(&b.container, &b.ip, 2_000_000);
    a.container.udp(&b.container, &b.ip, &[0, 1, 700, 1348, 1349, 5000, 30_000]);
    a.container.tcp(&b.container, &v6, 300_000);
    a.container.reaches(&v6, SHORT_TIMEOUT);
    let seen = capture.finish();

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let (mut whole, mut records) = (Reassembly::default(), 0);
    for datagram in seen.datagrams().iter().filter(|d| d.from_port == 6783 && d.to_port == 6783) {
        let Some(frames) = sleeve_records(datagram.payload) else { continue };
        for record in frames {
            records += 1;
            assert!(record.frame.len() <= 1376 + 14 + 4, "a frame of {} bytes", record.frame.len());
            let verdicts = [Some(checksum(record.frame)), whole.add(record.frame)];
            for verdict in verdicts.into_iter().flatten() {
                match verdict {
                    Checksum::Good(kind) => *counts.entry(kind).or_default() += 1,
                    Checksum::None => {}
                    Checksum::Bad(kind) => panic!("incomplete checksum: {kind} in {:02x?}", record.frame),
                }
            }
        }
    }
    println!("{records} frames, good checksums: {counts:?}");
    for kind in ["ipv4 tcp", "ipv4 udp", "ipv4 icmp", "ipv6 tcp", "ipv6 icmp"] {
        assert!(counts.get(kind).is_some_and(|n| *n > 0), "no {kind} seen: {counts:?}");
    }
    assert!(counts["ipv4 tcp"] > 1000, "segments of two megabytes both ways: {counts:?}");
    claims(&["F-3", "F-4", "F-5"]);
}
