//! `docker run --runtime weave`: containers are attached before their program starts.

use weave_lab::docker::{Dockerd, newer_engines};
use weave_lab::{Lab, Topology};

use crate::common::names::looked_up;
use crate::common::*;

const CONFIG_FILE: &str = Dockerd::CONFIG_FILE;

/// `docker run` with our runtime.
fn run_args<'a>(cidr: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--runtime", "weave", "-e", cidr][..], more].concat()
}

#[test]
fn the_first_instruction_has_the_network() {
    first_instruction(&Topology::hosts(1));
}

#[test]
fn the_first_instruction_has_the_network_with_newer_engines() {
    for tree in newer_engines() {
        first_instruction(&Topology::hosts(1).with_root(&tree));
    }
}

fn first_instruction(topology: &Topology) {
    let Some(lab) = Lab::start("oci", topology) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start_with_bridge(h1) else { return };
    docker.import_image("ubuntu");
    launch(h1, &[], &[]);
    let setup =
        |more: &[&str]| h1.weave_ok(&[&["setup-docker", "--config-file", CONFIG_FILE], more].concat());
    h1.sh(&format!("echo '{{\"max-concurrent-downloads\": 7}}' > {CONFIG_FILE}"));
    let said = setup(&[]);
    assert!(
        said.contains("added \"runtimes\": {\"weave\": ") && said.contains("Docker has read it"),
        "{said}"
    );
    let config = h1.command_ok(&["cat", CONFIG_FILE]);
    assert!(config.contains("\"max-concurrent-downloads\": 7"), "{config}");
    assert_eq!(setup(&[]), format!("{CONFIG_FILE} has the runtime already\n"));

    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    let show = ["ubuntu", "ip", "-o", "-4", "addr", "show", "dev", "ethwe"];
    let shown = docker.ok(&run_args("WEAVE_CIDR=10.2.1.9/24 net:default", &[&["--rm"], &show[..]].concat()));
    assert!(shown.contains("inet 10.2.1.9/24") && shown.contains("/12 "), "{shown}");
    let allocated = docker.ok(&run_args("A=b", &[&["--rm"], &show[..]].concat()));
    assert!(allocated.contains("/12 ") && allocated.lines().count() == 1, "{allocated}");
    let none = docker.docker(&run_args("WEAVE_CIDR=none", &[&["--rm"], &show[..]].concat()));
    assert!(!none.success() && none.stderr.contains("ethwe"), "{none}");
    let host_network = docker.ok(&run_args("A=b", &["--rm", "--net", "host", "ubuntu", "ip", "-o", "link"]));
    assert!(host_network.contains(": weave:"), "{host_network}");

    step("names, restarts, commands of weave");
    let dns = h1.weave_ok(&["dns-args"]);
    let dns: Vec<&str> = dns.split(' ').collect();
    let script = "ip -o -4 addr show dev ethwe; sleep 1000";
    for (name, cidr) in [("web", "WEAVE_CIDR=10.2.1.1/24"), ("client", "WEAVE_CIDR=10.2.1.2/24")] {
        let fqdn = format!("{name}.weave.local");
        let options = ["-d", "--restart", "always", "--name", name, "-h", &fqdn];
        docker.ok(&run_args(cidr, &[&options[..], &dns, &["ubuntu", "sh", "-c", script]].concat()));
    }
    looked_up(h1, "web", &["10.2.1.1"]);
    docker.ok(&["exec", "client", "ping", "-c", "1", "-W", "5", "web"]);
    let pid = docker.ok(&["inspect", "-f", "{{.State.Pid}}", "web"]);
    h1.command_ok(&["kill", "-9", &pid]);
    h1.wait("the second start", LONG_TIMEOUT, || {
        let log = docker.ok(&["logs", "web"]);
        if log.matches("10.2.1.1/24").count() == 2 { Ok(()) } else { Err(log) }
    });
    looked_up(h1, "web", &["10.2.1.1"]);
    docker.ok(&["exec", "client", "ping", "-c", "1", "-W", "5", "web"]);
    assert!(h1.weave_ok(&["ps", "web"]).ends_with(" 10.2.1.1/24\n"));

    step("what cannot be attached does not start");
    let before = owned();
    for (cidr, text) in [
        ("WEAVE_CIDR=10.2.1.1/24", "10.2.1.1"),
        ("WEAVE_CIDR=10.2.1.5/24 nonsense", "'nonsense' is no address"),
        ("WEAVE_CIDR=10.2.1.255/24", "broadcast address"),
    ] {
        let refused = docker.docker(&run_args(cidr, &["--rm", "ubuntu", "sleep", "1000"]));
        assert!(!refused.success() && refused.stderr.contains(text), "{refused}");
    }
    let missing = docker.docker(&run_args("WEAVE_CIDR=10.2.1.6/24", &["--rm", "ubuntu", "/no/such/program"]));
    assert!(missing.code == Some(127) && missing.stderr.contains("no such file"), "{missing}");
    h1.wait(
        "the addresses of before",
        LONG_TIMEOUT,
        || if owned() == before { Ok(()) } else { Err(owned()) },
    );

    let options = ["-d", "--name", "broken", "ubuntu", "/no/such/program"];
    let missing = docker.docker(&run_args("WEAVE_CIDR=10.2.1.6/24", &options));
    assert!(missing.code == Some(127) && owned().contains("10.2.1.6/24"), "{missing}: {}", owned());
    docker.ok(&["rm", "broken"]);
    h1.wait(
        "the addresses of before",
        LONG_TIMEOUT,
        || if owned() == before { Ok(()) } else { Err(owned()) },
    );
    let files = docker.ok(&["exec", "web", "cat", "/etc/hosts", "/etc/resolv.conf"]);
    assert!(files.contains("\tweb.weave.local web\n") && files.contains("nameserver 172.17.0.1"), "{files}");

    step("without a daemon");
    h1.weave_ok(&["stop"]);
    let refused = docker.docker(&run_args("A=b", &["--rm", "ubuntu", "sleep", "1000"]));
    assert!(!refused.success() && refused.stderr.contains("weave is not running"), "{refused}");
    docker.ok(&["restart", "-t", "0", "web"]);
    launch(h1, &[], &[]);
    h1.wait("web to be attached", LONG_TIMEOUT, || {
        let line = h1.weave_ok(&["ps", "web"]);
        if line.ends_with(" 10.2.1.1/24\n") { Ok(()) } else { Err(line) }
    });

    let said = setup(&["--undo"]);
    assert!(said.contains("removed \"weave\" from \"runtimes\""), "{said}");
    let config = h1.command_ok(&["cat", CONFIG_FILE]);
    assert!(config.contains("\"max-concurrent-downloads\": 7") && !config.contains("runtimes"), "{config}");
}
