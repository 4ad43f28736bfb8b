//! Counters of the data threads.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::packet::Injected;
use crate::transmit::Sent;

/// Whether frames come and go through the local bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// None was asked for: this peer only relays.
    None,
    /// Working.
    Up,
    /// Gone or down, for this reason; opened again when it is back.
    Unavailable(String),
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Shared by the threads, which add up per batch.
        #[derive(Debug, Default)]
        pub(crate) struct Counters { $(pub(crate) $name: AtomicU64,)* }

        /// What happened since the start.
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
    /// Frames captured from the bridge; a super-frame is one.
    captured,
    /// Their bytes.
    captured_bytes,
    /// Frames that the kernel dropped because the device thread was too slow.
    capture_dropped,
    /// Captured frames that were too long, or had a header that cannot be obeyed.
    capture_refused,
    /// Frames injected into the bridge; a super-frame is one.
    injected,
    /// Frames that the device did not take.
    inject_dropped,
    /// Datagrams sent.
    sent,
    /// Their bytes.
    sent_bytes,
    /// Messages handed to the kernel for them: fewer, where it cuts.
    sent_messages,
    /// Datagrams dropped because socket or device had no room in time.
    send_dropped_busy,
    /// Datagrams dropped because the path takes less.
    send_dropped_too_big,
    /// Datagrams dropped for any other error, such as no route.
    send_dropped_error,
    /// Datagrams received.
    received,
    /// Their bytes.
    received_bytes,
    /// Messages they came in: fewer, where the kernel merges.
    received_messages,
}

fn add(counter: &AtomicU64, by: u64) {
    if by != 0 {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

impl Counters {
    pub(crate) fn on_injected(&self, injected: Injected) {
        add(&self.injected, injected.sent);
        add(&self.inject_dropped, injected.dropped);
    }

    pub(crate) fn on_sent(&self, sent: Sent) {
        add(&self.sent, sent.datagrams);
        add(&self.sent_bytes, sent.bytes);
        add(&self.sent_messages, sent.messages);
        add(&self.send_dropped_busy, sent.dropped_busy);
        add(&self.send_dropped_too_big, sent.dropped_too_big);
        add(&self.send_dropped_error, sent.dropped_error);
    }

    pub(crate) fn on_captured(&self, frames: u64, bytes: u64, refused: u64) {
        add(&self.captured, frames);
        add(&self.captured_bytes, bytes);
        add(&self.capture_refused, refused);
    }

    pub(crate) fn on_received(&self, messages: u64, datagrams: u64, bytes: u64) {
        add(&self.received_messages, messages);
        add(&self.received, datagrams);
        add(&self.received_bytes, bytes);
    }
}
