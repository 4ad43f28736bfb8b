//! What a request asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde_json::{Value, json};
use weave_types::{Cidr, MacAddr};

use crate::request::{self, MULTICAST_OPTION, multicast};
use crate::{AddressRequest, Answer, CreateEndpoint, Error, Join, Pool, VethPair};

/// Docker knows far fewer networks.
const MAX_NETWORKS: usize = 10_000;
/// Docker tells when a container leaves a network, unless it is killed.
const MAX_ROUTES: usize = 10_000;

/// A socket of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `weave`: networks that Docker keeps in its cluster store.
    Global,
    /// `weavemesh`: networks of one Docker daemon. It is an IPAM driver, too.
    Local,
}

/// How the plugin was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each network says whether it has multicast.
    Legacy,
    /// A plugin that Swarm manages; all networks have multicast, or none.
    Managed {
        /// Whether they have.
        multicast: bool,
    },
}

/// What a request asks the daemon to do. All but [`Action::Answer`] lead to an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing but the answer.
    Answer(Answer),
    /// The networks that are known have changed. The answer is [`Answer::done`].
    NetworksChanged {
        /// Options that are not known, for the log.
        unknown: Vec<String>,
    },
    /// The answer is [`Plugin::created`].
    CreateEndpoint(CreateEndpoint),
    /// It is no error if it does not exist. The answer is [`Answer::done`].
    DeleteEndpoint(VethPair),
    /// The answer is [`Plugin::join`].
    Join(Join),
    /// A pool of the default subnet. The answer is [`Plugin::pool`].
    DefaultPool {
        /// The part of it that addresses are allocated from.
        range: Option<Cidr>,
    },
    /// The answer is [`AddressRequest::answer`].
    RequestAddress(AddressRequest),
    /// It is no error if it is not allocated. The answer is [`Answer::done`].
    ReleaseAddress(Ipv4Addr),
}

/// The options of a network are not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotKnown;

/// What earlier requests said.
#[derive(Clone, Debug)]
pub struct Plugin {
    mode: Mode,
    /// Whether each network has multicast.
    networks: BTreeMap<String, bool>,
    /// The endpoint to which the route for multicast of a sandbox belongs. A sandbox can have the route only once.
    routes: BTreeMap<String, String>,
    /// Docker has said that it needs no gateway.
    gateway_is_optional: bool,
    /// Particular addresses that were requested.
    claimed: BTreeSet<Ipv4Addr>,
}

impl Plugin {
    /// `networks` are those that an earlier process knew.
    pub fn new(mode: Mode, networks: BTreeMap<String, bool>) -> Plugin {
        Plugin {
            mode,
            networks,
            routes: BTreeMap::new(),
            gateway_is_optional: false,
            claimed: BTreeSet::new(),
        }
    }

    /// The known networks, and whether they have multicast.
    pub fn networks(&self) -> &BTreeMap<String, bool> {
        &self.networks
    }

    /// Reads a request. `path` is that of the URL.
    ///
    /// # Errors
    /// It is not known or not understood, or is refused.
    pub fn handle(&mut self, driver: Driver, path: &str, body: &[u8]) -> Result<Action, Error> {
        let answer = |value: Value| Ok(Action::Answer(Answer::of(&value)));
        match path.strip_prefix('/').and_then(|path| path.split_once('.')) {
            Some(("Plugin", "Activate")) => answer(match driver {
                Driver::Global => json!({ "Implements": ["NetworkDriver"] }),
                Driver::Local => json!({ "Implements": ["NetworkDriver", "IpamDriver"] }),
            }),
            Some(("NetworkDriver", "GetCapabilities")) => {
                let scope = if driver == Driver::Global { "global" } else { "local" };
                answer(json!({ "Err": "", "Scope": scope, "ConnectivityScope": "", "GwAllocChecker": true }))
            }
            Some(("NetworkDriver", call)) => self.network_call(call, body),
            Some(("IpamDriver", call)) if driver == Driver::Local => self.ipam_call(call, body),
            _ => Err(Error::NoSuchCall),
        }
    }

