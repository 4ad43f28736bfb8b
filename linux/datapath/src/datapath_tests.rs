//! Tests of whole data paths between containers, with the real kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weave_overlay::udp::Opener;
use weave_overlay::{Destination, ForwarderEvent};
use weave_switch::Segments;
use weave_types::ConnectionId;

use crate::events::DatapathEvent;
use crate::namespace::Namespace;
use crate::packet::{MAX_FRAME, PacketSocket};
use crate::stats::DeviceState;
use crate::sys::RecvBatch;
use crate::testbed::{Peer, Site, StaticRoutes, eventually, name, neighbour, peers, session};
use crate::udp::UdpSockets;

const KEY: Option<[u8; 32]> = Some([42; 32]);
const MTU: u32 = 1376;
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

fn test_data(len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * i) >> 3) as u8).collect()
}

/// Sends bytes by TCP from one container to another, which answers.
fn tcp(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let data = test_data(bytes);
    let listener = to.run(|| TcpListener::bind((address, 0))).unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = vec![0; data.len()];
            stream.set_read_timeout(Some(RECEIVE_TIMEOUT)).unwrap();
            stream.read_exact(&mut got).unwrap();
            assert!(got == data, "the received data is that sent");
            stream.write_all(b"ok").unwrap();
        });
        let mut stream = from.run(|| TcpStream::connect_timeout(&target, RECEIVE_TIMEOUT)).unwrap();
        stream.set_read_timeout(Some(RECEIVE_TIMEOUT)).unwrap();
        stream.write_all(&data).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
    });
}

fn udp(from: &Namespace, to: &Namespace, address: &str, bytes: usize) {
    let data = test_data(bytes);
    let receiver = to.run(|| UdpSocket::bind((address, 0))).unwrap();
    let target = receiver.local_addr().unwrap();
    receiver.set_read_timeout(Some(RECEIVE_TIMEOUT)).unwrap();
    let any = if receiver.local_addr().unwrap().is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    from.run(|| UdpSocket::bind(any).unwrap().send_to(&data, target)).unwrap();
    let mut got = [0; 65_536];
    let len = receiver.recv(&mut got).unwrap_or_else(|error| panic!("{bytes} bytes to {address}: {error}"));
    assert!(got[..len] == data, "the received data is that sent");
}

/// Sends all kinds of packets from site 1 to site 2.
fn traffic([a, b]: &[Site; 2]) {
    for address in ["10.32.0.2", "fd32::2"] {
        tcp(&a.container, &b.container, address, 2_000_000);
        // The datagram is sent in one packet and in IP fragments.
        for bytes in [1, 10, 1000, 4000, 20_000] {
            udp(&a.container, &b.container, address, bytes);
        }
    }
    // A UDP super-frame.
    let sender = a.container.run(|| UdpSockets::open(Some(IpAddr::from([10, 32, 0, 1])), 0, 1)).unwrap();
    let receiver = b.container.run(|| UdpSocket::bind("10.32.0.2:0")).unwrap();
    receiver.set_read_timeout(Some(RECEIVE_TIMEOUT)).unwrap();
    let to = receiver.local_addr().unwrap();
    let sent = crate::kernel_tests::send(&sender, to, &[(1001, true); 20], |_| ());
    assert_eq!((sent.datagrams, sent.messages), (20, 1));
    for number in 0..20 {
        let mut got = [0; 2000];
        assert_eq!(receiver.recv(&mut got).unwrap(), 1001);
        assert_eq!(got[..1001], [number; 1001]);
    }
    // Nothing listens on this port, so an ICMP error is the answer.
    b.container.run(|| UdpSocket::bind("10.32.0.2:0").unwrap().send_to(b"anybody?", "10.32.0.1:9")).unwrap();
}

/// Captures the frames that arrive on the wire while `work` runs, and until there are enough.
fn captured(
    host: &Namespace,
    enough: impl Fn(&[Vec<u8>]) -> bool + Sync + Send,
    work: impl FnOnce(),
) -> Vec<Vec<u8>> {
    let socket = host.run(|| PacketSocket::open("wire", true).unwrap());
    let stopping = AtomicBool::new(false);
    let read = || {
        let mut batch = RecvBatch::new(8, MAX_FRAME);
        let mut frames = Vec::new();
        let mut finished = false;
        let mut deadline = None;
        while !finished {
            if stopping.load(Ordering::Relaxed) {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + RECEIVE_TIMEOUT);
                finished = enough(&frames) || Instant::now() > deadline;
            }
            while let Ok(count) = socket.receive(&mut batch, 8) {
                for i in 0..count {
                    let Some(Ok((frame, offload))) = socket.frame(&mut batch, i) else { continue };
                    let mut segments = Segments::new(frame, offload).unwrap();
                    while let Some(len) = segments.next_len() {
                        let mut one = vec![0; len];
                        segments.next_into(&mut one).unwrap();
                        frames.push(one);
                    }
                }
            }
            std::thread::yield_now();
        }
        assert_eq!(socket.statistics().unwrap().drops, 0);
        frames
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        let outcome = catch_unwind(AssertUnwindSafe(work));
        stopping.store(true, Ordering::Relaxed);
        let frames = reader.join().unwrap();
        outcome.map_or_else(|panic| resume_unwind(panic), |()| frames)
    })
}

