//! Address allocation as the daemon sees it: who asked for what, what is stored, and who is told.
//!
//! ```text
//!  HTTP call --AllocationRequest--> submit ---> node's allocator ---Done--> sync_pending --AllocationResponse--> HTTP call
//!     gone  -------> abandon --->   cancel | free              ^
//!                                                   stored first: AllocationStore
//! ```
//!
//! A caller that goes leaves nothing behind: its request is cancelled, and an address that was found for it just then and that
//! nobody was told of is released.

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
use crate::storage::AllocationStore;
use crate::telemetry::ipam_report;

/// Most calls that wait at a time.
pub(crate) const MAX_WAITING: usize = 1024;
/// Records of addresses are on the disk after this time.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);
/// What could not be written is tried again after this time.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Deliveries remembered, for callers that go before they have read the answer.
const MAX_DELIVERED: usize = 4096;

/// What a caller asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationRequest {
    /// An address of a subnet.
    Allocate {
        /// For whom.
        container: Container,
        /// Where.
        subnet: Subnet,
        /// Its death releases the address.
        is_container: bool,
    },
    /// A certain address.
    Claim {
        /// For whom.
        container: Container,
        /// Which.
        cidr: Cidr,
        /// Its death releases the address.
        is_container: bool,
        /// Say yes if nothing is known yet.
        quiet: bool,
    },
    /// Wait for the ring.
    Prime,
    /// Which addresses a container has in a subnet.
    Lookup {
        /// Who.
        container: Container,
        /// Where.
        subnet: Subnet,
    },
    /// All addresses.
    All,
    /// Why calls wait, for people.
    Waiting,
    /// Release one address.
    Free {
        /// Whose.
        container: Container,
        /// Which.
        addr: IpAddr,
    },
    /// Release all addresses of a container.
    Delete {
        /// Whose.
        container: Container,
    },
    /// Take over what a peer has that is gone for good.
    TakeOver {
        /// Name or nickname.
        peer: String,
        /// Even if it can be reached.
        force: bool,
    },
    /// Leave for good.
    Leave,
}

impl AllocationRequest {
    /// Whether the answer may take long.
    pub fn may_wait(&self) -> bool {
        matches!(
            self,
            AllocationRequest::Allocate { .. } | AllocationRequest::Claim { .. } | AllocationRequest::Prime
        )
    }
}

/// What a caller is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllocationResponse {
    /// Its address.
    Address(Cidr),
    /// It is so.
    Done,
    /// The request has been given up.
    Cancelled,
    /// Addresses of one container.
    Addresses(Vec<Cidr>),
    /// Addresses of all.
    Owned(Vec<(Container, Vec<Cidr>)>),
    /// Lines for people.
    Lines(String),
    /// So many addresses were taken over.
    TakenOver(u32),
    /// What became of our addresses.
    Left(HandOver),
    /// It cannot be, in the words of 2.8.1.
    Failed(String),
    /// It could be, but should not.
    Refused(String),
}

/// Calls under way, and the store.
#[derive(Debug)]
pub(crate) struct Allocation {
    store: AllocationStore,
    pending: BTreeMap<RequestId, (AllocationRequest, oneshot::Sender<AllocationResponse>)>,
    /// How many of those are for each container.
    requests_by_container: BTreeMap<Container, usize>,
    /// Found for somebody who asked, but nobody was told yet.
    undelivered: BTreeSet<(Container, Cidr)>,
    /// Who was told of what was new, latest last.
    delivered: VecDeque<(RequestId, Container, Cidr)>,
    /// What each container has, as stored.
    owned: BTreeMap<Container, Vec<Cidr>>,
    /// Something must be on the disk before anything else is done.
    unsynced: bool,
    flush_at: Option<Instant>,
    monitor: ContainerMonitor,
}

/// An answer that is ready when all that it depends on has been done.
pub(crate) type Ready = Option<(oneshot::Sender<AllocationResponse>, AllocationResponse)>;

impl Allocation {
    /// With a store, and what is in it.
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

    /// The peer runs from now on: there is a store, even if nothing is in it yet.
    pub(crate) fn begin(&mut self, now: Now) {
        if self.store.is_new()
            && let Err(e) = self.store.replace(&Loaded::default())
        {
            tracing::error!("addresses are not saved, a restart may give them twice: {e}");
            self.flush_at = Some(now.mono + RETRY_INTERVAL);
        }
    }

