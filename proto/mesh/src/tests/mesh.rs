use std::collections::BTreeSet;
use std::time::Duration;

use weave_types::{Now, PeerUid, ShortId};

use super::harness::{Net, default_config, ip, line};
use crate::digest::Message;
use crate::gossip::{GossipKind, PeerSelection};
use crate::peers::RecordVersion;
use crate::test_support::{connection, peer, record};
use crate::update::PeerRecord;
use crate::{Config, Departure, Secret, StreamEnd, TargetState};

#[test]
fn one_common_address_leads_to_a_full_mesh() {
    let mut net = Net::new(5, default_config);
    for i in 1..5 {
        net.connect(i, &["10.0.0.1"]);
    }
    net.run_s(60);
    net.assert_converged();
    for i in 0..5 {
        assert_eq!(net.neighbours(i).len(), 4, "{:#?}", net.hosts[i].events);
    }
    // After that nothing is dialled and no event is logged.
    let event_counts: Vec<usize> = net.hosts.iter().map(|h| h.events.len()).collect();
    net.run_s(600);
    assert_eq!(net.hosts.iter().map(|h| h.events.len()).collect::<Vec<_>>(), event_counts);
    net.assert_converged();
}

#[test]
fn gossip_crosses_a_line_of_peers_without_discovery() {
    let mut net = line(5, default_config);
    net.run_s(20);
    net.assert_converged();
    for i in 0..5 {
        assert_eq!(net.neighbours(i).len(), if i == 0 || i == 4 { 1 } else { 2 });
    }
    assert_eq!(net.hosts[0].mesh.routes().unicast(peer(5)), Some(peer(2)));

    net.with(0, |mesh, _, now| mesh.unicast("set", peer(5), b"hello", now)).unwrap();
    net.with(0, |mesh, channels, now| mesh.broadcast("set", b"all", channels, now));
    net.with(4, |mesh, channels, now| {
        channels.state.entry("set".into()).or_default().insert(9);
        mesh.gossip("set", &[9], channels, now);
    });
    net.run_s(1);
    assert_eq!(net.hosts[4].channels.unicasts, [(peer(1), b"hello".to_vec())]);
    for i in 1..5 {
        assert_eq!(net.hosts[i].channels.broadcasts, [(peer(1), b"all".to_vec())], "host {i}");
    }
    for host in &net.hosts {
        assert_eq!(host.channels.state["set"], BTreeSet::from([9]));
    }
    let error = net.with(0, |mesh, _, now| mesh.unicast("set", peer(77), b"", now)).unwrap_err();
    assert_eq!(error.to_string(), "unknown relay destination: 00:00:00:00:00:4d");
}

#[test]
fn messages_are_not_relayed_back_to_their_sender() {
    let mut net = line(3, default_config);
    net.run_s(20);
    net.assert_converged();
    // The first peer sends unicasts to the second whose route leads back, to itself and to their own source.
    for (source, destination) in [(peer(9), peer(1)), (peer(2), peer(3))] {
        net.with(0, |mesh, _, now| mesh.send_forged(source, Some(destination), peer(2), now));
    }
    net.run_s(1);
    assert_eq!(net.logged(1, "leads back to 00:00:00:00:00:01"), 1);
    assert_eq!(net.logged(1, "leads back to 00:00:00:00:00:02"), 1);
    assert!(net.hosts.iter().all(|host| host.channels.unicasts.is_empty()));
    // It relays a broadcast of the third peer to the second, whose tree has the first below itself.
    net.with(0, |mesh, _, now| mesh.send_forged(peer(3), None, peer(2), now));
    net.run_s(1);
    assert_eq!(net.hosts[1].channels.broadcasts, [(peer(3), Vec::new())]);
    assert!(net.hosts[0].channels.broadcasts.is_empty());
}

