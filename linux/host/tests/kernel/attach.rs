use serde_json::{Value, json};
use weave_host::fault_injection::fail_nth;
use weave_host::{AttachRequest, BridgePorts, DetachRequest, Error, NetNs, Netlink, attach, detach};
use weave_types::MacAddr;

use crate::support::*;

fn rules(ns: &NetNs) -> Vec<String> {
    let all = sh_in(ns, "iptables -S INPUT");
    all.lines().filter(|l| l.contains("ethwe")).map(str::to_owned).collect()
}

fn ethwe(ns: &NetNs) -> weave_host::Link {
    ns.netlink().unwrap().link("ethwe").unwrap().unwrap()
}

#[test]
fn attach_does_what_2_8_1_does() {
    host(|| {
        launch();
        let ns = container();
        let sniffer = Tap::on("vethwe-datapath");
        let wanted = cidrs("10.32.0.1/12 10.2.1.7/24");
        let attached = attach(&AttachRequest::new(&ns, "1234567890", &wanted)).unwrap();
        assert!(attached.created && attached.added == wanted && attached.warnings.is_empty(), "{attached:?}");

        let mut netlink = Netlink::open().unwrap();
        let port = netlink.link("vethwepl1234567").unwrap().unwrap();
        let bridge = netlink.link("weave").unwrap().unwrap();
        assert!(
            port.up && port.master == Some(bridge.index) && port.hairpin == Some(true) && port.mtu == 1376
        );
        let end = ethwe(&ns);
        assert!(end.up && end.mtu == 1376);
        assert_eq!(ns.netlink().unwrap().addresses_of(&end).unwrap()[..2], wanted[..]);
        assert_eq!(
            rules(&ns),
            [
                "-A INPUT -s 10.2.1.0/24 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
                "-A INPUT -s 10.32.0.0/12 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
                "-A INPUT -d 224.0.0.0/4 -i ethwe -p igmp -j ACCEPT",
                "-A INPUT -d 224.0.0.0/4 -i ethwe -j DROP",
            ]
        );
        assert!(sh_in(&ns, "ip route").contains("224.0.0.0/4 dev ethwe scope link"));
        for (key, value) in
            [("base_reachable_time", "5"), ("delay_first_probe_time", "2"), ("ucast_solicit", "1")]
        {
            assert_eq!(sh_in(&ns, &format!("cat /proc/sys/net/ipv4/neigh/ethwe/{key}")).trim(), value);
        }
        assert_eq!(sh_in(&ns, "cat /proc/sys/net/ipv6/conf/ethwe/accept_ra").trim(), "0");
        assert_eq!(ns.run(|| weave_host::tx_checksum("ethwe")).unwrap(), Ok(true));
        for target in [[10, 32, 0, 1], [10, 2, 1, 7]] {
            let arp = sniffer.find(TIMEOUT, |f| is_arp_request_for(f, target)).expect("a gratuitous ARP");
            assert_eq!((&arp[..6], &arp[6..12]), (&[0xff; 6][..], &end.mac.unwrap().0[..]));
            assert_eq!(arp[28..32], target);
        }

        let before = (snapshot(), snapshot_of(&ns));
        let again = attach(&AttachRequest::new(&ns, "1234567890", &wanted)).unwrap();
        assert_eq!(again, weave_host::Attached::default());
        // An address is the same whatever its prefix length is.
        let longer = cidrs("10.32.0.1/16");
        assert_eq!(attach(&AttachRequest::new(&ns, "1", &longer)).unwrap(), weave_host::Attached::default());
        assert_eq!((snapshot(), snapshot_of(&ns)), before);
    });
}

