//! The text pages of `GET /status...`, layouts of 2.8.1 (docs/spec/cli.md 8).
//!
//! ```text
//! GET /status              summary      labels end in column 15, the colon is column 16
//! GET /status/targets      targets      one per line, sorted
//! GET /status/connections  connections  -> 192.168.48.12:6783    established sleeve 8a:..:02(host2) mtu=1438
//! GET /status/peers        peers        name(nick), then its connections, indented
//! GET /status/dns          dns          name, address, container, origin
//! GET /status/ipam         ipam         peer, addresses, share
//! ```
//!
//! Differences from 2.8.1: attributes are separated by a blank (`encrypted=true mtu=1414`), targets are sorted, and a
//! connection that does not use the best overlay says why (`reason="..."`, last on its line). The summary has a line
//! `Consensus`, one about the MAC table while that is full, and `/status/ipam` says why requests wait.

use std::fmt::Write;

use crate::facts::{active_entries, consensus, ipam_state, shares, version_sentence};
use crate::report::{Connection, MacTable, Report, Router};

/// States in the order in which the summary counts them. A `waiting` connection is in no count.
const STATES: [&str; 5] = ["established", "pending", "retrying", "failed", "connecting"];

/// `/status`. Starts and ends without the empty lines that the command frames it with.
pub fn summary(report: &Report) -> String {
    let mut page = Page::default();
    page.line("Version", &format!("{} ({})", report.version, version_sentence(&report.version_check)));
    page.gap();
    router(&mut page, &report.router);
    host_problems(&mut page, &report.host_problems);
    if let Some(service) = &report.ipam {
        page.gap();
        page.line("Service", "ipam");
        page.line("Status", &ipam_state(service));
        page.line("Consensus", consensus(service));
        page.line("Range", &service.range);
        page.line("DefaultSubnet", &service.default_subnet);
    }
    if let Some(service) = &report.dns {
        page.gap();
        page.line("Service", "dns");
        page.line("Domain", &service.domain);
        page.line("Upstream", &list_or_none(&service.upstream));
        page.line("TTL", &service.ttl.to_string());
        page.line("Entries", &service.entries.iter().filter(|e| e.tombstone == 0).count().to_string());
        service.notes.iter().for_each(|note| page.line("Notice", note));
        service.clock_skews.iter().for_each(|skew| page.line("Notice", &skew.to_string()));
    }
    if let Some(service) = &report.proxy {
        page.gap();
        page.line("Service", "proxy");
        page.line("Address", &service.addresses.join(", "));
        service.notes.iter().for_each(|note| page.line("Notice", note));
    }
    if let Some(service) = &report.plugin {
        page.gap();
        if service.config.enable_v2 {
            page.line("Service", "plugin (v2)");
        } else {
            page.line("Service", "plugin (legacy)");
            page.line("DriverName", &service.driver_name);
        }
    }
    page.0
}

fn router(page: &mut Page, router: &Router) {
    let (min, max) = (router.protocol_min_version, router.protocol_max_version);
    let versions = if min == max { min.to_string() } else { format!("{min}..{max}") };
    page.line("Service", "router");
    page.line("Protocol", &format!("{} {versions}", router.protocol));
    page.line("Name", &router.identity());
    page.line("Encryption", if router.encryption { "enabled" } else { "disabled" });
    page.line("PeerDiscovery", if router.peer_discovery { "enabled" } else { "disabled" });
    page.line("Targets", &router.targets.len().to_string());
    page.line("Connections", &counted(router.connections.len(), &connection_counts(&router.connections), ""));
    let reported = || router.peers.iter().flat_map(|p| &p.connections);
    let established = reported().filter(|c| c.established).count();
    let pending = reported().count() - established;
    let counts: Vec<_> = [(established, "established"), (pending, "pending")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, state)| format!("{n} {state}"))
        .collect();
    let peers = router.peers.len();
    if counts.is_empty() {
        page.line("Peers", &peers.to_string());
    } else {
        page.line("Peers", &format!("{peers} (with {} connections)", counts.join(", ")));
    }
    page.line("TrustedSubnets", &list_or_none(&router.trusted_subnets));
    if let Some(text) = router.mac_table.as_ref().and_then(MacTable::full) {
        page.line("MACTable", &text);
    }
}

