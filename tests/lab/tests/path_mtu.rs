//! A path MTU that is smaller than the MTU of the interfaces.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-4", "F-5");

fn small_path(name: &str, mtu: u16, icmp: bool, options: &[&str]) {
    let Some(lab) = Lab::start(name, &Topology::hosts(2)) else { return };
    lab.path_mtu("h2", mtu, icmp);
    launch_mesh(&lab, options);
    let members = attach_each(&[lab.host("h1"), lab.host("h2")]);
    check_all_traffic(&members);
    // The path MTU shrinks while it is in use.
    lab.path_mtu("h2", mtu - 200, icmp);
    let [a, b] = &members[..] else { unreachable!() };
    for (from, to) in [(a, b), (b, a)] {
        from.container.udp(&to.container, &to.ip, &[100]);
        let passes = |what: &str, server: &str, args: &[&str]| {
            weave_lab::eventually(what, LONG_TIMEOUT, || {
                let _server = to.container.probe_background(&[server, "--port", "7003"]);
                let result = from.container.probe(&[args, &["--port", "7003"]].concat());
                if result["ok"] == true { Ok(()) } else { Err(result.to_string()) }
            });
        };
        let sizes = "1300,9000,65000";
        let large = ["udp-send", &to.ip, "--sizes", sizes, "--tries", "2"];
        passes("large datagrams over the smaller path", "udp-serve", &large);
        // The next probe of the path detects a black hole; until then a stream stops.
        let stream = ["tcp-send", &to.ip, "--bytes", "500000", "--stall-ms", "8000"];
        passes("a stream over the smaller path", "tcp-serve", &stream);
    }
    claims(&["F-4", "F-5"]);
}

#[test]
fn small_path_mtu_with_icmp() {
    small_path("icmp", 1300, true, &[]);
}

#[test]
fn small_path_mtu_without_icmp() {
    small_path("hole", 1300, false, &[]);
}

#[test]
fn small_path_mtu_without_icmp_encrypted() {
    small_path("chole", 1280, false, &["--password", "wEaVe"]);
}
