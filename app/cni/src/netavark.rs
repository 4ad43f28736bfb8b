//! Messages of netavark, Podman's network program, to a plugin (its plugin API 1.0.0).
//!
//! | called as | reads | prints |
//! | --- | --- | --- |
//! | `create` | the network that Podman is about to create | the network, completed |
//! | `setup <namespace>` | the network and what the container wants | interface, addresses, name servers |
//! | `teardown <namespace>` | the same | nothing |
//! | `info` | nothing | versions |
//!
//! An error is `{"error":"..."}` on standard output, with exit code 1.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weave_types::Cidr;

/// The version of the plugin API.
const API_VERSION: &str = "1.0.0";

/// The driver of addresses in a network. With `host-local`, or without one, Podman would choose addresses of the subnet, on each host
/// the same ones.
const IPAM_DRIVER: &str = "weave";

/// What netavark calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Complete a network.
    Create,
    /// Attach the container in the namespace of this file.
    Setup(String),
    /// Detach it.
    Teardown(String),
    /// Print versions.
    Info,
}

impl Action {
    /// Reads the arguments of a call.
    ///
    /// # Errors
    /// They are others.
    pub fn parse(arguments: &[String]) -> Result<Action, String> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Ok(match words.as_slice() {
            [] | ["info"] => Action::Info,
            ["create"] => Action::Create,
            ["setup", path] => Action::Setup((*path).to_owned()),
            ["teardown", path] => Action::Teardown((*path).to_owned()),
            ["setup" | "teardown"] => return Err("netns path argument is missing".to_owned()),
            _ => return Err(format!("unknown subcommand: {}", words.join(" "))),
        })
    }
}

/// Input of `setup` and `teardown`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Exec {
    /// Id of the container.
    pub container_id: String,
    /// Name of the container.
    pub container_name: String,
    #[serde(default)]
    port_mappings: Option<Vec<Value>>,
    /// The network.
    pub network: Network,
    network_options: PerNetworkOptions,
}

