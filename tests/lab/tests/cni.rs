//! The CNI plugins `weave-net` and `weave-ipam`, called as container runtimes call them.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use weave_lab::{Host, Lab, Topology};

use crate::common::cni::{
    Attachment, DEBIAN_PLUGINS, address, after, config, error_of, json_of, recorded, with,
};
use crate::common::*;

const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Owners without the host's own.
fn owners(host: &Host) -> Vec<(String, Vec<String>)> {
    recorded(host).into_iter().filter(|(owner, _)| owner != "weave:expose").collect()
}

/// Interface names on the host of attached containers.
fn ports(host: &Host) -> usize {
    host.command_ok(&["ip", "-o", "link"]).matches("vethwepl").count()
}

#[test]
fn every_verb_in_every_version() {
    let Some(lab) = Lab::start("cni", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let (one, two) = (h1.container("one"), h2.container("two"));
    let versions = Attachment::new(h1, "").plugin("weave-net", "VERSION", &json!({})).expect_ok();
    assert_eq!(json_of(&versions)["supportedVersions"], json!(VERSIONS));
    let by_command = format!("CNI_COMMAND=VERSION {} weaveutil cni-ipam", weave_lab::weave_binary());
    assert_eq!(h1.sh(&by_command), versions);

    let far = Attachment { container: "2222222222aaaaaaaaaa", ..Attachment::new(h2, "two") };
    let conf = config("1.0.0");
    let far_result = far.add(&conf);
    for version in VERSIONS {
        let near = Attachment { container: "1111111111aaaaaaaaaa", ..Attachment::new(h1, "one") };
        let conf = config(version);
        let result = near.add(&conf);
        assert_eq!(result.get("cniVersion").is_some(), version > "0.3.0", "{result}");
        if version > "0.3.0" {
            assert_eq!(result["ips"][0]["interface"], 1, "{result}");
            let [port, end] = [&result["interfaces"][0], &result["interfaces"][1]];
            assert_eq!((&port["name"], port.get("sandbox")), (&json!("vethwepl1111111"), None), "{result}");
            assert_eq!(
                (&end["name"], &end["sandbox"]),
                (&json!("eth0"), &json!("/run/netns/one")),
                "{result}"
            );
            let link = one.command_ok(&["ip", "-o", "link", "show", "eth0"]);
            assert!(link.contains(end["mac"].as_str().unwrap()), "{result} {link}");
        }
        assert_eq!(near.add(&conf), result, "{version}: once more");
        one.reaches(&address(&far_result), LONG_TIMEOUT);
        two.reaches(&address(&result), SHORT_TIMEOUT);
        let routes = one.command_ok(&["ip", "route"]);
        assert!(routes.contains("default via ") && !routes.contains("224.0.0.0"), "{routes}");
        let checked = near.plugin("weave-net", "CHECK", &after(&conf, &result));
        if version >= "0.4.0" {
            assert!(checked.success(), "{checked}");
        } else {
            assert_eq!(error_of(&checked), (100, "unknown CNI_COMMAND: CHECK".to_owned()));
        }
        let (owner, addrs) = owners(h1).pop().expect("an owner");
        assert_eq!((owner.as_str(), addrs.len()), ("1111111111aaaaaaaaaa", 1), "as with 2.8.1");
        near.ok("DEL", &after(&conf, &result));
        let again = near.plugin("weave-net", "DEL", &conf);
        assert!(again.success(), "{again}");
        assert!(
            again.stderr.contains("weave-cni: error removing interface \"eth0\": Link not found"),
            "{again}"
        );
        assert!(again.stderr.contains("weave-cni: Delete: no addresses for 1111111111aaaaaaaaaa"), "{again}");
        assert_eq!((owners(h1).len(), ports(h1)), (0, 0), "{version}");
        two.never_reaches(&address(&result));
    }

    step("what CHECK finds");
    let conf = config("1.1.0");
    let near = Attachment::new(h1, "one");
    let result = near.add(&conf);
    let check = || near.refused("CHECK", &after(&conf, &result)).1;
    let gateway = result["ips"][0]["gateway"].as_str().unwrap();
    one.command_ok(&["ip", "route", "del", "default"]);
    assert!(check().contains("has lost its route to 0.0.0.0/0"), "{}", check());
    one.command_ok(&["ip", "route", "add", "default", "via", gateway]);
    near.ok("CHECK", &after(&conf, &result));
    let port = result["interfaces"][0]["name"].as_str().unwrap();
    // The peer restores the port, maybe before it is checked.
    h1.wait("CHECK to miss the port of the bridge", SHORT_TIMEOUT, || {
        h1.command_ok(&["ip", "link", "set", port, "nomaster"]);
        let outcome = near.plugin("weave-net", "CHECK", &after(&conf, &result));
        if outcome.stdout.contains("is not connected to bridge weave") { Ok(()) } else { Err(outcome) }
    });
    h1.command_ok(&["ip", "link", "set", port, "master", "weave"]);
    let cidr = result["ips"][0]["address"].as_str().unwrap();
    one.command_ok(&["ip", "addr", "del", cidr, "dev", "eth0"]);
    assert!(check().contains("has lost its address"), "{}", check());
    one.command_ok(&["ip", "link", "del", "eth0"]);
    assert!(check().contains("interface eth0 is missing"), "{}", check());
    near.ok("DEL", &conf);

    step("the namespace is gone, or not named");
    h1.sh("ip netns add lost");
    let lost = Attachment::new(h1, "lost");
    lost.add(&conf);
    h1.sh("ip netns del lost");
    let gone = lost.plugin("weave-net", "DEL", &conf);
    assert!(gone.success() && gone.stderr.contains("error accessing namespace"), "{gone}");
    h1.sh("ip netns add kept");
    Attachment::new(h1, "kept").add(&conf);
    Attachment { netns: "", ..Attachment { container: "kept", ..Attachment::new(h1, "") } }.ok("DEL", &conf);
    assert!(!h1.command(&["ip", "-n", "kept", "link", "show", "eth0"]).success(), "it is found again");
    assert_eq!((owners(h1).len(), ports(h1)), (0, 0));
}

/// Several interfaces of a container, subnets, routes, MTU and hairpin; addresses for other plugins; several engines.
#[test]
fn networks_and_their_options() {
    let Some(lab) = Lab::start("cnin", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &["--ipalloc-range", "10.32.0.0/12"], &[]);
    let c = h1.container("c1c1c1c1");
    let conf = |network: &str, more: Value| {
        with(json!({ "cniVersion": "1.1.0", "name": network, "type": "weave-net" }), more)
    };

    step("two interfaces");
    let first = Attachment::new(h1, "c1c1c1c1");
    let second = Attachment { interface: "eth1", ..first };
    let routes = json!([{ "dst": "10.40.0.0/16" }, { "dst": "192.168.0.0/16", "gw": "10.40.0.7" }]);
    let other = conf(
        "other",
        json!({ "mtu": 1300, "hairpinMode": false, "ipam": { "subnet": "10.40.0.0/16", "routes": routes } }),
    );
    let (weave, result) = (first.add(&conf("weave", json!({}))), second.add(&other));
    assert_ne!(address(&weave), address(&result));
    assert_eq!((&result["routes"], &result["interfaces"][1]["mtu"]), (&routes, &json!(1300)), "{result}");
    let table = c.command_ok(&["ip", "route"]);
    assert!(table.contains("192.168.0.0/16 via 10.40.0.7 dev eth1"), "{table}");
    assert!(table.contains("dev eth0") && table.matches("default").count() == 1, "{table}");
    let hairpin = |result: &Value| {
        let port = result["interfaces"][0]["name"].as_str().unwrap();
        h1.command_ok(&["ip", "-o", "-d", "link", "show", port]).contains("hairpin on")
    };
    assert_eq!((hairpin(&weave), hairpin(&result)), (true, false));
    let names: Vec<String> = owners(h1).into_iter().map(|(owner, _)| owner).collect();
    assert_eq!(names, ["c1c1c1c1", "c1c1c1c1/other/eth1"]);
    let (code, text) = Attachment { interface: "eth1", ..first }.refused("ADD", &conf("third", json!({})));
    assert_eq!(code, 100);
    assert!(text.contains("already"), "{text}");
    first.ok("DEL", &conf("weave", json!({})));
    assert_eq!(owners(h1).len(), 1, "that of the other network stays");
    second.ok("CHECK", &after(&other, &result));

    step("addresses for another plugin");
    let ipam = with(
        json!({ "cniVersion": "0.2.0", "name": "mac", "type": "macvlan" }),
        json!({ "ipam": { "type": "weave-ipam", "subnet": "10.40.0.0/16", "gateway": "10.40.0.1", "routes": [{ "dst": "0.0.0.0/0" }] } }),
    );
    let allocated = json_of(&first.plugin("weave-ipam", "ADD", &ipam).expect_ok());
    assert_eq!(allocated["ip4"]["gateway"], "10.40.0.1");
    assert_eq!(allocated["ip4"]["routes"], json!([{ "dst": "0.0.0.0/0" }]));
    assert_ne!(address(&allocated), address(&result));
    assert_eq!(first.plugin("weave-ipam", "DEL", &ipam).expect_ok(), "");
    assert_eq!(first.plugin("weave-ipam", "DEL", &ipam).expect_ok(), "", "once more");
    assert_eq!(owners(h1).len(), 1);

    step("garbage collection");
    h1.sh("for n in a1 a2 b1; do ip netns add $n; done");
    let (a, b) = (conf("a", json!({})), conf("b", json!({})));
    let [a1, a2, b1] = ["a1", "a2", "b1"].map(|n| Attachment::new(h1, n));
    a1.add(&a);
    a2.add(&a);
    b1.add(&b);
    let running = Attachment { interface: "eth5", ..first };
    running.add(&a);
    let keep = |list: Value| with(a.clone(), json!({ "cni.dev/valid-attachments": list }));
    assert_eq!(a1.refused("GC", &a).0, 7, "a list that is missing is not empty");
    a1.ok("GC", &keep(json!([{ "containerID": "a1", "ifname": "eth0" }])));
    let left: Vec<String> = owners(h1).into_iter().map(|(owner, _)| owner).collect();
    assert_eq!(left, ["a1", "b1", "c1c1c1c1", "c1c1c1c1/other/eth1"]);
    assert!(!h1.command(&["ip", "-n", "a2", "link", "show", "eth0"]).success());
    assert!(h1.command(&["ip", "-n", "a1", "link", "show", "eth0"]).success());
    let stays = a1.plugin("weave-net", "GC", &keep(json!([])));
    assert!(
        stays.success() && stays.stderr.contains("eth5 of c1c1c1c1 stays, a process runs there"),
        "{stays}"
    );
    b1.ok("CHECK", &after(&b, &b1.add(&b)));

    step("status");
    first.ok("STATUS", &a);
    first.plugin("weave-ipam", "STATUS", &ipam_status()).expect_ok();
}

fn ipam_status() -> Value {
    json!({ "cniVersion": "1.1.0", "name": "mac", "ipam": { "type": "weave-ipam" } })
}

#[test]
fn bad_input_leaves_nothing() {
    let Some(lab) = Lab::start("cnib", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &["--ipalloc-range", "10.32.0.0/29"], &[]);
    h1.sh("ip netns add c; ip netns add c2; ip -n c2 link add eth0 type veth peer name other");
    let c = Attachment::new(h1, "c");
    let conf = config("1.0.0");
    // The bridge has its address then.
    c.add(&conf);
    c.ok("DEL", &conf);
    let before = (host_state(h1), recorded(h1));
    let fails = |of: &Attachment<'_>, conf: &str, variables: &[(&str, &str)], code: u64, text: &str| {
        let variables = [&[("CNI_COMMAND", "ADD")], variables].concat();
        let error = error_of(&of.plugin_with("weave-net", &variables, conf));
        assert!(error.0 == code && error.1.contains(text), "{error:?}, not {code} {text}");
        let changes = differences(&before.0, &host_state(h1));
        assert!(changes.is_empty(), "{text}: {changes:#?}");
        assert_eq!(before.1, recorded(h1), "{text}");
    };
    let good = conf.to_string();
    fails(&c, "{", &[], 100, "decoding version from network config: unexpected end of JSON input");
    fails(&c, &config("9.9.9").to_string(), &[], 1, "incompatible CNI versions");
    fails(&c, &with(conf.clone(), json!({ "mtu": "x" })).to_string(), &[], 100, "network configuration");
    fails(
        &c,
        &with(conf.clone(), json!({ "isGateway": true })).to_string(),
        &[],
        100,
        "Gateway functionality",
    );
    fails(&c, &with(conf.clone(), json!({ "bridge": "nobridge" })).to_string(), &[], 100, "nobridge");
    fails(&c, &with(conf.clone(), json!({ "ipam": { "type": "no-such" } })).to_string(), &[], 100, "no-such");
    fails(&c, &with(conf.clone(), json!({ "ipam": { "type": "../x" } })).to_string(), &[], 7, "../x");
    let junk = with(conf.clone(), json!({ "ipam": { "subnet": "junk" } }));
    fails(
        &c,
        &junk.to_string(),
        &[],
        100,
        "unable to allocate IP address: subnet given in config, but not parseable",
    );
    let unreachable =
        with(conf.clone(), json!({ "ipam": { "routes": [{ "dst": "10.9.0.0/16", "gw": "1.2.3.4" }] } }));
    fails(&c, &unreachable.to_string(), &[], 100, "failed to add route '10.9.0.0/16 via 1.2.3.4 dev eth0'");
    fails(&c, &good, &[("CNI_COMMAND", "FOO")], 100, "unknown CNI_COMMAND: FOO");
    fails(&c, &good, &[("CNI_IFNAME", "")], 100, "required env variables missing");
    fails(&c, &good, &[("CNI_IFNAME", "a/b")], 100, "a/b");
    fails(&c, &good, &[("CNI_IFNAME", "lo")], 100, "has an interface lo already");
    fails(&c, &good, &[("CNI_CONTAINERID", "weave:expose")], 100, "is not the id of a container");
    fails(&c, &good, &[("CNI_CONTAINERID", "")], 100, "Weave CNI Allocate: blank container name");
    fails(
        &c,
        &good,
        &[("CNI_NETNS", "/run/netns/none")],
        100,
        "error accessing namespace \"/run/netns/none\"",
    );
    fails(&c, &good, &[("CNI_NETNS", "/proc/1/ns/net")], 100, "can not specify host network namespace");
    fails(&c, &good, &[("CNI_NETNS", "/etc/passwd")], 100, "not a network namespace");
    fails(&Attachment::new(h1, "c2"), &good, &[], 100, "has an interface eth0 already");

    step("no daemon");
    h1.weave_ok(&["stop"]);
    let refused = |command: &str| c.refused(command, &config("1.1.0")).0;
    assert_eq!(["ADD", "DEL", "STATUS"].map(refused), [11, 11, 51]);
    launch(h1, &["--ipalloc-range", "10.32.0.0/29"], &[]);
    c.ok("STATUS", &config("1.1.0"));
    assert_eq!(before.1, recorded(h1));
}

