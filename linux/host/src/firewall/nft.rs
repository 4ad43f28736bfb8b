//! The rules in the language of `nft`. A host without `iptables` has them in a table of its own, which is replaced as a whole:
//!
//! ```text
//! table ip weave {
//!     chain INPUT        { type filter hook input priority -1; ... }      before the chains of other programs, so that drops take
//!     chain FORWARD      { type filter hook forward priority -1; ... }    effect; other programs can still drop what is accepted here
//!     chain POSTROUTING  { type nat hook postrouting priority srcnat; jump WEAVE }
//!     chain PREROUTING   { type filter hook prerouting priority raw; ... notrack }     and OUTPUT, for questions about names
//!     chain WEAVE-EXPOSE, WEAVE, ...
//! }
//! table ip filter { chain FORWARD { ... } }                             if it exists: the accepted traffic, with comment `weave`
//! ```

use std::fmt::Write;

use weave_types::Cidr;

use super::rules::{
    DesiredChain, EXPOSE, ExposedAddress, FirewallConfig, Match, Placement, Rule, Table, Verdict,
    desired_chains, untracked_chains,
};

/// A rule as `nft -a` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NftRule {
    /// The rule without its counter.
    pub(crate) text: String,
    handle: String,
}

/// Reads the rules in the output of `nft -a list chain`.
pub(crate) fn parse_chain(listing: &str) -> Vec<NftRule> {
    let parse = |line: &str| {
        let (rule, handle) = line.trim().rsplit_once(" # handle ")?;
        let mut text: Vec<&str> = Vec::new();
        let mut words = rule.split(' ');
        while let Some(word) = words.next() {
            match word {
                "counter" => {}
                // `packets 0 bytes 0`, which `nft -s` leaves out.
                "packets" => drop(words.nth(2)),
                word => text.push(word),
            }
        }
        (!rule.ends_with('{')).then(|| NftRule { text: text.join(" "), handle: handle.to_owned() })
    };
    listing.lines().filter_map(parse).collect()
}

/// The name of the table.
pub(crate) fn table(instance: Option<&str>) -> String {
    instance.map_or_else(|| "weave".to_owned(), |instance| format!("weave-{instance}"))
}

/// The comment by which rules in chains of other programs are recognised.
pub(crate) fn mark(instance: Option<&str>) -> String {
    format!("comment \"{}\"", table(instance))
}

/// A script for `nft -f` that replaces the table, and the rules in `forward`, the chain FORWARD of table `ip filter`, if it exists.
pub(crate) fn script(
    config: &FirewallConfig,
    exposed: &[ExposedAddress],
    local: &[Cidr],
    forward: Option<&[NftRule]>,
) -> String {
    // The network policy controller uses iptables; without it its chains would stay empty.
    let config = FirewallConfig { expect_npc: false, ..config.clone() };
    let mut chains = desired_chains(&config, exposed);
    chains.extend(untracked_chains(&config, exposed));
    // Added first, so that the deletion succeeds.
    let table = table(config.instance.as_deref());
    let mut text = format!("add table ip {table}\ndelete table ip {table}\ntable ip {table} {{\n");
    if config.no_masq_local {
        let elements = if local.is_empty() {
            String::new()
        } else {
            format!(
                " elements = {{ {} }}",
                local.iter().map(|c| c.network().to_string()).collect::<Vec<_>>().join(", ")
            )
        };
        let _ = writeln!(text, "set {} {{ type ipv4_addr; flags interval;{elements} }}", config.local_set());
    }
    // One canary chain instead of one in each of three tables.
    let mut ours: Vec<&DesiredChain> = chains.iter().filter(|c| c.table != Table::Mangle).collect();
    ours.dedup_by(|a, b| a.chain == b.chain);
    // A chain must exist before a rule can jump to it.
    for desired in &ours {
        let hook = match desired.chain.as_str() {
            "INPUT" => "type filter hook input priority -1; policy accept;",
            "FORWARD" => "type filter hook forward priority -1; policy accept;",
            "POSTROUTING" => "type nat hook postrouting priority 100; policy accept;",
            "PREROUTING" => "type filter hook prerouting priority -300; policy accept;",
            "OUTPUT" => "type filter hook output priority -300; policy accept;",
            _ => "",
        };
        let _ = writeln!(text, "chain {} {{ {hook} }}", desired.chain);
    }
    for desired in &ours {
        let rules: String = desired.rules.iter().map(|rule| format!("\t{}\n", render(rule))).collect();
        let _ = writeln!(text, "chain {} {{\n{rules}}}", desired.chain);
    }
    text.push_str("}\n");
    if let Some(forward) = forward {
        let mark = mark(config.instance.as_deref());
        text.push_str(&deletions("FORWARD", forward.iter().filter(|rule| rule.text.contains(&mark))));
        for rule in accepted(&chains).iter().rev() {
            let _ = writeln!(text, "insert rule ip filter FORWARD {rule} {mark}");
        }
    }
    text
}

