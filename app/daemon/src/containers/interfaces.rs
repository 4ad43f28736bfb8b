//! Requests of network plugins: CNI and netavark (docs/spec/containers.md C.4 to C.6).
//!
//! An attachment is identified by network, container and interface. Its addresses are kept in the allocator under the id of the
//! container, as 2.8.1 did, if that is free, else under all three. Only the plugin releases them: its engine tells it when a container
//! has ended.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{MutexGuard, PoisonError};

use sha2::{Digest, Sha256};
use weave_api::host_requests::{
    AddInterface, AttachmentId, CreatedInterface, HostResponse, InterfaceRequest, Routes,
};
use weave_dns::{Filter, HostName};
use weave_host::{LinkRoute, NetNs};
use weave_node::Node;
use weave_runtime::{AddressRequest, Allocator, Change, Error, Namespace, NewInterface, Outcome};
use weave_types::{Cidr, Now};

use super::{Containers, Work, ipv4, parse, response};
use crate::host::Inventory;
use crate::names::NameChange;
use crate::storage::{Attached, InterfaceStore};

/// Shorter ids of containers are not names of interfaces, as with 2.8.1.
const SHORTEST_ID: usize = 5;
/// How much of an id becomes part of the interface name.
const NAMING_LENGTH: usize = 7;
const DEFAULT_ROUTE: Option<Cidr> = Cidr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Releases the addresses of attachments whose namespace is gone: an engine that removes a container while no daemon runs does not ask
/// again. Addresses that something uses stay. Returns the attachments, which [`Containers::forget`] forgets when the release is stored.
pub(crate) fn release_ended(
    store: &InterfaceStore,
    inventory: &Inventory,
    node: &mut Node,
    now: Now,
) -> Vec<AttachmentId> {
    let mut ended = Vec::new();
    for (id, attached) in store.all() {
        let cidrs = attached.cidrs();
        let gone = |namespace: Namespace| matches!(namespace.open(""), Ok(None));
        if inventory.uses(&cidrs) || !attached.namespace.is_some_and(gone) {
            continue;
        }
        tracing::info!(
            "container {} is gone, the addresses of its {} are released",
            id.container,
            id.interface
        );
        node.with_allocator(now, |allocator| {
            for cidr in &cidrs {
                // It may have been released by hand.
                let _ = allocator.free(&attached.owner, cidr.addr(), now);
            }
        });
        ended.push(id.clone());
    }
    ended
}

impl Containers {
    /// Forgets attachments.
    pub(crate) fn forget(&self, attachments: &[AttachmentId]) {
        let mut store = self.interfaces.lock().unwrap_or_else(PoisonError::into_inner);
        attachments.iter().for_each(|id| store.remove(id));
    }
}

impl Work {
    pub(super) fn interface(
        &self,
        request: InterfaceRequest,
        ns: Option<NetNs>,
    ) -> Result<HostResponse, Error> {
        match request {
            InterfaceRequest::Add(add) => {
                let ns = ns.ok_or_else(|| {
                    Error::Reference("no network namespace came with the request".to_owned())
                })?;
                self.with_owner(&add.id.clone(), |owner| self.add(&add, ns, owner))
            }
            InterfaceRequest::Allocate(id, addresses) => {
                let requests = parse(&addresses)?;
                self.with_owner(&id, |owner| self.allocate(&id, &requests, owner)).map(response)
            }
            InterfaceRequest::Remove(id) => self.remove(&id, ns, true).map(response),
            InterfaceRequest::Release(id) => self.remove(&id, None, false).map(response),
            InterfaceRequest::Show(id) => {
                let attached = self.interfaces().get(&id).cloned().unwrap_or_default();
                let owned = self.allocator(true).owned(&attached.owner)?;
                let addresses = attached.cidrs().into_iter().filter(|cidr| owned.contains(cidr)).collect();
                Ok(response(Outcome { addresses, warnings: Vec::new() }))
            }
            InterfaceRequest::Collect(network, keep) => self.collect(&network, &keep).map(response),
        }
    }

    fn interfaces(&self) -> MutexGuard<'_, InterfaceStore> {
        self.containers.interfaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `work` with the name under which the addresses of an attachment are kept.
    fn with_owner<T>(
        &self,
        id: &AttachmentId,
        work: impl FnOnce(&str) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut store = self.interfaces();
        if let Some(other) = store.conflict(id).filter(|_| !id.interface.is_empty()) {
            return Err(Error::Reference(format!(
                "the container has an interface {} of network {:?} already",
                id.interface, other.network
            )));
        }
        if let Some(owner) = store.get(id).map(|attached| attached.owner.clone()) {
            drop(store);
            return work(&owner);
        }
        let taken = store.has_owner(&id.container) || !self.allocator(true).owned(&id.container)?.is_empty();
        let owner = if taken { long_owner(id) } else { id.container.clone() };
        store.reserve(id, owner.clone());
        drop(store);
        work(&owner).inspect_err(|_| self.interfaces().remove(id))
    }

