//! Full ranges, different ranges, and rings that were formed separately.

use weave_lab::{Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::*;

weave_lab::claims!("I-25", "I-26", "I-34", "I-35", "P-6", "P-10", "S-10");

#[test]
fn allocation_in_a_full_range_waits_for_a_release() {
    let Some(lab) = Lab::start("full", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let range = ["--ipalloc-range", "10.2.0.0/26"];
    launch(h1, &range, &["h2"]);
    launch(h2, &range, &["h1"]);
    h1.weave_ok(&["prime"]);
    h2.weave_ok(&["prime"]);
    wait_equal_rings(&[h1, h2], SHORT_TIMEOUT);
    let all = attach_many(h1, "f", 62);
    assert_eq!(assert_unique_addresses(&lab).len(), 62);
    assert!(all.iter().all(|a| a != "10.2.0.0" && a != "10.2.0.63"));
    let outcome = assert_command_waits(h2, 7, &["attach", &h2.container("c").netns()]);
    assert!(outcome.stderr.contains("waiting for an address"), "{outcome}");
    // An address that is released on any peer serves a waiting request.
    let weave = weave_lab::weave_binary();
    let waits = h2.background(&[weave, "attach", "netns:c"], false).unwrap();
    let ip = h1.weave_ok(&["detach", "netns:f17"]);
    assert_eq!(waits.finish().unwrap(), ip);
    assert_unique_addresses(&lab);
    claims(&["I-35"]);
}

#[test]
fn peers_with_different_ranges() {
    let Some(lab) = Lab::start("ranges", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let seeds = ["--ipam-seed", "::1,::2"];
    launch(h1, &[&seeds[..], &["--name", "::1", "-iprange", "10.2.0.0/16"]].concat(), &[]);
    let (c1, _) = allocated_container(h1, "c1");
    launch(h2, &[&seeds[..], &["--name", "::2", "--ipalloc-range", "10.3.0.0/16"]].concat(), &["h1"]);
    allocated_container(h2, "c2");
    for host in [h1, h2] {
        host.wait("the conflict to be reported", LONG_TIMEOUT, || {
            let page = ipam_page(host);
            let ranges = page.contains("10.2.0.0/16") && page.contains("10.3.0.0/16");
            if ranges && page.contains("--ipalloc-range") { Ok(()) } else { Err(page) }
        });
    }
    // Data flows, and each peer allocates from its own range.
    allocated_container(h1, "d1");
    allocated_container(h2, "d2");
    h1.container("e1").attach(&["10.9.1.1/24"]);
    let e2 = h2.container("e2");
    e2.attach(&["10.9.1.2/24"]);
    e2.reaches("10.9.1.1", LONG_TIMEOUT);
    assert!(c1.has_interface());
    claims(&["I-34", "P-6"]);
}

#[test]
fn separately_formed_rings_conflict() {
    let Some(lab) = Lab::start("groups", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    step("with a count that is too large peers wait and say where the count comes from");
    launch(h1, &["--init-peer-count", "10"], &["h2"]);
    launch(h2, &["--init-peer-count", "10"], &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    let outcome = assert_command_waits(h1, 7, &["prime"]);
    assert!(
        outcome.stderr.contains("6 of 10 peers must agree (the peer count given at launch, 10)"),
        "{outcome}"
    );
    assert!(h1.log().contains("quorum size of 6"), "{}", h1.log());
    claims(&["I-25"]);
    step("with a count of one each peer forms a ring");
    for host in [h1, h2] {
        host.weave_ok(&["stop"]);
    }
    lab.cut("h1", "h2");
    launch(h1, &["--init-peer-count", "1"], &["h2"]);
    launch(h2, &["--init-peer-count", "1"], &["h1"]);
    let ((c1, ip1), (_c2, ip2)) = (allocated_container(h1, "c1"), allocated_container(h2, "c2"));
    assert_eq!(ip1, ip2, "each has the whole range");
    lab.heal("h1", "h2");
    for host in [h1, h2] {
        host.wait("the conflict to be reported", LONG_TIMEOUT, || {
            let page = ipam_page(host);
            let reported = page.contains("seeded by different peers") && page.contains("'weave reset'");
            if reported { Ok(()) } else { Err(page) }
        });
        assert!(host.log().contains("seeded by different peers"));
    }
    step("rings are not mixed, connections stay, and data flows");
    allocated_container(h1, "d1");
    allocated_container(h2, "d2");
    h1.container("e1").attach(&["10.9.1.1/24"]);
    let e2 = h2.container("e2");
    e2.attach(&["10.9.1.2/24"]);
    e2.reaches("10.9.1.1", LONG_TIMEOUT);
    assert!(c1.has_interface() && h1.connections().iter().any(|c| c.state == "established"));
    claims(&["I-26", "P-10", "S-10"]);
}
