//! Configuration of a peer, in types. The command line parses every value into a [`Config`]; the daemon reads neither options nor
//! environment.

mod overlays;
mod plugin;
mod proxy;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use weave_dns::{HostName, HostNameError};
use weave_ipam::{Init, Subnet};
use weave_runtime::Docker;
use weave_types::{Cidr, PeerName};

pub use overlays::Overlays;
pub(crate) use plugin::driver_name;
pub use plugin::{
    PLUGIN_DIR, PLUGIN_MESH_SOCKET, PLUGIN_NETWORK, PLUGIN_NETWORK_LABEL, PLUGIN_SOCKET, PluginConfig,
    PluginMode,
};
pub use proxy::{HostnameError, ProxyConfig, ProxyEndpoint, ServerTlsFiles};

#[derive(Clone, Debug)]
pub struct Config {
    /// `None`: derived from the bridge or the system's identity (docs/spec/mesh.md 2.2).
    pub name: Option<PeerName>,
    /// Text shown beside the name; usually the host name.
    pub nickname: String,
    /// Address to listen on and dial from; `None`: all.
    pub host: Option<IpAddr>,
    /// TCP and UDP port of the peer; 1 to 65535.
    pub port: u16,
    /// Lowest protocol version accepted; 1 or 2.
    pub min_protocol: u8,
    pub password: Option<Password>,
    /// Networks inside which traffic is not encrypted.
    pub trusted_subnets: Vec<Cidr>,
    /// Whether to connect to peers that are known by gossip only.
    pub discovery: bool,
    /// Limit of incoming and outgoing connections together; 0: no limit.
    pub connection_limit: usize,
    /// Peers to connect to, as typed. They replace what is stored.
    pub peers: Vec<String>,
    /// Connect to the stored peers instead of `peers`, which is empty then.
    pub resume: bool,
    /// Name of the bridge that containers are attached to.
    pub bridge: String,
    /// Docker's own bridge. The firewall blocks its containers from the peer's ports.
    pub docker_bridge: Option<String>,
    /// Whether an option named the bridge, so that it must exist.
    pub docker_bridge_named: bool,
    /// Whether a network policy controller decides which packets reach containers.
    pub expect_npc: bool,
    /// Whether packets to containers of this host keep their source address.
    pub no_masq_local: bool,
    /// MTU of the container network. `None`: an existing bridge keeps its MTU, and a new one has `new_mtu`.
    pub mtu: Option<u32>,
    /// 1376, or 65535 without the fast datapath (docs/spec/cli.md 4.2).
    pub new_mtu: u32,
    /// The ways in which frames may go to other peers.
    pub overlays: Overlays,
    /// Threads that send frames by sleeve and warp, and threads that receive them: 1 to [`Config::MAX_DATA_THREADS`].
    pub data_threads: usize,
    /// Address of the control API, in addition to the unix socket in `run_dir`.
    pub http_addr: Option<ListenAddr>,
    /// Address of the read-only status pages.
    pub status_addr: Option<ListenAddr>,
    /// Address that serves metrics only.
    pub metrics_addr: Option<ListenAddr>,
    /// Directory for state that survives reboots.
    pub state_dir: PathBuf,
    /// Directory for sockets and pid file; lost at a reboot.
    pub run_dir: PathBuf,
    /// Name of this peer if there are several on the host. `None`: the only peer, with the usual names of devices and files.
    pub instance: Option<String>,
    /// Places besides `state_dir` where the database of 2.8.1 may be.
    pub legacy: LegacySources,
    /// Whether the addresses in a database of 2.8.1 are forgotten if its range is another one.
    pub give_up_addresses: bool,
    /// `None`: addresses are not allocated.
    pub allocation: Option<AllocationConfig>,
    /// `None`: no names are served (`--no-dns`).
    pub dns: Option<DnsConfig>,
    pub proxy: ProxyConfig,
    /// `None`: Docker has no networks of this peer.
    pub plugin: Option<PluginConfig>,
    pub log_level: LogLevel,
    /// `None`: the log goes to stderr.
    pub log_file: Option<LogFile>,
}

/// Places where a database of 2.8.1 is looked for besides the state directory.
#[derive(Clone, Debug, Default)]
pub struct LegacySources {
    /// `--db-prefix`. If it is given, no other place is searched.
    pub prefix: Option<PathBuf>,
    /// Docker of this host, which knows the volume, and which containers run.
    pub docker: Option<Docker>,
    /// The container with the volume.
    pub container: String,
}

