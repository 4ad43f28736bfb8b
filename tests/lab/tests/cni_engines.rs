//! Containers of containerd and Podman on the network `weave`, by the CNI plugins that `weave launch` has installed.

use weave_lab::{Background, Host, Lab, Outcome, Topology};

use crate::common::cni::recorded;
use crate::common::names::looked_up;
use crate::common::*;

/// A root with a shell.
const ROOT: &str = "/var/lib/rootfs";
const SOCKET: &str = "/run/containerd-lab/containerd.sock";

/// All hosts share `/sys/fs/cgroup`; the containers of each are in a group of their own.
fn group(host: &Host) -> String {
    format!("/weave-lab-{}", host.pid())
}

/// What runtimes need on a host before `weave launch`.
fn prepare(host: &Host) {
    host.sh(&format!(
        "mkdir -p /etc/cni/net.d /opt/cni/bin {ROOT}/bin; ln -s /usr/lib/cni/portmap /opt/cni/bin; \
         cp $(command -v busybox) {ROOT}/bin; for p in sh ping sleep ip cat; do ln -s busybox {ROOT}/bin/$p; done"
    ));
}

/// Removes the control groups of a host's containers, which would stay.
struct Groups<'a>(&'a Host);

impl Drop for Groups<'_> {
    fn drop(&mut self) {
        let group = group(self.0);
        self.0.command(&[
            "sh",
            "-c",
            &format!("find /sys/fs/cgroup -depth -type d -path '*{group}*' -exec rmdir {{}} + 2>/dev/null"),
        ]);
    }
}

struct Containerd<'a>(&'a Host);

impl<'a> Containerd<'a> {
    /// `None` after a notice if it is not installed.
    fn start(host: &'a Host) -> Option<Containerd<'a>> {
        if !has(host, "containerd", "containerd")
            || !has(host, "/usr/lib/cni/portmap", "containernetworking-plugins")
        {
            return None;
        }
        host.sh(&format!(
            "mkdir -p /run/containerd-lab; cat > /run/containerd-lab/config.toml <<E\nversion = 2\nroot = \"/var/lib/containerd-lab\"\n\
             state = \"/run/containerd-lab/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{SOCKET}\"\nE\n"
        ));
        let containerd = Containerd(host);
        containerd.boot();
        Some(containerd)
    }

    fn boot(&self) {
        self.0.sh(
            "setsid containerd --config /run/containerd-lab/config.toml >> /var/log/containerd.log 2>&1 < /dev/null & \
             echo $! > /run/containerd-lab/pid",
        );
        self.0.wait("containerd", LONG_TIMEOUT, || {
            let version = self.ctr(&["version"]);
            if version.success() { Ok(()) } else { Err(version.to_string()) }
        });
    }

    fn ctr(&self, args: &[&str]) -> Outcome {
        self.0.command(&[&["ctr", "-a", SOCKET], args].concat())
    }

    /// Starts a container that sleeps. The client stays, because it calls `DEL` at the end.
    #[must_use]
    fn run(&self, name: &str) -> Background {
        let group = format!("{}/{name}", group(self.0));
        let options = ["run", "--rm", "--cni", "--cgroup", &group, "--rootfs", ROOT, name];
        let command = [&["ctr", "-a", SOCKET], &options[..], &["/bin/sleep", "1000"]].concat();
        let client = self.0.background(&command, false).unwrap();
        self.0.wait("the container", LONG_TIMEOUT, || {
            let list = self.ctr(&["task", "ls"]).stdout;
            let runs = list.lines().any(|line| line.starts_with(name) && line.contains("RUNNING"));
            if runs { Ok(()) } else { Err(list) }
        });
        client
    }

    fn exec(&self, name: &str, argv: &[&str]) -> Outcome {
        self.ctr(&[&["task", "exec", "--exec-id", "e", name], argv].concat())
    }

    fn remove(&self, name: &str) {
        self.ctr(&["task", "kill", "-s", "KILL", name]).expect_ok();
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        let ctr = format!("ctr -a {SOCKET}");
        self.0.command(&[
            "sh",
            "-c",
            &format!(
                "for c in $({ctr} task ls -q); do {ctr} task kill -s KILL $c; {ctr} task rm -f $c; done; \
                 kill $(cat /run/containerd-lab/pid)"
            ),
        ]);
    }
}

struct Podman<'a>(&'a Host);

