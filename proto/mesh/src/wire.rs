//! Protocol messages and how they are framed (docs/spec/mesh.md 4.3, 4.4, 5).
//!
//! ```text
//! v2   u32 length L | L bytes: message, or its box
//! v1   gob value of kind bytes in one stream per direction: message, or its box
//! ```
//! A message is a tag byte and a payload.

use std::fmt;

use weave_gob::{DecodeError, FieldError, Limits, StreamDecoder, put_uint};

use crate::crypto::{Opener, Sealer};

/// Longest frame of protocol 2, length field not counted (docs/spec/mesh.md 4.3). Protocol 1 has no limit of its own; we
/// apply the same.
pub const MAX_FRAME: usize = 10 * 1024 * 1024;

/// First byte of a protocol message (docs/spec/mesh.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Nothing but a sign of life.
    Heartbeat,
    /// Legacy overlay control: sleeve heard our heartbeat.
    ConnectionEstablished,
    /// Legacy overlay control: sleeve received a fragment test.
    FragmentationReceived,
    /// Legacy overlay control: sleeve received a path MTU probe.
    PmtuVerified,
    /// Gossip to a neighbour.
    Gossip,
    /// Gossip to one peer.
    GossipUnicast,
    /// Gossip to all peers.
    GossipBroadcast,
    /// Overlay control with overlay index and inner tag.
    OverlayControl,
}

impl Tag {
    /// `None` for a tag that 2.8.1 does not know either.
    pub const fn from_byte(byte: u8) -> Option<Tag> {
        Some(match byte {
            0 => Tag::Heartbeat,
            1 => Tag::ConnectionEstablished,
            2 => Tag::FragmentationReceived,
            3 => Tag::PmtuVerified,
            4 => Tag::Gossip,
            5 => Tag::GossipUnicast,
            6 => Tag::GossipBroadcast,
            7 => Tag::OverlayControl,
            _ => return None,
        })
    }

    /// Its number on the wire.
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Why a session ended. All but `OutgoingTooLarge` are the remote's doing. Texts as 2.8.1 has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// We were asked to send more than fits a frame. Number of bytes; the session stays usable.
    OutgoingTooLarge(usize),
    /// A frame is longer than allowed.
    IncomingTooLarge {
        /// Announced length, bytes.
        length: u64,
        /// What is allowed at this stage, bytes.
        limit: usize,
    },
    /// A box that does not open.
    CannotDecrypt,
    /// Protocol 1: the stream is malformed.
    Gob(DecodeError),
    /// Protocol 1: a value that is not bytes.
    Value(FieldError),
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::OutgoingTooLarge(size) => {
                write!(f, "outgoing message exceeds maximum size: {size} > {MAX_FRAME}")
            }
            SessionError::IncomingTooLarge { length, limit } => {
                write!(f, "incoming message exceeds maximum size: {length} > {limit}")
            }
            SessionError::CannotDecrypt => f.write_str("Unable to decrypt TCP msg"),
            SessionError::Gob(error) => error.fmt(f),
            SessionError::Value(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SessionError {}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> SessionError {
        match error {
            DecodeError::MessageTooLong { length, limit } => SessionError::IncomingTooLarge { length, limit },
            error => SessionError::Gob(error),
        }
    }
}

impl From<FieldError> for SessionError {
    fn from(error: FieldError) -> SessionError {
        SessionError::Value(error)
    }
}

/// Frames and seals the messages of the outgoing direction.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    pub(crate) version: u8,
    pub(crate) sealer: Option<Sealer>,
}

impl FrameWriter {
    /// The message ready for the wire.
    pub(crate) fn frame(&mut self, message: &[u8]) -> Result<Vec<u8>, SessionError> {
        let overhead = if self.sealer.is_some() { crate::crypto::BOX_OVERHEAD } else { 0 };
        let length = message.len() + overhead;
        if length > MAX_FRAME {
            return Err(SessionError::OutgoingTooLarge(length));
        }
        let mut out = Vec::with_capacity(length + 12);
        if self.version >= 2 {
            out.extend_from_slice(&(length as u32).to_be_bytes());
        } else {
            // A gob value of kind bytes, written in place (docs/spec/mesh.md 4.4).
            let mut head = vec![0x0a, 0];
            put_uint(&mut head, length as u64);
            put_uint(&mut out, (head.len() + length) as u64);
            out.extend_from_slice(&head);
        }
        match &mut self.sealer {
            None => out.extend_from_slice(message),
            Some(sealer) => sealer.seal(message, &mut out),
        }
        Ok(out)
    }
}

/// Bytes of buffer that a connection keeps once they have been used.
const KEPT: usize = 64 << 10;

/// Cuts the incoming direction of protocol 2 into frames. Holds one incomplete frame and the last piece pushed at
/// most, provided that it is drained after each push.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    taken: usize,
    limit: usize,
}

impl Frames {
    pub(crate) fn new(limit: usize) -> Frames {
        Frames { buffer: Vec::new(), taken: 0, limit }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            // One large message must not hold its memory for the life of the connection.
            self.buffer.shrink_to(KEPT.max(bytes.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The content of the next complete frame. A frame that is too long is refused as soon as its length has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, SessionError> {
        let Some((length, rest)) = self.buffer[self.taken..].split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        // Beyond the limit of the protocol, blame that one.
        let limit = if length > MAX_FRAME { MAX_FRAME } else { self.limit };
        if length > limit {
            return Err(SessionError::IncomingTooLarge { length: length as u64, limit });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.taken + 4;
        self.taken = start + length;
        Ok(Some(&self.buffer[start..start + length]))
    }

    /// Whether one of the two reads that a frame takes has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        let left = self.buffer.len() - self.taken;
        left != 0 && left != 4
    }
}

/// The incoming direction in either framing.
#[derive(Debug)]
pub(crate) enum FrameReader {
    V1(StreamDecoder),
    V2(Frames),
}

impl FrameReader {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        match self {
            FrameReader::V1(stream) => stream.push(bytes),
            FrameReader::V2(frames) => frames.push(bytes),
        }
    }

    /// The next message, opened if there is an `opener`.
    pub(crate) fn next(&mut self, opener: Option<&mut Opener>) -> Result<Option<Vec<u8>>, SessionError> {
        let owned;
        let content = match self {
            FrameReader::V1(stream) => match stream.next()? {
                None => return Ok(None),
                Some(weave_gob::Value::Bytes(bytes)) if opener.is_none() => return Ok(Some(bytes)),
                Some(value) => {
                    owned = value;
                    owned.as_bytes()?
                }
            },
            FrameReader::V2(frames) => match frames.next()? {
                None => return Ok(None),
                Some(content) => content,
            },
        };
        match opener {
            None => Ok(Some(content.to_vec())),
            Some(opener) => opener.open(content).map(Some).map_err(|_| SessionError::CannotDecrypt),
        }
    }
}

/// Bounds on a protocol 1 stream once the handshake is over: messages of [`MAX_FRAME`] with a little room for gob's
/// own bytes.
pub(crate) fn session_limits() -> Limits {
    Limits { max_message: MAX_FRAME + 16, max_types: 16, ..Limits::default() }
}
