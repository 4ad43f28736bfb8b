//! Where names are served, and to whom: both follow the addresses of the host. With `--host-dns` its own resolver asks the server, too.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use weave_host::firewall::DockerBridge;
use weave_host::{Error, Netlink, host_resolver};
use weave_types::Cidr;

use crate::config::{Config, DnsConfig};
use crate::dns::DnsServer;

/// Where the server listens.
#[derive(Clone, Debug, Default)]
pub struct ListenAddresses(Arc<Mutex<Vec<SocketAddr>>>);

impl ListenAddresses {
    pub fn new(addresses: Vec<SocketAddr>) -> ListenAddresses {
        ListenAddresses(Arc::new(Mutex::new(addresses)))
    }

    /// The address that containers are told.
    pub fn first(&self) -> Option<SocketAddr> {
        self.all().first().copied()
    }

    pub(crate) fn all(&self) -> Vec<SocketAddr> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, addresses: Vec<SocketAddr>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }
}

/// Who gets answers about other domains: this host, and its containers.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    own: BTreeSet<IpAddr>,
    networks: Vec<Cidr>,
}

impl Clients {
    /// The networks of bridges are those of containers, except for a bridge with a default route, which leads outside.
    fn of_host() -> Result<Clients, Error> {
        let mut netlink = Netlink::open()?;
        let routes = netlink.routes()?;
        let outside: Vec<u32> = routes.iter().filter(|r| r.is_default()).filter_map(|r| r.index).collect();
        let mut clients = Clients::default();
        for link in netlink.links()? {
            let addresses = netlink.addresses_of(&link)?;
            clients.own.extend(addresses.iter().map(Cidr::addr));
            if link.is("bridge") && !outside.contains(&link.index) {
                clients.networks.extend(addresses.iter().map(Cidr::network));
            }
        }
        Ok(clients)
    }

    pub(crate) fn contains(&self, addr: IpAddr) -> bool {
        let addr = addr.to_canonical();
        addr.is_loopback() || self.own.contains(&addr) || self.networks.iter().any(|net| net.contains(addr))
    }
}

impl std::fmt::Debug for DnsListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DnsListener").field("bound", &self.bound).finish_non_exhaustive()
    }
}

/// The sockets of the server, which follow the addresses of the host.
pub(crate) struct DnsListener {
    server: Arc<DnsServer>,
    clients: Arc<ArcSwap<Clients>>,
    config: DnsConfig,
    /// Whether this is one of several peers of the host.
    is_instance: bool,
    listen: ListenAddresses,
    /// The addresses that it listens on.
    bound: Vec<SocketAddr>,
    /// With `--host-dns`.
    host: Option<HostResolver>,
}

impl DnsListener {
    /// `clients` and `listen` are kept up to date.
    pub(crate) fn new(
        server: Arc<DnsServer>,
        dns: &DnsConfig,
        config: &Config,
        clients: Arc<ArcSwap<Clients>>,
        listen: ListenAddresses,
    ) -> DnsListener {
        DnsListener {
            server,
            clients,
            config: dns.clone(),
            is_instance: config.instance.is_some(),
            listen,
            bound: Vec::new(),
            host: HostResolver::new(config),
        }
    }

    /// Listens where the addresses of the host want it, and offers recursion to its containers and itself. Returns what failed.
    pub(crate) fn update(&mut self, docker: Option<&DockerBridge>, exposed: &[Cidr]) -> Vec<String> {
        let mut problems = Vec::new();
        match Clients::of_host() {
            Ok(clients) => self.clients.store(Arc::new(clients)),
            Err(e) => {
                problems.push(format!("containers may not get answers about names of other domains: {e}"))
            }
        }
        let wanted = self.wanted(docker, exposed);
        if wanted != self.bound {
            let failed = self.server.set_listen_addresses(&wanted);
            let is_bound = |addr: &SocketAddr| failed.iter().all(|error| error.address != *addr);
            let bound: Vec<SocketAddr> = wanted.into_iter().filter(is_bound).collect();
            if bound != self.bound {
                let list = bound.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                tracing::info!("names are served on {}", if list.is_empty() { "no address" } else { &list });
            }
            self.bound.clone_from(&bound);
            self.listen.set(bound);
            problems.extend(
                failed.iter().map(|e| {
                    format!("{e}; trying again, or choose another address with --dns-listen-address")
                }),
            );
        }
        if let Some(host) = &mut self.host {
            problems.extend(host.update(self.bound.first().copied()));
        }
        problems
    }

    /// The addresses to listen on.
    fn wanted(&self, docker: Option<&DockerBridge>, exposed: &[Cidr]) -> Vec<SocketAddr> {
        let on_port = |ip: IpAddr| SocketAddr::new(ip, DnsConfig::PORT);
        // Docker's bridge is for the first peer of the host.
        match (self.config.listen, docker.filter(|_| !self.is_instance)) {
            (Some(addr), _) => vec![addr],
            (None, Some(docker)) => vec![on_port(docker.address.into())],
            (None, None) => exposed.iter().map(|cidr| on_port(cidr.addr())).collect(),
        }
    }
}

/// The resolver of this host, which asks the server about names of our domain.
#[derive(Debug)]
struct HostResolver {
    bridge: String,
    domain: String,
    /// Exists while the resolver has our settings, for a `weave stop` after a crash.
    file: PathBuf,
    /// The server that it was told of.
    server: Option<SocketAddr>,
}

impl HostResolver {
    /// `None` without `--host-dns`.
    fn new(config: &Config) -> Option<HostResolver> {
        let dns = config.dns.as_ref().filter(|dns| dns.host_dns)?;
        let (bridge, domain) = (config.bridge.clone(), dns.domain.to_string());
        Some(HostResolver { bridge, domain, file: config.host_dns_file(), server: None })
    }

    /// Returns what keeps it from asking `server`.
    fn update(&mut self, server: Option<SocketAddr>) -> Option<String> {
        let Some(server) = server else {
            self.revert();
            return None;
        };
        let domain = &self.domain;
        if !host_resolver::is_managed() {
            return Some(format!(
                "programs of this host do not resolve names of {domain} (--host-dns), because systemd-resolved does not run: \
                 write 'nameserver {}' before the others in /etc/resolv.conf, or with dnsmasq 'server=/{}/{}' into its configuration",
                server.ip(),
                domain.trim_end_matches('.'),
                server.ip()
            ));
        }
        if self.server == Some(server) {
            return None;
        }
        // Written first, so that a daemon that is killed leaves nothing behind unknown.
        let written = std::fs::write(&self.file, &self.bridge).map_err(|e| e.to_string());
        match written
            .and_then(|()| host_resolver::set(&self.bridge, server, domain).map_err(|e| e.to_string()))
        {
            Ok(()) => {
                tracing::info!("systemd-resolved asks {server} about names of {domain}");
                self.server = Some(server);
                None
            }
            Err(e) => Some(format!("programs of this host do not resolve names of {domain}, retrying: {e}")),
        }
    }

    fn revert(&mut self) {
        if self.server.take().is_some() {
            match host_resolver::revert(&self.bridge) {
                Ok(()) => drop(std::fs::remove_file(&self.file)),
                Err(e) => tracing::warn!("systemd-resolved still asks this peer for names: {e}"),
            }
        }
    }
}

impl Drop for HostResolver {
    fn drop(&mut self) {
        self.revert();
    }
}
