//! Requests that change containers, or addresses of the host: `attach`, `detach`, `interface`, `expose`, `hide`, `attach-bridge`.
//!
//! Each runs in a thread of its own, since operations on the host block. Once the host is being changed the request is carried out
//! even if its caller has gone; while it waits for an address it is cancelled then.

mod interfaces;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use weave_api::host_requests::{
    AttachBridgeRequest, AttachRequest, DetachRequest, ExposeRequest, HostResponse, HostsFile,
    InterfaceRequest,
};
use weave_dns::{Filter, HostName};
use weave_host::firewall::ExposedAddress;
use weave_host::{NamespaceId, NetNs, fault_injection};
use weave_ipam::Subnet;
use weave_runtime::{
    AddressRequest, Allocator, Attachment, Change, ContainerNetwork, EXPOSE, Error, NoAllocator, Outcome,
};
use weave_types::{Cidr, MacAddr};

use crate::allocation::{AllocationRequest, AllocationResponse};
use crate::control::Control;
use crate::host::{Inventory, is_docker_id};
use crate::names::{NameChange, may_run};
use crate::storage::{AttachmentStore, InterfaceStore};

pub(crate) use interfaces::{long_owner, release_ended};

/// Why a request for an address of a subnet is refused where nothing is allocated.
const NO_ALLOCATION: NoAllocator =
    NoAllocator { reason: "IP address allocation must be enabled to use 'net:'" };
const ENDING: &str = "the daemon is ending";

/// Changes containers on behalf of clients of the control API.
#[derive(Clone, Debug)]
pub(crate) struct Containers {
    network: Arc<ContainerNetwork>,
    bridge: String,
    attachments: Arc<Mutex<AttachmentStore>>,
    interfaces: Arc<Mutex<InterfaceStore>>,
    /// Held while the bridge gets an address.
    exposing: Arc<Mutex<()>>,
}

/// A request of the control API.
#[derive(Debug)]
pub(crate) enum HostRequest {
    Attach(AttachRequest, OwnedFd),
    Detach(DetachRequest, OwnedFd),
    /// Detaches a container that cannot be found any more.
    Release(DetachRequest),
    /// The namespace accompanies those that have one.
    Interface(InterfaceRequest, Option<OwnedFd>),
    Expose(ExposeRequest),
    Hide(ExposeRequest),
    AttachBridge(AttachBridgeRequest),
}

impl Containers {
    pub(crate) fn new(
        network: Arc<ContainerNetwork>,
        bridge: &str,
        attachments: AttachmentStore,
        interfaces: InterfaceStore,
    ) -> Containers {
        Containers {
            network,
            bridge: bridge.to_owned(),
            attachments: Arc::new(Mutex::new(attachments)),
            interfaces: Arc::new(Mutex::new(interfaces)),
            exposing: Arc::default(),
        }
    }

    /// How Docker's containers are attached.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, AttachmentStore> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates the devices of an endpoint of Docker (see [`ContainerNetwork::create_endpoint`]).
    pub(crate) fn create_endpoint(
        &self,
        bridge: &str,
        outside: &str,
        inside: &str,
        replace: bool,
    ) -> Result<MacAddr, Error> {
        let _operation = fault_injection::operation("create-endpoint");
        self.network.create_endpoint(bridge, outside, inside, replace)
    }

    /// Removes the devices of an endpoint of Docker. `false` if there are none.
    pub(crate) fn delete_endpoint(&self, outside: &str) -> Result<bool, Error> {
        let _operation = fault_injection::operation("delete-endpoint");
        self.network.delete_endpoint(outside)
    }

