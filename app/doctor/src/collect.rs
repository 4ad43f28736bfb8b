//! Reads the facts. Each job has a thread of its own, and one that has not ended at the deadline is reported, whatever it waits for.

mod jobs;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, access};
use weave_api::report::Connection;
use weave_api::{Client, ClientError, Report};
use weave_dns::parse_resolv_conf;
use weave_host::{Link, Netlink};
use weave_runtime::Docker;
use weave_types::Cidr;

use self::jobs::{Jobs, update};
use crate::dns_probe;
use crate::facts::{
    Daemon, Device, DialError, DialResult, Directory, DnsServer, Engine, Facts, PortUse, ResolvConf,
    RouteFact, Sysctls, UnderlayDevice,
};

/// Longest wait for the daemon.
const REPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for everything else.
const TIMEOUT: Duration = Duration::from_secs(8);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const ENGINE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most peers that are connected to; each takes a thread.
const MAX_DIALS: usize = 32;
/// Servers of resolv.conf that the C library uses.
const MAX_SERVERS: usize = 3;
/// Time between two readings of counters.
const COUNTER_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a file that are read.
const MAX_FILE: u64 = 64 << 10;
/// Alias of the devices that fastdp makes.
const OUR_ALIAS: &str = "weave-fastdp/";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const PROC_SYS: &str = "/proc/sys";
/// Capabilities that the daemon needs, by their numbers (capabilities(7)).
const CAPABILITIES: [(u32, &str); 3] = [(12, "NET_ADMIN"), (13, "NET_RAW"), (21, "SYS_ADMIN")];

/// Where and what to read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The daemon of this host.
    pub client: Client,
    /// Whether a daemon holds the pid file.
    pub daemon_runs: bool,
    /// Port of the peer while no daemon says so.
    pub port: u16,
    /// Bridge of the container network.
    pub bridge: String,
    /// Planned range of address allocation; while the daemon runs, its range is used.
    pub range: Option<Cidr>,
    /// Peers to connect to, as they are named for `launch`.
    pub peers: Vec<String>,
    /// Directories in which the daemon writes.
    pub directories: Vec<PathBuf>,
    /// Docker, and whether it was named.
    pub docker: (Docker, bool),
    /// Links that should lead to this program if they exist, with the commands that make them.
    pub links: Vec<(PathBuf, &'static str)>,
}

