//! The existing rules: the output of `iptables-save`, with each rule in a form that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use super::rules::Table;

/// The rules of all tables of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    tables: BTreeMap<Table, BTreeMap<String, Vec<Line>>>,
    policies: BTreeMap<(Table, String), String>,
}

/// A rule as `iptables-save` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The rule without `-A <chain>`; `iptables-restore` accepts it in this form.
    pub(crate) text: String,
    pub(crate) options: RuleOptions,
}

/// A rule as a set of options with their values. The variants and versions of `iptables` print options in different orders, with or
/// without the module that they belong to, with or without the prefix length of a single address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RuleOptions(BTreeSet<String>);

impl Listing {
    /// Reads the output of `iptables-save`, and ignores lines of any other form.
    pub(crate) fn parse(text: &str) -> Listing {
        let mut listing = Listing::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|t| t.name() == name.trim());
                table.map(|t| listing.tables.entry(t).or_default());
                continue;
            }
            let Some(chains) = table.and_then(|t| listing.tables.get_mut(&t)) else { continue };
            if let Some(chain) = line.strip_prefix(':') {
                let mut words = chain.split(' ');
                let name = words.next().unwrap_or_default().to_owned();
                if let (Some(table), Some(policy)) = (table, words.next().filter(|policy| *policy != "-")) {
                    listing.policies.insert((table, name.clone()), policy.to_owned());
                }
                chains.entry(name).or_default();
                continue;
            }
            // With option `-c` each rule begins with its counters.
            let rule = line.strip_prefix('[').and_then(|l| l.split_once("] ")).map_or(line, |(_, rule)| rule);
            if let Some((chain, text)) =
                rule.strip_prefix("-A ").map(|r| r.split_once(' ').unwrap_or((r, "")))
            {
                let line = Line { text: text.to_owned(), options: RuleOptions::parse(text) };
                chains.entry(chain.to_owned()).or_default().push(line);
            }
        }
        listing
    }

    /// The rules of a chain in order; `None` if there is no such chain.
    pub(crate) fn chain(&self, table: Table, chain: &str) -> Option<&[Line]> {
        self.tables.get(&table)?.get(chain).map(Vec::as_slice)
    }

    /// What a chain of the kernel does with packets that no rule decides.
    pub(crate) fn policy(&self, table: Table, chain: &str) -> Option<&str> {
        self.policies.get(&(table, chain.to_owned())).map(String::as_str)
    }

    pub(crate) fn rule_count(&self) -> usize {
        self.tables.values().flat_map(BTreeMap::values).map(Vec::len).sum()
    }

    pub(crate) fn chains(&self, table: Table) -> impl Iterator<Item = (&str, &[Line])> {
        self.tables.get(&table).into_iter().flatten().map(|(name, lines)| (name.as_str(), lines.as_slice()))
    }
}

impl RuleOptions {
    pub(crate) fn parse(text: &str) -> RuleOptions {
        let mut options = BTreeSet::new();
        let mut words = words(text).into_iter().peekable();
        let mut negated = false;
        while let Some((word, _)) = words.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            let mut values = Vec::new();
            while let Some((value, _)) =
                words.next_if(|(w, quoted)| *quoted || !(w == "!" || w.starts_with('-')))
            {
                values.push(value);
            }
            // The module of an option follows from its name, so `-m` adds nothing.
            if word != "-m" {
                let value = normalise(&word, &values.join(" "));
                options.insert(format!("{}{word} {value}", if negated { "! " } else { "" }));
            }
            negated = false;
        }
        RuleOptions(options)
    }

    /// The chain that it jumps to, or its verdict.
    pub(crate) fn target(&self) -> Option<&str> {
        self.0.iter().find_map(|p| p.strip_prefix("-j ").or_else(|| p.strip_prefix("-g ")))
    }

    pub(crate) fn has(&self, option: &str, value: &str) -> bool {
        self.0.contains(&format!("{option} {value}"))
    }

    /// The value of an option that is not negated.
    pub(crate) fn value(&self, option: &str) -> Option<&str> {
        self.0.iter().find_map(|p| p.strip_prefix(option)?.strip_prefix(' '))
    }

    /// The same rule without one option.
    pub(crate) fn without(&self, option: &str) -> RuleOptions {
        let is_option = |p: &str| {
            p.strip_prefix("! ").unwrap_or(p).strip_prefix(option).is_some_and(|r| r.starts_with(' '))
        };
        RuleOptions(self.0.iter().filter(|p| !is_option(p)).cloned().collect())
    }

    /// Each option: whether it is negated, its name, its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (bool, &str, &str)> {
        self.0.iter().map(|text| {
            let (negated, rest) = text.strip_prefix("! ").map_or((false, text.as_str()), |rest| (true, rest));
            let (option, value) = rest.split_once(' ').unwrap_or((rest, ""));
            (negated, option, value)
        })
    }

    /// The number of options.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

