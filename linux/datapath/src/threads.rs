//! The two data threads.
//!
//! ```text
//!  uplink --capture--> device thread --(Forwarder)--> UDP        ICMP answers are injected
//!  UDP    -----------> UDP thread    --(Forwarder)--> uplink     relayed frames go to UDP
//! ```
//! Each owns a forwarder and waits in poll. A batch is what one call brings; whatever it leads to has left before the
//! next call, so that nothing waits for company.

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

use crate::DeviceState;
use crate::events::{DatapathEvent, EventQueue, Wake};
use crate::io::KernelIo;
use crate::packet::{MAX_FRAME, PacketSocket};
use crate::stats::Counters;
use crate::sys::RecvBatch;
use crate::udp::{self, UdpSockets};

/// Messages per call, at most: as many segments as make a super-frame, so that those that arrive one by one can be merged.
const SLOTS: usize = 64;
/// Messages per call when there is little to do.
const FEW_SLOTS: usize = 8;
/// Bytes per call that still lie in the second-level cache between the kernel's copy and ours. Super-frames exceed it.
const BATCH_BYTES: u64 = 256 << 10;
/// Batches from one socket before the others are looked at.
const TURN: usize = 8;
/// A lost device is looked for when links change, and this often, in milliseconds.
const REOPEN_INTERVAL_MS: u16 = 1000;

/// How many messages the next call asks for.
struct Pace(usize);

impl Pace {
    /// After a call that brought so much. Whether there may be more.
    fn next(&mut self, count: usize, bytes: u64) -> bool {
        let full = count == self.0;
        if bytes > BATCH_BYTES || count * 4 < self.0 {
            self.0 = (self.0 / 2).max(FEW_SLOTS);
        } else if full {
            self.0 = (self.0 * 2).min(SLOTS);
        }
        full
    }
}

/// A receiving socket's buffers.
struct Inbox {
    batch: RecvBatch,
    pace: Pace,
}

impl Inbox {
    fn new(message: usize) -> Inbox {
        Inbox { batch: RecvBatch::new(SLOTS, message), pace: Pace(FEW_SLOTS) }
    }
}

/// What the threads and the handle share.
pub(crate) struct Shared {
    pub(crate) sockets: Arc<UdpSockets>,
    pub(crate) device: ArcSwapOption<PacketSocket>,
    pub(crate) device_state: Mutex<DeviceState>,
    pub(crate) tables: ArcSwap<Tables>,
    pub(crate) events: Arc<EventQueue>,
    pub(crate) counters: Counters,
    pub(crate) forwarder_stats: [Mutex<Stats>; 2],
    pub(crate) origin: time::Instant,
    pub(crate) stopping: AtomicBool,
    /// Set for good when stopping.
    pub(crate) wake: Wake,
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

/// One thread's forwarder with its batches.
struct Worker {
    shared: Arc<Shared>,
    forwarder: Forwarder,
    io: KernelIo,
    /// Which of `Shared::forwarder_stats` is ours.
    index: usize,
}

impl Worker {
    fn new(shared: Arc<Shared>, index: usize) -> Worker {
        let forwarder = Forwarder::new(shared.tables.load_full());
        let io = KernelIo::new(Arc::clone(&shared.sockets), Arc::clone(&shared.events));
        Worker { shared, forwarder, io, index }
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
        let mut stats =
            self.shared.forwarder_stats[self.index].lock().unwrap_or_else(PoisonError::into_inner);
        *stats = *self.forwarder.stats();
    }

    /// One batch of frames. Whether there may be more, or an error that says that the device is gone.
    fn capture(&mut self, device: &PacketSocket, inbox: &mut Inbox) -> io::Result<bool> {
        let Inbox { batch, pace } = inbox;
        let count = match device.receive(batch, pace.0) {
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
        self.shared.counters.on_captured(count as u64, bytes, refused);
        Ok(pace.next(count, bytes))
    }

    /// One batch of datagrams. Whether there may be more.
    fn receive(&mut self, socket: BorrowedFd<'_>, inbox: &mut Inbox) -> bool {
        // An error is somebody's ICMP message, or a passing shortage: the next poll tells.
        let Inbox { batch, pace } = inbox;
        let Ok(count) = batch.receive(socket, pace.0) else { return false };
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
        self.shared.counters.on_received(count as u64, datagrams, bytes);
        pace.next(count, bytes)
    }
}

/// Runs until stopped: frames from the bridge.
pub(crate) fn run_device(shared: &Arc<Shared>, name: &str) {
    let mut worker = Worker::new(Arc::clone(shared), 0);
    let mut inbox = Inbox::new(MAX_FRAME);
    let links = link_monitor().ok();
    while !shared.stopping() {
        match PacketSocket::open(name) {
            Ok(device) => {
                let device = Arc::new(device);
                shared.device.store(Some(Arc::clone(&device)));
                shared.set_device_state(DeviceState::Up);
                let reason = capture_until_lost(shared, &mut worker, &device, &mut inbox);
                shared.device.store(None);
                if let Some(error) = reason {
                    shared.set_device_state(DeviceState::Unavailable(format!("device {name}: {error}")));
                }
            }
            Err(error) => {
                shared.set_device_state(DeviceState::Unavailable(error.to_string()));
                wait_for_links(shared, links.as_ref());
            }
        }
    }
}

/// `None` when stopping.
fn capture_until_lost(
    shared: &Shared,
    worker: &mut Worker,
    device: &PacketSocket,
    inbox: &mut Inbox,
) -> Option<io::Error> {
    while !shared.stopping() {
        let mut polled =
            [device.capture_fd(), shared.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        // Interrupted or not: the sockets are asked.
        let _ = poll(&mut polled, PollTimeout::NONE);
        loop {
            match worker.capture(device, inbox) {
                Ok(true) if !shared.stopping() => {}
                Ok(_) => break,
                Err(error) => return Some(error),
            }
        }
    }
    None
}

fn link_monitor() -> nix::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let monitor = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&monitor), &NetlinkAddr::new(0, libc::RTMGRP_LINK as u32))?;
    Ok(monitor)
}

/// Waits until something happened to a link, for a while, or until stopping. What happened is not read: the attempt to
/// open the device tells.
fn wait_for_links(shared: &Shared, links: Option<&OwnedFd>) {
    let wake = shared.wake.as_fd();
    let mut polled = [wake, links.map_or(wake, AsFd::as_fd)].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let _ = poll(&mut polled, PollTimeout::from(REOPEN_INTERVAL_MS));
    let mut message = [0; 8192];
    // An overrun is reported once, as an error, before what is left.
    while links
        .is_some_and(|links| !matches!(nix::unistd::read(links, &mut message), Err(nix::Error::EAGAIN)))
    {}
}

/// Runs until stopped: datagrams from neighbours.
pub(crate) fn run_udp(shared: &Arc<Shared>) {
    let mut worker = Worker::new(Arc::clone(shared), 1);
    let mut inbox = Inbox::new(udp::MESSAGE);
    let sockets = Arc::clone(&shared.sockets);
    let [first, second] = sockets.both();
    while !shared.stopping() {
        let mut polled = [first, second, shared.wake.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        let _ = poll(&mut polled, PollTimeout::NONE);
        let ready = [polled[0].any(), polled[1].any()].map(|any| any.unwrap_or(true));
        for (socket, ready) in [first, second].into_iter().zip(ready) {
            let mut turns = if ready { TURN } else { 0 };
            while turns > 0 && worker.receive(socket, &mut inbox) {
                turns -= 1;
            }
        }
    }
}
