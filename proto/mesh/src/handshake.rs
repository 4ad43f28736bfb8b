//! The handshake of a control connection (docs/spec/mesh.md 4.2 to 4.5), without I/O.
//!
//! Both sides do the same; neither waits for the other before it writes its part of a step.
//!
//! ```text
//! header     "weave" min max                              both versions, unencrypted
//! exchange   v2: flag 0, or flag 1 and an X25519 key      unencrypted
//! features   v2: first frame, encrypted with a key        v1: first gob value, unencrypted, the key is a feature
//! session    frames, encrypted with a key
//! ```

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;
use weave_gob::{DecodeError, Decoder, Encoder, FieldError, Limits, StreamDecoder, Type, Value};

use crate::crypto::{self, Opener, Sealer, Secret, WeakKey};
use crate::features::REQUIRED;
use crate::wire::{FrameBuffer, FrameReader, FrameWriter, SessionError};

/// Highest supported protocol version.
pub const MAX_PROTOCOL: u8 = 2;
/// Lowest supported protocol version.
pub const MIN_PROTOCOL: u8 = 1;

const MAGIC: &[u8; 5] = b"weave";
const HEADER: usize = MAGIC.len() + 2;
const PUBLIC_KEY: &str = "PublicKey";

/// Maximum size of a features message in bytes. Real ones have about 200 bytes; 2.8.1 accepts 10 MiB from any host that
/// can connect.
pub const MAX_FEATURES: usize = 64 * 1024;

/// Configuration of one side of a handshake.
#[derive(Clone, Debug)]
pub struct HandshakeConfig {
    /// Features to send ([`Features::to_map`](crate::features::Features::to_map)). Protocol 1 sends five of them.
    pub features: BTreeMap<String, String>,
    /// Password of the network; either both sides have one or neither has.
    pub password: Option<Secret>,
    /// Lowest protocol version to accept, 1 or 2. Default 1.
    pub min_protocol: u8,
    /// Highest protocol version to offer, 1 or 2. Default 2; less only for tests.
    pub max_protocol: u8,
    /// Whether we dialled.
    pub outbound: bool,
    /// Keep our features back until those of the remote have arrived ([`Session::unsent_features`]). Not for both sides.
    pub identify_first: bool,
}

impl Default for HandshakeConfig {
    fn default() -> HandshakeConfig {
        HandshakeConfig {
            features: BTreeMap::new(),
            password: None,
            min_protocol: MIN_PROTOCOL,
            max_protocol: MAX_PROTOCOL,
            outbound: false,
            identify_first: false,
        }
    }
}

/// The state of a handshake after some bytes.
#[derive(Debug)]
pub enum Progress {
    /// Waits for the rest of the header, for 10 s at most (docs/spec/mesh.md 4.10).
    Header,
    /// The header is complete; the rest may take 60 s from then.
    Exchange,
    /// Complete. The session already contains the bytes that followed the handshake.
    Done(Box<Session>),
}

/// One side of a handshake. The driver writes the bytes of [`Handshake::poll_write`] after `new` and after each
/// `handle_bytes`, also after a failure, since the remote's error text depends on them.
#[derive(Debug)]
pub struct Handshake {
    config: HandshakeConfig,
    private: PrivateKey,
    output: Vec<u8>,
    /// Our features, while they are kept back.
    unsent_features: Vec<u8>,
    stage: Stage,
}

/// A private key, which `Debug` does not show.
struct PrivateKey([u8; 32]);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

#[derive(Debug)]
enum Stage {
    Header(Vec<u8>),
    /// Protocol 2: waits for the encryption flag, then for the key.
    Key(Vec<u8>),
    /// Protocol 2: waits for the first frame.
    Frame(Box<Session>),
    /// Protocol 1: waits for the first value.
    Value(StreamDecoder),
    Finished,
}

impl Handshake {
    /// Starts a handshake. `private` is a random key; it is used only with a password.
    pub fn new(config: HandshakeConfig, private: [u8; 32]) -> Handshake {
        let mut output = MAGIC.to_vec();
        output.extend([config.min_protocol, config.max_protocol]);
        let stage = Stage::Header(Vec::new());
        Handshake { config, private: PrivateKey(private), output, unsent_features: Vec::new(), stage }
    }

