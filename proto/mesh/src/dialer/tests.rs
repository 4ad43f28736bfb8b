use serde_json::Value;

use super::*;
use crate::peers::{GossipAddress, PeerConnection};
use crate::test_support::{array, name, peer, record, rng, text, topology, vector};

const NOW: Instant = Instant::from_origin(Duration::from_secs(1000));

fn after(seconds: f64) -> Instant {
    NOW + Duration::from_secs_f64(seconds)
}

fn targets(dialer: &Dialer) -> impl Iterator<Item = TargetStatus> + use<> {
    let none = OwnConnections::default();
    dialer
        .targets(&none, &topology(peer(1)), Now { mono: NOW, wall: Duration::ZERO })
        .collect::<Vec<_>>()
        .into_iter()
}

fn states(dialer: &Dialer) -> Vec<(String, TargetState)> {
    targets(dialer).map(|t| (t.address, t.state)).collect()
}

fn evaluate(dialer: &mut Dialer, connected: &OwnConnections, now: Instant) -> Vec<Attempt> {
    dialer.evaluate(connected, &topology(peer(1)), &mut rng(1), now)
}

/// Evaluates, and starts the attempts as connections 1, 2 and so on.
fn dial(
    dialer: &mut Dialer,
    connected: &OwnConnections,
    now: Instant,
) -> Vec<(TargetAddr, SocketAddr, ConnectionId)> {
    let attempts = evaluate(dialer, connected, now).into_iter().zip(1..);
    attempts
        .map(|(attempt, n)| {
            let Attempt::Dial { target_addr, addr, .. } = attempt else { panic!("{attempt:?}") };
            dialer.on_dial_started(&target_addr, ConnectionId(n));
            (target_addr, addr, ConnectionId(n))
        })
        .collect()
}

fn state_from(value: &Value) -> TargetState {
    match text(value) {
        "waiting" => TargetState::Waiting,
        "attempting" => TargetState::Attempting,
        "connected" => TargetState::Connected,
        "suspended" => TargetState::Suspended,
        other => panic!("{other}"),
    }
}

#[test]
fn targets_are_chosen_as_in_2_8_1() {
    let cases = vector("connection_targets.json");
    assert_eq!(array(&cases).len(), 18);
    for case in array(&cases) {
        let about = text(&case["name"]);
        let mut topology = topology(name(&case["self"]));
        let mut connected = OwnConnections::default();
        for own in array(&case["own_connections"]) {
            let (peer, address) = (name(&own["peer"]), text(&own["address"]));
            let outbound = own["outbound"].as_bool().unwrap();
            topology.connect(PeerConnection {
                peer,
                address: GossipAddress::from_text(address),
                outbound,
                established: true,
            });
            let address: SocketAddr = address.parse().unwrap();
            connected.remotes.insert(address);
            connected.peers.insert(peer, (PeerUid(1), address));
            if !outbound {
                connected.inbound_from.insert(address.ip());
            }
        }
        let mut lists: BTreeMap<PeerName, Vec<PeerConnection>> = BTreeMap::new();
        for link in array(&case["other_peers_connections"]) {
            lists.entry(name(&link["from"])).or_default().push(PeerConnection {
                peer: name(&link["to"]),
                address: GossipAddress::from_text(text(&link["address"])),
                outbound: link["outbound"].as_bool().unwrap(),
                established: true,
            });
        }
        topology.merge(
            lists.into_iter().map(|(name, list)| record(name, list)).collect(),
            u64::MAX,
            &mut rng(1),
        );

        let port = case["port"].as_u64().unwrap() as u16;
        let mut dialer = Dialer::new(port, case["discovery"].as_bool().unwrap());
        let direct: Vec<String> = array(&case["direct_peers"]).iter().map(|p| text(p).to_owned()).collect();
        assert!(dialer.connect(&direct, false, NOW).is_empty(), "{about}");
        for (address, state) in case["targets_before"].as_object().unwrap() {
            dialer.set_state(address.parse().unwrap(), state_from(state), NOW);
        }
        for attempt in dialer.evaluate(&connected, &topology, &mut rng(1), NOW) {
            let Attempt::Dial { target_addr, identify_first, .. } = attempt else {
                panic!("{about}: {attempt:?}")
            };
            let after = case["targets_after"].as_object().unwrap();
            if identify_first && !after.contains_key(&target_addr.to_string()) {
                // 2.8.1 takes the address from which a peer has connected for that of this peer.
                dialer.targets.remove(&target_addr);
                continue;
            }
            dialer.on_dial_started(&target_addr, ConnectionId(1));
        }
        // 2.8.1 omits the brackets, so that its dial fails (docs/spec/mesh.md 15.7).
        let with_brackets =
            |text: &str| if text == "fd00::3:6783" { "[fd00::3]:6783".to_owned() } else { text.to_owned() };
        let after = case["targets_after"].as_object().unwrap();
        let mut expected: Vec<_> = after.iter().map(|(a, s)| (with_brackets(a), state_from(s))).collect();
        expected.sort_by_key(|(address, _)| address.parse::<SocketAddr>().unwrap());
        let has_dialled_us =
            |addr: &str| connected.inbound_from.contains(&addr.parse::<SocketAddr>().unwrap().ip());
        let mut states = states(&dialer);
        for (addr, state) in &mut states {
            // It is dialled to find out who answers.
            if *state == TargetState::Waiting && has_dialled_us(addr) {
                *state = TargetState::Suspended;
            }
        }
        assert_eq!(states, expected, "{about}");
    }
}

