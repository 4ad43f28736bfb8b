//! Docker's containers keep their network over restarts of the container, of the peer and of Docker.

use std::time::Duration;

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Topology};

use crate::common::names::looked_up;
use crate::common::*;

/// A host with Docker and a peer, and containers `fixed` and `auto` that Docker starts again whenever they end.
fn start<'a>(lab: &'a Lab, options: &'static str) -> Option<(&'a Host, Dockerd<'a>)> {
    let h1 = lab.host("h1");
    let docker = Dockerd::start_with_options(h1, options)?;
    docker.import_image("ubuntu");
    launch(h1, &[], &[]);
    h1.weave_ok(&["run", "10.2.1.1/24", "--restart", "always", "--name", "fixed", "-ti", "ubuntu"]);
    docker.ok(&[
        "run",
        "-d",
        "--restart",
        "always",
        "--name",
        "auto",
        "-h",
        "auto.weave.local",
        "-ti",
        "ubuntu",
    ]);
    h1.weave_ok(&["attach", "auto"]);
    Some((h1, docker))
}

/// Addresses in `weave ps`, without its container's id and MAC.
fn addresses(host: &Host, container: &str) -> Vec<String> {
    let line = host.weave_ok(&["ps", container]);
    line.split_whitespace().skip(2).map(str::to_owned).collect()
}

fn pid(docker: &Dockerd<'_>, container: &str) -> String {
    docker.ok(&["inspect", "-f", "{{.State.Pid}}", container])
}

/// Waits until another run of the container has these addresses, and reaches the other container.
#[track_caller]
fn attached_again(docker: &Dockerd<'_>, container: &str, old_pid: &str, expected: &[String], other: &str) {
    let host = docker.host();
    host.wait(&format!("{container} to be attached again"), LONG_TIMEOUT, || {
        let found = (pid(docker, container), addresses(host, container));
        if found.0 != old_pid && found.1 == expected { Ok(()) } else { Err(format!("{found:?}")) }
    });
    host.wait(&format!("{container} to reach {other}"), SHORT_TIMEOUT, || {
        let ping = docker.docker(&["exec", container, "ping", "-c", "1", "-W", "2", other]);
        if ping.success() { Ok(()) } else { Err(ping.to_string()) }
    });
}

#[test]
fn containers_that_docker_starts_again_are_attached_again() {
    attached_again_by(&Topology::hosts(1));
}

#[test]
fn containers_that_newer_engines_start_again_are_attached_again() {
    for tree in newer_engines() {
        attached_again_by(&Topology::hosts(1).with_root(&tree));
    }
}

fn attached_again_by(topology: &Topology) {
    let Some(lab) = Lab::start("restarts", topology) else { return };
    let Some((h1, docker)) = start(&lab, "") else { return };
    let before = ["fixed", "auto"].map(|name| addresses(h1, name));
    assert_eq!(before[0], ["10.2.1.1/24"]);
    let auto_ip = before[1][0].split('/').next().unwrap();
    let fixed_pid = pid(&docker, "fixed");
    let auto_pid = pid(&docker, "auto");
    // Both in one subnet, so that one can reach the other.
    h1.weave_ok(&["attach", "10.2.1.2/24", "auto"]);
    let with_both = [before[1].clone(), vec!["10.2.1.2/24".to_owned()]].concat();
    for (name, old, expected, other) in
        [("fixed", &fixed_pid, &before[0], "10.2.1.2"), ("auto", &auto_pid, &with_both, "10.2.1.1")]
    {
        step("the restart policy starts a container again");
        h1.command_ok(&["kill", "-9", old]);
        attached_again(&docker, name, old, expected, other);
    }
    looked_up(h1, "fixed", &["10.2.1.1"]);
    looked_up(h1, "auto", &["10.2.1.2", auto_ip]);
    let hosts = docker.ok(&["exec", "fixed", "cat", "/etc/hosts"]);
    assert!(hosts.contains("10.2.1.1        fixed.weave.local fixed"), "{hosts}");

    step("stopped and started by hand");
    docker.ok(&["stop", "-t", "0", "fixed"]);
    h1.wait("the end of its name", SHORT_TIMEOUT, || !h1.weave_ok(&["status", "dns"]).contains("fixed"));
    docker.ok(&["start", "fixed"]);
    attached_again(&docker, "fixed", "0", &before[0], "10.2.1.2");
    looked_up(h1, "fixed", &["10.2.1.1"]);

    step("started again while no daemon runs, with a daemon that was killed");
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    let owned_before = owned();
    for signal in ["TERM", "KILL"] {
        let old = pid(&docker, "fixed");
        h1.signal_daemon(signal);
        h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
        docker.ok(&["restart", "-t", "0", "fixed"]);
        assert_eq!(addresses(h1, "fixed"), [""; 0]);
        launch(h1, &[], &[]);
        attached_again(&docker, "fixed", &old, &before[0], "10.2.1.2");
        assert_eq!(addresses(h1, "auto"), with_both, "it has been running all the time");
        assert_eq!(owned(), owned_before);
    }

    step("a container that was detached or removed is not attached again");
    let old = [pid(&docker, "fixed"), pid(&docker, "auto")];
    h1.weave_ok(&["detach", "10.2.1.1/24", "fixed"]);
    h1.weave_ok(&["detach", "10.2.1.2/24", "auto"]);
    docker.ok(&["restart", "-t", "0", "fixed", "auto"]);
    h1.wait("auto to be attached again", LONG_TIMEOUT, || {
        let found = (pid(&docker, "auto"), addresses(h1, "auto"));
        if found.0 != old[1] && found.1 == before[1] { Ok(()) } else { Err(format!("{found:?}")) }
    });
    assert_eq!((pid(&docker, "fixed") == old[0], addresses(h1, "fixed")), (false, Vec::new()));
    docker.ok(&["rm", "-f", "auto"]);
    h1.wait("no container in the file", SHORT_TIMEOUT, || {
        let text = h1.sh("cat /var/lib/weave/attachments.json");
        if text.contains("\"containers\":{}") { Ok(()) } else { Err(text) }
    });
}

