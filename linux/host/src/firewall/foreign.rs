//! Finds chains of other programs that drop what our rules accept. An accept ends the matter for one table only; the packet still passes
//! the chains of all other tables at the same hook.
//!
//! A packet is described by what is known about it, and each rule matches it, does not match it, or may match it. A chain is only
//! reported if it drops such packets whatever else is true of them, so that one that admits some of them on purpose is not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::driver::{Backend, Drivers};
use super::listing::RuleOptions;
use super::rules::Table;

/// Bounds the walk through chains that jump to each other.
const MAX_DEPTH: usize = 16;

/// A kind of packet that has to pass.
#[derive(Clone, Debug)]
pub struct PacketClass {
    /// Completes "drops ...".
    pub what: String,
    /// What an operator can do where firewalld is the other program.
    pub firewalld: String,
    /// The interface by which the packets arrive.
    pub input: String,
    /// The interface by which they leave; `None` if they are for the host itself.
    pub output: Option<String>,
    /// Whether they are IPv6.
    pub ipv6: bool,
    /// Protocol and destination port, if they have a certain one.
    pub port: Option<(&'static str, u16)>,
}

impl PacketClass {
    fn hook(&self) -> &'static str {
        if self.output.is_some() { "forward" } else { "input" }
    }
}

/// Whether a rule matches a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Matches {
    No,
    Maybe,
    Yes,
}

impl Matches {
    fn of(known: bool) -> Matches {
        if known { Matches::Yes } else { Matches::No }
    }

    fn and(self, other: Matches) -> Matches {
        match (self, other) {
            (Matches::No, _) | (_, Matches::No) => Matches::No,
            (Matches::Yes, Matches::Yes) => Matches::Yes,
            _ => Matches::Maybe,
        }
    }

    fn negate(self) -> Matches {
        match self {
            Matches::No => Matches::Yes,
            Matches::Maybe => Matches::Maybe,
            Matches::Yes => Matches::No,
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
    Return,
}

impl Action {
    /// The action that a key of nftables' JSON stands for.
    fn of(key: &str, value: &Value) -> Option<Action> {
        let target = || Some(value.get("target")?.as_str()?.to_owned());
        match key {
            "accept" | "queue" => Some(Action::Accept),
            "drop" | "reject" => Some(Action::Drop),
            "return" => Some(Action::Return),
            "jump" => target().map(Action::Jump),
            "goto" => target().map(Action::Goto),
            _ => None,
        }
    }
}

/// What becomes of a packet in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is accepted, or it is not known.
    MayPass,
    Dropped,
    /// The chain ends without a verdict.
    Continues,
}

/// The rules of one chain, as they apply to one packet.
type Rules = Vec<(Matches, Action)>;

/// The chains of one table.
#[derive(Debug, Default)]
struct Chains(BTreeMap<String, Rules>);

impl Chains {
    fn fate(&self, chain: &str, depth: usize) -> Fate {
        let Some(rules) = self.0.get(chain).filter(|_| depth < MAX_DEPTH) else { return Fate::MayPass };
        for (matches, action) in rules.iter().filter(|(matches, _)| *matches != Matches::No) {
            let certain = *matches == Matches::Yes;
            let fate = match action {
                Action::Accept => return Fate::MayPass,
                Action::Drop => Fate::Dropped,
                // It may skip the rest of the chain, which may be what drops it.
                Action::Return => return if certain { Fate::Continues } else { Fate::MayPass },
                Action::Jump(target) => self.fate(target, depth + 1),
                Action::Goto(target) => match self.fate(target, depth + 1) {
                    Fate::Continues if certain => return Fate::Continues,
                    fate => fate,
                },
            };
            match fate {
                Fate::MayPass => return Fate::MayPass,
                Fate::Dropped if certain => return Fate::Dropped,
                Fate::Dropped | Fate::Continues => {}
            }
        }
        Fate::Continues
    }

