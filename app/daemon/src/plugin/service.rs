//! Carries out what Docker asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use weave_host::{NetNs, has_multicast_route};
use weave_ipam::{NO_ID, Subnet};
use weave_plugin::{
    Action, AddressRequest, Answer, CreateEndpoint, Driver, Error, Join, MULTICAST_OPTION, Plugin, VethPair,
    multicast,
};
use weave_runtime::Docker;
use weave_types::Cidr;

use crate::allocation::{AllocationRequest, AllocationResponse};
use crate::config::{Config, PLUGIN_NETWORK_LABEL, PluginConfig, PluginMode};
use crate::containers::Containers;
use crate::control::Control;
use crate::host::{Inventory, is_docker_id};
use crate::storage::NetworkStore;
use crate::telemetry::printable::printable;

/// Longest wait for an address. Docker itself waits without a limit.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(50);
/// Longest wait for Docker while Docker waits for us: it may be about to start, and answers nobody then.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(5);
const ENDING: &str = "the daemon is ending";

/// Answers the requests of Docker.
#[derive(Debug)]
pub(crate) struct Service {
    state: Mutex<State>,
    store: NetworkStore,
    pub(super) docker: Option<Docker>,
    pub(super) control: Control,
    containers: Containers,
    pub(super) config: PluginConfig,
    bridge: String,
    pub(super) runtime: Handle,
    /// Whether each network that a container has been seen in is one of ours.
    pub(super) seen: Mutex<BTreeMap<String, bool>>,
}

#[derive(Debug)]
struct State {
    plugin: Plugin,
    /// Endpoints whose devices this process has created, by the name of their bridge ports.
    created: BTreeSet<String>,
}

/// A particular address that nobody else may request. Dropped when it has not been obtained.
struct Claim<'a> {
    service: &'a Service,
    request: AddressRequest,
    obtained: bool,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.obtained {
            self.service.state().plugin.not_obtained(&self.request);
        }
    }
}

fn refused(text: impl ToString) -> Error {
    Error::Refused(text.to_string())
}

