use std::collections::BTreeMap;

use weave_api::Report;
use weave_api::report::{ClockSkew, Connection, Dns, Ipam, IpamNotes, MacTable, RingEntry};
use weave_host::FirewallError;
use weave_host::firewall::{Backend, BackendRules};
use weave_mesh::handshake::HandshakeError;
use weave_mesh::{ConnectionError, PeerLabel};

use crate::Severity::{Error, Notice, Warning};
use crate::facts::*;
use crate::{Finding, Severity, best_overlay, check};

/// A host on which everything is well.
fn healthy() -> Facts {
    let device = |name: &str, mtu| Device { name: name.to_owned(), mtu, ..Device::default() };
    let underlay = UnderlayDevice { name: "eth0".to_owned(), mtu: 1500 };
    let addresses = ["0.0.0.0", "192.0.2.2"].map(|address| address.parse().unwrap());
    Facts {
        port: 6783,
        bridge: "weave".to_owned(),
        range: "10.32.0.0/12".parse().ok(),
        is_root: true,
        fastdp: Some(Ok(())),
        devices: vec![device("eth0", 1500), device("weave", 1376)],
        routes: vec![RouteFact {
            destination: "192.0.2.0/24".parse().unwrap(),
            device: Some("eth0".to_owned()),
        }],
        default_devices: vec!["eth0".to_owned()],
        underlay: addresses.map(|address| (address, underlay.clone())).into(),
        sysctls: Sysctls {
            ip_forward: Some(0),
            max_neighbours: Some(1024),
            neighbours: 900,
            max_connections: Some(65_536),
            connections: Some(50_000),
            ..Sysctls::default()
        },
        rules: vec![rules(Backend::IptablesLegacy, Ok(0)), rules(Backend::IptablesNft, Ok(20))],
        directories: vec![Directory {
            path: "/var/lib/weave".into(),
            free_bytes: Some(1 << 30),
            ..Directory::default()
        }],
        resolv_conf: ResolvConf { servers: vec![server("192.0.2.53:53", true)], ..ResolvConf::default() },
        ..Facts::default()
    }
}

fn rules(backend: Backend, rules: Result<usize, FirewallError>) -> BackendRules {
    let is_default = backend == Backend::IptablesNft;
    BackendRules { backend, rules, has_foreign_chains: false, is_default }
}

fn server(address: &str, answers: bool) -> DnsServer {
    DnsServer { address: address.parse().unwrap(), answers }
}

/// The same host with a daemon and its neighbour, both well.
fn running() -> Facts {
    let mut facts = healthy();
    let mut report = Report::default();
    report.router.port = 6783;
    report.router.targets = vec!["192.0.2.2".to_owned()];
    report.router.connections =
        vec![connection("established", "fastdp 0a:00:00:00:00:02(h2)", "", Some(("fastdp", 1376)))];
    report.ipam = Some(Ipam { entries: vec![owner("0a:00:00:00:00:01", true)], ..Ipam::default() });
    report.dns = Some(Dns::default());
    facts.daemon = Daemon::Running(Box::new(report));
    let ours =
        Device { name: "vxlan-6784".to_owned(), vxlan_port: Some(6784), is_ours: true, ..Device::default() };
    facts.devices.push(ours);
    facts.ports = vec![
        PortUse { protocol: "TCP", port: 6783, holder: "weave (pid 7)".to_owned() },
        PortUse { protocol: "UDP", port: 6784, holder: "the kernel".to_owned() },
    ];
    facts.dials = vec![DialResult { peer: "192.0.2.2".to_owned(), is_inbound: true, error: None }];
    facts
}

fn connection(state: &str, info: &str, reason: &str, overlay: Option<(&str, u64)>) -> Connection {
    let attrs = overlay.map(|(name, mtu)| {
        BTreeMap::from([("name".to_owned(), name.into()), ("mtu".to_owned(), mtu.into())])
    });
    let is_peer = matches!(state, "established" | "pending");
    Connection {
        address: "192.0.2.2:6783".to_owned(),
        state: state.to_owned(),
        info: info.to_owned(),
        attrs,
        overlay_reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        name: if is_peer { "0a:00:00:00:00:02".to_owned() } else { String::new() },
        nick_name: "h2".to_owned(),
        ..Connection::default()
    }
}

fn owner(peer: &str, is_known_peer: bool) -> RingEntry {
    RingEntry { peer: peer.to_owned(), size: 16, is_known_peer, ..RingEntry::default() }
}

