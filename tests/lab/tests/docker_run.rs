//! `weave run`, `start` and `restart` with real Docker daemons.

use std::time::Duration;

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Topology, claims};

use crate::common::docker::TYPED;
use crate::common::names::looked_up;
use crate::common::*;

weave_lab::claims!("F-1", "F-9", "F-10", "F-11", "F-56", "I-3", "I-4", "P-3");

/// Longest time of a command in a container.
const EXEC_TIMEOUT: Duration = Duration::from_secs(30);

/// `weave run`, which prints nothing but the id.
#[track_caller]
fn run(host: &Host, args: &[&str]) -> String {
    let outcome = host.weave(&[&["run"], args].concat());
    assert!(outcome.success() && outcome.stderr.is_empty(), "{outcome}");
    id_of(&outcome.stdout)
}

/// The id that a command has printed, and nothing else.
#[track_caller]
fn id_of(stdout: &str) -> String {
    let id = stdout.strip_suffix('\n').unwrap_or_default();
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{stdout:?}");
    id.to_owned()
}

/// Waits until a container reaches an address.
#[track_caller]
fn reaches(docker: &Dockerd<'_>, container: &str, to: &str) {
    docker.host().wait(&format!("{container} to reach {to}"), EXEC_TIMEOUT, || {
        let ping = docker.docker(&["exec", container, "ping", "-c", "1", "-W", "2", to]);
        if ping.success() { Ok(()) } else { Err(ping.to_string()) }
    });
}

#[track_caller]
fn does_not_reach(docker: &Dockerd<'_>, container: &str, to: &str) {
    let ping = docker.docker(&["exec", container, "ping", "-c", "2", "-W", "1", to]);
    assert!(ping.stdout.contains(" 100% packet loss") || ping.stderr.contains("unreachable"), "{ping}");
}

/// The addresses of a container in `weave ps`.
#[track_caller]
fn addresses(host: &Host, container: &str) -> Vec<String> {
    let line = host.weave_ok(&["ps", container]);
    line.split_whitespace().skip(2).map(str::to_owned).collect()
}

fn owned(host: &Host) -> String {
    host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"])
}

/// Hosts with a Docker daemon and an image `ubuntu` each; the peers run.
fn start<'a>(lab: &'a Lab, options: &[&str]) -> Option<Vec<Dockerd<'a>>> {
    let dockers = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>()?;
    dockers.iter().for_each(|docker| docker.import_image("ubuntu"));
    launch_mesh(lab, options);
    Some(dockers)
}

#[test]
fn the_basic_example() {
    basic_example(&Topology::hosts(2));
}

#[test]
fn the_basic_example_with_newer_engines() {
    for tree in newer_engines() {
        basic_example(&Topology::hosts(2).with_root(&tree));
    }
}

