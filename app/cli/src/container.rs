//! `weave attach` and `weave detach`.

use weave_api::Owned;
use weave_api::host_requests::{AttachRequest, DetachRequest, HostsFile};
use weave_host::Netlink;
use weave_runtime::{AddressRequest, Reference, Target, etc_hosts};
use weave_types::Cidr;

use crate::addresses;
use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::target::{find, id_of};
use crate::{Failure, dns, host_client, hosts_file, notice, print, ps, query, require_root};

/// Addresses and the container, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) addresses: Vec<AddressRequest>,
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
    overlaps(&addresses::fixed(&call.addresses), &options::bridge(parsed, env))?.iter().for_each(notice);
    let target = find(&call.container, env)?;
    let name = match parsed.text("name").filter(|name| !name.is_empty()) {
        Some(_) if parsed.flag("without-dns") => {
            return Err(Failure::new(1, "--name and --without-dns contradict each other"));
        }
        Some(name) => {
            let domain = dns::domain(&query::client(parsed, env), parsed, env)?;
            Some(dns::check_name(name, &domain)?.to_owned())
        }
        None => dns::own_name(&target).filter(|_| !parsed.flag("without-dns")),
    };
    let hosts_file = parsed.flag("rewrite-hosts").then(|| hosts_file::of(&target, extra)).transpose()?;
    let multicast_route = !parsed.flag("no-multicast-route");
    let settings = Settings { former: false, multicast_route, hosts_file, name };
    print(&addresses::plain(&attach_target(target, &call.addresses, settings, parsed, env)?))
}

/// How a container is attached, besides its addresses.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Whether it also gets the addresses that it had.
    pub(crate) former: bool,
    pub(crate) multicast_route: bool,
    /// The hosts file to rewrite.
    pub(crate) hosts_file: Option<HostsFile>,
    /// The name to register.
    pub(crate) name: Option<String>,
}

/// Attaches a container that was found; the addresses that it got.
pub(crate) fn attach_target(
    target: Target,
    addresses: &[AddressRequest],
    settings: Settings,
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<Vec<String>, Failure> {
    let request = AttachRequest {
        container: id_of(&target),
        naming: target.naming,
        bridge: options::bridge(parsed, env),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        former: settings.former,
        record: true,
        multicast_route: settings.multicast_route,
        hairpin: true,
        hosts_file: settings.hosts_file,
        name: settings.name,
        starting: false,
    };
    host_client::attach(request, target.ns, addresses, parsed, env)
}

pub(crate) fn detach(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(parsed)?;
    require_root()?;
    let target = match find(&call.container, env) {
        Ok(target) => target,
        Err(error) => return release(&call, error, parsed, env),
    };
    let request = DetachRequest {
        container: id_of(&target),
        addresses: call.addresses.iter().map(ToString::to_string).collect(),
        record: true,
    };
    print(&addresses::plain(&host_client::detach(request, &target.ns, &call.addresses, parsed, env)?))
}

/// Releases the addresses of a container that cannot be found, for which there is `error`. The daemon refuses if they are in use.
fn release(call: &Call, error: Failure, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let recorded = query::unix_client(parsed, env).get("/ip").ok();
    let owned = recorded.and_then(|json| Owned::from_json(&json).ok()).and_then(|owned| owned.owned);
    let owned = owned.unwrap_or_default();
    // A stopped container of Docker still has an id.
    let stopped = ps::docker(env).inspect(&call.container).ok().flatten().map(|info| info.id);
    let reference =
        call.container.parse::<Reference>().map_or_else(|_| call.container.clone(), |r| r.to_string());
    let is_owner = |id: &str| {
        let shortened = call.container.len() >= ps::ID_LENGTH && id.starts_with(&call.container);
        id == reference || shortened || stopped.as_deref() == Some(id)
    };
    let Some(owner) = owned.iter().find(|owner| is_owner(&owner.container)) else {
        let fixed: Vec<String> = addresses::fixed(&call.addresses).iter().map(ToString::to_string).collect();
        let other = owned.iter().find_map(|owner| {
            owner.addrs.iter().find(|addr| fixed.contains(addr)).map(|addr| (addr, &owner.container))
        });
        return Err(match other {
            Some((addr, container)) => Failure::new(
                error.code,
                format_args!(
                    "{}; {addr} is recorded for {container}, and 'weave detach {addr} {container}' releases it",
                    error.message.trim_end()
                ),
            ),
            None => error,
        });
    };
    let request = DetachRequest {
        container: owner.container.clone(),
        addresses: call.addresses.iter().map(ToString::to_string).collect(),
        record: true,
    };
    print(&addresses::plain(&host_client::release(request, &call.addresses, parsed, env)?))
}

/// Warnings about addresses that the host already routes elsewhere (docs/spec/cli.md 2.1).
pub(crate) fn overlaps(cidrs: &[Cidr], bridge: &str) -> Result<Vec<String>, Failure> {
    let mut netlink = Netlink::open()?;
    let own = netlink.link(bridge)?.map(|link| link.index);
    let routes: Vec<Cidr> = netlink
        .routes()?
        .iter()
        .filter(|route| !route.is_default() && (own.is_none() || route.index != own))
        .map(|route| route.destination)
        .collect();
    Ok(cidrs.iter().filter_map(|cidr| overlap(cidr, &routes)).collect())
}

pub(crate) fn overlap(cidr: &Cidr, routes: &[Cidr]) -> Option<String> {
    let what = if *cidr == cidr.network() { "Network" } else { "Address" };
    routes
        .iter()
        .find(|r| r.overlaps(*cidr))
        .map(|r| format!("{what} {cidr} overlaps with existing route {r} on host"))
}
