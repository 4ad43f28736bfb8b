//! Warp, the encrypted overlay between peers of this version.

use std::collections::BTreeSet;

use weave_lab::packet::Udp;
use weave_lab::{Host, Lab, Topology};

use crate::common::*;
use crate::password::{mac_bytes, name_bytes};

const PASSWORD: &[&str] = &["--password", "wEaVe"];

/// Distinctive payload: what `udp-cast` sends.
const TEXT: &[u8] = b"who is there?";

#[test]
fn a_password_means_warp_which_shows_nothing() {
    let Some(lab) = Lab::start("warp", &Topology::hosts(3)) else { return };
    launch_mesh(&lab, &[PASSWORD, &["--log-level=debug"]].concat());
    for host in lab.hosts() {
        wait_overlay(host, "warp");
        let connections = host.connections();
        assert!(connections.iter().all(|c| c.info.starts_with("encrypted")), "{connections:?}");
    }
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    check_all_traffic(&members);
    let [h1, h2] = ["h1", "h2"].map(|host| lab.host(host));
    let capture = lab.wire().capture("h1");
    let _ear = members[1].container.listen_cast(None);
    assert_eq!(members[0].container.cast(&members[1].ip, 1), [members[1].ip.clone()]);
    members[0].container.tcp(&members[1].container, &members[1].ip, 2_000_000);
    let seen = capture.finish();
    let datagrams = seen.datagrams();
    let warp = datagrams.iter().filter(|d| d.to_port == 6783 && d.payload.first() == Some(&0xf1)).count();
    assert!(warp > 50, "{warp} datagrams of warp");
    for needle in [TEXT, &mac_bytes(&members[0].container.mac()), &mac_bytes(&members[1].container.mac())] {
        assert_eq!(seen.count(needle), 0, "{needle:02x?} is readable");
    }
    // Heartbeats of sleeve have the sender's name in the clear, those of warp and data have none.
    let names = [h1, h2].map(name_bytes);
    for datagram in datagrams.iter().filter(|d| d.payload.first() == Some(&0xf1)) {
        let has = |name: &Vec<u8>| datagram.payload.windows(name.len()).any(|window| window == &name[..]);
        assert!(!names.iter().any(has), "{:02x?}", datagram.payload);
    }
    for host in lab.hosts() {
        let told = [host.log(), host.report().unwrap().to_string(), host.weave_ok(&["status"])];
        assert!(!told.iter().any(|text| text.contains(PASSWORD[1])), "the password is shown: {told:?}");
    }
}

#[test]
fn a_new_password_ends_what_the_last_daemon_forwarded_in_the_clear() {
    let Some(lab) = Lab::start("warplater", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|host| lab.host(host));
    launch_mesh(&lab, &[]);
    wait_overlay(h1, "fastdp");
    let members = attach_each(&[h1, h2]);
    let (from, to) = (&members[0], &members[1]);
    from.container.reaches(&to.ip, SHORT_TIMEOUT);
    let _ear = to.container.listen_cast(None);
    let readable = || {
        let capture = lab.wire().capture("h2");
        assert_eq!(from.container.cast(&to.ip, 1), [&*to.ip]);
        capture.finish().count(TEXT)
    };
    assert!(readable() > 0);
    h1.weave_ok(&["stop"]);
    h2.weave_ok(&["stop"]);
    launch(h1, PASSWORD, &[]);
    launch(h2, PASSWORD, &["h1"]);
    h1.wait_established(1, LONG_TIMEOUT);
    h2.wait_established(1, LONG_TIMEOUT);
    assert_eq!(readable(), 0, "frames in the clear");
}

#[test]
fn warp_without_a_password_is_not_called_encrypted() {
    let Some(lab) = Lab::start("warpplain", &Topology::hosts(2)) else { return };
    launch_mesh(&lab, &["--no-fastdp", "--mtu", "1376"]);
    for host in lab.hosts() {
        wait_overlay(host, "warp");
        let connections = host.connections();
        assert!(connections.iter().all(|c| c.info.starts_with("warp ")), "{connections:?}");
    }
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    check_all_traffic(&members);
}