#[test]
fn channels_without_receiver_are_relayed() {
    let mut net = line(3, default_config);
    net.hosts[1].channels.names.clear();
    net.run_s(20);
    net.with(0, |mesh, channels, now| mesh.broadcast("set", b"b", channels, now));
    net.with(0, |mesh, channels, now| mesh.gossip("set", &[1], channels, now));
    net.run_s(1);
    assert_eq!(net.hosts[2].channels.broadcasts, [(peer(1), b"b".to_vec())]);
    assert_eq!(net.hosts[2].channels.state["set"], BTreeSet::from([1]));
    assert_eq!(net.logged(1, "[gossip set]: created surrogate channel"), 1);
    let received = net.hosts[2].channels.received;
    net.with(0, |mesh, channels, now| mesh.gossip("set", &[1], channels, now));
    net.run_s(1);
    assert_eq!(
        net.hosts[2].channels.received, received,
        "repeated gossip is not relayed within the interval"
    );
    net.run_s(31);
    net.with(0, |mesh, channels, now| mesh.gossip("set", &[1], channels, now));
    net.run_s(1);
    assert!(net.hosts[2].channels.received > received);
}

#[test]
fn new_peer_receives_complete_state_immediately() {
    let mut net = line(2, default_config);
    net.run_s(1);
    let mut fresh = line(3, default_config);
    fresh.hosts[0].channels.state.entry("set".into()).or_default().extend([1, 2, 3]);
    fresh.run_s(2);
    // The state crosses two hops within two seconds, before the first periodic gossip.
    assert_eq!(fresh.hosts[2].channels.state["set"], BTreeSet::from([1, 2, 3]));
    net.hosts[0].channels.state.entry("set".into()).or_default().extend([4]);
    net.run_s(31);
    assert_eq!(net.hosts[1].channels.state["set"], BTreeSet::from([4]), "periodic gossip");
}

/// Neighbours compare digests and exchange what either lacks; a peer without the channel relays the state of those that have it.
#[test]
fn channels_are_compared_by_digest() {
    for has_channel in [true, false] {
        let mut net = line(3, default_config);
        if !has_channel {
            net.hosts[1].channels.names.clear();
        }
        for (host, elements) in [(0, [1, 2]), (2, [2, 3])] {
            net.hosts[host].channels.state.entry("set".into()).or_default().extend(elements);
        }
        net.run_s(100);
        for host in net.hosts.iter().filter(|host| !host.channels.names.is_empty()) {
            assert_eq!(host.channels.state["set"], BTreeSet::from([1, 2, 3]));
        }
        let received = |net: &Net| net.hosts.iter().map(|host| host.channels.received).sum::<usize>();
        let before = received(&net);
        net.run_s(100);
        assert_eq!(received(&net) == before, has_channel, "the state is only sent where it is not compared");
        net.hosts[0].channels.state.entry("set".into()).or_default().insert(4);
        net.run_s(31);
        assert!(net.hosts[2].channels.state["set"].contains(&4), "{has_channel}");
    }
}

#[test]
fn simultaneous_dials_leave_one_connection() {
    for seed in 0..20 {
        let mut net = Net::new(2, |i, config| config.uid = PeerUid(seed * 10 + i as u64 + 1));
        net.connect(0, &["10.0.0.2:6783"]);
        net.connect(1, &["10.0.0.1:6783"]);
        net.run_s(5);
        net.assert_converged();
        let ends: Vec<bool> = (0..2)
            .map(|i| {
                let own = net.hosts[i].mesh.peer(peer(i as u64 + 1)).unwrap();
                assert_eq!(own.connections.len(), 1);
                assert!(own.connections[0].established);
                own.connections[0].outbound
            })
            .collect();
        assert_ne!(ends[0], ends[1], "both ends keep the same connection");
        // With explicit ports 2.8.1 continues to dial (docs/spec/mesh.md 15.12).
        let events = net.hosts[0].events.len() + net.hosts[1].events.len();
        net.run_s(3600);
        assert_eq!(net.hosts[0].events.len() + net.hosts[1].events.len(), events);
    }
}

#[test]
fn peer_with_two_addresses_is_dialled_once() {
    let mut net = Net::new(2, default_config);
    net.names.insert("host2".into(), vec![net.hosts[1].ip]);
    net.connect(0, &["10.0.0.2", "host2:6783", "10.0.0.2:6783"]);
    net.run_s(30);
    net.assert_converged();
    let events = net.hosts[0].events.len();
    net.run_s(3600);
    assert_eq!(net.hosts[0].events.len(), events, "{:#?}", net.hosts[0].events);
}

