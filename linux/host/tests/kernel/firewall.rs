//! Packet filter rules with every backend.

use std::collections::BTreeSet;
use std::sync::Mutex;

use weave_host::firewall::{
    Backend, DockerBridge, ExposedAddress, FirewallConfig, FirewallManager, rules_by_backend,
};
use weave_host::{
    AttachRequest, DeviceNames, add_bridge_address, attach, bridge_addresses, remove_bridge_address,
    restore_ports,
};

use crate::support::*;

fn config() -> FirewallConfig {
    FirewallConfig {
        instance: None,
        bridge: "weave".into(),
        port: 6783,
        control_port: Some(6784),
        docker: Some(DockerBridge { name: "docker0".into(), address: [172, 17, 0, 1].into() }),
        expect_npc: false,
        no_masq_local: false,
        dns_port: None,
    }
}

fn exposed(address: &str) -> ExposedAddress {
    ExposedAddress { address: address.parse().unwrap(), masquerade: true }
}

/// Runs `test` with each installed backend, in a namespace of its own each time.
fn with_each_backend(test: impl Fn(Backend) + Send + Sync + Clone + 'static) {
    for backend in [Backend::IptablesLegacy, Backend::IptablesNft, Backend::Nft] {
        if FirewallManager::with_backend(backend, vec![]).is_none() {
            eprintln!("SKIPPED: {} is not installed", backend.name());
            continue;
        }
        let test = test.clone();
        host(move || test(backend));
    }
}

/// All rules of this backend, without counters.
fn rules(backend: Backend) -> String {
    match backend {
        Backend::IptablesLegacy => sh("iptables-legacy-save | sed '/^#/d; s/ \\[.*//'"),
        Backend::IptablesNft => sh("iptables-nft-save | sed '/^#/d; s/ \\[.*//'"),
        Backend::Nft => sh("nft -s list ruleset"),
    }
}

fn set_forward_policy_drop(backend: Backend) {
    match backend {
        Backend::IptablesLegacy => sh("iptables-legacy -P FORWARD DROP"),
        Backend::IptablesNft => sh("iptables-nft -P FORWARD DROP"),
        Backend::Nft => sh("nft 'add table ip filter; add chain ip filter FORWARD \
                               { type filter hook forward priority 0; policy drop; }'"),
    };
}

#[test]
fn rules_are_added_once_and_removed() {
    with_each_backend(|backend| {
        let exposes = [exposed("10.2.1.1/24"), exposed("10.2.2.1/24")];
        let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
        assert!(manager.may_have_changed());
        assert_eq!(manager.ensure(&config(), &exposes), Ok(true));
        let made = rules(backend);
        assert_eq!(manager.ensure(&config(), &exposes), Ok(false), "{made}");
        assert_eq!(
            FirewallManager::with_backend(backend, vec![]).unwrap().ensure(&config(), &exposes),
            Ok(backend == Backend::Nft)
        );
        assert_eq!(
            manager.ensure(&config(), &exposes),
            Ok(false),
            "another manager has added the same rules"
        );
        assert_eq!(rules(backend), made);
        for word in ["WEAVE-EXPOSE", "WEAVE-CANARY", "6784", "10.2.1.0/24", "10.2.2.0/24"] {
            assert!(made.contains(word), "{word} in {made}");
        }
        assert_eq!(manager.ensure(&config(), &exposes[1..]), Ok(true));
        assert!(!rules(backend).contains("10.2.1.0/24"));
        assert_eq!(manager.remove(&config()), Ok(true));
        assert!(!rules(backend).to_lowercase().contains("weave"), "{}", rules(backend));
        assert!(!rules(backend).contains("docker0"), "{}", rules(backend));
        assert_eq!(manager.remove(&config()), Ok(false));
    });
}