#[test]
fn addresses_of_direct_peers_are_parsed() {
    for (text, shown) in [
        ("10.0.0.2", "10.0.0.2"),
        ("10.0.0.2:7000", "10.0.0.2:7000"),
        ("10.0.0.2:0", "10.0.0.2"),
        ("10.0.0.2:", "10.0.0.2"),
        ("host2", "host2"),
        ("host2.example:6783", "host2.example:6783"),
        ("::1", "::1"),
        ("[::1]", "::1"),
        ("[fd00::3]:7000", "[fd00::3]:7000"),
    ] {
        assert_eq!(parse_peer(text).unwrap().to_string(), shown, "{text}");
    }
    for text in [
        "",
        ":6783",
        "host:67x3",
        "host:99999",
        "host:-1",
        "[::1",
        "[host]:1",
        "[::1]7",
        "a:b:c",
        "a/b",
        "[10.0.0.1]:1",
    ] {
        let error = parse_peer(text).expect_err(text).to_string();
        assert_eq!(error, format!("invalid peer name {text:?}, should be host[:port]"));
    }
}

#[test]
fn connect_adds_valid_peers_and_returns_errors() {
    let mut dialer = Dialer::new(6783, true);
    let list = |texts: &[&str]| texts.iter().map(|&t| t.to_owned()).collect::<Vec<String>>();
    let errors = dialer.connect(&list(&["10.0.0.2", ":1", "10.0.0.3"]), false, NOW);
    assert_eq!(errors, ["invalid peer name \":1\", should be host[:port]"]);
    assert_eq!(dialer.direct_peers(), ["10.0.0.2", "10.0.0.3"]);
    dialer.connect(&list(&["10.0.0.4"]), true, NOW);
    assert_eq!(dialer.direct_peers(), ["10.0.0.4"]);
    dialer.forget(&list(&["10.0.0.4:6783"]));
    assert_eq!(dialer.direct_peers(), ["10.0.0.4"], "forgetting needs the same text");
    dialer.forget(&list(&["10.0.0.4"]));
    assert!(dialer.direct_peers().is_empty());
}

