use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use weave_overlay::Destination;
use weave_overlay::forward::{Stats, Tables};

use crate::error::StartError;
use crate::events::{DatapathEvent, EventQueue, EventReceiver, WakeFd};
use crate::io::{report_interface_mtu, report_refused_batch};
use crate::packet;
use crate::stats::{Counters, Counts, DeviceState};
use crate::tap::{TapReader, Taps};
use crate::threads::{self, Shared};
use crate::transmit::is_batch_refused;
use crate::udp::UdpSockets;

/// Parameters of a [`Datapath`].
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// The uplink device, `vethwe-datapath`; `None` for a peer that only relays. It may be missing at the start.
    pub device: Option<String>,
    /// The address to listen on; `None` for all IPv4 addresses, `::` for all of both families.
    pub listen: Option<IpAddr>,
    /// The sleeve port, 6783 by default. 0 lets the kernel choose.
    pub port: u16,
    /// Number of threads that send, and of those that receive. More make several flows faster, not one.
    pub threads: usize,
    /// The origin of `weave_types::Instant`, the same as in the daemon, so that data threads and node share a clock.
    pub origin: Instant,
}

impl Default for DatapathConfig {
    fn default() -> DatapathConfig {
        DatapathConfig {
            device: Some("vethwe-datapath".to_owned()),
            listen: None,
            port: 6783,
            threads: 1,
            origin: Instant::now(),
        }
    }
}

/// State and counters since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathStats {
    /// State of the uplink.
    pub device: DeviceState,
    /// Counters of the sockets.
    pub counts: Counts,
    /// Counters of the forwarders of all threads.
    pub forwarder: Stats,
    /// Events that were dropped because the queue was full.
    pub events_dropped: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub receive_dropped: u64,
}

/// The running data path of a peer. Dropping it stops the threads.
pub struct Datapath {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The uplink until its thread is started.
    device: Option<String>,
}

impl Datapath {
    /// Opens the sockets and starts the threads for datagrams, in the network namespace of the calling thread. The port is bound when
    /// this returns. An uplink requires CAP_NET_RAW: it is an error if the process may not open packet sockets, since that would not
    /// change later.
    pub fn start(
        config: &DatapathConfig,
        tables: Arc<Tables>,
    ) -> Result<(Datapath, EventReceiver), StartError> {
        let failed = |step| move |error| StartError::System { step, error };
        if config.device.is_some() {
            packet::check_support()?;
        }
        let sockets = Arc::new(UdpSockets::open(config.listen, config.port, config.threads)?);
        let events = EventQueue::new().map_err(failed("eventfd"))?;
        let state = match config.device {
            Some(_) => DeviceState::Unavailable("not opened yet".to_owned()),
            None => DeviceState::None,
        };
        let shared = Arc::new(Shared {
            sockets,
            device: ArcSwapOption::empty(),
            device_state: Mutex::new(state),
            tables: ArcSwap::new(tables),
            events: Arc::clone(&events),
            counters: Counters::default(),
            forwarder_stats: (0..config.threads.max(1)).map(|_| Default::default()).collect(),
            origin: config.origin,
            stopping: AtomicBool::new(false),
            wake: WakeFd::new().map_err(failed("eventfd"))?,
        });
        let mut datapath = Datapath { shared, threads: Vec::new(), device: config.device.clone() };
        for number in 0..datapath.shared.sockets.threads() {
            datapath.spawn("weave-udp", move |shared| threads::run_udp(shared, number))?;
        }
        Ok((datapath, EventReceiver::new(events)))
    }

