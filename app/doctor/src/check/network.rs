//! Ports, interfaces, routes and firewalls of the host.

use std::net::{Ipv6Addr, SocketAddrV6};

use weave_types::Cidr;

use super::split_remedy;
use crate::facts::{Daemon, Facts};
use crate::finding::Finding;
use crate::finding::Severity::{Error, Warning};

/// MTU of containers unless another one was given to `launch`.
const USUAL_MTU: u32 = 1376;
/// Above this the container network has no MTU of its own, and packets are cut to what each path carries.
const UNLIMITED_MTU: u32 = 60_000;
/// What VXLAN adds to an IP packet of a container: Ethernet, VXLAN, UDP and IP headers.
const VXLAN_OVERHEAD: u32 = 50;
/// What any overlay adds to one, at most.
const OVERLAY_OVERHEAD: u32 = 84;
/// Private ranges to propose, in this order.
const RANGES: [&str; 5] =
    ["10.32.0.0/12", "10.128.0.0/12", "10.192.0.0/12", "172.24.0.0/14", "192.168.128.0/17"];

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(own_ports(facts));
    findings.extend(vxlan_port(facts));
    findings.extend(underlay_mtu(facts));
    findings.extend(range(facts));
    firewall(facts, &mut findings);
    findings.extend(ipv6(facts));
    findings
}

fn own_ports(facts: &Facts) -> Vec<Finding> {
    if !matches!(facts.daemon, Daemon::Stopped) {
        return Vec::new();
    }
    let used = facts.ports.iter().filter(|used| used.port == facts.port);
    let finding = |used: &crate::PortUse| {
        Finding::new(
            Error,
            "port-in-use",
            format!("{} port {} is in use by {}", used.protocol, used.port, used.holder),
            "'weave launch' fails",
            "end that program, or launch all peers with another --port",
        )
    };
    used.map(finding).collect()
}

fn vxlan_port(facts: &Facts) -> Option<Finding> {
    let port = facts.vxlan_port();
    let mut devices = facts.devices.iter().filter(|device| device.vxlan_port == Some(port));
    let holder = match devices.clone().find(|device| !device.is_ours) {
        Some(device) => format!("the VXLAN device {} of another network", device.name),
        None if devices.next().is_some() => return None,
        None => facts.ports.iter().find(|used| used.port == port)?.holder.clone(),
    };
    Some(Finding::new(
        Warning,
        "vxlan-port",
        format!("UDP port {port} is in use by {holder}"),
        "fastdp cannot use the port, and connections use a slower overlay",
        "give the other program another port ('ip -d link show type vxlan', 'ss -ulpn' show it), or launch all peers with another \
         --port: fastdp uses the port after it. Then 'weave stop' and 'weave launch'",
    ))
}

fn underlay_mtu(facts: &Facts) -> Option<Finding> {
    let bridge = facts.devices.iter().find(|device| device.name == facts.bridge);
    let container = bridge.map_or(USUAL_MTU, |bridge| bridge.mtu);
    // Where neighbours are known, the default route may lead elsewhere.
    let is_known = facts.underlay.keys().any(|address| !address.is_unspecified());
    let used = facts.underlay.iter().filter(|(address, _)| !is_known || !address.is_unspecified());
    let underlay = used.map(|(_, device)| device).min_by_key(|device| device.mtu)?;
    if container > UNLIMITED_MTU || underlay.mtu >= container + VXLAN_OVERHEAD {
        return None;
    }
    Some(Finding::new(
        Warning,
        "underlay-mtu",
        format!(
            "the MTU of {} is {}, and packets of containers of up to {container} bytes need {} with VXLAN",
            underlay.name,
            underlay.mtu,
            container + VXLAN_OVERHEAD
        ),
        "fastdp is not used, and large packets of containers are sent in fragments",
        format!(
            "raise the MTU ('ip link set dev {} mtu 1500'), or 'weave stop' and 'weave launch --mtu {}' on all hosts",
            underlay.name,
            underlay.mtu.saturating_sub(OVERLAY_OVERHEAD)
        ),
    ))
}