/// Containers of the proxy and of the OCI runtime, which Docker starts again whenever they end.
const WAITING: [(&str, &str, &str); 2] = [
    ("proxied", "10.2.1.3/24", "--host unix:///var/run/weave/weave.sock run"),
    ("oci", "10.2.1.4/24", "--host unix:///run/docker.sock run --runtime weave -h oci.weave.local"),
];

#[test]
fn restarts_of_docker() {
    docker_starts_again(&Topology::hosts(1));
}

#[test]
fn restarts_of_newer_engines() {
    for tree in newer_engines() {
        docker_starts_again(&Topology::hosts(1).with_root(&tree));
    }
}

fn docker_starts_again(topology: &Topology) {
    for options in ["", "--live-restore"] {
        let Some(lab) = Lab::start("restarts", topology) else { return };
        let Some((h1, docker)) = start(&lab, options) else { return };
        h1.weave_ok(&["attach", "10.2.1.2/24", "auto"]);
        h1.weave_ok(&["setup-docker", "--config-file", Dockerd::CONFIG_FILE]);
        for (name, cidr, run) in WAITING {
            h1.sh(&format!(
                "docker {run} -d --restart always --name {name} -e WEAVE_CIDR={cidr} ubuntu sleep 1000"
            ));
        }
        let names = ["fixed", "auto", "proxied", "oci"];
        let before = names.map(|name| (pid(&docker, name), addresses(h1, name)));
        step("Docker ends and starts again");
        docker.stop();
        docker.boot();
        for ((old, expected), name) in before.iter().zip(names) {
            let lives = options == "--live-restore";
            let other = if name == "fixed" { "10.2.1.2" } else { "10.2.1.1" };
            attached_again(&docker, name, if lives { "" } else { old }, expected, other);
            assert_eq!(&pid(&docker, name) == old, lives);
            let mut ips: Vec<&str> = expected.iter().map(|cidr| cidr.split('/').next().unwrap()).collect();
            ips.sort_unstable();
            looked_up(h1, name, &ips);
        }
        step("the end of a container is noticed afterwards");
        for ((_, expected), name) in before.iter().zip(names).filter(|(_, name)| *name != "auto") {
            let old = pid(&docker, name);
            h1.command_ok(&["kill", "-9", &old]);
            attached_again(&docker, name, &old, expected, "10.2.1.2");
        }
        docker.ok(&["rm", "-f", "auto", "proxied", "oci"]);
        let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
        h1.wait("the release of their addresses", LONG_TIMEOUT, || {
            let owned = owned();
            if [2, 3, 4].iter().any(|n| owned.contains(&format!("10.2.1.{n}/24"))) {
                Err(owned)
            } else {
                Ok(())
            }
        });
    }
}

/// Docker waits longer and longer before it starts a container that ends at once: a minute at last, more than addresses are kept otherwise.
#[test]
fn containers_that_end_at_once_keep_their_addresses() {
    if !crate::common::addresses::long_tests_enabled() {
        return;
    }
    let Some(lab) = Lab::start("restarts", &Topology::hosts(1)) else { return };
    let Some((h1, docker)) = start(&lab, "") else { return };
    h1.weave_ok(&["setup-docker", "--config-file", Dockerd::CONFIG_FILE]);
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    let before = owned();
    let ids = WAITING.map(|(name, _, run)| {
        let script = "ip -4 -o addr show dev ethwe | grep -o 'inet [^ ]*'";
        h1.sh(&format!("docker {run} -d --restart always --name {name} ubuntu sh -c \"{script}\""))
            .trim()
            .to_owned()
    });
    for (id, (name, ..)) in ids.iter().zip(WAITING) {
        // Docker counts a start before it waits, and waits for 51 seconds before the tenth one after the first.
        h1.wait("eleven ends", Duration::from_secs(300), || {
            let count: u32 = docker.ok(&["inspect", "-f", "{{.RestartCount}}", name]).parse().unwrap();
            if !owned().contains(id) {
                panic!("{name} has lost its address after {count} starts: {}", owned());
            }
            if count >= 11 { Ok(()) } else { Err(format!("{count}")) }
        });
        let log = docker.ok(&["logs", name]);
        let lines: Vec<&str> = log.lines().collect();
        assert!(lines.len() >= 11 && lines.iter().all(|line| *line == lines[0]), "{name}: {log}");
    }
    docker.ok(&["rm", "-f", "proxied", "oci"]);
    h1.wait("the release of their addresses", SHORT_TIMEOUT, || {
        if owned() == before { Ok(()) } else { Err(owned()) }
    });
    let names = h1.weave_ok(&["status", "dns"]);
    assert!(!names.contains("proxied") && !names.contains("oci"), "{names}");
}
