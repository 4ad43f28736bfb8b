//! The CNI plugins: this program called `weave-net` or `weave-ipam`, and `weave weaveutil cni-net` or `cni-ipam` (docs/spec/containers.md
//! C). The daemon changes the host; this process asks it over the control socket, and runs the plugin of another address allocation.
//!
//! ```text
//!  runtime -- environment, standard input --> weave-net -- POST /interface, namespace --> daemon
//!          <-- result or error, as JSON -----     |
//!                                                 +---- ADD, DEL, CHECK, GC, STATUS --> host-local, ...
//! ```

mod delegate;
pub(crate) mod install;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use weave_api::ClientError;
use weave_api::host_requests::{AddInterface, AttachmentId, HostResponse, InterfaceRequest, Routes};
use weave_cni::{
    AddResult, Address, Call, Command, Error, Interface, MAX_INPUT, Observed, Plugin, Rejected, code,
};
use weave_host::NetNs;
use weave_runtime::{AddressRequest, EXPOSE};
use weave_types::Cidr;

use crate::args::Parsed;
use crate::env::Env;
use crate::waiting::Problem;
use crate::{Failure, host_client, notice, options, print, query};

use delegate::Delegate;

/// `STATUS` and `GC` do not wait for other peers.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The plugin that a program of this name is.
pub(crate) fn plugin(program: &Path) -> Option<Plugin> {
    let name = program.file_name()?.to_str()?;
    [("weave-net", Plugin::Net), ("weave-ipam", Plugin::Ipam)]
        .into_iter()
        .find_map(|(suffix, plugin)| name.ends_with(suffix).then_some(plugin))
}

/// Answers the request of a runtime.
pub(crate) fn run(plugin: Plugin, env: &dyn Env) -> Result<(), Failure> {
    let mut input = Vec::new();
    if env.var("CNI_COMMAND").is_some_and(|command| command != "VERSION") {
        std::io::stdin().take(MAX_INPUT + 1).read_to_end(&mut input)?;
    }
    let read = if input.len() as u64 > MAX_INPUT {
        let error = Error::new(code::OTHER, format!("the configuration is longer than {MAX_INPUT} bytes"));
        Err(Rejected { error, version: weave_cni::Version::V0_1_0, remarks: Vec::new() })
    } else {
        Call::read(plugin, |name| env.var(name), &input)
    };
    let call = match read {
        Ok(call) => call,
        Err(Rejected { error, version, remarks }) => {
            remarks.iter().for_each(notice);
            print(&error.to_json(version))?;
            return Err(Failure::new(1, ""));
        }
    };
    let request = Request { call: &call, input: &input, env };
    let answer = match plugin {
        Plugin::Net => request.network(),
        Plugin::Ipam => request.addresses(),
    };
    match answer {
        Ok(text) => print(&text),
        Err(error) => {
            print(&error.to_json(call.version))?;
            Err(Failure::new(1, ""))
        }
    }
}

/// A line on standard error, as 2.8.1 began them.
fn remark(line: impl std::fmt::Display) {
    notice(format_args!("weave-cni: {line}"));
}

struct Request<'a> {
    call: &'a Call,
    input: &'a [u8],
    env: &'a dyn Env,
}