/// A script that removes everything that [`script`] makes.
pub(crate) fn removal(instance: Option<&str>, forward: Option<&[NftRule]>) -> String {
    let (table, mark) = (table(instance), mark(instance));
    let marked = forward.unwrap_or_default().iter().filter(|rule| rule.text.contains(&mark));
    format!("add table ip {table}\ndelete table ip {table}\n{}", deletions("FORWARD", marked))
}

fn deletions<'a>(chain: &str, rules: impl Iterator<Item = &'a NftRule>) -> String {
    rules.map(|rule| format!("delete rule ip filter {chain} handle {}\n", rule.handle)).collect()
}

/// What the chain FORWARD accepts, with jumps replaced by the rules that they lead to: a chain of another program might drop it.
fn accepted(chains: &[DesiredChain]) -> Vec<String> {
    let forward = chains.iter().find(|c| c.chain == "FORWARD");
    let expose = chains.iter().find(|c| c.chain.starts_with(EXPOSE));
    let mut rules = Vec::new();
    for rule in forward.iter().flat_map(|c| &c.rules) {
        match rule.verdict {
            Verdict::Accept => rules.push(render(rule)),
            Verdict::Jump(_) => {
                let to: Vec<Rule> = expose.iter().flat_map(|c| &c.rules).cloned().collect();
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

/// A script that adds those rules to a chain of `iptables-nft` that are not `present`. `None` if there are none, or if neither the
/// chain exists nor is it one that we create.
pub(crate) fn additions(present: Option<&[NftRule]>, desired: &DesiredChain) -> Option<String> {
    let (table, chain) = (desired.table.name(), &desired.chain);
    let mut text = String::new();
    if present.is_none() {
        // Without a chain for address translation there is nothing from which to except addresses.
        if (desired.table, chain.as_str()) != (Table::Filter, "INPUT") {
            return None;
        }
        let hook = "{ type filter hook input priority filter; policy accept; }";
        text = format!("add table ip {table}\nadd chain ip {table} {chain} {hook}\n");
    }
    let present = present.unwrap_or_default();
    let is_missing = |rule: &&Rule| present.iter().all(|p| p.text != render(rule));
    let missing: Vec<&Rule> = desired.rules.iter().filter(is_missing).collect();
    let verb = if desired.placement == Placement::Prepend { "insert" } else { "add" };
    for rule in &missing {
        let (matches, verdict) = (render_matches(rule), render_verdict(&rule.verdict));
        let _ = writeln!(text, "{verb} rule ip {table} {chain} {matches} counter {verdict}");
    }
    (!missing.is_empty()).then_some(text)
}

/// A script that removes these rules from a chain. `None` if it has none of them.
pub(crate) fn removals(present: &[NftRule], unwanted: &DesiredChain) -> Option<String> {
    let unwanted_texts: Vec<String> = unwanted.rules.iter().map(render).collect();
    let text = deletions(&unwanted.chain, present.iter().filter(|p| unwanted_texts.contains(&p.text)));
    (!text.is_empty()).then_some(text)
}

fn render(rule: &Rule) -> String {
    format!("{} {}", render_matches(rule), render_verdict(&rule.verdict)).trim_start().to_owned()
}

fn render_verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Masquerade => "masquerade".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::NoTrack => "notrack".into(),
        Verdict::Log(group) => format!("log group {group}"),
    }
}

fn render_matches(rule: &Rule) -> String {
    rule.matches.iter().filter_map(render_match).collect::<Vec<_>>().join(" ")
}

fn render_match(m: &Match) -> Option<String> {
    let not = |negated: &bool| if *negated { "!= " } else { "" };
    Some(match m {
        Match::Source { negated, network } => {
            format!("ip saddr {}{}", not(negated), render_network(*network))
        }
        Match::Destination { negated, network } => {
            format!("ip daddr {}{}", not(negated), render_network(*network))
        }
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out { negated, name } => format!("oifname {}\"{name}\"", not(negated)),
        Match::Port(protocol, port) => format!("{protocol} dport {port}"),
        Match::FromPort(protocol, port) => format!("{protocol} sport {port}"),
        Match::Igmp => "meta l4proto igmp".into(),
        Match::SourceNotLocal => "fib saddr type != local".into(),
        Match::Established => "ct state { established, related }".into(),
        Match::NotEstablished => "ct state != { established, related }".into(),
        Match::New => "ct state new".into(),
        Match::ToLocalSet(name) => format!("ip daddr @{name}"),
        // Would have to come last; in a table of our own they are not needed.
        Match::Comment(_) => return None,
    })
}

/// Formats a network as `nft` lists it.
fn render_network(network: Cidr) -> String {
    if network.prefix() == 32 { network.addr().to_string() } else { network.to_string() }
}