fn basic_example(topology: &Topology) {
    let Some(lab) = Lab::start("dockrun", topology) else { return };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let Some(dockers) = start(&lab, &[]) else { return };
    let [d1, d2] = [&dockers[0], &dockers[1]];
    let c1 = run(h1, &["10.2.1.1/24", "-t", "-i", "ubuntu"]);
    let c2 = run(h2, &["10.2.1.2/24", "-t", "-i", "ubuntu"]);
    reaches(d1, &c1, "10.2.1.2");
    reaches(d2, &c2, "10.2.1.1");
    let typed = h1.sh(&format!(
        "{TYPED} typed 'ping -c 1 -W 5 10.2.1.2; exit' 'docker --host unix:///run/docker.sock attach {c1}'"
    ));
    assert!(typed.contains("1 received"), "{typed}");
    claims(&["F-1"]);

    step("an address is allocated where none is given");
    let c = h1.sh(&format!("C=$({} run -ti ubuntu 2>/dev/null); echo $C", weave_lab::weave_binary()));
    let c = id_of(&c);
    let [cidr] = addresses(h1, &c).try_into().unwrap();
    assert!(cidr.ends_with("/12") && owned(h1).contains(&c), "{cidr}: {}", owned(h1));
    let overlapping = h1.weave(&["run", "198.18.0.77/24", "-ti", "ubuntu"]);
    assert!(overlapping.stderr.contains("overlaps with existing route"), "{overlapping}");
    id_of(&overlapping.stdout);
    claims(&["I-3", "P-3"]);

    step("a stopped container is started again");
    d1.ok(&["stop", "-t", "0", &c]);
    assert_eq!(h1.weave_ok(&["start", &c[..12]]), format!("{}\n", &c[..12]));
    assert_eq!(addresses(h1, &c), [cidr.as_str()]);
    let named = run(h1, &["10.2.1.3/24", "--name", "named", "-ti", "ubuntu"]);
    d1.ok(&["stop", "-t", "0", "named"]);
    assert_eq!(h1.weave_ok(&["start", "10.2.1.4/24", "net:10.40.0.0/16", "named"]), "named\n");
    let attached = addresses(h1, &named);
    assert!(
        ["10.2.1.3/24", "10.2.1.4/24"].iter().all(|cidr| attached.contains(&(*cidr).to_owned())),
        "{attached:?}"
    );
    assert!(attached.len() == 3 && attached.iter().any(|cidr| cidr.ends_with("/16")), "{attached:?}");
    reaches(d2, &c2, "10.2.1.4");
    claims(&["I-4"]);

    step("a restart keeps the addresses");
    let before = (addresses(h1, "named"), d1.ok(&["inspect", "-f", "{{.State.StartedAt}}", "named"]));
    assert_eq!(h1.weave_ok(&["restart", "named"]), "named\n");
    let mut after = addresses(h1, "named");
    after.sort_by_key(|cidr| before.0.iter().position(|b| b == cidr));
    assert_eq!(after, before.0);
    assert_ne!(d1.ok(&["inspect", "-f", "{{.State.StartedAt}}", "named"]), before.1);
    reaches(d2, &c2, "10.2.1.4");
}

