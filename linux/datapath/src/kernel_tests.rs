//! Tests of the sockets with the real kernel. Each test uses namespaces of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weave_overlay::Destination;
use weave_switch::{Csum, Gso, GsoKind, Offload};
use weave_types::ConnectionId;

use crate::namespace::Namespace;
use crate::packet::{Injector, MAX_FRAME, OpenDeviceError, PacketSocket};
use crate::sys::{self, RecvBatch};
use crate::testbed::Site;
use crate::transmit::{SendContext, SendCounts, TransmitQueue, is_batch_refused};
use crate::udp::{self, UdpSockets, segment_size};

const CONN: ConnectionId = ConnectionId(7);

/// Waits up to 2 s until one of the descriptors is readable.
fn readable(fds: &[BorrowedFd<'_>]) -> bool {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    poll(&mut polled, PollTimeout::try_from(Duration::from_secs(2)).unwrap()).unwrap() > 0
}

/// Receives until `count` datagrams have arrived or none arrives for 2 s.
fn receive_datagrams(sockets: &UdpSockets, count: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new(4, udp::MAX_MESSAGE);
    let mut got = Vec::new();
    let all: Vec<_> = (0..sockets.threads()).flat_map(|thread| sockets.of_thread(thread)).collect();
    while got.len() < count && readable(&all) {
        for &socket in &all {
            while let Ok(messages) = batch.receive(socket, 4) {
                for i in 0..messages {
                    let message = batch.message(i);
                    let (from, size) = (message.from.unwrap(), segment_size(&message));
                    got.extend(message.data.chunks(size).map(|piece| (from, piece.to_vec())));
                }
            }
        }
    }
    got
}

/// Two namespaces, 10.9.0.1 and 10.9.0.2, connected by a veth pair `wire` with this MTU.
fn pair(mtu: u32) -> Option<(Namespace, Namespace)> {
    let (a, b) = (Namespace::new()?, Namespace::new()?);
    a.sh(&format!(
        "ip link add wire mtu {mtu} type veth peer name wire mtu {mtu} netns {}; ip addr add 10.9.0.1/24 dev wire; ip link set wire up",
        b.path()
    ));
    b.sh("ip addr add 10.9.0.2/24 dev wire; ip link set wire up");
    Some((a, b))
}

const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The kernel chooses the source address.
fn destination(to: SocketAddr, df: bool) -> Destination {
    Destination { conn: CONN, from: ANY, to, df, batched: true }
}

const B: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2)), 6783);

/// Sends datagrams of these sizes, filled with their numbers, through one queue.
pub(crate) fn send(
    sockets: &UdpSockets,
    to: SocketAddr,
    datagrams: &[(usize, bool)],
    mut too_big: impl FnMut(Destination),
) -> SendCounts {
    let mut sent = SendCounts::default();
    let mut queue = TransmitQueue::new();
    let mut refused = |to| panic!("{to:?} refused");
    let mut context =
        SendContext { sockets, counts: &mut sent, too_big: &mut too_big, refused: &mut refused };
    for (i, &(len, df)) in datagrams.iter().enumerate() {
        // More room than is used, as the forwarder does.
        let slot = queue.reserve(destination(to, df), (len + 500).min(65_507), &mut context);
        queue.buffer(slot)[..len].fill(i as u8);
        queue.commit(slot, len);
    }
    queue.flush(&mut context);
    sent
}

