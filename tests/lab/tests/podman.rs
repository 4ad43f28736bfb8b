//! Networks of driver `weave` of a Podman that has netavark.

use std::collections::BTreeSet;
use std::path::Path;

use weave_lab::{Host, Lab, Topology};

use crate::cni_engines::{attached_before_its_program, attached_by_name};
use crate::common::addresses::long_tests_enabled;
use crate::common::cni::{json_of, recorded};
use crate::common::engines::{PING, PODMAN, Podman, address, prepare, reaches, trees};
use crate::common::names::looked_up;
use crate::common::*;

/// A network of its own for each.
const NETWORKS: [&str; 2] = ["-d weave web", "-d weave --subnet 10.32.7.0/24 apart"];
const OPTIONS: [&str; 2] = ["--ipalloc-default-subnet", "10.32.1.0/24"];

/// Creates the networks on a host whose peer runs.
fn create_networks(podman: &Podman<'_>) {
    podman.host().weave_ok(&["setup-podman"]);
    for network in NETWORKS {
        let line = format!("network create {network}");
        podman.ok(&line.split(' ').collect::<Vec<_>>());
    }
}

#[track_caller]
fn ping(podman: &Podman<'_>, from: &str, to: &str) {
    reaches(&format!("{from} to {to}"), || podman.exec(from, &[&PING[..], &[to]].concat()));
}

#[track_caller]
fn no_ping(podman: &Podman<'_>, from: &str, to: &str) {
    let outcome = podman.exec(from, &[&PING[..], &[to]].concat());
    assert!(!outcome.success(), "{from} reaches {to}: {outcome}");
}

/// The address of a container in a network, as Podman shows it.
#[track_caller]
fn shown(podman: &Podman<'_>, container: &str, network: &str) -> String {
    let settings = json_of(&podman.ok(&["inspect", "-f", "{{json .NetworkSettings.Networks}}", container]));
    settings[network]["IPAddress"].as_str().unwrap_or_else(|| panic!("no address: {settings}")).to_owned()
}

/// Owners of addresses without the host's own, and devices.
fn state(host: &Host) -> (Vec<(String, Vec<String>)>, String) {
    let owned = recorded(host).into_iter().filter(|(owner, _)| owner != "weave:expose").collect();
    (owned, host.sh("ip -o link | grep -o 'vethwepl[0-9a-f]*' | sort -u || true"))
}

#[test]
fn networks_of_podman_with_newer_engines() {
    for tree in trees() {
        on_two_hosts(&tree);
    }
}

