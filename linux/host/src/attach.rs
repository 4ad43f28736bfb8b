//! Connects a container to the bridge, and disconnects it (docs/spec/containers.md D.2, D.3).
//!
//! Each change is recorded, and the recorded changes are undone in reverse order when a later operation fails. If the process is
//! killed instead, the same call made again completes what is missing. The caller makes sure that one container is not attached
//! or detached twice at the same time.

use std::net::IpAddr;

use nix::errno::Errno;
use weave_types::{Cidr, MacAddr};

use crate::endpoint::NewPair;
use crate::error::ignore_missing_device;
use crate::firewall::multicast::{self, MulticastRule};
use crate::firewall::{Backend, FirewallError};
use crate::sysctl::SetResult;
use crate::{Error, Link, LinkRoute, NetNs, Netlink, arp, sysctl};

/// How much of an id goes into the names of a veth pair: 15 bytes less `vethwepl`.
const ID_LENGTH: usize = 7;

/// Input of [`attach`].
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// The container's namespace.
    pub ns: &'a NetNs,
    /// Source of the interface name on the host: a decimal process id or a container id; cut to 7 characters.
    pub id: &'a str,
    /// Name of the interface in the container.
    pub ifname: &'a str,
    /// The bridge that the host's end becomes a port of.
    pub bridge: &'a str,
    /// MTU in bytes; `None` takes the bridge's.
    pub mtu: Option<u32>,
    /// Ethernet address of a new interface; `None` lets the kernel choose.
    pub mac: Option<MacAddr>,
    /// Whether to add the route `224.0.0.0/4`; `weavewait` of 2.8.1 waits for it.
    pub multicast_route: bool,
    /// Addresses to add to those that the interface has.
    pub cidrs: &'a [Cidr],
    /// Routes to add, in this order. One to a destination that has a route already is left out.
    pub routes: &'a [LinkRoute],
    /// Whether the container may leave TCP and UDP checksums to the switch. This version's data path completes them; one that
    /// captures with libpcap (type `bridge` of 2.8.1) does not.
    pub keep_tx_on: bool,
    /// Whether frames may leave by the bridge port that they came in by.
    pub hairpin: bool,
}

impl<'a> AttachRequest<'a> {
    /// A request with the defaults of 2.8.1 with fast data path: interface `ethwe` on bridge `weave`, multicast route, offloads
    /// kept, hairpin on.
    pub fn new(ns: &'a NetNs, id: &'a str, cidrs: &'a [Cidr]) -> AttachRequest<'a> {
        AttachRequest {
            ns,
            id,
            ifname: "ethwe",
            bridge: "weave",
            mtu: None,
            mac: None,
            multicast_route: true,
            cidrs,
            routes: &[],
            keep_tx_on: true,
            hairpin: true,
        }
    }
}

/// Result of [`attach`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whether the interface was created; otherwise it existed.
    pub created: bool,
    /// The addresses that the interface did not have before.
    pub added: Vec<Cidr>,
    /// Optional parts that failed: firewall rules, neighbour settings.
    pub warnings: Vec<String>,
}

/// Input of [`detach`].
#[derive(Debug)]
pub struct DetachRequest<'a> {
    /// The container's namespace.
    pub ns: &'a NetNs,
    /// Name of the interface in the container.
    pub ifname: &'a str,
    /// Addresses to remove.
    pub cidrs: &'a [Cidr],
}

impl<'a> DetachRequest<'a> {
    /// A request for interface `ethwe`.
    pub fn new(ns: &'a NetNs, cidrs: &'a [Cidr]) -> DetachRequest<'a> {
        DetachRequest { ns, ifname: "ethwe", cidrs }
    }
}

/// Result of [`detach`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// The addresses that were removed, with the prefix lengths that the interface had.
    pub removed: Vec<Cidr>,
    /// Whether the interface was deleted, together with its last address.
    pub interface_removed: bool,
    /// Firewall rules that could not be removed.
    pub warnings: Vec<String>,
}