#[test]
fn containers_in_several_subnets() {
    let Some(lab) = Lab::start("dockrun", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let Some(dockers) = start(&lab, &["--ipalloc-range", "10.2.0.0/16"]) else { return };
    let [d1, d2] = [&dockers[0], &dockers[1]];
    run(h1, &["10.2.2.1/24", "10.2.3.1/24", "-t", "-i", "--name", "both", "ubuntu"]);
    run(h2, &["10.2.2.2/24", "-ti", "--name", "two", "ubuntu"]);
    run(h2, &["10.2.3.2/24", "-ti", "--name", "three", "ubuntu"]);
    for address in ["10.2.2.2", "10.2.3.2"] {
        reaches(d1, "both", address);
    }
    reaches(d2, "two", "10.2.2.1");
    reaches(d2, "three", "10.2.3.1");
    does_not_reach(d2, "two", "10.2.3.2");
    does_not_reach(d2, "three", "10.2.2.2");
    claims(&["F-9"]);

    let all = run(h1, &["net:10.2.7.0/24", "net:10.2.8.0/24", "ip:10.3.9.1/24", "-ti", "ubuntu"]);
    assert_eq!(addresses(h1, &all), ["10.2.7.1/24", "10.2.8.1/24", "10.3.9.1/24"]);
}

#[test]
fn names_and_hosts_files() {
    let Some(lab) = Lab::start("dockrun", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let Some(dockers) = start(&lab, &[]) else { return };
    let [d1, d2] = [&dockers[0], &dockers[1]];
    step("the example of the page about weaveDNS");
    let dated = h1.weave(&["run", "--with-dns", "10.2.1.25/24", "-ti", "-h", "pingme.weave.local", "ubuntu"]);
    assert_eq!(dated.stderr, "Warning: --with-dns is deprecated; it is on by default\n");
    let pingme = id_of(&dated.stdout);
    run(h2, &["10.2.1.26/24", "-ti", "-h", "ubuntu.weave.local", "--name", "client", "ubuntu"]);
    looked_up(h2, "pingme", &["10.2.1.25"]);
    for name in ["pingme", "pingme.weave.local"] {
        reaches(d2, "client", name);
    }
    run(h2, &["10.2.1.27/24", "-ti", "-h", "pingme.weave.local", "ubuntu"]);
    looked_up(h1, "pingme", &["10.2.1.25", "10.2.1.27"]);
    d1.ok(&["rm", "-f", &pingme]);
    looked_up(h2, "pingme", &["10.2.1.27"]);

    step("the name of a container is its host name, unless it has one");
    run(h1, &["10.2.1.1/24", "--name=web", "-ti", "--add-host", "static:10.9.9.9", "ubuntu"]);
    assert_eq!(d1.ok(&["exec", "web", "cat", "/proc/sys/kernel/hostname"]), "web.weave.local");
    looked_up(h2, "web", &["10.2.1.1"]);
    reaches(d2, "client", "web");
    let hosts = d1.ok(&["exec", "web", "cat", "/etc/hosts"]);
    for line in ["10.2.1.1        web.weave.local web", "10.9.9.9        static"] {
        assert!(hosts.lines().any(|l| l == line), "{line} in\n{hosts}");
    }
    let quiet = ["run", "--without-dns", "--no-rewrite-hosts", "--no-multicast-route"];
    let outcome = h1.weave(&[&quiet[..], &["10.2.1.2/24", "--name", "quiet", "-ti", "ubuntu"]].concat());
    id_of(&outcome.stdout);
    assert!(!h1.weave_ok(&["status", "dns"]).contains("quiet"));
    assert!(!d1.ok(&["exec", "quiet", "cat", "/etc/resolv.conf"]).contains("nameserver 172.17.0.1"));
    assert!(!d1.ok(&["exec", "quiet", "cat", "/etc/hosts"]).contains("10.2.1.2"));
    assert!(!d1.ok(&["exec", "quiet", "ip", "route"]).contains("224.0.0.0/4"));
    assert!(d1.ok(&["exec", "web", "ip", "route"]).contains("224.0.0.0/4"));
    let long = "n".repeat(60);
    let outcome = h1.weave(&["run", "--name", &long, "-ti", "ubuntu"]);
    assert_eq!(outcome.stderr, "Container name too long to be used as hostname\n");
    id_of(&outcome.stdout);
    claims(&["F-56"]);
}

#[test]
fn restricted_containers_and_failures() {
    let Some(lab) = Lab::start("dockrun", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_options(h1, "--icc=false --host-gateway-ip=192.0.2.9") else {
        return;
    };
    docker.import_image("ubuntu");
    launch(h1, &[], &[]);
    step("without communication over Docker's bridge");
    run(h1, &["10.2.1.1/24", "-ti", "--name", "c1", "--add-host", "up:host-gateway", "ubuntu"]);
    run(h1, &["10.2.1.2/24", "-ti", "--name", "c2", "ubuntu"]);
    let hosts = docker.ok(&["exec", "c1", "cat", "/etc/hosts"]);
    assert!(hosts.lines().any(|line| line == "192.0.2.9       up"), "{hosts}");
    let eth0 = docker.ok(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "c2"]);
    does_not_reach(&docker, "c1", &eth0);
    reaches(&docker, "c1", "10.2.1.2");
    let found = docker.ok(&["exec", "c1", "getent", "ahostsv4", "c2.weave.local"]);
    assert!(found.starts_with("10.2.1.2 "), "{found}");
    claims(&["F-10"]);

    step("without the right to use raw sockets");
    let programs = "-v /usr:/usr:ro -v /bin:/bin:ro -v /lib:/lib:ro -v /lib64:/lib64:ro";
    let python = h1.sh("ls /usr/bin/python3").trim().to_owned();
    let line = format!("10.2.1.3/24 --cap-drop net_raw --name raw {programs} ubuntu sleep 1000");
    run(h1, &line.split(' ').collect::<Vec<_>>());
    let script = |text: &str| docker.docker(&["exec", "raw", &python, "-c", text]);
    let raw = script("import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)");
    assert!(raw.stderr.contains("PermissionError"), "{raw}");
    let listener = h1
        .background(
            &[
                "docker",
                "--host",
                "unix:///run/docker.sock",
                "exec",
                "-i",
                "raw",
                &python,
                "-c",
                "import socket; s=socket.create_server(('10.2.1.3', 4422)); print('ready', flush=True); \
                 c=s.accept()[0]; c.sendall(b'hello'); c.close()",
            ],
            true,
        )
        .unwrap();
    let line = format!("10.2.1.4/24 --cap-drop net_raw --name sends {programs} ubuntu sleep 1000");
    run(h1, &line.split(' ').collect::<Vec<_>>());
    let text = "import socket; print(socket.create_connection(('10.2.1.3', 4422), 10).recv(9))";
    assert!(docker.ok(&["exec", "sends", &python, "-c", text]).contains("hello"));
    drop(listener);
    claims(&["F-11"]);

    step("what cannot be attached is killed");
    let before = (owned(h1), h1.weave_ok(&["status", "dns"]));
    let taken = h1.weave(&["run", "10.2.1.1/24", "-ti", "--name", "late", "ubuntu"]);
    assert!(taken.code == Some(1) && taken.stdout.is_empty(), "{taken}");
    assert!(taken.stderr.contains("10.2.1.1") && taken.stderr.contains("has been killed"), "{taken}");
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "late"]), "exited");
    let refused = h1.weave(&["start", "10.2.1.1/24", "late"]);
    assert!(refused.code == Some(1) && refused.stdout.is_empty(), "{refused}");
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "late"]), "exited");
    let running = h1.weave(&["start", "10.2.1.1/24", "c2"]);
    assert!(running.code == Some(1) && !running.stderr.contains("killed"), "{running}");
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "c2"]), "running");
    let host_network = h1.weave(&["run", "--net=host", "--rm", "ubuntu", "sleep", "1000"]);
    assert!(host_network.stderr.contains("host network namespace"), "{host_network}");
    let ended = h1.weave(&["run", "--name", "short", "ubuntu", "sleep", "0"]);
    // The program may end before the attach, which then fails, or right after it.
    let not_attached = ended.code == Some(1) && ended.stdout.is_empty();
    let attached = ended.code == Some(0) && ended.stderr.contains("has ended");
    assert!(not_attached || attached, "{ended}");
    for (args, code, text) in [
        (&["run", "10.2.1.9/24", "--no-such-option", "ubuntu"][..], 125, "unknown flag"),
        (&["run", "10.2.1.9/24", "ubuntu", "/no/such/program"], 127, "no such file"),
        (&["start", "nosuch"], 1, "No such container: nosuch\n"),
        (&["restart", "late"], 1, "not running"),
        (&["restart", "nosuch"], 1, "No such container: nosuch\n"),
    ] {
        let outcome = h1.weave(args);
        assert!(outcome.code == Some(code) && outcome.stdout.is_empty(), "{outcome}");
        assert!(outcome.stderr.contains(text), "{outcome}");
    }
    let argument =
        h1.weave_env(&[("DOCKER_CLIENT_ARGS", "--host unix:///run/none.sock")], &["run", "ubuntu"]);
    assert!(argument.code == Some(125) && argument.stderr.contains("/run/none.sock"), "{argument}");
    h1.wait("the state of before", LONG_TIMEOUT, || {
        let after = (owned(h1), h1.weave_ok(&["status", "dns"]));
        if after == before { Ok(()) } else { Err(format!("{after:?}")) }
    });

    step("without a daemon particular addresses are possible");
    h1.weave_ok(&["stop"]);
    let c = run(h1, &["10.2.1.7/24", "-ti", "ubuntu"]);
    assert_eq!(addresses(h1, &c), ["10.2.1.7/24"]);
    let nothing = h1.weave(&["run", "--name", "unattached", "-ti", "ubuntu"]);
    assert!(nothing.code == Some(1) && nothing.stderr.starts_with("weave is not running."), "{nothing}");
}
