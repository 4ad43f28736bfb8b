//! The same rules for hosts that have `nft` and no `iptables`: a table of our own, replaced as a whole.
//!
//! ```text
//! table ip weave {
//!     chain INPUT        { type filter hook input priority -1; ... }      before other people's chains, so that our drops hold;
//!     chain FORWARD      { type filter hook forward priority -1; ... }    what we accept they may still drop
//!     chain POSTROUTING  { type nat hook postrouting priority srcnat; jump WEAVE }
//!     chain WEAVE-EXPOSE, WEAVE, ...
//! }
//! table ip filter { chain FORWARD { ... } }                             if there is one: what is to pass, marked `weave`
//! ```

use std::fmt::Write;

use weave_types::Cidr;

use super::rules::{EXPOSE, ExposedAddress, FirewallConfig, Is, Match, Rule, Table, Verdict, Wanted, wanted};

/// Our table.
pub(crate) fn table(instance: Option<&str>) -> String {
    instance.map_or_else(|| "weave".to_owned(), |instance| format!("weave-{instance}"))
}

/// Marks our rules in a chain of others.
pub(crate) fn mark(instance: Option<&str>) -> String {
    format!("comment \"{}\"", table(instance))
}

/// A script for `nft -f` that replaces our table, and our rules in `guest`: the output of `nft -a list chain ip filter FORWARD`, if there
/// is such a chain.
pub(crate) fn script(
    setup: &FirewallConfig,
    exposed: &[ExposedAddress],
    local: &[Cidr],
    guest: Option<&str>,
) -> String {
    // The network policy controller speaks iptables; without it nobody would fill its chains.
    let setup = FirewallConfig { expect_npc: false, ..setup.clone() };
    let chains = wanted(&setup, exposed);
    // Made first, so that there is something to delete.
    let table = table(setup.instance.as_deref());
    let mut text = format!("add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
    if setup.no_masq_local {
        let elements = if local.is_empty() {
            String::new()
        } else {
            format!(
                " elements = {{ {} }}",
                local.iter().map(|c| c.network().to_string()).collect::<Vec<_>>().join(", ")
            )
        };
        let _ = writeln!(text, "set {} {{ type ipv4_addr; flags interval;{elements} }}", setup.local_set());
    }
    // The canaries of the three tables are one.
    let mut ours: Vec<&Wanted> = chains.iter().filter(|w| w.table != Table::Mangle).collect();
    ours.dedup_by(|a, b| a.chain == b.chain);
    // A chain has to be there before others lead to it.
    for w in &ours {
        let hook = match w.chain.as_str() {
            "INPUT" => "type filter hook input priority -1; policy accept;",
            "FORWARD" => "type filter hook forward priority -1; policy accept;",
            "POSTROUTING" => "type nat hook postrouting priority 100; policy accept;",
            _ => "",
        };
        let _ = writeln!(text, "chain {} {{ {hook} }}", w.chain);
    }
    for w in &ours {
        let rules: String = w.rules.iter().map(|rule| format!("\t{}\n", render(rule))).collect();
        let _ = writeln!(text, "chain {} {{\n{rules}}}", w.chain);
    }
    text.push_str("}\n");
    if let Some(guest) = guest {
        let mark = mark(setup.instance.as_deref());
        text.push_str(&without_guests(guest, &mark));
        for rule in guests(&chains).iter().rev() {
            let _ = writeln!(text, "insert rule ip filter FORWARD {rule} {mark}");
        }
    }
    text
}

/// A script that takes all of it away.
pub(crate) fn removal(instance: Option<&str>, guest: Option<&str>) -> String {
    let table = table(instance);
    let guests = guest.map(|g| without_guests(g, &mark(instance))).unwrap_or_default();
    format!("add table ip {table}\ndelete table ip {table}\n{guests}")
}

fn without_guests(listing: &str, mark: &str) -> String {
    let ours = listing.lines().filter(|l| l.contains(mark));
    let handles = ours.filter_map(|l| l.rsplit_once("# handle "));
    handles.map(|(_, handle)| format!("delete rule ip filter FORWARD handle {}\n", handle.trim())).collect()
}

/// What others would drop: everything that the forward chain accepts, without detours.
fn guests(chains: &[Wanted]) -> Vec<String> {
    let forward = chains.iter().find(|w| w.chain == "FORWARD");
    let exposes = chains.iter().find(|w| w.chain.starts_with(EXPOSE));
    let mut rules = Vec::new();
    for rule in forward.iter().flat_map(|w| &w.rules) {
        match rule.verdict {
            Verdict::Accept => rules.push(render(rule)),
            Verdict::Jump(_) => {
                let to: Vec<Rule> = exposes.iter().flat_map(|w| &w.rules).cloned().collect();
                rules.extend(to.into_iter().map(|inner| {
                    let matches = rule.matches.iter().cloned().chain(inner.matches).collect();
                    render(&Rule { matches, verdict: inner.verdict })
                }));
            }
            _ => {}
        }
    }
    rules
}

fn render(rule: &Rule) -> String {
    let mut words: Vec<String> = rule.matches.iter().filter_map(render_match).collect();
    words.push(match &rule.verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Masquerade => "masquerade".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Log(group) => format!("log group {group}"),
    });
    words.join(" ")
}

fn render_match(m: &Match) -> Option<String> {
    let not = |is: &Is| if *is == Is::Not { "!= " } else { "" };
    Some(match m {
        Match::Source(is, cidr) => format!("ip saddr {}{cidr}", not(is)),
        Match::Destination(is, cidr) => format!("ip daddr {}{cidr}", not(is)),
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(is, name) => format!("oifname {}\"{name}\"", not(is)),
        Match::Port(protocol, port) => format!("{protocol} dport {port}"),
        Match::SourceNotLocal => "fib saddr type != local".into(),
        Match::Established => "ct state { established, related }".into(),
        Match::NotEstablished => "ct state != { established, related }".into(),
        Match::New => "ct state new".into(),
        Match::ToLocalSet(name) => format!("ip daddr @{name}"),
        // They have to come last there, and say nothing that a list of our own table does not say.
        Match::Comment(_) => return None,
    })
}