/// Gives a container an interface on the bridge, with addresses. Repeating it changes nothing.
///
/// # Errors
/// There is no bridge, or the kernel refuses an operation. Changes made before that are undone.
pub fn attach(request: &AttachRequest<'_>) -> Result<Attached, Error> {
    if request.ns.id() == NetNs::current()?.id() {
        return Err(Error::Argument("the host's own network namespace cannot be attached".into()));
    }
    let mut transaction = Transaction::new(request.ns, request.ifname)?;
    let mut attached = Attached::default();
    let result = transaction.attach(request, &mut attached);
    transaction.finish(result)?;
    attached.warnings = transaction.warnings;
    Ok(attached)
}

/// Removes addresses from a container's interface, and the interface with its last IPv4 address.
///
/// # Errors
/// There is no such interface, or the kernel refuses an operation. Changes made before that are undone.
pub fn detach(request: &DetachRequest<'_>) -> Result<Detached, Error> {
    if request.ns.id() == NetNs::current()?.id() {
        return Err(Error::Argument("the host's own network namespace cannot be detached".into()));
    }
    let mut transaction = Transaction::new(request.ns, request.ifname)?;
    let mut detached = Detached::default();
    let result = transaction.detach(request, &mut detached);
    transaction.finish(result)?;
    detached.warnings = transaction.warnings;
    Ok(detached)
}

/// A change that was made, with what is needed to undo it. Links are in the container's namespace unless stated otherwise.
#[derive(Debug)]
enum Change {
    /// The link is the host's end.
    PairCreated(Link),
    AddressAdded(Link, Cidr),
    SetUp(Link),
    MulticastRouteAdded(Link),
    RouteAdded(Link, LinkRoute),
    RuleAdded(Backend, MulticastRule),
    RuleRemoved(Backend, MulticastRule),
    AddressesRemoved(Link, Vec<Cidr>, Vec<Vec<u8>>),
    /// The former value of `promote_secondaries`.
    PromoteSecondariesSet(String),
}

struct Transaction<'a> {
    ns: &'a NetNs,
    interface: &'a str,
    host: Netlink,
    inner: Netlink,
    changes: Vec<Change>,
    warnings: Vec<String>,
}