/// The daemon is killed, or the host refuses, at each operation of an `ADD` and a `DEL`.
#[test]
fn failures_at_each_step() {
    const PLAN: &str = "/var/log/fault.plan";
    const HIT: &str = "/var/log/fault";
    let Some(lab) = Lab::start("cnif", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    h1.sh("ip netns add c");
    let relaunch = || h1.weave_env(&[("WEAVE_FAULT_PLAN", PLAN)], &["launch", "--no-restart"]).expect_ok();
    relaunch();
    let (c, conf) = (Attachment::new(h1, "c"), config("1.0.0"));
    c.add(&conf);
    c.ok("DEL", &conf);
    let state = || (host_state(h1), recorded(h1));
    let before = state();
    c.add(&conf);
    let after = state();
    c.ok("DEL", &conf);
    let changes = |wanted: &(String, Vec<(String, Vec<String>)>)| {
        let now = state();
        let mut changes = differences(&wanted.0, &now.0);
        if now.1 != wanted.1 {
            changes.push(format!("{:?}", now.1));
        }
        // The firewall of a container and its neighbour settings are not needed.
        changes
            .retain(|change| !["-A ", "WEAVE", "/neigh/", "filter"].iter().any(|word| change.contains(word)));
        changes
    };
    // What the daemon has written of the host may follow in a moment.
    let undone = |at: &str| {
        h1.wait("nothing to be left", SHORT_TIMEOUT, || match changes(&before) {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:#?}\n{at}")),
        });
    };
    for (command, mode) in [("ADD", "5"), ("ADD", "kill"), ("DEL", "5"), ("DEL", "kill")] {
        let mut tried = 0;
        // Restarts of the daemon take longest.
        for n in (0..).step_by(if mode == "kill" { 4 } else { 2 }) {
            if command == "DEL" {
                c.add(&conf);
            }
            h1.sh(&format!("echo {mode}:interface:{n}:{HIT} > {PLAN}"));
            let outcome = c.plugin("weave-net", command, &conf);
            let hit = h1.sh(&format!("cat {HIT} 2>/dev/null || true; rm -f {HIT} {PLAN}"));
            if mode == "kill" && !hit.is_empty() {
                relaunch();
            }
            let at = format!("{command} {mode} at {n}: {hit}\n{outcome}");
            match (command, outcome.success(), mode) {
                ("ADD", true, _) => c.ok("DEL", &conf),
                ("ADD", false, _) | ("DEL", true, _) => undone(&at),
                // A `DEL` that was refused is repeated.
                (_, false, "5") => c.ok("DEL", &conf),
                _ => {
                    let (undone, lacking) = (changes(&before), changes(&after));
                    assert!(undone.is_empty() || lacking.is_empty(), "{undone:#?}\n{lacking:#?}\n{at}");
                    c.ok("DEL", &conf);
                }
            }
            undone(&at);
            if hit.is_empty() {
                break;
            }
            tried += 1;
        }
        println!("{command} {mode}: {tried} operations");
        assert!(tried > 0, "the program is built without feature `fault-injection`");
    }
}

#[test]
fn fifty_at_a_time_and_a_restart() {
    let Some(lab) = Lab::start("cni50", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    let script = "for i in $(seq 50); do ip netns add p$i; done; \
         add() { CNI_COMMAND=ADD CNI_CONTAINERID=p$1 CNI_NETNS=/run/netns/p$1 CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin \
           /opt/cni/bin/weave-net > /run/p$1 < /run/conf || cat /run/p$1 >&2; }; \
         for i in $(seq 50); do add $i & done; wait; cat /run/p*";
    h1.sh(&format!("echo '{}' > /run/conf", config("1.0.0")));
    let results = h1.sh(script);
    let results: Vec<Value> =
        serde_json::Deserializer::from_str(&results).into_iter().collect::<Result<_, _>>().unwrap();
    let addresses: BTreeSet<String> = results.iter().map(address).collect();
    assert_eq!(addresses.len(), 50);
    let exposed = recorded(h1).into_iter().find(|(owner, _)| owner == "weave:expose").unwrap();
    assert_eq!(exposed.1.len(), 1, "one address of the bridge");
    let before = owners(h1);
    assert_eq!(before.len(), 50);

    step("restarts");
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || {
        if h1.daemon_pid().is_none() { Ok(()) } else { Err("runs") }
    });
    launch(h1, &[], &[]);
    assert_eq!(owners(h1), before);
    h1.weave_ok(&["stop"]);
    launch(h1, &[], &[]);
    assert_eq!(owners(h1), before);
    h1.sh("ip netns add new");
    let new = Attachment::new(h1, "new").add(&config("1.0.0"));
    assert!(!addresses.contains(&address(&new)), "{new}");
    let one = results.iter().find(|r| r["interfaces"][1]["sandbox"] == "/run/netns/p7").unwrap();
    Attachment::new(h1, "p7").ok("CHECK", &after(&config("1.0.0"), one));
    Attachment::new(h1, "p7").ok("DEL", &config("1.0.0"));
    assert_eq!(owners(h1).len(), 50);
}

/// Plugins of the CNI project before and after ours.
#[test]
fn chains_and_other_plugins() {
    let Some(lab) = Lab::start("cnich", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    if !h1.command(&["test", "-x", &format!("{DEBIAN_PLUGINS}/portmap")]).success() {
        let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
        assert!(!required, "package containernetworking-plugins is missing");
        eprintln!("SKIPPED: plugins of the CNI project are missing (package containernetworking-plugins)");
        return;
    }
    launch(h1, &[], &[]);
    let c = h1.container("web");
    let web = Attachment::new(h1, "web");
    for version in ["0.3.0", "1.0.0"] {
        let conf = config(version);
        let mut result = web.add(&conf);
        let chained = [
            json!({ "type": "portmap", "snat": true, "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } }),
            json!({ "type": "bandwidth", "ingressRate": 100_000_000, "ingressBurst": 1_000_000_000 }),
            json!({ "type": "firewall", "backend": "iptables" }),
        ];
        let chained = chained.map(|more| with(conf.clone(), more));
        for (plugin, conf) in ["portmap", "bandwidth", "firewall"].iter().zip(&chained) {
            if version == "0.3.0" && *plugin != "portmap" {
                // They need to know the interfaces, which 2.8.1 did not show.
                continue;
            }
            let with_version = with(result.clone(), json!({ "cniVersion": version }));
            result = json_of(&web.plugin(plugin, "ADD", &after(conf, &with_version)).expect_ok());
        }
        let _server = h1
            .background(
                &["ip", "netns", "exec", "web", "busybox", "nc", "-ll", "-p", "80", "-e", "echo", "hello"],
                false,
            )
            .unwrap();
        h2.wait("the published port", SHORT_TIMEOUT, || {
            let got = h2.command(&["sh", "-c", &format!("echo | busybox nc -w 2 {} 8080", h1.ip())]);
            if got.stdout == "hello\n" { Ok(()) } else { Err(got.to_string()) }
        });
        for (plugin, conf) in ["portmap", "bandwidth", "firewall"].iter().zip(&chained).rev() {
            if version != "0.3.0" || *plugin == "portmap" {
                web.plugin(plugin, "DEL", &after(conf, &result)).expect_ok();
            }
        }
        web.ok("DEL", &conf);
    }
    drop(c);

    step("addresses of host-local");
    h1.sh("ip netns add local");
    let ipam = json!({ "type": "host-local", "subnet": "10.77.0.0/24", "rangeStart": "10.77.0.10" });
    let conf = with(config("1.0.0"), json!({ "ipam": ipam }));
    let local = Attachment::new(h1, "local");
    let result = local.add(&conf);
    assert_eq!(
        (address(&result).as_str(), &result["ips"][0]["gateway"]),
        ("10.77.0.10", &json!("10.77.0.1"))
    );
    local.ok("CHECK", &after(&conf, &result));
    let leases = || h1.sh("ls /var/lib/cni/networks/weave | grep -c '^10' || true");
    assert_eq!(leases(), "1\n");
    let status = with(config("1.1.0"), json!({ "ipam": ipam }));
    local.ok("STATUS", &status);
    local.ok(
        "GC",
        &with(status, json!({ "cni.dev/valid-attachments": [{ "containerID": "local", "ifname": "eth0" }] })),
    );
    local.ok("DEL", &conf);
    assert_eq!(leases(), "0\n");
    let broken = with(conf, json!({ "bridge": "nobridge" }));
    local.refused("ADD", &broken);
    assert_eq!(leases(), "0\n", "a failed ADD frees its address");
}

#[test]
fn installation() {
    let Some(lab) = Lab::start("cnis", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    h1.sh("rm -rf /etc/cni /opt/cni; mkdir -p /opt/cni/bin; echo old > /opt/cni/bin/weave-net");
    h1.weave_ok(&["setup-cni"]);
    let links = h1.command_ok(&["ls", "-l", "/opt/cni/bin"]);
    for link in [
        "weave-net -> weave-plugin-",
        "weave-ipam -> weave-plugin-",
        &format!("-> {}", weave_lab::weave_binary()),
    ] {
        assert!(links.contains(link), "{links}");
    }
    assert!(!h1.command(&["test", "-e", "/etc/cni"]).success(), "only where a runtime is");
    h1.sh("mkdir -p /etc/cni/net.d; echo {} > /etc/cni/net.d/10-weave.conf");
    let env = [("HAIRPIN_MODE", "false"), ("WEAVE_CNI_PLUGIN_DIR", "/run/plugins")];
    h1.weave_env(&env, &["launch", "--no-restart"]).expect_ok();
    let files = h1.command_ok(&["sh", "-c", "cd /etc/cni/net.d; ls; cat *; ls /run/plugins"]);
    for text in [
        "10-weave.conflist\n{",
        "\"hairpinMode\": false",
        "\"cniVersion\": \"1.0.0\"",
        "\"1.1.0\"",
        "weave-ipam\n",
    ] {
        assert!(files.contains(text), "{files}");
    }
    assert!(!files.contains("10-weave.conf\n"), "{files}");
    h1.sh("echo changed > /etc/cni/net.d/10-weave.conflist");
    h1.weave_ok(&["setup"]);
    assert_eq!(h1.command_ok(&["cat", "/etc/cni/net.d/10-weave.conflist"]), "changed\n");
    h1.weave_ok(&["reset"]);
    assert_eq!(h1.sh("ls /opt/cni/bin 2>/dev/null || true"), "");
    assert_eq!(h1.command_ok(&["cat", "/etc/cni/net.d/10-weave.conflist"]), "changed\n");
}
