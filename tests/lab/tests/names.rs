//! weaveDNS: names of containers on all hosts (docs/spec/dns.md).

use weave_lab::{Lab, Topology, claims};

use crate::common::names::*;
use crate::common::*;

weave_lab::claims!("F-26", "F-46", "F-52", "F-55");

#[test]
fn names_resolve_on_every_host() {
    let Some(lab) = Lab::start("names", &Topology::hosts(3)) else { return };
    let hosts = ["h1", "h2", "h3"].map(|h| lab.host(h));
    let [h1, h2, h3] = hosts;
    launch_with_names(&lab, &[]);
    let clients = attach_each(&hosts);

    step("a name is known on all hosts within a second");
    let web1 = named(h1, "web1", "web.weave.local", "10.2.1.11");
    for client in &clients {
        let answer = ask(&client.container, "web.weave.local", &["--until", "1"]);
        assert_eq!(records(&answer), ["10.2.1.11"], "{answer}");
        assert!(answer["ms"].as_f64().unwrap() < 1000.0, "{answer}");
    }
    let reverse = ask(&clients[2].container, "11.1.2.10.in-addr.arpa", &["--kind", "PTR"]);
    assert_eq!(records(&reverse), ["web.weave.local."], "{reverse}");

    step(
        "two containers of one name: either is the first of some answers, and the other serves when one ends",
    );
    let _web2 = named(h2, "web2", "web.weave.local", "10.2.1.12");
    for client in &clients {
        resolves(&client.container, "web.weave.local", &["10.2.1.11", "10.2.1.12"]);
        let answer = ask(&client.container, "WEB.weave.local", &["--count", "50"]);
        for ip in ["10.2.1.11", "10.2.1.12"] {
            assert!(answer["firsts"][ip].as_u64().is_some_and(|n| n >= 5), "{answer}");
        }
    }
    web1.end();
    for client in &clients {
        resolves(&client.container, "web.weave.local", &["10.2.1.12"]);
    }

    step(
        "a partition: each side keeps the names of its own; then all are back, without one that was removed meanwhile",
    );
    let _one = named(h1, "one", "one.weave.local", "10.2.1.21");
    let removed = named(h1, "removed", "removed.weave.local", "10.2.1.22");
    resolves(&clients[2].container, "one.weave.local", &["10.2.1.21"]);
    resolves(&clients[2].container, "removed.weave.local", &["10.2.1.22"]);
    lab.cut("h1", "h2");
    lab.cut("h1", "h3");
    for name in ["one", "removed"] {
        vanishes(&[h2, h3], name);
    }
    vanishes(&[h1], "web");
    resolves(&clients[0].container, "one.weave.local", &["10.2.1.21"]);
    resolves(&clients[2].container, "web.weave.local", &["10.2.1.12"]);
    removed.detach(&["10.2.1.22/24"]);
    lab.heal("h1", "h2");
    lab.heal("h1", "h3");
    for client in &clients {
        resolves(&client.container, "one.weave.local", &["10.2.1.21"]);
        resolves(&client.container, "web.weave.local", &["10.2.1.12"]);
        assert_eq!(records(&ask(&client.container, "removed.weave.local", &[])), [""; 0]);
    }

    step("the names of a killed peer vanish, and the others stay");
    h1.signal_daemon("KILL");
    vanishes(&[h2, h3], "one");
    resolves(&clients[2].container, "web.weave.local", &["10.2.1.12"]);
    claims(&["F-55"]);
}

#[test]
fn exposed_addresses_have_names() {
    let Some(lab) = Lab::start("expnames", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch_mesh(&lab, &[]);
    let members = attach_each(&[h1, h2]);
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains("names are served on no address yet; 'weave expose'"), "{status}");
    h1.weave_ok(&["expose", "10.2.1.101/24"]);
    assert_eq!(h2.weave_ok(&["expose", "10.2.1.102/24", "-h", "exposed.weave.local"]), "10.2.1.102\n");
    for member in &members {
        resolves(&member.container, "exposed.weave.local", &["10.2.1.102"]);
    }
    h2.weave_ok(&["stop"]);
    launch(h2, &[], &["h1"]);
    for member in &members {
        resolves(&member.container, "exposed.weave.local", &["10.2.1.102"]);
    }
    h2.weave_ok(&["hide", "10.2.1.102/24"]);
    resolves(&members[0].container, "exposed.weave.local", &[]);
    claims(&["F-26"]);
    let gone =
        members[1].container.probe(&["dns-query", "10.2.1.102", "exposed.weave.local", "--wait-ms", "300"]);
    assert!(gone["error"].is_string(), "the server does not listen there any more: {gone}");
}

