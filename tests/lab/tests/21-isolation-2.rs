//! One network, several applications that do not see each other.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-7");

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
