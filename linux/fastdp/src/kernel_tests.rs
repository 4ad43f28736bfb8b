//! Tests with the real kernel. Each uses namespaces of its own.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weave_host::fault_injection::fail_nth;
use weave_overlay::fastdp::{KernelEvent, SegmentedProbe, vni};
use weave_overlay::{ArrivedSegments, LIVENESS_FRAME};
use weave_switch::offload::VIRTIO_HEADER;
use weave_switch::{DropReason, SwitchEvent};
use weave_types::{ConnectionUid, MacAddr, ShortId};

use crate::namespace::Namespace;
use crate::testbed::{
    Container, Host, PORT, Peer, Reach, Wire, address, eventually, id, mac, name, publish_mesh,
};
use crate::{Counter, Error, Fastdp, FastdpConfig, check_kernel, remove_all};

fn is_switch(event: &KernelEvent, wanted: SwitchEvent) -> bool {
    matches!(event, KernelEvent::Switch { event, .. } if *event == wanted)
}

/// The next frame of a TAP that satisfies the condition, without its virtio header, and its GSO type.
fn read_tap(tap: &OwnedFd, wanted: impl Fn(&[u8]) -> bool) -> (Vec<u8>, u8) {
    let mut file = std::fs::File::from(tap.try_clone().expect("a descriptor"));
    let mut frame = vec![0; 70_000];
    loop {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        assert!(poll(&mut fds, PollTimeout::from(5000u16)).expect("polling") > 0, "no frame arrived");
        let Ok(len) = file.read(&mut frame) else { continue };
        assert!(len > VIRTIO_HEADER);
        if wanted(&frame[VIRTIO_HEADER..len]) {
            return (frame[VIRTIO_HEADER..len].to_vec(), frame[1]);
        }
    }
}

#[test]
fn containers_of_two_hosts_reach_each_other() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5);
    assert_eq!(a.ping("10.32.0.12", 5, "-s 1348 -M do"), 5, "a packet of the full MTU");
    let [left, right] = &mut peers;
    left.wait_for("the local MAC", |e| is_switch(e, SwitchEvent::LocalMac(mac(11))));
    let remote = SwitchEvent::RemoteMac { mac: mac(12), peer: name(2) };
    left.wait_for("the remote MAC", |e| is_switch(e, remote));
    assert_eq!((left.place(mac(11)), left.place(mac(12))), (Some(101), Some(102)));
    // Of the program's own accord, without a published MAC: only the ARP request was flooded, not its answer.
    assert_eq!((left.count(Counter::Flooded), right.count(Counter::Flooded)), (1, 0));
    assert!(left.count(Counter::Unicast) >= 10 && right.count(Counter::Delivered) >= 11);
    assert_eq!(left.fastdp.ports(), [PORT]);
}

#[test]
fn a_broadcast_follows_the_tree_and_unicast_is_relayed_in_the_kernel() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2), Host::new(&wire, 3)];
    let (a, _b, c) = (hosts[0].container(11), hosts[1].container(12), hosts[2].container(13));
    let [mut left, mut middle, mut right] = [hosts[0].start(), hosts[1].start(), hosts[2].start()];
    let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::Via(2))], &[(1, &[2])]);
    left.publish(&tables);
    let tables =
        middle.tables(&[(1, Reach::Via(1)), (3, Reach::Via(3))], &[(1, &[3]), (3, &[1]), (2, &[1, 3])]);
    middle.publish(&tables);
    let tables = right.tables(&[(1, Reach::Via(2)), (2, Reach::Via(2))], &[(3, &[2])]);
    right.publish(&tables);
    assert_eq!(a.ping("10.32.0.13", 5, ""), 5);
    assert_eq!(a.ping("10.32.0.12", 5, ""), 5);
    assert!(middle.count(Counter::Relayed) >= 10, "{:?}", middle.fastdp.statistics());
    assert_eq!(middle.count(Counter::Copies), 2, "both ARP requests, to the third host only");
    // It saw the first container's broadcast, but only relayed what the third one sent.
    assert_eq!((middle.place(mac(11)), middle.place(mac(13))), (Some(101), None));
    assert_eq!((left.place(mac(13)), right.place(mac(11))), (Some(103), Some(101)));
    assert_eq!(left.count(Counter::Hairpin), 0);
    // Broadcasts of the third host: its tree at the middle is the own one without that host.
    let copies = middle.count(Counter::Copies);
    c.sh("ping -c 1 -W 1 10.32.0.99 || true");
    let arrived = left.count(Counter::Delivered);
    assert!(middle.count(Counter::Copies) > copies && arrived > 0);
    assert_eq!(right.count(Counter::Dropped(DropReason::OwnPacket)), 0);
    assert_eq!(middle.count(Counter::SendFailed), 0);
}