    /// Whether a base chain drops the packet.
    fn drops(&self, chain: &str, policy: &str) -> bool {
        match self.fate(chain, 0) {
            Fate::MayPass => false,
            Fate::Dropped => true,
            Fate::Continues => policy.eq_ignore_ascii_case("drop"),
        }
    }
}

/// The chains that drop packets of these classes, each with what it drops and what admits it, as one line.
pub fn dropping_chains(classes: &[PacketClass]) -> Vec<String> {
    let drivers = Drivers::find();
    let mut found: BTreeMap<String, Vec<&PacketClass>> = BTreeMap::new();
    let ruleset = drivers
        .get(Backend::Nft)
        .and_then(|nft| nft.nft(&["-j", "list", "ruleset"]).ok())
        .and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let legacy = drivers.get(Backend::IptablesLegacy).and_then(|driver| driver.list().ok());
    for class in classes {
        let nft = ruleset.iter().flat_map(|ruleset| nft_chains(ruleset, class));
        // There is no IPv6 in this listing.
        let listing = legacy.as_ref().filter(|_| !class.ipv6);
        let legacy = listing.and_then(|listing| {
            let base = class.hook().to_uppercase();
            let policy = listing.policy(Table::Filter, &base)?;
            let chains = listing.chains(Table::Filter).map(|(name, lines)| {
                let rules = lines.iter().filter_map(|line| legacy_rule(&line.options, class)).collect();
                (name.to_owned(), rules)
            });
            let drops = Chains(chains.collect()).drops(&base, policy);
            drops.then(|| format!("chain {base} of iptables-legacy"))
        });
        for chain in nft.chain(legacy) {
            found.entry(chain).or_default().push(class);
        }
    }
    found.into_iter().map(|(chain, classes)| describe(&chain, &classes)).collect()
}

fn describe(chain: &str, classes: &[&PacketClass]) -> String {
    let what = classes.iter().map(|c| c.what.as_str()).collect::<Vec<_>>().join(", ");
    let remedy = if chain.contains("firewalld") {
        let mut commands: Vec<&str> = classes.iter().map(|c| c.firewalld.as_str()).collect();
        commands.dedup();
        format!(
            "'firewall-cmd --permanent {}' and 'firewall-cmd --reload' admit it",
            commands.join("', 'firewall-cmd --permanent ")
        )
    } else {
        "accept it there".to_owned()
    };
    format!("another program's firewall, {chain}, drops {what}; {remedy}")
}

/// The names of the base chains of nftables that drop a packet.
fn nft_chains(ruleset: &Value, class: &PacketClass) -> Vec<String> {
    let objects = || ruleset.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let text =
        |object: &Value, key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let applies = |family: &str| match family {
        "inet" => true,
        "ip" => !class.ipv6,
        "ip6" => class.ipv6,
        _ => false,
    };
    let mut tables: BTreeMap<(String, String), Chains> = BTreeMap::new();
    let mut bases = Vec::new();
    for chain in objects().filter_map(|o| o.get("chain")) {
        let table = (text(chain, "family"), text(chain, "table"));
        if text(chain, "hook") == class.hook() && text(chain, "type") == "filter" && applies(&table.0) {
            bases.push((table.clone(), text(chain, "name"), text(chain, "policy")));
        }
        tables.entry(table).or_default().0.insert(text(chain, "name"), Vec::new());
    }
    for rule in objects().filter_map(|o| o.get("rule")) {
        let table = (text(rule, "family"), text(rule, "table"));
        let rules = tables.get_mut(&table).and_then(|t| t.0.get_mut(&text(rule, "chain")));
        if let (Some(rules), Some(parts)) = (rules, rule.get("expr").and_then(Value::as_array)) {
            rules.extend(nft_rule(parts, class));
        }
    }
    let drops = |(table, chain, policy): &(_, String, String)| {
        tables.get(table).is_some_and(|chains| chains.drops(chain, policy))
    };
    bases.retain(drops);
    bases
        .into_iter()
        .map(|((family, table), chain, _)| format!("table {family} {table}, chain {chain}"))
        .collect()
}

fn nft_rule(parts: &[Value], class: &PacketClass) -> Rules {
    let mut matches = Matches::Yes;
    let mut rules = Vec::new();
    for (key, value) in parts.iter().filter_map(Value::as_object).flatten() {
        match key.as_str() {
            "match" => matches = matches.and(nft_match(value, class)),
            "vmap" => {
                let key = value.get("key").and_then(|key| nft_field(key, class));
                let entries = value.pointer("/data/set").and_then(Value::as_array);
                for entry in entries.into_iter().flatten().filter_map(Value::as_array) {
                    let [element, verdict] = entry.as_slice() else { continue };
                    let hit = key.as_ref().map_or(Matches::Maybe, |key| key.matches(element));
                    let actions = verdict.as_object().into_iter().flatten();
                    rules.extend(actions.filter_map(|(k, v)| Some((matches.and(hit), Action::of(k, v)?))));
                }
                if entries.is_none() {
                    // A named map.
                    rules.push((matches.and(Matches::Maybe), Action::Accept));
                }
            }
            "counter" | "log" | "comment" => {}
            "xt" if value.get("name").and_then(Value::as_str) == Some("comment") => {}
            _ => match Action::of(key, value) {
                Some(action) => rules.push((matches, action)),
                None => matches = matches.and(Matches::Maybe),
            },
        }
    }
    rules
}

/// What is known of a packet in one respect.
enum Field<'a> {
    /// An interface, with which a pattern may end in `*`.
    Interface(&'a str),
    Word(&'static str),
    Port(u16),
    /// Nothing that a rule can name.
    Nothing,
}

impl Field<'_> {
    fn matches(&self, right: &Value) -> Matches {
        let any = |values: &[Value]| {
            let all: Vec<Matches> = values.iter().map(|v| self.matches(v)).collect();
            [Matches::Yes, Matches::Maybe].into_iter().find(|m| all.contains(m)).unwrap_or(Matches::No)
        };
        match (self, right) {
            (Field::Nothing, _) => Matches::No,
            (_, Value::Array(values)) => any(values),
            (_, Value::Object(object)) => match (object.get("set"), object.get("range"), self) {
                (Some(Value::Array(values)), ..) => any(values),
                (_, Some(Value::Array(ends)), Field::Port(port)) => {
                    let end = |i: usize| ends.get(i).and_then(Value::as_u64);
                    match (end(0), end(1)) {
                        (Some(from), Some(to)) => Matches::of((from..=to).contains(&u64::from(*port))),
                        _ => Matches::Maybe,
                    }
                }
                _ => Matches::Maybe,
            },
            // A named set.
            (_, Value::String(name)) if name.starts_with('@') => Matches::Maybe,
            (Field::Interface(name), Value::String(pattern)) => {
                Matches::of(match pattern.strip_suffix('*') {
                    Some(start) => name.starts_with(start),
                    None => name == pattern,
                })
            }
            (Field::Word(word), Value::String(value)) => Matches::of(word == value),
            (Field::Port(port), Value::Number(value)) => {
                Matches::of(value.as_u64() == Some(u64::from(*port)))
            }
            _ => Matches::Maybe,
        }
    }
}

/// `None` if nothing is known about it.
fn nft_field<'a>(left: &Value, class: &'a PacketClass) -> Option<Field<'a>> {
    let at = |path: &str| left.pointer(path).and_then(Value::as_str);
    let protocol = |of: (&'static str, u16)| Field::Word(of.0);
    Some(match (at("/meta/key"), at("/ct/key"), at("/payload/protocol"), at("/payload/field")) {
        (Some("iifname" | "iif"), ..) => Field::Interface(&class.input),
        (Some("oifname" | "oif"), ..) => class.output.as_deref().map_or(Field::Nothing, Field::Interface),
        (Some("nfproto"), ..) => Field::Word(if class.ipv6 { "ipv6" } else { "ipv4" }),
        (Some("l4proto"), ..) => protocol(class.port?),
        (_, Some("state"), ..) => Field::Word("new"),
        // No packet of a class is translated.
        (_, Some("status"), ..) => Field::Nothing,
        (.., Some("ip" | "ip6"), Some("protocol" | "nexthdr")) => protocol(class.port?),
        (.., Some(transport @ ("tcp" | "udp" | "th")), Some("dport")) => {
            let (protocol, port) = class.port?;
            if transport == "th" || transport == protocol { Field::Port(port) } else { Field::Nothing }
        }
        (.., Some("icmp" | "icmpv6"), _) if class.port.is_some() => Field::Nothing,
        (.., Some("ip6"), _) if !class.ipv6 => Field::Nothing,
        (.., Some("ip"), _) if class.ipv6 => Field::Nothing,
        _ => return None,
    })
}

