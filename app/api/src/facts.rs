//! What both the text pages and their JSON compute from a report.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::report::{Dns, DnsEntry, Ipam, Report, VersionCheck};

/// What is known about newer versions, as a sentence.
pub(crate) fn version_sentence(check: &VersionCheck) -> String {
    let at = check.next_check_at.slashes();
    if !check.enabled {
        "version check update disabled".to_owned()
    } else if !check.success {
        format!("failed to check latest version - see logs; next check at {at}")
    } else if !check.new_version.is_empty() {
        format!("version {} available - please upgrade!", check.new_version)
    } else {
        format!("up to date; next check at {at}")
    }
}

/// State of address allocation, in 2.8.1's words.
pub(crate) fn ipam_state(ipam: &Ipam) -> String {
    if !ipam.entries.is_empty() && ipam.entries.iter().all(|e| !e.is_known_peer) {
        "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead".to_owned()
    } else if !ipam.entries.is_empty() {
        let waiting = !ipam.pending_allocates.is_empty();
        if waiting { "waiting for IP(s) to become available" } else { "ready" }.to_owned()
    } else {
        match &ipam.paxos {
            Some(p) if p.elector => {
                format!("awaiting consensus (quorum: {}, known: {})", p.quorum, p.known_nodes)
            }
            Some(_) => "priming".to_owned(),
            None => "idle".to_owned(),
        }
    }
}

/// State of the first division of the range.
pub(crate) fn consensus(ipam: &Ipam) -> &'static str {
    match &ipam.paxos {
        _ if !ipam.entries.is_empty() => "achieved",
        Some(_) => "waiting",
        None => "deferred",
    }
}

/// Names that are not deleted, by host name.
pub(crate) fn active_entries(service: &Dns) -> Vec<&DnsEntry> {
    let mut active: Vec<_> = service.entries.iter().filter(|e| e.tombstone == 0).collect();
    active.sort_by_key(|e| (&e.hostname, &e.origin, &e.container_id, &e.address));
    active
}

/// A peer's share of the range.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ShareLine<'a> {
    /// The owner.
    pub peer: &'a str,
    /// Its nickname.
    pub nickname: &'a str,
    /// Addresses owned.
    #[serde(rename = "IPs")]
    pub ips: u64,
    /// Of the range, 0 to 100.
    pub percent: f64,
    /// Addresses in use; `null` for other peers, which do not report it.
    #[serde(rename = "ActiveIPs")]
    pub active_ips: Option<u64>,
    /// Whether the mesh reaches the peer.
    pub reachable: bool,
}

/// Each owner's share, our own first; none without a ring.
pub(crate) fn shares(report: &Report) -> Vec<ShareLine<'_>> {
    let Some(service) = &report.ipam else { return Vec::new() };
    let mut shares: BTreeMap<(bool, &str), ShareLine<'_>> = BTreeMap::new();
    for e in &service.entries {
        let foreign = e.peer != report.router.name;
        let fresh = ShareLine {
            peer: &e.peer,
            nickname: &e.nickname,
            ips: 0,
            percent: 0.0,
            active_ips: (!foreign).then_some(service.active_ips),
            reachable: e.is_known_peer,
        };
        shares.entry((foreign, &e.peer)).or_insert(fresh).ips += e.size;
    }
    let total = service.range_num_ips.max(1) as f64;
    shares.into_values().map(|s| ShareLine { percent: s.ips as f64 * 100.0 / total, ..s }).collect()
}
