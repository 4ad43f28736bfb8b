//! The one task that owns the peer: it hands inputs to the node and does what the node says, in that order.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::os::fd::{AsFd, AsRawFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use weave_datapath::{Datapath, DatapathEvent, DatapathStats, DeviceState, EventReceiver};
use weave_mesh::{Persist, ResolveId};
use weave_node::{Node, Output};
use weave_types::{Cidr, Instant, Now};

use crate::allocation::{Allocation, own_networks};
use crate::control::Request;
use crate::host::{Command, ReconcilerHandle};
use crate::net::{Event, Net};
use crate::storage::PeerState;
use crate::telemetry::failed_handshakes::FailedHandshakes;
use crate::telemetry::log::Limiter;
use crate::telemetry::printable::explain_error;
use crate::telemetry::report;

/// Inputs that wait for the peer. Readers stop while it is full.
pub(crate) const EVENT_QUEUE: usize = 256;

/// By then the uplink is there, or something is wrong.
const SETTLED: Instant = Instant::from_origin(Duration::from_secs(2));

/// Monotonic time since the daemon's start, and the wall clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    pub(crate) fn start() -> Clock {
        Clock { origin: std::time::Instant::now() }
    }

    /// Where monotonic time begins.
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

/// What the data threads tell, as something to wait for.
struct DatapathEvents(EventReceiver);

impl AsRawFd for DatapathEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What tells the daemon to end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub(crate) fn new() -> std::io::Result<Signals> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Signals { terminate, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Until one has come.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

pub(crate) struct Core {
    pub(crate) reconciler: ReconcilerHandle,
    /// Name of the uplink, for the report.
    pub(crate) device: String,
    pub(crate) datapath: Datapath,
    pub(crate) failed_handshakes: FailedHandshakes,
    /// For the log lines about connections, and for the others.
    pub(crate) limits: [Limiter; 2],
    pub(crate) clock: Clock,
    pub(crate) node: Node,
    pub(crate) net: Net<ResolveId>,
    pub(crate) store: PeerState,
    /// `None`: no addresses are allocated here.
    pub(crate) allocation: Option<Allocation>,
    /// What this peer owns of the range, as the reconciler was told; `None`: it does not ask (`--no-masq-local`).
    pub(crate) local: Option<Vec<Cidr>>,
    pub(crate) events: mpsc::Receiver<Event<ResolveId>>,
    pub(crate) requests: mpsc::Receiver<Request>,
}

impl Core {
    /// Until a signal tells it to end.
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
            self.drain();
            let allocation = self.allocation.as_ref().and_then(Allocation::poll_timeout);
            let timeout = self.node.poll_timeout().map(|(at, _)| at).into_iter().chain(allocation).min();
            let wake = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(self.clock.deadline(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(event) = self.events.recv() => self.handle(event),
                Ok(mut ready) = datapath_events.readable() => {
                    // Before draining: what comes in meanwhile wakes us again.
                    ready.clear_ready();
                    datapath_events.get_ref().0.drain(&mut reports);
                    for report in reports.drain(..) {
                        self.handle_datapath_event(report)?;
                    }
                }
                Some(request) = self.requests.recv() => self.answer(request),
                () = wake => self.handle_timeout(),
                () = signals.recv() => break,
            }
        }
        tracing::info!("=== received SIGINT/SIGTERM ===");
        tracing::info!("*** exiting");
        self.node.shutdown(self.clock.now());
        self.drain();
        self.net.end(self.events).await;
        if let Some(allocation) = &mut self.allocation {
            allocation.end();
        }
        self.datapath.stop();
        self.reconciler.stop();
        Ok(())
    }

