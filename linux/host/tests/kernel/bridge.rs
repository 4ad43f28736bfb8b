use std::net::UdpSocket;

use weave_host::{
    AttachRequest, BridgeConfig, BridgeKind, DeviceNames, Error, IngressDrop, Mtu, Netlink, attach,
    bridge_kind, ensure_bridge, ensure_uplink, identity, link_mac, remove_all, stale_links,
};
use weave_types::{MacAddr, PeerName};

use crate::support::*;

fn sysctl(path: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap().trim().to_owned()
}

#[test]
fn bridge_and_uplink_are_created_once() {
    host(|| {
        assert_eq!(bridge_kind(&DeviceNames::default()), Ok(None));
        let info = ensure_bridge(&bridge_config()).unwrap();
        assert!(info.created && info.mtu == 1376 && info.warnings.is_empty(), "{info:?}");
        assert_eq!(bridge_kind(&DeviceNames::default()).unwrap().map(BridgeKind::name), Some("bridge"));
        assert_eq!(link_mac("weave"), Ok(Some(PEER)));
        let name = identity::peer_name("weave", &identity::Sources::default(), None);
        assert_eq!(name, Ok(PeerName::from_bytes(PEER.0)));

        let uplink = ensure_uplink(&DeviceNames::default()).unwrap();
        assert!(uplink.created && uplink.mtu == 1376);
        assert!(!matches!(uplink.ingress_drop, IngressDrop::Missing(_)), "{uplink:?}");

        let mut netlink = Netlink::open().unwrap();
        let mut link = |name: &str| netlink.link(name).unwrap().unwrap();
        let (bridge, port, device) = (link("weave"), link("vethwe-bridge"), link("vethwe-datapath"));
        assert!(bridge.up && port.up && device.up);
        assert_eq!((bridge.mtu, port.mtu, device.mtu), (1376, 1376, 1376));
        assert_eq!((port.master, port.hairpin), (Some(bridge.index), Some(false)));
        assert_eq!((device.master, port.peer), (None, Some(device.index)));
        // The address of the bridge is the peer name, and does not change with its ports.
        assert_eq!(bridge.mac, Some(PEER));
        assert_eq!(sysctl("ipv6/conf/weave/accept_ra"), "0");
        for (key, value) in
            [("base_reachable_time", "5"), ("delay_first_probe_time", "2"), ("ucast_solicit", "1")]
        {
            assert_eq!(sysctl(&format!("ipv4/neigh/weave/{key}")), value);
        }
        for end in ["vethwe-bridge", "vethwe-datapath"] {
            assert_eq!(sysctl(&format!("ipv6/conf/{end}/accept_ra")), "0");
            assert_eq!(sysctl(&format!("ipv6/conf/{end}/disable_ipv6")), "1");
        }
        assert_eq!(sysctl("ipv4/conf/vethwe-datapath/arp_ignore"), "8");

        let before = snapshot();
        let again = ensure_bridge(&bridge_config()).unwrap();
        assert!(!again.created && again.index == bridge.index);
        let second = ensure_uplink(&DeviceNames::default()).unwrap();
        assert_eq!(second, weave_host::UplinkInfo { created: false, ..uplink });
        assert_eq!(snapshot(), before);
        assert_eq!(stale_links(&DeviceNames::default()).unwrap(), []);
    });
}

#[test]
fn existing_bridge_keeps_its_mtu_unless_configured() {
    host(|| {
        sh("ip link add weave type bridge; ip link set weave mtu 8950");
        let info = ensure_bridge(&bridge_config()).unwrap();
        assert_eq!((info.created, info.mtu), (false, 8950));
        assert_eq!(link_mac("weave"), Ok(Some(PEER)));
        assert_eq!(ensure_uplink(&DeviceNames::default()).unwrap().mtu, 8950);

        let config =
            BridgeConfig { mtu: Mtu::Exactly(1400), mac: MacAddr([2, 0, 0, 0, 0, 9]), ..bridge_config() };
        assert_eq!(ensure_bridge(&config).unwrap().mtu, 1400);
        let uplink = ensure_uplink(&DeviceNames::default()).unwrap();
        assert_eq!((uplink.created, uplink.mtu), (false, 1400));
        assert_eq!(link_mac("weave"), Ok(Some(config.mac)));
    });
}

