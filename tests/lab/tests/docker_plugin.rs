//! Docker's networks of drivers `weave` and `weavemesh` with real Docker daemons.

use std::collections::BTreeSet;
use std::time::Duration;

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Host, Lab, Outcome, Topology, claims};

use crate::common::*;

weave_lab::claims!("I-38");

const SOCKETS: &str = "/run/docker/plugins";
/// Docker waits longer and longer for a daemon that was killed.
const START_TIMEOUT: Duration = Duration::from_secs(300);

fn start<'a>(lab: &'a Lab, options: &[&str]) -> Option<Vec<Dockerd<'a>>> {
    let dockers = lab.hosts().iter().map(Dockerd::start_with_bridge).collect::<Option<Vec<_>>>()?;
    dockers.iter().for_each(|docker| docker.import_image("ubuntu"));
    launch_mesh(lab, options);
    dockers.iter().for_each(|docker| default_network(docker, "weave"));
    Some(dockers)
}

#[track_caller]
pub fn default_network(docker: &Dockerd<'_>, name: &str) {
    docker.host().wait(&format!("Docker's network {name}"), LONG_TIMEOUT, || {
        let found = docker.docker(&["network", "inspect", "-f", "{{.Driver}}", name]);
        if found.stdout == "weavemesh\n" { Ok(()) } else { Err(found.to_string()) }
    });
}

/// Runs a container that sleeps, with these options.
#[track_caller]
pub fn run(docker: &Dockerd<'_>, name: &str, options: &str) {
    let line = format!("run -d --name {name} {options} ubuntu sleep 1000");
    docker.ok(&line.split_whitespace().collect::<Vec<_>>());
}

/// Its address in a network.
#[track_caller]
pub fn address(docker: &Dockerd<'_>, container: &str, network: &str) -> String {
    let template = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    docker.ok(&["inspect", "-f", &template, container])
}

fn ping(docker: &Dockerd<'_>, from: &str, to: &str) -> Outcome {
    docker.docker(&["exec", from, "ping", "-c", "1", "-W", "2", to])
}

#[track_caller]
pub fn reaches(docker: &Dockerd<'_>, from: &str, to: &str) {
    docker.host().wait(&format!("{from} to reach {to}"), LONG_TIMEOUT, || {
        let ping = ping(docker, from, to);
        if ping.success() { Ok(()) } else { Err(ping.to_string()) }
    });
}

fn owned(host: &Host) -> String {
    host.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"])
}

/// The answer of a driver to a request, with the HTTP status at its end.
fn post(host: &Host, socket: &str, call: &str, body: &str) -> String {
    let socket = format!("{SOCKETS}/{socket}.sock");
    let url = format!("http://plugin/{call}");
    host.command_ok(&["curl", "-sS", "-w", "%{http_code}", "--unix-socket", &socket, "-d", body, &url])
}

/// Devices of endpoints.
pub fn devices(host: &Host) -> String {
    host.sh("ip -o link | grep -o 'vethw[lg][0-9a-f]*' | sort -u || true")
}

/// Waits until addresses and devices are as before.
#[track_caller]
fn nothing_left(host: &Host, before: &(String, String)) {
    host.wait("addresses and devices of before", LONG_TIMEOUT, || {
        let now = (owned(host), devices(host));
        if now == *before { Ok(()) } else { Err(format!("{now:?} rather than {before:?}")) }
    });
}

#[test]
fn networks_of_docker() {
    on_two_hosts(&Topology::hosts(2));
}

#[test]
fn networks_of_newer_engines() {
    for tree in newer_engines() {
        on_two_hosts(&Topology::hosts(2).with_root(&tree));
    }
}

