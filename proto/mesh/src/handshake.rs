//! The handshake of a control connection (docs/spec/mesh.md 4.2 to 4.5), as a value: bytes in, bytes out.
//!
//! Both sides do the same at the same time; neither waits for the other before it writes its part of a step.
//!
//! ```text
//! header     "weave" min max                              both versions, plain
//! exchange   v2: flag 0, or flag 1 and an X25519 key      plain
//! features   v2: first frame, boxed if there is a key     v1: first gob value, plain, with the key as a feature
//! session    frames, boxed if there is a key
//! ```

use std::collections::BTreeMap;
use std::fmt;

use weave_gob::{DecodeError, Decoder, Encoder, FieldError, Limits, StreamDecoder, Type, Value};

use crate::crypto::{self, Opener, Sealer, Secret, WeakKey};
use crate::features::REQUIRED;
use crate::wire::{FrameReader, FrameWriter, Frames, SessionError, session_limits};

/// Highest protocol version there is.
pub const MAX_PROTOCOL: u8 = 2;
/// Lowest protocol version there is.
pub const MIN_PROTOCOL: u8 = 1;

const MAGIC: &[u8; 5] = b"weave";
const HEADER: usize = MAGIC.len() + 2;
const PUBLIC_KEY: &str = "PublicKey";

/// Bytes of a features message that we take. The original takes up to the frame limit of 10 MiB from anybody who can
/// connect; real ones have some 200 bytes.
pub const MAX_FEATURES: usize = 64 * 1024;

/// What one side brings to a handshake.
#[derive(Clone, Debug)]
pub struct HandshakeConfig {
    /// What we tell the remote ([`Features::to_map`](crate::features::Features::to_map)). Protocol 1 leaves out all but
    /// five.
    pub features: BTreeMap<String, String>,
    /// Password of the network; both sides have one or neither.
    pub password: Option<Secret>,
    /// Lowest protocol version to accept, 1 or 2. Default 1.
    pub min_protocol: u8,
    /// Highest protocol version to offer, 1 or 2. Default 2; less only for tests.
    pub max_protocol: u8,
    /// We made the connection.
    pub outbound: bool,
}

impl Default for HandshakeConfig {
    fn default() -> HandshakeConfig {
        HandshakeConfig {
            features: BTreeMap::new(),
            password: None,
            min_protocol: MIN_PROTOCOL,
            max_protocol: MAX_PROTOCOL,
            outbound: false,
        }
    }
}

/// Where a handshake stands after some bytes.
#[derive(Debug)]
pub enum Progress {
    /// Waits for the rest of the header; the deadline is 10 s (docs/spec/mesh.md 4.10).
    Header,
    /// The header is complete; the rest has 60 s from the first time this is seen.
    Exchange,
    /// Complete. Bytes that came after the handshake are in the session already: drain it.
    Done(Box<Session>),
}

/// One side of a handshake. Write what [`Handshake::poll_write`] gives after `new` and after each `handle_bytes`,
/// failed or not, since the remote explains the failure to its own people from it.
#[derive(Debug)]
pub struct Handshake {
    config: HandshakeConfig,
    private: Private,
    output: Vec<u8>,
    stage: Stage,
}

/// Keeps the private key out of logs.
struct Private([u8; 32]);

impl fmt::Debug for Private {
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
    Frame {
        key: Option<Keys>,
        frames: Frames,
    },
    /// Protocol 1: waits for the first value.
    Value(StreamDecoder),
    Over,
}

impl Handshake {
    /// A handshake from its beginning. `private` is fresh randomness; it is used only if there is a password.
    pub fn new(config: HandshakeConfig, private: [u8; 32]) -> Handshake {
        let mut output = MAGIC.to_vec();
        output.extend([config.min_protocol, config.max_protocol]);
        Handshake { config, private: Private(private), output, stage: Stage::Header(Vec::new()) }
    }