/// A log file of bounded size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFile {
    /// The current file. Earlier ones have `.1`, `.2`, ... appended; `.1` is the latest.
    pub path: PathBuf,
    /// Size in bytes at which a new file is started; 0: no limit.
    pub max_size: u64,
    /// Number of earlier files that are kept.
    pub keep: u32,
}

/// See docs/spec/ipam.md 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocationConfig {
    /// The range from which addresses are allocated; the same on all peers.
    pub range: Subnet,
    /// Subnet for requests that name none; overlaps the range.
    pub default_subnet: Subnet,
    /// How the first owners of the range are determined.
    pub init: Init,
}

/// See docs/spec/dns.md 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The domain of the names, the same on all peers.
    pub domain: HostName,
    /// `None`: the address of Docker's bridge, without Docker those of the bridge of the containers.
    pub listen: Option<SocketAddr>,
    /// Seconds for which clients may keep answers about names of the domain.
    pub ttl: u32,
    /// Threads that answer over UDP, for each address.
    pub threads: usize,
    /// Longest wait for the answer of one other resolver.
    pub fallback_timeout: Duration,
    /// The file that names the resolvers for all other names.
    pub resolv_conf: PathBuf,
    /// Whether the resolver of this host asks the server about names of the domain.
    pub host_dns: bool,
}

impl Default for DnsConfig {
    fn default() -> DnsConfig {
        let domain = HostName::parse("weave.local.");
        DnsConfig {
            domain: domain.unwrap_or_else(|e| unreachable!("{e}")),
            listen: None,
            ttl: 1,
            threads: if std::thread::available_parallelism().map_or(1, usize::from) < 4 { 1 } else { 2 },
            fallback_timeout: Duration::from_secs(5),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            host_dns: false,
        }
    }
}

impl DnsConfig {
    /// Where names are served on every address that is not given.
    pub const PORT: u16 = 53;

    /// The port on which names are served.
    pub fn port(&self) -> u16 {
        self.listen.map_or(DnsConfig::PORT, |addr| addr.port())
    }

    /// Parses `--dns-domain`, with or without the final dot.
    pub fn parse_domain(text: &str) -> Result<HostName, ConfigError> {
        HostName::parse(text).map_err(ConfigError::DnsDomain)
    }

    /// Parses `--dns-listen-address`: an IP address, or nothing for all addresses, and a port.
    pub fn parse_listen(text: &str) -> Result<SocketAddr, ConfigError> {
        let bad = |what: String| ConfigError::DnsListen { text: text.to_owned(), what };
        let (host, port) =
            text.rsplit_once(':').ok_or_else(|| bad(format!("address {text}: missing port in address")))?;
        let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if inside.is_none() && host.contains(':') {
            return Err(bad(format!("address {text}: too many colons in address")));
        }
        let host = match inside.unwrap_or(host) {
            "" => IpAddr::from([0, 0, 0, 0]),
            host => host.parse().map_err(|_| bad(format!("{host:?} is not an IP address")))?,
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..) if digits => Ok(SocketAddr::new(host, port)),
            _ => Err(bad(format!("{port:?} is not a port"))),
        }
    }
}

/// Defaults of `weave launch` without options or environment (docs/spec/cli.md 5).
impl Default for Config {
    fn default() -> Config {
        Config {
            name: None,
            nickname: String::new(),
            host: None,
            port: 6783,
            min_protocol: 1,
            password: None,
            trusted_subnets: Vec::new(),
            discovery: true,
            connection_limit: 200,
            peers: Vec::new(),
            resume: false,
            bridge: "weave".to_owned(),
            docker_bridge: Some("docker0".to_owned()),
            docker_bridge_named: false,
            expect_npc: false,
            no_masq_local: false,
            mtu: None,
            new_mtu: 1376,
            overlays: Overlays::default(),
            data_threads: (std::thread::available_parallelism().map_or(1, usize::from) / 2)
                .clamp(1, Config::MAX_DATA_THREADS),
            http_addr: Some(ListenAddr::Tcp { host: "127.0.0.1".to_owned(), port: 6784 }),
            status_addr: Some(ListenAddr::Tcp { host: "127.0.0.1".to_owned(), port: 6782 }),
            metrics_addr: None,
            state_dir: PathBuf::from(STATE_DIR),
            run_dir: PathBuf::from(RUN_DIR),
            instance: None,
            legacy: LegacySources::default(),
            give_up_addresses: false,
            allocation: None,
            dns: Some(DnsConfig::default()),
            proxy: ProxyConfig::default(),
            plugin: None,
            log_level: LogLevel::Info,
            log_file: None,
        }
    }
}

