//! The smallest change from the existing rules to the desired ones, as input of `iptables-restore --noflush`, which makes all changes
//! of a table or none.

use std::collections::BTreeMap;

use super::listing::{Line, Listing, RuleOptions};
use super::rules::{
    CONTROL_COMMENT, DNS_COMMENT, DesiredChain, EXPOSE, ExposedAddress, FirewallConfig, LOCAL_SET, Match,
    NAT, Placement, Rule, Table, attached_bridge, desired_chains, known_rules, untracked_chains,
};

/// Lines for `iptables-restore`, by table.
#[derive(Debug, Default)]
struct Script(BTreeMap<Table, Edits>);

/// The changes of a table, in the order in which `iptables-restore` accepts them.
#[derive(Debug, Default)]
struct Edits {
    new_chains: Vec<String>,
    deletions: Vec<String>,
    additions: Vec<String>,
    old_chains: Vec<String>,
}

impl Script {
    fn table(&mut self, table: Table) -> &mut Edits {
        self.0.entry(table).or_default()
    }

    fn delete(&mut self, table: Table, chain: &str, line: &Line) {
        self.table(table).deletions.push(format!("-D {chain} {}", line.text));
    }

    fn add_missing(&mut self, now: &Listing, desired: &DesiredChain) {
        match desired.placement {
            Placement::External => {}
            Placement::Owned => self.own(now, desired),
            Placement::Append => self.append(now, desired),
            Placement::Prepend => self.prepend(now, desired),
        }
    }

    /// Puts our rules in the desired order; rules that an operator added to the chain stay.
    fn own(&mut self, now: &Listing, desired: &DesiredChain) {
        let DesiredChain { table, chain, rules, .. } = desired;
        let present: Vec<&Line> =
            now.chain(*table, chain).into_iter().flatten().filter(|l| is_ours(chain, &l.options)).collect();
        let wanted: Vec<RuleOptions> = rules.iter().map(options).collect();
        if present.iter().map(|l| &l.options).eq(&wanted) {
            return;
        }
        // The rules before the first difference stay, those after it are removed and added again.
        let same = present.iter().zip(&wanted).take_while(|(l, w)| l.options == **w).count();
        for line in present.iter().skip(same).rev() {
            self.delete(*table, chain, line);
        }
        for rule in rules.iter().skip(same) {
            // The exception for local networks has to precede the rules of an operator as well.
            let first = rule.matches.iter().any(|m| matches!(m, Match::ToLocalSet(_)));
            let verb = if first { format!("-I {chain} 1") } else { format!("-A {chain}") };
            self.table(*table).additions.push(format!("{verb} {rule}"));
        }
    }

    fn append(&mut self, now: &Listing, desired: &DesiredChain) {
        let DesiredChain { table, chain, rules, .. } = desired;
        let present = now.chain(*table, chain).unwrap_or_default();
        for rule in rules.iter().filter(|rule| present.iter().all(|l| l.options != options(rule))) {
            self.table(*table).additions.push(format!("-A {chain} {rule}"));
        }
    }

    fn prepend(&mut self, now: &Listing, desired: &DesiredChain) {
        let DesiredChain { table, chain, rules, .. } = desired;
        let present = now.chain(*table, chain).unwrap_or_default();
        let wanted: Vec<RuleOptions> = rules.iter().map(options).collect();
        if wanted.iter().all(|w| present.iter().any(|l| l.options == *w)) {
            return;
        }
        for line in present.iter().filter(|l| wanted.contains(&l.options)) {
            self.delete(*table, chain, line);
        }
        for (i, rule) in rules.iter().enumerate() {
            self.table(*table).additions.push(format!("-I {chain} {} {rule}", i + 1));
        }
    }