#[test]
fn failed_setup_leaves_nothing() {
    host(|| {
        let before = snapshot();
        let config = BridgeConfig { mtu: Mtu::Default(70_000), ..bridge_config() };
        let error = ensure_bridge(&config).unwrap_err().to_string();
        assert!(error.starts_with("setting the MTU of weave to 70000: "), "{error}");
        assert_eq!(snapshot(), before);
        for mac in [MacAddr([1, 2, 3, 4, 5, 6]), MacAddr::ZERO] {
            let error = ensure_bridge(&BridgeConfig { mac, ..bridge_config() }).unwrap_err();
            assert!(
                matches!(&error, Error::Argument(t) if t.contains("cannot be the Ethernet address")),
                "{error}"
            );
        }
        assert_eq!(snapshot(), before);
        let none = Error::State("bridge \"weave\" not present; did you launch weave?".into());
        assert_eq!(ensure_uplink(&DeviceNames::default()), Err(none));

        sh("ip link add weave type veth peer name other");
        let error = ensure_bridge(&bridge_config()).unwrap_err().to_string();
        assert!(
            error.starts_with("interface weave exists and is not a Linux bridge but of kind veth;"),
            "{error}"
        );
        let inconsistent = "Inconsistent bridge state detected. Please do 'weave reset' and try again";
        assert_eq!(bridge_kind(&DeviceNames::default()), Err(Error::State(inconsistent.into())));
    });
}

#[test]
fn incomplete_and_legacy_uplinks_are_replaced() {
    host(|| {
        ensure_bridge(&bridge_config()).unwrap();
        sh(
            "ip link add vethwe-bridge type veth peer name vethwe-pcap; ip link set vethwe-bridge master weave",
        );
        sh("ip link add vethwedu type bridge");
        let stale: Vec<_> =
            stale_links(&DeviceNames::default()).unwrap().into_iter().map(|l| l.name).collect();
        assert_eq!(stale, ["vethwe-bridge", "vethwedu"]);
        assert!(ensure_uplink(&DeviceNames::default()).unwrap().created);
        assert_eq!(link_mac("vethwe-pcap"), Ok(None));

        sh("ip link set vethwe-datapath name other");
        let info = ensure_uplink(&DeviceNames::default()).unwrap();
        assert!(info.created);
        assert_eq!(link_mac("other"), Ok(None));

        sh("ip link del vethwe-bridge; ip link add vethwe-bridge type bridge");
        let error = ensure_uplink(&DeviceNames::default()).unwrap_err().to_string();
        assert!(error.starts_with("interface vethwe-bridge exists and is not a veth device"), "{error}");
    });
}

#[test]
fn changed_uplink_is_restored() {
    host(|| {
        let first = launch();
        let before = snapshot();
        sh("tc qdisc del dev vethwe-datapath clsact");
        let same = weave_host::UplinkInfo { created: false, ..first };
        assert_eq!(ensure_uplink(&DeviceNames::default()).unwrap(), same);
        assert_eq!(snapshot(), before);
        let port = || sh("bridge -d link show dev vethwe-bridge");
        let port_before = port();
        for (harm, expected) in [
            ("ip link set vethwe-datapath down", "vethwe-datapath was down"),
            ("ip link set vethwe-bridge down", "vethwe-bridge was down"),
            ("ip link set vethwe-bridge nomaster", "vethwe-bridge was not a port of weave"),
            ("ip link set vethwe-bridge mtu 1500", "the MTU of vethwe-bridge was 1500"),
            ("bridge link set dev vethwe-bridge hairpin on", "Hairpin mode enabled on \"vethwe-bridge\""),
            (
                "bridge link set dev vethwe-bridge flood off",
                "bridge port vethwe-bridge did not get frames to addresses that the bridge does not know",
            ),
            (
                "bridge link set dev vethwe-bridge bcast_flood off",
                "bridge port vethwe-bridge did not get broadcasts",
            ),
            (
                "bridge link set dev vethwe-bridge isolated on",
                "bridge port vethwe-bridge was isolated from containers",
            ),
            ("bridge link set dev vethwe-bridge state 0", "bridge port vethwe-bridge was disabled"),
            (
                "sysctl -qw net.ipv4.conf.vethwe-datapath.arp_ignore=0",
                "arp_ignore of vethwe-datapath was not 8: this host would answer ARP requests of containers of other hosts",
            ),
        ] {
            sh(harm);
            let restored = ensure_uplink(&DeviceNames::default()).unwrap();
            assert_eq!(restored.changes, [expected], "{harm}");
            assert_eq!(ensure_uplink(&DeviceNames::default()).unwrap(), same, "{harm}");
            assert_eq!((snapshot(), port()), (before.clone(), port_before.clone()), "{harm}");
        }
        for (harm, expected) in [
            (
                "ip link set weave down",
                "Interface \"weave\" which needs to be in UP state for Weave functioning is found to be in DOWN state",
            ),
            (
                "ip link set weave address 02:00:00:00:00:01",
                "the Ethernet address of weave was not 02:42:ac:11:00:01",
            ),
            (
                "sysctl -qw net.ipv4.conf.weave.promote_secondaries=0",
                "promote_secondaries of weave was not 1: the kernel removes all exposed addresses of a subnet together with the first one",
            ),
        ] {
            sh(harm);
            assert_eq!(ensure_bridge(&bridge_config()).unwrap().changes, [expected], "{harm}");
            assert_eq!(snapshot(), before, "{harm}");
        }
    });
}

