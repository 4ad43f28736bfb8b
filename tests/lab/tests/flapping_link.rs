//! Links that fail in one direction only, and again and again.

use std::time::{Duration, Instant};

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

fn name(host: &Host) -> String {
    host.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned()
}

/// The neighbour over which `host` sends to a peer.
fn next_hop(host: &Host, to: &str) -> Result<String, String> {
    let report = host.report()?;
    let routes = report["Router"]["UnicastRoutes"].as_array().ok_or("no routes")?;
    let route = routes.iter().find(|r| r["Dest"] == to).ok_or("no route")?;
    Ok(route["Via"].as_str().unwrap_or_default().to_owned())
}

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
    let relay = name(lab.host("h2"));
    for (host, other) in [(h1, name(h3)), (h3, name(h1))] {
        host.wait("the relay to be used", SHORT_TIMEOUT, || match next_hop(host, &other)? {
            hop if hop == relay => Ok(()),
            hop => Err(hop),
        });
    }
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
    let name2 = name(h2);
    let begin = Instant::now();
    for cut in 1..=CUTS {
        lab.cut("h1", "h2");
        h1.wait("another way to h2", SHORT_TIMEOUT, || match next_hop(h1, &name2)? {
            hop if hop == name2 => Err(hop),
            _ => Ok(()),
        });
        lab.heal("h1", "h2");
        h1.wait("the time of the next cut", SHORT_TIMEOUT, || begin.elapsed() >= INTERVAL * cut);
    }
    let minute = begin.elapsed();
    let status = h1.weave_ok(&["status", "connections"]);
    let line = status.lines().find(|line| line.contains("(h2)")).unwrap();
    assert!(line.contains("reason="), "the connection is held back, and says so: {status}");
    let chatter = chat.finish();
    assert!(chatter.broken.is_none(), "{chatter:?}");
    println!("{CUTS} cuts in {minute:?}, interruption of TCP: {:.2} s", chatter.longest_gap_ms / 1e3);
    for host in lab.hosts() {
        let (name, log) = (host.name(), host.log());
        let failed = log.lines().filter(|line| line.contains("the path has failed"));
        for line in failed {
            let cut = (name == "h1" && line.contains("(h2)")) || (name == "h2" && line.contains("(h1)"));
            assert!(cut, "{name}: {line}");
        }
        assert!(!log.contains("connection deleted"), "{name}: {log}");
    }
    for pinger in others {
        let pings = pinger.finish();
        assert!(pings.longest_gap_ms < 1000.0 && pings.duplicates == 0, "{pings:?}");
    }
}
