//! What the checks judge: values without behaviour, so that tests can make them up.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use weave_api::Report;
use weave_host::firewall::BackendRules;
use weave_types::Cidr;

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Port of the peer.
    pub port: u16,
    /// Bridge of the container network.
    pub bridge: String,
    /// Range of address allocation, in use or planned; `None` while allocation is off.
    pub range: Option<Cidr>,
    /// Whether this process is root's.
    pub is_root: bool,
    /// Capabilities that the daemon needs and this process lacks.
    pub missing_capabilities: Vec<&'static str>,
    /// Whether `/proc/sys` cannot be written.
    pub sysctls_read_only: bool,
    /// The daemon.
    pub daemon: Daemon,
    /// What the kernel lacks without which the daemon does not start.
    pub missing_features: Vec<&'static str>,
    /// Whether fastdp is possible with this kernel, and why not; `None` if that is not known.
    pub fastdp: Option<Result<(), String>>,
    /// Interfaces.
    pub devices: Vec<Device>,
    /// Routes of the main table that do not lead to the bridge, without default routes.
    pub routes: Vec<RouteFact>,
    /// Interfaces with default routes.
    pub default_devices: Vec<String>,
    /// Interfaces that lead to the addresses of neighbours, and to the rest of the world, which is `0.0.0.0` here.
    pub underlay: BTreeMap<IpAddr, UnderlayDevice>,
    /// Settings and counters of the kernel.
    pub sysctls: Sysctls,
    /// Whether the host has an address in the container network.
    pub is_exposed: bool,
    /// Who uses the ports of the peer; while no daemon runs, nobody should.
    pub ports: Vec<PortUse>,
    /// The rules of each variant of `iptables`.
    pub rules: Vec<BackendRules>,
    /// Whether neither `iptables` nor `nft` is installed.
    pub lacks_firewall: bool,
    /// What keeps packets from passing, with the remedy after the first semicolon.
    pub obstacles: Vec<String>,
    /// Where the daemon writes.
    pub directories: Vec<Directory>,
    /// The host's DNS.
    pub resolv_conf: ResolvConf,
    /// Whether weaveDNS answers, by its addresses.
    pub weave_dns: Vec<DnsServer>,
    /// Container engines.
    pub engines: Vec<Engine>,
    /// Links and sockets by which container runtimes find this program that are missing, with the command that makes them.
    pub missing_plugins: Vec<(PathBuf, &'static str)>,
    /// Attempts to connect to peers.
    pub dials: Vec<DialResult>,
    /// What was not read in time or at all, and why.
    pub unread: Vec<String>,
}

/// What is known of the daemon.
#[derive(Clone, Debug, Default)]
pub enum Daemon {
    /// None runs.
    #[default]
    Stopped,
    /// It runs, and this is what its client says.
    Silent(String),
    /// It answers.
    Running(Box<Report>),
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Name in the namespace of this process.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The UDP port of a VXLAN device.
    pub vxlan_port: Option<u16>,
    /// Whether fastdp has made it.
    pub is_ours: bool,
    /// Whether packets are dropped that do not come from where their answers would go (`rp_filter` 1).
    pub strict_rp_filter: bool,
}

/// A route to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteFact {
    /// The network.
    pub destination: Cidr,
    /// The interface, if there is exactly one.
    pub device: Option<String>,
}

/// An interface that leads to other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnderlayDevice {
    /// Name in the namespace of this process.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
}

/// Settings and counters of the kernel; `None` where it has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// `net.ipv4.ip_forward`.
    pub ip_forward: Option<u64>,
    /// Whether IPv6 is disabled, or not there.
    pub is_ipv6_disabled: bool,
    /// `net.ipv4.neigh.default.gc_thresh3`: the largest number of entries.
    pub max_neighbours: Option<u64>,
    /// Entries of the table of IPv4 neighbours.
    pub neighbours: u64,
    /// By how many the count of rejected entries of the neighbour table has grown between two readings.
    pub neighbour_overflows: u64,
    /// `net.netfilter.nf_conntrack_max`.
    pub max_connections: Option<u64>,
    /// `net.netfilter.nf_conntrack_count`.
    pub connections: Option<u64>,
}

/// A port and the program that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// The port.
    pub port: u16,
    /// Name and pid of the program, or another description.
    pub holder: String,
}

/// A directory in which the daemon writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Its path, which may not exist yet.
    pub path: PathBuf,
    /// Why it cannot be written.
    pub problem: Option<String>,
    /// Bytes available to root; `None` if the file system does not say.
    pub free_bytes: Option<u64>,
    /// Whether no more files can be created.
    pub is_out_of_inodes: bool,
}

/// The resolver configuration of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Why it cannot be read.
    pub problem: Option<String>,
    /// `nameserver` lines that are not understood.
    pub bad_lines: Vec<String>,
    /// Its servers.
    pub servers: Vec<DnsServer>,
}

/// A DNS server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsServer {
    /// Its address.
    pub address: SocketAddr,
    /// Whether it has answered.
    pub answers: bool,
}

/// A container engine that is expected to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    /// `Docker` or `Podman`.
    pub name: &'static str,
    /// Why it does not answer.
    pub problem: Option<String>,
}

/// An attempt to connect to a peer over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialResult {
    /// The peer as it was named, or its address.
    pub peer: String,
    /// Whether the peer is connected to us by a connection that it has made.
    pub is_inbound: bool,
    /// Why it failed.
    pub error: Option<DialError>,
}

/// Why a peer cannot be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// Its name has no address.
    Unresolved(String),
    /// Nothing answers.
    TimedOut,
    /// Its host answers that nobody listens there.
    Refused,
    /// Another error of the kernel.
    Failed(String),
}

impl Facts {
    /// The report of the daemon, if it answers.
    pub(crate) fn report(&self) -> Option<&Report> {
        match &self.daemon {
            Daemon::Running(report) => Some(report),
            Daemon::Stopped | Daemon::Silent(_) => None,
        }
    }

    /// The UDP port of fastdp.
    pub(crate) fn vxlan_port(&self) -> u16 {
        self.port.saturating_add(1)
    }
}
