//! Frames of simulated containers: a private EtherType, then the sender and a number.

use weave_types::MacAddr;

use crate::net::HostId;

/// IEEE's EtherType for experiments.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
/// Length of MACs, type, host and number.
const LENGTH: usize = 14 + 2 + 8;

/// The sender and number of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    pub from: HostId,
    pub number: u64,
}

/// The shortest frame of an Ethernet.
pub(crate) const SHORTEST: usize = 60;

pub(crate) fn build(src: MacAddr, dst: MacAddr, stamp: Stamp, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&dst.0);
    frame.extend_from_slice(&src.0);
    frame.extend_from_slice(&ETHERTYPE);
    frame.extend_from_slice(&stamp.from.0.to_be_bytes());
    frame.extend_from_slice(&stamp.number.to_be_bytes());
    frame.resize(len.max(SHORTEST), 0);
    frame
}

/// `None` for a frame that no simulated container sent.
pub fn read(frame: &[u8]) -> Option<Stamp> {
    if frame.len() < LENGTH || frame[12..14] != ETHERTYPE {
        return None;
    }
    Some(Stamp {
        from: HostId(u16::from_be_bytes(frame[14..16].try_into().ok()?)),
        number: u64::from_be_bytes(frame[16..24].try_into().ok()?),
    })
}
