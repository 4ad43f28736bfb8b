use crate::error::DecodeError;
use crate::read::{Cursor, Reader};
use crate::types::{Limits, TypeId, Types};
use crate::value::Value;

/// What one message turned out to be.
enum Message<'a> {
    Definition,
    Value(TypeId, Cursor<'a>),
}

/// Takes in the body of one message: a definition goes to `types`, a value is ready to be read.
fn message<'a>(types: &mut Types, limits: &Limits, body: &'a [u8]) -> Result<Message<'a>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let id = cursor.int()?;
    if id < 0 {
        let id = id.checked_neg().ok_or(DecodeError::BadInteger)?;
        types.define(TypeId(id), &mut cursor, limits)?;
        if cursor.remaining() != 0 {
            return Err(DecodeError::BadDefinition("bytes after it"));
        }
        return Ok(Message::Definition);
    }
    let id = TypeId(id);
    types.resolve(id)?;
    // A struct brings its own field numbers; anything else stands behind a zero (docs/spec/mesh.md 3.3).
    if types.shape(id).is_none() && cursor.uint()? != 0 {
        return Err(DecodeError::BadSingleton);
    }
    Ok(Message::Value(id, cursor))
}

fn check_length(length: u64, limits: &Limits) -> Result<usize, DecodeError> {
    match usize::try_from(length) {
        Ok(length) if length <= limits.max_message => Ok(length),
        _ => Err(DecodeError::MessageTooLong { length, limit: limits.max_message }),
    }
}

/// Reads a stream that is complete in memory.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: Cursor<'a>,
    types: Types,
    limits: Limits,
}

impl<'a> Decoder<'a> {
    /// A stream from its beginning, with default limits.
    pub fn new(stream: &'a [u8]) -> Decoder<'a> {
        Decoder::with_limits(stream, Limits::default())
    }

    /// The same with other limits.
    pub fn with_limits(stream: &'a [u8], limits: Limits) -> Decoder<'a> {
        Decoder { rest: Cursor::new(stream), types: Types::default(), limits }
    }

    /// The next top-level value; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream is malformed or exceeds a limit; do not go on after that.
    #[expect(clippy::should_implement_trait, reason = "fallible; an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Value>, DecodeError> {
        match self.next_reader()? {
            None => Ok(None),
            Some(mut reader) => reader.value(reader.id()).map(Some),
        }
    }

    /// The next top-level value to be read piece by piece; `None` at the end of the stream. What the caller leaves
    /// unread is dropped.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn next_reader(&mut self) -> Result<Option<Reader<'_, 'a>>, DecodeError> {
        let mut defined = false;
        while self.rest.remaining() != 0 {
            let length = self.rest.uint()?;
            let length = check_length(length, &self.limits)?;
            let body = self.rest.cut(length);
            if body.remaining() < length {
                return Err(DecodeError::UnexpectedEof);
            }
            self.rest.skip_bytes(length)?;
            match message(&mut self.types, &self.limits, body.rest())? {
                Message::Definition => defined = true,
                Message::Value(id, cursor) => {
                    return Ok(Some(Reader::new(&mut self.types, &self.limits, id, cursor)));
                }
            }
        }
        if defined { Err(DecodeError::UnexpectedEof) } else { Ok(None) }
    }
}

/// Bytes of buffer that a stream keeps once they have been used.
const KEPT: usize = 64 << 10;

/// Reads a stream that arrives in pieces and may never end: one direction of a protocol 1 connection.
///
/// It holds at most one incomplete message of [`Limits::max_message`] bytes plus the last piece pushed, provided that
/// the caller drains [`StreamDecoder::next`] after each [`StreamDecoder::push`].
#[derive(Debug)]
pub struct StreamDecoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` already taken.
    taken: usize,
    /// A definition has come, its value not yet.
    defined: bool,
    failed: Option<DecodeError>,
    types: Types,
    limits: Limits,
}

impl StreamDecoder {
    /// A stream from its beginning.
    pub fn new(limits: Limits) -> StreamDecoder {
        StreamDecoder {
            buffer: Vec::new(),
            taken: 0,
            defined: false,
            failed: None,
            types: Types::default(),
            limits,
        }
    }

    /// Other limits from the next message on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// More bytes of the stream. Ignored after an error.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
            // One large message must not hold its memory for the life of the connection.
            self.buffer.shrink_to(KEPT.max(bytes.len()));
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next top-level value; `None` if more bytes are needed. A message that is too long is refused as soon as its
    /// length has arrived.
    ///
    /// # Errors
    /// The stream is malformed or exceeds a limit. Further calls return the same error.
    #[expect(clippy::should_implement_trait, reason = "fallible and resumable")]
    pub fn next(&mut self) -> Result<Option<Value>, DecodeError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.advance();
        if let Err(error) = result {
            self.failed = Some(error);
            self.buffer = Vec::new();
            self.taken = 0;
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Value>, DecodeError> {
        loop {
            let mut cursor = Cursor::new(&self.buffer[self.taken..]);
            let all = cursor.remaining();
            let length = match cursor.uint() {
                Err(DecodeError::UnexpectedEof) => return Ok(None),
                length => check_length(length?, &self.limits)?,
            };
            if cursor.remaining() < length {
                return Ok(None);
            }
            let body = cursor.cut(length).rest();
            self.taken += all - cursor.remaining() + length;
            match message(&mut self.types, &self.limits, body)? {
                Message::Definition => self.defined = true,
                Message::Value(id, cursor) => {
                    self.defined = false;
                    return Reader::new(&mut self.types, &self.limits, id, cursor).value(id).map(Some);
                }
            }
        }
    }

    /// Whether the stream may end here: not inside a message, and not between a definition and its value.
    pub fn is_complete(&self) -> bool {
        self.failed.is_none() && self.taken == self.buffer.len() && !self.defined
    }

    /// Bytes held that no value has come from yet.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.taken
    }
}
