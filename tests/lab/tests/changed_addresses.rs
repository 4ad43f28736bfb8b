//! The underlay address of a host changes, its link goes down, and a host is a copy of another.

use std::process::Command;

use weave_lab::{Host, Lab, Topology};

use crate::common::addresses::ipam_page;
use crate::common::*;

/// A cable between two hosts, `eth1` at both.
fn connect_directly(a: &Host, b: &Host) {
    let (a, b) = (a.pid().to_string(), b.pid().to_string());
    let args =
        ["link", "add", "name", "eth1", "netns", &a, "type", "veth", "peer", "name", "eth1", "netns", &b];
    let status = Command::new("ip").args(args).status().expect("ip");
    assert!(status.success(), "{status}");
}

fn wait_connection(host: &Host, remote_ip: &str) {
    host.wait(&format!("a connection with {remote_ip}"), SHORT_TIMEOUT, || {
        let all = host.connections();
        let found = all.iter().any(|c| {
            c.state == "established" && c.remote.rsplit_once(':').is_some_and(|(ip, _)| ip == remote_ip)
        });
        if found { Ok(()) } else { Err(format!("{all:#?}")) }
    });
}

#[test]
fn peer_with_another_address_connects_again() {
    let Some(lab) = Lab::start("moved", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    connect_directly(h1, h2);
    h1.sh("ip addr add 172.30.0.1/24 dev eth1; ip link set eth1 up");
    h2.sh("ip addr add 172.30.0.2/24 dev eth1; ip link set eth1 up");
    // The peer that moves has not dialled.
    launch(h2, &[], &[]);
    launch(h1, &[], &["172.30.0.2"]);
    wait_connection(h1, "172.30.0.2");
    step("the address changes");
    h2.sh("ip addr del 172.30.0.2/24 dev eth1; ip addr add 172.30.0.22/24 dev eth1");
    wait_connection(h1, "172.30.0.22");
    wait_connection(h2, "172.30.0.1");
    let (c1, c2) = (h1.container("c1"), h2.container("c2"));
    c1.attach(&["10.2.1.1/24"]);
    c2.attach(&["10.2.1.2/24"]);
    c1.reaches("10.2.1.2", SHORT_TIMEOUT);
    step("the link goes down and comes back");
    h2.sh("ip link set eth1 down");
    for host in [h1, h2] {
        host.wait("the connection to end", SHORT_TIMEOUT, || {
            let all = host.connections();
            if all.iter().any(|c| c.state == "established") { Err(format!("{all:#?}")) } else { Ok(()) }
        });
    }
    h2.sh("ip link set eth1 up");
    wait_connection(h2, "172.30.0.1");
    c1.reaches("10.2.1.2", SHORT_TIMEOUT);
}

#[test]
fn copy_of_a_host_is_refused_and_told_so() {
    let Some(lab) = Lab::start("copy", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    let id = h1.sh("cat /etc/machine-id");
    h2.sh(&format!("echo {} > /etc/machine-id", id.trim()));
    launch(h3, &[], &[]);
    launch(h1, &[], &["h3"]);
    h3.wait_established(1, LONG_TIMEOUT);
    let (c1, c2) = (h1.container("c1"), h2.container("c2"));
    c1.attach(&[]);
    step("an attach waits for the first contact with the network, and ends with the refusal");
    lab.cut("h2", "h3");
    launch(h2, &[], &["h3"]);
    let outcome = std::thread::scope(|scope| {
        let attach = scope.spawn(|| h2.weave(&["attach", &c2.netns()]));
        h2.wait("the attach to wait", SHORT_TIMEOUT, || {
            let page = ipam_page(h2);
            if page.contains("waiting for the first division") { Ok(()) } else { Err(page) }
        });
        lab.heal("h2", "h3");
        attach.join().unwrap()
    });
    assert!(!outcome.success() && outcome.stderr.contains("with --name"), "{outcome}");
    h2.wait("the refusal to be shown", LONG_TIMEOUT, || {
        let all = h2.connections();
        let told = |info: &str| info.contains("another host has our name (h1 at 198.18.0.1:");
        if all.iter().any(|c| told(&c.info)) { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    let outcome = h2.weave(&["attach", &c2.netns()]);
    assert!(!outcome.success() && outcome.stderr.contains("with --name"), "{outcome}");
    let log = h3.log();
    assert!(!log.contains("connection deleted"), "the connection of the first is not disturbed: {log}");
    assert_eq!(h3.connections().iter().filter(|c| c.state == "established").count(), 1);
}
