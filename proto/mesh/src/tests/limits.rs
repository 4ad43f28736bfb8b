//! Limits on what a peer keeps for others, in bytes, numbers and time.

use std::time::Duration;

use weave_types::PeerUid;

use super::harness::{Net, default_config, line};
use crate::digest::Message;
use crate::peers::RecordVersion;
use crate::test_support::peer;

#[test]
fn silent_connection_ends_after_a_minute() {
    let mut net = line(2, default_config);
    net.run_s(5);
    net.crash_host(1);
    net.run_s(61);
    let text = "connection shutting down due to error: read tcp 10.0.0.1:6783->10.0.0.2:4";
    assert_eq!(net.logged(0, text), 1, "{:#?}", net.hosts[0].events);
    assert_eq!(net.hosts[0].removed, [peer(2)]);
}

#[test]
fn gossip_for_a_stuck_peer_is_merged_until_the_write_timeout() {
    let mut net = line(3, default_config);
    net.run_s(5);
    net.hosts[2].stuck = true;
    let before = net.hosts[1].written;
    for round in 0..50u8 {
        net.with(0, |mesh, channels, now| mesh.broadcast("set", &vec![round; 100_000], channels, now));
        net.run_s(1);
    }
    let written = net.hosts[1].written - before;
    assert!((100_000..200_000).contains(&written), "merged while waiting: {written}");
    net.run_s(11);
    assert_eq!(net.logged(1, "error: write tcp 10.0.0.2:6783->10.0.0.3:4"), 1, "{:#?}", net.hosts[1].events);
}

#[test]
fn pending_handshakes_are_limited_in_number_and_time() {
    let mut net = Net::new(2, default_config);
    let local = "10.0.0.1:6783".parse().unwrap();
    let mut pending = Vec::new();
    for n in 0..200u16 {
        let remote = format!("10.9.{n}.1:1000").parse().unwrap();
        let conn = net.with(0, |mesh, _, now| mesh.handle_accepted(local, remote, now)).unwrap();
        pending.push(conn);
    }
    assert_eq!(net.logged(0, "too many connections in handshake"), 200 - 64);
    assert_eq!(net.hosts[0].mesh.accept_delay(net.time()), Duration::from_millis(181 * 50));
    // Some remotes send the header and nothing else.
    for conn in &pending[150..] {
        net.with(0, |mesh, channels, now| mesh.handle_stream(*conn, b"weave\x01\x02", channels, now));
    }
    net.run_s(11);
    assert_eq!(net.logged(0, "failed to receive remote protocol header: read tcp 10.0.0.1:6783->10.9."), 14);
    net.run_s(60);
    assert_eq!(net.logged(0, "i/o timeout"), 64);
    // Another peer can connect nevertheless.
    net.connect(1, &["10.0.0.1"]);
    net.run_s(3);
    net.assert_converged();
}

#[test]
fn bytes_of_unfinished_messages_are_limited_over_all_connections() {
    let limit = 100_000;
    let mut net = Net::new(3, |i, config| {
        default_config(i, config);
        config.max_buffered = limit;
    });
    net.connect(0, &["10.0.0.2", "10.0.0.3"]);
    net.run_s(3);
    net.assert_converged();
    let mut conns: Vec<_> = net.hosts[0].mesh.connections.keys().copied().collect();
    conns.sort();
    let [first, second] = conns[..] else { panic!("{conns:?}") };
    // The head of a message of 1 MB, and a part of it.
    let part = |bytes: usize| [&0x0010_0000u32.to_be_bytes()[..], &vec![0; bytes]].concat();
    let text = "too many bytes of unfinished messages";
    net.with(0, |mesh, channels, now| mesh.handle_stream(first, &part(60_000), channels, now));
    net.with(0, |mesh, channels, now| mesh.handle_stream(second, &part(30_000), channels, now));
    assert_eq!(net.logged(0, text), 0);
    net.with(0, |mesh, channels, now| mesh.handle_stream(second, &[0; 11_000], channels, now));
    assert_eq!(net.logged(0, text), 1, "the connection with most bytes ends");
    let left = &net.hosts[0].mesh.connections;
    assert!(!left.contains_key(&first) && left.contains_key(&second));
    // The same for bytes that are not written: only the next connection has room for them.
    let more = net.hosts[0].mesh.connections[&second].buffered();
    assert!(more < limit && more > 41_000, "{more}");
}

#[test]
fn queued_surrogate_messages_are_limited_over_all_connections() {
    let limit = 1_000_000;
    let mut net = Net::new(6, |i, config| {
        default_config(i, config);
        config.discovery = false;
        config.max_surrogate_bytes = limit;
    });
    net.hosts[0].channels.names.clear();
    net.connect(0, &["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    net.run_s(5);
    net.assert_converged();
    net.hosts[2..].iter_mut().for_each(|host| host.stuck = true);
    let mut largest = 0;
    for n in 0..40u8 {
        net.with(1, |mesh, channels, now| mesh.broadcast("set", &vec![n; 100_000], channels, now));
        net.run(Duration::from_millis(100));
        largest = largest.max(net.hosts[0].mesh.surrogate_bytes());
    }
    assert!((limit..limit + 100_100).contains(&largest), "{largest}");
}

#[test]
fn digest_requests_and_their_answers_are_limited() {
    let mut net = line(3, default_config);
    net.run_s(5);
    net.hosts[1].stuck = true;
    net.with(0, |mesh, channels, now| mesh.broadcast("set", &[1; 100_000], channels, now));
    let conn = *net.hosts[0].mesh.connections.keys().next().unwrap();
    // A neighbour that does not read requests the records of peers that do not exist, and of one that does.
    let names = (3..50_000).map(peer).collect();
    let request = Message::Request(names).encode();
    net.with(0, |mesh, _, now| mesh.handle_digest(conn, peer(2), &request[1..], now)).unwrap();
    let running = net.hosts[0].mesh.connections[&conn].running().unwrap();
    assert_eq!(running.queue.queued_records(), 1);
    // It has news of more peers than there may be.
    let version = RecordVersion { version: 1, uid: PeerUid(7) };
    let news = Message::News((3..70_000).map(|n| (peer(n), version)).collect()).encode();
    net.with(0, |mesh, _, now| mesh.handle_digest(conn, peer(2), &news[1..], now)).unwrap();
    assert_eq!(net.hosts[0].mesh.requested.len(), 65_536);
}
