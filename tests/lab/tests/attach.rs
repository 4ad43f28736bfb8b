//! Addresses of containers come and go.

use weave_lab::{Lab, Topology, claims};

use crate::common::*;

weave_lab::claims!("F-12", "F-13", "F-14", "F-15", "F-16");

#[test]
fn addresses_are_attached_and_detached() {
    let Some(lab) = Lab::start("attach", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &[]);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let (one, two) = (h2.container("one"), h2.container("two"));
    one.attach(&["10.2.1.101/24"]);
    two.attach(&["10.2.2.101/24"]);

    step("attach by pid and by namespace path");
    let c = h1.container("c");
    assert_eq!(h1.weave_ok(&["attach", "10.2.1.1/24", &c.by_pid()]), "10.2.1.1\n");
    one.reaches("10.2.1.1", SHORT_TIMEOUT);
    let again = h1.weave_ok(&["attach", "10.2.1.1/24", "netns:/run/netns/c"]);
    assert_eq!(again, "10.2.1.1\n", "attaching twice changes nothing");
    claims(&["F-12"]);

    step("a container in two networks");
    assert_eq!(c.attach(&["10.2.2.1/24"]), "10.2.2.1");
    two.reaches("10.2.2.1", SHORT_TIMEOUT);
    one.reaches("10.2.1.1", SHORT_TIMEOUT);
    two.never_reaches("10.2.1.1");
    claims(&["F-15"]);

    assert_eq!(c.detach(&["10.2.1.1/24"]), "10.2.1.1");
    one.never_reaches("10.2.1.1");
    two.reaches("10.2.2.1", SHORT_TIMEOUT);
    assert!(c.has_interface(), "another address is left");
    assert_eq!(c.detach(&["10.2.2.1/24"]), "10.2.2.1");
    assert!(!c.has_interface(), "the interface goes with the last address");
    let links = h1.command_ok(&["ip", "-o", "link"]);
    assert!(!links.contains("vethwepl"), "{links}");
    claims(&["F-13"]);

    step("move a container from one subnet to another");
    c.attach(&["10.2.1.1/24"]);
    one.reaches("10.2.1.1", SHORT_TIMEOUT);
    c.detach(&["10.2.1.1/24"]);
    c.attach(&["10.2.2.1/24"]);
    two.reaches("10.2.2.1", SHORT_TIMEOUT);
    one.never_reaches("10.2.2.1");
    c.never_reaches("10.2.1.101");
    claims(&["F-14"]);

    step("several addresses in one command");
    let d = h1.container("d");
    let three = ["10.2.2.21/24", "10.2.1.21/24", "10.2.3.21/24"];
    assert_eq!(d.attach(&three), "10.2.2.21 10.2.1.21 10.2.3.21");
    one.reaches("10.2.1.21", SHORT_TIMEOUT);
    two.reaches("10.2.2.21", SHORT_TIMEOUT);
    assert_eq!(d.detach(&three), "10.2.2.21 10.2.1.21 10.2.3.21");
    assert!(!d.has_interface());
    one.never_reaches("10.2.1.21");
    claims(&["F-16"]);
}

/// Prints how long it takes; `make bench` compares figures.
#[test]
fn hundred_containers_in_a_row_and_twenty_at_a_time() {
    let Some(lab) = Lab::start("many", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    let weave = weave_lab::weave_binary();
    let attach = |what: &str, loops: &str| {
        h1.sh("for i in $(seq 100); do ip netns add m$i; done");
        let begin = std::time::Instant::now();
        h1.sh(loops);
        println!("100 attachments {what}: {:?}", begin.elapsed());
        let attached = h1.weave_ok(&["ps"]);
        assert_eq!(attached.lines().filter(|l| l.starts_with("netns:m") && l.contains("/12")).count(), 100);
        h1.sh("for i in $(seq 100); do ip netns del m$i; done");
    };
    attach("in a row", &format!("for i in $(seq 100); do {weave} attach netns:m$i; done"));
    attach(
        "20 at a time",
        &format!(
            "for n in 0 20 40 60 80; do for i in $(seq 20); do {weave} attach netns:m$((n + i)) & done; wait; done"
        ),
    );
}

#[test]
fn same_container_is_attached_twice_at_the_same_time() {
    let Some(lab) = Lab::start("twice", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let _c = h1.container("c");
    launch(h1, &[], &[]);
    let weave = weave_lab::weave_binary();
    for _ in 0..5 {
        // Each of the commands succeeds and has its own address attached.
        h1.sh(&format!(
            "for i in 1 2 3 4; do {weave} attach 10.2.1.$i/24 netns:c & pids=\"$pids $!\"; done; for p in $pids; do wait $p; done"
        ));
        let attached = h1.weave_ok(&["ps", "netns:c"]);
        for i in 1..5 {
            assert!(attached.contains(&format!(" 10.2.1.{i}/24")), "{attached}");
        }
        h1.sh(&format!("{weave} detach 10.2.1.1/24 10.2.1.2/24 10.2.1.3/24 10.2.1.4/24 netns:c"));
    }
}