/// Reads the facts, in at most 13 seconds.
pub fn collect(settings: Settings) -> Facts {
    let mut facts =
        Facts { port: settings.port, bridge: settings.bridge, range: settings.range, ..Facts::default() };
    rights(&mut facts);
    if !facts.is_root {
        return facts;
    }
    let (client, daemon_runs) = (settings.client.with_timeout(REPORT_TIMEOUT), settings.daemon_runs);
    if daemon_runs {
        facts.daemon = Daemon::Silent("no answer".to_owned());
    }
    let mut jobs = Jobs::new();
    jobs.start("asking the daemon", move || {
        let daemon = daemon(&client, daemon_runs);
        Box::new(|facts| facts.daemon = daemon)
    });
    // The client's time limit counts from its connection.
    jobs.wait(REPORT_TIMEOUT + Duration::from_secs(1), &mut facts);
    let report = facts.report().cloned().unwrap_or_default();
    let is_running = facts.report().is_some();
    if is_running {
        facts.port = report.router.port;
        let range = report.ipam.as_ref().and_then(|ipam| ipam.range.parse().ok());
        facts.range = if report.ipam.is_some() { range } else { None };
        facts.obstacles = report.host_problems.clone();
    }

    let (port, bridge) = (facts.port, facts.bridge.clone());
    let mut jobs = Jobs::new();
    let peers =
        connections(&report).filter_map(|c| c.address.parse().ok()).map(|a: SocketAddr| a.ip()).collect();
    let own = bridge.clone();
    jobs.start("reading interfaces and routes", move || {
        update("reading interfaces and routes", read_network(&own, peers), |facts, network: Network| {
            facts.devices = network.devices;
            facts.routes = network.routes;
            facts.default_devices = network.default_devices;
            facts.underlay = network.underlay;
            facts.is_exposed = network.is_exposed;
        })
    });
    jobs.start("reading settings of the kernel", || {
        let sysctls = read_sysctls();
        Box::new(|facts| facts.sysctls = sysctls)
    });
    jobs.start("testing fastdp", || {
        let result = weave_fastdp::check_kernel().map_err(|e| e.to_string());
        Box::new(|facts| facts.fastdp = Some(result))
    });
    jobs.start("listing firewall rules", || {
        let (rules, has_nft) = weave_host::firewall::rules_by_backend();
        Box::new(move |facts| {
            facts.lacks_firewall = rules.is_empty() && !has_nft;
            facts.rules = rules;
        })
    });
    if !is_running {
        jobs.start("searching obstacles", move || {
            let found = weave_host::obstacles(&bridge, port, &[]);
            update("searching obstacles", found, |facts, found| facts.obstacles = found)
        });
    }
    jobs.start("looking for users of the ports", move || {
        let used = ports(port);
        Box::new(|facts| facts.ports = used)
    });
    for path in settings.directories {
        jobs.start(format!("looking at {}", path.display()), move || {
            let directory = read_directory(path);
            Box::new(|facts| facts.directories.push(directory))
        });
    }
    jobs.start("asking the DNS servers of this host", || {
        let resolv_conf = read_resolv_conf(Path::new(RESOLV_CONF));
        Box::new(|facts| facts.resolv_conf = resolv_conf)
    });
    if let Some(dns) = report.dns.clone() {
        jobs.start("asking weaveDNS", move || {
            let addresses = dns.address.split(", ").filter_map(|address| address.parse().ok());
            let asked =
                |address| DnsServer { address, answers: dns_probe::answers(reachable(address), &dns.domain) };
            let servers: Vec<DnsServer> = addresses.map(asked).collect();
            Box::new(|facts| facts.weave_dns = servers)
        });
    }
    let (docker, is_named) = settings.docker;
    jobs.start("asking container engines", move || {
        let engines = engines(docker, is_named);
        Box::new(|facts| facts.engines = engines)
    });
    let sockets = plugin_sockets(&report);
    jobs.start("looking for plugins", move || {
        let broken = settings.links.into_iter().filter(|(path, _)| path.is_symlink() && !path.exists());
        let gone = sockets.into_iter().filter(|path| !path.exists());
        let missing = broken.chain(gone.map(|path| (path, "weave stop; weave launch"))).collect();
        Box::new(|facts| facts.missing_plugins = missing)
    });
    let packet_socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
    if matches!(packet_socket, Err(Errno::EAFNOSUPPORT)) {
        facts.missing_features.push("packet sockets (CONFIG_PACKET, module af_packet)");
    }
    for (peer, is_inbound) in dials(settings.peers, &report) {
        jobs.start(format!("connecting to {peer}"), move || {
            let error = dial(&peer, port).err();
            Box::new(move |facts| facts.dials.push(DialResult { peer, is_inbound, error }))
        });
    }
    jobs.wait(TIMEOUT, &mut facts);
    facts.dials.sort_by(|a, b| a.peer.cmp(&b.peer));
    facts.directories.sort_by(|a, b| a.path.cmp(&b.path));
    facts
}

fn rights(facts: &mut Facts) {
    facts.is_root = nix::unistd::geteuid().is_root();
    let status = read("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    let missing = CAPABILITIES.iter().filter(|(bit, _)| effective & (1 << bit) == 0);
    facts.missing_capabilities = missing.map(|(_, name)| *name).collect();
    facts.sysctls_read_only = statvfs(PROC_SYS).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY));
}

fn daemon(client: &Client, runs: bool) -> Daemon {
    match client.report() {
        Ok(report) => Daemon::Running(Box::new(report)),
        Err(ClientError::Connect { .. }) if !runs => Daemon::Stopped,
        Err(error) => Daemon::Silent(error.to_string()),
    }
}

