use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use weave_dns::{AnswerKind, ForwarderStats};

/// Counters of the server since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsCounts {
    /// Answered with addresses of a local name.
    pub addresses: u64,
    /// Answered with the local name of an address.
    pub pointers: u64,
    /// A local name without records of the requested type.
    pub no_data: u64,
    /// No such local name.
    pub no_such_name: u64,
    /// Malformed, or of an unknown kind.
    pub malformed: u64,
    /// Questions for other servers, of clients that may not ask these.
    pub not_allowed: u64,
    /// Questions for other servers that the queue of the forwarding task had no room for, answered with SERVFAIL.
    pub queue_full: u64,
    /// Datagrams that are no queries, answers that could not be sent.
    pub dropped: u64,
    /// TCP connections beyond a limit.
    pub refused_connections: u64,
    /// Questions for other servers.
    pub forwarder: ForwarderStats,
}

/// The same, shared by the threads.
#[derive(Debug, Default)]
pub(super) struct Counters {
    answers: [AtomicU64; 5],
    pub(super) not_allowed: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) refused_connections: AtomicU64,
    forwarder: Mutex<ForwarderStats>,
}

/// Answers of one batch.
#[derive(Debug, Default)]
pub(super) struct AnswerCounts([u64; 5]);

impl AnswerCounts {
    pub(super) fn add(&mut self, kind: AnswerKind) {
        self.0[kind as usize] += 1;
    }
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    if count > 0 {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Counters {
    pub(super) fn add_answers(&self, counts: &AnswerCounts) {
        for (counter, count) in self.answers.iter().zip(counts.0) {
            add(counter, count);
        }
    }

    pub(super) fn set_forwarder(&self, stats: ForwarderStats) {
        *self.forwarder.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }

    pub(super) fn read(&self) -> DnsCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let answers = |kind: AnswerKind| read(&self.answers[kind as usize]);
        DnsCounts {
            addresses: answers(AnswerKind::Addresses),
            pointers: answers(AnswerKind::Pointer),
            no_data: answers(AnswerKind::NoData),
            no_such_name: answers(AnswerKind::NoSuchName),
            malformed: answers(AnswerKind::Refused),
            not_allowed: read(&self.not_allowed),
            queue_full: read(&self.queue_full),
            dropped: read(&self.dropped),
            refused_connections: read(&self.refused_connections),
            forwarder: *self.forwarder.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
