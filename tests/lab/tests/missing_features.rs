//! A kernel or a sandbox without a required feature causes an error of one line with the remedy, and changes nothing. A missing
//! optional feature gives a notice at most.

use weave_lab::{Host, Lab, Outcome, Topology, claims, weave_binary};

use crate::common::*;

weave_lab::claims!("S-1");

/// The command must fail with one line that contains all the `words`, and change nothing.
#[track_caller]
fn refused(host: &Host, words: &[&str], run: impl FnOnce() -> Outcome) {
    let before = host_state(host);
    let outcome = run();
    assert!(!outcome.timed_out && outcome.code.is_some_and(|c| c != 0), "has to be refused\n{outcome}");
    assert_eq!(outcome.stdout, "", "{outcome}");
    assert_eq!(outcome.stderr.lines().count(), 1, "one line has to tell\n{outcome}");
    for word in words {
        assert!(outcome.stderr.contains(word), "`{word}` has to be named\n{outcome}");
    }
    let changes = differences(&before, &host_state(host));
    assert!(changes.is_empty(), "nothing may change\n{changes:#?}\n{outcome}");
}

/// The program without a capability.
fn incapable<'a>(capability: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    let mut argv = vec!["setpriv", "--bounding-set", capability, "--inh-caps", capability, weave_binary()];
    argv.extend(args);
    argv
}

const READ_ONLY: &str =
    "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec \"$@\"";

/// Makes the files that `mount` keeps.
fn prepare(host: &Host) {
    host.sh("mkdir -p /run/mount");
}

/// The program where `/proc/sys` is read-only, as in a container without privileges.
fn read_only<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let mut argv = vec!["unshare", "-m", "sh", "-c", READ_ONLY, "sh", weave_binary()];
    argv.extend(args);
    argv
}

#[test]
fn launch_reports_missing_features() {
    let Some(lab) = Lab::start("lacks", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    prepare(h1);
    let launch = ["launch", "--no-restart"];
    for (feature, words) in [
        ("packet", &["lacks packet sockets", "CONFIG_PACKET"]),
        ("packet-vnet", &["lacks PACKET_VNET_HDR", "later kernel"]),
        ("netlink", &["lacks netlink sockets", "CONFIG_NET"]),
    ] {
        refused(h1, words, || h1.weave_without(feature, &launch));
    }
    refused(h1, &["permission denied", "NET_ADMIN"], || h1.command(&incapable("-net_admin", &launch)));
    refused(h1, &["permission denied", "NET_RAW"], || h1.command(&incapable("-net_raw", &launch)));
    refused(h1, &["read-only", "/proc/sys"], || h1.command(&read_only(&launch)));

    step("optional features");
    for feature in ["bpf", "udp-gro"] {
        h1.weave_without(feature, &launch).expect_ok();
        let filters = h1.sh("tc filter show dev vethwe-datapath ingress");
        let reported = h1.log().contains("own network stack sees");
        assert!(reported || !filters.is_empty(), "neither dropped nor logged\n{}", h1.log());
        h1.weave_ok(&["stop"]);
        h1.weave_ok(&["reset"]);
    }
    h1.weave_ok(&launch);
    claims(&["S-1"]);
}

#[test]
fn attach_reports_missing_features() {
    let Some(lab) = Lab::start("lacks2", &Topology::hosts(1)) else { return };
    launch_mesh(&lab, &[]);
    let h1 = lab.host("h1");
    prepare(h1);
    let c = h1.container("c");
    // While no daemon runs, the command changes the host itself.
    h1.weave_ok(&["stop"]);
    let attach = ["attach", "10.2.1.1/24", "netns:c"];
    let features = [
        ("packet", &["lacks packet sockets", "CONFIG_PACKET"][..]),
        ("netlink", &["lacks netlink sockets"]),
        ("setns", &["lacks network namespaces"]),
    ];
    for (feature, words) in features {
        refused(h1, words, || h1.weave_without(feature, &attach));
    }
    refused(h1, &["permission denied"], || h1.command(&incapable("-net_admin", &attach)));
    refused(h1, &["permission denied"], || h1.command(&incapable("-net_raw", &attach)));
    refused(h1, &["permission denied"], || h1.command(&incapable("-sys_admin", &attach)));
    refused(h1, &["read-only", "/proc/sys"], || h1.command(&read_only(&attach)));
    assert!(!c.has_interface());
    h1.weave_ok(&attach);
    let detach = ["detach", "10.2.1.1/24", "netns:c"];
    for (feature, words) in &features[1..] {
        refused(h1, words, || h1.weave_without(feature, &detach));
    }
    refused(h1, &["permission denied"], || h1.command(&incapable("-net_admin", &detach)));
    h1.weave_ok(&detach);
    assert!(!c.has_interface());
}