    /// Carries out a request; the error is for the person who made it. Dropping the future tells the request that its caller has
    /// gone.
    pub(crate) async fn handle(
        &self,
        control: &Control,
        request: HostRequest,
    ) -> Result<HostResponse, String> {
        let (_present, caller) = watch::channel(());
        let (answer, result) = oneshot::channel();
        let work = Work {
            containers: self.clone(),
            allocator: DaemonAllocator {
                control: control.clone(),
                runtime: Handle::current(),
                caller,
                releases: true,
            },
        };
        let thread = std::thread::Builder::new().name("weave-containers".to_owned());
        thread
            .spawn(move || {
                let outcome = work.carry_out(request);
                let _ = answer.send(outcome);
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        result.await.map_err(|_| ENDING.to_owned())?.map_err(|e| e.to_string())
    }
}

struct Work {
    containers: Containers,
    allocator: DaemonAllocator,
}

impl Work {
    fn carry_out(&self, request: HostRequest) -> Result<HostResponse, Error> {
        let _operation = fault_injection::operation(request.name());
        let network = &self.containers.network;
        let outcome: Result<Outcome, Error> = match request {
            HostRequest::Interface(request, fd) => {
                let ns = fd.map(NetNs::from_fd).transpose()?;
                return self.for_plugins().interface(request, ns);
            }
            HostRequest::Attach(mut request, fd) => {
                if request.addresses.is_empty() {
                    request.addresses = self.containers.attachments().addresses(&request.container);
                } else if request.former {
                    request.addresses = self.containers.attachments().and_former(&request);
                }
                let name = self.parse_name(request.name.as_deref())?;
                let attachment = Attachment {
                    ns: NetNs::from_fd(fd)?,
                    addresses: parse(&request.addresses)?,
                    container: request.container.clone(),
                    naming: request.naming.clone(),
                    bridge: request.bridge.clone(),
                    multicast_route: request.multicast_route,
                    hairpin: request.hairpin,
                    hosts_file: request.hosts_file.clone().map(|HostsFile { path, fqdn, extra }| {
                        weave_runtime::HostsFile { path, fqdn, extra }
                    }),
                };
                if request.record && self.allocator.control.allocation().is_some() {
                    let (container, namespace) = (attachment.container.clone(), attachment.ns.id());
                    self.allocator.call(AllocationRequest::Identify { container, namespace })?;
                }
                let mut outcome = network.attach(self.allocator(request.record), &attachment)?;
                if request.record {
                    let namespace = Some(attachment.ns.id());
                    let warnings = self.attached(&request, namespace, name, &outcome.addresses);
                    outcome.warnings.extend(warnings);
                }
                if request.record && is_docker_id(&request.container) {
                    self.containers.attachments().attached(&request, &outcome.addresses);
                }
                Ok(outcome)
            }
            HostRequest::Detach(request, fd) => {
                let addresses = parse(&request.addresses)?;
                let ns = NetNs::from_fd(fd)?;
                let allocator = self.allocator(request.record);
                let outcome = network.detach(allocator, &request.container, &ns, &addresses)?;
                self.detached(&request.container, &outcome.addresses);
                Ok(outcome)
            }
            HostRequest::Release(request) => {
                let outcome = self.release(&request)?;
                self.detached(&request.container, &outcome.addresses);
                Ok(outcome)
            }
            HostRequest::Expose(ExposeRequest { addresses, masquerade, name }) => {
                let requests = parse(&addresses)?;
                let name = self.parse_name(name.as_deref())?;
                let outcome = self.expose(&requests, masquerade)?;
                if let Some(name) = name {
                    let addrs = ipv4(&outcome.addresses);
                    let change = NameChange::Add { name, container: EXPOSE.to_owned(), addrs };
                    self.allocator.control.change_names_blocking(change);
                }
                Ok(outcome)
            }
            HostRequest::Hide(ExposeRequest { addresses, .. }) => {
                let allocator = self.allocator(true);
                let addresses = weave_runtime::look_up(allocator, EXPOSE, &parse(&addresses)?)?;
                if addresses.is_empty() {
                    return Ok(HostResponse::default());
                }
                let hide = |cidrs: &[Cidr]| {
                    let hidden = self.allocator.control.hide_blocking(cidrs.to_vec());
                    self.reconcile("unable to hide", hidden.map(|done| done.map(|()| Vec::new())))
                };
                let outcome = network.releasing(allocator, EXPOSE, Change::Hide, addresses, hide)?;
                self.remove_names(EXPOSE, &outcome.addresses);
                Ok(outcome)
            }
            HostRequest::AttachBridge(AttachBridgeRequest { bridge, other }) => {
                network.join_bridges(&bridge, &other)?;
                Ok(Outcome::default())
            }
        };
        outcome.map(response)
    }

    fn expose(&self, requests: &[AddressRequest], masquerade: bool) -> Result<Outcome, Error> {
        let expose = |cidrs: &[Cidr]| {
            let exposed = cidrs.iter().map(|&address| ExposedAddress { address, masquerade }).collect();
            self.reconcile("unable to expose", self.allocator.control.expose_blocking(exposed))
        };
        let allocator = self.allocator(true);
        self.containers.network.with_addresses(allocator, EXPOSE, Change::Expose, requests, expose)
    }

    /// The name to register; `None` if names are not served here.
    fn parse_name(&self, name: Option<&str>) -> Result<Option<HostName>, Error> {
        let Some(name) = name.filter(|_| self.allocator.control.dns().is_some()) else { return Ok(None) };
        HostName::parse(name).map(Some).map_err(|e| Error::Address(e.to_string()))
    }

    /// Registers the name of a container that has been attached, unless it has ended meanwhile. Returns a warning.
    fn attached(
        &self,
        request: &AttachRequest,
        namespace: Option<NamespaceId>,
        name: Option<HostName>,
        cidrs: &[Cidr],
    ) -> Option<String> {
        let control = &self.allocator.control;
        let info = control.dns()?;
        let registers = name.is_some();
        let (container, addrs) = (request.container.clone(), ipv4(cidrs));
        let change = NameChange::Attached { container: container.clone(), namespace, name, addrs };
        control.change_names_blocking(change)?;
        if registers && !request.starting && !may_run(info.docker.as_ref(), &container) {
            control.change_names_blocking(NameChange::Ended(container.clone()))?;
            return Some(format!("{container} has ended, its name is not registered"));
        }
        None
    }

    /// Forgets addresses that a container does not have any more, and their names.
    fn detached(&self, container: &str, cidrs: &[Cidr]) {
        self.containers.attachments().detached(container, cidrs);
        self.remove_names(container, cidrs);
    }

    /// Removes the names of addresses that a container does not have any more.
    fn remove_names(&self, container: &str, cidrs: &[Cidr]) {
        let control = &self.allocator.control;
        for addr in ipv4(cidrs).into_iter().filter(|_| control.dns().is_some()) {
            let filter = Filter { container: Some(container.to_owned()), addr: Some(addr), name: None };
            control.change_names_blocking(NameChange::Remove(filter));
        }
    }

    /// Releases addresses that nothing uses.
    fn release(&self, request: &DetachRequest) -> Result<Outcome, Error> {
        let (allocator, container) = (self.allocator(request.record), &request.container);
        let owned = allocator.owned(container)?;
        let mut addresses = weave_runtime::look_up(allocator, container, &parse(&request.addresses)?)?;
        addresses.retain(|cidr| owned.iter().any(|own| own.addr() == cidr.addr()));
        let users = Inventory::take(&self.containers.bridge, None)?.users(container, &addresses);
        if let Some((user, cidrs)) = users.into_iter().next() {
            let list = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
            return Err(Error::Address(format!(
                "{list} of {container} is still in use, by {user}: detach it there, or end what uses it"
            )));
        }
        addresses.iter().try_for_each(|cidr| allocator.release(container, *cidr))?;
        Ok(Outcome { addresses, warnings: Vec::new() })
    }

    /// For network plugins, which say when addresses are released.
    fn for_plugins(&self) -> Work {
        let allocator = DaemonAllocator { releases: false, ..self.allocator.clone() };
        Work { containers: self.containers.clone(), allocator }
    }

    fn allocator(&self, record: bool) -> &dyn Allocator {
        if record && self.allocator.control.allocation().is_some() { &self.allocator } else { &NO_ALLOCATION }
    }

    /// The answer of the host reconciler as a result of `with_addresses`.
    fn reconcile(
        &self,
        failed: &str,
        answer: Option<Result<Vec<String>, String>>,
    ) -> Result<Vec<String>, Error> {
        match answer {
            Some(Ok(warnings)) => Ok(warnings),
            Some(Err(text)) => Err(Error::Address(format!("{failed}: {text}"))),
            None => Err(Error::Address(ENDING.to_owned())),
        }
    }
}

impl HostRequest {
    fn name(&self) -> &'static str {
        match self {
            HostRequest::Attach(..) => "attach",
            HostRequest::Detach(..) | HostRequest::Release(_) => "detach",
            HostRequest::Interface(..) => "interface",
            HostRequest::Expose(_) => "expose",
            HostRequest::Hide(_) => "hide",
            HostRequest::AttachBridge(_) => "attach-bridge",
        }
    }
}

fn response(outcome: Outcome) -> HostResponse {
    let addresses = outcome.addresses.iter().map(ToString::to_string).collect();
    HostResponse { addresses, warnings: outcome.warnings, interface: None }
}

pub(crate) fn ipv4<'a>(cidrs: impl IntoIterator<Item = &'a Cidr>) -> Vec<Ipv4Addr> {
    let addrs = cidrs.into_iter().filter_map(|cidr| match cidr.addr() {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    });
    addrs.collect()
}

