//! Help texts. Commands and options come from tables, so that what is printed is what is parsed.

use crate::args::{self, Table};
use crate::options;

/// One command.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) summary: &'static str,
    pub(crate) group: &'static str,
    pub(crate) detail: &'static str,
    table: Table,
}

impl Command {
    pub(crate) fn table(&self) -> Table {
        self.table
    }

    /// `usage: weave connect [--replace] <peer> ...`, one line for a wrong call.
    pub(crate) fn synopsis(&self) -> String {
        format!("usage: weave {} {}", self.name, self.arguments).trim_end().to_owned()
    }
}

use args::Kind::{Flag, List, Text};

const fn opt(name: &'static str, kind: args::Kind, value: &'static str, help: &'static str) -> args::Opt {
    args::Opt { name, kind, value, help, group: "Options", effect: args::Effect::Works }
}

/// Where a command finds the daemon; every command takes them.
static COMMON: &[args::Opt] = &[
    opt(
        "run-dir",
        Text,
        "<dir>",
        "where the daemon's socket and pid file are (default: $WEAVE_RUN_DIR or /run/weave)",
    ),
    opt("instance", Text, "<name>", "which of several peers on this machine (default: $WEAVE_INSTANCE)"),
    opt(
        "http-addr",
        Text,
        "<host>:<port>",
        "ask the daemon there (default: its socket, or $WEAVE_HTTP_ADDR)",
    ),
];

static CONNECT: &[args::Opt] =
    &[opt("replace", Flag, "", "forget all peers named before; without peers: forget them all")];
static ATTACH: &[args::Opt] = &[
    opt("no-multicast-route", Flag, "", "do not send the container's multicast through the network"),
    opt("without-dns", Flag, "", "do not register the container's name"),
    opt(
        "rewrite-hosts",
        Flag,
        "",
        "write the addresses and the container's names into its /etc/hosts (Docker only)",
    ),
    opt("add-host", List, "<name>:<ip>", "with --rewrite-hosts: one more line"),
    opt("or-die", Flag, "", "accepted for old scripts"),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
];
static ENV: &[args::Opt] = &[opt("restore", Flag, "", "print what takes the effect of 'weave env' back")];
static NAME: &[args::Opt] = &[
    opt("h", Text, "<fqdn>", "the name (default: the container's)"),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
];
static BRIDGE: &[args::Opt] = &[opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)")];
static DETACH: &[args::Opt] = &[opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)")];
static RMPEER: &[args::Opt] =
    &[opt("force", Flag, "", "also if the peer can be reached: its addresses may then be given out twice")];
static EXPOSE: &[args::Opt] = &[
    opt("h", Text, "<fqdn>", "register this name for the addresses [not in this version yet]"),
    opt(
        "without-masquerade",
        Flag,
        "",
        "keep outside addresses; the outside then needs a route to the network",
    ),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
];
static STATUS: &[args::Opt] = &[opt("json", Flag, "", "the same facts as JSON")];
static REPORT: &[args::Opt] =
    &[opt("f", Text, "<template>", "print through a Go template, as '{{.Router.Name}}'")];
static SETUP: &[args::Opt] =
    &[opt("state-dir", Text, "<dir>", "what survives reboots (default: $WEAVE_STATE_DIR or /var/lib/weave)")];
static RESET: &[args::Opt] = &[
    opt("force", Flag, "", "also if the daemon cannot be asked to leave the network in order"),
    opt("dry-run", Flag, "", "only say what would be removed"),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
    opt("state-dir", Text, "<dir>", "what survives reboots (default: $WEAVE_STATE_DIR or /var/lib/weave)"),
];

static STOP: &[args::Opt] = &[
    opt("hand-back", Flag, "", "also prepare the host for the original Weave Net to come back"),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
    opt("state-dir", Text, "<dir>", "what survives reboots (default: $WEAVE_STATE_DIR or /var/lib/weave)"),
];

const NO_OLD: &[args::Old] = &[];

macro_rules! table {
    ($($options:expr),*) => { Table { options: &[$($options),*], old: NO_OLD } };
}

const PEERS: &str = "Peers";
const CONTAINERS: &str = "Containers";
const LOOK: &str = "Looking";
const SHELL: &str = "Docker, names, scripts";

