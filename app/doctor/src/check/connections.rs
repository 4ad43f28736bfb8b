//! Connections to other peers, by what the daemon knows and by attempts of our own.

use std::net::SocketAddr;

use weave_api::report::Connection;

use crate::facts::{DialError, DialResult, Facts};
use crate::finding::Finding;
use crate::finding::Severity::{Error, Notice, Warning};

/// What an overlay of user space adds to an IP packet of a container, at most: with encryption and IPv6.
const MAX_OVERHEAD: u64 = 108;

/// The size that is assumed to pass while a search for the path MTU has no result yet.
const ASSUMED_MTU: u64 = 552;

const PASSWORD: [&str; 3] =
    ["Unable to decrypt TCP msg", "no password specificed", "password specified, but peer requested"];
const DUPLICATE_NAME: [&str; 3] =
    ["peer names collision", "another host has our name", "another host has the name of"];
const UNREACHABLE: [&str; 4] =
    ["i/o timeout", "connection refused", "no route to host", "network is unreachable"];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let connections = facts.report().map_or(&[][..], |report| &report.router.connections);
    let mut findings = Vec::new();
    for connection in connections {
        match connection.state.as_str() {
            "established" => established(facts, connection, &mut findings),
            "pending" => findings.extend(pending(facts, connection)),
            // A target that leads to a connected peer, or was not tried yet.
            "waiting" | "connecting" => {}
            _ => findings.extend(failed(facts, connection)),
        }
    }
    findings.extend(facts.dials.iter().filter_map(|result| dial(facts, result)));
    findings
}

fn label(connection: &Connection) -> String {
    match connection.name.as_str() {
        "" => connection.address.clone(),
        name => format!("{name}({}) at {}", connection.nick_name, connection.address),
    }
}

fn accept_command(protocol: &str, port: u16) -> String {
    format!("iptables -I INPUT -p {protocol} --dport {port} -j ACCEPT")
}

fn pending(facts: &Facts, connection: &Connection) -> Option<Finding> {
    let reason = connection.overlay_reason.as_ref()?;
    let port = facts.port;
    Some(Finding::new(
        Error,
        "udp-blocked",
        format!("UDP does not pass between this host and {}: {reason}", label(connection)),
        "there is no direct connection; other peers relay, if there are any",
        format!(
            "let UDP port {port} through in both directions, on both hosts ('{}') and in firewalls and security groups between them",
            accept_command("udp", port)
        ),
    ))
}

fn established(facts: &Facts, connection: &Connection, findings: &mut Vec<Finding>) {
    let peer = label(connection);
    let reason = connection.overlay_reason.as_deref().unwrap_or_default();
    let effect = "the connection uses a slower overlay";
    let has_problem = |texts: &[&str]| texts.iter().any(|text| reason.contains(text));
    if has_problem(&["UDP datagram"]) {
        findings.extend(pending(facts, connection).map(|finding| Finding { severity: Warning, ..finding }));
        return;
    }
    let path = path_mtu(facts, connection);
    let is_small = path.is_some() || has_problem(&["are not acknowledged", "exceed the MTU"]);
    if is_small {
        findings.push(small_mtu(facts, connection, path));
    }
    if has_problem(&["no heartbeats"]) {
        let port = facts.vxlan_port();
        findings.push(Finding::new(
            Warning,
            "vxlan-blocked",
            format!("VXLAN does not pass between this host and {peer}: {reason}"),
            effect,
            format!(
                "let UDP port {port} through in both directions, on both hosts ('{}') and between them",
                accept_command("udp", port)
            ),
        ));
    } else if has_problem(&["has failed"]) {
        findings.push(Finding::new(
            Warning,
            "unstable-path",
            format!("the path to {peer} fails from time to time: {reason}"),
            "each time traffic is interrupted, and goes by another path for a while",
            "look for what loses packets between the hosts: 'ip -s link' on both, 'mtr' to the other",
        ));
    } else if !reason.is_empty() && !is_small && !matches!(facts.fastdp, Some(Err(_))) {
        findings.push(Finding::new(
            Notice,
            "overlay",
            format!("the connection to {peer} does not use the best overlay: {reason}"),
            effect,
            "nothing, if that is wanted; else look at --overlays, --no-fastdp and the log of the peer that lacks it",
        ));
    }
}

/// About the size of IP packets that the path carries, and the MTU of the interface to the peer, if the first is smaller.
fn path_mtu(facts: &Facts, connection: &Connection) -> Option<(u64, u64)> {
    let attrs = connection.attrs.as_ref()?;
    if attrs.get("name")?.as_str()? == "fastdp" {
        return None;
    }
    let path = attrs.get("mtu")?.as_u64().filter(|mtu| *mtu != ASSUMED_MTU)? + MAX_OVERHEAD;
    let address: SocketAddr = connection.address.parse().ok()?;
    let interface = u64::from(facts.underlay.get(&address.ip())?.mtu);
    (path < interface).then_some((path, interface))
}