impl<'a> Transaction<'a> {
    fn new(ns: &'a NetNs, interface: &'a str) -> Result<Transaction<'a>, Error> {
        let (host, inner) = (Netlink::open()?, ns.netlink()?);
        Ok(Transaction { ns, interface, host, inner, changes: Vec::new(), warnings: Vec::new() })
    }

    fn attach(&mut self, request: &AttachRequest<'_>, attached: &mut Attached) -> Result<(), Error> {
        let (link, port) = match self.inner.link(self.interface)? {
            Some(link) => {
                let port = self.set_host_end_up(&link)?;
                (link, port)
            }
            None => {
                attached.created = true;
                let (link, port) = self.create_interface(request)?;
                (link, Some(port))
            }
        };
        self.add_addresses(&link, request.cidrs, &mut attached.added)?;
        if !link.up {
            self.inner.set_up(&link, true)?;
            self.changes.push(Change::SetUp(link.clone()));
        }
        self.announce(&link, port.as_ref(), &attached.added)?;
        for route in request.routes {
            if self.inner.add_route(&link, *route)? {
                self.changes.push(Change::RouteAdded(link.clone(), *route));
            }
        }
        if request.multicast_route && self.inner.add_multicast_route(&link)? {
            self.changes.push(Change::MulticastRouteAdded(link));
        }
        Ok(())
    }

    /// Creates the veth pair and prepares both ends (docs/spec/containers.md D.2, steps 1 to 7). Returns the container's end and
    /// the host's end.
    fn create_interface(&mut self, request: &AttachRequest<'_>) -> Result<(Link, Link), Error> {
        let (outside, inside) = pair_names(request.id)?;
        let pair = NewPair {
            outside: &outside,
            inside: &inside,
            bridge: request.bridge,
            mtu: request.mtu,
            keep_tx_on: request.keep_tx_on,
            hairpin: request.hairpin,
        };
        let bridge = pair.bridge(&mut self.host)?;
        self.remove_unfinished(&outside, &inside)?;
        let (port, end) = pair.create(&mut self.host, &bridge)?;
        self.changes.push(Change::PairCreated(port.clone()));
        if let Some(mac) = request.mac {
            self.host.set_mac(&end, mac)?;
        }
        self.host.move_to(&end, self.ns)?;

        let end = self.inner.existing(&inside)?;
        let warnings = self.ns.run(|| {
            // The kernel resets the setting when a link changes its namespace.
            sysctl::ignore_router_advertisements(&end.name)?;
            sysctl::apply(&end.name, &sysctl::NEIGHBOURS, &mut Vec::new())
        })??;
        self.warnings.extend(warnings);
        self.add_rule(MulticastRule::Drop)?;
        // An interface without its final name is incomplete: after a kill, the next attach removes it and starts again.
        self.inner.rename(&end, self.interface)?;
        let end = Link { name: self.interface.to_owned(), ..end };
        Ok((end, port))
    }

    /// Removes the pair of the same names that an attach left behind which was killed before it renamed the container's end. A pair
    /// in use has another name there; creating the new one then fails.
    fn remove_unfinished(&mut self, outside: &str, inside: &str) -> Result<(), Error> {
        let unfinished =
            [self.host.link(inside)?.map(|l| (true, l)), self.inner.link(inside)?.map(|l| (false, l))];
        for (on_host, link) in unfinished.into_iter().flatten() {
            if link.is("veth") {
                tracing::warn!(link = %link.name, pair = %outside, "removing the veth pair of an interrupted attach");
                let netlink = if on_host { &mut self.host } else { &mut self.inner };
                ignore_missing_device(netlink.delete_link(&link))?;
            }
        }
        Ok(())
    }

    /// Finds the host's end of an interface that exists, and sets it up if it is down.
    fn set_host_end_up(&mut self, link: &Link) -> Result<Option<Link>, Error> {
        let port = host_end(self.ns, link, &mut self.host)?;
        if let Some(port) = port.as_ref().filter(|port| !port.up) {
            self.host.set_up(port, true)?;
        }
        Ok(port)
    }

    fn add_addresses(&mut self, link: &Link, wanted: &[Cidr], added: &mut Vec<Cidr>) -> Result<(), Error> {
        let mut present: Vec<IpAddr> = self.inner.addresses_of(link)?.iter().map(Cidr::addr).collect();
        for cidr in wanted {
            if present.contains(&cidr.addr()) {
                continue;
            }
            // The rule comes first: if the process is killed in between, the missing address makes the next attach do both.
            if cidr.addr().is_ipv4() {
                self.add_rule(MulticastRule::Accept(cidr.network()))?;
            }
            self.inner.add_address(link, *cidr)?;
            self.changes.push(Change::AddressAdded(link.clone(), *cidr));
            present.push(cidr.addr());
            added.push(*cidr);
        }
        Ok(())
    }

    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn add_rule(&mut self, rule: MulticastRule) -> Result<(), Error> {
        let interface = self.interface;
        let result = self.ns.run(|| multicast::add(interface, rule))?;
        match result {
            Ok(Some(backend)) => self.changes.push(Change::RuleAdded(backend, rule)),
            Ok(None) => {}
            Err(e) => self.warn(format!("multicast from other subnets is not filtered: {e}")),
        }
        Ok(())
    }

    fn announce(&mut self, link: &Link, port: Option<&Link>, added: &[Cidr]) -> Result<(), Error> {
        let new: Vec<_> = added
            .iter()
            .filter_map(|c| match c.addr() {
                IpAddr::V4(a) => Some(a),
                IpAddr::V6(_) => None,
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        self.wait_until_forwarding(link, port)?;
        for addr in new {
            pause();
            self.ns.run(|| arp::announce(link, addr))??;
        }
        Ok(())
    }

    fn wait_until_forwarding(&mut self, link: &Link, port: Option<&Link>) -> Result<(), Error> {
        let mut passing = self.inner.wait_until_forwarding(link)?;
        if let Some(port) = port {
            let bridge = port.master.map(|index| self.host.link_by_index(index)).transpose()?.flatten();
            if bridge.is_some_and(|b| b.up) {
                passing &= self.host.wait_until_forwarding(port)?;
            }
        }
        if !passing {
            tracing::debug!(link = %link.name, "announcing addresses over a link that does not pass frames yet");
        }
        Ok(())
    }

    fn detach(&mut self, request: &DetachRequest<'_>, detached: &mut Detached) -> Result<(), Error> {
        let link = self.inner.existing(self.interface)?;
        let present = self.inner.addresses_of(&link)?;
        let going = |c: &Cidr| request.cidrs.iter().any(|r| r.addr() == c.addr());
        let (removed, staying): (Vec<Cidr>, Vec<Cidr>) = present.into_iter().partition(going);
        let last = !staying.iter().any(|c| c.addr().is_ipv4());
        if !last && !removed.is_empty() {
            self.remove_addresses(&link, &removed, &staying)?;
        }
        // Includes rules for addresses that are gone, in case an earlier detach was killed after removing them.
        let mut stale: Vec<MulticastRule> = removed
            .iter()
            .chain(request.cidrs)
            .filter(|c| c.addr().is_ipv4() && !staying.iter().any(|s| s.network() == c.network()))
            .map(|c| MulticastRule::Accept(c.network()))
            .collect();
        stale.sort_unstable();
        stale.dedup();
        if last {
            stale.push(MulticastRule::Drop);
        }
        if !stale.is_empty() {
            self.remove_rules(&stale)?;
        }
        if last {
            // Removes its addresses and routes in the same operation.
            self.inner.delete_link(&link)?;
            detached.interface_removed = true;
        }
        detached.removed = removed;
        Ok(())
    }

    /// Removes `removed`. The kernel may remove secondary addresses of a subnet together with the primary one; those in `staying`
    /// are added again.
    fn remove_addresses(&mut self, link: &Link, removed: &[Cidr], staying: &[Cidr]) -> Result<(), Error> {
        let all: Vec<Cidr> = self.inner.addresses_of(link)?;
        let routes = self.inner.save_routes()?;
        self.changes.push(Change::AddressesRemoved(link.clone(), all, routes.clone()));
        let interface = self.interface;
        let promote = move |value: &str| sysctl::set("ipv4/conf", interface, "promote_secondaries", value);
        let before = promote_secondaries(self.ns, interface).unwrap_or(None);
        // Where the kernel lacks the setting, `restore_addresses` adds the secondary addresses again.
        let promoted = self.ns.run(|| promote("1"))?.is_ok_and(|set| set != SetResult::Missing);
        if let (true, Some(before)) = (promoted, &before) {
            self.changes.push(Change::PromoteSecondariesSet(before.clone()));
        }
        let result = removed.iter().try_for_each(|cidr| match self.inner.remove_address(link, *cidr) {
            Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
            other => other,
        });
        result?;
        if let (true, Some(before)) = (promoted, before) {
            self.ns.run(|| promote(&before))??;
        }
        self.restore_addresses(link, staying)?;
        if !promoted {
            self.inner.restore_configured_routes(&routes);
        }
        Ok(())
    }

    fn restore_addresses(&mut self, link: &Link, wanted: &[Cidr]) -> Result<(), Error> {
        let present = self.inner.addresses_of(link)?;
        wanted.iter().filter(|c| !present.contains(c)).try_for_each(|c| self.inner.add_address(link, *c))
    }

    /// Restores `all` in their order. The first address of a subnet is its primary one, so all addresses of a subnet that lost one
    /// are removed and added again.
    fn restore_order(&mut self, link: &Link, all: &[Cidr]) -> Result<(), Error> {
        let present = self.inner.addresses_of(link)?;
        let lost: Vec<Cidr> = all.iter().filter(|c| !present.contains(c)).map(Cidr::network).collect();
        for cidr in present.iter().filter(|c| lost.contains(&c.network())) {
            match self.inner.remove_address(link, *cidr) {
                Err(e) if e.errno() != Some(Errno::EADDRNOTAVAIL) => return Err(e),
                _ => {}
            }
        }
        self.restore_addresses(link, all)
    }

    fn remove_rules(&mut self, rules: &[MulticastRule]) -> Result<(), Error> {
        let interface = self.interface;
        for rule in rules {
            let (backends, errors) = self.ns.run(|| multicast::remove(interface, *rule))?;
            self.changes.extend(backends.into_iter().map(|b| Change::RuleRemoved(b, *rule)));
            self.warnings.extend(errors.iter().map(ToString::to_string));
        }
        Ok(())
    }

    /// Keeps the changes after a success. After a failure, undoes as many of them as possible, in reverse order.
    fn finish(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let Err(cause) = result else { return Ok(()) };
        let mut left = Vec::new();
        while let Some(change) = self.changes.pop() {
            if let Err(e) = self.undo(change) {
                left.push(e);
            }
        }
        if left.is_empty() { Err(cause) } else { Err(Error::Undo { cause: Box::new(cause), left }) }
    }

    fn undo(&mut self, change: Change) -> Result<(), Error> {
        let interface = self.interface;
        let firewall = |r: Result<(), FirewallError>| r.map_err(|e| Error::State(e.to_string()));
        match change {
            Change::PairCreated(port) => ignore_missing_device(self.host.delete_link(&port)),
            Change::AddressAdded(link, cidr) => match self.inner.remove_address(&link, cidr) {
                Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
                other => ignore_missing_device(other),
            },
            Change::SetUp(link) => ignore_missing_device(self.inner.set_up(&link, false)),
            Change::MulticastRouteAdded(link) => {
                ignore_missing_device(self.inner.remove_multicast_route(&link).map(drop))
            }
            Change::RouteAdded(link, route) => {
                ignore_missing_device(self.inner.remove_route(&link, route).map(drop))
            }
            Change::RuleAdded(backend, rule) => {
                firewall(self.ns.run(|| multicast::remove_from(backend, interface, rule))?)
            }
            Change::RuleRemoved(backend, rule) => {
                firewall(self.ns.run(|| multicast::add_to(backend, interface, rule))?)
            }
            Change::PromoteSecondariesSet(before) => {
                let set = || sysctl::set("ipv4/conf", interface, "promote_secondaries", &before);
                self.ns.run(set)?.map(|_| ())
            }
            Change::AddressesRemoved(link, all, routes) => {
                self.restore_order(&link, &all)?;
                self.inner.restore_routes(&routes)
            }
        }
    }
}

/// Names of the veth pair of a container: of the host's end, and of the container's end until it is renamed.
fn pair_names(id: &str) -> Result<(String, String), Error> {
    let short: String = id.chars().take(ID_LENGTH).collect();
    if short.is_empty() || !short.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(Error::Argument(format!("{id:?} cannot name an interface")));
    }
    Ok((format!("vethwepl{short}"), format!("vethwepg{short}")))
}