/// How often a packet is relayed: as long as its TTL, 255 at first, is above 64, less 12 each time.
const RELAYS: u64 = 16;

/// Peers whose routes differ for a moment may pass a frame round in a circle, in the kernel, where nothing slows it.
#[test]
fn a_frame_that_goes_in_a_circle_is_dropped() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [1, 2, 3, 4].map(|n| Host::new(&wire, n));
    let a = hosts[0].container(11);
    let mut peers = hosts.each_ref().map(Host::start);
    // Host 5 does not exist. Broadcasts of the first host, and what it sends to host 5, go from 2 to 3, 4, and 2 again.
    for (peer, next) in peers.iter_mut().zip([2, 3, 4, 2]) {
        let others = (1..5).filter(|n| *n != peer.host.number).map(|n| (n, Reach::Via(next)));
        let reach: Vec<(u8, Reach)> = others.chain([(5, Reach::Via(next))]).collect();
        let tables = peer.tables(&reach, &[(1, &[next])]);
        peer.publish(&tables);
    }
    let sum = |peers: &[Peer<'_>], counter| peers.iter().map(|peer| peer.count(counter)).sum::<u64>();
    a.sh("ping -c 1 -W 1 10.32.0.99 || true");
    let broadcasts = |peers: &[Peer<'_>]| sum(peers, Counter::Delivered) / (RELAYS + 1);
    eventually("all broadcasts are dropped in the end", || {
        let dropped = sum(&peers, Counter::TooManyHops);
        dropped > 0 && broadcasts(&peers) == dropped
    });
    // To a container of host 5.
    let now = peers[0].host.now();
    peers[0].macs.learn_remote(mac(99), name(5), now);
    let tables = peers[0].tables(&(2..6).map(|n| (n, Reach::Via(2))).collect::<Vec<_>>(), &[(1, &[2])]);
    peers[0].publish(&tables);
    a.sh(&format!(
        "ip neigh replace 10.32.0.99 lladdr {} dev ethwe; ping -c 1 -W 1 10.32.0.99 || true",
        mac(99)
    ));
    eventually("the unicast is dropped", || {
        let dropped = sum(&peers, Counter::TooManyHops) - broadcasts(&peers);
        dropped > 0 && sum(&peers, Counter::Relayed) == RELAYS * dropped
    });
}

#[test]
fn heartbeats_arrive_with_their_tunnel() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let mut peers = [hosts[0].start(), hosts[1].start()];
    let mut frame = vec![0; 1390];
    frame[14..24].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 5, 0x6e]);
    for (from, to) in [(1u8, 2u8), (2, 1)] {
        let (host, path) = (&hosts[usize::from(from) - 1], hosts[usize::from(from) - 1].neighbour(to).path);
        let vni = vni(id(from), id(to));
        host.namespace
            .run(|| peers[usize::from(from) - 1].fastdp.send_frame(&path, vni, &frame))
            .expect("sent");
        let receiver = &mut peers[usize::from(to) - 1];
        receiver.wait_for("a heartbeat", |event| {
            let KernelEvent::Frame(heartbeat) = event else { return false };
            assert_eq!((heartbeat.src, heartbeat.dst, heartbeat.from), (id(from), id(to), address(from)));
            assert_eq!((heartbeat.port, heartbeat.len, &heartbeat.head[..]), (PORT, 1390, &frame[..64]));
            true
        });
    }
    let path = hosts[0].neighbour(2).path;
    let error = hosts[0].namespace.run(|| peers[0].fastdp.send_frame(&path, 1, &[0; 1465])).unwrap_err();
    assert_eq!(error.to_string(), "a packet of 1501 bytes exceeds the MTU of 1500");
}

/// Packets of a probe that arrive at a TAP, until one is there that ends it.
fn arrived_segments(tap: &OwnedFd, number: u32) -> Vec<ArrivedSegments> {
    let mut all = Vec::new();
    while all.last().is_none_or(|last: &ArrivedSegments| last.number != number) {
        let (mut frame, _) = read_tap(tap, |frame| frame[..12] == [0; 12]);
        assert_eq!(frame[12..20], [0x88, 0xa8, 0, 101, 0x88, 0xa8, 0, 102]);
        frame.drain(12..20);
        let (probe, arrived) = SegmentedProbe::parse(&frame).expect("the packet is as it was cut");
        assert_eq!(probe.uid, ConnectionUid(99));
        all.push(arrived);
    }
    all
}

