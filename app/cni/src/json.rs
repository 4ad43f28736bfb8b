//! Forms of values in JSON.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};

/// `null` stands for the default.
pub(crate) fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Empty text stands for none.
pub(crate) fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text: String = nullable(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| serde::de::Error::custom(format!("invalid IP address: {text}")))
}

/// An address with a prefix length, as text.
pub(crate) mod cidr {
    use serde::{Deserialize, Deserializer, Serializer};
    use weave_types::Cidr;

    pub(crate) fn serialize<S: Serializer>(cidr: &Cidr, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cidr)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cidr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// JSON as 2.8.1 indented it.
pub(crate) fn indented(value: &impl Serialize) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    // Serialization fails for keys that are no texts, which these types do not have.
    let _ = value.serialize(&mut serializer);
    String::from_utf8(text).unwrap_or_default()
}
