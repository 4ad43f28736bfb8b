use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weave_types::Cidr;

use crate::json::{address, cidr, indented};
use crate::{Route, Version};

/// Result of `ADD`, of this plugin or of another one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddResult {
    /// The interfaces; versions up to 0.3.0 do not show them.
    pub interfaces: Vec<Interface>,
    /// The addresses, the container's first.
    pub addresses: Vec<Address>,
    /// The routes; `None` if the result did not say.
    pub routes: Option<Vec<Route>>,
    /// Name servers and search list.
    pub dns: Map<String, Value>,
}

/// An interface of a result.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Interface {
    /// Its name where it is.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU, shown since version 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The file of the namespace that it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// With the prefix length of the subnet.
    pub cidr: Cidr,
    /// The gateway of the subnet.
    pub gateway: Option<IpAddr>,
    /// Index in [`AddResult::interfaces`].
    pub interface: Option<usize>,
}

/// An element of `ips`, and the value of `ip4` and `ip6` (there `ip` instead of `address`).
#[derive(Deserialize, Serialize)]
struct Ip {
    #[serde(skip_serializing_if = "Option::is_none", skip_deserializing)]
    version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<usize>,
    #[serde(alias = "ip", with = "cidr")]
    address: Cidr,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "address")]
    gateway: Option<IpAddr>,
}

/// Result of versions 0.1.0 and 0.2.0.
#[derive(Serialize)]
struct OldResult<'a> {
    ip4: OldIp<'a>,
    dns: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct OldIp<'a> {
    #[serde(with = "cidr")]
    ip: Cidr,
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(skip_serializing_if = "<[Route]>::is_empty")]
    routes: &'a [Route],
}

#[derive(Serialize)]
struct NewResult<'a> {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    cni_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<Interface>,
    ips: Vec<Ip>,
    #[serde(skip_serializing_if = "<[Route]>::is_empty")]
    routes: &'a [Route],
    dns: &'a Map<String, Value>,
}

impl AddResult {
    /// JSON in the form of a version, without a final newline. Versions before 0.3.0 show one IPv4 address.
    pub fn to_json(&self, version: Version) -> String {
        let routes = self.routes.as_deref().unwrap_or_default();
        let dns = &self.dns;
        if version < Version::V0_3_0
            && let Some(first) = self.addresses.iter().find(|address| address.cidr.addr().is_ipv4())
        {
            let ip4 = OldIp { ip: first.cidr, gateway: first.gateway, routes };
            return indented(&OldResult { ip4, dns });
        }
        let shows_interfaces = version.field().is_some();
        let shows_mtu = version >= Version::V1_1_0;
        let ip = |address: &Address| Ip {
            version: (version < Version::V1_0_0)
                .then(|| if address.cidr.addr().is_ipv4() { "4" } else { "6" }),
            interface: address.interface.filter(|_| shows_interfaces),
            address: address.cidr,
            gateway: address.gateway,
        };
        let interfaces = self.interfaces.iter().filter(|_| shows_interfaces);
        indented(&NewResult {
            cni_version: version.field(),
            interfaces: interfaces
                .map(|i| Interface { mtu: i.mtu.filter(|_| shows_mtu), ..i.clone() })
                .collect(),
            ips: self.addresses.iter().map(ip).collect(),
            routes,
            dns,
        })
    }

    /// Reads a result of any version.
    ///
    /// # Errors
    /// It has not the form of a result.
    pub fn parse(value: &Value) -> Result<AddResult, String> {
        fn field<T: for<'a> Deserialize<'a>>(value: &Value, name: &str) -> Result<Option<T>, String> {
            let value = value.get(name).filter(|value| !value.is_null());
            value.map(|value| T::deserialize(value).map_err(|e| format!("{name}: {e}"))).transpose()
        }
        if !value.is_object() {
            return Err("not a JSON object".to_owned());
        }
        let mut result = AddResult {
            interfaces: field(value, "interfaces")?.unwrap_or_default(),
            routes: field(value, "routes")?,
            dns: field(value, "dns")?.unwrap_or_default(),
            addresses: Vec::new(),
        };
        let mut ips: Vec<Ip> = field(value, "ips")?.unwrap_or_default();
        for name in ["ip4", "ip6"] {
            let Some(ip) = field::<Ip>(value, name)? else { continue };
            ips.push(ip);
            let routes: Option<Vec<Route>> = field(&value[name], "routes")?;
            if let Some(routes) = routes {
                result.routes.get_or_insert_default().extend(routes);
            }
        }
        let address = |ip: Ip| Address { cidr: ip.address, gateway: ip.gateway, interface: ip.interface };
        result.addresses = ips.into_iter().map(address).collect();
        Ok(result)
    }
}
