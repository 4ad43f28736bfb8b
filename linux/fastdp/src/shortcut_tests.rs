//! Tests of the shortcut, with the real kernel.

use weave_host::Netlink;

use crate::shortcut::Shortcuts;
use crate::sys::Program;
use crate::testbed::{Container, Host, Peer, Reach, Wire, eventually, mac, name, publish_mesh};
use crate::{Counter, remove_all};

/// Gives all ports of a host what they may have. Returns how many have a shortcut.
fn set(host: &Host, shortcuts: &mut Shortcuts) -> usize {
    host.namespace.run(|| {
        let ports = weave_host::shortcut_ports("weave").expect("links");
        shortcuts.set(&ports.with, &ports.without).expect("attached");
        ports.with.len()
    })
}

/// Number of packets that a device of a host has received, or sent.
fn packets(host: &Host, device: &str, direction: &str) -> u64 {
    let text = host.sh(&format!("ip -s -j link show {device} | tr ',{{' '\\n\\n'"));
    let section = text.split_once(&format!("\"{direction}\"")).expect("statistics").1;
    let line = section.lines().find_map(|line| line.strip_prefix("\"packets\":")).expect("packets");
    line.trim_end_matches('}').parse().expect("a number")
}

/// Has both hosts confirm the addresses that their programs have learnt.
fn settle(peers: &mut [Peer<'_>; 2]) {
    for (own, other) in [(0, 1), (1, 0)] {
        let number = peers[other].host.number;
        peers[own].read_events();
        let tree = [number];
        let own_number = peers[own].host.number;
        let tables = peers[own].tables(&[(number, Reach::Via(number))], &[(own_number, &tree)]);
        peers[own].publish(&tables);
    }
}

/// The numbers of the programs at the ingress of a device.
fn programs(host: &Host, device: &str) -> Vec<u32> {
    host.namespace.run(|| {
        let link = Netlink::open().unwrap().link(device).unwrap().expect("the device");
        Program::at_ingress(link.index).expect("listed")
    })
}

fn warm_up(from: &Container, to: &str) {
    assert_eq!(from.ping(to, 3, ""), 3);
}

#[test]
fn frames_of_containers_bypass_the_bridge() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    let mut shortcuts = [peers[0].fastdp.shortcuts(), peers[1].fastdp.shortcuts()];
    for (host, shortcuts) in hosts.iter().zip(&mut shortcuts) {
        assert_eq!(set(host, shortcuts), 1);
    }
    warm_up(&a, "10.32.0.12");
    settle(&mut peers);
    warm_up(&a, "10.32.0.12");
    let uplinks = || [0, 1].map(|i: usize| packets(&hosts[i], "vethwe-bridge", "tx"));
    let (before, sent) = (uplinks(), peers[0].count(Counter::Unicast));
    assert_eq!(a.ping("10.32.0.12", 20, "-s 1348 -M do"), 20);
    assert_eq!(b.ping("10.32.0.11", 20, ""), 20);
    assert_eq!(uplinks(), before, "no frame has left the bridge");
    assert!(peers[0].count(Counter::Unicast) >= sent + 40, "they are counted");
    let active = |peer: &Peer<'_>, n| peer.fastdp.activity().unwrap().iter().any(|e| e.mac == mac(n));
    assert!(active(&peers[0], 11) && active(&peers[1], 11));

    // Super-frames with checksums that are still to be computed.
    b.sh("iperf3 -s -D -1 > /dev/null");
    eventually("the server listens", || b.sh("ss -Hltn").contains(":5201"));
    let out = a.sh("iperf3 -c 10.32.0.12 -n 200M --json");
    assert!(out.contains("\"bytes\":\t209715200") || out.contains("sum_received"), "{out}");
    assert!(
        packets(&hosts[0], "vethwe-bridge", "tx") < before[0] + 200,
        "most of it has bypassed the bridge"
    );
}