    fn add(&self, add: &AddInterface, ns: NetNs, owner: &str) -> Result<HostResponse, Error> {
        let new = NewInterface {
            ns,
            interface: add.id.interface.clone(),
            naming: naming(owner, &add.id),
            bridge: add.bridge.clone(),
            mtu: add.mtu,
            mac: add.mac.as_deref().map(parse_mac).transpose()?,
            hairpin: add.hairpin,
            addresses: parse(&add.addresses)?,
        };
        let (names, mut warnings) = self.host_names(&add.names);
        let gateway = Cell::new(None);
        let routes = |cidrs: &[Cidr]| {
            gateway.set(self.gateway(&add.routes, &add.bridge, cidrs)?);
            let routes = routes(&add.routes, gateway.get(), cidrs)?;
            let recorded = if add.record { cidrs } else { &[] };
            self.record(&add.id, owner, recorded, (&add.bridge, Some(Namespace::of(&new.ns)?)))?;
            Ok(routes)
        };
        let allocator = Described(self.allocator(add.record));
        let (created, outcome) = self.containers.network.add_interface(&allocator, owner, &new, routes)?;
        for name in names {
            let addrs = ipv4(&outcome.addresses);
            let change = NameChange::Add { name, container: long_owner(&add.id), addrs };
            self.allocator.control.change_names_blocking(change);
        }
        warnings.extend(outcome.warnings);
        Ok(HostResponse {
            interface: Some(describe(created, gateway.get())),
            ..response(Outcome { addresses: outcome.addresses, warnings })
        })
    }

    /// The names to register, and warnings about those that cannot be.
    fn host_names(&self, names: &[String]) -> (Vec<HostName>, Vec<String>) {
        let Some(info) = self.allocator.control.dns() else { return (Vec::new(), Vec::new()) };
        let (mut parsed, mut warnings) = (Vec::new(), Vec::new());
        for name in names {
            match HostName::parse(&format!("{name}.{}", info.domain)) {
                Ok(name) => parsed.push(name),
                Err(e) => warnings.push(format!("the name {name:?} is not registered: {e}")),
            }
        }
        (parsed, warnings)
    }

    fn allocate(
        &self,
        id: &AttachmentId,
        requests: &[AddressRequest],
        owner: &str,
    ) -> Result<Outcome, Error> {
        let allocator = self.allocator(true);
        self.containers.network.with_addresses(allocator, owner, Change::Allocate, requests, |cidrs| {
            self.record(id, owner, cidrs, ("", None))?;
            Ok(Vec::new())
        })
    }

    /// Writes down an attachment, with the addresses that it had before.
    fn record(
        &self,
        id: &AttachmentId,
        owner: &str,
        cidrs: &[Cidr],
        (bridge, namespace): (&str, Option<Namespace>),
    ) -> Result<(), Error> {
        let mut store = self.interfaces();
        let before = store.get(id).map(|before| before.addresses.clone()).unwrap_or_default();
        let addresses: BTreeSet<String> =
            before.into_iter().chain(cidrs.iter().map(Cidr::to_string)).collect();
        let attached = Attached {
            owner: owner.to_owned(),
            addresses: addresses.into_iter().collect(),
            bridge: bridge.to_owned(),
            namespace,
        };
        store.insert(id, attached).map_err(|e| Error::Address(e.to_string()))
    }

    /// The next hop of routes that have none: an address of the bridge, unless the request names it or brings routes. The bridge gets an
    /// address if it has none.
    fn gateway(&self, routes: &Routes, bridge: &str, cidrs: &[Cidr]) -> Result<Option<IpAddr>, Error> {
        if routes.gateway.is_some() || routes.list.is_some() {
            return Ok(routes.gateway);
        }
        let Some(subnet) = cidrs.first() else { return Ok(None) };
        let _exposing = self.containers.exposing.lock().unwrap_or_else(PoisonError::into_inner);
        let present = weave_host::bridge_addresses(bridge)?;
        let inside = present.iter().find(|cidr| subnet.contains(cidr.addr()));
        if let Some(address) = inside.or(present.first()) {
            return Ok(Some(address.addr()));
        }
        let exposed = self.expose(&[AddressRequest::Net(Some(subnet.network()))], true);
        let exposed =
            exposed.map_err(|e| Error::Address(format!("unable to expose bridge {bridge:?}: {e}")))?;
        Ok(exposed.addresses.first().map(Cidr::addr))
    }

