//! The rules that a peer needs, as values, and their form in `iptables-save`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use weave_types::Cidr;

/// Set of the networks that this peer's allocator owns (`--no-masq-local`); the name is that of 2.8.1.
pub(crate) const LOCAL_SET: &str = "weaver-no-masq-local";
/// Identifies the rule that protects the control port, whatever the port is.
pub(crate) const CONTROL_COMMENT: &str = "Block non-local access to Weave Net control port";
const LOCAL_COMMENT: &str = "Prevent SNAT to locally running containers";
/// Identifies the rules for questions of the containers of one bridge.
pub(crate) const DNS_COMMENT: &str = "Names of Weave Net";
const NPC_COMMENT: &str = "NOTE: this must go before '-j KUBE-FORWARD'";
/// NFLOG group on which the network policy controller receives dropped packets.
const NPC_LOG_GROUP: u16 = 86;
/// Port on which 2.8.1 serves names.
const DNS_PORT: u16 = 53;
pub(crate) const MULTICAST: Cidr = network(Ipv4Addr::new(224, 0, 0, 0), 4);

/// An empty chain: without it, the table was flushed.
pub(crate) const CANARY: &str = "WEAVE-CANARY";
pub(crate) const EXPOSE: &str = "WEAVE-EXPOSE";
pub(crate) const NAT: &str = "WEAVE";
const NPC: &str = "WEAVE-NPC";
const NPC_EGRESS: &str = "WEAVE-NPC-EGRESS";

/// The settings from which the rules are derived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallConfig {
    /// Name of the instance, if several peers share the host: part of the names of its chains, at most 8 characters.
    pub instance: Option<String>,
    /// The bridge to which containers are attached.
    pub bridge: String,
    /// TCP and UDP port of the peer; the fast datapath of 2.8.1 uses the next one.
    pub port: u16,
    /// TCP port of the HTTP API, if it listens on TCP.
    pub control_port: Option<u16>,
    /// Docker's bridge, if it exists and is another one.
    pub docker: Option<DockerBridge>,
    /// Whether the network policy controller filters traffic to containers (`--expect-npc`).
    pub expect_npc: bool,
    /// Whether traffic to containers of this host keeps its source address (`--no-masq-local`).
    pub no_masq_local: bool,
    /// UDP and TCP port on which names are served, if they are.
    pub dns_port: Option<u16>,
}

/// Docker's bridge on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerBridge {
    /// Usually `docker0`.
    pub name: String,
    /// The host's address on it.
    pub address: Ipv4Addr,
}

/// An address of the bridge that was added by `weave expose`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExposedAddress {
    /// The address with the prefix length of its subnet.
    pub address: Cidr,
    /// Whether traffic between its subnet and other networks gets an address of this host as its source.
    pub masquerade: bool,
}

/// A table of `iptables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Filter,
    Nat,
    Mangle,
    /// What is decided before a packet is tracked.
    Raw,
}

impl FirewallConfig {
    /// `base`, with an instance `base.<instance>`.
    fn chain(&self, base: &str) -> String {
        self.instance.as_ref().map_or_else(|| base.to_owned(), |instance| format!("{base}.{instance}"))
    }

    /// Name of the set of local networks (`--no-masq-local`).
    pub(crate) fn local_set(&self) -> String {
        self.chain(LOCAL_SET)
    }

    /// Whether this program creates a chain of that name, or 2.8.1 does, with its policy controller and its IPsec.
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
    pub(crate) const ALL: [Table; 4] = [Table::Filter, Table::Nat, Table::Mangle, Table::Raw];
    /// The tables that other programs flush; each gets a canary.
    const WATCHED: [Table; 3] = [Table::Filter, Table::Nat, Table::Mangle];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Table::Filter => "filter",
            Table::Nat => "nat",
            Table::Mangle => "mangle",
            Table::Raw => "raw",
        }
    }
}

