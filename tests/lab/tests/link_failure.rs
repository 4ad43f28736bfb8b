//! Links and hosts fail under traffic.

use std::time::Duration;

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-42", "F-49");

#[test]
fn traffic_is_rerouted_and_returns_to_the_direct_link() {
    let Some(lab) = Lab::start("triangle", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let members = attach_each(&[lab.host("h1"), lab.host("h3")]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chat, pinger) = (a.container.chat(&c.container, &c.ip, 50), c.container.pinging(&a.ip, 50));

    lab.cut("h1", "h3");
    let h1 = lab.host("h1");
    let (h2, h3) = (name_of(lab.host("h2")), name_of(lab.host("h3")));
    h1.wait("h3 to be reached over h2", LONG_TIMEOUT, || {
        via(h1, &h3)?.eq(&h2).then_some(()).ok_or("not yet".to_owned())
    });
    a.container.reaches(&c.ip, SHORT_TIMEOUT);

    lab.heal("h1", "h3");
    step("traffic returns to the direct link without a command");
    h1.wait("h3 to be reached directly", LONG_TIMEOUT, || {
        via(h1, &h3)?.eq(&h3).then_some(()).ok_or("not yet".to_owned())
    });
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chatter, pings) = (chat.finish(), pinger.finish());
    assert!(chatter.broken.is_none(), "{chatter:?}");
    println!(
        "interruption by the cut: {:.1} s for pings, {:.1} s for TCP",
        pings.longest_gap_ms / 1e3,
        chatter.longest_gap_ms / 1e3
    );
    assert!(Duration::from_millis(pings.longest_gap_ms as u64) < LONG_TIMEOUT);
    claims(&["F-42", "F-49"]);
}

#[test]
fn traffic_survives_the_failure_of_a_relay() {
    let Some(lab) = Lab::start("square", &Topology::hosts(4)) else { return };
    // h1 and h3 reach h2 and h4 only.
    lab.cut("h1", "h3");
    lab.cut("h2", "h4");
    for (host, peers) in [("h1", &[][..]), ("h2", &["h1"]), ("h4", &["h1"]), ("h3", &["h2", "h4"])] {
        launch(lab.host(host), &[], peers);
    }
    for host in lab.hosts() {
        wait_peers(host, 4);
        host.wait_established(2, LONG_TIMEOUT);
    }
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

/// A host's peer name.
fn name_of(host: &weave_lab::Host) -> String {
    host.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned()
}

/// The neighbour over which `host` sends to the peer `to`.
fn via(host: &weave_lab::Host, to: &str) -> Result<String, String> {
    let report = host.report()?;
    let routes = report["Router"]["UnicastRoutes"].as_array().ok_or("no routes")?;
    let route = routes.iter().find(|r| r["Dest"] == to).ok_or("no route")?;
    Ok(route["Via"].as_str().unwrap_or_default().to_owned())
}
