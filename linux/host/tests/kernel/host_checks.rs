//! What earlier launches and other programs have left otherwise: ports and interfaces of containers, forwarding, obstacles.

use std::collections::BTreeSet;

use weave_host::{
    AttachRequest, BridgeConfig, DeviceNames, Mtu, NetNs, Netlink, UpdatedContainers, add_bridge_address,
    attach, ensure_bridge, ensure_forwarding, ensure_uplink, obstacles, outside_device, restore_ports,
    update_containers,
};

use crate::support::*;

fn attached(id: &str, address: &str) -> NetNs {
    let ns = container();
    attach(&AttachRequest::new(&ns, id, &cidrs(address))).unwrap();
    ns
}

#[test]
fn ports_of_containers_are_restored() {
    host(|| {
        launch();
        let a = attached("11111", "10.2.1.1/24");
        let names = DeviceNames::default();
        let mut known = BTreeSet::new();
        let mut restore = |names: &DeviceNames| restore_ports(names, &mut known).unwrap();
        assert_eq!(restore(&names).changes, [""; 0]);
        let before = snapshot();
        for (harm, expected) in [
            (
                "ip link set vethwepl11111 nomaster; bridge link set dev vethwepl11111 hairpin on 2>/dev/null; true",
                "vethwepl11111 was not a port of weave",
            ),
            ("ip link set vethwepl11111 down", "vethwepl11111 was down"),
            ("ip link set vethwepl11111 mtu 1500", "the MTU of vethwepl11111 was 1500"),
        ] {
            sh(harm);
            assert_eq!(restore(&names).changes, [expected], "{harm}");
            assert_eq!(
                snapshot().replace("hairpin Some(false)", "hairpin Some(true)"),
                before.replace("hairpin Some(false)", "hairpin Some(true)"),
                "{harm}"
            );
        }
        // Where other peers are, only a port that was seen on this bridge belongs to it.
        sh("ip link add weave-b type bridge; ip link set vethwepl11111 nomaster");
        assert_eq!(restore_ports(&names, &mut BTreeSet::new()).unwrap().changes, [""; 0]);
        assert_eq!(restore(&names).changes, ["vethwepl11111 was not a port of weave"]);
        // Another bridge is somebody's decision.
        sh("ip link add br0 type bridge; ip link set vethwepl11111 master br0");
        let found = restore(&names);
        assert!(
            found.changes.is_empty() && found.problems[0].starts_with("vethwepl11111 is a port of br0"),
            "{found:?}"
        );
        sh("ip link set vethwepl11111 master weave");
        assert_eq!(restore(&names), Default::default());
        drop(a);
    });
}

#[test]
fn containers_of_earlier_launches_get_mtu_and_igmp() {
    host(|| {
        launch();
        let (plain, lowered) = (attached("11111", "10.2.1.1/24"), attached("22222", "10.2.1.2/24"));
        assert_eq!(update_containers("weave"), Ok(UpdatedContainers::default()), "nothing to do");
        sh_in(&lowered, "ip link set ethwe mtu 900");
        // As 2.8.1 made it.
        sh_in(&plain, "iptables -D INPUT -d 224.0.0.0/4 -i ethwe -p igmp -j ACCEPT");
        // The namespaces of this test belong to no process and have no name.
        let holders: Vec<_> = [&plain, &lowered].map(Holder::of).into();
        for mtu in [1200, 1400] {
            ensure_bridge(&BridgeConfig { mtu: Mtu::Exactly(mtu), ..bridge_config() }).unwrap();
            ensure_uplink(&DeviceNames::default()).unwrap();
            let updated = update_containers("weave").unwrap();
            assert_eq!(
                (updated.changes.len(), updated.problems.len()),
                (if mtu == 1200 { 2 } else { 1 }, 0),
                "{updated:?}"
            );
            let of = |ns: &NetNs| ns.netlink().unwrap().link("ethwe").unwrap().unwrap().mtu;
            assert_eq!((of(&plain), of(&lowered)), (mtu, 900), "one that was lowered by hand is kept");
            for port in ["vethwepl11111", "vethwepl22222"] {
                assert!(sh(&format!("ip link show {port}")).contains(&format!("mtu {mtu}")));
            }
        }
        let rules = sh_in(&plain, "iptables -S INPUT");
        assert!(rules.find("-p igmp -j ACCEPT") < rules.find("-j DROP") && rules.contains("igmp"), "{rules}");
        assert_eq!(update_containers("weave"), Ok(UpdatedContainers::default()));
        drop(holders);
        ensure_bridge(&BridgeConfig { mtu: Mtu::Exactly(1300), ..bridge_config() }).unwrap();
        let lost = update_containers("weave").unwrap();
        assert!(
            lost.problems.len() == 2 && lost.problems[0].contains("namespace cannot be found"),
            "{lost:?}"
        );
    });
}

