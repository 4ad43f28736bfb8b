//! What `make image` and `make deb` make of the program, installed on hosts.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use weave_lab::docker::{Dockerd, static_binary};
use weave_lab::systemd::Systemd;
use weave_lab::{Host, Lab, Topology, claims};

use crate::common::engines::{Podman, prepare};
use crate::common::*;

weave_lab::claims!("F-51");

/// Largest image of a release.
const MAX_IMAGE: u64 = 8_000_000;
const TAG: &str = "weave:9.8.7-lab";

/// Runs a script of `contrib/packages` outside of the lab.
fn make(script: &str, args: &[&str]) -> String {
    let path = format!("{}/../../contrib/packages/{script}", env!("CARGO_MANIFEST_DIR"));
    // Compressing takes longer than the test.
    let output = Command::new(path).args(args).env("DPKG_DEB_COMPRESSOR_TYPE", "none").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// The image as a file on the disk of a host, and its path there.
fn image(host: &Host, program: &str) -> &'static str {
    let file = host.disk("lib/image.tar");
    println!("{}", make("image", &[program, "9.8.7-lab", file.to_str().unwrap()]).trim());
    "/var/lib/image.tar"
}

/// `--privileged`; where this machine does not have all capabilities, which Docker then refuses, those that the peer needs.
fn rights() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let all = (2_u64 << last.trim().parse::<u32>().unwrap()) - 1;
    if u64::from_str_radix(bounding.trim(), 16).unwrap() == all {
        return "--privileged";
    }
    "--cap-add NET_ADMIN --cap-add SYS_ADMIN --cap-add SYS_PTRACE --cap-add DAC_READ_SEARCH --cap-add IPC_LOCK \
     --security-opt apparmor=unconfined --security-opt label=disable --device /dev/net/tun"
}

#[test]
fn image_runs_a_peer_in_docker() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("released", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let Some(docker) = Dockerd::start(h1) else { return };
    launch(h2, &[], &[]);

    step("the image contains the program and nothing else");
    let file = image(h1, &program);
    let manifest: Value =
        serde_json::from_str(&h1.sh(&format!("tar -xOf {file} manifest.json"))).expect("a manifest");
    let layer = manifest[0]["Layers"][0].as_str().unwrap();
    let listed = h1.sh(&format!("tar -xOf {file} {layer} | tar -t"));
    assert_eq!((listed.as_str(), &manifest[0]["Layers"][1]), ("weave\n", &Value::Null));
    assert_eq!(docker.ok(&["load", "--input", file]), format!("Loaded image: {TAG}"));
    let size: u64 = docker.ok(&["image", "inspect", "--format", "{{.Size}}", TAG]).parse().unwrap();
    println!("the image has {size} bytes uncompressed: {program}");

    step("it runs a peer");
    assert_eq!(docker.ok(&["run", "--rm", TAG, "version"]), h1.weave_ok(&["version"]).trim_end());
    let options = "run -d --name weave --restart always --net host --pid host";
    let options: Vec<&str> = options.split(' ').chain(rights().split(' ')).collect();
    docker.ok(&[&options[..], &[TAG, "contained", "h2"]].concat());
    h1.wait("the peer", LONG_TIMEOUT, || h1.daemon_pid().is_some() && h1.weave(&["status"]).success());
    h1.wait_established(1, LONG_TIMEOUT);
    docker.ok(&["cp", "weave:/weave", "/run/weave-of-the-image"]);
    let pid = h1.daemon_pid().unwrap();
    let sums = h1.sh(&format!("cat {program} /run/weave-of-the-image > /dev/null; for f in {program} /run/weave-of-the-image /proc/{pid}/exe; do sha256sum < $f; done"));
    let sums: Vec<&str> = sums.lines().collect();
    assert!(sums.len() == 3 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
    let status = h1.command_ok(&["/run/weave-of-the-image", "status", "connections"]);
    assert!(status.contains("established"), "{status}");
    let members = attach_each(&[h1, h2]);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);

    step("Docker starts it again, and 'weave stop' stops it");
    docker.ok(&["restart", "weave"]);
    h1.wait("the next daemon", LONG_TIMEOUT, || h1.daemon_pid().is_some_and(|p| p != pid));
    h1.wait_established(1, LONG_TIMEOUT);
    members[0].container.reaches(&members[1].ip, SHORT_TIMEOUT);
    let env = [("DOCKER_HOST", "unix:///run/docker.sock")];
    h1.weave_env(&env, &["stop"]).expect_ok();
    assert_eq!(docker.ok(&["inspect", "--format", "{{.State.Running}}", "weave"]), "false");
    h1.weave_env(&env, &["reset", "--force"]).expect_ok();
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
    if program.contains("/release/") {
        assert!(size < MAX_IMAGE, "{size}");
        claims(&["F-51"]);
    } else {
        eprintln!("SKIPPED: the size of the image of a release (`make static`, WEAVE_STATIC_BIN)");
    }
}

