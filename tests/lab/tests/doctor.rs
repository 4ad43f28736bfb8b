//! `weave doctor` names planted faults and their remedies, and finds nothing on healthy hosts.

use serde_json::Value;
use weave_lab::{Host, Lab, Outcome, Topology};

use crate::common::*;

/// Checks the exit code and gives the findings.
#[track_caller]
fn findings(outcome: &Outcome) -> Vec<Value> {
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|e| panic!("{e}\n{outcome}"));
    let findings = report["Findings"].as_array().unwrap().clone();
    let count = |severity: &str| findings.iter().filter(|f| f["Severity"] == severity).count() as u64;
    let (errors, warnings) = (count("error"), count("warning"));
    assert_eq!((&report["Errors"], &report["Warnings"]), (&errors.into(), &warnings.into()), "{outcome}");
    let code = if errors > 0 { 2 } else { i32::from(warnings > 0) };
    assert_eq!(outcome.code, Some(code), "{outcome}");
    findings
}

fn doctor(host: &Host, peers: &[&str]) -> Vec<Value> {
    findings(&host.weave(&[&["doctor", "--json"], peers].concat()))
}

fn has(findings: &[Value], check: &str, words: &[&str]) -> Result<(), String> {
    let is_right = |finding: &Value| {
        let text = format!("{} {}", finding["Problem"], finding["Remedy"]);
        finding["Check"] == check && words.iter().all(|word| text.contains(word))
    };
    if findings.iter().any(is_right) {
        return Ok(());
    }
    Err(format!("no {check} with {words:?}: {findings:#?}"))
}

/// Each fault is named, with these words in problem and remedy, and nothing else is.
#[track_caller]
fn exactly(findings: &[Value], expected: &[(&str, &[&str])]) {
    for (check, words) in expected {
        has(findings, check, words).unwrap_or_else(|text| panic!("{text}"));
    }
    let other = |finding: &&Value| !expected.iter().any(|(check, _)| finding["Check"] == *check);
    let others: Vec<_> = findings.iter().filter(other).collect();
    assert!(others.is_empty(), "{others:#?}");
}

/// Waits until all of these are named, with these words in problem and remedy.
#[track_caller]
fn wait_named(host: &Host, expected: &[(&str, &[&str])]) {
    let names: Vec<_> = expected.iter().map(|(check, _)| *check).collect();
    host.wait(&format!("doctor to name {names:?}"), LONG_TIMEOUT, || {
        let findings = doctor(host, &[]);
        expected.iter().try_for_each(|(check, words)| has(&findings, check, words))
    });
}

fn healthy(name: &str, options: &[&str], overlay: &str) {
    let Some(lab) = Lab::start(name, &Topology::hosts(2)) else { return };
    for host in lab.hosts() {
        let before = host_state(host);
        let well = host.weave(&["doctor"]);
        assert_eq!(well.stdout, "no problems found; best overlay of this host: fastdp\n", "{well}");
        assert!(well.success(), "{well}");
        assert_eq!(differences(&before, &host_state(host)), [""; 0], "nothing is changed");
    }
    launch_mesh(&lab, options);
    for host in lab.hosts() {
        wait_overlay(host, overlay);
        let c = host.container("c");
        host.weave_ok(&["attach", "--name", &format!("{}.weave.local", host.name()), "netns:c"]);
        host.weave_ok(&["expose"]);
        assert!(c.has_interface());
    }
    for (host, other) in [("h1", "h2"), ("h2", "h1")] {
        let host = lab.host(host);
        host.wait("no findings", LONG_TIMEOUT, || {
            // Right after a launch the search for the path MTU may not be complete.
            let found = doctor(host, &[other]);
            if found.is_empty() { Ok(()) } else { Err(format!("{found:#?}")) }
        });
        let well = format!("no problems found; best overlay of this host: {overlay}\n");
        assert_eq!(host.weave_ok(&["doctor"]), well);
    }
}

#[test]
fn healthy_hosts_have_no_findings() {
    healthy("well", &[], "fastdp");
}

#[test]
fn healthy_hosts_with_a_password_have_no_findings() {
    healthy("wellpw", &["--password", "wEaVe"], "warp");
}

/// Faults that do not hide each other, so that one host can have all. The limits of neighbours and connections are those of the whole
/// machine, so files take the place of the kernel's.
const FAULTS: &str = r#"iptables-nft -A INPUT -s 192.0.2.1 -m conntrack --ctstate NEW -j ACCEPT
ip link add foreign type vxlan id 1 dstport 6784 dev eth0; ip link set foreign up
ip route add 10.40.0.0/16 via 198.18.0.254
mkdir /var/lib/weave; mount -t tmpfs -o size=64k tmpfs /var/lib/weave; head -c 65536 /dev/zero > /var/lib/weave/full
ln -sf /no/such/file /etc/resolv.conf
cd /proc/sys/net/netfilter; echo 1 > /run/one
for f in nf_conntrack_max nf_conntrack_count; do mount --bind /run/one $f; done
cd ../ipv4; mount -t tmpfs tmpfs neigh; mkdir neigh/default; echo 1 > neigh/default/gc_thresh3
ping -c 1 198.18.0.254 > /dev/null
python3 -c "import socket; socket.socket(socket.AF_UNIX).bind('/run/docker.sock')""#;

