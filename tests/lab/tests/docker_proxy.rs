//! The Docker API proxy with real Docker daemons and clients.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Outcome, Topology, claims};

use crate::common::docker::TYPED;
use crate::common::names::looked_up;
use crate::common::*;

weave_lab::claims!("I-9");

const PROXY: &str = "unix:///var/run/weave/weave.sock";
/// A start of many containers at a time takes long with the storage driver of the lab.
const MANY_TIMEOUT: Duration = Duration::from_secs(300);

/// Docker's client, which talks to the proxy.
struct Client<'a>(&'a Host);

impl Client<'_> {
    fn docker(&self, args: &[&str]) -> Outcome {
        self.0.command_with(&[("DOCKER_HOST", PROXY)], &[&["docker"], args].concat(), LONG_TIMEOUT)
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        self.docker(args).expect_ok().trim_end().to_owned()
    }

    /// A command line for a shell, in which `docker` talks to the proxy.
    #[track_caller]
    fn sh(&self, line: &str) -> String {
        self.0.sh(&format!("export DOCKER_HOST={PROXY}; {line}"))
    }
}

fn start<'a>(lab: &'a Lab, options: &[&str]) -> Option<Vec<Dockerd<'a>>> {
    let dockers = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>()?;
    dockers.iter().for_each(|docker| docker.import_image("ubuntu"));
    launch_mesh(lab, options);
    Some(dockers)
}

/// The IPv4 addresses of `ethwe`, from inside.
const SHOW: &str = "ip -4 -o addr show dev ethwe | grep -o 'inet [^ ]*'";

fn addresses(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("inet ")).map(str::to_owned).collect()
}

fn owned(host: &Host) -> String {
    host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"])
}

#[test]
fn containers_of_the_proxy() {
    on_three_hosts(&Topology::hosts(3));
}

#[test]
fn containers_of_the_proxy_with_newer_engines() {
    for tree in newer_engines() {
        on_three_hosts(&Topology::hosts(3).with_root(&tree));
    }
}

