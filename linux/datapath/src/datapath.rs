use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use arc_swap::{ArcSwap, ArcSwapOption};
use weave_overlay::Destination;
use weave_overlay::forward::{Stats, Tables};
use weave_types::ConnectionId;

use crate::events::{DatapathEvent, EventQueue, EventReceiver, Wake};
use crate::io::report_path_mtu;
use crate::packet;
use crate::stats::{Counters, Counts, DeviceState};
use crate::threads::{self, Shared};
use crate::udp::{OpenUdpError, UdpSockets};

/// What a [`Datapath`] works on.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// The uplink, `vethwe-datapath`; `None` for a peer that only relays. It may be missing at the start.
    pub device: Option<String>,
    /// Where to listen; `None` for all addresses of IPv4.
    pub listen: Option<IpAddr>,
    /// The sleeve port, 6783. 0 lets the kernel choose.
    pub port: u16,
    /// Where the clock starts that `weave_types::Instant` counts from: the daemon's, so that data threads and node mean
    /// the same.
    pub origin: Instant,
}

impl Default for DatapathConfig {
    fn default() -> DatapathConfig {
        DatapathConfig {
            device: Some("vethwe-datapath".to_owned()),
            listen: None,
            port: 6783,
            origin: Instant::now(),
        }
    }
}

/// The data threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No UDP socket; most often the port is taken.
    #[error(transparent)]
    Udp(#[from] OpenUdpError),
    /// The kernel was built without something that is needed, or does not let this process have it.
    #[error("{step}: {why}")]
    Feature {
        /// What was tried.
        step: &'static str,
        /// What is missing and what to do.
        why: &'static str,
    },
    /// Out of descriptors or threads.
    #[error("{step}: {error}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

/// What happened since the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatapathStats {
    /// Whether the uplink works.
    pub device: DeviceState,
    /// At the sockets.
    pub counts: Counts,
    /// In the forwarders of all threads.
    pub forwarder: Stats,
    /// Facts that were lost because nobody took them.
    pub events_dropped: u64,
    /// Datagrams that the kernel dropped because the UDP thread was too slow.
    pub receive_dropped: u64,
}

/// The running data path of one peer. Dropping it stops the threads.
pub struct Datapath {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Datapath {
    /// Opens the sockets and starts the threads, in the network namespace of the calling thread. The port is bound when
    /// this returns; the uplink is opened in the background and its state reported. With an uplink it is an error if this
    /// process cannot have packet sockets: that would never get better. Needs CAP_NET_RAW for the uplink.
    pub fn start(
        config: &DatapathConfig,
        tables: Arc<Tables>,
    ) -> Result<(Datapath, EventReceiver), StartError> {
        let failed = |step| move |error| StartError::System { step, error };
        if config.device.is_some() {
            packet::check()?;
        }
        let sockets = Arc::new(UdpSockets::open(config.listen, config.port)?);
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
            forwarder_stats: Default::default(),
            origin: config.origin,
            stopping: AtomicBool::new(false),
            wake: Wake::new().map_err(failed("eventfd"))?,
        });
        let mut datapath = Datapath { shared, threads: Vec::new() };
        datapath.spawn("weave-udp", threads::run_udp)?;
        if let Some(device) = config.device.clone() {
            datapath.spawn("weave-device", move |shared| threads::run_device(shared, &device))?;
        }
        Ok((datapath, EventReceiver::new(events)))
    }

    fn spawn(
        &mut self,
        name: &str,
        work: impl FnOnce(&Arc<Shared>) + Send + 'static,
    ) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let ended = Ended { events: Arc::clone(&self.shared.events), name: name.to_owned() };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ended = ended;
            work(&shared);
        });
        self.threads.push(thread.map_err(|error| StartError::System { step: "thread", error })?);
        Ok(())
    }

    /// Where the UDP sockets are bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.sockets.local_addr()
    }

    /// Makes the threads use other tables from their next batch on.
    pub fn publish(&self, tables: Arc<Tables>) {
        self.shared.tables.store(tables);
    }

    /// Sends a control datagram at once, from any thread; only a congested device can make it wait, for up to 20 ms. It may
    /// be lost, as on any network; one that is larger than the path takes is answered by a `ForwarderEvent::PathMtu`.
    pub fn transmit(&self, to: SocketAddr, df: bool, datagram: &[u8], conn: ConnectionId) {
        let Shared { sockets, events, counters, .. } = &*self.shared;
        let count = match sockets.send(to, df, datagram) {
            Ok(()) => {
                counters.sent_bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                counters.sent_messages.fetch_add(1, Ordering::Relaxed);
                &counters.sent
            }
            Err(error) => match error.raw_os_error() {
                Some(libc::EMSGSIZE) => {
                    if df {
                        report_path_mtu(sockets, events, Destination { conn, to, df });
                    }
                    &counters.send_dropped_too_big
                }
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => &counters.send_dropped_busy,
                _ => &counters.send_dropped_error,
            },
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the uplink works.
    pub fn device_state(&self) -> DeviceState {
        self.shared.device_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counters, up to date to the last finished batch.
    pub fn stats(&self) -> DatapathStats {
        let mut forwarder = Stats::default();
        for stats in &self.shared.forwarder_stats {
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

    /// Stops the threads and waits for them. Sockets are closed when this returns.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.shared.wake.set();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Tells of a thread that panics: without it frames would go nowhere and nobody knew.
struct Ended {
    events: Arc<EventQueue>,
    name: String,
}

impl Drop for Ended {
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
    fn a_thread_that_panics_is_told_of() {
        let config = DatapathConfig {
            device: None,
            listen: Some(IpAddr::from([127, 0, 0, 1])),
            port: 0,
            origin: Instant::now(),
        };
        let own = PeerName::from_bytes([2, 0, 0, 0, 0, 1]);
        let macs = MacTable::new(MacConfig::new(own)).snapshot();
        let routes = Arc::new(StaticRoutes::direct(1, 2));
        let tables = Tables::new(1, ForwardingTable { own, macs, routes }, Vec::new());
        let (mut datapath, events) = Datapath::start(&config, Arc::new(tables)).unwrap();
        datapath.spawn("weave-good", |_| {}).unwrap();
        datapath.spawn("weave-bad", |_| panic!("on purpose, for a test")).unwrap();
        let told = events.recv_timeout(Duration::from_secs(20));
        assert_eq!(told, [DatapathEvent::ThreadPanicked("weave-bad".to_owned())]);
        datapath.stop();
    }
}
