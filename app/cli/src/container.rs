//! `weave attach` and `weave detach`.

use weave_host::{AttachRequest, DetachRequest, NetNs, Netlink};
use weave_runtime::{Docker, Kind, Reference, Target, etc_hosts};
use weave_types::Cidr;

use crate::addresses::{self, Address, Book};
use crate::args::Parsed;
use crate::options::{self, Env};
use crate::{Failure, hosts_file, notice, print, query, require_root};

/// Addresses and the container, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) addresses: Vec<Address>,
    pub(crate) container: String,
}

/// Leading arguments that look like addresses, then one container (docs/spec/cli.md 2.1).
pub(crate) fn call(parsed: &Parsed) -> Result<Call, Failure> {
    let (rest, usage) = (&parsed.rest, &parsed.usage);
    let container = addresses::after(rest);
    if let Some(first) = container.first() {
        // `10.2.1.1` or `10.2.1/24` is a slip more often than a container's name.
        let path_only = first.contains('/') && !first.contains(':');
        if first.parse::<std::net::IpAddr>().is_ok() || path_only {
            let what = "is no container; an address is <ip>/<bits>, as 10.2.1.1/24";
            return Err(Failure::new(1, format_args!("'{first}' {what}")));
        }
    }
    let [container] = container else {
        return Err(match container.get(1) {
            Some(extra) if addresses::looks_like_address(extra) => {
                Failure::new(1, format_args!("addresses come before the container; {usage}"))
            }
            Some(extra) => Failure::new(
                1,
                format_args!("'{}' and '{extra}' cannot both be the container; {usage}", container[0]),
            ),
            None => Failure::new(1, usage),
        });
    };
    Ok(Call { addresses: addresses::leading(rest)?.0, container: container.clone() })
}

pub(crate) fn attach(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(parsed)?;
    require_root()?;
    let extra = parsed.list("add-host");
    let extra = extra.into_iter().map(etc_hosts::parse_extra).collect::<Result<Vec<_>, _>>()?;
    let bridge = &options::bridge(parsed, env);
    let fixed = call.addresses.iter().filter_map(Address::fixed);
    overlaps(&fixed.collect::<Vec<_>>(), bridge)?.iter().for_each(notice);
    let target = find(&call.container, env)?;
    let client = query::client(parsed, env);
    let id = id_of(&target);
    let mut book = Book::of(&client, &id, true);
    let cidrs = book.obtain(&call.addresses)?;
    weave_host::critical::enter();
    let plugged = plug(&target, &cidrs, bridge, parsed, &extra);
    // Addresses that are not used are not kept.
    let attached = plugged.inspect_err(|_| book.give_back())?;
    attached.warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
    print(&addresses::plain(&cidrs))
}

/// Interface and hosts file; both or nothing.
fn plug(
    target: &Target,
    cidrs: &[Cidr],
    bridge: &str,
    parsed: &Parsed,
    extra: &[(String, std::net::IpAddr)],
) -> Result<weave_host::Attached, Failure> {
    let hosts = match parsed.flag("rewrite-hosts") {
        true => Some(hosts_file::rewrite(target, cidrs, extra)?),
        false => None,
    };
    let attached = weave_host::attach(&AttachRequest {
        bridge,
        multicast_route: !parsed.flag("no-multicast-route"),
        ..AttachRequest::new(&target.ns, &target.naming, cidrs)
    });
    attached.map_err(|e| {
        hosts.into_iter().for_each(hosts_file::Rewritten::undo);
        e.into()
    })
}

pub(crate) fn detach(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(parsed)?;
    require_root()?;
    let target = find(&call.container, env)?;
    let client = query::client(parsed, env);
    let id = id_of(&target);
    let book = Book::of(&client, &id, true);
    let cidrs = book.look_up(&call.addresses)?;
    if cidrs.is_empty() {
        // It has none, and may not even have an interface.
        return print("\n");
    }
    weave_host::critical::enter();
    let detached = weave_host::detach(&DetachRequest::new(&target.ns, &cidrs))?;
    detached.warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
    book.release(&cidrs)?;
    print(&addresses::plain(&cidrs))
}

/// Under what the addresses of a container are kept: a namespace may be named in several ways, and is one container all the
/// same. Its name if it has one, else its first process; as the daemon does it with what it finds.
fn id_of(target: &Target) -> String {
    if matches!(target.kind, Kind::Docker(_)) {
        return target.id.clone();
    }
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut named: Vec<String> = names.filter_map(|e| e.file_name().into_string().ok()).collect();
    named.sort();
    if let Some(name) = named.iter().find(|n| NetNs::named(n).is_ok_and(|ns| ns.id() == target.ns.id())) {
        return format!("netns:{name}");
    }
    let processes = NetNs::all_of_processes().unwrap_or_default();
    let first = processes.iter().find(|(_, ns)| ns.id() == target.ns.id());
    first.map_or_else(|| target.id.clone(), |(pid, _)| format!("pid:{pid}"))
}

fn find(container: &str, env: &dyn Env) -> Result<Target, Failure> {
    let reference: Reference = container.parse()?;
    let docker = Docker::at(env.var("DOCKER_HOST").as_deref());
    Ok(weave_runtime::resolve(&reference, &docker)?)
}

/// Addresses that the host already routes elsewhere: the container could not be told from what is there (docs/spec/cli.md 2.1).
pub(crate) fn overlaps(cidrs: &[Cidr], bridge: &str) -> Result<Vec<String>, Failure> {
    let mut netlink = Netlink::open()?;
    let own = netlink.link(bridge)?.map(|link| link.index);
    let routes: Vec<Cidr> = netlink
        .routes()?
        .iter()
        .filter(|route| route.destination.prefix() > 0 && (own.is_none() || route.index != own))
        .map(|route| route.destination)
        .collect();
    Ok(cidrs.iter().filter_map(|cidr| overlap(cidr, &routes)).collect())
}

pub(crate) fn overlap(cidr: &Cidr, routes: &[Cidr]) -> Option<String> {
    let hit = |r: &&Cidr| r.contains(cidr.network().addr()) || cidr.contains(r.network().addr());
    let what = if *cidr == cidr.network() { "Network" } else { "Address" };
    routes.iter().find(hit).map(|r| format!("{what} {cidr} overlaps with existing route {r} on host"))
}
