use std::time::Duration;

use weave_types::Instant;

use crate::verdict::SwitchEvent;

/// Suppresses repetitions of a [`SwitchEvent`] until its owner has published a table that includes it. One per data thread.
///
/// A repetition may pass, because there are few slots, but an event is suppressed only if it passed within the last
/// [`REPEAT_INTERVAL`](DuplicateFilter::REPEAT_INTERVAL).
#[derive(Clone, Debug)]
pub struct DuplicateFilter {
    slots: Box<[Option<(SwitchEvent, Instant)>; SLOTS]>,
}

const SLOTS: usize = 256;

impl DuplicateFilter {
    /// An event passes again after this time, in case the queue of the owner was full.
    pub const REPEAT_INTERVAL: Duration = Duration::from_millis(100);

    /// Creates a filter that has seen no event.
    pub fn new() -> DuplicateFilter {
        DuplicateFilter { slots: Box::new([None; SLOTS]) }
    }

    /// Whether the event should be reported to the owner.
    pub fn admit(&mut self, event: &SwitchEvent, now: Instant) -> bool {
        let slot = &mut self.slots[slot(event)];
        if let Some((previous, at)) = slot
            && previous == event
            && now.saturating_since(*at) < Self::REPEAT_INTERVAL
        {
            return false;
        }
        *slot = Some((*event, now));
        true
    }
}

impl Default for DuplicateFilter {
    fn default() -> DuplicateFilter {
        DuplicateFilter::new()
    }
}

/// The slot that holds the latest event with this hash.
fn slot(event: &SwitchEvent) -> usize {
    let (SwitchEvent::LocalMac(mac)
    | SwitchEvent::RemoteMac { mac, .. }
    | SwitchEvent::LocalConflict { mac, .. }
    | SwitchEvent::OwnPacket { mac, .. }) = event;
    let kind: u32 = match event {
        SwitchEvent::LocalMac(_) => 0,
        SwitchEvent::RemoteMac { .. } => 1,
        SwitchEvent::LocalConflict { .. } => 2,
        SwitchEvent::OwnPacket { .. } => 3,
    };
    let b = mac.0;
    let mixed =
        u32::from_be_bytes([b[2], b[3], b[4], b[5]]).wrapping_add(kind << 28).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as usize % SLOTS
}