#[test]
fn flushed_rules_are_noticed_and_restored() {
    with_each_backend(|backend| {
        let exposes = [exposed("10.2.1.1/24")];
        let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
        manager.ensure(&config(), &exposes).unwrap();
        manager.ensure(&config(), &exposes).unwrap();
        let made = rules(backend);
        if backend != Backend::IptablesLegacy {
            assert!(!manager.may_have_changed(), "nothing has changed");
        }
        let flushes: &[&str] = match backend {
            Backend::IptablesLegacy => &[
                "iptables-legacy -F",
                "iptables-legacy -t nat -F",
                "iptables-legacy -t mangle -X",
                "iptables-legacy -t nat -F; iptables-legacy -t nat -X; iptables-legacy -F; iptables-legacy -X",
                "iptables-legacy -t nat -X WEAVE-CANARY",
                "iptables-legacy -F WEAVE-EXPOSE",
            ],
            Backend::IptablesNft => &[
                "iptables-nft -F",
                "iptables-nft -t nat -F",
                "iptables-nft -t mangle -X",
                "iptables-nft -t nat -F; iptables-nft -t nat -X; iptables-nft -F; iptables-nft -X",
                "iptables-nft -t nat -X WEAVE-CANARY",
                "iptables-nft -F WEAVE-EXPOSE",
                "nft flush ruleset",
            ],
            Backend::Nft => &[
                "nft flush ruleset",
                "nft delete table ip weave",
                "nft flush chain ip weave WEAVE",
                "nft flush table ip weave",
            ],
        };
        for flush in flushes {
            sh(flush);
            assert_ne!(rules(backend), made, "{flush}");
            // Legacy iptables has no generation: a check is due after a while, whatever has changed.
            if backend != Backend::IptablesLegacy || *flush == flushes[0] {
                eventually("the change to be noticed", || manager.may_have_changed());
            }
            assert_eq!(manager.ensure(&config(), &exposes), Ok(true), "{flush}");
            let sorted = |text: String| {
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort();
                lines
            };
            assert_eq!(sorted(rules(backend)), sorted(made.clone()), "{flush}");
            assert_eq!(manager.ensure(&config(), &exposes), Ok(false), "{flush}");
        }
    });
}

/// Traffic to containers of this host keeps its source address; everything else is masqueraded.
#[test]
fn local_containers_are_not_masqueraded() {
    with_each_backend(|backend| {
        let config = FirewallConfig { no_masq_local: true, ..config() };
        let exposes = [exposed("10.2.1.1/24")];
        let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
        manager.set_local_networks(cidrs("10.2.1.64/26 10.2.1.8/29"));
        assert_eq!(manager.ensure(&config, &exposes), Ok(true));
        assert_eq!(manager.ensure(&config, &exposes), Ok(false));
        let made = rules(backend);
        let first =
            made.lines().find(|l| l.contains("-A WEAVE ") || l.contains("@weaver-no-masq-local")).unwrap();
        assert!(first.contains("weaver-no-masq-local"), "{made}");
        // A rule with the set counts the addresses that match.
        if backend != Backend::Nft {
            let program = if backend == Backend::IptablesLegacy { "iptables-legacy" } else { "iptables-nft" };
            let is_matched = |ip: &str| {
                sh(&format!("{program} -Z; ip addr replace {ip}/32 dev lo; ping -c 1 -W 1 {ip} >/dev/null"));
                sh(&format!("{program} -nvL OUTPUT")).lines().nth(2).unwrap().trim().starts_with("1 ")
            };
            sh(&format!(
                "{program} -A OUTPUT -p icmp --icmp-type echo-request -m set --match-set weaver-no-masq-local dst"
            ));
            assert!(
                is_matched("10.2.1.64")
                    && is_matched("10.2.1.127")
                    && is_matched("10.2.1.9")
                    && !is_matched("10.2.1.63")
                    && !is_matched("10.2.1.16")
            );
            manager.set_local_networks(cidrs("10.2.1.0/26"));
            assert_eq!(manager.ensure(&config, &exposes), Ok(true));
            assert!(is_matched("10.2.1.63") && !is_matched("10.2.1.64"));
            // A change of the set is noticed too, although it does not change the rules.
            let mut other = FirewallManager::with_backend(backend, vec![]).unwrap();
            other.set_local_networks(cidrs("10.2.1.64/26"));
            assert_eq!(other.ensure(&config, &exposes), Ok(true));
            assert!(manager.may_have_changed());
            assert_eq!(manager.ensure(&config, &exposes), Ok(true));
            assert_eq!(manager.ensure(&config, &exposes), Ok(false));
            assert!(is_matched("10.2.1.63") && !is_matched("10.2.1.64"));
            sh(&format!("{program} -F OUTPUT"));
        }
        assert_eq!(manager.remove(&config), Ok(true));
        assert!(!rules(backend).contains("no-masq-local"));
        assert_eq!(manager.remove(&config), Ok(false));
    });
}