/// Whether the veth pair that is named after `id` belongs to another namespace than `ns`. A namespace can outlive what it is called, and
/// its interface keeps its name.
///
/// # Errors
/// The kernel refuses.
pub fn is_id_taken(id: &str, ns: &NetNs) -> Result<bool, Error> {
    let mut netlink = Netlink::open()?;
    let Some(port) = netlink.link(&pair_names(id)?.0)? else { return Ok(false) };
    let number = ns.number(&mut netlink)?;
    Ok(port.peer_nsid.is_some_and(|peer| Some(peer) != number))
}

/// The host's end of an interface in a container; `None` if that is not in the namespace of `host`.
fn host_end(ns: &NetNs, link: &Link, host: &mut Netlink) -> Result<Option<Link>, Error> {
    let (Some(peer), Some(_)) = (link.peer, link.peer_nsid) else { return Ok(None) };
    let number = ns.number(host)?;
    let port = host.link_by_index(peer)?;
    Ok(port.filter(|port| port.peer == Some(link.index) && port.peer_nsid == number))
}

/// An interface in a container, as it is.
#[derive(Clone, Debug)]
pub struct InterfaceState {
    /// The interface.
    pub link: Link,
    /// The other end, if it is a port of the bridge.
    pub port: Option<Link>,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
}