#[test]
fn dead_peer_is_removed_and_added_after_its_restart() {
    let mut net = line(3, default_config);
    net.run_s(10);
    net.stop_process(2);
    net.run_s(13);
    assert_eq!(net.hosts[0].removed, [peer(3)]);
    assert_eq!(net.logged(0, "Removed unreachable peer 00:00:00:00:00:03(h3)"), 1);
    net.assert_converged();

    let before = net.hosts[1].mesh.peer(peer(2)).unwrap().version;
    net.restart(2, |config| config.discovery = false);
    net.run_s(10);
    net.assert_converged();
    assert!(net.hosts[1].mesh.peer(peer(2)).unwrap().version > before);
}

#[test]
fn restart_of_a_distant_peer_is_noticed() {
    let mut net = Net::new(3, default_config);
    for i in 1..3 {
        net.connect(i, &["10.0.0.1"]);
    }
    net.run_s(10);
    let short_id = net.hosts[2].short_id;
    let old = net.hosts[2].mesh.peer(peer(3)).unwrap().version;
    net.stop_process(2);
    // It restarts before other peers remove its record, and with version 0 as in 2.8.1.
    net.restart(2, |config| config.version = 0);
    net.run_s(10);
    net.assert_converged();
    assert!(net.hosts[0].mesh.peer(peer(3)).unwrap().version > old || net.hosts[0].removed == [peer(3)]);
    assert_eq!(net.hosts[2].short_id, short_id, "kept after the restart");
    assert_eq!(net.hosts[0].mesh.peer(peer(3)).unwrap().short_id, short_id);
}

#[test]
fn restarted_peer_replaces_its_broken_connection() {
    let mut net = line(2, default_config);
    net.run_s(5);
    // The old process ends without closing its connections.
    net.hosts[0].events.clear();
    net.crash_host(1);
    net.restart(1, |config| config.discovery = false);
    // The broken connection is tested, and the peer dials again.
    net.run_s(6);
    net.assert_converged();
    assert_eq!(net.logged(0, "another host has the name"), 0, "{:#?}", net.hosts[0].events);
}

#[test]
fn wrong_or_missing_passwords_end_the_handshake() {
    let with = |password: &str| Secret::new(password);
    for (ours, theirs, error_here, error_there) in [
        ("secret", "secret", None, None),
        ("secret", "Secret", Some("Unable to decrypt TCP msg"), Some("Unable to decrypt TCP msg")),
        (
            "secret",
            "",
            Some("password specified, but peer requested an unencrypted connection"),
            Some("no password specificed, but peer requested an encrypted connection"),
        ),
        (
            "",
            "secret",
            Some("no password specificed, but peer requested an encrypted connection"),
            Some("password specified, but peer requested an unencrypted connection"),
        ),
    ] {
        let mut net = Net::new(2, |i, config| config.password = with(if i == 0 { ours } else { theirs }));
        net.connect(0, &["10.0.0.2"]);
        net.run(Duration::from_millis(900));
        let prefix = "connection shutting down due to error during handshake: ";
        match (error_here, error_there) {
            (Some(here), Some(there)) => {
                assert_eq!(net.logged(0, &format!("{prefix}{here}")), 1, "{:#?}", net.hosts[0].events);
                assert_eq!(net.logged(1, &format!("{prefix}{there}")), 1, "{:#?}", net.hosts[1].events);
                let status = net.hosts[0].mesh.status(net.time());
                let target = &status.targets[0];
                assert_eq!(target.state, TargetState::Waiting);
                assert_eq!(target.last_error.as_deref(), Some(here));
            }
            _ => {
                net.run_s(3);
                net.assert_converged();
                let setup = |i: usize| net.hosts[i].setups.values().next().unwrap().clone();
                assert!(setup(0).session_key.is_some());
                assert_eq!(setup(0).session_key, setup(1).session_key);
                assert_eq!(setup(0).uid, setup(1).uid);
                assert!(setup(0).outbound && !setup(1).outbound);
            }
        }
    }
}

