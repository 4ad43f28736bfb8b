//! Options of `weave launch` and `weave daemon`, and their names in earlier versions (docs/spec/cli.md 2.2, 3.2, 5).

use std::time::Duration;

use clap::{Arg, ArgAction};

/// A flag. A name of one letter makes a short option.
pub(crate) fn flag(name: &'static str, help: &'static str) -> Arg {
    let missing = MISSING.iter().any(|(_, names)| names.contains(&name));
    let help = if missing { format!("{help} [not in this version yet]") } else { help.to_owned() };
    let option = Arg::new(name).help(help).action(ArgAction::SetTrue);
    match name.chars().next() {
        Some(letter) if name.len() == 1 => option.short(letter),
        _ => option.long(name),
    }
}

pub(crate) fn text(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    flag(name, help).action(ArgAction::Append).value_name(value_name)
}

pub(crate) fn number(name: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    text(name, value_name, help).value_parser(parse_number)
}

/// A number, with the errors of Go's `strconv.ParseInt`.
fn parse_number(text: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().map_err(|e: std::num::ParseIntError| {
        let range = matches!(e.kind(), PosOverflow | NegOverflow);
        let reason = if range { "value out of range" } else { "invalid syntax" };
        format!("strconv.ParseInt: parsing {text:?}: {reason}")
    })
}

/// A duration as in Go (`1m30s`, `500ms`), greater than zero.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit =
            rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len() - number);
        let (value, tail) = rest.split_at(number);
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(value.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!total.is_zero()).then_some(total)
}

fn check_duration(text: &str) -> Result<String, String> {
    let error = || format!("time: invalid duration {text:?}; one as 5s or 500ms is wanted");
    parse_duration(text).map(|_| text.to_owned()).ok_or_else(error)
}

fn group<const N: usize>(heading: &'static str, options: [Arg; N]) -> Vec<Arg> {
    options.map(|option| option.help_heading(heading)).into()
}

const PEER: &str = "Peer";

/// Options of `launch` alone.
pub(crate) fn launch_options() -> Vec<Arg> {
    group(
        PEER,
        [
            flag("no-restart", "do not start the daemon again when it crashes or the host reboots"),
            text(
                "service",
                "service",
                "who starts the daemon again: a systemd unit, a Docker container 'weave', a supervisor process, or nothing \
                 (default: auto, the first of these that is available; with --no-restart not systemd)",
            )
            .value_parser(["auto", "systemd", "docker", "supervisor", "none"]),
            flag(
                "take-over",
                "if the original Weave Net runs on this host: stop it and continue with its containers, peers and name",
            ),
        ],
    )
}