fn on_three_hosts(topology: &Topology) {
    let Some(lab) = Lab::start("proxy", topology) else { return };
    let Some(dockers) =
        start(&lab, &["--ipalloc-range", "10.2.0.0/16", "--ipalloc-default-subnet", "10.2.0.0/24"])
    else {
        return;
    };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let [c1, c2] = [Client(h1), Client(h2)];

    step("clients find the proxy");
    let weave = weave_lab::weave_binary();
    let shell =
        format!("eval $({weave} env); echo $DOCKER_HOST; eval $({weave} env --restore); echo $DOCKER_HOST.");
    assert_eq!(h1.sh(&format!("unset DOCKER_HOST; {shell}")), format!("{PROXY}\n.\n"));
    assert_eq!(h1.weave_ok(&["config"]), format!("-H={PROXY}\n"));
    assert_eq!(h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/proxyaddrs"]), format!("{PROXY}\n"));
    assert_eq!(h1.report().unwrap()["Proxy"], serde_json::json!({ "Addresses": [PROXY] }));
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains(&format!("Service: proxy\n        Address: {PROXY}\n")), "{status}");
    assert_eq!(c1.ok(&["ps", "-q"]), dockers[0].ok(&["ps", "-q"]));

    step("the network is there before the program starts");
    let shown = c1.ok(&[
        "run",
        "--rm",
        "ubuntu",
        "sh",
        "-c",
        &format!("{SHOW}; ip route show 224.0.0.0/4; cat /etc/hosts"),
    ]);
    let [cidr] = addresses(&shown).try_into().unwrap();
    assert!(cidr.starts_with("10.2.0.") && cidr.ends_with("/24"), "{shown}");
    assert!(
        shown.contains("224.0.0.0/4 dev ethwe") && shown.contains("# created by Weave - BEGIN"),
        "{shown}"
    );
    let list = "WEAVE_CIDR=net:10.2.7.0/24 net:10.2.8.0/24 ip:10.3.9.1/24 10.3.8.1/24";
    let shown = addresses(&c1.ok(&["run", "--rm", "-e", list, "ubuntu", "sh", "-c", SHOW]));
    let expected = ["10.2.7.1/24", "10.2.8.1/24", "10.3.9.1/24", "10.3.8.1/24"];
    assert_eq!(shown, expected);
    claims(&["I-9"]);
    let none = c1.docker(&["run", "--rm", "-e", "WEAVE_CIDR=none", "ubuntu", "sh", "-c", SHOW]);
    assert!(!none.success() && none.stderr.contains("ethwe"), "{none}");
    let entrypoint =
        c1.ok(&["create", "-e", "WEAVE_CIDR=none", "--entrypoint", "cat", "ubuntu", "/etc/hosts"]);
    assert_eq!(dockers[0].ok(&["inspect", "-f", "{{.Config.Entrypoint}}", &entrypoint]), "[cat]");

    step("names and host names");
    c1.ok(&["run", "-d", "--name", "web", "ubuntu", "sleep", "1000"]);
    let ip = c1
        .ok(&["exec", "web", "sh", "-c", SHOW])
        .trim_start_matches("inet ")
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    looked_up(h1, "web", &[&ip]);
    assert_eq!(
        dockers[0].ok(&["inspect", "-f", "{{.Config.Hostname}}.{{.Config.Domainname}}", "web"]),
        "web.weave.local"
    );
    h2.wait("web to be reached by its name", LONG_TIMEOUT, || {
        let ping =
            c2.docker(&["run", "--rm", "--name", "peer", "ubuntu", "ping", "-c", "1", "-W", "2", "web"]);
        if ping.success() { Ok(()) } else { Err(ping.to_string()) }
    });

    step("containers of other hosts, however they were attached, reach each other by address and name");
    let h3 = lab.host("h3");
    h3.weave_ok(&["setup-docker", "--config-file", Dockerd::CONFIG_FILE]);
    let dns = h3.weave_ok(&["dns-args"]);
    let before = owned(h3);
    for line in [
        format!("run -d --runtime weave {dns} --name oci -h oci.weave.local ubuntu sleep 1000"),
        format!("run -d {dns} --name attached -h attached.weave.local ubuntu sleep 1000"),
        format!(
            "run -d --runtime weave -e WEAVE_CIDR=net:10.2.9.0/24 {dns} --name apart -h apart.weave.local ubuntu sleep 1000"
        ),
    ] {
        dockers[2].ok(&line.split(' ').collect::<Vec<_>>());
    }
    h3.weave_ok(&["attach", "attached"]);
    h3.weave_ok(&["run", "--name", "by-run", "ubuntu", "sleep", "1000"]);
    let ping = |docker: &Dockerd<'_>, from: &str, to: &str| {
        docker.docker(&["exec", from, "ping", "-c", "1", "-W", "2", to])
    };
    let list = h3.weave_ok(&["ps", "apart"]);
    let apart = list.split_whitespace().last().and_then(|cidr| cidr.split('/').next()).unwrap_or_default();
    for name in ["oci", "attached", "by-run"] {
        let address = h3.weave_ok(&["ps", name]);
        let address = address.split_whitespace().nth(2).and_then(|cidr| cidr.split('/').next()).unwrap();
        for (docker, from, to) in [
            (&dockers[0], "web", name),
            (&dockers[0], "web", address),
            (&dockers[2], name, "web"),
            (&dockers[2], name, &ip),
        ] {
            docker.host().wait(&format!("{from} to reach {to}"), LONG_TIMEOUT, || {
                let ping = ping(docker, from, to);
                if ping.success() { Ok(()) } else { Err(ping.to_string()) }
            });
        }
        looked_up(h1, name, &[address]);
        let refused = ping(&dockers[2], name, apart);
        assert!(apart.starts_with("10.2.9.") && !refused.success(), "{apart}: {refused}");
    }
    looked_up(h1, "apart", &[apart]);
    let refused = ping(&dockers[0], "web", apart);
    assert!(refused.stdout.contains(" 100% packet loss"), "{refused}");
    dockers[2].ok(&["rm", "-f", "oci", "attached", "by-run", "apart"]);
    h3.wait("the release of their addresses", SHORT_TIMEOUT, || {
        if owned(h3) == before { Ok(()) } else { Err(owned(h3)) }
    });

    step("streams pass: stdin with its end, exec, attach, logs, cp, build, events");
    assert_eq!(c1.sh("echo hello | docker exec -i web cat"), "hello\n");
    assert_eq!(c1.sh("echo attached | docker run -i --rm ubuntu cat"), "attached\n");
    let shown = c1.sh(&format!("{TYPED} typed 'echo $((40 + 2)); exit' 'docker exec -it web sh'"));
    assert!(shown.lines().any(|line| line.trim_end() == "42"), "{shown}");
    c1.ok(&["run", "-d", "--name", "talks", "ubuntu", "sh", "-c", "echo one; sleep 2; echo two"]);
    assert_eq!(c1.ok(&["logs", "-f", "talks"]), "one\ntwo");
    let sums = c1.sh(
        "head -c 5000000 /dev/urandom > /run/file; docker cp /run/file web:/tmp/file; docker cp web:/tmp/file /run/copy; \
         md5sum < /run/file; md5sum < /run/copy",
    );
    assert_eq!(sums.lines().collect::<BTreeSet<_>>().len(), 1, "{sums}");
    let built = c1.sh(
        "mkdir -p /run/context; cd /run/context; cp /run/file big; printf 'FROM ubuntu\\nCOPY big /big\\nCMD [\"ls\", \"/big\"]\\n' > \
         Dockerfile; DOCKER_BUILDKIT=0 docker build -q -t built . > /dev/null; docker run --rm built",
    );
    assert_eq!(built, "/big\n");
    let events = c1.sh("docker events --since 10m --until 0s --filter container=web --format '{{.Action}}'");
    assert!(events.contains("create\n") && events.contains("start\n"), "{events}");

    step("a client that speaks HTTP/2, and one that sends nonsense");
    let curl = |args: &str| {
        h1.sh(&format!(
            "curl -sS -o /dev/null -w '%{{http_code}}' --unix-socket /run/weave/weave.sock {args} || true"
        ))
    };
    assert_eq!(curl("-X POST -d '{' http://docker/containers/create"), "400");
    assert_eq!(curl("http://docker/_ping"), "200");
    assert_eq!(curl("-X POST http://docker/containers/nosuch/start"), "404");
}