impl Request<'_> {
    /// What `weave-net` prints.
    fn network(&self) -> Result<String, Error> {
        let call = self.call;
        match call.command {
            Command::Version => return Ok(weave_cni::version_text()),
            Command::Add => return Ok(self.add()?.to_json(call.version)),
            Command::Del => self.del()?,
            Command::Check => self.check()?,
            Command::Gc => {
                self.collect()?;
                if let Some(delegate) = self.delegate()?.filter(|d| d.supports(call.version)) {
                    delegate.call("GC", &[])?;
                }
            }
            Command::Status => {
                self.status()?;
                match self.delegate()? {
                    Some(delegate) if delegate.supports(call.version) => drop(delegate.call("STATUS", &[])?),
                    Some(_) => {}
                    None => self.allocation_status()?,
                }
            }
        }
        Ok(String::new())
    }

    /// What `weave-ipam` prints.
    fn addresses(&self) -> Result<String, Error> {
        let call = self.call;
        match call.command {
            Command::Version => return Ok(weave_cni::version_text()),
            Command::Add => {
                call.allocation_id()?;
                let request = InterfaceRequest::Allocate(self.id(), vec![self.wanted()?.to_string()]);
                let ipam = &call.config.ipam;
                let addresses = self.ask(request, None)?.addresses;
                let addresses = parse_addresses(&addresses)?.into_iter();
                let result = AddResult {
                    addresses: addresses
                        .map(|cidr| Address { cidr, gateway: ipam.gateway, interface: None })
                        .collect(),
                    routes: ipam.routes.clone(),
                    ..AddResult::default()
                };
                return Ok(result.to_json(call.version));
            }
            Command::Del => drop(self.ask(InterfaceRequest::Release(self.id()), None)?),
            Command::Check => self.check_recorded(&call.previous()?)?,
            Command::Gc => self.collect()?,
            Command::Status => {
                self.status()?;
                self.allocation_status()?;
            }
        }
        Ok(String::new())
    }

    fn add(&self) -> Result<AddResult, Error> {
        match self.delegate()? {
            Some(delegate) => self.add_delegated(&delegate),
            None => self.add_allocated(),
        }
    }

    /// With an address of weave's own allocation.
    fn add_allocated(&self) -> Result<AddResult, Error> {
        let call = self.call;
        let allocation = |e: Error| Error { msg: format!("unable to allocate IP address: {}", e.msg), ..e };
        call.allocation_id().map_err(allocation)?;
        let wanted = self.wanted().map_err(allocation)?;
        let ipam = &call.config.ipam;
        let list =
            ipam.routes.as_ref().map(|routes| routes.iter().map(|r| (r.dst.to_string(), r.gw)).collect());
        let request = AddInterface {
            addresses: vec![wanted.to_string()],
            record: true,
            routes: Routes { gateway: ipam.gateway, list },
            ..self.new_interface()
        };
        let answer = self.ask(InterfaceRequest::Add(request), Some(&self.namespace()?))?;
        self.result(answer, ipam.routes.clone())
    }

    /// With an address of another plugin, which is released if something fails.
    fn add_delegated(&self, delegate: &Delegate<'_>) -> Result<AddResult, Error> {
        let ns = self.namespace()?;
        let allocation = |e: Error| Error { msg: format!("unable to allocate IP address: {}", e.msg), ..e };
        let allocated = delegate.add(&[]).map_err(allocation)?;
        let added = self.add_with(delegate, &allocated, &ns);
        if added.is_err()
            && let Err(e) = delegate.call("DEL", &[])
        {
            remark(format_args!("unable to release IP address: {e}"));
        }
        added
    }

    fn add_with(
        &self,
        delegate: &Delegate<'_>,
        allocated: &AddResult,
        ns: &NetNs,
    ) -> Result<AddResult, Error> {
        let missing = || Error::new(code::OTHER, "IPAM plugin returned missing IP config");
        let first = allocated.addresses.first().ok_or_else(missing)?;
        // A plugin cannot say that there are none.
        let routes = allocated.routes.clone().filter(|routes| !routes.is_empty());
        let gateway = match (first.gateway, &routes) {
            (None, None) => Some(self.bridge_address(delegate, first.cidr)?),
            (gateway, _) => gateway,
        };
        let list = routes.as_ref().map(|routes| routes.iter().map(|r| (r.dst.to_string(), r.gw)).collect());
        let request = AddInterface {
            addresses: vec![first.cidr.to_string()],
            record: false,
            routes: Routes { gateway, list },
            ..self.new_interface()
        };
        self.result(self.ask(InterfaceRequest::Add(request), Some(ns))?, routes)
    }

    /// An address of the bridge, preferably in the subnet of the container. It gets one if it has none.
    fn bridge_address(&self, delegate: &Delegate<'_>, subnet: Cidr) -> Result<std::net::IpAddr, Error> {
        let bridge = self.bridge();
        let present = weave_host::bridge_addresses(&bridge).map_err(other)?;
        let inside = present.iter().find(|cidr| subnet.contains(cidr.addr()));
        if let Some(address) = inside.or(present.first()) {
            return Ok(address.addr());
        }
        let failed =
            |e: Error| Error { msg: format!("unable to allocate IP address for bridge: {}", e.msg), ..e };
        let allocated = delegate.add(&[("CNI_CONTAINERID", EXPOSE)]).map_err(failed)?;
        let missing = || failed(Error::new(code::OTHER, "IPAM plugin returned missing IP config"));
        let address = allocated.addresses.first().ok_or_else(missing)?.cidr;
        let client = query::unix_client(&Parsed::default(), self.env);
        client
            .post(&format!("/expose/{address}"), &[])
            .map_err(|e| Error::new(code::OTHER, format!("unable to expose bridge {bridge:?}: {e}")))?;
        Ok(address.addr())
    }

    fn new_interface(&self) -> AddInterface {
        let config = &self.call.config;
        AddInterface {
            id: self.id(),
            bridge: self.bridge(),
            mtu: (config.mtu > 0).then_some(config.mtu),
            mac: None,
            hairpin: config.hairpin_mode.unwrap_or(true),
            addresses: Vec::new(),
            record: false,
            routes: Routes::default(),
            names: self.call.name.iter().cloned().collect(),
        }
    }

    fn result(
        &self,
        answer: HostResponse,
        routes: Option<Vec<weave_cni::Route>>,
    ) -> Result<AddResult, Error> {
        let incomplete = || Error::new(code::OTHER, "the daemon is of an older version");
        let created = answer.interface.ok_or_else(incomplete)?;
        let port = Interface { name: created.port, mac: created.port_mac, mtu: None, sandbox: String::new() };
        let end = Interface {
            name: self.call.interface.clone(),
            mac: created.mac,
            mtu: Some(created.mtu),
            sandbox: self.call.netns.clone(),
        };
        let address = |cidr| Address { cidr, gateway: created.gateway, interface: Some(1) };
        Ok(AddResult {
            interfaces: vec![port, end],
            addresses: parse_addresses(&answer.addresses)?.into_iter().map(address).collect(),
            routes,
            dns: self.call.config.dns.clone(),
        })
    }

    fn del(&self) -> Result<(), Error> {
        let call = self.call;
        if !call.remarks.is_empty() {
            // Without a configuration it is not known what is meant.
            call.remarks.iter().for_each(remark);
            return Ok(());
        }
        let ns = if call.netns.is_empty() { None } else { self.namespace().inspect_err(|e| remark(e)).ok() };
        let delegate = self.delegate()?;
        let removed = self.ask(InterfaceRequest::Remove(self.id()), ns.as_ref());
        removed.map_err(|e| {
            remark(format_args!("unable to release IP address: {e}"));
            e
        })?;
        delegate.map_or(Ok(()), |delegate| delegate.call("DEL", &[]).map(drop))
    }

    fn check(&self) -> Result<(), Error> {
        let call = self.call;
        let previous = call.previous()?;
        let seen = self.observe(&self.namespace()?).map_err(other)?;
        weave_cni::check(&previous, &call.interface, &self.bridge(), &seen)?;
        match self.delegate()? {
            Some(delegate) => delegate.call("CHECK", &[]).map(drop),
            None => self.check_recorded(&previous),
        }
    }

    /// Whether the allocator keeps the addresses for this attachment.
    fn check_recorded(&self, previous: &AddResult) -> Result<(), Error> {
        let recorded = self.ask(InterfaceRequest::Show(self.id()), None)?.addresses;
        let own = |address: &&Address| {
            let interface = address.interface.and_then(|index| previous.interfaces.get(index));
            interface.is_none_or(|interface| interface.name == self.call.interface)
        };
        let mut lost = previous.addresses.iter().filter(own).map(|address| address.cidr.to_string());
        match lost.find(|address| !recorded.contains(address)) {
            Some(address) => Err(Error::new(
                code::OTHER,
                format!("the allocator has not recorded {address} for {}", self.call.container),
            )),
            None => Ok(()),
        }
    }

    fn observe(&self, ns: &NetNs) -> Result<Observed, weave_host::Error> {
        let state = weave_host::interface_state(ns, &self.call.interface, &self.bridge())?;
        let Some(state) = state else { return Ok(Observed::default()) };
        let (own, others): (Vec<_>, Vec<_>) =
            ns.netlink()?.routes()?.into_iter().partition(|route| route.index == Some(state.link.index));
        Ok(Observed {
            interface: true,
            on_bridge: state.port.is_some(),
            up: state.link.up,
            mac: state.link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            addresses: state.addresses,
            routes: own.into_iter().map(|route| (route.destination, route.gateway)).collect(),
            other_routes: others.into_iter().map(|route| route.destination).collect(),
        })
    }

    fn collect(&self) -> Result<(), Error> {
        let valid = self.call.config.valid_attachments()?;
        let keep = valid.iter().map(|a| (a.container.clone(), a.interface.clone())).collect();
        let request = InterfaceRequest::Collect(self.call.config.name.clone(), keep);
        self.ask(request, None).map(drop)
    }

    /// Whether containers could be attached.
    fn status(&self) -> Result<(), Error> {
        let report = self.report()?;
        if !report.ready {
            return Err(Error::new(code::NOT_AVAILABLE, "weave is starting"));
        }
        let bridge = self.bridge();
        let link = weave_host::Netlink::open().and_then(|mut netlink| netlink.link(&bridge));
        match link.map_err(|e| Error::new(code::NOT_AVAILABLE, e.to_string()))? {
            Some(_) => Ok(()),
            None => {
                Err(Error::new(code::LIMITED_CONNECTIVITY, weave_host::Error::no_bridge(&bridge).to_string()))
            }
        }
    }

    /// Whether addresses could be allocated.
    fn allocation_status(&self) -> Result<(), Error> {
        let report = self.report()?;
        let unavailable = |why: String| Err(Error::new(code::NOT_AVAILABLE, why));
        if report.ipam.is_none() {
            return unavailable("the peer allocates no addresses".to_owned());
        }
        match report.ipam_notes.unwrap_or_default().waiting.as_slice() {
            [] => Ok(()),
            waiting => unavailable(format!("addresses wait for {}", waiting.join("; "))),
        }
    }

    fn report(&self) -> Result<weave_api::Report, Error> {
        let client = query::unix_client(&Parsed::default(), self.env).with_timeout(TIMEOUT);
        client.report().map_err(|e| match e {
            ClientError::Connect { .. } => Error::new(code::LIMITED_CONNECTIVITY, query::NO_DAEMON),
            e => Error::new(code::NOT_AVAILABLE, e.to_string()),
        })
    }

    fn ask(&self, request: InterfaceRequest, ns: Option<&NetNs>) -> Result<HostResponse, Error> {
        let client = query::unix_client(&Parsed::default(), self.env);
        match host_client::post(&client, "/interface", request, ns, "an address") {
            Ok(response) => {
                response.warnings.iter().for_each(remark);
                Ok(response)
            }
            Err(Problem::Client(ClientError::Connect { .. })) => {
                Err(Error::new(code::TRY_AGAIN, query::NO_DAEMON))
            }
            Err(problem) => Err(Error::new(code::OTHER, host_client::failure(problem).message)),
        }
    }

    fn id(&self) -> AttachmentId {
        AttachmentId {
            network: self.call.config.name.clone(),
            container: self.call.container.clone(),
            interface: self.call.interface.clone(),
        }
    }

    fn bridge(&self) -> String {
        let bridge = &self.call.config.bridge;
        if bridge.is_empty() { options::bridge(&Parsed::default(), self.env) } else { bridge.clone() }
    }

    /// The address to allocate.
    fn wanted(&self) -> Result<AddressRequest, Error> {
        Ok(AddressRequest::Net(self.call.subnet()?))
    }

    fn namespace(&self) -> Result<NetNs, Error> {
        let path = &self.call.netns;
        let refused = |text: String| Error::new(code::OTHER, text);
        let failed = |e: weave_host::Error| refused(format!("error accessing namespace {path:?}: {e}"));
        let ns = NetNs::at(Path::new(path)).map_err(failed)?;
        if ns.id() == NetNs::current().map_err(failed)?.id() {
            return Err(refused(
                "can not specify host network namespace as network namespace to which container should be added"
                    .to_owned(),
            ));
        }
        Ok(ns)
    }

    /// The plugin that allocates addresses; `None` for weave itself.
    fn delegate(&self) -> Result<Option<Delegate<'_>>, Error> {
        let external = self.call.config.ipam.external();
        external.map(|name| Delegate::find(name, self.call, self.input)).transpose()
    }
}

fn other(e: weave_host::Error) -> Error {
    Error::new(code::OTHER, e.to_string())
}

fn parse_addresses(texts: &[String]) -> Result<Vec<Cidr>, Error> {
    let parsed = texts.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, weave_types::ParseCidrError>>()
        .map_err(|e| Error::new(code::OTHER, e.to_string()))
}
