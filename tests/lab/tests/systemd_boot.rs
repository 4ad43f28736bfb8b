//! The peer as a unit of a real systemd: sandbox, crash, restart, shutdown and boot.

use weave_lab::docker::import_image;
use weave_lab::systemd::Systemd;
use weave_lab::{Host, Lab, Topology};

use crate::common::*;

const UNIT: &str = "/etc/systemd/system/weave.service";

/// Devices and Ethernet addresses of the bridge and its uplink.
fn devices(host: &Host) -> String {
    host.sh("for d in weave vethwe-bridge vethwe-datapath; do ip -o link show $d | sed 's/.*: \\(.*\\): <.*ether \\([^ ]*\\).*/\\1 \\2/'; done")
}

fn targets(host: &Host) -> Vec<String> {
    host.weave(&["status", "targets"]).stdout.lines().map(str::to_owned).collect()
}

/// Warnings and errors of the daemon; the sandbox must not cause any.
fn warnings_and_errors(system: &Systemd) -> Vec<String> {
    let log = system.journal("weave.service");
    log.lines().filter(|l| l.contains("WARN") || l.contains("ERRO")).map(str::to_owned).collect()
}

#[test]
fn unit_works_in_its_sandbox_and_survives_crash_and_reboot() {
    let Some(lab) = Lab::start("booted", &Topology::hosts(2)) else { return };
    let [outer, h2] = ["h1", "h2"].map(|h| lab.host(h));
    outer.sh("mkdir -p /etc/systemd/network /etc/NetworkManager");
    let Some(system) = Systemd::boot(outer) else { return };
    let h1 = system.host();
    launch(h2, &["--password=p"], &[]);
    let far = h2.container("far");
    far.attach(&["10.2.1.2/24"]);
    assert_eq!(h2.weave_ok(&["prime"]), "");

    // systemd-networkd configures every device that is not excluded.
    std::fs::write(
        outer.disk("etc/systemd/network/10-all.network"),
        "[Match]\nName=weave vethwe* other\n[Network]\nAddress=10.77.7.7/24\n",
    )
    .unwrap();
    system.systemctl(&["start", "systemd-networkd.service"]);

    let launched = h1.weave(&["launch", "--password=p", "h2"]);
    let name = h1.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned();
    assert_eq!(
        (launched.code, launched.stdout, launched.stderr),
        (Some(0), format!("{name}\n"), String::new())
    );
    h1.wait_established(1, LONG_TIMEOUT);
    let status = system.systemctl(&["status", "weave.service"]);
    for part in ["Active: active (running)", "Status: \"ready\"", "weave.service; enabled", "weave daemon "] {
        assert!(status.contains(part), "{part} in\n{status}");
    }
    let verified = h1.command(&["systemd-analyze", "verify", "--man=no", UNIT]);
    assert!(verified.success() && !verified.stderr.contains("weave.service"), "{verified}");
    let security = h1.command_ok(&["systemd-analyze", "security", "--no-pager", "weave.service"]);
    println!("{}", security.lines().last().unwrap_or_default());

    step("everything works in the sandbox: devices, eBPF, rules, sysctls, files, addresses, namespaces");
    assert_eq!(warnings_and_errors(&system), Vec::<String>::new());
    assert!(
        h1.sh("tc filter show dev vethwe-datapath ingress").contains("bpf"),
        "an eBPF program is attached"
    );
    assert!(h1.sh("iptables -w -S FORWARD").contains("-o weave -j WEAVE-EXPOSE"));
    assert_eq!(
        h1.sh("cat /proc/sys/net/ipv6/conf/weave/accept_ra /proc/sys/net/ipv4/neigh/weave/ucast_solicit"),
        "0\n1\n"
    );
    h1.sh("ls /etc/systemd/network/05-weave.network /etc/systemd/network/05-weave.link /etc/NetworkManager/conf.d/90-weave.conf");
    assert_eq!(h1.weave_ok(&["expose", "10.2.1.101/24"]), "10.2.1.101\n");
    let c = h1.container("c");
    c.attach(&["10.2.1.1/24"]);
    let allocated = c.attach(&[]);
    c.reaches("10.2.1.2", SHORT_TIMEOUT);
    far.reaches("10.2.1.101", SHORT_TIMEOUT);
    h1.sh("iptables -w -F FORWARD");
    h1.wait("the rules to be restored", LONG_TIMEOUT, || {
        h1.sh("iptables -w -S FORWARD").contains("-o weave -j WEAVE-EXPOSE")
    });
    h1.weave_ok(&["connect", "192.0.2.7"]);
    let (devices_before, stored) = (devices(h1), ["192.0.2.7", "h2"]);
    let mac = c.mac();

    step("systemd-networkd configures another device and ignores ours");
    h1.sh("ip link add other type bridge");
    h1.wait("systemd-networkd", SHORT_TIMEOUT, || {
        h1.sh("ip -4 -o addr show dev other").contains("10.77.7.7/24")
    });
    let all = h1.sh("ip -4 -o addr");
    assert_eq!(all.matches("10.77.7.7/24").count(), 1, "{all}");
    for device in ["weave", "vethwe-bridge", "vethwe-datapath"] {
        h1.wait("systemd-networkd to ignore the device", SHORT_TIMEOUT, || {
            let link = "/run/systemd/netif/links/$(ip -o link show $0 | cut -d: -f1)";
            let state = h1.command(&["sh", "-c", &format!("cat {link}"), device]);
            if state.stdout.contains("ADMIN_STATE=unmanaged") { Ok(()) } else { Err(state.to_string()) }
        });
    }
    h1.sh("ip link del other");

    step("after a crash and a restart it is the same peer on the same devices");
    for ending in ["kill --signal=KILL", "restart"] {
        let pid = h1.daemon_pid();
        let mut args: Vec<&str> = ending.split(' ').collect();
        args.push("weave.service");
        system.systemctl(&args);
        h1.wait("the next daemon", SHORT_TIMEOUT, || {
            h1.daemon_pid().is_some_and(|p| Some(p) != pid) && h1.weave(&["status"]).success()
        });
        assert_eq!(targets(h1), stored, "{ending}");
        assert_eq!(devices(h1), devices_before, "{ending}");
        assert_eq!(h1.report().unwrap()["Router"]["Name"], *name, "{ending}");
        c.reaches("10.2.1.2", LONG_TIMEOUT);
        assert_eq!((c.mac(), c.attach(&[])), (mac.clone(), allocated.clone()), "{ending}");
    }

    step("stop and start");
    system.systemctl(&["stop", "weave.service"]);
    assert!(h1.daemon_pid().is_none() && c.has_interface());
    let result = system.systemctl(&["show", "--property=ActiveState,Result", "weave.service"]);
    assert!(result.contains("ActiveState=inactive") && result.contains("Result=success"), "{result}");
    system.systemctl(&["start", "weave.service"]);
    assert!(h1.weave(&["status"]).success(), "systemctl returns when the daemon is ready");
    assert_eq!(targets(h1), stored);
    assert!(
        !warnings_and_errors(&system).iter().any(|l| l.contains("read-only") || l.contains("not permitted"))
    );

    step("the host shuts down and boots");
    system.power_off();
    outer.reboot();
    let system = Systemd::boot(outer).unwrap();
    let h1 = system.host();
    assert!(h1.weave(&["status"]).success(), "the unit is started at boot");
    h1.wait_established(1, LONG_TIMEOUT);
    assert_eq!(
        (targets(h1), h1.report().unwrap()["Router"]["Name"].as_str()),
        (stored.map(str::to_owned).to_vec(), Some(&*name))
    );
    let again = h1.container("again");
    again.attach(&["10.2.1.3/24"]);
    again.reaches("10.2.1.2", SHORT_TIMEOUT);

    step("a failed launch reports the reason and keeps the unit");
    h1.weave_ok(&["stop"]);
    let unit = h1.command_ok(&["cat", UNIT]);
    let busy = h1.background(&["python3", "-c", "import socket,sys; s=socket.create_server(('',6783)); print('ready',flush=True); sys.stdin.read()"], true).unwrap();
    let failed = h1.weave(&["launch"]);
    assert!(failed.code == Some(1) && failed.stderr.contains("port 6783"), "{failed}");
    assert_eq!(h1.command_ok(&["cat", UNIT]), unit);
    drop(busy);

    h1.weave_ok(&["launch", "--password=p", "h2"]);
    h1.weave_ok(&["reset"]);
    assert!(h1.daemon_pid().is_none());
    let left = h1.sh(
        "ls -R /etc/systemd /etc/NetworkManager; systemctl list-units --all --no-legend 'weave*' || true",
    );
    assert!(!left.contains("weave"), "{left}");
}

