use std::time::Duration;

use weave_types::Instant;

use crate::SwitchEvent;

/// Holds back repetitions of a [`SwitchEvent`] while its owner is busy making the table that knows it. One per data thread.
///
/// It may forget and let a repetition pass (there are few slots), but it never holds back a fact that it has not let
/// pass within the last [`PAUSE`](DuplicateFilter::PAUSE).
#[derive(Clone, Debug)]
pub struct DuplicateFilter {
    slots: Box<[Option<(SwitchEvent, Instant)>; SLOTS]>,
}

const SLOTS: usize = 256;

impl DuplicateFilter {
    /// A fact passes again after this time, in case the channel to the owner was full.
    pub const PAUSE: Duration = Duration::from_millis(100);

    /// Nothing held back yet.
    pub fn new() -> DuplicateFilter {
        DuplicateFilter { slots: Box::new([None; SLOTS]) }
    }

    /// Whether the owner should be told.
    pub fn admit(&mut self, fact: &SwitchEvent, now: Instant) -> bool {
        let slot = &mut self.slots[slot(fact)];
        if let Some((held, at)) = slot
            && held == fact
            && now.saturating_since(*at) < Self::PAUSE
        {
            return false;
        }
        *slot = Some((*fact, now));
        true
    }
}

impl Default for DuplicateFilter {
    fn default() -> DuplicateFilter {
        DuplicateFilter::new()
    }
}

fn slot(fact: &SwitchEvent) -> usize {
    let (SwitchEvent::LocalMac(mac)
    | SwitchEvent::RemoteMac { mac, .. }
    | SwitchEvent::LocalConflict { mac, .. }
    | SwitchEvent::OwnPacket { mac, .. }) = fact;
    let kind: u32 = match fact {
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
