//! A network card that loses what it has cut from larger sends: ICMP passes, TCP does not. Rules of the packet filter stand for it, which
//! see super-frames whole.

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

const REASON: &str =
    "segmentation offload of the tunnel is broken: plain probes arrive, segmented ones do not";

/// `hook`: for datagrams of a socket the rule is at the receiver, because a rule of the sender would be told to the socket.
fn lose_segments(host: &Host, hook: &str, port: u16) {
    host.sh(&format!(
        "nft 'table ip card {{ chain card {{ type filter hook {hook} priority 0; udp dport {port} meta length > 1500 drop; }}; }}'"
    ));
}

fn repair(host: &Host) {
    host.sh("nft delete table ip card");
}

/// The overlay and what status says of the only connection.
fn wait_info(host: &Host, what: &str, matches: impl Fn(&str) -> bool) {
    host.wait(what, LONG_TIMEOUT, || {
        let list = host.connections();
        if list.len() == 1 && matches(&list[0].info) { Ok(()) } else { Err(format!("{list:?}")) }
    });
}

#[test]
fn tunnel_offload_that_loses_segments_is_not_used() {
    let Some(lab) = Lab::start("offload", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    lose_segments(h1, "postrouting", 6784);
    launch_mesh(&lab, &[]);
    wait_info(h1, "another overlay, and the reason", |info| info.contains("warp: ") && info.contains(REASON));
    wait_info(h2, "fastdp in the direction that works", |info| {
        info.contains("fastdp") && !info.contains(REASON)
    });
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    a.container.tcp(&b.container, &b.ip, 20_000_000);
    b.container.tcp(&a.container, &a.ip, 20_000_000);

    step("the card is repaired");
    repair(h1);
    wait_info(h1, "fastdp again", |info| info.contains("fastdp") && !info.contains(REASON));
    a.container.tcp(&b.container, &b.ip, 20_000_000);
}

#[test]
fn batches_that_are_lost_are_sent_one_by_one() {
    let Some(lab) = Lab::start("batches", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    lose_segments(h2, "prerouting", 6783);
    launch_mesh(&lab, &["--password", "wEaVe"]);
    let logged = |host: &Host, text: &str| {
        host.wait(&format!("the log to have {text:?}"), LONG_TIMEOUT, || host.log().contains(text))
    };
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    // The test of a path begins with its first data.
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    logged(h1, "warp: datagrams that are sent in batches do not arrive, single ones do");
    a.container.tcp(&b.container, &b.ip, 20_000_000);
    assert!(h1.connections()[0].info.contains("warp"), "{:?}", h1.connections());
    assert!(!h2.log().contains("in batches"), "{}", h2.log());
    repair(h2);
    logged(h1, "warp: datagrams are sent in batches again");
    a.container.tcp(&b.container, &b.ip, 20_000_000);
}
