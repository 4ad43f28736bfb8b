use weave_switch::frame::ETHERNET_HEADER;
use weave_types::ConnectionUid;

use crate::liveness::{LIVENESS_FRAME, LivenessFrame};

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
    /// Any other length: packets of this size arrive. Acknowledged by control message 3 with `mtu`.
    MtuTest {
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
            _ => ControlFrame::MtuTest { mtu: u16::try_from(body.len()).ok()? },
        })
    }
}
