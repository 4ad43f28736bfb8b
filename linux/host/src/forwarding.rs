//! The host's firewall must let containers of one bridge talk to each other: where `br_netfilter` is loaded, as Docker does,
//! frames within a bridge pass the FORWARD chain, and Docker's policy there is DROP. The rule is 2.8.1's (spec cli 4.3):
//!
//! ```text
//! -A FORWARD -i weave -o weave -j ACCEPT      inserted at the top
//! ```

use crate::multicast_rules::{Firewall, FirewallError};

/// Makes the rule unless it is there; `true` if it was made. Without `iptables` and `nft` there is nobody to drop anything.
pub fn ensure_forwarding(bridge: &str) -> Result<bool, FirewallError> {
    let Ok(firewall) = Firewall::find() else { return Ok(false) };
    if firewall.speaks_nft() {
        // Only where somebody has made the chain.
        let Ok(rules) = firewall.run(&["list", "chain", "ip", "filter", "FORWARD"]) else { return Ok(false) };
        if rules.lines().any(|line| is_nft_rule(line, bridge)) {
            return Ok(false);
        }
        let rule = format!("iifname \"{bridge}\" oifname \"{bridge}\" accept");
        return firewall.run(&["insert", "rule", "ip", "filter", "FORWARD", &rule]).map(|_| true);
    }
    let [check, insert] =
        ["-C", "-I"].map(|verb| [verb, "FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"]);
    if firewall.run(&check).is_ok() {
        return Ok(false);
    }
    firewall.run(&insert).map(|_| true)
}

/// Takes the rule away wherever it is; `true` if it was there.
pub fn remove_forwarding(bridge: &str) -> Result<bool, FirewallError> {
    let mut removed = false;
    for firewall in Firewall::all() {
        if firewall.speaks_nft() {
            let Ok(rules) = firewall.run(&["-a", "list", "chain", "ip", "filter", "FORWARD"]) else {
                continue;
            };
            for handle in rules.lines().filter(|line| is_nft_rule(line, bridge)).filter_map(handle_of) {
                firewall.run(&["delete", "rule", "ip", "filter", "FORWARD", "handle", handle])?;
                removed = true;
            }
            continue;
        }
        let rule = ["FORWARD", "-i", bridge, "-o", bridge, "-j", "ACCEPT"];
        let with = |verb| [&[verb], &rule[..]].concat();
        while firewall.run(&with("-C")).is_ok() {
            firewall.run(&with("-D"))?;
            removed = true;
        }
    }
    Ok(removed)
}

/// `iifname "weave" oifname "weave" [counter packets N bytes N] accept`.
fn is_nft_rule(line: &str, bridge: &str) -> bool {
    let start = format!("iifname \"{bridge}\" oifname \"{bridge}\" ");
    line.trim().strip_prefix(&start).is_some_and(|rest| rest.contains("accept"))
}

fn handle_of(line: &str) -> Option<&str> {
    line.rsplit_once(" # handle ").map(|(_, handle)| handle.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nft_lines() {
        let line = "\t\tiifname \"weave\" oifname \"weave\" counter packets 1 bytes 84 accept # handle 7";
        assert!(is_nft_rule(line, "weave"));
        assert_eq!(handle_of(line), Some("7"));
        assert!(!is_nft_rule(line, "weave2"));
        assert!(!is_nft_rule("iifname \"weave\" oifname \"eth0\" accept", "weave"));
    }
}
