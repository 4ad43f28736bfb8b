//! `--no-masq-local`: which addresses are reached without masquerading.

use std::net::Ipv4Addr;

use serde_json::Value;
use weave_lab::capture::Captured;
use weave_lab::{Container, Host, Lab, Topology};

use crate::common::addresses::*;
use crate::common::*;

const SET: &str = "weaver-no-masq-local";
/// Small enough to check each address.
const RANGE: &str = "10.32.5.0/24";
/// The network of a container on a link of its own to the first host.
const OUTSIDE: &str = "172.30.0.2";
const GATEWAY: &str = "172.30.0.1";

/// The networks in the ipset; `None` if there is none.
fn members(host: &Host) -> Option<Vec<String>> {
    match host.probe(&["set", SET]) {
        Value::Null => None,
        list => Some(list.as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_owned()).collect()),
    }
}

/// All addresses of some networks, ascending.
fn each(networks: &[String]) -> Vec<Ipv4Addr> {
    let mut all = Vec::new();
    for (first, length) in networks.iter().map(|n| n.split_once('/').unwrap()) {
        let first = u32::from(first.parse::<Ipv4Addr>().unwrap());
        all.extend((first..first + (1 << (32 - length.parse::<u32>().unwrap()))).map(Ipv4Addr::from));
    }
    all.sort_unstable();
    all
}

/// All addresses that this peer owns according to the report.
fn own(host: &Host) -> Vec<Ipv4Addr> {
    let report = host.report().unwrap_or_default();
    let entries = report["IPAM"]["Entries"].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for entry in entries.iter().filter(|e| e["Peer"] == report["Router"]["Name"]) {
        let first = u32::from(entry["Token"].as_str().unwrap().parse::<Ipv4Addr>().unwrap());
        all.extend((first..first + entry["Size"].as_u64().unwrap() as u32).map(Ipv4Addr::from));
    }
    all.sort_unstable();
    all
}

/// Waits until the ipset, the report and the expectation agree.
#[track_caller]
fn wait_members(host: &Host, expected: &[&str]) {
    host.wait(&format!("the set of {expected:?}"), SHORT_TIMEOUT, || {
        let now = members(host);
        let wrong = format!("{now:?}, of {} own addresses", own(host).len());
        let networks = now.filter(|n| n == expected && each(n) == own(host));
        networks.map(drop).ok_or(wrong)
    });
}

/// The source of the first echo request to an address.
fn source(captured: &Captured, to: &str) -> Option<Ipv4Addr> {
    let to = to.parse::<Ipv4Addr>().unwrap().octets();
    let asked =
        |f: &&&[u8]| f.len() > 34 && f[12..14] == [8, 0] && f[23] == 1 && f[34] == 8 && f[30..34] == to;
    captured.frames().iter().find(asked).map(|f| Ipv4Addr::new(f[26], f[27], f[28], f[29]))
}

/// The source address that a container sees when the outside pings it.
#[track_caller]
fn seen_inside(outside: &Container, container: &Container, ip: &str) -> Ipv4Addr {
    let capture = container.capture();
    outside.reaches(ip, SHORT_TIMEOUT);
    source(&capture.finish(), ip).expect("an echo request")
}

/// The source address that the outside sees when a container pings it.
#[track_caller]
fn seen_outside(container: &Container, host: &Host) -> Ipv4Addr {
    let capture = host.capture("eth1");
    container.reaches(OUTSIDE, SHORT_TIMEOUT);
    source(&capture.finish(), OUTSIDE).expect("an echo request")
}

/// The ipset follows the ranges of two peers, and masquerading follows the ipset.
#[test]
fn source_address_is_kept_within_own_ranges() {
    let Some(lab) = Lab::start("local", &Topology::hosts(2)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let options = ["--no-masq-local", "--ipalloc-range", RANGE];
    launch(h1, &options, &[]);
    assert_eq!(members(h1), Some(vec![]), "nothing is owned before the first division");
    let exposed = h1.weave_ok(&["expose"]).trim().to_owned();
    wait_members(h1, &[RANGE]);
    let tracker = ["curl", "-sS", "http://127.0.0.1:6784/ipinfo/tracker"];
    assert_eq!(h1.command_ok(&tracker), "no-masq-local\n");
    let (c1, near) = allocated_container(h1, "c1");

    step("half of the free space is given away");
    launch(h2, &options, &["h1"]);
    h2.wait_established(1, LONG_TIMEOUT);
    let (c2, far) = allocated_container(h2, "c2");
    wait_members(h1, &["10.32.5.0/25", "10.32.5.128/26"]);
    wait_members(h2, &["10.32.5.192/26"]);

    for container in [&c1, &c2] {
        container.command_ok(&["ip", "route", "add", "default", "via", &exposed]);
    }
    let world = external_network(h1, "world", "eth1", &format!("{GATEWAY}/24"), &format!("{OUTSIDE}/24"));
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    assert_eq!(seen_inside(&world, &c1, &near), address(OUTSIDE), "an address of this peer's");
    assert_eq!(seen_inside(&world, &c2, &far), address(&exposed), "another peer's");
    assert_eq!(seen_outside(&c1, h1), address(GATEWAY), "the outside is in no set");

    step("after a crash the ipset is the same immediately");
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    launch(h1, &options, &[]);
    assert_eq!(members(h1), Some(vec!["10.32.5.0/25".to_owned(), "10.32.5.128/26".to_owned()]));
    h1.wait_established(1, LONG_TIMEOUT);

    step("the space of a peer that leaves is added");
    drop(c2);
    h2.weave_ok(&["stop"]);
    assert_eq!(each(&members(h2).unwrap()).len(), 64, "a stop leaves everything in place");
    h1.wait("the end of the connection", LONG_TIMEOUT, || {
        h1.connections().iter().all(|c| c.state != "established")
    });
    h1.weave_ok(&["rmpeer", h2.name()]);
    wait_members(h1, &[RANGE]);
    h2.weave_ok(&["reset"]);
    assert_eq!(members(h2), None);

    step("without the option everything is masqueraded");
    h1.weave_ok(&["stop"]);
    launch(h1, &["--ipalloc-range", RANGE], &[]);
    assert_eq!(seen_inside(&world, &c1, &near), address(&exposed));
    assert_eq!(seen_outside(&c1, h1), address(GATEWAY));
    assert_eq!(h1.command_ok(&tracker), "\n");
    h1.weave_ok(&["reset"]);
    assert_eq!(members(h1), None);
}
