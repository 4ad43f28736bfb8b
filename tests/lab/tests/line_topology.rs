//! Hosts that only reach their neighbours: frames are relayed, as often as it takes.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-39", "F-40");

#[test]
fn five_hosts_in_a_line_relay_frames() {
    let Some(lab) = Lab::start("line", &Topology::hosts(5)) else { return };
    launch_line(&lab, &[]);
    // The hosts in the middle have no containers at first and only relay.
    let ends = attach_each(&[lab.host("h1"), lab.host("h5")]);
    check_all_traffic(&ends);
    let middle = attach_each(&[lab.host("h3")]);
    let all: Vec<Member> = ends.into_iter().chain(middle).collect();
    for (a, b) in ordered_pairs(&all) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
        a.container.tcp(&b.container, &b.ip, 200_000);
    }
    check_broadcasts(&all);
    claims(&["F-39", "F-40"]);
}

#[test]
fn relayed_frames_pass_encrypted() {
    let Some(lab) = Lab::start("cline", &Topology::hosts(3)) else { return };
    launch_line(&lab, &["--password", "wEaVe"]);
    let ends = attach_each(&[lab.host("h1"), lab.host("h3")]);
    check_all_traffic(&ends);
    // Each host connects to its neighbours only.
    let routes = lab.host("h1").report().unwrap();
    let via = routes["Router"]["UnicastRoutes"].as_array().unwrap();
    assert_eq!(via.len(), 3, "{via:?}");
    claims(&["F-39"]);
}
