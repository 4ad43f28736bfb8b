//! Judges facts. Nothing here reads anything.

mod connections;
mod host;
mod kernel;
mod network;
mod services;
#[cfg(test)]
mod tests;

use crate::facts::Facts;
use crate::finding::Finding;

/// Everything that is wrong, the worst first.
pub fn check(facts: &Facts) -> Vec<Finding> {
    // Without root's rights nearly every fact is missing.
    let mut findings = host::rights(facts);
    if facts.is_root {
        findings.extend(host::check(facts));
        findings.extend(kernel::check(facts));
        findings.extend(network::check(facts));
        findings.extend(connections::check(facts));
        findings.extend(services::check(facts));
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

/// The best overlay that this host can use; `None` if that is not known.
pub fn best_overlay(facts: &Facts) -> Option<&'static str> {
    let encrypted = facts.report().is_some_and(|report| report.router.encryption);
    let is_possible = facts.fastdp.as_ref()?.is_ok();
    Some(if is_possible && !encrypted { "fastdp" } else { "warp" })
}

/// `problem; remedy`, as texts of the daemon are. Without a remedy the second part is `default`.
fn split_remedy<'a>(text: &'a str, default: &'a str) -> (&'a str, &'a str) {
    text.split_once("; ").unwrap_or((text, default))
}