/// The Ethernet frames inside the sleeve datagrams of captured frames.
fn inner_frames(outer: &[Vec<u8>], opener: &mut Opener) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for frame in outer {
        let is_sleeve = frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 6783u16.to_be_bytes();
        if is_sleeve {
            assert_eq!(frame[20] & 0x3f, 0, "outer packets are not fragmented");
            let mut datagram = frame[42..].to_vec();
            for record in opener.open(&mut datagram).expect("a good datagram") {
                frames.push(record.expect("a good record").frame.to_vec());
            }
        }
    }
    frames
}

fn ones_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

type Fragment = (usize, bool, Vec<u8>);

/// Verifies the checksums of frames, after reassembly of fragments, independently of the code under test. Returns the kinds of
/// packets found.
fn verify(frames: &[Vec<u8>]) -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    // Fragments by family and identification: offset, whether more follow, payload.
    let mut fragments = BTreeMap::<(bool, u32), Vec<Fragment>>::new();
    for frame in frames {
        let packet = &frame[14..];
        let (addresses, mut protocol, mut payload) = match frame[12..14] {
            [8, 0] => {
                let header = usize::from(packet[0] & 15) * 4;
                let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                assert_eq!(ones_sum(&[&packet[..header]]), 0xffff, "IP header");
                (&packet[12..20], packet[9], packet[header..total].to_vec())
            }
            [0x86, 0xdd] => {
                let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                (&packet[8..40], packet[6], packet[40..40 + len].to_vec())
            }
            _ => continue,
        };
        let v6 = addresses.len() == 32;
        let (id, offset, more) = if !v6 {
            let word = u16::from_be_bytes([packet[6], packet[7]]);
            (
                u32::from(u16::from_be_bytes([packet[4], packet[5]])),
                usize::from(word & 0x1fff) * 8,
                word & 0x2000 != 0,
            )
        } else if protocol == 44 {
            protocol = payload[0];
            let word = u16::from_be_bytes([payload[2], payload[3]]);
            let id = u32::from_be_bytes(payload[4..8].try_into().unwrap());
            payload.drain(..8);
            (id, usize::from(word & 0xfff8), word & 1 != 0)
        } else {
            (0, 0, false)
        };
        if offset != 0 || more {
            seen.insert(if v6 { "fragment6" } else { "fragment4" });
            let pieces = fragments.entry((v6, id)).or_default();
            pieces.push((offset, more, payload));
            pieces.sort_by_key(|piece| piece.0);
            let length = pieces.iter().map(|piece| piece.2.len()).sum::<usize>();
            let last = pieces.last().unwrap();
            if last.1 || last.0 + last.2.len() != length {
                continue;
            }
            payload = pieces.iter().flat_map(|piece| piece.2.clone()).collect();
        }
        let pseudo = [&(payload.len() as u32).to_be_bytes()[..], &[0, 0, 0, protocol]].concat();
        let (kind, parts) = match (protocol, v6) {
            (6, false) => ("tcp4", [addresses, &pseudo, &payload]),
            (6, true) => ("tcp6", [addresses, &pseudo, &payload]),
            (17, false) => ("udp4", [addresses, &pseudo, &payload]),
            (17, true) => ("udp6", [addresses, &pseudo, &payload]),
            (1, _) => ("icmp4", [&[], &[], &payload[..]]),
            (58, _) => ("icmp6", [addresses, &pseudo, &payload]),
            // IGMP and MLD with hop-by-hop options.
            _ => continue,
        };
        assert_eq!(ones_sum(&parts), 0xffff, "{kind}: {frame:02x?}");
        seen.insert(kind);
    }
    seen
}