#[test]
fn datagrams_arrive_at_either_socket() {
    let Some(ns) = Namespace::new() else { return };
    ns.run(|| {
        let sockets = UdpSockets::open(None, 6783, 1).unwrap();
        // The kernel prefers a connected socket for datagrams of its peer: each is connected in turn.
        for (index, df) in [true, false].into_iter().enumerate() {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket2::SockRef::from(&sockets.of_thread(0)[index])
                .connect(&sender.local_addr().unwrap().into())
                .unwrap();
            sender.send_to(&[u8::from(df)], "127.0.0.1:6783").unwrap();
            assert!(
                readable(&sockets.of_thread(0)[index..=index]),
                "the kernel chooses the connected socket"
            );
            let from = sender.local_addr().unwrap();
            assert_eq!(receive_datagrams(&sockets, 1), [(from, vec![u8::from(df)])]);
            // Both send from the same port.
            sockets.send(destination(from, df), &[8], 0).unwrap();
            assert_eq!(sender.recv_from(&mut [0; 8]).unwrap().1.port(), 6783);
        }
    });
}

#[test]
fn the_port_cannot_be_shared() {
    let Some(ns) = Namespace::new() else { return };
    ns.run(|| {
        let first = UdpSockets::open(None, 6783, 2).unwrap();
        let error = UdpSockets::open(None, 6783, 2).unwrap_err();
        assert_eq!(error.error.kind(), std::io::ErrorKind::AddrInUse);
        assert_eq!(error.to_string(), "bind for UDP 0.0.0.0:6783: Address already in use (os error 98)");
        let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        other.set_reuse_address(true).unwrap();
        assert!(other.bind(&first.local_addr().into()).is_err());
        // A process of the same user that insists gets nothing.
        other.set_reuse_port(true).unwrap();
        other.bind(&first.local_addr().into()).unwrap();
        for number in 0..100 {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            sender.send_to(&[0xf1, 0, 0, number, 9], "127.0.0.1:6783").unwrap();
        }
        assert_eq!(receive_datagrams(&first, 100).len(), 100);
        assert!(UdpSockets::open(Some("127.0.0.1".parse().unwrap()), 0, 1).unwrap().local_addr().port() != 0);
    });
}

#[test]
fn datagrams_of_a_lane_arrive_at_one_thread() {
    for listen in [None, Some(IpAddr::from([0; 16]))] {
        for threads in 1..=4 {
            let Some(ns) = Namespace::new() else { return };
            let sockets = ns.run(|| UdpSockets::open(listen, 6783, threads).unwrap());
            assert_eq!(sockets.threads(), threads);
            let mut cases: Vec<(Vec<u8>, usize)> =
                (0..8u8).map(|lane| (vec![0xf1, 0, 0, lane, 9], usize::from(lane) % threads)).collect();
            // Sleeve, and what is neither.
            cases.extend([(vec![0x7a, 0, 0, 1, 0, 0], 0), (vec![0xf1, 0, 1], 0)]);
            for (datagram, thread) in cases {
                let sender = ns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
                sender.send_to(&datagram, "127.0.0.1:6783").unwrap();
                assert!(readable(&sockets.of_thread(thread)), "{datagram:?} of {threads} threads");
                let got = receive_datagrams(&sockets, 1);
                assert_eq!(got.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>(), [datagram]);
            }
        }
    }
}

#[test]
fn equal_datagrams_are_sent_in_one_message() {
    let Some((a, b)) = pair(1500) else { return };
    for gso in ["on", "off"] {
        let switch = format!("ethtool -K wire tx-udp-segmentation {gso} gso {gso} tso {gso} gro {gso}");
        a.sh(&switch);
        b.sh(&switch);
        let sizes: Vec<(usize, bool)> =
            [&[(1410, true); 45][..], &[(700, true), (1410, true), (60, false), (60, false), (1472, true)]]
                .concat();
        let receiver = b.run(|| UdpSockets::open(None, 6783, 1).unwrap());
        let sent = a.run(|| {
            let sockets = UdpSockets::open(None, 6783, 1).unwrap();
            send(&sockets, B, &sizes, |to| panic!("{to:?} too big"))
        });
        let bytes = sizes.iter().map(|s| s.0 as u64).sum();
        // With DF: 45 of 1410 and a shorter one, then 1410, then 1472. Without: two of 60.
        assert_eq!(sent, SendCounts { datagrams: 50, bytes, messages: 4, ..SendCounts::default() });
        let mut got: Vec<(usize, u8)> =
            receive_datagrams(&receiver, 50).into_iter().map(|(_, d)| (d.len(), d[0])).collect();
        got.sort_by_key(|d| d.1);
        let expected: Vec<(usize, u8)> = sizes.iter().enumerate().map(|(i, s)| (s.0, i as u8)).collect();
        assert_eq!(got, expected);
    }
}