#[test]
fn forwarding_is_switched_on_again() {
    host(|| {
        launch();
        sh("sysctl -qw net.ipv4.ip_forward=0");
        let host = "IP forwarding of this host was off (net.ipv4.ip_forward)";
        let bridge = "IP forwarding of the bridge was off (net.ipv4.conf.weave.forwarding)";
        assert_eq!(ensure_forwarding("weave").unwrap(), [host]);
        sh("sysctl -qw net.ipv4.conf.weave.forwarding=0");
        assert_eq!(ensure_forwarding("weave").unwrap(), [bridge]);
        assert_eq!(ensure_forwarding("weave").unwrap(), [""; 0]);
    });
}

#[test]
fn frames_do_not_bypass_the_bridge_where_something_wants_to_see_them() {
    host(|| {
        launch();
        sh("for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done");
        let _containers = [attached("11111", "10.2.1.1/24"), attached("22222", "10.2.1.2/24")];
        sh("ip link add loose type veth peer name other");
        let found = || {
            let ports = weave_host::shortcut_ports("weave").unwrap();
            assert_eq!(ports.with.is_empty(), ports.why_none.is_some());
            (ports.with.len(), ports.without.len())
        };
        // Besides containers: the uplink, its other end, and both ends of the loose one.
        assert_eq!(found(), (2, 4));
        let port = weave_host::shortcut_ports("weave").unwrap().with[0].name.clone();
        for (set, unset, left) in [
            (
                "tc qdisc add dev PORT root tbf rate 1gbit burst 100k latency 10ms",
                "tc qdisc del dev PORT root",
                1,
            ),
            ("tc qdisc add dev PORT ingress", "tc qdisc del dev PORT ingress", 1),
            ("tc qdisc add dev PORT clsact", "tc qdisc del dev PORT clsact", 1),
            ("bridge link set dev PORT isolated on", "bridge link set dev PORT isolated off", 1),
            ("bridge link set dev PORT learning off", "bridge link set dev PORT learning on", 1),
            (
                "ip link set weave type bridge vlan_filtering 1",
                "ip link set weave type bridge vlan_filtering 0",
                0,
            ),
            (
                "ip link set weave type bridge nf_call_iptables 1",
                "ip link set weave type bridge nf_call_iptables 0",
                0,
            ),
            ("nft add table bridge filter", "nft delete table bridge filter", 0),
        ] {
            let set = set.replace("PORT", &port);
            if !sh(&format!("{set} 2>&1 || true")).is_empty() {
                eprintln!("SKIPPED: this machine cannot do {set}");
                continue;
            }
            assert_eq!(found().0, left, "{set}");
            sh(&unset.replace("PORT", &port));
            assert_eq!(found(), (2, 4), "{unset}");
        }
        if std::path::Path::new("/proc/sys/net/bridge").exists() {
            for which in ["iptables", "ip6tables", "arptables"] {
                sh(&format!("echo 1 > /proc/sys/net/bridge/bridge-nf-call-{which}"));
                assert_eq!(found().0, 0, "{which}");
                sh(&format!("echo 0 > /proc/sys/net/bridge/bridge-nf-call-{which}"));
            }
        }
    });
}

