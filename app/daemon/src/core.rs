//! The one task that owns the node: it passes inputs to the node and carries out its outputs, in order.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use weave_api::NetworkView;
use weave_api::network_view;
use weave_api::report::IpamNotes;
use weave_datapath::{Datapath, DatapathEvent, DatapathStats, DeviceState, EventReceiver};
use weave_mesh::{Departure, Persist, ResolveId};
use weave_node::{Node, Output};
use weave_types::{Cidr, Instant, Now};

use crate::allocation::{Allocation, AllocationResponse, own_networks};
use crate::control::Request;
use crate::dns_service::DnsService;
use crate::docker_monitor::DockerHealth;
use crate::host::{Command, ReconcilerHandle, is_docker_id};
use crate::kernel_path::KernelPath;
use crate::net::{Event, Net};
use crate::storage::PeerState;
use crate::telemetry::failed_handshakes::FailedHandshakes;
use crate::telemetry::log::LogLimiter;
use crate::telemetry::metrics::ConnectionSeries;
use crate::telemetry::printable::{explain_error, printable};
use crate::telemetry::recent_events::{RecentEvents, millis};
use crate::telemetry::report;
use crate::trace::TraceInbox;

/// Capacity of the queue of inputs. Readers of connections stop while it is full.
pub(crate) const EVENT_QUEUE: usize = 256;

/// Minimum interval between two publications of tables, for each connection and for any number: those of a large mesh take some time, and
/// while it forms they change all the time.
const PUBLICATION_INTERVAL_PER_CONNECTION: Duration = Duration::from_millis(4);
const MAX_PUBLICATION_INTERVAL: Duration = Duration::from_millis(400);

/// The uplink is created within this time after the start. Before that a missing uplink is no reason for a warning.
const UPLINK_TIMEOUT: Instant = Instant::from_origin(Duration::from_secs(2));

/// Monotonic time since the daemon's start, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { origin: std::time::Instant::now() }
    }

    pub(crate) fn origin(&self) -> std::time::Instant {
        self.origin
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            mono: Instant::from_origin(self.origin.elapsed()),
            wall: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }
    }

    fn deadline(&self, at: Instant) -> tokio::time::Instant {
        (self.origin + at.since_origin()).into()
    }
}

/// Events of the data path as a descriptor that tokio can wait for.
struct DatapathEvents(EventReceiver);

impl AsRawFd for DatapathEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// SIGTERM and SIGINT. They do not end the process once this value exists.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> std::io::Result<Signals> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(crate) struct Core {
    pub(crate) reconciler: ReconcilerHandle,
    /// Name of the uplink.
    pub(crate) device: String,
    pub(crate) datapath: Datapath,
    /// `None` if the kernel does not forward frames.
    pub(crate) kernel: Option<KernelPath>,
    pub(crate) failed_handshakes: FailedHandshakes,
    pub(crate) connection_log_limit: LogLimiter,
    pub(crate) log_limit: LogLimiter,
    /// The series of connections that scrapes have seen.
    pub(crate) connection_series: ConnectionSeries,
    pub(crate) recent_events: RecentEvents,
    pub(crate) clock: Clock,
    pub(crate) node: Node,
    pub(crate) net: Net<ResolveId>,
    pub(crate) store: PeerState,
    /// `None` while address allocation is off.
    pub(crate) allocation: Option<Allocation>,
    /// `None` if no names are served.
    pub(crate) dns: Option<DnsService>,
    /// Where the Docker API proxy listens; `None` while it is off.
    pub(crate) proxy: Option<Vec<String>>,
    /// What the report says about the Docker network plugin; `None` while it is off.
    pub(crate) plugin: Option<weave_api::report::Plugin>,
    pub(crate) docker_health: DockerHealth,
    /// Where messages of traces go.
    pub(crate) traces: TraceInbox,
    /// Networks that this peer owns, as last sent to the reconciler; `None` unless `--no-masq-local` is given.
    pub(crate) local_networks: Option<Vec<Cidr>>,
    pub(crate) events: mpsc::Receiver<Event<ResolveId>>,
    pub(crate) requests: mpsc::Receiver<Request>,
    /// What other peers are told at the end.
    pub(crate) departure: Departure,
    /// The data path has other tables than the node.
    pub(crate) tables_changed: bool,
    /// The earliest time at which they may be published because of an input.
    pub(crate) next_publication: Instant,
}

