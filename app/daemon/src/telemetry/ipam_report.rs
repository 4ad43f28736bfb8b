//! The state of the allocator as part of the report (docs/spec/ipam.md 12).

use std::net::Ipv4Addr;

use weave_api::report::{ClaimedCidr, Ipam, IpamNotes, Paxos, PendingClaim, RingEntry};

use super::printable::printable;
use weave_ipam::{ConflictStatus, ElectionStatus, NamedPeer, PendingKind, Status, WaitReason};

pub(crate) fn report(status: &Status) -> Ipam {
    let paxos = status.election.as_ref().map(|election| match election.elector {
        true => Paxos { elector: true, known_nodes: election.known.into(), quorum: election.quorum.into() },
        false => Paxos::default(),
    });
    let entries = status.entries.iter().map(|entry| RingEntry {
        token: Ipv4Addr::from(entry.range.start()).to_string(),
        size: entry.range.size().into(),
        peer: entry.peer.to_string(),
        nickname: printable(&entry.nickname),
        is_known_peer: entry.reachable,
        version: entry.version.into(),
    });
    let mut pending_claims = Vec::new();
    let mut pending_allocates = Vec::new();
    for pending in &status.pending {
        match &pending.kind {
            PendingKind::Prime => {}
            PendingKind::Allocate { container, subnet } => {
                pending_allocates.push(format!("{} {subnet}", printable(container)));
            }
            PendingKind::Claim { container, cidr } => pending_claims.push(PendingClaim {
                ident: printable(container),
                cidr: ClaimedCidr { addr: cidr.addr().to_string(), prefix_len: cidr.prefix() },
            }),
        }
    }
    Ipam {
        paxos,
        range: status.range.to_string(),
        range_num_ips: status.range.range().size().into(),
        active_ips: status.active.into(),
        default_subnet: status.default_subnet.to_string(),
        entries: entries.collect(),
        pending_claims,
        pending_allocates,
    }
}

/// Explanations that 2.8.1 did not have; `None` if there are none.
pub(crate) fn notes(status: &Status) -> Option<IpamNotes> {
    let notes = IpamNotes { waiting: waiting(status), conflicts: conflicts(status), ..IpamNotes::default() };
    (notes != IpamNotes::default()).then_some(notes)
}

fn conflicts(status: &Status) -> Vec<String> {
    let line = |c: &ConflictStatus| {
        let disputed: Vec<_> = c.disputed.iter().map(ToString::to_string).collect();
        let kept = match disputed.as_slice() {
            [] => String::new(),
            ranges => format!(" (not handed out: {})", ranges.join(" ")),
        };
        printable(&format!("with {}: {}{kept}; {}", c.peer, c.conflict, c.conflict.remedy()))
    };
    status.conflicts.iter().map(line).collect()
}

/// Why requests wait and what would help, one line each.
pub(crate) fn waiting(status: &Status) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(election) = &status.election {
        lines.push(electing(election));
    }
    for pending in
        status.pending.iter().filter(|p| p.reason != WaitReason::NoRing || status.election.is_none())
    {
        let what = match &pending.kind {
            PendingKind::Prime => "the ring".to_owned(),
            PendingKind::Allocate { container, subnet } => format!("an address of {subnet} for {container}"),
            PendingKind::Claim { container, cidr } => format!("{cidr} for {container}"),
        };
        let (seconds, reason) = (pending.waited.as_secs(), pending.reason.explain());
        lines.push(printable(&format!("{what}, for {seconds} s: {reason}")));
    }
    lines
}

pub(crate) fn join_lines(lines: &[String]) -> String {
    lines.iter().fold(String::new(), |text, line| text + line + "\n")
}

fn electing(election: &ElectionStatus) -> String {
    let names = |list: &[NamedPeer]| list.iter().map(NamedPeer::to_string).collect::<Vec<_>>().join(" ");
    let seconds = election.waited.as_secs();
    let mut parts = Vec::new();
    if election.elector {
        parts.push(format!(
            "the first division of the range, for {seconds} s: {} of {} peers must agree ({}), {} known",
            election.quorum,
            election.source.peers(),
            election.source,
            election.known
        ));
    } else {
        parts.push(format!(
            "the first division of the range, for {seconds} s: this peer is an observer, the others must begin"
        ));
    }
    if !election.present.is_empty() {
        parts.push(format!("taking part: {}", names(&election.present)));
    }
    if !election.absent.is_empty() {
        parts.push(format!("not reachable any more: {}", names(&election.absent)));
    }
    if !election.silent.is_empty() {
        parts.push(format!("reachable, but not taking part: {}", names(&election.silent)));
    }
    if election.missing > 0 {
        parts.push(format!(
            "at least {} more needed: launch or connect them, see 'weave status connections'",
            election.missing
        ));
    }
    printable(&parts.join("; "))
}