#[test]
fn data_is_unencrypted_only_if_both_sides_trust() {
    for (first, second, encrypted) in [
        ("10.0.0.0/8", "10.0.0.0/24", false),
        ("10.0.0.0/8", "192.168.0.0/16", true),
        ("192.168.0.0/16", "10.0.0.0/8", true),
    ] {
        let mut net = Net::new(2, |i, config| {
            config.password = Secret::new("p");
            config.trusted_subnets = vec![if i == 0 { first } else { second }.parse().unwrap()];
        });
        net.connect(0, &["10.0.0.2"]);
        net.run_s(1);
        for host in &net.hosts {
            let setup = host.setups.values().next().unwrap();
            assert_eq!(setup.session_key.is_some(), encrypted);
            assert_eq!(host.mesh.status(net.time()).connections[0].encrypted, encrypted);
        }
    }
}

#[test]
fn peers_without_common_overlay_do_not_connect() {
    let some = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
    let mut net = Net::new(2, |i, config| {
        config.overlays = if i == 0 { some(&["fastdp", "sleeve"]) } else { some(&["awsvpc"]) };
    });
    net.connect(0, &["10.0.0.2"]);
    net.run_s(1);
    for i in 0..2 {
        assert!(net.logged(i, "connection shutting down due to error: no overlays in common with peer") > 0);
        assert!(net.hosts[i].setups.is_empty());
    }

    // A peer that announces no overlays uses sleeve with control messages of the old form.
    let mut net = Net::new(2, |i, config| {
        config.overlays = if i == 0 { some(&["fastdp", "sleeve"]) } else { some(&[]) };
    });
    net.connect(0, &["10.0.0.2"]);
    net.run_s(3);
    net.assert_converged();
    let conn = *net.hosts[0].setups.keys().next().unwrap();
    assert_eq!(net.hosts[0].setups[&conn].overlays, None);
    net.with(0, |mesh, _, now| mesh.send_overlay_control(conn, 0, 3, b"x", now));
    net.run_s(1);
    let control = &net.hosts[1].controls[0].1;
    assert_eq!((control.index, control.tag, &control.body[..]), (None, 3, &b"x"[..]));
    let conn = *net.hosts[1].setups.keys().next().unwrap();
    net.with(1, |mesh, _, now| mesh.send_overlay_control(conn, 1, 3, b"y", now));
    net.run_s(1);
    let control = &net.hosts[0].controls[0].1;
    assert_eq!((control.index, control.tag, &control.body[..]), (Some(1), 3, &b"y"[..]));
}

#[test]
fn own_address_is_dialled_once() {
    let mut net = Net::new(2, default_config);
    net.connect(0, &["10.0.0.1", "10.0.0.2"]);
    net.run_s(3600);
    net.assert_converged();
    assert_eq!(net.logged(0, "->[10.0.0.1:6783] attempting connection"), 1);
    assert_eq!(net.logged(0, "cannot connect to ourself"), 2, "both ends of the connection");
    let status = net.hosts[0].mesh.status(net.time());
    assert_eq!(status.terminations, 0);
    let own = status.targets.iter().find(|t| t.address == "10.0.0.1:6783").unwrap();
    assert_eq!((own.retry, own.last_error.as_deref()), (None, Some("cannot connect to ourself")));
}

#[test]
fn unreachable_only_target_is_reported_once() {
    const TEXT: &str = "and the only known peer";
    let mut net = Net::new(3, default_config);
    net.connect(0, &["10.0.0.9"]);
    net.connect(1, &["10.0.0.9", "10.0.0.8"]);
    net.connect(2, &["10.0.0.3"]);
    net.run_s(3600);
    assert_eq!([0, 1, 2].map(|i| net.logged(i, TEXT)), [1, 0, 0]);
    net.connect(0, &["10.0.0.3"]);
    net.run_s(60);
    assert_eq!(net.logged(2, TEXT), 0, "a peer is connected");
}