/// All commands of this version.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        name: "launch",
        arguments: "[options] [<peer> ...]",
        summary: "start the peer of this host and connect it to others",
        group: PEERS,
        detail: "Starts a daemon in the background, waits until it works and prints its peer name. A peer is\n\
                 <host>[:<port>]; name any one that is in the network already, the others are found through it.\n\
                 Peers that are down are tried again until they answer. A crashed daemon is started again, and after a\n\
                 reboot: by systemd (a unit weave.service), or by Docker (a container weave, whose id is printed\n\
                 then); without both a small process does the first.\n\
                 \n\
                 Examples:\n\
                 \x20 host1$ weave launch\n\
                 \x20 host2$ weave launch host1\n\
                 \x20 host3$ weave launch --password wEaVe --trusted-subnets 10.0.0.0/8 host1 host2\n\
                 \n\
                 Exit: 0 ready, 1 failed with the reason on stderr, 3 already running.\n",
        table: options::LAUNCH_TABLE,
    },
    Command {
        name: "setup",
        arguments: "",
        summary: "make the directories that a peer needs; not required",
        group: PEERS,
        detail: "'weave launch' does it, too. Nothing is downloaded.\n",
        table: table!(SETUP, COMMON),
    },
    Command {
        name: "stop",
        arguments: "",
        summary: "stop the peer; containers and their addresses stay",
        group: PEERS,
        detail: "Ends the daemon. The bridge, attached containers and stored state stay, so that containers of\n\
                 this host still reach each other and 'weave launch' goes on where it was.\n",
        table: table!(STOP, COMMON),
    },
    Command {
        name: "reset",
        arguments: "[--force]",
        summary: "remove the peer, its network devices and its stored state",
        group: PEERS,
        detail: "Stops the peer and removes everything weave made on this host: bridge, devices of attached\n\
                 containers, stored state. Running containers lose this network. Says nothing if all is gone.\n",
        table: table!(RESET, COMMON),
    },
    Command {
        name: "prime",
        arguments: "",
        summary: "wait until this peer has joined in the division of addresses",
        group: PEERS,
        detail: "Peers divide the range of addresses once, when more than half of them agree. This waits until it is done and\n\
                 known here, and sees to it that it begins. Run it after each launch before the next one: then peers cannot\n\
                 divide into groups. On a terminal it says what it waits for. The same as consense.\n",
        table: table!(COMMON),
    },
    Command {
        name: "consense",
        arguments: "",
        summary: "the same as prime",
        group: PEERS,
        detail: "",
        table: table!(COMMON),
    },
    Command {
        name: "rmpeer",
        arguments: "[--force] <peer> ...",
        summary: "take over the addresses of peers that are gone for good",
        group: PEERS,
        detail: "A peer is a name or nickname as 'weave status ipam' shows it. For peers that can never come back: a host that\n\
                 died without 'weave reset'. Run it on one peer only. One that can be reached is refused.\n",
        table: table!(RMPEER, COMMON),
    },
    Command {
        name: "connect",
        arguments: "[--replace] <peer> ...",
        summary: "connect to more peers, now and after a restart",
        group: PEERS,
        detail: "Examples:\n\
                 \x20 weave connect host4 host5:7000\n\
                 \x20 weave connect --replace host1      only host1 from now on; existing connections stay\n",
        table: table!(CONNECT, COMMON),
    },
    Command {
        name: "forget",
        arguments: "<peer> ...",
        summary: "do not connect to these peers again",
        group: PEERS,
        detail: "Spell a peer as when it was named; 'weave status targets' shows them. A connection that is up stays.\n",
        table: table!(COMMON),
    },
    Command {
        name: "attach",
        arguments: "[<addr> ...] [options] <container>",
        summary: "give a running container addresses in the network",
        group: CONTAINERS,
        detail: "An address is <ip>/<bits>, or one to be chosen: net:<ip>/<bits> in that subnet, net:default (also if none\n\
                 is given) in the default one. Several put the container into several subnets. A container is a Docker\n\
                 name or id, pid:<pid>, or netns:<name or path>. Prints the addresses. Repeating it does no harm.\n\
                 \n\
                 Examples:\n\
                 \x20 weave attach c1\n\
                 \x20 weave attach net:10.32.2.0/24 netns:blue\n\
                 \x20 weave attach 10.2.1.1/24 10.2.2.1/24 c1\n",
        table: table!(ATTACH, COMMON),
    },
    Command {
        name: "detach",
        arguments: "[<addr> ...] <container>",
        summary: "take addresses from a container",
        group: CONTAINERS,
        detail: "Addresses as for attach; without any it is that of the default subnet. The device goes with the last\n\
                 address. Addresses are free for others afterwards. Never waits.\n\
                 \n\
                 Example:\n\x20 weave detach 10.2.1.1/24 c1\n",
        table: table!(DETACH, COMMON),
    },
    Command {
        name: "expose",
        arguments: "[<addr> ...] [-h <fqdn>] [--without-masquerade]",
        summary: "give this host addresses in the network, so that both reach each other",
        group: CONTAINERS,
        detail: "An address is <ip>/<bits>, unused in the network. What passes between its subnet and the rest of the world\n\
                 gets this host's address, unless --without-masquerade is given. Prints the addresses. Repeating it does\n\
                 no harm; it outlives a restart of the daemon and a flushed firewall.\n\
                 \n\
                 Examples:\n\
                 \x20 weave expose 10.2.1.102/24\n\
                 \x20 iptables -t nat -A PREROUTING -p tcp -i eth0 --dport 2211 -j DNAT --to-destination 10.2.1.1:4422\n",
        table: table!(EXPOSE, COMMON),
    },
    Command {
        name: "hide",
        arguments: "[<addr> ...]",
        summary: "take addresses from this host that 'expose' gave it",
        group: CONTAINERS,
        detail: "The rules of a subnet go with its last address. An address that is not exposed is no error.\n",
        table: table!(COMMON),
    },
    Command {
        name: "status",
        arguments: "[targets|connections|peers|dns|ipam] [--json]",
        summary: "show how the peer is doing",
        group: LOOK,
        detail: "  (nothing)     the peer and its services\n\
                 \x20 targets       peers that were named\n\
                 \x20 connections   connections: state, overlay, peer, or why there is none\n\
                 \x20 peers         all peers of the network and their connections\n\
                 \x20 ipam          who owns how many addresses, why calls wait, and contradictions\n",
        table: table!(STATUS, COMMON),
    },
    Command {
        name: "report",
        arguments: "[-f <template>]",
        summary: "print everything the peer knows as JSON",
        group: LOOK,
        detail: "Examples:\n\
                 \x20 weave report | jq .Router.Peers\n\
                 \x20 weave report -f '{{range .Router.Connections}}{{.Address}} {{.State}}{{\"\\n\"}}{{end}}'\n",
        table: table!(REPORT, COMMON),
    },
    Command {
        name: "ps",
        arguments: "[<container> ...]",
        summary: "list containers of this host with their addresses",
        group: LOOK,
        detail: "One line for each interface: id, Ethernet address, addresses. weave:expose is the bridge itself. Without\n\
                 arguments: the bridge, Docker's running containers, named namespaces, other processes' namespaces.\n",
        table: table!(BRIDGE, COMMON),
    },
    Command {
        name: "version",
        arguments: "",
        summary: "print the version of the running daemon, else of this program",
        group: LOOK,
        detail: "",
        table: table!(COMMON),
    },
    Command {
        name: "help",
        arguments: "[<command>]",
        summary: "explain a command",
        group: LOOK,
        detail: "",
        table: table!(),
    },
    Command {
        name: "daemon",
        arguments: "[options] [<peer> ...]",
        summary: "run the peer in the foreground, for a service manager",
        group: PEERS,
        detail: "Logs to stderr, tells the service manager when it is ready (sd_notify), ends on SIGTERM.\n\
                 Started again with the same peers it connects to those that it was last told of.\n",
        table: options::DAEMON_TABLE,
    },
    Command {
        name: "env",
        arguments: "[--restore]",
        summary: "print what makes a shell's docker use the proxy",
        group: SHELL,
        detail: "Nothing is printed while there is no proxy.\n\nExamples:\n\
                 \x20 eval $(weave env)\n\x20 eval $(weave env --restore)\n",
        table: table!(ENV, COMMON),
    },
    Command {
        name: "config",
        arguments: "",
        summary: "print the option that makes one docker command use the proxy",
        group: SHELL,
        detail: "Example:\n\x20 docker $(weave config) run -ti ubuntu\n",
        table: table!(COMMON),
    },
    Command {
        name: "dns-args",
        arguments: "[<docker run argument> ...]",
        summary: "print the options of docker run that make a container ask weaveDNS",
        group: SHELL,
        detail: "Arguments do not matter. Nothing is printed while names are off.\n\nExample:\n\
                 \x20 docker run $(weave dns-args) -ti ubuntu\n",
        table: table!(COMMON),
    },
    Command {
        name: "dns-add",
        arguments: "[<ip> ...] <container> [-h <fqdn>] | <ip> ... -h <fqdn>",
        summary: "give addresses a name",
        group: SHELL,
        detail: "Without addresses: those of the container. Without a container the name stays until it is removed.\n",
        table: table!(NAME, COMMON),
    },
    Command {
        name: "dns-remove",
        arguments: "[<ip> ...] <container> [-h <fqdn>] | <ip> ... -h <fqdn>",
        summary: "take a name, or all names, from addresses",
        group: SHELL,
        detail: "",
        table: table!(NAME, COMMON),
    },
    Command {
        name: "dns-lookup",
        arguments: "<name>",
        summary: "print the addresses of a name",
        group: SHELL,
        detail: "Asks weaveDNS, or the server that $DNS_ADDRESS names. Prints nothing if there are none.\n",
        table: table!(COMMON),
    },
    Command {
        name: "attach-bridge",
        arguments: "[<bridge>]",
        summary: "join another bridge to the network, docker0 unless named",
        group: SHELL,
        detail: "",
        table: table!(BRIDGE, COMMON),
    },
    Command {
        name: "bridge-type",
        arguments: "",
        summary: "print what kind of bridge there is",
        group: SHELL,
        detail: "bridge, or what 2.8.1 left: bridged_fastdp, fastdp. Fails if there is none.\n",
        table: table!(BRIDGE, COMMON),
    },
    Command {
        name: "docker-bridge-ip",
        arguments: "",
        summary: "print the address of Docker's bridge",
        group: SHELL,
        detail: "That of $DOCKER_BRIDGE, else docker0.\n",
        table: table!(COMMON),
    },
    Command {
        name: "weaveutil",
        arguments: "<command> [<argument> ...]",
        summary: "low-level helper of 2.8.1, for scripts that call it",
        group: SHELL,
        detail: "Also by a link named weaveutil to this program. 'weave weaveutil help' lists its commands.\n",
        table: table!(),
    },
    Command {
        name: "completions",
        arguments: "bash|zsh|fish",
        summary: "print what makes a shell complete weave's commands and options",
        group: SHELL,
        detail: "Examples:\n\
                 \x20 weave completions bash > /etc/bash_completion.d/weave\n\
                 \x20 weave completions zsh > /usr/share/zsh/vendor-completions/_weave\n\
                 \x20 weave completions fish > /etc/fish/completions/weave.fish\n",
        table: table!(),
    },
    Command {
        name: "man",
        arguments: "",
        summary: "print the manual page",
        group: SHELL,
        detail: "Example:\n\x20 weave man | man -l -\n",
        table: table!(),
    },
];