    fn network_call(&mut self, call: &str, body: &[u8]) -> Result<Action, Error> {
        let answer = |value: Value| Ok(Action::Answer(Answer::of(&value)));
        match call {
            // Docker from version 28 on asks before it creates a network.
            "GwAllocCheck" => {
                self.gateway_is_optional = true;
                answer(json!({ "Err": "", "SkipIPv4": true, "SkipIPv6": true }))
            }
            "AllocateNetwork" => {
                let request: request::AllocateNetwork = request::read(body)?;
                answer(json!({ "Err": "", "Options": request.options }))
            }
            "FreeNetwork" => {
                let _: request::Network = request::read(body)?;
                answer(Value::Null)
            }
            "CreateNetwork" => {
                let request: request::Network = request::read(body)?;
                let options = request.driver_options();
                let multicast = multicast(&options)?;
                if self.networks.len() >= MAX_NETWORKS {
                    return Err(Error::Refused(format!("there are {MAX_NETWORKS} networks already")));
                }
                self.networks.insert(request.network, multicast);
                let unknown = options.into_keys().filter(|name| name != MULTICAST_OPTION).collect();
                Ok(Action::NetworksChanged { unknown })
            }
            "DeleteNetwork" => {
                let request: request::Network = request::read(body)?;
                self.networks.remove(&request.network);
                Ok(Action::NetworksChanged { unknown: Vec::new() })
            }
            "CreateEndpoint" => {
                let request: request::Endpoint = request::read(body)?;
                let Some(interface) = request.interface else {
                    return Err(Error::Refused(
                        "Not supported: creating an interface from within CreateEndpoint".to_owned(),
                    ));
                };
                let pair = VethPair::of(&request.endpoint)?;
                Ok(Action::CreateEndpoint(CreateEndpoint {
                    pair,
                    has_mac: !interface.mac_address.is_empty(),
                }))
            }
            "EndpointOperInfo" => {
                let _: request::Endpoint = request::read(body)?;
                answer(json!({ "Err": "", "Value": {} }))
            }
            "Join" => {
                let request: request::Endpoint = request::read(body)?;
                let inside = VethPair::of(&request.endpoint)?.inside;
                let request::Endpoint { network, endpoint, sandbox, .. } = request;
                Ok(Action::Join(Join { network, sandbox, endpoint, inside }))
            }
            "Leave" => {
                let request: request::Endpoint = request::read(body)?;
                self.routes.retain(|_, holder| *holder != request.endpoint);
                Ok(Action::Answer(Answer::done()))
            }
            "DeleteEndpoint" => {
                let request: request::Endpoint = request::read(body)?;
                self.routes.retain(|_, holder| *holder != request.endpoint);
                Ok(Action::DeleteEndpoint(VethPair::of(&request.endpoint)?))
            }
            _ => Err(Error::NoSuchCall),
        }
    }

    fn ipam_call(&mut self, call: &str, body: &[u8]) -> Result<Action, Error> {
        let answer = |value: Value| Ok(Action::Answer(Answer::of(&value)));
        match call {
            "GetCapabilities" => {
                answer(json!({ "RequiresMACAddress": false, "RequiresRequestReplay": false }))
            }
            "GetDefaultAddressSpaces" => answer(json!({
                "Error": "",
                "LocalDefaultAddressSpace": "weavelocal",
                "GlobalDefaultAddressSpace": "weaveglobal",
            })),
            "RequestPool" => {
                let request: request::RequestPool = request::read(body)?;
                if request.v6 {
                    return Err(Error::Refused("IPv6 addresses are not allocated".to_owned()));
                }
                let pool = parse_cidr(&request.pool)?;
                let range = parse_cidr(&request.sub_pool)?;
                match pool {
                    Some(subnet) => self.pool(subnet, range).map(Action::Answer),
                    None => Ok(Action::DefaultPool { range }),
                }
            }
            "ReleasePool" => {
                let _: request::Address = request::read(body)?;
                Ok(Action::Answer(Answer::done()))
            }
            "RequestAddress" => {
                let request: request::Address = request::read(body)?;
                let pool = Pool::parse(&request.pool)?;
                let address = parse_address(&request.address)?;
                if let (Some(pool), Some(address)) = (pool, address)
                    && !pool.subnet().contains(address.into())
                {
                    return Err(Error::Refused(format!("{address} is not in {}", pool.subnet())));
                }
                if let Some(address) = address
                    && !self.claimed.insert(address)
                {
                    return Err(Error::Refused(format!("address {address} is in use")));
                }
                Ok(Action::RequestAddress(AddressRequest { pool, address }))
            }
            "ReleaseAddress" => {
                let request: request::Address = request::read(body)?;
                let pool = Pool::parse(&request.pool)?;
                let Some(address) = parse_address(&request.address)? else {
                    return Err(Error::Refused("no address to release".to_owned()));
                };
                self.claimed.remove(&address);
                if pool.is_some_and(|pool| pool.is_placeholder(address)) {
                    return Ok(Action::Answer(Answer::done()));
                }
                Ok(Action::ReleaseAddress(address))
            }
            _ => Err(Error::NoSuchCall),
        }
    }