impl<'a> Podman<'a> {
    /// `None` after a notice if there is no Podman that uses CNI.
    fn find(host: &'a Host) -> Option<Podman<'a>> {
        if !has(host, "podman", "podman") || !has(host, "/usr/lib/cni/portmap", "containernetworking-plugins")
        {
            return None;
        }
        let podman = Podman(host);
        let info = podman.podman(&["info", "--format", "{{.Host.NetworkBackend}}"]);
        if info.stdout.trim() != "cni" {
            eprintln!("SKIPPED: this Podman does not use CNI: {info}");
            return None;
        }
        Some(podman)
    }

    fn podman(&self, args: &[&str]) -> Outcome {
        let options = "--cgroup-manager cgroupfs --runtime runc --storage-driver vfs --events-backend file";
        let options: Vec<&str> = options.split(' ').collect();
        self.0.command_with(&[], &[&["podman"], &options[..], args].concat(), LONG_TIMEOUT)
    }

    fn run(&self, name: &str, network: &str) -> String {
        let group = group(self.0);
        let run = [
            "run",
            "-d",
            "--name",
            name,
            "--network",
            network,
            "--cap-add",
            "NET_RAW",
            "--cgroup-parent",
            &group,
        ];
        let id = self.podman(&[&run[..], &["--rootfs", ROOT, "/bin/sleep", "1000"]].concat()).expect_ok();
        id.trim().to_owned()
    }

    fn remove(&self, name: &str) {
        self.podman(&["rm", "-f", "-t", "0", name]).expect_ok();
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        self.podman(&["rm", "-f", "-t", "0", "-a"]);
    }
}

fn has(host: &Host, program: &str, package: &str) -> bool {
    let there = host.command(&["sh", "-c", &format!("command -v {program}")]).success();
    if !there {
        eprintln!("SKIPPED: {program} is missing (package {package})");
    }
    there
}

/// The allocated addresses of a container, without prefix length.
fn address(host: &Host, container: &str) -> Option<String> {
    let owners = recorded(host).into_iter();
    let (_, addrs) = owners.into_iter().find(|(owner, _)| owner == container)?;
    addrs.first().and_then(|cidr| cidr.split('/').next()).map(str::to_owned)
}

fn reaches(what: &str, ping: impl Fn() -> Outcome) {
    weave_lab::eventually(what, LONG_TIMEOUT, || {
        let outcome = ping();
        if outcome.success() { Ok(()) } else { Err(outcome.to_string()) }
    });
}

const PING: [&str; 5] = ["/bin/ping", "-c", "1", "-w", "2"];

#[test]
fn containers_of_containerd() {
    let Some(lab) = Lab::start("ctr", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    prepare(h1);
    let _groups = Groups(h1);
    let Some(containerd) = Containerd::start(h1) else { return };
    launch_mesh(&lab, &[]);
    let far = h2.container("far");
    let far_ip = far.attach(&[]);
    let _one = containerd.run("c1");
    let ip = address(h1, "default-c1").expect("an address");
    let ping =
        || reaches("ping from containerd", || containerd.exec("c1", &[&PING[..], &[&far_ip]].concat()));
    ping();
    far.reaches(&ip, SHORT_TIMEOUT);

    step("restarts under a running container");
    h1.signal_daemon("KILL");
    h1.wait("the end of the daemon", SHORT_TIMEOUT, || {
        if h1.daemon_pid().is_none() { Ok(()) } else { Err("runs") }
    });
    launch(h1, &[], &["h2"]);
    ping();
    let _two = containerd.run("c2");
    assert_ne!(address(h1, "default-c2"), Some(ip.clone()));
    containerd.remove("c1");
    h1.wait("the release of the address", SHORT_TIMEOUT, || match address(h1, "default-c1") {
        None => Ok(()),
        Some(ip) => Err(ip),
    });
    far.never_reaches(&ip);
}

#[test]
fn containers_of_podman() {
    let Some(lab) = Lab::start("podman", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    for host in [h1, h2] {
        prepare(host);
    }
    let _groups = [Groups(h1), Groups(h2)];
    let (Some(one), Some(two)) = (Podman::find(h1), Podman::find(h2)) else { return };
    launch_mesh(&lab, &[]);
    let bare = h1.container("bare");
    let bare_ip = bare.attach(&[]);
    let (web, db) = (one.run("web", "weave"), two.run("db", "weave"));
    let (web_ip, db_ip) = (address(h1, &web).expect("an address"), address(h2, &db).expect("an address"));
    for (podman, from, to) in
        [(&one, "web", &db_ip), (&two, "db", &web_ip), (&one, "web", &bare_ip), (&two, "db", &bare_ip)]
    {
        let exec = [&["exec", from][..], &PING, &[to]].concat();
        reaches(&format!("{from} to {to}"), || podman.podman(&exec));
    }
    bare.reaches(&web_ip, SHORT_TIMEOUT);
    looked_up(h2, "web", &[&web_ip]);
    looked_up(h1, "db", &[&db_ip]);
    one.remove("web");
    assert_eq!(address(h1, &web), None);
    looked_up(h2, "web", &[]);

    step("attached by name, by Docker's API of Podman");
    one.run("solo", "none");
    h1.command_ok(&["mkdir", "-p", "/run/podman"]);
    let _service = h1
        .background(
            &[
                "podman",
                "--cgroup-manager",
                "cgroupfs",
                "--runtime",
                "runc",
                "--storage-driver",
                "vfs",
                "system",
                "service",
                "-t",
                "0",
                "unix:///run/podman/podman.sock",
            ],
            false,
        )
        .unwrap();
    h1.wait("the socket of Podman", SHORT_TIMEOUT, || {
        let there = h1.command(&["test", "-S", "/run/podman/podman.sock"]);
        if there.success() { Ok(()) } else { Err("none") }
    });
    assert_eq!(h1.weave_ok(&["attach", "10.2.1.5/24", "solo"]), "10.2.1.5\n");
    assert_eq!(h1.weave_ok(&["attach", "--name", "solo.weave.local", "solo"]).lines().count(), 1);
    let shown = one.podman(&["exec", "solo", "ip", "addr", "show", "ethwe"]).expect_ok();
    assert!(shown.contains("inet 10.2.1.5/24") && shown.contains("/12 "), "{shown}");
    assert_eq!(h1.weave_ok(&["detach", "10.2.1.5/24", "solo"]), "10.2.1.5\n");
    let unknown = h1.weave(&["attach", "no-such"]);
    assert!(!unknown.success() && unknown.stderr.lines().count() == 1, "{unknown}");
    one.remove("solo");
}
