//! What operators, other programs and earlier launches have changed on a host: restored, or reported until it is right.

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

const GATEWAY: &str = "198.18.0.254";

/// The port of the host's only container.
fn port(host: &Host) -> String {
    host.sh("ip -o link | grep -o 'vethwepl[^@]*'").trim().to_owned()
}

#[track_caller]
fn wait_for_problem(host: &Host, text: &str) {
    host.wait(&format!("a problem with {text:?} in status"), SHORT_TIMEOUT, || {
        let status = host.weave(&["status"]).stdout;
        if status.lines().any(|l| l.starts_with("        Problem: ") && l.contains(text)) {
            Ok(())
        } else {
            Err(status)
        }
    });
}

#[track_caller]
fn wait_for_no_problem(host: &Host) {
    host.wait("no problem in status", SHORT_TIMEOUT, || {
        let status = host.weave(&["status"]).stdout;
        if status.contains("Problem") { Err(status) } else { Ok(()) }
    });
}

#[test]
fn changed_devices_and_settings_are_restored() {
    let Some(lab) = Lab::start("changed", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch_mesh(&lab, &[]);
    let [a, b] = <[Member; 2]>::try_from(attach_each(&[h1, h2])).ok().unwrap();
    a.container.reaches(&b.ip, SHORT_TIMEOUT);
    let port = port(h1);
    // The log has to say what was wrong: the text of 2.8.1 where it has one.
    for (harm, logged) in [
        (
            format!("ip link set vethwe-bridge nomaster; ip link set {port} nomaster"),
            format!("{port} was not a port of weave"),
        ),
        (
            "ip link set weave down; bridge link set dev vethwe-bridge hairpin on".to_owned(),
            "Interface \"weave\" which needs to be in UP state".to_owned(),
        ),
        (
            format!("ip link set {port} down; ip link set vethwe-datapath down"),
            "vethwe-datapath was down".to_owned(),
        ),
    ] {
        h1.sh(&harm);
        h1.wait(&format!("the repair after {harm}"), SHORT_TIMEOUT, || {
            if h1.log().contains(&logged) { Ok(()) } else { Err(h1.log()) }
        });
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    assert!(h1.log().contains("Hairpin mode enabled on \"vethwe-bridge\""), "{}", h1.log());

    step("a port on another bridge is reported, not moved");
    h1.sh(&format!("ip link add br0 type bridge; ip link set {port} master br0"));
    wait_for_problem(h1, &format!("{port} is a port of br0"));
    assert!(h1.weave_ok(&["status", "--json"]).contains("is a port of br0"));
    h1.sh(&format!("ip link set {port} master weave; ip link del br0"));
    wait_for_no_problem(h1);

    step("forwarding of the host, then of the bridge, is switched off");
    h1.weave_ok(&["expose", "10.2.1.102/24"]);
    a.container.command_ok(&["ip", "route", "add", "default", "via", "10.2.1.102"]);
    a.container.reaches(GATEWAY, SHORT_TIMEOUT);
    for setting in ["net.ipv4.ip_forward", "net.ipv4.conf.weave.forwarding"] {
        h1.sh(&format!("sysctl -qw {setting}=0"));
        h1.wait(&format!("{setting} to be set again"), SHORT_TIMEOUT, || {
            h1.sh(&format!("sysctl -n {setting}")) == "1\n"
        });
        assert!(h1.log().contains(setting), "{}", h1.log());
    }
    a.container.reaches(GATEWAY, SHORT_TIMEOUT);

    step("another table rejects what ours accepts");
    h1.sh("nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'; \
           nft add rule inet firewalld filter_FORWARD ct state established,related accept; \
           nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited");
    let told = "another program's firewall, table inet firewalld, chain filter_FORWARD, drops ";
    wait_for_problem(h1, told);
    let exposed = h1.weave(&["expose", "10.2.1.102/24"]);
    assert!(
        exposed.success() && exposed.stdout == "10.2.1.102\n" && exposed.stderr.contains(told),
        "{exposed}"
    );
    h1.weave_ok(&["stop"]);
    let launched = h1.weave(&["launch", "--no-restart"]);
    assert!(
        launched.success() && launched.stderr.lines().count() == 1 && launched.stderr.contains(told),
        "{launched}"
    );
    h1.sh("nft insert rule inet firewalld filter_FORWARD iifname weave accept; \
           nft insert rule inet firewalld filter_FORWARD oifname weave accept");
    wait_for_no_problem(h1);
    a.container.reaches(GATEWAY, SHORT_TIMEOUT);
}

/// Containers that were attached before a launch with another MTU can be sent packets of every size.
#[test]
fn running_containers_get_the_mtu_of_a_relaunch() {
    let Some(lab) = Lab::start("remtu", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch_mesh(&lab, &[]);
    let [a, b] = <[Member; 2]>::try_from(attach_each(&[h1, h2])).ok().unwrap();
    for mtu in ["1200", "1400"] {
        for host in [h1, h2] {
            host.weave_ok(&["stop"]);
        }
        launch(h1, &["--mtu", mtu], &[]);
        launch(h2, &["--mtu", mtu], &["h1"]);
        h1.wait_established(1, LONG_TIMEOUT);
        let new = h1.container(&format!("new{mtu}"));
        new.attach(&[&format!("10.2.1.1{}/24", &mtu[1..2])]);
        for old in [&a, &b] {
            old.container
                .host()
                .wait("the MTU in the container", SHORT_TIMEOUT, || old.container.mtu().to_string() == mtu);
            new.reaches(&old.ip, SHORT_TIMEOUT);
            for size in [mtu.parse::<u32>().unwrap() - 28, 1348] {
                let sent = new.command(&["ping", "-q", "-c2", "-W2", "-s", &size.to_string(), &old.ip]);
                assert!(sent.success(), "{size} bytes to {} with MTU {mtu}: {sent}", old.ip);
            }
        }
        let too_big = a.container.command(&["ping", "-c1", "-W2", "-M", "do", "-s", "1380", "10.2.1.2"]);
        assert!(
            too_big.stdout.contains("message too long") || too_big.stderr.contains("message too long"),
            "{too_big}"
        );
    }
}

/// A VPN covers all addresses by two routes. `/etc` may be read-only.
#[test]
fn launch_and_reset_with_half_routes_and_read_only_etc() {
    let Some(lab) = Lab::start("halves", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    // The default route of the lab is replaced by its parts.
    let halves = |verb: &str| {
        for half in ["0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/2"] {
            h1.sh(&format!("ip route {verb} {half} dev eth0"));
        }
    };
    step("a real overlap is refused");
    h1.sh("ip route add 10.0.0.0/8 dev eth0");
    let refused = h1.weave(&["launch", "--no-restart"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("overlaps with existing route 10.0.0.0/8"),
        "{refused}"
    );
    h1.sh("ip route del 10.0.0.0/8 dev eth0");
    step("parts of a default route are no overlap");
    halves("add");
    let launched = h1.weave(&["launch", "--no-restart"]);
    assert!(launched.success() && launched.stderr.is_empty(), "{launched}");
    let c = h1.container("c");
    let attached = h1.weave(&["attach", "10.2.1.1/24", &c.netns()]);
    assert!(attached.success() && attached.stderr.is_empty(), "{attached}");
    halves("del");
    step("a peer that has run is launched again, whatever routes have appeared");
    h1.weave_ok(&["stop"]);
    h1.sh("ip route add 10.0.0.0/8 dev eth0");
    let again = h1.weave(&["launch", "--no-restart"]);
    assert!(again.success() && again.stderr.contains("overlaps with existing route 10.0.0.0/8"), "{again}");

    step("files that cannot be removed from /etc are named, and are no failure");
    h1.weave_ok(&["stop"]);
    h1.sh("ip route del 10.0.0.0/8 dev eth0; mkdir -p /etc/systemd/network");
    h1.weave_ok(&["launch", "--no-restart"]);
    h1.sh(
        "test -e /etc/systemd/network/05-weave.link; mount --bind /etc /etc; mount -o remount,ro,bind /etc",
    );
    for _ in 0..2 {
        let reset = h1.weave(&["reset"]);
        assert!(
            reset.success() && reset.stderr.contains("05-weave.link stays, its file system is read-only"),
            "{reset}"
        );
    }
    assert!(!h1.sh("ip link").contains("weave"));
    let refused = h1.weave(&["launch", "--service", "systemd"]);
    assert!(refused.code == Some(1), "{refused}");
    h1.sh("umount /etc");
    let reset = h1.weave(&["reset"]);
    assert!(reset.success() && reset.stderr.is_empty(), "{reset}");
}