    /// What is to be written next, if anything.
    pub fn poll_write(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    /// Bytes from the remote, cut anyhow.
    ///
    /// # Errors
    /// The handshake has failed; close the connection.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Progress, HandshakeError> {
        let result = self.advance(bytes);
        if result.is_err() {
            self.stage = Stage::Over;
        }
        result
    }

    /// What it means that the remote has closed the connection at this point.
    pub fn handle_eof(&mut self) -> HandshakeError {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Header(header) => HandshakeError::HeaderCutOff(header),
            Stage::Key(bytes) => HandshakeError::eof(bytes.len() > 1),
            Stage::Frame { frames, .. } => HandshakeError::eof(frames.is_inside()),
            Stage::Value(stream) => HandshakeError::eof(!stream.is_complete()),
            Stage::Over => HandshakeError::Over,
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<Progress, HandshakeError> {
        loop {
            // Every stage takes what it needs of `bytes` and either waits or leaves the rest to the next one.
            match &mut self.stage {
                Stage::Header(header) => {
                    if !fill(header, HEADER, &mut bytes) {
                        return Ok(Progress::Header);
                    }
                    let (magic, versions) = header.split_at(MAGIC.len());
                    if magic != MAGIC {
                        return Err(HandshakeError::NotWeave(magic.to_vec()));
                    }
                    let (min, max) = (versions[0], versions[1]);
                    self.start(min, max)?;
                }
                Stage::Key(key) => {
                    if !fill(key, 1, &mut bytes) {
                        return Ok(Progress::Exchange);
                    }
                    match (key[0], &self.config.password) {
                        (0, None) => self.exchange(None)?,
                        (0, Some(_)) => return Err(HandshakeError::RemoteHasNoPassword),
                        (1, None) => return Err(HandshakeError::RemoteHasPassword),
                        (1, Some(_)) => {
                            if !fill(key, 33, &mut bytes) {
                                return Ok(Progress::Exchange);
                            }
                            let public = key[1..].try_into().unwrap_or([0; 32]);
                            self.exchange(Some(public))?;
                        }
                        (flag, _) => return Err(HandshakeError::BadFlag(flag)),
                    }
                }
                Stage::Frame { frames, .. } => {
                    frames.push(std::mem::take(&mut bytes));
                    return self.first_frame();
                }
                Stage::Value(stream) => {
                    stream.push(std::mem::take(&mut bytes));
                    return self.first_value();
                }
                Stage::Over => return Err(HandshakeError::Over),
            }
        }
    }

    /// Header complete: chooses the version and writes our part of the next step.
    fn start(&mut self, min: u8, max: u8) -> Result<(), HandshakeError> {
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
        let mut features = first_version(&config.features);
        if let Some(key) = public {
            features.insert(PUBLIC_KEY.to_owned(), to_hex(&key));
        }
        self.output.extend(encode_features(&features));
        self.stage = Stage::Value(StreamDecoder::new(feature_limits()));
        Ok(())
    }

    fn keys(&self, remote_public: &[u8; 32], password: &Secret) -> Result<Keys, HandshakeError> {
        let key = crypto::session_key(&self.private.0, remote_public, password)?;
        let outbound = self.config.outbound;
        Ok(Keys { key, sealer: Sealer::new(key, outbound), opener: Opener::new(key, outbound) })
    }

    /// Protocol 2, exchange complete: writes our features.
    fn exchange(&mut self, remote_public: Option<[u8; 32]>) -> Result<(), HandshakeError> {
        let mut key = match (remote_public, &self.config.password) {
            (Some(remote_public), Some(password)) => Some(self.keys(&remote_public, password)?),
            _ => None,
        };
        let mut writer = FrameWriter { version: 2, sealer: key.as_mut().map(|key| key.sealer.clone()) };
        let frame = writer.frame(&encode_features(&self.config.features)).map_err(HandshakeError::Session)?;
        if let (Some(key), Some(sealer)) = (&mut key, writer.sealer) {
            key.sealer = sealer;
        }
        self.output.extend(frame);
        self.stage = Stage::Frame { key, frames: Frames::new(MAX_FEATURES) };
        Ok(())
    }

    /// Protocol 2: the remote's features, when they are complete.
    fn first_frame(&mut self) -> Result<Progress, HandshakeError> {
        let Stage::Frame { key, frames } = &mut self.stage else { return Err(HandshakeError::Over) };
        let opened;
        let content = match (frames.next().map_err(HandshakeError::Session)?, key) {
            (None, _) => return Ok(Progress::Exchange),
            (Some(content), None) => content,
            (Some(content), Some(key)) => {
                opened = key
                    .opener
                    .open(content)
                    .map_err(|_| HandshakeError::Session(SessionError::CannotDecrypt))?;
                &opened
            }
        };
        let value = Decoder::with_limits(content, feature_limits()).next()?;
        let features = decode_features(&value.ok_or(DecodeError::UnexpectedEof)?)?;
        let Stage::Frame { key, mut frames } = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Err(HandshakeError::Over);
        };
        frames.set_limit(crate::wire::MAX_FRAME);
        Ok(Progress::Done(Box::new(Session::new(2, features, key, FrameReader::V2(frames)))))
    }

