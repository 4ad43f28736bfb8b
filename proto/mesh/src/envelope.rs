//! The envelope of a gossip message: a gob stream of channel, source, destination (unicast only) and payload
//! (docs/spec/mesh.md 7.1).

use std::borrow::Cow;
use std::fmt;

use weave_gob::{DecodeError, Decoder, Encoder, FieldError, Kind, Reader};
use weave_types::PeerName;

/// A gossip message without its tag byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Channel name, case-sensitive.
    pub channel: Cow<'a, str>,
    /// The originator; for neighbour gossip the immediate sender.
    pub source: PeerName,
    /// For unicasts only.
    pub destination: Option<PeerName>,
    /// What the channel's receiver gets.
    pub payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the body of a message with tag 4 or 6, or 5 if `unicast`.
    ///
    /// # Errors
    /// The body is malformed; 2.8.1 ends the connection then.
    pub fn decode(body: &'a [u8], unicast: bool) -> Result<Envelope<'a>, EnvelopeError> {
        let mut decoder = Decoder::new(body);
        let channel = expect(&mut decoder, Kind::String)?.string()?;
        let source = name(&mut decoder)?;
        let destination = if unicast { Some(name(&mut decoder)?) } else { None };
        let payload = expect(&mut decoder, Kind::Bytes)?.bytes()?;
        Ok(Envelope { channel, source, destination, payload })
    }

    /// Writes it as 2.8.1 does, byte for byte.
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.string(&self.channel);
        encoder.uint(self.source.number());
        if let Some(destination) = self.destination {
            encoder.uint(destination.number());
        }
        encoder.bytes(self.payload);
        encoder.finish()
    }
}

fn expect<'d, 'a>(decoder: &'d mut Decoder<'a>, wanted: Kind) -> Result<Reader<'d, 'a>, EnvelopeError> {
    let reader = decoder.next_reader()?.ok_or(DecodeError::UnexpectedEof)?;
    let found = reader.kind();
    if found != wanted {
        return Err(FieldError::WrongKind { field: String::new(), wanted, found }.into());
    }
    Ok(reader)
}

fn name(decoder: &mut Decoder<'_>) -> Result<PeerName, EnvelopeError> {
    let number = expect(decoder, Kind::Uint)?.uint()?;
    PeerName::from_number(number).ok_or(EnvelopeError::BadName(number))
}

/// The remote sent an envelope that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Malformed gob, or the end in the middle.
    Gob(DecodeError),
    /// A value of another kind.
    Value(FieldError),
    /// A peer name of more than 48 bits. The original takes it.
    BadName(u64),
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EnvelopeError::Gob(error) => error.fmt(f),
            EnvelopeError::Value(error) => error.fmt(f),
            EnvelopeError::BadName(number) => write!(f, "peer name {number:#x} has more than 48 bits"),
        }
    }
}

impl std::error::Error for EnvelopeError {}

impl From<DecodeError> for EnvelopeError {
    fn from(error: DecodeError) -> EnvelopeError {
        EnvelopeError::Gob(error)
    }
}

impl From<FieldError> for EnvelopeError {
    fn from(error: FieldError) -> EnvelopeError {
        EnvelopeError::Value(error)
    }
}
