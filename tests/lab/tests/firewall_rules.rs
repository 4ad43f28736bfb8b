//! The firewall rules of a host: installed, kept beside those of other programs, and removed completely.

use weave_lab::{Host, Lab, Topology};

use crate::common::*;

/// `iptables -S` of all tables, in the form of the recordings of 2.8.1.
fn listing(host: &Host) -> String {
    host.sh("for t in filter nat mangle; do echo \"# table $t\"; iptables -w -t $t -S; done")
}

fn vector(name: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../vectors/cli/");
    std::fs::read_to_string(format!("{path}{name}")).unwrap()
}

fn docker_bridge(host: &Host) {
    host.sh("ip link add docker0 type bridge; ip addr add 172.17.0.1/16 dev docker0; ip link set docker0 up");
}

#[test]
fn rules_equal_those_of_2_8_1() {
    let Some(lab) = Lab::start("rules", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    docker_bridge(h1);
    let fresh = listing(h1);
    // Here containers on the bridge weave are also served names.
    launch(h1, &[], &[]);
    let ours = ["udp", "tcp"].map(|p| format!("-A INPUT -i weave -p {p} -m {p} --dport 53 -j ACCEPT\n"));
    assert_eq!(listing(h1).replace(&ours.concat(), ""), vector("iptables-after-launch.txt"));
    assert!(listing(h1).contains(&ours.concat()));
    h1.weave_ok(&["stop"]);
    launch(h1, &["--no-dns"], &[]);
    assert_eq!(listing(h1), vector("iptables-after-launch.txt"));
    h1.weave_ok(&["expose", "10.32.0.1/12"]);
    assert_eq!(listing(h1), vector("iptables-after-expose.txt"));
    h1.weave_ok(&["hide", "10.32.0.1/12"]);
    assert_eq!(listing(h1), vector("iptables-after-launch.txt"));
    h1.weave_ok(&["stop"]);
    assert_eq!(listing(h1), vector("iptables-after-launch.txt"));
    launch(h1, &["--expect-npc", "--port", "7000", "--http-addr", "127.0.0.1:7001"], &[]);
    let npc = listing(h1);
    for rule in [
        "-A FORWARD -o weave -j DROP",
        "-A INPUT -i weave -j WEAVE-NPC-EGRESS",
        "--dport 7000",
        "--dport 7001",
    ] {
        assert!(npc.contains(rule), "{rule}\n{npc}");
    }
    assert!(!npc.contains("678") && !npc.contains("-j WEAVE-EXPOSE"), "{npc}");
    // Rules that only the stored state of the last run names are removed as well.
    h1.weave_ok(&["reset"]);
    assert_eq!(listing(h1), fresh);
    let refused = h1.weave(&["launch", "--docker-bridge", "nosuch"]);
    assert!(
        refused.stderr.contains("Failed to get netdev for \"nosuch\" bridge: Link not found"),
        "{refused}"
    );
    assert_eq!(listing(h1), fresh);
}

/// firewalld flushes everything and restores its own rules; Docker inserts rules at the top; an operator appends rules.
#[test]
fn rules_coexist_with_those_of_other_programs() {
    let Some(lab) = Lab::start("among", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    let theirs = "iptables -w -A INPUT -p tcp --dport 22 -j ACCEPT; iptables -w -A FORWARD -s 192.0.2.0/24 -j DROP; \
                  iptables -w -t nat -A POSTROUTING -s 192.0.2.0/24 -j MASQUERADE";
    h1.sh(theirs);
    launch(h1, &[], &[]);
    h1.weave_ok(&["expose", "10.2.1.102/24"]);
    let count = |pattern: &str| listing(h1).lines().filter(|l| l.contains(pattern)).count();
    let whole = listing(h1);
    let ours = whole.lines().filter(|l| l.to_lowercase().contains("weave")).count();
    let rounds = 3;
    for round in 0..rounds {
        h1.sh(&format!(
            "for t in filter nat mangle; do iptables -w -t $t -F; iptables -w -t $t -X; done; {theirs}"
        ));
        h1.sh("iptables -w -N DOCKER-USER; iptables -w -I FORWARD -j DOCKER-USER");
        h1.wait("the rules to come back", SHORT_TIMEOUT, || {
            let now = listing(h1);
            if now.lines().filter(|l| l.to_lowercase().contains("weave")).count() == ours {
                Ok(())
            } else {
                Err(now)
            }
        });
        assert_eq!(count("192.0.2.0/24"), 2, "round {round}: theirs are untouched\n{}", listing(h1));
    }
    let log = h1.log();
    assert!(log.matches("firewall rules are in place").count() >= rounds, "{log}");
    h1.weave_ok(&["reset"]);
    assert_eq!((count("192.0.2.0/24"), count("DOCKER-USER")), (2, 2));
    assert!(!listing(h1).to_lowercase().contains("weave"));
}

/// NetworkManager and systemd-networkd get files that exclude our devices; the bridge keeps its address, which is the peer name.
#[test]
fn network_managers_ignore_our_devices() {
    let Some(lab) = Lab::start("keepoff", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    // A peer on the machine that runs the tests has files there, too.
    h1.sh("rm -rf /etc/NetworkManager /etc/systemd/network && mkdir -p /etc/NetworkManager /etc/systemd/network");
    let files = || h1.sh("find /etc/NetworkManager /etc/systemd/network -type f | sort");
    let fresh = files();
    launch(h1, &[], &[]);
    for file in [
        "/etc/NetworkManager/conf.d/90-weave.conf",
        "/etc/systemd/network/05-weave.link",
        "/etc/systemd/network/05-weave.network",
    ] {
        assert!(files().contains(file), "{}", files());
        assert!(h1.sh(&format!("cat {file}")).contains("vethwe*"));
    }
    let name = h1.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned();
    h1.container("c").attach(&["10.2.1.1/24"]);
    assert!(h1.sh("ip -o link show weave").contains(&name));
    h1.weave_ok(&["reset"]);
    assert_eq!(files(), fresh);
}

/// With Docker's bridge as default route, containers do not reach another subnet through a host that is in both.
#[test]
fn exposing_hosts_do_not_join_subnets() {
    let Some(lab) = Lab::start("apart", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    docker_bridge(h1);
    launch(h1, &[], &[]);
    let [a, b] = ["10.2.1.1", "10.2.2.1"].map(|ip| {
        let container = h1.container(&format!("c{}", &ip[5..6]));
        container.attach(&[&format!("{ip}/24")]);
        let (pid, last) = (container.pid(), &ip[5..6]);
        h1.sh(&format!(
            "ip link add d{pid} type veth peer name eth0 netns {pid}; ip link set d{pid} master docker0 up"
        ));
        let inside = format!(
            "ip addr add 172.17.0.{last}1/16 dev eth0; ip link set eth0 up; ip route add default via 172.17.0.1"
        );
        container.command_ok(&["sh", "-ec", &inside]);
        container
    });
    h1.weave_ok(&["expose", "10.2.1.102/24", "10.2.2.102/24"]);
    a.reaches("10.2.1.102", SHORT_TIMEOUT);
    b.reaches("10.2.2.102", SHORT_TIMEOUT);
    a.never_reaches("10.2.2.1");
    b.never_reaches("10.2.1.1");
    step("containers do not reach the ports of the peer");
    let to_peer =
        a.probe(&["tcp-send", "172.17.0.1", "--port", "6783", "--bytes", "1", "--connect-ms", "500"]);
    assert_ne!(to_peer["ok"], true, "{to_peer}");
}

const HIDE_LEGACY: &str = "mount --bind /dev/null $(readlink -f /usr/sbin/iptables-legacy)";
const HIDE_IPTABLES: &str = "mount --bind /dev/null $(readlink -f /usr/sbin/iptables-nft)";
const HIDE_NFT: &str = "mount --bind /dev/null $(readlink -f /usr/sbin/nft)";

/// A host with `nft` only gets a table of ours; one without both programs works and logs what is missing.
#[test]
fn works_without_iptables() {
    let Some(lab) = Lab::start("nft", &Topology::hosts(2)) else { return };
    let [h1, h2] = ["h1", "h2"].map(|h| lab.host(h));
    let ruleset = || h1.sh("nft -s list ruleset");
    let fresh = ruleset();
    h1.sh(&format!("{HIDE_LEGACY}; {HIDE_IPTABLES}"));
    launch(h1, &[], &[]);
    let c = h1.container("c");
    c.attach(&["10.2.1.1/24"]);
    h1.weave_ok(&["expose", "10.2.1.102/24"]);
    c.reaches("10.2.1.102", SHORT_TIMEOUT);
    let made = ruleset();
    assert!(made.contains("table ip weave {") && made.contains("ip saddr != 10.2.1.0/24"), "{made}");
    for rule in ["iifname \"weave\" udp dport 53 notrack", "oifname \"weave\" udp sport 53 notrack"] {
        assert!(made.contains(rule), "questions about names are tracked: {made}");
    }
    h1.sh("nft flush ruleset");
    h1.wait("our table", SHORT_TIMEOUT, || if ruleset() == made { Ok(()) } else { Err(ruleset()) });
    h1.weave_ok(&["hide", "10.2.1.102/24"]);
    assert!(!ruleset().contains("10.2.1.0/24"), "{}", ruleset());
    h1.weave_ok(&["reset"]);
    assert_eq!(ruleset(), fresh);

    h2.sh(&format!("{HIDE_LEGACY}; {HIDE_IPTABLES}; {HIDE_NFT}"));
    launch(h2, &[], &[]);
    assert!(h2.log().contains("neither iptables nor nft is installed"), "{}", h2.log());
    let c = h2.container("c");
    c.attach(&["10.2.1.1/24"]);
    h2.weave_ok(&["expose", "10.2.1.102/24"]);
    c.reaches("10.2.1.102", SHORT_TIMEOUT);
    h2.weave_ok(&["reset"]);
    assert!(!h2.sh("ip link").contains("weave"));
}

/// If the state cannot be stored or rules cannot be installed, nothing is exposed, and the next command works.
#[test]
fn failed_expose_changes_nothing() {
    let Some(lab) = Lab::start("whole", &Topology::hosts(1)) else { return };
    let h1 = lab.host("h1");
    launch(h1, &[], &[]);
    h1.weave_ok(&["expose", "10.2.1.102/24"]);
    let state = || listing(h1) + &h1.sh("ip -o -4 addr show dev weave; cat /var/lib/weave/host.json");
    let before = state();
    let broken = [
        ("mkdir /var/lib/weave/.host.json.new", "rmdir /var/lib/weave/.host.json.new", "host.json"),
        (
            "mount --bind /bin/false $(readlink -f /usr/sbin/iptables-nft)",
            "umount $(readlink -f /usr/sbin/iptables-nft)",
            "iptables",
        ),
    ];
    for (breaks, mends, word) in broken {
        h1.sh(breaks);
        for call in [
            &["expose", "10.2.2.102/24"][..],
            &["expose", "10.2.1.102/24", "--without-masquerade"],
            &["hide", "10.2.1.102/24"],
        ] {
            let failed = h1.weave(call);
            assert!(failed.code == Some(1) && failed.stderr.contains(word), "{call:?} {failed}");
            assert_eq!(failed.stdout, "");
        }
        h1.sh(mends);
        h1.wait("the state before", SHORT_TIMEOUT, || if state() == before { Ok(()) } else { Err(state()) });
    }
    h1.weave_ok(&["hide", "10.2.1.102/24"]);
    h1.weave_ok(&["expose", "10.2.2.102/24"]);
    let after = state();
    assert!(!after.contains("10.2.1.") && after.contains("10.2.2.102/24"), "{after}");
}
