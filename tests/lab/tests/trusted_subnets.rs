//! Trusted subnets: plain traffic between hosts that trust each other's network, although there is a password.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-17");

#[test]
fn plain_traffic_requires_mutual_trust() {
    let Some(lab) = Lab::start("trusted", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    let trusting = ["--password", "wEaVe", "--trusted-subnets", "10.99.0.0/16,198.18.0.0/24"];
    launch(h1, &trusting, &[]);
    // Warp would encrypt nevertheless.
    launch(h2, &[&["--overlays=fastdp,sleeve"], &trusting[..]].concat(), &["h1"]);
    // h3 trusts no subnet.
    launch(h3, &["--password", "wEaVe"], &["h1"]);
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
    }
    assert!(h1.weave_ok(&["status"]).contains("TrustedSubnets: 10.99.0.0/16"));
    for (host, others) in [(h1, [("h2", false), ("h3", true)]), (h3, [("h1", true), ("h2", true)])] {
        for (other, encrypted) in others {
            let all = host.connections();
            let peer = all.iter().find(|c| c.info.contains(&format!("({other})"))).unwrap();
            let word = if encrypted { "encrypted" } else { "unencrypted" };
            assert_eq!(peer.info.split(' ').next(), Some(word), "{peer:?}");
        }
    }
    let members = attach_each(&[h1, h2, h3]);
    for (a, b) in ordered_pairs(&members) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    let captures = [lab.wire().capture("h2"), lab.wire().capture("h3")];
    let _ears: Vec<_> = members.iter().map(|m| m.container.listen_cast(None)).collect();
    for to in ["10.2.1.2", "10.2.1.3"] {
        assert_eq!(members[0].container.cast(to, 1), [to]);
    }
    let [to_h2, to_h3] = captures.map(|c| c.finish().count(b"who is there?"));
    assert!(to_h2 > 0, "the trusted path is plain");
    assert_eq!(to_h3, 0, "the other is not");
    claims(&["F-17"]);
}
