use weave_host::fault_injection::fail_nth;
use weave_host::{
    NetNs, Netlink, announce_interfaces, create_endpoint, has_multicast_route, remove_endpoint,
    remove_unused_endpoint,
};

use crate::support::*;

const OUTSIDE: &str = "vethwla1b2c3d4e";
const INSIDE: &str = "vethwga1b2c3d4e";

fn create(replace: bool) -> Result<weave_types::MacAddr, weave_host::Error> {
    create_endpoint("weave", OUTSIDE, INSIDE, replace)
}

/// Moves the inner end into a container, as Docker does.
fn move_inside(ns: &NetNs) {
    let mut netlink = Netlink::open().unwrap();
    let end = netlink.link(INSIDE).unwrap().unwrap();
    netlink.move_to(&end, ns).unwrap();
    sh_in(
        ns,
        &format!(
            "ip link set {INSIDE} name ethwe0; ip link set ethwe0 up; ip addr add 10.2.1.7/24 dev ethwe0"
        ),
    );
}

#[test]
fn endpoints_are_ports_of_the_bridge_and_complete_or_not_there() {
    host(|| {
        launch();
        let before = snapshot();
        let mac = create(false).unwrap();
        let mut netlink = Netlink::open().unwrap();
        let [port, end, bridge] = [OUTSIDE, INSIDE, "weave"].map(|name| netlink.link(name).unwrap().unwrap());
        assert!(port.up && port.master == Some(bridge.index) && port.mtu == bridge.mtu);
        assert_eq!((end.mac, end.mtu, end.master), (Some(mac), bridge.mtu, None));
        let again = create(false).unwrap_err().to_string();
        assert_eq!(again, format!("could not create veth pair {OUTSIDE}-{INSIDE}: file exists"));
        assert!(create(true).is_ok(), "nobody has it");

        let ns = container();
        move_inside(&ns);
        assert!(create(true).is_err(), "a container has it");
        assert!(!remove_unused_endpoint(INSIDE).unwrap());
        assert!(remove_endpoint(OUTSIDE).unwrap() && !remove_endpoint(OUTSIDE).unwrap());
        assert_eq!(snapshot(), before);

        let mut failures = 0;
        for n in 0.. {
            let (result, failed) = {
                let injection = fail_nth(n);
                (create(true), injection.failed())
            };
            let Some(operation) = failed else { break };
            match result {
                Ok(_) => assert!(remove_endpoint(OUTSIDE).unwrap()),
                Err(e) => {
                    failures += 1;
                    assert_eq!(snapshot(), before, "{operation}: {e}");
                }
            }
        }
        assert!(failures > 4, "{failures}");
    });
}

#[test]
fn interfaces_that_docker_has_moved_are_announced() {
    host(|| {
        launch();
        create(false).unwrap();
        let ns = container();
        assert!(!has_multicast_route(&ns).unwrap());
        move_inside(&ns);
        let sniffer = Tap::on("vethwe-datapath");
        assert_eq!(announce_interfaces(&ns, "ethwe").unwrap(), [""; 0]);
        assert!(sniffer.find(TIMEOUT, |f| is_arp_request_for(f, [10, 2, 1, 7])).is_some());
        let time = sh_in(&ns, "cat /proc/sys/net/ipv4/neigh/ethwe0/base_reachable_time");
        assert_eq!(time.trim(), "5");
        sh_in(&ns, "ip route add 224.0.0.0/4 dev ethwe0");
        assert!(has_multicast_route(&ns).unwrap());
    });
}