#[test]
fn image_runs_a_peer_in_podman() {
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("podmanimage", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let _groups = prepare(h1);
    let Some(podman) = Podman::find(h1, "cni") else { return };
    let file = image(h1, &program);
    let loaded = podman.podman(&["load", "--input", file]).expect_ok();
    assert!(loaded.contains(TAG), "{loaded}");
    let group = podman.group();
    let options = "run -d --name weave --privileged --network host --pid host --cgroup-parent";
    let run = [&options.split(' ').collect::<Vec<_>>()[..], &[&group, TAG]].concat();
    podman.podman(&run).expect_ok();
    h1.wait("the peer", LONG_TIMEOUT, || h1.daemon_pid().is_some() && h1.weave(&["status"]).success());
    let members = attach_each(&[h1]);
    assert!(members[0].container.has_interface());
    h1.weave_ok(&["stop"]);
}

/// Makes a package of a version, as a file on the disk of a host; returns its path there.
fn package(host: &Host, program: &str, version: &str) -> String {
    let folder = host.disk("lib/packages");
    std::fs::create_dir_all(&folder).unwrap();
    make("deb", &[program, version, folder.to_str().unwrap()]);
    let name = format!("weave_{}_", version.replace('-', "~"));
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let file = files.map(|f| f.into_string().unwrap()).find(|f| f.starts_with(&name)).unwrap();
    format!("/var/lib/packages/{file}")
}

/// Makes a place for programs, and a database of packages with what weave depends on, that are only this host's. `false` after a notice if that is impossible.
fn writable_programs(host: &Host) -> bool {
    let mounted = host.command(&[
        "sh",
        "-ec",
        "for d in bin lib share; do mkdir -p /var/lib/usr/$d.upper /var/lib/usr/$d.work; \
         mount -t overlay overlay -o lowerdir=/usr/$d,upperdir=/var/lib/usr/$d.upper,workdir=/var/lib/usr/$d.work /usr/$d; done; \
         cd /var/lib; mkdir -p dpkg/info dpkg/updates dpkg/triggers; touch dpkg/available; \
         echo /. > dpkg/info/iptables.list; find /etc /usr -maxdepth 1 -type d >> dpkg/info/iptables.list; \
         printf '%s\\n' 'Package: iptables' 'Status: install ok installed' 'Architecture: all' 'Version: 1' 'Maintainer: lab' \
         'Description: what weave depends on' > dpkg/status",
    ]);
    if !mounted.success() {
        eprintln!("SKIPPED: the package on a host with systemd: {mounted}");
    }
    mounted.success()
}

/// `dpkg`; a question about a changed file would fail.
fn dpkg(host: &Host, args: &[&str]) {
    let env = [("DEBIAN_FRONTEND", "noninteractive")];
    host.command_with(&env, &[&["dpkg"], args].concat(), LONG_TIMEOUT).expect_ok();
}

/// The state of a host, without what systemd keeps of its units and the lab of its containers.
fn state(host: &Host) -> Vec<String> {
    let others = ["/run/systemd/", "/run/credentials", "/run/log/", "/run/netns"];
    let snapshot = host.snapshot();
    let lines = snapshot.lines().filter(|line| !others.iter().any(|other| line.starts_with(other)));
    lines.map(str::to_owned).collect()
}

fn unit_state(system: &Systemd) -> String {
    system.systemctl(&["show", "--property=ActiveState", "--value", "weave.service"]).trim().to_owned()
}

#[test]
fn package_is_installed_upgraded_and_removed() {
    if !Path::new("/usr/bin/dpkg-deb").exists() {
        eprintln!("SKIPPED: there is no dpkg-deb for the package");
        return;
    }
    let Some(program) = static_binary() else { return };
    let Some(lab) = Lab::start("package", &Topology::hosts(2)) else { return };
    let [outer, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let [first, second] = ["9.8.7-1", "9.8.7"].map(|version| package(outer, &program, version));
    let Some(system) = Systemd::boot(outer) else { return };
    let h1 = system.host();
    if !writable_programs(h1) {
        return;
    }
    launch(h2, &[], &[]);
    let before = state(h1);

    step("installed, it starts nothing");
    dpkg(h1, &["--install", &first]);
    assert_eq!((unit_state(&system).as_str(), state(h1)), ("inactive", before.clone()));
    assert!(h1.command(&["systemctl", "is-enabled", "weave.service"]).stdout.trim() == "disabled");
    let files = h1.sh("dpkg --listfiles weave");
    for file in [
        "/usr/bin/weave",
        "/usr/lib/systemd/system/weave.service",
        "/etc/default/weave",
        "/usr/share/man/man8/weave.8.gz",
        "/usr/share/man/man8/weave-launch.8.gz",
        "/usr/share/bash-completion/completions/weave",
        "/usr/share/zsh/vendor-completions/_weave",
        "/usr/share/fish/vendor_completions.d/weave.fish",
        "/usr/share/doc/weave/copyright",
    ] {
        assert!(files.lines().any(|line| line == file), "{file} in\n{files}");
    }
    h1.sh("dpkg --verify weave; test -z \"$(dpkg --verify weave)\"");

    step("enabled, and upgraded while containers talk");
    h1.sh("echo 'PEERS=h2' >> /etc/default/weave");
    system.systemctl(&["enable", "--now", "weave.service"]);
    h1.wait_established(1, LONG_TIMEOUT);
    wait_overlay(h1, "fastdp");
    let members = attach_each(&[h1, h2]);
    let [a, b] = &members[..] else { unreachable!() };
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    let (pid, name) = (h1.daemon_pid(), name_of(h1));
    let chat = a.container.chat(&b.container, &b.ip, 20);
    dpkg(h1, &["--install", &second]);
    h1.wait("the new daemon", SHORT_TIMEOUT, || {
        h1.daemon_pid().is_some_and(|p| Some(p) != pid) && h1.weave(&["status"]).success()
    });
    h1.wait_established(1, LONG_TIMEOUT);
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    let chat = chat.finish();
    println!("longest interruption of an upgrade: {:.2} s", chat.longest_gap_ms / 1e3);
    assert!(chat.broken.is_none(), "{chat:?}");
    assert_eq!(
        (name_of(h1), h1.sh("dpkg-query --show --showformat '${Version}' weave")),
        (name, "9.8.7".into())
    );
    assert!(h1.sh("cat /etc/default/weave").ends_with("PEERS=h2\n"));

    step("'weave stop' stops the unit, and 'weave launch' writes one that takes precedence");
    h1.command_ok(&["weave", "stop"]);
    assert_eq!((unit_state(&system).as_str(), h1.daemon_pid()), ("inactive", None));
    h1.command_ok(&["/usr/bin/weave", "launch", "--nickname", "launched", "h2"]);
    assert_eq!(h1.report().unwrap()["Router"]["NickName"], "launched");
    let paths = system.systemctl(&["show", "--property=FragmentPath,UnitFileState", "weave.service"]);
    assert_eq!(paths, "FragmentPath=/etc/systemd/system/weave.service\nUnitFileState=enabled\n");
    let pid = h1.daemon_pid();
    dpkg(h1, &["--install", &first]);
    h1.wait("the other version", SHORT_TIMEOUT, || {
        h1.daemon_pid().is_some_and(|p| Some(p) != pid) && h1.weave(&["status"]).success()
    });

    step("removed, it leaves its configuration and addresses, and the containers");
    dpkg(h1, &["--remove", "weave"]);
    assert_eq!((unit_state(&system).as_str(), h1.daemon_pid()), ("inactive", None));
    h1.sh("test ! -e /usr/bin/weave && test -s /etc/default/weave && test -s /var/lib/weave/peer.json");
    assert!(!h1.command(&["systemctl", "is-enabled", "weave.service"]).success());
    assert!(a.container.has_interface());

    step("installed again, it is the same peer");
    dpkg(h1, &["--install", &second]);
    system.systemctl(&["start", "weave.service"]);
    h1.wait_established(1, LONG_TIMEOUT);
    a.container.reaches(&b.ip, LONG_TIMEOUT);

    step("purged, it leaves nothing");
    members.into_iter().for_each(|member| member.container.end());
    dpkg(h1, &["--purge", "weave"]);
    assert_eq!(state(h1), before);
    let left = h1.sh("ls -d /etc/default/weave /etc/weave /var/lib/weave /etc/systemd/system/weave.service /var/lib/dpkg/info/weave.* 2>/dev/null || true");
    assert_eq!(left, "");
}