fn normalise(option: &str, value: &str) -> String {
    match option {
        // As listed on a host without /etc/protocols.
        "-p" if value == "2" => "igmp".to_owned(),
        "-s" | "-d" if !value.contains('/') => format!("{value}/32"),
        "--ctstate" | "--state" => {
            let states: BTreeSet<&str> = value.split(',').collect();
            states.into_iter().collect::<Vec<_>>().join(",")
        }
        _ => value.to_owned(),
    }
}

/// The words of a rule, and whether each is quoted. A backslash escapes the next character.
fn words(text: &str) -> Vec<(String, bool)> {
    let mut words = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(&first) = chars.peek() {
        if first == ' ' {
            chars.next();
            continue;
        }
        let (mut word, mut quoted, mut inside) = (String::new(), false, false);
        while let Some(c) = chars.next_if(|c| inside || *c != ' ') {
            match c {
                '"' => (quoted, inside) = (true, !inside),
                '\\' => word.extend(chars.next()),
                _ => word.push(c),
            }
        }
        words.push((word, quoted));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_forms_of_a_rule_are_equal() {
        for (a, b) in [
            ("-d 10.2.1.1/32 -i ethwe -j DROP", "-i ethwe -d 10.2.1.1 -j DROP"),
            ("-p tcp -m tcp --dport 53 -j ACCEPT", "-p tcp --dport 53 -j ACCEPT"),
            (
                "-m conntrack --ctstate RELATED,ESTABLISHED -j X",
                "-m conntrack --ctstate ESTABLISHED,RELATED -j X",
            ),
            (
                "-m comment --comment \"a \\'b\\' \\\"c\\\"\" -j X",
                "-m comment --comment \"a 'b' \\\"c\\\"\" -j X",
            ),
        ] {
            assert_eq!(RuleOptions::parse(a), RuleOptions::parse(b));
        }
        for (a, b) in [
            ("! -s 10.0.0.0/8 -j X", "-s 10.0.0.0/8 -j X"),
            ("-s 10.0.0.0/8 ! -d 10.0.0.0/8 -j X", "! -s 10.0.0.0/8 -d 10.0.0.0/8 -j X"),
            ("-m comment --comment \"-j Y\" -j X", "-j Y"),
            ("-i a -j X", "-i a"),
        ] {
            assert_ne!(RuleOptions::parse(a), RuleOptions::parse(b));
        }
        let rule = RuleOptions::parse("-i a ! -o b -m comment --comment \"! -j Y\" -g X");
        assert_eq!((rule.target(), rule.value("-i"), rule.value("-o")), (Some("X"), Some("a"), None));
        assert!(rule.has("--comment", "! -j Y"));
        assert_eq!(rule.without("-o").without("--comment"), RuleOptions::parse("-g X -i a"));
    }

    #[test]
    fn listing_of_several_tables() {
        let text = "# Generated by iptables-save v1.8.9\n*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n\
                    *filter\n:INPUT DROP [3:4]\n:WEAVE - [0:0]\n[7:8] -A INPUT -i a -j WEAVE\n-A WEAVE\nCOMMIT\n\
                    # Table `nat' is incompatible, use 'nft' tool.\n";
        let listing = Listing::parse(text);
        let chains: Vec<_> = listing.chains(Table::Filter).map(|(name, rules)| (name, rules.len())).collect();
        assert_eq!(chains, [("INPUT", 1), ("WEAVE", 1)]);
        assert_eq!(listing.chain(Table::Filter, "INPUT").unwrap()[0].text, "-i a -j WEAVE");
        assert_eq!(listing.chain(Table::Nat, "POSTROUTING"), None);
        assert_eq!(listing.chains(Table::Nat).count(), 0);
    }

    #[test]
    fn malformed_text_does_not_panic() {
        for text in [
            "",
            "!",
            "-",
            "-A",
            "*filter\n-A",
            "*filter\n-A X \"",
            "*filter\n:\n-A X \\",
            "! ! -s",
            "\"\" \"-x\"",
        ] {
            assert_eq!(Listing::parse(text), Listing::parse(text));
            assert_eq!(RuleOptions::parse(text), RuleOptions::parse(text));
        }
    }
}
