//! The envelope of a gossip message: a gob stream of channel, source, destination (unicast only) and payload
//! (docs/spec/mesh.md 7.1).

use std::borrow::Cow;

use thiserror::Error;
use weave_gob::{DecodeError, Decoder, Encoder, FieldError, Kind, Reader};
use weave_types::PeerName;

/// A gossip message without its tag byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Name of the channel, case-sensitive.
    pub channel: Cow<'a, str>,
    /// The originator; for neighbour gossip the neighbour.
    pub source: PeerName,
    /// Set for unicasts only.
    pub destination: Option<PeerName>,
    /// Content for the receiver of the channel.
    pub payload: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// Reads the body of a gossip message, with a destination if `unicast`.
    ///
    /// # Errors
    /// The body is malformed. The caller ends the connection, as 2.8.1 does.
    pub fn decode(body: &'a [u8], unicast: bool) -> Result<Envelope<'a>, EnvelopeError> {
        let mut decoder = Decoder::new(body);
        let channel = expect(&mut decoder, Kind::String)?.string()?;
        let source = name(&mut decoder)?;
        let destination = if unicast { Some(name(&mut decoder)?) } else { None };
        let payload = expect(&mut decoder, Kind::Bytes)?.bytes()?;
        Ok(Envelope { channel, source, destination, payload })
    }

    /// Encodes to the same bytes as 2.8.1.
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

/// The envelope of a received message is malformed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EnvelopeError {
    /// Malformed gob, or a missing value.
    #[error(transparent)]
    Gob(#[from] DecodeError),
    /// A value of another kind.
    #[error(transparent)]
    Value(#[from] FieldError),
    /// A peer name of more than 48 bits, which 2.8.1 accepts.
    #[error("peer name {0:#x} has more than 48 bits")]
    BadName(u64),
}