fn parse(addresses: &[String]) -> Result<Vec<AddressRequest>, Error> {
    let parsed = addresses
        .iter()
        .map(|text| text.parse().map_err(|e: weave_types::ParseCidrError| Error::Address(e.to_string())));
    parsed.collect()
}

/// The allocator of this daemon's peer, used from another thread.
#[derive(Clone, Debug)]
struct DaemonAllocator {
    control: Control,
    runtime: Handle,
    /// Closed once the caller has gone.
    caller: watch::Receiver<()>,
    /// Whether the end of a container releases its addresses.
    releases: bool,
}

impl DaemonAllocator {
    /// Requests that may wait are cancelled when the caller goes.
    fn call(&self, request: AllocationRequest) -> Result<AllocationResponse, Error> {
        let error = |text: &str| Error::Address(text.to_owned());
        let (answer, result) = oneshot::channel();
        let (control, mut caller) = (self.control.clone(), self.caller.clone());
        self.runtime.spawn(async move {
            let Some(info) = control.allocation() else { return };
            let response = if request.may_wait() {
                tokio::select! {
                    biased;
                    response = control.allocate(info, request) => response,
                    _ = caller.changed() => return,
                }
            } else {
                control.allocate(info, request).await
            };
            let _ = answer.send(response);
        });
        // Without an answer either the caller has gone, who does not see the text, or the daemon is ending.
        let response = result.blocking_recv().map_err(|_| error(ENDING))?;
        match response.ok_or_else(|| error(ENDING))? {
            AllocationResponse::Refused(text) | AllocationResponse::Busy(text) => Err(Error::Address(text)),
            response => Ok(response),
        }
    }
}