#[test]
fn containers_of_one_host_reach_each_other_with_and_without_a_shortcut() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let (a, b) = (host.container(11), host.container(12));
    let mut peer = host.start();
    let tables = peer.tables(&[], &[]);
    peer.publish(&tables);
    let mut shortcuts = peer.fastdp.shortcuts();
    assert_eq!(set(&host, &mut shortcuts), 2);
    warm_up(&a, "10.32.0.12");
    // The uplink has seen the broadcast of the first one only; the second one is learnt when it sends one.
    b.sh("ping -c 1 -W 1 10.32.0.99 || true");
    peer.read_events();
    let tables = peer.tables(&[], &[]);
    peer.publish(&tables);
    warm_up(&a, "10.32.0.12");
    let before = [packets(&host, "c11", "tx"), packets(&host, "c12", "tx")];
    assert_eq!(a.ping("10.32.0.12", 20, ""), 20);
    assert_eq!(
        [packets(&host, "c11", "tx"), packets(&host, "c12", "tx")],
        before,
        "the bridge has sent nothing"
    );

    // The container's interface is made again with the same address: it is reached without having sent anything.
    host.sh("ip link del c12");
    drop(b);
    let b = host.container(12);
    set(&host, &mut shortcuts);
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5);
    assert_eq!(b.ping("10.32.0.11", 5, ""), 5);

    // A port without a shortcut, as with a limit of its rate, gets its frames from the bridge at once.
    host.sh("tc qdisc add dev c12 root tbf rate 1gbit burst 100k latency 10ms");
    assert_eq!(set(&host, &mut shortcuts), 1);
    assert_eq!((programs(&host, "c12"), programs(&host, "c11").len()), (vec![], 1));
    let before = packets(&host, "c12", "tx");
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5);
    assert!(packets(&host, "c12", "tx") >= before + 5);
}

#[test]
fn what_the_program_does_not_know_is_for_the_bridge() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    let mut shortcuts = peers[0].fastdp.shortcuts();
    set(&hosts[0], &mut shortcuts);
    warm_up(&a, "10.32.0.12");
    settle(&mut peers);
    warm_up(&a, "10.32.0.12");
    // User space has to send to the other host now.
    let tables = peers[0].tables(&[(2, Reach::User)], &[(1, &[0])]);
    peers[0].publish(&tables);
    let before = packets(&hosts[0], "vethwe-bridge", "tx");
    a.sh("ping -c 3 -i 0.01 -W 0.1 10.32.0.12 || true");
    assert!(packets(&hosts[0], "vethwe-bridge", "tx") >= before + 3);
    assert!(peers[0].count(Counter::ToUser) >= 3);
    // An address that another host uses: the program at the uplink decides about the conflict.
    let tables = peers[0].tables(&[(2, Reach::Via(2))], &[(1, &[2])]);
    peers[0].publish(&tables);
    eventually("the address moves", || {
        let _ = peers[0].macs.learn_remote(mac(11), name(2), hosts[0].now());
        peers[0].macs.snapshot().lookup(mac(11)) == Some(name(2))
    });
    eventually("the program has it there, too", || {
        let tables = peers[0].tables(&[(2, Reach::Via(2))], &[(1, &[2])]);
        peers[0].publish(&tables);
        peers[0].place(mac(11)) == Some(102)
    });
    let before = packets(&hosts[0], "vethwe-bridge", "tx");
    a.sh("ping -c 3 -i 0.01 -W 0.1 10.32.0.12 || true");
    assert!(packets(&hosts[0], "vethwe-bridge", "tx") >= before + 3);
}

#[test]
fn the_next_process_replaces_the_program_and_removal_leaves_none() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    set(&hosts[0], &mut peers[0].fastdp.shortcuts());
    let old = programs(&hosts[0], "c11");
    warm_up(&a, "10.32.0.12");
    let [left, right] = peers;
    drop(left);
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5, "also while there is no process");
    let mut peers = [hosts[0].start(), right];
    settle(&mut peers);
    let mut shortcuts = peers[0].fastdp.shortcuts();
    set(&hosts[0], &mut shortcuts);
    let new = programs(&hosts[0], "c11");
    assert!(old.len() == 1 && new.len() == 1 && old != new, "{old:?}, {new:?}");
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5);
    // Programs of another version go before their routes are replaced.
    peers[0].fastdp.claim_version(77);
    let [left, right] = peers;
    drop((left, shortcuts));
    let mut peers = [hosts[0].start(), right];
    assert_eq!(programs(&hosts[0], "c11"), new);
    settle(&mut peers);
    assert_eq!(programs(&hosts[0], "c11"), [0; 0]);
    set(&hosts[0], &mut peers[0].fastdp.shortcuts());
    drop(peers);
    hosts[0].namespace.run(|| remove_all(&hosts[0].config())).expect("removed");
    assert_eq!(programs(&hosts[0], "c11"), [0; 0]);
}
