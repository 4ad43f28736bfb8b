//! Takeover of a host of 2.8.1, and the return to it. The kernel may have no Open vSwitch: then `lo`, a link without a kind, stands for
//! a datapath that cannot be removed.

use weave_host::{
    AttachRequest, BridgeKind, DeviceNames, Error, LegacyDatapath, attach, bridge_kind, ensure_bridge,
    ensure_uplink, legacy_bridge_kind, link_mac, remove_legacy_datapath, restore_legacy_devices, tx_checksum,
};

use crate::support::*;

/// The devices that 2.8.1 creates without a fast datapath: MTU 65535, and a bridge that takes its MTU from its ports.
fn plain_host() {
    sh("ip link add weave type bridge; ip link set weave address 02:42:ac:11:00:01; \
        ip link add vethwedu mtu 65535 type veth peer name vethwedup mtu 65535; ip link set vethwedu master weave; \
        ip link del vethwedu; \
        ip link add vethwe-bridge mtu 65535 type veth peer name vethwe-pcap mtu 65535; \
        ip link set vethwe-bridge master weave; ip link set vethwe-pcap up; ip link set vethwe-bridge up; \
        ethtool -K weave tx off >/dev/null; ip link set weave up; ip addr add 10.2.1.254/24 dev weave");
}

#[test]
fn plain_bridge_is_taken_over_and_restored() {
    host(|| {
        plain_host();
        let names = DeviceNames::default();
        assert_eq!(legacy_bridge_kind(&names), Ok(Some(BridgeKind::Bridge)));
        let [a, b] = ["10.2.1.1/24", "10.2.1.2/24"].map(|address| {
            let (ns, id) = (container(), address[7..8].repeat(5));
            let cidrs = cidrs(address);
            attach(&AttachRequest { keep_tx_on: false, ..AttachRequest::new(&ns, &id, &cidrs) }).unwrap();
            ns
        });
        let inside = [snapshot_of(&a), snapshot_of(&b)];
        let addresses = || sh("ip -4 -o addr show dev weave");
        let before = addresses();

        assert_eq!(remove_legacy_datapath(&names), Ok(LegacyDatapath::NotFound));
        let bridge = ensure_bridge(&bridge_config()).unwrap();
        let uplink = ensure_uplink(&names).unwrap();
        assert_eq!((bridge.created, bridge.mtu, uplink.mtu), (false, 65535, 65535));
        assert_eq!((link_mac("vethwe-pcap"), legacy_bridge_kind(&names)), (Ok(None), Ok(None)));
        assert_eq!([snapshot_of(&a), snapshot_of(&b)], inside, "containers are as they were");
        assert_eq!(addresses(), before);
        let reaches =
            || sh_in(&a, "ping -c 1 -W 1 10.2.1.2 >/dev/null && echo yes || echo no").trim() == "yes";
        eventually("the other container", reaches);

        // A container that was attached meanwhile sends packets without checksums, which packet capture does not support.
        let (c, cidr) = (container(), cidrs("10.2.1.3/24"));
        attach(&AttachRequest::new(&c, "33333", &cidr)).unwrap();
        let offload = |ns: &weave_host::NetNs| ns.run(|| tx_checksum("ethwe")).unwrap();
        // Containers are found by their processes.
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&c));
        let mut process = std::process::Command::new("nsenter")
            .args([&format!("--net={path}"), "sleep", "600"])
            .spawn()
            .unwrap();
        let there = || {
            let here = weave_host::NetNs::of_process(process.id());
            here.is_ok_and(|ns| ns.id() == c.id())
        };
        eventually("the process in the container", there);
        assert_eq!(offload(&c), Ok(true));
        let done = restore_legacy_devices(&names, Some(BridgeKind::Bridge)).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!((done.kind, &done.removed[..]), (BridgeKind::Bridge, &["vethwe-bridge".to_owned()][..]));
        assert_eq!(done.checksums.len(), 1, "{done:?}");
        assert_eq!(offload(&c), Ok(false));
        assert_eq!([snapshot_of(&a), snapshot_of(&b)], inside);
        assert_eq!(
            (link_mac("vethwe-datapath"), bridge_kind(&names)),
            (Ok(None), Ok(Some(BridgeKind::Bridge)))
        );
        assert_eq!(link_mac("weave"), Ok(Some(PEER)));
        assert!(sh("ip link show weave").contains("mtu 65535"));
        assert!(
            restore_legacy_devices(&names, Some(BridgeKind::Bridge)).unwrap().removed.is_empty(),
            "nothing is left to remove"
        );
    });
}

