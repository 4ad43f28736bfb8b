//! From what is there to what is wanted: the smallest change, as input of `iptables-restore --noflush`, which makes all changes
//! of a table at once or none.

use std::collections::BTreeMap;

use super::listing::{Line, Listing, Parts};
use super::rules::{
    CONTROL_COMMENT, EXPOSE, ExposedAddress, FirewallConfig, LOCAL_SET, Match, NAT, Place, Rule, Table,
    Wanted, attached_bridge, possible, wanted,
};

/// Lines for `iptables-restore`, by table.
#[derive(Debug, Default)]
struct Script(BTreeMap<Table, Edits>);

/// In the order in which they are possible.
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

    /// `None` if nothing is to be done.
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

/// What has to be done so that `now` has the rules of `setup` and `exposed`, and none of those that only `former` setups had.
/// `None` if that is so already.
pub(crate) fn towards(
    now: &Listing,
    setup: &FirewallConfig,
    exposed: &[ExposedAddress],
    former: &[FirewallConfig],
) -> Option<String> {
    let wanted = wanted(setup, exposed);
    let mut script = Script::default();
    for w in &wanted {
        if matches!(w.place, Place::Own | Place::Lent) && now.chain(w.table, &w.chain).is_none() {
            script.table(w.table).new_chains.push(format!("-N {}", w.chain));
        }
        match w.place {
            Place::Lent => {}
            Place::Own => own(&mut script, now, w),
            Place::End => end(&mut script, now, w),
            Place::Top => top(&mut script, now, w),
        }
    }
    drop_former(&mut script, now, &wanted, setup, former);
    script.text()
}

fn parts(rule: &Rule) -> Parts {
    Parts::of(&rule.to_string())
}

/// Ours lie in the order wanted; what others put there stays.
fn own(script: &mut Script, now: &Listing, w: &Wanted) {
    let present: Vec<&Line> =
        now.chain(w.table, &w.chain).into_iter().flatten().filter(|l| is_ours(w, &l.parts)).collect();
    let wanted: Vec<Parts> = w.rules.iter().map(parts).collect();
    if present.iter().map(|l| &l.parts).eq(&wanted) {
        return;
    }
    // The beginning stays as far as it is right; the rest is made anew.
    let same = present.iter().zip(&wanted).take_while(|(l, w)| l.parts == **w).count();
    for line in present.iter().skip(same).rev() {
        script.delete(w.table, &w.chain, line);
    }
    for rule in w.rules.iter().skip(same) {
        // It belongs before what others put there, too.
        let first = rule.matches.iter().any(|m| matches!(m, Match::ToLocalSet(_)));
        let verb = if first { format!("-I {} 1", w.chain) } else { format!("-A {}", w.chain) };
        script.table(w.table).additions.push(format!("{verb} {rule}"));
    }
}

/// Whether a rule in a chain of ours is of a kind that we make there.
fn is_ours(w: &Wanted, rule: &Parts) -> bool {
    // The rest is the instance's name.
    match w.chain.split('.').next().unwrap_or_default() {
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

fn end(script: &mut Script, now: &Listing, w: &Wanted) {
    let present = now.chain(w.table, &w.chain).unwrap_or_default();
    for rule in &w.rules {
        let count = present.iter().filter(|l| l.parts == parts(rule)).count();
        if count == 0 {
            script.table(w.table).additions.push(format!("-A {} {rule}", w.chain));
        }
    }
}

fn top(script: &mut Script, now: &Listing, w: &Wanted) {
    let present = now.chain(w.table, &w.chain).unwrap_or_default();
    let wanted: Vec<Parts> = w.rules.iter().map(parts).collect();
    if wanted.iter().all(|w| present.iter().any(|l| l.parts == *w)) {
        return;
    }
    for line in present.iter().filter(|l| wanted.contains(&l.parts)) {
        script.delete(w.table, &w.chain, line);
    }
    for (i, rule) in w.rules.iter().enumerate() {
        script.table(w.table).additions.push(format!("-I {} {} {rule}", w.chain, i + 1));
    }
}

/// Rules that another setup made in chains of others: with another port, another bridge of Docker's, without the network
/// policy controller, by a version that left out the control port.
fn drop_former(
    script: &mut Script,
    now: &Listing,
    wanted: &[Wanted],
    setup: &FirewallConfig,
    former: &[FirewallConfig],
) {
    let stale: Vec<_> =
        former.iter().chain([setup]).flat_map(possible).map(|(t, c, r)| (t, c, parts(&r))).collect();
    for table in Table::ALL {
        for (chain, lines) in now.chains(table) {
            let stays: Vec<Parts> = wanted
                .iter()
                .filter(|w| w.table == table && w.chain == chain)
                .flat_map(|w| &w.rules)
                .map(parts)
                .collect();
            for line in lines {
                let known =
                    stale.iter().any(|(t, c, rule)| *t == table && *c == chain && *rule == line.parts);
                // Of 2.6.3.
                let portless = line.parts.has("--comment", CONTROL_COMMENT)
                    && line.parts.value("--dport").is_none()
                    && setup.instance.is_none();
                if (known || portless) && !stays.contains(&line.parts) {
                    script.delete(table, chain, line);
                }
            }
        }
    }
}

/// Takes away everything of ours and of 2.8.1's; `None` if there is nothing.
pub(crate) fn removal(now: &Listing, setups: &[FirewallConfig]) -> Option<String> {
    let mut script = Script::default();
    let made = setups.iter().flat_map(|s| possible(s).into_iter().chain([attached_bridge(s)]));
    let stale: Vec<_> = made.map(|(t, c, r)| (t, c, parts(&r))).collect();
    let is_owned = |chain: &str| setups.iter().any(|s| s.owns(chain));
    // Whatever the port was. An instance that still runs makes its own again.
    let any_control = setups.iter().any(|s| s.instance.is_none());
    // Docker's address may be another one today.
    let anywhere: Vec<Parts> =
        stale.iter().filter(|(_, c, _)| *c == "INPUT").map(|(.., r)| r.without("-d")).collect();
    for table in Table::ALL {
        for (chain, lines) in now.chains(table).filter(|(chain, _)| !is_owned(chain)) {
            for line in lines {
                let leads_to_us = line.parts.target().is_some_and(is_owned);
                let known =
                    stale.iter().any(|(t, c, rule)| *t == table && *c == chain && *rule == line.parts);
                let closed_port = table == Table::Filter
                    && chain == "INPUT"
                    && line.parts.has("-j", "DROP")
                    && line.parts.value("--dport").is_some()
                    && anywhere.contains(&line.parts.without("-d"));
                let control = any_control && line.parts.has("--comment", CONTROL_COMMENT);
                if leads_to_us || known || closed_port || control {
                    script.delete(table, chain, line);
                }
            }
        }
    }
    for table in Table::ALL {
        let chains: Vec<&str> =
            now.chains(table).map(|(name, _)| name).filter(|name| is_owned(name)).collect();
        // Emptied first: they lead to each other.
        let lines =
            ["-F", "-X"].iter().flat_map(|verb| chains.iter().map(move |chain| format!("{verb} {chain}")));
        let lines: Vec<String> = lines.collect();
        if !lines.is_empty() {
            script.table(table).old_chains = lines;
        }
    }
    script.text()
}