#[test]
fn retry_intervals_grow_to_six_minutes() {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["10.0.0.2".to_owned()], false, NOW);
    let mut now = NOW;
    let mut interval = 2.0;
    for _ in 0..20 {
        let (target_addr, addr, conn) = dial(&mut dialer, &OwnConnections::default(), now)[0].clone();
        assert_eq!(addr.to_string(), "10.0.0.2:6783");
        dialer.on_dial_failed(&target_addr, conn, "connection refused".into(), &mut rng(2), now);
        let due = dialer.next_due().unwrap();
        let pause = (due - now).as_secs_f64();
        assert!((interval / 2.0..interval * 1.5).contains(&pause), "{pause} for {interval}");
        assert!(dial(&mut dialer, &OwnConnections::default(), now).is_empty(), "not yet");
        let status = targets(&dialer).next().unwrap();
        assert_eq!(status.last_error.as_deref(), Some("connection refused"));
        assert_eq!((status.state, status.retry.map(|at| at.mono)), (TargetState::Waiting, Some(due)));
        interval = f64::min(interval * 1.5, 360.0);
        now = due;
    }
    assert_eq!(interval, 360.0);
    dialer.connect(&["10.0.0.2".to_owned()], false, now + Duration::from_secs(1));
    assert_eq!(
        dial(&mut dialer, &OwnConnections::default(), now + Duration::from_secs(1)).len(),
        1,
        "connecting again resets the interval"
    );
}

#[test]
fn ended_connection_is_retried_immediately_later_or_never() {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["10.0.0.2".to_owned()], false, NOW);
    let none = OwnConnections::default();
    let (target_addr, _, conn) = dial(&mut dialer, &none, NOW)[0].clone();
    dialer.on_connected(&target_addr, conn);
    dialer.on_disconnected(
        &target_addr,
        ConnectionId(99),
        "of another connection".into(),
        Retry::Never,
        &mut rng(1),
        NOW,
    );
    assert_eq!(states(&dialer)[0].1, TargetState::Connected);

    dialer.on_disconnected(&target_addr, conn, "EOF".into(), Retry::Later, &mut rng(1), after(60.0));
    assert!(dialer.next_due().unwrap() > after(60.0), "the connection was too short for an immediate retry");
    let at = dialer.next_due().unwrap();
    let (target_addr, _, conn) = dial(&mut dialer, &none, at)[0].clone();
    dialer.on_connected(&target_addr, conn);
    let end = at + Duration::from_secs(61);
    dialer.on_disconnected(&target_addr, conn, "EOF".into(), Retry::Later, &mut rng(1), end);
    assert_eq!(dialer.next_due(), Some(end));

    let (target_addr, _, conn) = dial(&mut dialer, &none, end)[0].clone();
    dialer.on_disconnected(
        &target_addr,
        conn,
        "cannot connect to ourself".into(),
        Retry::Never,
        &mut rng(1),
        end,
    );
    assert!(dial(&mut dialer, &none, after(1e9)).is_empty());
    assert_eq!(targets(&dialer).next().unwrap().retry, None);
    assert!(dialer.active_peers().is_empty());
    assert_eq!(dialer.direct_peers(), ["10.0.0.2"]);
    dialer.connect(&["10.0.0.2".to_owned()], false, after(1e9));
    assert_eq!(dial(&mut dialer, &none, after(1e9)).len(), 1, "the user connects again");
}

/// Two addresses, at both of which peer 2 has answered. It is connected at the first.
fn two_addresses_of_one_peer() -> (Dialer, OwnConnections, TargetAddr) {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["10.0.0.2:6783".to_owned(), "192.168.0.2:6783".to_owned()], false, NOW);
    let both = dial(&mut dialer, &OwnConnections::default(), NOW);
    let (target_addr, addr, conn) = both[0].clone();
    let mut connected = OwnConnections::default();
    connected.remotes.insert(addr);
    connected.peers.insert(peer(2), (PeerUid(5), addr));
    dialer.on_peer_identified(&target_addr, conn, peer(2), PeerUid(5));
    dialer.on_connected(&target_addr, conn);
    let (other, _, conn) = both[1].clone();
    dialer.on_peer_identified(&other, conn, peer(2), PeerUid(5));
    dialer.on_disconnected(&other, conn, "Multiple".into(), Retry::Recheck, &mut rng(1), NOW);
    assert!(dial(&mut dialer, &connected, NOW).is_empty());
    (dialer, connected, other)
}

