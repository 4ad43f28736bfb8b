//! Helpers of many tests.

pub mod addresses;
pub mod cni;
pub mod docker;
pub mod engines;
pub mod names;
pub mod original;

use std::collections::BTreeSet;
use std::time::Duration;

pub use weave_lab::step;
use weave_lab::{Container, Host, Lab};

/// For events that need no waiting of a protocol, on a busy machine.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(15);

/// For events that include back-off, heartbeats or retries of a protocol.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(90);

/// Launches the peers of a lab one after the other, with the address of the first one, and waits for the full mesh.
pub fn launch_mesh(lab: &Lab, options: &[&str]) {
    for (i, host) in lab.hosts().iter().enumerate() {
        launch(host, options, if i == 0 { &[] } else { &["h1"] });
    }
    for host in lab.hosts() {
        host.wait_established(lab.hosts().len() - 1, LONG_TIMEOUT);
    }
}

/// Waits until all connections of the peer use this overlay.
pub fn wait_overlay(host: &Host, overlay: &str) {
    host.wait(&format!("connections to use {overlay}"), LONG_TIMEOUT, || {
        let list = host.connections();
        let all = !list.is_empty() && list.iter().all(|c| c.info.contains(overlay));
        if all { Ok(()) } else { Err(format!("{list:?}")) }
    });
}

/// Launches the peers of a lab in a line: each has the address of the previous one, and hosts reach their neighbours only.
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
        host.wait_established(2 - ends, LONG_TIMEOUT);
        wait_peers(host, hosts.len());
    }
}

/// Launches the four peers of a lab in a square: h1 and h3 reach h2 and h4 only.
pub fn launch_square(lab: &Lab, options: &[&str]) {
    lab.cut("h1", "h3");
    lab.cut("h2", "h4");
    for (host, peers) in [("h1", &[][..]), ("h2", &["h1"]), ("h4", &["h1"]), ("h3", &["h2", "h4"])] {
        launch(lab.host(host), options, peers);
    }
    for host in lab.hosts() {
        wait_peers(host, 4);
        host.wait_established(2, LONG_TIMEOUT);
    }
}

/// A host's peer name.
pub fn name_of(host: &Host) -> String {
    host.report().unwrap()["Router"]["Name"].as_str().unwrap().to_owned()
}

/// The neighbour over which `host` sends to the peer `to`.
pub fn via(host: &Host, to: &str) -> Result<String, String> {
    let report = host.report()?;
    let routes = report["Router"]["UnicastRoutes"].as_array().ok_or("no routes")?;
    let route = routes.iter().find(|r| r["Dest"] == to).ok_or("no route")?;
    Ok(route["Via"].as_str().unwrap_or_default().to_owned())
}

/// Waits until `from` sends to `to` by way of the neighbour `over`, which is `to` itself for a direct route.
pub fn wait_route(from: &Host, to: &Host, over: &Host) {
    let [to_name, over_name] = [to, over].map(name_of);
    let what = format!("{} to be reached over {}", to.name(), over.name());
    from.wait(&what, LONG_TIMEOUT, || {
        let way = via(from, &to_name)?;
        if way == over_name { Ok(()) } else { Err(way) }
    });
}

/// `weave launch` with options before the peers, without a supervisor, so that a killed daemon is not restarted.
pub fn launch(host: &Host, options: &[&str], peers: &[&str]) {
    let mut args = vec!["launch", "--no-restart"];
    args.extend(options);
    args.extend(peers);
    host.weave_ok(&args);
}

