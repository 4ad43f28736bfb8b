use std::fmt;

use super::stats::Stats;

/// Looks for certain frames in the data path of user space, for `weave trace`. Frames are only looked at while
/// [`Tables`](super::Tables) have such a watch.
pub trait FrameWatch: fmt::Debug + Send + Sync {
    /// Whether it looks for this frame.
    fn wants(&self, frame: &[u8]) -> bool;

    /// Tells what became of such a frame.
    fn note(&self, frame: &[u8], fate: &Fate);
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Whether it came from a neighbour rather than from the local bridge.
    pub from_neighbour: bool,
    /// Whether it was sent to a neighbour.
    pub sent: bool,
    /// Whether it was passed to the local bridge.
    pub injected: bool,
    /// Why it was dropped, or not sent to one of its destinations.
    pub dropped: Option<String>,
}

impl Fate {
    /// From the counters before and after the frame was handled.
    pub(super) fn between(before: &Stats, after: &Stats, from_neighbour: bool) -> Fate {
        Fate {
            from_neighbour,
            sent: after.frames_out > before.frames_out,
            injected: after.injected > before.injected,
            dropped: after.drop_since(before),
        }
    }
}