/// Describes an interface in a container; `None` if there is no such interface.
///
/// # Errors
/// The kernel refuses.
pub fn interface_state(ns: &NetNs, ifname: &str, bridge: &str) -> Result<Option<InterfaceState>, Error> {
    let (mut host, mut inner) = (Netlink::open()?, ns.netlink()?);
    let Some(link) = inner.link(ifname)? else { return Ok(None) };
    let bridge = host.link(bridge)?.map(|bridge| bridge.index);
    let port = host_end(ns, &link, &mut host)?.filter(|port| bridge.is_some() && port.master == bridge);
    let addresses = inner.addresses_of(&link)?;
    Ok(Some(InterfaceState { link, port, addresses }))
}

/// Removes the veth pair that is named after `id`, if its other end is in `ns` or has not left the host.
///
/// # Errors
/// The kernel refuses.
pub fn remove_pair(id: &str, ns: Option<&NetNs>) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    let Some(port) = netlink.link(&pair_names(id)?.0)?.filter(|port| port.is("veth")) else { return Ok(()) };
    let number = match ns {
        Some(ns) => ns.number(&mut netlink)?,
        None => None,
    };
    // Kernels before 4.0 do not say where the other end is.
    if port.peer.is_none() || (port.peer_nsid.is_some() && port.peer_nsid != number) {
        return Ok(());
    }
    ignore_missing_device(netlink.delete_link(&port))
}

