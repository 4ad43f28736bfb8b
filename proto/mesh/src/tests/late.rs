//! A peer whose process did not run for a while: what has arrived meanwhile counts before silence does.

use std::time::Duration;

use super::harness::{Net, default_config, line};
use crate::test_support::peer;

fn two() -> Net {
    let mut net = line(2, default_config);
    net.run_s(5);
    net
}

#[test]
fn suspended_peer_keeps_its_connections() {
    // The neighbour's heartbeat of each half minute waits.
    for seconds in [35, 50, 59] {
        let mut net = two();
        net.run_s(25);
        net.suspend(1, Duration::from_secs(seconds));
        net.run_s(seconds + 70);
        assert_eq!(net.logged(1, "shutting down"), 0, "{seconds} s: {:#?}", net.hosts[1].events);
        assert_eq!(net.neighbours(1), [peer(1)]);
    }
}

#[test]
fn suspended_peer_notices_real_silence() {
    let mut net = two();
    net.crash_host(0);
    net.suspend(1, Duration::from_secs(300));
    net.run_s(300 + 6);
    assert_eq!(net.logged(1, "i/o timeout"), 1, "{:#?}", net.hosts[1].events);
}

#[test]
fn handshakes_outlast_a_suspension() {
    let mut net = Net::new(2, default_config);
    net.connect(1, &["10.0.0.1"]);
    // The connection is open, and the header is on its way.
    net.run(Duration::from_millis(12));
    net.suspend(0, Duration::from_secs(30));
    net.suspend(1, Duration::from_secs(30));
    net.run_s(32);
    net.assert_converged();
    assert_eq!(net.logged(0, "handshake"), 0, "{:#?}", net.hosts[0].events);
}

#[test]
fn restarted_peer_returns_to_one_that_was_suspended() {
    let mut net = two();
    net.stop_process(1);
    net.run_s(1);
    net.suspend(0, Duration::from_secs(20));
    net.restart(1, |config| config.discovery = false);
    net.run_s(21);
    assert_eq!(net.hosts[0].removed, [], "{:#?}", net.hosts[0].events);
    net.run_s(5);
    net.assert_converged();
}

#[test]
fn end_that_was_not_handled_is_no_sign_of_life() {
    // The old process ends without closing its connections, and the next one dials; the test of the old connection fails meanwhile.
    let mut net = two();
    net.crash_host(1);
    net.restart(1, |config| config.discovery = false);
    // Another handshake has begun after the test.
    let count = |net: &Net| (net.logged(0, "connection accepted"), net.logged(0, "is still connected"));
    while matches!(count(&net), (accepted, refused) if refused == 0 || accepted <= refused + 1) {
        net.run(Duration::from_millis(1));
    }
    net.suspend(0, Duration::from_secs(10));
    net.run_s(20);
    assert_eq!(net.logged(0, "another host has the name"), 0, "{:#?}", net.hosts[0].events);
    net.assert_converged();
}