fn nft_match(value: &Value, class: &PacketClass) -> Matches {
    let (Some(left), Some(right)) = (value.get("left"), value.get("right")) else { return Matches::Maybe };
    let Some(field) = nft_field(left, class) else { return Matches::Maybe };
    match value.get("op").and_then(Value::as_str) {
        // A rule about a field that the packet does not have does not match, whatever the operator.
        Some("==" | "in") => field.matches(right),
        Some("!=") if matches!(field, Field::Nothing) && left.get("ct").is_none() => Matches::No,
        Some("!=") => field.matches(right).negate(),
        _ => Matches::Maybe,
    }
}

fn legacy_rule(options: &RuleOptions, class: &PacketClass) -> Option<(Matches, Action)> {
    let mut matches = Matches::Yes;
    let interface = |name: &str, pattern: &str| match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    for (negated, option, value) in options.iter() {
        let hit = match option {
            "-j" | "-g" | "--comment" | "--reject-with" => continue,
            "-i" => Matches::of(interface(&class.input, value)),
            "-o" => Matches::of(class.output.as_deref().is_some_and(|name| interface(name, value))),
            "--ctstate" | "--state" => Matches::of(value.split(',').any(|state| state == "NEW")),
            "-p" => class.port.map_or(Matches::Maybe, |(protocol, _)| Matches::of(protocol == value)),
            "--dport" => match (class.port, value.parse::<u16>()) {
                (Some((_, port)), Ok(wanted)) => Matches::of(port == wanted),
                _ => Matches::Maybe,
            },
            _ => Matches::Maybe,
        };
        matches = matches.and(if negated { hit.negate() } else { hit });
    }
    let action = match options.target()? {
        "ACCEPT" | "NFQUEUE" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        // They add something to the packet or to a log.
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "CT" | "TCPMSS" | "DSCP" | "CLASSIFY" | "AUDIT" | "TRACE" => {
            return None;
        }
        chain if options.value("-g").is_some() => Action::Goto(chain.to_owned()),
        chain => Action::Jump(chain.to_owned()),
    };
    Some((matches, action))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(input: &str, output: Option<&str>, port: Option<(&'static str, u16)>) -> PacketClass {
        PacketClass {
            what: "what containers send".into(),
            firewalld: "--zone=trusted --add-interface=weave".into(),
            input: input.into(),
            output: output.map(str::to_owned),
            ipv6: false,
            port,
        }
    }

    /// A table as `nft -j` lists it: base chain `forward` with these expressions, and chain `zone` with those.
    fn ruleset(policy: &str, forward: &[&str], zone: &[&str]) -> Value {
        let rule = |chain: &str, expr: &&str| {
            format!(
                r#"{{"rule":{{"family":"inet","table":"firewalld","chain":"{chain}","handle":1,"expr":[{expr}]}}}}"#
            )
        };
        let base = format!(
            r#"{{"chain":{{"family":"inet","table":"firewalld","name":"forward","type":"filter","hook":"forward","prio":10,"policy":"{policy}"}}}}"#
        );
        let other = r#"{"chain":{"family":"inet","table":"firewalld","name":"zone"}}"#.to_owned();
        let rules = forward.iter().map(|e| rule("forward", e)).chain(zone.iter().map(|e| rule("zone", e)));
        let all: Vec<String> = [base, other].into_iter().chain(rules).collect();
        serde_json::from_str(&format!(r#"{{"nftables":[{{"metainfo":{{}}}},{}]}}"#, all.join(","))).unwrap()
    }

    const ESTABLISHED: &str = r#"{"match":{"op":"in","left":{"ct":{"key":"state"}},"right":["established","related"]}},{"accept":null}"#;
    const DNAT: &str =
        r#"{"match":{"op":"in","left":{"ct":{"key":"status"}},"right":"dnat"}},{"accept":null}"#;
    const REJECT: &str = r#"{"reject":{"type":"icmpx","expr":"admin-prohibited"}}"#;
    const JUMP: &str = r#"{"jump":{"target":"zone"}}"#;
    const FROM_WEAVE: &str = r#"{"match":{"op":"==","left":{"meta":{"key":"iifname"}},"right":"weave"}},{"counter":{"packets":0,"bytes":0}},{"accept":null}"#;
    const TO_PORT: &str = r#"{"match":{"op":"==","left":{"payload":{"protocol":"tcp","field":"dport"}},"right":{"set":[22,{"range":[6000,7000]}]}}},{"accept":null}"#;
    const FROM_SET: &str = r#"{"match":{"op":"==","left":{"payload":{"protocol":"ip","field":"saddr"}},"right":"@friends"}},{"accept":null}"#;
    const BY_STATE: &str = r#"{"vmap":{"key":{"ct":{"key":"state"}},"data":{"set":[["established",{"accept":null}],["new",{"jump":{"target":"zone"}}]]}}}"#;

    #[test]
    fn chains_of_nftables_that_drop() {
        let out = class("weave", Some("eth0"), None);
        let rules: [(&str, &[&str], &[&str], bool); 11] = [
            ("accept", &[], &[], false),
            ("drop", &[], &[], true),
            ("accept", &[ESTABLISHED, DNAT, REJECT], &[], true),
            ("accept", &[ESTABLISHED, FROM_WEAVE, REJECT], &[], false),
            ("accept", &[ESTABLISHED, JUMP, REJECT], &[r#"{"return":null}"#], true),
            ("accept", &[JUMP, REJECT], &[FROM_WEAVE], false),
            ("accept", &[JUMP], &[REJECT], true),
            // Some packets may be let through on purpose.
            ("accept", &[TO_PORT, REJECT], &[], false),
            ("drop", &[FROM_SET], &[], false),
            ("accept", &[BY_STATE], &[REJECT], true),
            ("drop", &[r#"{"jump":{"target":"forward"}}"#], &[], false),
        ];
        for (policy, forward, zone, expected) in rules {
            let found = nft_chains(&ruleset(policy, forward, zone), &out);
            let chain = "table inet firewalld, chain forward".to_owned();
            assert_eq!(found, if expected { vec![chain] } else { vec![] }, "{policy} {forward:?} {zone:?}");
        }
        // Another hook, another family, and no rules at all.
        assert_eq!(
            nft_chains(&ruleset("drop", &[], &[]), &class("eth0", None, Some(("tcp", 6783)))),
            [""; 0]
        );
        for damaged in
            ["{}", r#"{"nftables":[{"chain":{"hook":"forward"}},{"rule":{"expr":[{"match":1}]}}]}"#, "[]"]
        {
            assert_eq!(nft_chains(&serde_json::from_str(damaged).unwrap(), &out), [""; 0]);
        }
    }

    #[test]
    fn ports_of_a_class_are_compared() {
        for (port, dropped) in
            [(Some(("tcp", 6783)), false), (Some(("udp", 6783)), true), (Some(("tcp", 80)), true)]
        {
            let found =
                nft_chains(&ruleset("accept", &[TO_PORT, REJECT], &[]), &class("eth0", Some("eth1"), port));
            assert_eq!(found.len(), usize::from(dropped), "{port:?}");
        }
    }

    #[test]
    fn rules_of_iptables_legacy_that_drop() {
        let peers = class("eth0", None, Some(("tcp", 6783)));
        for (rules, dropped) in [
            ("-j DROP", true),
            ("-i eth0 -p tcp -m tcp --dport 6783 -j ACCEPT\n-A INPUT -j DROP", false),
            (
                "-i eth+ -p udp -m udp --dport 6783 -j ACCEPT\n-A INPUT -j REJECT --reject-with icmp-port-unreachable",
                true,
            ),
            ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n-A INPUT ! -i lo -j DROP", true),
            ("-s 192.0.2.0/24 -j ACCEPT\n-A INPUT -j DROP", false),
            ("-i weave -j DROP", false),
            ("-j LOG\n-A INPUT -g other\n-A INPUT -j DROP\n-A other -i eth0 -j RETURN", false),
        ] {
            let text = format!("*filter\n:INPUT ACCEPT [0:0]\n:other - [0:0]\n-A INPUT {rules}\nCOMMIT\n");
            let listing = super::super::listing::Listing::parse(&text);
            let rules_of = |lines: &[super::super::listing::Line]| {
                lines.iter().filter_map(|l| legacy_rule(&l.options, &peers)).collect()
            };
            let chains =
                listing.chains(Table::Filter).map(|(name, lines)| (name.to_owned(), rules_of(lines)));
            assert_eq!(listing.policy(Table::Filter, "INPUT"), Some("ACCEPT"));
            assert_eq!(Chains(chains.collect()).drops("INPUT", "ACCEPT"), dropped, "{rules}");
        }
    }

    #[test]
    fn line_names_chain_packets_and_remedy() {
        let out = class("weave", Some("eth0"), None);
        assert_eq!(
            describe("table inet firewalld, chain filter_FORWARD", &[&out, &out]),
            "another program's firewall, table inet firewalld, chain filter_FORWARD, drops what containers send, what containers \
             send; 'firewall-cmd --permanent --zone=trusted --add-interface=weave' and 'firewall-cmd --reload' admit it"
        );
        assert!(
            describe("table ip other, chain x", &[&out])
                .ends_with("drops what containers send; accept it there")
        );
    }
}