    /// Protocol 1: the same.
    fn first_value(&mut self) -> Result<Progress, HandshakeError> {
        let Stage::Value(stream) = &mut self.stage else { return Err(HandshakeError::Over) };
        let Some(value) = stream.next()? else { return Ok(Progress::Exchange) };
        let mut features = decode_features(&value)?;
        let key = match (features.remove(PUBLIC_KEY), &self.config.password) {
            (None, None) => None,
            (None, Some(_)) => return Err(HandshakeError::RemoteHasNoPassword),
            (Some(_), None) => return Err(HandshakeError::RemoteHasPassword),
            (Some(text), Some(password)) => {
                let public = from_hex(&text).ok_or(HandshakeError::BadPublicKey)?;
                Some(self.keys(&public, password)?)
            }
        };
        let features = first_version(&features);
        let Stage::Value(mut stream) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Err(HandshakeError::Over);
        };
        stream.set_limits(session_limits());
        Ok(Progress::Done(Box::new(Session::new(1, features, key, FrameReader::V1(stream)))))
    }
}

/// Moves bytes until `buffer` has `length`; whether it has.
fn fill(buffer: &mut Vec<u8>, length: usize, bytes: &mut &[u8]) -> bool {
    let missing = length.saturating_sub(buffer.len()).min(bytes.len());
    let (taken, rest) = bytes.split_at(missing);
    buffer.extend_from_slice(taken);
    *bytes = rest;
    buffer.len() >= length
}