#[test]
fn target_of_a_connected_peer_is_checked_from_time_to_time() {
    let (mut dialer, connected, other) = two_addresses_of_one_peer();
    let row = |dialer: &Dialer, connected: &OwnConnections| {
        let topology = topology(peer(1));
        let all = dialer.targets(connected, &topology, Now { mono: NOW, wall: Duration::ZERO });
        all.last().map(|t| (t.state, t.elsewhere.map(|(peer, addr)| (peer.name, addr.to_string()))))
    };
    let shown = Some((TargetState::Suspended, Some((peer(2), "10.0.0.2:6783".to_owned()))));
    let (mut now, mut checks) = (NOW, 0);
    while now < after(3600.0) {
        assert_eq!(row(&dialer, &connected), shown, "the row says who answered, and where that peer is");
        let due = dialer.next_due().unwrap();
        assert!((15.0..45.0).contains(&(due - now).as_secs_f64()), "the interval does not grow");
        now = due;
        let attempts = evaluate(&mut dialer, &connected, now);
        let [Attempt::Dial { target_addr, identify_first: true, .. }] = &attempts[..] else {
            panic!("{attempts:?}")
        };
        assert_eq!(*target_addr, other);
        let conn = ConnectionId(50 + checks);
        dialer.on_dial_started(&other, conn);
        dialer.on_disconnected(&other, conn, "is connected".into(), Retry::Recheck, &mut rng(1), now);
        assert!(dial(&mut dialer, &connected, now).is_empty());
        checks += 1;
    }
    assert!(checks > 80, "{checks}");
    // Another peer answers there after a restart of the first, or nobody does.
    let mut restarted = connected;
    let (_, addr) = restarted.peers[&peer(2)];
    restarted.peers.insert(peer(2), (PeerUid(6), addr));
    let attempts = dial(&mut dialer, &restarted, now);
    assert_eq!(attempts[0].0, other);
    dialer.on_dial_failed(&other, attempts[0].2, "no route".into(), &mut rng(1), now);
    assert_eq!(row(&dialer, &restarted), Some((TargetState::Waiting, None)));
}

#[test]
fn change_of_the_network_makes_all_targets_due() {
    let (mut dialer, connected, other) = two_addresses_of_one_peer();
    dialer.connect(&["10.0.0.9".to_owned()], false, NOW);
    let (ourselves, _, conn) = dial(&mut dialer, &connected, NOW)[0].clone();
    dialer.on_disconnected(&ourselves, conn, "ourself".into(), Retry::Never, &mut rng(1), NOW);
    assert!(dial(&mut dialer, &connected, after(1.0)).is_empty());
    dialer.on_network_change(after(1.0));
    let due: BTreeSet<TargetAddr> =
        dial(&mut dialer, &connected, after(1.0)).into_iter().map(|(addr, ..)| addr).collect();
    assert_eq!(due, BTreeSet::from([other, ourselves]));
}