impl Core {
    /// Runs until SIGTERM or SIGINT.
    pub(crate) async fn run(
        mut self,
        listener: TcpListener,
        datapath_events: EventReceiver,
        mut signals: Signals,
    ) -> std::io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and this descriptor is owned by what AsyncFd owns"
        )]
        let datapath_events = AsyncFd::with_interest(DatapathEvents(datapath_events), Interest::READABLE)?;
        let mut reports = Vec::new();
        self.net.accept(listener);
        loop {
            self.carry_out();
            if self.next_publication <= self.clock.now().mono {
                self.publish_tables();
            }
            let allocation = self.allocation.as_ref().and_then(Allocation::poll_timeout);
            let names = self.dns.as_ref().and_then(|dns| dns.local.poll_timeout());
            let timeout = self.node.poll_timeout().map(|(at, _)| at);
            let kernel = self.kernel.as_ref().map(KernelPath::poll_timeout);
            let publication = self.tables_changed.then_some(self.next_publication);
            let timeout = [timeout, allocation, names, kernel, publication].into_iter().flatten().min();
            let kernel_readable = async {
                match &self.kernel {
                    Some(kernel) => kernel.readable().await,
                    None => std::future::pending().await,
                }
            };
            let wake = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(self.clock.deadline(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Ok(mut ready) = datapath_events.readable() => {
                    // Cleared before draining, so that an event that arrives meanwhile wakes the task again.
                    ready.clear_ready();
                    datapath_events.get_ref().0.drain(&mut reports);
                    for report in reports.drain(..) {
                        self.handle_datapath_event(report)?;
                    }
                }
                () = kernel_readable => {
                    if let Some(kernel) = &mut self.kernel {
                        let clock = self.clock;
                        kernel.handle_events(&mut self.node, || clock.now());
                    }
                }
                Some(request) = self.requests.recv() => self.answer(request),
                () = wake => self.handle_timeout(),
                () = signals.recv() => break,
            }
        }
        tracing::info!("=== received SIGINT/SIGTERM ===");
        tracing::info!("*** exiting");
        // Frames pass until the other peers know, so what takes time comes first.
        self.reconciler.stop();
        if let Some(allocation) = &mut self.allocation {
            allocation.close();
        }
        if let Some(dns) = &mut self.dns {
            dns.local.close(self.clock.now());
        }
        // The programs go on forwarding with the tables that they have, for the next daemon.
        self.kernel = None;
        self.node.shutdown(self.departure, self.clock.now());
        self.drain();
        self.net.shut_down(self.events).await;
        self.datapath.stop();
        Ok(())
    }

    /// Carries out the outputs of the node, and publishes its tables.
    pub(crate) fn drain(&mut self) {
        self.carry_out();
        self.publish_tables();
    }

    fn carry_out(&mut self) {
        let mut ring_changed = false;
        if let (Some(allocation), Some(conflict)) = (&mut self.allocation, self.node.name_conflict()) {
            let refused = no_address_text(conflict);
            allocation.refuse_waiting(&refused, &mut self.node, self.clock.now());
        }
        while let Some(output) = self.node.poll_output() {
            let now = self.clock.now();
            // Consecutive changes are synced together.
            if let Some(allocation) = &mut self.allocation
                && !matches!(output, Output::PersistIpam(_) | Output::Event(_))
            {
                allocation.sync_pending(now);
            }
            match output {
                Output::Persist(persist) => self.persist(persist),
                Output::PersistIpam(persist) => {
                    ring_changed |=
                        matches!(persist, weave_ipam::Persist::Ring(_) | weave_ipam::Persist::Clear);
                    if let Some(allocation) = &mut self.allocation {
                        allocation.persist(&persist, now);
                    }
                }
                Output::Done { request, result } => {
                    if let Some(allocation) = &mut self.allocation {
                        allocation.done(request, result, &mut self.node, now);
                    }
                }
                Output::Resolve { id, host } => self.net.resolve(id, host),
                Output::Dial { conn, addr } => self.net.dial(conn, addr),
                Output::Write { conn, bytes } => self.net.write(conn, bytes),
                Output::Probe { conn } => self.net.probe(conn),
                Output::Close { conn } => {
                    self.net.close(conn);
                }
                Output::Datagram { destination, bytes } => self.datapath.transmit(destination, &bytes),
                Output::Batch { destination, bytes, segment, plain } => {
                    if self.datapath.transmit_batch(destination, &bytes, segment) {
                        self.datapath.transmit(destination, &plain);
                    }
                }
                Output::KernelFrame { conn, path, vni, bytes } => {
                    if let Some(kernel) = &self.kernel {
                        kernel.send(conn, &path, vni, &bytes, &mut self.node);
                    }
                }
                Output::SegmentedProbe { path, vni, probes } => {
                    if let Some(kernel) = &mut self.kernel {
                        kernel.send_probes(&path, vni, &probes);
                    }
                }
                Output::NamesChanged => {
                    if let Some(dns) = &self.dns {
                        dns.publish(&self.node);
                    }
                }
                Output::TablesChanged => self.tables_changed = true,
                Output::TraceMessage { from, message } => self.traces.deliver(from, message),
                Output::Event(event) => self.log_event(&event),
            }
        }
        if let Some(allocation) = &mut self.allocation {
            allocation.sync_pending(self.clock.now());
        }
        if ring_changed {
            self.update_local_networks();
        }
    }

    fn publish_tables(&mut self) {
        if !std::mem::take(&mut self.tables_changed) {
            return;
        }
        let now = self.clock.now();
        let connections = u32::try_from(self.node.connection_count()).unwrap_or(u32::MAX);
        let interval = PUBLICATION_INTERVAL_PER_CONNECTION.saturating_mul(connections);
        self.next_publication = now.mono + interval.min(MAX_PUBLICATION_INTERVAL);
        let tables = self.node.tables();
        let Some((path, kernel)) = self.kernel.as_mut().zip(tables.kernel.clone()) else {
            return self.datapath.publish(tables);
        };
        if path.goes_first(&kernel) {
            path.publish(&kernel, &mut self.node, now);
            self.datapath.publish(tables);
        } else {
            self.datapath.publish(tables);
            path.publish(&kernel, &mut self.node, now);
        }
    }

    /// Sends the networks that this peer owns to the reconciler if they have changed.
    fn update_local_networks(&mut self) {
        let Some(sent) = &mut self.local_networks else { return };
        let networks = own_networks(&self.node);
        if *sent != networks {
            sent.clone_from(&networks);
            self.reconciler.send(Command::SetLocalNetworks(networks));
        }
    }

    fn handle_timeout(&mut self) {
        if let Some(kernel) = &mut self.kernel {
            // Heartbeats of neighbours do not wake this task. They are read before it is decided which ones are missing.
            let clock = self.clock;
            kernel.handle_events(&mut self.node, || clock.now());
        }
        let now = self.clock.now();
        if let Some(kernel) = &mut self.kernel {
            kernel.handle_timeout(&mut self.node, now);
        }
        self.node.handle_timeout(now);
        if let Some(allocation) = &mut self.allocation {
            allocation.handle_timeout(&mut self.node, now);
        }
        if let Some(dns) = &mut self.dns {
            dns.local.handle_timeout(&mut self.node, now);
        }
    }

    /// Logs an event, unless there are too many: other hosts and containers can cause any number of them.
    fn log_event(&mut self, event: &weave_node::Event) {
        let Now { mono: now, wall } = self.clock.now();
        if let weave_node::Event::Repeated(event) = event {
            return tracing::debug!("{event}");
        }
        let limit = match event {
            weave_node::Event::Mesh(event) => {
                self.failed_handshakes.record(event, now);
                &mut self.connection_log_limit
            }
            _ => &mut self.log_limit,
        };
        match limit.admit(now) {
            None => return,
            Some(0) => {}
            Some(n) => tracing::warn!("left out {n} log lines, there were too many"),
        }
        let text = explain_error(&event.to_string());
        match event {
            // There is one for each address of the network.
            weave_node::Event::LocalMac(_)
            | weave_node::Event::RemoteMac { .. }
            | weave_node::Event::MacExpired { .. } => {}
            _ => self.recent_events.record(&text, wall),
        }
        match event {
            weave_node::Event::MacConflict { .. }
            | weave_node::Event::MacTableFull { .. }
            | weave_node::Event::PathBlocked { .. }
            | weave_node::Event::Dns(_)
            | weave_node::Event::Ipam(
                weave_ipam::Event::Conflict { .. }
                | weave_ipam::Event::QuorumTooSmall { .. }
                | weave_ipam::Event::PreclaimFailed { .. },
            ) => tracing::warn!("{text}"),
            _ => tracing::info!("{text}"),
        }
    }

    /// Waits for the disk, because later outputs depend on it. A failing disk must not stop the network, so an error is logged,
    /// and the next change writes the state again.
    fn persist(&mut self, persist: Persist) {
        let result = match persist {
            Persist::Targets(targets) => self.store.set_targets(targets),
            Persist::ShortId(id) => self.store.set_short_id(id),
            Persist::VersionCeiling(ceiling) => self.store.set_version_ceiling(ceiling),
        };
        if let Err(e) = result {
            tracing::error!("state is not saved, a restart may be noticed: {e}");
        }
    }

    fn handle(&mut self, event: Event<ResolveId>) {
        let now = self.clock.now();
        match event {
            Event::Accepted { stream, local, remote, next } => {
                if let Some(conn) = self.node.handle_accepted(local, remote, now) {
                    self.net.add(conn, stream, local, remote);
                }
                let _ = next.send(self.node.accept_delay(now));
            }
            Event::Dialled { conn, stream, local, remote } => {
                // The node may have closed it meanwhile.
                if self.net.is_dialling(conn) {
                    self.net.add(conn, stream, local, remote);
                    self.node.handle_dialled(conn, local, remote, now);
                }
            }
            Event::DialFailed { conn, error } => {
                if self.net.dial_failed(conn) {
                    self.node.handle_dial_failed(conn, error, now);
                }
            }
            Event::Received { conn, bytes } => {
                if self.net.is_open(conn) {
                    self.node.handle_stream(conn, &bytes, now);
                }
            }
            Event::Written { conn, bytes } => {
                if self.net.is_open(conn) {
                    self.node.handle_written(conn, bytes, now);
                }
            }
            Event::Closed { conn, end } => {
                if self.net.close(conn) {
                    self.node.handle_closed(conn, end, now);
                }
            }
            Event::NetworkChanged { lost } => self.handle_network_change(&lost, now),
            Event::Resolved { id, result } => self.node.handle_resolved(id, result, now),
        }
    }

    fn handle_network_change(&mut self, lost: &BTreeSet<IpAddr>, now: Now) {
        let list = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        if !list.is_empty() {
            tracing::info!("this host has lost the address {list}");
        }
        if let Some(host) = self.net.host().filter(|host| lost.contains(host)) {
            tracing::warn!(
                "no peer can be reached until this host has {host} again, the address that --host gives; \
                 launch with another --host, or without it"
            );
        }
        self.node.handle_network_change(lost, now);
    }

    /// A data thread that has ended is an error that ends the daemon.
    fn handle_datapath_event(&mut self, event: DatapathEvent) -> std::io::Result<()> {
        match event {
            DatapathEvent::Forwarder(event) => self.node.handle_forwarder_event(event, self.clock.now()),
            DatapathEvent::Device(DeviceState::Up) => {
                tracing::info!("capturing on {}", self.device);
                if let Some(kernel) = &mut self.kernel {
                    kernel.repair();
                }
            }
            DatapathEvent::TapLost => {
                if let Some(kernel) = &mut self.kernel {
                    kernel.repair();
                }
            }
            // The data path starts before its device is created.
            DatapathEvent::Device(DeviceState::Unavailable(why))
                if self.clock.now().mono < UPLINK_TIMEOUT =>
            {
                tracing::debug!("{} does not exist yet: {why}", self.device);
            }
            DatapathEvent::Device(DeviceState::Unavailable(why)) => tracing::warn!(
                "lost {}, containers of this host are cut off until it is back: {why}",
                self.device
            ),
            DatapathEvent::Device(DeviceState::None) => {}
            DatapathEvent::ThreadPanicked(thread) => {
                let text = format!("its thread {thread} has ended because of a bug");
                return Err(std::io::Error::other(text));
            }
        }
        Ok(())
    }

    fn report(&self, data: &DatapathStats) -> weave_api::Report {
        let now = self.clock.now();
        let status = self.node.status(now);
        let mut report = report::report(status, data, &self.device);
        let refused = self.failed_handshakes.connections(now.mono, &report.router.connections);
        report.router.connections.extend(refused);
        report.host_problems = self.reconciler.problems();
        report.proxy = self.proxy.clone().map(|addresses| weave_api::report::Proxy {
            addresses,
            notes: self
                .docker_health
                .problem()
                .iter()
                .map(|e| format!("Docker does not answer: {e}"))
                .collect(),
        });
        report.plugin = self.plugin.clone();
        report.dns = self.dns.as_ref().map(|dns| dns.report(&self.node, now));
        if let Some(allocation) = &self.allocation {
            let notes = report.ipam_notes.get_or_insert_default();
            notes.waiting.splice(0..0, allocation.full());
            notes.lost_owners = allocation.lost_owners();
            report.ipam_notes.take_if(|notes| *notes == IpamNotes::default());
        }
        report
    }

    /// The report with what the kernel knows about every Ethernet address.
    fn complete_report(&self, data: &DatapathStats) -> weave_api::Report {
        let mut report = self.report(data);
        if let Some(kernel) = &self.kernel {
            kernel.complete_report(&mut report.router);
        }
        report
    }

    fn network_view(&mut self, now: Now) -> NetworkView {
        if let Some(kernel) = &self.kernel {
            kernel.update_traffic();
        }
        self.node.measure_paths(now);
        self.drain();
        let owned = self.node.allocator().into_iter().flat_map(|allocator| allocator.owned());
        let containers = owned.map(|(id, record)| network_view::Container {
            id: printable(id),
            addresses: record.cidrs.iter().map(ToString::to_string).collect(),
        });
        let (containers, events) = (containers.collect(), self.recent_events.list());
        NetworkView::new(&self.report(&self.datapath.stats()), containers, events, millis(now.wall))
    }

    fn answer(&mut self, request: Request) {
        let now = self.clock.now();
        // The client may have disconnected; the request is carried out nevertheless.
        match request {
            Request::Report(answer) => {
                let _ = answer.send(self.complete_report(&self.datapath.stats()));
            }
            Request::Metrics(answer) => {
                let data = self.datapath.stats();
                let report = self.complete_report(&data);
                let mut snapshot = report::snapshot(report, &data, &mut self.connection_series);
                snapshot.dns = self.dns.as_ref().map(DnsService::counts);
                let _ = answer.send(snapshot);
            }
            Request::NetworkView(answer) => {
                let _ = answer.send(self.network_view(now));
            }
            Request::Connect { peers, replace, answer } => {
                let errors = self.node.connect(&peers, replace, now);
                self.drain();
                let _ = answer.send(errors);
            }
            Request::Expose { exposed, answer } => self.reconciler.send(Command::Expose(exposed, answer)),
            Request::Hide { addresses, answer } => self.reconciler.send(Command::Hide(addresses, answer)),
            Request::Leave(answer) => {
                self.departure = Departure::Leave;
                let _ = answer.send(());
            }
            Request::Forget { peers, answer } => {
                self.node.forget(&peers, now);
                self.drain();
                let _ = answer.send(());
            }
            Request::Allocate { id, request, source, answer } => {
                let Some(allocation) = &mut self.allocation else { return };
                if request.may_wait()
                    && let Some(conflict) = self.node.name_conflict()
                {
                    let _ = answer.send(AllocationResponse::Failed(no_address_text(conflict)));
                    return;
                }
                let _operation = weave_host::fault_injection::operation("ip");
                let ready = allocation.submit(id, request, source, answer, &mut self.node, now);
                self.drain();
                if let Some(allocation) = &mut self.allocation {
                    allocation.limit_waiting(id, &mut self.node, now);
                }
                if let Some((answer, response)) = ready {
                    if matches!(response, AllocationResponse::Left(_)) {
                        self.departure = Departure::Leave;
                    }
                    let _ = answer.send(response);
                }
            }
            Request::ChangeNames(change, answer) => {
                if let Some(dns) = &mut self.dns {
                    dns.local.apply(change, &mut self.node, now);
                }
                self.drain();
                let _ = answer.send(());
            }
            Request::Names(answer) => {
                let entries = self.node.registry().into_iter().flat_map(weave_dns::Registry::entries);
                let _ = answer.send(entries.cloned().collect());
            }
            Request::NamedContainers(answer) => {
                let containers = self.dns.as_ref().map(|dns| dns.local.containers().cloned().collect());
                let _ = answer.send(containers.unwrap_or_default());
            }
            Request::DockerContainers(answer) => {
                let allocation = self.allocation.iter().flat_map(Allocation::docker_containers);
                let names = self.dns.iter().flat_map(|dns| dns.local.containers()).cloned();
                let containers: BTreeSet<_> =
                    allocation.chain(names).filter(|container| is_docker_id(container)).collect();
                let _ = answer.send(containers.into_iter().collect());
            }
            Request::DockerStates(states) => {
                if let Some(dns) = &mut self.dns {
                    dns.local.set_docker_states(&states, &mut self.node, now);
                }
                if let Some(allocation) = &mut self.allocation {
                    allocation.set_docker_states(states);
                }
            }
            Request::Trace(command) => {
                command.carry_out(&mut self.node, now);
                self.drain();
            }
            Request::Abandon { id, request } => {
                if let Some(allocation) = &mut self.allocation {
                    allocation.abandon(id, &request, &mut self.node, now);
                }
            }
        }
    }
}

fn no_address_text(conflict: &str) -> String {
    printable(&format!("no address is given out: {conflict}"))
}
