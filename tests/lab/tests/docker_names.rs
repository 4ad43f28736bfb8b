//! Names and addresses of Docker's containers follow Docker's events.

use std::time::{Duration, Instant};

use weave_lab::docker::Dockerd;
use weave_lab::{Host, Lab, Topology, claims};

use crate::common::names::*;
use crate::common::original::*;
use crate::common::*;

weave_lab::claims!("I-2", "P-4");

/// The programs of this machine, for an image without any.
const PROGRAMS: &str = "-v /usr:/usr:ro -v /bin:/bin:ro -v /lib:/lib:ro -v /lib64:/lib64:ro";

/// A container without Docker's network, with a host name.
#[track_caller]
fn run(docker: &Dockerd<'_>, name: &str, options: &str, command: &str) -> String {
    let line = format!(
        "run -d --name {name} --network none -h {name}.weave.local {PROGRAMS} {options} nothing {command}"
    );
    docker.ok(&line.split_whitespace().collect::<Vec<_>>())
}

fn names(host: &Host) -> Vec<String> {
    let list = host.weave_ok(&["status", "dns"]);
    list.lines().filter_map(|l| l.split(' ').next().map(str::to_owned)).collect()
}

/// Waits until these are the names of the host. Docker's reports may be late.
#[track_caller]
fn has_names(host: &Host, expected: &[&str]) {
    host.wait(&format!("names {expected:?}"), LONG_TIMEOUT, || {
        let names = names(host);
        if names == expected { Ok(()) } else { Err(names.join(" ")) }
    });
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
        run(&docker, name, "", "/bin/sleep 1000");
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
    has_names(h1, &["other", "plain", "two", "two"]);

    step("containers that end together with Docker");
    docker.stop();
    docker.boot();
    has_names(h1, &[]);
    docker.ok(&["start", "web"]);
    h1.weave_ok(&["attach", "web"]);
    looked_up(h1, "web", &[ip.trim()]);
    docker.ok(&["kill", "web"]);
    let begin = Instant::now();
    has_names(h1, &[]);
    println!("a killed container's name is gone after {:?}", begin.elapsed());
}

/// Starts a container as 2.8.1's proxy does: it waits for the network, and asks the server at Docker's bridge. Returns its process.
#[track_caller]
fn run_by_the_original(docker: &Dockerd<'_>, name: &str, options: &str) -> String {
    let line = format!(
        "run -d --name {name} --hostname {name} --domainname weave.local --dns 172.17.0.1 --dns-search . {PROGRAMS} {options}\
         -v /run/w:/w:ro --entrypoint /w/w nothing /bin/sleep 1000"
    );
    docker.ok(&line.split(' ').collect::<Vec<_>>());
    docker.ok(&["inspect", "--format", "{{.State.Pid}}", name])
}

/// Waits until a container runs its own program, with these addresses in the network.
#[track_caller]
fn runs_with(docker: &Dockerd<'_>, name: &str, addresses: &str) {
    let host = docker.host();
    host.wait(&format!("{name} to run its program"), LONG_TIMEOUT, || {
        let top = docker.docker(&["top", name, "-o", "pid,args"]).stdout;
        let shown = host.weave_ok(&["ps", name]);
        let runs = top.contains("/bin/sleep 1000") && !top.contains("/w/w");
        if runs && shown.ends_with(&format!(" {addresses}\n")) {
            Ok(())
        } else {
            Err(format!("{top}{shown}"))
        }
    });
}

/// How the script of 2.8.1 launches its daemon (docs/spec/cli.md 4.1).
const OPTIONS_OF_THE_ORIGINAL: &str = "--port 6783 --nickname h1 --host-root=/host --docker-bridge docker0 --weave-bridge weave \
     --datapath datapath --no-fastdp --ipalloc-range 10.32.0.0/12 --dns-listen-address 172.17.0.1:53 --http-addr 127.0.0.1:6784 \
     --status-addr 127.0.0.1:6782 --resolv-conf /run/upstream.conf -H unix:///var/run/weave/weave.sock --plugin --proxy";