#[test]
fn starts_that_fail_and_restarts() {
    failures_and_restarts(&Topology::hosts(1));
}

#[test]
fn starts_that_fail_and_restarts_with_newer_engines() {
    for tree in newer_engines() {
        failures_and_restarts(&Topology::hosts(1).with_root(&tree));
    }
}

fn failures_and_restarts(topology: &Topology) {
    let Some(lab) = Lab::start("proxy", topology) else { return };
    let Some(dockers) = start(&lab, &[]) else { return };
    let h1 = lab.host("h1");
    let (client, docker) = (Client(h1), &dockers[0]);

    step("an address that is taken ends the container with the reason");
    client.ok(&["run", "-d", "--name", "first", "-e", "WEAVE_CIDR=10.32.9.9/12", "ubuntu", "sleep", "1000"]);
    let before = owned(h1);
    let second = client.docker(&[
        "run",
        "-d",
        "--name",
        "second",
        "-e",
        "WEAVE_CIDR=10.32.9.9/12",
        "ubuntu",
        "sleep",
        "1000",
    ]);
    assert!(
        !second.success()
            && second.stderr.contains("cannot be attached")
            && second.stderr.contains("10.32.9.9"),
        "{second}"
    );
    assert_eq!(docker.ok(&["inspect", "-f", "{{.State.Status}}", "second"]), "exited");
    let wrong = client.docker(&[
        "run",
        "-d",
        "--name",
        "wrong",
        "-e",
        "WEAVE_CIDR=10.32.9",
        "ubuntu",
        "sleep",
        "1000",
    ]);
    assert!(!wrong.success() && wrong.stderr.contains("10.32.9"), "{wrong}");
    assert_eq!(owned(h1), before);

    step("errors are Docker's, and leave nothing");
    for (args, code, text) in [
        (&["exec", "second", "ls"][..], 1, "is not running"),
        (&["exec", "nosuch", "ls"], 1, "No such container: nosuch"),
        (&["start", "nosuch"], 1, "No such container: nosuch"),
        (&["run", "nosuch-image"], 125, "nosuch-image"),
        (&["run", "--rm", "ubuntu", "/no/such/program"], 1, "/no/such/program"),
        (&["run", "--rm", "--net", "host", "ubuntu", "ls", "/w/w"], 2, "No such file"),
    ] {
        let outcome = client.docker(args);
        assert!(outcome.code == Some(code) && outcome.stderr.contains(text), "{outcome}");
    }
    let modes =
        h1.sh("cd /run; stat -L -c %a:%u:%g docker.sock weave/weave.sock; stat -c %a:%u weave/control.sock");
    let modes: Vec<&str> = modes.lines().collect();
    assert_eq!((modes[0], modes[2]), (modes[1], "600:0"), "{modes:?}");
    h1.wait("the addresses of before", SHORT_TIMEOUT, || {
        if owned(h1) == before { Ok(()) } else { Err(owned(h1)) }
    });

    step("Docker's restart policy: the same address, before the program runs again");
    let script = format!("{SHOW}; sleep 1000");
    client.ok(&["run", "-d", "--name", "again", "--restart", "always", "ubuntu", "sh", "-c", &script]);
    let shown = || addresses(&docker.ok(&["logs", "again"]));
    h1.wait("its address", SHORT_TIMEOUT, || shown().len() == 1);
    let first = shown();
    let pid = docker.ok(&["inspect", "-f", "{{.State.Pid}}", "again"]);
    h1.command_ok(&["kill", "-9", &pid]);
    h1.wait("its address", LONG_TIMEOUT, || shown().len() == 2);
    assert_eq!(shown()[1], first[0]);

    step("a container that is started while no peer runs, or one that was killed, waits for it");
    let waits = || h1.sh("docker --host unix:///run/docker.sock top again -o pid,args").contains("/w/w");
    for (signal, starts) in [("TERM", 3), ("KILL", 4)] {
        h1.signal_daemon(signal);
        h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
        docker.ok(&["restart", "-t", "0", "again"]);
        assert!(waits() && shown().len() == starts - 1, "{:?}", shown());
        launch(h1, &[], &[]);
        h1.wait("its address", LONG_TIMEOUT, || shown().len() == starts);
        assert_eq!(shown()[starts - 1], first[0]);
    }

    step("dockerd restarts underneath");
    docker.stop();
    let unreachable = client.docker(&["ps"]);
    assert!(
        !unreachable.success() && unreachable.stderr.contains("Could not connect to target"),
        "{unreachable}"
    );
    docker.boot();
    h1.wait("its address", LONG_TIMEOUT, || shown().len() == 5);
    assert_eq!(shown()[4], first[0]);
    client.ok(&["rm", "-f", "again"]);
    let address = first[0].clone();
    h1.wait("the release of its address", SHORT_TIMEOUT, || !owned(h1).contains(&address));
}