/// What `tests/vectors/containers/proxy_attach_trace.json` shows of a container's network: addresses, IPv4 routes, rules, settings.
fn recorded_state(ns: &NetNs) -> Value {
    let lines = |command: &str| -> Vec<String> { sh_in(ns, command).lines().map(str::to_owned).collect() };
    let neighbours = "cd /proc/sys/net/ipv4/neigh; for k in base_reachable_time delay_first_probe_time ucast_solicit; \
                      do [ ! -e ethwe ] || echo ethwe $k $(cat ethwe/$k); done";
    // We let IGMP pass as well (docs/guide/networks.md).
    let rules = lines("iptables -S").into_iter().filter(|rule| !rule.contains("-p igmp")).collect::<Vec<_>>();
    json!({
        "addr": lines("ip -4 -o addr show dev ethwe 2>/dev/null || true"),
        "route": lines("ip -4 route"),
        "iptables": rules,
        "sysctl": lines(neighbours),
    })
}

/// The same of the recording: without the number of the interface, and with nothing where it shows that there is nothing.
fn as_recorded(state: &Value) -> Value {
    let mut state = state.clone();
    state.as_object_mut().unwrap().remove("link");
    for list in state.as_object_mut().unwrap().values_mut() {
        let list = list.as_array_mut().unwrap();
        list.retain(|line| line != "" && !line.as_str().unwrap().starts_with("eth* "));
        for line in list {
            let text = line.as_str().unwrap();
            *line = text.split_once(": ethwe ").map_or(text, |(_, rest)| rest).into();
        }
    }
    state
}

#[test]
fn a_container_of_the_proxy_looks_as_that_of_2_8_1() {
    host(|| {
        let text = include_str!("../../../../tests/vectors/containers/proxy_attach_trace.json");
        let trace: Value = serde_json::from_str(text).unwrap();
        launch();
        let ns = container();
        let (id, addresses) =
            (trace["container_pid"].to_string(), cidrs("10.32.0.2/12 10.2.1.1/24 10.3.0.2/16"));
        attach(&AttachRequest::new(&ns, &id, &addresses)).unwrap();
        let same = |recorded: &Value| assert_eq!(as_recorded(&recorded_state(&ns)), as_recorded(recorded));
        same(&trace["namespace_after_start"]);
        let ports = sh("ip -o link show master weave");
        let recorded = trace["host_links"][0].as_str().unwrap();
        for part in
            [&format!(" vethwepl{id}@if"), "mtu 1376", "master weave", "<BROADCAST,MULTICAST,UP,LOWER_UP>"]
        {
            assert!(ports.contains(part) && recorded.contains(part), "{part}: {ports}");
        }
        assert!(
            sh(&format!("bridge -d link show dev vethwepl{id}"))
                .contains(trace["bridge_port_hairpin"].as_str().unwrap())
        );

        let steps = trace["steps"].as_array().unwrap();
        let later = cidrs("10.7.0.1/24");
        for step in steps {
            match step["op"].as_str().unwrap() {
                "detach 10.2.1.1/24" => drop(detach(&DetachRequest::new(&ns, &addresses[1..2])).unwrap()),
                "attach 10.7.0.1/24" => drop(attach(&AttachRequest::new(&ns, &id, &later)).unwrap()),
                _ => {
                    let all = [&addresses[..], &later].concat();
                    assert!(detach(&DetachRequest::new(&ns, &all)).unwrap().interface_removed);
                }
            }
            same(&step["state"]);
        }
        assert_eq!(steps.len(), 3);
    });
}

#[test]
fn attach_applies_its_options() {
    host(|| {
        launch();
        let ns = container();
        let request = AttachRequest {
            multicast_route: false,
            keep_tx_on: false,
            hairpin: false,
            mtu: Some(1300),
            ifname: "eth7",
            ..AttachRequest::new(&ns, "7", &[])
        };
        assert!(attach(&request).unwrap().created);
        assert!(!sh_in(&ns, "ip route").contains("224.0.0.0"));
        assert_eq!(ns.run(|| weave_host::tx_checksum("eth7")).unwrap(), Ok(false));
        let port = Netlink::open().unwrap().link("vethwepl7").unwrap().unwrap();
        assert_eq!((port.hairpin, port.mtu), (Some(false), 1300));
        assert_eq!(ns.netlink().unwrap().link("eth7").unwrap().unwrap().mtu, 1300);
    });
}