#[test]
fn probes_leave_as_super_frames_and_arrive_in_segments() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let mut peers = [hosts[0].start(), hosts[1].start()];
    let relay = hosts[1].namespace.run(|| peers[1].fastdp.open_relay_tap().unwrap());
    let path = hosts[0].neighbour(2).path;
    let probe = |number, segments| SegmentedProbe { uid: ConnectionUid(99), number, segments, size: 1336 };
    let vni = vni(id(1), id(2));
    let send = |peer: &mut crate::testbed::Peer<'_>, number| {
        let probes = [probe(number, 4), probe(number + 1, 1)];
        hosts[0].namespace.run(|| peer.fastdp.send_probes(&path, vni, &probes)).expect("sent");
    };
    // Nothing is sent before there are tables.
    send(&mut peers[0], 100);
    publish_mesh(&mut peers);
    let plain = ArrivedSegments { number: 3, first: 0, count: 1 };
    // With and without the network card's segmentation.
    for offloads in ["on", "off"] {
        for host in &hosts {
            host.sh(&format!("ethtool -K eth0 tso {offloads} gso {offloads} gro {offloads} tx {offloads} >/dev/null 2>&1 || true"));
        }
        send(&mut peers[0], 2);
        let segments = (0..4).map(|first| ArrivedSegments { number: 2, first, count: 1 });
        let expected: Vec<ArrivedSegments> = segments.chain([plain]).collect();
        assert_eq!(arrived_segments(&relay, 3), expected, "offloads {offloads}");
    }
    // A card that loses super-frames: other packets of the same size pass.
    hosts[0].sh("nft 'table ip broken { chain out { type filter hook postrouting priority 0; udp dport 6784 meta length > 1500 drop; }; }'");
    send(&mut peers[0], 2);
    assert_eq!(arrived_segments(&relay, 3), [plain]);
    // A container cannot send such a frame: the bridge drops it.
    let container = hosts[0].container(11);
    let before = peers[1].count(Counter::Control);
    let (frame, _) = probe(7, 1).frame(&path, vni, 2);
    let index: u32 = container.sh("ip -o link show ethwe | cut -d: -f1").trim().parse().expect("a number");
    container
        .0
        .run(|| crate::sys::send_frame(&crate::sys::open_frame_socket()?, index, [0; VIRTIO_HEADER], &frame))
        .expect("sent");
    send(&mut peers[0], 2);
    assert_eq!(arrived_segments(&relay, 3), [plain]);
    assert_eq!(peers[1].count(Counter::Control), before + 1);
}

#[test]
fn frames_for_other_overlays_arrive_in_user_space() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, b) = (hosts[0].container(11), hosts[1].container(12));
    let [mut left, mut right] = [hosts[0].start(), hosts[1].start()];
    let taps = |host: &Host, peer: &mut crate::testbed::Peer<'_>| {
        host.namespace.run(|| (peer.fastdp.open_tap().unwrap(), peer.fastdp.open_relay_tap().unwrap()))
    };
    let ((left_tap, _left_relay), (_right_tap, right_relay)) =
        (taps(&hosts[0], &mut left), taps(&hosts[1], &mut right));
    // Host 3 is a neighbour of both by another overlay; host 1 sends to it by host 2, too.
    let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::User), (4, Reach::Via(2))], &[(1, &[2, 0])]);
    left.publish(&tables);
    let tables =
        right.tables(&[(1, Reach::Via(1)), (3, Reach::User), (4, Reach::User)], &[(1, &[0]), (2, &[1])]);
    right.publish(&tables);
    a.sh("ping -c 1 -W 1 10.32.0.99 || true");
    let is_request = |frame: &[u8]| frame[12..14] == [8, 6];
    let (local, _) = read_tap(&left_tap, is_request);
    assert_eq!((&local[..6], &local[6..12]), (&[0xff; 6][..], &mac(11).0[..]));
    // Host 2 has delivered its copy; user space is to send it on, and learns source and destination.
    let tagged = |source: u16, destination: u16| {
        let mut tags = vec![0x88, 0xa8];
        tags.extend(source.to_be_bytes());
        tags.extend([0x88, 0xa8]);
        tags.extend(destination.to_be_bytes());
        tags
    };
    let (copy, _) = read_tap(&right_relay, |frame| frame[20..22] == [8, 6]);
    assert_eq!(
        (&copy[..12], &copy[12..20], &copy[20..]),
        (&local[..12], &tagged(101, 102)[..], &local[12..])
    );
    b.sh("ping -c 1 -W 2 10.32.0.11");

    // Unicast: to a peer that user space reaches, here and at the next hop.
    left.macs.learn_remote(mac(33), name(3), hosts[0].now());
    left.macs.learn_remote(mac(44), name(4), hosts[0].now());
    left.read_events();
    let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::User), (4, Reach::Via(2))], &[(1, &[2, 0])]);
    left.publish(&tables);
    for n in [33u8, 44] {
        a.sh(&format!("ip neigh replace 10.32.0.{n} lladdr 02:00:00:00:00:{n:02x} dev ethwe; ping -c 1 -W 1 10.32.0.{n} || true"));
    }
    let (frame, _) = read_tap(&left_tap, |frame| frame[12..14] == [8, 0]);
    assert_eq!(frame[..6], mac(33).0);
    let (frame, _) = read_tap(&right_relay, |frame| frame[20..22] == [8, 0]);
    assert_eq!((&frame[..6], &frame[12..20]), (&mac(44).0[..], &tagged(101, 104)[..]));
    assert_eq!(right.place(mac(44)), None);
}

