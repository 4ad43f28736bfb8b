//! Which rules a peer wants: pure values, texts of `iptables-save`.

use std::fmt;
use std::net::Ipv4Addr;

use weave_types::Cidr;

/// Addresses that this peer's allocator owns (`--no-masq-local`); the name is 2.8.1's.
pub(crate) const LOCAL_SET: &str = "weaver-no-masq-local";
/// Tells the rule that guards the control port, whatever the port.
pub(crate) const CONTROL_COMMENT: &str = "Block non-local access to Weave Net control port";
const LOCAL_COMMENT: &str = "Prevent SNAT to locally running containers";
const NPC_COMMENT: &str = "NOTE: this must go before '-j KUBE-FORWARD'";
/// Where the network policy controller listens for dropped packets.
const NPC_LOG_GROUP: u16 = 86;
const MULTICAST: (Ipv4Addr, u8) = (Ipv4Addr::new(224, 0, 0, 0), 4);

/// Empty; its absence tells a person, and 2.8.1, that the table was flushed.
pub(crate) const CANARY: &str = "WEAVE-CANARY";
pub(crate) const EXPOSE: &str = "WEAVE-EXPOSE";
pub(crate) const NAT: &str = "WEAVE";
const NPC: &str = "WEAVE-NPC";
const NPC_EGRESS: &str = "WEAVE-NPC-EGRESS";

/// What the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// One of several peers on the host has chains of its own; at most 8 characters.
    pub instance: Option<String>,
    /// The bridge that containers are on.
    pub bridge: String,
    /// TCP and UDP port of the peer; the one after it is the fast datapath's.
    pub port: u16,
    /// TCP port of the control API if that listens on TCP.
    pub control_port: Option<u16>,
    /// Docker's bridge, if there is one and it is not the peer's own.
    pub docker: Option<DockerBridge>,
    /// Whether the network policy controller decides what reaches containers (`--expect-npc`).
    pub expect_npc: bool,
    /// Whether addresses of local containers are kept when other local containers are addressed (`--no-masq-local`).
    pub no_masq_local: bool,
}

/// Docker's own bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerBridge {
    /// `docker0` as a rule.
    pub name: String,
    /// The host's address on it.
    pub address: Ipv4Addr,
}

/// An address of the bridge that the host was given by `weave expose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposedAddress {
    /// The address with its prefix length.
    pub address: Cidr,
    /// Whether what passes between its subnet and the rest of the world gets an address of this host.
    pub masquerade: bool,
}

/// A table of the packet filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Filter,
    Nat,
    Mangle,
}

impl FirewallConfig {
    /// `base`, or `base.<instance>`.
    fn chain(&self, base: &str) -> String {
        self.instance.as_ref().map_or_else(|| base.to_owned(), |instance| format!("{base}.{instance}"))
    }

    /// The set of `--no-masq-local`.
    pub(crate) fn local_set(&self) -> String {
        self.chain(LOCAL_SET)
    }

    /// Whether a chain is one of those that this program or 2.8.1, with its policy controller and its IPsec, makes.
    pub(crate) fn owns(&self, chain: &str) -> bool {
        let Some(base) = (match &self.instance {
            None => Some(chain),
            Some(instance) => chain.strip_suffix(instance.as_str()).and_then(|base| base.strip_suffix('.')),
        }) else {
            return false;
        };
        [NAT, EXPOSE, CANARY, NPC, "WEAVE-KUBE-TEST"].contains(&base)
            || base.starts_with("WEAVE-NPC-")
            || base.starts_with("WEAVE-IPSEC-")
    }
}

impl Table {
    pub(crate) const ALL: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
        }
    }
}

/// How the rules of a chain lie among other people's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// One ordered block at the top; made anew as a whole if one is missing.
    Top,
    /// Each appended if it is missing.
    End,
    /// The chain is ours; the first rule stays the first.
    Own,
    /// The chain has to exist; somebody else fills it.
    Lent,
}

/// The rules that one chain should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) table: Table,
    pub(crate) chain: String,
    pub(crate) place: Place,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

