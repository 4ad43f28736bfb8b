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
use weave_host::NamespaceId;
use weave_ipam::{
    Answer, Container, Durability, HandOver, Loaded, NO_ID, Persist, ReleaseError, RequestError, RequestId,
    Subnet,
};
use weave_node::Node;
use weave_runtime::ContainerState;
use weave_types::{Cidr, Instant, Now};

use crate::host::{Change, ContainerMonitor, Inventory};
use crate::storage::{AllocationStore, StoreError};
use crate::telemetry::ipam_report;
use crate::telemetry::log::LogLimiter;
use crate::telemetry::printable::printable;

/// Most calls of each [`Source`] that wait at a time.
pub(crate) const MAX_WAITING: usize = 1024;
/// Number of owners of addresses that a refusal names.
const NAMED_OWNERS: usize = 5;
/// Time between two warnings that calls are refused because too many wait.
const FULL_LOG_INTERVAL: Duration = Duration::from_secs(60);
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
    /// The container is in this namespace. Addresses that another namespace uses are not those of this container any more, although
    /// they are recorded under the same name.
    Identify {
        container: Container,
        namespace: NamespaceId,
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
    /// Transfers all addresses to another peer. `force`: even if some are in use on this host.
    Leave {
        force: bool,
    },
}

/// Where a request came from. Calls of one source cannot keep those of the other from waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The control socket.
    Socket,
    Tcp,
}

/// A request that has not been answered.
#[derive(Debug)]
struct Pending {
    request: AllocationRequest,
    source: Source,
    answer: oneshot::Sender<AllocationResponse>,
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
    /// The request would have to wait, and too many wait already.
    Busy(String),
}

#[derive(Debug)]
pub(crate) struct Allocation {
    store: AllocationStore,
    pending: BTreeMap<RequestId, Pending>,
    max_waiting: usize,
    full_log: LogLimiter,
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
    /// The bridge of the containers.
    bridge: String,
}

/// An answer, to be sent after the outputs that it depends on have been carried out.
pub(crate) type Ready = Option<(oneshot::Sender<AllocationResponse>, AllocationResponse)>;

