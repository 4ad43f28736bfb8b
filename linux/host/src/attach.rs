//! Plugging a container into the bridge, and unplugging it (docs/spec/containers.md D.2, D.3).
//!
//! Either everything is done or nothing: what a step changed is written down before the next one begins, and taken back
//! in reverse order when one fails. Two processes never work on the same container at the same time.

use std::net::IpAddr;

use nix::errno::Errno;
use weave_types::Cidr;

use crate::bridge::{no_bridge, tolerate_gone};
use crate::multicast_rules::{Firewall, FirewallError, Rule};
use crate::steps::Steps;
use crate::{Error, Link, NetNs, Netlink, arp, ethtool, sysctl};

/// How much of an id goes into the names of a veth pair: 15 bytes less `vethwepl`.
const ID_LENGTH: usize = 7;

/// What [`attach`] is to bring about.
#[derive(Debug)]
pub struct AttachRequest<'a> {
    /// The container's namespace.
    pub ns: &'a NetNs,
    /// What the host's end of the pair is named after: a decimal process id or a container id; cut to 7 characters.
    pub id: &'a str,
    /// Name of the interface in the container.
    pub ifname: &'a str,
    /// The bridge to plug it into.
    pub bridge: &'a str,
    /// Payload size; none takes the bridge's.
    pub mtu: Option<u32>,
    /// Whether to add the route `224.0.0.0/4`, on which programs that wait for the network look.
    pub multicast_route: bool,
    /// Addresses that the interface is to have, next to those that it has.
    pub cidrs: &'a [Cidr],
    /// Whether the container may leave checksums to the switch. Ours completes them; one that captures with libpcap
    /// (type `bridge` of 2.8.1) does not.
    pub keep_tx_on: bool,
    /// Whether frames may go back to the container by the port they came in by.
    pub hairpin: bool,
}

impl<'a> AttachRequest<'a> {
    /// A request with everything else as 2.8.1 has it by default on its fast path: interface `ethwe` on bridge `weave`,
    /// multicast route, offloads kept, hairpin on.
    pub fn new(ns: &'a NetNs, id: &'a str, cidrs: &'a [Cidr]) -> AttachRequest<'a> {
        AttachRequest {
            ns,
            id,
            ifname: "ethwe",
            bridge: "weave",
            mtu: None,
            multicast_route: true,
            cidrs,
            keep_tx_on: true,
            hairpin: true,
        }
    }
}

/// What [`attach`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Whether the interface was created; otherwise it was there.
    pub created: bool,
    /// The addresses that it did not have before.
    pub added: Vec<Cidr>,
    /// What could not be done without harm to the attachment: firewall rules, tuning.
    pub warnings: Vec<String>,
}

/// What [`detach`] is to bring about.
#[derive(Debug)]
pub struct DetachRequest<'a> {
    /// The container's namespace.
    pub ns: &'a NetNs,
    /// Name of the interface in the container.
    pub ifname: &'a str,
    /// Addresses that it is not to have any more.
    pub cidrs: &'a [Cidr],
}

impl<'a> DetachRequest<'a> {
    /// For interface `ethwe`.
    pub fn new(ns: &'a NetNs, cidrs: &'a [Cidr]) -> DetachRequest<'a> {
        DetachRequest { ns, ifname: "ethwe", cidrs }
    }
}

/// What [`detach`] changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// The addresses that were removed, as the interface had them.
    pub removed: Vec<Cidr>,
    /// Whether the interface went, with its last address.
    pub interface_removed: bool,
    /// Firewall rules that could not be removed.
    pub warnings: Vec<String>,
}

/// Plugs a container in. Done twice, it changes nothing the second time.
pub fn attach(request: &AttachRequest<'_>) -> Result<Attached, Error> {
    attach_with(request, &Steps::all())
}

/// [`attach`], with the host operations counted and, for tests, made to fail.
pub fn attach_with(request: &AttachRequest<'_>, steps: &Steps) -> Result<Attached, Error> {
    if request.ns.id() == NetNs::current()?.id() {
        return Err(Error::Argument("the host's own network namespace cannot be attached".into()));
    }
    let _lock = request.ns.lock()?;
    let mut work = Work::new(request.ns, request.ifname, steps)?;
    let mut attached = Attached::default();
    let result = work.attach(request, &mut attached);
    work.finish(result)?;
    attached.warnings = work.warnings;
    Ok(attached)
}

/// Takes addresses from a container, and the interface with the last IPv4 address.
pub fn detach(request: &DetachRequest<'_>) -> Result<Detached, Error> {
    detach_with(request, &Steps::all())
}