#[test]
fn containers_reach_each_other_and_detach_leaves_nothing() {
    host(|| {
        launch();
        let (one, two) = (container(), container());
        let before = (snapshot(), snapshot_of(&one));
        let addresses = cidrs("10.32.0.1/12");
        attach(&AttachRequest::new(&one, "1", &addresses)).unwrap();
        attach(&AttachRequest::new(&two, "2", &cidrs("10.32.0.2/12"))).unwrap();
        sh_in(&one, "ping -c 1 -W 5 10.32.0.2");
        let detached = detach(&DetachRequest::new(&one, &addresses)).unwrap();
        assert!(detached.interface_removed && detached.removed == addresses && detached.warnings.is_empty());
        assert_eq!(detach(&DetachRequest::new(&one, &addresses)), Err(Error::LinkNotFound));
        detach(&DetachRequest::new(&two, &cidrs("10.32.0.2/12"))).unwrap();
        assert_eq!((snapshot(), snapshot_of(&one)), before);
    });
}

#[test]
fn detach_takes_only_what_it_is_told() {
    host(|| {
        launch();
        let ns = container();
        let all = cidrs("10.2.1.1/24 10.2.1.2/24 10.2.2.1/24 10.2.3.1/24");
        attach(&AttachRequest::new(&ns, "1", &all)).unwrap();
        let own = |ns: &NetNs| {
            let cidrs = ns.netlink().unwrap().addresses_of(&ethwe(ns)).unwrap();
            cidrs.iter().filter(|c| c.addr().is_ipv4()).map(ToString::to_string).collect::<Vec<_>>()
        };
        // The kernel would take 10.2.1.2 along: it is a secondary address of the same subnet.
        let detached =
            detach(&DetachRequest::new(&ns, &cidrs("10.2.1.1/24 10.2.2.1/24 10.9.9.9/24"))).unwrap();
        assert_eq!(detached.removed, cidrs("10.2.1.1/24 10.2.2.1/24"));
        assert!(!detached.interface_removed);
        assert_eq!(own(&ns).len(), 2);
        assert!(own(&ns).contains(&"10.2.1.2/24".to_owned()) && own(&ns).contains(&"10.2.3.1/24".to_owned()));
        assert_eq!(sh_in(&ns, "cat /proc/sys/net/ipv4/conf/ethwe/promote_secondaries").trim(), "0");
        assert_eq!(
            rules(&ns),
            [
                "-A INPUT -s 10.2.3.0/24 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
                "-A INPUT -s 10.2.1.0/24 -d 224.0.0.0/4 -i ethwe -j ACCEPT",
                "-A INPUT -d 224.0.0.0/4 -i ethwe -p igmp -j ACCEPT",
                "-A INPUT -d 224.0.0.0/4 -i ethwe -j DROP",
            ]
        );
        assert!(sh_in(&ns, "ip route").contains("224.0.0.0/4"));
        assert_eq!(
            detach(&DetachRequest::new(&ns, &cidrs("10.9.9.9/24"))),
            Ok(weave_host::Detached::default())
        );
        // A rule that 2.8.1 wrote, by hand.
        sh_in(&ns, "iptables -I INPUT 1 -s 10.2.3.0/24 -d 224.0.0.0/4 -i ethwe -j ACCEPT");
        assert!(
            detach(&DetachRequest::new(&ns, &cidrs("10.2.1.2/24 10.2.3.1/24"))).unwrap().interface_removed
        );
        assert_eq!(rules(&ns), [] as [&str; 0]);
    });
}

/// Makes each operation of `run` fail in turn. A failure must leave the host as it was; a success despite the failure (of an
/// optional operation) is undone by `undo`. Returns how many operations there are.
fn fail_each<T: std::fmt::Debug>(
    ns: &NetNs,
    run: impl Fn() -> Result<T, Error>,
    undo: impl Fn(),
    lines: impl Fn() -> Vec<String>,
) -> usize {
    for n in 0.. {
        let before = lines();
        let (result, failed) = {
            let injection = fail_nth(n);
            (run(), injection.failed())
        };
        let Some(operation) = failed else {
            result.unwrap();
            return n;
        };
        match result {
            Ok(_) => undo(),
            Err(error) => {
                assert!(!matches!(error, Error::Undo { .. }), "operation {n}, {operation}: {error}");
                assert_eq!(lines(), before, "operation {n}, {operation}: {error}, in {ns}");
            }
        }
    }
    unreachable!("the loop ends at the first operation that is not reached")
}

