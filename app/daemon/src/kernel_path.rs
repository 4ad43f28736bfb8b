//! The kernel path of fastdp in the daemon: starts it, passes tables and frames to it, and its events to the node.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use serde_json::json;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use weave_datapath::Taps;
use weave_fastdp::{Error, EventReader, Fastdp, FastdpConfig, SendError, Shortcuts};
use weave_node::Node;
use weave_overlay::fastdp::{FastdpPath, KernelTables, Returning, SegmentedProbe};
use weave_types::{ConnectionId, Instant, Now, PeerName};

/// Interval at which the last-seen times of the kernel's MACs are read, which expire after minutes, and at which devices and programs
/// are checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The parameters of the kernel path of this peer.
pub(crate) fn parameters(
    port: u16,
    instance: Option<&str>,
    uplink: &str,
    origin: std::time::Instant,
) -> Option<FastdpConfig> {
    let mut parameters = FastdpConfig::new(uplink, port.checked_add(1)?, origin);
    if let Some(instance) = instance {
        parameters.tap = format!("weavet-{instance}");
        parameters.relay_tap = format!("weaver-{instance}");
    }
    Some(parameters)
}

/// Removes programs and devices that the kernel path of a daemon has left. The daemon must not run.
pub fn remove_kernel_path(uplink: &str, instance: Option<&str>) -> Result<(), String> {
    // The devices are found by the uplink, whatever their ports are.
    let Some(parameters) = parameters(0, instance, uplink, std::time::Instant::now()) else { return Ok(()) };
    weave_fastdp::remove_all(&parameters).map_err(|error| format!("fastdp is not removed: {error}"))
}

/// The names of the devices that [`remove_kernel_path`] removes.
pub fn kernel_path_devices(uplink: &str, instance: Option<&str>) -> Result<Vec<String>, String> {
    let Some(parameters) = parameters(0, instance, uplink, std::time::Instant::now()) else {
        return Ok(Vec::new());
    };
    weave_fastdp::device_names(&parameters).map_err(|error| error.to_string())
}

/// Events as a descriptor that tokio can wait for.
struct Events(EventReader);

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// The running kernel path.
pub(crate) struct KernelPath {
    fastdp: Fastdp,
    events: AsyncFd<Events>,
    /// The neighbours of the latest tables.
    neighbours: BTreeSet<PeerName>,
    /// Ports that cannot be used, and why.
    failed_ports: BTreeMap<u16, String>,
    /// Why the latest tables are not in use.
    failure: Option<String>,
    /// Why the latest repair failed.
    repair_failure: Option<String>,
    check_at: Instant,
    returning: Returning,
    /// Whether the node has yet to learn the MACs that the kernel knows from the last daemon.
    has_adopted_macs: bool,
}

impl KernelPath {
    /// Starts the kernel path, or takes over that of the last daemon. The programs forward once tables are published. With `encrypts` the
    /// tables of the last daemon, which may have had no password, are not kept until its connections are back.
    pub(crate) fn start(
        parameters: &FastdpConfig,
        encrypts: bool,
        threads: usize,
        now: Instant,
    ) -> Result<(KernelPath, Taps), Error> {
        let (mut fastdp, events) = Fastdp::start(parameters)?;
        let returning = Returning::new(if encrypts { 0 } else { fastdp.reached() }, now);
        let has_adopted_macs = fastdp.adopted();
        let further = (1..threads).map(|_| fastdp.open_tap()).collect::<Result<_, _>>()?;
        let taps = Taps { local: fastdp.open_tap()?, further, relay: fastdp.open_relay_tap()? };
        let path = KernelPath {
            fastdp,
            events: watch(events)?,
            neighbours: BTreeSet::new(),
            failed_ports: BTreeMap::new(),
            failure: None,
            repair_failure: None,
            check_at: now + CHECK_INTERVAL,
            returning,
            has_adopted_macs,
        };
        Ok((path, taps))
    }

    /// Makes and attaches again what another program has removed or replaced. To be called when the uplink is there, too, which may have
    /// been made anew.
    pub(crate) fn repair(&mut self) {
        let failure = match self.fastdp.repair() {
            Ok(repaired) => {
                repaired.iter().for_each(|text| tracing::warn!("fastdp is repaired: {text}"));
                None
            }
            Err(error) => Some(error.to_string()),
        };
        if let Some(failure) =
            failure.as_ref().filter(|failure| self.repair_failure.as_ref() != Some(failure))
        {
            tracing::warn!("fastdp does not work: {failure}");
        }
        self.repair_failure = failure;
    }

    pub(crate) fn shortcuts(&self) -> Shortcuts {
        self.fastdp.shortcuts()
    }

    /// Waits until there are events.
    pub(crate) async fn readable(&self) {
        if let Ok(mut ready) = self.events.readable().await {
            // Cleared before draining, so that an event that arrives meanwhile wakes the task again.
            ready.clear_ready();
        }
    }

    /// Passes events to the node.
    pub(crate) fn handle_events(&mut self, node: &mut Node, now: impl Fn() -> Now) {
        while let Some(event) = self.events.get_mut().0.read() {
            node.handle_kernel_event(event, now());
        }
    }

    /// Whether the kernel should get tables before user space: it stops sending to a neighbour then. Where user space takes over or
    /// hands over a neighbour a copy of a broadcast may be lost, but none arrives twice.
    pub(crate) fn goes_first(&self, tables: &KernelTables) -> bool {
        !self.neighbours.is_subset(&neighbours(tables))
    }