/// How the rules of a chain are combined with those of other programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// One block at the top, in order; the whole block is replaced if a rule is missing.
    Prepend,
    /// Each missing rule is appended.
    Append,
    /// The chain is ours, and its rules are in order.
    Owned,
    /// The chain has to exist; the network policy controller fills it.
    External,
}

/// The rules that one chain should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DesiredChain {
    pub(crate) table: Table,
    pub(crate) chain: String,
    pub(crate) placement: Placement,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: Vec<Match>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Match {
    Source {
        negated: bool,
        network: Cidr,
    },
    Destination {
        negated: bool,
        network: Cidr,
    },
    /// The interface by which the packet arrived.
    In(String),
    /// The interface by which the packet leaves.
    Out {
        negated: bool,
        name: String,
    },
    /// Protocol (`tcp` or `udp`) and destination port.
    Port(&'static str, u16),
    /// Protocol and source port.
    FromPort(&'static str, u16),
    /// The protocol by which members of multicast groups are found.
    Igmp,
    SourceNotLocal,
    Established,
    NotEstablished,
    New,
    ToLocalSet(String),
    Comment(&'static str),
}

impl Match {
    pub(crate) fn source(network: Cidr) -> Match {
        Match::Source { negated: false, network }
    }

    pub(crate) fn destination(network: Cidr) -> Match {
        Match::Destination { negated: false, network }
    }

    pub(crate) fn out(name: &str) -> Match {
        Match::Out { negated: false, name: name.to_owned() }
    }

    fn negate(mut self) -> Match {
        if let Match::Source { negated, .. }
        | Match::Destination { negated, .. }
        | Match::Out { negated, .. } = &mut self
        {
            *negated = true;
        }
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Masquerade,
    Jump(String),
    Log(u16),
    /// The packet is not tracked.
    NoTrack,
}

const fn network(address: Ipv4Addr, prefix: u8) -> Cidr {
    match Cidr::new(IpAddr::V4(address), prefix) {
        Some(network) => network,
        None => unreachable!(),
    }
}

fn rule<const N: usize>(matches: [Match; N], verdict: Verdict) -> Rule {
    Rule { matches: matches.into(), verdict }
}

/// All rules of the host (docs/spec/cli.md 4.3, 6.1), in the order of `tests/vectors/cli/iptables-after-*.txt`.
pub(crate) fn desired_chains(config: &FirewallConfig, exposed: &[ExposedAddress]) -> Vec<DesiredChain> {
    let chain = |table, base: &str, placement, rules| DesiredChain {
        table,
        chain: base.to_owned(),
        placement,
        rules,
    };
    let mut all: Vec<DesiredChain> = Table::WATCHED
        .into_iter()
        .map(|table| chain(table, &config.chain(CANARY), Placement::Owned, Vec::new()))
        .collect();
    if config.expect_npc {
        all.extend(
            [NPC, NPC_EGRESS]
                .map(|name| chain(Table::Filter, &config.chain(name), Placement::External, Vec::new())),
        );
    } else {
        all.push(chain(Table::Filter, &config.chain(EXPOSE), Placement::Owned, expose_rules(exposed)));
    }
    all.push(chain(Table::Filter, "INPUT", Placement::Append, input_rules(config)));
    all.push(chain(Table::Filter, "FORWARD", Placement::Prepend, forward_rules(config)));
    all.push(chain(Table::Nat, &config.chain(NAT), Placement::Owned, nat_rules(config, exposed)));
    all.push(chain(
        Table::Nat,
        "POSTROUTING",
        Placement::Append,
        vec![rule([], Verdict::Jump(config.chain(NAT)))],
    ));
    all
}

/// Questions of containers for names and the answers are not tracked: a question that is sent again while the first one is being tracked
/// may be lost, and resolvers then wait for five seconds. Only for the addresses at which names are served by default.
pub(crate) fn untracked_chains(config: &FirewallConfig, exposed: &[ExposedAddress]) -> Vec<DesiredChain> {
    use Match::{Comment, FromPort, In, Port};
    let Some(port) = config.dns_port.filter(|port| *port == DNS_PORT) else { return Vec::new() };
    let mut servers: Vec<(&str, Cidr)> = Vec::new();
    // Docker's bridge is for the first peer of the host.
    let docker = config.docker.iter().filter(|_| config.instance.is_none());
    servers.extend(docker.map(|docker| (docker.name.as_str(), network(docker.address, 32))));
    let addresses = exposed.iter().filter_map(|e| Cidr::new(e.address.addr(), 32));
    servers.extend(addresses.filter(|a| a.addr().is_ipv4()).map(|address| (config.bridge.as_str(), address)));
    let (mut questions, mut answers) = (Vec::new(), Vec::new());
    for (device, server) in servers {
        let to = [Match::destination(server), In(device.to_owned()), Port("udp", port), Comment(DNS_COMMENT)];
        questions.push(rule(to, Verdict::NoTrack));
        let from = [Match::source(server), Match::out(device), FromPort("udp", port), Comment(DNS_COMMENT)];
        answers.push(rule(from, Verdict::NoTrack));
    }
    let chain = |chain: &str, rules| DesiredChain {
        table: Table::Raw,
        chain: chain.to_owned(),
        placement: Placement::Append,
        rules,
    };
    vec![chain("PREROUTING", questions), chain("OUTPUT", answers)]
}

fn input_rules(config: &FirewallConfig) -> Vec<Rule> {
    use Match::{Comment, In, NotEstablished, Port, SourceNotLocal};
    let mut rules = Vec::new();
    if let Some(docker) = &config.docker {
        let closed = [("tcp", config.port), ("udp", config.port), ("udp", config.port.saturating_add(1))];
        // Only peers connect to these ports, and containers of Docker are none.
        rules.extend(closed.map(|(protocol, port)| {
            let matches = [
                Match::destination(network(docker.address, 32)),
                In(docker.name.clone()),
                Port(protocol, port),
            ];
            rule(matches, Verdict::Drop)
        }));
        rules.extend(
            ["udp", "tcp"]
                .map(|protocol| rule([In(docker.name.clone()), Port(protocol, DNS_PORT)], Verdict::Accept)),
        );
    }
    if let Some(port) = config.control_port {
        // With `route_localnet`, hosts on the same network could reach 127.0.0.1.
        let to = Match::destination(network(Ipv4Addr::LOCALHOST, 32));
        let matches = [to, Port("tcp", port), SourceNotLocal, NotEstablished, Comment(CONTROL_COMMENT)];
        rules.push(rule(matches, Verdict::Drop));
    }
    if config.expect_npc {
        rules.push(rule([In(config.bridge.clone())], Verdict::Jump(config.chain(NPC_EGRESS))));
    }
    // Containers ask for names, whatever else the host keeps from them.
    if let Some(port) = config.dns_port {
        let docker = config.docker.iter().map(|docker| &docker.name).filter(|_| port != DNS_PORT);
        for bridge in docker.chain([&config.bridge]) {
            let accept = |protocol| rule([In(bridge.clone()), Port(protocol, port)], Verdict::Accept);
            rules.extend(["udp", "tcp"].map(accept));
        }
    }
    rules
}

fn forward_rules(config: &FirewallConfig) -> Vec<Rule> {
    use Match::{Comment, Established, In, New};
    let into = || In(config.bridge.clone());
    let out = || Match::out(&config.bridge);
    let mut rules = Vec::new();
    if let Some(docker) = &config.docker {
        rules.push(rule([In(docker.name.clone()), out()], Verdict::Drop));
    }
    if config.expect_npc {
        rules.extend([
            rule([into(), Comment(NPC_COMMENT)], Verdict::Jump(config.chain(NPC_EGRESS))),
            rule([out(), Comment(NPC_COMMENT)], Verdict::Jump(config.chain(NPC))),
            rule([out(), New], Verdict::Log(NPC_LOG_GROUP)),
            rule([out()], Verdict::Drop),
        ]);
    } else {
        rules.extend([
            rule([into(), out()], Verdict::Accept),
            rule([out()], Verdict::Jump(config.chain(EXPOSE))),
        ]);
    }
    rules.extend([
        rule([into(), out().negate()], Verdict::Accept),
        rule([out(), Established], Verdict::Accept),
    ]);
    rules
}

/// One rule for each subnet, also if several of its addresses are exposed.
fn expose_rules(exposed: &[ExposedAddress]) -> Vec<Rule> {
    subnets(exposed.iter())
        .into_iter()
        .map(|subnet| rule([Match::destination(subnet)], Verdict::Accept))
        .collect()
}

fn nat_rules(config: &FirewallConfig, exposed: &[ExposedAddress]) -> Vec<Rule> {
    use Match::{Comment, ToLocalSet};
    let mut rules = Vec::new();
    if config.no_masq_local {
        rules.push(rule([ToLocalSet(config.local_set()), Comment(LOCAL_COMMENT)], Verdict::Return));
    }
    for subnet in subnets(exposed.iter().filter(|e| e.masquerade)) {
        let (from, to) = (Match::source(subnet), Match::destination(subnet));
        rules.extend([
            rule([from.clone(), Match::destination(MULTICAST)], Verdict::Return),
            rule([from.clone().negate(), to.clone()], Verdict::Masquerade),
            rule([from, to.negate()], Verdict::Masquerade),
        ]);
    }
    rules
}

/// Without duplicates, in the order of their first address.
fn subnets<'a>(exposed: impl Iterator<Item = &'a ExposedAddress>) -> Vec<Cidr> {
    let mut subnets = Vec::new();
    for subnet in exposed.map(|e| e.address.network()) {
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    subnets
}

/// The rules that this configuration, or the same one with other options, adds to chains of other programs. Those of them that are not
/// desired any more are removed.
pub(crate) fn known_rules(config: &FirewallConfig) -> Vec<(Table, String, Rule)> {
    let bare = FirewallConfig { docker: None, control_port: None, dns_port: None, ..config.clone() };
    let both =
        |s: &FirewallConfig| [true, false].map(|expect_npc| FirewallConfig { expect_npc, ..s.clone() });
    let all = both(config).into_iter().chain(both(&bare));
    let mut rules = Vec::new();
    for desired in all.flat_map(|s| desired_chains(&s, &[])) {
        if matches!(desired.placement, Placement::Prepend | Placement::Append) {
            rules.extend(desired.rules.into_iter().map(|rule| (desired.table, desired.chain.clone(), rule)));
        }
    }
    rules
}

/// The rule of `weave attach-bridge`: packets that are routed to the bridge keep their source address.
pub(crate) fn attached_bridge(bridge: &str) -> DesiredChain {
    DesiredChain {
        table: Table::Nat,
        chain: "POSTROUTING".to_owned(),
        placement: Placement::Prepend,
        rules: vec![rule([Match::out(bridge)], Verdict::Accept)],
    }
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

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "! " } else { "" };
        match self {
            Match::Source { negated, network } => write!(f, "{}-s {network}", not(negated)),
            Match::Destination { negated, network } => write!(f, "{}-d {network}", not(negated)),
            Match::In(name) => write!(f, "-i {name}"),
            Match::Out { negated, name } => write!(f, "{}-o {name}", not(negated)),
            Match::Port(protocol, port) => write!(f, "-p {protocol} -m {protocol} --dport {port}"),
            Match::FromPort(protocol, port) => write!(f, "-p {protocol} -m {protocol} --sport {port}"),
            Match::Igmp => f.write_str("-p igmp"),
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
            Verdict::NoTrack => f.write_str("-j CT --notrack"),
            Verdict::Log(group) => write!(f, "-j NFLOG --nflog-group {group}"),
        }
    }
}