#[test]
fn peers_without_warp_use_sleeve_and_relay() {
    let Some(lab) = Lab::start("warpmixed", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|host| lab.host(host));
    launch(h1, PASSWORD, &[]);
    launch(h2, PASSWORD, &["h1"]);
    launch(h3, &[PASSWORD, &["--overlays=sleeve"]].concat(), &["h1"]);
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
    }
    wait_overlay(h3, "sleeve");
    h1.wait("warp to h2 and sleeve to h3", LONG_TIMEOUT, || {
        let list = h1.connections();
        let to = |host, overlay| {
            let name = name_of(host);
            list.iter().any(|c| c.info.contains(overlay) && c.info.contains(&name))
        };
        if to(h2, "warp") && to(h3, "sleeve") { Ok(()) } else { Err(format!("{list:?}")) }
    });
    let members = attach_each(&[h1, h2, h3]);
    check_all_traffic(&members);
    step("from warp to sleeve at a relay, and back");
    lab.cut("h2", "h3");
    wait_route(h2, h3, h1);
    check_all_traffic(&members);
}

/// Threads with one name, and how often each has waited for something.
fn waits(host: &Host, thread: &str) -> Vec<u64> {
    let pid = host.daemon_pid().expect("the daemon runs");
    let tasks = host.sh(&format!(
        "cd /proc/{pid}/task; for t in $(grep -lx {thread} */comm | cut -d/ -f1); do \
           sed -n 's/^voluntary_ctxt_switches:[[:space:]]*//p' $t/status; done"
    ));
    tasks.lines().map(|count| count.parse().expect("a number")).collect()
}

#[test]
fn several_flows_use_several_threads() {
    let Some(lab) = Lab::start("warplanes", &Topology::hosts(3)) else { return };
    let [h1, h2, h3] = ["h1", "h2", "h3"].map(|host| lab.host(host));
    let threads = |count| [PASSWORD, &["--data-threads", count]].concat();
    launch(h1, &threads("3"), &[]);
    launch(h2, &threads("2"), &["h1"]);
    launch(h3, &threads("1"), &["h1"]);
    for host in lab.hosts() {
        host.wait_established(2, LONG_TIMEOUT);
        wait_overlay(host, "warp");
    }
    assert_eq!([h1, h2, h3].map(|host| waits(host, "weave-device").len()), [3, 2, 1]);
    let members = attach_each(&[h1, h2, h3]);
    let (from, to) = (&members[0], &members[1]);
    let receivers = waits(h2, "weave-udp");
    let capture = lab.wire().capture("h1");
    for _ in 0..40 {
        from.container.tcp(&to.container, &to.ip, 50_000);
    }
    let seen = capture.finish();
    let lanes = |host: &Host| -> BTreeSet<u8> {
        let datagrams = seen.datagrams().into_iter();
        let sent = |d: &Udp<'_>| d.from == host.ip() && d.payload.first() == Some(&0xf1);
        datagrams.filter(sent).map(|d| d.payload[3]).collect()
    };
    assert_eq!(lanes(h1), BTreeSet::from([0, 1, 2]), "forty flows of a peer with three threads");
    assert!(lanes(h2).is_subset(&BTreeSet::from([0, 1])), "{:?}", lanes(h2));
    let after = waits(h2, "weave-udp");
    assert_eq!(after.len(), 2);
    assert!(
        after.iter().zip(&receivers).all(|(after, before)| after > before),
        "{receivers:?}, then {after:?}"
    );
    step("a relay with other numbers of threads");
    lab.cut("h1", "h3");
    wait_route(h1, h3, h2);
    check_all_traffic(&members);
    for _ in 0..20 {
        from.container.tcp(&members[2].container, &members[2].ip, 50_000);
    }
}

#[test]
fn a_removed_tap_device_is_made_again() {
    let Some(lab) = Lab::start("warptap", &Topology::hosts(2)) else { return };
    let h1 = lab.host("h1");
    launch_mesh(&lab, PASSWORD);
    wait_overlay(h1, "warp");
    let members = attach_each(&lab.hosts().iter().collect::<Vec<_>>());
    let (from, to) = (&members[0], &members[1]);
    from.container.reaches(&to.ip, SHORT_TIMEOUT);
    for device in ["weavetap", "weaverelay"] {
        h1.sh(&format!("ip link del {device}"));
        from.container.reaches(&to.ip, SHORT_TIMEOUT);
    }
}