/// Frames from this MAC, one every few milliseconds, until a condition is true.
fn send_until(from: &Container, to: &str, what: &str, condition: impl FnMut() -> bool) {
    let mut condition = condition;
    eventually(what, || {
        from.sh(&format!("ping -n -q -c 3 -i 0.002 -W 0.01 {to} || true"));
        condition()
    });
}

/// Ends the loop of another thread also if this one panics.
struct StopOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn an_address_moves_when_its_place_is_silent_and_not_before() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 3, ""), 3);
    // Host 2 gets a container with the address of the one at host 1, which is active.
    let twin = hosts[1].container_with(13, mac(11));
    // Both send whether or not they get answers.
    a.sh("ip neigh replace 10.32.0.12 lladdr 02:00:00:00:00:0c dev ethwe nud permanent");
    twin.sh("ip neigh replace 10.32.0.99 lladdr 02:00:00:00:00:63 dev ethwe nud permanent");
    let [left, right] = &mut peers;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let used = std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                a.ping("10.32.0.12", 5, "-W 0.01");
            }
        });
        let _stopped_at_last = StopOnDrop(&stop);
        let conflict = SwitchEvent::LocalConflict { mac: mac(11), peer: name(1) };
        send_until(&twin, "10.32.0.99", "a conflict", || {
            right.read_events();
            right.events.iter().any(|e| is_switch(e, conflict))
        });
        assert!(right.count(Counter::Dropped(DropReason::LocalConflict)) > 0);
        assert!(!busy.is_finished());
        right.place(mac(11))
    });
    assert_eq!(used, Some(101), "stays where it is in use");
    // The first container is silent now.
    let moved = SwitchEvent::RemoteMac { mac: mac(11), peer: name(2) };
    send_until(&twin, "10.32.0.99", "the move", || {
        left.read_events();
        right.place(mac(11)) == Some(102) && left.events.iter().any(|e| is_switch(e, moved))
    });
    assert_eq!(left.place(mac(11)), Some(102));
    drop((a, b));
}

#[test]
fn a_process_that_ends_or_is_replaced_loses_no_frame() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 1, ""), 1);
    let [left, right] = peers;
    let programs = |host: &Host| {
        host.sh("tc filter show dev vethwe-datapath ingress; tc filter show dev vxlan-6784 ingress")
    };
    let before = programs(&hosts[0]);
    let macs = left.fastdp.activity().unwrap();
    let delivered = right.count(Counter::Delivered);
    let answered = std::thread::scope(|scope| {
        let pings = scope.spawn(|| a.ping("10.32.0.12", 1500, "-i 0.001"));
        drop(left);
        drop(right);
        // Nothing runs now. Then others take over, twice, and publish the same.
        for _ in 0..2 {
            let mut peers = [hosts[0].start(), hosts[1].start()];
            assert!(peers.iter().all(|peer| peer.fastdp.adopted()));
            assert!(peers[1].count(Counter::Delivered) >= delivered, "counters go on");
            for mac in &macs {
                assert!(peers[0].place(mac.mac) == Some(mac.peer.get()));
            }
            publish_mesh(&mut peers);
        }
        pings.join().expect("pings")
    });
    assert_eq!(answered, 1500);
    let after = programs(&hosts[0]);
    assert!(
        before != after && after.matches("weave-fastdp/vethwe-datapath").count() == 2,
        "{before}\n{after}"
    );
    // One of each device.
    assert_eq!(hosts[0].sh("ip -o link show type vxlan | wc -l").trim(), "1");
}

#[test]
fn maps_of_another_version_forward_until_tables_are_published() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 1, ""), 1);
    let [left, right] = peers;
    left.fastdp.claim_version(99);
    let (answered, left) = std::thread::scope(|scope| {
        let pings = scope.spawn(|| a.ping("10.32.0.12", 1000, "-i 0.001"));
        drop(left);
        let left = hosts[0].start();
        assert!(!left.fastdp.adopted());
        assert_eq!(left.count(Counter::Unicast), 0);
        let mut peers = [left, right];
        publish_mesh(&mut peers);
        let [left, _] = peers;
        (pings.join().expect("pings"), left)
    });
    assert_eq!(answered, 1000);
    assert_eq!(a.ping("10.32.0.12", 3, ""), 3);
    assert!(left.count(Counter::Unicast) > 0, "by the new programs");
}