fn connections(report: &Report) -> impl Iterator<Item = &Connection> {
    report.router.connections.iter()
}

struct Network {
    devices: Vec<Device>,
    routes: Vec<RouteFact>,
    default_devices: Vec<String>,
    underlay: BTreeMap<IpAddr, UnderlayDevice>,
    is_exposed: bool,
}

fn read_network(bridge: &str, peers: Vec<IpAddr>) -> Result<Network, weave_host::Error> {
    let mut netlink = Netlink::open()?;
    let links = netlink.links()?;
    let name = |index: Option<u32>| {
        links.iter().find(|link| Some(link.index) == index).map(|link| link.name.clone())
    };
    let (mut routes, mut default_devices) = (Vec::new(), Vec::new());
    for route in netlink.routes()? {
        let device = name(route.index);
        if route.is_default() {
            default_devices.extend(device);
        } else if device.as_deref() != Some(bridge) {
            routes.push(RouteFact { destination: route.destination, device });
        }
    }
    default_devices.sort();
    default_devices.dedup();
    let device = |link: &Link| UnderlayDevice { name: link.name.clone(), mtu: link.mtu };
    let mut underlay = BTreeMap::new();
    if let Some(link) = weave_host::outside_device(&mut netlink)? {
        underlay.insert(Ipv4Addr::UNSPECIFIED.into(), device(&link));
    }
    for peer in peers {
        let IpAddr::V4(addr) = peer else { continue };
        let index = netlink.output_device(addr)?;
        if let Some(link) = links.iter().find(|link| Some(link.index) == index) {
            underlay.insert(peer, device(link));
        }
    }
    let all = rp_filter("all");
    let devices = links.iter().map(|link| Device {
        name: link.name.clone(),
        mtu: link.mtu,
        vxlan_port: link.vxlan_port,
        is_ours: link.alias.as_ref().is_some_and(|alias| alias.starts_with(OUR_ALIAS)),
        strict_rp_filter: all.max(rp_filter(&link.name)) == Some(1),
    });
    let devices = devices.collect();
    let is_exposed = !weave_host::bridge_addresses(bridge)?.is_empty();
    Ok(Network { devices, routes, default_devices, underlay, is_exposed })
}

fn rp_filter(device: &str) -> Option<u64> {
    read_number(&format!("/proc/sys/net/ipv4/conf/{device}/rp_filter"))
}

fn read_sysctls() -> Sysctls {
    let overflows = || read("/proc/net/stat/arp_cache").map_or(0, |text| sum_of_column(&text, "table_fulls"));
    let before = overflows();
    std::thread::sleep(COUNTER_INTERVAL);
    let disabled = read_number("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    Sysctls {
        ip_forward: read_number("/proc/sys/net/ipv4/ip_forward"),
        is_ipv6_disabled: disabled != Some(0),
        max_neighbours: read_number("/proc/sys/net/ipv4/neigh/default/gc_thresh3"),
        neighbours: count_lines("/proc/net/arp").saturating_sub(1),
        neighbour_overflows: overflows().saturating_sub(before),
        max_connections: read_number("/proc/sys/net/netfilter/nf_conntrack_max"),
        connections: read_number("/proc/sys/net/netfilter/nf_conntrack_count"),
    }
}

/// The sum of a column of hexadecimal numbers, of which there is one for each processor.
fn sum_of_column(table: &str, name: &str) -> u64 {
    let mut lines = table.lines().map(str::split_whitespace);
    let Some(column) = lines.next().and_then(|mut names| names.position(|n| n == name)) else { return 0 };
    let values = lines.filter_map(|mut words| u64::from_str_radix(words.nth(column)?, 16).ok());
    values.fold(0, u64::saturating_add)
}

fn count_lines(path: &str) -> u64 {
    let Ok(file) = fs::File::open(path) else { return 0 };
    io::BufRead::split(io::BufReader::new(file), b'\n').map_while(Result::ok).count() as u64
}

fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(fs::File::open(path)?, MAX_FILE), &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_number(path: &str) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

fn ports(port: u16) -> Vec<PortUse> {
    let next = port.saturating_add(1);
    let wanted = [("TCP", port), ("UDP", port), ("UDP", next)];
    let used = wanted.into_iter().filter_map(|(protocol, port)| {
        let holder = weave_host::port_holder(protocol, (Ipv4Addr::UNSPECIFIED, port).into())?;
        Some(PortUse { protocol, port, holder })
    });
    used.collect()
}

fn read_directory(path: PathBuf) -> Directory {
    // It may be created later.
    let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let problem = match access(existing, AccessFlags::W_OK) {
        Ok(()) if existing.is_dir() => None,
        Ok(()) => Some(format!("{} is not a directory", existing.display())),
        Err(Errno::EROFS) => Some("its file system is read-only".to_owned()),
        Err(error) => Some(error.desc().to_lowercase()),
    };
    let fs = statvfs(existing).ok();
    // Some file systems have no fixed number of inodes.
    let is_out_of_inodes = fs.is_some_and(|fs| fs.files() > 0 && fs.files_free() == 0);
    let free_bytes = fs.filter(|fs| fs.blocks() > 0).map(|fs| fs.blocks_free() * fs.fragment_size());
    Directory { path, problem, free_bytes, is_out_of_inodes }
}

fn read_resolv_conf(path: &Path) -> ResolvConf {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => {
            let dangling = path.is_symlink().then(|| path.read_link().ok()).flatten();
            let target =
                dangling.map(|target| format!(", a link to {}", target.display())).unwrap_or_default();
            return ResolvConf { problem: Some(format!("{error}{target}")), ..ResolvConf::default() };
        }
    };
    let index = |name: &str| nix::net::if_::if_nametoindex(name).ok();
    let is_bad = |line: &&str| {
        line.split_whitespace().next() == Some("nameserver") && parse_resolv_conf(line, &[], index).is_empty()
    };
    let bad_lines = text.lines().filter(is_bad).map(str::to_owned).collect();
    let mut servers = parse_resolv_conf(&text, &[], index);
    servers.truncate(MAX_SERVERS);
    let asked = |address| DnsServer { address, answers: dns_probe::answers(address, "") };
    ResolvConf { problem: None, bad_lines, servers: servers.into_iter().map(asked).collect() }
}

/// Where a server is reached that listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

/// The sockets at which Docker finds the network plugin while it is on.
fn plugin_sockets(report: &Report) -> Vec<PathBuf> {
    // One that Docker manages itself has its socket elsewhere.
    let plugin = report.plugin.iter().filter(|plugin| !plugin.config.enable_v2);
    let sockets = plugin.flat_map(|plugin| [&plugin.config.socket, &plugin.config.mesh_socket]);
    sockets.filter(|socket| !socket.is_empty()).map(PathBuf::from).collect()
}

/// Docker is expected if it was named, has a socket, or has left its bridge; Podman if it has a socket.
fn engines(docker: Docker, is_named: bool) -> Vec<Engine> {
    let has_socket = docker.socket().is_some_and(Path::exists);
    let has_bridge = || Path::new("/proc/sys/net/ipv4/conf/docker0").exists();
    let docker = (is_named || has_socket || has_bridge()).then_some(("Docker", docker));
    let podman = Docker::podman().map(|podman| ("Podman", podman));
    let asked = |(name, engine): (&'static str, Docker)| {
        let problem = engine.with_timeout(ENGINE_TIMEOUT).ping().err().map(|e| e.to_string());
        Engine { name, problem }
    };
    docker.into_iter().chain(podman).map(asked).collect()
}

