//! The features that two peers exchange in the handshake (docs/spec/mesh.md 4.7).

use std::collections::BTreeMap;

use thiserror::Error;
use weave_types::{ConnectionUid, ParsePeerNameError, PeerName, PeerUid, ShortId};

use crate::update::MAX_NICKNAME;

/// The format of peer names. The mesh library knows another one, `hash`, which Weave Net does not use.
const FLAVOUR: &str = "mac";

/// The required keys in the order of the checks. Protocol 1 carries only these.
pub(crate) const REQUIRED: [&str; 5] = ["PeerNameFlavour", "Name", "NickName", "UID", "ConnID"];

/// The features of one side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Name of the peer.
    pub name: PeerName,
    /// Nickname of the peer.
    pub nickname: String,
    /// Identifies the run of the peer's process; not zero.
    pub uid: PeerUid,
    /// Random number of this side for this connection.
    pub connection_id: u64,
    /// Short id; absent in protocol 1 and from old peers.
    pub short_id: Option<ShortId>,
    /// Whether the receiver's address is in one of the sender's trusted subnets.
    pub trusted: bool,
    /// Overlays in order of preference. `None` from an old peer, which uses sleeve with control messages of the old form.
    pub overlays: Option<Vec<String>>,
}

impl Features {
    /// The keys and values that the handshake carries.
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

    /// Parses the features of the remote, with the checks of 2.8.1 in their order. Unknown keys are ignored.
    ///
    /// # Errors
    /// The first check that fails.
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
            Some(text) => ShortId::new(parse_uint(text, u64::from(ShortId::COUNT) - 1)? as u16),
        };
        let trusted = match map.get("Trusted") {
            None => false,
            Some(text) => parse_bool(text)?,
        };
        let uid = PeerUid(parse_uint(field("UID")?, u64::MAX)?);
        let connection_id = parse_uint(field("ConnID")?, u64::MAX)?;
        // Zero marks placeholders in gossip. 2.8.1 accepts it here (docs/spec/mesh.md 15.6), but never sends it.
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

    /// The number that identifies the connection on both sides.
    pub fn connection_uid(&self, remote: &Features) -> ConnectionUid {
        ConnectionUid(self.connection_id ^ remote.connection_id)
    }
}

/// The features of the remote are not acceptable. The texts of all but the last two are those of 2.8.1.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FeatureError {
    /// A required key is missing.
    #[error("field {0} is missing")]
    Missing(&'static str),
    /// The remote uses another format of names.
    #[error("Peer name flavour mismatch (ours: '{FLAVOUR}', theirs: '{0}')")]
    Flavour(String),
    /// The name is malformed.
    #[error(transparent)]
    Name(ParsePeerNameError),
    /// A number contains characters other than digits.
    #[error("strconv.ParseUint: parsing {0:?}: invalid syntax")]
    NumberSyntax(String),
    /// A number is too large.
    #[error("strconv.ParseUint: parsing {0:?}: value out of range")]
    NumberRange(String),
    /// A bool is spelled in a way that Go does not accept.
    #[error("strconv.ParseBool: parsing {0:?}: invalid syntax")]
    BoolSyntax(String),
    /// The name or the UID is zero.
    #[error("remote has no name or no UID")]
    Reserved,
    /// The nickname, whose length in bytes this is, is longer than topology gossip accepts.
    #[error("nickname of {0} bytes, at most {MAX_NICKNAME} allowed")]
    LongNickname(usize),
}

/// Parses digits without sign or blanks. As in Go, the first wrong byte decides the error.
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
