//! Links that fail in one direction only, and again and again.

use std::time::{Duration, Instant};

use weave_lab::{Lab, Topology};

use crate::common::*;

#[test]
fn cut_of_one_direction_is_routed_around() {
    let Some(lab) = Lab::start("oneway", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h3] = ["h1", "h3"].map(|h| lab.host(h));
    let members = attach_each(&[h1, h3]);
    let [a, c] = &members[..] else { unreachable!() };
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chat, pinger) = (a.container.chat(&c.container, &c.ip, 50), c.container.pinging(&a.ip, 20));
    lab.cut_one_way("h3", "h1");
    let relay = lab.host("h2");
    wait_route(h1, h3, relay);
    wait_route(h3, h1, relay);
    a.container.reaches(&c.ip, SHORT_TIMEOUT);
    let (chatter, pings) = (chat.finish(), pinger.finish());
    assert!(chatter.broken.is_none(), "{chatter:?}");
    assert_eq!(pings.duplicates, 0, "{pings:?}");
    println!("interruption by the cut of one direction: {:.2} s", pings.longest_gap_ms / 1e3);
}

/// Ten cuts in a minute: only the link that is cut changes, it is used less and less, and the containers' connection goes on.
#[test]
fn flapping_link_disturbs_no_other() {
    const CUTS: u32 = 10;
    const INTERVAL: Duration = Duration::from_secs(6);
    let Some(lab) = Lab::start("flap", &Topology::hosts(4)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    for (a, b) in ordered_pairs(&members) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    let [a, b, c, d] = &members[..] else { unreachable!() };
    let chat = a.container.chat(&b.container, &b.ip, 50);
    let others =
        [c.container.pinging(&d.ip, 20), a.container.pinging(&c.ip, 20), d.container.pinging(&b.ip, 20)];
    let name2 = name_of(h2);
    let mut held_back = false;
    // At the launch two peers may have made two connections, of which one is deleted.
    let logs: Vec<usize> = lab.hosts().iter().map(|host| host.log().len()).collect();
    let begin = Instant::now();
    for cut in 1..=CUTS {
        lab.cut("h1", "h2");
        h1.wait("another way to h2", SHORT_TIMEOUT, || match via(h1, &name2)? {
            hop if hop == name2 => Err(hop),
            _ => Ok(()),
        });
        lab.heal("h1", "h2");
        let status = h1.weave_ok(&["status", "connections"]);
        held_back |=
            status.lines().any(|line| line.contains("(h2)") && line.contains("until it has worked for"));
        h1.wait("the time of the next cut", SHORT_TIMEOUT, || begin.elapsed() >= INTERVAL * cut);
    }
    let minute = begin.elapsed();
    assert!(held_back, "status says how long the path is not used");
    let chatter = chat.finish();
    assert!(chatter.broken.is_none(), "{chatter:?}");
    println!("{CUTS} cuts in {minute:?}, interruption of TCP: {:.2} s", chatter.longest_gap_ms / 1e3);
    for (host, begin) in lab.hosts().iter().zip(logs) {
        let (name, log) = (host.name(), host.log());
        let log = &log[begin..];
        let failed = log.lines().filter(|line| line.contains("the path has failed"));
        for line in failed {
            let cut = (name == "h1" && line.contains("(h2)")) || (name == "h2" && line.contains("(h1)"));
            assert!(cut, "{name}: {line}");
        }
        assert!(!log.contains("connection deleted"), "{name}: {log}");
    }
    for pinger in others {
        let pings = pinger.finish();
        println!("longest silence between others: {:.2} s", pings.longest_gap_ms / 1e3);
        assert!(pings.received > 0 && pings.duplicates == 0, "{pings:?}");
    }
}
