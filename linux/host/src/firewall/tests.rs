//! The rules against those of 2.8.1, reached from any state.

use std::collections::BTreeMap;

use super::listing::Listing;
use super::plan::{diff, removal, untracked};
use super::rules::{DockerBridge, ExposedAddress, FirewallConfig, Table};

const AFTER_LAUNCH: &str = include_str!("../../../../tests/vectors/cli/iptables-after-launch.txt");
const AFTER_EXPOSE: &str = include_str!("../../../../tests/vectors/cli/iptables-after-expose.txt");
const NPC: &str = include_str!("../../../../tests/vectors/cli/iptables-expect-npc-no-masq-local.txt");

/// The configuration of the vectors.
fn config() -> FirewallConfig {
    FirewallConfig {
        instance: None,
        bridge: "weave".into(),
        port: 6783,
        control_port: Some(6784),
        docker: Some(DockerBridge { name: "docker0".into(), address: [172, 17, 0, 1].into() }),
        expect_npc: false,
        no_masq_local: false,
        dns_port: None,
    }
}

fn exposed(address: &str, masquerade: bool) -> ExposedAddress {
    ExposedAddress { address: address.parse().unwrap(), masquerade }
}

/// A model of `iptables-restore --noflush` for the commands that our scripts use. It compares rules as texts, as the program does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Kernel {
    tables: BTreeMap<Table, BTreeMap<String, Vec<String>>>,
}

impl Kernel {
    fn empty() -> Kernel {
        let chains = |names: &[&str]| names.iter().map(|n| ((*n).to_owned(), Vec::new())).collect();
        let tables = [
            (Table::Filter, chains(&["INPUT", "FORWARD", "OUTPUT"])),
            (Table::Nat, chains(&["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"])),
            (Table::Mangle, chains(&["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"])),
            (Table::Raw, chains(&["PREROUTING", "OUTPUT"])),
        ];
        Kernel { tables: tables.into() }
    }

    /// Reads a vector: the output of `iptables -S` for each table. Vectors leave out table mangle, which has the canary only.
    fn of(vector: &str) -> Kernel {
        let mut kernel = Kernel::empty();
        if !vector.contains("# table mangle") {
            kernel.table(Table::Mangle).insert("WEAVE-CANARY".to_owned(), Vec::new());
        }
        let mut table = Table::Filter;
        for line in vector.lines() {
            if let Some(name) = line.strip_prefix("# table ") {
                table = Table::ALL.into_iter().find(|t| t.name() == name).unwrap();
            } else if let Some(chain) = line.strip_prefix("-N ") {
                kernel.table(table).insert(chain.to_owned(), Vec::new());
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|l| l.split_once(' ')) {
                kernel.table(table).get_mut(chain).unwrap().push(rule.to_owned());
            }
        }
        kernel
    }

    fn table(&mut self, table: Table) -> &mut BTreeMap<String, Vec<String>> {
        self.tables.get_mut(&table).unwrap()
    }

    fn chain(&mut self, table: Table, chain: &str) -> &mut Vec<String> {
        self.table(table).get_mut(chain).unwrap()
    }