/// `facts`, changed, give exactly this finding, whose remedy contains `remedy`.
#[track_caller]
fn one(
    facts: Facts,
    change: impl FnOnce(&mut Facts),
    severity: Severity,
    name: &str,
    remedy: &str,
) -> Finding {
    let mut facts = facts;
    change(&mut facts);
    let findings = check(&facts);
    let [finding] = findings.as_slice() else { panic!("{name}: {findings:#?}") };
    assert_eq!((finding.severity, finding.check), (severity, name), "{finding:?}");
    assert!(finding.remedy.contains(remedy), "{finding:?}");
    assert!(!finding.problem.is_empty() && !finding.effect.is_empty(), "{finding:?}");
    finding.clone()
}

#[track_caller]
fn stopped(change: impl FnOnce(&mut Facts), severity: Severity, name: &str, remedy: &str) -> Finding {
    one(healthy(), change, severity, name, remedy)
}

#[track_caller]
fn reported(change: impl FnOnce(&mut Report), severity: Severity, name: &str, remedy: &str) -> Finding {
    let change = |facts: &mut Facts| match &mut facts.daemon {
        Daemon::Running(report) => change(report),
        _ => panic!("a daemon runs"),
    };
    one(running(), change, severity, name, remedy)
}

#[test]
fn healthy_hosts_have_no_findings() {
    assert_eq!(check(&healthy()), []);
    assert_eq!(check(&running()), []);
    assert_eq!(best_overlay(&healthy()), Some("fastdp"));
}

#[test]
fn rights() {
    assert_eq!(best_overlay(&Facts::default()), None);
    // What could not be read is not judged.
    one(Facts::default(), |_| {}, Error, "rights", "sudo weave doctor");
    stopped(|facts| facts.missing_capabilities = vec!["NET_RAW"], Error, "rights", "--privileged");
    stopped(|facts| facts.sysctls_read_only = true, Error, "rights", "--privileged");
}

#[test]
fn files_and_disk() {
    let change = |change: fn(&mut Directory)| move |facts: &mut Facts| change(&mut facts.directories[0]);
    stopped(
        change(|d| d.problem = Some("its file system is read-only".to_owned())),
        Error,
        "directory",
        "remount,rw",
    );
    stopped(change(|d| d.free_bytes = Some(0)), Error, "disk-full", "df -h /var/lib/weave");
    stopped(change(|d| d.free_bytes = Some(1 << 20)), Warning, "disk-full", "df -h");
    stopped(change(|d| d.is_out_of_inodes = true), Error, "disk-full", "df -i");
}

#[test]
fn resolver() {
    let name = "resolv-conf";
    let change = |change: fn(&mut ResolvConf)| move |facts: &mut Facts| change(&mut facts.resolv_conf);
    stopped(change(|r| r.problem = Some("no such file".to_owned())), Warning, name, "nameserver <address>");
    stopped(change(|r| r.bad_lines.push("nameserver x".to_owned())), Warning, name, "correct the line");
    stopped(change(|r| r.servers[0].answers = false), Warning, name, "UDP port 53");
    stopped(
        change(|r| r.servers.push(server("192.0.2.54:53", false))),
        Notice,
        name,
        "name servers that answer",
    );
}

#[test]
fn engines_and_plugins() {
    let engine = |problem: Option<&str>| Engine { name: "Docker", problem: problem.map(str::to_owned) };
    stopped(
        |facts| facts.engines = vec![engine(Some("refused"))],
        Warning,
        "engine",
        "systemctl restart docker",
    );
    let well = Facts { engines: vec![engine(None)], ..healthy() };
    assert_eq!(check(&well), []);
    let broken = |facts: &mut Facts| {
        facts.missing_plugins = vec![("/opt/cni/bin/weave-net".into(), "weave setup-cni")]
    };
    stopped(broken, Error, "plugin", "weave setup-cni");
}