fn range(facts: &Facts) -> Option<Finding> {
    let range = facts.range?;
    let hit = facts.routes.iter().find(|route| route.destination.overlaps(range))?;
    let device = hit.device.as_ref().map(|name| format!(" to {name}")).unwrap_or_default();
    let problem = format!(
        "this host routes {}{device}, which is part of the address range {range} of containers or contains it",
        hit.destination
    );
    let effect = "this host and its containers confuse addresses of both networks: some cannot be reached";
    let free = RANGES
        .iter()
        .filter_map(|text| text.parse().ok())
        .find(|candidate: &Cidr| !facts.routes.iter().any(|route| route.destination.overlaps(*candidate)));
    let free = free.map_or("<another range>".to_owned(), |range| range.to_string());
    Some(match facts.daemon {
        Daemon::Stopped => {
            let effect = format!("'weave launch' refuses the default range; with it, {effect}");
            let remedy = format!("weave launch --ipalloc-range {free}, the same on all hosts");
            Finding::new(Error, "range", problem, effect, remedy)
        }
        Daemon::Silent(_) | Daemon::Running(_) => {
            let remedy = format!(
                "remove the route ('ip route del {}'), or 'weave reset' and 'weave launch --ipalloc-range {free}' on all hosts",
                hit.destination
            );
            Finding::new(Warning, "range", problem, effect, remedy)
        }
    })
}

fn firewall(facts: &Facts, findings: &mut Vec<Finding>) {
    for backend in &facts.rules {
        if let Err(error) = &backend.rules {
            let problem = format!("the rules of {} cannot be listed: {error}", backend.backend.name());
            let effect =
                "address translation of exposed networks and protection of the control port may be missing";
            let remedy = "correct what the program complains about, or remove it if another one is in use";
            findings.push(Finding::new(Warning, "firewall", problem, effect, remedy));
        }
    }
    let has_rules = |rules: &Result<usize, _>| rules.as_ref().is_ok_and(|number| *number > 0);
    let used: Vec<_> = facts.rules.iter().filter(|backend| has_rules(&backend.rules)).collect();
    if let [first, second, ..] = used.as_slice() {
        let describe = |backend: &weave_host::firewall::BackendRules| {
            let number = backend.rules.as_ref().map_or(0, |number| *number);
            let foreign =
                if backend.has_foreign_chains { ", Docker's or Kubernetes' among them" } else { "" };
            let default = if backend.is_default { ", this is 'iptables'" } else { "" };
            format!("{} ({number} rules{foreign}{default})", backend.backend.name())
        };
        let problem = format!("two packet filters have rules: {} and {}", describe(first), describe(second));
        let default =
            facts.rules.iter().find(|backend| backend.is_default).map_or(first.backend, |b| b.backend);
        findings.push(Finding::new(
            Warning,
            "iptables-mix",
            problem,
            "each packet has to pass both; a rule that accepts it in one does not help against the other",
            format!(
                "let all programs use one: 'update-alternatives --set iptables /usr/sbin/{}', remove the rules of the other one (its \
                 '-F'), then restart Docker, and 'weave stop' and 'weave launch'",
                default.name()
            ),
        ));
    }
    if facts.lacks_firewall && facts.report().is_none() {
        findings.push(Finding::new(
            Warning,
            "firewall",
            "neither iptables nor nft is installed",
            "there is no address translation for exposed networks, and the control port is not guarded",
            "install iptables or nftables",
        ));
    }
    for text in &facts.obstacles {
        let (problem, remedy) = split_remedy(text, "see the log of the daemon");
        let effect = "the peer, or packets of its containers, are held up on this host";
        findings.push(Finding::new(Error, "host-problem", problem, effect, remedy));
    }
}

fn ipv6(facts: &Facts) -> Option<Finding> {
    if !facts.sysctls.is_ipv6_disabled {
        return None;
    }
    let targets = facts.report().into_iter().flat_map(|report| &report.router.targets);
    let named = facts.dials.iter().filter(|dial| !dial.is_inbound).map(|dial| &dial.peer);
    let peer = targets.chain(named).find(|peer| is_ipv6(peer))?;
    Some(Finding::new(
        Error,
        "ipv6",
        format!("IPv6 is disabled on this host, and {peer} is an IPv6 address"),
        "there is no connection to this peer",
        "sysctl -w net.ipv6.conf.all.disable_ipv6=0 (without IPv6 in the kernel: boot without ipv6.disable=1), or 'weave forget' the \
         address and 'weave connect' to one of IPv4",
    ))
}

fn is_ipv6(peer: &str) -> bool {
    let bare = peer.strip_prefix('[').and_then(|peer| peer.strip_suffix(']')).unwrap_or(peer);
    bare.parse::<Ipv6Addr>().is_ok() || peer.parse::<SocketAddrV6>().is_ok()
}