fn on_two_hosts(topology: &Topology) {
    let Some(lab) = Lab::start("plugin", topology) else { return };
    let Some(dockers) =
        start(&lab, &["--ipalloc-range", "10.2.0.0/16", "--ipalloc-default-subnet", "10.2.1.0/24"])
    else {
        return;
    };
    let [h1, h2] = ["h1", "h2"].map(|name| lab.host(name));
    let [d1, d2] = [&dockers[0], &dockers[1]];
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains("Service: plugin (legacy)\n     DriverName: weave\n"), "{status}");
    let report = h1.report().unwrap();
    let plugin = &report["Plugin"];
    assert_eq!(
        (&plugin["MeshDriverName"], &plugin["Config"]["DefaultSubnet"]),
        (&"weavemesh".into(), &"10.2.1.0/24".into())
    );
    let before = [h1, h2].map(|host| (owned(host), devices(host)));

    step("the default network: by address and by name, on both hosts");
    let dns = h1.weave_ok(&["dns-args"]);
    run(d1, "c1", &format!("--net=weave {dns}"));
    run(d2, "c2", &format!("--net=weave {dns} --network-alias www -h front.weave.local"));
    let [ip1, ip2] = [address(d1, "c1", "weave"), address(d2, "c2", "weave")];
    assert!(ip1.starts_with("10.2.1.") && ip2.starts_with("10.2.1.") && ip1 != ip2, "{ip1} {ip2}");
    for to in [&ip2, "c2", "c2.weave.local", "www", "front.weave.local"] {
        reaches(d1, "c1", to);
    }
    reaches(d2, "c2", "c1");
    let shown = d1.ok(&["exec", "c1", "ip", "route"]);
    assert!(shown.contains("224.0.0.0/4 dev ethwe0"), "{shown}");
    let reachable = h1.sh("cat /proc/sys/net/ipv4/neigh/weave/base_reachable_time");
    let container = format!(
        "nsenter --net=/proc/{}/ns/net cat /proc/sys/net/ipv4/neigh/ethwe0/base_reachable_time",
        d1.ok(&["inspect", "-f", "{{.State.Pid}}", "c1"])
    );
    h1.wait("the settings of its ARP cache", SHORT_TIMEOUT, || h1.sh(&container) == reachable);

    step("a network of its own is apart");
    for docker in [d1, d2] {
        docker.ok(&[
            "network",
            "create",
            "--driver",
            "weavemesh",
            "--ipam-driver",
            "weavemesh",
            "--subnet",
            "10.2.7.0/24",
            "apart",
        ]);
    }
    run(d1, "a1", "--net=apart");
    run(d2, "a2", "--net=apart");
    // Docker 28 has asked whether a network has to have a gateway.
    let version = d1.ok(&["version", "--format", "{{.Server.Version}}"]);
    let major: u32 = version.split('.').next().and_then(|number| number.parse().ok()).unwrap();
    let pool = post(h1, "weavemesh", "IpamDriver.RequestPool", "{\"Pool\":\"10.2.7.0/24\"}");
    assert_eq!(pool.contains("com.docker.network.gateway"), major < 28, "{version}: {pool}");
    let apart = address(d2, "a2", "apart");
    assert!(apart.starts_with("10.2.7."), "{apart}");
    reaches(d1, "a1", &apart);
    for (from, to) in [("a1", &ip2), ("c1", &apart)] {
        let refused = ping(d1, from, to);
        assert!(!refused.success(), "{from} reaches {to}: {refused}");
    }

    step("a container in several networks, of which all have multicast");
    d1.ok(&["create", "--name", "both", "--net=weave", "ubuntu", "sleep", "1000"]);
    d1.ok(&["network", "connect", "apart", "both"]);
    d1.ok(&["start", "both"]);
    reaches(d1, "both", &ip2);
    reaches(d1, "both", &apart);
    d1.ok(&["network", "connect", "apart", "c1"]);
    reaches(d1, "c1", &apart);
    for container in ["both", "c1"] {
        let routes = d1.ok(&["exec", container, "ip", "route", "show", "224.0.0.0/4"]);
        assert_eq!(routes.lines().count(), 1, "{container}: {routes}");
    }
    d1.ok(&["network", "disconnect", "apart", "c1"]);
    assert!(!ping(d1, "c1", &apart).success());

    step("an address of choice, once");
    run(d1, "fixed", "--net=apart --ip 10.2.7.99");
    reaches(d2, "a2", "10.2.7.99");
    let state = (owned(h1), devices(h1));
    for (docker, name) in [(d1, "second"), (d2, "third")] {
        let refused = docker.docker(&[
            "run",
            "-d",
            "--name",
            name,
            "--net=apart",
            "--ip",
            "10.2.7.99",
            "ubuntu",
            "sleep",
            "9",
        ]);
        assert!(!refused.success() && refused.stderr.contains("10.2.7.99"), "{refused}");
        docker.ok(&["rm", name]);
    }
    assert_eq!((owned(h1), devices(h1)), state);
    for docker in [d1, d2] {
        let outside = docker.docker(&[
            "network",
            "create",
            "-d",
            "weavemesh",
            "--ipam-driver",
            "weavemesh",
            "--subnet",
            "10.9.0.0/24",
            "-o",
            "works.weave.multicast=maybe",
            "wrong",
        ]);
        assert!(!outside.success() && outside.stderr.contains("unrecognized value"), "{outside}");
    }

    compose(d1, &format!("{dns} "));

    global_networks([d1, d2]);

    step("removed");
    d1.ok(&["rm", "-f", "c1", "a1", "both", "fixed"]);
    d2.ok(&["rm", "-f", "c2", "a2"]);
    for (docker, before) in [(d1, &before[0]), (d2, &before[1])] {
        docker.ok(&["network", "rm", "apart"]);
        nothing_left(docker.host(), before);
    }
    h1.wait("the end of their names", SHORT_TIMEOUT, || h1.weave_ok(&["status", "dns"]).is_empty());
    h1.weave_ok(&["stop"]);
    let gone = d1.docker(&["network", "inspect", "weave"]);
    assert!(!gone.success(), "{gone}");
    assert_eq!(h1.sh(&format!("ls {SOCKETS} 2>/dev/null || true")), "");
}

