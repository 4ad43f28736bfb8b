//! `weave trace` over three hops: by which peers and overlays frames go, and where planted faults drop them.

use serde_json::Value;
use weave_lab::{Container, Host, Lab, Topology};

use crate::common::*;

/// The exit code and the report.
#[track_caller]
fn trace(host: &Host, from: &str, to: &str) -> (i32, Value) {
    let outcome = host.weave(&["trace", "--json", from, to]);
    let report = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}\n{outcome}"));
    (outcome.code.unwrap_or(-1), report)
}

/// Waits until all probes are answered by way of these hosts and overlays.
#[track_caller]
fn wait_delivered(lab: &Lab, to: &str, overlays: &[&str]) {
    let h1 = lab.host("h1");
    let names: Vec<String> = lab.hosts().iter().map(name_of).collect();
    h1.wait(&format!("frames to {to} to pass by {overlays:?}"), LONG_TIMEOUT, || {
        let (code, report) = trace(h1, "netns:c1", to);
        let hops = report["Hops"].as_array().cloned().unwrap_or_default();
        let by: Vec<&str> = hops.iter().filter_map(|hop| hop["Next"]["Overlay"].as_str()).collect();
        let peers: Vec<&str> = hops.iter().filter_map(|hop| hop["Peer"].as_str()).collect();
        let right = peers.len() == names.len() && peers.iter().zip(&names).all(|(p, n)| p.starts_with(n));
        let is_well = code == 0 && report["Delivered"] == true && report["Verdict"].is_null();
        if is_well && right && by == overlays { Ok(()) } else { Err(format!("{code} {report:#}")) }
    });
}

/// Waits until a trace from c1 says why, and where: on a host, or between two.
#[track_caller]
fn wait_lost(lab: &Lab, to: &str, reasons: &[&str], at: &str, before: Option<&str>) -> Value {
    let h1 = lab.host("h1");
    let [at, before] = [Some(at), before].map(|host| host.map(|host| name_of(lab.host(host))));
    h1.wait(&format!("frames to {to} to be lost by {reasons:?}"), LONG_TIMEOUT, || {
        let (code, report) = trace(h1, "netns:c1", to);
        let verdict = &report["Verdict"];
        let is = |value: &Value, host: &Option<String>| match (value.as_str(), host) {
            (Some(text), Some(name)) => text.starts_with(name),
            (text, host) => text.is_none() && host.is_none(),
        };
        let right = reasons.iter().any(|reason| verdict["Reason"] == **reason);
        if code == 1 && right && is(&verdict["At"], &at) && is(&verdict["Before"], &before) {
            return Ok(report);
        }
        Err(format!("{code} {report:#}"))
    })
}

/// Four hosts in a line with a container at each end, whose addresses these are.
fn line(name: &str, options: &[&str]) -> Option<(Lab, [Container; 2], [String; 2])> {
    let lab = Lab::start(name, &Topology::hosts(4))?;
    launch_line(&lab, options);
    let containers = ["h1", "h4"].map(|host| lab.host(host).container(&host.replace('h', "c")));
    let addresses = [0, 1].map(|i| containers[i].attach(&[]));
    Some((lab, containers, addresses))
}

#[test]
fn healthy_ways_by_each_overlay() {
    for (name, options, overlay) in [
        ("trfast", &[][..], "fastdp"),
        ("trsleeve", &["--overlays", "sleeve"], "sleeve"),
        ("trwarp", &["--password", "wEaVe"], "warp"),
    ] {
        let Some((lab, _, [_, to])) = line(name, options) else { return };
        wait_delivered(&lab, &to, &[overlay; 3]);
        let text = lab.host("h1").weave_ok(&["trace", "netns:c1", &to]);
        assert!(text.contains("small packet of 84 bytes: answered after "), "{text}");
        assert_eq!(text.matches(&format!("{overlay} to ")).count(), 3, "{text}");
    }
}

#[test]
fn healthy_way_by_different_overlays() {
    let Some(lab) = Lab::start("trmixed", &Topology::hosts(4)) else { return };
    let hosts = lab.hosts();
    for (i, overlays) in ["fastdp,sleeve", "fastdp,sleeve", "sleeve,warp", "warp"].into_iter().enumerate() {
        let before: Vec<&str> = i.checked_sub(1).map(|i| hosts[i].name()).into_iter().collect();
        for far in &hosts[(i + 2).min(hosts.len())..] {
            lab.cut(hosts[i].name(), far.name());
        }
        launch(&hosts[i], &["--overlays", overlays], &before);
    }
    hosts.iter().for_each(|host| wait_peers(host, 4));
    attach_each(&[&hosts[0], &hosts[3]]);
    wait_delivered(&lab, "10.2.1.4", &["fastdp", "sleeve", "warp"]);
}

const DROP_ECHO: &str = "nft add table bridge planted; \
    nft 'add chain bridge planted c { type filter hook forward priority 0; }'; \
    nft add rule bridge planted c ether type ip ip protocol icmp drop";