#[test]
fn peer_with_our_name_is_refused() {
    let mut net = Net::new(2, |i, config| {
        config.name = peer(1);
        config.nickname = format!("clone{i}");
    });
    net.connect(0, &["10.0.0.2"]);
    net.run_s(600);
    let text =
        "local \"00:00:00:00:00:01(clone0)\" and remote \"00:00:00:00:00:01(clone1)\" peer names collision";
    // The other host may be given another name at any time.
    let target = &net.hosts[0].mesh.status(net.time()).targets[0];
    assert!(target.retry.is_some() && target.last_error.as_ref().unwrap().starts_with(text), "{target:?}");
}

#[test]
fn colliding_short_ids_are_resolved() {
    let mut net = Net::new(4, |_, config| config.short_id = ShortId::new(7));
    for i in 1..4 {
        net.connect(i, &["10.0.0.1"]);
    }
    net.run_s(40);
    net.assert_converged();
    let ids: Vec<_> = net.hosts.iter().map(|h| h.mesh.peer(h.mesh.name()).unwrap().short_id).collect();
    assert_eq!(ids[0], ShortId::new(7), "the lowest name keeps it");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4, "{ids:?}");
    for host in &net.hosts {
        let seen: Vec<_> = host.mesh.peers().map(|(_, p)| p.short_id).collect();
        assert_eq!(seen, ids);
        assert_eq!(host.short_id, host.mesh.peer(host.mesh.name()).unwrap().short_id, "persisted");
    }
}

#[test]
fn connection_limit_is_not_exceeded() {
    let mut net = Net::new(4, |i, config| config.connection_limit = if i == 0 { 2 } else { 0 });
    for i in 1..4 {
        net.connect(i, &["10.0.0.1", "10.0.0.2"]);
    }
    net.run_s(30);
    net.assert_converged();
    assert_eq!(net.neighbours(0).len(), 2);
    assert!(net.logged(0, "Connection limit reached (2)") > 0);
}

#[test]
fn unknown_peer_at_a_discovered_address_is_refused() {
    // The first and the second peer cannot dial each other, but learn each other's address from the third. A fourth
    // peer that is in no topology has taken the second one's address.
    let mut net = Net::new(4, |_, config| config.discovery = true);
    net.separated.insert((0, 1));
    net.connect(0, &["10.0.0.3"]);
    net.connect(1, &["10.0.0.3"]);
    net.run_s(5);
    assert_eq!(net.neighbours(0), [peer(3)]);
    let ip = std::mem::replace(&mut net.hosts[1].ip, "10.0.9.9".parse().unwrap());
    net.hosts[3].ip = ip;
    net.run_s(30);
    let text = "handshake: Found unknown remote name: 00:00:00:00:00:04 at 10.0.0.2:6783";
    assert!(net.logged(0, text) > 0, "{:#?}", net.hosts[0].events);
    assert_eq!(net.hosts[0].mesh.peers().len(), 3);
}

#[test]
fn malformed_bytes_end_only_their_connection() {
    use rand::RngExt;
    let mut net = line(2, default_config);
    net.run_s(3);
    let mut rng = crate::test_support::rng(5);
    let local = "10.0.0.1:6783".parse().unwrap();
    let features = crate::features::Features {
        name: peer(99),
        nickname: "x".into(),
        uid: PeerUid(1),
        connection_id: 5,
        short_id: None,
        trusted: false,
        overlays: None,
    };
    for round in 0..500u32 {
        let remote = format!("10.9.{}.{}:1000", round / 250, round % 250).parse().unwrap();
        let conn = net.with(0, |mesh, _, now| mesh.handle_accepted(local, remote, now)).unwrap();
        let mut bytes = b"weave\x01\x02\x00".to_vec();
        let hello = crate::handshake::encode_features(&features.to_map());
        bytes.extend((hello.len() as u32).to_be_bytes());
        bytes.extend(hello);
        for _ in 0..rng.random_range(0..4) {
            let body: Vec<u8> = (0..rng.random_range(0..40)).map(|_| rng.random()).collect();
            bytes.extend((body.len() as u32 + 1).to_be_bytes());
            bytes.push(rng.random_range(0..9));
            bytes.extend(body);
        }
        let cut = rng.random_range(0..=bytes.len());
        let at = rng.random_range(0..bytes.len());
        bytes[at] = rng.random();
        net.with(0, |mesh, channels, now| mesh.handle_stream(conn, &bytes[..cut], channels, now));
        net.with(0, |mesh, channels, now| mesh.handle_stream(conn, &bytes[cut..], channels, now));
        net.with(0, |mesh, _, now| mesh.handle_closed(conn, StreamEnd::ByRemote("EOF".into()), now));
    }
    net.run_s(5);
    net.assert_converged();
    assert_eq!(net.neighbours(0), [peer(2)]);
}

