//! Names and addresses of Docker's containers follow Docker's events.

use std::time::{Duration, Instant};

use weave_lab::docker::Dockerd;
use weave_lab::{Host, Lab, Topology, claims};

use crate::common::names::*;
use crate::common::*;

weave_lab::claims!("I-2", "P-4");

/// The programs of this machine, for an image without any.
const PROGRAMS: &str = "-v /usr:/usr:ro -v /bin:/bin:ro -v /lib:/lib:ro -v /lib64:/lib64:ro";

/// A container without Docker's network, with a host name.
#[track_caller]
fn run(docker: &Dockerd<'_>, name: &str, command: &str) -> String {
    let line =
        format!("run -d --name {name} --network none -h {name}.weave.local {PROGRAMS} nothing {command}");
    docker.ok(&line.split(' ').collect::<Vec<_>>())
}

fn names(host: &Host) -> Vec<String> {
    let list = host.weave_ok(&["status", "dns"]);
    list.lines().filter_map(|l| l.split(' ').next().map(str::to_owned)).collect()
}

fn start<'a>(lab: &'a Lab) -> Option<(&'a Host, Dockerd<'a>)> {
    let h1 = lab.host("h1");
    let docker = Dockerd::start_with_bridge(h1)?;
    // An empty image.
    h1.sh("tar -cf - --files-from /dev/null | docker --host unix:///run/docker.sock import - nothing");
    launch(h1, &[], &[]);
    Some((h1, docker))
}

#[test]
fn containers_use_the_server_at_dockers_bridge() {
    let Some(lab) = Lab::start("dockdns", &Topology::hosts(1)) else { return };
    let Some((h1, docker)) = start(&lab) else { return };
    assert_eq!(h1.weave_ok(&["dns-args"]), "--dns=172.17.0.1 --dns-search=weave.local.");
    assert_eq!(h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/dns-address-port"]), "172.17.0.1:53");
    for name in ["web", "plain", "quiet"] {
        run(&docker, name, "/bin/sleep 1000");
    }
    let ip = h1.weave_ok(&["attach", "web"]);
    h1.weave_ok(&["attach", "--without-dns", "quiet"]);
    looked_up(h1, "web", &[ip.trim()]);
    assert_eq!(names(h1), ["web"], "quiet has no name, and plain is not attached");
    let asks = format!("run --rm {} {PROGRAMS} nothing /usr/bin/getent ahostsv4", h1.weave_ok(&["dns-args"]));
    for name in ["web", "web.weave.local"] {
        let line = format!("{asks} {name}");
        let found = docker.ok(&line.split(' ').collect::<Vec<_>>());
        assert!(found.starts_with(&format!("{} ", ip.trim())), "{found}");
    }

    step("more names by hand, in all forms");
    h1.weave_ok(&["attach", "10.2.1.5/24", "plain"]);
    h1.weave_ok(&["dns-add", "plain", "-h", "other.weave.local"]);
    h1.weave_ok(&["dns-add", "10.2.1.6", "10.2.1.7", "plain", "-h", "two.weave.local"]);
    h1.weave_ok(&["dns-remove", "plain", "-h", "plain.weave.local"]);
    assert_eq!(names(h1), ["other", "two", "two", "web"]);
    h1.weave_ok(&["dns-add", "plain"]);
    looked_up(h1, "plain", &["10.2.1.5"]);
    let stopped = h1.weave(&["dns-add", "10.2.1.6", "nosuch", "-h", "x.weave.local"]);
    assert!(stopped.code == Some(1) && stopped.stderr.contains("nosuch"), "{stopped}");

    step(
        "a restart of the peer keeps what it knows; names of a container that ended meanwhile do not come back",
    );
    h1.weave_ok(&["stop"]);
    docker.ok(&["kill", "web"]);
    launch(h1, &[], &[]);
    looked_up(h1, "plain", &["10.2.1.5"]);
    assert_eq!(names(h1), ["other", "plain", "two", "two"]);

    step("containers that end together with Docker");
    docker.stop();
    docker.boot();
    h1.wait("no name", LONG_TIMEOUT, || if names(h1).is_empty() { Ok(()) } else { Err(names(h1).join(" ")) });
    docker.ok(&["start", "web"]);
    h1.weave_ok(&["attach", "web"]);
    looked_up(h1, "web", &[ip.trim()]);
    docker.ok(&["kill", "web"]);
    let begin = Instant::now();
    h1.wait("no name", SHORT_TIMEOUT, || names(h1).is_empty());
    println!("a killed container's name is gone after {:?}", begin.elapsed());
}

#[test]
fn the_end_of_a_container_releases_address_and_name() {
    let Some(lab) = Lab::start("dockend", &Topology::hosts(1)) else { return };
    let Some((h1, docker)) = start(&lab) else { return };
    let ends = ["exits", "stopped", "killed", "shot"];
    let mut ids = Vec::new();
    let mut ips = Vec::new();
    for name in ends.into_iter().chain(["removed", "again"]) {
        ids.push(run(&docker, name, if name == "exits" { "/bin/sleep 4" } else { "/bin/sleep 1000" }));
        ips.push(h1.weave_ok(&["attach", name]));
    }
    let c = h1.container("c");
    h1.weave_ok(&["attach", "--name", "c.weave.local", "netns:c"]);
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    let begin = Instant::now();
    docker.ok(&["stop", "-t", "0", "stopped"]);
    docker.ok(&["kill", "killed"]);
    let pid = docker.ok(&["inspect", "--format", "{{.State.Pid}}", "shot"]);
    h1.command_ok(&["kill", "-9", &pid]);
    docker.ok(&["rm", "-f", "removed"]);
    docker.ok(&["restart", "-t", "0", "again"]);
    c.end();

    step("names vanish at once, and so does the address of a removed container");
    h1.wait(
        "no name",
        SHORT_TIMEOUT,
        || if names(h1).is_empty() { Ok(()) } else { Err(names(h1).join(" ")) },
    );
    h1.wait("the address of the removed container", SHORT_TIMEOUT, || !owned().contains(&ids[4]));
    assert_eq!(h1.weave_ok(&["attach", "again"]), ips[5], "a restart keeps the address");
    looked_up(h1, "again", &[ips[5].trim()]);
    let early: Vec<bool> = ids[..4].iter().map(|id| owned().contains(id)).collect();
    assert!(begin.elapsed() > Duration::from_secs(25) || early == [true; 4], "{early:?}");

    step("the other addresses are kept for 30 s");
    h1.wait("their release", LONG_TIMEOUT, || {
        let owned = owned();
        if ids[..4].iter().chain([&"netns:c".to_owned()]).any(|id| owned.contains(id)) {
            Err(owned)
        } else {
            Ok(())
        }
    });
    let passed = begin.elapsed();
    println!("released after {passed:?}");
    assert!(passed > Duration::from_secs(28), "{passed:?}");
    assert!(owned().contains(&ids[5]));
    run(&docker, "new", "/bin/sleep 1000");
    assert_eq!(h1.weave_ok(&["attach", "new"]), ips[0], "the lowest free address");
    claims(&["I-2", "P-4"]);
}
