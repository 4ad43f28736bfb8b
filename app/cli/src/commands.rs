//! The commands and their options. Parser, help, manual and completions are made from them.

use clap::{Arg, ArgAction, Command, ValueHint};

use crate::launch_options::{daemon_options, flag, launch_options, number, text};
use crate::{Failure, weaveutil};

/// Where a command finds the daemon.
fn common_options() -> Vec<Arg> {
    let options = [
        text(
            "run-dir",
            "dir",
            "directory of the daemon's socket and pid file (default: $WEAVE_RUN_DIR or /run/weave)",
        ),
        text("instance", "name", "which of several peers on this host (default: $WEAVE_INSTANCE)"),
        text("http-addr", "host:port", "address of the daemon (default: its socket, or $WEAVE_HTTP_ADDR)"),
    ];
    options.map(|option| option.help_heading("Common options")).into()
}

fn weave_bridge() -> Arg {
    text("weave-bridge", "name", "name of the bridge (default: weave)")
}

fn state_dir() -> Arg {
    text("state-dir", "dir", "state that survives reboots (default: $WEAVE_STATE_DIR or /var/lib/weave)")
}

/// Arguments that are not options, any number of them.
pub(crate) fn arguments(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).action(ArgAction::Append).num_args(0..).help(help)
}

fn no_multicast_route() -> Arg {
    flag("no-multicast-route", "do not send the container's multicast through the network")
}

fn addresses() -> Arg {
    arguments("addr", "<ip>/<bits>, net:<ip>/<bits> or net:default")
}

fn peers() -> Arg {
    arguments("peer", "host name or address, with :<port> if it is not 6783").value_hint(ValueHint::Hostname)
}

/// A command without the common options.
fn plain(name: &'static str, about: &'static str, detail: &'static str) -> Command {
    Command::new(name)
        .bin_name(format!("weave {name}"))
        .display_name(format!("weave-{name}"))
        .about(about)
        .after_help(detail)
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(120)
}

fn command(name: &'static str, about: &'static str, detail: &'static str) -> Command {
    plain(name, about, detail).args(common_options())
}

pub(crate) fn daemon() -> Command {
    plain(
        "daemon",
        "run the peer in the foreground, for a service manager",
        "Logs to stderr, notifies the service manager when it is ready (sd_notify), ends on SIGTERM. Started again with the \
         same peers it connects to those that were named last.",
    )
    .args(daemon_options())
    .arg(peers())
}

