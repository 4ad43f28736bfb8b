//! The data threads.
//!
//! ```text
//!  uplink --capture--> device threads --(Forwarder)--> UDP        ICMP answers are injected
//!  UDP    -----------> UDP threads    --(Forwarder)--> uplink     relayed frames go to UDP
//! ```
//! Each owns a forwarder and waits in poll. A batch is what one receive call returns. Everything that it causes is sent before
//! the next receive call.
//!
//! There are as many of each kind as [`DatapathConfig::threads`](crate::DatapathConfig) says. The kernel gives the frames of a flow to one
//! queue of the TAP device, so to one device thread; that sends on its lane of warp, by which the neighbour's kernel chooses the UDP
//! thread. Frames that come by a packet socket pass one device thread, datagrams of sleeve one UDP thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time;

use arc_swap::{ArcSwap, ArcSwapOption};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket};
use weave_overlay::forward::{Forwarder, Stats, Tables};
use weave_types::Instant;

use crate::events::{DatapathEvent, EventQueue, WakeFd};
use crate::io::KernelIo;
use crate::packet::{MAX_FRAME, PacketSocket};
use crate::stats::{Counters, DeviceState};
use crate::sys::RecvBatch;
use crate::tap::{self, RelayedFrame, TapReader};
use crate::udp::{self, UdpSockets};

/// Maximum number of messages per call: enough for the segments of a super-frame, so that they can be merged.
const MAX_MESSAGES: usize = 64;
/// Number of messages per call at low load.
const MIN_MESSAGES: usize = 8;
/// Bytes per call that fit the second-level cache, so that the data that the kernel copied is still cached when it is processed.
/// Batches of super-frames exceed it.
const BATCH_BYTES: u64 = 256 << 10;
/// Maximum number of batches from one socket before the other is read.
const MAX_BATCHES: usize = 8;
/// Milliseconds between attempts to open a missing device. A change of network interfaces causes an immediate attempt.
const REOPEN_INTERVAL_MS: u16 = 1000;
/// The same for reading a TAP device that is missing.
const TAP_INTERVAL_MS: u16 = 50;

/// The number of messages that the next receive call asks for, adapted to the load.
struct BatchSize(usize);

impl BatchSize {
    /// Adapts to the result of a call. Returns whether there may be more messages.
    fn update(&mut self, count: usize, bytes: u64) -> bool {
        let full = count == self.0;
        if bytes > BATCH_BYTES || count * 4 < self.0 {
            self.0 = (self.0 / 2).max(MIN_MESSAGES);
        } else if full {
            self.0 = (self.0 * 2).min(MAX_MESSAGES);
        }
        full
    }
}

/// The receive buffers of a socket.
struct ReceiveBuffers {
    batch: RecvBatch,
    size: BatchSize,
}

impl ReceiveBuffers {
    fn new(message_len: usize) -> ReceiveBuffers {
        ReceiveBuffers { batch: RecvBatch::new(MAX_MESSAGES, message_len), size: BatchSize(MIN_MESSAGES) }
    }
}

/// State shared by the threads and the [`Datapath`](crate::Datapath) handle.
pub(crate) struct Shared {
    pub(crate) sockets: Arc<UdpSockets>,
    pub(crate) device: ArcSwapOption<PacketSocket>,
    pub(crate) device_state: Mutex<DeviceState>,
    pub(crate) tables: ArcSwap<Tables>,
    pub(crate) events: Arc<EventQueue>,
    pub(crate) counters: Counters,
    /// Those of the device thread (0) and the UDP thread (1) of each number.
    pub(crate) forwarder_stats: Vec<[Mutex<Stats>; 2]>,
    pub(crate) origin: time::Instant,
    pub(crate) stopping: AtomicBool,
    /// Set when the threads must stop, and never cleared.
    pub(crate) wake: WakeFd,
}

impl Shared {
    fn now(&self) -> Instant {
        Instant::from_origin(self.origin.elapsed())
    }

    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn set_device_state(&self, state: DeviceState) {
        let mut current = self.device_state.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != state {
            current.clone_from(&state);
            self.events.push(DatapathEvent::Device(state));
        }
    }
}

/// The forwarder of one thread with its batches.
struct Worker {
    shared: Arc<Shared>,
    forwarder: Forwarder,
    io: KernelIo,
    kind: Kind,
    /// Number of this thread among those of its kind, and of its lane.
    number: usize,
}

/// Index in `Shared::forwarder_stats`.
#[derive(Clone, Copy)]
enum Kind {
    Device = 0,
    Udp = 1,
}

impl Worker {
    fn new(shared: &Arc<Shared>, kind: Kind, number: usize) -> Worker {
        let shared = Arc::clone(shared);
        let forwarder = Forwarder::new(shared.tables.load_full(), number);
        let io = KernelIo::new(Arc::clone(&shared.sockets), Arc::clone(&shared.events));
        Worker { shared, forwarder, io, kind, number }
    }

