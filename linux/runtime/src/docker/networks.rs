//! Networks of an engine.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;
use weave_http::encode;

use super::images::keys;
use super::{Docker, null_is_default};
use crate::Error;

/// A network of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Network {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name, which another network may have as well.
    #[serde(default)]
    pub name: String,
    /// The driver that implements it: `bridge`, `weavemesh`, ...
    pub driver: String,
    /// Options of the driver.
    #[serde(default, deserialize_with = "null_is_default")]
    pub options: BTreeMap<String, String>,
    /// Labels, by which its creator finds it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Ids of the running containers in it. A list of networks does not show them.
    #[serde(default, deserialize_with = "keys")]
    pub containers: Vec<String>,
}

impl Docker {
    /// All networks.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn networks(&self) -> Result<Vec<Network>, Error> {
        self.request("GET", "/networks", None, "list networks")?.read()
    }

    /// The network of a name or id.
    ///
    /// # Errors
    /// The engine does not answer, or cannot describe it.
    pub fn network(&self, name: &str) -> Result<Option<Network>, Error> {
        self.find(&format!("/networks/{}", encode(name)), &format!("describe network {name}"))
    }

    /// Creates a network from the API's JSON.
    ///
    /// # Errors
    /// The engine does not answer, or refuses.
    pub fn create_network(&self, settings: &Value) -> Result<(), Error> {
        let body = settings.to_string();
        let name = settings["Name"].as_str().unwrap_or_default();
        let body = Some(("application/json", body.as_bytes()));
        self.change("POST", "/networks/create", body, &format!("create network {name}"))
    }

    /// Removes a network. It is no error if it is gone.
    ///
    /// # Errors
    /// The engine does not answer, or the network is in use.
    pub fn remove_network(&self, id: &str) -> Result<(), Error> {
        self.change("DELETE", &format!("/networks/{}", encode(id)), None, &format!("remove network {id}"))
    }
}
