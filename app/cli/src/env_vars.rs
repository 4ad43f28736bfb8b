//! Variables and files that matter to `weave`, for the manual and the guide.

pub(crate) struct Variable {
    pub(crate) name: &'static str,
    /// Empty: none.
    pub(crate) default: &'static str,
    pub(crate) effect: &'static str,
}

const fn var(name: &'static str, default: &'static str, effect: &'static str) -> Variable {
    Variable { name, default, effect }
}

/// docs/spec/cli.md 2.3.
pub(crate) static VARIABLES: &[Variable] = &[
    var("WEAVE_PASSWORD", "", "network password, as --password"),
    var("WEAVE_PORT", "6783", "port of the peer, as --port"),
    var("WEAVE_MTU", "", "MTU of the container network, as --mtu"),
    var("WEAVE_NO_FASTDP", "", "not empty: as --no-fastdp"),
    var("WEAVE_OVERLAYS", "", "as --overlays"),
    var("WEAVE_NO_BRIDGED_FASTDP", "", "accepted, as --no-bridged-fastdp"),
    var(
        "WEAVE_HTTP_ADDR",
        "127.0.0.1:6784",
        "control API: where the daemon listens and commands ask; host or port may be missing",
    ),
    var("WEAVE_STATUS_ADDR", "127.0.0.1:6782", "read-only pages and metrics; set but empty: off"),
    var("WEAVE_METRICS_ADDR", "", "metrics only, as --metrics-addr"),
    var("WEAVE_RUN_DIR", "/run/weave", "control socket and pid file, as --run-dir"),
    var("WEAVE_STATE_DIR", "/var/lib/weave", "what survives reboots, as --state-dir"),
    var(
        "WEAVE_DEBUG",
        "",
        "not empty: each request to the daemon is shown on stderr, and launch logs at level debug",
    ),
    var("WEAVE_INSTANCE", "", "which of several peers on this machine, as --instance"),
    var(
        "WEAVE_CONTAINER_NAME",
        "weave",
        "name of the daemon's container where Docker runs it, and of 2.8.1's",
    ),
    var("WEAVE_DOCKER_ARGS", "", "accepted, without effect"),
    var(
        "DOCKER_HOST",
        "unix:///var/run/docker.sock",
        "where Docker is, for containers named by its name or id",
    ),
    var("DOCKER_CLIENT_ARGS", "", "options that weave run gives to the docker client"),
    var("DOCKER_BRIDGE", "docker0", "Docker's bridge, for docker-bridge-ip and attach-bridge"),
    var("DOCKER_BRIDGE_IP", "", "its address, if it is not to be looked up"),
    var(
        "ORIG_DOCKER_HOST",
        "",
        "set by 'eval $(weave env)': DOCKER_HOST before; 'weave env --restore' restores it, launch uses it",
    ),
    var("COLUMNS", "100", "width of help texts, where the terminal has none"),
    var("DNS_ADDRESS", "", "server that dns-lookup asks and dns-args names instead of weaveDNS"),
    var("DNS_DOMAIN", "weave.local.", "domain in dns-args while the daemon does not run"),
    var("PROXY_HOST", "", "host in the address that env and config print for a proxy on all addresses"),
    var("DOCKER_CERT_PATH", "~/.docker", "directory of the proxy's certificates, unless options name them"),
    var(
        "WEAVE_CIDR",
        "",
        "in a container's environment: addresses that the proxy gives it; none: do not attach it",
    ),
    var("WEAVE_CNI_PLUGIN_DIR", "/opt/cni/bin", "directory of the CNI plugins"),
    var("HAIRPIN_MODE", "true", "hairpinMode in the CNI configuration that setup-cni and launch write"),
    var("CHECKPOINT_DISABLE", "", "accepted; no version check is ever made"),
];

pub(crate) static FILES: &[(&str, &str)] = &[
    ("/var/lib/weave", "state that survives reboots: name, targets, short id"),
    ("/var/lib/weave/names.json", "names of this host's containers"),
    ("/var/lib/weave/networks.json", "networks of Docker, and whether they have multicast"),
    (
        "/var/lib/weave/attachments.json",
        "how Docker's containers are attached, for those that are started again",
    ),
    ("/var/lib/weave/interfaces.json", "attachments that network plugins have made"),
    ("/etc/cni/net.d/10-weave.conflist", "CNI network weave, where a runtime has that directory"),
    ("/var/lib/weave/wait", "programs that containers of the Docker API proxy wait with"),
    ("/run/weave/control.sock", "control socket, for root"),
    ("/run/docker/plugins/weave.sock, weavemesh.sock", "sockets of the Docker network plugin"),
    ("/run/weave/weave.sock", "socket of the Docker API proxy, for those who may use Docker's"),
    ("/run/weave/weave.pid", "pid of the daemon, locked while it runs"),
    ("/var/lib/weave/password", "network password of the running daemon, for root"),
    (
        "/etc/weave/weave.conf",
        "PEERS, WEAVE_OPTIONS and variables for the systemd unit; also /etc/default/weave, /etc/sysconfig/weave",
    ),
    ("/var/log/weave.log", "the daemon's log, where neither systemd nor Docker collects it"),
];