    /// A call has come. What comes of it is done first; then the answer is given, here or by [`Allocation::done`].
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
            AllocationRequest::All => node.with_allocator(now, |a| {
                let owned = a.owned().iter();
                AllocationResponse::Owned(
                    owned.map(|(id, record)| (id.clone(), record.cidrs.clone())).collect(),
                )
            }),
            AllocationRequest::Waiting => node.with_allocator(now, |a| {
                AllocationResponse::Lines(ipam_report::lines(&ipam_report::waiting(&a.status(now))))
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

    /// The allocator has an answer.
    pub(crate) fn done(
        &mut self,
        id: RequestId,
        result: Result<Answer, RequestError>,
        node: &mut Node,
        now: Now,
    ) {
        // One that was given up is cancelled afterwards.
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
        let told = answer.send(response).is_ok();
        let Some(new) = obtained.filter(|o| self.undelivered.contains(o)) else { return };
        if told {
            self.undelivered.remove(&new);
            self.delivered.push_back((id, new.0, new.1));
            if self.delivered.len() > MAX_DELIVERED {
                self.delivered.pop_front();
            }
        } else {
            self.release_unless_requested(&request, new, node, now);
        }
    }

    /// Whoever made this call has gone without having seen the answer.
    pub(crate) fn abandon(&mut self, id: RequestId, request: &AllocationRequest, node: &mut Node, now: Now) {
        if self.take(id).is_some() {
            node.with_allocator(now, |a| a.cancel(id, now));
            return;
        }
        // It had been answered, but the answer was not read. If it was that call that the address was found for, and
        // nobody asked after it, nobody knows of it.
        let Some(at) = self.delivered.iter().position(|(told, ..)| *told == id) else { return };
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
        // Another call for the same container gets the same address; it decides then.
        if request.container().is_some_and(|c| self.requests_by_container.contains_key(c)) {
            self.undelivered.insert(new);
            return;
        }
        self.undelivered.remove(&new);
        let (container, cidr) = new;
        node.with_allocator(now, |a| drop(a.free(&container, cidr.addr(), now)));
    }

    /// Stores a change. A disk that fails must not take the network with it; the change goes out with the next.
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
            tracing::error!("addresses are not saved, a restart may give them twice: {e}");
            self.flush_at.get_or_insert(now.mono + RETRY_INTERVAL);
        }
        if persist.durability() == Durability::Synced {
            self.unsynced = true;
        } else {
            self.flush_at.get_or_insert(now.mono + FLUSH_INTERVAL);
        }
    }

    /// To be called before anything is done that may depend on what was stored.
    pub(crate) fn sync_pending(&mut self, now: Now) {
        if !self.sync() {
            self.flush_at.get_or_insert(now.mono + RETRY_INTERVAL);
        }
    }

    /// Whether it is not to be tried again.
    fn sync(&mut self) -> bool {
        let synced = if std::mem::take(&mut self.unsynced) { self.store.sync() } else { Ok(()) };
        synced
            .inspect_err(|e| tracing::error!("addresses are not saved, a restart may give them twice: {e}"))
            .is_ok()
    }

    /// When [`Allocation::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        [self.flush_at, self.monitor.poll_timeout()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub(crate) fn handle_timeout(&mut self, node: &mut Node, now: Now) {
        if self.flush_at.is_some_and(|at| at <= now.mono) {
            self.flush_at = None;
            if !self.store.write_failed() {
                self.store.flush_in_background();
            } else if let Err(e) = self.store.retry_write() {
                tracing::debug!("addresses are still not saved: {e}");
                self.flush_at = Some(now.mono + RETRY_INTERVAL);
            } else {
                tracing::info!("addresses are saved again");
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

    /// The last bytes, at the end.
    pub(crate) fn end(&mut self) {
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

/// What this peer owns of the range; nothing while address allocation is off or there is no ring.
pub(crate) fn own_networks(node: &Node) -> Vec<Cidr> {
    node.allocator().map(|allocator| allocator.ring().networks_of(node.name())).unwrap_or_default()
}

fn released(result: Result<(), ReleaseError>) -> AllocationResponse {
    match result {
        Ok(()) => AllocationResponse::Done,
        Err(e) => AllocationResponse::Failed(e.to_string()),
    }
}

/// Under what an address is kept.
fn owner_key(container: &str, cidr: &Cidr) -> Container {
    if container == NO_ID { cidr.addr().to_string() } else { container.to_owned() }
}