    /// Starts the threads for the frames of local containers, if an uplink is configured. The uplink is opened in the background and its
    /// state reported. With `taps` the frames come from them, and only injected ones pass the uplink.
    pub fn start_device(&mut self, taps: Option<Taps>) -> Result<(), StartError> {
        let Some(device) = self.device.take() else { return Ok(()) };
        let open = |fd| TapReader::new(fd).map_err(|error| StartError::System { step: "TAP device", error });
        let taps = match taps {
            Some(Taps { local, further, relay }) => {
                for (number, queue) in (1..self.shared.forwarder_stats.len()).zip(further) {
                    let queue = open(queue)?;
                    self.spawn("weave-device", move |shared| threads::run_queue(shared, number, queue))?;
                }
                Some((open(local)?, open(relay)?))
            }
            None => None,
        };
        self.spawn("weave-device", move |shared| threads::run_device(shared, &device, taps))
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let reporter = PanicReporter { events: Arc::clone(&self.shared.events), name: name.to_owned() };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _reporter = reporter;
            work(&shared);
        });
        self.threads.push(thread.map_err(|error| StartError::System { step: "thread", error })?);
        Ok(())
    }

    /// The local address of the UDP sockets.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.sockets.local_addr()
    }

    /// Replaces the tables; the threads use them from their next batch on.
    pub fn publish(&self, tables: Arc<Tables>) {
        self.shared.tables.store(tables);
    }

    /// Sends a control datagram immediately, from any thread. A congested device delays the call by up to 20 ms. A datagram that
    /// exceeds the MTU of the interface causes a [`ForwarderEvent::InterfaceMtu`](weave_overlay::ForwarderEvent::InterfaceMtu).
    pub fn transmit(&self, destination: Destination, datagram: &[u8]) {
        let _ = self.transmit_message(destination, datagram, 0);
    }

    /// Sends control datagrams of `segment` bytes in one send, which the kernel cuts, or not at all. Returns whether the kernel has taken
    /// them. A refusal to cut them causes a [`ForwarderEvent::BatchRefused`](weave_overlay::ForwarderEvent::BatchRefused).
    pub fn transmit_batch(&self, destination: Destination, datagrams: &[u8], segment: u16) -> bool {
        self.transmit_message(destination, datagrams, segment)
    }

    fn transmit_message(&self, destination: Destination, bytes: &[u8], segment: u16) -> bool {
        let Shared { sockets, events, counters, .. } = &*self.shared;
        let datagrams = if segment == 0 { 1 } else { bytes.len().div_ceil(segment.into()) as u64 };
        let sent = sockets.send(destination, bytes, segment);
        let is_sent = sent.is_ok();
        let count = match sent {
            Ok(()) => {
                counters.sent_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                counters.sent_messages.fetch_add(1, Ordering::Relaxed);
                &counters.sent
            }
            Err(error) if segment != 0 && is_batch_refused(&error) => {
                report_refused_batch(events, destination);
                &counters.send_dropped_error
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EMSGSIZE) => {
                    if destination.df {
                        report_interface_mtu(sockets, events, destination);
                    }
                    &counters.send_dropped_too_big
                }
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => &counters.send_dropped_busy,
                _ => &counters.send_dropped_error,
            },
        };
        count.fetch_add(datagrams, Ordering::Relaxed);
        is_sent
    }

    /// State of the uplink.
    pub fn device_state(&self) -> DeviceState {
        self.shared.device_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// State and counters as of the last finished batch.
    pub fn stats(&self) -> DatapathStats {
        let mut forwarder = Stats::default();
        for stats in self.shared.forwarder_stats.as_flattened() {
            forwarder += &*stats.lock().unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(device) = &*self.shared.device.load()
            && let Ok(statistics) = device.statistics()
        {
            let dropped = &self.shared.counters.capture_dropped;
            dropped.fetch_add(statistics.drops.into(), Ordering::Relaxed);
        }
        DatapathStats {
            device: self.device_state(),
            counts: self.shared.counters.read(),
            forwarder,
            events_dropped: self.shared.events.dropped(),
            receive_dropped: self.shared.sockets.receive_drops(),
        }
    }

    /// Stops the threads and waits for them. The sockets are closed when this returns.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake.set();
        for thread in self.threads.drain(..) {
            // A panic was reported by `PanicReporter`.
            let _ = thread.join();
        }
    }
}

/// Reports a panic of its thread, so that the daemon does not continue without a data path.
struct PanicReporter {
    events: Arc<EventQueue>,
    name: String,
}

impl Drop for PanicReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.events.push(DatapathEvent::ThreadPanicked(std::mem::take(&mut self.name)));
        }
    }
}

impl Drop for Datapath {
    fn drop(&mut self) {
        self.halt();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weave_switch::{ForwardingTable, MacConfig, MacTable};
    use weave_types::PeerName;

    use super::*;
    use crate::testbed::StaticRoutes;

    #[test]
    fn a_panic_of_a_thread_is_reported() {
        let config = DatapathConfig {
            device: None,
            listen: Some(IpAddr::from([127, 0, 0, 1])),
            port: 0,
            threads: 1,
            origin: Instant::now(),
        };
        let own = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let macs = MacTable::new(MacConfig::new(own)).snapshot();
        let routes = Arc::new(StaticRoutes::direct(1, 2));
        let tables = Tables::new(1, ForwardingTable { own, macs, routes }, Vec::new());
        let (mut datapath, events) = Datapath::start(&config, Arc::new(tables)).unwrap();
        datapath.spawn("weave-good", |_| {}).unwrap();
        datapath.spawn("weave-bad", |_| panic!("intended by this test")).unwrap();
        let reported = events.recv_timeout(Duration::from_secs(20));
        assert_eq!(reported, [DatapathEvent::ThreadPanicked("weave-bad".to_owned())]);
        datapath.stop();
    }
}