impl Service {
    /// `networks` are those that an earlier process knew. Tasks run on `runtime`.
    pub(crate) fn new(
        config: &Config,
        plugin: PluginConfig,
        (store, networks): (NetworkStore, BTreeMap<String, bool>),
        control: Control,
        containers: Containers,
        runtime: Handle,
    ) -> Service {
        let state = State { plugin: Plugin::new(plugin.mode, networks), created: BTreeSet::new() };
        Service {
            state: Mutex::new(state),
            store,
            docker: config.legacy.docker.clone(),
            control,
            containers,
            config: plugin,
            bridge: config.bridge.clone(),
            runtime,
            seen: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_legacy(&self) -> bool {
        self.config.mode == PluginMode::Legacy
    }

    /// Answers a request.
    pub(super) async fn answer(self: &Arc<Service>, driver: Driver, path: &str, body: &[u8]) -> Answer {
        let action = self.state().plugin.handle(driver, path, body);
        let result = match action {
            Ok(action) => self.act(action).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => tracing::debug!("answered {} of Docker", printable(path)),
            Err(Error::NoSuchCall) => tracing::debug!("Docker asked for {}", printable(path)),
            Err(e) => tracing::warn!("refused {} of Docker: {}", printable(path), printable(&e.to_string())),
        }
        result.unwrap_or_else(Answer::from)
    }

    async fn act(self: &Arc<Service>, action: Action) -> Result<Answer, Error> {
        match action {
            Action::Answer(answer) => Ok(answer),
            Action::NetworksChanged { unknown } => {
                for option in unknown {
                    tracing::warn!("a network of Docker has the unknown option {}", printable(&option));
                }
                self.save();
                Ok(Answer::done())
            }
            Action::CreateEndpoint(endpoint) => self.create_endpoint(endpoint).await,
            Action::DeleteEndpoint(pair) => self.delete_endpoint(pair).await,
            Action::Join(join) => self.join(join).await,
            Action::DefaultPool { range } => match self.control.allocation() {
                Some(info) => self.state().plugin.pool(info.default_subnet.cidr(), range),
                None => Err(refused("IP address allocation must be enabled for a network without a subnet")),
            },
            Action::RequestAddress(request) => self.request_address(request).await,
            Action::ReleaseAddress(address) => self.release_address(address).await,
        }
    }

    /// Runs what may block in another thread.
    async fn blocking<T: Send + 'static>(
        self: &Arc<Service>,
        work: impl FnOnce(&Arc<Service>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let service = self.clone();
        tokio::task::spawn_blocking(move || work(&service)).await.map_err(refused)
    }

    async fn create_endpoint(self: &Arc<Service>, endpoint: CreateEndpoint) -> Result<Answer, Error> {
        let VethPair { outside, inside, .. } = endpoint.pair.clone();
        // A pair of the same name that an earlier process created is one whose answer Docker did not get.
        let first = self.state().created.insert(outside.clone());
        let name = outside.clone();
        let created = self.blocking(move |service| {
            service.containers.create_endpoint(&service.bridge, &name, &inside, first)
        });
        let created = created.await.and_then(|created| created.map_err(refused));
        if created.is_err() && first {
            self.state().created.remove(&outside);
        }
        created.map(|mac| Plugin::created(&endpoint, mac))
    }

    async fn delete_endpoint(self: &Arc<Service>, pair: VethPair) -> Result<Answer, Error> {
        self.state().created.remove(&pair.outside);
        let deleted = self.blocking(move |service| {
            let containers = &service.containers;
            if !containers.delete_endpoint(&pair.outside)? {
                containers.delete_endpoint(&pair.old_outside)?;
            }
            Ok::<_, weave_runtime::Error>(())
        });
        deleted.await?.map_err(refused).map(|()| Answer::done())
    }

    async fn join(self: &Arc<Service>, join: Join) -> Result<Answer, Error> {
        self.blocking(move |service| {
            // The namespace does not exist yet if the container is about to start.
            let ns = Some(&join.sandbox).filter(|path| path.starts_with('/'));
            let ns = ns.and_then(|path| NetNs::at(Path::new(path)).ok());
            let has_route = ns.is_some_and(|ns| has_multicast_route(&ns).unwrap_or(false));
            if let Ok(answer) = service.state().plugin.join(&join, has_route) {
                return Ok(answer);
            }
            service.find_network(&join.network)?;
            service.state().plugin.join(&join, has_route).map_err(|_| refused("too many networks"))
        })
        .await?
    }

    /// Asks Docker for a network that 2.8.1 has created, or an earlier launch before a 'reset'.
    fn find_network(&self, id: &str) -> Result<(), Error> {
        let failed = |why: &str| refused(format!("unable to find network info: {why}"));
        let Some(docker) = &self.docker else {
            return Err(failed("Docker client disabled; unable to get network info"));
        };
        let multicast = match docker.clone().with_timeout(DOCKER_TIMEOUT).network(id) {
            Ok(Some(network)) => multicast(&network.options)?,
            Ok(None) => return Err(failed("Docker does not know it")),
            Err(e) => {
                tracing::warn!("network {} gets multicast, its options are not known: {e}", printable(id));
                true
            }
        };
        self.learn(id, multicast);
        Ok(())
    }

    /// Records a network that was created by others.
    pub(super) fn learn(&self, id: &str, multicast: bool) {
        let new = self.state().plugin.learn(id, multicast);
        if new {
            self.save();
        }
    }

    fn save(&self) {
        let networks = self.state().plugin.networks().clone();
        if let Err(e) = self.store.write(&networks) {
            tracing::warn!("after a restart Docker is asked which networks have multicast: {e}");
        }
    }

    async fn request_address(self: &Arc<Service>, request: AddressRequest) -> Result<Answer, Error> {
        let mut claim = Claim { service: self, request, obtained: false };
        let obtained = match tokio::time::timeout(ADDRESS_TIMEOUT, self.obtain(request)).await {
            Ok(obtained) => obtained?,
            Err(_) => {
                let seconds = ADDRESS_TIMEOUT.as_secs();
                return Err(refused(format!(
                    "no address within {seconds} s; 'weave status ipam' may say why"
                )));
            }
        };
        claim.obtained = true;
        Ok(request.answer(obtained))
    }

    /// Obtains an address under its own text, by which it is released.
    async fn obtain(self: &Arc<Service>, request: AddressRequest) -> Result<Cidr, Error> {
        let Some(info) = self.control.allocation() else {
            let cidr =
                request.address.zip(request.pool).and_then(|(address, pool)| with_prefix(address, &pool));
            return cidr
                .ok_or_else(|| refused("IP address allocation must be enabled for an address of any value"));
        };
        let Some(address) = request.address else {
            let range = request.pool.map(|pool| Subnet::new(pool.range())).transpose().map_err(refused)?;
            let subnet = range.unwrap_or(info.default_subnet);
            let container = NO_ID.to_owned();
            let wanted = AllocationRequest::Allocate { container, subnet, is_container: false };
            return match self.control.allocate(info, wanted).await {
                Some(AllocationResponse::Address(cidr)) => Ok(cidr),
                response => Err(failure(response)),
            };
        };
        let prefix = request.pool.map_or(info.default_subnet.cidr(), |pool| pool.subnet()).prefix();
        let cidr = Cidr::new(IpAddr::V4(address), prefix).ok_or_else(|| refused("not an IPv4 address"))?;
        // An earlier process may have recorded it for a container that runs.
        let user = self.blocking(move |service| {
            let inventory = Inventory::take(&service.bridge, None).ok()?;
            inventory.users("", &[cidr]).into_keys().next()
        });
        if let Some(user) = user.await? {
            return Err(refused(format!("address {address} is in use by {user}")));
        }
        let container = NO_ID.to_owned();
        let wanted = AllocationRequest::Claim { container, cidr, is_container: false, quiet: false };
        match self.control.allocate(info, wanted).await {
            Some(AllocationResponse::Done) => Ok(cidr),
            Some(AllocationResponse::Failed(text)) => Err(refused(format!("Unable to claim: {text}"))),
            response => Err(failure(response)),
        }
    }

    async fn release_address(self: &Arc<Service>, address: Ipv4Addr) -> Result<Answer, Error> {
        let Some(info) = self.control.allocation() else { return Ok(Answer::done()) };
        let ask =
            |request| async { self.control.allocate(info, request).await.ok_or_else(|| refused(ENDING)) };
        let failed = ask(AllocationRequest::Delete { container: address.to_string() }).await?;
        let AllocationResponse::Failed(text) = failed else { return Ok(Answer::done()) };
        // An address that was found on the host, here or by 2.8.1 after a hand-back, is recorded under the container's id.
        if let AllocationResponse::Owned(all) = ask(AllocationRequest::ListAll).await?
            && let Some((container, _)) = all.into_iter().find(|(owner, cidrs)| {
                is_docker_id(owner) && cidrs.iter().any(|cidr| cidr.addr() == IpAddr::V4(address))
            })
        {
            ask(AllocationRequest::Free { container, addr: address.into() }).await?;
        } else {
            tracing::debug!("Docker released {address}, which is not allocated: {text}");
        }
        Ok(Answer::done())
    }

    /// The options of the default network.
    pub(super) fn network_settings(name: &str, subnet: Cidr, driver: &str) -> serde_json::Value {
        serde_json::json!({
            "Name": name,
            "CheckDuplicate": true,
            "Driver": driver,
            "IPAM": { "Driver": driver, "Config": [{ "Subnet": subnet.to_string() }] },
            "Options": { MULTICAST_OPTION: "true" },
            "Labels": { PLUGIN_NETWORK_LABEL: "true" },
        })
    }
}

fn with_prefix(address: Ipv4Addr, pool: &weave_plugin::Pool) -> Option<Cidr> {
    Cidr::new(IpAddr::V4(address), pool.subnet().prefix())
}

fn failure(response: Option<AllocationResponse>) -> Error {
    match response {
        Some(
            AllocationResponse::Failed(text)
            | AllocationResponse::Refused(text)
            | AllocationResponse::Busy(text),
        ) => refused(text),
        Some(_) => refused("the request was cancelled"),
        None => refused(ENDING),
    }
}