#[test]
fn concurrent_changes_of_other_programs_are_kept() {
    with_each_backend(|backend| {
        let program = match backend {
            Backend::IptablesLegacy => "iptables-legacy",
            Backend::IptablesNft => "iptables-nft",
            Backend::Nft => return,
        };
        let namespace = weave_host::NetNs::current().unwrap();
        let stop = Mutex::new(false);
        std::thread::scope(|scope| {
            let other_program = scope.spawn(|| {
                namespace
                    .run(|| {
                        for i in 0.. {
                            sh(&format!("{program} -w -I FORWARD -s 192.0.2.{i} -j DROP && {program} -w -A INPUT -s 192.0.2.{i} -j DROP"));
                            if *stop.lock().unwrap() {
                                return i + 1;
                            }
                        }
                        0
                    })
                    .unwrap()
            });
            let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
            for i in 1..20 {
                let exposes: Vec<ExposedAddress> =
                    (1..=i % 4).map(|n| exposed(&format!("10.2.{n}.1/24"))).collect();
                manager.ensure(&config(), &exposes).unwrap();
            }
            *stop.lock().unwrap() = true;
            let count: usize = other_program.join().unwrap();
            assert_eq!(rules(backend).lines().filter(|l| l.contains("192.0.2.")).count(), 2 * count);
            assert_eq!(manager.remove(&config()), Ok(true));
            assert_eq!(rules(backend).lines().filter(|l| l.contains("192.0.2.")).count(), 2 * count);
        });
    });
}

/// Docker sets the policy DROP for forwarded packets, which includes frames within a bridge with br_netfilter.
#[test]
fn containers_communicate_with_forward_policy_drop() {
    with_each_backend(|backend| {
        launch();
        set_forward_policy_drop(backend);
        let before = rules(backend);
        let [a, b] = ["10.2.1.1/24", "10.2.1.2/24"].map(|address| {
            let (ns, id) = (container(), address[7..8].repeat(5));
            attach(&AttachRequest::new(&ns, &id, &cidrs(address))).unwrap();
            ns
        });
        let reaches =
            || sh_in(&a, "ping -c 1 -W 1 10.2.1.2 >/dev/null && echo yes || echo no").trim() == "yes";
        let filtered = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1").is_ok();
        assert!(!filtered || !reaches(), "the policy is DROP");
        let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
        assert_eq!(manager.ensure(&config(), &[]), Ok(true));
        assert_eq!(manager.ensure(&config(), &[]), Ok(false));
        eventually("the other container to be reachable", reaches);
        assert_eq!(manager.remove(&config()), Ok(true));
        let after = rules(backend);
        assert!(before.lines().all(|line| after.contains(line)), "{before}\n{after}");
        assert!(!after.contains("\"weave\"") && !after.contains("WEAVE"), "{after}");
        drop(b);
    });
}

/// Hosts of another network reach containers of an exposed subnet, and the other way round, with the host's address as source.
#[test]
fn exposed_subnet_is_translated_in_both_directions() {
    with_each_backend(|backend| {
        launch();
        set_forward_policy_drop(backend);
        weave_host::ensure_forwarding("weave").unwrap();
        let (inside, outside) = (container(), container());
        attach(&AttachRequest::new(&inside, "11111", &cidrs("10.2.1.7/24"))).unwrap();
        sh_in(&inside, "ip route add default via 10.2.1.1");
        sh(&format!(
            "ip link add out type veth peer name eth0 netns /proc/{}/fd/{}; ip addr add 192.0.2.1/24 dev out; ip link set out up",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&outside)
        ));
        sh_in(
            &outside,
            "ip addr add 192.0.2.2/24 dev eth0; ip link set eth0 up; ip route add 10.2.1.0/24 via 192.0.2.1",
        );
        let cidr = "10.2.1.1/24".parse().unwrap();
        assert_eq!(add_bridge_address("weave", cidr), Ok(true));
        let mut manager = FirewallManager::with_backend(backend, vec![]).unwrap();
        manager.ensure(&config(), &[exposed("10.2.1.1/24")]).unwrap();
        let ping = |ns, ip: &str| {
            sh_in(ns, &format!("ping -c 1 -W 1 {ip} >/dev/null && echo yes || echo no")).trim() == "yes"
        };
        eventually("the container to be reachable from outside", || ping(&outside, "10.2.1.7"));
        assert!(ping(&inside, "192.0.2.2"));
        // The receiver sees the address of this host in its own network.
        let tap = Tap::in_container(&inside, "ethwe");
        assert!(ping(&outside, "10.2.1.7"));
        let echo =
            tap.find(TIMEOUT, |f| f.len() > 34 && f[12..14] == [8, 0] && f[23] == 1 && f[34] == 8).unwrap();
        assert_eq!(echo[26..30], [10, 2, 1, 1]);
        manager.ensure(&config(), &[]).unwrap();
        assert!(!ping(&outside, "10.2.1.7"), "the subnet is not exposed any more");
        assert!(manager.remove(&config()).unwrap());
    });
}

