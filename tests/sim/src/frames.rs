//! Frames of simulated containers: a private EtherType, then the sender and a number.

use weave_types::MacAddr;

use crate::net::HostId;

/// IEEE's EtherType for local experiments.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Length of MACs, EtherType, sender and number.
const STAMPED_LEN: usize = 14 + 2 + 8;

/// The sender and number of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) from: HostId,
    pub(crate) number: u64,
}

/// Length of the shortest Ethernet frame, without the checksum.
pub(crate) const MIN_LEN: usize = 60;

pub(crate) fn build(src: MacAddr, dst: MacAddr, stamp: Stamp, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    frame.extend_from_slice(&ETHERTYPE);
    frame.extend_from_slice(&stamp.from.0.to_be_bytes());
    frame.extend_from_slice(&stamp.number.to_be_bytes());
    frame.resize(len.max(MIN_LEN), 0);
    frame
}

/// The stamp of a frame; `None` for a frame that no simulated container sent.
pub(crate) fn read(frame: &[u8]) -> Option<Stamp> {
    if frame.len() < STAMPED_LEN || frame[12..14] != ETHERTYPE {
        return None;
    }
    Some(Stamp {
        from: HostId(u16::from_be_bytes(frame[14..16].try_into().ok()?)),
        number: u64::from_be_bytes(frame[16..24].try_into().ok()?),
    })
}
