//! Protocol messages and their frames (docs/spec/mesh.md 4.3, 4.4, 5).
//!
//! ```text
//! v2   u32 length L | L bytes: message, encrypted with a password
//! v1   gob value of kind bytes in one stream per direction: message, encrypted with a password
//! ```
//! A message is a tag byte and a payload.

use thiserror::Error;
use weave_gob::{DecodeError, FieldError, Limits, StreamDecoder, put_uint};

use crate::crypto::{Opener, Sealer};

/// Maximum size of a frame without its length field (docs/spec/mesh.md 4.3). 2.8.1 applies it to protocol 2 only.
pub const MAX_FRAME: usize = 10 * 1024 * 1024;

/// The first byte of a protocol message (docs/spec/mesh.md 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Keeps the connection open.
    Heartbeat,
    /// Overlay control of the old form: sleeve received our heartbeat.
    ConnectionEstablished,
    /// Overlay control of the old form: sleeve received a fragmentation test.
    FragmentationReceived,
    /// Overlay control of the old form: sleeve received a path MTU probe.
    PmtuVerified,
    /// Gossip to a neighbour.
    Gossip,
    /// Gossip to one peer.
    GossipUnicast,
    /// Gossip to all peers.
    GossipBroadcast,
    /// Overlay control with the index of the overlay and an inner tag.
    OverlayControl,
}

impl Tag {
    /// Returns `None` for an unknown tag.
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

    /// The byte that is sent.
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

/// Why a session ended. All but `OutgoingTooLarge` are caused by the remote. The texts are those of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// An outgoing message of this many bytes does not fit a frame. The session remains usable.
    #[error("outgoing message exceeds maximum size: {0} > {MAX_FRAME}")]
    OutgoingTooLarge(usize),
    /// A frame is longer than allowed.
    #[error("incoming message exceeds maximum size: {length} > {limit}")]
    IncomingTooLarge {
        /// Announced length in bytes.
        length: u64,
        /// Allowed length in bytes at this stage.
        limit: usize,
    },
    /// A message was not encrypted with our key.
    #[error("Unable to decrypt TCP msg")]
    CannotDecrypt,
    /// Protocol 1: the stream is malformed.
    #[error(transparent)]
    Gob(DecodeError),
    /// Protocol 1: a value is not of kind bytes.
    #[error(transparent)]
    Value(#[from] FieldError),
}

impl From<DecodeError> for SessionError {
    fn from(error: DecodeError) -> SessionError {
        match error {
            DecodeError::MessageTooLong { length, limit } => SessionError::IncomingTooLarge { length, limit },
            error => SessionError::Gob(error),
        }
    }
}

/// Encrypts and frames outgoing messages.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    pub(crate) version: u8,
    pub(crate) sealer: Option<Sealer>,
}

impl FrameWriter {
    /// Makes a frame of a message.
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
            // The head of a gob value of kind bytes (docs/spec/mesh.md 4.4).
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

/// Bytes of buffer that a connection keeps for the next frames.
const MAX_IDLE_CAPACITY: usize = 64 << 10;

/// Splits the incoming direction of protocol 2 into frames. Holds at most one incomplete frame and the last piece,
/// provided that the caller drains it after each push.
#[derive(Debug)]
pub(crate) struct FrameBuffer {
    buffer: Vec<u8>,
    consumed: usize,
    limit: usize,
}

impl FrameBuffer {
    pub(crate) fn new(limit: usize) -> FrameBuffer {
        FrameBuffer { buffer: Vec::new(), consumed: 0, limit }
    }

    fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            // The memory of one large message is not kept for the rest of the connection.
            self.buffer.shrink_to(MAX_IDLE_CAPACITY.max(bytes.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Content of the next complete frame. A frame that is too long is refused when its length has arrived.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, SessionError> {
        let Some((length, rest)) = self.buffer[self.consumed..].split_first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        // A frame beyond the limit of the protocol is reported with that limit.
        let limit = if length > MAX_FRAME { MAX_FRAME } else { self.limit };
        if length > limit {
            return Err(SessionError::IncomingTooLarge { length: length as u64, limit });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.consumed + 4;
        self.consumed = start + length;
        Ok(Some(&self.buffer[start..start + length]))
    }

    fn buffered(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// Whether the length or the content of a frame is incomplete. 2.8.1 reads them separately.
    pub(crate) fn is_mid_frame(&self) -> bool {
        let left = self.buffered();
        left != 0 && left != 4
    }
}

/// Splits the incoming direction into messages, in either protocol version.
#[derive(Debug)]
pub(crate) enum FrameReader {
    V1(StreamDecoder),
    V2(FrameBuffer),
}

impl FrameReader {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        match self {
            FrameReader::V1(stream) => stream.push(bytes),
            FrameReader::V2(frames) => frames.push(bytes),
        }
    }

    /// Bytes of a message that is not complete yet.
    pub(crate) fn buffered(&self) -> usize {
        match self {
            FrameReader::V1(stream) => stream.buffered(),
            FrameReader::V2(frames) => frames.buffered(),
        }
    }

    /// Applies the limits for messages after the handshake.
    pub(crate) fn allow_long_messages(&mut self) {
        match self {
            FrameReader::V1(stream) => stream.set_limits(session_limits()),
            FrameReader::V2(frames) => frames.set_limit(MAX_FRAME),
        }
    }

    /// The next message, decrypted if there is an `opener`.
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

/// Limits of a protocol 1 stream after the handshake: messages of [`MAX_FRAME`] and a few bytes that gob adds.
fn session_limits() -> Limits {
    Limits { max_message: MAX_FRAME + 16, max_types: 16, ..Limits::default() }
}
