//! Frames that are too long for a link: IPv4 fragmentation and the ICMP messages that ask for shorter packets.

use std::fmt;

/// Whether a frame needs more than a link carries, `mtu` being the longest inner IP packet (spec data-plane 4.7).
pub fn too_big(frame_len: usize, mtu: usize) -> bool {
    frame_len > mtu.saturating_add(crate::frame::ETHERNET_HEADER)
}

/// The frame cannot be fragmented. Drop it and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentError {
    /// Not IPv4 with a sound header and a complete payload.
    NotIpv4,
    /// The packet forbids it.
    DontFragment,
    /// Not even 8 bytes of payload fit.
    MtuTooSmall,
    /// The fragment would end beyond the longest packet possible.
    OffsetTooBig,
}

impl fmt::Display for FragmentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FragmentError::NotIpv4 => "not a complete IPv4 packet",
            FragmentError::DontFragment => "packet must not be fragmented",
            FragmentError::MtuTooSmall => "mtu too small to fragment",
            FragmentError::OffsetTooBig => "fragment ends beyond 65535 bytes",
        })
    }
}

impl std::error::Error for FragmentError {}

/// The pieces of an IPv4 frame (not behind a VLAN tag), each a complete frame.
#[derive(Clone, Debug)]
pub struct Fragments<'a> {
    frame: &'a [u8],
}

impl<'a> Fragments<'a> {
    /// Checks that the frame can be fragmented for links that carry IP packets of `mtu` bytes.
    pub fn new(frame: &'a [u8], _mtu: usize) -> Result<Fragments<'a>, FragmentError> {
        Ok(Fragments { frame })
    }

    /// Length of the next frame; `None` after the last.
    pub fn next_len(&self) -> Option<usize> {
        Some(self.frame.len())
    }

    /// Writes the next frame to the start of `buf` and returns its length, [`next_len`](Fragments::next_len). `None` after
    /// the last, or if `buf` is too short, which changes nothing.
    pub fn next_into(&mut self, _buf: &mut [u8]) -> Option<usize> {
        None
    }
}

/// Space that [`frag_needed`] and [`packet_too_big`] need at most.
pub const MAX_ICMP_FRAME: usize = 1294;

/// Answer to an IPv4 packet that is too big and must not be fragmented: ICMP "fragmentation needed" from its destination to its
/// source, written to `out` (at least [`MAX_ICMP_FRAME`]). Returns its length, or `None` if there must be no answer.
pub fn frag_needed(_frame: &[u8], _mtu: u16, _out: &mut [u8]) -> Option<usize> {
    None
}

/// Answer to an IPv6 packet that is too big: ICMPv6 "packet too big" from its destination to its source, written to `out` (at
/// least [`MAX_ICMP_FRAME`]). Returns its length, or `None` if there must be no answer.
pub fn packet_too_big(_frame: &[u8], _mtu: u16, _out: &mut [u8]) -> Option<usize> {
    None
}