/// Networks of driver `weave`, of scope global: newer versions of Docker keep them as others, earlier ones in a cluster store, which is
/// not there. With swarm they need a plugin that Docker manages.
fn global_networks(dockers: [&Dockerd<'_>; 2]) {
    step("a network of scope global");
    let create = |docker: &Dockerd<'_>| {
        let options = "-d weave --ipam-driver weavemesh --subnet 10.2.9.0/24 global";
        docker.docker(&[&["network", "create"][..], &options.split(' ').collect::<Vec<_>>()].concat())
    };
    let created = dockers.map(create);
    if created.iter().all(Outcome::success) {
        dockers.iter().zip(["g1", "g2"]).for_each(|(docker, name)| run(docker, name, "--net=global"));
        reaches(dockers[0], "g1", &address(dockers[1], "g2", "global"));
        for (docker, name) in dockers.iter().zip(["g1", "g2"]) {
            docker.ok(&["rm", "-f", name]);
            docker.ok(&["network", "rm", "global"]);
        }
    } else {
        assert!(created.iter().all(|c| c.stderr.contains("not a swarm manager")), "{created:?}");
    }
    let address = dockers[0].host().ip().to_string();
    dockers[0].ok(&["swarm", "init", "--advertise-addr", &address]);
    let refused = create(dockers[0]);
    assert!(refused.stderr.contains("not supported in swarm mode"), "{refused}");
    dockers[0].ok(&["swarm", "leave", "--force"]);
}

/// Services of a file of each version in one network.
fn compose(docker: &Dockerd<'_>, dns: &str) {
    let host = docker.host();
    if !host.command(&["sh", "-c", "command -v docker-compose"]).success() {
        eprintln!("SKIPPED: docker-compose is not installed");
        return;
    }
    let server = dns.split_whitespace().next().unwrap_or_default().trim_start_matches("--dns=");
    for version in ["2", "3"] {
        step("a Compose file");
        let service =
            format!("image: ubuntu\n    command: sleep 1000\n    dns: {server}\n    networks: [net]");
        let file = format!(
            "version: '{version}'\nservices:\n  web:\n    {service}\n  db:\n    {service}\nnetworks:\n  net:\n    driver: weavemesh\n    \
             ipam:\n      driver: weavemesh\n      config: [{{subnet: 10.2.8.0/24}}]\n"
        );
        host.sh(&format!(
            "mkdir -p /run/project{version}; echo \"{file}\" > /run/project{version}/docker-compose.yml"
        ));
        let compose = |args: &str| {
            let line = format!("cd /run/project{version} && docker-compose {args} < /dev/null");
            let env = [("DOCKER_HOST", "unix:///run/docker.sock")];
            host.command_with(&env, &["sh", "-c", &line], LONG_TIMEOUT)
        };
        compose("up -d").expect_ok();
        let shown = compose("exec -T web ip -4 -o addr show dev ethwe0").expect_ok();
        assert!(shown.contains("inet 10.2.8."), "{shown}");
        host.wait("web to reach db", LONG_TIMEOUT, || {
            let ping = compose("exec -T web ping -c 1 -W 2 db");
            if ping.success() { Ok(()) } else { Err(ping.to_string()) }
        });
        compose("down -t 0").expect_ok();
    }
}

#[test]
fn restarts_of_daemon_and_docker() {
    restarts(&Topology::hosts(2));
}

