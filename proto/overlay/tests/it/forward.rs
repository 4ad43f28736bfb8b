//! The data path of several peers in a line, connected without a network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{Line, Recorder, UID, addr, array, bytes, name, session, vectors};
use weave_overlay::Destination;
use weave_overlay::ForwarderEvent;
use weave_overlay::forward::{Forwarder, Neighbour, Overlay, Tables};
use weave_overlay::udp::{ControlFrame, Opener, Sealer, UdpPath};
use weave_switch::{Csum, DropReason, ForwardingTable, Gso, GsoKind, MacConfig, MacTable, Offload};
use weave_types::{ConnectionId, Instant, MacAddr, PeerName};

const NOW: Instant = Instant::from_origin(Duration::from_secs(1000));

struct Node {
    n: u8,
    peers: u8,
    forwarder: Forwarder,
    macs: MacTable,
    neighbours: Vec<Neighbour>,
    io: Recorder,
}

fn path(remote: u8, overhead: usize) -> UdpPath {
    let mtu = 1500 - overhead;
    UdpPath {
        local: addr(1).ip(),
        remote: Some(addr(remote)),
        mtu,
        max_payload: 1472,
        stack_fragments: true,
        batched: true,
    }
}

impl Node {
    fn new(n: u8, peers: u8, key: Option<[u8; 32]>) -> Node {
        let neighbours = [n - 1, n + 1]
            .into_iter()
            .filter(|remote| (1..=peers).contains(remote))
            .map(|remote| {
                let session = session(n, remote, key);
                let path = path(remote, session.overhead());
                Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve }
            })
            .collect();
        Node::with(n, peers, neighbours)
    }

    fn with(n: u8, peers: u8, neighbours: Vec<Neighbour>) -> Node {
        let macs = MacTable::new(MacConfig::new(name(n)));
        let tables = tables(n, peers, &macs, &neighbours);
        Node { n, peers, forwarder: Forwarder::new(tables, 0), macs, neighbours, io: Recorder::default() }
    }

    /// Learns MACs from the events, as the node does, and publishes new tables.
    fn learn(&mut self) {
        for event in &self.io.events {
            match event {
                ForwarderEvent::Switch(weave_switch::SwitchEvent::LocalMac(mac)) => {
                    _ = self.macs.learn_local(*mac, NOW)
                }
                ForwarderEvent::Switch(weave_switch::SwitchEvent::RemoteMac { mac, peer }) => {
                    _ = self.macs.learn_remote(*mac, *peer, NOW);
                }
                _ => {}
            }
        }
        self.io.events.retain(|event| matches!(event, ForwarderEvent::Control { .. }));
        self.publish();
    }

    fn publish(&mut self) {
        let tables = tables(self.n, self.peers, &self.macs, &self.neighbours);
        self.forwarder.set_tables(tables, &mut self.io);
    }

    /// Makes the node know that peer `n` has the MAC `mac(n)`.
    fn learn_peer(&mut self, n: u8) {
        self.macs.learn_remote(mac(n), name(n), NOW);
        self.publish();
    }

    fn local(&mut self, frame: &[u8], offload: Offload) {
        self.local_batch(&[(frame, offload)]);
    }

    fn local_batch(&mut self, frames: &[(&[u8], Offload)]) {
        for (frame, offload) in frames {
            self.forwarder.handle_local(frame, *offload, NOW, &mut self.io);
        }
        self.forwarder.flush(&mut self.io);
    }

    fn datagram(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.forwarder.handle_datagram(from, &mut datagram.to_vec(), NOW, &mut self.io);
        self.forwarder.flush(&mut self.io);
    }
}

fn tables(n: u8, peers: u8, macs: &MacTable, neighbours: &[Neighbour]) -> Arc<Tables> {
    let routes = Arc::new(Line { own: n, peers });
    let forwarding = ForwardingTable { own: name(n), macs: macs.snapshot(), routes };
    Arc::new(Tables::new(0, forwarding, neighbours.iter().cloned().map(Arc::new).collect()))
}

/// Peers 1, 2, 3 and so on.
struct Net(Vec<Node>);

impl Net {
    fn line(peers: u8, key: Option<[u8; 32]>) -> Net {
        Net((1..=peers).map(|n| Node::new(n, peers, key)).collect())
    }

    fn node(&mut self, n: u8) -> &mut Node {
        &mut self.0[usize::from(n) - 1]
    }

