//! Containers on the network of 2.8.1's plugin, while the host changes between the two. The tests do not have 2.8.1: the network and the
//! endpoints, which are the same with both, are made by this version, and its state is replaced by that of 2.8.1.

use weave_lab::docker::Dockerd;
use weave_lab::{Lab, Topology};

use crate::common::cni::recorded;
use crate::common::names::looked_up;
use crate::common::original::{STORED_PEER, UPLINK, stored_database};
use crate::common::*;
use crate::docker_plugin::{address, default_network, devices, reaches, run};

/// The range in the database of 2.8.1, and an address that a container of the plugin has there.
const RANGE: [&str; 2] = ["--ipalloc-range", "10.2.0.0/24"];
const ADDRESS: &str = "10.2.0.33";

#[test]
fn containers_of_2_8_1s_plugin_through_take_over_and_hand_back() {
    let Some(lab) = Lab::start("plugover", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    launch(h1, &[&RANGE[..], &["--name", STORED_PEER]].concat(), &[]);
    default_network(&docker, "weave");
    run(&docker, "web", &format!("--net=weave --restart=always --ip {ADDRESS}"));
    let ports = devices(h1);
    let owners = || recorded(h1).into_iter().map(|(owner, _)| owner).collect::<Vec<_>>();

    step("2.8.1 runs");
    h1.signal_daemon("KILL");
    h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    h1.sh(&format!(
        "ip link del vethwe-bridge; {UPLINK}; rm -rf /var/lib/weave /run/weave; mkdir /var/lib/weave; \
         mkdir /run/bin; cp $(which sleep) /run/bin/weaver; (exec /run/bin/weaver 600) >/dev/null 2>&1 &"
    ));
    std::fs::write(h1.disk("lib/weave/weavedata.db"), stored_database()).unwrap();
    h1.wait("the original's daemon", SHORT_TIMEOUT, || h1.command(&["pidof", "weaver"]).success());

    step("taken over");
    let options = [&["launch", "--no-restart", "--take-over"], &RANGE[..]].concat();
    let taken = h1.weave(&options);
    assert!(taken.success() && taken.stdout.trim() == STORED_PEER, "{taken}");
    assert!(owners().contains(&ADDRESS.to_owned()), "{:?}", owners());
    assert_eq!((devices(h1), address(&docker, "web", "weave")), (ports.clone(), ADDRESS.to_owned()));
    let near = h1.container("near");
    let near_ip = near.attach(&["10.2.0.77/24"]);
    near.reaches(ADDRESS, SHORT_TIMEOUT);
    reaches(&docker, "web", &near_ip);
    h1.weave_ok(&["expose"]);
    looked_up(h1, "web", &[ADDRESS]);

    step("Docker starts it again, and another one");
    let restarted = |name: &str| {
        docker.ok(&["restart", "-t", "0", name]);
        let ip = address(&docker, name, "weave");
        near.reaches(&ip, SHORT_TIMEOUT);
        looked_up(h1, name, &[&ip]);
        ip
    };
    let ip = restarted("web");
    run(&docker, "db", "--net=weave");
    let db = address(&docker, "db", "weave");
    reaches(&docker, "web", &db);
    assert!(owners().contains(&ip) && owners().contains(&db), "{:?}", owners());

    step("handed back: endpoints and network stay, the sockets are free");
    let ports = devices(h1);
    let back = h1.weave(&["stop", "--hand-back"]);
    assert!(back.stderr.contains("still attached to network \"weave\""), "{back}");
    assert_eq!(devices(h1), ports);
    assert_eq!(h1.sh("ls /run/docker/plugins 2>/dev/null || true"), "");
    reaches(&docker, "web", &db);

    step(
        "taken over again; like 2.8.1 without its database, the peer records what it finds under the ids of containers",
    );
    h1.sh("rm -r /var/lib/weave");
    h1.weave(&[&["launch", "--no-restart", "--name", STORED_PEER], &RANGE[..]].concat()).expect_ok();
    h1.weave_ok(&["prime"]);
    let ids = docker.ok(&["ps", "-q", "--no-trunc"]);
    assert!(ids.lines().all(|id| owners().iter().any(|owner| owner == id)), "{ids}: {:?}", owners());
    let ip = restarted("web");
    reaches(&docker, "db", &ip);
    docker.ok(&["rm", "-f", "web", "db"]);
    h1.wait("the release of their addresses", SHORT_TIMEOUT, || {
        let left = owners();
        let held = left.iter().any(|owner| *owner == ip || *owner == db || ids.contains(owner));
        if held { Err(left.join(" ")) } else { Ok(()) }
    });
    h1.weave_ok(&["stop"]);
    assert!(!docker.docker(&["network", "inspect", "weave"]).success());
}
