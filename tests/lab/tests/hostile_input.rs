//! Hostile neighbours on TCP and UDP 6783.

use std::time::Duration;

use weave_lab::{Lab, Topology, throughout};

use crate::common::*;

#[test]
fn garbage_does_not_disturb_the_mesh() {
    let Some(lab) = Lab::start("garbage", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let members = attach_each(&[h1, h2]);
    members[1].container.reaches(&members[0].ip, SHORT_TIMEOUT);
    let (pid, before) = (h1.daemon_pid(), h1.daemon_rss());
    let pinger = members[1].container.pinging(&members[0].ip, 20);

    for (protocol, count, bytes, prefix) in [
        ("tcp", "60", "20000", ""),
        ("tcp", "60", "20000", "weave"),
        ("udp", "20000", "1400", ""),
        ("udp", "200", "60000", ""),
    ] {
        let result = h3.probe(&[
            "garbage",
            protocol,
            "198.18.0.1",
            "--port",
            "6783",
            "--count",
            count,
            "--bytes",
            bytes,
            "--prefix",
            prefix,
        ]);
        println!("{protocol} {prefix}: {result}");
    }
    let pings = pinger.finish();
    assert_eq!(h1.daemon_pid(), pid, "the daemon lives");
    assert!(pings.longest_gap_ms < 2000.0, "{pings:?}");
    let after = h1.daemon_rss();
    assert!(after < before + 8 * 1024, "memory grew from {before} to {after} kB");
    h1.wait_established(1, SHORT_TIMEOUT);
    members[1].container.tcp(&members[0].container, &members[0].ip, 200_000);
}

#[test]
fn silent_connections_are_bounded() {
    let Some(lab) = Lab::start("silent", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let before = h1.daemon_rss();
    // Some send nothing, some begin a handshake and then send slowly.
    let silent = h3.probe_background(&["hold", "198.18.0.1", "--port", "6783", "--count", "300"]);
    let slow = h3.probe_background(&[
        "hold",
        "198.18.0.1",
        "--port",
        "6783",
        "--count",
        "100",
        "--trickle",
        "weave",
    ]);
    let open = || {
        let sockets = h1.command_ok(&["ss", "-Htn", "state", "established", "( sport = :6783 )"]);
        sockets.lines().filter(|l| l.contains("198.18.0.3:")).count()
    };
    throughout("the number of open connections from one neighbour", Duration::from_secs(5), || {
        let (open, rss) = (open(), h1.daemon_rss());
        // The backlog of the listener bounds the queue in the kernel.
        if open <= 400 && rss < before + 16 * 1024 { Ok(()) } else { Err(format!("{open} open, {rss} kB")) }
    });
    step("another peer can connect, and the existing connection stays");
    h2.wait_established(1, SHORT_TIMEOUT);
    step("all silent connections are closed after the handshake timeout");
    h1.wait("the silent connections to be closed", Duration::from_secs(60), || {
        let open = open();
        if open == 0 { Ok(()) } else { Err(format!("{open} left")) }
    });
    let (silent, slow) = (silent.finish().unwrap(), slow.finish().unwrap());
    println!("silent: {silent}slow: {slow}");
    launch(h3, &[], &["h1"]);
    h3.wait_established(2, LONG_TIMEOUT);
}
