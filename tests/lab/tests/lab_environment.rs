//! The lab itself, without the program under test.

use std::time::Duration;

use weave_lab::packet::{Checksum, Reassembly, checksum};
use weave_lab::{Lab, LabState, Topology};

const SHORT_TIMEOUT: Duration = Duration::from_secs(10);

fn pings(host: &weave_lab::Host, to: &str) -> bool {
    host.probe(&["ping", to, "--count", "2", "--wait-ms", "300", "--interval-ms", "20"])["received"] != 0
}

#[test]
fn wire_rules_block_and_restore_traffic() {
    let Some(lab) = Lab::start("wire", &Topology::hosts(3)) else { return };
    let (h1, h2, h3) = (lab.host("h1"), lab.host("h2"), lab.host("h3"));
    assert!(pings(h1, &h2.ip().to_string()) && pings(h3, &h1.ip().to_string()));
    assert_eq!(
        h1.sh("getent hosts h3; hostname").split_whitespace().collect::<Vec<_>>(),
        ["198.18.0.3", "h3", "h1"]
    );

    lab.cut("h1", "h2");
    assert!(!pings(h1, "198.18.0.2") && !pings(h2, "198.18.0.1"));
    assert!(pings(h1, "198.18.0.3") && pings(h3, "198.18.0.2"));
    lab.heal("h1", "h2");
    assert!(pings(h1, "198.18.0.2"));

    lab.block("h1", "h2");
    assert!(!pings(h1, "198.18.0.2") && pings(h2, "198.18.0.1"));
    lab.heal_all();

    lab.firewall("h3", &["tcp:7100"]);
    let _allowed = h3.probe_background(&["tcp-serve", "--port", "7100"]);
    let _refused = h3.probe_background(&["tcp-serve", "--port", "7101"]);
    let send = |port: &str, connect_ms: &str| {
        h1.command(&[
            std::env!("CARGO_BIN_EXE_lab"),
            "probe",
            "tcp-send",
            "198.18.0.3",
            "--port",
            port,
            "--bytes",
            "1000",
            "--connect-ms",
            connect_ms,
        ])
        .stdout
        .contains("\"ok\":true")
    };
    assert!(send("7100", "10000") && !send("7101", "300"));
    lab.heal_all();
    assert!(send("7101", "10000"));

    lab.loss("h2", 1.0);
    assert!(!pings(h1, "198.18.0.2"));
}

#[test]
fn host_behind_nat_can_connect_but_not_be_reached() {
    let Some(lab) = Lab::start("nat", &Topology::hosts(1).and_behind_nat()) else { return };
    let (h1, h2) = (lab.host("h1"), lab.host("h2"));
    let _server = h1.probe_background(&["tcp-serve", "--port", "7100"]);
    let result = h2.probe(&["tcp-send", "198.18.0.1", "--port", "7100", "--bytes", "100000"]);
    assert_eq!(result["ok"], true, "{result}");
    let _hidden = h2.probe_background(&["tcp-serve", "--port", "7100"]);
    let dial = h1.command(&["bash", "-c", "echo > /dev/tcp/198.18.0.2/7100"]);
    assert!(!dial.success(), "{dial}");
}

#[test]
fn path_mtu_sends_icmp_only_when_asked() {
    let Some(lab) = Lab::start("mtu", &Topology::hosts(2)) else { return };
    let (h1, h2) = (lab.host("h1"), lab.host("h2"));
    let ping = |host: &weave_lab::Host, to: &str| {
        host.command(&["ping", "-M", "do", "-c", "2", "-i", "0.1", "-W", "1", "-s", "1400", to])
    };
    assert!(ping(h1, "h2").success() && ping(h2, "h1").success());
    lab.path_mtu("h2", 1300, true);
    for (host, to) in [(h1, "h2"), (h2, "h1")] {
        let outcome = ping(host, to);
        assert!(!outcome.success() && format!("{outcome}").contains("mtu"), "{outcome}");
    }
    h1.sh("ip route flush cache");
    lab.path_mtu("h2", 1200, false);
    let untold = ping(h1, "h2");
    assert!(!untold.success() && !format!("{untold}").contains("mtu=1200"), "{untold}");
    // Packets that may be fragmented still pass.
    let _server = h2.probe_background(&["udp-serve", "--port", "7100"]);
    let result = h1.probe(&["udp-send", "198.18.0.2", "--port", "7100", "--sizes", "1100"]);
    assert_eq!(result["ok"], true, "{result}");
}

