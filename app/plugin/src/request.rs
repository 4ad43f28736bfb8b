//! Bodies of requests. Fields that are not known are ignored, and those that are missing are empty.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::Error;

/// Option of a network: whether its containers send multicast through it.
pub const MULTICAST_OPTION: &str = "works.weave.multicast";
/// Where Docker puts the options of `docker network create -o`.
const GENERIC: &str = "com.docker.network.generic";

pub(crate) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|e| Error::Json(if e.is_eof() { "unexpected EOF".to_owned() } else { e.to_string() }))
}

/// Go writes `null` for an empty map or text.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct AllocateNetwork {
    pub(crate) options: Value,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Network {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(crate) network: String,
    #[serde(rename = "Options", deserialize_with = "or_default")]
    options: BTreeMap<String, Value>,
}

impl Network {
    /// The options of the driver.
    pub(crate) fn driver_options(&self) -> BTreeMap<String, String> {
        let Some(Value::Object(options)) = self.options.get(GENERIC) else { return BTreeMap::new() };
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        options.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

/// Whether a network with these options of its driver has multicast.
///
/// # Errors
/// The value is none of a truth value.
pub fn multicast(options: &BTreeMap<String, String>) -> Result<bool, Error> {
    match options.get(MULTICAST_OPTION).map_or("", String::as_str) {
        "" | "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        other => Err(Error::Refused(format!("unrecognized value {other:?} for option {MULTICAST_OPTION}"))),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Interface {
    #[serde(deserialize_with = "or_default")]
    pub(crate) mac_address: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Endpoint {
    #[serde(rename = "NetworkID", deserialize_with = "or_default")]
    pub(crate) network: String,
    #[serde(rename = "EndpointID", deserialize_with = "or_default")]
    pub(crate) endpoint: String,
    #[serde(rename = "Interface")]
    pub(crate) interface: Option<Interface>,
    #[serde(rename = "SandboxKey", deserialize_with = "or_default")]
    pub(crate) sandbox: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct RequestPool {
    #[serde(deserialize_with = "or_default")]
    pub(crate) pool: String,
    #[serde(deserialize_with = "or_default")]
    pub(crate) sub_pool: String,
    pub(crate) v6: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Address {
    #[serde(rename = "PoolID", deserialize_with = "or_default")]
    pub(crate) pool: String,
    #[serde(rename = "Address", deserialize_with = "or_default")]
    pub(crate) address: String,
}

/// A new endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateEndpoint {
    /// Its devices.
    pub pair: crate::VethPair,
    /// Whether Docker has chosen the Ethernet address, which it sets itself.
    pub(crate) has_mac: bool,
}

/// The interface of an endpoint is about to be moved into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// Id of the network.
    pub network: String,
    /// Path of the container's network namespace, which may not exist yet.
    pub sandbox: String,
    pub(crate) endpoint: String,
    pub(crate) inside: String,
}