pub const STATE_DIR: &str = "/var/lib/weave";
pub const RUN_DIR: &str = "/run/weave";
/// See [`Config::socket`].
pub const CONTROL_SOCKET: &str = "control.sock";
/// See [`Config::proxy_socket`].
pub const PROXY_SOCKET: &str = "weave.sock";
/// See [`Config::wait_dir`].
pub const WAIT_DIR: &str = "wait";
/// See [`Config::host_dns_file`].
pub const HOST_DNS_FILE: &str = "host-dns";

impl Config {
    /// Each data thread sends on a lane of its own.
    pub const MAX_DATA_THREADS: usize = weave_overlay::warp::LANES;

    /// Unix socket of the control API.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join(CONTROL_SOCKET)
    }

    /// Unix socket of the Docker API proxy, at the path of 2.8.1's.
    pub fn proxy_socket(&self) -> PathBuf {
        self.run_dir.join(PROXY_SOCKET)
    }

    /// Directory with the wait programs, which containers see.
    pub fn wait_dir(&self) -> PathBuf {
        self.state_dir.join(WAIT_DIR)
    }

    /// A file that exists from `weave launch` until the daemon is ready. It makes the daemon connect to the peers that it was given,
    /// even if they are the same as last time (docs/spec/cli.md 4.4).
    pub fn fresh_file(&self) -> PathBuf {
        self.run_dir.join("fresh")
    }

    /// A file that exists while the resolver of this host asks the server for names (`--host-dns`). It has the name of the bridge.
    pub fn host_dns_file(&self) -> PathBuf {
        self.run_dir.join(HOST_DNS_FILE)
    }

    /// Socket on which `weave launch` receives the progress of the start.
    pub fn launch_socket(&self) -> PathBuf {
        self.run_dir.join("launch.sock")
    }

    /// File with the pid of the daemon, which keeps it locked.
    pub fn pid_file(&self) -> PathBuf {
        self.run_dir.join("weave.pid")
    }
}

/// A secret that `Debug` does not show. Its bytes need not be text.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    /// `None` without bytes, which means no password.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Option<Password> {
        let bytes = bytes.into();
        (!bytes.is_empty()).then_some(Password(bytes))
    }

    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Lowest severity that is logged, as in `--log-level`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warning,
    #[default]
    Info,
    Debug,
}

