use weave_switch::frame::ETHERNET_HEADER;
use weave_types::ConnectionUid;

/// Bytes of a [`LivenessFrame`]: Ethernet header, connection UID, number, kind, slowness.
pub const LIVENESS_FRAME: usize = 28;

/// A probe of the path or an answer (docs/spec/data-plane.md 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivenessFrame {
    /// Number of the connection, which proves without encryption that the neighbour sent the frame.
    pub uid: ConnectionUid,
    /// Number of the probe; 0 in a frame that answers none.
    pub number: u32,
    /// What the frame says.
    pub kind: LivenessKind,
    /// How slow its sender is: the factor for the failure timeouts of its neighbours.
    pub slowness: u8,
}

/// What a [`LivenessFrame`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LivenessKind {
    /// 0: asks for an answer.
    Probe,
    /// 1: the answer to the probe with the same number.
    Answer,
    /// 2: data arrives here.
    KeepAlive,
}

impl LivenessFrame {
    /// Parses the bytes after the Ethernet header; `None` if their number or the kind is wrong.
    pub fn parse(body: &[u8]) -> Option<LivenessFrame> {
        let (uid, rest) = body.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let &[kind, slowness] = rest else { return None };
        let kind = match kind {
            0 => LivenessKind::Probe,
            1 => LivenessKind::Answer,
            2 => LivenessKind::KeepAlive,
            _ => return None,
        };
        let uid = ConnectionUid(u64::from_be_bytes(*uid));
        Some(LivenessFrame { uid, number: u32::from_be_bytes(*number), kind, slowness })
    }

    /// The bytes after the Ethernet header.
    pub fn encode(&self) -> [u8; LIVENESS_FRAME - ETHERNET_HEADER] {
        let mut body = [0; LIVENESS_FRAME - ETHERNET_HEADER];
        body[..8].copy_from_slice(&self.uid.0.to_be_bytes());
        body[8..12].copy_from_slice(&self.number.to_be_bytes());
        body[12] = self.kind as u8;
        body[13] = self.slowness;
        body
    }
}
