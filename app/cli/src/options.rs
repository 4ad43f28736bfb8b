//! How options and environment become a [`Config`] (docs/spec/cli.md 2.3, 5).

use std::path::PathBuf;

use weave_daemon::config::{
    self, AllocationConfig, Config, ConfigError, DnsConfig, LegacySources, ListenAddr, LogFile, LogLevel,
    Password,
};
use weave_host::DeviceNames;
use weave_ipam::{Init, ParseInitError, Subnet, SubnetError};
use weave_runtime::Docker;
use weave_types::{Cidr, ParseCidrError, ParsePeerNameError, PeerName};

use crate::args::{Parsed, dashed};
use crate::launch_options::parse_duration;
use crate::plugin_options::{self, PluginOptionError};
use crate::proxy_options::{self, ProxyOptionError};

use crate::env::Env;

/// More than the processors of any host.
const MAX_DNS_THREADS: usize = 1024;

/// An invalid value. Texts of 2.8.1 where it has the same error (`daemon-flag-errors.txt`).
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    PeerName(#[from] ParsePeerNameError),
    #[error("You must not specify an initial peer list in conjunction with --resume")]
    ResumeWithPeers,
    #[error("--min-protocol-version must be in range [1,2]")]
    MinProtocol,
    #[error("Unable to parse trusted subnets: {0}")]
    TrustedSubnets(ParseCidrError),
    #[error("--port {0}: must be in range [1,65534]")]
    Port(i64),
    #[error("--host: {0:?} is not an IP address")]
    Host(String),
    #[error("--conn-limit {0}: must not be negative")]
    ConnLimit(i64),
    #[error("--mtu {0}: must be in range [68,65535]")]
    Mtu(i64),
    #[error("--overlays {0:?}: {1}")]
    Overlays(String, &'static str),
    #[error("{0}: invalid number {1:?}")]
    EnvNumber(&'static str, String),
    #[error("--instance: {0:?} is no name of at most 8 lower-case letters, digits and dashes inside")]
    Instance(String),
    #[error("--log-size {0}: must not be negative")]
    LogSize(i64),
    #[error("--log-keep {0}: must be in range [0,1000]")]
    LogKeep(i64),
    #[error("--weave-bridge: {0:?} is not a device name of at most 15 characters")]
    Bridge(String),
    #[error("--password-file: cannot read {0:?}: {1}")]
    PasswordFile(PathBuf, std::io::Error),
    #[error("--password-file: there is no password in {0:?}")]
    EmptyPasswordFile(PathBuf),
    #[error("Unable to parse --ipalloc-init: {0}")]
    IpamInit(ParseInitError),
    #[error("at most one of --ipalloc-init, --init-peer-count, --observer and --ipam-seed may be given")]
    IpamInitTwice,
    #[error("{0} specified without --ipalloc-range.")]
    NoRange(String),
    #[error(transparent)]
    Subnet(SubnetError),
    #[error("IP address allocation default subnet {0} does not overlap with allocation range {1}")]
    NoOverlap(String, String),
    #[error("--data-threads {0}: must be in range [1,{max}]", max = Config::MAX_DATA_THREADS)]
    DataThreads(i64),
    #[error("--dns-threads {0}: must be in range [1,{MAX_DNS_THREADS}]")]
    DnsThreads(i64),
    #[error("--dns-ttl {0}: must be in range [0,2147483647]")]
    DnsTtl(i64),
    #[error("--awsvpc mode is not compatible with the --password option")]
    AwsPassword,
    #[error("--awsvpc mode requires IPAM enabled")]
    AwsIpam,
    #[error(transparent)]
    Proxy(#[from] ProxyOptionError),
    #[error(transparent)]
    Plugin(#[from] PluginOptionError),
}

/// Directory of pid file and sockets.
pub(crate) fn run_dir(parsed: &Parsed, env: &dyn Env) -> PathBuf {
    directory(parsed, env, "run-dir", "WEAVE_RUN_DIR", config::RUN_DIR)
}

/// Directory of state that survives reboots.
pub(crate) fn state_dir(parsed: &Parsed, env: &dyn Env) -> PathBuf {
    directory(parsed, env, "state-dir", "WEAVE_STATE_DIR", config::STATE_DIR)
}

fn directory(parsed: &Parsed, env: &dyn Env, option: &str, variable: &str, default: &str) -> PathBuf {
    let given = parsed.text(option).map(str::to_owned).or_else(|| env.var(variable));
    given.filter(|d| !d.is_empty()).unwrap_or_else(|| named(default, parsed, env)).into()
}

/// The name of this peer if several run on this host; not validated.
pub(crate) fn instance(parsed: &Parsed, env: &dyn Env) -> Option<String> {
    let given = parsed.text("instance").map(str::to_owned).or_else(|| env.var("WEAVE_INSTANCE"));
    given.filter(|name| !name.is_empty())
}

/// The name is checked because it becomes part of paths and device names.
pub(crate) fn check_instance(parsed: &Parsed, env: &dyn Env) -> Result<(), OptionError> {
    let Some(name) = instance(parsed, env) else { return Ok(()) };
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let inside = !name.starts_with('-') && !name.ends_with('-');
    if name.len() <= 8 && inside && name.bytes().all(plain) {
        Ok(())
    } else {
        Err(OptionError::Instance(name))
    }
}

/// `name`, or `name-<instance>`.
pub(crate) fn named(name: &str, parsed: &Parsed, env: &dyn Env) -> String {
    match instance(parsed, env) {
        Some(instance) => format!("{name}-{instance}"),
        None => name.to_owned(),
    }
}

/// The bridge of a command other than `launch` and `daemon`.
pub(crate) fn bridge(parsed: &Parsed, env: &dyn Env) -> String {
    match parsed.text("weave-bridge").filter(|b| !b.is_empty()) {
        Some(bridge) => bridge.to_owned(),
        None => named("weave", parsed, env),
    }
}

/// The devices of a command other than `launch` and `daemon`.
pub(crate) fn devices(parsed: &Parsed, env: &dyn Env) -> DeviceNames {
    let names = instance(parsed, env).as_deref().map_or_else(DeviceNames::default, DeviceNames::instance);
    DeviceNames { bridge: bridge(parsed, env), ..names }
}

/// Options that replace the environment variables, for a daemon that a service manager starts with another environment.
pub(crate) fn explicit(parsed: &Parsed, config: &Config, env: &dyn Env) -> Parsed {
    let mut all = parsed.clone();
    let set = |variable: &str| env.var(variable).is_some_and(|v| !v.is_empty());
    let listener = |addr: &Option<ListenAddr>| addr.as_ref().map(ToString::to_string).unwrap_or_default();
    for (option, variable, value) in [
        ("port", "WEAVE_PORT", config.port.to_string()),
        ("mtu", "WEAVE_MTU", config.mtu.unwrap_or(0).to_string()),
        ("no-fastdp", "WEAVE_NO_FASTDP", "true".to_owned()),
        ("no-bridged-fastdp", "WEAVE_NO_BRIDGED_FASTDP", "true".to_owned()),
        ("http-addr", "WEAVE_HTTP_ADDR", listener(&config.http_addr)),
        ("status-addr", "WEAVE_STATUS_ADDR", listener(&config.status_addr)),
        ("metrics-addr", "WEAVE_METRICS_ADDR", listener(&config.metrics_addr)),
        ("log-level", "WEAVE_DEBUG", "debug".to_owned()),
        ("instance", "WEAVE_INSTANCE", config.instance.clone().unwrap_or_default()),
    ] {
        if parsed.text(option).is_none()
            && (set(variable) || option == "status-addr" && env.var(variable).is_some())
        {
            all.set(option, value);
        }
    }
    for (option, usual, dir) in
        [("run-dir", config::RUN_DIR, &config.run_dir), ("state-dir", config::STATE_DIR, &config.state_dir)]
    {
        all.remove(option);
        if dir.as_os_str() != named(usual, parsed, env).as_str() {
            all.set(option, dir.to_string_lossy());
        }
    }
    all
}

/// Makes a [`Config`] of options, environment and defaults, in that order of precedence. Reads the password file
/// and no other.
pub(crate) fn config(parsed: &Parsed, env: &dyn Env, hostname: &str) -> Result<Config, OptionError> {
    let mut config = Config { peers: parsed.rest.clone(), ..Config::default() };
    if let Some(level) = parsed.text("log-level") {
        config.log_level = level.parse::<LogLevel>()?;
    } else if env.var("WEAVE_DEBUG").is_some_and(|d| !d.is_empty()) {
        config.log_level = LogLevel::Debug;
    }
    config.resume = parsed.flag("resume");
    if config.resume && !config.peers.is_empty() {
        return Err(OptionError::ResumeWithPeers);
    }
    if let Some(name) = parsed.text("name").filter(|n| !n.is_empty()) {
        config.name = Some(name.parse::<PeerName>()?);
    }
    config.nickname = parsed.text("nickname").filter(|n| !n.is_empty()).unwrap_or(hostname).to_owned();
    if let Some(version) = parsed.number("min-protocol-version") {
        config.min_protocol =
            u8::try_from(version).ok().filter(|v| (1..=2).contains(v)).ok_or(OptionError::MinProtocol)?;
    }
    // The fast datapath uses the port after it.
    if let Some(port) = number(parsed, env, "port", "WEAVE_PORT")? {
        config.port =
            u16::try_from(port).ok().filter(|p| (1..=65534).contains(p)).ok_or(OptionError::Port(port))?;
    }
    if let Some(host) = parsed.text("host").filter(|h| !h.is_empty()) {
        config.host = Some(host.parse().map_err(|_| OptionError::Host(host.to_owned()))?);
    }
    if let Some(limit) = parsed.number("conn-limit") {
        config.connection_limit = usize::try_from(limit).map_err(|_| OptionError::ConnLimit(limit))?;
    }
    config.discovery = !parsed.flag("no-discovery");
    config.password = password(parsed, env)?;
    if let Some(list) = parsed.text("trusted-subnets").filter(|l| !l.is_empty()) {
        for text in list.split(',') {
            let cidr: Cidr = text.trim().parse().map_err(OptionError::TrustedSubnets)?;
            config.trusted_subnets.push(cidr.network());
        }
    }
    check_instance(parsed, env)?;
    config.instance = instance(parsed, env);
    config.bridge = bridge(parsed, env);
    if config.instance.is_some() {
        // The default addresses belong to the first peer.
        (config.http_addr, config.status_addr) = (None, None);
    }
    config.log_file = log_file(parsed)?;
    if let Some(bridge) = parsed.text("weave-bridge").filter(|b| !b.is_empty()) {
        let good = bridge.len() <= 15 && bridge.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !good || bridge == "." || bridge == ".." {
            return Err(OptionError::Bridge(bridge.to_owned()));
        }
    }
    if let Some(docker) = parsed.text("docker-bridge") {
        config.docker_bridge = Some(docker.to_owned()).filter(|d| !d.is_empty());
        config.docker_bridge_named = true;
    } else if let Some(docker) = env.var("DOCKER_BRIDGE").filter(|d| !d.is_empty()) {
        config.docker_bridge = Some(docker);
    }
    config.expect_npc = parsed.flag("expect-npc");
    config.no_masq_local = parsed.flag("no-masq-local");
    let no_fastdp = match parsed.text("no-fastdp") {
        Some(text) => text == "true",
        None => env.var("WEAVE_NO_FASTDP").is_some_and(|v| !v.is_empty()),
    };
    config.mtu = match number(parsed, env, "mtu", "WEAVE_MTU")?.unwrap_or(0) {
        0 => None,
        mtu => {
            Some(u32::try_from(mtu).ok().filter(|m| (68..=65535).contains(m)).ok_or(OptionError::Mtu(mtu))?)
        }
    };
    if let Some(list) = parsed.text("overlays").map(str::to_owned).or_else(|| env.var("WEAVE_OVERLAYS")) {
        config.overlays = list.parse().map_err(|why| OptionError::Overlays(list, why))?;
    }
    if let Some(threads) = parsed.number("data-threads") {
        let fits = usize::try_from(threads).ok().filter(|n| (1..=Config::MAX_DATA_THREADS).contains(n));
        config.data_threads = fits.ok_or(OptionError::DataThreads(threads))?;
    }
    if no_fastdp {
        config.new_mtu = 65535;
        config.overlays.fastdp = false;
    }
    config.state_dir = state_dir(parsed, env);
    config.run_dir = run_dir(parsed, env);
    config.legacy = original(parsed, env);
    config.give_up_addresses = parsed.flag("give-up-addresses");
    // An empty WEAVE_HTTP_ADDR means the default, an empty WEAVE_STATUS_ADDR switches off (docs/spec/cli.md 2.3).
    if let Some(addr) = parsed.text("http-addr") {
        config.http_addr = ListenAddr::parse("--http-addr", addr)?;
    } else if let Some(addr) = env.var("WEAVE_HTTP_ADDR").filter(|a| !a.is_empty()) {
        config.http_addr = Some(complete(&addr, 6784)?);
    }
    let status = parsed.text("status-addr").map(str::to_owned).or_else(|| env.var("WEAVE_STATUS_ADDR"));
    if let Some(addr) = status {
        config.status_addr = ListenAddr::parse("--status-addr", &addr)?;
    }
    config.allocation = allocation(parsed)?;
    config.dns = dns(parsed)?;
    let metrics = parsed.text("metrics-addr").map(str::to_owned).or_else(|| env.var("WEAVE_METRICS_ADDR"));
    if let Some(addr) = metrics {
        config.metrics_addr = ListenAddr::parse("--metrics-addr", &addr)?;
    }
    config.proxy = proxy_options::config(parsed, &config.run_dir, config.legacy.docker.is_some())?;
    config.plugin = plugin_options::config(parsed)?;
    check_later_features(parsed, &config)?;
    config.peers.iter().try_for_each(|peer| config::check_peer(peer))?;
    Ok(config)
}

fn log_file(parsed: &Parsed) -> Result<Option<LogFile>, OptionError> {
    let size = parsed.number("log-size").unwrap_or(10);
    let keep = parsed.number("log-keep").unwrap_or(4);
    let max_size = u64::try_from(size).map_err(|_| OptionError::LogSize(size))?.saturating_mul(1 << 20);
    let keep = u32::try_from(keep).ok().filter(|k| *k <= 1000).ok_or(OptionError::LogKeep(keep))?;
    let path = parsed.text("log-file").filter(|p| !p.is_empty());
    Ok(path.map(|path| LogFile { path: path.into(), max_size, keep }))
}

/// Where 2.8.1 keeps its database.
fn original(parsed: &Parsed, env: &dyn Env) -> LegacySources {
    let given = parsed.text("docker-api").map(str::to_owned).or_else(|| proxy_options::docker_host(env));
    // An empty --docker-api means that there is no Docker.
    let without = parsed.text("docker-api") == Some("");
    LegacySources {
        prefix: parsed.text("db-prefix").filter(|p| !p.is_empty()).map(PathBuf::from),
        docker: (!without).then(|| Docker::at(given.as_deref())),
        container: format!("{}db", original_container(env)),
    }
}

/// Name of 2.8.1's container.
pub(crate) fn original_container(env: &dyn Env) -> String {
    env.var("WEAVE_CONTAINER_NAME").filter(|n| !n.is_empty()).unwrap_or_else(|| "weave".to_owned())
}

/// `WEAVE_HTTP_ADDR` may lack host or port.
fn complete(addr: &str, port: u16) -> Result<ListenAddr, ConfigError> {
    let colon = addr.rsplit_once(':').is_some_and(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let text = if addr.starts_with('/') || colon { addr.to_owned() } else { format!("{addr}:{port}") };
    let text = if text.starts_with(':') { format!("127.0.0.1{text}") } else { text };
    ListenAddr::parse("WEAVE_HTTP_ADDR", &text)?
        .ok_or(ConfigError::ListenAddr { option: "WEAVE_HTTP_ADDR", text: addr.to_owned() })
}

fn number(
    parsed: &Parsed,
    env: &dyn Env,
    option: &str,
    variable: &'static str,
) -> Result<Option<i64>, OptionError> {
    if let Some(number) = parsed.number(option) {
        return Ok(Some(number));
    }
    match env.var(variable).filter(|v| !v.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| OptionError::EnvNumber(variable, text)),
    }
}

/// The password of an option, else of the variable. Of several options the last one that is not empty counts. What is set but cannot
/// be read is an error, since without a password nothing is encrypted.
fn password(parsed: &Parsed, env: &dyn Env) -> Result<Option<Password>, OptionError> {
    match password_option(parsed) {
        Some(("password-file", path)) => {
            let path = PathBuf::from(path);
            let bytes = std::fs::read(&path).map_err(|e| OptionError::PasswordFile(path.clone(), e))?;
            let password = Password::new(without_line_end(&bytes));
            password.map(Some).ok_or(OptionError::EmptyPasswordFile(path))
        }
        Some((_, text)) => Ok(Password::new(text)),
        None => Ok(env.bytes("WEAVE_PASSWORD").and_then(Password::new)),
    }
}

/// The option that counts. As in 2.8.1, `--password ""` is no password.
fn password_option(parsed: &Parsed) -> Option<(&str, &str)> {
    parsed.last_of(&["password", "password-file"], |name, value| name == "password-file" || !value.is_empty())
}

/// The content of a password file.
pub(crate) fn password_file(password: &Password) -> Vec<u8> {
    [password.reveal(), b"\r\n"].concat()
}

pub(crate) fn without_line_end(bytes: &[u8]) -> &[u8] {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Tells which of several passwords is used.
pub(crate) fn password_notice(parsed: &Parsed, config: &Config, env: &dyn Env) -> Option<String> {
    let (option, _) = password_option(parsed)?;
    let variable = env.bytes("WEAVE_PASSWORD").and_then(Password::new)?;
    (config.password.as_ref() != Some(&variable)).then(|| {
        format!("Notice: the password is that of --{option}; WEAVE_PASSWORD is another one and not used")
    })
}

/// Options of missing features are checked like the others, so that errors in scripts are reported already.
fn check_later_features(parsed: &Parsed, config: &Config) -> Result<(), OptionError> {
    if parsed.flag("awsvpc") {
        if config.password.is_some() {
            return Err(OptionError::AwsPassword);
        }
        config.allocation.as_ref().ok_or(OptionError::AwsIpam)?;
    }
    Ok(())
}

/// The range of `weave launch` if none is given; `weave daemon` does not allocate addresses then.
pub(crate) const DEFAULT_RANGE: &str = "10.32.0.0/12";

/// `None` if address allocation is off.
fn allocation(parsed: &Parsed) -> Result<Option<AllocationConfig>, OptionError> {
    let given = |name| parsed.text(name).filter(|v| !v.is_empty());
    let inits = parsed.list("ipalloc-init");
    if inits.iter().any(|init| *init != inits[0]) {
        return Err(OptionError::IpamInitTwice);
    }
    let Some(range) = given("ipalloc-range") else {
        for option in ["ipalloc-default-subnet", "ipalloc-init"] {
            given(option).map_or(Ok(()), |_| Err(OptionError::NoRange(dashed(option))))?;
        }
        return Ok(None);
    };
    let range = subnet(range)?;
    let default_subnet = given("ipalloc-default-subnet").map(subnet).transpose()?.unwrap_or(range);
    if !range.range().overlaps(default_subnet.range()) {
        return Err(OptionError::NoOverlap(default_subnet.to_string(), range.to_string()));
    }
    let init = given("ipalloc-init").map(str::parse).transpose().map_err(OptionError::IpamInit)?;
    Ok(Some(AllocationConfig { range, default_subnet, init: init.unwrap_or(Init::Consensus(None)) }))
}

/// `None` with `--no-dns`; the other options are checked nevertheless.
fn dns(parsed: &Parsed) -> Result<Option<DnsConfig>, OptionError> {
    let given = |name| parsed.text(name).filter(|v| !v.is_empty());
    let mut dns = DnsConfig::default();
    if let Some(domain) = given("dns-domain") {
        dns.domain = DnsConfig::parse_domain(domain)?;
    }
    if let Some(addr) = given("dns-listen-address") {
        dns.listen = Some(DnsConfig::parse_listen(addr)?);
    }
    if let Some(ttl) = parsed.number("dns-ttl") {
        let fits = u32::try_from(ttl).ok().filter(|ttl| i32::try_from(*ttl).is_ok());
        dns.ttl = fits.ok_or(OptionError::DnsTtl(ttl))?;
    }
    if let Some(threads) = parsed.number("dns-threads") {
        let fits = usize::try_from(threads).ok().filter(|threads| (1..=MAX_DNS_THREADS).contains(threads));
        dns.threads = fits.ok_or(OptionError::DnsThreads(threads))?;
    }
    if let Some(timeout) = given("dns-fallback-timeout").and_then(parse_duration) {
        dns.fallback_timeout = timeout;
    }
    if let Some(path) = given("resolv-conf") {
        dns.resolv_conf = path.into();
    }
    dns.host_dns = parsed.flag("host-dns");
    Ok((!parsed.flag("no-dns")).then_some(dns))
}

fn subnet(text: &str) -> Result<Subnet, OptionError> {
    text.parse().map_err(OptionError::Subnet)
}
