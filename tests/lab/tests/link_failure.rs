//! Links and hosts fail under traffic.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-42", "F-49");

#[test]
fn fastdp_is_rerouted_and_returns_to_the_direct_link() {
    cut_is_routed_around("triangle", &[], "fastdp");
    claims(&["F-42", "F-49"]);
}

#[test]
fn warp_is_rerouted_and_returns_to_the_direct_link() {
    cut_is_routed_around("warpcut", &["--password", "wEaVe"], "warp");
}

/// A cut between two of three hosts: traffic takes the third, and returns when the link works again. TCP between containers goes on.
fn cut_is_routed_around(lab: &str, options: &[&str], overlay: &str) {
    let Some(lab) = Lab::start(lab, &Topology::hosts(3)) else { return };
    launch_mesh(&lab, options);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|host| lab.host(host));
    let members = attach_each(&[h1, h3]);
    let [a, c] = &members[..] else { unreachable!() };
    wait_overlay(h1, overlay);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chat, pinger) = (a.container.chat(&c.container, &c.ip, 50), c.container.pinging(&a.ip, 50));
    lab.cut("h1", "h3");
    wait_route(h1, h3, h2);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    lab.heal("h1", "h3");
    wait_route(h1, h3, h3);
    wait_overlay(h1, overlay);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chatter, pings) = (chat.finish(), pinger.finish());
    assert!(chatter.broken.is_none(), "{chatter:?}");
    println!(
        "interruption by the cut: {:.1} s for pings, {:.1} s for TCP",
        pings.longest_gap_ms / 1e3,
        chatter.longest_gap_ms / 1e3
    );
}

#[test]
fn stopped_daemon_keeps_its_connections() {
    let Some(lab) = Lab::start("stopped", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &["--no-fastdp", "--mtu", "1376"]);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let pinger = a.container.pinging(&c.ip, 50);
    let (h1, h3) = (lab.host("h1"), lab.host("h3"));
    let connections = |host: &weave_lab::Host| {
        let list = host.weave_ok(&["status", "connections"]);
        let mut list: Vec<String> =
            list.lines().filter_map(|l| Some(l.split_whitespace().nth(1)?.to_owned())).collect();
        list.sort();
        list
    };
    let before = connections(h1);
    h3.signal_daemon("STOP");
    h1.wait("the failure of the path to be noticed", SHORT_TIMEOUT, || {
        let noticed = h1.sh("cat /var/log/weave.log").contains("the path has failed");
        noticed.then_some(()).ok_or("not yet".to_owned())
    });
    h3.signal_daemon("CONT");
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    wait_route(h1, h3, h3);
    assert_eq!(connections(h1), before, "the same TCP connections, with the same ports");
    let gap = pinger.finish().longest_gap_ms;
    println!("interruption: {:.1} s", gap / 1e3);
}

#[test]
fn kernel_forwards_while_the_daemon_is_stopped() {
    let Some(lab) = Lab::start("frozen", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    let (h1, h3) = (lab.host("h1"), lab.host("h3"));
    wait_overlay(h1, "fastdp");
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    h3.signal_daemon("STOP");
    let pings = a.container.ping(&c.ip, 30);
    h3.signal_daemon("CONT");
    assert_eq!(pings.received, 30, "{pings:?}");
    let log = h1.sh("cat /var/log/weave.log");
    assert!(!log.contains("the path has failed"), "{log}");
}

#[test]
fn traffic_survives_the_failure_of_a_relay() {
    let Some(lab) = Lab::start("square", &Topology::hosts(4)) else { return };
    launch_square(&lab, &[]);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let chat = a.container.chat(&c.container, &c.ip, 50);
    let way = via(lab.host("h1"), &name_of(lab.host("h3"))).unwrap();
    let victim = if way == name_of(lab.host("h2")) { "h2" } else { "h4" };
    lab.host(victim).signal_daemon("KILL");
    a.container.reaches(&c.ip, LONG_TIMEOUT);
    let chatter = chat.finish();
    assert!(chatter.broken.is_none(), "{chatter:?}");
    println!("interruption by the death of {victim}: {:.1} s", chatter.longest_gap_ms / 1e3);
    claims(&["F-49"]);
}

/// A host that vanishes, and one whose link goes down, are routed around; no frame arrives twice, and TCP goes on.
#[test]
fn traffic_survives_the_loss_of_a_relay_without_a_word() {
    let Some(lab) = Lab::start("silent", &Topology::hosts(4)) else { return };
    launch_square(&lab, &[]);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (h1, name3) = (lab.host("h1"), name_of(lab.host("h3")));
    let names = ["h2", "h4"].map(|host| name_of(lab.host(host)));
    let way = || {
        let way = via(h1, &name3)?;
        names.iter().position(|name| *name == way).ok_or(way)
    };
    // With the second nobody is told anything.
    let packets = |change: &str| {
        format!("iptables -{change} INPUT -i eth0 -j DROP; iptables -{change} OUTPUT -o eth0 -j DROP")
    };
    let link = |state: &str| format!("ip link set eth0 {state}");
    for (down, up) in [(link("down"), link("up")), (packets("I"), packets("D"))] {
        let relay = h1.wait("a relay", LONG_TIMEOUT, way);
        let victim = lab.host(["h2", "h4"][relay]);
        let (chat, pinger) = (a.container.chat(&c.container, &c.ip, 50), a.container.pinging(&c.ip, 20));
        victim.sh(&down);
        h1.wait("the other relay", SHORT_TIMEOUT, || match way()? {
            now if now != relay => Ok(()),
            _ => Err("the same relay".to_owned()),
        });
        a.container.reaches(&c.ip, SHORT_TIMEOUT);
        let (chatter, pings) = (chat.finish(), pinger.finish());
        assert!(chatter.broken.is_none(), "{chatter:?}");
        assert_eq!(pings.duplicates, 0, "{pings:?}");
        println!("interruption by `{down}`: {:.1} s", pings.longest_gap_ms / 1e3);
        victim.sh(&up);
        victim.wait_established(2, LONG_TIMEOUT);
    }
}
