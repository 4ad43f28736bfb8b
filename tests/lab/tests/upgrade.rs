//! Migration from 2.8.1 and back. The tests do not have 2.8.1: they make by hand what it leaves on a host, from recordings
//! (`tests/vectors`), and a `sleep` with the name of its daemon stands for the daemon.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use weave_lab::packet::{Checksum, checksum};
use weave_lab::{Container, Host, Lab, Topology, claims};

use crate::common::addresses::*;
use crate::common::original::*;
use crate::common::*;

weave_lab::claims!("P-12");

const DATABASE_PATH: &str = "/var/lib/weave/weavedata.db";

/// The sample database with another direct peer. BoltDB has no checksum of values.
fn database(peer: &[u8; 8]) -> Vec<u8> {
    let mut bytes = SAMPLE_DATABASE.to_vec();
    let places: Vec<usize> =
        (0..bytes.len() - 8).filter(|&i| bytes[i..].starts_with(b"\x0810.0.0.1\x0d")).collect();
    let [place] = places[..] else { panic!("the sample lists its peers at {places:?}") };
    bytes[place + 1..place + 9].copy_from_slice(peer);
    bytes
}

fn write_database(host: &Host, bytes: &[u8]) {
    host.sh("mkdir -p /var/lib/weave");
    std::fs::write(host.disk("lib/weave/weavedata.db"), bytes).unwrap();
}

/// Device, addresses, routes and rules of a container, which must not change.
fn picture(container: &Container) -> String {
    let script = "ip -o link show ethwe | sed 's/ state .*//'; ip -o link show ethwe | grep -o 'link/ether [^ ]*'; \
                  ip -4 -o addr; ip route; iptables -w -S | grep -v igmp; ethtool -k ethwe | grep '^tx-checksumming'";
    container.command_ok(&["sh", "-ec", script])
}

fn targets(host: &Host) -> String {
    host.weave_ok(&["status", "targets"])
}