    /// Deletes rules of other configurations from chains of other programs: with another port, another bridge of Docker, with or
    /// without the network policy controller.
    fn delete_stale(
        &mut self,
        now: &Listing,
        desired: &[DesiredChain],
        config: &FirewallConfig,
        previous: &[FirewallConfig],
    ) {
        let known = known_rules_of(previous.iter().chain([config]));
        for table in Table::ALL {
            for (chain, lines) in now.chains(table) {
                let here = |c: &&DesiredChain| c.table == table && c.chain == chain;
                let stays: Vec<RuleOptions> =
                    desired.iter().filter(here).flat_map(|c| &c.rules).map(options).collect();
                for line in lines {
                    let is_known =
                        known.iter().any(|(t, c, rule)| *t == table && *c == chain && *rule == line.options);
                    // Version 2.6.3 left the port out.
                    let without_port = line.options.has("--comment", CONTROL_COMMENT)
                        && line.options.value("--dport").is_none()
                        && config.instance.is_none();
                    if (is_known || without_port) && !stays.contains(&line.options) {
                        self.delete(table, chain, line);
                    }
                }
            }
        }
    }

    /// `None` if there is nothing to do.
    fn text(self) -> Option<String> {
        let mut text = String::new();
        for (table, edits) in self.0 {
            let lines: Vec<String> =
                [edits.new_chains, edits.deletions, edits.additions, edits.old_chains].concat();
            if !lines.is_empty() {
                text.push_str(&format!("*{}\n{}\nCOMMIT\n", table.name(), lines.join("\n")));
            }
        }
        (!text.is_empty()).then_some(text)
    }
}

/// The change that leads from the rules in `now` to those of `config` and `exposed`, without those that only `previous` configurations
/// need. `None` if there is nothing to do.
pub(crate) fn diff(
    now: &Listing,
    config: &FirewallConfig,
    exposed: &[ExposedAddress],
    previous: &[FirewallConfig],
) -> Option<String> {
    let desired = desired_chains(config, exposed);
    let mut script = Script::default();
    for chain in &desired {
        if matches!(chain.placement, Placement::Owned | Placement::External)
            && now.chain(chain.table, &chain.chain).is_none()
        {
            script.table(chain.table).new_chains.push(format!("-N {}", chain.chain));
        }
        script.add_missing(now, chain);
    }
    script.delete_stale(now, &desired, config, previous);
    script.text()
}

/// The change that leads to the desired rules about packets that are not tracked.
pub(crate) fn untracked(
    now: &Listing,
    config: &FirewallConfig,
    exposed: &[ExposedAddress],
    previous: &[FirewallConfig],
) -> Option<String> {
    let desired = untracked_chains(config, exposed);
    let mut script = Script::default();
    for chain in &desired {
        script.add_missing(now, chain);
    }
    let stays: Vec<RuleOptions> = desired.iter().flat_map(|chain| &chain.rules).map(options).collect();
    for (chain, lines) in now.chains(Table::Raw) {
        for line in lines.iter().filter(|line| !stays.contains(&line.options)) {
            if previous.iter().chain([config]).any(|config| is_untracked(config, &line.options)) {
                script.delete(Table::Raw, chain, line);
            }
        }
    }
    script.text()
}

/// Whether a rule is one of those of [`untracked_chains`], whatever the address.
fn is_untracked(config: &FirewallConfig, rule: &RuleOptions) -> bool {
    let device = rule.value("-i").or(rule.value("-o")).unwrap_or_default();
    let docker = config.docker.as_ref().filter(|_| config.instance.is_none());
    rule.has("--comment", DNS_COMMENT)
        && (device == config.bridge || docker.is_some_and(|docker| docker.name == device))
}

/// The change that adds those rules of one chain that are missing.
pub(crate) fn additions(now: &Listing, desired: &DesiredChain) -> Option<String> {
    let mut script = Script::default();
    script.add_missing(now, desired);
    script.text()
}