#[test]
fn host_stack_ignores_frames_of_the_switch() {
    host(|| {
        launch();
        sh("ip addr add 10.32.0.1/24 dev weave");
        let ns = container();
        attach(&AttachRequest::new(&ns, "1", &cidrs("10.32.0.2/24"))).unwrap();
        let (inside, switch) = (Tap::in_container(&ns, "ethwe"), Tap::on("vethwe-datapath"));
        let mac = ns.netlink().unwrap().link("ethwe").unwrap().unwrap().mac.unwrap();
        let server = UdpSocket::bind("0.0.0.0:9999").unwrap();
        let ask = || inside.send(&arp_request(mac, [10, 32, 0, 2], [10, 32, 0, 1]));
        let broadcast = || {
            ns.run(|| {
                let client = UdpSocket::bind("10.32.0.2:0").unwrap();
                client.set_broadcast(true).unwrap();
                client.send_to(b"hello", "255.255.255.255:9999").unwrap();
            })
            .unwrap();
        };
        sh_in(&ns, "ip route add 255.255.255.255/32 dev ethwe");
        let answers = |timeout| inside.find(timeout, |f| is_arp_reply_from(f, [10, 32, 0, 1])).is_some();

        ask();
        assert!(answers(TIMEOUT), "the bridge answers");
        assert!(!answers(SILENCE), "nothing else answers");
        assert!(
            switch.find(TIMEOUT, |f| is_arp_request_for(f, [10, 32, 0, 1])).is_some(),
            "the switch receives it"
        );
        broadcast();
        assert_eq!(count_datagrams(&server), 1);
        assert!(
            switch.find(TIMEOUT, |f| f.len() == 47 && f[12..14] == [8, 0]).is_some(),
            "the switch receives it"
        );

        // Without filter and setting everything is received twice.
        sh(
            "tc qdisc del dev vethwe-datapath clsact; echo 0 > /proc/sys/net/ipv4/conf/vethwe-datapath/arp_ignore",
        );
        ask();
        assert!(answers(TIMEOUT) && answers(TIMEOUT));
        broadcast();
        assert_eq!(count_datagrams(&server), 2);
    });
}

#[test]
fn remove_all_removes_our_devices_only() {
    host(|| {
        sh("ip link add br0 type bridge; ip link add other type veth peer name another");
        let before = snapshot();
        launch();
        let (one, two) = (container(), container());
        attach(&AttachRequest::new(&one, "1", &cidrs("10.32.0.1/12"))).unwrap();
        attach(&AttachRequest::new(&two, "2", &cidrs("10.32.0.2/12"))).unwrap();
        let (mut removed, errors) = remove_all(&DeviceNames::default());
        assert_eq!(errors, []);
        removed.sort();
        assert_eq!(removed, ["vethwe-bridge", "vethwe-datapath", "vethwepl1", "vethwepl2", "weave"]);
        assert_eq!(snapshot(), before);
        assert_eq!(one.netlink().unwrap().link("ethwe"), Ok(None));
        assert_eq!(remove_all(&DeviceNames::default()), (vec![], vec![]));
    });
}
