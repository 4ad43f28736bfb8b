//! Containers of all engines on one network, many starts of Docker at a time, and the table of versions that were tried.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::addresses::long_tests_enabled;
use crate::common::cni::recorded;
use crate::common::engines::{Containerd, PING, Podman, address, prepare, reaches, trees};
use crate::common::*;
use crate::docker_plugin::default_network;

/// A start of many containers at a time takes long with the storage driver of the lab.
const MANY_TIMEOUT: Duration = Duration::from_secs(300);

/// A way to start a container: its address, and how it pings another.
struct Member<'a> {
    way: &'static str,
    ip: String,
    ping: Box<dyn Fn(&str) -> Outcome + 'a>,
}

#[test]
fn all_pairs_of_newer_engines() {
    for tree in trees() {
        all_pairs(&Topology::hosts(2).with_root(&tree));
    }
}

/// Containers of Docker through the proxy, Docker's network, containerd and Podman, and a namespace.
fn all_pairs(topology: &Topology) {
    let Some(lab) = Lab::start("engines", topology) else { return };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let _groups = [h1, h2].map(prepare);
    let [Some(d1), Some(d2)] = [h1, h2].map(Dockerd::start_with_bridge) else { return };
    for docker in [&d1, &d2] {
        docker.import_image("ubuntu");
    }
    let (Some(containerd), Some(podman)) = (Containerd::start(h2), Podman::find(h1, "netavark")) else {
        return;
    };
    launch_mesh(&lab, &[]);
    let by_docker = |docker: &Dockerd<'_>, name: &str, to: &str| {
        docker.docker(&["exec", name, "ping", "-c", "1", "-W", "2", to])
    };

    h1.sh("docker --host unix:///var/run/weave/weave.sock run -d --name proxied ubuntu sleep 1000");
    let id = d1.ok(&["inspect", "-f", "{{.Id}}", "proxied"]);
    h2.wait("Docker's network weave", LONG_TIMEOUT, || d2.docker(&["network", "inspect", "weave"]).success());
    d2.ok(&["run", "-d", "--name", "networked", "--net=weave", "ubuntu", "sleep", "1000"]);
    let _client = containerd.run("task");
    h1.weave_ok(&["setup-podman"]);
    podman.ok(&["network", "create", "-d", "weave", "weave"]);
    let pod = podman.run("podded", "--network weave");
    let bare = h2.container("bare");
    let members = [
        Member {
            way: "Docker's proxy",
            ip: address(h1, &id).expect("an address"),
            ping: Box::new(|to| by_docker(&d1, "proxied", to)),
        },
        Member {
            way: "Docker's network",
            ip: d2.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.weave.IPAddress}}", "networked"]),
            ping: Box::new(|to| by_docker(&d2, "networked", to)),
        },
        Member {
            way: "containerd",
            ip: address(h2, "default-task").expect("an address"),
            ping: Box::new(|to| containerd.exec("task", &[&PING[..], &[to]].concat())),
        },
        Member {
            way: "Podman",
            ip: address(h1, &pod).expect("an address"),
            ping: Box::new(|to| podman.exec("podded", &[&PING[..], &[to]].concat())),
        },
        Member {
            way: "a namespace",
            ip: bare.attach(&[]),
            ping: Box::new(|to| bare.command(&["ping", "-c", "1", "-W", "2", to])),
        },
    ];
    for from in &members {
        for to in members.iter().filter(|to| to.ip != from.ip) {
            reaches(&format!("{} to {}", from.way, to.way), || (from.ping)(&to.ip));
        }
    }
}

#[test]
fn many_starts_of_docker_at_a_time() {
    many_starts(&Topology::hosts(1));
    for tree in trees() {
        many_starts(&Topology::hosts(1).with_root(&tree));
    }
}

fn many_starts(topology: &Topology) {
    let Some(lab) = Lab::start("many", topology) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    launch(h1, &[], &[]);
    default_network(&docker, "weave");
    println!("Docker {}", docker.ok(&["version", "-f", "{{.Server.Version}}"]));
    let before = recorded(h1);
    let count = if long_tests_enabled() { 50 } else { 10 };
    for (socket, options) in [("/run/docker.sock", "--net=weave"), ("/run/weave/weave.sock", "")] {
        step(socket);
        let lines = format!(
            "for i in $(seq {count}); do docker --host unix://{socket} run -d {options} ubuntu sleep 1000 & done; wait"
        );
        let ids = h1.command_with(&[], &["sh", "-c", &lines], MANY_TIMEOUT).expect_ok();
        let shown = |id| docker.ok(&["exec", id, "ip", "-4", "-o", "addr", "show"]);
        let inside: BTreeSet<String> = ids
            .lines()
            .flat_map(|id| shown(id).split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .filter(|word| word.starts_with("10.32.") && word.ends_with("/12"))
            .collect();
        assert_eq!(inside.len(), count, "{ids}{inside:?}");
        let owned: BTreeSet<String> = recorded(h1).into_iter().flat_map(|(_, addrs)| addrs).collect();
        assert!(inside.is_subset(&owned), "{inside:?}\n{owned:?}");
        docker.ok(&[&["rm", "-f"][..], &ids.lines().collect::<Vec<_>>()].concat());
        h1.wait("the release of all addresses", LONG_TIMEOUT, || {
            let now = recorded(h1);
            if now == before { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }
}

/// The chapter with the table of engines: a row for each Debian release.
const CHAPTER: &str = include_str!("../../../docs/guide/docker.md");

/// Commands that print the versions in the columns of the table.
const COLUMNS: [&str; 6] = [
    "dockerd --version",
    "docker-compose version --short || /usr/libexec/docker/cli-plugins/docker-compose version --short",
    "podman --version",
    "/usr/lib/podman/netavark --version",
    "containerd --version",
    "runc --version",
];

/// The guide says with which versions the tests run here.
#[test]
fn versions_in_the_guide() {
    let trees = newer_engines().into_iter().map(|tree| Topology::hosts(1).with_root(&tree));
    for topology in std::iter::once(Topology::hosts(1)).chain(trees) {
        let Some(lab) = Lab::start("versions", &topology) else { return };
        compare(lab.host("h1"));
    }
}

fn compare(host: &Host) {
    let release =
        host.sh(". /etc/os-release; [ -z \"${VERSION_ID:-}\" ] && echo sid || echo $VERSION_CODENAME");
    let release = release.trim();
    let found: Vec<String> = COLUMNS.iter().map(|command| version(host, command)).collect();
    let row = format!("| {release} | {} |", found.join(" | "));
    println!("{row}");
    let of_release =
        CHAPTER.lines().find(|line| line.split('|').nth(1).is_some_and(|cell| cell.trim() == release));
    match of_release {
        None => eprintln!("SKIPPED: the guide has no row of versions for {release}"),
        // Its versions change from day to day.
        Some(line) if release == "sid" && line != row => eprintln!("NOTICE: the guide has {line}"),
        Some(line) => {
            for (expected, found) in line.split('|').skip(2).map(str::trim).zip(&found) {
                assert!(found == "-" || expected == found, "the guide has {line}\ninstead of   {row}");
            }
        }
    }
}

/// The first two numbers of the version that a command prints; `-` if there is no such program.
fn version(host: &Host, command: &str) -> String {
    let text = host.sh(&format!("({command}) 2>/dev/null || true"));
    let start = |word: &str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let Some(word) = text.split_whitespace().find(|word| start(word)) else { return "-".to_owned() };
    word.trim_start_matches('v').split(['.', '~', '+', '-', ',']).take(2).collect::<Vec<_>>().join(".")
}