    /// Delivers datagrams until there are none left. All nodes learn MACs.
    fn settle(&mut self) {
        loop {
            let mut sent = Vec::new();
            for node in &mut self.0 {
                node.learn();
                sent.extend(std::mem::take(&mut node.io.sent).into_iter().map(|d| (node.n, d)));
            }
            if sent.is_empty() {
                return;
            }
            for (from, (to, datagram)) in sent {
                let to =
                    to.to.to_string().rsplit_once('.').unwrap().1.split_once(':').unwrap().0.parse().unwrap();
                self.node(to).datagram(addr(from), &datagram);
            }
        }
    }

    /// Broadcasts from each of these peers, so that all peers learn their MACs.
    fn announce(&mut self, peers: [u8; 2]) {
        for n in peers {
            self.node(n).local(&arp(MacAddr::BROADCAST, mac(n)), Offload::NONE);
            self.settle();
        }
        self.injected();
    }

    /// The frames injected at each node since the last call.
    fn injected(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.0.iter_mut().map(|node| std::mem::take(&mut node.io.injected)).collect()
    }
}

fn mac(n: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, n])
}

fn ethernet(dst: MacAddr, src: MacAddr, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0[..], &kind.to_be_bytes(), payload].concat()
}

fn arp(dst: MacAddr, src: MacAddr) -> Vec<u8> {
    ethernet(dst, src, 0x0806, &[7; 28])
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let words = bytes.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)])));
    let mut sum: u32 = start + words.sum::<u32>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ipv4(dst: MacAddr, src: MacAddr, df: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut header =
        [0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, protocol, 0, 0, 10, 40, 0, src.0[5], 10, 40, 0, dst.0[5]];
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header[6] = if df { 0x40 } else { 0 };
    let checksum = !sum(&header, 0);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    ethernet(dst, src, 0x0800, &[&header[..], payload].concat())
}

/// A TCP super-frame, as a kernel leaves it.
fn tcp_super_frame(dst: MacAddr, src: MacAddr, payload: usize, mss: u16) -> (Vec<u8>, Offload) {
    let mut tcp = vec![0u8; 20];
    tcp[..4].copy_from_slice(&[0x1f, 0x90, 0x30, 0x39]);
    tcp[12] = 0x50;
    tcp[13] = 0x18;
    tcp.extend((0..payload).map(|i| i as u8));
    let mut frame = ipv4(dst, src, true, 6, &tcp);
    let pseudo = sum(&frame[26..34], 6 + (20 + payload) as u32);
    frame[14 + 20 + 16..][..2].copy_from_slice(&pseudo.to_be_bytes());
    let csum = Some(Csum { start: 34, offset: 16 });
    let gso = Some(Gso { kind: GsoKind::TcpV4, size: mss, hdr_len: 54 });
    (frame, Offload { csum, gso })
}

#[test]
fn a_broadcast_reaches_every_peer_once() {
    for key in [None, Some([9; 32])] {
        for origin in 1..=4 {
            let mut net = Net::line(4, key);
            let frame = arp(MacAddr::BROADCAST, mac(origin));
            net.node(origin).local(&frame, Offload::NONE);
            net.settle();
            for (n, injected) in (1..).zip(net.injected()) {
                let expected = if n == origin { vec![] } else { vec![frame.clone()] };
                assert_eq!(injected, expected, "from {origin} at {n}");
            }
            for node in &net.0 {
                let peer = name(origin);
                assert_eq!(node.macs.lookup(mac(origin)), Some(peer), "all peers have learnt the source");
            }
        }
    }
}

#[test]
fn unicast_follows_the_route_and_is_sealed_at_each_hop() {
    let mut net = Net::line(4, Some([9; 32]));
    net.announce([1, 4]);
    let frame = ipv4(mac(4), mac(1), true, 17, &[5; 100]);
    net.node(1).local(&frame, Offload::NONE);
    let (to, first) = net.node(1).io.sent[0].clone();
    assert_eq!((to.to, to.df, to.conn), (addr(2), true, ConnectionId(2)));
    net.node(1).io.sent.clear();
    net.node(2).datagram(addr(1), &first);
    let (to, mut second) = net.node(2).io.sent.pop().unwrap();
    assert_eq!((to.to, to.df), (addr(3), true));
    let opener = Opener::new(session(3, 2, Some([9; 32])));
    let record =
        opener.open(&mut second.clone()).unwrap().next().unwrap().map(|r| (r.src, r.dst, r.frame.to_vec()));
    assert_eq!(record, Ok((name(1), name(4), frame.clone())));
    net.node(3).datagram(addr(2), &second);
    net.settle();
    assert_eq!(net.injected(), [vec![], vec![], vec![], vec![frame]], "relays inject nothing");
    // A relay detects replays, too.
    second.truncate(second.len());
    net.node(3).datagram(addr(2), &second);
    assert_eq!(net.node(3).forwarder.stats().drop_replayed, 1);
    assert!(net.node(3).io.sent.is_empty());
}