/// All commands of this version.
pub(crate) fn all() -> Vec<Command> {
    vec![
        plain(
            "launch",
            "start the peer of this host and connect it to others",
            "Starts a daemon in the background, waits until it works and prints its peer name. A peer is <host>[:<port>]; one \
             that is in the network already is enough, the others are found through it. Peers that are down are retried \
             until they answer. The daemon is started again after a crash and after a reboot: by systemd (a unit \
             weave.service), or by Docker (a container weave, whose id is printed then). Without both, a supervisor process \
             starts it again after a crash only.\n\
             \n\
             Examples:\n\
             \x20 host1$ weave launch\n\
             \x20 host2$ weave launch host1\n\
             \x20 host3$ weave launch --password wEaVe --trusted-subnets 10.0.0.0/8 host1 host2\n\
             \n\
             Exit status: 0 ready, 1 failed with the reason on stderr, 3 already running.",
        )
        .args(launch_options())
        .args(daemon_options())
        .arg(peers()),
        command(
            "setup",
            "make the directories that a peer needs, and install the CNI plugins; not required",
            "'weave launch' does both, too. Nothing is downloaded.",
        )
        .arg(state_dir()),
        plain(
            "setup-cni",
            "install the CNI plugins",
            "Links weave-net and weave-ipam in WEAVE_CNI_PLUGIN_DIR to this program. Writes /etc/cni/net.d/10-weave.conflist if \
             that directory exists and the file does not. 'weave launch' does it, too.",
        ),
        command(
            "stop",
            "stop the peer; containers and their addresses stay",
            "Stops the daemon. The bridge, attached containers and stored state stay, so that containers of this host still \
             reach each other and 'weave launch' continues with them.",
        )
        .args([
            flag("hand-back", "also prepare the host for the original Weave Net to come back"),
            weave_bridge(),
            state_dir(),
        ]),
        command(
            "reset",
            "remove the peer, its network devices and its stored state",
            "Stops the peer and removes everything weave made on this host: bridge, devices of attached containers, stored \
             state. Running containers lose this network. It is no error if there is nothing to remove.",
        )
        .args([
            flag("force", "also if the daemon cannot leave the network in order"),
            flag("dry-run", "only list what would be removed"),
            weave_bridge(),
            state_dir(),
        ]),
        command(
            "prime",
            "wait until this peer takes part in address allocation",
            "Peers divide the address range once, when more than half of them agree. This starts the division if necessary, \
             and waits until it is done and known here. Run it after each launch before the next one: then peers cannot \
             divide into groups. On a terminal it prints what it waits for.",
        ),
        command("consense", "the same as prime", ""),
        command(
            "rmpeer",
            "take over the addresses of peers that are gone for good",
            "A peer is a name or nickname as 'weave status ipam' shows it. For peers that can never come back: a host that \
             died without 'weave reset'. Run it on one peer only. A peer that can be reached is refused.",
        )
        .arg(flag("force", "also if the peer can be reached: its addresses may then be given out twice"))
        .arg(peers().num_args(1..).required(true)),
        command(
            "connect",
            "connect to more peers, now and after a restart",
            "Examples:\n\
             \x20 weave connect host4 host5:7000\n\
             \x20 weave connect --replace host1      only host1 from now on; existing connections stay",
        )
        .arg(flag("replace", "forget all peers named before; without peers: forget them all"))
        .arg(peers()),
        command(
            "forget",
            "do not connect to these peers again",
            "Spell a peer as when it was named; 'weave status targets' shows them. An existing connection stays.",
        )
        .arg(peers().num_args(1..).required(true)),
        command(
            "run",
            "start a container with Docker and give it addresses in the network",
            "Runs 'docker run -d' with the arguments that follow options and addresses, attaches the container and prints its id, \
             and nothing else. Addresses as for attach; without one it gets one in the default subnet. The container uses weaveDNS, and \
             its name (--name or -h of Docker) is registered. Its /etc/hosts gets its addresses. The container's program may start \
             before it is attached. If it cannot be attached it is killed.\n\
             \n\
             Examples:\n\
             \x20 weave run 10.2.1.1/24 -t -i ubuntu\n\
             \x20 C=$(weave run --name web nginx)\n\
             \x20 weave run net:10.32.2.0/24 net:default --rm alpine sleep 60\n\
             \n\
             Exit status: that of docker if it cannot run the container, 1 if it cannot be attached.",
        )
        .override_usage("weave run [options] [<addr> ...] <arguments of docker run>")
        .args([
            flag("without-dns", "do not use weaveDNS, and do not register the container's name"),
            flag("with-dns", "accepted for old scripts; it is the default"),
            flag("no-rewrite-hosts", "leave the container's /etc/hosts as Docker writes it"),
            no_multicast_route(),
            weave_bridge(),
            arguments("addr", "addresses, then arguments of docker run"),
        ]),
        command(
            "start",
            "start a stopped container of Docker and attach it",
            "Addresses as for attach, in addition to those that it had; without one those. Prints the container as it was named. If it cannot be attached it is killed, unless it was running \
             before.\n\
             \n\
             Example:\n\
             \x20 weave start 10.2.1.1/24 c1",
        )
        .override_usage("weave start [<addr> ...] [options] <container>")
        .args([
            flag("without-dns", "do not register the container's name"),
            no_multicast_route(),
            weave_bridge(),
            addresses(),
        ]),
        command(
            "restart",
            "restart a container of Docker, which keeps its addresses",
            "The container has to be attached. Prints it as it was named.",
        )
        .override_usage("weave restart [options] <container>")
        .args([
            flag("without-dns", "do not register the container's name"),
            no_multicast_route(),
            weave_bridge(),
            arguments("container", "name or id of a container of Docker").num_args(0..=1),
        ]),
        command(
            "attach",
            "give a running container addresses in the network",
            "An address is <ip>/<bits>, or allocated: net:<ip>/<bits> in that subnet, net:default (also if none is given) in \
             the default subnet. Several put the container into several subnets. A container is a Docker name or id, \
             pid:<pid>, or netns:<name or path>. Prints the addresses. Repeating it does no harm.\n\
             \n\
             Examples:\n\
             \x20 weave attach c1\n\
             \x20 weave attach net:10.32.2.0/24 netns:blue\n\
             \x20 weave attach 10.2.1.1/24 10.2.2.1/24 c1\n\
             \x20 weave attach --name blue.weave.local netns:blue",
        )
        .override_usage("weave attach [<addr> ...] [options] <container>")
        .args([
            no_multicast_route(),
            text("name", "fqdn", "register this name rather than the container's own, which is its host name and domain"),
            flag("without-dns", "do not register the container's name"),
            flag("rewrite-hosts", "write the addresses and the container's names into its /etc/hosts (Docker only)"),
            text("add-host", "name:ip", "with --rewrite-hosts: one more line; may be repeated"),
            flag("or-die", "accepted for old scripts"),
            weave_bridge(),
            addresses(),
        ]),
        command(
            "detach",
            "take addresses from a container",
            "Addresses as for attach; the default is the one in the default subnet. The device goes with the last address. The \
             addresses are free for others afterwards. Never waits.\n\
             \n\
             Example:\n\
             \x20 weave detach 10.2.1.1/24 c1",
        )
        .override_usage("weave detach [<addr> ...] [options] <container>")
        .args([weave_bridge(), addresses()]),
        command(
            "expose",
            "give this host addresses in the network, so that both reach each other",
            "An address is <ip>/<bits>, unused in the network. Traffic between its subnet and the rest of the world gets this \
             host's address, unless --without-masquerade is given. Prints the addresses. Repeating it does no harm; it \
             survives a restart of the daemon and a flushed firewall.\n\
             \n\
             Examples:\n\
             \x20 weave expose 10.2.1.102/24\n\
             \x20 iptables -t nat -A PREROUTING -p tcp -i eth0 --dport 2211 -j DNAT --to-destination 10.2.1.1:4422",
        )
        .args([
            text("h", "fqdn", "register this name for the addresses, as gateway.weave.local"),
            flag("without-masquerade", "keep outside addresses; the outside then needs a route to the network"),
            weave_bridge(),
            addresses(),
        ]),
        command(
            "hide",
            "remove addresses that 'expose' gave to this host",
            "The rules of a subnet go with its last address. An address that is not exposed is no error.",
        )
        .arg(addresses()),
        command(
            "dns-add",
            "register a name for a container, or for addresses outside of the network",
            "Containers of all hosts resolve it then. Without addresses: those that the container has. Without -h: the \
             container's own name. Names of a container vanish when it ends; those without a container stay until dns-remove.\n\
             \n\
             Examples:\n\
             \x20 weave dns-add c1 -h web.weave.local\n\
             \x20 weave dns-add 10.2.1.1 c1 -h web.weave.local\n\
             \x20 weave dns-add 192.168.48.40 -h db.weave.local",
        )
        .override_usage("weave dns-add [<ip> ...] <container> [-h <fqdn>] | weave dns-add <ip> ... -h <fqdn>")
        .args([
            text("h", "fqdn", "the name, in the domain of the network"),
            weave_bridge(),
            arguments("ip", "IPv4 addresses, then a container as for attach"),
        ]),
        command(
            "dns-remove",
            "remove names that this host has registered",
            "Without -h: all names of these addresses. Without addresses: those of the container.\n\
             \n\
             Examples:\n\
             \x20 weave dns-remove c1 -h web.weave.local\n\
             \x20 weave dns-remove 192.168.48.40",
        )
        .override_usage("weave dns-remove [<ip> ...] <container> [-h <fqdn>] | weave dns-remove <ip> ... [-h <fqdn>]")
        .args([
            text("h", "fqdn", "only this name"),
            weave_bridge(),
            arguments("ip", "IPv4 addresses, then a container as for attach"),
        ]),
        command(
            "dns-lookup",
            "ask weaveDNS for the addresses of a name",
            "One address on each line. The domain may be left out. A name without an address is no error: nothing is printed \
             on stdout.",
        )
        .override_usage("weave dns-lookup <name>")
        .arg(arguments("name", "as web, web.weave.local or example.com")),
        command(
            "dns-args",
            "print the options of 'docker run' that make a container use weaveDNS",
            "Nothing if the peer has no names.\n\
             \n\
             Example:\n\
             \x20 docker run $(weave dns-args) -h web.weave.local -d nginx",
        )
        .override_usage("weave dns-args")
        .arg(arguments("argument", "accepted, without effect")),
        command(
            "status",
            "show the state of the peer",
            "Without a page: the peer and its services. Pages:\n\
             \x20 targets       peers that were named\n\
             \x20 connections   connections: state, overlay, peer, or why there is none\n\
             \x20 peers         all peers of the network and their connections\n\
             \x20 dns           names of the network: name, address, container, the peer that registered it\n\
             \x20 ipam          who owns how many addresses, why requests wait, and contradictions",
        )
        .arg(flag("json", "the same facts as JSON"))
        .arg(arguments("page", "one of those below")),
        command(
            "doctor",
            "find what keeps the peer, this host or its connections from working",
            "Before and after 'launch'. Each finding says what is wrong, what it leads to and what mends it. Peers that are named are \
             connected to. Changes nothing, and ends within 15 seconds.\n\
             \n\
             Examples:\n\
             \x20 weave doctor\n\
             \x20 weave doctor --ipalloc-range 10.2.0.0/16 host1     before a launch with these\n\
             \n\
             Exit status: 0 no problems, 1 warnings, 2 errors.",
        )
        .args([
            flag("json", "the findings as JSON"),
            number("port", "port", "port of the peer while it does not run (default: $WEAVE_PORT or 6783)"),
            text("ipalloc-range", "cidr", "planned range of addresses while the peer does not run (default: 10.32.0.0/12)"),
            weave_bridge(),
            state_dir(),
        ])
        .arg(peers()),
        command(
            "trace",
            "find where the frames from one container to another go, and where they are lost",
            "Sends probe packets from the container FROM as it would send them itself, a small one and one that fills its MTU, and asks \
             the peers on the way where they have seen them. FROM is a container of this host as for attach, an address or a name \
             of one, or weave:expose for the host itself; TO is an address, a name in the network or a container of this host. \
             Ends within a minute.\n\
             \n\
             Examples:\n\
             \x20 weave trace c1 10.40.0.3\n\
             \x20 weave trace netns:web db.weave.local\n\
             \n\
             Exit status: 0 all packets were answered, 1 not, 2 there is no result.",
        )
        .args([flag("json", "the result as JSON"), weave_bridge()])
        .args([Arg::new("from").help("who sends"), Arg::new("to").help("who answers")]),
        command(
            "report",
            "print everything the peer knows as JSON",
            "Examples:\n\
             \x20 weave report | jq .Router.Peers\n\
             \x20 weave report -f '{{range .Router.Connections}}{{.Address}} {{.State}}{{\"\\n\"}}{{end}}'",
        )
        .arg(text("f", "template", "print through a Go template, as '{{.Router.Name}}'")),
        command(
            "support-bundle",
            "write an archive with what others need who are to find out why a peer does not work",
            "Status, report, doctor, metrics, logs, versions, options, settings of the kernel, addresses, routes and firewall of this \
             host, and a MANIFEST that says what each file is. Also while the peer does not run. Passwords are removed; IP \
             addresses outside of the container network, Ethernet addresses of hardware and names of hosts are replaced by numbered \
             words. Prints the name of the file.\n\
             \n\
             Example:\n\
             \x20 weave support-bundle --output - | ssh admin@example.com 'cat > h1.tar.gz'",
        )
        .args([
            text("output", "file", "- is stdout (default: weave-support-<nickname>-<time>.tar.gz in this directory)"),
            weave_bridge(),
            state_dir(),
        ]),
        command(
            "top",
            "show peers, connections and traffic, again each second",
            "On a terminal: 's' and the arrows to the sides choose the column to sort by, the others scroll, 'q' ends. Without a \
             terminal, or with -b, screens are printed one below the other. The live picture in a browser shows the same: \
             http://127.0.0.1:6782/picture.\n\
             \n\
             Examples:\n\
             \x20 weave top\n\
             \x20 weave top -b -n 2 --sort sent",
        )
        .args([
            flag("b", "print lines, without a terminal"),
            number("n", "count", "end after so many screens"),
            number("d", "seconds", "time between two screens (default: 1)"),
            text("sort", "column", "name, overlay, encrypted, rtt, loss, sent, received, mtu or addresses (default: name)"),
        ]),
        command(
            "ps",
            "list containers of this host with their addresses",
            "One line for each interface: id, Ethernet address, addresses. weave:expose is the bridge itself. Without \
             arguments: the bridge, Docker's running containers, named namespaces, namespaces of other processes.",
        )
        .args([weave_bridge(), arguments("container", "as for attach")]),
        command("version", "print the version of the running daemon, else of this program", ""),
        plain("help", "explain a command", "").arg(arguments("command", "its name").num_args(0..=1)),
        daemon(),
        plain(
            "env",
            "print what makes a shell's docker use the Docker API proxy",
            "Containers that this shell's docker then runs are in the network before their program starts. WEAVE_CIDR in a \
             container's environment names its addresses, as for attach; none: it is not attached.\n\
             \n\
             Examples:\n\
             \x20 eval $(weave env)\n\
             \x20 docker run -d --name web nginx\n\
             \x20 docker run -e WEAVE_CIDR='10.2.1.1/24 net:10.32.8.0/24' -ti ubuntu\n\
             \x20 eval $(weave env --restore)",
        )
        .arg(flag("restore", "print DOCKER_HOST as it was before 'eval $(weave env)'"))
        .args(common_options()),
        command(
            "config",
            "print the option that makes docker use the Docker API proxy",
            "Example:\n\x20 docker $(weave config) run -d --name web nginx",
        ),
        plain(
            "setup-docker",
            "make 'weave' a runtime of Docker, which attaches containers before their program starts",
            "Adds the runtime to Docker's configuration file and lets Docker read it. Says what it has changed; everything else in the \
             file stays. Containers that use it get the addresses in WEAVE_CIDR of their environment, without it one in the default \
             subnet; WEAVE_CIDR=none leaves a container alone.\n\
             \n\
             Examples:\n\
             \x20 weave setup-docker\n\
             \x20 docker run --runtime weave -e WEAVE_CIDR=10.2.1.1/24 -ti ubuntu\n\
             \x20 docker run --runtime weave $(weave dns-args) -h web.weave.local nginx",
        )
        .args([
            flag("undo", "remove the runtime; containers that use it do not start any more"),
            text("config-file", "file", "Docker's configuration (default: /etc/docker/daemon.json)"),
            text("pid-file", "file", "Docker's pid (default: that in the configuration, or /var/run/docker.pid)"),
        ]),
        command(
            "setup-podman",
            "let Podman create networks of this driver, and attach containers before their program starts",
            "Makes /usr/local/lib/netavark/weave a link to this program, for Podman 4.5 and later with netavark, and writes \
             /usr/share/containers/oci/hooks.d/weave.json, by which containers with the annotation works.weave.cidr get the addresses in it, \
             or one in the default subnet if it is empty.\n\
             \n\
             Examples:\n\
             \x20 weave setup-podman\n\
             \x20 podman network create -d weave web\n\
             \x20 podman run --network web -d --name server nginx\n\
             \x20 podman run --annotation works.weave.cidr=10.2.1.1/24 -ti alpine",
        )
        .arg(flag("undo", "remove both")),
        plain(
            "netavark",
            "plugin of netavark; called by Podman",
            "See 'weave help setup-podman'. Arguments: create, setup <namespace>, teardown <namespace>, info.",
        )
        .arg(arguments("argument", "arguments of netavark")),
        plain(
            "oci-runtime",
            "run runc, and attach containers before their program starts; called by Docker",
            "See 'weave help setup-docker'. All arguments are those of runc.",
        )
        .arg(arguments("argument", "arguments of runc")),
        command("attach-bridge", "connect another bridge to the network, docker0 unless named", "")
            .args([weave_bridge(), arguments("bridge", "a Linux bridge").num_args(0..=1)]),
        command(
            "bridge-type",
            "print the kind of the weave bridge",
            "bridge, or one that 2.8.1 left: bridged_fastdp, fastdp. Fails if there is none.",
        )
        .arg(weave_bridge()),
        command(
            "docker-bridge-ip",
            "print the address of Docker's bridge",
            "That of the bridge $DOCKER_BRIDGE, else of docker0.",
        ),
        plain(
            "weaveutil",
            "low-level helper of 2.8.1, for scripts that call it",
            "Also by a link named weaveutil to this program. 'weave weaveutil help' lists its commands.",
        )
        .arg(Arg::new("command").value_parser(weaveutil::names()))
        .arg(arguments("argument", "arguments of the command")),
        plain(
            "completions",
            "print the completion script of a shell",
            "Examples:\n\
             \x20 weave completions bash > /etc/bash_completion.d/weave\n\
             \x20 weave completions zsh > /usr/share/zsh/vendor-completions/_weave\n\
             \x20 weave completions fish > /etc/fish/completions/weave.fish",
        )
        .arg(Arg::new("shell").help("the shell").value_parser(["bash", "zsh", "fish"]).required(true)),
        plain("man", "print a manual page, weave(8) or that of a command", "Example:\n\x20 weave man launch | man -l -")
            .arg(text("directory", "dir", "write the pages of all commands into this directory"))
            .arg(arguments("command", "its name").num_args(0..=1)),
    ]
}

