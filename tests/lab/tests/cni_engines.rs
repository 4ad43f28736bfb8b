//! Containers of containerd and Podman on the network `weave`, by the CNI plugins that `weave launch` has installed.

use weave_lab::{Host, Lab, Topology};

use crate::common::engines::{Containerd, PING, Podman, ROOT, address, own_usr, prepare, reaches, trees};
use crate::common::names::looked_up;
use crate::common::*;

/// Waits until a container has no address any more.
#[track_caller]
fn released(host: &Host, container: &str) {
    host.wait("the release of the address", SHORT_TIMEOUT, || match address(host, container) {
        None => Ok(()),
        Some(ip) => Err(ip),
    });
}

#[test]
fn containers_of_containerd() {
    on_two_hosts(&Topology::hosts(2));
}

#[test]
fn containers_of_containerd_with_newer_engines() {
    for tree in trees() {
        on_two_hosts(&Topology::hosts(2).with_root(&tree));
    }
}

fn on_two_hosts(topology: &Topology) {
    let Some(lab) = Lab::start("ctr", topology) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let _groups = prepare(h1);
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
    for name in ["c1", "c2"] {
        containerd.remove(name);
        released(h1, &format!("default-{name}"));
    }
    // `ctr` names no namespace to the plugin: the kernel ends it when the last process has ended, which takes a moment.
    h1.wait("the end of the container's namespace", SHORT_TIMEOUT, || {
        if far.ping(&ip, 1).received == 0 { Ok(()) } else { Err("it answers") }
    });
    far.never_reaches(&ip);

    step("pods of the CRI service");
    let cri = containerd.cri();
    let pod = cri.run_pod("web").unwrap();
    let pod_ip = cri.pod_address(&pod);
    assert_eq!(address(h1, &pod).as_ref(), Some(&pod_ip));
    far.reaches(&pod_ip, SHORT_TIMEOUT);
    looked_up(h1, "web", &[&pod_ip]);
    containerd.restart();
    far.reaches(&pod_ip, SHORT_TIMEOUT);
    assert_eq!(cri.pod_address(&pod), pod_ip);
    cri.remove_pod(&pod);
    assert_eq!(address(h1, &pod), None);
    looked_up(h1, "web", &[]);
    let before = cni::recorded(h1);
    h1.weave_ok(&["stop"]);
    let refused = cri.run_pod("late").unwrap_err();
    assert!(refused.contains("weave is not running"), "{refused}");
    launch(h1, &[], &["h2"]);
    assert_eq!(cni::recorded(h1), before);
}

#[test]
fn containers_of_podman() {
    let Some(lab) = Lab::start("podman", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let _groups = [h1, h2].map(prepare);
    let (Some(one), Some(two)) = (Podman::find(h1, "cni"), Podman::find(h2, "cni")) else { return };
    launch_mesh(&lab, &[]);
    let bare = h1.container("bare");
    let bare_ip = bare.attach(&[]);
    let (web, db) = (one.run("web", "--network weave"), two.run("db", "--network weave"));
    let (web_ip, db_ip) = (address(h1, &web).expect("an address"), address(h2, &db).expect("an address"));
    for (podman, from, to) in
        [(&one, "web", &db_ip), (&two, "db", &web_ip), (&one, "web", &bare_ip), (&two, "db", &bare_ip)]
    {
        reaches(&format!("{from} to {to}"), || podman.exec(from, &[&PING[..], &[to]].concat()));
    }
    bare.reaches(&web_ip, SHORT_TIMEOUT);
    looked_up(h2, "web", &[&web_ip]);
    looked_up(h1, "db", &[&db_ip]);
    one.remove("web");
    assert_eq!(address(h1, &web), None);
    looked_up(h2, "web", &[]);

    step("attached by name, by Docker's API of Podman");
    let _service = one.serve();
    attached_by_name(&one);

    step("attached by a hook");
    own_usr(h1);
    h1.weave_ok(&["setup-podman"]);
    attached_before_its_program(&one);
}

/// Containers with the annotation, after `weave setup-podman`: their first instruction sees the network.
pub fn attached_before_its_program(podman: &Podman<'_>) {
    let host = podman.host();
    let before = cni::recorded(host);
    let run = |annotation: &str| {
        let options = ["run", "--rm", "--network", "none", "--cgroup-parent", &podman.group()];
        let show = ["--rootfs", ROOT, "/bin/ip", "-4", "-o", "addr", "show", "dev", "ethwe"];
        podman.podman(&[&options[..], &["--annotation", annotation], &show].concat())
    };
    let shown = run("works.weave.cidr=10.2.1.7/24 net:default").expect_ok();
    assert!(shown.contains("inet 10.2.1.7/24") && shown.lines().count() == 2, "{shown}");
    assert_eq!(run("works.weave.cidr=").expect_ok().lines().count(), 1);
    let refused = run("works.weave.cidr=none");
    assert!(
        !refused.success() && refused.stderr.contains("works.weave.cidr: 'none' is no address"),
        "{refused}"
    );
    let alone = run("other=1");
    assert!(!alone.success() && alone.stderr.contains("ethwe"), "{alone}");
    host.wait("the release of the addresses", LONG_TIMEOUT, || {
        let now = cni::recorded(host);
        if now == before { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

/// `weave attach` and `detach` of a container of Podman that has no network.
pub fn attached_by_name(podman: &Podman<'_>) {
    let host = podman.host();
    podman.run("solo", "--network none");
    assert_eq!(host.weave_ok(&["attach", "10.2.1.5/24", "solo"]), "10.2.1.5\n");
    assert_eq!(host.weave_ok(&["attach", "--name", "solo.weave.local", "solo"]).lines().count(), 1);
    let shown = podman.exec("solo", &["ip", "addr", "show", "ethwe"]).expect_ok();
    assert_eq!(shown.matches("inet ").count(), 2, "{shown}");
    assert!(shown.contains("inet 10.2.1.5/24"), "{shown}");
    assert_eq!(host.weave_ok(&["detach", "10.2.1.5/24", "solo"]), "10.2.1.5\n");
    assert_eq!(host.weave_ok(&["detach", "solo"]).lines().count(), 1);
    let unknown = host.weave(&["attach", "no-such"]);
    assert!(!unknown.success() && unknown.stderr.lines().count() == 1, "{unknown}");
    podman.remove("solo");
}