    /// The bytes to write next, if any.
    pub fn poll_write(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    /// Handles bytes from the remote, in pieces of any size.
    ///
    /// # Errors
    /// The handshake has failed; close the connection.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Progress, HandshakeError> {
        let result = self.advance(bytes);
        if result.is_err() {
            self.stage = Stage::Finished;
        }
        result
    }

    /// Handles the end of the stream and returns the error for this stage.
    pub fn handle_eof(&mut self) -> HandshakeError {
        match std::mem::replace(&mut self.stage, Stage::Finished) {
            Stage::Header(header) => HandshakeError::IncompleteHeader(header),
            Stage::Key(bytes) => HandshakeError::eof(bytes.len() > 1),
            Stage::Frame(session) => HandshakeError::eof(
                matches!(&session.reader, FrameReader::V2(frames) if frames.is_mid_frame()),
            ),
            Stage::Value(stream) => HandshakeError::eof(!stream.is_complete()),
            Stage::Finished => HandshakeError::Finished,
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<Progress, HandshakeError> {
        loop {
            // Every stage consumes the bytes that it needs, and then waits or leaves the rest to the next stage.
            match &mut self.stage {
                Stage::Header(header) => {
                    if !fill_to(header, HEADER, &mut bytes) {
                        return Ok(Progress::Header);
                    }
                    let (magic, versions) = header.split_at(MAGIC.len());
                    if magic != MAGIC {
                        return Err(HandshakeError::NotWeave(magic.to_vec()));
                    }
                    let (min, max) = (versions[0], versions[1]);
                    self.on_header(min, max)?;
                }
                Stage::Key(key) => {
                    if !fill_to(key, 1, &mut bytes) {
                        return Ok(Progress::Exchange);
                    }
                    match (key[0], &self.config.password) {
                        (0, None) => self.on_key_exchange(None)?,
                        (0, Some(_)) => return Err(HandshakeError::RemoteHasNoPassword),
                        (1, None) => return Err(HandshakeError::RemoteHasPassword),
                        (1, Some(_)) => {
                            if !fill_to(key, 33, &mut bytes) {
                                return Ok(Progress::Exchange);
                            }
                            let public = key[1..].try_into().unwrap_or([0; 32]);
                            self.on_key_exchange(Some(public))?;
                        }
                        (flag, _) => return Err(HandshakeError::BadEncryptionFlag(flag)),
                    }
                }
                Stage::Frame(session) => {
                    session.push(std::mem::take(&mut bytes));
                    return self.read_features_frame();
                }
                Stage::Value(stream) => {
                    stream.push(std::mem::take(&mut bytes));
                    return self.read_features_value();
                }
                Stage::Finished => return Err(HandshakeError::Finished),
            }
        }
    }

    /// Chooses the protocol version and writes our part of the next step.
    fn on_header(&mut self, min: u8, max: u8) -> Result<(), HandshakeError> {
        let config = &self.config;
        let version = max.min(config.max_protocol);
        if version < min.max(config.min_protocol) {
            let ours = (config.min_protocol, config.max_protocol);
            return Err(HandshakeError::NoCommonVersion { remote: (min, max), ours });
        }
        let public = config.password.as_ref().map(|_| crypto::public_key(&self.private.0));
        if version >= 2 {
            match public {
                None => self.output.push(0),
                Some(key) => {
                    self.output.push(1);
                    self.output.extend(key);
                }
            }
            self.stage = Stage::Key(Vec::new());
            return Ok(());
        }
        let mut features = protocol_1_features(&config.features);
        if let Some(key) = public {
            features.insert(PUBLIC_KEY.to_owned(), to_hex(&key));
        }
        self.put_features(encode_features(&features));
        self.stage = Stage::Value(StreamDecoder::new(feature_limits()));
        Ok(())
    }

    /// A session that encrypts if both sides have a password.
    fn session(
        &self,
        version: u8,
        remote_public: Option<[u8; 32]>,
        reader: FrameReader,
    ) -> Result<Session, HandshakeError> {
        let session_key = match (remote_public, &self.config.password) {
            (Some(public), Some(password)) => Some(crypto::session_key(&self.private.0, &public, password)?),
            _ => None,
        };
        let outbound = self.config.outbound;
        Ok(Session {
            version,
            remote_features: BTreeMap::new(),
            unsent_features: Vec::new(),
            session_key,
            writer: FrameWriter { version, sealer: session_key.map(|key| Sealer::new(key, outbound)) },
            reader,
            opener: session_key.map(|key| Opener::new(key, outbound)),
            failed: None,
        })
    }

    /// Protocol 2: derives the keys and writes our features.
    fn on_key_exchange(&mut self, remote_public: Option<[u8; 32]>) -> Result<(), HandshakeError> {
        let reader = FrameReader::V2(FrameBuffer::new(MAX_FEATURES));
        let mut session = self.session(2, remote_public, reader)?;
        let frame = session.seal(&encode_features(&self.config.features)).map_err(HandshakeError::Session)?;
        self.put_features(frame);
        self.stage = Stage::Frame(Box::new(session));
        Ok(())
    }

    fn put_features(&mut self, bytes: Vec<u8>) {
        let to = if self.config.identify_first { &mut self.unsent_features } else { &mut self.output };
        to.extend(bytes);
    }

    /// Protocol 2: reads the features of the remote.
    fn read_features_frame(&mut self) -> Result<Progress, HandshakeError> {
        let Stage::Frame(mut session) = std::mem::replace(&mut self.stage, Stage::Finished) else {
            return Err(HandshakeError::Finished);
        };
        let Some(content) = session.next().map_err(HandshakeError::Session)? else {
            self.stage = Stage::Frame(session);
            return Ok(Progress::Exchange);
        };
        let value = Decoder::with_limits(&content, feature_limits()).next()?;
        session.remote_features = decode_features(&value.ok_or(DecodeError::UnexpectedEof)?)?;
        session.reader.allow_long_messages();
        session.unsent_features = std::mem::take(&mut self.unsent_features);
        Ok(Progress::Done(session))
    }

    /// Protocol 1: reads the features of the remote.
    fn read_features_value(&mut self) -> Result<Progress, HandshakeError> {
        let Stage::Value(mut stream) = std::mem::replace(&mut self.stage, Stage::Finished) else {
            return Err(HandshakeError::Finished);
        };
        let Some(value) = stream.next()? else {
            self.stage = Stage::Value(stream);
            return Ok(Progress::Exchange);
        };
        let mut features = decode_features(&value)?;
        let public = match (features.remove(PUBLIC_KEY), &self.config.password) {
            (None, None) => None,
            (None, Some(_)) => return Err(HandshakeError::RemoteHasNoPassword),
            (Some(_), None) => return Err(HandshakeError::RemoteHasPassword),
            (Some(text), Some(_)) => Some(from_hex(&text).ok_or(HandshakeError::BadPublicKey)?),
        };
        let mut session = self.session(1, public, FrameReader::V1(stream))?;
        session.remote_features = protocol_1_features(&features);
        session.reader.allow_long_messages();
        session.unsent_features = std::mem::take(&mut self.unsent_features);
        Ok(Progress::Done(Box::new(session)))
    }
}

/// Moves bytes from `bytes` until `buffer` has `length`. Returns whether it has.
fn fill_to(buffer: &mut Vec<u8>, length: usize, bytes: &mut &[u8]) -> bool {
    let missing = length.saturating_sub(buffer.len()).min(bytes.len());
    let (taken, rest) = bytes.split_at(missing);
    buffer.extend_from_slice(taken);
    *bytes = rest;
    buffer.len() >= length
}

/// The features that protocol 1 sends.
fn protocol_1_features(features: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let five = REQUIRED.iter().filter_map(|key| features.get_key_value(*key));
    five.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Encodes the features message, a gob stream of one map of strings to strings (docs/spec/mesh.md 4.3, 4.4).
pub fn encode_features(features: &BTreeMap<String, String>) -> Vec<u8> {
    let text = |text: &String| Value::String(text.clone());
    let pairs = features.iter().map(|(key, value)| (text(key), text(value))).collect();
    let mut encoder = Encoder::new();
    encoder.value(&Type::map(Type::String, Type::String), &Value::Map(pairs));
    encoder.finish()
}

fn decode_features(value: &Value) -> Result<BTreeMap<String, String>, FieldError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    value.as_map()?.iter().map(|(key, value)| Ok((text(key)?, text(value)?))).collect()
}

fn feature_limits() -> Limits {
    Limits {
        max_message: MAX_FEATURES,
        max_types: 16,
        max_definition_bytes: 4096,
        // Two strings of a byte each take 4 bytes on the wire and some 80 in memory.
        max_memory: 32 * MAX_FEATURES,
        ..Limits::default()
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(key)
}

/// An authenticated connection: makes frames of outgoing messages and messages of incoming bytes.
pub struct Session {
    /// Protocol version in use.
    pub version: u8,
    /// Features of the remote, not yet validated by
    /// [`Features::from_map`](crate::features::Features::from_map).
    pub remote_features: BTreeMap<String, String>,
    /// Key of the connection, which the overlay uses as well unless both sides trust each other's network
    /// (docs/spec/mesh.md 4.9); `None` without a password.
    pub session_key: Option<[u8; 32]>,
    /// Our features, if they were kept back ([`HandshakeConfig::identify_first`]): to be written before anything else.
    pub unsent_features: Vec<u8>,
    writer: FrameWriter,
    reader: FrameReader,
    opener: Option<Opener>,
    failed: Option<SessionError>,
}

impl Session {
    /// Makes a frame of a message. Frames must be written in the order in which they were made.
    ///
    /// # Errors
    /// [`SessionError::OutgoingTooLarge`]; the session remains usable.
    pub fn seal(&mut self, message: &[u8]) -> Result<Vec<u8>, SessionError> {
        self.writer.frame(message)
    }

    /// Appends bytes from the remote, in pieces of any size. The caller drains [`Session::next`] after each call. Bytes
    /// are ignored after an error.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.reader.push(bytes);
        }
    }

    /// Bytes of a message that is not complete yet.
    pub(crate) fn buffered(&self) -> usize {
        self.reader.buffered()
    }

    /// The next message received; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The session has failed; close the connection. Further calls return the same error.
    #[expect(clippy::should_implement_trait, reason = "fallible and resumable")]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, SessionError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.reader.next(self.opener.as_mut());
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("version", &self.version)
            .field("remote_features", &self.remote_features)
            .field("encrypted", &self.session_key.is_some())
            .finish_non_exhaustive()
    }
}

