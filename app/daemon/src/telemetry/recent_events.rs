//! The latest events of the node, for the live picture.

use std::collections::VecDeque;
use std::time::Duration;

use weave_api::network_view::Event;

/// Events that are kept.
const MAX_EVENTS: usize = 50;
/// Characters of an event that are kept.
const MAX_LENGTH: usize = 300;

#[derive(Debug, Default)]
pub(crate) struct RecentEvents(VecDeque<Event>);

impl RecentEvents {
    /// `time` since the Unix epoch.
    pub(crate) fn record(&mut self, text: &str, time: Duration) {
        if self.0.len() == MAX_EVENTS {
            self.0.pop_front();
        }
        self.0.push_back(Event { time: millis(time), text: text.chars().take(MAX_LENGTH).collect() });
    }

    /// The oldest first.
    pub(crate) fn list(&self) -> Vec<Event> {
        self.0.iter().cloned().collect()
    }
}

/// Milliseconds of a time since the Unix epoch.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_and_length_of_events_are_limited() {
        let mut events = RecentEvents::default();
        for n in 0..1000 {
            events.record(&format!("{n} {}", "ä".repeat(1000)), Duration::from_secs(n));
        }
        let list = events.list();
        assert_eq!((list.len(), list[0].time, list[49].time), (MAX_EVENTS, 950_000, 999_000));
        assert!(list.iter().all(|event| event.text.chars().count() == MAX_LENGTH));
    }
}