/// A network of Podman.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether containers of the network find each other by name.
    #[serde(default)]
    pub dns_enabled: bool,
    /// Whether containers have no default route.
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    ipv6_enabled: bool,
    #[serde(default)]
    network_interface: Option<String>,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    subnets: Option<Vec<Subnet>>,
    #[serde(default)]
    routes: Option<Vec<Value>>,
    #[serde(default)]
    ipam_options: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Subnet {
    subnet: String,
    #[serde(default)]
    lease_range: Option<Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct PerNetworkOptions {
    interface_name: String,
    #[serde(default)]
    aliases: Option<Vec<String>>,
    #[serde(default)]
    static_ips: Option<Vec<IpAddr>>,
    #[serde(default)]
    static_mac: Option<String>,
}

impl Network {
    /// Checks what is asked of a network.
    ///
    /// # Errors
    /// It asks for something that is not offered.
    pub fn check(&self) -> Result<(), String> {
        if self.ipv6_enabled {
            return Err("IPv6 addresses are not supported".to_owned());
        }
        if self.routes.as_ref().is_some_and(|routes| !routes.is_empty()) {
            return Err("static routes are not supported".to_owned());
        }
        if self
            .subnets
            .iter()
            .flatten()
            .any(|subnet| subnet.lease_range.as_ref().is_some_and(|r| !r.is_null()))
        {
            return Err("an address range is not supported; addresses come from the whole subnet".to_owned());
        }
        if let Some(other) = self.options.iter().flatten().map(|(name, _)| name).find(|name| *name != "mtu") {
            return Err(format!("unknown option {other:?}; there is only mtu"));
        }
        let ipam = self.ipam_options.as_ref().and_then(|options| options.get("driver"));
        if let Some(other) = ipam.filter(|driver| !["", "host-local", IPAM_DRIVER].contains(&driver.as_str()))
        {
            return Err(format!("IPAM driver {other:?} is not supported; addresses come from weave"));
        }
        self.mtu()?;
        self.subnet().map(drop)
    }

    /// The subnet of the network; `None` for the default subnet.
    ///
    /// # Errors
    /// There are several, or it is not one of IPv4.
    pub fn subnet(&self) -> Result<Option<Cidr>, String> {
        let subnet = match self.subnets.as_deref().unwrap_or_default() {
            [] => return Ok(None),
            [one] => one.subnet.parse::<Cidr>().map_err(|e| e.to_string())?,
            _ => return Err("a network has only one subnet".to_owned()),
        };
        if subnet.addr().is_ipv4() {
            Ok(Some(subnet.network()))
        } else {
            Err("IPv6 addresses are not supported".to_owned())
        }
    }

    /// The bridge; `None` for the usual one.
    pub fn bridge(&self) -> Option<&str> {
        self.network_interface.as_deref().filter(|name| !name.is_empty())
    }

    /// MTU of interfaces; `None` for that of the bridge.
    ///
    /// # Errors
    /// The option is not a number.
    pub fn mtu(&self) -> Result<Option<u32>, String> {
        let text = self.options.as_ref().and_then(|options| options.get("mtu"));
        let mtu =
            text.map(|text| text.parse::<u32>().map_err(|_| format!("option mtu: {text:?} is no number")));
        Ok(mtu.transpose()?.filter(|mtu| *mtu > 0))
    }
}

impl Exec {
    /// Reads the input.
    ///
    /// # Errors
    /// It has another form.
    pub fn read(input: &[u8]) -> Result<Exec, String> {
        serde_json::from_slice(input).map_err(|e| format!("cannot read the request: {e}"))
    }

    /// The name of the interface in the container.
    pub fn interface(&self) -> &str {
        &self.network_options.interface_name
    }

    /// The Ethernet address that the container is to have.
    pub fn mac(&self) -> Option<&str> {
        self.network_options.static_mac.as_deref().filter(|mac| !mac.is_empty())
    }

    /// Whether ports of the host are to lead to the container, which other networks have to do.
    pub fn publishes_ports(&self) -> bool {
        self.port_mappings.as_ref().is_some_and(|ports| !ports.is_empty())
    }

    /// The names of the container in this network: its own, and those that are only valid here.
    pub fn names(&self) -> Vec<String> {
        if !self.network.dns_enabled {
            return Vec::new();
        }
        let aliases = self.network_options.aliases.iter().flatten();
        let mut names: Vec<String> = std::iter::once(&self.container_name).chain(aliases).cloned().collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
        names
    }

    /// The addresses to attach with, as `weave attach` takes them. `default` is the subnet of a network that has none; it is needed for
    /// particular addresses.
    ///
    /// # Errors
    /// An address is not in the subnet.
    pub fn addresses(&self, default: Option<Cidr>) -> Result<Vec<String>, String> {
        let subnet = self.network.subnet()?;
        let fixed = self.network_options.static_ips.as_deref().unwrap_or_default();
        if fixed.is_empty() {
            return Ok(vec![subnet.map_or("net:default".to_owned(), |subnet| format!("net:{subnet}"))]);
        }
        let within = subnet.or(default).ok_or("the network has no subnet")?;
        let address = |ip: &IpAddr| {
            if within.contains(*ip) {
                Ok(format!("{ip}/{}", within.prefix()))
            } else {
                Err(format!("{ip} is not in the subnet {within} of the network"))
            }
        };
        fixed.iter().map(address).collect()
    }
}

/// Completes a network: it gets our driver of addresses, and `default` as its subnet if it has none.
///
/// # Errors
/// It asks for something that is not offered.
pub fn create(input: &[u8], default: Option<Cidr>) -> Result<String, String> {
    let failed = |e: serde_json::Error| format!("cannot read the network: {e}");
    let mut fields: Map<String, Value> = serde_json::from_slice(input).map_err(failed)?;
    let network = Network::deserialize(&Value::Object(fields.clone())).map_err(failed)?;
    network.check()?;
    if let (None, Some(default)) = (network.subnet()?, default) {
        fields.insert("subnets".to_owned(), json!([{ "subnet": default.to_string() }]));
    }
    fields.insert("ipam_options".to_owned(), json!({ "driver": IPAM_DRIVER }));
    Ok(Value::Object(fields).to_string())
}

/// Answer to `setup`.
pub fn status(
    interface: &str,
    mac: &str,
    addresses: &[Cidr],
    gateway: Option<IpAddr>,
    dns: Option<(IpAddr, &str)>,
) -> String {
    #[derive(Serialize)]
    struct Subnet {
        ipnet: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
    }
    let subnets: Vec<Subnet> =
        addresses.iter().map(|cidr| Subnet { ipnet: cidr.to_string(), gateway }).collect();
    let (servers, domains): (Vec<IpAddr>, Vec<&str>) =
        dns.into_iter().map(|(server, domain)| (server, domain.trim_end_matches('.'))).unzip();
    json!({
        "dns_search_domains": domains,
        "dns_server_ips": servers,
        "interfaces": { interface: { "mac_address": mac, "subnets": subnets } },
    })
    .to_string()
}

/// Answer to `info`.
pub fn info(version: &str) -> String {
    json!({ "version": version, "api_version": API_VERSION }).to_string()
}

/// An error as netavark reads it.
pub fn error(text: &str) -> String {
    json!({ "error": text }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(more: Value) -> Vec<u8> {
        let mut network = json!({
            "name": "n", "id": "2f25", "driver": "weave", "ipv6_enabled": false, "internal": false, "dns_enabled": true,
            "ipam_options": {}, "network_dns_servers": null,
        });
        network.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        network.to_string().into_bytes()
    }

    #[test]
    fn networks_are_completed_or_refused() {
        let default: Option<Cidr> = "10.32.0.0/12".parse().ok();
        let created: Value = serde_json::from_str(&create(&network(json!({})), default).unwrap()).unwrap();
        assert_eq!(created["subnets"], json!([{ "subnet": "10.32.0.0/12" }]));
        assert_eq!((&created["id"], &created["ipam_options"]["driver"]), (&json!("2f25"), &json!("weave")));
        let subnets =
            json!({ "subnets": [{ "subnet": "10.40.0.0/16", "gateway": "10.40.0.1", "lease_range": null }] });
        let created: Value =
            serde_json::from_str(&create(&network(subnets.clone()), default).unwrap()).unwrap();
        assert_eq!(created["subnets"], subnets["subnets"]);
        for (refused, text) in [
            (json!({ "ipv6_enabled": true }), "IPv6"),
            (json!({ "subnets": [{ "subnet": "fd00::/64" }] }), "IPv6"),
            (
                json!({ "subnets": [{ "subnet": "10.1.0.0/16" }, { "subnet": "10.2.0.0/16" }] }),
                "only one subnet",
            ),
            (
                json!({ "subnets": [{ "subnet": "10.1.0.0/16", "lease_range": { "start_ip": "10.1.0.9" } }] }),
                "range",
            ),
            (json!({ "subnets": [{ "subnet": "x" }] }), "invalid CIDR address: x"),
            (json!({ "routes": [{ "destination": "10.9.0.0/16", "gateway": "10.1.0.1" }] }), "routes"),
            (json!({ "options": { "vlan": "7" } }), "vlan"),
            (json!({ "options": { "mtu": "x" } }), "mtu"),
            (json!({ "ipam_options": { "driver": "dhcp" } }), "dhcp"),
            (json!({ "name": 7 }), "cannot read the network"),
        ] {
            let error = create(&network(refused), default).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        assert!(create(b"{", None).is_err());
    }

    #[test]
    fn containers_and_their_addresses() {
        let exec = |network_options: Value, more: Value| {
            let network: Value = serde_json::from_slice(&network(more)).unwrap();
            let input = json!({
                "container_id": "c1", "container_name": "web", "port_mappings": null,
                "network": network, "network_options": network_options,
            });
            Exec::read(input.to_string().as_bytes()).unwrap()
        };
        let simple = exec(json!({ "interface_name": "eth0" }), json!({}));
        assert_eq!(simple.addresses(None).unwrap(), ["net:default"]);
        assert_eq!(
            (simple.names(), simple.mac(), simple.publishes_ports()),
            (vec!["web".to_owned()], None, false)
        );
        let options = json!({
            "interface_name": "eth0", "aliases": ["www", "web", ""], "static_ips": ["10.40.0.5"],
            "static_mac": "aa:bb:cc:dd:aa:00",
        });
        let subnets = json!({ "subnets": [{ "subnet": "10.40.0.0/16" }], "options": { "mtu": "1300" } });
        let full = exec(options.clone(), subnets);
        assert_eq!(full.addresses(None).unwrap(), ["10.40.0.5/16"]);
        assert_eq!(full.names(), ["web", "www"]);
        assert_eq!((full.mac(), full.network.mtu()), (Some("aa:bb:cc:dd:aa:00"), Ok(Some(1300))));
        let silent = exec(options, json!({ "dns_enabled": false }));
        assert!(silent.names().is_empty());
        assert!(silent.addresses(None).is_err());
        assert!(silent.addresses("10.77.0.0/16".parse().ok()).unwrap_err().contains("10.40.0.5"));
    }

    #[test]
    fn calls_and_answers() {
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Action::parse(&words)
        };
        assert_eq!(parse("setup /run/netns/a"), Ok(Action::Setup("/run/netns/a".to_owned())));
        assert_eq!((parse(""), parse("info")), (Ok(Action::Info), Ok(Action::Info)));
        assert!(parse("setup").is_err() && parse("remove x").is_err());
        let cidr = "10.32.0.5/12".parse::<Cidr>().unwrap();
        let gateway = "10.32.0.1".parse().ok();
        let dns = gateway.map(|server| (server, "weave.local."));
        let text = status("eth0", "02:00:00:00:00:01", &[cidr], gateway, dns);
        let status: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(status["dns_search_domains"], json!(["weave.local"]));
        assert_eq!(
            status["interfaces"]["eth0"]["subnets"],
            json!([{ "ipnet": "10.32.0.5/12", "gateway": "10.32.0.1" }])
        );
        assert_eq!(error("a \"b\""), r#"{"error":"a \"b\""}"#);
        assert_eq!(info("3"), r#"{"api_version":"1.0.0","version":"3"}"#);
    }
}