/// What on this host keeps the peer or its containers from working; nothing if all is well.
fn host_problems(page: &mut Page, problems: &[String]) {
    if problems.is_empty() {
        return;
    }
    page.gap();
    page.line("Service", "host");
    problems.iter().for_each(|problem| page.line("Problem", problem));
}

fn connection_counts(connections: &[Connection]) -> Vec<String> {
    STATES
        .into_iter()
        .map(|state| (connections.iter().filter(|c| c.state == state).count(), state))
        .filter(|(n, _)| *n > 0)
        .map(|(n, state)| format!("{n} {state}"))
        .collect()
}

fn counted(total: usize, counts: &[String], tail: &str) -> String {
    if counts.is_empty() { total.to_string() } else { format!("{total} ({}{tail})", counts.join(", ")) }
}

fn list_or_none(list: &[String]) -> String {
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}

/// `/status/targets`.
pub fn targets(report: &Report) -> String {
    let mut targets: Vec<_> = report.router.targets.iter().collect();
    targets.sort();
    targets.into_iter().fold(String::new(), |page, target| page + target + "\n")
}

/// `/status/connections`, in the order of the report.
pub fn connections(report: &Report) -> String {
    let mut page = String::new();
    for c in &report.router.connections {
        let mut words = Vec::new();
        for (key, value) in c.attrs.iter().flatten().filter(|(key, _)| *key != "name") {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push(format!("{key}={value}"));
        }
        words.extend(c.overlay_reason.iter().map(|reason| format!("reason={reason:?}")));
        let arrow = arrow(c.outbound);
        let _ = writeln!(page, "{arrow} {:<21} {:<11} {} {}", c.address, c.state, c.info, words.join(" "));
    }
    page
}

fn arrow(outbound: bool) -> &'static str {
    if outbound { "->" } else { "<-" }
}

/// `/status/peers`, in the order of the report.
pub fn peers(report: &Report) -> String {
    let mut page = String::new();
    for peer in &report.router.peers {
        let _ = writeln!(page, "{}({})", peer.name, peer.nick_name);
        for c in &peer.connections {
            let remote = format!("{}({})", c.name, c.nick_name);
            let state = if c.established { "established" } else { "pending" };
            let _ = writeln!(page, "   {} {:<21} {remote:<37} {state}", arrow(c.outbound), c.address);
        }
    }
    page
}

/// `/status/dns`: names by host name; empty without the service.
pub fn dns(report: &Report) -> String {
    let Some(service) = &report.dns else { return String::new() };
    let suffix = format!(".{}", service.domain);
    let mut page = String::new();
    for e in active_entries(service) {
        let name = e.hostname.strip_suffix(&suffix).unwrap_or(&e.hostname);
        let id: String = e.container_id.chars().take(12).collect();
        let _ = writeln!(page, "{name:<12} {:<15} {id:>12} {}", e.address, e.origin);
    }
    page
}

/// `/status/ipam`: each owner's share, our own first; empty without a ring. Then, unlike 2.8.1, what requests wait for,
/// conflicts, and addresses whose owners cannot be found any more.
pub fn ipam(report: &Report) -> String {
    let mut page = String::new();
    for share in shares(report) {
        let who = format!("{}({})", share.peer, share.nickname);
        let note = match (share.active_ips, share.reachable) {
            (Some(active), _) => format!("({active} active)"),
            (None, false) => "- unreachable!".to_owned(),
            (None, true) => String::new(),
        };
        let _ = writeln!(page, "{who:<37} {:>8} IPs ({:04.1}% of total) {note}", share.ips, share.percent);
    }
    if let Some(notes) = &report.ipam_notes {
        let waiting = notes.waiting.iter().map(|w| ("waiting for", w));
        let conflicts = notes.conflicts.iter().map(|c| ("conflict", c));
        let lost = notes.lost_owners.iter().map(|l| ("lost owner:", l));
        for (label, text) in waiting.chain(conflicts).chain(lost) {
            let _ = writeln!(page, "{label} {text}");
        }
    }
    page
}

/// A page of `label: value` lines, labels right-aligned to 15 characters.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, label: &str, value: &str) {
        let _ = writeln!(self.0, "{label:>15}: {value}");
    }

    fn gap(&mut self) {
        self.0.push('\n');
    }
}