#[test]
fn tcp_passes_in_super_frames_also_to_user_space() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2), Host::new(&wire, 3)];
    let (a, b, c) = (hosts[0].container(11), hosts[1].container(12), hosts[2].container(13));
    let mut peers = [hosts[0].start(), hosts[1].start(), hosts[2].start()];
    publish_mesh(&mut peers);
    let serve = |container: &Container| {
        container.sh("timeout 30 iperf3 -s -1 >/dev/null 2>&1 & for i in $(seq 100); do ss -ltn | grep -q :5201 && exit; sleep 0.05; done; exit 1");
    };
    serve(&b);
    let bytes = |output: &str| -> f64 {
        let json: serde_json::Value = serde_json::from_str(output).expect("JSON of iperf3");
        json["end"]["sum_received"]["bytes"].as_f64().unwrap_or_else(|| panic!("{output}"))
    };
    // What the receiver has not read at the end of the test does not count.
    assert!(bytes(&a.sh("iperf3 -c 10.32.0.12 -n 200M -J")) >= 150e6);
    let all = peers[0].fastdp.statistics().unwrap();
    let sent = all.iter().find(|(counter, _)| *counter == Counter::Unicast).expect("counted").1;
    assert!(sent.bytes / sent.frames > 5000, "frames leave the container whole: {sent:?}");

    // In the middle of a stream user space has to forward: at the sender, then at a relay.
    let [mut left, mut middle, _right] = peers;
    serve(&c);
    let (left_tap, relay_tap) = (
        hosts[0].namespace.run(|| left.fastdp.open_tap().unwrap()),
        hosts[1].namespace.run(|| middle.fastdp.open_relay_tap().unwrap()),
    );
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| a.sh("timeout 15 iperf3 -c 10.32.0.13 -t 10 >/dev/null 2>&1 || true"));
        let sent = left.count(Counter::Unicast);
        eventually("the stream runs", || left.count(Counter::Unicast) > sent + 200);
        let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::Via(2))], &[(1, &[2, 3])]);
        let relay = middle.tables(&[(1, Reach::Via(1)), (3, Reach::User)], &[]);
        middle.publish(&relay);
        left.publish(&tables);
        let (frame, _) = read_tap(&relay_tap, |frame| frame.len() > 1000);
        assert_eq!(
            (&frame[12..20], &frame[20..22]),
            (&[0x88, 0xa8, 0, 101, 0x88, 0xa8, 0, 103][..], &[8, 0][..])
        );
        // TCP has learnt from the loss and sends little at a time: a retransmission may be small.
        let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::Via(3))], &[(1, &[2, 3])]);
        left.publish(&tables);
        let sent = left.count(Counter::Unicast);
        eventually("the stream runs again", || left.count(Counter::Unicast) > sent + 500);
        let tables = left.tables(&[(2, Reach::Via(2)), (3, Reach::User)], &[(1, &[2, 3])]);
        left.publish(&tables);
        let (frame, gso) = read_tap(&left_tap, |frame| frame.len() > 3000);
        assert_eq!((gso, &frame[12..14]), (1, &[8, 0][..]), "a TCP super-frame of {} bytes", frame.len());
        hosts[0].sh("ip link set c11 down");
        stream.join().expect("the stream ends");
    });
}