    /// The answer for an endpoint with this Ethernet address. Docker refuses an answer with another address than it has chosen.
    pub fn created(endpoint: &CreateEndpoint, mac: MacAddr) -> Answer {
        let mac = if endpoint.has_mac { String::new() } else { mac.to_string() };
        let interface = json!({ "Address": "", "AddressIPv6": "", "MacAddress": mac });
        Answer::of(&json!({ "Err": "", "Interface": interface }))
    }

    /// The answer for an interface that joins a sandbox. `has_route`: the sandbox exists, and has a route for multicast.
    ///
    /// # Errors
    /// The network is not known: [`Plugin::learn`] adds it.
    pub fn join(&mut self, join: &Join, has_route: bool) -> Result<Answer, NotKnown> {
        let multicast = match self.mode {
            Mode::Managed { multicast } => multicast,
            Mode::Legacy => *self.networks.get(&join.network).ok_or(NotKnown)?,
        };
        let free = !has_route && self.routes.get(&join.sandbox).is_none_or(|holder| *holder == join.endpoint);
        let mut routes = Value::Null;
        if multicast && free {
            if self.routes.len() >= MAX_ROUTES {
                self.routes.pop_first();
            }
            self.routes.insert(join.sandbox.clone(), join.endpoint.clone());
            routes = json!([{ "Destination": "224.0.0.0/4", "RouteType": 1, "NextHop": "" }]);
        }
        Ok(Answer::of(&json!({
            "Err": "",
            "InterfaceName": { "SrcName": join.inside, "DstName": "", "DstPrefix": "ethwe" },
            "Gateway": "",
            "GatewayIPv6": "",
            "StaticRoutes": routes,
            "DisableGatewayService": false,
        })))
    }

    /// Records whether a network has multicast that an earlier process, or 2.8.1, has created. Returns whether that was not known.
    pub fn learn(&mut self, network: &str, multicast: bool) -> bool {
        self.networks.len() < MAX_NETWORKS
            && self.networks.insert(network.to_owned(), multicast) != Some(multicast)
    }

    /// The answer with the pool of a subnet.
    ///
    /// # Errors
    /// The range is not a part of it.
    pub fn pool(&self, subnet: Cidr, range: Option<Cidr>) -> Result<Answer, Error> {
        Ok(Pool::new(subnet, range)?.answer(!self.gateway_is_optional))
    }

    /// A particular address that was requested could not be obtained.
    pub fn not_obtained(&mut self, request: &AddressRequest) {
        if let Some(address) = request.address {
            self.claimed.remove(&address);
        }
    }
}

fn parse_cidr(text: &str) -> Result<Option<Cidr>, Error> {
    let cidr = (!text.is_empty()).then(|| text.parse::<Cidr>()).transpose();
    cidr.map_err(|e| Error::Refused(e.to_string()))
}