/// Containers that 2.8.1's proxy started work on, restart, and find names while the host changes between the two.
#[test]
fn containers_of_2_8_1s_proxy_through_take_over_and_hand_back() {
    let Some(lab) = Lab::start("dockover", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    h1.sh("tar -cf - --files-from /dev/null | docker --host unix:///run/docker.sock import - nothing");
    // Stands for the wait program.
    h1.sh("mkdir /run/w; printf '#!/bin/sh\nuntil ip route | grep -q ^224; do sleep 0.1; done; exec \"$@\"\n' > /run/w/w; chmod +x /run/w/w");
    devices_of_the_original(h1);
    h1.sh("iptables -w -A INPUT -i lo -j ACCEPT; iptables -w -P INPUT DROP");
    for (name, cidr, options) in [
        ("web", "10.2.1.1/24", "-e WEAVE_CIDR=10.2.1.1/24 "),
        ("db", "10.2.1.2/24", "-e WEAVE_CIDR=10.2.1.2/24 "),
        ("auto", "10.32.0.7/12", ""),
    ] {
        let pid = run_by_the_original(&docker, name, options);
        attach_process_of_the_original(h1, &pid, cidr);
    }
    run_by_the_original(&docker, "late", "");
    // 2.8.1 is stopped while it attaches this one.
    let half = run_by_the_original(&docker, "half", "-e WEAVE_CIDR=10.2.1.5/24 ");
    begin_to_attach_as_the_original(h1, &half, "10.2.1.5/24");
    let _upstream =
        h1.probe_background(&["dns-serve", "127.0.0.5:53", "--record", "www.example.test=192.0.2.33"]);
    h1.sh("echo nameserver 127.0.0.5 > /run/upstream.conf");
    // Stands for the daemon, whose answers differ from ours. The socket of its proxy is left behind.
    let serve = |records: &str| {
        h1.sh(&format!(
            "mkdir -p /run/bin /run/weave; cp -f {} /run/bin/weaver; rm -f /run/weave/weave.sock; \
             python3 -c \"import socket; socket.socket(socket.AF_UNIX).bind('/run/weave/weave.sock')\"; \
             (sleep 1000 | LAB_ARGUMENTS='probe dns-serve 172.17.0.1:53 {records}' /run/bin/weaver {OPTIONS_OF_THE_ORIGINAL}) \
             >/dev/null 2>&1 &",
            h1.lab_program()
        ));
    };
    let found = |name: &str, address: &str| {
        h1.wait(&format!("{name} in a container"), SHORT_TIMEOUT, || {
            let found = docker.docker(&["exec", "web", "/usr/bin/getent", "ahostsv4", name]);
            if found.stdout.starts_with(&format!("{address} ")) { Ok(()) } else { Err(found.to_string()) }
        });
    };
    // A shell in which `eval $(weave env)` of 2.8.1 was typed.
    let shell = |line: &str| {
        h1.sh(&format!("export DOCKER_HOST=unix:///var/run/weave/weave.sock ORIG_DOCKER_HOST=; {line}"))
    };
    serve("--record db=192.0.2.1");
    found("db", "192.0.2.1");

    step("taken over");
    let options = ["launch", "--no-restart", "--take-over", "--resolv-conf", "/run/upstream.conf"];
    let taken = h1.weave_env(&[("DOCKER_HOST", "unix:///var/run/weave/weave.sock")], &options);
    assert!(taken.success() && taken.stderr.contains("stopped the original Weave Net"), "{taken}");
    assert!(!taken.stderr.contains("cannot be compared"), "{taken}");
    for name in ["db", "db.weave.local"] {
        found(name, "10.2.1.2");
    }
    found("www.example.test", "192.0.2.33");
    runs_with(&docker, "auto", "10.32.0.7/12");
    h1.wait("a container that waited for 2.8.1", LONG_TIMEOUT, || {
        let top = docker.docker(&["top", "late", "-o", "pid,args"]).stdout;
        if top.contains("/w/w") { Err(top) } else { Ok(()) }
    });
    runs_with(&docker, "half", "10.2.1.5/24");
    docker.ok(&["rm", "-f", "late", "half"]);
    let id = docker.ok(&["inspect", "--format", "{{.Id}}", "db"]);
    has_names(h1, &["auto", "db", "web"]);
    let list = h1.weave_ok(&["status", "dns"]);
    assert!(list.contains(&id[..12]), "{list}");

    step("the same shell goes on; containers start again by its client, by Docker's, and after their death");
    let asked = shell("docker exec web /usr/bin/getent ahostsv4 db; docker restart -t 0 web");
    assert!(asked.starts_with("10.2.1.2 ") && asked.ends_with("web\n"), "{asked}");
    runs_with(&docker, "web", "10.2.1.1/24");
    docker.ok(&["restart", "-t", "0", "auto"]);
    runs_with(&docker, "auto", "10.32.0.7/12");
    has_names(h1, &["auto", "db", "web"]);
    docker.ok(&["kill", "db"]);
    has_names(h1, &["auto", "web"]);
    shell("docker start db");
    runs_with(&docker, "db", "10.2.1.2/24");
    found("db", "10.2.1.2");
    let weave = weave_lab::weave_binary();
    let environment = shell(&format!("{weave} env; {weave} env --restore"));
    assert_eq!(environment, "export DOCKER_HOST=unix:///var/run/weave/weave.sock\nDOCKER_HOST=\n");
    let ours =
        format!("docker run -d --name ours {PROGRAMS} -e WEAVE_CIDR=10.2.1.4/24 nothing /bin/sleep 1000");
    shell(&ours);
    found("ours", "10.2.1.4");

    step("without the route for multicast, programs that wait for it start nevertheless");
    h1.weave_ok(&["stop"]);
    let without = ["launch", "--no-restart", "--resolv-conf", "/run/upstream.conf", "--no-multicast-route"];
    h1.weave_ok(&without);
    for (name, addresses) in [("web", "10.2.1.1/24"), ("ours", "10.2.1.4/24")] {
        docker.ok(&["restart", "-t", "0", name]);
        runs_with(&docker, name, addresses);
    }

    step("handed back");
    h1.weave_ok(&["stop", "--hand-back"]);
    serve("--record db=192.0.2.2");
    found("db", "192.0.2.2");
    for (name, cidr) in [("web", "10.2.1.1/24"), ("ours", "10.2.1.4/24")] {
        docker.ok(&["restart", "-t", "0", name]);
        let pid = docker.ok(&["inspect", "--format", "{{.State.Pid}}", name]);
        attach_process_of_the_original(h1, &pid, cidr);
        runs_with(&docker, name, cidr);
    }
    found("db", "192.0.2.2");
}

#[test]
fn the_end_of_a_container_releases_address_and_name() {
    let Some(lab) = Lab::start("dockend", &Topology::hosts(1)) else { return };
    let Some((h1, docker)) = start(&lab) else { return };
    h1.sh("mkdir /run/exits; mkfifo /run/exits/fifo");
    let ends = ["exits", "stopped", "killed", "shot"];
    let mut ids = Vec::new();
    let mut ips = Vec::new();
    for name in ends.into_iter().chain(["removed", "again"]) {
        ids.push(if name == "exits" {
            run(&docker, name, "-v /run/exits:/exits", "/bin/cat /exits/fifo")
        } else {
            run(&docker, name, "", "/bin/sleep 1000")
        });
        ips.push(h1.weave_ok(&["attach", name]));
    }
    run(&docker, "timed", "", "/bin/sleep 1000");
    h1.weave_ok(&["attach", "10.2.1.1/24", "timed"]);
    docker.ok(&["kill", "timed"]);
    let begin = Instant::now();
    h1.wait("the end of a name", SHORT_TIMEOUT, || !names(h1).contains(&"timed".to_owned()));
    println!("a killed container's name is gone after {:?}", begin.elapsed());

    let c = h1.container("c");
    h1.weave_ok(&["attach", "--name", "c.weave.local", "netns:c"]);
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    let begin = Instant::now();
    h1.sh("echo > /run/exits/fifo");
    docker.ok(&["stop", "-t", "0", "stopped"]);
    docker.ok(&["kill", "killed"]);
    let pid = docker.ok(&["inspect", "--format", "{{.State.Pid}}", "shot"]);
    h1.command_ok(&["kill", "-9", &pid]);
    docker.ok(&["rm", "-f", "removed"]);
    docker.ok(&["restart", "-t", "0", "again"]);
    c.end();

    step(
        "names vanish at once, and so does the address of a removed container; one that was started again is attached again",
    );
    has_names(h1, &["again"]);
    h1.wait("the address of the removed container", SHORT_TIMEOUT, || !owned().contains(&ids[4]));
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
    run(&docker, "new", "", "/bin/sleep 1000");
    assert_eq!(h1.weave_ok(&["attach", "new"]), ips[0], "the lowest free address");
    claims(&["I-2", "P-4"]);
}