#[test]
fn datagrams_above_the_interface_mtu_are_reported_with_df_and_fragmented_without() {
    let Some((a, b)) = pair(1500) else { return };
    let receiver = b.run(|| UdpSockets::open(None, 6783, 1).unwrap());
    a.run(|| {
        let sockets = UdpSockets::open(None, 6783, 1).unwrap();
        assert_eq!(sockets.interface_mtu(ANY, B).unwrap(), 1500);
        let mut reported = Vec::new();
        let sizes =
            [(1473, true), (1472, true), (60_000, true), (1473, false), (1473, false), (65_507, false)];
        let sent = send(&sockets, B, &sizes, |to| reported.push(to));
        assert_eq!((sent.datagrams, sent.dropped_too_big, sent.dropped_error), (4, 2, 0));
        let destination = destination(B, true);
        assert_eq!(reported, [destination; 2]);
        reported.clear();
        // A whole run in one message.
        let sent = send(&sockets, B, &[(1473, true); 20], |to| reported.push(to));
        assert_eq!((sent.datagrams, sent.dropped_too_big), (0, 20));
        assert_eq!(reported, [destination]);
        assert_eq!(
            sockets.send(destination, &[0; 60_000], 0).unwrap_err().raw_os_error(),
            Some(libc::EMSGSIZE)
        );
    });
    let mut got: Vec<usize> = receive_datagrams(&receiver, 4).into_iter().map(|(_, d)| d.len()).collect();
    got.sort_unstable();
    assert_eq!(got, [1472, 1473, 1473, 65_507]);
}

/// An ICMP message that says that the path from 10.9.0.1:7000 to 10.9.0.2:7000 carries 560 bytes.
fn forged_icmp() -> Vec<u8> {
    let mut message = vec![3, 4, 0, 0, 0, 0, 2, 0x30];
    message.extend([0x45, 0, 0x05, 0xdc, 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
    message.extend([0x1b, 0x58, 0x1b, 0x58, 0x05, 0xc8, 0, 0]);
    for at in [18, 2] {
        let end = if at == 18 { 28 } else { message.len() };
        let sum = weave_switch::checksum::Sum::ZERO.bytes(&message[if at == 18 { 8 } else { 0 }..end]);
        message[at..at + 2].copy_from_slice(&sum.checksum().to_be_bytes());
    }
    message
}

#[test]
fn forged_icmp_changes_neither_the_mtu_nor_the_fragments() {
    let Some((a, b)) = pair(1500) else { return };
    let receiver = b.run(|| UdpSockets::open(None, 6783, 1).unwrap());
    let sockets = a.run(|| UdpSockets::open(None, 6783, 1).unwrap());
    // Another program's socket, about whose datagrams the kernel believes what it hears.
    let other = a.run(|| UdpSocket::bind("10.9.0.1:7000").unwrap());
    other.send_to(&[0], "10.9.0.2:7000").unwrap();
    b.run(|| {
        let raw =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4));
        let to: SocketAddr = "10.9.0.1:0".parse().unwrap();
        raw.unwrap().send_to(&forged_icmp(), &to.into()).unwrap();
    });
    crate::testbed::eventually("the kernel believes the message", || {
        a.sh("ip route get 10.9.0.2").contains("mtu 560")
    });
    a.run(|| {
        assert_eq!(sockets.interface_mtu(ANY, B).unwrap(), 1500);
        let sizes = [(1472, true), (1472, true), (1472, false), (1473, true)];
        let mut reported = 0;
        let sent = send(&sockets, B, &sizes, |_| reported += 1);
        assert_eq!((sent.datagrams, sent.dropped_too_big, reported), (3, 1, 1));
    });
    assert_eq!(receive_datagrams(&receiver, 3).len(), 3);
    let counters = a.sh("grep '^Ip: ' /proc/thread-self/net/snmp");
    let (names, values) = counters.split_once('\n').unwrap();
    let mut counters = names.split(' ').zip(values.split(' '));
    assert_eq!(counters.find(|(name, _)| *name == "FragCreates").unwrap().1.trim(), "0", "{values}");
}

