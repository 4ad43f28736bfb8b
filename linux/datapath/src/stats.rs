//! Counters of the data threads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::InjectCounts;
use crate::transmit::SendCounts;

/// State of the uplink, the connection to the local bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// No uplink is configured: this peer only relays.
    None,
    /// The device works.
    Up,
    /// The device is missing or down, for this reason. It is opened as soon as it is back.
    Unavailable(String),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters shared by the threads, updated once per batch.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        /// Counters since the start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts { $($(#[$doc])* pub $name: u64,)* }

        impl Counters {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Frames captured from the bridge; a super-frame counts once.
    captured,
    /// Bytes of captured frames.
    captured_bytes,
    /// Frames that the kernel dropped because the capture buffer was full.
    capture_dropped,
    /// Captured frames that were too long or had an invalid virtio header.
    capture_refused,
    /// Frames injected into the bridge; a super-frame counts once.
    injected,
    /// Frames that the device did not accept.
    inject_dropped,
    /// Datagrams sent.
    sent,
    /// Bytes of sent datagrams.
    sent_bytes,
    /// Messages passed to the kernel; fewer than datagrams if it segments.
    sent_messages,
    /// Datagrams dropped because socket or device stayed full.
    send_dropped_busy,
    /// Datagrams dropped because they exceed the path MTU.
    send_dropped_too_big,
    /// Datagrams dropped for any other error, such as no route.
    send_dropped_error,
    /// Datagrams received.
    received,
    /// Bytes of received datagrams.
    received_bytes,
    /// Messages received from the kernel; fewer than datagrams if it merges.
    received_messages,
}

fn add(counter: &AtomicU64, by: u64) {
    if by != 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn add_injected(&self, injected: InjectCounts) {
        add(&self.injected, injected.sent);
        add(&self.inject_dropped, injected.dropped);
    }

    pub(crate) fn add_sent(&self, sent: SendCounts) {
        add(&self.sent, sent.datagrams);
        add(&self.sent_bytes, sent.bytes);
        add(&self.sent_messages, sent.messages);
        add(&self.send_dropped_busy, sent.dropped_busy);
        add(&self.send_dropped_too_big, sent.dropped_too_big);
        add(&self.send_dropped_error, sent.dropped_error);
    }

    pub(crate) fn add_captured(&self, frames: u64, bytes: u64, refused: u64) {
        add(&self.captured, frames);
        add(&self.captured_bytes, bytes);
        add(&self.capture_refused, refused);
    }

    pub(crate) fn add_received(&self, messages: u64, datagrams: u64, bytes: u64) {
        add(&self.received_messages, messages);
        add(&self.received, datagrams);
        add(&self.received_bytes, bytes);
    }
}