/// Waits until a peer knows `n` peers, itself included.
pub fn wait_peers(host: &Host, n: usize) {
    host.wait("known peers", LONG_TIMEOUT, || {
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

/// A container outside of the container network, on a link to the host of its own, which is `device` in the host.
pub fn external_network(host: &Host, name: &str, device: &str, own: &str, theirs: &str) -> Container {
    let container = host.container(name);
    let (pid, gateway) = (container.pid(), own.split('/').next().unwrap());
    host.sh(&format!(
        "ip link add {device} type veth peer name eth0 netns {pid}; ip addr add {own} dev {device}; ip link set {device} up"
    ));
    let inside = format!(
        "ip addr add {theirs} dev eth0; ip link set eth0 up; ip route add default via {gateway} 2>/dev/null || true"
    );
    container.command_ok(&["sh", "-ec", &inside]);
    container
}

/// Checks all kinds of Ethernet traffic between every pair of containers in both directions.
pub fn check_all_traffic(members: &[Member]) {
    for (a, b) in ordered_pairs(members) {
        a.container.reaches(&b.ip, SHORT_TIMEOUT);
    }
    for (a, b) in ordered_pairs(members) {
        let (a, to) = (&a.container, &b.container);
        let pings = a.ping(&b.ip, 3);
        assert_eq!((pings.received, pings.duplicates, pings.ttl), (3, 0, Some(64)), "{a:?} -> {}", b.ip);
        assert_eq!(a.arp(&b.ip), [to.mac()], "who has {}", b.ip);
        a.tcp(to, &b.ip, 500_000);
        a.udp(to, &b.ip, &[0, 1, 100, 1347, 1348, 1349, 1472, 9000, 65_000]);
        a.reaches(&format!("{}%ethwe", to.link_local()), SHORT_TIMEOUT);
    }
    check_broadcasts(members);
}

/// Checks broadcast, multicast and frames that are not IP.
pub fn check_broadcasts(members: &[Member]) {
    let (group, broadcast) = ("239.255.7.7", "10.2.1.255");
    {
        let _ears: Vec<_> = members.iter().map(|m| m.container.listen_cast(Some(group))).collect();
        for m in members {
            let mut others: Vec<String> =
                members.iter().filter(|o| o.ip != m.ip).map(|o| o.ip.clone()).collect();
            others.sort();
            assert_eq!(m.container.cast(broadcast, others.len()), others, "broadcast from {}", m.ip);
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
pub fn ordered_pairs(members: &[Member]) -> impl Iterator<Item = (&Member, &Member)> {
    members.iter().flat_map(move |a| members.iter().filter(|b| b.ip != a.ip).map(move |b| (a, b)))
}

/// Prints links, addresses, routes and rules, traffic control, firewall, and the sysctls that weave changes, of a network namespace.
/// It starts few processes, because it runs thousands of times.
const NETWORK: &str = r"printf 'link\naddr\nroute show table all\nrule\n' | ip -o -d -force -batch - 2>&1
printf 'qdisc\nfilter show dev vethwe-datapath ingress\n' | tc -force -batch - 2>&1; iptables-save
cd /proc/sys/net; grep -Hs . ipv[46]/conf/*/accept_ra ipv6/conf/*/disable_ipv6 ipv4/conf/*/arp_ignore ipv4/conf/*/promote_secondaries ipv4/conf/*/rp_filter ipv4/conf/*/forwarding ipv4/conf/*/route_localnet bridge/bridge-nf-call-iptables ipv4/neigh/*/base_reachable_time ipv4/neigh/*/delay_first_probe_time ipv4/neigh/*/ucast_solicit";

/// Prints the files and processes of the peer, the stored state of the host, the network of the host (by the script in the argument),
/// and that of its container `c`. A program that the daemon starts has the name of a thread, such
/// as `weave-host`, for a moment: only `weave` counts.
const STATE: &str = r"find /run /var/lib/weave -mindepth 1 ! -name '*.lock' 2>/dev/null
grep -hs '(weave)' /proc/[0-9]*/stat; cat /var/lib/weave/host.json 2>/dev/null
sh -c $0; [ ! -e /run/netns/c ] || { echo CONTAINER; nsenter --net=/run/netns/c sh -c $0; }";

/// Everything on the host, and in the container `c` if there is one, that a failed command must not change.
pub fn host_state(host: &Host) -> String {
    let text = host.command(&["sh", "-c", &STATE.replace("$0", "\"$0\""), NETWORK]).stdout;
    let (mut lines, mut place) = (Vec::new(), "");
    for line in text.lines() {
        if line == "CONTAINER" {
            place = "c: ";
        } else if let Some(line) = stable_fields(line) {
            lines.push(format!("{place}{line}"));
        }
    }
    lines.sort_unstable();
    lines.join("\n")
}

/// A line without values that change by themselves or that the kernel chooses: timers, numbers of links and processes, addresses of
/// veth devices, IPv6 addresses and routes, counters.
fn stable_fields(line: &str) -> Option<String> {
    // Of a live process only the name.
    if let Some((name, rest)) = line.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") "))
        && !line.contains(':')
    {
        return (!rest.starts_with('Z')).then(|| name.to_owned());
    }
    let noise =
        ["fe80", "ff00:", "ff00::/8", "linkdown", "local ::", "multicast ", ":INPUT", "Command failed"];
    if line.starts_with(['#', '*']) || line == "COMMIT" || noise.iter().any(|n| line.contains(n)) {
        return None;
    }
    // Our chains without their counters, and no policies.
    if let Some(chain) = line.strip_prefix(':') {
        return chain.starts_with("WEAVE").then(|| chain.split(' ').next().unwrap_or_default().to_owned());
    }
    let mut words: Vec<&str> = line.split_whitespace().collect();
    if words.first().is_some_and(|w| w.trim_end_matches(':').parse::<u32>().is_ok())
        && !line.contains("lookup")
    {
        words.remove(0);
    }
    // The carrier of a TAP device tells whether the daemon runs.
    let no_carrier = |word: &&str| !["NO-CARRIER", "state", "DOWN", "UP", "UNKNOWN"].contains(word);
    if words.contains(&"tun") {
        words.retain(|word| no_carrier(word) && !word.starts_with('<'));
    }
    let veth = ["veth", "tun", "vxlan"].iter().any(|kind| words.contains(kind));
    let mut kept: Vec<String> = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let unsteady = word.ends_with("_timer")
            || [
                "link-netnsid",
                "promiscuity",
                "port_id",
                "port_no",
                "valid_lft",
                "preferred_lft",
                "id",
                "refcnt",
            ]
            .contains(&word)
            || word.starts_with("designated_")
            || (word == "link/ether" && veth);
        if unsteady {
            words.next();
        } else if let Some((name, _)) = word.split_once('@') {
            kept.push(name.to_owned());
        } else {
            kept.push(word.to_owned());
        }
    }
    Some(kept.join(" "))
}

/// The lines that only one of the texts has.
pub fn differences(before: &str, after: &str) -> Vec<String> {
    let only = |sign, a: &str, b: &str| {
        let others: BTreeSet<&str> = b.lines().collect();
        let left = a.lines().filter(|l| !others.contains(l));
        left.map(|l| format!("{sign}{l}")).collect::<Vec<_>>()
    };
    [only('-', before, after), only('+', after, before)].concat()
}