/// The change that deletes these rules from a chain, every copy of them.
pub(crate) fn removals(now: &Listing, unwanted: &DesiredChain) -> Option<String> {
    let rules: Vec<RuleOptions> = unwanted.rules.iter().map(options).collect();
    let mut script = Script::default();
    let present = now.chain(unwanted.table, &unwanted.chain).unwrap_or_default();
    for line in present.iter().filter(|line| rules.contains(&line.options)) {
        script.delete(unwanted.table, &unwanted.chain, line);
    }
    script.text()
}

fn options(rule: &Rule) -> RuleOptions {
    RuleOptions::parse(&rule.to_string())
}

fn known_rules_of<'a>(
    configs: impl Iterator<Item = &'a FirewallConfig>,
) -> Vec<(Table, String, RuleOptions)> {
    configs.flat_map(known_rules).map(|(table, chain, rule)| (table, chain, options(&rule))).collect()
}

/// Whether a rule in one of our chains has a form that we give to rules there.
fn is_ours(chain: &str, rule: &RuleOptions) -> bool {
    // The name of the instance follows the dot.
    match chain.split('.').next().unwrap_or_default() {
        EXPOSE => rule.len() == 2 && rule.value("-d").is_some() && rule.has("-j", "ACCEPT"),
        NAT => {
            let subnet = rule.value("-s").or(rule.value("-d"));
            let other = rule.value("! -s").or(rule.value("! -d"));
            let multicast = rule.len() == 3 && rule.has("-d", "224.0.0.0/4") && rule.has("-j", "RETURN");
            let translated =
                rule.len() == 3 && subnet.is_some() && subnet == other && rule.has("-j", "MASQUERADE");
            multicast || translated || rule.value("--match-set").is_some_and(|set| set.starts_with(LOCAL_SET))
        }
        _ => false,
    }
}

/// The change that deletes all rules and chains of ours and of 2.8.1; `None` if there are none.
pub(crate) fn removal(now: &Listing, configs: &[FirewallConfig]) -> Option<String> {
    let mut script = Script::default();
    let mut known = known_rules_of(configs.iter());
    for bridge in configs.iter().map(|c| attached_bridge(&c.bridge)) {
        known.extend(bridge.rules.iter().map(|rule| (bridge.table, bridge.chain.clone(), options(rule))));
    }
    let is_owned = |chain: &str| configs.iter().any(|c| c.owns(chain));
    // Rules for any port are removed. An instance that is still running adds its own again.
    let any_control_port = configs.iter().any(|c| c.instance.is_none());
    // The address of Docker's bridge may have changed.
    let without_address: Vec<RuleOptions> =
        known.iter().filter(|(_, c, _)| *c == "INPUT").map(|(.., r)| r.without("-d")).collect();
    for table in Table::ALL {
        for (chain, lines) in now.chains(table).filter(|(chain, _)| !is_owned(chain)) {
            for line in lines {
                let leads_to_us = line.options.target().is_some_and(is_owned);
                let is_known =
                    known.iter().any(|(t, c, rule)| *t == table && *c == chain && *rule == line.options);
                let closed_port = table == Table::Filter
                    && chain == "INPUT"
                    && line.options.has("-j", "DROP")
                    && line.options.value("--dport").is_some()
                    && without_address.contains(&line.options.without("-d"));
                let control_port = any_control_port && line.options.has("--comment", CONTROL_COMMENT);
                let untracked =
                    table == Table::Raw && configs.iter().any(|config| is_untracked(config, &line.options));
                if untracked || leads_to_us || is_known || closed_port || control_port {
                    script.delete(table, chain, line);
                }
            }
        }
    }
    for table in Table::ALL {
        let chains: Vec<&str> =
            now.chains(table).map(|(name, _)| name).filter(|name| is_owned(name)).collect();
        // All are flushed first, because their rules refer to each other.
        let lines =
            ["-F", "-X"].iter().flat_map(|verb| chains.iter().map(move |chain| format!("{verb} {chain}")));
        let lines: Vec<String> = lines.collect();
        if !lines.is_empty() {
            script.table(table).old_chains = lines;
        }
    }
    script.text()
}
