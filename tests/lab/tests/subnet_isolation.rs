//! Subnets of one network are isolated from each other.

use weave_lab::docker::Dockerd;
use weave_lab::{Container, Host, Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-7", "F-8", "F-11", "I-39");

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
            container.reaches(ip, SHORT_TIMEOUT);
        }
    }
    for (subnet, container, _) in &all {
        for (_, _, ip) in all.iter().filter(|(s, ..)| s != subnet) {
            container.never_reaches(ip);
            // From now on this container has a route for replies to the other one.
            container.command(&["ip", "route", "replace", ip, "dev", "ethwe"]);
        }
    }
    claims(&["F-7"]);
}

/// A container as Docker makes it: a link to Docker's bridge, which is its default route.
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
fn subnets_are_isolated_with_docker_and_exposed_hosts() {
    let Some(lab) = Lab::start("dockers", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let (Some(docker), Some(_d2)) = (Dockerd::start_with_bridge(h1), Dockerd::start_with_bridge(h2)) else {
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
                // The default route works, and so does the subnet.
                container.reaches("198.18.0.1", SHORT_TIMEOUT);
                for (theirs, other, ip) in all {
                    if *theirs != *subnet {
                        container.never_reaches(ip);
                    } else if other.pid() != container.pid() {
                        container.reaches(ip, SHORT_TIMEOUT);
                    }
                }
            });
        }
    });
    step("without our rule containers would reach the other subnet");
    let (_, container, _) = &all[0];
    h1.wait("the way through the host", SHORT_TIMEOUT, || {
        h1.sh("iptables -w -D FORWARD -i docker0 -o weave -j DROP 2>/dev/null || true");
        container.ping(&all[1].2, 1).received == 1
    });
    claims(&["F-8"]);
    one_of_docker(h1, &docker, &all[2].2);
}

/// A container that Docker made, without CAP_NET_RAW, in the subnet of `other`.
fn one_of_docker(host: &Host, docker: &Dockerd<'_>, other: &str) {
    let _server = host.probe_background(&["tcp-serve", "--port", "7711"]);
    // An image with the programs of the machine only.
    host.sh("mkdir -p /run/image/usr; cd /run/image; for l in bin lib lib64; do ln -s usr/$l $l; done; \
         tar -c . | docker --host unix:///run/docker.sock import - machine; rm -r /run/image");
    let run = "run -d --name poor --cap-drop net_raw -v /usr:/usr:ro machine /usr/bin/sleep 600";
    docker.ok(&run.split(' ').collect::<Vec<_>>());
    let pid = docker.ok(&["inspect", "--format", "{{.State.Pid}}", "poor"]);
    let inside = |command: &str| host.sh(&format!("nsenter -t {pid} -n {command}"));
    let routes = || inside("ip route").lines().map(|l| l.trim_end().to_owned()).collect::<Vec<_>>();
    let before = routes();
    assert!(before.iter().any(|r| r.starts_with("default via 172.17.0.1 ")), "{before:?}");
    let env = [("DOCKER_HOST", "unix:///run/docker.sock")];
    let attached = host.weave_env(&env, &["attach", "10.2.1.50/24", "poor"]);
    assert_eq!((attached.success(), attached.stdout.as_str()), (true, "10.2.1.50\n"), "{attached}");
    let mut after = routes();
    after.retain(|r| !before.contains(r));
    after.sort();
    assert_eq!(
        after,
        ["10.2.1.0/24 dev ethwe proto kernel scope link src 10.2.1.50", "224.0.0.0/4 dev ethwe scope link"]
    );
    assert_eq!(routes().len(), before.len() + 2, "its own are untouched");
    claims(&["I-39"]);

    host.wait("the other container", SHORT_TIMEOUT, || {
        host.command(&["nsenter", "-t", &pid, "-n", "ping", "-c1", "-W1", other]).success()
    });
    // It reaches the host over the container network, and cannot send or receive otherwise.
    let script = "import socket\n\
        c = socket.create_connection(('10.2.1.101', 7711), 10); c.close(); print('connected')\n\
        for family, kind in ((socket.AF_PACKET, socket.SOCK_RAW), (socket.AF_INET, socket.SOCK_RAW)):\n\
        \x20   try: socket.socket(family, kind, 1); print('raw')\n\
        \x20   except PermissionError: print('refused')\n";
    assert_eq!(docker.ok(&["exec", "poor", "/usr/bin/python3", "-c", script]), "connected\nrefused\nrefused");
    claims(&["F-11"]);
}