#[test]
fn attach_that_fails_at_any_operation_changes_nothing() {
    host(|| {
        launch();
        let (fresh, used) = (container(), container());
        attach(&AttachRequest {
            multicast_route: false,
            ..AttachRequest::new(&used, "2", &cidrs("10.32.0.2/12"))
        })
        .unwrap();
        let set_down = || drop(sh_in(&used, "ip link set ethwe down"));
        set_down();
        let addresses = cidrs("10.32.0.1/12 10.2.1.1/24");
        let lines = |ns: &NetNs| vec![snapshot(), snapshot_of(ns)];
        let request = AttachRequest { keep_tx_on: false, ..AttachRequest::new(&fresh, "1", &addresses) };
        let undo = || drop(detach(&DetachRequest::new(&fresh, &addresses)).unwrap());
        let count = fail_each(&fresh, || attach(&request), undo, || lines(&fresh));
        assert!(count >= 30, "only {count} operations on a container without interface");
        let request = AttachRequest { keep_tx_on: false, ..AttachRequest::new(&used, "2", &addresses) };
        let undo = || {
            detach(&DetachRequest::new(&used, &addresses)).unwrap();
            set_down();
        };
        let count = fail_each(&used, || attach(&request), undo, || lines(&used));
        assert!(count >= 15, "only {count} operations on an interface that exists and is down");
    });
}

#[test]
fn detach_that_fails_at_any_operation_changes_nothing() {
    host(|| {
        launch();
        let ns = container();
        let all = cidrs("10.32.0.1/12 10.2.1.1/24 10.2.1.2/24");
        let attach_all = || {
            attach(&AttachRequest::new(&ns, "1", &all)).unwrap();
            sh_in(&ns, "ip route add 192.0.2.0/24 via 10.2.1.99; ip route add default via 10.32.0.99");
        };
        attach_all();
        let lines = || {
            let mut lines: Vec<String> =
                format!("{}\n{}", snapshot(), snapshot_of(&ns)).lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        for (addresses, fewest) in
            [("10.2.1.1/24 10.2.1.2/24", 10), ("10.32.0.1/12 10.2.1.1/24 10.2.1.2/24", 8)]
        {
            let addresses = cidrs(addresses);
            let restore = || {
                detach(&DetachRequest::new(&ns, &all)).ok();
                attach_all();
            };
            let count = fail_each(&ns, || detach(&DetachRequest::new(&ns, &addresses)), restore, lines);
            assert!(count >= fewest, "only {count} operations");
            restore();
        }
    });
}

#[test]
fn attach_reports_invalid_arguments_and_changes_nothing() {
    host(|| {
        let ns = container();
        let before = (snapshot(), snapshot_of(&ns));
        let addresses = cidrs("10.32.0.1/12");
        let error = attach(&AttachRequest::new(&ns, "1", &addresses)).unwrap_err();
        assert_eq!(error.to_string(), "bridge \"weave\" not present; did you launch weave?");
        let here = NetNs::current().unwrap();
        assert!(matches!(attach(&AttachRequest::new(&here, "1", &addresses)), Err(Error::Argument(_))));
        for id in ["", "a/b", "a b"] {
            launch();
            assert!(
                matches!(attach(&AttachRequest::new(&ns, id, &addresses)), Err(Error::Argument(_))),
                "{id:?}"
            );
            weave_host::remove_all(&weave_host::DeviceNames::default());
        }
        assert_eq!((snapshot(), snapshot_of(&ns)), before);

        launch();
        attach(&AttachRequest::new(&ns, "1", &addresses)).unwrap();
        let error = attach(&AttachRequest::new(&container(), "1", &addresses)).unwrap_err();
        assert_eq!(error.to_string(), "could not create veth pair vethwepl1-vethwepg1: file exists");
    });
}

#[test]
fn remains_of_a_killed_attach_are_removed() {
    host(|| {
        launch();
        let ns = container();
        // Killed before the container's end was moved, and after.
        sh("ip link add vethwepl1 type veth peer name vethwepg1");
        assert_eq!(weave_host::stale_links(&weave_host::DeviceNames::default()).unwrap().len(), 1);
        assert!(attach(&AttachRequest::new(&ns, "1", &[])).unwrap().created);
        sh_in(&ns, "ip link set ethwe down; ip link set ethwe name vethwepg1");
        assert!(attach(&AttachRequest::new(&ns, "1", &[])).unwrap().created);
        // Killed before the host's end was set up.
        sh("ip link set vethwepl1 down");
        assert!(!attach(&AttachRequest::new(&ns, "1", &[])).unwrap().created);
        assert!(Netlink::open().unwrap().link("vethwepl1").unwrap().unwrap().up);
    });
}

#[test]
fn containers_are_attached_concurrently() {
    host(|| {
        launch();
        let here = NetNs::current().unwrap();
        let namespaces: Vec<NetNs> = (0..4).map(|_| container()).collect();
        std::thread::scope(|scope| {
            for (n, ns) in namespaces.iter().enumerate() {
                let (here, id, addresses) = (&here, n.to_string(), cidrs(&format!("10.32.0.{}/12", n + 1)));
                scope.spawn(move || {
                    here.run(|| attach(&AttachRequest::new(ns, &id, &addresses)).unwrap()).unwrap()
                });
            }
        });
        let mut ports = BridgePorts::scan("weave").unwrap();
        for (n, ns) in namespaces.iter().enumerate() {
            let found = ports.in_namespace(ns).unwrap();
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].addresses, cidrs(&format!("10.32.0.{}/12", n + 1)));
            assert_eq!(rules(ns).len(), 3);
        }
    });
}

