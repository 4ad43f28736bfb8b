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