const LISTEN: &str = "import socket, sys
s = socket.socket(); s.bind(('', 6783)); s.listen(); print('ready', flush=True); sys.stdin.read()";

#[test]
fn faults_of_a_host_before_launch() {
    let Some(lab) = Lab::start("ill", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    h1.sh(FAULTS);
    let _listener = h1.background(&["python3", "-c", LISTEN], true).unwrap();
    let mut expected: Vec<(&str, &[&str])> = vec![
        ("vxlan-port", &["device foreign", "6784", "--port"]),
        ("range", &["10.40.0.0/16 to eth0", "weave launch --ipalloc-range 10.128.0.0/12"]),
        ("disk-full", &["/var/lib/weave has 0 kB", "df -h /var/lib/weave"]),
        ("resolv-conf", &["/no/such/file", "nameserver <address>"]),
        ("neighbour-table", &["sysctl -w net.ipv4.neigh.default.gc_thresh3="]),
        ("conntrack-full", &["sysctl -w net.netfilter.nf_conntrack_max="]),
        ("engine", &["Docker does not answer", "systemctl restart docker"]),
        ("port-in-use", &["TCP port 6783", "python3", "--port"]),
    ];
    if h1.command(&["iptables-legacy", "-w", "-A", "INPUT", "-s", "192.0.2.1", "-j", "ACCEPT"]).success() {
        expected.push((
            "iptables-mix",
            &["iptables-legacy", "iptables-nft", "update-alternatives --set iptables"],
        ));
    } else {
        eprintln!("SKIPPED: there is no iptables-legacy, or the kernel lacks it");
    }
    exactly(&doctor(h1, &[]), &expected);
    let planned = ["--port", "7000", "--ipalloc-range", "10.128.0.0/12", "--state-dir", "/run/state"];
    expected.retain(|(check, _)| !["vxlan-port", "range", "disk-full", "port-in-use"].contains(check));
    exactly(&doctor(h1, &planned), &expected);
    let range = |options: &[&str]| doctor(h1, options).iter().any(|finding| finding["Check"] == "range");
    assert!(range(&["--weave-bridge", "other"]) && !range(&["--weave-bridge", "eth0"]));

    step("faults that other programs cannot have caused");
    h2.sh("mkdir /var/lib/weave; mount -t tmpfs -o ro tmpfs /var/lib/weave; echo 'nameserver 198.18.0.1' > /etc/resolv.conf");
    h2.sh("for d in all default eth0; do echo 1 > /proc/sys/net/ipv6/conf/$d/disable_ipv6; done");
    lab.cut("h1", "h2");
    let outcome = h2.weave_without("bpf", &["doctor", "--json", "h1", "[fd00::1]"]);
    exactly(
        &findings(&outcome),
        &[
            ("directory", &["/var/lib/weave", "read-only", "remount,rw"]),
            ("resolv-conf", &["198.18.0.1", "UDP port 53"]),
            ("fastdp", &["the system call bpf", "Linux 5.8"]),
            ("ipv6", &["[fd00::1]", "sysctl -w net.ipv6.conf.all.disable_ipv6=0"]),
            ("tcp-blocked", &["h1", "TCP port 6783"]),
        ],
    );

    let outcome = h2.weave_without("packet", &["doctor", "--json"]);
    has(&findings(&outcome), "kernel", &["CONFIG_PACKET", "modprobe af_packet"]).unwrap();

    step("without rights");
    let program = weave_lab::weave_binary();
    let user = h2.command(&["setpriv", "--reuid", "65534", "--clear-groups", program, "doctor", "--json"]);
    exactly(&findings(&user), &[("rights", &["not root", "sudo weave doctor"])]);
    let net_admin =
        ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", program, "doctor", "--json"];
    has(&findings(&h2.command(&net_admin)), "rights", &["NET_ADMIN", "--privileged"]).unwrap();
}

const MUTE: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX); s.bind('/run/docker.sock'); s.listen(); print('ready', flush=True); sys.stdin.read()";

