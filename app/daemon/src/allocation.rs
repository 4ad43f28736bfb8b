//! Address allocation as the daemon sees it: pending requests, storage, and delivery of the answers.
//!
//! ```text
//!  HTTP call -- AllocationRequest --> submit --> allocator of the node -- Done --> done -- AllocationResponse --> HTTP call
//!  client disconnects --------------> abandon --> cancel | free           ^
//!                                                              stored first: AllocationStore
//! ```
//!
//! When a client disconnects, its request is cancelled. If the address had been allocated just then, and the answer was not
//! delivered, the address is released.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::oneshot;
use weave_ipam::{
    Answer, Container, Durability, HandOver, Loaded, NO_ID, Persist, ReleaseError, RequestError, RequestId,
    Subnet,
};
use weave_node::Node;
use weave_types::{Cidr, Instant, Now};

use crate::host::{Change, ContainerMonitor};
use crate::storage::{AllocationStore, StoreError};
use crate::telemetry::ipam_report;

/// Most calls that wait at a time.
pub(crate) const MAX_WAITING: usize = 1024;
/// Longest time between a change of a container's addresses and its sync to disk.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// Time until a failed write is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Number of delivered answers that are remembered, for clients that disconnect before they read the answer.
const MAX_DELIVERED: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationRequest {
    /// `is_container`: the address is released when the container ends.
    Allocate {
        container: Container,
        subnet: Subnet,
        is_container: bool,
    },
    /// `quiet`: succeeds at once while there is no ring, and the claim is decided later.
    Claim {
        container: Container,
        cidr: Cidr,
        is_container: bool,
        quiet: bool,
    },
    /// Waits until there is a ring.
    Prime,
    Lookup {
        container: Container,
        subnet: Subnet,
    },
    ListAll,
    /// Explains why requests wait.
    ExplainWaiting,
    Free {
        container: Container,
        addr: IpAddr,
    },
    /// Releases all addresses of a container.
    Delete {
        container: Container,
    },
    /// Takes over the addresses of a peer that does not come back. `peer` is a name or nickname. `force`: even if the peer
    /// can be reached.
    TakeOver {
        peer: String,
        force: bool,
    },
    /// Transfers all addresses to another peer.
    Leave,
}

impl AllocationRequest {
    /// Whether the answer depends on other peers.
    pub fn may_wait(&self) -> bool {
        matches!(
            self,
            AllocationRequest::Allocate { .. } | AllocationRequest::Claim { .. } | AllocationRequest::Prime
        )
    }
}

/// Answer to an [`AllocationRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationResponse {
    Address(Cidr),
    Done,
    Cancelled,
    /// Addresses of one container.
    Addresses(Vec<Cidr>),
    /// Addresses of all containers.
    Owned(Vec<(Container, Vec<Cidr>)>),
    Explanation(String),
    /// Number of addresses that were taken over.
    TakenOver(u32),
    Left(HandOver),
    /// The request cannot be fulfilled; text of 2.8.1.
    Failed(String),
    /// The request would do harm, and is not forced.
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Allocation {
    store: AllocationStore,
    pending: BTreeMap<RequestId, (AllocationRequest, oneshot::Sender<AllocationResponse>)>,
    /// Number of pending requests of each container.
    requests_by_container: BTreeMap<Container, usize>,
    /// Addresses that were allocated for a pending request and whose answer has not been delivered.
    undelivered: BTreeSet<(Container, Cidr)>,
    /// New addresses whose answer was delivered, latest last.
    delivered: VecDeque<(RequestId, Container, Cidr)>,
    /// Addresses of each container, as stored.
    owned: BTreeMap<Container, Vec<Cidr>>,
    /// A stored change must be synced before the next output is carried out.
    unsynced: bool,
    flush_at: Option<Instant>,
    monitor: ContainerMonitor,
}

/// An answer, to be sent after the outputs that it depends on have been carried out.
pub(crate) type Ready = Option<(oneshot::Sender<AllocationResponse>, AllocationResponse)>;

impl Allocation {
    pub(crate) fn new(store: AllocationStore, loaded: &Loaded) -> Allocation {
        let owned = loaded.owned.iter().map(|(id, record)| (id.clone(), record.cidrs.clone())).collect();
        let mut monitor = ContainerMonitor::default();
        loaded.owned.iter().filter(|(_, r)| r.is_container).for_each(|(id, _)| monitor.add(id));
        Allocation {
            store,
            pending: BTreeMap::new(),
            requests_by_container: BTreeMap::new(),
            undelivered: BTreeSet::new(),
            delivered: VecDeque::new(),
            owned,
            unsynced: false,
            flush_at: None,
            monitor,
        }
    }

    /// Creates the store if there is none.
    pub(crate) fn begin(&mut self, now: Now) {
        if self.store.is_new()
            && let Err(e) = self.store.replace(&Loaded::default())
        {
            log_not_saved(&e);
            self.flush_at = Some(now.mono + RETRY_INTERVAL);
        }
    }