fn small_mtu(facts: &Facts, connection: &Connection, path: Option<(u64, u64)>) -> Finding {
    let peer = label(connection);
    let reason = connection.overlay_reason.as_deref().unwrap_or("large packets are lost");
    let address: Option<SocketAddr> = connection.address.parse().ok();
    let device =
        address.and_then(|address| facts.underlay.get(&address.ip())).map_or("<interface>", |d| &d.name);
    let (problem, size) = match path {
        Some((path, interface)) => (
            format!(
                "the path to {peer} carries packets of at most about {path} bytes, though the MTU of {device} is {interface} ({reason})"
            ),
            path.to_string(),
        ),
        None => (format!("packets of full size do not pass to {peer}: {reason}"), "<size>".to_owned()),
    };
    Finding::new(
        Warning,
        "small-mtu",
        problem,
        "fastdp is not used, and frames are sent in fragments; other connections of this host hang if ICMP is dropped on the path",
        format!(
            "let ICMP 'fragmentation needed' (type 3 code 4) pass all firewalls between the hosts, or lower the MTU on both to \
             that of the path: 'ip link set dev {device} mtu {size}', and 'weave launch --mtu' of 84 less"
        ),
    )
}

fn failed(facts: &Facts, connection: &Connection) -> Option<Finding> {
    let peer = label(connection);
    let reason = connection.info.split(", retry: ").next().unwrap_or_default();
    let has = |texts: &[&str]| texts.iter().any(|text| reason.contains(text));
    let no_connection = "there is no connection to this peer";
    if has(&["cannot connect to ourself"]) {
        return None;
    }
    Some(if has(&PASSWORD) {
        Finding::new(
            Error,
            "password",
            format!("{peer} and this host do not have the same password: {reason}"),
            no_connection,
            "give both the same one: 'weave stop' and 'weave launch --password-file <file>', or WEAVE_PASSWORD, on the host that has \
             another one or none",
        )
    } else if has(&DUPLICATE_NAME) {
        Finding::new(
            Error,
            "duplicate-name",
            format!("two hosts have the same peer name: {reason}"),
            "the copy is refused by all peers, and gets no addresses for its containers",
            "on the copy: 'weave reset', then a machine id of its own ('rm /etc/machine-id', 'systemd-machine-id-setup') or \
             'weave launch --name <another>'",
        )
    } else if has(&["Connection limit reached"]) {
        Finding::new(
            Warning,
            "connection-limit",
            format!("{peer}: {reason}"),
            "other peers relay to it",
            "'weave stop' and 'weave launch --conn-limit <more>' on the host that refuses",
        )
    } else if has(&["this peer listens on"]) {
        Finding::new(
            Error,
            "ipv6",
            format!("{peer}: {reason}"),
            no_connection,
            "'weave stop' and 'weave launch --host ::'",
        )
    } else if reason.starts_with("lookup ") {
        unresolved(&peer, reason)
    } else if has(&UNREACHABLE) {
        unreachable(facts, &peer, reason)
    } else {
        Finding::new(
            Warning,
            "connection",
            format!("no connection to {peer}: {reason}"),
            no_connection,
            "see 'weave status connections' and the log on both hosts",
        )
    })
}

fn unresolved(peer: &str, reason: &str) -> Finding {
    Finding::new(
        Error,
        "unknown-host",
        format!("the name of {peer} has no address: {reason}"),
        "there is no connection to this peer",
        "correct the name ('weave forget', 'weave connect'), or the DNS of this host (/etc/resolv.conf, /etc/hosts)",
    )
}

fn unreachable(facts: &Facts, peer: &str, reason: &str) -> Finding {
    let port = facts.port;
    let has_others =
        facts.report().is_some_and(|r| r.router.connections.iter().any(|c| c.state == "established"));
    let finding = Finding::new(
        Error,
        "tcp-blocked",
        format!("TCP does not get through from this host to {peer}: {reason}"),
        "this host cannot connect to the peer; they only meet if the peer can connect to this host",
        format!(
            "launch the peer if it does not run; else let TCP port {port} through there ('{}') and in firewalls and security \
             groups between the hosts; if the peer is gone for good, 'weave forget' it",
            accept_command("tcp", port)
        ),
    );
    // Other peers lead to it, if it is up.
    if has_others { Finding { severity: Warning, ..finding } } else { finding }
}

fn dial(facts: &Facts, result: &DialResult) -> Option<Finding> {
    let DialResult { peer, is_inbound, error } = result;
    let reason = match error.as_ref()? {
        DialError::Unresolved(reason) => return Some(unresolved(peer, reason)),
        DialError::TimedOut => "nothing answers",
        DialError::Refused => "its host says that nobody listens there",
        DialError::Failed(reason) => reason,
    };
    if !is_inbound {
        return Some(unreachable(facts, peer, reason));
    }
    let port = facts.port;
    let finding = Finding::new(
        Warning,
        "tcp-one-way",
        format!("TCP passes from {peer} to this host, but not from here to port {port} there: {reason}"),
        "after an interruption this host has to wait until the peer connects",
        format!(
            "let TCP port {port} through at {peer} ('{}') and between the hosts; nothing, if it is behind a NAT or uses another port",
            accept_command("tcp", port)
        ),
    );
    // A host that refuses is reached, so that it is a NAT or another port rather than a firewall.
    let is_refused = *error == Some(DialError::Refused);
    Some(if is_refused { Finding { severity: Notice, ..finding } } else { finding })
}