impl Allocation {
    pub(crate) fn new(store: AllocationStore, loaded: &Loaded, bridge: &str) -> Allocation {
        let owned = loaded.owned.iter().map(|(id, record)| (id.clone(), record.cidrs.clone())).collect();
        let mut monitor = ContainerMonitor::default();
        loaded.owned.iter().filter(|(_, r)| r.is_container).for_each(|(id, _)| monitor.add(id));
        Allocation {
            store,
            pending: BTreeMap::new(),
            max_waiting: MAX_WAITING,
            full_log: LogLimiter::new(1, FULL_LOG_INTERVAL),
            requests_by_container: BTreeMap::new(),
            undelivered: BTreeSet::new(),
            delivered: VecDeque::new(),
            owned,
            unsynced: false,
            flush_at: None,
            monitor,
            bridge: bridge.to_owned(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_max_waiting(self, max_waiting: usize) -> Allocation {
        Allocation { max_waiting, ..self }
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
        source: Source,
        answer: oneshot::Sender<AllocationResponse>,
        node: &mut Node,
        now: Now,
    ) -> Ready {
        let response = match request.clone() {
            AllocationRequest::Allocate { container, subnet, is_container } => {
                self.wait(id, Pending { request, source, answer });
                if is_container {
                    self.monitor.add(&container);
                }
                node.with_allocator(now, |a| a.allocate(id, container, subnet, is_container, now));
                return None;
            }
            AllocationRequest::Claim { container, cidr, is_container, quiet } => {
                self.wait(id, Pending { request, source, answer });
                if is_container {
                    self.monitor.add(&container);
                }
                node.with_allocator(now, |a| a.claim(id, container, cidr, is_container, quiet, now));
                return None;
            }
            AllocationRequest::Prime => {
                self.wait(id, Pending { request, source, answer });
                node.with_allocator(now, |a| a.prime(id, now));
                return None;
            }
            AllocationRequest::Identify { container, namespace } => {
                self.identify(&container, namespace, node, now);
                Some(AllocationResponse::Done)
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
            AllocationRequest::Leave { force } => {
                let (count, owners) = (self.owned.values().map(Vec::len).sum::<usize>(), self.owned.keys());
                if count > 0 && !force {
                    let some: Vec<_> = owners.take(NAMED_OWNERS).map(|owner| printable(owner)).collect();
                    Some(AllocationResponse::Refused(format!(
                        "{count} addresses are in use on this host, by {}{}; with force=true they are given away \
                         nevertheless, and other hosts may allocate them again",
                        some.join(", "),
                        if self.owned.len() > some.len() { ", ..." } else { "" }
                    )))
                } else {
                    node.with_allocator(now, |a| AllocationResponse::Left(a.leave(now)))
                }
            }
        };
        // `None` while allocation is off, which no request reaches.
        Some((answer, response?))
    }

    fn wait(&mut self, id: RequestId, pending: Pending) {
        if let Some(container) = pending.request.container() {
            *self.requests_by_container.entry(container.clone()).or_default() += 1;
        }
        self.pending.insert(id, pending);
    }

    fn take(&mut self, id: RequestId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        if let Some(container) = pending.request.container()
            && let Some(count) = self.requests_by_container.get_mut(container)
        {
            *count -= 1;
            if *count == 0 {
                self.requests_by_container.remove(container);
            }
        }
        Some(pending)
    }

    /// Cancels a request that was not answered at once if too many wait already. Called after the outputs of [`Allocation::submit`]
    /// have been carried out.
    pub(crate) fn limit_waiting(&mut self, id: RequestId, node: &mut Node, now: Now) {
        let Some(source) = self.pending.get(&id).filter(|new| self.exceeds_limit(new)).map(|p| p.source)
        else {
            return;
        };
        let Some(pending) = self.take(id) else { return };
        let text = format!("too many calls wait already: {}; try again later", self.waiting_calls(source).0);
        if let Some(left_out) = self.full_log.admit(now.mono) {
            let container = pending.request.container().map_or("prime", String::as_str);
            tracing::warn!("refused a call for {} and {left_out} before it: {text}", printable(container));
        }
        let _ = pending.answer.send(AllocationResponse::Busy(text));
        node.with_allocator(now, |a| a.cancel(id, now));
    }

    /// Answers all requests that wait, because no address may be given out for this reason.
    pub(crate) fn refuse_waiting(&mut self, why: &str, node: &mut Node, now: Now) {
        let waiting: Vec<RequestId> = self.pending.keys().copied().collect();
        for id in waiting {
            let Some(pending) = self.take(id) else { continue };
            let _ = pending.answer.send(AllocationResponse::Failed(why.to_owned()));
            node.with_allocator(now, |a| a.cancel(id, now));
        }
    }

    /// Whether more calls wait than one source, one subnet or one container may have.
    fn exceeds_limit(&self, new: &Pending) -> bool {
        let count = |like: &dyn Fn(&AllocationRequest) -> bool| {
            self.pending.values().filter(|p| p.source == new.source && like(&p.request)).count()
        };
        let request = &new.request;
        count(&|_| true) > self.max_waiting
            || count(&|r| r.subnet() == request.subnet()) > self.max_of_subnet()
            || request.container().filter(|container| *container != NO_ID).is_some_and(|container| {
                count(&|r| r.container() == Some(container)) > self.max_waiting.div_ceil(16)
            })
    }

    fn max_of_subnet(&self) -> usize {
        (self.max_waiting * 3).div_ceil(4)
    }

    /// The calls of a source that wait, and whether they have reached a limit.
    fn waiting_calls(&self, source: Source) -> (String, bool) {
        let mut by_subnet: BTreeMap<Option<Cidr>, usize> = BTreeMap::new();
        for pending in self.pending.values().filter(|p| p.source == source) {
            *by_subnet.entry(pending.request.subnet()).or_default() += 1;
        }
        let total: usize = by_subnet.values().sum();
        let most = by_subnet.into_iter().max_by_key(|(_, count)| *count);
        let (subnet, count) = most.unwrap_or_default();
        let what = subnet.map_or_else(|| "particular addresses".to_owned(), |s| format!("an address of {s}"));
        let how = match source {
            Source::Socket => "on the control socket",
            Source::Tcp => "over TCP",
        };
        let text = format!("{total} {how}, {count} of them for {what}");
        (text, total >= self.max_waiting || count >= self.max_of_subnet())
    }

    /// For each source whose calls have reached a limit, a text for the list of what calls wait for.
    pub(crate) fn full(&self) -> Vec<String> {
        let sources = [Source::Socket, Source::Tcp].map(|source| self.waiting_calls(source));
        let full = sources.into_iter().filter(|(_, full)| *full);
        full.map(|(calls, _)| {
            format!("other calls to end: {calls} wait already, and further ones are refused")
        })
        .collect()
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
        let Some(Pending { request, answer, .. }) = self.take(id) else { return };
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
            if after.is_empty() {
                self.monitor.forget_docker(container);
            } else {
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
            let owned = |container: &str| self.owned.get(container).cloned().unwrap_or_default();
            let changes = self.monitor.check(now, owned, || scan(&self.bridge));
            self.monitor.retain(|container| self.owned.contains_key(container));
            for change in changes {
                match change {
                    Change::Stopped(container) => {
                        node.with_allocator(now, |a| a.handle_container_died(&container, now));
                    }
                    Change::Removed(container) => {
                        node.with_allocator(now, |a| a.handle_container_destroyed(&container, now));
                    }
                    Change::Started(container) => {
                        node.with_allocator(now, |a| a.handle_container_started(&container, now));
                    }
                    Change::Renamed { from, to, cidrs } => self.reassign(&from, &to, &cidrs, node, now),
                }
            }
        }
    }

    fn reassign(&mut self, from: &str, to: &str, cidrs: &[Cidr], node: &mut Node, now: Now) {
        let list = cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        tracing::info!(
            "{list} stays in use although {from} does not lead there any more: recorded as owned by {to}"
        );
        node.with_allocator(now, |a| a.reassign(from, to, cidrs, now));
        self.monitor.add(to);
    }

    /// What belongs to another namespace of the same name is recorded under another name, and what belongs to this namespace under
    /// this one.
    fn identify(&mut self, container: &str, namespace: NamespaceId, node: &mut Node, now: Now) {
        for other in self.monitor.containers_in(namespace) {
            if other != container
                && let Some(cidrs) = self.owned.get(&other).cloned()
            {
                self.reassign(&other, container, &cidrs, node, now);
            }
        }
        if !self.monitor.move_to(container, namespace) {
            return;
        }
        let Some(cidrs) = self.owned.get(container).cloned() else { return };
        let Some(inventory) = scan(&self.bridge) else { return };
        for found in inventory.in_use().iter().filter(|found| found.namespace != Some(namespace)) {
            let used = cidrs.iter().filter(|cidr| found.cidrs.iter().any(|c| c.addr() == cidr.addr()));
            let used: Vec<Cidr> = used.copied().collect();
            if !used.is_empty() && found.container != container {
                self.reassign(container, &found.container, &used, node, now);
                return;
            }
        }
    }

    /// The monitored containers of Docker.
    pub(crate) fn docker_containers(&self) -> Vec<Container> {
        self.monitor.docker_containers()
    }

    /// Applies reports of Docker about its containers.
    pub(crate) fn set_docker_states(&mut self, states: Vec<(Container, ContainerState)>) {
        self.monitor.set_docker_states(states);
    }

    /// Owners of addresses that cannot be found any more, for the status pages.
    pub(crate) fn lost_owners(&self) -> Vec<String> {
        let lines = self.monitor.lost().filter_map(|(container, what)| {
            let cidrs = self.owned.get(container)?.iter().map(ToString::to_string).collect::<Vec<_>>();
            Some(printable(&format!(
                "{} of {container}: {what}; 'weave detach {} {container}' releases what is not in use",
                cidrs.join(" "),
                cidrs.join(" ")
            )))
        });
        lines.collect()
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

    /// `None` for a request that is not for any address of a subnet.
    fn subnet(&self) -> Option<Cidr> {
        match self {
            AllocationRequest::Allocate { subnet, .. } => Some(subnet.cidr()),
            _ => None,
        }
    }
}

/// The addresses in use on this host. `None` if they cannot be found out.
fn scan(bridge: &str) -> Option<Inventory> {
    Inventory::take(bridge, None)
        .inspect_err(|e| tracing::warn!("cannot find addresses in use on this host, none is released: {e}"))
        .ok()
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