    /// Removes an attachment as far as it is there. One that is not known was made by 2.8.1, or is removed for the second time: the
    /// addresses of the container that nothing uses are released then.
    fn remove(&self, id: &AttachmentId, ns: Option<NetNs>, interface: bool) -> Result<Outcome, Error> {
        let attached = self.interfaces().get(id).cloned();
        let (bridge, ns) = match &attached {
            Some(Attached { bridge, namespace: Some(namespace), .. }) if ns.is_none() && interface => {
                (bridge.clone(), namespace.open("")?)
            }
            Some(Attached { bridge, .. }) if !bridge.is_empty() => (bridge.clone(), ns),
            _ => (self.containers.bridge.clone(), ns),
        };
        let owner = attached.as_ref().map_or(&id.container, |attached| &attached.owner);
        let allocator = self.allocator(true);
        let recorded = attached.as_ref().map(Attached::cidrs).unwrap_or_default();
        let names = (id.interface.as_str(), bridge.as_str());
        let mut outcome =
            self.containers.network.remove_interface(allocator, owner, ns.as_ref(), names, recorded)?;
        let is_other = owner.contains([':', '/']);
        if attached.is_none() && !is_other && !self.interfaces().has_owner(owner) {
            let mut unused = allocator.owned(owner)?;
            if !unused.is_empty() {
                let users = Inventory::take(&self.containers.bridge, None)?.users(owner, &unused);
                unused.retain(|cidr| !users.values().flatten().any(|used| used == cidr));
            }
            unused.iter().try_for_each(|cidr| allocator.release(owner, *cidr))?;
            outcome.addresses = unused;
        }
        if outcome.addresses.is_empty() {
            outcome.warnings.push(format!("Delete: no addresses for {}", id.container));
        }
        if self.allocator.control.dns().is_some() {
            let filter = Filter { container: Some(long_owner(id)), addr: None, name: None };
            self.allocator.control.change_names_blocking(NameChange::Remove(filter));
        }
        self.interfaces().remove(id);
        Ok(outcome)
    }

    /// Removes the attachments of a network that are not in `keep`. Several engines may use one network, and each lists its own
    /// containers, so those in which a process runs stay.
    fn collect(&self, network: &str, keep: &[(String, String)]) -> Result<Outcome, Error> {
        let stale: Vec<(AttachmentId, Option<Namespace>)> = {
            let store = self.interfaces();
            let all = store.of_network(network).into_iter();
            let kept = |id: &AttachmentId| keep.iter().any(|(c, i)| *c == id.container && *i == id.interface);
            all.filter(|id| !kept(id))
                .map(|id| (id.clone(), store.get(&id).and_then(|a| a.namespace)))
                .collect()
        };
        let running: Vec<_> = if stale.is_empty() {
            Vec::new()
        } else {
            NetNs::all_of_processes()?.into_iter().map(|(_, ns)| ns.id()).collect()
        };
        let mut collected = Outcome::default();
        let mut failure = None;
        for (id, namespace) in stale {
            let ns = namespace.map(|namespace| namespace.open("")).transpose()?.flatten();
            if ns.as_ref().is_some_and(|ns| running.contains(&ns.id())) {
                let text = format!("{} of {} stays, a process runs there", id.interface, id.container);
                collected.warnings.push(text);
                continue;
            }
            match self.remove(&id, ns, true) {
                Ok(outcome) => collected.addresses.extend(outcome.addresses),
                Err(e) => failure = Some(e),
            }
        }
        failure.map_or(Ok(collected), Err)
    }
}

/// Says in errors that they are about the allocation of an address.
struct Described<'a>(&'a dyn Allocator);

impl Allocator for Described<'_> {
    fn records(&self) -> bool {
        self.0.records()
    }

    fn owned(&self, owner: &str) -> Result<Vec<Cidr>, Error> {
        self.0.owned(owner)
    }

    fn obtain(&self, owner: &str, request: &AddressRequest) -> Result<Cidr, Error> {
        let obtained = self.0.obtain(owner, request);
        obtained.map_err(|e| Error::Address(format!("unable to allocate IP address: {e}")))
    }

    fn look_up(&self, owner: &str, subnet: Option<Cidr>) -> Result<Vec<Cidr>, Error> {
        self.0.look_up(owner, subnet)
    }

    fn release(&self, owner: &str, cidr: Cidr) -> Result<(), Error> {
        self.0.release(owner, cidr)
    }
}

/// Names an attachment in the allocator and in the registry of names.
pub(crate) fn long_owner(id: &AttachmentId) -> String {
    format!("{}/{}/{}", id.container, id.network, id.interface)
}

