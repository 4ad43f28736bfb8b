//! Containers in several subnets, on different hosts, started through the proxy and by the OCI runtime.

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Lab, Topology};

use crate::common::names::looked_up;
use crate::common::*;

#[test]
fn containers_in_several_subnets() {
    several_subnets(&Topology::hosts(3));
}

#[test]
fn containers_in_several_subnets_with_newer_engines() {
    for tree in newer_engines() {
        several_subnets(&Topology::hosts(3).with_root(&tree));
    }
}

fn several_subnets(topology: &Topology) {
    let Some(lab) = Lab::start("subnets", topology) else { return };
    let Some(dockers) = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>() else {
        return;
    };
    dockers.iter().for_each(|docker| docker.import_image("ubuntu"));
    launch_mesh(&lab, &["--ipalloc-range", "10.2.0.0/16"]);
    let dns = lab.host("h1").weave_ok(&["dns-args"]);
    let oci = |name: &str| {
        format!(
            "docker --host unix:///run/docker.sock run -d --runtime weave {dns} --name {name} -h {name}.weave.local"
        )
    };
    let proxied = |name: &str| format!("docker --host unix:///var/run/weave/weave.sock run -d --name {name}");
    lab.hosts()
        .iter()
        .for_each(|host| drop(host.weave_ok(&["setup-docker", "--config-file", Dockerd::CONFIG_FILE])));
    // Two containers in both subnets, and one in each.
    for (n, command, cidrs) in [
        (0, proxied("both"), "10.2.2.1/24 10.2.3.1/24"),
        (1, oci("as-well"), "10.2.2.2/24 10.2.3.2/24"),
        (2, proxied("two"), "10.2.2.3/24"),
        (2, oci("three"), "10.2.3.3/24"),
    ] {
        lab.hosts()[n].sh(&format!("{command} -e WEAVE_CIDR='{cidrs}' ubuntu sleep 1000"));
    }
    let ping =
        |n: usize, from: &str, to: &str| dockers[n].docker(&["exec", from, "ping", "-c", "1", "-W", "2", to]);
    for (n, from, to) in [
        (0, "both", "10.2.2.2"),
        (0, "both", "10.2.3.2"),
        (0, "both", "two"),
        (0, "both", "three"),
        (1, "as-well", "10.2.2.1"),
        (1, "as-well", "10.2.3.1"),
        (1, "as-well", "two"),
        (1, "as-well", "three"),
        (2, "two", "10.2.2.1"),
        (2, "two", "10.2.2.2"),
        (2, "three", "10.2.3.1"),
        (2, "three", "10.2.3.2"),
    ] {
        lab.hosts()[n].wait(&format!("{from} to reach {to}"), LONG_TIMEOUT, || {
            let ping = ping(n, from, to);
            if ping.success() { Ok(()) } else { Err(ping.to_string()) }
        });
    }
    for (from, others) in
        [("two", ["10.2.3.1", "10.2.3.2", "10.2.3.3"]), ("three", ["10.2.2.1", "10.2.2.2", "10.2.2.3"])]
    {
        for to in others {
            let refused = ping(2, from, to);
            assert!(!refused.success(), "{from} reaches {to}: {refused}");
        }
    }
    for host in lab.hosts() {
        looked_up(host, "both", &["10.2.2.1", "10.2.3.1"]);
        looked_up(host, "as-well", &["10.2.2.2", "10.2.3.2"]);
    }
}