/// [`detach`], with the host operations counted and, for tests, made to fail.
pub fn detach_with(request: &DetachRequest<'_>, steps: &Steps) -> Result<Detached, Error> {
    if request.ns.id() == NetNs::current()?.id() {
        return Err(Error::Argument("the host's own network namespace cannot be detached".into()));
    }
    let _lock = request.ns.lock()?;
    let mut work = Work::new(request.ns, request.ifname, steps)?;
    let mut detached = Detached::default();
    let result = work.detach(request, &mut detached);
    work.finish(result)?;
    detached.warnings = work.warnings;
    Ok(detached)
}

/// A change that was made, in terms of how to take it back. Links are in the container unless it says otherwise.
#[derive(Debug)]
enum Change {
    PairCreated(Link),
    AddressAdded(Link, Cidr),
    SetUp(Link),
    RouteAdded(Link),
    RuleAdded(Firewall, Rule),
    RuleRemoved(Firewall, Rule),
    AddressesRemoved(Link, Vec<Cidr>, Vec<Vec<u8>>),
    /// `promote_secondaries` was this.
    Promoted(String),
}

struct Work<'a> {
    ns: &'a NetNs,
    interface: &'a str,
    steps: &'a Steps,
    host: Netlink,
    inner: Netlink,
    changes: Vec<Change>,
    warnings: Vec<String>,
}

impl<'a> Work<'a> {
    fn new(ns: &'a NetNs, interface: &'a str, steps: &'a Steps) -> Result<Work<'a>, Error> {
        let (host, inner) = (Netlink::open()?, ns.netlink()?);
        Ok(Work { ns, interface, steps, host, inner, changes: Vec::new(), warnings: Vec::new() })
    }

    fn attach(&mut self, request: &AttachRequest<'_>, attached: &mut Attached) -> Result<(), Error> {
        let (link, port) = match self.inner.link(self.interface)? {
            Some(link) => {
                let port = self.wake_host_end(&link)?;
                (link, port)
            }
            None => {
                attached.created = true;
                let (link, port) = self.plug(request)?;
                (link, Some(port))
            }
        };
        self.add_addresses(&link, request.cidrs, &mut attached.added)?;
        self.steps.begin("setting the interface up")?;
        if !link.up {
            self.inner.set_up(&link, true)?;
            self.changes.push(Change::SetUp(link.clone()));
        }
        self.announce(&link, port.as_ref(), &attached.added)?;
        if request.multicast_route {
            self.steps.begin("adding the multicast route")?;
            if self.inner.add_multicast_route(&link)? {
                self.changes.push(Change::RouteAdded(link));
            }
        }
        Ok(())
    }

    /// Steps 1 to 7: creates the pair and prepares both ends. Gives the container's end and the host's.
    fn plug(&mut self, request: &AttachRequest<'_>) -> Result<(Link, Link), Error> {
        let id: String = request.id.chars().take(ID_LENGTH).collect();
        if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(Error::Argument(format!("{:?} cannot name an interface", request.id)));
        }
        let (outside, inside) = (format!("vethwepl{id}"), format!("vethwepg{id}"));
        let bridge = self.host.link(request.bridge)?.ok_or_else(|| no_bridge(request.bridge))?;
        if !bridge.is("bridge") {
            return Err(Error::State(format!(
                "interface {} is not a Linux bridge; run 'weave reset' and launch again",
                bridge.name
            )));
        }
        let mtu = request.mtu.unwrap_or(bridge.mtu);

        let moving = NetNs::current()?.lock()?;
        self.remove_unfinished(&outside, &inside)?;
        self.steps.begin("creating the veth pair")?;
        let step = format!("could not create veth pair {outside}-{inside}");
        let (port, end) = self.host.create_veth_step(&outside, &inside, Some(mtu), &step)?;
        self.changes.push(Change::PairCreated(port.clone()));

        self.steps.begin("adding the host's end to the bridge")?;
        self.host.set_master(&port, Some(&bridge))?;
        self.steps.begin("setting accept_ra")?;
        sysctl::ignore_router_advertisements(&port.name)?;
        sysctl::ignore_router_advertisements(&end.name)?;
        if !request.keep_tx_on {
            self.steps.begin("switching TX checksum offload off")?;
            ethtool::disable_tx_checksum(&end.name)?;
        }
        self.steps.begin("setting hairpin mode")?;
        self.host.set_hairpin(&port, request.hairpin)?;
        self.steps.begin("setting the host's end up")?;
        self.host.set_up(&port, true)?;
        self.steps.begin("moving the container's end")?;
        self.host.move_to(&end, self.ns)?;
        drop(moving);

        let end = self.inner.existing(&inside)?;
        self.steps.begin("tuning the container's ARP cache")?;
        let warnings = self.ns.run(|| {
            // The move has set it back.
            sysctl::ignore_router_advertisements(&end.name)?;
            sysctl::tune_neighbours(&end.name)
        })??;
        self.warnings.extend(warnings);
        self.steps.begin("adding the multicast DROP rule")?;
        self.add_rule(Rule::Drop)?;
        // Until it has its name it is nobody's: an attach that is killed before this is begun anew by the next one.
        self.steps.begin("renaming the container's end")?;
        self.inner.rename(&end, self.interface)?;
        let end = Link { name: self.interface.to_owned(), ..end };
        Ok((end, Link { master: Some(bridge.index), ..port }))
    }