#[test]
fn planted_drops_are_named() {
    let Some((lab, [c1, c4], [from, to])) = line("trdrops", &[]) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|host| lab.host(host));
    let well = || wait_delivered(&lab, &to, &["fastdp"; 3]);
    well();

    step("1: the interface of the container is down");
    c4.command_ok(&["ip", "link", "set", "ethwe", "down"]);
    wait_lost(&lab, &to, &["interface-down"], "h4", None);
    c4.command_ok(&["ip", "link", "set", "ethwe", "up"]);
    well();

    step("2: the firewall of the container");
    c4.command_ok(&["iptables", "-w", "-A", "INPUT", "-p", "icmp", "-j", "DROP"]);
    wait_lost(&lab, &to, &["no-answer"], "h4", None);
    c4.command_ok(&["iptables", "-w", "-F", "INPUT"]);

    for (what, host) in [("3: a filter of the bridge of h1", h1), ("4: a filter of the bridge of h4", h4)] {
        step(what);
        host.sh(DROP_ECHO);
        let report = wait_lost(&lab, &to, &["host-filter"], host.name(), None);
        let text = report["Verdict"]["Text"].as_str().unwrap();
        assert!(text.contains("nftables has a table for bridges"), "{text}");
        host.sh("nft delete table bridge planted");
        well();
    }

    step("5: the firewall of a relay");
    let rule = "OUTPUT -p udp --dport 6784 -m length --length 134 -j DROP";
    h3.sh(&format!("iptables -w -I {rule}"));
    wait_lost(&lab, &to, &["underlay"], "h3", Some("h4"));
    h3.sh(&format!("iptables -w -D {rule}"));
    well();

    step("6: the network between two hosts drops packets of one size");
    let planted = |what: &str, length: &str| {
        let rule = format!("LAB -i h2 -o h3 -p udp -m length --length {length} -j DROP");
        lab.wire().sh(&format!("iptables -w -{what} {rule}"));
    };
    planted("I", "134");
    wait_lost(&lab, &to, &["underlay"], "h2", Some("h3"));
    planted("D", "134");
    well();

    step("7: large packets only");
    planted("I", "1000:1500");
    let report = wait_lost(&lab, &to, &["underlay", "too-big"], "h2", Some("h3"));
    assert_eq!(report["Probes"][0]["Verdict"], Value::Null, "{report:#}");
    planted("D", "1000:1500");
    well();

    step("8: the Ethernet address is in use at another host");
    let (twin, neighbour) = (h2.container("twin"), h1.container("neighbour"));
    twin.attach(&[]);
    twin.command_ok(&["ip", "link", "set", "ethwe", "address", &c1.mac()]);
    // Without ARP, which the neighbour may answer to c1, the twin is never silent for as long as a move takes.
    let address = neighbour.attach(&[]);
    twin.command_ok(&["ip", "neigh", "add", &address, "lladdr", &neighbour.mac(), "dev", "ethwe"]);
    // c1 would keep the address at h1 by forwarding what the neighbour answers to the twin.
    c1.command_ok(&["ip", "link", "set", "ethwe", "down"]);
    let pings = twin.pinging(&address, 50);
    let (mac, name) = (c1.mac(), name_of(h2));
    h1.wait("the address to be at h2", LONG_TIMEOUT, || {
        let report = h1.report()?;
        let macs = report["Router"]["MACs"].as_array().ok_or("no MACs")?;
        let is_there = macs.iter().any(|entry| entry["Mac"] == mac && entry["Name"] == name);
        if is_there { Ok(()) } else { Err(format!("{macs:?}")) }
    });
    c1.command_ok(&["ip", "link", "set", "ethwe", "up"]);
    wait_lost(&lab, &to, &["address-in-use"], "h1", None);
    drop(pings);
    twin.end();
    well();

    step("9: another subnet");
    let other = h4.container("other");
    assert_eq!(other.attach(&["10.2.2.4/24"]), "10.2.2.4");
    wait_lost(&lab, "10.2.2.4", &["other-subnet"], "h1", None);

    step("10: the container is gone");
    c4.end();
    wait_lost(&lab, &to, &["no-container"], "h4", None);

    step("from an address, to a name, and what cannot be examined");
    let replaced = h4.container("c5");
    let name = "c5.weave.local";
    let address = h4.weave_ok(&["attach", "--name", name, "netns:c5"]);
    h1.wait("the name", LONG_TIMEOUT, || {
        let outcome = h1.weave(&["trace", &from, name]);
        let text = format!("to {} ({name})", address.trim());
        if outcome.success() && outcome.stdout.contains(&text) { Ok(()) } else { Err(outcome.to_string()) }
    });
    for (from, to) in [("netns:nobody", "10.2.1.1"), ("netns:c1", "no.such.name"), ("10.9.9.9", &to)] {
        assert_eq!(h1.weave(&["trace", from, to]).code, Some(2), "{from} {to}");
    }
    drop(replaced);

    step("11: a peer that hangs cannot tell, but its kernel forwards");
    h3.signal_daemon("STOP");
    let (code, report) = trace(h1, "netns:c1", address.trim());
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(report["Hops"][2]["Silent"], "has not answered", "{report:#}");
    h3.signal_daemon("CONT");
    h1.wait_established(1, LONG_TIMEOUT);

    step("12: UDP does not pass between two hosts");
    let udp = |what: &str| {
        for (a, b) in [("h3", "h4"), ("h4", "h3")] {
            lab.wire().sh(&format!("iptables -w -{what} LAB -i {a} -o {b} -p udp -j DROP"));
        }
    };
    udp("I");
    wait_lost(&lab, address.trim(), &["no-path"], "h3", Some("h4"));
    udp("D");

    step("13: a host that is cut off");
    lab.cut("h3", "h4");
    wait_peers(h1, 3);
    wait_lost(&lab, address.trim(), &["no-route"], "h1", None);
}