#[test]
fn restarts_of_daemon_and_newer_engines() {
    for tree in newer_engines() {
        restarts(&Topology::hosts(2).with_root(&tree));
    }
}

fn restarts(topology: &Topology) {
    let Some(lab) = Lab::start("plugin", topology) else { return };
    let Some(dockers) = start(&lab, &[]) else { return };
    let h1 = lab.host("h1");
    let [d1, d2] = [&dockers[0], &dockers[1]];
    let before = (owned(h1), devices(h1));
    run(d1, "c1", "--net=weave --restart=always");
    run(d2, "c2", "--net=weave");
    let (ip1, ip2) = (address(d1, "c1", "weave"), address(d2, "c2", "weave"));
    reaches(d2, "c2", &ip1);
    let state = (owned(h1), devices(h1));

    let mut seen = BTreeSet::from([ip1.clone(), ip2.clone()]);
    for signal in ["TERM", "KILL"] {
        step("the daemon ends, and the container runs on");
        h1.signal_daemon(signal);
        h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
        launch(h1, &[], &[]);
        assert_eq!((owned(h1), devices(h1)), state);
        reaches(d1, "c1", &ip2);
        let names = h1.weave_ok(&["status", "dns"]);
        assert!(names.contains("c1") && names.contains(&ip1), "{names}");
        let name = format!("after-{signal}").to_lowercase();
        // Its network is known to the new daemon.
        run(d1, &name, "--net=weave");
        assert!(d1.ok(&["exec", &name, "ip", "route"]).contains("224.0.0.0/4"));
        assert!(seen.insert(address(d1, &name, "weave")), "an address is given twice: {seen:?}");
        reaches(d1, &name, &ip2);
        d1.ok(&["rm", "-f", &name]);
        h1.wait("its release", SHORT_TIMEOUT, || owned(h1) == state.0);
        seen.retain(|ip| *ip == ip1 || *ip == ip2);
    }

    step("Docker restarts");
    d1.stop();
    d1.boot();
    h1.wait("the container to run again", LONG_TIMEOUT, || {
        d1.docker(&["inspect", "-f", "{{.State.Running}}", "c1"]).stdout == "true\n"
    });
    reaches(d1, "c1", &ip2);
    let again = address(d1, "c1", "weave");
    reaches(d2, "c2", &again);
    assert_eq!(owned(h1).matches("/12").count(), 1, "{}", owned(h1));
    h1.wait("its name", LONG_TIMEOUT, || h1.weave_ok(&["status", "dns"]).contains(&again));

    step("Docker starts it while no daemon runs, and the daemon later");
    d1.stop();
    h1.signal_daemon("TERM");
    h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    launch(h1, &[], &[]);
    d1.boot();
    h1.wait("the container to reach the other", LONG_TIMEOUT, || ping(d1, "c1", &ip2).success());

    step("the network stays while a container is in it");
    let stopped = h1.weave(&["stop"]);
    let warning = "WARNING: the following containers are still attached to network \"weave\":\n";
    assert!(stopped.success() && stopped.stderr.starts_with(warning), "{stopped}");
    launch(h1, &[], &[]);
    d1.ok(&["rm", "-f", "c1"]);
    nothing_left(h1, &before);
}

