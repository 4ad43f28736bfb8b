//! Peers restart under traffic.

use std::time::Duration;

use weave_mesh::Departure;
use weave_sim::restarts::{Restarts, silence_after_the_end_of_a_relay};

/// The others see no change of the topology, and the peer is reached a moment after it has returned. Besides its downtime that takes a
/// dial, the handshakes and the first heartbeats.
#[test]
fn restarted_peer_keeps_its_place() {
    let mut latest = Duration::ZERO;
    for seed in 1..=25 {
        let [downtime, own, others] = Restarts::new(seed, 0).restart();
        latest = latest.max(own.saturating_sub(downtime));
        assert!(own <= downtime + Duration::from_millis(400), "seed {seed}: {own:?} after {downtime:?}");
        assert!(others <= Duration::from_millis(60), "seed {seed}: {others:?} between others");
    }
    println!("longest silence after the start of the peer: {latest:?}");
}

/// The programs of the kernel go on while there is no peer, and neighbours keep sending to them.
#[test]
fn restart_over_fastdp_interrupts_nothing() {
    for seed in 1..=25 {
        let [_, own, others] = Restarts::with_fastdp(seed).restart();
        assert_eq!((own, others), (Duration::ZERO, Duration::ZERO), "seed {seed}");
    }
}

#[test]
fn restart_beside_peers_of_2_8_1_is_over_soon() {
    for seed in 1..=10 {
        let [_, _, others] = Restarts::new(seed, 2).restart();
        assert!(others <= Duration::from_millis(60), "seed {seed}: {others:?} between others");
    }
}

#[test]
fn place_of_a_peer_that_does_not_return_is_given_up() {
    for seed in 1..=8 {
        Restarts::new(seed, 0).vanish(None);
    }
    for seed in 1..=3 {
        Restarts::new(seed, 0).vanish(Some(Departure::Restart));
        Restarts::new(seed, 0).vanish(Some(Departure::Leave));
    }
}

#[test]
fn two_peers_restart_at_the_same_time() {
    (1..=20).for_each(|seed| Restarts::new(seed, 0).restart_two());
}

#[test]
fn traffic_over_a_peer_that_ends_takes_another_way() {
    let longest = (1..=20).map(silence_after_the_end_of_a_relay).max();
    println!("longest silence: {longest:?}");
    assert!(longest <= Some(Duration::from_millis(1000)));
}
