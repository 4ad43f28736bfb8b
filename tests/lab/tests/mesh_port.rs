//! Peers that do not use the default port.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-37", "F-38");

#[test]
fn all_peers_on_another_port() {
    let Some(lab) = Lab::start("port", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    assert!(h1.weave_env(&[("WEAVE_PORT", "7000")], &["launch", "--no-restart"]).success());
    launch(h2, &["--port", "7000"], &["h1"]);
    launch(h3, &["-port=7000"], &["h1"]);
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
        let sockets = host.command_ok(&["ss", "-Hlntu"]);
        assert!(sockets.contains(":7000 ") && !sockets.contains(":6783 "), "{sockets}");
    }
    let members = attach_each(&[h1, h2, h3]);
    members[0].container.reaches("10.2.1.2", SHORT_TIMEOUT);
    for host in lab.hosts() {
        let env = [("WEAVE_PORT", "7000")];
        let outcome = host.weave_env(&env, &["stop"]);
        assert!(outcome.success(), "{outcome}");
        assert!(host.daemon_pid().is_none());
        let outcome = host.weave_env(&env, &["reset"]);
        assert!(outcome.success(), "{outcome}");
        let links = host.command_ok(&["ip", "-o", "link"]);
        assert!(!links.contains("weave") && !links.contains("vethwe"), "{links}");
    }
    claims(&["F-37"]);
}

#[test]
fn peers_on_different_ports() {
    let Some(lab) = Lab::start("ports", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &["--port", "7000"], &[]);
    h1.weave_ok(&["connect", "h2"]);
    // No peer listens on the default port; the reason names the address.
    h1.wait("the reason of the failure", SHORT_TIMEOUT, || {
        let all = h1.connections();
        all.iter()
            .any(|c| c.state != "established" && c.remote == "198.18.0.2:6783" && c.info.contains("refused"))
    });
    h1.weave_ok(&["connect", "h2:7000"]);
    h1.wait("h2 on its port", LONG_TIMEOUT, || {
        h1.connections().iter().any(|c| c.remote == "198.18.0.2:7000" && c.state == "established")
    });
    let members = attach_each(&[h1, h2]);
    check_all_traffic(&members);
    claims(&["F-38"]);
}