#[test]
fn names_survive_restarts() {
    let Some(lab) = Lab::start("keepnames", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch_with_names(&lab, &[]);
    let client = &attach_each(&[h2])[0].container;
    let _a = named(h1, "a", "a.weave.local", "10.2.1.11");
    let b = named(h1, "b", "b.weave.local", "10.2.1.12");
    h1.weave_ok(&["dns-add", "192.0.2.7", "-h", "ext.weave.local"]);
    h1.weave_ok(&["dns-add", "netns:a", "-h", "alias.weave.local"]);
    let all = [("a", "10.2.1.11"), ("alias", "10.2.1.11"), ("ext", "192.0.2.7")];
    for (name, ip) in all.into_iter().chain([("b", "10.2.1.12")]) {
        resolves(client, &format!("{name}.weave.local"), &[ip]);
    }

    step("a restart and a kill; a container ends while no daemon runs");
    h1.weave_ok(&["stop"]);
    b.end();
    launch(h1, &[], &["h2"]);
    for (name, ip) in all {
        resolves(client, &format!("{name}.weave.local"), &[ip]);
        looked_up(h1, name, &[ip]);
    }
    resolves(client, "b.weave.local", &[]);
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    launch(h1, &[], &["h2"]);
    for (name, ip) in all {
        resolves(client, &format!("{name}.weave.local"), &[ip]);
    }

    step("names are removed, added again, and given to another container");
    h1.weave_ok(&["dns-remove", "netns:a", "-h", "ALIAS.weave.local"]);
    resolves(client, "alias.weave.local", &[]);
    resolves(client, "a.weave.local", &["10.2.1.11"]);
    h1.weave_ok(&["dns-add", "10.2.1.11", "netns:a", "-h", "alias.weave.local"]);
    resolves(client, "alias.weave.local", &["10.2.1.11"]);
    h1.weave_ok(&["dns-remove", "192.0.2.7"]);
    resolves(client, "ext.weave.local", &[]);
    h1.weave_ok(&["detach", "10.2.1.11/24", "netns:a"]);
    resolves(client, "a.weave.local", &[]);
    resolves(client, "alias.weave.local", &[]);
    let _c = named(h2, "c", "a.weave.local", "10.2.1.13");
    resolves(client, "a.weave.local", &["10.2.1.13"]);

    step("forget and reset leave nothing of a host");
    let name = h1.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned();
    h1.weave_ok(&["dns-add", "192.0.2.8", "-h", "last.weave.local"]);
    resolves(client, "last.weave.local", &["192.0.2.8"]);
    h2.weave_ok(&["forget", "h1"]);
    h1.weave_ok(&["reset"]);
    vanishes(&[h2], "last");
    for page in ["peers", "targets", "connections", "ipam", "dns"] {
        h2.wait(page, LONG_TIMEOUT, || {
            let text = h2.weave_ok(&["status", page]);
            if text.contains(&name) || text.contains("h1") { Err(text) } else { Ok(()) }
        });
    }
    claims(&["F-46"]);
}

/// The simulation prints the memory of a peer among a hundred (`make scale`).
#[test]
fn memory_stays_small_with_names_and_traffic() {
    let Some(lab) = Lab::start("memory", &Topology::hosts(3)) else { return };
    let hosts: Vec<_> = lab.hosts().iter().collect();
    launch_with_names(&lab, &[]);
    let members = attach_each(&hosts);
    let put = "curl -sSf -X PUT \"http://127.0.0.1:6784/name/weave:extern/10.3.0.$n?fqdn=n$n.weave.local\"";
    hosts[0].sh(&format!("for n in $(seq 200); do {put}; done"));
    for host in &hosts {
        host.wait("all names", LONG_TIMEOUT, || host.weave_ok(&["status", "dns"]).lines().count() == 200);
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        members[from].container.tcp(&members[to].container, &members[to].ip, 200 << 20);
        let asked =
            ask(&members[from].container, "n7.weave.local", &["--count", "10000", "--wait-ms", "60000"]);
        assert_eq!(records(&asked), ["10.3.0.7"], "{asked}");
    }
    for host in &hosts {
        let megabytes = host.daemon_rss() as f64 / 1024.0;
        println!("{}: {megabytes:.1} MB resident with 3 peers, 200 names and traffic", host.name());
        assert!(megabytes < 40.0, "{megabytes}");
    }
    claims(&["F-52"]);
}

#[test]
fn a_peer_without_names_passes_them_on() {
    let Some(lab) = Lab::start("nodns", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    lab.cut("h1", "h3");
    launch(h1, &[], &[]);
    launch(h2, &["--no-dns"], &["h1"]);
    launch(h3, &[], &["h2"]);
    h2.wait_established(2, LONG_TIMEOUT);
    for host in [h1, h3] {
        wait_peers(host, 3);
        host.weave_ok(&["expose", &format!("{}/24", server_of(host))]);
    }
    let client = &attach_each(&[h3])[0].container;
    let _a = named(h1, "a", "a.weave.local", "10.2.1.11");
    resolves(client, "a.weave.local", &["10.2.1.11"]);

    assert_eq!(h2.weave_ok(&["status", "dns"]), "");
    assert_eq!(h2.weave_ok(&["dns-args"]), "");
    assert!(!h2.weave_ok(&["status"]).contains("Service: dns"));
    let c = h2.container("c");
    for args in [
        &["dns-add", "10.2.1.12", "-h", "c.weave.local"][..],
        &["dns-lookup", "a"],
        &["expose", "10.2.1.102/24", "-h", "c.weave.local"],
        &["attach", "10.2.1.12/24", "--name", "c.weave.local", "netns:c"],
    ] {
        let refused = h2.weave(args);
        assert!(refused.code == Some(1) && refused.stderr.contains("--no-dns"), "{refused}");
    }
    assert!(!c.has_interface());
    assert_eq!(c.attach(&["10.2.1.12/24"]), "10.2.1.12");
}