/// An address, with a prefix length or without.
fn parse_address(text: &str) -> Result<Option<Ipv4Addr>, Error> {
    let address = text.split_once('/').map_or(text, |(address, _)| address);
    let parsed = (!address.is_empty()).then(|| address.parse()).transpose();
    parsed.map_err(|_| Error::Refused(format!("{text:?} is not an IPv4 address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugin() -> Plugin {
        Plugin::new(Mode::Legacy, BTreeMap::from([("n1".into(), true), ("n2".into(), true)]))
    }

    fn join(plugin: &mut Plugin, network: &str, endpoint: &str, sandbox: &str, has_route: bool) -> bool {
        let body = json!({ "NetworkID": network, "EndpointID": endpoint, "SandboxKey": sandbox }).to_string();
        let Ok(Action::Join(join)) = plugin.handle(Driver::Local, "/NetworkDriver.Join", body.as_bytes())
        else {
            panic!("not a join: {body}");
        };
        plugin.join(&join, has_route).unwrap().body.contains("224.0.0.0/4")
    }

    #[test]
    fn a_sandbox_gets_one_route_for_multicast() {
        let mut plugin = plugin();
        assert!(join(&mut plugin, "n1", "e1", "s1", false));
        assert!(!join(&mut plugin, "n2", "e2", "s1", false), "the other network has it");
        assert!(join(&mut plugin, "n1", "e1", "s1", false), "asked for again");
        assert!(join(&mut plugin, "n2", "e3", "s2", false), "another sandbox");
        let leave = json!({ "EndpointID": "e1" }).to_string();
        plugin.handle(Driver::Local, "/NetworkDriver.Leave", leave.as_bytes()).unwrap();
        assert!(join(&mut plugin, "n2", "e2", "s1", false), "the route went with the other interface");
        assert!(!join(&mut plugin, "n1", "e4", "s3", true), "a route of an earlier process");
    }

    #[test]
    fn a_gateway_is_made_up_until_docker_says_that_it_needs_none() {
        let mut plugin = plugin();
        let request = br#"{"Pool":"10.2.0.0/16"}"#;
        let has_gateway =
            |plugin: &mut Plugin| match plugin.handle(Driver::Local, "/IpamDriver.RequestPool", request) {
                Ok(Action::Answer(answer)) => answer.body.contains("com.docker.network.gateway"),
                other => panic!("{other:?}"),
            };
        assert!(has_gateway(&mut plugin));
        let checked = plugin.handle(Driver::Local, "/NetworkDriver.GwAllocCheck", br#"{"Options":{}}"#);
        let Ok(Action::Answer(answer)) = checked else { panic!("{checked:?}") };
        assert!(answer.body.contains(r#""SkipIPv4":true"#), "{answer:?}");
        assert!(!has_gateway(&mut plugin));
    }

    #[test]
    fn an_address_is_claimed_once() {
        let mut plugin = plugin();
        let claim = |plugin: &mut Plugin| {
            let body = br#"{"PoolID":"weave-10.2.0.0/16-10.2.0.0/16","Address":"10.2.0.9"}"#;
            plugin.handle(Driver::Local, "/IpamDriver.RequestAddress", body)
        };
        let Ok(Action::RequestAddress(request)) = claim(&mut plugin) else { panic!("refused") };
        assert_eq!(claim(&mut plugin), Err(Error::Refused("address 10.2.0.9 is in use".to_owned())));
        plugin.not_obtained(&request);
        assert!(claim(&mut plugin).is_ok());
        let release = br#"{"PoolID":"weave-10.2.0.0/16-10.2.0.0/16","Address":"10.2.0.9/16"}"#;
        plugin.handle(Driver::Local, "/IpamDriver.ReleaseAddress", release).unwrap();
        assert!(claim(&mut plugin).is_ok());
    }

    #[test]
    fn what_is_wrong_with_a_request() {
        let mut plugin = plugin();
        for (path, body, error) in [
            (
                "RequestPool",
                r#"{"Pool":"10.2.0.0/16","SubPool":"10.3.0.0/24"}"#,
                "10.3.0.0/24 is not a part of 10.2.0.0/16",
            ),
            ("RequestPool", r#"{"Pool":"","V6":true}"#, "IPv6 addresses are not allocated"),
            ("RequestPool", r#"{"Pool":"fd00::/64"}"#, "fd00::/64: only IPv4 addresses are allocated"),
            (
                "RequestAddress",
                r#"{"PoolID":"weave-10.2.0.0/16-10.2.0.0/16","Address":"10.3.0.1"}"#,
                "10.3.0.1 is not in 10.2.0.0/16",
            ),
            ("RequestAddress", r#"{"PoolID":"weavepool","Address":"x"}"#, "\"x\" is not an IPv4 address"),
            ("ReleaseAddress", r#"{"PoolID":"weavepool"}"#, "no address to release"),
        ] {
            let result = plugin.handle(Driver::Local, &format!("/IpamDriver.{path}"), body.as_bytes());
            assert_eq!(result, Err(Error::Refused(error.to_owned())), "{body}");
        }
        let body = br#"{"EndpointID":"../../x","Interface":{}}"#;
        assert!(plugin.handle(Driver::Global, "/NetworkDriver.CreateEndpoint", body).is_err());
    }

    #[test]
    fn docker_keeps_the_ethernet_address_that_it_has_chosen() {
        let mut plugin = plugin();
        let mac = MacAddr([2, 0, 0, 0, 0, 7]);
        for (chosen, shown) in [("", "02:00:00:00:00:07"), ("02:00:00:00:00:01", "")] {
            let body = json!({ "EndpointID": "e1", "Interface": { "MacAddress": chosen } }).to_string();
            let action = plugin.handle(Driver::Local, "/NetworkDriver.CreateEndpoint", body.as_bytes());
            let Ok(Action::CreateEndpoint(endpoint)) = action else { panic!("{action:?}") };
            let answer: Value = serde_json::from_str(&Plugin::created(&endpoint, mac).body).unwrap();
            assert_eq!(answer["Interface"]["MacAddress"], shown);
        }
    }
}