#[test]
fn addresses_of_containers_are_not_confused() {
    host(|| {
        launch();
        sh("ip addr add 10.32.0.9/12 dev weave");
        let (one, two) = (container(), container());
        attach(&AttachRequest::new(&one, "1", &cidrs("10.32.0.1/12 10.2.1.1/24"))).unwrap();
        let index = ethwe(&one).index;
        // A veth of somebody else that has the same number in another container.
        sh_in(&two, &format!("ip link add stranger index {index} type veth peer name foreign"));
        let mut netlink = two.netlink().unwrap();
        let foreign = netlink.link("foreign").unwrap().unwrap();
        netlink.move_to(&foreign, &NetNs::current().unwrap()).unwrap();
        assert_eq!(two.netlink().unwrap().link("stranger").unwrap().unwrap().index, index);

        let mut ports = BridgePorts::scan("weave").unwrap();
        let found = ports.in_namespace(&one).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].index, found[0].name.as_str()), (index, "ethwe"));
        assert_eq!(found[0].addresses, cidrs("10.32.0.1/12 10.2.1.1/24"));
        assert_eq!(Some(found[0].mac), ethwe(&one).mac);
        assert_eq!(ports.in_namespace(&two).unwrap(), []);
        assert_eq!(ports.in_namespace(&NetNs::current().unwrap()).unwrap(), []);
        let bridge = ports.bridge().unwrap();
        assert_eq!((bridge.mac, bridge.addresses), (PEER, cidrs("10.32.0.9/12")));
        assert_ne!(bridge.mac, MacAddr::ZERO);
        assert!(BridgePorts::scan("other").is_err());
    });
}

/// Hides programs from this test only.
fn hide(programs: &[&str]) {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    sh("mount --make-rprivate /");
    for program in programs {
        // Symbolic links are resolved, because the variants of a program are links to one file.
        sh(&format!("for f in $(command -v {program}); do mount --bind /dev/null $(readlink -f $f); done"));
    }
}

