//! Addresses on one host: allocation, lookup, release and status.

use std::time::Duration;

use weave_lab::{Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!(
    "S-2", "S-3", "S-16", "I-5", "I-6", "I-7", "I-8", "I-9", "I-10", "I-11", "I-17", "I-32", "I-33", "P-1",
    "P-2", "P-11", "P-14"
);

#[test]
fn first_peer_allocates_without_waiting() {
    let Some(lab) = Lab::start("address", &Topology::hosts(1)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let h1 = lab.host("h1");
    // The first `ip netns add` mounts its directory again; earlier names would be listed twice.
    h1.sh("ip netns add first; ip netns del first");
    step("without a daemon commands fail without waiting");
    let c1 = h1.container("c1");
    let outcome = h1.weave(&["attach", &c1.netns()]);
    assert!(!outcome.success() && outcome.stderr.contains("not running"), "{outcome}");

    launch(h1, &[], &[]);
    assert_eq!(
        (status_field(h1, "Status"), status_field(h1, "Consensus")),
        ("idle".into(), "deferred".into())
    );
    assert_eq!(ipam_page(h1), "");
    claims(&["I-17"]);
    assert_eq!(status_field(h1, "Range"), "10.32.0.0/12");
    assert_eq!(status_field(h1, "DefaultSubnet"), "10.32.0.0/12");
    claims(&["I-32"]);
    step("a lookup allocates nothing");
    assert_eq!(c1.detach(&[]), "");
    assert_eq!(status_field(h1, "Consensus"), "deferred");

    let ip = allocate(&c1);
    assert_eq!(ip, "10.32.0.1");
    assert_eq!(
        (status_field(h1, "Status"), status_field(h1, "Consensus")),
        ("ready".into(), "achieved".into())
    );
    claims(&["S-3"]);
    assert_eq!(allocate(&c1), ip, "the same again");
    assert!(ipam_page(h1).contains("1048576 IPs (100.0% of total) (1 active)"), "{}", ipam_page(h1));
    claims(&["I-5"]);
    for command in ["consense", "prime"] {
        let outcome = h1.weave(&[command]);
        assert!(outcome.success() && outcome.took < Duration::from_secs(1), "{outcome}");
        assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("", ""));
    }
    claims(&["S-2"]);

    step("a claimed address belongs to its container only");
    let c2 = h1.container("c2");
    assert_eq!(c2.attach(&["10.32.0.3/12"]), "10.32.0.3");
    let outcome = h1.weave(&["attach", "10.32.0.3/12", &c1.netns()]);
    assert!(!outcome.success() && outcome.stderr.contains("already owned by netns:c2"), "{outcome}");
    let many = attach_many(h1, "m", 30);
    assert!(!many.contains(&"10.32.0.3".to_owned()) && !many.contains(&ip), "{many:?}");
    assert_eq!(assert_unique_addresses(&lab).len(), 32);
    claims(&["I-8"]);

    step("an attach whose second address is in use changes nothing");
    let c3 = h1.container("c3");
    let outcome = h1.weave(&["attach", "net:10.32.9.0/24", "10.32.0.3/12", &c3.netns()]);
    assert!(!outcome.success() && !c3.has_interface(), "{outcome}");
    assert!(!owned(h1).contains("netns:c3"), "{}", owned(h1));

    step("allocations survive a crash and a stop");
    let before = owned(h1);
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    launch(h1, &[], &[]);
    assert_eq!(owned(h1), before, "SIGKILL loses nothing");
    h1.weave_ok(&["stop"]);
    launch(h1, &["--log-level", "debug"], &["h9"]);
    assert_eq!(owned(h1), before);
    assert_eq!(allocate(&c1), ip);
    claims(&["S-16", "P-11"]);

    assert_eq!(c1.detach(&[]), ip);
    assert!(!c1.has_interface());
    let (_c4, again) = allocated_container(h1, "c4");
    assert_eq!(again, ip, "the lowest free address is given out again");
    claims(&["I-6"]);

    step("addresses of ended containers are released, also without the daemon");
    let pid = h1.sh("unshare -n sleep 1000 > /dev/null 2>&1 & echo $!");
    let by_pid = h1.wait("a namespace of its own", SHORT_TIMEOUT, || {
        let outcome = h1.weave(&["attach", &format!("pid:{}", pid.trim())]);
        if outcome.success() { Ok(outcome.stdout) } else { Err(outcome.to_string()) }
    });
    h1.command_ok(&["kill", "-9", pid.trim()]);
    c2.end();
    assert!(
        owned(h1).contains("pid:") && owned(h1).contains("netns:c2"),
        "not released immediately: it may come back"
    );
    h1.wait("addresses of ended containers to be free", Duration::from_secs(60), || {
        let now = owned(h1);
        if now.contains("pid:") || now.contains("netns:c2") { Err(now) } else { Ok(()) }
    });
    assert_eq!(h1.weave_ok(&["attach", &h1.container("c6").netns()]), "10.32.0.3\n");
    assert_ne!(by_pid, "10.32.0.3\n");
    h1.weave_ok(&["stop"]);
    h1.sh("for i in $(seq 30); do ip netns del m$i; done");
    launch(h1, &[], &[]);
    assert!(!owned(h1).contains("netns:m"), "{}", owned(h1));

    step("expose allocates an address for the host");
    let exposed = h1.weave_ok(&["expose"]);
    assert_eq!(h1.weave_ok(&["expose"]), exposed);
    let on_bridge = || h1.command_ok(&["ip", "-o", "-4", "addr", "show", "weave"]);
    assert!(on_bridge().contains(&format!("{}/12", exposed.trim())), "{}", on_bridge());
    assert_eq!(h1.weave_ok(&["hide"]), exposed);
    assert!(on_bridge().is_empty() && !owned(h1).contains("weave:expose"), "{}", on_bridge());
    assert_eq!(h1.weave_ok(&["hide"]), "\n");
    claims(&["I-7"]);

    h1.weave_ok(&["reset"]);
    launch(h1, &[], &[]);
    assert_eq!(owned(h1), "{\"owned\":null}\n");
    assert_eq!(status_field(h1, "Consensus"), "deferred");
    claims(&["P-14"]);
}

#[test]
fn addresses_in_use_outlive_the_name_of_their_container() {
    let Some(lab) = Lab::start("renamed", &Topology::hosts(1)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let h1 = lab.host("h1");
    launch(h1, &["--ipalloc-range", "10.32.0.0/29"], &[]);
    let attach = |container: &str| h1.weave_ok(&["attach", container]).trim().to_owned();
    let owner_of = |ip: &str| {
        let json: serde_json::Value = serde_json::from_str(&owned(h1)).unwrap();
        let has =
            |o: &&serde_json::Value| o["addrs"].as_array().unwrap().contains(&format!("{ip}/29").into());
        let owner = json["owned"].as_array().and_then(|all| all.iter().find(has));
        owner.map(|o| o["containerid"].as_str().unwrap().to_owned())
    };
    let wait_for_owner = |ip: &str, wanted: &str| {
        h1.wait(&format!("{wanted} to own {ip}"), SHORT_TIMEOUT, || match owner_of(ip) {
            Some(owner) if owner.starts_with(wanted) => Ok(owner),
            owner => Err(format!("{owner:?}")),
        })
    };
    h1.sh("ip netns add used; ip netns add kept; touch /run/elsewhere; mount --bind /run/netns/kept /run/elsewhere");
    let inside = h1.sh("ip netns exec used sleep 1000 >/dev/null 2>&1 & echo $!").trim().to_owned();
    let used = attach("netns:used");
    let kept = attach("netns:kept");
    let starter = h1.sh("unshare -n sh -c 'sleep 1000 & exec sleep 1000' >/dev/null 2>&1 & echo $!");
    let starter = starter.trim();
    let child = h1.wait("a child in a namespace of its own", SHORT_TIMEOUT, || {
        let child = h1.command(&["pgrep", "-P", starter]).stdout.trim().to_owned();
        if child.is_empty() { Err("no child".to_owned()) } else { Ok(child) }
    });
    let started = attach(&format!("pid:{starter}"));

    step("names and first processes end, the namespaces stay; one name is given to another namespace");
    h1.sh(&format!("ip netns del used; ip netns del kept; ip netns add used; kill {starter}"));
    let again = attach("netns:used");
    assert!(![&used, &kept, &started].contains(&&again), "{again} is in use");
    wait_for_owner(&used, &format!("pid:{inside}"));
    wait_for_owner(&started, &format!("pid:{child}"));
    let port = wait_for_owner(&kept, "port:vethwepl");
    assert_eq!(owner_of(&again).as_deref(), Some("netns:used"));
    assert_eq!(attach(&format!("pid:{inside}")), used, "the container has its address under its new name");
    let refused = h1.weave(&["detach", &port]);
    assert!(!refused.success() && refused.stderr.contains("still in use"), "{refused}");
    h1.wait("the lost owner in the status", SHORT_TIMEOUT, || {
        let page = ipam_page(h1);
        if page.contains(&format!("lost owner: {kept}/29 of {port}")) { Ok(()) } else { Err(page) }
    });

    step("addresses of containers that are gone can be released at once");
    h1.sh(&format!("kill {inside} {child}; umount /run/elsewhere"));
    for (owner, ip) in [(format!("pid:{inside}"), used), (format!("pid:{child}"), started), (port, kept)] {
        let released = h1.wait("the end of the namespace", SHORT_TIMEOUT, || {
            let outcome = h1.weave(&["detach", &owner]);
            if outcome.success() { Ok(outcome.stdout) } else { Err(outcome.to_string()) }
        });
        assert_eq!(released.trim(), ip);
        assert_eq!(owner_of(&ip), None);
    }
}

/// The owners of all allocated addresses, according to the daemon.
fn owned(host: &weave_lab::Host) -> String {
    host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"])
}

#[test]
fn subnets_and_ranges() {
    let Some(lab) = Lab::start("subnets", &Topology::hosts(1)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let h1 = lab.host("h1");
    let outcome =
        h1.weave(&["launch", "--no-restart", "-iprange", "10.2.0.0/16", "-ipsubnet", "10.2.3.0/24"]);
    assert!(outcome.success(), "{outcome}");
    assert!(
        outcome.stderr.contains("-iprange is deprecated") && outcome.stdout.lines().count() == 1,
        "{outcome}"
    );
    let c = h1.container("c");
    let all = ["net:10.2.7.0/24", "net:10.2.8.0/24", "ip:10.3.9.1/24", "net:default"];
    assert_eq!(c.attach(&all), "10.2.7.1 10.2.8.1 10.3.9.1 10.2.3.1");
    assert_eq!(c.attach(&all), "10.2.7.1 10.2.8.1 10.3.9.1 10.2.3.1");
    assert_eq!(c.detach(&all), "10.2.7.1 10.2.8.1 10.3.9.1 10.2.3.1");
    assert!(!c.has_interface());
    claims(&["I-9"]);

    step("first and last address of a subnet are not allocated");
    h1.sh("for i in $(seq 7); do ip netns add s$i; done");
    for i in 1..=6 {
        let ip = h1.weave_ok(&["attach", "net:10.2.20.0/29", &format!("netns:s{i}")]);
        assert_eq!(ip, format!("10.2.20.{i}\n"));
    }
    let outcome = assert_command_waits(h1, 3, &["attach", "net:10.2.20.0/29", "netns:s7"]);
    assert!(outcome.stderr.contains("all addresses are in use"), "{outcome}");
    assert!(!owned(h1).contains("netns:s7"));
    step("status shows a waiting request, which gets the next free address");
    let mut waits =
        h1.background(&[weave_lab::weave_binary(), "attach", "net:10.2.20.0/29", "netns:s7"], false).unwrap();
    h1.wait("status to show what is missing", SHORT_TIMEOUT, || {
        ipam_page(h1).contains("waiting for an address of 10.2.20.0/29 for netns:s7")
    });
    assert_eq!(status_field(h1, "Status"), "waiting for IP(s) to become available");
    assert!(waits.running());
    h1.weave_ok(&["detach", "net:10.2.20.0/29", "netns:s3"]);
    assert_eq!(waits.finish().unwrap(), "10.2.20.3\n");
    claims(&["I-11"]);

    for (address, text) in [
        ("net:10.2.7.1/24", "bits after network prefix are not all zero"),
        ("net:10.2.7.0/31", "smaller than minimum size 4"),
        ("net:10.9.0.0/24", "range 10.9.0.0/24 out of bounds: 10.2.0.0/16"),
    ] {
        let outcome = h1.weave(&["attach", address, &c.netns()]);
        assert!(!outcome.success() && outcome.stderr.contains(text), "{outcome}");
        assert!(!c.has_interface());
    }
    h1.sh("for i in $(seq 20); do ip netns add r$i; done");
    for i in 1..=20 {
        let ip = h1.weave_ok(&["attach", &format!("netns:r{i}")]);
        assert!(ip.starts_with("10.2.3."), "{ip}");
    }
    claims(&["I-33"]);

    step("every command without an address (`run` and `start` need Docker)");
    h1.weave_ok(&["reset"]);
    launch(h1, &["-iprange", "10.2.3.0/24"], &[]);
    assert_eq!(h1.weave_ok(&["hide"]), "\n");
    assert_eq!(status_field(h1, "Consensus"), "deferred", "hiding asks for nothing");
    let e = h1.container("e");
    assert_eq!((allocate(&e), h1.weave_ok(&["expose"])), ("10.2.3.1".into(), "10.2.3.2\n".into()));
    assert_eq!((e.detach(&[]), h1.weave_ok(&["hide"])), ("10.2.3.1".into(), "10.2.3.2\n".into()));
    assert_eq!(owned(h1), "{\"owned\":null}\n");
    claims(&["P-1", "P-2"]);
    h1.weave_ok(&["reset"]);
    launch(h1, &["-iprange", "10.2.0.0/16", "-ipsubnet", "10.2.3.0/24"], &[]);
    allocated_container(h1, "f");

    step("another range discards the old allocations with a notice");
    h1.weave_ok(&["stop"]);
    launch(h1, &["--ipalloc-range=10.9.0.0/17", "--ipalloc-default-subnet", "10.9.0.0/16"], &[]);
    assert!(h1.log().contains("deleting persisted data for IPAM range 10.2.0.0/16"), "{}", h1.log());
    let ip = allocate(&c);
    assert!(c.command_ok(&["ip", "-o", "-4", "addr", "show", "ethwe"]).contains(&format!("{ip}/16")));
    let d = h1.container("d");
    assert_eq!(d.attach(&["10.9.200.1/16"]), "10.9.200.1");
    c.reaches("10.9.200.1", SHORT_TIMEOUT);
    claims(&["I-10"]);
    h1.weave_ok(&["stop"]);

    let before = host_state(h1);
    for (args, text) in [
        (&["--ipalloc-range", "10.2.0.0/33"][..], "invalid CIDR address: 10.2.0.0/33"),
        (&["--ipalloc-range", "10.2.0.1/16"], "bits after network prefix"),
        (&["--ipalloc-range", "10.2.0.0/31"], "smaller than minimum size 4"),
        (&["--ipalloc-range", "10.2.0.0"], "invalid CIDR address: 10.2.0.0"),
        (&["--ipalloc-range", "fd00::/64"], "fd00::/64"),
        (&["--ipalloc-range", "0.0.0.0/0"], "0.0.0.0/0"),
        (&["--ipalloc-range", "240.0.0.0/4"], "240.0.0.0/4"),
        (&["--ipalloc-range", "128.0.0.0/1"], "128.0.0.0/1"),
        (&["--ipalloc-range", "255.255.255.252/30"], "255.255.255.252/30"),
        (&["--ipalloc-range", "", "--ipalloc-default-subnet", "10.3.0.0/24"], "without"),
        (&["--ipalloc-range", "10.2.0.0/16", "--ipalloc-default-subnet", "10.3.0.0/24"], "does not overlap"),
        (&["--observer", "--init-peer-count", "3"], "at most one of"),
        (&["--ipam-seed", "::1", "--observer"], "at most one of"),
        (&["--ipalloc-init", "seed=zz"], "bad seed parameter"),
    ] {
        let mut argv = vec!["launch"];
        argv.extend(args);
        let outcome = h1.weave(&argv);
        assert!(!outcome.success() && outcome.stderr.contains(text), "{outcome}");
    }
    assert_eq!(differences(&before, &host_state(h1)), [""; 0]);
}