#[test]
fn packets_equal_those_of_the_kernel_for_the_original() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let receiver = Namespace::new().expect("the wire could be made");
    wire.sh(&format!(
        "ip link add r type veth peer name eth0 netns {}; ip link set r master hub up",
        receiver.path()
    ));
    receiver.sh("ip addr add 10.9.0.2/24 dev eth0; ip link set eth0 up; ethtool -K eth0 gro off >/dev/null 2>&1 || true");
    let socket = receiver.run(|| {
        use socket2::{Domain, Protocol, Socket, Type};
        // Keeps the kernel from answering with ICMP.
        let udp = std::net::UdpSocket::bind("10.9.0.2:6784").unwrap();
        let all = Protocol::from(i32::from((libc::ETH_P_IP as u16).to_be()));
        let raw = Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap();
        raw.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        (udp, raw)
    });
    let mut peer = host.start();
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/data-plane/fastdp_vxlan_packets.json"))
            .unwrap();
    let [heartbeat, arp] = &vectors["packets"].as_array().expect("packets")[..] else {
        panic!("two packets")
    };
    let inner = |vector: &serde_json::Value| {
        let mut frame = hex::decode(vector["inner_first_64"].as_str().expect("bytes")).expect("hex");
        frame.resize(vector["inner_len"].as_u64().expect("a length") as usize, 0);
        frame
    };
    let expect = |vector: &serde_json::Value| {
        let mut buffer = [0; 4096];
        let packet = loop {
            let len = (&socket.1).read(&mut buffer).expect("a packet arrives");
            // UDP to the VXLAN port.
            if buffer[9] == 17 && buffer[22..24] == PORT.to_be_bytes() {
                break &buffer[..len];
            }
        };
        let number = |key: &str| vector[key].as_u64().unwrap_or_else(|| panic!("{key}"));
        assert_eq!(packet.len() as u64, number("outer_ip_len"));
        assert_eq!(u64::from(u16::from_be_bytes([packet[2], packet[3]])), number("outer_ip_len"));
        assert_eq!(packet[6] & 0x40 != 0, vector["ip_flags_df"].as_bool().expect("a flag"));
        assert_eq!((u64::from(packet[8]), u64::from(packet[1])), (number("ttl"), number("tos")));
        assert_eq!(packet[12..20], [10, 9, 0, 1, 10, 9, 0, 2]);
        assert_eq!(hex::encode(&packet[26..28]), vector["udp_checksum"].as_str().expect("a checksum"));
        assert_eq!(hex::encode(&packet[28..36]), vector["vxlan_header"].as_str().expect("a header"));
        assert_eq!(&packet[36..], inner(vector));
    };
    let ids = [0xabc, 0x123].map(|id| ShortId::new(id).expect("12 bits"));
    let path = host.neighbour(2).path;
    host.namespace
        .run(|| peer.fastdp.send_frame(&path, vni(ids[0], ids[1]), &inner(heartbeat)))
        .expect("sent");
    expect(heartbeat);
    // The same by the program.
    let mut tables = peer.tables(&[(2, Reach::Via(2))], &[(1, &[2])]);
    (tables.own_id, tables.peers[0].short_id, tables.peers[1].short_id) = (ids[0], ids[0], ids[1]);
    tables.neighbours[0].short_id = ids[1];
    tables.peers.sort_by_key(|peer| peer.short_id);
    peer.publish(&tables);
    let tap = host.namespace.run(|| crate::sys::open_tap("port", false).unwrap());
    host.sh("ip link set port master weave up");
    eventually("the port forwards", || host.sh("bridge link show dev port").contains("forwarding"));
    let frame = [&[0; VIRTIO_HEADER][..], &inner(arp)].concat();
    assert_eq!(std::fs::File::from(tap).write(&frame).expect("written"), frame.len());
    expect(arp);
    drop(socket.0);
}

#[test]
fn headers_equal_those_of_the_original() {
    let vectors: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/vectors/data-plane/fastdp_vni.json")).unwrap();
    let vectors = vectors["vectors"].as_array().expect("vectors");
    assert!(vectors.len() >= 7);
    for vector in vectors {
        let id = |key: &str| ShortId::new(vector[key].as_u64().expect("an id") as u16).expect("12 bits");
        let number = vni(id("src_short_id"), id("dst_short_id"));
        assert_eq!(u64::from(number), vector["vni"].as_u64().expect("a number"));
        let header = crate::send::vxlan_header(number);
        assert_eq!(hex::encode(header), vector["vxlan_header"].as_str().expect("a header"));
    }
}

#[test]
fn hostile_packets_are_dropped_and_counted() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let container = hosts[0].container(11);
    let mut peer = hosts[0].start();
    let tables = peer.tables(&[(2, Reach::Via(2)), (3, Reach::Nothing), (4, Reach::Via(2))], &[(2, &[])]);
    peer.publish(&tables);
    container.sh("ping -c 1 -W 1 10.32.0.99 || true");
    let received = || container.sh("ip -s -o link show ethwe | grep -o 'RX:.*TX:'");
    let before = received();
    let socket = hosts[1].namespace.run(|| std::net::UdpSocket::bind("10.9.0.2:0").unwrap());
    let send = |flags: u8, vni: u32, frame: &[u8]| {
        let mut packet = crate::send::vxlan_header(vni).to_vec();
        packet[0] = flags;
        packet.extend_from_slice(frame);
        socket.send_to(&packet, "10.9.0.1:6784").expect("sent");
    };
    let frame = |destination: MacAddr, source: MacAddr| {
        [&destination.0[..], &source.0, &[8, 0], &[0x45; 50]].concat()
    };
    let good = frame(mac(11), mac(12));
    let to_own = vni(id(2), id(1));
    // Cut short in the header and in the frame, and without a VNI.
    for len in 0..13 {
        socket.send_to(&[8; 12][..len.min(12)], "10.9.0.1:6784").expect("sent");
        send(8, to_own, &good[..len]);
    }
    send(0, to_own, &good);
    send(8, vni(id(9), id(1)), &good);
    send(8, vni(id(2), id(9)), &good);
    send(8, vni(id(2), id(3)), &good);
    send(8, vni(id(1), id(1)), &good);
    send(8, to_own, &frame(mac(11), MacAddr([0xff; 6])));
    send(8, to_own, &frame(mac(11), MacAddr::ZERO));
    // The next hop is the sender.
    send(8, vni(id(2), id(4)), &good);
    let zeros = [0; 2000];
    for len in [14, 27, 64, 65, 1400] {
        send(8, to_own, &zeros[..len]);
    }
    eventually("all are counted", || peer.count(Counter::Hairpin) == 1 && peer.count(Counter::Control) == 5);
    let dropped = |reason| peer.count(Counter::Dropped(reason));
    assert_eq!(dropped(DropReason::UnknownPeer), 2);
    assert_eq!((dropped(DropReason::NoRoute), dropped(DropReason::OwnPacket)), (1, 1));
    assert_eq!(dropped(DropReason::InvalidSource), 2);
    assert_eq!((peer.count(Counter::Delivered), peer.place(mac(12))), (0, None));
    assert_eq!(received(), before);
    peer.read_events();
    let own = SwitchEvent::OwnPacket { peer: name(1), mac: mac(12), dst: mac(11) };
    assert!(peer.events.iter().any(|e| is_switch(e, own)), "{:?}", peer.events);
}

