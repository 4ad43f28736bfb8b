//! What data threads tell the daemon: a bounded queue with a descriptor to wait on.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use weave_overlay::ForwarderEvent;

use crate::DeviceState;
use crate::sys;

/// Reports that may wait. Facts come again if what caused them goes on, so losing some costs only time.
const CAPACITY: usize = 1024;
/// How many of the latest reports a new one is compared with.
const COMPARED: usize = 16;

/// One thing that a data thread has seen.
#[derive(Clone, Debug, PartialEq)]
pub enum DatapathEvent {
    /// For the node.
    Forwarder(ForwarderEvent),
    /// The uplink came, or went.
    Device(DeviceState),
    /// A data thread with this name panicked. Where panics end the process nobody hears of it.
    ThreadPanicked(String),
}

#[derive(Debug)]
pub(crate) struct EventQueue {
    waiting: Mutex<VecDeque<DatapathEvent>>,
    dropped: AtomicU64,
    wake: Wake,
}

impl EventQueue {
    pub(crate) fn new() -> io::Result<Arc<EventQueue>> {
        let waiting = Mutex::new(VecDeque::with_capacity(CAPACITY));
        Ok(Arc::new(EventQueue { waiting, dropped: AtomicU64::new(0), wake: Wake::new()? }))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<DatapathEvent>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a report, unless an equal one is among the latest. Only facts are ever dropped.
    pub(crate) fn push(&self, report: DatapathEvent) {
        let mut waiting = self.lock();
        let is_fact = matches!(report, DatapathEvent::Forwarder(_));
        if is_fact && waiting.iter().rev().take(COMPARED).any(|other| *other == report) {
            return;
        }
        if is_fact && waiting.len() >= CAPACITY {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.push_back(report);
        if waiting.len() == 1 {
            self.wake.set();
        }
    }

    /// Facts lost because nobody took them.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The daemon's end. Waits by polling its descriptor, which is readable while there is something to
/// [`drain`](EventReceiver::drain), or in [`recv_timeout`](EventReceiver::recv_timeout).
#[derive(Debug)]
pub struct EventReceiver {
    queue: Arc<EventQueue>,
}

impl EventReceiver {
    pub(crate) fn new(queue: Arc<EventQueue>) -> EventReceiver {
        EventReceiver { queue }
    }

    /// Takes all that waits, in order, into `into`. Never blocks.
    pub fn drain(&self, into: &mut Vec<DatapathEvent>) {
        let mut waiting = self.queue.lock();
        self.queue.wake.clear();
        into.extend(waiting.drain(..));
    }

    /// Waits until there is something, or the time is over, and takes it.
    pub fn recv_timeout(&self, timeout: Duration) -> Vec<DatapathEvent> {
        let mut polled = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        let mut reports = Vec::new();
        // Whatever ends the wait, the queue knows.
        let _ = poll(&mut polled, PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX));
        self.drain(&mut reports);
        reports
    }
}

impl AsFd for EventReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.wake.as_fd()
    }
}

/// A descriptor that is readable while it is set.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        sys::eventfd().map(Wake)
    }

    /// Cannot fail: the counter would have to reach 2^64 - 1.
    pub(crate) fn set(&self) {
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Wake {
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
    fn equal_facts_are_told_once_and_the_rest_in_order() {
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
    fn a_daemon_that_does_not_listen_costs_bounded_memory() {
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