#[test]
fn what_hangs_is_named_in_time() {
    let Some(lab) = Lab::start("mute", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    h1.signal_daemon("STOP");
    let _engine = h1.background(&["python3", "-c", MUTE], true).unwrap();
    let _server = h1.probe_background(&["dns-serve", "198.18.0.1:53", "--mute"]);
    h1.sh("echo 'nameserver 198.18.0.1' > /etc/resolv.conf");
    // Nobody has this address.
    let outcome = h1.weave(&["doctor", "--json", "198.18.0.77"]);
    assert!(outcome.took < SHORT_TIMEOUT, "{outcome}");
    exactly(
        &findings(&outcome),
        &[
            ("daemon", &["does not answer", "weave stop"]),
            ("engine", &["Docker does not answer", "systemctl restart docker"]),
            ("resolv-conf", &["198.18.0.1"]),
            ("tcp-blocked", &["198.18.0.77"]),
        ],
    );
    h1.signal_daemon("CONT");
}

#[test]
fn connections_that_are_refused() {
    let Some(lab) = Lab::start("refused", &Topology::hosts(4)) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h));
    launch(h1, &["--password", "a"], &[]);
    h1.weave_ok(&["prime"]);
    launch(h2, &["--password", "b"], &["h1"]);
    launch(h3, &["--password", "a", "--name", &name_of(h1)], &["h1"]);
    launch(h4, &["--password", "a", "--ipalloc-range", "10.2.0.0/16"], &["h1"]);
    let password: &[&str] = &["password", "weave launch --password-file"];
    let copy: &[&str] = &["same peer name", "machine-id", "--name"];
    wait_named(h2, &[("password", password)]);
    wait_named(h3, &[("duplicate-name", copy)]);
    wait_named(h1, &[("password", password), ("duplicate-name", copy)]);
    // The first peer hears of it when the other one wants addresses.
    wait_named(h4, &[("ipam-conflict", &["10.2.0.0/16", "give all peers the same --ipalloc-range"])]);
}

#[test]
fn ports_that_are_blocked() {
    let Some(lab) = Lab::start("ports", &Topology::hosts(4)) else { return };
    let [h1, h2, h3, h4] = ["h1", "h2", "h3", "h4"].map(|h| lab.host(h));
    for (from, to, what) in [
        ("h2", "h1", "-p udp"),
        ("h1", "h2", "-p udp"),
        ("h1", "h3", "-p tcp --syn"),
        ("h4", "h1", "-p udp --dport 6784"),
        ("h1", "h4", "-p udp --dport 6784"),
    ] {
        lab.wire().sh(&format!("iptables -w -A LAB -i {from} -o {to} {what} -j DROP"));
    }
    launch(h1, &["--no-discovery"], &["198.18.0.3:7000"]);
    for host in [h2, h3, h4] {
        launch(host, &["--no-discovery"], &["h1"]);
    }
    wait_named(
        h1,
        &[
            ("udp-blocked", &["198.18.0.2", "UDP port 6783", "--dport 6783"]),
            ("tcp-one-way", &["198.18.0.3", "TCP port 6783", "--dport 6783"]),
            ("vxlan-blocked", &["198.18.0.4", "UDP port 6784", "--dport 6784"]),
        ],
    );
    wait_named(h2, &[("udp-blocked", &["198.18.0.1", "UDP port 6783", "--dport 6783"])]);
    wait_named(h4, &[("vxlan-blocked", &["198.18.0.1", "UDP port 6784", "--dport 6784"])]);
}

#[test]
fn path_with_a_small_mtu() {
    let Some(lab) = Lab::start("mtu", &Topology::hosts(2)) else { return };
    lab.path_mtu("h2", 1300, false);
    launch_mesh(&lab, &[]);
    for host in lab.hosts() {
        wait_named(host, &[("small-mtu", &["the MTU of eth0 is 1500", "ICMP", "type 3 code 4"])]);
    }
}

/// Makes the wall clock of programs an hour late.
const LATE_CLOCK: &str = r"#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
  int result = syscall(SYS_clock_gettime, clock, time);
  if (result == 0 && clock == CLOCK_REALTIME) time->tv_sec -= 3600;
  return result;
}";

#[test]
fn peers_and_clocks_that_are_lost() {
    let Some(lab) = Lab::start("lost", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    launch(h3, &[], &["h1"]);
    let c3 = h3.container("c3");
    c3.attach(&[]);
    let dead = name_of(h3);
    h3.signal_daemon("KILL");
    lab.cut("h1", "h3");
    h2.sh(&format!(
        "cat > /run/late.c <<'END'\n{LATE_CLOCK}\nEND\ncc -shared -fPIC -o /run/late.so /run/late.c"
    ));
    h2.weave_env(&[("LD_PRELOAD", "/run/late.so")], &["launch", "--no-restart", "h1"]).expect_ok();
    h1.wait_established(1, LONG_TIMEOUT);
    h2.container("c2");
    h2.weave_ok(&["attach", "10.99.0.1/24", "--name", "c2.weave.local", "netns:c2"]);
    wait_named(
        h1,
        &[
            ("clock-skew", &["3600 s behind", "timedatectl set-ntp true"]),
            ("dead-peer", &[&dead, &format!("weave rmpeer {dead}")]),
        ],
    );
    assert!(h1.weave_ok(&["status"]).contains(" 3600 s behind that of this host"));

    step("a socket of the network plugin is gone");
    h1.sh("rm /run/docker/plugins/weave.sock");
    has(&doctor(h1, &[]), "plugin", &["/run/docker/plugins/weave.sock", "weave launch"]).unwrap();

    step("forwarding is off; a daemon would switch it on");
    h1.weave_ok(&["expose", "10.99.0.2/24"]);
    h1.weave_ok(&["stop"]);
    h1.sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
    exactly(&doctor(h1, &[]), &[("ip-forward", &["sysctl -w net.ipv4.ip_forward=1"])]);
}
