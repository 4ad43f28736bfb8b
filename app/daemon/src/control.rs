//! Requests of the HTTP server to the task that owns the node. They travel over a channel, each with a channel for its
//! answer.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{mpsc, oneshot};
use weave_api::{NetworkView, Report};
use weave_dns::{Entry, HostName};
use weave_host::firewall::ExposedAddress;
use weave_ipam::{Container, RequestId, Subnet};
use weave_overlay::forward::FrameWatch;
use weave_runtime::{ContainerState, Docker};
use weave_trace::{Flow, Hop, Message};
use weave_types::{Cidr, MacAddr, PeerName};

use crate::allocation::{AllocationRequest, AllocationResponse, Source};
use crate::host::ListenAddresses;
use crate::names::NameChange;
use crate::telemetry::metrics::Snapshot;
use crate::trace_command::{TraceCommand, TracePlan};

#[derive(Debug)]
pub enum Request {
    Report(oneshot::Sender<Report>),
    Metrics(oneshot::Sender<Snapshot>),
    NetworkView(oneshot::Sender<NetworkView>),
    /// Adds peers to connect to, or replaces the list. The answer is the error texts of those that were refused.
    Connect {
        peers: Vec<String>,
        replace: bool,
        answer: oneshot::Sender<Vec<String>>,
    },
    /// Exposes all of the addresses, or none. The answer is what keeps packets from passing nevertheless.
    Expose {
        exposed: Vec<ExposedAddress>,
        answer: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Hides all of the addresses, or none.
    Hide {
        addresses: Vec<Cidr>,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Removes peers from the list of those to connect to; `peers` as they were added.
    Forget {
        peers: Vec<String>,
        answer: oneshot::Sender<()>,
    },
    /// Only sent if addresses are allocated. Without a client `answer` is dropped.
    Allocate {
        id: RequestId,
        request: AllocationRequest,
        source: Source,
        answer: oneshot::Sender<AllocationResponse>,
    },
    /// Only sent if names are served.
    ChangeNames(NameChange, oneshot::Sender<()>),
    /// All names that this peer knows, in the order of 2.8.1's list.
    Names(oneshot::Sender<Vec<Entry>>),
    /// The containers of this host that are known to have a name, or to have none.
    NamedContainers(oneshot::Sender<Vec<Container>>),
    /// The containers of Docker whose states are to be reported.
    DockerContainers(oneshot::Sender<Vec<Container>>),
    /// A step of `weave trace`.
    Trace(TraceCommand),
    /// The next end of the daemon is not a restart.
    Leave(oneshot::Sender<()>),
    /// New states of containers of Docker.
    DockerStates(Vec<(Container, ContainerState)>),
    /// The client of this call disconnected before it read the answer.
    Abandon {
        id: RequestId,
        request: AllocationRequest,
    },
}

/// Address allocation as HTTP routes need it.
#[derive(Clone, Debug)]
pub struct AllocationInfo {
    /// Used by calls that name no subnet.
    pub default_subnet: Subnet,
    /// Whether the firewall follows the networks that this peer owns (`--no-masq-local`).
    pub no_masq_local: bool,
    next: Arc<AtomicU64>,
}

impl AllocationInfo {
    pub fn new(default_subnet: Subnet) -> AllocationInfo {
        AllocationInfo { default_subnet, no_masq_local: false, next: Arc::default() }
    }
}

/// Names as HTTP routes and changes of containers need them.
#[derive(Clone, Debug)]
pub struct DnsInfo {
    /// Our domain.
    pub domain: HostName,
    /// Where the server listens.
    pub listen: ListenAddresses,
    /// Docker of this host, which knows the containers that run.
    pub docker: Option<Docker>,
}

/// Sends requests to the task that owns the node. Every method returns `None` once that task has ended.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    allocation: Option<AllocationInfo>,
    dns: Option<DnsInfo>,
    proxy: Option<Arc<[String]>>,
    source: Source,
}

impl Control {
    /// At most `bound` requests wait in the channel.
    pub fn new(bound: usize) -> (Control, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel(bound);
        (Control { requests: tx, allocation: None, dns: None, proxy: None, source: Source::Socket }, rx)
    }

    pub fn with_allocation(self, info: AllocationInfo) -> Control {
        Control { allocation: Some(info), ..self }
    }

    pub fn with_dns(self, info: DnsInfo) -> Control {
        Control { dns: Some(info), ..self }
    }

    /// Sets where the Docker API proxy listens.
    pub(crate) fn with_proxy(self, addresses: Vec<String>) -> Control {
        Control { proxy: Some(addresses.into()), ..self }
    }

    /// Sets where the requests come from.
    pub(crate) fn with_source(self, source: Source) -> Control {
        Control { source, ..self }
    }

    /// `None` while address allocation is off.
    pub fn allocation(&self) -> Option<&AllocationInfo> {
        self.allocation.as_ref()
    }

    /// `None` if names are not served.
    pub fn dns(&self) -> Option<&DnsInfo> {
        self.dns.as_ref()
    }

    /// Where the Docker API proxy listens; `None` while it is off.
    pub fn proxy(&self) -> Option<&[String]> {
        self.proxy.as_deref()
    }

    /// Whether the daemon is ending.
    pub(crate) fn has_ended(&self) -> bool {
        self.requests.is_closed()
    }

