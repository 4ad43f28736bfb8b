//! Addresses, names and clocks, by what the daemon knows.

use std::collections::BTreeMap;

use weave_api::Report;
use weave_api::report::{Ipam, MacTable};

use super::split_remedy;
use crate::facts::Facts;
use crate::finding::Finding;
use crate::finding::Severity::{Error, Notice, Warning};

pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(report) = facts.report() {
        if let Some(ipam) = &report.ipam {
            dead_peers(ipam, &mut findings);
        }
        allocation(report, &mut findings);
        clocks(report, &mut findings);
        findings.extend(mac_table(report));
    }
    for server in facts.weave_dns.iter().filter(|server| !server.answers) {
        findings.push(Finding::new(
            Error,
            "weave-dns",
            format!("weaveDNS does not answer at {}", server.address),
            "containers do not resolve names",
            "look for rules that drop UDP port 53 ('iptables -S INPUT', 'nft list ruleset'), and at the log of the daemon",
        ));
    }
    findings
}

fn dead_peers(ipam: &Ipam, findings: &mut Vec<Finding>) {
    let mut dead: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for entry in ipam.entries.iter().filter(|entry| !entry.is_known_peer) {
        *dead.entry((&entry.peer, &entry.nickname)).or_default() += entry.size;
    }
    for ((peer, nickname), size) in dead {
        findings.push(Finding::new(
            Warning,
            "dead-peer",
            format!("{peer}({nickname}) owns {size} addresses and cannot be reached"),
            "nobody can use these addresses; once the others are used up, requests wait",
            format!("if it is gone for good: 'weave rmpeer {peer}', on one host only; else start it, or mend the connection to it"),
        ));
    }
}

fn allocation(report: &Report, findings: &mut Vec<Finding>) {
    let Some(notes) = &report.ipam_notes else { return };
    for text in &notes.conflicts {
        let (problem, remedy) = split_remedy(text, "see 'weave status ipam'");
        let problem = format!("address allocation contradicts that of another peer, {problem}");
        let effect = "the peers do not share addresses: requests wait, or addresses are given out twice";
        findings.push(Finding::new(Error, "ipam-conflict", problem, effect, remedy));
    }
    for text in &notes.waiting {
        let (problem, remedy) = split_remedy(text, "see 'weave status ipam'");
        let effect = "'weave attach' and starts of containers wait";
        findings.push(Finding::new(
            Warning,
            "ipam-waiting",
            format!("waiting for {problem}"),
            effect,
            remedy,
        ));
    }
    for text in &notes.lost_owners {
        let (problem, remedy) = split_remedy(text, "weave detach");
        let effect = "the addresses stay taken";
        findings.push(Finding::new(Notice, "lost-owner", problem, effect, remedy));
    }
}

fn clocks(report: &Report, findings: &mut Vec<Finding>) {
    for skew in report.dns.iter().flat_map(|dns| &dns.clock_skews) {
        findings.push(Finding::new(
            Error,
            "clock-skew",
            skew.to_string(),
            "peers of version 2.8.1 do not stay connected, and times in logs cannot be compared",
            "set the clock of the host that is wrong: 'timedatectl set-ntp true' there, or 'chronyc makestep'",
        ));
    }
}

fn mac_table(report: &Report) -> Option<Finding> {
    let full = report.router.mac_table.as_ref().and_then(MacTable::full)?;
    Some(Finding::new(
        Warning,
        "mac-table",
        format!("the table of Ethernet addresses is {full}"),
        "frames to addresses that are not in it are sent to all peers",
        "look for a container on that peer that uses many Ethernet addresses, and detach it",
    ))
}