/// A socket of both families has the limits of each, and addresses of IPv4 look like those of an IPv4 socket.
#[test]
fn one_socket_for_both_families() {
    let Some((a, b)) = pair(1500) else { return };
    for (ns, n) in [(&a, 1), (&b, 2)] {
        ns.sh(&format!("sysctl -qw net.ipv6.bindv6only=1; ip addr add fd09::{n}/64 dev wire nodad"));
    }
    let all = Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED));
    let receiver = b.run(|| UdpSockets::open(all, 6783, 1).unwrap());
    let b6: SocketAddr = "[fd09::2]:6783".parse().unwrap();
    a.run(|| {
        let sockets = UdpSockets::open(all, 6783, 1).unwrap();
        for (to, from, longest) in [(B, "10.9.0.1", 1472), (b6, "fd09::1", 1452)] {
            let from: IpAddr = from.parse().unwrap();
            assert_eq!(sockets.interface_mtu(from, to).unwrap(), 1500);
            let mut reported = 0;
            let sizes = [(longest, true), (longest, true), (longest + 1, true), (longest + 1, false)];
            let sent = send(&sockets, to, &sizes, |_| reported += 1);
            assert_eq!((sent.datagrams, sent.dropped_too_big, reported), (3, 1, 1), "{to}");
            let got = receive_datagrams(&receiver, 3);
            let lengths: Vec<usize> = got.iter().map(|(_, d)| d.len()).collect();
            assert_eq!(lengths.iter().sum::<usize>(), 3 * longest + 1, "{to}");
            assert!(got.iter().all(|(source, _)| *source == SocketAddr::new(from, 6783)), "{got:?}");
        }
    });
}

/// A host with several addresses sends from the one that it is asked for.
#[test]
fn datagrams_leave_from_the_given_address() {
    let all = Some(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED));
    for (listen, to, sources) in [
        (None, "10.9.0.2:6783", ["10.9.0.1", "10.9.0.100"]),
        (all, "10.9.0.2:6783", ["10.9.0.100", "10.9.0.1"]),
        (all, "[fd09::2]:6783", ["fd09::1", "fd09::100"]),
    ] {
        // The port of closed sockets is in use for a moment if another test forks.
        let Some((a, b)) = pair(1500) else { return };
        a.sh("ip addr add 10.9.0.100/24 dev wire; ip addr add fd09::1/64 dev wire nodad; ip addr add fd09::100/64 dev wire nodad");
        b.sh("ip addr add fd09::2/64 dev wire nodad");
        let receiver = b.run(|| UdpSockets::open(listen, 6783, 1).unwrap());
        let sockets = a.run(|| UdpSockets::open(listen, 6783, 1).unwrap());
        for source in sources {
            let to = Destination { from: source.parse().unwrap(), ..destination(to.parse().unwrap(), true) };
            a.run(|| sockets.send(to, &[1], 0).unwrap());
            let mut sent = SendCounts::default();
            let mut queue = TransmitQueue::new();
            let mut context = SendContext {
                sockets: &sockets,
                counts: &mut sent,
                too_big: &mut |to| panic!("{to:?}"),
                refused: &mut |to| panic!("{to:?}"),
            };
            for _ in 0..3 {
                let slot = queue.reserve(to, 1000, &mut context);
                queue.commit(slot, 1000);
            }
            queue.flush(&mut context);
            let got = receive_datagrams(&receiver, 4);
            assert_eq!(got.len(), 4);
            assert!(got.iter().all(|(from, _)| from.ip() == to.from), "{to:?}: {got:?}");
        }
    }
}

