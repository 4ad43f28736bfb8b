use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What the data threads have sent to a neighbour and received from it, for the test of the path
/// (module `liveness`). Counters wrap: only their changes mean something.
#[derive(Debug, Default)]
pub struct Traffic {
    sent: AtomicU32,
    received: AtomicU32,
    heard: AtomicU32,
    /// Nobody looks at the counters: the next datagram with data has to be reported.
    unwatched: AtomicBool,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficCounts {
    /// Datagrams with data that were sent.
    pub sent: u32,
    /// Datagrams with data that arrived.
    pub received: u32,
    /// All datagrams that arrived and are from the neighbour.
    pub heard: u32,
}

/// Wraps as the counters do.
impl AddAssign for TrafficCounts {
    fn add_assign(&mut self, other: TrafficCounts) {
        self.sent = self.sent.wrapping_add(other.sent);
        self.received = self.received.wrapping_add(other.received);
        self.heard = self.heard.wrapping_add(other.heard);
    }
}

impl Traffic {
    /// A datagram with data is sent. Whether this has to be reported.
    pub fn note_sent(&self) -> bool {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.watch()
    }

    /// A datagram from the neighbour arrived. Whether this has to be reported.
    pub fn note_received(&self, has_data: bool) -> bool {
        self.heard.fetch_add(1, Ordering::Relaxed);
        if !has_data {
            return false;
        }
        self.received.fetch_add(1, Ordering::Relaxed);
        self.watch()
    }

    /// Takes over the counters of the kernel, which counts for itself.
    pub fn set(&self, counts: TrafficCounts) {
        self.sent.store(counts.sent, Ordering::Relaxed);
        self.received.store(counts.received, Ordering::Relaxed);
        self.heard.store(counts.heard, Ordering::Relaxed);
    }

    /// Most datagrams find the flag false, and then no processor has to write to it.
    fn watch(&self) -> bool {
        self.unwatched.load(Ordering::Relaxed) && self.unwatched.swap(false, Ordering::Relaxed)
    }

    /// The counters.
    pub fn counts(&self) -> TrafficCounts {
        TrafficCounts {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
            heard: self.heard.load(Ordering::Relaxed),
        }
    }

    /// The next datagram with data has to be reported.
    pub fn unwatch(&self) {
        self.unwatched.store(true, Ordering::Relaxed);
    }
}