/// Commands of 2.8.1 and before that wait for features of their own.
pub(crate) static NOT_YET: &[&str] = &["setup-cni", "run", "start", "restart"];

/// The command of that name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| c.name == name)
}

/// `weave help`.
pub(crate) fn overview(width: usize) -> String {
    let mut text = String::from(
        "weave connects containers on many hosts into one network.\n\nUsage: weave <command> [arguments]\n",
    );
    for group in [PEERS, CONTAINERS, LOOK, SHELL] {
        text.push_str(&format!("\n{group}:\n"));
        for c in COMMANDS.iter().filter(|c| c.group == group) {
            let arguments = if c.arguments.len() > 22 { "..." } else { c.arguments };
            text.push_str(&args::entry(format!("{} {arguments}", c.name).trim_end(), c.summary, width));
        }
    }
    text.push_str(
        "\nTwo hosts, one container on each:\n\
         \x20 host1$ weave launch                          host2$ weave launch host1\n\
         \x20 host1$ weave attach c1                       host2$ weave attach c2\n\
         \x20 10.32.0.1                                    10.40.0.1\n\
         \x20 c1$ ping 10.40.0.1\n\
         \n'weave help <command>' explains a command and its options.\n",
    );
    text
}

/// `weave help <command>`.
pub(crate) fn command(c: &Command, width: usize) -> String {
    let mut text = format!("weave {}: {}\n\n", c.name, c.summary);
    text.push_str(&c.synopsis().replacen("usage", "Usage", 1));
    text.push('\n');
    if !c.detail.is_empty() {
        text.push('\n');
        text.push_str(c.detail);
    }
    text.push_str(&args::help(c.table, width));
    text
}