#[test]
fn without_iptables_nft_makes_the_rules() {
    host(|| {
        if sh("command -v nft || true").is_empty() {
            eprintln!("SKIPPED: nft is not installed");
            return;
        }
        launch();
        let ns = container();
        hide(&["iptables", "iptables-legacy"]);
        let addresses = cidrs("10.2.1.1/24");
        let attached = attach(&AttachRequest::new(&ns, "1", &addresses)).unwrap();
        assert_eq!(attached.warnings, [] as [&str; 0]);
        let listing = sh_in(&ns, "nft list chain ip filter INPUT");
        let accept = listing.find("iifname \"ethwe\" ip saddr 10.2.1.0/24 ip daddr 224.0.0.0/4");
        let igmp = listing.find("iifname \"ethwe\" meta l4proto igmp ip daddr 224.0.0.0/4");
        let drop = listing.rfind("iifname \"ethwe\" ip daddr 224.0.0.0/4");
        assert!(accept.is_some() && accept < igmp && igmp < drop, "{listing}");
        let detached = detach(&DetachRequest::new(&ns, &addresses)).unwrap();
        assert!(detached.interface_removed && detached.warnings.is_empty());
        assert!(!sh_in(&ns, "nft list chain ip filter INPUT").contains("ethwe"));
    });
}

#[test]
fn without_any_firewall_program_attach_works_and_says_so() {
    host(|| {
        launch();
        let ns = container();
        hide(&["iptables", "iptables-legacy", "nft"]);
        let addresses = cidrs("10.2.1.1/24");
        let attached = attach(&AttachRequest::new(&ns, "1", &addresses)).unwrap();
        assert!(attached.created && attached.added == addresses);
        let warning = "multicast from other subnets is not filtered: neither iptables nor nft is installed";
        assert_eq!(attached.warnings, [warning]);
        assert!(detach(&DetachRequest::new(&ns, &addresses)).unwrap().interface_removed);
    });
}

#[test]
fn rules_of_the_legacy_variant_are_found() {
    host(|| {
        launch();
        let ns = container();
        let addresses = cidrs("10.2.1.1/24");
        attach(&AttachRequest::new(&ns, "1", &addresses)).unwrap();
        let add = "iptables-legacy -w -A INPUT -i ethwe -d 224.0.0.0/4 -j DROP && \
                   iptables-legacy -w -I INPUT 1 -i ethwe -s 10.2.1.0/24 -d 224.0.0.0/4 -j ACCEPT";
        if sh_in(&ns, &format!("({add}) 2>&1 || echo failed")).contains("failed") {
            eprintln!("SKIPPED: there is no iptables-legacy, or the kernel lacks it");
            return;
        }
        let detached = detach(&DetachRequest::new(&ns, &addresses)).unwrap();
        assert!(detached.interface_removed && detached.warnings.is_empty());
        assert_eq!(rules(&ns), [] as [&str; 0]);
        assert!(!sh_in(&ns, "iptables-legacy -S INPUT").contains("ethwe"));
    });
}

#[test]
fn ipv6_addresses_go_along() {
    host(|| {
        launch();
        let ns = container();
        let both = cidrs("10.2.1.1/24 fd00:1::1/64");
        let attached = attach(&AttachRequest::new(&ns, "1", &both)).unwrap();
        assert_eq!(attached.added, both);
        assert!(sh_in(&ns, "ip -6 addr show dev ethwe").contains("inet6 fd00:1::1/64"));
        assert_eq!(rules(&ns).len(), 3);
        let detached = detach(&DetachRequest::new(&ns, &both[1..])).unwrap();
        assert_eq!((&detached.removed[..], detached.interface_removed), (&both[1..], false));
        assert!(!sh_in(&ns, "ip -6 addr show dev ethwe").contains("fd00:1::1"));
        // The interface goes with the last IPv4 address, whatever else it has.
        attach(&AttachRequest::new(&ns, "1", &both)).unwrap();
        assert!(detach(&DetachRequest::new(&ns, &both[..1])).unwrap().interface_removed);
    });
}