#[test]
fn kernel() {
    let fastdp = |facts: &mut Facts| {
        let problem = "creating VXLAN device x: this kernel lacks VXLAN devices (CONFIG_VXLAN, module vxlan)";
        facts.fastdp = Some(Err(problem.to_owned()));
    };
    stopped(fastdp, Warning, "fastdp", "modprobe vxlan;");
    let packet = "packet sockets (CONFIG_PACKET, module af_packet)";
    stopped(|facts| facts.missing_features = vec![packet], Error, "kernel", "modprobe af_packet");
    let bpf = "making an eBPF map: this kernel lacks the system call bpf (CONFIG_BPF_SYSCALL)";
    stopped(|facts| facts.fastdp = Some(Err(bpf.to_owned())), Warning, "fastdp", "Linux 5.8");
    stopped(|facts| facts.sysctls.neighbours = 1000, Error, "neighbour-table", "gc_thresh3=4096");
    stopped(|facts| facts.sysctls.neighbour_overflows = 1, Error, "neighbour-table", "gc_thresh3=4096");
    stopped(
        |facts| facts.sysctls.connections = Some(65_536),
        Error,
        "conntrack-full",
        "nf_conntrack_max=262144",
    );
    stopped(|facts| facts.is_exposed = true, Error, "ip-forward", "net.ipv4.ip_forward=1");
    let multihomed = |facts: &mut Facts| {
        facts.devices[0].strict_rp_filter = true;
        assert_eq!(check(facts), [], "one default route");
        facts.default_devices.push("eth1".to_owned());
    };
    stopped(multihomed, Warning, "rp-filter", "net.ipv4.conf.all.rp_filter=2");
    let unlimited = |facts: &mut Facts| {
        let sysctls = &mut facts.sysctls;
        (sysctls.max_connections, sysctls.max_neighbours) = (Some(0), None);
        facts.is_exposed = true;
    };
    stopped(unlimited, Error, "ip-forward", "");
}

#[test]
fn ports() {
    let port = |protocol, port| PortUse { protocol, port, holder: "other (pid 7)".to_owned() };
    let finding = stopped(|facts| facts.ports = vec![port("TCP", 6783)], Error, "port-in-use", "--port");
    assert!(finding.problem.contains("other (pid 7)"));
    stopped(|facts| facts.ports = vec![port("UDP", 6784)], Warning, "vxlan-port", "--port");
    let foreign = Device { name: "flannel.1".to_owned(), vxlan_port: Some(6784), ..Device::default() };
    let finding = one(running(), |facts| facts.devices.push(foreign), Warning, "vxlan-port", "--port");
    assert!(finding.problem.contains("flannel.1"));
}

#[test]
fn underlay() {
    let small = |facts: &mut Facts| facts.underlay.values_mut().for_each(|device| device.mtu = 1400);
    stopped(small, Warning, "underlay-mtu", "weave launch --mtu 1316");
    let mut facts = healthy();
    facts.underlay.insert("0.0.0.0".parse().unwrap(), UnderlayDevice { name: "tun0".to_owned(), mtu: 1400 });
    assert_eq!(check(&facts), [], "the default route does not lead to neighbours");
    small(&mut facts);
    facts.devices[1].mtu = 65_535;
    assert_eq!(check(&facts), [], "packets are cut to what each path carries");
}

#[test]
fn routes_that_hide_the_range() {
    let route = |destination: &str| RouteFact {
        destination: destination.parse().unwrap(),
        device: Some("tun0".to_owned()),
    };
    for destination in ["10.0.0.0/8", "10.40.0.0/24"] {
        let free = if destination == "10.0.0.0/8" { "172.24.0.0/14" } else { "10.128.0.0/12" };
        let remedy = format!("weave launch --ipalloc-range {free}");
        stopped(|facts| facts.routes.push(route(destination)), Error, "range", &remedy);
        let remedy = format!("ip route del {destination}");
        one(running(), |facts| facts.routes.push(route(destination)), Warning, "range", &remedy);
    }
    let off = Facts { range: None, routes: vec![route("10.0.0.0/8")], ..healthy() };
    assert_eq!(check(&off), []);
}

#[test]
fn firewalls() {
    let remedy = "update-alternatives --set iptables /usr/sbin/iptables-nft";
    let finding = stopped(|facts| facts.rules[0].rules = Ok(3), Warning, "iptables-mix", remedy);
    assert!(finding.problem.contains("iptables-legacy (3 rules)"), "{finding:?}");
    let failed = FirewallError::NotInstalled;
    stopped(|facts| facts.rules[0].rules = Err(failed), Warning, "firewall", "correct what");
    let none = |facts: &mut Facts| (facts.rules, facts.lacks_firewall) = (Vec::new(), true);
    stopped(none, Warning, "firewall", "install iptables");
    let drops =
        "another program's firewall, chain x, drops packets of other peers to TCP port 6783; accept it there";
    let finding =
        stopped(|facts| facts.obstacles = vec![drops.to_owned()], Error, "host-problem", "accept it there");
    assert!(finding.problem.ends_with("port 6783"));
}