#[test]
fn hosts_have_private_files_and_are_removed_with_the_lab() {
    let Some(lab) = Lab::start("disk", &Topology::hosts(2)) else { return };
    let (h1, h2) = (lab.host("h1"), lab.host("h2"));
    h1.sh("mkdir /var/lib/weave; echo mine > /var/lib/weave/x; mkdir -p /opt/cni/bin /etc/cni; touch /run/weave-x /var/log/weave.log");
    assert!(!h2.command(&["ls", "/var/lib/weave"]).success());
    assert!(!std::path::Path::new("/var/lib/weave/x").exists());
    assert_ne!(h1.sh("cat /etc/machine-id"), h2.sh("cat /etc/machine-id"));
    assert_eq!(std::fs::read_to_string(h1.disk("lib/weave/x")).unwrap(), "mine\n");

    let c1 = h1.container("c1");
    assert_eq!(h1.sh("ls /run/netns"), "c1\n");
    h1.sh("ip link add weave type bridge; iptables -w -N WEAVE; sleep 600 >/dev/null 2>&1 &");
    h1.reboot();
    let left = h1.snapshot();
    assert!(!left.contains("sleep") && !left.contains("WEAVE") && !left.contains("weave-x"), "{left}");
    assert!(!h1.command(&["kill", "-0", &c1.pid().to_string()]).success());
    assert_eq!(h1.sh("cat /var/lib/weave/x"), "mine\n");
    assert!(pings(h1, "h2".replace("h2", "198.18.0.2").as_str()));

    let (id, pids) = (lab.id().to_owned(), [h1.pid(), h2.pid()]);
    drop(lab);
    assert!(LabState::load(&id).is_err() && !LabState::dir(&id).exists());
    assert!(
        pids.iter().all(|pid| std::fs::read_link(format!("/proc/{pid}/ns/net")).is_err()),
        "a host outlives its lab"
    );
}

#[test]
fn probes_work_over_a_plain_bridge() {
    let Some(lab) = Lab::start("probes", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    h1.plain_bridge();
    let [a, b, c] = ["a", "b", "c"].map(|name| h1.container(name));
    for (container, cidr) in [(&a, "10.2.1.1/24"), (&b, "10.2.1.2/24"), (&c, "10.2.2.3/24")] {
        container.plug("weave", cidr);
    }
    a.reaches("10.2.1.2", SHORT_TIMEOUT);
    a.never_reaches("10.2.2.3");
    let pings = a.ping("10.2.1.2", 5);
    assert_eq!((pings.sent, pings.received, pings.duplicates, pings.ttl), (5, 5, 0, Some(64)));

    a.tcp(&b, "10.2.1.2", 3_000_001);
    a.udp(&b, "10.2.1.2", &[0, 1, 1000, 1472, 1473, 20_000, 65_000]);
    assert_eq!(a.arp("10.2.1.2"), [b.mac()]);
    assert!(a.arp("10.2.1.77").is_empty());

    let (_b, _c) = (b.listen_cast(Some("239.1.2.3")), c.listen_cast(None));
    assert_eq!(a.cast("239.1.2.3", 1), ["10.2.1.2"]);
    assert_eq!(a.cast("10.2.1.255", 1), ["10.2.1.2"]);

    for tagged in [false, true] {
        let (_b, _c) = (b.listen_raw(tagged), c.listen_raw(tagged));
        let mut both = vec![b.mac(), c.mac()];
        both.sort();
        let tags: &[u16] = if tagged { &[42, 43] } else { &[] };
        assert_eq!(a.raw("ff:ff:ff:ff:ff:ff", 1, tags, 2), both);
        assert_eq!(a.raw(&b.mac(), 1400, tags, 1), [b.mac()]);
    }
    // The probe notices lost tags: the echo server expects two.
    let _b = b.listen_raw(true);
    assert!(a.raw(&b.mac(), 100, &[43], 0).is_empty());

    let link_local = format!("{}%ethwe", b.link_local());
    a.reaches(&link_local, SHORT_TIMEOUT);

    let (capture, pinger, chat) = (b.capture(), a.pinging("10.2.1.2", 10), a.chat(&b, "10.2.1.2", 10));
    a.udp(&b, "10.2.1.2", &[5000]);
    a.ping("10.2.1.2", 5);
    let (pings, chatter, seen) = (pinger.finish(), chat.finish(), capture.finish());
    assert!(pings.received > 5 && pings.received == pings.sent, "{pings:?}");
    assert!(chatter.messages > 5 && chatter.broken.is_none(), "{chatter:?}");
    // Offloads are off in the containers, so what is captured has complete checksums.
    let mut whole = Reassembly::default();
    let verdicts: Vec<Checksum> =
        seen.frames().into_iter().flat_map(|f| [Some(checksum(f)), whole.add(f)]).flatten().collect();
    let good = verdicts.iter().filter(|v| matches!(v, Checksum::Good(_))).count();
    let bad: Vec<_> = verdicts.iter().filter(|v| matches!(v, Checksum::Bad(_))).collect();
    assert!(good > 20 && bad.is_empty(), "{good} good, {bad:?}");
}
