//! What the HTTP side asks of the peer. The peer lives in one task; questions travel over a channel with their answer's
//! way back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, mpsc, oneshot};
use weave_api::Report;
use weave_host::firewall::ExposedAddress;
use weave_ipam::{RequestId, Subnet};
use weave_types::Cidr;

use crate::allocation::{AllocationRequest, AllocationResponse};

use crate::telemetry::metrics::Snapshot;

/// One question.
#[derive(Debug)]
pub enum Request {
    /// Everything there is to know.
    Report(oneshot::Sender<Report>),
    /// The same and more, in figures.
    Metrics(oneshot::Sender<Snapshot>),
    /// Connect to more peers; the texts of those refused come back.
    Connect {
        /// As typed.
        peers: Vec<String>,
        /// Forget all others first.
        replace: bool,
        /// What was refused and why.
        answer: oneshot::Sender<Vec<String>>,
    },
    /// Give this host addresses in the container network: all of them or none.
    Expose {
        /// With their prefix lengths, and whether to masquerade.
        exposed: Vec<ExposedAddress>,
        /// Done, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Take addresses from this host again: all of them or none.
    Hide {
        /// Exactly as they were exposed.
        addresses: Vec<Cidr>,
        /// Done, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// Do not connect to these again.
    Forget {
        /// As typed when they were added.
        peers: Vec<String>,
        /// Done.
        answer: oneshot::Sender<()>,
    },
    /// Something about addresses; only if they are allocated here.
    Allocate {
        /// Names the call in [`Request::Abandon`].
        id: RequestId,
        /// What.
        request: AllocationRequest,
        /// Dropped if the caller has gone.
        answer: oneshot::Sender<AllocationResponse>,
    },
    /// Whoever made this call has gone without having seen the answer.
    Abandon {
        /// Which call.
        id: RequestId,
        /// What it was.
        request: AllocationRequest,
    },
}

/// What callers must know of address allocation.
#[derive(Clone, Debug)]
pub struct AllocationInfo {
    /// Where a call allocates that names no subnet.
    pub default_subnet: Subnet,
    /// Whether the firewall is told what this peer owns (`--no-masq-local`).
    pub no_masq_local: bool,
    /// One for each call that may wait.
    slots: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

impl AllocationInfo {
    /// At most `calls` wait at a time.
    pub fn new(default_subnet: Subnet, calls: usize) -> AllocationInfo {
        let slots = Arc::new(Semaphore::new(calls));
        AllocationInfo { default_subnet, no_masq_local: false, slots, next: Arc::default() }
    }
}

/// The way to the peer. Everything answers `None` once the peer ends.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    allocation: Option<AllocationInfo>,
}

impl Control {
    /// A way and its other end; at most `bound` questions wait.
    pub fn new(bound: usize) -> (Control, mpsc::Receiver<Request>) {
        let (tx, rx) = mpsc::channel(bound);
        (Control { requests: tx, allocation: None }, rx)
    }

    /// The same, to a peer that allocates addresses.
    pub fn with_allocation(self, info: AllocationInfo) -> Control {
        Control { allocation: Some(info), ..self }
    }

    /// What there is to know about address allocation; `None`: it is off.
    pub fn allocation(&self) -> Option<&AllocationInfo> {
        self.allocation.as_ref()
    }

    async fn call<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, result) = oneshot::channel();
        self.requests.send(request(answer)).await.ok()?;
        result.await.ok()
    }

    /// Everything there is to know.
    pub async fn report(&self) -> Option<Report> {
        self.call(Request::Report).await
    }

    /// Figures for Prometheus.
    pub async fn metrics(&self) -> Option<Snapshot> {
        self.call(Request::Metrics).await
    }

    /// Connect to more peers; the texts of those refused.
    pub async fn connect(&self, peers: Vec<String>, replace: bool) -> Option<Vec<String>> {
        self.call(|answer| Request::Connect { peers, replace, answer }).await
    }

    /// Give this host addresses in the container network.
    pub async fn expose(&self, exposed: Vec<ExposedAddress>) -> Option<Result<(), String>> {
        self.call(|answer| Request::Expose { exposed, answer }).await
    }

    /// Take addresses from this host again; one that it does not have is no error.
    pub async fn hide(&self, addresses: Vec<Cidr>) -> Option<Result<(), String>> {
        self.call(|answer| Request::Hide { addresses, answer }).await
    }

    /// Do not connect to these again.
    pub async fn forget(&self, peers: Vec<String>) -> Option<()> {
        self.call(|answer| Request::Forget { peers, answer }).await
    }

    /// Something about addresses. May wait for long; a caller that drops the future gives the call up, and nothing of it
    /// remains. The outer `None`: too many wait already.
    pub async fn allocate(
        &self,
        info: &AllocationInfo,
        request: AllocationRequest,
    ) -> Option<Option<AllocationResponse>> {
        let _slot = match request.may_wait() {
            true => Some(info.slots.clone().try_acquire_owned().ok()?),
            false => None,
        };
        let id = RequestId(info.next.fetch_add(1, Ordering::Relaxed));
        let (answer, result) = oneshot::channel();
        let message = Request::Allocate { id, request: request.clone(), answer };
        if self.requests.send(message).await.is_err() {
            return Some(None);
        }
        let mut call = Call { requests: &self.requests, abandon: Some((id, request)) };
        let response = result.await.ok();
        call.abandon = None;
        Some(response)
    }
}

/// A call that has not been answered yet.
struct Call<'a> {
    requests: &'a mpsc::Sender<Request>,
    abandon: Option<(RequestId, AllocationRequest)>,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let Some((id, request)) = self.abandon.take() else { return };
        let requests = self.requests.clone();
        // There is no waiting here; at the end of the daemon there is no runtime, and nothing to take back.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { requests.send(Request::Abandon { id, request }).await });
        }
    }
}
