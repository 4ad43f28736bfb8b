use std::time::Duration;

use proptest::prelude::*;
use weave_trace::{Direction, Hop, MAX_HOPS, Message, NoLink, Silence, Trace};
use weave_types::{Instant, PeerName};

use crate::network::{Network, link, peer};

fn path(trace: &Trace, direction: Direction) -> Vec<u64> {
    trace.path(direction).iter().map(|peer| peer.number()).collect()
}

#[test]
fn peers_are_asked_in_order_and_once() {
    let mut network = Network::new(4);
    let trace = network.run();
    assert_eq!(path(&trace, Direction::There), [1, 2, 3, 4]);
    assert_eq!(path(&trace, Direction::Back), [4, 3, 2, 1]);
    let watched: Vec<u64> = network
        .asked
        .iter()
        .filter(|(_, message)| matches!(message, Message::Watch { .. }))
        .map(|(to, _)| to.number())
        .collect();
    assert_eq!(watched, [1, 2, 3, 4, 4, 3, 2, 1]);
    assert!((1..=4).all(|n| trace.report(peer(n)).is_some() && trace.silence(peer(n)).is_none()));
    assert_eq!(network.took, Duration::ZERO);
}

#[test]
fn containers_of_one_host_need_no_other_peer() {
    let mut network = Network::new(1);
    let trace = network.run();
    assert_eq!(path(&trace, Direction::There), [1]);
    assert_eq!(network.asked.len(), 2, "{:?}", network.asked);
}

#[test]
fn peers_that_cannot_be_asked_are_passed_over() {
    let mut network = Network::new(5);
    network.old.insert(peer(2));
    network.mute.insert(peer(3));
    network.refusing.insert(peer(4));
    let trace = network.run();
    assert_eq!(path(&trace, Direction::There), [1, 2, 3, 4, 5]);
    assert_eq!(path(&trace, Direction::Back), [5, 4, 3, 2, 1]);
    assert_eq!(trace.silence(peer(2)), Some(&Silence::Unsupported));
    assert_eq!(trace.silence(peer(3)), Some(&Silence::NoAnswer));
    assert_eq!(trace.silence(peer(4)), Some(&Silence::Refused("busy".to_owned())));
    assert!(trace.report(peer(1)).is_some() && trace.report(peer(5)).is_some());
    let asked = |n| network.asked.iter().filter(|(to, _)| *to == peer(n)).count();
    assert_eq!((asked(2), asked(3)), (0, 2), "an old peer is not asked, a mute one once more");
    assert!(network.took < Duration::from_secs(2), "{:?}", network.took);
}

#[test]
fn mute_peers_delay_it_by_a_bounded_time() {
    let mut network = Network::new(40);
    network.mute.extend((2..=40).map(peer));
    let trace = network.run();
    assert!(trace.path(Direction::There).len() <= MAX_HOPS);
    assert!(network.took < Duration::from_secs(15), "{:?}", network.took);
}

#[test]
fn a_loop_of_routes_ends() {
    let mut network = Network::new(4);
    let back = Hop { source_at: None, destination_at: None, next: Ok(link(2)) };
    network.hops.insert((peer(3), Direction::There), back);
    let trace = network.run();
    assert_eq!(path(&trace, Direction::There), [1, 2, 3]);
}

#[test]
fn a_way_that_ends_early_is_not_followed_back() {
    let mut network = Network::new(4);
    let end = NoLink::NoRoute("cut".to_owned());
    let none = Hop { source_at: None, destination_at: None, next: Err(end) };
    network.hops.insert((peer(2), Direction::There), none);
    let trace = network.run();
    assert_eq!((path(&trace, Direction::There), path(&trace, Direction::Back)), (vec![1, 2], vec![4]));
}

fn answers() -> impl Strategy<Value = Vec<(u64, u8, u64, bool)>> {
    prop::collection::vec((1..6u64, 0..4u8, 1..6u64, any::<bool>()), 0..60)
}

proptest! {
    /// Whoever answers what, and how often: it ends in bounded time, and no path has a peer twice.
    #[test]
    fn it_ends_whatever_the_peers_answer(answers in answers()) {
        let mut now = Instant::ORIGIN;
        let mut trace = Trace::new(Network::new(5).config(), now);
        let mut answers = answers.into_iter();
        let mut is_done = false;
        while !is_done {
            while let Some(output) = trace.poll_output() {
                match output {
                    weave_trace::Output::Ready => trace.collect(now),
                    weave_trace::Output::Done => is_done = true,
                    weave_trace::Output::Send(..) => {}
                }
            }
            if let Some((from, kind, next, traces)) = answers.next() {
                let id = if kind == 3 && traces { 78 } else { 77 };
                let hop = Hop {
                    source_at: None,
                    destination_at: None,
                    next: Ok(weave_trace::Link { traces, ..link(next) }),
                };
                let message = match kind {
                    0 => Message::Hop { id, toward: peer(5), hop },
                    1 => Message::Hop { id, toward: peer(1), hop },
                    2 => Message::Report { id, report: weave_trace::Report::default() },
                    _ => Message::Refused { id, reason: String::new() },
                };
                trace.handle_message(peer(from), message, now);
            } else if let Some((at, _)) = trace.poll_timeout() {
                prop_assert!(at > now || now == Instant::ORIGIN);
                now = now.max(at);
                trace.handle_timeout(now);
            }
            prop_assert!(now.since_origin() < Duration::from_secs(30));
        }
        for direction in Direction::ALL {
            let path = trace.path(direction);
            let distinct: std::collections::BTreeSet<PeerName> = path.iter().copied().collect();
            prop_assert!(distinct.len() == path.len() && path.len() <= MAX_HOPS);
        }
    }
}