    /// Does everything that the node wants done.
    pub(crate) fn drain(&mut self) {
        let mut ring_changed = false;
        while let Some(output) = self.node.poll_output() {
            let now = self.clock.now();
            // What is to be stored in one go is synced once.
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
                Output::Close { conn } => {
                    self.net.close(conn);
                }
                Output::Datagram { conn, to, df, bytes } => self.datapath.transmit(to, df, &bytes, conn),
                Output::TablesChanged => self.datapath.publish(self.node.tables()),
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

    /// The reconciler hears what this peer owns, if that has changed.
    fn update_local_networks(&mut self) {
        let Some(told) = &mut self.local else { return };
        let now = own_networks(&self.node);
        if *told != now {
            told.clone_from(&now);
            self.reconciler.send(Command::SetLocalNetworks(now));
        }
    }

    fn handle_timeout(&mut self) {
        let now = self.clock.now();
        self.node.handle_timeout(now);
        if let Some(allocation) = &mut self.allocation {
            allocation.handle_timeout(&mut self.node, now);
        }
    }

    /// Logs an event. Peers, strangers and containers decide how many there are, so not all of them.
    fn log_event(&mut self, event: &weave_node::Event) {
        let now = self.clock.now().mono;
        let [connections, others] = &mut self.limits;
        let limit = match event {
            weave_node::Event::Mesh(event) => {
                self.failed_handshakes.record(event, now);
                connections
            }
            _ => others,
        };
        match limit.admit(now) {
            None => return,
            Some(0) => {}
            Some(n) => tracing::warn!("{n} log lines left out, there were too many"),
        }
        match event {
            weave_node::Event::MacConflict { .. }
            | weave_node::Event::Ipam(
                weave_ipam::Event::Conflict { .. }
                | weave_ipam::Event::QuorumTooSmall { .. }
                | weave_ipam::Event::PreclaimFailed { .. },
            ) => tracing::warn!("{}", explain_error(&event.to_string())),
            _ => tracing::info!("{}", explain_error(&event.to_string())),
        }
    }

    /// The disk is waited for: what follows depends on it. A disk that fails must not take the network with it; the
    /// state goes out with the next change.
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
                    self.net.adopt(conn, stream, local, remote);
                }
                let _ = next.send(self.node.accept_delay(now));
            }
            Event::Dialled { conn, stream, local, remote } => {
                // Not if the node has given it up meanwhile.
                if self.net.is_dialling(conn) {
                    self.net.adopt(conn, stream, local, remote);
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
            Event::Closed { conn, error } => {
                if self.net.close(conn) {
                    self.node.handle_closed(conn, error, now);
                }
            }
            Event::Resolved { id, result } => self.node.handle_resolved(id, result, now),
        }
    }

    /// An error if a data thread has ended: then nothing is left to go on with.
    fn handle_datapath_event(&mut self, event: DatapathEvent) -> std::io::Result<()> {
        match event {
            DatapathEvent::Forwarder(event) => self.node.handle_forwarder_event(event, self.clock.now()),
            DatapathEvent::Device(DeviceState::Up) => {
                tracing::info!("capturing on {}", self.device);
            }
            // The data path starts before its device is made.
            DatapathEvent::Device(DeviceState::Unavailable(why)) if self.clock.now().mono < SETTLED => {
                tracing::debug!("{} is not there yet: {why}", self.device);
            }
            DatapathEvent::Device(DeviceState::Unavailable(why)) => tracing::warn!(
                "{} is lost, containers of this host are cut off until it is back: {why}",
                self.device
            ),
            DatapathEvent::Device(DeviceState::None) => {}
            DatapathEvent::ThreadPanicked(thread) => {
                let text = format!("its thread {thread} has ended by a fault of this program");
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
        report
    }

    fn answer(&mut self, request: Request) {
        let now = self.clock.now();
        // Whoever asked may be gone; what was asked for is done all the same.
        match request {
            Request::Report(answer) => {
                let _ = answer.send(self.report(&self.datapath.stats()));
            }
            Request::Metrics(answer) => {
                let data = self.datapath.stats();
                let _ = answer.send(report::snapshot(self.report(&data), &data));
            }
            Request::Connect { peers, replace, answer } => {
                let errors = self.node.connect(&peers, replace, now);
                self.drain();
                let _ = answer.send(errors);
            }
            Request::Expose { exposed, answer } => self.reconciler.send(Command::Expose(exposed, answer)),
            Request::Hide { addresses, answer } => self.reconciler.send(Command::Hide(addresses, answer)),
            Request::Forget { peers, answer } => {
                self.node.forget(&peers, now);
                self.drain();
                let _ = answer.send(());
            }
            Request::Allocate { id, request, answer } => {
                let Some(allocation) = &mut self.allocation else { return };
                let _operation = weave_host::fault_injection::operation("ip");
                let ready = allocation.submit(id, request, answer, &mut self.node, now);
                self.drain();
                if let Some((answer, response)) = ready {
                    let _ = answer.send(response);
                }
            }
            Request::Abandon { id, request } => {
                if let Some(allocation) = &mut self.allocation {
                    allocation.abandon(id, &request, &mut self.node, now);
                }
            }
        }
    }
}