/// Why a handshake failed. The texts are those of 2.8.1 where it has one.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The remote closed the connection after this part of the header.
    #[error("{}", incomplete_header(.0))]
    IncompleteHeader(Vec<u8>),
    /// The remote closed the connection after the header.
    #[error("{}", if *inside { "unexpected EOF" } else { "EOF" })]
    Eof {
        /// Whether the stream ended inside a field or a frame.
        inside: bool,
    },
    /// The remote sent another protocol, with these first bytes.
    #[error("remote protocol header not recognised: {}", decimals(.0))]
    NotWeave(Vec<u8>),
    /// The two sides have no protocol version in common.
    #[error("remote version range [{},{}] is incompatible with ours [{},{}]", remote.0, remote.1, ours.0, ours.1)]
    NoCommonVersion {
        /// Lowest and highest version of the remote.
        remote: (u8, u8),
        /// Our lowest and highest version.
        ours: (u8, u8),
    },
    /// We have a password and the remote has none.
    #[error("password specified, but peer requested an unencrypted connection")]
    RemoteHasNoPassword,
    /// The remote has a password and we have none.
    #[error("no password specificed, but peer requested an encrypted connection")]
    RemoteHasPassword,
    /// An encryption flag other than 0 and 1.
    #[error("Bad encryption flag {0}")]
    BadEncryptionFlag(u8),
    /// Protocol 1: the public key is not 64 hex digits.
    #[error("remote public key is not 64 hex digits")]
    BadPublicKey,
    /// The public key of the remote gives no secret.
    #[error(transparent)]
    WeakKey(#[from] WeakKey),
    /// The features frame is too long or cannot be decrypted.
    #[error(transparent)]
    Session(SessionError),
    /// The features are not a map of strings.
    #[error(transparent)]
    Features(#[from] FieldError),
    /// The handshake had finished before this call.
    #[error("handshake is over")]
    Finished,
}

impl HandshakeError {
    fn eof(inside: bool) -> HandshakeError {
        HandshakeError::Eof { inside }
    }
}

impl From<DecodeError> for HandshakeError {
    fn from(error: DecodeError) -> HandshakeError {
        HandshakeError::Session(error.into())
    }
}

/// Formats bytes as Go does.
fn decimals(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}

fn incomplete_header(header: &[u8]) -> String {
    if header.is_empty() {
        return "failed to receive remote protocol header: EOF".to_owned();
    }
    let (received, bytes) = (header.len(), decimals(header));
    format!(
        "received incomplete remote protocol header ({received} octets instead of {HEADER}): {bytes}; error: unexpected EOF"
    )
}