#[test]
fn large_topology_is_sent_in_several_messages() {
    let mut net = line(2, default_config);
    net.run_s(5);
    let uid = net.hosts[0].mesh.peer(peer(2)).unwrap().uid;
    net.with(0, |mesh, _, now| {
        let fakes = (1000..13_000).map(peer);
        let connections = fakes.clone().chain([peer(1)]).map(|name| connection(name, true)).collect();
        let mut records = vec![PeerRecord { uid, version: 1 << 20, ..record(peer(2), connections) }];
        records
            .extend(fakes.map(|n| PeerRecord { nickname: "x".repeat(1000).into(), ..record(n, Vec::new()) }));
        mesh.topology.merge(records, u64::MAX, &mut crate::test_support::rng(1));
        mesh.push_topology(peer(2), GossipKind::Neighbour, PeerSelection::All, now);
    });
    net.run_s(20);
    assert_eq!(net.logged(0, "shutting down"), 0, "{:#?}", net.hosts[0].events);
    assert!(net.hosts[0].written > 12_000_000, "{}", net.hosts[0].written);
    assert_eq!(net.neighbours(0), [peer(2)]);
}

#[test]
fn error_of_a_receiver_ends_the_connection() {
    let mut net = line(2, default_config);
    net.run_s(3);
    net.hosts[0].channels.refuse = Some("IP allocation was seeded by different peers".into());
    net.with(1, |mesh, channels, now| mesh.gossip("set", &[1], channels, now));
    net.run(Duration::from_millis(100));
    let text = "connection shutting down due to error: IP allocation was seeded by different peers";
    assert_eq!(net.logged(0, text), 1);
}

#[test]
fn connect_and_forget_persist_the_direct_peers() {
    let mut net = Net::new(1, default_config);
    net.connect(0, &["10.0.0.8", "10.0.0.9"]);
    assert_eq!(net.hosts[0].targets, ["10.0.0.8", "10.0.0.9"]);
    net.with(0, |mesh, _, now| mesh.forget(&["10.0.0.8".to_owned()], now));
    assert_eq!(net.hosts[0].targets, ["10.0.0.9"]);
    net.with(0, |mesh, _, now| {
        assert_eq!(mesh.connect(&[":".to_owned()], true, now).len(), 1);
    });
    assert!(net.hosts[0].targets.is_empty(), "the peers are replaced in spite of the error");
}

#[test]
fn shutdown_ends_all_connections() {
    let mut net = line(2, default_config);
    net.run_s(3);
    net.with(0, |mesh, _, now: Now| mesh.shutdown(Departure::Leave, now));
    net.run_s(1);
    assert!(net.hosts[0].setups.is_empty() && net.neighbours(0).is_empty());
    assert_eq!(net.hosts[0].mesh.poll_timeout(), None);
    assert!(net.neighbours(1).is_empty());
}

/// Bytes per host and minute in a converged full mesh.
fn idle_traffic(n: usize, digest: bool) -> usize {
    let mut net = Net::new(n, |_, config| config.digests = digest);
    for i in 1..n {
        net.connect(i, &["10.0.0.1"]);
    }
    net.run_s(100);
    net.assert_converged();
    let before: usize = net.hosts.iter().map(|h| h.written).sum();
    net.run_s(60);
    let after: usize = net.hosts.iter().map(|h| h.written).sum();
    (after - before) / n
}