    fn save(&self) -> String {
        let mut text = String::new();
        for (table, chains) in &self.tables {
            text.push_str(&format!("*{}\n", table.name()));
            chains.keys().for_each(|chain| text.push_str(&format!(":{chain} - [0:0]\n")));
            for (chain, rules) in chains {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {chain} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    fn listing(&self) -> Listing {
        Listing::parse(&self.save())
    }

    /// Panics where the program would fail.
    fn restore(&mut self, script: &str) {
        let mut table = Table::Filter;
        for line in script.lines() {
            let mut words = line.splitn(3, ' ');
            let (verb, chain, rest) =
                (words.next().unwrap(), words.next().unwrap_or(""), words.next().unwrap_or(""));
            if let Some(name) = verb.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|t| t.name() == name).unwrap();
                continue;
            }
            match verb {
                "COMMIT" => {}
                "-N" => assert_eq!(self.table(table).insert(chain.to_owned(), Vec::new()), None, "{line}"),
                "-F" => self.chain(table, chain).clear(),
                "-X" => {
                    let jump = format!("-j {chain}");
                    let used = self
                        .table(table)
                        .values()
                        .flatten()
                        .any(|r| r.split_inclusive(&jump).count() > 1 || r.ends_with(&jump));
                    assert!(!used, "{line}: in use");
                    assert_eq!(self.table(table).remove(chain), Some(Vec::new()), "{line}");
                }
                "-A" => self.chain(table, chain).push(rest.to_owned()),
                "-I" => {
                    let (place, rule) = rest.split_once(' ').unwrap();
                    self.chain(table, chain).insert(place.parse::<usize>().unwrap() - 1, rule.to_owned());
                }
                "-D" => {
                    let rules = self.chain(table, chain);
                    let at = rules.iter().position(|r| r == rest);
                    rules.remove(at.unwrap_or_else(|| panic!("{line}: no such rule")));
                }
                _ => panic!("{line}"),
            }
        }
    }

    /// `true` if there was something to do.
    fn ensure(
        &mut self,
        config: &FirewallConfig,
        exposed: &[ExposedAddress],
        previous: &[FirewallConfig],
    ) -> bool {
        let Some(script) = diff(&self.listing(), config, exposed, previous) else { return false };
        self.restore(&script);
        assert_eq!(diff(&self.listing(), config, exposed, previous), None, "one script is enough:\n{script}");
        true
    }

    fn remove(&mut self, configs: &[FirewallConfig]) {
        if let Some(script) = removal(&self.listing(), configs) {
            self.restore(&script);
        }
        assert_eq!(removal(&self.listing(), configs), None);
    }
}

#[test]
fn questions_for_names_are_accepted_and_not_tracked() {
    let config = FirewallConfig { dns_port: Some(53), ..config() };
    let mut kernel = Kernel::empty();
    kernel.ensure(&config, &[], &[]);
    for bridge in ["docker0", "weave"] {
        for protocol in ["udp", "tcp"] {
            let rule = format!("-i {bridge} -p {protocol} -m {protocol} --dport 53 -j ACCEPT");
            assert!(kernel.chain(Table::Filter, "INPUT").contains(&rule), "{rule}");
        }
    }
    let before = kernel.clone();
    let others = "-i docker0 -p udp -m udp --dport 53 -j CT --notrack";
    kernel.chain(Table::Raw, "PREROUTING").push(others.to_owned());
    let mut follow = |exposed: &[ExposedAddress]| {
        if let Some(script) = untracked(&kernel.listing(), &config, exposed, &[]) {
            kernel.restore(&script);
        }
        assert_eq!(untracked(&kernel.listing(), &config, exposed, &[]), None);
        let ours = |chain: &str, kernel: &mut Kernel| kernel.chain(Table::Raw, chain).clone();
        (ours("PREROUTING", &mut kernel).split_off(1), ours("OUTPUT", &mut kernel))
    };
    let comment = "-m comment --comment \"Names of Weave Net\" -j CT --notrack";
    let question = |to: &str| format!("-d {to} -p udp -m udp --dport 53 {comment}");
    let answer = |from: &str| format!("-s {from} -p udp -m udp --sport 53 {comment}");
    let docker = (question("172.17.0.1/32 -i docker0"), answer("172.17.0.1/32 -o docker0"));
    let weave = (question("10.2.1.102/32 -i weave"), answer("10.2.1.102/32 -o weave"));
    assert_eq!(follow(&[]), (vec![docker.0.clone()], vec![docker.1.clone()]));
    let both = (vec![docker.0.clone(), weave.0], vec![docker.1.clone(), weave.1]);
    assert_eq!(follow(&[exposed("10.2.1.102/24", true)]), both);
    assert_eq!(follow(&[]), (vec![docker.0], vec![docker.1]));
    follow(&[exposed("10.2.1.102/24", true)]);
    kernel.remove(&[config]);
    let rest = &kernel.tables[&Table::Raw];
    assert_eq!(rest["PREROUTING"], [others], "rules of other programs stay");
    assert!(rest["OUTPUT"].is_empty() && before.tables[&Table::Raw]["OUTPUT"].is_empty());
}

#[test]
fn vectors_are_reached_from_nothing() {
    let range = [exposed("10.32.0.1/12", true)];
    let npc = FirewallConfig { expect_npc: true, no_masq_local: true, ..config() };
    let cases = [
        (AFTER_LAUNCH, config(), &[][..]),
        (AFTER_EXPOSE, config(), &range),
        (NPC, npc, &[exposed("10.2.0.1/16", true)]),
    ];
    for (vector, config, exposed) in cases {
        let mut kernel = Kernel::empty();
        kernel.ensure(&config, exposed, &[]);
        assert_eq!(kernel, Kernel::of(vector));
        // The rules that 2.8.1 made are recognised.
        assert!(!Kernel::of(vector).ensure(&config, exposed, &[]));
        let mut kernel = Kernel::of(vector);
        kernel.remove(&[config]);
        assert_eq!(kernel, Kernel::empty());
    }
}

#[test]
fn one_rule_per_subnet() {
    let mut kernel = Kernel::empty();
    let [a, b, other] = ["10.2.1.1/24", "10.2.1.2/24", "10.2.2.1/24"].map(|a| exposed(a, true));
    kernel.ensure(&config(), &[a, b, other], &[]);
    assert_eq!(
        kernel.chain(Table::Filter, "WEAVE-EXPOSE"),
        &["-d 10.2.1.0/24 -j ACCEPT", "-d 10.2.2.0/24 -j ACCEPT"]
    );
    assert_eq!(kernel.chain(Table::Nat, "WEAVE").len(), 6);
    assert!(!kernel.ensure(&config(), &[b, a, other], &[]), "the order of addresses does not matter");
    assert!(!kernel.ensure(&config(), &[b, other], &[]), "the second address needs the rules as well");
    assert!(kernel.ensure(&config(), &[other], &[]));
    assert_eq!(kernel.chain(Table::Filter, "WEAVE-EXPOSE"), &["-d 10.2.2.0/24 -j ACCEPT"]);
    assert_eq!(
        kernel.chain(Table::Nat, "WEAVE"),
        &[
            "-s 10.2.2.0/24 -d 224.0.0.0/4 -j RETURN",
            "! -s 10.2.2.0/24 -d 10.2.2.0/24 -j MASQUERADE",
            "-s 10.2.2.0/24 ! -d 10.2.2.0/24 -j MASQUERADE"
        ]
    );
    kernel.ensure(&config(), &[exposed("10.2.2.1/24", false)], &[]);
    assert_eq!(kernel.chain(Table::Filter, "WEAVE-EXPOSE").len(), 1);
    assert!(kernel.chain(Table::Nat, "WEAVE").is_empty());
    kernel.ensure(&config(), &[exposed("10.2.2.1/24", false), exposed("10.2.2.2/24", true)], &[]);
    assert_eq!(kernel.chain(Table::Nat, "WEAVE").len(), 3, "one address with masquerading is enough");
}

#[test]
fn rules_of_other_programs_keep_their_order() {
    let mut kernel = Kernel::empty();
    let foreign = ["-i eth9 -j ACCEPT", "-o weave -s 10.9.9.9/32 -j ACCEPT", "-j DOCKER-USER"];
    for (table, chain) in [(Table::Filter, "INPUT"), (Table::Filter, "FORWARD"), (Table::Nat, "POSTROUTING")]
    {
        kernel.chain(table, chain).extend(foreign.map(str::to_owned));
    }
    let before = kernel.clone();
    let range = [exposed("10.32.0.1/12", true)];
    kernel.ensure(&config(), &range, &[]);
    assert_eq!(kernel.chain(Table::Filter, "FORWARD")[5..], foreign);
    assert_eq!(kernel.chain(Table::Filter, "INPUT")[..3], foreign);
    // Docker inserts its rules before ours, which is accepted.
    kernel.chain(Table::Filter, "FORWARD").insert(0, "-j DOCKER-FORWARD".to_owned());
    assert!(!kernel.ensure(&config(), &range, &[]));
    // If a rule is missing, the whole block moves to the top.
    kernel.chain(Table::Filter, "FORWARD").remove(3);
    assert!(kernel.ensure(&config(), &range, &[]));
    assert_eq!(kernel.chain(Table::Filter, "FORWARD")[5], "-j DOCKER-FORWARD");
    // Rules that an operator adds to our chains stay as well.
    kernel.chain(Table::Filter, "WEAVE-EXPOSE").insert(0, "-s 192.0.2.0/24 -j DROP".to_owned());
    kernel.chain(Table::Nat, "WEAVE").push("-s 10.32.0.7/32 -j RETURN".to_owned());
    assert!(!kernel.ensure(&config(), &range, &[]));
    kernel.ensure(&config(), &[], &[]);
    assert_eq!(kernel.chain(Table::Filter, "WEAVE-EXPOSE"), &["-s 192.0.2.0/24 -j DROP"]);
    assert_eq!(kernel.chain(Table::Nat, "WEAVE"), &["-s 10.32.0.7/32 -j RETURN"]);
    kernel.remove(&[config()]);
    kernel.chain(Table::Filter, "FORWARD").remove(0);
    assert_eq!(kernel, before);
}

#[test]
fn changed_options_remove_the_rules_of_the_previous_ones() {
    let npc = FirewallConfig { expect_npc: true, ..config() };
    let moved = FirewallConfig { port: 7000, control_port: Some(7001), docker: None, ..config() };
    let all = [config(), npc, moved];
    for a in &all {
        for b in &all {
            let mut kernel = Kernel::empty();
            kernel.ensure(a, &[], &[]);
            kernel.ensure(b, &[], std::slice::from_ref(a));
            let mut fresh = Kernel::empty();
            fresh.ensure(b, &[], &[]);
            // Chains stay, because other programs may use them.
            let rules = |k: &Kernel| {
                k.save().lines().filter(|l| !l.starts_with(':')).map(str::to_owned).collect::<Vec<_>>()
            };
            let (mut one, mut other) = (rules(&kernel), rules(&fresh));
            one.sort();
            other.sort();
            assert_eq!(one, other, "{a:?} then {b:?}");
            kernel.remove(&[a.clone(), b.clone()]);
            assert_eq!(kernel, Kernel::empty());
        }
    }
}

#[test]
fn flushed_rules_are_restored_in_order() {
    let exposes = [exposed("10.2.1.1/24", true), exposed("10.2.2.1/24", false)];
    let mut whole = Kernel::empty();
    whole.ensure(&config(), &exposes, &[]);
    // Without names nothing is excepted from tracking, so table raw has no rule of ours.
    for (table, chains) in whole.tables.clone() {
        for chain in chains.keys() {
            let mut kernel = whole.clone();
            kernel.chain(table, chain).clear();
            let flushed = kernel != whole;
            assert_eq!(kernel.ensure(&config(), &exposes, &[]), flushed, "{table:?} {chain}");
            assert_eq!(kernel, whole, "{table:?} {chain}");
        }
        // `iptables -F; iptables -X` of one table.
        let mut kernel = whole.clone();
        *kernel.table(table) = Kernel::empty().table(table).clone();
        let flushed = kernel != whole;
        assert_eq!(kernel.ensure(&config(), &exposes, &[]), flushed, "{table:?}");
        assert_eq!(kernel, whole, "{table:?}");
        // One rule missing.
        for (chain, rules) in &chains {
            for i in 0..rules.len() {
                let mut kernel = whole.clone();
                kernel.chain(table, chain).remove(i);
                assert!(kernel.ensure(&config(), &exposes, &[]), "{table:?} {chain} {i}");
                let ordered = chain.as_str() != "INPUT";
                let mut now = kernel.chain(table, chain).clone();
                let mut rules = rules.clone();
                if !ordered {
                    now.sort();
                    rules.sort();
                }
                assert_eq!(now, rules, "{table:?} {chain} {i}");
            }
        }
    }
}

#[test]
fn removal_includes_rules_of_2_8_1() {
    let mut kernel = Kernel::of(NPC);
    let before = kernel.clone();
    let filter = kernel.table(Table::Filter);
    for chain in [
        "WEAVE-NPC-DEFAULT",
        "WEAVE-NPC-INGRESS",
        "WEAVE-NPC-EGRESS-DEFAULT",
        "WEAVE-NPC-EGRESS-CUSTOM",
        "WEAVE-NPC-EGRESS-ACCEPT",
        "WEAVE-IPSEC-IN",
    ] {
        filter.insert(chain.to_owned(), vec!["-j MARK --set-xmark 0x40000/0x40000".to_owned()]);
    }
    filter.get_mut("WEAVE-NPC").unwrap().push("-m state --state NEW -j WEAVE-NPC-DEFAULT".to_owned());
    filter
        .get_mut("WEAVE-NPC-EGRESS")
        .unwrap()
        .push("-m state --state NEW -j WEAVE-NPC-EGRESS-DEFAULT".to_owned());
    filter.get_mut("INPUT").unwrap().extend([
        "-j WEAVE-IPSEC-IN".to_owned(),
        // A rule of 2.6.3, which left the port out, and one for an earlier address of Docker's bridge.
        "-d 127.0.0.1/32 -p tcp -m addrtype ! --src-type LOCAL -m conntrack ! --ctstate RELATED,ESTABLISHED -m comment \
         --comment \"Block non-local access to Weave Net control port\" -j DROP"
            .to_owned(),
        "-d 172.18.0.1/32 -i docker0 -p tcp -m tcp --dport 6783 -j DROP".to_owned(),
    ]);
    kernel.chain(Table::Nat, "POSTROUTING").insert(0, "-o weave -j ACCEPT".to_owned());
    assert_ne!(kernel, before);
    kernel.remove(&[config()]);
    assert_eq!(kernel, Kernel::empty());
}
