//! A host as a member of the container network.

use weave_lab::{Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-23", "F-24", "F-25", "F-27");

#[track_caller]
fn reaches(host: &Host, ip: &str) {
    host.wait(&format!("an answer of {ip}"), SHORT_TIMEOUT, || pings(host, ip));
}

fn pings(host: &Host, ip: &str) -> bool {
    host.probe(&["ping", ip, "--count", "1", "--wait-ms", "500"])["received"] == 1
}

/// Addresses that `weave expose` gave the host.
fn exposed(host: &Host) -> Vec<String> {
    let text = host.sh("ip -o -4 addr show dev weave 2>/dev/null || true");
    text.lines().filter_map(|l| l.split_whitespace().nth(3)).map(str::to_owned).collect()
}

fn rules(host: &Host) -> String {
    host.sh("iptables -w -S; iptables -w -t nat -S")
}

#[test]
fn expose_and_hide_addresses() {
    let Some(lab) = Lab::start("expose", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    // The default policy with Docker, and without.
    h2.sh("iptables -w -P FORWARD DROP; echo 0 > /proc/sys/net/ipv4/ip_forward");
    launch_mesh(&lab, &[]);
    let members = attach_each(&[h1, h2]);
    let other = h1.container("other");
    other.attach(&["10.2.2.1/24"]);
    let before = rules(h2);

    assert_eq!(h2.weave_ok(&["expose", "10.2.1.102/24"]), "10.2.1.102\n");
    reaches(h2, "10.2.1.2");
    reaches(h2, "10.2.1.1");
    members[0].container.reaches("10.2.1.102", SHORT_TIMEOUT);
    assert!(!pings(h2, "10.2.2.1"), "another subnet");
    assert_eq!(h2.sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
    let once = rules(h2);
    assert_eq!(h2.weave_ok(&["expose", "10.2.1.102/24"]), "10.2.1.102\n");
    assert_eq!((exposed(h2), rules(h2)), (vec!["10.2.1.102/24".to_owned()], once.clone()));
    claims(&["F-23"]);

    step("two addresses of one subnet: hiding one keeps the other");
    for (first, second) in [("10.2.1.102/24", "10.2.1.103/24"), ("10.2.1.103/24", "10.2.1.102/24")] {
        h2.weave_ok(&["expose", "10.2.1.102/24", "10.2.1.103/24"]);
        assert_eq!((exposed(h2).len(), rules(h2)), (2, once.clone()));
        // An address that is a prefix of another one is not affected.
        h2.weave_ok(&["hide", "10.2.1.10/24", "10.2.1.102/25"]);
        h2.weave_ok(&["hide", first]);
        assert_eq!((exposed(h2), rules(h2)), (vec![second.to_owned()], once.clone()));
        reaches(h2, "10.2.1.1");
        members[0].container.reaches(second.trim_end_matches("/24"), SHORT_TIMEOUT);
    }
    h2.weave_ok(&["expose", "10.2.1.102/24"]);
    h2.weave_ok(&["hide", "10.2.1.102/24"]);
    assert_eq!((exposed(h2), rules(h2)), (vec![], before.clone()));
    assert!(!pings(h2, "10.2.1.2") && !pings(h2, "10.2.1.1"));
    assert_eq!(h2.weave_ok(&["hide", "10.2.1.102/24"]), "10.2.1.102\n");
    claims(&["F-24"]);

    step("several addresses in one command");
    assert_eq!(h2.weave_ok(&["expose", "10.2.1.102/24", "10.2.2.102/24"]), "10.2.1.102 10.2.2.102\n");
    reaches(h2, "10.2.1.1");
    reaches(h2, "10.2.2.1");
    assert_eq!(h2.weave_ok(&["hide", "10.2.1.102/24", "10.2.2.102/24"]), "10.2.1.102 10.2.2.102\n");
    assert_eq!((exposed(h2), rules(h2)), (vec![], before.clone()));
    claims(&["F-25"]);

    for bad in
        [&["10.2.1.0/24"][..], &["10.2.1.255/24"], &["bogus"], &["10.2.1.300/24"], &["net:10.2.1.0/24"]]
    {
        let refused = h2.weave(&[&["expose"], bad].concat());
        assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""), "{refused}");
        assert_eq!((exposed(h2), rules(h2)), (vec![], before.clone()), "{bad:?}");
    }
    step("the daemon refuses the second address, so none is exposed");
    let refused = h2.weave(&["expose", "10.2.1.102/24", "127.0.0.9/24"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("unable to expose: 127.0.0.9/24"),
        "{refused}"
    );
    assert_eq!((exposed(h2), rules(h2)), (vec![], before));
    let named = h2.weave(&["expose", "10.2.1.102/24", "-h", "exposed.weave.local"]);
    assert!(named.success() && named.stdout == "10.2.1.102\n", "{named}");
}

#[test]
fn exposed_addresses_survive_restart_and_flush() {
    let Some(lab) = Lab::start("keeps", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    let c = h1.container("c");
    c.attach(&["10.2.1.1/24", "10.2.2.1/24"]);
    h1.weave_ok(&["expose", "10.2.1.102/24"]);
    h1.weave_ok(&["expose", "10.2.2.102/24", "--without-masquerade"]);
    let made = rules(h1);
    assert!(made.contains("-d 10.2.2.0/24 -j ACCEPT") && !made.contains("-s 10.2.2.0/24"), "{made}");

    h1.weave_ok(&["stop"]);
    reaches(h1, "10.2.1.1");
    launch(h1, &[], &[]);
    assert_eq!(rules(h1), made);
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    h1.sh("iptables -w -F; iptables -w -t nat -F; ip addr del 10.2.2.102/24 dev weave");
    launch(h1, &[], &[]);
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(rules(h1)), sorted(made.clone()));
    assert_eq!(exposed(h1), ["10.2.1.102/24", "10.2.2.102/24"]);

    for flush in [
        "iptables -w -F",
        "iptables -w -t nat -F",
        "iptables -w -t nat -F WEAVE; iptables -w -F WEAVE-EXPOSE",
        "for t in filter nat mangle; do iptables -w -t $t -F; iptables -w -t $t -X; done",
        "ip link del weave",
    ] {
        h1.sh(flush);
        h1.wait(&format!("the repair after `{flush}`"), SHORT_TIMEOUT, || {
            let now = sorted(rules(h1));
            if now == sorted(made.clone()) && exposed(h1).len() == 2 { Ok(()) } else { Err(now.join("\n")) }
        });
        reaches(h1, "10.2.1.1");
        reaches(h1, "10.2.2.1");
    }
    c.reaches("10.2.1.102", SHORT_TIMEOUT);
    claims(&["F-27"]);

    h1.weave_ok(&["reset"]);
    assert!(!rules(h1).to_lowercase().contains("weave"));
    launch(h1, &[], &[]);
    assert_eq!(exposed(h1), Vec::<String>::new(), "forgotten with a reset");
}