#[test]
fn digests_reduce_the_traffic_of_an_idle_mesh() {
    let (with, without) = (idle_traffic(20, true), idle_traffic(20, false));
    // Hosts send heartbeats and digests instead of the complete topology to eight neighbours twice.
    assert!(with < 500, "{with}");
    assert!(without > 100 * with, "{without}");
}

#[test]
fn peers_with_and_without_digests_converge() {
    for pattern in [0b01010, 0b11011, 0b00100u32] {
        let has = |i: usize| pattern >> i & 1 == 1;
        let mut net = line(5, |i, config| config.digests = has(i));
        net.run_s(20);
        net.assert_converged();
        for i in 0..5 {
            assert_eq!(net.logged(i, "unknown protocol tag"), 0);
        }
        net.stop_process(4);
        net.run_s(5);
        net.restart(4, |config| {
            config.discovery = false;
            config.digests = !has(4);
            config.version = 0;
        });
        net.run_s(10);
        net.assert_converged();
    }
}

#[test]
fn two_joined_halves_exchange_all_records() {
    let mut net = Net::new(16, |_, config| config.discovery = false);
    for i in (1..16).filter(|&i| i != 8) {
        net.connect(i, &[&ip(i - 1)]);
        net.connect(i, &[&ip(if i < 8 { 0 } else { 8 })]);
    }
    net.run_s(30);
    assert_eq!(net.hosts[0].mesh.peers().len(), 8);
    net.connect(8, &[&ip(0)]);
    net.run_s(3);
    net.assert_converged();
    net.hosts.iter().for_each(|host| assert_eq!(host.removed, []));
}

#[test]
fn missing_requested_records_are_requested_again() {
    use std::collections::BTreeMap;
    let mut net = line(2, default_config);
    net.run_s(5);
    let conn = *net.hosts[0].setups.keys().next().unwrap();
    let news =
        Message::News(BTreeMap::from([(peer(9), RecordVersion { version: 1, uid: PeerUid(1) })])).encode();
    let send_news = |net: &mut Net| {
        let before = net.hosts[0].written;
        net.with(0, |mesh, _, now| mesh.handle_digest(conn, peer(2), &news[1..], now)).unwrap();
        net.hosts[0].written - before
    };
    assert_eq!(send_news(&mut net), 4 + 2 + 6, "requested");
    assert_eq!(send_news(&mut net), 0, "not requested again");
    let before = net.hosts[0].written;
    net.run_s(3);
    assert_eq!(net.hosts[0].written - before, 4 + 2 + 8, "digests are compared after the timeout");
    assert_eq!(send_news(&mut net), 4 + 2 + 6, "requested again");
}

#[test]
fn gossip_with_a_forged_source_reaches_that_source() {
    // The second peer sends gossip whose envelope names the third as its source. It must reach the third.
    let mut net = Net::new(3, |_, config| config.discovery = false);
    net.connect(1, &[&ip(0)]);
    net.connect(2, &[&ip(0)]);
    net.run_s(10);
    let forged = crate::update::PeerRecord {
        version: 1 << 30,
        nickname: "changed".into(),
        uid: net.hosts[0].mesh.peer(peer(2)).unwrap().uid,
        ..crate::test_support::record(peer(2), vec![crate::test_support::connection(peer(1), true)])
    };
    let payload = crate::update::encode_update([&forged]);
    let (source, destination) = (peer(3), None);
    let envelope =
        crate::envelope::Envelope { channel: "topology".into(), source, destination, payload: &payload };
    let message = [&[4][..], &envelope.encode()].concat();
    let framed = [&(message.len() as u32).to_be_bytes()[..], &message].concat();
    let to_second = |host: &super::harness::Host| {
        let mut setups = host.setups.iter();
        *setups.find(|(_, setup)| setup.remote == peer(2)).unwrap().0
    };
    let conn = to_second(&net.hosts[0]);
    net.with(0, |mesh, channels, now| mesh.handle_stream(conn, &framed, channels, now));
    net.run(Duration::from_millis(500));
    assert_eq!(&*net.hosts[2].mesh.peer(peer(2)).unwrap().nickname, "changed");
}