#[test]
fn ipv6() {
    for target in ["fd00::2", "[fd00::2]", "[fd00::2]:7000"] {
        let change = |facts: &mut Facts| {
            facts.sysctls.is_ipv6_disabled = true;
            assert_eq!(check(facts), [], "nobody needs it");
            let Daemon::Running(report) = &mut facts.daemon else { panic!("a daemon runs") };
            report.router.targets.push(target.to_owned());
        };
        one(running(), change, Error, "ipv6", "net.ipv6.conf.all.disable_ipv6=0");
    }
}

#[test]
fn overlays_of_connections() {
    let with = |state: &'static str, reason: &'static str, overlay: Option<(&'static str, u64)>| {
        move |report: &mut Report| report.router.connections = vec![connection(state, "", reason, overlay)]
    };
    let blocked = "sleeve: no UDP datagram from 192.0.2.2:6783 to 192.0.2.1:6783 for 9 s; TCP works, so UDP has to be let through";
    reported(with("pending", blocked, None), Error, "udp-blocked", "--dport 6783");
    reported(with("established", blocked, Some(("sleeve", 1438))), Warning, "udp-blocked", "--dport 6783");
    let vxlan = "warp: fastdp not established: no heartbeats pass to or from 192.0.2.2 at UDP port 6784";
    reported(with("established", vxlan, Some(("warp", 1412))), Warning, "vxlan-blocked", "--dport 6784");
    let small =
        "warp: fastdp not established: heartbeats of 1390 bytes to 192.0.2.2 port 6784 are not acknowledged";
    reported(with("established", small, Some(("warp", 1412))), Warning, "small-mtu", "ICMP");
    let finding =
        reported(with("established", small, Some(("warp", 1212))), Warning, "small-mtu", "dev eth0 mtu 1320");
    assert!(finding.problem.contains("the MTU of eth0 is 1500"));
    // Also without fastdp.
    reported(with("established", "", Some(("sleeve", 1238))), Warning, "small-mtu", "ICMP");
    let flapping = "warp: fastdp is unhealthy: the path to 192.0.2.2 has failed: another one is used";
    reported(with("established", flapping, Some(("warp", 1412))), Warning, "unstable-path", "ip -s link");
    let old = "warp: fastdp not offered by peer";
    reported(with("established", old, Some(("warp", 1412))), Notice, "overlay", "--no-fastdp");
    for (name, mtu) in [("warp", 1412), ("sleeve", 1438), ("sleeve", 65_535), ("warp", 552)] {
        let mut facts = running();
        let Daemon::Running(report) = &mut facts.daemon else { panic!("a daemon runs") };
        report.router.connections = vec![connection("established", "", "", Some((name, mtu)))];
        report.router.connections.push(connection("pending", "", "", None));
        assert_eq!(check(&facts), [], "{name} {mtu}");
    }
}

/// The texts are those with which the mesh ends connections.
#[test]
fn failed_connections() {
    let label =
        |nickname: &str| PeerLabel { name: "0a:00:00:00:00:02".parse().unwrap(), nickname: nickname.into() };
    let address = "192.0.2.2:6783".parse().unwrap();
    for (error, name, remedy) in [
        (ConnectionError::Handshake(HandshakeError::RemoteHasNoPassword), "password", "--password-file"),
        (ConnectionError::Handshake(HandshakeError::RemoteHasPassword), "password", "--password-file"),
        (ConnectionError::NameCollision(label("a"), label("b")), "duplicate-name", "machine-id"),
        (ConnectionError::NameInUse(label("a"), address), "duplicate-name", "machine-id"),
        (ConnectionError::OwnNameInUse("b".to_owned(), label("a")), "duplicate-name", "machine-id"),
    ] {
        let info = format!("{error}, retry: 2026-01-01 00:00:00 +0000 UTC m=+1.0");
        let failed =
            |report: &mut Report| report.router.connections = vec![connection("failed", &info, "", None)];
        let finding = reported(failed, Error, name, remedy);
        assert!(!finding.problem.contains("retry"), "{finding:?}");
    }
    let with = |infos: &[&str]| {
        let failed: Vec<_> = infos.iter().map(|info| connection("failed", info, "", None)).collect();
        move |report: &mut Report| report.router.connections.extend(failed)
    };
    let limit = ConnectionError::LimitReached(200).to_string();
    reported(with(&[&limit]), Warning, "connection-limit", "--conn-limit");
    let timeout = "dial tcp :0->192.0.2.2:6783: connect: i/o timeout, retry: never";
    reported(with(&[timeout]), Warning, "tcp-blocked", "--dport 6783");
    let alone =
        |report: &mut Report| report.router.connections = vec![connection("retrying", timeout, "", None)];
    reported(alone, Error, "tcp-blocked", "--dport 6783");
    reported(with(&["lookup h9: no such host"]), Error, "unknown-host", "weave forget");
    reported(with(&["this peer listens on 0.0.0.0, which is IPv4 only"]), Error, "ipv6", "--host ::");
    reported(with(&["EOF"]), Warning, "connection", "weave status connections");
    let own = ConnectionError::SelfConnection.to_string();
    reported(with(&[&own, "EOF"]), Warning, "connection", "");
    let crypt = "Unable to decrypt TCP msg (do both sides have the same password?)";
    reported(with(&[crypt]), Error, "password", "--password-file");
}

