//! Addresses of Docker's containers. The daemon follows Docker's events; at its start it checks which containers run.

use weave_lab::docker::Dockerd;
use weave_lab::{Lab, Topology};

use crate::common::addresses::*;
use crate::common::*;

#[test]
fn addresses_of_ended_containers_are_released() {
    let Some(lab) = Lab::start("ends", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start(h1) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    launch(h1, &[], &[]);
    // An empty image, and the programs of the machine.
    h1.sh("tar -cf - --files-from /dev/null | docker --host unix:///run/docker.sock import - nothing");
    let run = |name: &str, command: &[&str]| {
        let mut argv = vec!["run", "-d", "--name", name, "--network", "none"];
        argv.extend([
            "-v",
            "/usr:/usr:ro",
            "-v",
            "/bin:/bin:ro",
            "-v",
            "/lib:/lib:ro",
            "-v",
            "/lib64:/lib64:ro",
        ]);
        argv.push("nothing");
        argv.extend(command);
        docker.ok(&argv)
    };
    let names = ["killed", "removed", "shot", "lives"];
    let mut ids = Vec::new();
    for name in names {
        ids.push(run(name, &["/bin/sleep", "1000"]));
    }
    let id = |name: &str| ids[names.iter().position(|n| *n == name).unwrap()].clone();
    let attach = |name: &str| h1.weave_ok(&["attach", name]);
    let ips: Vec<String> = names.iter().map(|name| attach(name)).collect();
    let ip = |name: &str| ips[names.iter().position(|n| *n == name).unwrap()].clone();
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    assert!(names.iter().all(|name| owned().contains(&id(name))), "{}", owned());

    step("the address of a removed container can be given to the next one");
    for name in ["first", "second", "third"] {
        run(name, &["/bin/sleep", "1000"]);
        h1.wait("its address", SHORT_TIMEOUT, || {
            let outcome = h1.weave(&["attach", "10.2.1.4/24", name]);
            if outcome.success() { Ok(()) } else { Err(outcome.to_string()) }
        });
        docker.ok(&["rm", "-f", name]);
    }

    h1.weave_ok(&["stop"]);
    docker.ok(&["kill", "killed"]);
    docker.ok(&["rm", "-f", "removed"]);
    let pid = docker.ok(&["inspect", "--format", "{{.State.Pid}}", "shot"]);
    h1.command_ok(&["kill", "-9", &pid]);
    h1.wait("Docker to notice", SHORT_TIMEOUT, || {
        docker.ok(&["inspect", "--format", "{{.State.Running}}", "shot"]) == "false"
    });
    launch(h1, &[], &[]);
    // At once, or 30 s later if Docker was slow to answer when the daemon started.
    h1.wait("the release of their addresses", LONG_TIMEOUT, || {
        let owned = owned();
        if ["killed", "removed", "shot"].iter().any(|name| owned.contains(&id(name))) {
            Err(owned)
        } else {
            Ok(())
        }
    });
    assert_eq!(attach("lives"), ip("lives"), "{}", owned());
    let (_c, again) = allocated_container(h1, "c");
    assert_eq!(format!("{again}\n"), ip("killed"), "the lowest free address is given out again");

    step("without Docker nothing is released");
    h1.weave_ok(&["stop"]);
    docker.ok(&["rm", "-f", "lives"]);
    launch(h1, &["--docker-api", ""], &[]);
    assert!(owned().contains(&id("lives")), "{}", owned());
    let cidr = format!("{}/12", ip("lives").trim());
    let unknown = h1.weave(&["detach", &cidr, "lives"]);
    assert!(
        unknown.stderr.contains(&format!("'weave detach {cidr} {}' releases it", id("lives"))),
        "{unknown}"
    );
    assert_eq!(h1.weave_ok(&["detach", &id("lives")[..12]]), ip("lives"));
    assert!(!owned().contains(&id("lives")), "{}", owned());
}