#[test]
fn bridge_addresses_are_added_and_removed() {
    host(|| {
        let [a, b, c] = ["10.2.1.1/24", "10.2.1.11/24", "10.2.2.1/24"].map(|a| a.parse().unwrap());
        assert!(add_bridge_address("weave", a).unwrap_err().to_string().contains("did you launch weave?"));
        assert_eq!((remove_bridge_address("weave", a), bridge_addresses("weave")), (Ok(false), Ok(vec![])));
        launch();
        for cidr in [a, b, c] {
            assert_eq!(add_bridge_address("weave", cidr), Ok(true));
            assert_eq!(add_bridge_address("weave", cidr), Ok(false));
        }
        assert_eq!(remove_bridge_address("weave", "10.2.1.1/25".parse().unwrap()), Ok(false));
        // The kernel must not remove the second address of the subnet together with the first.
        assert_eq!(remove_bridge_address("weave", a), Ok(true));
        assert_eq!(remove_bridge_address("weave", a), Ok(false));
        let mut left = bridge_addresses("weave").unwrap();
        left.sort();
        assert_eq!(left, [b, c]);
        for bad in ["10.2.1.0/24", "10.2.1.255/24", "127.0.0.1/8", "224.0.0.1/4", "fd00::1/64", "10.0.0.1/0"]
        {
            let error = add_bridge_address("weave", bad.parse().unwrap()).unwrap_err();
            assert!(error.to_string().starts_with(bad), "{error}");
        }
        assert_eq!(bridge_addresses("weave").unwrap().len(), 2);
    });
}

#[test]
fn new_address_is_announced() {
    host(|| {
        launch();
        let ns = container();
        attach(&AttachRequest::new(&ns, "11111", &cidrs("10.2.1.7/24"))).unwrap();
        let tap = Tap::in_container(&ns, "ethwe");
        for _ in 0..2 {
            add_bridge_address("weave", "10.2.1.1/24".parse().unwrap()).unwrap();
            assert!(
                tap.find(TIMEOUT, |f| is_arp_request_for(f, [10, 2, 1, 1]) && f[28..32] == [10, 2, 1, 1])
                    .is_some()
            );
        }
    });
}

#[test]
fn containers_are_added_to_a_recreated_bridge() {
    host(|| {
        launch();
        let (a, b) = (container(), container());
        for (ns, id, address) in [(&a, "11111", "10.2.1.1/24"), (&b, "22222", "10.2.1.2/24")] {
            attach(&AttachRequest::new(ns, id, &cidrs(address))).unwrap();
        }
        sh("ip link del weave");
        launch();
        let mut known = BTreeSet::new();
        let mut changes = restore_ports(&DeviceNames::default(), &mut known).unwrap().changes;
        changes.sort();
        let expected =
            ["vethwepl11111", "vethwepl22222"].map(|name| format!("{name} was not a port of weave"));
        assert_eq!(changes, expected);
        assert_eq!(restore_ports(&DeviceNames::default(), &mut known).unwrap().changes, [""; 0]);
        eventually("the containers to reach each other", || {
            sh_in(&a, "ping -c 1 -W 1 10.2.1.2 >/dev/null && echo y || echo n").trim() == "y"
        });
    });
}

#[test]
fn rules_are_counted_by_backend() {
    with_each_backend(|backend| {
        let count = || {
            let (all, has_nft) = rules_by_backend();
            assert!(has_nft || backend != Backend::Nft);
            all.into_iter().find(|rules| rules.backend == backend).map(|rules| rules.rules)
        };
        if backend == Backend::Nft {
            return assert_eq!(count(), None);
        }
        assert_eq!(count(), Some(Ok(0)));
        sh(&format!("{} -A INPUT -s 192.0.2.1 -j ACCEPT", backend.name()));
        assert_eq!(count(), Some(Ok(1)));
    });
}