/// Removes the veth pair of an attach that was killed before it moved the container's end, for a container that is gone.
///
/// # Errors
/// The kernel refuses.
pub fn remove_unfinished_pair(id: &str) -> Result<(), Error> {
    let mut netlink = Netlink::open()?;
    match netlink.link(&pair_names(id)?.1)? {
        Some(link) if link.is("veth") => ignore_missing_device(netlink.delete_link(&link)),
        _ => Ok(()),
    }
}

/// The addresses of an interface in a container; none if there is no such interface.
///
/// # Errors
/// The kernel refuses.
pub fn interface_addresses(ns: &NetNs, ifname: &str) -> Result<Vec<Cidr>, Error> {
    let mut netlink = ns.netlink()?;
    match netlink.link(ifname)? {
        Some(link) => netlink.addresses_of(&link),
        None => Ok(Vec::new()),
    }
}

/// `promote_secondaries` of an interface in a container; `None` if there is no such interface or setting. [`detach`] changes it while
/// it removes addresses.
///
/// # Errors
/// The kernel refuses.
pub fn promote_secondaries(ns: &NetNs, ifname: &str) -> Result<Option<String>, Error> {
    ns.run(|| sysctl::read("ipv4/conf", ifname, "promote_secondaries"))?
}

/// Sets `promote_secondaries` back after a [`detach`] that was killed.
///
/// # Errors
/// The kernel refuses.
pub fn set_promote_secondaries(ns: &NetNs, ifname: &str, value: &str) -> Result<(), Error> {
    ns.run(|| sysctl::set("ipv4/conf", ifname, "promote_secondaries", value))?.map(drop)
}

/// A fixed delay, because the kernel reports no event to wait for (see [`arp::SET_UP_DELAY`]).
fn pause() {
    std::thread::sleep(arp::SET_UP_DELAY);
}