#[test]
fn a_bridge_without_containers_keeps_its_mtu() {
    host(|| {
        plain_host();
        sh(
            "ip link del vethwe-bridge; ip link add vethwe-bridge mtu 8950 type veth peer name vethwe-pcap mtu 8950; \
            ip link set vethwe-bridge master weave; ip link set vethwe-bridge up",
        );
        let mtu = sh("ip -o link show weave | sed 's/.* mtu \\([0-9]*\\).*/\\1/'");
        ensure_bridge(&bridge_config()).unwrap();
        let uplink = ensure_uplink(&DeviceNames::default()).unwrap();
        assert_eq!(uplink.mtu.to_string(), mtu.trim());
        assert!(sh("ip link show weave").contains(&format!("mtu {} ", mtu.trim())));
    });
}

#[test]
fn failed_removal_of_a_datapath_changes_nothing() {
    host(|| {
        plain_host();
        let names = DeviceNames { legacy_datapath: "lo".into(), ..DeviceNames::default() };
        assert_eq!(legacy_bridge_kind(&names), Ok(Some(BridgeKind::BridgedFastdp)));
        let before = snapshot();
        match remove_legacy_datapath(&names) {
            Err(Error::MissingFeature { step, feature }) => {
                assert_eq!(step, "deleting Open vSwitch datapath lo");
                assert_eq!(feature, "Open vSwitch (module openvswitch)");
            }
            // A kernel with Open vSwitch reports that this is no datapath.
            Err(Error::Refused { step, .. }) => assert_eq!(step, "deleting Open vSwitch datapath lo"),
            other => panic!("{other:?}"),
        }
        assert_eq!(snapshot(), before);
    });
}

#[test]
fn bridged_datapath_is_taken_over_and_restored() {
    host(|| {
        let names = DeviceNames { legacy_datapath: "wtest-dp".into(), ..DeviceNames::default() };
        sh("ip link add weave type bridge; ip link set weave up");
        match weave_host::restore_legacy_datapath(&names) {
            Err(Error::MissingFeature { .. }) => {
                eprintln!("SKIPPED: this kernel has no Open vSwitch");
                assert_eq!(restore_legacy_devices(&names, None).unwrap().kind, BridgeKind::Bridge);
                let wanted = restore_legacy_devices(&names, Some(BridgeKind::BridgedFastdp));
                assert!(matches!(wanted, Err(Error::MissingFeature { .. })), "{wanted:?}");
                return;
            }
            result => result.unwrap(),
        }
        assert_eq!(legacy_bridge_kind(&names), Ok(Some(BridgeKind::BridgedFastdp)));
        assert_eq!(remove_legacy_datapath(&names), Ok(LegacyDatapath::Removed("wtest-dp".into())));
        ensure_uplink(&names).unwrap();
        assert_eq!(legacy_bridge_kind(&names), Ok(None));
        assert_eq!(restore_legacy_devices(&names, None).unwrap().kind, BridgeKind::BridgedFastdp);
        assert_eq!(legacy_bridge_kind(&names), Ok(Some(BridgeKind::BridgedFastdp)));
        assert_eq!(remove_legacy_datapath(&names), Ok(LegacyDatapath::Removed("wtest-dp".into())));
    });
}
