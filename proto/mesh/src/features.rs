//! What two peers tell each other about themselves when they connect (docs/spec/mesh.md 4.7).

use std::collections::BTreeMap;
use std::fmt;

use crate::update::MAX_NICKNAME;
use weave_types::{ConnectionUid, ParsePeerNameError, PeerName, PeerUid, ShortId};

/// The kind of names that this implementation uses; `hash` is the other one there ever was.
const FLAVOUR: &str = "mac";

/// The five keys that protocol 1 carries, which are also the required ones, in the order of the checks.
pub(crate) const REQUIRED: [&str; 5] = ["PeerNameFlavour", "Name", "NickName", "UID", "ConnID"];

/// The features of one side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Who it is.
    pub name: PeerName,
    /// Free text for people.
    pub nickname: String,
    /// Which incarnation it is; not zero.
    pub uid: PeerUid,
    /// Random per connection and side.
    pub connection_id: u64,
    /// Absent on protocol 1 and from peers too old to have one.
    pub short_id: Option<ShortId>,
    /// The sender considers the receiver's address to be in one of its trusted subnets.
    pub trusted: bool,
    /// Overlays in order of preference. `None`: the peer is too old to choose and speaks sleeve with legacy control
    /// messages.
    pub overlays: Option<Vec<String>>,
}

impl Features {
    /// As the handshake carries them.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        let mut map = BTreeMap::new();
        let mut put = |key: &str, value: String| map.insert(key.to_owned(), value);
        put("PeerNameFlavour", FLAVOUR.to_owned());
        put("Name", self.name.to_string());
        put("NickName", self.nickname.clone());
        put("UID", self.uid.0.to_string());
        put("ConnID", self.connection_id.to_string());
        if let Some(short_id) = self.short_id {
            put("ShortID", short_id.to_string());
        }
        put("Trusted", self.trusted.to_string());
        if let Some(overlays) = &self.overlays {
            put("Overlays", overlays.join(" "));
        }
        map
    }

    /// Checks what the remote sent, in the order of 2.8.1. Unknown keys are ignored.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn from_map(map: &BTreeMap<String, String>) -> Result<Features, FeatureError> {
        let field = |key: &'static str| map.get(key).map(String::as_str).ok_or(FeatureError::Missing(key));
        for key in REQUIRED {
            field(key)?;
        }
        let flavour = field("PeerNameFlavour")?;
        if flavour != FLAVOUR {
            return Err(FeatureError::Flavour(flavour.to_owned()));
        }
        let name = field("Name")?.parse().map_err(FeatureError::Name)?;
        let short_id = match map.get("ShortID") {
            None => None,
            // In range by the parser's limit.
            Some(text) => ShortId::new(parse_uint(text, u64::from(ShortId::COUNT) - 1)? as u16),
        };
        let trusted = match map.get("Trusted") {
            None => false,
            Some(text) => parse_bool(text)?,
        };
        let uid = PeerUid(parse_uint(field("UID")?, u64::MAX)?);
        let connection_id = parse_uint(field("ConnID")?, u64::MAX)?;
        // Both mean "nobody" elsewhere. The original takes them (docs/spec/mesh.md 15.6), but never sends them.
        if name == PeerName::UNKNOWN || uid == PeerUid(0) {
            return Err(FeatureError::Reserved);
        }
        let overlays = map
            .get("Overlays")
            .map(|list| list.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect());
        let nickname = field("NickName")?.to_owned();
        if nickname.len() > MAX_NICKNAME {
            return Err(FeatureError::LongNickname(nickname.len()));
        }
        Ok(Features { name, nickname, uid, connection_id, short_id, trusted, overlays })
    }

    /// The number that both sides know the connection by.
    pub fn connection_uid(&self, remote: &Features) -> ConnectionUid {
        ConnectionUid(self.connection_id ^ remote.connection_id)
    }
}

/// The remote's features are not acceptable. Texts as 2.8.1 has them, except the last two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeatureError {
    /// A required key is missing.
    Missing(&'static str),
    /// The remote uses another kind of names.
    Flavour(String),
    /// The name is none.
    Name(ParsePeerNameError),
    /// A number with something else than digits.
    NumberSyntax(String),
    /// A number too large.
    NumberRange(String),
    /// A bool spelled in a way that Go does not know.
    BoolSyntax(String),
    /// Name or UID is zero.
    Reserved,
    /// The nickname has so many bytes; gossip about such a peer would be refused.
    LongNickname(usize),
}

impl fmt::Display for FeatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureError::Missing(key) => write!(f, "field {key} is missing"),
            FeatureError::Flavour(theirs) => {
                write!(f, "Peer name flavour mismatch (ours: '{FLAVOUR}', theirs: '{theirs}')")
            }
            FeatureError::Name(error) => error.fmt(f),
            FeatureError::NumberSyntax(text) => {
                write!(f, "strconv.ParseUint: parsing {text:?}: invalid syntax")
            }
            FeatureError::NumberRange(text) => {
                write!(f, "strconv.ParseUint: parsing {text:?}: value out of range")
            }
            FeatureError::BoolSyntax(text) => {
                write!(f, "strconv.ParseBool: parsing {text:?}: invalid syntax")
            }
            FeatureError::LongNickname(len) => {
                write!(f, "nickname of {len} bytes, at most {MAX_NICKNAME} allowed")
            }
            FeatureError::Reserved => f.write_str("remote has no name or no UID"),
        }
    }
}

impl std::error::Error for FeatureError {}

/// Digits only, as Go has it: no sign, no blanks. What is wrong first decides the error.
fn parse_uint(text: &str, max: u64) -> Result<u64, FeatureError> {
    let syntax = || FeatureError::NumberSyntax(text.to_owned());
    let mut value = 0u64;
    for byte in text.bytes() {
        if !byte.is_ascii_digit() {
            return Err(syntax());
        }
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
            .filter(|value| *value <= max)
            .ok_or_else(|| FeatureError::NumberRange(text.to_owned()))?;
    }
    if text.is_empty() { Err(syntax()) } else { Ok(value) }
}

fn parse_bool(text: &str) -> Result<bool, FeatureError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(FeatureError::BoolSyntax(text.to_owned())),
    }
}