/// Containers that Docker starts at boot by their restart policy find the network plugin, and the proxy's wait program the peer.
#[test]
fn docker_starts_its_containers_at_boot() {
    let Some(lab) = Lab::start("dockboot", &Topology::hosts(2)) else { return };
    let [outer, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let installed = |file: &str| std::path::Path::new(file).exists();
    if !installed("/lib/systemd/system/docker.service") || !installed("/usr/sbin/dockerd") {
        eprintln!(
            "SKIPPED: lab test with Docker and systemd: docker.service is not installed (package docker.io)"
        );
        return;
    }
    let Some(system) = Systemd::boot(outer) else { return };
    launch(h2, &[], &[]);
    let far = h2.container("far");
    let far_ip = far.attach(&[]);
    let h1 = system.host();
    h1.sh("mkdir -p /etc/docker-lab; echo '{}' > /etc/docker-lab/daemon.json; echo \"DOCKER_OPTS='--config-file /etc/docker-lab/daemon.json \
           --data-root /var/lib/docker-lab --storage-driver vfs --ip6tables=false'\" > /etc/default/docker");
    system.systemctl(&["enable", "--now", "docker.service"]);
    import_image(h1, "ubuntu");
    h1.weave_ok(&["launch", "h2"]);
    h1.wait("Docker's network weave", LONG_TIMEOUT, || {
        h1.command(&["docker", "network", "inspect", "weave"]).success()
    });
    let names = ["networked", "proxied"];
    for (name, run) in
        names.iter().zip(["docker run --net=weave", "docker --host unix:///run/weave/weave.sock run"])
    {
        h1.sh(&format!("{run} -d --name {name} --restart=always ubuntu sleep 10000"));
    }
    let reach_far = |h1: &Host| {
        for name in names {
            h1.wait(&format!("{name} to reach another host"), LONG_TIMEOUT, || {
                let ping = h1.command(&["docker", "exec", name, "ping", "-c", "1", "-W", "2", &far_ip]);
                if ping.success() { Ok(()) } else { Err(ping.to_string()) }
            });
        }
    };
    reach_far(h1);

    step("the host shuts down and boots");
    system.power_off();
    outer.reboot();
    let system = Systemd::boot(outer).unwrap();
    let h1 = system.host();
    reach_far(h1);
    let log = system.journal("docker.service");
    assert!(!log.to_lowercase().contains("failed to start container"), "{log}");
    system.power_off();
}