#[test]
fn datagrams_to_many_destinations_are_open_at_the_same_time() {
    let Some(ns) = Namespace::new() else { return };
    ns.run(|| {
        let sockets = UdpSockets::open(None, 6783, 1).unwrap();
        let receivers: Vec<UdpSocket> = (0..100).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let mut sent = SendCounts::default();
        let mut queue = TransmitQueue::new();
        let mut context = SendContext {
            sockets: &sockets,
            counts: &mut sent,
            too_big: &mut |to| panic!("{to:?}"),
            refused: &mut |to| panic!("{to:?}"),
        };
        for round in 0..3 {
            // All are open at the same time; two of three rounds are committed, the other is discarded.
            let slots: Vec<_> = receivers
                .iter()
                .enumerate()
                .map(|(i, receiver)| {
                    let to = receiver.local_addr().unwrap();
                    queue.reserve(
                        Destination { conn: ConnectionId(i as u64), ..destination(to, true) },
                        65_507,
                        &mut context,
                    )
                })
                .collect();
            for (i, slot) in slots.iter().enumerate() {
                queue.buffer(*slot)[..2].copy_from_slice(&[i as u8, round]);
            }
            slots.iter().for_each(|slot| queue.commit(*slot, if round == 1 { 0 } else { 2 }));
        }
        queue.flush(&mut context);
        assert_eq!((sent.datagrams, sent.messages), (200, 100));
        for (i, receiver) in receivers.iter().enumerate() {
            for round in [0, 2] {
                let mut buf = [0; 9];
                assert_eq!(receiver.recv(&mut buf).unwrap(), 2);
                assert_eq!(buf[..2], [i as u8, round]);
            }
        }
    });
}

#[test]
fn network_errors_drop_only_the_affected_datagrams() {
    let Some(ns) = Namespace::new() else { return };
    ns.run(|| {
        let sockets = UdpSockets::open(None, 6783, 1).unwrap();
        let sent = send(&sockets, B, &[(100, true); 3], |_| ());
        assert_eq!((sent.datagrams, sent.dropped_error), (0, 3), "no route");
        // Nothing listens on the port: the ICMP error must not fail a later send.
        let closed: SocketAddr = "127.0.0.1:9".parse().unwrap();
        for _ in 0..3 {
            sockets.send(destination(closed, true), b"anybody?", 0).unwrap();
        }
        let mut batch = RecvBatch::new(1, udp::MAX_MESSAGE);
        for socket in sockets.of_thread(0) {
            assert_eq!(batch.receive(socket, 4).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        }
    });
}

/// A host with bridge and uplink, and a container behind it.
fn bridged(mtu: u32) -> Option<(Namespace, Namespace)> {
    let site = Site::new(1, mtu)?;
    site.add_uplink(mtu);
    Some((site.host, site.container))
}

fn next_frame(
    socket: &PacketSocket,
    batch: &mut RecvBatch,
    wanted: impl Fn(&[u8]) -> bool,
) -> Option<(Offload, Vec<u8>)> {
    while readable(&[socket.poll_fd()]) {
        for i in 0..socket.receive(batch, 4).ok()? {
            if let Some(Ok((frame, offload))) = socket.frame(batch, i)
                && wanted(frame)
            {
                return Some((offload, frame.to_vec()));
            }
        }
    }
    None
}

#[test]
fn vlan_tags_are_inserted_and_offsets_adjusted() {
    let Some((host, container)) = bridged(1500) else { return };
    let socket = host.run(|| PacketSocket::open("vethwe-datapath", true).unwrap());
    let mut batch = RecvBatch::new(1, MAX_FRAME);
    let inside = container.run(|| PacketSocket::open("ethwe", true).unwrap());
    // The kernel removes a VLAN tag from any frame that it receives.
    let mut tagged = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 0x81, 0, 0x20, 5, 8, 0, 0x45]].concat();
    tagged.resize(142, 7);
    let offload = Offload { csum: Some(Csum { start: 38, offset: 6 }), gso: None };
    let mut injector = Injector::new();
    injector.push(&tagged, offload, Some(&inside));
    assert_eq!(injector.flush(Some(&inside)).sent, 1);
    let (got, frame) = next_frame(&socket, &mut batch, |f| f[12..14] == [0x81, 0]).unwrap();
    // The checksum is still to be computed, and starts after the tag.
    assert_eq!((frame, got), (tagged, offload));
    container.sh("ip neigh add 10.32.0.2 lladdr 02:00:00:00:00:09 dev ethwe");
    container.run(|| UdpSocket::bind("10.32.0.1:0").unwrap().send_to(&[9; 100], "10.32.0.2:53").unwrap());
    let (got, frame) = next_frame(&socket, &mut batch, |f| f[12..14] == [8, 0] && f[23] == 17).unwrap();
    assert_eq!((frame.len(), got.csum), (142, Some(Csum { start: 34, offset: 6 })));
}

