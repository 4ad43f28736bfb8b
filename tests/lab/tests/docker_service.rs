//! The peer as a Docker container named `weave` that contains the static program only, with a real Docker daemon.

use weave_lab::docker::{Dockerd, static_binary};
use weave_lab::{Host, Lab, Outcome, Topology, claims};

use crate::common::*;

weave_lab::claims!("S-4", "A-2", "A-10");

const ENV: [(&str, &str); 1] = [("DOCKER_HOST", "unix:///run/docker.sock")];

/// Runs the static program.
fn weave(host: &Host, program: &str, args: &[&str]) -> Outcome {
    let mut argv = vec![program];
    argv.extend(args);
    host.command_with(&ENV, &argv, LONG_TIMEOUT)
}

fn targets(host: &Host) -> Vec<String> {
    host.weave_ok(&["status", "targets"]).lines().map(str::to_owned).collect()
}

fn name(host: &Host) -> String {
    host.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned()
}

/// Waits until a daemon other than `old` answers.
fn another(host: &Host, old: i32) -> i32 {
    host.wait("the next daemon", LONG_TIMEOUT, || match host.daemon_pid() {
        Some(pid) if pid != old && host.weave(&["status"]).success() => Some(pid),
        _ => None,
    })
}

#[test]
fn docker_commands_manage_the_peer() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("container", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let before = h1.command_ok(&["ip", "-o", "link"]);
    let Some(docker) = Dockerd::start(h1) else { return };
    let launch = |args: &[&str]| weave(h1, &program, &[&["launch"], args].concat());

    let outcome = launch(&["--password=wEaVe-secret", "192.0.2.1"]);
    let id = docker.ok(&["inspect", "--format", "{{.Id}}", "weave"]);
    assert_eq!((outcome.code, outcome.stdout, outcome.stderr), (Some(0), format!("{id}\n"), String::new()));
    assert!(docker.ok(&["ps"]).contains(" weave"));
    let described = docker.ok(&["inspect", "weave"]);
    assert!(!described.contains("wEaVe-secret"), "{described}");
    assert!(
        docker.ok(&[
            "inspect",
            "--format",
            "{{.HostConfig.RestartPolicy.Name}} {{.HostConfig.Privileged}}",
            "weave"
        ]) == "always false"
    );
    assert_eq!(h1.sh("stat -c %a:%u /var/lib/weave/password").trim(), "600:0");
    assert_eq!(h1.report().unwrap()["Router"]["Encryption"], true);
    let logs = docker.docker(&["logs", "weave"]);
    assert!(logs.stderr.contains("Our name is "), "{logs}");
    assert!(h1.command(&["ls", "/var/log/weave.log"]).code != Some(0), "the log is Docker's");

    step("the container works on files, devices and namespaces of the host");
    let c = h1.container("c");
    c.attach(&["10.2.1.1/24"]);
    assert!(h1.command_ok(&["ip", "-o", "link"]).contains(" weave:"));
    let second = launch(&[]);
    assert_eq!(
        (second.code, second.stderr.as_str()),
        (Some(3), "weave is already running; you can stop it with 'weave stop'.\n")
    );

    step("Docker restarts the container, and peers added since the launch are kept");
    h1.weave_ok(&["connect", "192.0.2.2"]);
    let stored = ["192.0.2.1", "192.0.2.2"];
    let mut pid = h1.daemon_pid().unwrap();
    h1.signal_daemon("KILL");
    pid = another(h1, pid);
    assert_eq!(targets(h1), stored);
    docker.ok(&["restart", "weave"]);
    pid = another(h1, pid);
    assert_eq!(targets(h1), stored);
    docker.ok(&["kill", "weave"]);
    h1.wait("its end", SHORT_TIMEOUT, || h1.daemon_pid().is_none());
    docker.ok(&["start", "weave"]);
    pid = another(h1, pid);
    assert_eq!(targets(h1), stored);
    docker.stop();
    docker.boot();
    another(h1, pid);
    assert_eq!(targets(h1), stored);
    assert!(c.has_interface());

    docker.ok(&["pause", "weave"]);
    let paused = launch(&[]);
    assert_ne!(paused.code, Some(0), "{paused}");
    docker.ok(&["unpause", "weave"]);
    weave(h1, &program, &["stop"]).expect_ok();
    assert!(h1.daemon_pid().is_none() && c.has_interface());
    let again = weave(h1, &program, &["stop"]);
    assert_eq!(
        (again.code, again.stderr.as_str()),
        (Some(0), "Weave is not running (ignore on Kubernetes).\n")
    );
    step("reset of a stopped peer says that it could not leave the cluster");
    let reset = weave(h1, &program, &["reset"]);
    assert!(
        reset.code == Some(1)
            && reset.stderr.contains("ERROR: weave is not running; unable to remove from cluster."),
        "{reset}"
    );
    step("launch makes a new container from the existing image");
    let images = docker.ok(&["images", "-q"]);
    launch(&["192.0.2.3"]).expect_ok();
    assert_eq!(targets(h1), ["192.0.2.3"]);
    assert_ne!(docker.ok(&["inspect", "--format", "{{.Id}}", "weave"]), id);
    assert_eq!(docker.ok(&["images", "-q"]), images);

    step("a launch that fails removes its container and says why");
    weave(h1, &program, &["stop"]).expect_ok();
    let busy = h1.background(&["python3", "-c", "import socket,sys; s=socket.socket(); s.bind(('',6783)); s.listen(); print('ready',flush=True); sys.stdin.read()"], true).unwrap();
    let failed = launch(&[]);
    assert!(failed.code == Some(1) && failed.stderr.contains("port 6783"), "{failed}");
    assert_ne!(docker.docker(&["inspect", "weave"]).code, Some(0));
    drop(busy);

    step("reset removes the containers of 2.8.1 and no others");
    launch(&[]).expect_ok();
    let image = docker.ok(&["inspect", "--format", "{{.Config.Image}}", "weave"]);
    docker.ok(&["create", "--name", "weavedb", "--label", "weavevolumes", "-v", "/weavedb", &image]);
    docker.ok(&["create", "--name", "other", "-v", "/data", &image]);
    let listed = weave(h1, &program, &["reset", "--dry-run"]).expect_ok();
    for thing in
        ["container weave and", "container weavedb and", "file /var/lib/weave/peer.json", "device weave\n"]
    {
        assert!(listed.contains(thing), "{thing} in\n{listed}");
    }
    assert!(!listed.contains("container other"), "{listed}");
    docker.ok(&["rm", "-v", "other"]);
    assert!(weave(h1, &program, &["reset", "--dry-run"]).expect_ok().contains(&format!("image {image}")));
    weave(h1, &program, &["reset"]).expect_ok();
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
    assert_eq!(docker.ok(&["images", "-q"]), "");
    assert_eq!(docker.ok(&["volume", "ls", "-q"]), "");
    assert_eq!(h1.sh("ls -d /run/weave /var/lib/weave 2>/dev/null || true").trim(), "");
    let links = |text: String| {
        text.lines().filter_map(|l| l.split(' ').nth(1).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(links(h1.command_ok(&["ip", "-o", "link"])), links(before));
    weave(h1, &program, &["reset"]).expect_ok();
}

#[test]
fn the_image_is_the_program_and_nothing_else() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("image", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start(h1) else { return };
    weave(h1, &program, &["launch"]).expect_ok();
    let image = docker.ok(&["inspect", "--format", "{{.Config.Image}}", "weave"]);
    let pid = h1.daemon_pid().unwrap();
    let found = h1.sh(&format!(
        "mkdir /run/saved; cd /run/saved; docker --host unix:///run/docker.sock save {image} | tar -x; \
         find . -name layer.tar -exec tar -tf {{}} \\;; \
         find . -name layer.tar -exec tar -xOf {{}} \\; | sha256sum; sha256sum < {program}; sha256sum < /proc/{pid}/exe"
    ));
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines.len(), 4, "one file, and what it is, what was launched and what runs: {found}");
    assert!(lines[1] == lines[2] && lines[1] == lines[3], "{found}");
    weave(h1, &program, &["stop"]).expect_ok();
}

#[test]
fn documented_unit_and_conflicting_containers() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("unit", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start(h1) else { return };

    step("the documented unit: ExecStartPre, ExecStart, ExecStop");
    let mut env = ENV.to_vec();
    env.push(("WEAVE_PASSWORD", "from-the-file"));
    let outcome = h1.command_with(&env, &[&program, "launch", "--no-restart", "192.0.2.1"], LONG_TIMEOUT);
    assert!(outcome.success(), "{outcome}");
    assert_eq!(h1.report().unwrap()["Router"]["Encryption"], true);
    assert_eq!(docker.ok(&["inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", "weave"]), "no");
    let mut attached = h1
        .background(&["docker", "--host", "unix:///run/docker.sock", "attach", "--no-stdin", "weave"], false)
        .unwrap();
    h1.weave_ok(&["connect", "192.0.2.2"]);
    assert!(attached.running());
    weave(h1, &program, &["stop"]).expect_ok();
    h1.wait("the end of docker attach", SHORT_TIMEOUT, || !attached.running());
    claims(&["A-10"]);

    step("with --no-restart it stays down after a crash and a reboot");
    weave(h1, &program, &["launch", "--no-restart"]).expect_ok();
    h1.signal_daemon("KILL");
    h1.wait("Docker to notice", SHORT_TIMEOUT, || {
        docker.ok(&["inspect", "--format", "{{.State.Status}}", "weave"]) == "exited"
    });
    h1.reboot();
    docker.boot();
    assert_eq!(docker.ok(&["inspect", "--format", "{{.State.Status}}", "weave"]), "exited");
    let status = h1.weave(&["status"]);
    assert!(!status.success() && status.stderr.contains("not running"), "{status}");
    claims(&["A-2"]);

    step("other containers with the same name");
    let image = docker.ok(&["inspect", "--format", "{{.Config.Image}}", "weave"]);
    weave(h1, &program, &["launch"]).expect_ok();
    weave(h1, &program, &["stop"]).expect_ok();
    docker.ok(&["rm", "weave"]);
    docker.ok(&["tag", &image, "somebody/else:1"]);
    docker.ok(&["create", "--name", "weave", "somebody/else:1"]);
    let foreign = weave(h1, &program, &["launch"]);
    assert_eq!(
        (foreign.code, foreign.stderr.as_str()),
        (Some(2), "Found another container named 'weave'. Aborting.\n")
    );
    assert_eq!(h1.sh("ls -A /run/weave 2>/dev/null || true").trim(), "");
    let named =
        h1.command_with(&[ENV[0], ("WEAVE_CONTAINER_NAME", "net")], &[&program, "launch"], LONG_TIMEOUT);
    assert!(named.success(), "{named}");
    assert!(docker.ok(&["ps", "--format", "{{.Names}}"]) == "net");
    let stopped =
        h1.command_with(&[ENV[0], ("WEAVE_CONTAINER_NAME", "net")], &[&program, "stop"], LONG_TIMEOUT);
    assert!(stopped.success() && h1.daemon_pid().is_none(), "{stopped}");
    docker.ok(&["rm", "weave"]);
    docker.ok(&["create", "--name", "weave", &image]);
    let created = weave(h1, &program, &["launch"]);
    assert_eq!(
        (created.code, created.stderr.as_str()),
        (Some(1), "weave is created, paused, or restarting; you can stop it with 'weave stop'.\n")
    );

    step("a container of 2.8.1 is renamed, disabled, and handed back");
    docker.ok(&["rm", "weave"]);
    docker.ok(&["tag", &image, "weaveworks/weave:2.8.1"]);
    let original =
        docker.ok(&["create", "--name", "weave", "--restart", "always", "weaveworks/weave:2.8.1", "help"]);
    let over = weave(h1, &program, &["launch"]);
    assert!(over.success() && over.stderr.contains("will not be started by Docker any more"), "{over}");
    assert_eq!(docker.ok(&["inspect", "--format", "{{.Id}}", "weave-original"]), original);
    weave(h1, &program, &["stop", "--hand-back"]).expect_ok();
    assert_eq!(docker.ok(&["inspect", "--format", "{{.Id}}", "weave"]), original);

    step("a program that is not static cannot run as a container");
    docker.ok(&["rm", "weave"]);
    let refused = h1.weave_env(&ENV, &["launch", "--service", "docker"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("make static"), "{refused}");
    let other = h1.weave_env(&ENV, &["launch"]);
    assert!(other.success() && other.stderr.contains("make static"), "{other}");
    h1.weave_env(&ENV, &["stop"]).expect_ok();
}

#[test]
fn peers_reconnect_after_a_reboot() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("reboot", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let (Some(d1), Some(d2)) = (Dockerd::start(h1), Dockerd::start(h2)) else { return };
    weave(h1, &program, &["launch", "--password", "p"]).expect_ok();
    weave(h2, &program, &["launch", "--password", "p", "h1"]).expect_ok();
    h1.wait_established(1, LONG_TIMEOUT);
    h1.weave_ok(&["connect", "h2"]);
    let members = attach_each(&[h1, h2]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    let names = [name(h1), name(h2)];

    step("both hosts reboot and only Docker is started");
    h1.reboot();
    h2.reboot();
    d1.boot();
    d2.boot();
    for host in [h1, h2] {
        host.wait("the peer", LONG_TIMEOUT, || {
            host.daemon_pid().is_some() && host.weave(&["status"]).success()
        });
        host.wait_established(1, LONG_TIMEOUT);
    }
    assert_eq!([name(h1), name(h2)], names);
    assert_eq!((targets(h1), targets(h2)), (vec!["h2".to_owned()], vec!["h1".to_owned()]));
    // A target that refused while its host was booting is listed as failed until it is dialled again.
    h1.wait("only the encrypted connection", SHORT_TIMEOUT, || {
        h1.connections().iter().all(|c| c.info.starts_with("encrypted"))
    });
    let [a, b] = [(h1, "10.2.1.11"), (h2, "10.2.1.12")].map(|(host, ip)| {
        let container = host.container("again");
        container.attach(&[&format!("{ip}/24")]);
        container
    });
    a.reaches("10.2.1.12", SHORT_TIMEOUT);
    drop(b);
    claims(&["S-4"]);
}

/// 2.8.1 keeps its database in the volume of the container `weavedb`; Docker starts the container of its daemon at boot.
#[test]
fn container_of_2_8_1_is_taken_over_and_handed_back() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("volume", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let Some(docker) = Dockerd::start(h1) else { return };
    let sample = include_bytes!("../../vectors/ipam/sample-weavedata.db");
    let bridge = "8a:3e:3e:3e:3e:02";
    // A `sleep` with name and path of the daemon of 2.8.1 stands for it; the container has the libraries of the host.
    h1.sh(&format!(
        "ip link add weave type bridge; ip link set weave address {bridge} up; \
         mkdir -p /run/image/home/weave /run/image/usr; cd /run/image; cp $(which sleep) home/weave/weaver; \
         for l in lib lib64; do ln -s usr/$l $l; done; \
         tar -c . | docker --host unix:///run/docker.sock import - weaveworks/weave:2.8.1; rm -r /run/image"
    ));
    let image = "weaveworks/weave:2.8.1";
    let create = ["create", "--name", "weavedb", "--label", "weavevolumes", "-v", "/weavedb", image, "/none"];
    docker.ok(&create);
    let volume = docker.ok(&["inspect", "--format", "{{(index .Mounts 0).Source}}", "weavedb"]);
    let file = format!("{volume}/weavedata.db");
    let on_disk = h1.disk(file.trim_start_matches("/var/"));
    std::fs::write(&on_disk, b"damaged").unwrap();
    let run =
        "run -d --name weave --restart always --net host --pid host -v /usr:/usr:ro --volumes-from weavedb";
    let run: Vec<&str> = run.split(' ').chain([image, "/home/weave/weaver", "600"]).collect();
    let original = docker.ok(&run);
    let inspect = |what: &str, name: &str| docker.ok(&["inspect", "--format", what, name]);
    let policy = "{{.State.Running}} {{.HostConfig.RestartPolicy.Name}}";

    let refused = weave(h1, &program, &["launch"]);
    assert!(refused.code == Some(3) && refused.stderr.contains("(container weave, process "), "{refused}");
    let damaged = weave(h1, &program, &["launch", "--take-over"]);
    assert!(damaged.code == Some(1) && damaged.stderr.contains(&file), "{damaged}");
    assert_eq!(inspect(policy, "weave"), "true always", "not touched");

    step("if our daemon cannot start, 2.8.1 keeps running");
    std::fs::write(&on_disk, sample).unwrap();
    let busy = h1.background(&["python3", "-c", "import socket,sys; s=socket.socket(); s.bind(('',6783)); s.listen(); print('ready',flush=True); sys.stdin.read()"], true).unwrap();
    let take_over = ["launch", "--take-over", "--ipalloc-range", "10.2.0.0/24"];
    let failed = weave(h1, &program, &take_over);
    assert!(failed.code == Some(1) && failed.stderr.contains("port 6783"), "{failed}");
    assert_eq!(
        (inspect("{{.Id}}", "weave"), inspect(policy, "weave")),
        (original.clone(), "true always".into())
    );
    drop(busy);

    let taken = weave(h1, &program, &take_over);
    assert!(
        taken.success() && taken.stderr.contains("stopped the original Weave Net (container weave"),
        "{taken}"
    );
    assert_eq!(taken.stdout.trim(), inspect("{{.Id}}", "weave"));
    let aside = (inspect("{{.Id}}", "weave-original"), inspect(policy, "weave-original"));
    assert_eq!(aside, (original.clone(), "false no".into()));
    assert_eq!((name(h1), targets(h1)), (bridge.into(), vec!["10.0.0.1".into(), "10.0.0.2:6783".into()]));
    let logs = docker.docker(&["logs", "weave"]);
    assert!(logs.stderr.contains(&file), "{logs}");
    assert!(std::fs::read(&on_disk).unwrap() == sample, "only read");

    step("after a reboot only our container runs, and the database is not read again");
    h1.weave_ok(&["forget", "10.0.0.1"]);
    h1.reboot();
    docker.boot();
    h1.wait("the peer", LONG_TIMEOUT, || h1.daemon_pid().is_some() && h1.weave(&["status"]).success());
    assert_eq!(targets(h1), ["10.0.0.2:6783"]);
    assert_eq!(inspect(policy, "weave-original"), "false no");

    step("handed back: the outdated database is renamed, and the container of 2.8.1 has its name again");
    weave(h1, &program, &["stop", "--hand-back"]).expect_ok();
    assert_eq!(inspect("{{.Id}}", "weave"), original);
    assert!(!on_disk.exists() && on_disk.with_extension("db.taken-over").exists());

    weave(h1, &program, &["reset", "--force"]).expect_ok();
    assert_eq!(
        (docker.ok(&["ps", "-aq"]), docker.ok(&["volume", "ls", "-q"])),
        (String::new(), String::new())
    );
}
