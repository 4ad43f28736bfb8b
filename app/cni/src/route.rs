use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weave_types::Cidr;

use crate::json::{address, cidr};

/// A route of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Route {
    /// The destination.
    #[serde(with = "cidr")]
    pub dst: Cidr,
    /// The next hop; `None` stands for the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "address")]
    pub gw: Option<IpAddr>,
    /// What other versions of the specification add.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}