#[test]
fn connection_limit_does_not_separate_parts_of_the_mesh() {
    // Two triangles in which every peer is at its limit.
    let mut net = Net::new(6, |_, config| config.connection_limit = 2);
    for i in [1, 2, 4, 5] {
        net.connect(i, &[&ip(i / 3 * 3)]);
    }
    net.run_s(10);
    assert_eq!(net.hosts[0].mesh.peers().len(), 3);
    net.connect(3, &[&ip(0)]);
    net.run_s(10);
    net.assert_converged();
    for i in 0..6 {
        assert!(net.neighbours(i).len() <= 2, "{i}");
    }
    // After that no connection is ended in favour of a peer that is reachable.
    net.run_s(600);
    let deleted: Vec<usize> = (0..6).map(|i| net.logged(i, "connection deleted")).collect();
    net.run_s(3600);
    assert_eq!((0..6).map(|i| net.logged(i, "connection deleted")).collect::<Vec<_>>(), deleted);
    net.assert_converged();
}

/// Hosts fail, restart and lose their connections in random order.
#[test]
fn random_failures_are_followed_by_convergence() {
    use rand::RngExt;
    for seed in 0..12 {
        let mut rng = crate::test_support::rng(seed);
        let n = rng.random_range(3..9usize);
        let (discovery, mask) = (rng.random(), rng.random::<u32>());
        let same_ids: bool = rng.random();
        let adjust = move |i: usize, config: &mut Config| {
            config.discovery = discovery;
            config.digests = mask >> i & 1 == 1;
            config.password = Secret::new(if seed % 2 == 0 { "p" } else { "" });
        };
        let mut net = Net::new(n, |i, config| {
            adjust(i, config);
            config.short_id = if same_ids { ShortId::new(7) } else { None };
        });
        for i in 1..n {
            let to = rng.random_range(0..i);
            net.connect(i, &[&ip(to), &ip(rng.random_range(0..n))]);
        }
        let mut stopped = BTreeSet::new();
        for _ in 0..30 {
            net.run(Duration::from_millis(rng.random_range(1..4000)));
            let (a, b) = (rng.random_range(0..n), rng.random_range(0..n));
            match rng.random_range(0..5) {
                0 if stopped.insert(a) => net.stop_process(a),
                1 if stopped.insert(a) => net.crash_host(a),
                2 if stopped.remove(&a) => {
                    let persisted: bool = rng.random();
                    net.restart(a, |config| {
                        adjust(a, config);
                        config.version = if persisted { config.version } else { 0 };
                    });
                }
                3 if a != b => net.separate(a, b, rng.random()),
                4 => {
                    net.separated.pop_first();
                }
                _ => {}
            }
        }
        net.separated.clear();
        for a in stopped {
            net.restart(a, |config| adjust(a, config));
        }
        // Retry intervals may have grown to six minutes.
        net.run_s(1200);
        net.assert_converged();
        let ids: BTreeSet<_> = net.hosts.iter().map(|h| h.short_id).collect();
        assert_eq!(ids.len(), n, "seed {seed}");
    }
}

#[test]
fn a_record_with_many_connections_is_announced_less_often() {
    const PEERS: usize = 60;
    let mut net = Net::new(PEERS, |_, config| config.discovery = false);
    (0..PEERS - 1).for_each(|i| net.connect(i, &[&ip(PEERS - 1)]));
    net.run_s(30);
    let own = peer(1);
    let (mut seen, mut announced) = (0, 0);
    for i in 1..PEERS - 1 {
        net.connect(0, &[&ip(i)]);
        for _ in 0..5 {
            net.run(Duration::from_millis(100));
            let version = net.hosts[PEERS - 1].mesh.peer(own).unwrap().version;
            announced += usize::from(version != seen);
            seen = version;
        }
    }
    // In 29 s, in which 58 connections were added.
    assert!((6..=16).contains(&announced), "{announced} versions of the record");
    net.run_s(6);
    net.assert_converged();
}