#[test]
fn super_frames_are_captured_whole_and_drops_are_counted() {
    let Some((host, container)) = bridged(1376) else { return };
    container.sh("ip neigh add 10.32.0.2 lladdr 02:00:00:00:00:09 dev ethwe");
    let socket = host.run(|| PacketSocket::open("vethwe-datapath", true).unwrap());
    // One send of 40 segments in the container is captured as one frame.
    let sender = container.run(|| UdpSockets::open(Some("10.32.0.1".parse().unwrap()), 1000, 1).unwrap());
    send(&sender, "10.32.0.2:53".parse().unwrap(), &[(1300, true); 40], |_| ());
    let mut batch = RecvBatch::new(4, MAX_FRAME);
    let (offload, frame) = next_frame(&socket, &mut batch, |f| f.len() > 1500).unwrap();
    assert_eq!(frame.len(), 42 + 40 * 1300);
    assert_eq!(offload.gso.map(|gso| (gso.kind, gso.size)), Some((GsoKind::Udp, 1300)));
    assert_eq!(socket.statistics().unwrap().drops, 0);
    // More than the buffer holds.
    for _ in 0..1000 {
        send(&sender, "10.32.0.2:53".parse().unwrap(), &[(1300, true); 40], |_| ());
    }
    let statistics = socket.statistics().unwrap();
    assert!((100..1000).contains(&statistics.drops) && statistics.packets >= 1000, "{statistics:?}");
    assert_eq!(socket.statistics().unwrap().drops, 0, "reading resets");
}

#[test]
fn opening_a_missing_or_down_device_fails() {
    let Some((host, _container)) = bridged(1500) else { return };
    host.run(|| {
        let missing = PacketSocket::open("vethwe-other", true).unwrap_err();
        assert!(matches!(missing, OpenDeviceError::Missing(_)));
        assert_eq!(missing.to_string(), "no device vethwe-other");
    });
    host.sh("ip link set vethwe-datapath down");
    host.run(|| {
        assert!(matches!(PacketSocket::open("vethwe-datapath", true).unwrap_err(), OpenDeviceError::Down(_)))
    });
    host.sh("ip link set vethwe-datapath up");
    host.run(|| {
        let socket = PacketSocket::open("vethwe-datapath", true).unwrap();
        let mut injector = Injector::new();
        injector.push(&[0xff; 60], Offload::NONE, Some(&socket));
        assert_eq!(injector.flush(Some(&socket)).sent, 1);
        injector.push(&[0xff; 60], Offload::NONE, None);
        assert_eq!(injector.flush(None).dropped, 1);
    });
}