/// Source of the interface name on the host: the container's id, as with 2.8.1, if it can be.
fn naming(owner: &str, id: &AttachmentId) -> String {
    let start: String = id.container.chars().take(NAMING_LENGTH).collect();
    let fits = start.len() >= SHORTEST_ID && start.bytes().all(|b| b.is_ascii_alphanumeric());
    if fits && owner == id.container {
        return start;
    }
    let digest = Sha256::digest(long_owner(id));
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    hex.chars().take(NAMING_LENGTH).collect()
}

fn parse_mac(text: &str) -> Result<weave_types::MacAddr, Error> {
    text.parse().map_err(|e: weave_types::ParseMacError| Error::Reference(e.to_string()))
}

/// The routes of a container with these addresses.
fn routes(routes: &Routes, gateway: Option<IpAddr>, cidrs: &[Cidr]) -> Result<Vec<LinkRoute>, Error> {
    if let Some(list) = &routes.list {
        let route = |(destination, next_hop): &(String, Option<IpAddr>)| {
            let destination: Cidr = destination
                .parse()
                .map_err(|e: weave_types::ParseCidrError| Error::Address(e.to_string()))?;
            Ok(LinkRoute { destination: destination.network(), gateway: next_hop.or(gateway) })
        };
        return list.iter().map(route).collect();
    }
    let Some((gateway, destination)) = gateway.zip(DEFAULT_ROUTE) else { return Ok(Vec::new()) };
    let mut routes = Vec::new();
    if !cidrs.iter().any(|cidr| cidr.contains(gateway)) {
        let alone = Cidr::new(gateway, if gateway.is_ipv4() { 32 } else { 128 });
        routes.extend(alone.map(|destination| LinkRoute { destination, gateway: None }));
    }
    routes.push(LinkRoute { destination, gateway: Some(gateway) });
    Ok(routes)
}

fn describe(created: weave_runtime::CreatedInterface, gateway: Option<IpAddr>) -> CreatedInterface {
    let mac = |mac: Option<weave_types::MacAddr>| mac.map(|mac| mac.to_string()).unwrap_or_default();
    CreatedInterface {
        port: created.port.name,
        port_mac: mac(created.port.mac),
        mac: mac(created.link.mac),
        mtu: created.link.mtu,
        gateway,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn interface_names_on_the_host() {
        let id = |container: &str| AttachmentId {
            network: "weave".to_owned(),
            container: container.to_owned(),
            interface: "eth0".to_owned(),
        };
        let long = id("1111111111aaaaaaaaaa");
        assert_eq!(naming(&long.container, &long), "1111111");
        let other = naming(&long_owner(&long), &long);
        assert!(other.len() == 7 && other != "1111111");
        for short in ["44", "", "a/b/c/d/e", "ééééééé"] {
            let named = naming(short, &id(short));
            assert!(named.len() == 7 && named.bytes().all(|b| b.is_ascii_hexdigit()), "{short}: {named}");
        }
    }

    #[test]
    fn routes_of_containers() {
        let of = |given: &Routes, gateway: Option<&str>, address: &str| {
            let gateway = gateway.map(|text| text.parse().unwrap());
            let all = routes(given, gateway, &[cidr(address)])?;
            Ok::<_, Error>(all.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let none = Routes::default();
        assert_eq!(of(&none, Some("10.32.0.3"), "10.32.0.2/12").unwrap(), ["0.0.0.0/0 via 10.32.0.3"]);
        let outside = of(&none, Some("10.32.0.100"), "10.50.0.6/16").unwrap();
        assert_eq!(outside, ["10.32.0.100/32", "0.0.0.0/0 via 10.32.0.100"]);
        assert!(of(&none, None, "10.32.0.2/12").unwrap().is_empty());
        let list = |list: &[(&str, Option<&str>)]| Routes {
            gateway: None,
            list: Some(list.iter().map(|(d, g)| ((*d).to_owned(), g.map(|g| g.parse().unwrap()))).collect()),
        };
        let given = list(&[("10.40.0.0/16", None), ("192.168.7.0/16", Some("10.40.0.7"))]);
        assert_eq!(
            of(&given, None, "10.40.0.4/16").unwrap(),
            ["10.40.0.0/16", "192.168.0.0/16 via 10.40.0.7"]
        );
        let gateway = of(&given, Some("10.40.0.1"), "10.40.0.4/16").unwrap();
        assert_eq!(gateway, ["10.40.0.0/16 via 10.40.0.1", "192.168.0.0/16 via 10.40.0.7"]);
        assert!(of(&list(&[]), Some("10.40.0.1"), "10.40.0.4/16").unwrap().is_empty());
        assert!(of(&list(&[("junk", None)]), None, "10.40.0.4/16").is_err());
    }
}