/// The features that protocol 1 carries.
fn first_version(features: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let five = REQUIRED.iter().filter_map(|key| features.get_key_value(*key));
    five.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The features message: a fresh gob stream of one map of strings to strings (docs/spec/mesh.md 4.3, 4.4).
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

/// Key and boxes of a session with a password.
#[derive(Clone)]
struct Keys {
    key: [u8; 32],
    sealer: Sealer,
    opener: Opener,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// A connection past its handshake: frames messages and cuts the incoming bytes into messages.
pub struct Session {
    /// Protocol version in use.
    pub version: u8,
    /// What the remote told about itself, not yet checked
    /// ([`Features::from_map`](crate::features::Features::from_map)).
    pub remote_features: BTreeMap<String, String>,
    /// The key, also for the overlay where trust demands (docs/spec/mesh.md 4.9); `None` without a password.
    pub session_key: Option<[u8; 32]>,
    writer: FrameWriter,
    reader: FrameReader,
    opener: Option<Opener>,
    failed: Option<SessionError>,
}

impl Session {
    fn new(
        version: u8,
        remote_features: BTreeMap<String, String>,
        keys: Option<Keys>,
        reader: FrameReader,
    ) -> Session {
        let (session_key, sealer, opener) = match keys {
            None => (None, None, None),
            Some(Keys { key, sealer, opener }) => (Some(key), Some(sealer), Some(opener)),
        };
        let writer = FrameWriter { version, sealer };
        Session { version, remote_features, session_key, writer, reader, opener, failed: None }
    }

    /// The message ready for the wire. Frames must be written in the order in which they were made.
    ///
    /// # Errors
    /// [`SessionError::OutgoingTooLarge`]; nothing has happened then.
    pub fn seal(&mut self, message: &[u8]) -> Result<Vec<u8>, SessionError> {
        self.writer.frame(message)
    }

    /// Bytes from the remote, cut anyhow. Drain [`Session::next`] after each call; ignored after an error.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.reader.push(bytes);
        }
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

/// Why a handshake failed. Texts as 2.8.1 has them where it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeError {
    /// Closed within the header; what there was of it.
    HeaderCutOff(Vec<u8>),
    /// Closed later. `inside`: in the middle of something.
    Eof {
        /// In the middle of something.
        inside: bool,
    },
    /// The remote does not speak our protocol; its first bytes.
    NotWeave(Vec<u8>),
    /// No version in common.
    NoCommonVersion {
        /// Lowest and highest of the remote.
        remote: (u8, u8),
        /// Lowest and highest of ours.
        ours: (u8, u8),
    },
    /// We have a password, the remote has none.
    RemoteHasNoPassword,
    /// The remote has a password, we have none.
    RemoteHasPassword,
    /// An encryption flag that is neither 0 nor 1.
    BadFlag(u8),
    /// Protocol 1: the public key is not 64 hex digits.
    BadPublicKey,
    /// A public key that gives no secret.
    WeakKey(WeakKey),
    /// The features frame is too long or does not open.
    Session(SessionError),
    /// The features are no map of strings.
    Features(FieldError),
    /// The call came after the end of the handshake.
    Over,
}

impl HandshakeError {
    fn eof(inside: bool) -> HandshakeError {
        HandshakeError::Eof { inside }
    }
}

/// Go's way to print a byte slice.
fn decimals(bytes: &[u8]) -> String {
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    format!("[{}]", numbers.join(" "))
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HandshakeError::HeaderCutOff(header) if header.is_empty() => {
                f.write_str("failed to receive remote protocol header: EOF")
            }
            HandshakeError::HeaderCutOff(header) => write!(
                f,
                "received incomplete remote protocol header ({} octets instead of {HEADER}): {}; error: unexpected EOF",
                header.len(),
                decimals(header)
            ),
            HandshakeError::Eof { inside: false } => f.write_str("EOF"),
            HandshakeError::Eof { inside: true } => f.write_str("unexpected EOF"),
            HandshakeError::NotWeave(magic) => {
                write!(f, "remote protocol header not recognised: {}", decimals(magic))
            }
            HandshakeError::NoCommonVersion { remote, ours } => write!(
                f,
                "remote version range [{},{}] is incompatible with ours [{},{}]",
                remote.0, remote.1, ours.0, ours.1
            ),
            HandshakeError::RemoteHasNoPassword => {
                f.write_str("password specified, but peer requested an unencrypted connection")
            }
            HandshakeError::RemoteHasPassword => {
                f.write_str("no password specificed, but peer requested an encrypted connection")
            }
            HandshakeError::BadFlag(flag) => write!(f, "Bad encryption flag {flag}"),
            HandshakeError::BadPublicKey => f.write_str("remote public key is not 64 hex digits"),
            HandshakeError::WeakKey(error) => error.fmt(f),
            HandshakeError::Session(error) => error.fmt(f),
            HandshakeError::Features(error) => error.fmt(f),
            HandshakeError::Over => f.write_str("handshake is over"),
        }
    }
}

impl std::error::Error for HandshakeError {}

impl From<WeakKey> for HandshakeError {
    fn from(error: WeakKey) -> HandshakeError {
        HandshakeError::WeakKey(error)
    }
}

impl From<DecodeError> for HandshakeError {
    fn from(error: DecodeError) -> HandshakeError {
        HandshakeError::Session(error.into())
    }
}

impl From<FieldError> for HandshakeError {
    fn from(error: FieldError) -> HandshakeError {
        HandshakeError::Features(error)
    }
}