#[test]
fn the_program_answers_tests_of_a_path_without_a_process() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    let [mut left, right] = peers;
    drop(right);
    let mut probe = [0; LIVENESS_FRAME];
    probe[14..28].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 1]);
    let path = hosts[0].neighbour(2).path;
    hosts[0].namespace.run(|| left.fastdp.send_frame(&path, vni(id(1), id(2)), &probe)).expect("sent");
    let mut answer = probe;
    answer[26] = 1;
    left.wait_for("an answer", |event| {
        matches!(event, KernelEvent::Frame(frame) if (frame.src, frame.dst, frame.len) == (id(2), id(1), LIVENESS_FRAME)
            && frame.head[..LIVENESS_FRAME] == answer)
    });
    // Of the neighbour something was heard, but no data.
    left.fastdp.update_traffic().unwrap();
    let counts = left.traffic[0].counts();
    assert_eq!((counts.sent, counts.received, counts.heard), (0, 0, 1));
}

#[test]
fn traffic_is_counted_and_reported() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 20, ""), 20);
    for peer in &mut peers {
        let other = id(3 - peer.host.number);
        peer.wait_for("traffic", |event| *event == KernelEvent::Traffic { neighbour: other });
        let events = peer.events.iter().filter(|e| matches!(e, KernelEvent::Traffic { .. })).count();
        assert!(events <= 4, "{:?}", peer.events);
        peer.fastdp.update_traffic().unwrap();
        let counts = peer.traffic[0].counts();
        assert!(counts.sent >= 20 && counts.received >= 20 && counts.heard >= counts.received, "{counts:?}");
    }
}

#[test]
fn whatever_fails_at_start_nothing_is_left() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let state = || host.sh("ip -br link | cut -d ' ' -f 1; tc filter show dev vethwe-datapath ingress");
    let before = state();
    let mut steps = Vec::new();
    for n in 0.. {
        let (result, failed) = host.namespace.run(|| {
            let injection = fail_nth(n);
            (Fastdp::start(&host.config()), injection.failed())
        });
        let Some(step) = failed else {
            result.expect("nothing failed");
            break;
        };
        let error = result.err().unwrap_or_else(|| panic!("{step} failed without a consequence"));
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED), "{step}: {error}");
        assert_eq!(state(), before, "after the failure of {step}");
        steps.push(step);
    }
    assert!(steps.len() > 20, "{steps:?}");
    // Then with programs and devices that are there: they stay.
    let sorted =
        |text: String| text.lines().filter(|l| !l.contains("filter")).map(str::to_owned).collect::<Vec<_>>();
    let before = sorted(state());
    for n in 0.. {
        let (result, failed) = host.namespace.run(|| {
            let injection = fail_nth(n);
            (Fastdp::start(&host.config()), injection.failed())
        });
        let Some(step) = failed else { break };
        assert!(sorted(state()) == before, "after {step}: {result:?}");
        assert!(state().contains("weave-fastdp"), "after {step}");
    }
    host.namespace.run(|| remove_all(&host.config())).expect("removed");
    host.namespace.run(|| remove_all(&host.config())).expect("nothing to remove");
    assert!(!state().contains("vxlan") && !state().contains("weave-fastdp") && !state().contains("weavetap"));
}