impl Allocator for DaemonAllocator {
    fn owned(&self, owner: &str) -> Result<Vec<Cidr>, Error> {
        match self.call(AllocationRequest::ListAll)? {
            AllocationResponse::Owned(all) => {
                Ok(all.into_iter().filter(|(id, _)| id == owner).flat_map(|(_, cidrs)| cidrs).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    fn obtain(&self, owner: &str, request: &AddressRequest) -> Result<Cidr, Error> {
        let (container, is_container) = (owner.to_owned(), self.releases && owner != EXPOSE);
        let response = match request {
            AddressRequest::Fixed(cidr) => {
                let cidr = *cidr;
                self.call(AllocationRequest::Claim { container, cidr, is_container, quiet: false })?
            }
            AddressRequest::Net(subnet) => {
                let subnet = self.subnet(*subnet)?;
                self.call(AllocationRequest::Allocate { container, subnet, is_container })?
            }
        };
        match (response, request) {
            (AllocationResponse::Address(cidr), _) => Ok(cidr),
            (AllocationResponse::Done, AddressRequest::Fixed(cidr)) => Ok(*cidr),
            (AllocationResponse::Failed(text), AddressRequest::Fixed(_)) => {
                Err(Error::Address(format!("Unable to claim: {text}")))
            }
            (AllocationResponse::Failed(text), AddressRequest::Net(_)) => Err(Error::Address(text)),
            _ => Err(Error::Address(format!(
                "the request for {} was cancelled: is {owner} still running?",
                request.describe()
            ))),
        }
    }

    fn look_up(&self, owner: &str, subnet: Option<Cidr>) -> Result<Vec<Cidr>, Error> {
        let subnet = self.subnet(subnet)?;
        match self.call(AllocationRequest::Lookup { container: owner.to_owned(), subnet })? {
            AllocationResponse::Addresses(cidrs) => Ok(cidrs),
            AllocationResponse::Failed(text) => Err(Error::Address(text)),
            _ => Ok(Vec::new()),
        }
    }

    fn release(&self, owner: &str, cidr: Cidr) -> Result<(), Error> {
        // That the owner does not have it is no failure.
        self.call(AllocationRequest::Free { container: owner.to_owned(), addr: cidr.addr() }).map(drop)
    }
}

impl DaemonAllocator {
    fn subnet(&self, subnet: Option<Cidr>) -> Result<Subnet, Error> {
        match (subnet, self.control.allocation()) {
            (Some(cidr), _) => Subnet::new(cidr).map_err(|e| Error::Address(e.to_string())),
            (None, Some(info)) => Ok(info.default_subnet),
            (None, None) => Err(Error::Address(NO_ALLOCATION.reason.to_owned())),
        }
    }
}