/// Whether a match is to hold or to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    It,
    Not,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    Source(Is, Cidr),
    Destination(Is, Cidr),
    In(String),
    Out(Is, String),
    /// Protocol (`tcp` or `udp`) and destination port.
    Port(&'static str, u16),
    SourceNotLocal,
    Established,
    NotEstablished,
    New,
    ToLocalSet(String),
    Comment(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Masquerade,
    Jump(String),
    Log(u16),
}

fn rule<const N: usize>(matches: [Match; N], verdict: Verdict) -> Rule {
    Rule { matches: matches.into(), verdict }
}

/// Everything (docs/spec/cli.md 4.3, 6.1), in the order in which `iptables-after-*.txt` shows it.
pub(crate) fn wanted(setup: &FirewallConfig, exposed: &[ExposedAddress]) -> Vec<Wanted> {
    let chain = |table, base: &str, place, rules| Wanted { table, chain: base.to_owned(), place, rules };
    let mut all: Vec<Wanted> = Table::ALL
        .into_iter()
        .map(|table| chain(table, &setup.chain(CANARY), Place::Own, Vec::new()))
        .collect();
    if setup.expect_npc {
        all.extend(
            [NPC, NPC_EGRESS].map(|name| chain(Table::Filter, &setup.chain(name), Place::Lent, Vec::new())),
        );
    } else {
        all.push(chain(Table::Filter, &setup.chain(EXPOSE), Place::Own, expose_rules(exposed)));
    }
    all.push(chain(Table::Filter, "INPUT", Place::End, input_rules(setup)));
    all.push(chain(Table::Filter, "FORWARD", Place::Top, forward_rules(setup)));
    all.push(chain(Table::Nat, &setup.chain(NAT), Place::Own, nat_rules(setup, exposed)));
    all.push(chain(Table::Nat, "POSTROUTING", Place::End, vec![rule([], Verdict::Jump(setup.chain(NAT)))]));
    all
}

fn input_rules(setup: &FirewallConfig) -> Vec<Rule> {
    use Match::{Comment, Destination, In, NotEstablished, Port, SourceNotLocal};
    let mut rules = Vec::new();
    if let Some(docker) = &setup.docker {
        let closed = [("tcp", setup.port), ("udp", setup.port), ("udp", setup.port.saturating_add(1))];
        // Containers of Docker's are no peers.
        rules.extend(closed.map(|(protocol, port)| {
            let matches =
                [Destination(Is::It, host(docker.address)), In(docker.name.clone()), Port(protocol, port)];
            rule(matches, Verdict::Drop)
        }));
        rules.extend(
            ["udp", "tcp"]
                .map(|protocol| rule([In(docker.name.clone()), Port(protocol, 53)], Verdict::Accept)),
        );
    }
    if let Some(port) = setup.control_port {
        // With `route_localnet` neighbours on the wire reach 127.0.0.1.
        let to = Destination(Is::It, host(Ipv4Addr::LOCALHOST));
        let matches = [to, Port("tcp", port), SourceNotLocal, NotEstablished, Comment(CONTROL_COMMENT)];
        rules.push(rule(matches, Verdict::Drop));
    }
    if setup.expect_npc {
        rules.push(rule([In(setup.bridge.clone())], Verdict::Jump(setup.chain(NPC_EGRESS))));
    }
    rules
}

fn forward_rules(setup: &FirewallConfig) -> Vec<Rule> {
    use Match::{Comment, Established, In, New, Out};
    let into = || In(setup.bridge.clone());
    let out = || Out(Is::It, setup.bridge.clone());
    let mut rules = Vec::new();
    if let Some(docker) = &setup.docker {
        rules.push(rule([In(docker.name.clone()), out()], Verdict::Drop));
    }
    if setup.expect_npc {
        rules.extend([
            rule([into(), Comment(NPC_COMMENT)], Verdict::Jump(setup.chain(NPC_EGRESS))),
            rule([out(), Comment(NPC_COMMENT)], Verdict::Jump(setup.chain(NPC))),
            rule([out(), New], Verdict::Log(NPC_LOG_GROUP)),
            rule([out()], Verdict::Drop),
        ]);
    } else {
        rules.extend([
            rule([into(), out()], Verdict::Accept),
            rule([out()], Verdict::Jump(setup.chain(EXPOSE))),
        ]);
    }
    rules.extend([
        rule([into(), Out(Is::Not, setup.bridge.clone())], Verdict::Accept),
        rule([out(), Established], Verdict::Accept),
    ]);
    rules
}

/// One rule per subnet, however many of its addresses are exposed.
fn expose_rules(exposed: &[ExposedAddress]) -> Vec<Rule> {
    subnets(exposed.iter())
        .into_iter()
        .map(|subnet| rule([Match::Destination(Is::It, subnet)], Verdict::Accept))
        .collect()
}

fn nat_rules(setup: &FirewallConfig, exposed: &[ExposedAddress]) -> Vec<Rule> {
    use Match::{Comment, Destination, Source, ToLocalSet};
    let mut rules = Vec::new();
    if setup.no_masq_local {
        rules.push(rule([ToLocalSet(setup.local_set()), Comment(LOCAL_COMMENT)], Verdict::Return));
    }
    for subnet in subnets(exposed.iter().filter(|e| e.masquerade)) {
        let multicast = Cidr::new(MULTICAST.0.into(), MULTICAST.1).unwrap_or(subnet);
        rules.extend([
            rule([Source(Is::It, subnet), Destination(Is::It, multicast)], Verdict::Return),
            rule([Source(Is::Not, subnet), Destination(Is::It, subnet)], Verdict::Masquerade),
            rule([Source(Is::It, subnet), Destination(Is::Not, subnet)], Verdict::Masquerade),
        ]);
    }
    rules
}

/// In order of their first address.
fn subnets<'a>(exposed: impl Iterator<Item = &'a ExposedAddress>) -> Vec<Cidr> {
    let mut subnets = Vec::new();
    for subnet in exposed.map(|e| e.address.network()) {
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    subnets
}

fn host(address: Ipv4Addr) -> Cidr {
    let all_bits = Cidr::new(address.into(), 32);
    all_bits.unwrap_or_else(|| unreachable!("32 bits are an IPv4 address"))
}

/// Rules in other people's chains that this or another setup of ours may have made: whatever of them is not wanted now
/// is to go.
pub(crate) fn possible(setup: &FirewallConfig) -> Vec<(Table, String, Rule)> {
    let bare = FirewallConfig { docker: None, control_port: None, ..setup.clone() };
    let both =
        |s: &FirewallConfig| [true, false].map(|expect_npc| FirewallConfig { expect_npc, ..s.clone() });
    let all = both(setup).into_iter().chain(both(&bare));
    let mut rules = Vec::new();
    for wanted in all.flat_map(|s| wanted(&s, &[])) {
        if matches!(wanted.place, Place::Top | Place::End) {
            rules.extend(wanted.rules.into_iter().map(|rule| (wanted.table, wanted.chain.clone(), rule)));
        }
    }
    rules
}

/// What `weave attach-bridge` makes.
pub(crate) fn attached_bridge(setup: &FirewallConfig) -> (Table, String, Rule) {
    (Table::Nat, "POSTROUTING".to_owned(), rule([Match::Out(Is::It, setup.bridge.clone())], Verdict::Accept))
}

/// As `iptables-save` prints it and `iptables-restore` reads it, without the chain.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.matches {
            write!(f, "{part} ")?;
        }
        self.verdict.fmt(f)
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Is::Not { "! " } else { "" })
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::Source(is, cidr) => write!(f, "{is}-s {cidr}"),
            Match::Destination(is, cidr) => write!(f, "{is}-d {cidr}"),
            Match::In(name) => write!(f, "-i {name}"),
            Match::Out(is, name) => write!(f, "{is}-o {name}"),
            Match::Port(protocol, port) => write!(f, "-p {protocol} -m {protocol} --dport {port}"),
            Match::SourceNotLocal => f.write_str("-m addrtype ! --src-type LOCAL"),
            Match::Established => f.write_str("-m conntrack --ctstate RELATED,ESTABLISHED"),
            Match::NotEstablished => f.write_str("-m conntrack ! --ctstate RELATED,ESTABLISHED"),
            Match::New => f.write_str("-m state --state NEW"),
            Match::ToLocalSet(name) => write!(f, "-m set --match-set {name} dst"),
            Match::Comment(text) => {
                write!(f, "-m comment --comment \"{}\"", text.replace('\'', "\\'"))
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("-j ACCEPT"),
            Verdict::Drop => f.write_str("-j DROP"),
            Verdict::Return => f.write_str("-j RETURN"),
            Verdict::Masquerade => f.write_str("-j MASQUERADE"),
            Verdict::Jump(chain) => write!(f, "-j {chain}"),
            Verdict::Log(group) => write!(f, "-j NFLOG --nflog-group {group}"),
        }
    }
}