    async fn call<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, result) = oneshot::channel();
        self.requests.send(request(answer)).await.ok()?;
        result.await.ok()
    }

    pub async fn report(&self) -> Option<Report> {
        self.call(Request::Report).await
    }

    pub async fn metrics(&self) -> Option<Snapshot> {
        self.call(Request::Metrics).await
    }

    /// Measures the paths to the neighbours as well; the results are in later views.
    pub async fn network_view(&self) -> Option<NetworkView> {
        self.call(Request::NetworkView).await
    }

    /// Returns the error texts of peers that were refused.
    pub async fn connect(&self, peers: Vec<String>, replace: bool) -> Option<Vec<String>> {
        self.call(|answer| Request::Connect { peers, replace, answer }).await
    }

    pub async fn expose(&self, exposed: Vec<ExposedAddress>) -> Option<Result<Vec<String>, String>> {
        self.call(|answer| Request::Expose { exposed, answer }).await
    }

    /// An address that is not exposed is no error.
    pub async fn hide(&self, addresses: Vec<Cidr>) -> Option<Result<(), String>> {
        self.call(|answer| Request::Hide { addresses, answer }).await
    }

    /// [`Control::expose`] for a thread that may block.
    pub(crate) fn expose_blocking(
        &self,
        exposed: Vec<ExposedAddress>,
    ) -> Option<Result<Vec<String>, String>> {
        self.call_blocking(|answer| Request::Expose { exposed, answer })
    }

    /// [`Control::hide`] for a thread that may block.
    pub(crate) fn hide_blocking(&self, addresses: Vec<Cidr>) -> Option<Result<(), String>> {
        self.call_blocking(|answer| Request::Hide { addresses, answer })
    }

    pub async fn names(&self) -> Option<Vec<Entry>> {
        self.call(Request::Names).await
    }

    pub async fn change_names(&self, change: NameChange) -> Option<()> {
        self.call(|answer| Request::ChangeNames(change, answer)).await
    }

    /// [`Control::change_names`] for a thread that may block.
    pub(crate) fn change_names_blocking(&self, change: NameChange) -> Option<()> {
        self.call_blocking(|answer| Request::ChangeNames(change, answer))
    }

    pub(crate) fn named_containers_blocking(&self) -> Option<Vec<Container>> {
        self.call_blocking(Request::NamedContainers)
    }

    pub(crate) fn docker_containers_blocking(&self) -> Option<Vec<Container>> {
        self.call_blocking(Request::DockerContainers)
    }

    pub(crate) fn set_docker_states_blocking(&self, states: Vec<(Container, ContainerState)>) -> Option<()> {
        self.requests.blocking_send(Request::DockerStates(states)).ok()
    }

    pub(crate) fn trace_hop_blocking(&self, flow: Flow, toward: PeerName) -> Option<Hop> {
        self.call_blocking(|answer| Request::Trace(TraceCommand::Hop(flow, toward, answer)))
    }

    pub(crate) fn trace_plan_blocking(&self, to: Ipv4Addr, mac: Option<MacAddr>) -> Option<TracePlan> {
        self.call_blocking(|answer| Request::Trace(TraceCommand::Plan(to, mac, answer)))
    }

    pub(crate) fn send_trace_blocking(&self, to: PeerName, message: Message) -> Option<()> {
        self.requests.blocking_send(Request::Trace(TraceCommand::Send(to, message))).ok()
    }

    pub(crate) fn set_frame_watches_blocking(&self, watches: Vec<Arc<dyn FrameWatch>>) -> Option<()> {
        self.call_blocking(|answer| Request::Trace(TraceCommand::SetWatches(watches, answer)))
    }

    pub(crate) fn peer_labels_blocking(&self, peers: Vec<PeerName>) -> Option<BTreeMap<PeerName, String>> {
        self.call_blocking(|answer| Request::Trace(TraceCommand::Labels(peers, answer)))
    }

    fn call_blocking<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, result) = oneshot::channel();
        self.requests.blocking_send(request(answer)).ok()?;
        result.blocking_recv().ok()
    }

    /// The peer is about to leave the network. Its addresses are given away by `AllocationRequest::Leave`.
    pub async fn leave(&self) -> Option<()> {
        self.call(Request::Leave).await
    }

    pub async fn forget(&self, peers: Vec<String>) -> Option<()> {
        self.call(|answer| Request::Forget { peers, answer }).await
    }

    /// May wait for a long time. Dropping the future cancels the request and releases an address that was allocated for it.
    pub async fn allocate(
        &self,
        info: &AllocationInfo,
        request: AllocationRequest,
    ) -> Option<AllocationResponse> {
        let id = RequestId(info.next.fetch_add(1, Ordering::Relaxed));
        let (answer, result) = oneshot::channel();
        let message = Request::Allocate { id, request: request.clone(), source: self.source, answer };
        self.requests.send(message).await.ok()?;
        let mut call = Call { requests: &self.requests, abandon: Some((id, request)) };
        let response = result.await.ok();
        call.abandon = None;
        response
    }
}

/// An unanswered call. Dropping it abandons the request.
struct Call<'a> {
    requests: &'a mpsc::Sender<Request>,
    abandon: Option<(RequestId, AllocationRequest)>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Some((id, request)) = self.abandon.take() else { return };
        let requests = self.requests.clone();
        // `drop` cannot wait. At the end of the daemon there is no runtime any more, and the request need not be abandoned.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { requests.send(Request::Abandon { id, request }).await });
        }
    }
}