/// Options of `launch` and `daemon`; `launch` passes them on.
pub(crate) fn daemon_options() -> Vec<Arg> {
    let peer = group(
        PEER,
        [
            text(
                "name",
                "peer name",
                "name of this peer, like a MAC address, unique in the network (default: from the bridge or the machine's ids)",
            ),
            text("nickname", "text", "name shown to people (default: host name)"),
            number(
                "port",
                "port",
                "TCP and UDP port of the peer, usually the same on all peers (default: $WEAVE_PORT or 6783)",
            ),
            text(
                "host",
                "address",
                "listen on this address only (default: all of IPv4; '::': all of IPv4 and IPv6)",
            ),
            text(
                "password",
                "text",
                "network password, the same on all peers; switches encryption on (default: $WEAVE_PASSWORD)",
            ),
            text("password-file", "path", "read the network password from this file"),
            text(
                "trusted-subnets",
                "cidr,...",
                "do not encrypt between peers that both have an address in one of these",
            ),
            flag("no-discovery", "connect only to the peers named, not to those they know"),
            number("conn-limit", "n", "most connections to other peers, 0 for no limit (default: 200)"),
            flag("resume", "connect to the peers of the last run instead of naming them"),
            number("min-protocol-version", "n", "refuse peers with an older protocol, 1 or 2 (default: 1)"),
        ],
    );
    let network = group(
        "Container network",
        [
            text("weave-bridge", "name", "name of the bridge (default: weave)"),
            number(
                "mtu",
                "bytes",
                "MTU of the container network (default: $WEAVE_MTU or 1376; 65535 with --no-fastdp)",
            ),
            flag("no-fastdp", "do not use the fast datapath (default: on if $WEAVE_NO_FASTDP is set)"),
            text(
                "overlays",
                "name,...",
                "the ways in which frames may go to other peers; without sleeve no slow one, and no connection to peers that have no \
                 other (default: $WEAVE_OVERLAYS or fastdp,warp,sleeve)",
            ),
            number(
                "data-threads",
                "n",
                "threads that send frames by warp and sleeve, and as many that receive them (default: half of the processors, at most 8)",
            ),
            flag("no-bridged-fastdp", "accepted; the fast datapath is always bridged"),
            text(
                "docker-bridge",
                "name",
                "Docker's own bridge, whose containers cannot reach the peer's ports; empty: none (default: $DOCKER_BRIDGE or \
                 docker0)",
            ),
            flag("expect-npc", "let the network policy controller decide which traffic reaches containers"),
            flag("no-masq-local", "keep source addresses of traffic to addresses that this host allocated"),
            flag("awsvpc", "let AWS route between hosts"),
        ],
    );
    let control = group(
        "Control, files, logs",
        [
            text(
                "http-addr",
                "host:port",
                "control API besides the socket in the run directory; empty: off (default: $WEAVE_HTTP_ADDR or 127.0.0.1:6784)",
            ),
            text(
                "status-addr",
                "host:port",
                "read-only status pages; empty: off (default: $WEAVE_STATUS_ADDR or 127.0.0.1:6782)",
            ),
            text(
                "metrics-addr",
                "host:port",
                "only Prometheus metrics, which the two above serve too (default: $WEAVE_METRICS_ADDR or off)",
            ),
            text("log-level", "level", "error, warning, info or debug (default: info)"),
            text(
                "state-dir",
                "dir",
                "state that survives reboots (default: $WEAVE_STATE_DIR or /var/lib/weave)",
            ),
            text("run-dir", "dir", "pid file and control socket (default: $WEAVE_RUN_DIR or /run/weave)"),
            text(
                "instance",
                "name",
                "name of this peer if there are several on this host: bridge weave-<name>, files, unit and container likewise \
                 (default: $WEAVE_INSTANCE)",
            ),
            text(
                "log-file",
                "path",
                "log to this file instead of stderr; the default of 'launch' without systemd and Docker is /var/log/weave.log",
            ),
            number("log-size", "MB", "begin a new log file at this size, 0 for never (default: 10)"),
            number("log-keep", "n", "how many earlier log files are kept (default: 4)"),
            flag("version", "print the version and exit"),
            flag("print-peer-name", "print the name this peer would have and exit"),
            flag(
                "give-up-addresses",
                "if the original Weave Net had another --ipalloc-range on this host: forget the addresses of its containers",
            ),
            text(
                "db-prefix",
                "path",
                "import the 2.8.1 database <path>data.db (default: where 2.8.1 keeps it)",
            ),
        ],
    );
    let allocation = group(
        "IP address allocation",
        [
            text(
                "ipalloc-range",
                "cidr",
                "range that addresses are allocated from, the same on all peers; empty: off (default of launch: 10.32.0.0/12)",
            ),
            text("ipalloc-default-subnet", "cidr", "subnet used when none is named (default: the range)"),
            text(
                "ipalloc-init",
                "consensus[=n]|seed=name,...|observer",
                "how the first owners of the range are chosen: by agreement of more than half of n peers (default: of those \
                 named at launch and this one), as listed, or by the other peers",
            ),
        ],
    );
    let names = group(
        "Names",
        [
            flag("no-dns", "neither register nor serve names; those of other peers pass through"),
            text(
                "dns-domain",
                "name",
                "domain of the containers' names, the same on all peers (default: weave.local.)",
            ),
            text(
                "dns-listen-address",
                "host:port",
                "where names are served, UDP and TCP (default: port 53 of Docker's bridge; without Docker that of every \
                 address of the weave bridge, which 'weave expose' gives it)",
            ),
            number("dns-ttl", "seconds", "how long clients may keep answers about these names (default: 1)"),
            number(
                "dns-threads",
                "n",
                "threads that answer over UDP, for each address (default: 1 with less than four processors, else 2)",
            ),
            text(
                "dns-fallback-timeout",
                "duration",
                "longest wait for another resolver, as 5s or 500ms (default: 5s)",
            )
            .value_parser(check_duration),
            text(
                "resolv-conf",
                "path",
                "file that lists the resolvers for all other names (default: /etc/resolv.conf)",
            ),
            flag(
                "host-dns",
                "let this host's own resolver ask for the names, too; 'stop' and 'reset' undo it",
            ),
        ],
    );
    let docker = group(
        "Docker proxy and plugin",
        [
            text(
                "docker-api",
                "endpoint",
                "Docker API, which lists the running containers, and is behind the proxy; empty: no Docker (default: $DOCKER_HOST or \
                 unix:///var/run/docker.sock)",
            ),
            flag("proxy", "run the Docker API proxy (default of launch; --proxy=false: do not)"),
            text(
                "H",
                "endpoint",
                "where the proxy listens, tcp://<host>:<port> or unix://<path>; may be repeated (default: \
                 unix:///var/run/weave/weave.sock, or tcp://0.0.0.0:12375 if $DOCKER_HOST is a TCP address)",
            ),
            text(
                "hostname-from-label",
                "label",
                "make host names of the value of this label rather than of the name",
            ),
            text(
                "hostname-match",
                "regexp",
                "part of the container's name that is replaced in its host name (default: (.*))",
            ),
            text(
                "hostname-replacement",
                "text",
                "what it is replaced by; $1 or ${name} is a group (default: $1)",
            ),
            flag("rewrite-inspect", "show the weave address in docker inspect"),
            flag("no-default-ipalloc", "attach containers only if WEAVE_CIDR is set"),
            flag(
                "attach-user-networks",
                "attach containers on Docker's user-defined networks, too, as Compose makes them",
            ),
            flag("no-rewrite-hosts", "do not change /etc/hosts in containers"),
            flag(
                "without-dns",
                "neither give containers host name and DNS settings nor register their names",
            ),
            flag("no-multicast-route", "give containers no multicast route"),
            flag("tls", "TLS on TCP endpoints of the proxy (default: as Docker's daemon has it)"),
            flag("tlsverify", "the same, for clients with a certificate of the CA only"),
            text(
                "tlscacert",
                "file",
                "CA of the clients (default: ca.pem in $DOCKER_CERT_PATH or ~/.docker)",
            ),
            text("tlscert", "file", "certificate of the proxy (default: cert.pem there)"),
            text("tlskey", "file", "its key (default: key.pem there)"),
            flag("no-detect-tls", "do not copy the TLS options of Docker's daemon"),
            flag(
                "plugin",
                "let Docker make networks of this peer (default of launch; --plugin=false: do not)",
            ),
            text("mesh-network-name", "name", "network that Docker gets; empty: none (default: weave)"),
            text(
                "plugin-socket",
                "path",
                "socket of the driver 'weave', for networks of a cluster store; empty: none (default: /run/docker/plugins/weave.sock)",
            ),
            text(
                "plugin-mesh-socket",
                "path",
                "socket of the driver 'weavemesh', for networks and their addresses; empty: none (default: \
                 /run/docker/plugins/weavemesh.sock)",
            ),
            flag("plugin-v2", "be a plugin that Docker manages: without names and default network"),
            flag("plugin-v2-multicast", "with --plugin-v2: containers send multicast through the network"),
        ],
    );
    [peer, network, control, allocation, names, docker].concat()
}