    /// Handles a request. The caller carries out the node's outputs and then sends the answer that is returned here; without
    /// one, [`Allocation::done`] sends it later.
    pub(crate) fn submit(
        &mut self,
        id: RequestId,
        request: AllocationRequest,
        answer: oneshot::Sender<AllocationResponse>,
        node: &mut Node,
        now: Now,
    ) -> Ready {
        let response = match request.clone() {
            AllocationRequest::Allocate { container, subnet, is_container } => {
                self.wait(id, request, answer);
                if is_container {
                    self.monitor.add(&container);
                }
                node.with_allocator(now, |a| a.allocate(id, container, subnet, is_container, now));
                return None;
            }
            AllocationRequest::Claim { container, cidr, is_container, quiet } => {
                self.wait(id, request, answer);
                if is_container {
                    self.monitor.add(&container);
                }
                node.with_allocator(now, |a| a.claim(id, container, cidr, is_container, quiet, now));
                return None;
            }
            AllocationRequest::Prime => {
                self.wait(id, request, answer);
                node.with_allocator(now, |a| a.prime(id, now));
                return None;
            }
            AllocationRequest::Lookup { container, subnet } => {
                node.with_allocator(now, |a| AllocationResponse::Addresses(a.lookup(&container, subnet)))
            }
            AllocationRequest::ListAll => node.with_allocator(now, |a| {
                let owned = a.owned().iter();
                AllocationResponse::Owned(
                    owned.map(|(id, record)| (id.clone(), record.cidrs.clone())).collect(),
                )
            }),
            AllocationRequest::ExplainWaiting => node.with_allocator(now, |a| {
                AllocationResponse::Explanation(ipam_report::join_lines(&ipam_report::waiting(
                    &a.status(now),
                )))
            }),
            AllocationRequest::Free { container, addr } => {
                node.with_allocator(now, |a| released(a.free(&container, addr, now)))
            }
            AllocationRequest::Delete { container } => {
                node.with_allocator(now, |a| released(a.delete(&container, now)))
            }
            AllocationRequest::TakeOver { peer, force } => {
                node.with_allocator(now, |a| match a.remove_peer(&peer, force, now) {
                    Ok(count) => AllocationResponse::TakenOver(count),
                    Err(e) => AllocationResponse::Refused(e.to_string()),
                })
            }
            AllocationRequest::Leave => node.with_allocator(now, |a| AllocationResponse::Left(a.leave(now))),
        };
        // `None` while allocation is off, which no request reaches.
        Some((answer, response?))
    }

    fn wait(
        &mut self,
        id: RequestId,
        request: AllocationRequest,
        answer: oneshot::Sender<AllocationResponse>,
    ) {
        if let Some(container) = request.container() {
            *self.requests_by_container.entry(container.clone()).or_default() += 1;
        }
        self.pending.insert(id, (request, answer));
    }

    fn take(&mut self, id: RequestId) -> Option<(AllocationRequest, oneshot::Sender<AllocationResponse>)> {
        let (request, answer) = self.pending.remove(&id)?;
        if let Some(container) = request.container()
            && let Some(count) = self.requests_by_container.get_mut(container)
        {
            *count -= 1;
            if *count == 0 {
                self.requests_by_container.remove(container);
            }
        }
        Some((request, answer))
    }

    /// Delivers an answer of the allocator.
    pub(crate) fn done(
        &mut self,
        id: RequestId,
        result: Result<Answer, RequestError>,
        node: &mut Node,
        now: Now,
    ) {
        // An abandoned request is no longer pending.
        let Some((request, answer)) = self.take(id) else { return };
        let obtained = match (&request, &result) {
            (AllocationRequest::Allocate { container, .. }, Ok(Answer::Allocated(cidr))) => {
                Some((owner_key(container, cidr), *cidr))
            }
            (AllocationRequest::Claim { container, cidr, .. }, Ok(_)) => {
                Some((owner_key(container, cidr), *cidr))
            }
            _ => None,
        };
        let response = match result {
            Ok(Answer::Allocated(cidr)) => AllocationResponse::Address(cidr),
            Ok(Answer::Claimed { .. } | Answer::Primed) => AllocationResponse::Done,
            Err(RequestError::Cancelled(_)) => AllocationResponse::Cancelled,
            Err(error) => AllocationResponse::Failed(error.to_string()),
        };
        let delivered = answer.send(response).is_ok();
        let Some(new) = obtained.filter(|o| self.undelivered.contains(o)) else { return };
        if delivered {
            self.undelivered.remove(&new);
            self.delivered.push_back((id, new.0, new.1));
            if self.delivered.len() > MAX_DELIVERED {
                self.delivered.pop_front();
            }
        } else {
            self.release_unless_requested(&request, new, node, now);
        }
    }