#[test]
fn host_migrates_from_2_8_1_and_back() {
    let Some(lab) = Lab::start("original", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    launch(h1, &[], &[]);
    let far = h1.container("far");
    far.attach(&["10.2.1.1/24"]);

    h2.sh("echo '198.18.0.1 host-one host-two' >>/etc/hosts");
    devices_of_the_original(h2);
    write_database(h2, &database(b"host-one"));
    let members = ["10.2.1.2/24", "10.2.1.3/24"].map(|cidr| {
        let name = format!("c{}", &cidr[7..8]);
        attach_of_the_original(h2, &name, cidr)
    });
    let [a, b] = &members;
    a.reaches("10.2.1.3", SHORT_TIMEOUT);
    let before = [picture(a), picture(b)];

    step("2.8.1 is running");
    h2.sh("mkdir /run/bin; cp $(which sleep) /run/bin/weaver; (exec /run/bin/weaver 600) >/dev/null 2>&1 &");
    h2.wait("the original's daemon", SHORT_TIMEOUT, || h2.command(&["pidof", "weaver"]).success());
    let untouched = h2.snapshot();
    let refused = h2.weave(&["launch", "host-one"]);
    assert_eq!(refused.code, Some(3), "{refused}");
    assert!(
        refused.stderr.contains("(process ") && refused.stderr.contains("launch --take-over"),
        "{refused}"
    );
    assert_eq!(refused.stderr.lines().count(), 1, "{refused}");
    assert_eq!(h2.snapshot(), untouched);

    step("a launch that cannot work does not touch 2.8.1");
    write_database(h2, b"damaged");
    let refused = h2.weave(&["launch", "--take-over"]);
    assert!(!refused.success() && refused.stderr.contains(DATABASE_PATH), "{refused}");
    assert!(h2.command(&["pidof", "weaver"]).success(), "the original goes on");
    write_database(h2, &database(b"host-one"));
    let refused = h2.weave(&["launch", "--take-over"]);
    let named = ["10.2.0.0/24", "10.32.0.0/12", "--ipalloc-range", "--give-up-addresses"];
    assert!(!refused.success() && named.iter().all(|n| refused.stderr.contains(n)), "{refused}");
    assert!(h2.command(&["pidof", "weaver"]).success(), "the original goes on");
    assert_eq!(h2.snapshot(), untouched);

    let inside = a.pinging("10.2.1.3", 50);
    let other = ["--ipalloc-range", "10.32.0.0/12", "--give-up-addresses"];
    let taken = h2.weave(&[&["launch", "--no-restart", "--take-over"], &other[..]].concat());
    assert!(taken.success() && taken.stdout.trim() == NAME, "{taken}");
    assert!(taken.stderr.contains("stopped the original Weave Net (process "), "{taken}");
    assert!(!h2.command(&["pidof", "weaver"]).success());
    h2.wait_established(1, LONG_TIMEOUT);
    far.reaches("10.2.1.2", SHORT_TIMEOUT);
    b.reaches("10.2.1.1", SHORT_TIMEOUT);
    let inside = inside.finish();
    assert!(inside.longest_gap_ms < 1500.0, "containers on the host never notice: {inside:?}");

    let adopted = |when: &str| {
        assert_eq!(h2.report().unwrap()["Router"]["Name"], NAME, "{when}");
        assert_eq!([picture(a), picture(b)], before, "{when}");
        let bridge = h2.command_ok(&["ip", "-o", "addr", "show", "dev", "weave"]);
        assert!(bridge.contains(EXPOSED), "{when}: {bridge}");
        assert!(h2.sh("ip link show weave").contains("mtu 65535"), "{when}");
        assert!(!h2.command(&["ip", "link", "show", "vethwe-pcap"]).success(), "{when}");
        let mut table = "";
        for rule in RULES.lines() {
            match rule.strip_prefix("# table ") {
                Some(name) => table = name,
                None if !rule.starts_with("-A") => {}
                None => {
                    let rules = h2.command_ok(&["iptables", "-w", "-t", table, "-S"]);
                    let count = rules.lines().filter(|l| *l == rule).count();
                    assert_eq!(count, 1, "{when}, table {table}: {rule}\n{rules}");
                }
            }
        }
        let stored = std::fs::read(h2.disk("lib/weave/weavedata.db")).unwrap();
        assert!(stored == database(b"host-one"), "{when}: 2.8.1's database is only read");
    };
    adopted("taken over");
    a.host().wait("IGMP to be accepted in the container", SHORT_TIMEOUT, || {
        a.command_ok(&["iptables", "-w", "-S", "INPUT"]).contains("-i ethwe -p igmp -j ACCEPT")
    });
    assert_eq!(targets(h2), "10.0.0.2:6783\nhost-one\n");
    let log = h2.log();
    assert!(log.contains("using persisted peer list: [host-one 10.0.0.2:6783]"), "{log}");

    step("the database of 2.8.1 is not read again");
    h2.weave_ok(&["stop"]);
    launch(h2, &["--resume"], &[]);
    assert_eq!(targets(h2), "10.0.0.2:6783\nhost-one\n");
    h2.weave_ok(&["stop"]);
    launch(h2, &[], &["h1"]);
    h2.weave_ok(&["stop"]);
    launch(h2, &["--resume"], &[]);
    assert_eq!(targets(h2), "h1\n");
    adopted("launched again");
    h2.wait_established(1, LONG_TIMEOUT);

    step("handed back, bridge and containers are as 2.8.1 needs them");
    let c = h2.container("c4");
    c.attach(&["10.2.1.4/24"]);
    // The network of 2.8.1's plugin cannot be removed after a restart of Docker. The rest is done nevertheless.
    engine_that_keeps_networks(&h2.disk("lib/docker.sock"));
    let outcome = h2.weave_env(&[("DOCKER_HOST", "unix:///var/lib/docker.sock")], &["stop", "--hand-back"]);
    assert!(
        !outcome.success() && outcome.stderr.contains("'docker network rm weave' removes it"),
        "{outcome}"
    );
    assert!(outcome.stderr.contains("WEAVE_NO_FASTDP=1"), "{outcome}");
    assert_eq!([picture(a), picture(b)], before, "handed back");
    let aside = std::fs::read(h2.disk("lib/weave/weavedata.db.taken-over")).unwrap();
    assert!(aside == database(b"host-one"), "the outdated database is moved and unchanged");
    assert!(!h2.command(&["test", "-e", DATABASE_PATH]).success());
    h2.sh(UPLINK);
    c.reaches("10.2.1.2", SHORT_TIMEOUT);
    let (seen, _ear) = (h2.capture("vethwe-pcap"), a.listen_cast(None));
    assert_eq!(c.cast("10.2.1.255", 1), ["10.2.1.2"]);
    let seen = seen.finish();
    let verdicts: Vec<Checksum> = seen.frames().into_iter().map(checksum).collect();
    let count = |wanted: fn(&Checksum) -> bool| verdicts.iter().filter(|v| wanted(v)).count();
    assert!(count(|v| matches!(v, Checksum::Good(_))) > 0, "{verdicts:?}");
    assert_eq!(count(|v| matches!(v, Checksum::Bad(_))), 0, "{verdicts:?}");

    step("taken over again, with what 2.8.1 has stored since");
    write_database(h2, &database(b"host-two"));
    launch(h2, &["--give-up-addresses"], &[]);
    assert_eq!(targets(h2), "10.0.0.2:6783\nhost-two\n");
    h2.wait_established(1, LONG_TIMEOUT);
    far.reaches("10.2.1.4", SHORT_TIMEOUT);

    h2.weave_ok(&["reset"]);
    let left = h2.command(&["ls", "/var/lib/weave"]).stdout;
    assert!(left.is_empty(), "nothing is left to be taken over: {left}");
    assert!(!a.has_interface());
}

/// A container engine that has a network of 2.8.1's plugin, cannot remove it, and has no containers.
fn engine_that_keeps_networks(socket: &std::path::Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let (status, body) = match request.split(' ').collect::<Vec<_>>().as_slice() {
                ["GET", "/_ping", ..] => (200, "OK"),
                ["GET", path, ..] if path.starts_with("/networks/weave") => {
                    (200, r#"{"Id":"n1","Name":"weave","Driver":"weavemesh","Containers":{}}"#)
                }
                ["DELETE", path, ..] if path.starts_with("/networks/") => {
                    (500, r#"{"message":"cannot remove network"}"#)
                }
                ["GET", path, ..] if path.starts_with("/containers/json") => (200, "[]"),
                _ => (404, r#"{"message":"not found"}"#),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close");
            let _ = write!(stream, "{head}\r\n\r\n{body}");
        }
    });
}

#[test]
fn peers_are_upgraded_one_by_one() {
    let Some(lab) = Lab::start("upgrade", &Topology::hosts(2)) else { return };
    let _observer = DuplicateAddressMonitor::of(&lab);
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    step("the stored half of the range and the exposed address are kept");
    write_database(h1, &stored_database());
    launch(h1, &["--name", STORED_PEER, "--ipalloc-range", "10.2.0.0/24"], &[]);
    assert!(h1.log().contains("initialising from persisted data, 128 addresses are ours"), "{}", h1.log());
    let page = ipam_page(h1);
    assert!(
        page.lines().any(|l| l.starts_with(STORED_PEER) && l.contains(" 128 IPs (50.0% of total)")),
        "{page}"
    );
    assert!(page.lines().any(|l| l.starts_with("02:00:00:00:00:0b") && l.contains("unreachable!")), "{page}");
    let owned = || h1.command_ok(&["curl", "-sS", "http://127.0.0.1:6784/ip"]);
    assert!(owned().contains("10.2.0.2/24") && owned().contains("weave:expose"), "{}", owned());
    let (a, ip) = allocated_container(h1, "a");
    assert_eq!(ip, "10.2.0.3", "those before it are in use, as 2.8.1 stored");

    step("a new peer joins");
    let name = "02:00:00:00:00:0b";
    launch(h2, &["--name", name, "--ipalloc-range", "10.2.0.0/24"], &["h1"]);
    h2.weave_ok(&["consense"]);
    wait_equal_rings(&[h1, h2], SHORT_TIMEOUT);
    let (b, _) = allocated_container(h2, "b");
    b.reaches(&ip, SHORT_TIMEOUT);

    step("another program file on one host after the other: same peers, same addresses");
    let local = h1.container("local");
    local.attach(&["10.9.1.1/24"]);
    let local2 = h1.container("local2");
    local2.attach(&["10.9.1.2/24"]);
    let inside = local.pinging("10.9.1.2", 50);
    let before =
        [h1, h2].map(|h| (ipam_page(h).lines().count(), h.report().unwrap()["Router"]["Name"].clone()));
    for (host, name, peer) in [(h1, STORED_PEER, "h2"), (h2, name, "h1")] {
        let newer = host.sh("mktemp -d /opt/newer.XXXX");
        let newer = format!("{}/weave", newer.trim());
        host.command_ok(&["cp", weave_lab::weave_binary(), &newer]);
        host.weave_ok(&["stop"]);
        let args = ["launch", "--no-restart", "--name", name, "--ipalloc-range", "10.2.0.0/24", peer];
        host.command_ok(&[&[newer.as_str()], &args[..]].concat());
        host.wait_established(1, LONG_TIMEOUT);
        b.reaches(&ip, SHORT_TIMEOUT);
    }
    let after =
        [h1, h2].map(|h| (ipam_page(h).lines().count(), h.report().unwrap()["Router"]["Name"].clone()));
    assert_eq!(before, after);
    assert_eq!(allocate(&a), ip);
    let inside = inside.finish();
    assert!(inside.longest_gap_ms < 1500.0, "containers on the host never notice: {inside:?}");
    assert_unique_addresses(&lab);
    claims(&["P-12"]);
}
