use crate::cursor::Cursor;
use crate::error::DecodeError;
use crate::kind::TypeId;
use crate::read::Reader;
use crate::types::{Limits, Types};
use crate::value::Value;

enum Message<'a> {
    Definition,
    Value(TypeId, Cursor<'a>),
}

/// Reads the body of a message: enters a definition into `types`, or returns a value that is ready to be read.
fn read_message<'a>(types: &mut Types, limits: &Limits, body: &'a [u8]) -> Result<Message<'a>, DecodeError> {
    let mut cursor = Cursor::new(body);
    let id = cursor.int()?;
    if id < 0 {
        let id = id.checked_neg().ok_or(DecodeError::BadInteger)?;
        types.define(TypeId(id), &mut cursor, limits)?;
        if cursor.remaining() != 0 {
            return Err(DecodeError::BadDefinition("trailing bytes"));
        }
        return Ok(Message::Definition);
    }
    let id = TypeId(id);
    types.resolve(id)?;
    // A top-level value that is not a struct has a zero byte in front (docs/spec/mesh.md 3.3).
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

/// Reads a complete stream from memory.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: Cursor<'a>,
    types: Types,
    limits: Limits,
}

impl<'a> Decoder<'a> {
    /// Reads a stream from its beginning, with default limits.
    pub fn new(stream: &'a [u8]) -> Decoder<'a> {
        Decoder::with_limits(stream, Limits::default())
    }

    /// Reads a stream from its beginning.
    pub fn with_limits(stream: &'a [u8], limits: Limits) -> Decoder<'a> {
        Decoder { rest: Cursor::new(stream), types: Types::default(), limits }
    }

    /// The next top-level value; `None` at the end of the stream.
    ///
    /// # Errors
    /// The stream is malformed or exceeds a limit. No further value can be read.
    #[expect(clippy::should_implement_trait, reason = "fallible; an iterator would go on after an error")]
    pub fn next(&mut self) -> Result<Option<Value>, DecodeError> {
        match self.next_reader()? {
            None => Ok(None),
            Some(mut reader) => reader.value(reader.id()).map(Some),
        }
    }

    /// A reader of the next top-level value; `None` at the end of the stream. The part that the caller does not read is
    /// skipped.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn next_reader(&mut self) -> Result<Option<Reader<'_, 'a>>, DecodeError> {
        let mut awaits_value = false;
        while self.rest.remaining() != 0 {
            let length = self.rest.uint()?;
            let length = check_length(length, &self.limits)?;
            let body = self.rest.cut(length);
            if body.remaining() < length {
                return Err(DecodeError::UnexpectedEof);
            }
            self.rest.skip_bytes(length)?;
            match read_message(&mut self.types, &self.limits, body.rest())? {
                Message::Definition => awaits_value = true,
                Message::Value(id, cursor) => {
                    return Ok(Some(Reader::new(&mut self.types, &self.limits, id, cursor)));
                }
            }
        }
        if awaits_value { Err(DecodeError::UnexpectedEof) } else { Ok(None) }
    }
}

/// Bytes of buffer that a stream keeps for the next messages.
const MAX_IDLE_CAPACITY: usize = 64 << 10;

/// Reads a stream that arrives in pieces, such as one direction of a protocol 1 connection.
///
/// The buffer holds at most one incomplete message of [`Limits::max_message`] bytes and the last piece, provided that the
/// caller drains [`StreamDecoder::next`] after each [`StreamDecoder::push`].
#[derive(Debug)]
pub struct StreamDecoder {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that have been read.
    consumed: usize,
    /// A definition has arrived and the value after it has not.
    awaits_value: bool,
    failed: Option<DecodeError>,
    types: Types,
    limits: Limits,
}

impl StreamDecoder {
    /// Reads a stream from its beginning.
    pub fn new(limits: Limits) -> StreamDecoder {
        StreamDecoder {
            buffer: Vec::new(),
            consumed: 0,
            awaits_value: false,
            failed: None,
            types: Types::default(),
            limits,
        }
    }

    /// Changes the limits for the following messages.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Appends bytes of the stream. They are ignored after an error.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
            // The memory of one large message is not kept for the rest of the connection.
            self.buffer.shrink_to(MAX_IDLE_CAPACITY.max(bytes.len()));
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
            self.consumed = 0;
        }
        result
    }

    fn advance(&mut self) -> Result<Option<Value>, DecodeError> {
        loop {
            let mut cursor = Cursor::new(&self.buffer[self.consumed..]);
            let all = cursor.remaining();
            let length = match cursor.uint() {
                Err(DecodeError::UnexpectedEof) => return Ok(None),
                length => check_length(length?, &self.limits)?,
            };
            if cursor.remaining() < length {
                return Ok(None);
            }
            let body = cursor.cut(length).rest();
            self.consumed += all - cursor.remaining() + length;
            match read_message(&mut self.types, &self.limits, body)? {
                Message::Definition => self.awaits_value = true,
                Message::Value(id, cursor) => {
                    self.awaits_value = false;
                    return Reader::new(&mut self.types, &self.limits, id, cursor).value(id).map(Some);
                }
            }
        }
    }

    /// Whether the stream may end here, that is neither inside a message nor between a definition and its value.
    pub fn is_complete(&self) -> bool {
        self.failed.is_none() && self.consumed == self.buffer.len() && !self.awaits_value
    }

    /// Number of bytes that belong to an incomplete message.
    pub fn buffered(&self) -> usize {
        self.buffer.len() - self.consumed
    }
}