/// Containers leave checksums and segmentation to their devices.
#[test]
fn frames_sent_by_sleeve_have_complete_checksums() {
    let everything: BTreeSet<&str> =
        ["tcp4", "tcp6", "udp4", "udp6", "fragment4", "fragment6", "icmp4", "icmp6"].into();
    for key in [None, KEY] {
        for container_offloads in [true, false] {
            let Some(sites) = Site::pair(MTU) else { return };
            for site in &sites {
                site.add_uplink(MTU);
                if !container_offloads {
                    site.container.sh("ethtool -K ethwe tx off tso off gso off gro off rx off");
                    for device in ["vethwe-datapath", "vethwe-bridge", "vethwepl1", "wire"] {
                        site.host.sh(&format!("ethtool -K {device} tx off tso off gso off gro off rx off"));
                    }
                }
            }
            let running = peers(&sites, key, 1500);
            let frames = |outer: &[Vec<u8>]| inner_frames(outer, &mut Opener::new(session(2, 1, key)));
            let enough = |outer: &[Vec<u8>]| frames(outer).iter().any(|frame| frame[23] == 1);
            let outer = captured(&sites[1].host, enough, || traffic(&sites));
            let inner = frames(&outer);
            assert!(inner.len() > 2 * 2_000_000 / 1400, "{} frames", inner.len());
            assert!(
                inner.iter().all(|frame| frame.len() <= 14 + MTU as usize),
                "segmented to the MTU of containers"
            );
            assert_eq!(verify(&inner), everything, "key {}, offloads {container_offloads}", key.is_some());
            running.into_iter().for_each(Peer::stop);
        }
    }
}

/// TCP adapts to ICMP messages, other packets are fragmented.
#[test]
fn containers_with_a_larger_mtu_than_the_path_are_notified() {
    let Some(sites) = Site::pair(9000) else { return };
    sites.iter().for_each(|site| site.add_uplink(9000));
    let running = peers(&sites, KEY, 1500);
    let [a, b] = &sites;
    for address in ["10.32.0.2", "fd32::2"] {
        tcp(&a.container, &b.container, address, 1_000_000);
    }
    let stats = running[0].datapath.stats();
    assert!(stats.forwarder.too_big_answers > 0, "{stats:?}");
    // Linux sends UDP over IPv4 with DF until it has learnt the path MTU; now it fragments.
    udp(&a.container, &b.container, "10.32.0.2", 8000);
    running.into_iter().for_each(Peer::stop);
}

#[test]
fn a_peer_without_uplink_relays() {
    let (Some(sites), Some(relay)) = (Site::pair(MTU), Namespace::new()) else { return };
    let [a, c] = &sites;
    // Peers 1 and 2 have no connection to each other, only to peer 3.
    for (n, site) in [(1, a), (2, c)] {
        site.add_uplink(MTU);
        site.host.sh(&format!(
            "ip link del wire 2>/dev/null || true
             ip link add net type veth peer name net{n} netns {}; ip addr add 10.9.{n}.1/24 dev net; ip link set net up",
            relay.path()
        ));
        relay.sh(&format!("ip addr add 10.9.{n}.3/24 dev net{n}; ip link set net{n} up"));
    }
    let third = {
        let (one, two) = (name(1), name(2));
        let routes = StaticRoutes {
            own: name(3),
            unicast: [(one, one), (two, two)].into(),
            broadcast: [(one, vec![two]), (two, vec![one])].into(),
        };
        let neighbours =
            [1, 2].map(|n| neighbour(session(3, n, KEY), SocketAddr::from(([10, 9, n, 1], 6783)), 1500));
        Peer::start(&relay, false, routes, neighbours.into())
    };
    let ends = [(1, 2), (2, 1)].map(|(own, other)| {
        let mut routes = StaticRoutes::direct(own, 3);
        routes.unicast.insert(name(other), name(3));
        let neighbour = neighbour(session(own, 3, KEY), SocketAddr::from(([10, 9, own, 3], 6783)), 1500);
        Peer::start(&sites[usize::from(own) - 1].host, true, routes, vec![neighbour])
    });
    tcp(&a.container, &c.container, "10.32.0.2", 1_000_000);
    udp(&c.container, &a.container, "10.32.0.1", 3000);
    let stats = third.datapath.stats();
    assert_eq!(stats.device, DeviceState::None);
    assert!(stats.forwarder.frames_out > 700 && stats.counts.injected == 0, "{stats:?}");
    third.stop();
    ends.into_iter().for_each(Peer::stop);
}