    fn begin(&mut self) -> Instant {
        let now = self.shared.now();
        self.io.begin(self.shared.device.load_full(), now);
        let tables = self.shared.tables.load();
        if !Arc::ptr_eq(&tables, self.forwarder.tables()) {
            self.forwarder.set_tables(Arc::clone(&tables), &mut self.io);
        }
        now
    }

    fn finish(&mut self) {
        self.forwarder.flush(&mut self.io);
        self.io.finish(&self.shared.counters);
        let stats = &self.shared.forwarder_stats[self.number][self.kind as usize];
        *stats.lock().unwrap_or_else(PoisonError::into_inner) = *self.forwarder.stats();
    }

    /// Handles one batch of frames. Returns whether there may be more, or an error if the device is gone.
    fn capture(&mut self, device: &PacketSocket, buffers: &mut ReceiveBuffers) -> io::Result<bool> {
        let ReceiveBuffers { batch, size } = buffers;
        let count = match device.receive(batch, size.0) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let now = self.begin();
        let (mut bytes, mut refused) = (0, 0);
        for index in 0..count {
            match device.frame(batch, index) {
                Some(Ok((frame, offload))) => {
                    bytes += frame.len() as u64;
                    self.forwarder.handle_local(frame, offload, now, &mut self.io);
                }
                Some(Err(_)) => refused += 1,
                None => {}
            }
        }
        self.finish();
        self.shared.counters.add_captured(count as u64, bytes, refused);
        Ok(size.update(count, bytes))
    }

    /// Handles one batch of frames of the TAP devices. Returns whether there may be more.
    fn read_taps(&mut self, local: &mut TapReader, mut relay: Option<&mut TapReader>) -> io::Result<bool> {
        let now = self.begin();
        let (mut frames, mut bytes, mut refused, mut more) = (0, 0, 0, true);
        while more && frames < MAX_MESSAGES as u64 && bytes < BATCH_BYTES {
            more = false;
            if let Some(message) = local.read()? {
                more = true;
                frames += 1;
                bytes += message.len() as u64;
                match tap::local_frame(message) {
                    Ok((frame, offload)) => self.forwarder.handle_local(frame, offload, now, &mut self.io),
                    Err(_) => refused += 1,
                }
            }
            if let Some(relay) = &mut relay
                && let Some(message) = relay.read()?
            {
                more = true;
                frames += 1;
                bytes += message.len() as u64;
                match tap::relayed_frame(message) {
                    Some(RelayedFrame { src, dst, frame }) => {
                        self.forwarder.handle_relayed(src, dst, frame, now, &mut self.io);
                    }
                    None => refused += 1,
                }
            }
        }
        self.finish();
        self.shared.counters.add_captured(frames, bytes, refused);
        Ok(more)
    }

    /// Handles one batch of datagrams. Returns whether there may be more.
    fn receive(&mut self, socket: BorrowedFd<'_>, buffers: &mut ReceiveBuffers) -> bool {
        // An error is an ICMP message from the network or a temporary shortage; the next poll continues.
        let ReceiveBuffers { batch, size } = buffers;
        let Ok(count) = batch.receive(socket, size.0) else { return false };
        let now = self.begin();
        let (mut bytes, mut datagrams) = (0, 0);
        for index in 0..count {
            let message = batch.message(index);
            let Some(from) = message.from else { continue };
            let segment = udp::segment_size(&message);
            bytes += message.data.len() as u64;
            for datagram in message.data.chunks_mut(segment) {
                datagrams += 1;
                self.forwarder.handle_datagram(from, datagram, now, &mut self.io);
            }
        }
        self.finish();
        self.shared.counters.add_received(count as u64, datagrams, bytes);
        size.update(count, bytes)
    }
}

/// Where the device thread gets the frames from.
enum Source {
    /// All frames from the bridge.
    PacketSocket(ReceiveBuffers),
    /// What the kernel does not forward itself.
    Taps { local: TapReader, relay: TapReader },
}

/// The first device thread: handles frames from the bridge until stopped.
pub(crate) fn run_device(shared: &Arc<Shared>, name: &str, taps: Option<(TapReader, TapReader)>) {
    let mut worker = Worker::new(shared, Kind::Device, 0);
    let mut source = match taps {
        Some((local, relay)) => Source::Taps { local, relay },
        None => Source::PacketSocket(ReceiveBuffers::new(MAX_FRAME)),
    };
    let captures = matches!(source, Source::PacketSocket(_));
    let monitor = interface_monitor().ok();
    while !shared.stopping() {
        match PacketSocket::open(name, captures) {
            Ok(device) => {
                let device = Arc::new(device);
                shared.device.store(Some(Arc::clone(&device)));
                shared.set_device_state(DeviceState::Up);
                let reason = match &mut source {
                    Source::PacketSocket(buffers) => {
                        capture_until_lost(shared, &mut worker, &device, buffers)
                    }
                    Source::Taps { local, relay } => {
                        read_until_lost(shared, &mut worker, Some(&device), local, Some(relay))
                    }
                };
                shared.device.store(None);
                if let Some(error) = reason {
                    shared.set_device_state(DeviceState::Unavailable(format!("device {name}: {error}")));
                }
            }
            Err(error) => {
                shared.set_device_state(DeviceState::Unavailable(error.to_string()));
                wait_for_interfaces(shared, monitor.as_ref());
            }
        }
    }
}