fn on_two_hosts(tree: &Path) {
    let Some(lab) = Lab::start("podman5", &Topology::hosts(2).with_root(tree)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let _groups = [h1, h2].map(prepare);
    let (Some(one), Some(two)) = (Podman::find(h1, "netavark"), Podman::find(h2, "netavark")) else { return };
    launch_mesh(&lab, &OPTIONS);
    for podman in [&one, &two] {
        create_networks(podman);
    }
    let before = state(h1);

    step("by address and by name, on both hosts");
    one.run("c1", "--network web --network-alias first");
    two.run("c2", "--network web");
    let (ip1, ip2) = (shown(&one, "c1", "web"), shown(&two, "c2", "web"));
    assert!(ip1.starts_with("10.32.1.") && ip2.starts_with("10.32.1.") && ip1 != ip2, "{ip1} {ip2}");
    for to in [&ip2, "c2", "c2.weave.local"] {
        ping(&one, "c1", to);
    }
    for to in [&ip1, "c1", "first"] {
        ping(&two, "c2", to);
    }
    let bare = h2.container("bare");
    bare.attach(&[]);
    bare.reaches(&ip1, SHORT_TIMEOUT);

    step("a subnet of its own is apart; several networks, also while it runs");
    one.run("a1", "--network apart");
    two.run("a2", "--network apart --network web");
    let apart = shown(&two, "a2", "apart");
    assert!(apart.starts_with("10.32.7."), "{apart}");
    ping(&one, "a1", &apart);
    ping(&one, "c1", &shown(&two, "a2", "web"));
    no_ping(&one, "a1", &ip2);
    no_ping(&two, "c2", &shown(&one, "a1", "apart"));
    // The host is not in that subnet, so it is no next hop.
    assert!(!one.exec("a1", &["ip", "route"]).expect_ok().contains("default"));
    one.ok(&["network", "connect", "apart", "c1"]);
    for to in [&apart, "c2"] {
        ping(&one, "c1", to);
    }
    one.ok(&["network", "disconnect", "apart", "c1"]);
    let devices = one.exec("c1", &["ip", "-o", "link"]).expect_ok();
    assert_eq!(devices.lines().count(), 2, "{devices}");
    ping(&one, "c1", &ip2);

    step("an address of choice, once");
    one.run("fixed", "--network apart --ip 10.32.7.99");
    ping(&two, "a2", "10.32.7.99");
    for (podman, name) in [(&one, "second"), (&two, "third")] {
        let owned = state(podman.host());
        let refused = podman.try_run(name, "--network apart --ip 10.32.7.99");
        assert!(!refused.success() && refused.stderr.contains("10.32.7.99"), "{refused}");
        assert_eq!(state(podman.host()), owned);
        podman.remove(name);
    }
    for wrong in
        ["--ipv6", "--subnet 10.32.8.0/24 --ip-range 10.32.8.0/28", "--ipam-driver dhcp", "-o vlan=7"]
    {
        let line = format!("network create -d weave {wrong} wrong");
        let refused = one.podman(&line.split(' ').collect::<Vec<_>>());
        assert!(!refused.success() && refused.stderr.contains("weave"), "{refused}");
    }

    step("restarts of the daemon, of its host's Podman and of the container");
    let owned = state(h1);
    for signal in ["TERM", "KILL"] {
        one.run("lost", "--network web");
        h1.signal_daemon(signal);
        h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
        let refused = one.try_run("early", "--network web");
        assert!(!refused.success() && refused.stderr.contains("weave is not running"), "{refused}");
        one.remove("early");
        // Podman removes it nevertheless, and does not ask again.
        let removed = one.podman(&["rm", "-f", "-t", "0", "lost"]);
        assert!(removed.stderr.contains("weave is not running"), "{removed}");
        launch(h1, &OPTIONS, &["h2"]);
        assert_eq!(state(h1), owned);
        ping(&one, "c1", &ip2);
        ping(&two, "c2", &ip1);
    }
    for _ in 0..2 {
        drop(one.serve());
        ping(&one, "c1", &ip2);
    }
    one.ok(&["restart", "-t", "0", "c1"]);
    let again = shown(&one, "c1", "web");
    ping(&two, "c2", &again);
    looked_up(h2, "c1", &[&again]);

    step("attached by name, by Docker's API of Podman");
    let service = one.serve();
    attached_by_name(&one);

    step("attached by a hook");
    attached_before_its_program(&one);

    step("weave run with its API");
    one.import_image("busybox");
    let group = one.group();
    let line =
        format!("run 10.2.1.9/24 --name ran --network none --cgroup-parent {group} busybox /bin/sleep 1000");
    let docker_host = [("DOCKER_HOST", "unix:///run/podman/podman.sock")];
    h1.weave_env(&docker_host, &line.split(' ').collect::<Vec<_>>()).expect_ok();
    let inside = one.exec("ran", &["ip", "addr", "show", "ethwe"]).expect_ok();
    assert!(inside.contains("inet 10.2.1.9/24"), "{inside}");
    looked_up(h1, "ran", &["10.2.1.9"]);
    h1.weave_ok(&["detach", "10.2.1.9/24", "ran"]);
    drop(service);

    step("the host joins the subnet; ports are published by another network");
    h1.weave_ok(&["expose", "net:10.32.7.0/24"]);
    one.run("a3", "--network apart");
    assert!(one.exec("a3", &["ip", "route"]).expect_ok().contains("default"));
    ping(&one, "a3", "fixed");
    one.run("web", "--network web --network podman -p 8080:80");
    one.exec("web", &["busybox", "httpd", "-p", "80"]).expect_ok();
    let served = h1.command(&["curl", "-sS", "-m", "9", "-o", "/dev/null", "http://198.18.0.1:8080/"]);
    assert!(served.success(), "{served}");
    ping(&one, "web", &ip2);

    step("many at a time have different addresses");
    let count = if long_tests_enabled() { 50 } else { 5 };
    let line = format!(
        "for i in $(seq {count}); do {PODMAN} {} > /dev/null & done; wait",
        one.run_arguments("m$i", "--network web")
    );
    h1.command_with(&[], &["sh", "-c", &line], 4 * LONG_TIMEOUT).expect_ok();
    let addresses: BTreeSet<_> = (1..=count).map(|n| shown(&one, &format!("m{n}"), "web")).collect();
    assert_eq!(addresses.len(), count, "{addresses:?}");
    let owned: BTreeSet<_> = state(h1).0.into_iter().flat_map(|(_, addrs)| addrs).collect();
    assert!(addresses.iter().all(|ip| owned.contains(&format!("{ip}/24"))), "{addresses:?} {owned:?}");

    step("removed");
    one.ok(&["rm", "-f", "-t", "0", "-a"]);
    assert_eq!(state(h1), before);
    looked_up(h2, "c1", &[]);
    one.ok(&["network", "rm", "web", "apart"]);
    h1.weave_ok(&["setup-podman", "--undo"]);
    let refused = one.podman(&["network", "create", "-d", "weave", "late"]);
    assert!(!refused.success() && refused.stderr.contains("weave"), "{refused}");
}

/// The daemon is killed, or the host refuses, at each operation of a start.
#[test]
fn failing_starts_of_podman_with_newer_engines() {
    const PLAN: &str = "/var/log/fault.plan";
    const HIT: &str = "/var/log/fault";
    for tree in trees() {
        let Some(lab) = Lab::start("podmanf", &Topology::hosts(1).with_root(&tree)) else { return };
        let h1 = lab.host("h1");
        let _groups = prepare(h1);
        let Some(podman) = Podman::find(h1, "netavark") else { continue };
        let relaunch =
            || h1.weave_env(&[("WEAVE_FAULT_PLAN", PLAN)], &["launch", "--no-restart"]).expect_ok();
        relaunch();
        create_networks(&podman);
        podman.run("first", "--network web");
        podman.remove("first");
        let before = state(h1);
        for mode in ["5", "kill"] {
            let mut tried = 0;
            let stride = if long_tests_enabled() { 1 } else { 6 };
            for n in (0..).step_by(stride) {
                h1.sh(&format!("echo {mode}:interface:{n}:{HIT} > {PLAN}"));
                let outcome = podman.try_run("faulty", "--network web");
                let hit = h1.sh(&format!("cat {HIT} 2>/dev/null || true; rm -f {HIT} {PLAN}"));
                if mode == "kill" && !hit.is_empty() {
                    relaunch();
                }
                let address = address(h1, outcome.stdout.trim());
                assert!(outcome.success() == address.is_some(), "{mode} at {n}: {hit}\n{outcome}");
                podman.podman(&["rm", "-f", "-t", "0", "faulty"]);
                h1.wait("the state of before", SHORT_TIMEOUT, || {
                    let now = state(h1);
                    if now == before {
                        Ok(())
                    } else {
                        Err(format!("{now:?} {mode} at {n}: {hit}\n{outcome}"))
                    }
                });
                if hit.is_empty() {
                    break;
                }
                tried += 1;
            }
            println!("{mode}: {tried} operations");
            assert!(tried > 0, "the program is built without feature `fault-injection`");
        }
    }
}