/// Launches a daemon that does what this file says.
fn launch_with_plan(host: &Host) {
    let plan = [("WEAVE_FAULT_PLAN", "/var/log/fault.plan")];
    host.weave_env(&plan, &["launch", "--no-restart"]).expect_ok();
}

/// Makes an operation of the daemon fail (`mode` is the error), or kills it (`kill`), while a container is started by this command; each
/// operation in turn. One of them is the last if all are tried.
fn fail_starts(host: &Host, way: &str, command: &str, mode: &str) {
    let docker = "docker --host unix:///run/docker.sock";
    let state = || {
        let ports = host.sh("ip -o link | grep -c vethwepl || true");
        let pending = host.sh("ls /run/weave | grep -c pending || true");
        (owned(host), host.weave_ok(&["status", "dns"]), ports, pending)
    };
    let is_as = |before: &(String, String, String, String), what: &str| {
        host.wait("the state of before", LONG_TIMEOUT, || {
            let now = state();
            if now == *before { Ok(()) } else { Err(format!("{what}: {now:?}\n{before:?}")) }
        });
    };
    let before = state();
    let stride = if std::env::var_os("WEAVE_LAB_ALL_FAULTS").is_none() { 7 } else { 1 };
    let (mut failed, mut attached) = (0, 0);
    for n in (0..1000).step_by(stride) {
        let line = format!(
            "rm -f /var/log/fault; echo {mode}:attach:{n}:/var/log/fault > /var/log/fault.plan; i=-fault; \
             {command} ubuntu sleep 1000 2>&1 && echo started; rm -f /var/log/fault.plan; cat /var/log/fault 2>/dev/null || echo none"
        );
        let outcome = host.command_with(&[], &["sh", "-c", &line], LONG_TIMEOUT).expect_ok();
        let what = format!("{way}, {mode} at operation {n}: {outcome}");
        let complete = outcome.ends_with("none\n");
        // Some operations are not necessary.
        let started = outcome.lines().any(|line| line == "started");
        failed += usize::from(!started);
        if mode == "kill" && !complete {
            host.wait("the end of the daemon", SHORT_TIMEOUT, || host.daemon_pid().is_none());
            launch_with_plan(host);
            // A container of the proxy waits for the next daemon; the others do not start.
            let runs = host.wait("a container that runs its program or has ended", LONG_TIMEOUT, || {
                let top =
                    host.sh(&format!("for c in $({docker} ps -q); do {docker} top $c -o pid,args; done"));
                if top.contains("/w/w") { Err(format!("{what}{top}")) } else { Ok(top.contains("sleep")) }
            });
            assert!(!runs || started || way == "proxy", "{what}");
            if runs {
                attached += 1;
                host.wait("its address and name", LONG_TIMEOUT, || {
                    let now = state();
                    let done =
                        now.0.matches("/12").count() == 1 && now.1.contains("-fault") && now.3 == before.3;
                    if done { Ok(()) } else { Err(format!("{what}{now:?}")) }
                });
            }
        } else {
            let running = host.sh(&format!("{docker} ps -q"));
            assert_eq!(running.is_empty(), !started, "{what}");
            if !started {
                is_as(&before, &what);
            }
        }
        host.sh(&format!("{docker} rm -f $({docker} ps -aq) > /dev/null"));
        is_as(&before, &what);
        if complete {
            break;
        }
    }
    println!("{way}, {mode}: {failed} starts failed, {attached} containers attached by the next daemon");
    if failed == 0 {
        let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
        assert!(!required, "the program is built without feature `fault-injection`");
        eprintln!("SKIPPED: the program is built without feature `fault-injection`");
    }
}