    /// Has the kernel forward with these tables.
    pub(crate) fn publish(&mut self, tables: &KernelTables, node: &mut Node, now: Now) {
        for &port in &tables.ports {
            match self.fastdp.ensure_port(port) {
                Ok(()) => {
                    self.failed_ports.remove(&port);
                }
                Err(error) => {
                    let text = error.to_string();
                    if self.failed_ports.insert(port, text.clone()).as_ref() != Some(&text) {
                        tracing::warn!("fastdp cannot be used at UDP port {port}: {text}");
                    }
                    node.handle_kernel_port_failed(port, &text, now);
                }
            }
        }
        if self.returning.holds(tables) {
            return;
        }
        let mut adopted = None;
        if std::mem::take(&mut self.has_adopted_macs) {
            for entry in self.fastdp.activity().unwrap_or_default() {
                node.adopt_kernel_mac(entry.mac, entry.peer, now);
            }
            let macs = node.tables().forwarding.macs.clone();
            adopted = Some(KernelTables { macs, ..tables.clone() });
        }
        let tables = adopted.as_ref().unwrap_or(tables);
        let failure = self.fastdp.publish(tables).err().map(|error| error.to_string());
        if let Some(text) = failure.as_ref().filter(|text| self.failure.as_ref() != Some(text)) {
            tracing::warn!("fastdp goes on with old tables: {text}");
        }
        self.failure = failure;
        self.neighbours = neighbours(tables);
    }

    /// Sends a frame of the node.
    pub(crate) fn send(
        &self,
        conn: ConnectionId,
        path: &FastdpPath,
        vni: u32,
        frame: &[u8],
        node: &mut Node,
    ) {
        match self.fastdp.send_frame(path, vni, frame) {
            Ok(()) => {}
            Err(SendError::TooBig { mtu, .. }) => {
                let mtu = mtu.and_then(|mtu| u16::try_from(mtu).ok()).unwrap_or(u16::MAX);
                node.handle_kernel_mtu(conn, mtu);
            }
            Err(SendError::System(error)) => tracing::debug!("fastdp: {error}"),
        }
    }

    /// Sends probes of the node.
    pub(crate) fn send_probes(&mut self, path: &FastdpPath, vni: u32, probes: &[SegmentedProbe]) {
        if let Err(error) = self.fastdp.send_probes(path, vni, probes) {
            tracing::debug!("fastdp: {error}");
        }
    }

    /// Devices and forwarding entries, as 2.8.1 shows those of Open vSwitch (docs/spec/data-plane.md 5.6).
    pub(crate) fn complete_report(&self, router: &mut weave_api::report::Router) {
        router.interface = router.interface.replace("(via AF_PACKET)", "(via eBPF)");
        let vports = self.fastdp.vports().into_iter();
        let vports = vports.map(|port| json!({ "ID": port.id, "Name": port.name, "TypeName": port.kind }));
        let flows = self.fastdp.flows().unwrap_or_default().into_iter();
        let flows = flows.map(|flow| json!({ "FlowKeys": flow.keys, "Actions": flow.actions }));
        let counts = self.fastdp.statistics().unwrap_or_default().into_iter();
        let counts: BTreeMap<String, u64> =
            counts.map(|(counter, count)| (counter.to_string(), count.frames)).collect();
        let fastdp = json!({ "Vports": vports.collect::<Vec<_>>(), "Flows": flows.collect::<Vec<_>>(), "Frames": counts });
        router.overlay_diagnostics.insert("fastdp".to_owned(), fastdp);
    }

    /// Writes what the kernel has counted where the node reads it.
    pub(crate) fn update_traffic(&self) {
        if let Err(error) = self.fastdp.update_traffic() {
            tracing::debug!("fastdp: {error}");
        }
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.returning.poll_timeout().map_or(self.check_at, |until| until.min(self.check_at))
    }

    /// Prepares the node for its timers: writes what the kernel has counted where the node reads it, and tells the node from time to
    /// time which MACs the kernel has seen.
    pub(crate) fn handle_timeout(&mut self, node: &mut Node, now: Now) {
        if node.reads_kernel_counters(now) {
            self.update_traffic();
        }
        if self.returning.handle_timeout(now.mono)
            && let Some(tables) = node.tables().kernel.clone()
        {
            self.publish(&tables, node, now);
        }
        if now.mono < self.check_at {
            return;
        }
        self.check_at = now.mono + CHECK_INTERVAL;
        self.repair();
        match self.fastdp.activity() {
            Ok(entries) => {
                for entry in entries {
                    node.handle_kernel_activity(entry.mac, entry.last_seen, entry.refused);
                }
            }
            Err(error) => tracing::warn!("addresses that only the kernel has seen may expire: {error}"),
        }
    }
}

fn watch(events: EventReader) -> Result<AsyncFd<Events>, Error> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, and this descriptor is owned by what AsyncFd owns"
    )]
    let watched = AsyncFd::with_interest(Events(events), Interest::READABLE);
    watched.map_err(|error| Error::System { step: "waiting for events of the kernel path".to_owned(), error })
}

fn neighbours(tables: &KernelTables) -> BTreeSet<PeerName> {
    tables.neighbours.iter().map(|neighbour| neighbour.name).collect()
}
