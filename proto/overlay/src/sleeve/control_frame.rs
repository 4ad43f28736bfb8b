use weave_types::ConnectionUid;

/// Bytes of a heartbeat frame: Ethernet header, connection UID.
pub const HEARTBEAT_FRAME: usize = 22;
/// Bytes of a fragmentation test: longer than any path carries in one piece.
pub const FRAGMENTATION_TEST_FRAME: usize = 60001;
/// Bytes of the frame that makes the kernel tell the path MTU. To a receiver it is an MTU test.
pub const INITIAL_PROBE_FRAME: usize = 60000;

const ETHERNET_HEADER: usize = 14;

/// A control frame among the frames of a neighbour, told by an Ethernet header of zeros. Only its length tells the kind
/// (docs/spec/data-plane.md 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// 22 bytes: the neighbour is there. Answered by control message 1 the first time.
    Heartbeat(ConnectionUid),
    /// 60001 bytes, all zero: large datagrams arrive in spite of fragmentation. Answered by control message 2.
    FragmentationTest,
    /// Any other length: packets of this size arrive. Answered by control message 3 with `mtu`.
    MtuTest {
        /// Length of the frame without its Ethernet header.
        mtu: u16,
    },
    /// A fragmentation test with other bytes than zeros. Not answered.
    Malformed,
}

impl ControlFrame {
    /// `None` for an ordinary frame.
    pub fn parse(frame: &[u8]) -> Option<ControlFrame> {
        let (header, body) = frame.split_first_chunk::<ETHERNET_HEADER>()?;
        if *header != [0; ETHERNET_HEADER] {
            return None;
        }
        Some(match frame.len() {
            HEARTBEAT_FRAME => {
                ControlFrame::Heartbeat(ConnectionUid(u64::from_be_bytes(*body.first_chunk()?)))
            }
            FRAGMENTATION_TEST_FRAME if body.iter().all(|byte| *byte == 0) => ControlFrame::FragmentationTest,
            FRAGMENTATION_TEST_FRAME => ControlFrame::Malformed,
            // A record's length has 16 bits.
            _ => ControlFrame::MtuTest { mtu: u16::try_from(body.len()).ok()? },
        })
    }
}
