//! Names as the task of the node serves them: those of this host, and those of all peers as they are published.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use weave_api::report::{ClockSkew, Dns, DnsEntry};
use weave_dns::{AnswerConfig, Names};
use weave_node::Node;
use weave_types::{Now, PeerName};

use crate::config::{Config, DnsConfig};
use crate::dns::{DnsCounts, DnsServer, ServerConfig};
use crate::host::{Clients, DnsListener, ListenAddresses};
use crate::names::LocalNames;
use crate::telemetry::printable::printable;

/// Names of this host, and those of all peers as they are served.
pub(crate) struct DnsService {
    pub(crate) local: LocalNames,
    names: Arc<ArcSwap<Names>>,
    server: Arc<DnsServer>,
    clients: Arc<ArcSwap<Clients>>,
    listen: ListenAddresses,
    config: DnsConfig,
}

impl DnsService {
    /// Starts the server, which does not listen anywhere yet.
    pub(crate) fn start(config: &DnsConfig, local: LocalNames) -> io::Result<DnsService> {
        let names = Arc::new(ArcSwap::from_pointee(Names::default()));
        let clients = Arc::new(ArcSwap::from_pointee(Clients::default()));
        let allowed = clients.clone();
        let server = DnsServer::start(
            ServerConfig {
                answer: AnswerConfig { domain: config.domain.clone(), ttl: config.ttl },
                fallback_timeout: config.fallback_timeout,
                resolv_conf: config.resolv_conf.clone(),
                may_recurse: Arc::new(move |addr| allowed.load().contains(addr)),
                threads: config.threads,
            },
            names.clone(),
        )?;
        let (server, listen) = (Arc::new(server), ListenAddresses::default());
        Ok(DnsService { local, names, server, clients, listen, config: config.clone() })
    }

    /// For the reconciler.
    pub(crate) fn listener(&self, config: &Config) -> DnsListener {
        let (server, clients) = (self.server.clone(), self.clients.clone());
        DnsListener::new(server, &self.config, config, clients, self.listen.clone())
    }

    pub(crate) fn listen_addresses(&self) -> ListenAddresses {
        self.listen.clone()
    }

    /// The names of the node have changed.
    pub(crate) fn publish(&self, node: &Node) {
        if let Some(registry) = node.registry() {
            self.names.store(Arc::new(registry.names()));
        }
    }

    pub(crate) fn counts(&self) -> DnsCounts {
        self.server.counts()
    }

    pub(crate) fn report(&self, node: &Node, now: Now) -> Dns {
        let listen = self.listen.all();
        let mut notes = Vec::new();
        if listen.is_empty() && self.config.listen.is_none() {
            notes.push("names are served on no address yet; 'weave expose' gives the bridge one".to_owned());
        }
        let entries = node.registry().into_iter().flat_map(weave_dns::Registry::entries);
        Dns {
            domain: self.config.domain.to_string(),
            upstream: self.server.upstream().iter().map(ToString::to_string).collect(),
            address: listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            ttl: self.config.ttl,
            entries: entries
                .map(|entry| DnsEntry {
                    hostname: printable(&entry.hostname),
                    origin: entry.origin.to_string(),
                    container_id: printable(&entry.container),
                    address: entry.addr.to_string(),
                    version: u64::try_from(entry.version).unwrap_or_default(),
                    tombstone: entry.tombstone,
                })
                .collect(),
            notes,
            clock_skews: node
                .registry()
                .into_iter()
                .flat_map(|registry| registry.clock_skews(now))
                .map(clock_skew)
                .collect(),
        }
    }
}

fn clock_skew((peer, seconds): (Option<PeerName>, i64)) -> ClockSkew {
    ClockSkew { peer: peer.map(|name| name.to_string()).unwrap_or_default(), seconds }
}