#[test]
fn many_starts_at_a_time() {
    let Some(lab) = Lab::start("proxy", &Topology::hosts(1)) else { return };
    let Some(_dockers) = start(&lab, &[]) else { return };
    let h1 = lab.host("h1");
    h1.weave_ok(&["setup-docker", "--config-file", Dockerd::CONFIG_FILE]);
    let weave = weave_lab::weave_binary();
    h1.weave_ok(&["stop"]);
    launch_with_plan(h1);
    let ways = [
        ("proxy", format!("docker --host {PROXY} run -d --name proxy$i")),
        ("run", format!("{weave} run --name run$i")),
        (
            "runtime",
            "docker --host unix:///run/docker.sock run -d --runtime weave -h runtime$i.weave.local"
                .to_owned(),
        ),
    ];
    for (way, command) in &ways {
        step("a failing operation fails the start, and leaves nothing");
        fail_starts(h1, way, command, "5");
        step("after a kill nothing is half-done when the next daemon runs");
        fail_starts(h1, way, command, "kill");
    }
    // 50 with LAB_LONG=1.
    let count = if crate::common::addresses::long_tests_enabled() { 50 } else { 15 };
    for (way, command) in ways {
        step(way);
        let line = format!(
            "mkdir /run/{way}; for i in $(seq {count}); do {command} ubuntu sleep 1000 > /run/{way}/$i 2>&1 & done; wait; cat /run/{way}/*"
        );
        let ids = h1.command_with(&[], &["sh", "-c", &line], MANY_TIMEOUT).expect_ok();
        let ids: BTreeSet<&str> = ids.lines().collect();
        assert_eq!(ids.len(), count, "{ids:?}");
        let owned = owned(h1);
        let owners: BTreeSet<&str> = ids.iter().copied().filter(|id| owned.contains(id)).collect();
        assert_eq!(owners.len(), count, "{owned}");
        let names = h1.weave_ok(&["status", "dns"]);
        let rows: BTreeSet<_> = names
            .lines()
            .filter(|line| line.starts_with(way))
            .filter_map(|l| Some((l.split_whitespace().next()?, l.split_whitespace().nth(1)?)))
            .collect();
        let addresses: BTreeSet<_> = rows.iter().map(|(_, addr)| addr).collect();
        assert_eq!((rows.len(), addresses.len()), (count, count), "{names}");
        h1.sh(&format!("cat /run/{way}/* | xargs docker --host unix:///run/docker.sock rm -f > /dev/null"));
    }
    h1.wait("the release of all addresses", LONG_TIMEOUT, || {
        let owned = owned(h1);
        if owned.contains("/12") { Err(owned) } else { Ok(()) }
    });
}