/// Features that this version does not have, and the options that ask for them.
pub(crate) static MISSING: &[(&str, &[&str])] = &[("AWS routes", &["awsvpc"])];

/// An option of an earlier version (docs/spec/cli.md 3.2).
#[derive(Debug)]
pub(crate) struct Old {
    pub(crate) old: &'static str,
    pub(crate) takes_value: bool,
    /// The current option; `None` if the old one has no effect any more.
    pub(crate) name: Option<&'static str>,
    /// What the current option's value begins with; an old flag becomes exactly this.
    pub(crate) prefix: &'static str,
}

const fn value(old: &'static str, name: &'static str, prefix: &'static str) -> Old {
    Old { old, takes_value: true, name: Some(name), prefix }
}

const fn switch(old: &'static str, name: &'static str, prefix: &'static str) -> Old {
    Old { old, takes_value: false, name: Some(name), prefix }
}

const fn obsolete(old: &'static str, takes_value: bool) -> Old {
    Old { old, takes_value, name: None, prefix: "" }
}

pub(crate) static OLD: &[Old] = &[
    value("iprange", "ipalloc-range", ""),
    value("ipsubnet", "ipalloc-default-subnet", ""),
    value("initpeercount", "ipalloc-init", "consensus="),
    value("init-peer-count", "ipalloc-init", "consensus="),
    switch("observer", "ipalloc-init", "observer"),
    value("ipam-seed", "ipalloc-init", "seed="),
    switch("nodiscovery", "no-discovery", ""),
    value("connlimit", "conn-limit", ""),
    switch("debug", "log-level", "debug"),
    value("httpaddr", "http-addr", ""),
    value("api", "docker-api", ""),
    value("D", "docker-api", ""),
    value("domain", "dns-domain", ""),
    switch("no-default-ipam", "no-default-ipalloc", ""),
    obsolete("datapath", true),
    obsolete("bufsz", true),
    obsolete("pkt-debug", false),
    obsolete("pktdebug", false),
    obsolete("profile", true),
    obsolete("host-root", true),
    obsolete("proc-path", true),
    obsolete("iface", true),
    obsolete("wait", true),
    obsolete("dns-effective-listen-address", true),
    obsolete("create-datapath", false),
    obsolete("delete-datapath", false),
    obsolete("add-datapath-iface", true),
    obsolete("with-dns", false),
    obsolete("with-ipam", false),
    obsolete("peer-discovery-url", true),
    obsolete("token", true),
    obsolete("advertise-address", true),
];