    /// Clears away what an attach of the same name left that was killed between its steps: the locks held here mean that
    /// nobody is still at it. A pair that is in use is left alone; creating another of its name then fails.
    fn remove_unfinished(&mut self, outside: &str, inside: &str) -> Result<(), Error> {
        let unfinished =
            [self.host.link(inside)?.map(|l| (true, l)), self.inner.link(inside)?.map(|l| (false, l))];
        for (on_host, link) in unfinished.into_iter().flatten() {
            if link.is("veth") {
                tracing::warn!(link = %link.name, pair = %outside, "removing what an interrupted attach left behind");
                let netlink = if on_host { &mut self.host } else { &mut self.inner };
                tolerate_gone(netlink.delete_link(&link))?;
            }
        }
        Ok(())
    }

    /// The host's end of an interface that exists. An attach that was killed before step 7 left it down.
    fn wake_host_end(&mut self, link: &Link) -> Result<Option<Link>, Error> {
        let (Some(peer), Some(_)) = (link.peer, link.peer_nsid) else { return Ok(None) };
        let number = self.ns.number(&mut self.host)?;
        match self.host.link_by_index(peer)? {
            Some(port) if port.peer == Some(link.index) && port.peer_nsid == number => {
                if !port.up {
                    self.host.set_up(&port, true)?;
                }
                Ok(Some(port))
            }
            _ => Ok(None),
        }
    }

    fn add_addresses(&mut self, link: &Link, wanted: &[Cidr], added: &mut Vec<Cidr>) -> Result<(), Error> {
        let mut present: Vec<IpAddr> = self.inner.addresses_of(link)?.iter().map(Cidr::addr).collect();
        for cidr in wanted {
            if present.contains(&cidr.addr()) {
                continue;
            }
            // The rule comes first: if this is interrupted, the address that is still missing brings both about next time.
            if cidr.addr().is_ipv4() {
                self.steps.begin("inserting a multicast ACCEPT rule")?;
                self.add_rule(Rule::Accept(cidr.network()))?;
            }
            self.steps.begin("adding an address")?;
            self.inner.add_address(link, *cidr)?;
            self.changes.push(Change::AddressAdded(link.clone(), *cidr));
            present.push(cidr.addr());
            added.push(*cidr);
        }
        Ok(())
    }