/// The kernel refuses segmentation without a checksum, as it refuses it with devices and routes that cannot have it.
#[test]
fn a_refused_batch_is_sent_one_by_one_and_reported() {
    let Some((a, b)) = pair(1500) else { return };
    let receiver = b.run(|| UdpSockets::open(None, 6783, 1).unwrap());
    a.run(|| {
        let sockets = UdpSockets::open(None, 6783, 1).unwrap();
        sys::set_option(sockets.fd(true), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
        let (mut sent, mut refused) = (SendCounts::default(), Vec::new());
        let mut queue = TransmitQueue::new();
        for batched in [true, false] {
            let mut context = SendContext {
                sockets: &sockets,
                counts: &mut sent,
                too_big: &mut |to| panic!("{to:?}"),
                refused: &mut |to| refused.push(to),
            };
            let to = Destination { batched, ..destination(B, true) };
            for i in 0..10 {
                let slot = queue.reserve(to, 1400, &mut context);
                queue.buffer(slot).fill(i);
                queue.commit(slot, 1400);
            }
            queue.flush(&mut context);
        }
        assert_eq!(sent, SendCounts { datagrams: 20, bytes: 28_000, messages: 20, ..SendCounts::default() });
        assert_eq!(refused, [destination(B, true)]);
        // A batch of control datagrams is not sent otherwise.
        let error = sockets.send(destination(B, true), &[7; 2800], 1400).unwrap_err();
        assert!(is_batch_refused(&error), "{error}");
    });
    let got = receive_datagrams(&receiver, 20);
    assert_eq!(got.len(), 20);
    assert!(got.iter().enumerate().all(|(i, (_, datagram))| *datagram == [(i % 10) as u8; 1400]));
}

/// The kernel refuses a header that is longer than the frame; others have refused valid ones.
#[test]
fn the_segments_of_a_refused_super_frame_are_injected() {
    let Some((host, container)) = bridged(1376) else { return };
    container.sh("ip neigh add 10.32.0.2 lladdr 02:00:00:00:00:09 dev ethwe");
    let socket = host.run(|| PacketSocket::open("vethwe-datapath", true).unwrap());
    let sender = container.run(|| UdpSockets::open(Some("10.32.0.1".parse().unwrap()), 1000, 1).unwrap());
    let mut batch = RecvBatch::new(4, MAX_FRAME);
    let inside = container.run(|| PacketSocket::open("ethwe", true).unwrap());
    for segments in [3, 30] {
        // A small super-frame is part of a batch, a large one is passed on without a copy.
        let sizes = vec![(1300, true); segments];
        send(&sender, "10.32.0.2:53".parse().unwrap(), &sizes, |_| ());
        let (offload, frame) = next_frame(&socket, &mut batch, |f| f.len() > 1500).unwrap();
        let gso = offload.gso.map(|gso| Gso { hdr_len: u16::MAX, ..gso });
        let mut injector = Injector::new();
        let mut counts = injector.push(&frame, Offload { gso, ..offload }, Some(&inside));
        counts += injector.flush(Some(&inside));
        assert_eq!((counts.sent, counts.dropped), (segments as u64, 0));
        assert!(injector.take_refused() && !injector.take_refused());
        let mut arrived = 0;
        while arrived < segments {
            assert!(readable(&[socket.poll_fd()]), "{arrived} of {segments} segments have arrived");
            for i in 0..socket.receive(&mut batch, 4).unwrap() {
                let (segment, offload) = socket.frame(&mut batch, i).unwrap().unwrap();
                if segment.len() > 1300 {
                    assert_eq!((offload, segment.len()), (Offload::NONE, 42 + 1300));
                    arrived += 1;
                }
            }
        }
    }
}