#[test]
fn attempts_to_connect() {
    let dial = |is_inbound, error| {
        move |facts: &mut Facts| {
            facts.dials = vec![DialResult { peer: "h2".to_owned(), is_inbound, error: Some(error) }]
        }
    };
    stopped(dial(false, DialError::TimedOut), Error, "tcp-blocked", "--dport 6783");
    stopped(dial(false, DialError::Refused), Error, "tcp-blocked", "launch the peer");
    stopped(
        dial(false, DialError::Unresolved("no such host".to_owned())),
        Error,
        "unknown-host",
        "/etc/hosts",
    );
    one(running(), dial(true, DialError::TimedOut), Warning, "tcp-one-way", "--dport 6783");
    one(running(), dial(true, DialError::Refused), Notice, "tcp-one-way", "NAT");
}

#[test]
fn services() {
    let dead = |report: &mut Report| {
        let entries = &mut report.ipam.as_mut().unwrap().entries;
        entries.extend([owner("0a:00:00:00:00:09", false), owner("0a:00:00:00:00:09", false)]);
    };
    let finding = reported(dead, Warning, "dead-peer", "weave rmpeer 0a:00:00:00:00:09");
    assert!(finding.problem.contains("owns 32 addresses"));
    let notes = |notes: IpamNotes| move |report: &mut Report| report.ipam_notes = Some(notes);
    let conflict = "with 0a:00:00:00:00:02(h2): other range; give all peers the same --ipalloc-range";
    let conflicts = IpamNotes { conflicts: vec![conflict.to_owned()], ..IpamNotes::default() };
    reported(notes(conflicts), Error, "ipam-conflict", "give all peers the same --ipalloc-range");
    let waiting = IpamNotes {
        waiting: vec!["an address for c1, for 9 s: no space".to_owned()],
        ..IpamNotes::default()
    };
    reported(notes(waiting), Warning, "ipam-waiting", "weave status ipam");
    let lost = IpamNotes {
        lost_owners: vec!["10.32.0.1 of c1: gone; 'weave detach' releases it".to_owned()],
        ..IpamNotes::default()
    };
    reported(notes(lost), Notice, "lost-owner", "weave detach");
    let skewed = |report: &mut Report| {
        let skew = ClockSkew { peer: "0a:00:00:00:00:02".to_owned(), seconds: -3600 };
        report.dns = Some(Dns { clock_skews: vec![skew], ..Dns::default() });
    };
    let finding = reported(skewed, Error, "clock-skew", "timedatectl");
    assert!(finding.problem.ends_with("is 3600 s behind that of this host"), "{finding:?}");
    let full = MacTable { entries: 5, max_entries: 5, ..MacTable::default() };
    reported(|report| report.router.mac_table = Some(full), Warning, "mac-table", "detach");
    one(
        running(),
        |facts| facts.weave_dns = vec![server("172.17.0.1:53", false)],
        Error,
        "weave-dns",
        "port 53",
    );
}

#[test]
fn daemons_that_do_not_answer_and_jobs_that_hang() {
    stopped(|facts| facts.daemon = Daemon::Silent("time-out".to_owned()), Error, "daemon", "weave stop");
    stopped(|facts| facts.unread = vec!["x did not end".to_owned()], Warning, "not-examined", "");
}

#[test]
fn the_worst_comes_first_and_passwords_exclude_fastdp() {
    let mut facts = running();
    facts.fastdp = Some(Err("no".to_owned()));
    facts.sysctls.connections = Some(65_536);
    let severities: Vec<_> = check(&facts).iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Error, Warning]);
    assert_eq!(best_overlay(&facts), Some("warp"));
    facts.fastdp = Some(Ok(()));
    assert_eq!(best_overlay(&facts), Some("fastdp"));
    let Daemon::Running(report) = &mut facts.daemon else { panic!("a daemon runs") };
    report.router.encryption = true;
    assert_eq!(best_overlay(&facts), Some("warp"));
}