#[test]
fn address_that_dialled_us_is_dialled_to_find_out_who_answers() {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["198.18.0.2".to_owned()], false, NOW);
    let inbound: SocketAddr = "198.18.0.2:40000".parse().unwrap();
    let mut connected = OwnConnections::default();
    connected.inbound_from.insert(inbound.ip());
    connected.peers.insert(peer(4), (PeerUid(4), inbound));
    let attempts = evaluate(&mut dialer, &connected, NOW);
    let [Attempt::Dial { target_addr, identify_first: true, .. }] = &attempts[..] else {
        panic!("{attempts:?}")
    };
    let conn = ConnectionId(1);
    dialer.on_dial_started(target_addr, conn);
    // The peer that dialled us answers: its connection is shown, and the target needs no row.
    dialer.on_peer_identified(target_addr, conn, peer(4), PeerUid(4));
    dialer.on_disconnected(target_addr, conn, "is connected".into(), Retry::Recheck, &mut rng(1), NOW);
    assert!(evaluate(&mut dialer, &connected, NOW).is_empty());
    let topology = topology(peer(1));
    let mut all = dialer.targets(&connected, &topology, Now { mono: NOW, wall: Duration::ZERO });
    let status = all.next().unwrap();
    assert_eq!((status.state, status.elsewhere), (TargetState::Suspended, None));
}

#[test]
fn address_of_a_lost_peer_is_dialled_while_no_peer_is_connected() {
    let none = OwnConnections::default();
    let mut connected = OwnConnections::default();
    let other: SocketAddr = "10.0.0.3:6783".parse().unwrap();
    connected.peers.insert(peer(3), (PeerUid(3), other));
    for own_address_lost in [false, true] {
        let mut dialer = Dialer::new(6783, true);
        let inbound = "10.0.0.2:40000".parse().unwrap();
        dialer.on_contact_lost(peer(2), inbound, false, own_address_lost, NOW);
        let with_others = dial(&mut dialer, &connected, NOW);
        assert_eq!(with_others.len(), usize::from(own_address_lost));
        let mut dialer = Dialer::new(6783, true);
        dialer.on_contact_lost(peer(2), inbound, false, own_address_lost, NOW);
        let (target_addr, addr, _) = dial(&mut dialer, &none, after(1e5))[0].clone();
        assert_eq!(addr.to_string(), "10.0.0.2:6783");
        assert!(dialer.accepts_unknown(&target_addr));
        connected.peers.insert(peer(2), (PeerUid(2), other));
        evaluate(&mut dialer, &connected, after(1e5));
        connected.peers.remove(&peer(2));
        assert!(
            dialer.accepts_unknown(&target_addr),
            "the peer may end a connection that is not established"
        );
        dialer.on_established(peer(2));
        assert!(!dialer.accepts_unknown(&target_addr));
    }
}

#[test]
fn number_of_addresses_of_lost_peers_is_limited() {
    let mut dialer = Dialer::new(6783, true);
    for n in 1..=MAX_LAST_MET as u64 + 1 {
        let remote = SocketAddr::new([10, 0, 1, 100 - n as u8].into(), 6783);
        dialer.on_contact_lost(peer(n + 1), remote, true, false, after(n as f64));
    }
    let dialled = dial(&mut dialer, &OwnConnections::default(), after(1e5));
    let dialled: BTreeSet<String> = dialled.into_iter().map(|(_, addr, _)| addr.to_string()).collect();
    assert_eq!(dialled.len(), MAX_LAST_MET);
    assert!(
        dialled.contains("10.0.1.35:6783") && !dialled.contains("10.0.1.99:6783"),
        "the oldest was replaced"
    );
}

#[test]
fn number_of_discovered_addresses_is_limited() {
    let mut topology = topology(peer(1));
    let neighbours = (0..MAX_DISCOVERED as u64 + 1000).map(|n| PeerConnection {
        peer: peer(n + 3),
        address: GossipAddress::from_text(&format!("10.1.{}.{}:6783", n / 256, n % 256)),
        outbound: true,
        established: true,
    });
    topology.merge(vec![record(peer(2), neighbours.collect())], u64::MAX, &mut rng(1));
    let mut dialer = Dialer::new(6783, true);
    let attempts = dialer.evaluate(&OwnConnections::default(), &topology, &mut rng(1), NOW);
    assert_eq!((attempts.len(), targets(&dialer).count()), (MAX_DISCOVERED, MAX_DISCOVERED));
}