/// A, B and C send the data frames of the captures, byte for byte.
#[test]
fn datagrams_equal_those_of_2_8_1() {
    for (file, key) in [("live_sleeve_plain", false), ("live_sleeve_encrypted", true)] {
        let file = vectors(file);
        let key = |pair: (&str, &str)| -> Option<[u8; 32]> {
            let all = array(&file["connections_as_seen_by"][pair.0]);
            let connection = all.iter().find(|c| c["peer"] == pair.1).unwrap();
            key.then(|| hex::decode(connection["session_key"].as_str().unwrap()).unwrap().try_into().unwrap())
        };
        let (ab, bc) = (key(("A", "7a:00:00:00:00:02")), key(("B", "7a:00:00:00:00:03")));
        let neighbour = |own: u8, remote: u8, key| {
            let session = session(own, remote, key);
            // Sequence numbers of heartbeat, initial probe and MTU test, and of the fragmentation test.
            let sealer = Sealer::new(session.clone());
            for df in [true, true, true, false] {
                sealer.finish(sealer.begin(), &mut [0; 30], df).unwrap();
            }
            let path = path(remote, session.overhead());
            Neighbour { session, confirmed: true, path, warp: None, overlay: Overlay::Sleeve }
        };
        let mut net = Net(vec![
            Node::with(1, 3, vec![neighbour(1, 2, ab)]),
            Node::with(2, 3, vec![neighbour(2, 1, ab), neighbour(2, 3, bc)]),
            Node::with(3, 3, vec![neighbour(3, 2, bc)]),
        ]);
        // Only what was sent after the establishment, without heartbeats.
        let recorded = |link: &str, from: &str| -> Vec<Vec<u8>> {
            array(&file["links"][link]["udp"])
                .iter()
                .filter(|d| {
                    d["t_ms"].as_f64().unwrap() > 7999.0 && d["from"].as_str().unwrap().starts_with(from)
                })
                .filter(|d| ![42, 66].contains(&d["len"].as_u64().unwrap()))
                .map(|d| bytes(&d["payload"]))
                .collect()
        };
        let (a, b_to_c) = (recorded("ab", "172.30.1.1"), recorded("bc", "172.30.2.2"));
        let (c, b_to_a) = (recorded("bc", "172.30.2.3"), recorded("ab", "172.30.1.2"));
        assert_eq!([a.len(), b_to_c.len(), c.len(), b_to_a.len()], [3, 3, 1, 1]);
        let frames = &file["injected_frames"];
        let broadcast = bytes(&serde_json::json!(
            "ffffffffffff0242ac110002080600010800060400010242ac1100020a2000020000000000000a280003"
        ));
        let reply = bytes(&serde_json::json!(
            "0242ac1100020242ac110003080600010800060400020242ac1100030a2800030242ac1100020a200002"
        ));

        let hop = |net: &mut Net, n: u8, expected: &[u8], frame: &[u8]| {
            net.node(n).local(frame, Offload::NONE);
            net.node(n).learn();
            let sent = std::mem::take(&mut net.node(n).io.sent);
            assert_eq!(sent.iter().map(|(_, d)| hex::encode(d)).collect::<Vec<_>>(), [hex::encode(expected)]);
            sent[0].0.df
        };
        let relay = |net: &mut Net, from: u8, to: u8, sent: &[u8], expected: &[u8]| {
            net.node(2).datagram(addr(from), sent);
            net.node(2).learn();
            let relayed = std::mem::take(&mut net.node(2).io.sent);
            assert_eq!(
                relayed.iter().map(|(_, d)| hex::encode(d)).collect::<Vec<_>>(),
                [hex::encode(expected)]
            );
            net.node(to).datagram(addr(2), expected);
            net.node(to).learn();
        };
        assert!(!hop(&mut net, 1, &a[0], &broadcast));
        relay(&mut net, 1, 3, &a[0], &b_to_c[0]);
        assert!(!hop(&mut net, 3, &c[0], &reply));
        relay(&mut net, 3, 1, &c[0], &b_to_a[0]);
        if ab.is_some() {
            // The heartbeats in between have no sequence number in this test.
            assert_eq!(a[1][13], 3);
        }
        assert!(hop(&mut net, 1, &a[1], &bytes(&frames["small_df_icmp"])));
        relay(&mut net, 1, 3, &a[1], &b_to_c[1]);
        net.injected();
        net.node(1).local(&bytes(&frames["df_1500"]), Offload::NONE);
        assert!(net.node(1).io.sent.is_empty());
        let answer = net.injected().remove(0).remove(0);
        assert_eq!(answer[34..36], [3, 4], "fragmentation needed");
        assert!(!hop(&mut net, 1, &a[2], &bytes(&frames["nondf_3020"])));
        relay(&mut net, 1, 3, &a[2], &b_to_c[2]);
        assert_eq!(net.injected(), [vec![], vec![], vec![bytes(&frames["nondf_3020"])]]);
    }
}

