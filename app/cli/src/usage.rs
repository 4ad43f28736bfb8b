//! Help texts. Commands and options come from tables, so that what is printed is what is parsed.

use crate::args::{self, Table};
use crate::options;

/// One command.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    pub(crate) arguments: &'static str,
    pub(crate) summary: &'static str,
    group: &'static str,
    detail: &'static str,
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
    opt("rewrite-hosts", Flag, "", "write the container's /etc/hosts [not in this version yet]"),
    opt("add-host", List, "<name>:<ip>", "with --rewrite-hosts: one more line [not in this version yet]"),
    opt("or-die", Flag, "", "accepted for old scripts"),
    opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)"),
];
static DETACH: &[args::Opt] = &[opt("weave-bridge", Text, "<name>", "name of the bridge (default: weave)")];
static STATUS: &[args::Opt] = &[opt("json", Flag, "", "the same facts as JSON")];
static REPORT: &[args::Opt] =
    &[opt("f", Text, "<template>", "print through a Go template, as '{{.Router.Name}}'")];
static RESET: &[args::Opt] = &[
    opt("force", Flag, "", "also if the daemon cannot be asked to leave the network in order"),
    opt("dry-run", Flag, "", "only say what would be removed"),
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

/// All commands of this version.
pub(crate) static COMMANDS: &[Command] = &[
    Command {
        name: "launch",
        arguments: "[options] [<peer> ...]",
        summary: "start the peer of this host and connect it to others",
        group: PEERS,
        detail: "Starts a daemon in the background, waits until it works and prints its peer name. A peer is\n\
                 <host>[:<port>]; name any one that is in the network already, the others are found through it.\n\
                 Peers that are down are tried again until they answer. A crashed daemon is started again.\n\
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
        name: "stop",
        arguments: "",
        summary: "stop the peer; containers and their addresses stay",
        group: PEERS,
        detail: "Ends the daemon. The bridge, attached containers and stored state stay, so that containers of\n\
                 this host still reach each other and 'weave launch' goes on where it was.\n",
        table: table!(COMMON),
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
        arguments: "<addr> ... [options] <container>",
        summary: "give a running container addresses in the network",
        group: CONTAINERS,
        detail: "An address is <ip>/<bits>; several put the container into several subnets. A container is a Docker\n\
                 name or id, pid:<pid>, or netns:<name or path>. Prints the addresses. Repeating it does no harm.\n\
                 \n\
                 Examples:\n\
                 \x20 weave attach 10.2.1.1/24 c1\n\
                 \x20 weave attach 10.2.1.1/24 10.2.2.1/24 netns:blue\n",
        table: table!(ATTACH, COMMON),
    },
    Command {
        name: "detach",
        arguments: "<addr> ... <container>",
        summary: "take addresses from a container",
        group: CONTAINERS,
        detail: "The device goes with the last address.\n\nExample:\n\x20 weave detach 10.2.1.1/24 c1\n",
        table: table!(DETACH, COMMON),
    },
    Command {
        name: "status",
        arguments: "[targets|connections|peers|dns|ipam] [--json]",
        summary: "show how the peer is doing",
        group: LOOK,
        detail: "  (nothing)     the peer and its services\n\
                 \x20 targets       peers that were named\n\
                 \x20 connections   connections: state, overlay, peer, or why there is none\n\
                 \x20 peers         all peers of the network and their connections\n",
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
                 Started again while its run directory is there, it connects to the peers it had then.\n",
        table: options::DAEMON_TABLE,
    },
];

/// Commands of 2.8.1 and before that wait for features of their own.
pub(crate) static NOT_YET: &[&str] = &[
    "setup",
    "setup-cni",
    "prime",
    "consense",
    "env",
    "config",
    "proxy-env",
    "proxy-config",
    "dns-args",
    "dns-add",
    "dns-remove",
    "dns-lookup",
    "expose",
    "hide",
    "ps",
    "rmpeer",
    "attach-bridge",
    "bridge-type",
    "docker-bridge-ip",
    "run",
    "start",
    "restart",
    "launch-router",
    "launch-proxy",
    "launch-plugin",
    "launch-dns",
    "stop-router",
    "stop-proxy",
    "stop-plugin",
    "stop-dns",
    "create-bridge",
    "attach-router",
];

/// The command of that name.
pub(crate) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|c| c.name == name)
}

/// `weave help`.
pub(crate) fn overview(width: usize) -> String {
    let mut text = String::from(
        "weave connects containers on many hosts into one network.\n\nUsage: weave <command> [arguments]\n",
    );
    for group in [PEERS, CONTAINERS, LOOK] {
        text.push_str(&format!("\n{group}:\n"));
        for c in COMMANDS.iter().filter(|c| c.group == group) {
            let arguments = if c.arguments.len() > 22 { "..." } else { c.arguments };
            text.push_str(&args::entry(format!("{} {arguments}", c.name).trim_end(), c.summary, width));
        }
    }
    text.push_str(
        "\nTwo hosts, one container on each:\n\
         \x20 host1$ weave launch                          host2$ weave launch host1\n\
         \x20 host1$ weave attach 10.2.1.1/24 c1           host2$ weave attach 10.2.1.2/24 c2\n\
         \x20 c1$ ping 10.2.1.2\n\
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