impl std::str::FromStr for LogLevel {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<LogLevel, ConfigError> {
        match text.to_ascii_lowercase().as_str() {
            "error" | "fatal" | "panic" => Ok(LogLevel::Error),
            "warning" | "warn" => Ok(LogLevel::Warning),
            "info" => Ok(LogLevel::Info),
            "debug" | "trace" => Ok(LogLevel::Debug),
            _ => Err(ConfigError::LogLevel(text.to_owned())),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    Unix(PathBuf),
    /// An empty host means all addresses.
    Tcp {
        host: String,
        port: u16,
    },
}

impl ListenAddr {
    /// Parses `/path` or `host:port`, with an IPv6 address in brackets. `None` for an empty text, which turns the listener off.
    pub fn parse(option: &'static str, text: &str) -> Result<Option<ListenAddr>, ConfigError> {
        if text.is_empty() {
            return Ok(None);
        }
        if text.starts_with('/') {
            return Ok(Some(ListenAddr::Unix(text.into())));
        }
        let bad = || ConfigError::ListenAddr { option, text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        // `parse` would accept a sign.
        let hostlike = |c: char| c.is_alphanumeric() || ".-_:%".contains(c);
        if !host.chars().all(hostlike) || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        Ok(Some(ListenAddr::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| bad())? }))
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddr::Unix(path) => path.display().fmt(f),
            ListenAddr::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            ListenAddr::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Why the value of an option is refused. Texts of 2.8.1 where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("not a valid logrus Level: {0:?}")]
    LogLevel(String),
    #[error("{option}: {text:?} is not host:port, :port or the path of a unix socket")]
    ListenAddr { option: &'static str, text: String },
    #[error("invalid peer name {0:?}, should be host[:port]")]
    Peer(String),
    #[error("--dns-domain: {0}")]
    DnsDomain(HostNameError),
    #[error("invalid DNS listen address {text:?}: {what}")]
    DnsListen { text: String, what: String },
}

/// Checks the syntax of a peer to connect to: `host` or `host:port` (docs/spec/mesh.md 10.1). Does not resolve the name.
pub fn check_peer(text: &str) -> Result<(), ConfigError> {
    let bad = || ConfigError::Peer(text.to_owned());
    let unbracketed = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if !text.contains('%')
        && (text.parse::<SocketAddr>().is_ok_and(|a| a.port() > 0) || unbracketed.parse::<IpAddr>().is_ok())
    {
        return Ok(());
    }
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let hostlike = |c: char| c.is_alphanumeric() || ".-_".contains(c);
    if host.is_empty() || !host.chars().all(hostlike) || host.starts_with('-') {
        return Err(bad());
    }
    // `parse` would accept a sign.
    let digits = port.bytes().all(|b| b.is_ascii_digit());
    let port = if port.is_empty() { Ok(1) } else { port.parse::<u16>() };
    if host.contains(':') || !digits || !matches!(port, Ok(1..)) {
        return Err(bad());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syntax_of_peers() {
        for good in ["h1", "h1.example.com:6783", "10.0.0.1", "10.0.0.1:7", "[::1]", "[::1]:80", "::1", "h1:"]
        {
            assert_eq!(check_peer(good), Ok(()), "{good}");
        }
        for bad in [
            "", ":6783", "a b", "h1:67-83", "-x", "a:b:c", "h/1", "host:1:2", "h:0", "h:70000", "h:http",
            "h:+21",
        ] {
            assert!(matches!(check_peer(bad), Err(ConfigError::Peer(_))), "{bad}");
        }
        let text = "invalid peer name \"h1:70000\", should be host[:port]";
        assert_eq!(check_peer("h1:70000").unwrap_err().to_string(), text);
    }

    #[test]
    fn syntax_of_listen_addresses() {
        let tcp = |host: &str, port| Some(ListenAddr::Tcp { host: host.into(), port });
        assert_eq!(ListenAddr::parse("--http-addr", ""), Ok(None));
        assert_eq!(ListenAddr::parse("--http-addr", ":6784"), Ok(tcp("", 6784)));
        assert_eq!(ListenAddr::parse("--http-addr", "[::1]:6784"), Ok(tcp("::1", 6784)));
        let unix = Some(ListenAddr::Unix("/run/x".into()));
        assert_eq!(ListenAddr::parse("--http-addr", "/run/x"), Ok(unix));
        for bad in ["127.0.0.1", "x:y", "1.2.3.4:70000", "[[]]:0", "[::1:6784", "h:+80", "[/x]:40"] {
            assert!(ListenAddr::parse("--http-addr", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn syntax_of_dns_addresses() {
        for (text, good) in
            [("172.17.0.1:53", "172.17.0.1:53"), (":53", "0.0.0.0:53"), ("[::1]:5353", "[::1]:5353")]
        {
            assert_eq!(DnsConfig::parse_listen(text).map(|a| a.to_string()), Ok(good.to_owned()), "{text}");
        }
        for (text, what) in [
            ("172.17.0.1", "address 172.17.0.1: missing port in address"),
            ("::1:53", "address ::1:53: too many colons in address"),
            ("h1:53", "\"h1\" is not an IP address"),
            ("1.2.3.4:dns", "\"dns\" is not a port"),
            ("1.2.3.4:0", "\"0\" is not a port"),
            ("1.2.3.4:", "\"\" is not a port"),
        ] {
            let error = DnsConfig::parse_listen(text).unwrap_err().to_string();
            assert_eq!(error, format!("invalid DNS listen address {text:?}: {what}"));
        }
        assert_eq!(DnsConfig::parse_domain("x.local"), DnsConfig::parse_domain("X.local."));
        assert!(DnsConfig::parse_domain("a..b").is_err());
    }

    #[test]
    fn debug_output_hides_the_password() {
        let config = Config { password: Password::new("wEaVe"), ..Config::default() };
        assert!(!format!("{config:?}").contains("wEaVe"));
        assert_eq!(Password::new(""), None);
    }
}
