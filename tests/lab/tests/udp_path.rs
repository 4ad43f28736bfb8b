//! Datagrams between hosts with several addresses, stateful firewalls, and paths that only TCP passes.

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

fn wait_status(host: &Host, what: &str, texts: &[&str]) {
    host.wait(what, LONG_TIMEOUT, || {
        let status = host.weave_ok(&["status", "connections"]);
        if texts.iter().all(|text| status.contains(text)) { Ok(()) } else { Err(status) }
    });
}

#[test]
fn second_address_behind_a_stateful_firewall_and_blocked_udp() {
    let Some(lab) = Lab::start("udppath", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    // The other host knows this address; the kernel would send from the first one.
    h1.sh("ip addr add 198.18.9.1/32 dev lo");
    lab.wire().sh("ip route add 198.18.9.1/32 dev h1");
    h2.sh(
        "iptables -A INPUT -p udp -m conntrack --ctstate ESTABLISHED -j ACCEPT; iptables -A INPUT -p udp --dport 6783 -j DROP",
    );
    // A connection that fastdp carries does not depend on the port of sleeve.
    let options = ["--no-fastdp", "--mtu", "1376"];
    launch(h1, &options, &[]);
    launch(h2, &options, &["198.18.9.1"]);
    for host in lab.hosts() {
        host.wait_established(1, SHORT_TIMEOUT);
    }
    wait_status(h2, "the MTU", &["198.18.9.1:6783", "mtu=1412"]);

    step("UDP passes in one direction only: both sides say so, and neither has a connection");
    h2.sh("iptables -I INPUT -p udp --dport 6783 -j DROP");
    let missing = "no UDP datagram from 198.18.9.1:6783 to 198.18.0.2:6783 for";
    wait_status(h2, "the reason", &["pending", missing, "TCP works"]);
    let other = "UDP datagrams from 198.18.9.1:6783 do not arrive at 198.18.0.2:6783";
    wait_status(h1, "the reason at the other end", &["pending", other]);
    for host in lab.hosts() {
        let status = host.weave_ok(&["status", "connections"]);
        assert!(!status.contains("mtu=") && !status.contains("established"), "{status}");
    }
    h2.sh("iptables -D INPUT -p udp --dport 6783 -j DROP");
    for host in lab.hosts() {
        host.wait_established(1, LONG_TIMEOUT);
    }
}
