//! The events of data threads: a bounded queue with a descriptor to wait on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weave_overlay::ForwarderEvent;

use crate::stats::DeviceState;
use crate::sys;

/// Maximum number of queued forwarder events. A lost event repeats while its cause persists.
const CAPACITY: usize = 1024;
/// Number of queued events that a new one is compared with to suppress duplicates.
const COMPARED: usize = 16;

/// An event of a data thread.
#[derive(Clone, Debug, PartialEq)]
pub enum DatapathEvent {
    /// An event for the node.
    Forwarder(ForwarderEvent),
    /// The state of the uplink changed.
    Device(DeviceState),
    /// A queue of a TAP device cannot be read: the device may have been removed. It is read again once the queue belongs to a device.
    TapLost,
    /// The data thread with this name panicked. Not reported if panics abort the process.
    ThreadPanicked(String),
}

#[derive(Debug)]
pub(crate) struct EventQueue {
    queued: Mutex<VecDeque<DatapathEvent>>,
    dropped: AtomicU64,
    wake: WakeFd,
}

impl EventQueue {
    pub(crate) fn new() -> io::Result<Arc<EventQueue>> {
        let queued = Mutex::new(VecDeque::with_capacity(CAPACITY));
        Ok(Arc::new(EventQueue { queued, dropped: AtomicU64::new(0), wake: WakeFd::new()? }))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<DatapathEvent>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, unless an equal one is among the latest. Only forwarder events are ever dropped.
    pub(crate) fn push(&self, event: DatapathEvent) {
        let mut waiting = self.lock();
        let is_forwarder_event = matches!(event, DatapathEvent::Forwarder(_));
        let repeats = is_forwarder_event || event == DatapathEvent::TapLost;
        if repeats && waiting.iter().rev().take(COMPARED).any(|other| *other == event) {
            return;
        }
        if is_forwarder_event && waiting.len() >= CAPACITY {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push_back(event);
        if waiting.len() == 1 {
            self.wake.set();
        }
    }

    /// Number of events dropped because the queue was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The receiving end of the queue. Its descriptor is readable while there are events to [`drain`](EventReceiver::drain);
/// [`recv_timeout`](EventReceiver::recv_timeout) waits for them.
#[derive(Debug)]
pub struct EventReceiver {
    queue: Arc<EventQueue>,
}

impl EventReceiver {
    pub(crate) fn new(queue: Arc<EventQueue>) -> EventReceiver {
        EventReceiver { queue }
    }

    /// Moves all queued events, in order, to `into`. Never blocks.
    pub fn drain(&self, into: &mut Vec<DatapathEvent>) {
        let mut waiting = self.queue.lock();
        self.queue.wake.clear();
        into.extend(waiting.drain(..));
    }

    /// Waits until there are events or the timeout expires, and returns them.
    pub fn recv_timeout(&self, timeout: Duration) -> Vec<DatapathEvent> {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let mut events = Vec::new();
        // The result does not matter: draining the queue is always safe.
        let _ = poll(&mut polled, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        self.drain(&mut events);
        events
    }
}

impl AsFd for EventReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.wake.as_fd()
    }
}

/// A descriptor that is readable between `set` and `clear`.
#[derive(Debug)]
pub(crate) struct WakeFd(OwnedFd);

impl WakeFd {
    pub(crate) fn new() -> io::Result<WakeFd> {
        sys::eventfd().map(WakeFd)
    }

    /// Cannot fail unless the counter reaches 2^64 - 1.
    pub(crate) fn set(&self) {
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for WakeFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use weave_switch::SwitchEvent;
    use weave_types::MacAddr;

    use super::*;

    fn mac(i: u16) -> DatapathEvent {
        let [a, b] = i.to_be_bytes();
        DatapathEvent::Forwarder(ForwarderEvent::Switch(SwitchEvent::LocalMac(MacAddr([2, 0, 0, 0, a, b]))))
    }

    #[test]
    fn duplicate_events_are_suppressed_and_order_is_kept() {
        let queue = EventQueue::new().unwrap();
        let receiver = EventReceiver::new(Arc::clone(&queue));
        assert_eq!(receiver.recv_timeout(Duration::ZERO), []);
        for i in [1, 2, 1, 2, 3] {
            queue.push(mac(i));
        }
        queue.push(DatapathEvent::Device(DeviceState::Up));
        assert_eq!(
            receiver.recv_timeout(Duration::from_secs(2)),
            [mac(1), mac(2), mac(3), DatapathEvent::Device(DeviceState::Up)]
        );
        assert_eq!(receiver.recv_timeout(Duration::ZERO), []);
        queue.push(mac(1));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(2)), [mac(1)]);
    }

    #[test]
    fn queue_is_bounded_without_a_receiver() {
        let queue = EventQueue::new().unwrap();
        let receiver = EventReceiver::new(Arc::clone(&queue));
        for i in 0..2000 {
            queue.push(mac(i));
        }
        queue.push(DatapathEvent::Device(DeviceState::Up));
        assert_eq!(queue.dropped(), 2000 - CAPACITY as u64);
        let mut got = Vec::new();
        receiver.drain(&mut got);
        assert_eq!((got.len(), got.last()), (CAPACITY + 1, Some(&DatapathEvent::Device(DeviceState::Up))));
    }
}