#[test]
fn number_of_addresses_of_a_name_is_limited() {
    let mut dialer = Dialer::new(6783, true);
    let none = OwnConnections::default();
    dialer.connect(&["host2".to_owned()], false, NOW);
    let attempts = evaluate(&mut dialer, &none, NOW);
    let [Attempt::Resolve { id, .. }] = attempts[..] else { panic!("{attempts:?}") };
    let many = (0..1000u16).map(|n| IpAddr::from([10, 0, (n / 256) as u8, n as u8])).collect();
    assert!(dialer.on_resolved(id, Ok(many), &none, &mut rng(1), NOW).is_some());
    let stored: usize = dialer.targets.values().map(|target| target.resolved.len()).sum();
    assert_eq!(stored, MAX_RESOLVED);
}

#[test]
fn host_names_are_looked_up_at_each_attempt() {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["host2".to_owned()], false, NOW);
    let none = OwnConnections::default();
    let resolve_id = |dialer: &mut Dialer, now| match &evaluate(dialer, &none, now)[..] {
        [Attempt::Resolve { id, host }] if host == "host2" => *id,
        other => panic!("{other:?}"),
    };
    let id = resolve_id(&mut dialer, NOW);
    assert_eq!(states(&dialer), [("host2:6783".to_owned(), TargetState::Attempting)]);
    assert_eq!(
        dialer.on_resolved(id, Err("lookup host2: no such host".into()), &none, &mut rng(1), NOW),
        None
    );
    let status = targets(&dialer).next().unwrap();
    assert_eq!(status.last_error.as_deref(), Some("lookup host2: no such host"));

    let ips: Vec<IpAddr> = ["fd00::2", "10.0.0.2", "10.0.0.3"].map(|t| t.parse().unwrap()).into();
    let mut dialled = Vec::new();
    for _ in 0..4 {
        let now = dialer.next_due().unwrap();
        let id = resolve_id(&mut dialer, now);
        assert_eq!(dialer.on_resolved(ResolveId(id.0 + 1), Ok(ips.clone()), &none, &mut rng(1), now), None);
        let Some(Attempt::Dial { target_addr, addr, .. }) =
            dialer.on_resolved(id, Ok(ips.clone()), &none, &mut rng(1), now)
        else {
            panic!()
        };
        dialer.on_dial_started(&target_addr, ConnectionId(1));
        dialer.on_dial_failed(&target_addr, ConnectionId(1), "refused".into(), &mut rng(1), now);
        dialled.push(addr.to_string());
    }
    assert_eq!(
        dialled,
        ["10.0.0.2:6783", "10.0.0.3:6783", "[fd00::2]:6783", "10.0.0.2:6783"],
        "in next_ip, IPv4 first"
    );

    // All addresses of the name are connected.
    let remotes = ips.iter().map(|ip| SocketAddr::new(*ip, 6783)).collect();
    let connected = OwnConnections { remotes, ..OwnConnections::default() };
    assert!(evaluate(&mut dialer, &connected, after(1e6)).is_empty());
    assert_eq!(states(&dialer)[0].1, TargetState::Suspended);
}

#[test]
fn no_target_is_dialled_beyond_the_connection_limit() {
    let mut dialer = Dialer::new(6783, true);
    dialer.connect(&["10.0.0.2".to_owned(), "10.0.0.3".to_owned()], false, NOW);
    let connected = OwnConnections { room: Some(1), limit: 30, ..OwnConnections::default() };
    assert_eq!(dial(&mut dialer, &connected, NOW).len(), 1);
    let waiting = targets(&dialer).find(|t| t.state == TargetState::Waiting).unwrap();
    assert_eq!(waiting.last_error.as_deref(), Some("Connection limit reached (30)"));
    assert!(waiting.retry.is_some_and(|at| at.mono > NOW));
}
