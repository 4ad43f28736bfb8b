//! Services carried into the network, out of it and through it, with the iptables lines of the manual.

use weave_lab::{Background, Container, Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-28", "F-29", "F-30", "F-31", "F-32", "F-33", "F-34", "F-35");

/// The forward policy that Docker sets.
fn docker_like(host: &Host) {
    host.sh("iptables -w -P FORWARD DROP");
}

fn nat(host: &Host, rule: &str) {
    host.sh(&format!("iptables -w -t nat {rule}"));
}

/// An echo server.
fn serve(container: &Container, port: u16) -> Background {
    container.probe_background(&["tcp-serve", "--port", &port.to_string()])
}

const SEND: [&str; 6] = ["--bytes", "300000", "--connect-ms", "3000", "--stall-ms", "5000"];

fn connects(host: &Host, ip: &str, port: u16) -> bool {
    let port = port.to_string();
    host.probe(&[&["tcp-send", ip, "--port", &port][..], &SEND].concat())["ok"] == true
}

fn inside_connects(container: &Container, ip: &str, port: u16) -> bool {
    let port = port.to_string();
    container.probe(&[&["tcp-send", ip, "--port", &port][..], &SEND].concat())["ok"] == true
}

#[test]
fn services_are_exported_imported_bound_and_routed() {
    let Some(lab) = Lab::start("services", &Topology::hosts(4)) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h));
    for host in [h1, h2] {
        docker_like(host);
    }
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let members = attach_each(&[h1, h2]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    let _service = serve(&members[0].container, 4422);

    step("export: a container on HOST1 is reached from HOST4 by the address of HOST2");
    assert!(!connects(h4, "198.18.0.2", 2211));
    h2.weave_ok(&["expose", "10.2.1.102/24"]);
    nat(h2, "-A PREROUTING -p tcp -i eth0 --dport 2211 -j DNAT --to-destination 10.2.1.1:4422");
    assert!(connects(h4, "198.18.0.2", 2211));
    claims(&["F-28"]);

    step("HOST2 itself needs a rule in OUTPUT, as the guide says");
    assert!(!connects(h2, "198.18.0.2", 2211));
    let guide: Vec<&str> = include_str!("../../../docs/guide/expose.md").split_whitespace().collect();
    let guide = guide.join(" ");
    let rule = "-A OUTPUT -p tcp -d $HOST2 --dport 2211 -j DNAT --to-destination 10.2.1.1:4422";
    assert!(guide.contains("do not pass PREROUTING") && guide.contains(rule), "{guide}");
    nat(h2, &rule.replace("$HOST2", "198.18.0.2"));
    assert!(connects(h2, "198.18.0.2", 2211));
    claims(&["F-29"]);
    let internal = external_network(h2, "internal", "eth1", "172.30.0.1/24", "172.30.0.2/24");
    nat(h2, "-A PREROUTING -p tcp -i eth1 --dport 2212 -j DNAT --to-destination 10.2.1.1:4422");
    assert!(inside_connects(&internal, "172.30.0.1", 2212));
    claims(&["F-30"]);

    step("import: HOST3 runs no weave and is reachable from HOST1 only");
    lab.cut("h2", "h3");
    let _on_h3 = h3.probe_background(&["tcp-serve", "--port", "2211"]);
    h1.weave_ok(&["expose", "10.2.1.101/24"]);
    let import =
        |to: &str| format!("PREROUTING -p tcp -d 10.2.1.101 --dport 3322 -j DNAT --to-destination {to}:2211");
    nat(h1, &format!("-A {}", import("198.18.0.3")));
    for member in &members {
        assert!(inside_connects(&member.container, "10.2.1.101", 3322), "{:?}", member.container);
    }
    assert!(!connects(h2, "198.18.0.3", 2211), "only by way of HOST1");
    claims(&["F-31"]);

    step("routing between services without a container");
    nat(h2, "-A PREROUTING -p tcp -i eth0 --dport 4433 -j DNAT --to-destination 10.2.1.101:3322");
    assert!(connects(h4, "198.18.0.2", 4433));
    claims(&["F-33"]);

    step("binding: the endpoint is moved to another service");
    drop(_on_h3);
    assert!(!inside_connects(&members[1].container, "10.2.1.101", 3322));
    let _on_h4 = h4.probe_background(&["tcp-serve", "--port", "2211"]);
    nat(h1, &format!("-D {}", import("198.18.0.3")));
    nat(h1, &format!("-A {}", import("198.18.0.4")));
    for member in &members {
        assert!(inside_connects(&member.container, "10.2.1.101", 3322), "{:?}", member.container);
    }
    claims(&["F-32"]);
    assert!(connects(h3, "198.18.0.1", 3322) || !connects(h3, "198.18.0.2", 4433));
    lab.heal("h2", "h3");
    assert!(connects(h3, "198.18.0.2", 4433));
    claims(&["F-35"]);
}

#[test]
fn services_between_networks_with_equal_addresses() {
    let Some(lab) = Lab::start("overlap", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    for host in [h1, h2] {
        docker_like(host);
        lab.firewall(host.name(), &["tcp:6783", "udp:6783"]);
    }
    launch(h1, &[], &[]);
    launch(h2, &[], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    // Both networks have the same addresses.
    let service = external_network(h1, "service", "side", "192.168.1.1/24", "192.168.1.7/24");
    let client = external_network(h2, "client", "side", "192.168.1.1/24", "192.168.1.7/24");
    let _service = serve(&service, 2211);
    h1.weave_ok(&["expose", "10.2.1.101/24"]);
    h2.weave_ok(&["expose", "10.2.1.102/24"]);
    nat(h1, "-A PREROUTING -p tcp -d 10.2.1.101 --dport 3322 -j DNAT --to-destination 192.168.1.7:2211");
    nat(h2, "-A PREROUTING -p tcp -i side --dport 4433 -j DNAT --to-destination 10.2.1.101:3322");
    h2.wait("a way through both", SHORT_TIMEOUT, || inside_connects(&client, "192.168.1.1", 4433));
    claims(&["F-34"]);
}
