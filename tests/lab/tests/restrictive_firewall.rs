//! Firewalls between hosts: which ports must be open, and a host that cannot connect to others.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-36", "F-43", "F-44");

#[test]
fn one_open_port_is_enough() {
    let Some(lab) = Lab::start("wall", &Topology::hosts(3)) else { return };
    for host in lab.hosts() {
        lab.firewall(host.name(), &["tcp:6783", "udp:6783"]);
    }
    launch_mesh(&lab, &[]);
    for host in lab.hosts() {
        assert!(
            host.connections().iter().all(|c| c.info.contains("sleeve") || c.info.contains("warp")),
            "the mode is shown"
        );
    }
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    check_all_traffic(&members);
    claims(&["F-36"]);
}

#[test]
fn host_that_cannot_connect_is_connected_by_others() {
    let Some(lab) = Lab::start("fetched", &Topology::hosts(4)) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h));
    for other in ["h1", "h2", "h3"] {
        lab.block("h4", other);
    }
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    launch(h3, &[], &["h1"]);
    launch(h4, &[], &[]);
    h1.weave_ok(&["connect", "h4"]);
    h1.wait("h4 to be connected", LONG_TIMEOUT, || {
        h1.connections()
            .iter()
            .any(|c| c.outbound && c.remote == "198.18.0.4:6783" && c.state == "established")
    });
    claims(&["F-43"]);
    // The others connect without a command.
    for host in lab.hosts() {
        host.wait_established(3, LONG_TIMEOUT);
    }
    assert!(h4.connections().iter().filter(|c| c.state == "established").all(|c| !c.outbound));
    let members = attach_each(&[h2, h4]);
    // What h4 sends by fastdp is dropped, which h2 finds out by traffic. A broadcast may be lost while it changes the overlay.
    let pings = members[0].container.pinging(&members[1].ip, 50);
    h2.wait("frames to h4 to go by warp", LONG_TIMEOUT, || {
        let list = h2.connections();
        let by_warp = list.iter().any(|c| c.remote.starts_with("198.18.0.4:") && c.info.starts_with("warp"));
        if by_warp { Ok(()) } else { Err(format!("{list:?}")) }
    });
    drop(pings);
    check_all_traffic(&members);
    claims(&["F-44"]);
}
