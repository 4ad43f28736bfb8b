//! A container starts again on another host with the same address and another MAC.

use std::time::Duration;

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-47");

#[test]
fn address_moves_to_another_host() {
    let Some(lab) = Lab::start("move", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|h| lab.host(h));
    let (near, far) = (h2.container("near"), h3.container("far"));
    near.attach(&["10.2.1.2/24"]);
    far.attach(&["10.2.1.3/24"]);

    let first = h1.container("c");
    first.attach(&["10.2.1.1/24"]);
    let mut mac = first.mac();
    near.reaches("10.2.1.1", SHORT_TIMEOUT);
    far.reaches("10.2.1.1", SHORT_TIMEOUT);
    first.end();

    // Repeatedly, always to a host with a container whose ARP cache has the old MAC.
    for host in [h2, h3, h1] {
        let pingers = [near.pinging("10.2.1.1", 50), far.pinging("10.2.1.1", 50)];
        let container = host.container("c");
        container.attach(&["10.2.1.1/24"]);
        assert_ne!(container.mac(), mac, "another container has another MAC");
        mac = container.mac();
        for from in [&near, &far] {
            from.reaches("10.2.1.1", Duration::from_secs(5));
        }
        for pinger in pingers {
            let pings = pinger.finish();
            assert!(pings.longest_gap_ms < 5000.0, "{pings:?}");
        }
        near.tcp(&container, "10.2.1.1", 100_000);
        container.end();
    }

    step("the same MAC on another host, as after a live migration");
    let here = h1.container("same");
    here.attach(&["10.2.1.9/24"]);
    let mac = here.mac();
    near.reaches("10.2.1.9", SHORT_TIMEOUT);
    here.end();
    let there = h3.container("same");
    there.attach(&["10.2.1.9/24"]);
    there.command_ok(&["ip", "link", "set", "ethwe", "address", &mac]);
    near.reaches("10.2.1.9", Duration::from_secs(5));
    claims(&["F-47"]);
}
