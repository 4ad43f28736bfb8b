//! One network, several applications that do not see each other.

use weave_lab::docker::Dockerd;
use weave_lab::{Container, Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-7", "F-8");

#[test]
fn subnets_are_isolated() {
    let Some(lab) = Lab::start("isolate", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let mut all = Vec::new();
    for host in lab.hosts() {
        let last = host.name().trim_start_matches('h');
        for subnet in [1, 2] {
            let container = host.container(&format!("app{subnet}"));
            let ip = format!("10.2.{subnet}.{last}");
            container.attach(&[&format!("{ip}/24")]);
            all.push((subnet, container, ip));
        }
    }
    for (subnet, container, _) in &all {
        for (_, _, ip) in all.iter().filter(|(s, c, _)| s == subnet && c.pid() != container.pid()) {
            container.reaches(ip, SOON);
        }
    }
    for (subnet, container, _) in &all {
        for (_, _, ip) in all.iter().filter(|(s, ..)| s != subnet) {
            container.never_reaches(ip);
            // Nor with a route that tries.
            container.command(&["ip", "route", "replace", ip, "dev", "ethwe"]);
        }
    }
    claims(&["F-7"]);
}

/// A container as Docker makes it: a link to Docker's bridge, and everything unknown goes that way.
fn behind_docker(host: &Host, name: &str, number: usize) -> Container {
    let container = host.container(name);
    let pid = container.pid();
    host.sh(&format!(
        "ip link add d{pid} type veth peer name eth0 netns {pid}; ip link set d{pid} master docker0 up"
    ));
    container.command_ok(&[
        "sh",
        "-ec",
        &format!(
            "ip addr add 172.17.0.{number}/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1"
        ),
    ]);
    container
}

#[test]
fn subnets_are_isolated_where_hosts_are_in_both() {
    let Some(lab) = Lab::start("dockers", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let (Some(_d1), Some(_d2)) = (Dockerd::start_with_bridge(h1), Dockerd::start_with_bridge(h2)) else {
        return;
    };
    launch_mesh(&lab, &[]);
    let mut all = Vec::new();
    for host in lab.hosts() {
        let last = host.name().trim_start_matches('h');
        for subnet in [1, 2] {
            let container = behind_docker(host, &format!("app{subnet}"), 10 + subnet);
            let ip = format!("10.2.{subnet}.{last}");
            container.attach(&[&format!("{ip}/24")]);
            all.push((subnet, container, ip));
        }
        let exposed = [1, 2].map(|subnet| format!("10.2.{subnet}.10{last}/24"));
        host.weave_ok(&["expose", &exposed[0], &exposed[1]]);
    }
    std::thread::scope(|scope| {
        for (subnet, container, _) in &all {
            let all = &all;
            scope.spawn(move || {
                // Docker's way out works, and so does the subnet.
                container.reaches("198.18.0.1", SOON);
                for (theirs, other, ip) in all {
                    if *theirs != *subnet {
                        container.never_reaches(ip);
                    } else if other.pid() != container.pid() {
                        container.reaches(ip, SOON);
                    }
                }
            });
        }
    });
    // That is no accident of how it was set up.
    let (_, container, _) = &all[0];
    h1.wait("the way through the host", SOON, || {
        h1.sh("iptables -w -D FORWARD -i docker0 -o weave -j DROP 2>/dev/null || true");
        container.ping(&all[1].2, 1).received == 1
    });
    claims(&["F-8"]);
}