#[test]
fn what_the_kernel_lacks_is_told_from_other_errors() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let error = host.namespace.run(|| {
        use nix::mount::{MsFlags, mount};
        use nix::sched::{CloneFlags, unshare};
        // As if there were no TAP devices.
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private mounts");
        mount(Some("tmpfs"), "/dev/net", Some("tmpfs"), MsFlags::empty(), none).expect("an empty folder");
        Fastdp::start(&host.config()).expect_err("no TAP devices")
    });
    assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    let text = "opening TAP device weavetap: this kernel lacks TAP devices (CONFIG_TUN, module tun)";
    assert_eq!(error.to_string(), text);
    host.sh("ip link add other type vxlan external dstport 6784; ip link set other up");
    let error = host.try_start().expect_err("the port is in use");
    assert!(matches!(error, Error::PortInUse(6784)), "{error:?}");
    let missing = FastdpConfig::new("nothing", PORT, host.origin);
    let error = host.namespace.run(|| Fastdp::start(&missing)).expect_err("no uplink");
    assert!(matches!(error, Error::Host(_)), "{error:?}");
}

#[test]
fn devices_and_programs_are_repaired() {
    let Some(wire) = Wire::new() else { return };
    let hosts = [Host::new(&wire, 1), Host::new(&wire, 2)];
    let (a, _b) = (hosts[0].container(11), hosts[1].container(12));
    let mut peers = [hosts[0].start(), hosts[1].start()];
    publish_mesh(&mut peers);
    assert_eq!(a.ping("10.32.0.12", 2, ""), 2);
    let [left, _right] = &mut peers;
    let mut repair = || hosts[0].namespace.run(|| left.fastdp.repair()).expect("repaired");
    assert_eq!(repair(), [""; 0]);
    hosts[0].sh(
        "tc filter del dev vethwe-datapath ingress prio 1000; ip link del vxlan-6784; ip link del weaverelay",
    );
    assert_eq!(
        repair(),
        [
            "TAP device weaverelay was missing",
            "VXLAN device vxlan-6784 was missing",
            "vethwe-datapath did not have its program"
        ]
    );
    assert_eq!(a.ping("10.32.0.12", 2, ""), 2);
    hosts[0].sh(
        "ip link del vethwe-bridge; ip link add vethwe-bridge mtu 1376 type veth peer name vethwe-datapath mtu 1376
         ip link set vethwe-bridge master weave up; ip link set vethwe-datapath up",
    );
    eventually("the port forwards", || {
        hosts[0].sh("bridge link show dev vethwe-bridge").contains("forwarding")
    });
    assert_eq!(repair(), ["vethwe-datapath did not have its program"]);
    assert_eq!(a.ping("10.32.0.12", 2, ""), 2);
    assert_eq!(repair(), [""; 0]);
}

#[test]
fn tables_have_the_last_word_about_addresses() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let mut peer = host.start();
    let reach = [(2, Reach::Via(2)), (3, Reach::Via(3))];
    peer.macs.learn_remote(mac(21), name(2), host.now());
    peer.macs.learn_remote(mac(22), name(3), host.now());
    let tables = peer.tables(&reach, &[]);
    peer.publish(&tables);
    assert_eq!((peer.place(mac(21)), peer.place(mac(22))), (Some(102), Some(103)));
    // An entry moves, one goes, and one peer gets another id.
    peer.macs.learn_remote(mac(21), name(3), host.now());
    peer.macs.forget_peer(name(2));
    let mut tables = peer.tables(&reach, &[]);
    peer.publish(&tables);
    assert_eq!((peer.place(mac(21)), peer.place(mac(22))), (Some(103), Some(103)));
    let other = ShortId::new(4000).expect("12 bits");
    tables.peers[2].short_id = other;
    tables.neighbours[1].short_id = other;
    peer.publish(&tables);
    assert_eq!((peer.place(mac(21)), peer.place(mac(22))), (Some(4000), Some(4000)));
    peer.macs.forget_peer(name(3));
    let tables = peer.tables(&reach, &[]);
    peer.publish(&tables);
    assert_eq!(peer.fastdp.activity().unwrap(), []);
    // Twice the same: neither routes nor MACs are written.
    let generation = peer.fastdp.generation();
    let tables = peer.tables(&reach, &[]);
    peer.publish(&tables);
    assert_eq!(peer.fastdp.generation(), generation);
    let mut tables = peer.tables(&reach, &[]);
    tables.neighbours[0].path.port = 7000;
    assert!(matches!(peer.fastdp.publish(&tables), Err(Error::NoPort(7000))));
    host.namespace.run(|| peer.fastdp.ensure_port(7000)).expect("a second port");
    peer.publish(&tables);
    assert_eq!(peer.fastdp.ports(), [PORT, 7000]);
    host.namespace.run(|| peer.fastdp.remove_port(7000)).expect("removed");
    assert_eq!(peer.fastdp.ports(), [PORT]);
}

#[test]
fn the_check_of_the_kernel_leaves_the_host_as_it_is() {
    let Some(wire) = Wire::new() else { return };
    let host = Host::new(&wire, 1);
    let links = || host.sh("ip -o link | sed 's/ state .*//'");
    let before = links();
    host.namespace.run(check_kernel).expect("this kernel has everything");
    assert_eq!(links(), before);
}