#[test]
fn a_lost_uplink_is_reported_and_reopened() {
    let Some(sites) = Site::pair(MTU) else { return };
    sites.iter().for_each(|site| site.add_uplink(MTU));
    let running = peers(&sites, None, 1500);
    let [a, b] = &sites;
    tcp(&a.container, &b.container, "10.32.0.2", 100_000);
    let state = || running[0].datapath.device_state();
    let unavailable = |why: &str| DeviceState::Unavailable(why.to_owned());
    a.host.sh("ip link set vethwe-datapath down");
    eventually("the uplink is down", || state() == unavailable("device vethwe-datapath is down"));
    a.host.sh("ip link set vethwe-datapath up");
    eventually("the uplink works again", || state() == DeviceState::Up);
    tcp(&a.container, &b.container, "10.32.0.2", 100_000);
    a.host.sh("ip link del vethwe-bridge");
    eventually("the uplink is missing", || state() == unavailable("no device vethwe-datapath"));
    assert!(
        running[0]
            .has_reported(|event| *event == DatapathEvent::Device(unavailable("no device vethwe-datapath")))
    );
    // The other peer keeps running; frames to this one are dropped.
    a.add_uplink(MTU);
    eventually("the new uplink works", || state() == DeviceState::Up);
    tcp(&b.container, &a.container, "10.32.0.1", 100_000);
    running.into_iter().for_each(Peer::stop);
}

#[test]
fn an_uplink_that_is_added_later_is_opened() {
    let Some(site) = Site::new(1, MTU) else { return };
    let routes = StaticRoutes::direct(1, 2);
    let tables = weave_overlay::forward::Tables::new(
        0,
        weave_switch::ForwardingTable {
            own: name(1),
            macs: weave_switch::MacTable::new(weave_switch::MacConfig::new(name(1))).snapshot(),
            routes: Arc::new(routes),
        },
        Vec::new(),
    );
    let (datapath, events) = site
        .host
        .run(|| -> Result<_, crate::StartError> {
            let (mut datapath, events) =
                crate::Datapath::start(&crate::DatapathConfig::default(), Arc::new(tables))?;
            datapath.start_device(None)?;
            Ok((datapath, events))
        })
        .unwrap();
    eventually("the missing uplink is reported", || {
        let missing = DatapathEvent::Device(DeviceState::Unavailable("no device vethwe-datapath".to_owned()));
        events.recv_timeout(RECEIVE_TIMEOUT).contains(&missing)
    });
    site.add_uplink(MTU);
    eventually("the uplink is opened", || {
        events.recv_timeout(RECEIVE_TIMEOUT).contains(&DatapathEvent::Device(DeviceState::Up))
    });
    // The threads are blocked in poll; stopping wakes them.
    datapath.stop();
    // Children that other tests fork hold all descriptors until they exec.
    eventually("the port is free again", || site.host.run(|| UdpSockets::open(None, 6783, 1)).is_ok());
}

#[test]
fn a_smaller_interface_mtu_is_reported_to_the_node() {
    let Some(sites) = Site::pair(MTU) else { return };
    sites.iter().for_each(|site| {
        site.add_uplink(MTU);
        site.host.sh("ip link set wire mtu 1300");
    });
    let running = peers(&sites, KEY, 1500);
    let [a, _] = &sites;
    let smaller = DatapathEvent::Forwarder(ForwarderEvent::InterfaceMtu { conn: ConnectionId(2), mtu: 1300 });
    let to = |df| Destination {
        conn: ConnectionId(2),
        from: IpAddr::from([10, 9, 0, 1]),
        to: SocketAddr::from(([10, 9, 0, 2], 6783)),
        df,
        batched: false,
    };
    running[0].datapath.transmit(to(true), &[0; 1272]);
    running[0].datapath.transmit(to(false), &[0; 60_000]);
    let counts = running[0].datapath.stats().counts;
    // The containers may have sent multicast frames as well.
    assert!(counts.sent >= 2 && counts.send_dropped_too_big == 0, "{counts:?}");
    assert!(!running[0].has_reported(|event| *event == smaller));
    // The MTU is looked up in the namespace of the caller.
    a.host.run(|| running[0].datapath.transmit(to(true), &[0; 1273]));
    eventually("the MTU is reported for a control datagram", || {
        running[0].has_reported(|event| *event == smaller)
    });
    // The same for a frame that the device thread of the other peer sends.
    let smaller = DatapathEvent::Forwarder(ForwarderEvent::InterfaceMtu { conn: ConnectionId(1), mtu: 1300 });
    assert!(!running[1].has_reported(|event| *event == smaller));
    sites[1].container.run(|| {
        let socket = UdpSocket::bind("10.32.0.2:0").unwrap();
        eventually("the MTU is reported for a frame", || {
            socket.send_to(&[0; 1340], "10.32.0.1:9").unwrap();
            running[1].has_reported(|event| *event == smaller)
        });
    });
    assert!(running[1].datapath.stats().counts.send_dropped_too_big > 0);
    // Small packets pass.
    udp(&a.container, &sites[1].container, "10.32.0.2", 100);
    running.into_iter().for_each(Peer::stop);
}