/// The peers to connect to, and whether they have connected to us: those that were named, those that the daemon is connecting to, which
/// takes it long where nothing answers, and those that have connected to us, whose hosts we may not reach.
fn dials(named: Vec<String>, report: &Report) -> Vec<(String, bool)> {
    let connecting = connections(report).filter(|c| c.state == "connecting").map(|c| c.address.clone());
    let inbound = connections(report).filter(|c| !c.outbound && c.state == "established");
    let inbound = inbound.filter_map(|c| c.address.parse().ok()).map(|a: SocketAddr| a.ip().to_string());
    let outbound = named.into_iter().chain(connecting).map(|peer| (peer, false));
    let mut all: Vec<_> = outbound.chain(inbound.map(|peer| (peer, true))).collect();
    all.sort();
    all.dedup_by(|b, a| a.0 == b.0);
    all.truncate(MAX_DIALS);
    all
}

/// Connects to a peer, `host` or `host:port`, and closes the connection.
fn dial(peer: &str, port: u16) -> Result<(), DialError> {
    let (host, port) = split_peer(peer, port);
    let unresolved = |e: io::Error| DialError::Unresolved(e.to_string());
    let address = (host, port).to_socket_addrs().map_err(unresolved)?.next();
    let address = address.ok_or_else(|| DialError::Unresolved("no address".to_owned()))?;
    match TcpStream::connect_timeout(&address, DIAL_TIMEOUT) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::TimedOut => Err(DialError::TimedOut),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Err(DialError::Refused),
        Err(e) => Err(DialError::Failed(e.to_string())),
    }
}

fn split_peer(peer: &str, default: u16) -> (&str, u16) {
    if peer.parse::<IpAddr>().is_ok() {
        return (peer, default);
    }
    let (host, port) = match peer.rsplit_once(':') {
        Some((host, port)) => port.parse().map_or((peer, default), |port| (host, port)),
        None => (peer, default),
    };
    (host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_split_into_host_and_port() {
        for (peer, expected) in [
            ("h1", ("h1", 6783)),
            ("h1:7000", ("h1", 7000)),
            ("10.0.0.1", ("10.0.0.1", 6783)),
            ("fd00::1", ("fd00::1", 6783)),
            ("[fd00::1]", ("fd00::1", 6783)),
            ("[fd00::1]:7000", ("fd00::1", 7000)),
        ] {
            assert_eq!(split_peer(peer, 6783), expected);
        }
    }

    #[test]
    fn peers_to_connect_to() {
        let mut report = Report::default();
        let connection = |address: &str, outbound, state: &str| Connection {
            address: address.to_owned(),
            outbound,
            state: state.to_owned(),
            ..Connection::default()
        };
        report.router.connections = vec![
            connection("192.0.2.1:6783", true, "established"),
            connection("192.0.2.2:40000", false, "established"),
            connection("192.0.2.3:40000", false, "pending"),
            connection("192.0.2.4:6783", true, "connecting"),
        ];
        let dials = dials(vec!["h1".to_owned(), "192.0.2.2".to_owned()], &report);
        let expected = [("192.0.2.2", false), ("192.0.2.4:6783", false), ("h1", false)];
        assert_eq!(dials, expected.map(|(peer, is_inbound)| (peer.to_owned(), is_inbound)));
    }

    #[test]
    fn columns_are_found_by_their_names() {
        let table = "entries  lookups table_fulls\n00000005 000000ff 00000002\n00000005 00000001 00000010\n";
        assert_eq!((sum_of_column(table, "table_fulls"), sum_of_column(table, "lookups")), (18, 256));
        assert_eq!((sum_of_column(table, "no such"), sum_of_column("", "entries")), (0, 0));
    }

    #[test]
    fn resolver_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(&path, "# nameserver x\nnameserver nonsense\nsearch a\nnameserver\n").unwrap();
        let read = read_resolv_conf(&path);
        assert_eq!((read.bad_lines.len(), read.servers.len(), read.problem), (2, 0, None));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/no/such/file", &path).unwrap();
        let read = read_resolv_conf(&path);
        assert!(read.problem.is_some_and(|text| text.ends_with("a link to /no/such/file")));
    }
}