    /// The client of this request disconnected before it read the answer.
    pub(crate) fn abandon(&mut self, id: RequestId, request: &AllocationRequest, node: &mut Node, now: Now) {
        if self.take(id).is_some() {
            node.with_allocator(now, |a| a.cancel(id, now));
            return;
        }
        // The answer was sent, but not read. If the address was allocated for this request, no client knows it.
        let Some(at) = self.delivered.iter().position(|(request, ..)| *request == id) else { return };
        if let Some((_, container, cidr)) = self.delivered.remove(at) {
            self.release_unless_requested(request, (container, cidr), node, now);
        }
    }

    fn release_unless_requested(
        &mut self,
        request: &AllocationRequest,
        new: (Container, Cidr),
        node: &mut Node,
        now: Now,
    ) {
        // Another request of the same container gets the same address, and its delivery decides.
        if request.container().is_some_and(|c| self.requests_by_container.contains_key(c)) {
            self.undelivered.insert(new);
            return;
        }
        self.undelivered.remove(&new);
        let (container, cidr) = new;
        node.with_allocator(now, |a| drop(a.free(&container, cidr.addr(), now)));
    }

    /// Stores a change. A failing disk must not stop the network, so an error is logged and the write is tried again.
    pub(crate) fn persist(&mut self, persist: &Persist, now: Now) {
        if let Persist::Owned { container, record } = persist {
            let before = self.owned.remove(container).unwrap_or_default();
            let after = record.as_ref().map(|r| r.cidrs.clone()).unwrap_or_default();
            let asked = self.requests_by_container.contains_key(container)
                || self.requests_by_container.contains_key(NO_ID);
            for cidr in after.iter().filter(|c| asked && !before.contains(c)) {
                self.undelivered.insert((container.clone(), *cidr));
            }
            for cidr in before.into_iter().filter(|c| !after.contains(c)) {
                self.undelivered.remove(&(container.clone(), cidr));
            }
            if record.as_ref().is_some_and(|r| r.is_container) {
                self.monitor.add(container);
            }
            if !after.is_empty() {
                self.owned.insert(container.clone(), after);
            }
        }
        if let Err(e) = self.store.store(persist) {
            log_not_saved(&e);
            self.flush_at.get_or_insert(now.mono + RETRY_INTERVAL);
        }
        if persist.durability() == Durability::Synced {
            self.unsynced = true;
        } else {
            self.flush_at.get_or_insert(now.mono + FLUSH_INTERVAL);
        }
    }

    /// Syncs stored changes. Called before an output is carried out that may depend on them.
    pub(crate) fn sync_pending(&mut self, now: Now) {
        if !self.sync() {
            self.flush_at.get_or_insert(now.mono + RETRY_INTERVAL);
        }
    }

    fn sync(&mut self) -> bool {
        let synced = if std::mem::take(&mut self.unsynced) { self.store.sync() } else { Ok(()) };
        synced.inspect_err(log_not_saved).is_ok()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.flush_at, self.monitor.poll_timeout()].into_iter().flatten().min()
    }

    pub(crate) fn handle_timeout(&mut self, node: &mut Node, now: Now) {
        if self.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush_at = None;
            if !self.store.write_failed() {
                self.store.flush_in_background();
            } else if let Err(e) = self.store.retry_write() {
                tracing::debug!("cannot save allocator state, retrying: {e}");
                self.flush_at = Some(now.mono + RETRY_INTERVAL);
            } else {
                tracing::info!("saved allocator state after an earlier write failure");
            }
        }
        if self.monitor.is_due(now) {
            let changes = self.monitor.check(now);
            self.monitor.retain(|container| self.owned.contains_key(container));
            for change in changes {
                node.with_allocator(now, |a| match &change {
                    Change::Stopped(container) => a.handle_container_died(container, now),
                    Change::Started(container) => a.handle_container_started(container, now),
                });
            }
        }
    }

    /// Syncs everything at the end of the daemon.
    pub(crate) fn close(&mut self) {
        self.unsynced = true;
        self.sync();
    }
}

impl AllocationRequest {
    fn container(&self) -> Option<&Container> {
        match self {
            AllocationRequest::Allocate { container, .. } | AllocationRequest::Claim { container, .. } => {
                Some(container)
            }
            _ => None,
        }
    }
}

/// Networks of the range that this peer owns; empty while address allocation is off or there is no ring.
pub(crate) fn own_networks(node: &Node) -> Vec<Cidr> {
    node.allocator().map(|allocator| allocator.ring().networks_of(node.name())).unwrap_or_default()
}

fn log_not_saved(e: &StoreError) {
    tracing::error!("cannot save allocator state, a restart may allocate addresses twice: {e}");
}

fn released(result: Result<(), ReleaseError>) -> AllocationResponse {
    match result {
        Ok(()) => AllocationResponse::Done,
        Err(e) => AllocationResponse::Failed(e.to_string()),
    }
}

/// The name under which an address is recorded: requests without a container are recorded by address.
fn owner_key(container: &str, cidr: &Cidr) -> Container {
    if container == NO_ID { cidr.addr().to_string() } else { container.to_owned() }
}
