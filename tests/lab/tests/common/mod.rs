//! What most scenarios share.

use std::time::Duration;

use weave_lab::{Container, Host, Lab};

/// For what should happen at once, on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(15);

/// For what includes a protocol's own waiting (back-off, heartbeats, retries).
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Launches the peers of a lab one after the other, each but the first told of the first, and waits for the full mesh.
pub fn launch_mesh(lab: &Lab, options: &[&str]) {
    for (i, host) in lab.hosts().iter().enumerate() {
        launch(host, options, if i == 0 { &[] } else { &["h1"] });
    }
    for host in lab.hosts() {
        host.wait_established(lab.hosts().len() - 1, PATIENCE);
    }
}

/// Launches the hosts of a lab in a line: each is told of the one before it, and nobody reaches anybody else.
pub fn launch_line(lab: &Lab, options: &[&str]) {
    let hosts = lab.hosts();
    for (i, a) in hosts.iter().enumerate() {
        for b in &hosts[(i + 2).min(hosts.len())..] {
            lab.cut(a.name(), b.name());
        }
    }
    for (i, host) in hosts.iter().enumerate() {
        let before: Vec<&str> = i.checked_sub(1).map(|j| hosts[j].name()).into_iter().collect();
        launch(host, options, &before);
    }
    for (i, host) in hosts.iter().enumerate() {
        let ends = usize::from(i == 0) + usize::from(i + 1 == hosts.len());
        host.wait_established(2 - ends, PATIENCE);
        wait_peers(host, hosts.len());
    }
}

/// `weave launch` with options before the peers. Without a supervisor: who kills a daemon wants it to stay dead.
pub fn launch(host: &Host, options: &[&str], peers: &[&str]) {
    let mut args = vec!["launch", "--no-restart"];
    args.extend(options);
    args.extend(peers);
    host.weave_ok(&args);
}

/// Waits until a host knows of `n` peers, itself included.
pub fn wait_peers(host: &Host, n: usize) {
    host.wait("known peers", PATIENCE, || {
        let peers = host.report()?["Router"]["Peers"].as_array().map_or(0, Vec::len);
        if peers == n { Ok(()) } else { Err(format!("{peers} of {n} peers")) }
    });
}

/// A container of the lab with its address.
pub struct Member {
    pub container: Container,
    pub ip: String,
}

/// A container `cN` with address 10.2.1.N/24 on each of these hosts.
pub fn attach_each(hosts: &[&Host]) -> Vec<Member> {
    hosts
        .iter()
        .map(|host| {
            let number = host.name().trim_start_matches('h');
            let (container, ip) = (host.container(&format!("c{number}")), format!("10.2.1.{number}"));
            assert_eq!(container.attach(&[&format!("{ip}/24")]), ip);
            Member { container, ip }
        })
        .collect()
}

/// Everything that an Ethernet is used for, between every pair of containers in both directions.
pub fn exercise(members: &[Member]) {
    for (a, b) in pairs(members) {
        a.container.reaches(&b.ip, SOON);
    }
    for (a, b) in pairs(members) {
        let (a, to) = (&a.container, &b.container);
        let pings = a.ping(&b.ip, 3);
        assert_eq!((pings.received, pings.duplicates, pings.ttl), (3, 0, Some(64)), "{a:?} -> {}", b.ip);
        assert_eq!(a.arp(&b.ip), [to.mac()], "who has {}", b.ip);
        a.tcp(to, &b.ip, 500_000);
        a.udp(to, &b.ip, &[0, 1, 100, 1347, 1348, 1349, 1472, 9000, 65_000]);
        a.reaches(&format!("{}%ethwe", to.link_local()), SOON);
    }
    casts(members);
}

/// Broadcast, multicast and frames that are not IP.
pub fn casts(members: &[Member]) {
    let (group, everybody) = ("239.255.7.7", "10.2.1.255");
    {
        let _ears: Vec<_> = members.iter().map(|m| m.container.listen_cast(Some(group))).collect();
        for m in members {
            let mut others: Vec<String> =
                members.iter().filter(|o| o.ip != m.ip).map(|o| o.ip.clone()).collect();
            others.sort();
            assert_eq!(m.container.cast(everybody, others.len()), others, "broadcast from {}", m.ip);
            assert_eq!(m.container.cast(group, others.len()), others, "multicast from {}", m.ip);
        }
    }
    for tags in [&[][..], &[42, 43]] {
        let _ears: Vec<_> = members.iter().map(|m| m.container.listen_raw(!tags.is_empty())).collect();
        for m in members {
            let mut others: Vec<String> =
                members.iter().filter(|o| o.ip != m.ip).map(|o| o.container.mac()).collect();
            others.sort();
            let from = format!("raw frames, tags {tags:?}, from {}", m.ip);
            assert_eq!(m.container.raw("ff:ff:ff:ff:ff:ff", 1, tags, others.len()), others, "{from}");
            for other in &others {
                assert_eq!(
                    m.container.raw(other, 1300, tags, 1),
                    std::slice::from_ref(other),
                    "{from} to {other}"
                );
            }
        }
    }
}

/// Ordered pairs of different members.
pub fn pairs(members: &[Member]) -> impl Iterator<Item = (&Member, &Member)> {
    members.iter().flat_map(move |a| members.iter().filter(|b| b.ip != a.ip).map(move |b| (a, b)))
}