/// Handles frames until the device is gone; returns `None` when stopping.
fn capture_until_lost(
    shared: &Shared,
    worker: &mut Worker,
    device: &PacketSocket,
    buffers: &mut ReceiveBuffers,
) -> Option<io::Error> {
    while !shared.stopping() {
        let mut polled = [device.poll_fd(), shared.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // The result does not matter: reading the socket without waiting is always safe.
        let _ = poll(&mut polled, PollTimeout::NONE);
        loop {
            match worker.capture(device, buffers) {
                Ok(true) if !shared.stopping() => {}
                Ok(_) => break,
                Err(error) => return Some(error),
            }
        }
    }
    None
}

/// Handles frames of the TAP devices until the uplink, if it is given, is gone; returns `None` when stopping.
fn read_until_lost(
    shared: &Shared,
    worker: &mut Worker,
    device: Option<&PacketSocket>,
    local: &mut TapReader,
    mut relay: Option<&mut TapReader>,
) -> Option<io::Error> {
    let wake = shared.wake.as_fd();
    while !shared.stopping() {
        let input = PollFlags::POLLIN;
        let mut polled = [
            PollFd::new(local.fd(), input),
            PollFd::new(relay.as_deref().map_or(wake, TapReader::fd), input),
            PollFd::new(wake, input),
            PollFd::new(device.map_or(wake, PacketSocket::poll_fd), PollFlags::empty()),
        ];
        let _ = poll(&mut polled, PollTimeout::NONE);
        if polled[3].any().unwrap_or(true)
            && let Some(device) = device
            && let Err(error) = device.pending_error()
        {
            return Some(error);
        }
        loop {
            match worker.read_taps(local, relay.as_deref_mut()) {
                Ok(true) if !shared.stopping() => {}
                Ok(_) => break,
                Err(_) => {
                    shared.events.push(DatapathEvent::TapLost);
                    // Polling a queue without a device would not wait.
                    let mut polled = [PollFd::new(wake, input)];
                    let _ = poll(&mut polled, PollTimeout::from(TAP_INTERVAL_MS));
                    break;
                }
            }
        }
    }
    None
}

/// A further device thread: handles the frames of one queue of the TAP device until stopped.
pub(crate) fn run_queue(shared: &Arc<Shared>, number: usize, mut queue: TapReader) {
    let mut worker = Worker::new(shared, Kind::Device, number);
    read_until_lost(shared, &mut worker, None, &mut queue, None);
}

fn interface_monitor() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let monitor = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&monitor), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
    Ok(monitor)
}

/// Waits until a network interface changes, [`REOPEN_INTERVAL_MS`] has passed, or the threads must stop. The notifications are
/// only discarded: the next attempt to open the device shows its state.
fn wait_for_interfaces(shared: &Shared, monitor: Option<&OwnedFd>) {
    let wake = shared.wake.as_fd();
    let mut polled = [wake, monitor.map_or(wake, AsFd::as_fd)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut polled, PollTimeout::from(REOPEN_INTERVAL_MS));
    let mut message = [0; 8192];
    // An overrun is reported once, as an error, before the remaining messages.
    while monitor
        .is_some_and(|monitor| !matches!(nix::unistd::read(monitor, &mut message), Err(nix::Error::EAGAIN)))
    {
    }
}

/// A UDP thread: handles datagrams from neighbours until stopped.
pub(crate) fn run_udp(shared: &Arc<Shared>, number: usize) {
    let mut worker = Worker::new(shared, Kind::Udp, number);
    let mut buffers = ReceiveBuffers::new(udp::MAX_MESSAGE);
    let sockets = Arc::clone(&shared.sockets);
    let sockets = sockets.of_thread(number);
    let all = || sockets.iter().copied().chain([shared.wake.as_fd()]);
    let mut polled: Vec<_> = all().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    while !shared.stopping() {
        let _ = poll(&mut polled, PollTimeout::NONE);
        for (socket, polled) in sockets.iter().zip(&polled) {
            let mut batches = if polled.any().unwrap_or(true) { MAX_BATCHES } else { 0 };
            while batches > 0 && worker.receive(*socket, &mut buffers) {
                batches -= 1;
            }
        }
    }
}
