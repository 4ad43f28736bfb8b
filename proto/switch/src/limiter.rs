use std::time::Duration;

use weave_types::Instant;

use crate::Fact;

/// Holds back repetitions of a [`Fact`] while its owner is busy making the table that knows it. One per data thread.
///
/// It may forget and let a repetition pass (there are few slots), but it never holds back a fact that it has not let
/// pass within the last [`PAUSE`](FactLimiter::PAUSE).
#[derive(Clone, Debug)]
pub struct FactLimiter {
    slots: Box<[Option<(Fact, Instant)>; SLOTS]>,
}

const SLOTS: usize = 256;

impl FactLimiter {
    /// A fact passes again after this time, in case the channel to the owner was full.
    pub const PAUSE: Duration = Duration::from_millis(100);

    /// Nothing held back yet.
    pub fn new() -> FactLimiter {
        FactLimiter { slots: Box::new([None; SLOTS]) }
    }

    /// Whether the owner should be told.
    pub fn admit(&mut self, fact: &Fact, now: Instant) -> bool {
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

impl Default for FactLimiter {
    fn default() -> FactLimiter {
        FactLimiter::new()
    }
}

fn slot(fact: &Fact) -> usize {
    let (Fact::LocalMac(mac)
    | Fact::RemoteMac { mac, .. }
    | Fact::LocalConflict { mac, .. }
    | Fact::OwnPacket { mac, .. }) = fact;
    let kind: u32 = match fact {
        Fact::LocalMac(_) => 0,
        Fact::RemoteMac { .. } => 1,
        Fact::LocalConflict { .. } => 2,
        Fact::OwnPacket { .. } => 3,
    };
    let b = mac.0;
    let mixed =
        u32::from_be_bytes([b[2], b[3], b[4], b[5]]).wrapping_add(kind << 28).wrapping_mul(0x9e37_79b1);
    (mixed >> 24) as usize % SLOTS
}