const PAGES: [&str; 5] = ["targets", "connections", "peers", "dns", "ipam"];

/// The whole program, as help, manual and completions show it.
pub(crate) fn program() -> Command {
    let names = || all().iter().map(|command| command.get_name().to_owned()).collect::<Vec<_>>();
    let help = Arg::new("help").long("help").action(ArgAction::HelpShort).help("explain the command");
    Command::new("weave")
        .about("connects containers on many hosts into one network")
        .override_usage("weave <command> [arguments]")
        .subcommand_help_heading("Commands")
        .subcommands(all().into_iter().map(|command| command.arg(help.clone())))
        // For completions only: their errors have other texts.
        .mut_subcommand("status", |c| c.mut_arg("page", |page| page.value_parser(PAGES)))
        .mut_subcommand("help", |c| c.mut_arg("command", |command| command.value_parser(names())))
        .mut_subcommand("man", |c| c.mut_arg("command", |command| command.value_parser(names())))
        .after_help(
            "Two hosts, one container on each:\n\
             \x20 host1$ weave launch                          host2$ weave launch host1\n\
             \x20 host1$ weave attach c1                       host2$ weave attach c2\n\
             \x20 10.32.0.1                                    10.40.0.1\n\
             \x20 c1$ ping 10.40.0.1\n\
             \n\
             'weave help <command>' explains a command and its options.",
        )
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(120)
}

/// The error for a command that does not exist.
pub(crate) fn unknown(name: &str) -> Failure {
    Failure::new(1, format_args!("Unknown weave command '{name}'\nSee 'weave help'."))
}

pub(crate) fn find(name: &str) -> Option<Command> {
    all().into_iter().find(|command| command.get_name() == name)
}

/// Help of one command.
pub(crate) fn help(name: &str) -> Option<String> {
    let mut program = program();
    program.build();
    program.find_subcommand_mut(name).map(|command| command.render_help().to_string())
}