/// The packets of live_sleeve_pmtu_search.json: the path MTU is 700, and fragmented datagrams do not arrive.
#[test]
fn fragments_equal_those_of_2_8_1() {
    let file = vectors("live_sleeve_pmtu_search");
    let mut net = Net::line(3, None);
    net.node(1).neighbours[0].path = UdpPath {
        local: addr(1).ip(),
        remote: Some(addr(2)),
        mtu: 638,
        max_payload: 672,
        stack_fragments: false,
        batched: true,
    };
    let remote = MacAddr([2, 0x42, 0xac, 0x11, 0, 3]);
    net.node(1).macs.learn_remote(remote, name(3), NOW);
    net.node(1).publish();
    let injected = vectors("live_sleeve_plain")["injected_frames"].clone();
    for frame in ["small_df_icmp", "nondf_3020"] {
        net.node(1).local(&bytes(&injected[frame]), Offload::NONE);
    }
    let sent: Vec<_> =
        net.node(1).io.sent.iter().map(|(to, datagram)| (to.df, hex::encode(datagram))).collect();
    let expected: Vec<_> = array(&file["data_packets_after_verification"])
        .iter()
        .map(|d| (d["ip_df"].as_bool().unwrap(), d["payload"].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(sent, expected);
    assert_eq!(net.node(1).forwarder.stats().fragmented, 1);
}

#[test]
fn a_relay_answers_the_source_of_a_frame_above_the_path_mtu() {
    let mut net = Net::line(3, None);
    net.announce([1, 3]);
    net.node(2).neighbours[1].path.mtu = 1000;
    net.node(2).publish();
    let frame = ipv4(mac(3), mac(1), true, 17, &[5; 1100]);
    net.node(1).local(&frame, Offload::NONE);
    net.settle();
    let injected = net.injected();
    assert_eq!([injected[1].len(), injected[2].len()], [0, 0]);
    let [answer] = &injected[0][..] else { panic!("{injected:?}") };
    assert_eq!(answer[..12], [mac(1).0, mac(3).0].concat(), "from the destination to the source");
    assert_eq!((&answer[34..36], &answer[40..42]), (&[3, 4][..], &1000u16.to_be_bytes()[..]));
    assert_eq!(net.node(2).forwarder.stats().too_big_answers, 1);
    assert_eq!(net.node(1).macs.lookup(mac(3)), Some(name(3)));
}

#[test]
fn a_relay_does_not_answer_flooded_frames() {
    let mut net = Net::line(3, None);
    net.node(2).neighbours[1].path.mtu = 1000;
    net.node(2).publish();
    net.node(1).local(&ipv4(mac(3), mac(1), true, 17, &[5; 1100]), Offload::NONE);
    net.settle();
    assert_eq!(net.injected().iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 0]);
    assert_eq!(net.node(2).forwarder.stats().drop_too_big_flood, 1);
}

#[test]
fn flooded_and_oversize_frames_are_not_answered() {
    let mut net = Net::line(2, None);
    // The destination is unknown, so the frame is flooded.
    net.node(1).local(&ipv4(mac(2), mac(1), true, 17, &[0; 1500]), Offload::NONE);
    assert_eq!(net.node(1).forwarder.stats().drop_too_big_flood, 1);
    // No datagram can carry the frame.
    let path = &mut net.node(1).neighbours[0].path;
    (path.mtu, path.max_payload) = (65535, 65507);
    net.node(1).publish();
    net.node(1).local(&ethernet(MacAddr::BROADCAST, mac(1), 0x88b5, &[0; 65507]), Offload::NONE);
    assert_eq!(net.node(1).forwarder.stats().drop_oversize, 1);
    assert!(net.node(1).io.sent.is_empty() && net.node(1).io.injected.is_empty());
}

#[test]
fn ipv6_frames_above_the_path_mtu_are_answered() {
    let mut net = Net::line(2, None);
    net.node(1).learn_peer(2);
    let packet = |payload: usize| {
        let mut packet = vec![0u8; 40 + payload];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        (packet[6], packet[7]) = (17, 64);
        packet[8..24].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet[24..40].copy_from_slice(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        ethernet(mac(2), mac(1), 0x86dd, &packet)
    };
    net.node(1).local(&packet(1000), Offload::NONE);
    assert!(net.node(1).io.sent.pop().unwrap().0.df);
    net.node(1).local(&packet(1439), Offload::NONE);
    assert!(net.node(1).io.sent.is_empty());
    let answer = net.node(1).io.injected.pop().unwrap();
    assert_eq!((answer[20], answer[54]), (58, 2), "ICMPv6 packet too big");
    assert_eq!(answer[58..62], 1438u32.to_be_bytes());
    // Below an MTU of 1280 there is no answer: the kernel fragments instead.
    net.node(1).neighbours[0].path.mtu = 900;
    net.node(1).publish();
    net.node(1).local(&packet(1000), Offload::NONE);
    assert!(!net.node(1).io.sent.pop().unwrap().0.df);
}

/// Hosts may have different MTUs.
#[test]
fn frames_above_the_local_mtu_are_fragmented_or_answered() {
    let mut net = Net::line(2, None);
    net.announce([1, 2]);
    let node = net.node(2);
    let tables = Tables::clone(node.forwarder.tables()).with_local_mtu(576);
    node.forwarder.set_tables(Arc::new(tables), &mut node.io);
    type Datagrams = Vec<(Destination, Vec<u8>)>;
    /// Sends a frame from 1 to 2; returns what 2 injected and what it sent.
    fn deliver(net: &mut Net, frame: &[u8]) -> (Vec<Vec<u8>>, Datagrams) {
        net.node(1).local(frame, Offload::NONE);
        for (_, datagram) in std::mem::take(&mut net.node(1).io.sent) {
            net.node(2).datagram(addr(1), &datagram);
        }
        let io = net.node(2).io.take();
        (io.injected, io.sent)
    }
    let payload = |len: usize| vec![7; len];

    let fits = ipv4(mac(2), mac(1), true, 17, &payload(576 - 20));
    assert_eq!(deliver(&mut net, &fits).0, [fits], "exactly the MTU");

    let (pieces, sent) = deliver(&mut net, &ipv4(mac(2), mac(1), false, 17, &payload(1000)));
    assert!(sent.is_empty());
    assert_eq!(pieces.iter().map(Vec::len).collect::<Vec<_>>(), [14 + 20 + 552, 14 + 20 + 448]);

    let (pieces, sent) = deliver(&mut net, &ipv4(mac(2), mac(1), true, 17, &payload(1000)));
    assert!(pieces.is_empty());
    assert_eq!(sent.len(), 1, "the source is answered");
    net.node(1).datagram(addr(2), &sent[0].1);
    let answer = net.node(1).io.injected.pop().unwrap();
    assert_eq!((&answer[..6], &answer[34..36]), (&mac(1).0[..], &[3, 4][..]));
    assert_eq!(answer[40..42], 576u16.to_be_bytes());

    // The destination is not local: the frame was flooded, and the peer that has it answers.
    let (pieces, sent) = deliver(&mut net, &ipv4(mac(9), mac(1), true, 17, &payload(1000)));
    assert!(pieces.is_empty() && sent.is_empty());
    assert_eq!(net.node(2).forwarder.stats().drop_too_big, 1);
}

#[test]
fn small_frames_are_collected_in_a_datagram() {
    let mut net = Net::line(2, Some([1; 32]));
    let node = net.node(1);
    node.learn_peer(2);
    let frame = ipv4(mac(2), mac(1), true, 17, &[1; 26]);
    let per_datagram = (1472 - 30) / (14 + frame.len());
    for _ in 0..per_datagram + 1 {
        node.forwarder.handle_local(&frame, Offload::NONE, NOW, &mut node.io);
    }
    assert_eq!(node.io.sent.len(), 1, "full");
    node.forwarder.flush(&mut node.io);
    let sent = node.io.take().sent;
    assert_eq!(sent.len(), 2);
    assert!(sent[0].1.len() <= 1472 && sent[0].1.len() + 14 + frame.len() > 1472);
    assert_eq!(sent[1].1.len(), 30 + 14 + frame.len());
    // At most 100 frames, even if more fit.
    node.neighbours[0].path.max_payload = 65507;
    node.publish();
    for _ in 0..101 {
        node.forwarder.handle_local(&frame, Offload::NONE, NOW, &mut node.io);
    }
    node.forwarder.flush(&mut node.io);
    let lengths: Vec<_> = node.io.take().sent.iter().map(|(_, d)| d.len()).collect();
    assert_eq!(lengths, [30 + 100 * (14 + frame.len()), 30 + 14 + frame.len()]);
    for (_, datagram) in &sent {
        net.node(2).datagram(addr(1), datagram);
    }
    assert_eq!(net.node(2).io.injected, vec![frame; per_datagram + 1]);
}

#[test]
fn frames_with_and_without_df_are_in_separate_datagrams() {
    let mut net = Net::line(2, None);
    let node = net.node(1);
    node.learn_peer(2);
    for df in [true, false, true, false] {
        node.forwarder.handle_local(
            &ipv4(mac(2), mac(1), df, 17, &[1; 26]),
            Offload::NONE,
            NOW,
            &mut node.io,
        );
    }
    node.forwarder.flush(&mut node.io);
    let sent: Vec<_> = node.io.take().sent.iter().map(|(to, d)| (to.df, d.len())).collect();
    assert_eq!(sent, [(false, 6 + 2 * 74), (true, 6 + 2 * 74)]);
}

#[test]
fn super_frames_are_sent_in_equal_datagrams() {
    for key in [None, Some([8; 32])] {
        let mut net = Net::line(3, key);
        net.announce([1, 3]);
        let (frame, offload) = tcp_super_frame(mac(3), mac(1), 10 * 1336 + 100, 1336);
        let small = ipv4(mac(3), mac(1), true, 17, &[1; 20]);
        let node = net.node(1);
        node.local_batch(&[(&small, Offload::NONE), (&frame, offload), (&small, Offload::NONE)]);
        let overhead = if key.is_some() { 44 } else { 20 };
        let lengths: Vec<_> = node.io.sent.iter().map(|(to, d)| (to.df, d.len() - overhead)).collect();
        let mut expected = vec![(true, 54)];
        expected.extend([(true, 54 + 1336); 10]);
        expected.extend([(true, 54 + 100), (true, 54)]);
        assert_eq!(lengths, expected, "in order, one segment to a datagram");
        net.settle();
        let delivered = net.injected().remove(2);
        assert_eq!(delivered.len(), 13);
        let mut payload = Vec::new();
        for segment in &delivered[1..12] {
            let tcp = &segment[34..];
            assert_eq!(
                sum(tcp, u32::from(sum(&segment[26..34], 6 + tcp.len() as u32))),
                0xffff,
                "TCP checksum"
            );
            payload.extend_from_slice(&tcp[20..]);
        }
        assert_eq!(payload, frame[54..]);
    }
}

#[test]
fn small_segments_are_not_collected() {
    let mut net = Net::line(2, None);
    net.node(1).learn_peer(2);
    let node = net.node(1);
    let small = ipv4(mac(2), mac(1), true, 17, &[1; 20]);
    let (frame, offload) = tcp_super_frame(mac(2), mac(1), 2000, 500);
    node.local_batch(&[(&small, Offload::NONE), (&frame, offload), (&small, Offload::NONE)]);
    let lengths: Vec<_> = node.io.take().sent.iter().map(|(_, d)| d.len() - 20).collect();
    assert_eq!(lengths, [54, 554, 554, 554, 554, 54]);
}

#[test]
fn super_frames_above_the_path_mtu_are_answered_once() {
    let mut net = Net::line(2, None);
    net.node(1).learn_peer(2);
    let (frame, offload) = tcp_super_frame(mac(2), mac(1), 30000, 1460);
    net.node(1).local(&frame, offload);
    assert!(net.node(1).io.sent.is_empty());
    assert_eq!(net.node(1).io.injected.len(), 1);
    let (frame, offload) = tcp_super_frame(mac(2), mac(1), 30000, 1438 - 40);
    net.node(1).local(&frame, offload);
    assert_eq!(net.node(1).io.sent.len(), 30000usize.div_ceil(1398));
    assert!(net.node(1).io.sent.iter().all(|(_, d)| d.len() <= 1472));
}

#[test]
fn pending_checksums_are_completed() {
    let mut net = Net::line(2, None);
    let (frame, mut offload) = tcp_super_frame(mac(2), mac(1), 100, 1336);
    offload.gso = None;
    net.node(1).local(&frame, offload);
    net.settle();
    let segment = net.injected().remove(1).remove(0);
    assert_eq!(sum(&segment[34..], u32::from(sum(&segment[26..34], 6 + 120))), 0xffff);
    let csum = Some(Csum { start: 9000, offset: 16 });
    net.node(1).local(&frame, Offload { csum, gso: None });
    assert_eq!(net.node(1).forwarder.stats().drop_bad_offload, 1);
}

#[test]
fn datagrams_of_unknown_senders_are_dropped() {
    let key = Some([6; 32]);
    let mut net = Net::line(3, key);
    let [early, good] = [(); 2].map(|()| {
        net.node(1).local(&arp(MacAddr::BROADCAST, mac(1)), Offload::NONE);
        net.node(1).io.sent.pop().unwrap().1
    });
    let node = net.node(2);
    let stats = |node: &Node| {
        let s = node.forwarder.stats();
        [s.drop_short_datagram, s.drop_unknown_sender, s.drop_unconfirmed, s.drop_forged, s.drop_replayed]
    };
    node.datagram(addr(1), &good[..5]);
    let stranger = [&[0x7a, 0, 0, 0, 0, 9], &good[6..]].concat();
    node.datagram(addr(9), &stranger);
    node.neighbours[0].confirmed = false;
    node.publish();
    node.datagram(addr(1), &early);
    node.neighbours[0].confirmed = true;
    node.publish();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    node.datagram(addr(1), &forged);
    node.datagram(addr(1), &good[..20]);
    assert_eq!(node.io.injected.len(), 0);
    node.datagram(addr(1), &good);
    node.publish();
    node.datagram(addr(1), &good);
    assert_eq!(stats(node), [1, 1, 1, 2, 1]);
    assert_eq!(node.io.injected.len(), 1, "the genuine datagram arrives once");
}

/// A datagram of peer 1 to peer 2 with these frames.
fn datagram(frames: &[(PeerName, PeerName, &[u8])]) -> Vec<u8> {
    let sealer = Sealer::new(session(1, 2, None));
    let mut buf = vec![0; 65507];
    let mut draft = sealer.begin();
    for (src, dst, frame) in frames {
        assert!(sealer.push(&mut draft, &mut buf, *src, *dst, frame));
    }
    let len = sealer.finish(draft, &mut buf, true).unwrap();
    buf.truncate(len);
    buf
}

#[test]
fn records_before_a_malformed_one_are_delivered() {
    let mut net = Net::line(2, None);
    let frame = arp(MacAddr::BROADCAST, mac(1));
    let mut bytes =
        datagram(&[(name(1), name(2), &frame), (name(1), name(2), b"short"), (name(1), name(2), &frame)]);
    bytes.truncate(bytes.len() - 1);
    net.node(2).datagram(addr(1), &bytes);
    let stats = *net.node(2).forwarder.stats();
    assert_eq!((stats.injected, stats.drop_malformed, stats.drop_short_frame), (1, 1, 1));
    net.node(2).datagram(addr(1), &datagram(&[(name(1), name(8), &frame), (name(7), name(2), &frame)]));
    assert_eq!(net.node(2).forwarder.stats().switch_drops[DropReason::UnknownPeer as usize], 2);
}

#[test]
fn control_frames_are_reported() {
    let mut net = Net::line(2, None);
    let heartbeat = |uid: u64| [&[0; 14][..], &uid.to_be_bytes()].concat();
    let (one, two) = (name(1), name(2));
    let frames: &[(PeerName, PeerName, &[u8])] = &[
        (one, two, &heartbeat(UID.0)),
        (one, two, &heartbeat(5)),
        (two, one, &heartbeat(UID.0)),
        (one, two, &[0; 1452]),
    ];
    net.node(2).datagram(addr(9), &datagram(frames));
    net.node(2).datagram(addr(1), &datagram(&[(one, two, &[0; 60001])]));
    let mut damaged = [0; 60001];
    damaged[60000] = 1;
    net.node(2).datagram(addr(1), &datagram(&[(one, two, &damaged)]));
    let event = |control, from| ForwarderEvent::Control {
        conn: ConnectionId(1),
        overlay: Overlay::Sleeve,
        frame: control,
        from,
    };
    assert_eq!(
        net.node(2).io.events,
        [
            event(ControlFrame::Heartbeat(UID), addr(9)),
            event(ControlFrame::MtuTest { mtu: 1438 }, addr(9)),
            event(ControlFrame::FragmentationTest, addr(1)),
        ]
    );
    assert_eq!(net.node(2).forwarder.stats().drop_special, 3);
    assert!(net.node(2).io.injected.is_empty());
}

#[test]
fn only_heartbeats_are_accepted_before_confirmation() {
    let mut net = Net::line(2, None);
    let node = net.node(2);
    node.neighbours[0].confirmed = false;
    node.publish();
    let heartbeat = [&[0; 14][..], &UID.0.to_be_bytes()].concat();
    let (one, two) = (name(1), name(2));
    let frames: &[(PeerName, PeerName, &[u8])] =
        &[(one, two, &arp(MacAddr::BROADCAST, mac(1))), (one, two, &heartbeat), (one, two, &[0; 100])];
    node.datagram(addr(9), &datagram(frames));
    let control = ControlFrame::Heartbeat(UID);
    assert_eq!(
        node.io.events,
        [ForwarderEvent::Control {
            conn: ConnectionId(1),
            overlay: Overlay::Sleeve,
            frame: control,
            from: addr(9)
        }]
    );
    assert_eq!((node.io.injected.len(), node.forwarder.stats().drop_unconfirmed), (0, 2));
}

#[test]
fn control_frames_are_rate_limited_and_probes_do_not_displace_heartbeats() {
    let mut net = Net::line(2, None);
    let probe = datagram(&[(name(1), name(2), &[0; 100])]);
    for _ in 0..1000 {
        net.node(2).datagram(addr(1), &probe);
    }
    assert_eq!(net.node(2).io.events.len(), 128);
    let heartbeat = [&[0; 14][..], &UID.0.to_be_bytes()].concat();
    net.node(2).datagram(addr(1), &datagram(&[(name(1), name(2), &heartbeat)]));
    assert_eq!(net.node(2).io.events.len(), 129);
    let node = net.node(2);
    let later = NOW + Duration::from_secs(1);
    for _ in 0..1000 {
        node.forwarder.handle_datagram(addr(1), &mut probe.clone(), later, &mut node.io);
    }
    assert_eq!(node.io.events.len(), 129 + 100);
}

#[test]
fn frames_are_not_sent_back_to_their_sender() {
    let mut net = Net::line(3, None);
    // Peer 1 has outdated routes and sends a frame for itself to 2.
    net.node(2).datagram(addr(1), &datagram(&[(name(3), name(1), &arp(mac(1), mac(3)))]));
    assert_eq!(net.node(2).forwarder.stats().drop_hairpin, 1);
    assert!(net.node(2).io.sent.is_empty());
    // The same for a broadcast, although peer 1 is a next hop in the tree of 3.
    let frame = arp(MacAddr::BROADCAST, mac(3));
    net.node(2).datagram(addr(1), &datagram(&[(name(3), name(2), &frame)]));
    assert_eq!(net.node(2).io.injected, [frame]);
    assert!(net.node(2).io.sent.is_empty());
}

#[test]
fn frames_without_address_or_connection_are_dropped() {
    let mut net = Net::line(2, None);
    net.node(1).neighbours[0].path.remote = None;
    net.node(1).publish();
    net.node(1).local(&arp(MacAddr::BROADCAST, mac(1)), Offload::NONE);
    assert_eq!(net.node(1).forwarder.stats().drop_awaiting_contact, 1);
    net.node(1).neighbours.clear();
    net.node(1).publish();
    net.node(1).local(&arp(MacAddr::BROADCAST, mac(1)), Offload::NONE);
    assert_eq!(net.node(1).forwarder.stats().drop_no_connection, 1);
}

#[test]
fn new_tables_flush_collected_frames() {
    let mut net = Net::line(2, None);
    let node = net.node(1);
    node.forwarder.handle_local(&arp(MacAddr::BROADCAST, mac(1)), Offload::NONE, NOW, &mut node.io);
    assert!(node.io.sent.is_empty());
    node.publish();
    assert_eq!(node.io.take().sent.len(), 1);
    assert_eq!(node.forwarder.tables().neighbours().len(), 1);
    let mut total = *node.forwarder.stats();
    total += node.forwarder.stats();
    assert_eq!(total.named().find(|(name, _)| *name == "datagrams_out"), Some(("datagrams_out", 2)));
}

#[test]
fn the_last_neighbour_of_a_name_is_used() {
    let net = Net::line(3, None);
    let node = &net.0[1];
    let newer = Neighbour { confirmed: false, ..node.neighbours[0].clone() };
    let all = [node.neighbours[1].clone(), node.neighbours[0].clone(), newer];
    let tables = tables(2, 3, &node.macs, &all);
    let kept: Vec<_> = tables.neighbours().iter().map(|n| (n.session.remote(), n.confirmed)).collect();
    assert_eq!(kept, [(name(1), false), (name(3), true)]);
}
