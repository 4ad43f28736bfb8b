use weave_switch::frame::ETHERNET_HEADER;
use weave_types::ConnectionUid;

use crate::liveness::{LIVENESS_FRAME, LivenessFrame};
use crate::segmentation::ArrivedSegments;

/// Bytes of a heartbeat frame: Ethernet header and connection UID.
pub const HEARTBEAT_FRAME: usize = 22;
/// Bytes of a fragmentation test: longer than any path carries without fragmentation.
pub const FRAGMENTATION_TEST_FRAME: usize = 60001;
/// Bytes of the initial probe, which makes the sending kernel report the path MTU. A receiver treats it as an MTU test.
pub const INITIAL_PROBE_FRAME: usize = 60000;

/// A control frame of a neighbour, recognised by an Ethernet header of zeros. Its length determines the kind
/// (docs/spec/data-plane.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// 22 bytes: the neighbour is alive. The first one is acknowledged by control message 1.
    Heartbeat(ConnectionUid),
    /// 28 bytes, between peers that announce them only: whether the path works.
    Liveness(LivenessFrame),
    /// 60001 bytes, all zero: fragmented datagrams arrive. Acknowledged by control message 2.
    FragmentationTest,
    /// Any other length, all zero: packets of this size arrive. Acknowledged by control message 3 with `mtu`.
    MtuTest {
        /// Length of the frame without its Ethernet header.
        mtu: u16,
    },
    /// Any other length, between peers that announce them only: a datagram of a segmented probe, or a plain probe. Acknowledged by control
    /// message 4.
    SegmentedProbe {
        /// Number of the connection.
        uid: ConnectionUid,
        /// Which datagram of which probe.
        arrived: ArrivedSegments,
        /// Length of the frame without its Ethernet header.
        mtu: u16,
    },
    /// A fragmentation test with bytes other than zero, or an unknown kind of liveness frame. Not acknowledged.
    Malformed,
}

impl ControlFrame {
    /// Parses a frame; `None` for an ordinary frame.
    pub fn parse(frame: &[u8]) -> Option<ControlFrame> {
        let (header, body) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        if *header != [0; ETHERNET_HEADER] {
            return None;
        }
        Some(match frame.len() {
            HEARTBEAT_FRAME => {
                ControlFrame::Heartbeat(ConnectionUid(u64::from_be_bytes(*body.first_chunk()?)))
            }
            LIVENESS_FRAME => {
                LivenessFrame::parse(body).map_or(ControlFrame::Malformed, ControlFrame::Liveness)
            }
            FRAGMENTATION_TEST_FRAME if body.iter().all(|byte| *byte == 0) => ControlFrame::FragmentationTest,
            FRAGMENTATION_TEST_FRAME => ControlFrame::Malformed,
            // A record's length has 16 bits.
            _ => {
                let mtu = u16::try_from(body.len()).ok()?;
                match segmented_probe(body) {
                    Some((uid, arrived)) => ControlFrame::SegmentedProbe { uid, arrived, mtu },
                    None => ControlFrame::MtuTest { mtu },
                }
            }
        })
    }
}

/// Parses UID, number and index; `None` if the UID is zero, as in an MTU test.
fn segmented_probe(body: &[u8]) -> Option<(ConnectionUid, ArrivedSegments)> {
    let (uid, rest) = body.split_first_chunk()?;
    let (number, rest) = rest.split_first_chunk()?;
    let uid = u64::from_be_bytes(*uid);
    let arrived = ArrivedSegments { number: u32::from_be_bytes(*number), first: *rest.first()?, count: 1 };
    (uid != 0).then_some((ConnectionUid(uid), arrived))
}

/// Writes what [`segmented_probe`] parses, into a frame.
pub(super) fn write_segmented_probe(frame: &mut [u8], uid: ConnectionUid, number: u32, index: u8) {
    let head = [&uid.0.to_be_bytes()[..], &number.to_be_bytes(), &[index]].concat();
    if let Some(space) = frame.get_mut(ETHERNET_HEADER..ETHERNET_HEADER + head.len()) {
        space.copy_from_slice(&head);
    }
}