/// A container with this name and these arguments, as its own `inspect` shows it through the proxy.
fn settings(client: &Client<'_>, args: &[&str], format: &str) -> String {
    let id = client.ok(&[&["create"], args, &["ubuntu"]].concat());
    let shown = client.ok(&["inspect", "-f", format, &id]);
    client.ok(&["rm", &id]);
    shown
}

#[test]
fn options_of_the_proxy() {
    let Some(lab) = Lab::start("proxy", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    let client = Client(h1);
    let again = |options: &[&str]| {
        h1.weave_ok(&["stop"]);
        launch(h1, options, &[]);
    };
    let show_all = format!("{SHOW}; ip route; cat /etc/hosts");

    launch(h1, &["--proxy=false"], &[]);
    let off = h1.weave(&["env"]);
    assert!(
        off.success() && off.stdout.is_empty() && off.stderr.contains("the Docker API proxy is off"),
        "{off}"
    );
    assert_eq!(h1.weave(&["config"]).code, Some(1));
    assert!(!client.docker(&["ps"]).success());

    step("host names");
    again(&[
        "--hostname-from-label",
        "app",
        "--hostname-match",
        "^aws-[0-9]+-(.*)$",
        "--hostname-replacement",
        "my-app-$1",
    ]);
    let hostname = "{{.Config.Hostname}}.{{.Config.Domainname}}";
    assert_eq!(settings(&client, &["--name", "aws-12-web"], hostname), "my-app-web.weave.local");
    assert_eq!(
        settings(&client, &["--name", "labelled", "-l", "app=aws-1-db"], hostname),
        "my-app-db.weave.local"
    );
    assert_eq!(settings(&client, &["--name", "given", "-h", "z"], hostname), "z.");

    step("only containers that ask for it, shown with their address; several sockets");
    again(&[
        "--no-default-ipalloc",
        "--rewrite-inspect",
        "--no-multicast-route",
        "--no-rewrite-hosts",
        "--no-detect-tls",
        "-H",
        "tcp://0.0.0.0:12375",
        "-H",
        "unix:///run/other.sock",
    ]);
    let list = "tcp://0.0.0.0:12375\nunix:///run/other.sock\nunix:///var/run/weave/weave.sock\n";
    assert_eq!(h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/proxyaddrs"]), list);
    let env = [("PROXY_HOST", "10.9.9.9")];
    assert_eq!(h1.weave_env(&env, &["config"]).expect_ok(), "-H=tcp://10.9.9.9:12375\n");
    for address in ["tcp://127.0.0.1:12375", "unix:///run/other.sock"] {
        h1.command_ok(&["docker", "--host", address, "ps"]);
    }
    assert_eq!(settings(&client, &[], "{{.Config.Entrypoint}}"), "[]");
    client.ok(&["run", "-d", "--name", "shown", "-e", "WEAVE_CIDR=10.2.1.1/24", "ubuntu", "sleep", "1000"]);
    assert_eq!(
        client.ok(&[
            "inspect",
            "-f",
            "{{.NetworkSettings.IPAddress}}/{{.NetworkSettings.IPPrefixLen}}",
            "shown"
        ]),
        "10.2.1.1/24"
    );
    let inside = client.ok(&["exec", "shown", "sh", "-c", &show_all]);
    assert!(
        inside.contains("10.2.1.1/24")
            && !inside.contains("224.0.0.0")
            && !inside.contains("created by Weave"),
        "{inside}"
    );

    client.ok(&["rm", "-f", "shown"]);
    h1.wait("the end of its name", SHORT_TIMEOUT, || h1.weave_ok(&["status", "dns"]).is_empty());

    step("without names; user-defined networks");
    again(&["--without-dns", "--attach-user-networks"]);
    assert!(!h1.sh("ls /run").contains("other.sock"));
    assert_eq!(settings(&client, &["--name", "web"], "{{.Config.Domainname}}{{.HostConfig.Dns}}"), "[]");
    docker.ok(&["network", "create", "backend"]);
    let inside = client.ok(&["run", "--rm", "--net", "backend", "ubuntu", "sh", "-c", &show_all]);
    assert!(inside.contains("inet ") && inside.contains("default via"), "{inside}");
    let names = h1.weave_ok(&["status", "dns"]);
    assert!(names.is_empty(), "{names}");
    again(&[]);
    assert_eq!(settings(&client, &["--net", "backend"], "{{.Config.Entrypoint}}"), "[]");

    step("TLS with certificates of clients");
    if !h1.command(&["sh", "-c", "command -v openssl"]).success() {
        eprintln!("SKIPPED: openssl is not installed");
        return;
    }
    h1.sh(
        "mkdir -p /run/certs/wrong; cd /run/certs; \
         ca() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=$1 -keyout $2-key.pem -out $2.pem; }; \
         sign() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$1 -keyout $2-key.pem -out $2.csr; \
         echo \"subjectAltName=IP:127.0.0.1\" > ext; openssl x509 -req -in $2.csr -CA $3.pem -CAkey $3-key.pem -CAcreateserial -days 2 \
         -extfile ext -out $2.pem; }; \
         (ca lab ca; ca other wrong/ca; sign proxy server ca; sign client client ca; sign client wrong/client wrong/ca) > log 2>&1",
    );
    let curl = |certificate: &str| {
        h1.command(&[
            "sh",
            "-c",
            &format!("cd /run/certs; curl -sS --cacert ca.pem {certificate} https://127.0.0.1:12375/_ping"),
        ])
    };
    again(&[
        "-H",
        "tcp://127.0.0.1:12375",
        "--tlsverify",
        "--tlscacert",
        "/run/certs/ca.pem",
        "--tlscert",
        "/run/certs/server.pem",
        "--tlskey",
        "/run/certs/server-key.pem",
    ]);
    let answered = curl("--cert client.pem --key client-key.pem");
    assert_eq!(answered.stdout, "OK", "{answered}");
    for wrong in ["", "--cert wrong/client.pem --key wrong/client-key.pem"] {
        let refused = curl(wrong);
        assert!(!refused.success() && refused.stdout.is_empty(), "{refused}");
    }
    h1.sh("cd /run/certs; cp server.pem cert.pem; cp server-key.pem key.pem");
    h1.weave_ok(&["stop"]);
    let env = [("DOCKER_CERT_PATH", "/run/certs")];
    h1.weave_env(&env, &["launch", "--no-restart", "-H", "tcp://127.0.0.1:12375", "--tls"]).expect_ok();
    let answered = curl("");
    assert_eq!(answered.stdout, "OK", "{answered}");
    h1.weave_ok(&["reset"]);
    assert!(!h1.sh("ls /var/lib; ls /run/weave 2>/dev/null || true").contains("weave"));
}