#[test]
fn failing_starts_and_wrong_requests() {
    let Some(lab) = Lab::start("plugin", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    let plan = [("WEAVE_FAULT_PLAN", "/var/log/fault.plan")];
    let relaunch = || drop(h1.weave_env(&plan, &["launch", "--no-restart"]).expect_ok());
    relaunch();
    default_network(&docker, "weave");

    step("a failing operation fails the start, and leaves nothing");
    let before = (owned(h1), devices(h1));
    let pending = || h1.sh("ls /run/weave | grep -c pending || true");
    let (mut failed, mut started) = (0, 0);
    for mode in ["5", "kill"] {
        // After a kill Docker waits longer and longer before it asks again.
        let stride = if mode == "kill" && std::env::var_os("WEAVE_LAB_ALL_FAULTS").is_none() { 4 } else { 1 };
        for n in (0..100).step_by(stride) {
            h1.sh(&format!(
                "rm -f /var/log/fault; echo {mode}:create-endpoint:{n}:/var/log/fault > /var/log/fault.plan"
            ));
            let line =
                "docker --host unix:///run/docker.sock run -d --name faulty --net=weave ubuntu sleep 1000";
            let attempt =
                h1.background(&["sh", "-c", &format!("{line} > /run/x 2>&1; echo $? > /run/x.code")], false);
            let attempt = attempt.unwrap();
            let hit = || h1.command(&["cat", "/var/log/fault"]);
            let ended = || h1.sh("cat /run/x.code 2>/dev/null || true");
            // The shell in the background has perhaps not made the files yet.
            let printed = || h1.sh("cat /run/x 2>/dev/null || true");
            if mode == "kill" {
                h1.wait("the end of the daemon or of the start", LONG_TIMEOUT, || {
                    h1.daemon_pid().is_none() || !ended().is_empty()
                });
                h1.sh("rm -f /var/log/fault.plan");
                if h1.daemon_pid().is_none() {
                    // Docker asks again, but without the request's body in version 20.10.
                    relaunch();
                }
            }
            let code = h1.wait("the end of the start", START_TIMEOUT, || {
                let code = ended();
                if code.is_empty() { Err(printed()) } else { Ok(code) }
            });
            drop(attempt);
            let what = format!("{mode} at {n}, {}: {}", hit().stdout, printed());
            // Some operations are not necessary.
            started += usize::from(code == "0\n");
            failed += usize::from(hit().success());
            docker.docker(&["rm", "-f", "faulty"]);
            h1.wait("the state of before", LONG_TIMEOUT, || {
                let now = ((owned(h1), devices(h1)), pending());
                if now.0 == before && now.1 == "0\n" { Ok(()) } else { Err(format!("{what}: {now:?}")) }
            });
            let done = !hit().success();
            h1.sh("rm -f /var/log/fault.plan /run/x.code");
            if done {
                break;
            }
        }
    }
    if failed == 0 {
        let required = std::env::var("WEAVE_LAB_REQUIRED").as_deref() == Ok("1");
        assert!(!required, "the program is built without feature `fault-injection`");
        eprintln!("SKIPPED: the program is built without feature `fault-injection`");
    }
    println!("{failed} operations failed, {started} containers started");
    assert!(started < failed.max(3), "the starts do not fail");

    step("requests that are wrong are refused, and change nothing");
    let pool = "\"PoolID\":\"weave-10.32.0.0/12-10.32.0.0/12\"";
    for (socket, call, body, answer) in [
        (
            "weave",
            "NetworkDriver.CreateNetwork",
            "{",
            "Unable to decode JSON payload: unexpected EOF\n400".to_owned(),
        ),
        (
            "weave",
            "NetworkDriver.Join",
            "{\"NetworkID\":\"nosuch\",\"EndpointID\":\"e1\"}",
            "unable to find network info: Docker does not know it".to_owned(),
        ),
        ("weave", "IpamDriver.RequestPool", "{}", "404 page not found\n404".to_owned()),
        ("weavemesh", "NetworkDriver.DiscoverNew", "{}", "404 page not found\n404".to_owned()),
        (
            "weavemesh",
            "NetworkDriver.CreateEndpoint",
            "{\"EndpointID\":\"../x\",\"Interface\":{}}",
            "is not the id of an endpoint".to_owned(),
        ),
        (
            "weavemesh",
            "IpamDriver.RequestAddress",
            "{\"PoolID\":\"nope\"}",
            "{\"Err\":\"Unrecognized pool ID: nope\",\"Error\":\"Unrecognized pool ID: nope\"}\n500"
                .to_owned(),
        ),
        (
            "weavemesh",
            "IpamDriver.RequestAddress",
            &format!("{{{pool},\"Address\":\"10.9.9.9\"}}"),
            "10.9.9.9 is not in 10.32.0.0/12".to_owned(),
        ),
    ] {
        let said = post(h1, socket, call, body);
        assert!(said.contains(&answer), "{call} {body}: {said}");
    }
    let get = h1.command_ok(&[
        "curl",
        "-sS",
        "--unix-socket",
        &format!("{SOCKETS}/weave.sock"),
        "http://plugin/Plugin.Activate",
    ]);
    assert_eq!(get, "404 page not found\n");
    nothing_left(h1, &before);

    step("sockets of a daemon that was killed are removed");
    h1.signal_daemon("KILL");
    h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    assert_eq!(h1.sh(&format!("ls {SOCKETS}")), "weave.sock\nweavemesh.sock\n");
    launch(h1, &["--plugin=false"], &[]);
    assert_eq!(h1.sh(&format!("ls {SOCKETS} 2>/dev/null || true")), "");
    assert_eq!(h1.report().unwrap()["Plugin"], serde_json::Value::Null);
}

#[test]
fn commands_of_earlier_versions() {
    let Some(lab) = Lab::start("plugin", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    h1.weave(&["launch-router", "--no-restart"]).expect_ok();
    assert_eq!(h1.report().unwrap()["Plugin"], serde_json::Value::Null);
    let explained = |args: &[&str], situation: &str, instead: &str| {
        let said = h1.weave(&[&["launch-plugin"], args].concat());
        assert!(
            said.code == Some(1) && said.stderr.contains(situation) && said.stderr.contains(instead),
            "{said}"
        );
    };
    explained(&["--log-level=debug"], "runs without it", "\nweave stop; weave launch\n");
    let options = ["--mesh-network-name=", "--no-multicast-route"];
    explained(&options, "runs without it", "\nweave stop; weave launch --mesh-network-name=\n");
    explained(
        &options,
        "",
        "docker network create --driver weavemesh --ipam-driver weavemesh --opt works.weave.multicast=false <name>",
    );
    h1.weave_ok(&["stop"]);
    explained(&["--mesh-network-name=n1"], "does not run", "\nweave launch --mesh-network-name=n1\n");

    step("an empty name: no default network; a network without the route for multicast");
    launch(h1, &["--mesh-network-name="], &[]);
    docker.ok(&[
        "network",
        "create",
        "--driver",
        "weavemesh",
        "--ipam-driver",
        "weavemesh",
        "--opt",
        "works.weave.multicast=false",
        "--subnet",
        "10.32.0.0/12",
        "mine",
    ]);
    run(&docker, "c1", "--net=mine");
    run(&docker, "c2", "--net=mine");
    reaches(&docker, "c1", &address(&docker, "c2", "mine"));
    assert!(!docker.ok(&["exec", "c1", "ip", "route"]).contains("224.0.0.0"));
    let networks = docker.ok(&["network", "ls", "--format", "{{.Name}}"]);
    assert!(!networks.lines().any(|name| name == "weave"), "{networks}");
    let nothing = h1.weave(&["launch-plugin", "--log-level=debug"]);
    assert!(
        nothing.success()
            && nothing.stderr.starts_with("Warning: 'weave launch-plugin' does nothing any more"),
        "{nothing}"
    );
    let stopped = h1.weave(&["stop-plugin"]);
    assert!(stopped.success() && stopped.stderr.contains("'weave stop'"), "{stopped}");
    docker.ok(&["rm", "-f", "c1", "c2"]);
    docker.ok(&["network", "rm", "mine"]);

    step("another name, as launch-plugin said");
    h1.weave_ok(&["stop"]);
    launch(h1, &["--mesh-network-name=n1"], &[]);
    default_network(&docker, "n1");
    run(&docker, "c1", "--net=n1");
    assert!(docker.ok(&["exec", "c1", "ip", "route"]).contains("224.0.0.0/4"));
    docker.ok(&["rm", "-f", "c1"]);
    h1.weave_ok(&["stop"]);
    assert!(!docker.docker(&["network", "inspect", "n1"]).success());

    step("sockets of choice, and a plugin that Docker manages");
    let socket = format!("--plugin-socket={SOCKETS}/managed.sock");
    let managed = ["--plugin-v2", "--plugin-v2-multicast", "--plugin-mesh-socket=", &socket];
    launch(h1, &managed, &[]);
    let status = h1.weave_ok(&["status"]);
    assert!(status.contains("Service: plugin (v2)\n"), "{status}");
    assert_eq!(h1.sh(&format!("ls {SOCKETS}")), "managed.sock\n");
    let said = h1.command_ok(&[
        "curl",
        "-sS",
        "--unix-socket",
        &format!("{SOCKETS}/managed.sock"),
        "-d",
        "{\"NetworkID\":\"any\",\"EndpointID\":\"e1\"}",
        "http://plugin/NetworkDriver.Join",
    ]);
    assert!(said.contains("224.0.0.0/4"), "{said}");
    h1.weave_ok(&["stop"]);

    step("the default");
    h1.weave(&["launch", "--no-restart"]).expect_ok();
    default_network(&docker, "weave");
    run(&docker, "c1", "--net=weave");
    run(&docker, "c2", "--net=weave");
    reaches(&docker, "c1", &address(&docker, "c2", "weave"));
    claims(&["I-38"]);
}