    /// Once is enough.
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn add_rule(&mut self, rule: Rule) -> Result<(), Error> {
        let interface = self.interface;
        let result = self.ns.run(|| ensure_rule(interface, rule))?;
        match result {
            Ok(Some(firewall)) => self.changes.push(Change::RuleAdded(firewall, rule)),
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
        self.wait_until_passing(link, port)?;
        for addr in new {
            self.steps.begin("announcing an address")?;
            pause();
            self.ns.run(|| arp::announce(link, addr))??;
        }
        Ok(())
    }

    fn wait_until_passing(&mut self, link: &Link, port: Option<&Link>) -> Result<(), Error> {
        let mut passing = self.inner.wait_until_passing(link)?;
        if let Some(port) = port {
            let bridge = port.master.map(|index| self.host.link_by_index(index)).transpose()?.flatten();
            if bridge.is_some_and(|b| b.up) {
                passing &= self.host.wait_until_passing(port)?;
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
        // Also those of addresses that a detach has removed which was killed then.
        let mut stale: Vec<Rule> = removed
            .iter()
            .chain(request.cidrs)
            .filter(|c| c.addr().is_ipv4() && !staying.iter().any(|s| s.network() == c.network()))
            .map(|c| Rule::Accept(c.network()))
            .collect();
        stale.sort_unstable();
        stale.dedup();
        if last {
            stale.push(Rule::Drop);
        }
        if !stale.is_empty() {
            self.remove_rules(&stale)?;
        }
        if last {
            // Takes the addresses and their routes along, in one operation that either happens or does not.
            self.steps.begin("deleting the interface")?;
            self.inner.delete_link(&link)?;
            detached.interface_removed = true;
        }
        detached.removed = removed;
        Ok(())
    }

    /// Removes `removed`. The kernel may take secondary addresses of a subnet along with the primary one; those that
    /// stay are kept.
    fn remove_addresses(&mut self, link: &Link, removed: &[Cidr], staying: &[Cidr]) -> Result<(), Error> {
        let all: Vec<Cidr> = self.inner.addresses_of(link)?;
        let routes = self.inner.save_routes()?;
        self.changes.push(Change::AddressesRemoved(link.clone(), all, routes.clone()));
        let interface = self.interface;
        let promote = move |value: &str| sysctl::set("ipv4/conf", interface, "promote_secondaries", value);
        let before =
            self.ns.run(|| sysctl::read("ipv4/conf", interface, "promote_secondaries"))?.unwrap_or(None);
        // Without it the addresses are put back below, a moment later.
        let promoted = self.ns.run(|| promote("1"))?.unwrap_or(false);
        if let (true, Some(before)) = (promoted, &before) {
            self.changes.push(Change::Promoted(before.clone()));
        }
        let result = removed.iter().try_for_each(|cidr| {
            self.steps.begin("removing an address")?;
            match self.inner.remove_address(link, *cidr) {
                Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
                other => other,
            }
        });
        result?;
        if let (true, Some(before)) = (promoted, before) {
            self.ns.run(|| promote(&before))??;
        }
        self.restore_addresses(link, staying)?;
        if !promoted {
            self.inner.restore_made_routes(&routes);
        }
        Ok(())
    }

    fn restore_addresses(&mut self, link: &Link, wanted: &[Cidr]) -> Result<(), Error> {
        let present = self.inner.addresses_of(link)?;
        wanted.iter().filter(|c| !present.contains(c)).try_for_each(|c| self.inner.add_address(link, *c))
    }

    /// Puts `all` back as they were. Which address of a subnet is the primary one goes by order, so subnets that lost
    /// one are made anew.
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

    fn remove_rules(&mut self, rules: &[Rule]) -> Result<(), Error> {
        let interface = self.interface;
        for rule in rules {
            self.steps.begin("removing a multicast rule")?;
            let (firewalls, errors) = self.ns.run(|| remove_rule(interface, *rule))?;
            self.changes.extend(firewalls.into_iter().map(|f| Change::RuleRemoved(f, *rule)));
            self.warnings.extend(errors.iter().map(ToString::to_string));
        }
        Ok(())
    }

    /// Keeps the changes, or takes them back in reverse order, as many of them as possible.
    fn finish(&mut self, result: Result<(), Error>) -> Result<(), Error> {
        let Err(cause) = result else { return Ok(()) };
        let mut left = Vec::new();
        while let Some(change) = self.changes.pop() {
            if let Err(e) = self.take_back(change) {
                left.push(e);
            }
        }
        if left.is_empty() { Err(cause) } else { Err(Error::Undo { cause: Box::new(cause), left }) }
    }

    fn take_back(&mut self, change: Change) -> Result<(), Error> {
        let interface = self.interface;
        let firewall = |r: Result<(), FirewallError>| r.map_err(|e| Error::State(e.to_string()));
        match change {
            Change::PairCreated(port) => tolerate_gone(self.host.delete_link(&port)),
            Change::AddressAdded(link, cidr) => match self.inner.remove_address(&link, cidr) {
                Err(e) if e.errno() == Some(Errno::EADDRNOTAVAIL) => Ok(()),
                other => tolerate_gone(other),
            },
            Change::SetUp(link) => tolerate_gone(self.inner.set_up(&link, false)),
            Change::RouteAdded(link) => tolerate_gone(self.inner.remove_multicast_route(&link).map(|_| ())),
            Change::RuleAdded(f, rule) => firewall(self.ns.run(|| f.remove(interface, rule).map(|_| ()))?),
            Change::RuleRemoved(f, rule) => firewall(self.ns.run(|| f.ensure(interface, rule).map(|_| ()))?),
            Change::Promoted(before) => {
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

/// With `iptables`, or with `nft` where that cannot do it. Gives the program that added the rule.
fn ensure_rule(interface: &str, rule: Rule) -> Result<Option<Firewall>, FirewallError> {
    let first = Firewall::find()?;
    let failure = match first.ensure(interface, rule) {
        Ok(added) => return Ok(added.then_some(first)),
        Err(e) => e,
    };
    let second = Firewall::nft().ok_or_else(|| failure.clone())?;
    match second.ensure(interface, rule) {
        Ok(added) => Ok(added.then_some(second)),
        Err(_) => Err(failure),
    }
}

/// Wherever the rule is. Gives the programs that found it, and what went wrong.
fn remove_rule(interface: &str, rule: Rule) -> (Vec<Firewall>, Vec<FirewallError>) {
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    for firewall in Firewall::all() {
        match firewall.remove(interface, rule) {
            Ok(true) => removed.push(firewall),
            Ok(false) => {}
            Err(e) => errors.push(e),
        }
    }
    (removed, errors)
}

/// Not a wait for a condition: the kernel gives no other sign (see [`arp::SETTLE`]).
fn pause() {
    std::thread::sleep(arp::SETTLE);
}
