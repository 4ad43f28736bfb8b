use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::json::{address, nullable};
use crate::{Error, Route, code};

/// The configuration of a network (docs/spec/containers.md C.3). `null` stands for a default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetConf {
    /// The name of the network.
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// The bridge that containers are attached to; empty for the usual one.
    #[serde(deserialize_with = "nullable")]
    pub bridge: String,
    /// MTU of the interface; 0 for that of the bridge.
    #[serde(deserialize_with = "nullable")]
    pub mtu: u32,
    /// Whether frames may leave by the bridge port that they came in by; on unless it is given.
    pub hairpin_mode: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    pub(crate) is_gateway: bool,
    #[serde(deserialize_with = "nullable")]
    pub(crate) ip_masq: bool,
    /// Where addresses come from.
    #[serde(deserialize_with = "nullable")]
    pub ipam: Ipam,
    /// Copied to the result.
    #[serde(deserialize_with = "nullable")]
    pub dns: Map<String, Value>,
    /// The result of `ADD`, which comes with `CHECK` and `DEL`.
    pub prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<AttachmentRef>>,
    /// The same in drafts of the specification; libcni sends both.
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<AttachmentRef>>,
}

/// Section `ipam` of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Ipam {
    /// Another plugin that allocates addresses; empty for weave's own.
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub plugin: String,
    /// The subnet to allocate in; empty for the default subnet.
    #[serde(deserialize_with = "nullable")]
    pub subnet: String,
    /// The gateway of the container's routes.
    #[serde(deserialize_with = "address")]
    pub gateway: Option<IpAddr>,
    /// The container's routes; `None` for a default route.
    pub routes: Option<Vec<Route>>,
}

/// An attachment as `GC` names it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct AttachmentRef {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: String,
    /// The interface in it.
    #[serde(rename = "ifname")]
    pub interface: String,
}

impl Default for NetConf {
    fn default() -> NetConf {
        NetConf {
            name: String::new(),
            bridge: String::new(),
            mtu: 0,
            hairpin_mode: None,
            is_gateway: false,
            ip_masq: false,
            ipam: Ipam::default(),
            dns: Map::new(),
            prev_result: None,
            valid_attachments: None,
            attachments: None,
        }
    }
}

impl NetConf {
    /// The attachments that are to stay, which come with `GC`.
    ///
    /// # Errors
    /// There is no list, which does not mean that none is to stay.
    pub fn valid_attachments(&self) -> Result<&[AttachmentRef], Error> {
        let list = self.valid_attachments.as_deref().or(self.attachments.as_deref());
        list.ok_or_else(|| Error::new(code::INVALID_CONFIG, "cni.dev/valid-attachments is missing"))
    }
}

impl Ipam {
    /// Another plugin than weave's own.
    pub fn external(&self) -> Option<&str> {
        Some(self.plugin.as_str()).filter(|plugin| !["", "weave-ipam"].contains(plugin))
    }
}