#[test]
fn obstacles_of_other_programs_are_found() {
    host(|| {
        launch();
        ensure_forwarding("weave").unwrap();
        sh(
            "ip link add out type veth peer name far; ip link set far up; ip addr add 203.0.113.1/24 dev out; ip link set out up; ip route add default via 203.0.113.2",
        );
        // Only exists where the module br_netfilter is loaded.
        let bridged = |on: u8| {
            sh(&format!(
                "for key in iptables ip6tables; do f=/proc/sys/net/bridge/bridge-nf-call-$key; [ ! -e $f ] || echo {on} > $f; done"
            ))
        };
        bridged(0);
        let exposed = cidrs("10.2.1.1/24");
        add_bridge_address("weave", exposed[0]).unwrap();
        let found = |exposed: &[_]| obstacles("weave", 6783, exposed).unwrap();
        assert_eq!(found(&exposed), [""; 0]);

        sh("sysctl -qw net.ipv4.conf.out.forwarding=0");
        assert!(found(&exposed)[0].contains("net.ipv4.conf.out.forwarding is 0"), "{:?}", found(&exposed));
        assert_eq!(found(&[]), [""; 0]);
        sh("sysctl -qw net.ipv4.conf.out.forwarding=1");

        sh("ip rule add from all lookup 77 priority 10; ip route add 10.2.1.0/24 dev out table 77");
        assert!(
            found(&exposed)[0]
                .starts_with("this host routes packets for 10.2.1.0/24 to out instead of weave"),
            "{:?}",
            found(&exposed)
        );
        sh("ip rule del priority 10");
        sh("ip route add unreachable 10.2.1.0/25; true");
        assert!(found(&exposed)[0].contains("10.2.1.0/24 nowhere instead"), "{:?}", found(&exposed));
        sh("ip route del unreachable 10.2.1.0/25");
        assert_eq!(found(&exposed), [""; 0]);

        if sh("command -v nft || true").is_empty() {
            eprintln!("SKIPPED: nft is not installed");
            return;
        }
        sh(
            "nft add table inet firewalld; nft 'add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }'; \
            nft add rule inet firewalld filter_FORWARD ct state established,related accept; \
            nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
        );
        let lines = found(&exposed);
        assert!(
            lines.len() == 1
                && lines[0].contains("table inet firewalld, chain filter_FORWARD, drops packets from containers to other networks")
                && lines[0].contains("firewall-cmd --permanent --zone=trusted --add-interface=weave"),
            "{lines:?}"
        );
        assert_eq!(found(&[]), [""; 0], "nothing is exposed");
        if std::path::Path::new("/proc/sys/net/bridge").exists() {
            bridged(1);
            assert!(
                found(&[])[0].contains(
                    "drops IPv4 packets between containers (net.bridge.bridge-nf-call-iptables is 1)"
                )
            );
            bridged(0);
        }
        sh(
            "nft insert rule inet firewalld filter_FORWARD iifname weave accept; nft insert rule inet firewalld filter_FORWARD oifname weave accept",
        );
        assert_eq!(found(&exposed), [""; 0]);

        sh("iptables -A INPUT -i lo -j ACCEPT; iptables -P INPUT DROP");
        let lines = found(&[]);
        assert!(
            lines.len() == 1
                && lines[0].contains(
                    "drops packets of other peers to TCP port 6783, packets of other peers to UDP port 6783"
                ),
            "{lines:?}"
        );
        sh("iptables -A INPUT -s 198.51.100.0/24 -j ACCEPT");
        assert_eq!(found(&[]), [""; 0], "these may be the peers");
    });
}

/// An IGMPv2 general query from 0.0.0.0, which a snooping switch without an address of its own sends (RFC 4541 section 2.1.1).
fn igmp_query(from: [u8; 6]) -> Vec<u8> {
    fn checksum(bytes: &[u8]) -> [u8; 2] {
        let sum: u32 = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        (!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes()
    }
    // A header with the option router alert; answers are due within 0.1 seconds.
    let mut ip = [0x46, 0xc0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 224, 0, 0, 1, 0x94, 4, 0, 0];
    let mut igmp = [0x11, 1, 0, 0, 0, 0, 0, 0];
    let (header, body) = (checksum(&ip), checksum(&igmp));
    ip[10..12].copy_from_slice(&header);
    igmp[2..4].copy_from_slice(&body);
    [&[1, 0, 0x5e, 0, 0, 1][..], &from, &[8, 0], &ip, &igmp].concat()
}

#[test]
fn container_reports_its_groups_to_a_querier_without_an_address() {
    host(|| {
        launch();
        let (querier, member) = (attached("11111", "10.2.1.1/24"), attached("22222", "10.2.1.2/24"));
        sh_in(&member, "ip addr add 239.1.2.3/32 dev ethwe autojoin");
        let tap = Tap::in_container(&querier, "ethwe");
        let mac = querier.netlink().unwrap().link("ethwe").unwrap().unwrap().mac.unwrap();
        let answer = |tap: &Tap, timeout| {
            tap.send(&igmp_query(mac.0));
            // A report of version 2. Those that are sent without a query are of version 3.
            tap.find(timeout, |f| {
                f[12..14] == [8, 0] && f[23] == 2 && f[38] == 0x16 && f[42..46] == [239, 1, 2, 3]
            })
        };
        sh_in(&member, "iptables -D INPUT -i ethwe -d 224.0.0.0/4 -p igmp -j ACCEPT");
        assert_eq!(answer(&tap, std::time::Duration::from_millis(500)), None, "as attached by 2.8.1");
        let holder = Holder::of(&member);
        assert_eq!(update_containers("weave").unwrap().changes.len(), 1);
        assert!(answer(&tap, TIMEOUT).is_some());
        drop(holder);
    });
}

#[test]
fn device_of_the_default_route_and_ports_of_vxlan_devices() {
    host(|| {
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(outside_device(&mut netlink), Ok(None));
        sh("ip link add dummy type bridge; ip addr add 192.0.2.77/24 dev dummy; ip link set dummy up");
        sh("ip link add other type vxlan id 1 dstport 6784 dev dummy; ip route add default via 192.0.2.78");
        let outside = outside_device(&mut netlink).unwrap().map(|link| link.name);
        assert_eq!(outside.as_deref(), Some("dummy"));
        let port = |netlink: &mut Netlink, name| netlink.link(name).unwrap().unwrap().vxlan_port;
        assert_eq!((port(&mut netlink, "other"), port(&mut netlink, "dummy")), (Some(6784), None));
    });
}
