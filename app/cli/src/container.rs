//! `weave attach` and `weave detach`.

use weave_host::{AttachRequest, DetachRequest, Netlink};
use weave_runtime::{Docker, Reference, Target};
use weave_types::Cidr;

use crate::args::Parsed;
use crate::options::Env;
use crate::usage::Command;
use crate::{Failure, notice, print, require_root};

/// Addresses and the container, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) cidrs: Vec<Cidr>,
    pub(crate) container: String,
}

/// Leading arguments that look like addresses, then one container (spec cli 2.1). Without an allocator, `net:` and the
/// lack of an address are refused.
pub(crate) fn call(command: &Command, rest: &[String]) -> Result<Call, Failure> {
    let addresses = rest.iter().take_while(|a| looks_like_address(a)).count();
    let (addresses, container) = rest.split_at(addresses);
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
            Some(extra) if looks_like_address(extra) => {
                Failure::new(1, format_args!("addresses come before the container; {}", command.synopsis()))
            }
            Some(extra) => Failure::new(
                1,
                format_args!(
                    "'{}' and '{extra}' cannot both be the container; {}",
                    container[0],
                    command.synopsis()
                ),
            ),
            None => Failure::new(1, command.synopsis()),
        });
    };
    let mut cidrs = Vec::new();
    for text in addresses {
        if text.starts_with("net:") {
            return Err(no_allocation());
        }
        let text = text.strip_prefix("ip:").unwrap_or(text);
        let cidr: Cidr = text.parse()?;
        check_host_address(&cidr)?;
        if !cidrs.contains(&cidr) {
            cidrs.push(cidr);
        }
    }
    if cidrs.is_empty() {
        return Err(no_allocation());
    }
    Ok(Call { cidrs, container: container.clone() })
}

/// The pattern of 2.8.1: four groups of one to three digits, a slash, one or two digits; `net:default`.
fn looks_like_address(text: &str) -> bool {
    if text == "net:default" {
        return true;
    }
    let text = text.strip_prefix("ip:").or_else(|| text.strip_prefix("net:")).unwrap_or(text);
    let Some((ip, bits)) = text.split_once('/') else { return false };
    let digits = |s: &str, max| (1..=max).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
    ip.split('.').count() == 4 && ip.split('.').all(|g| digits(g, 3)) && digits(bits, 2)
}

fn no_allocation() -> Failure {
    Failure::new(1, "IP address allocation must be enabled to use 'net:'")
}

/// A container cannot have the address of its network, nor the broadcast address.
fn check_host_address(cidr: &Cidr) -> Result<(), Failure> {
    let wrong = if cidr.prefix() < 31 && *cidr == cidr.network() {
        "is the address of the network itself; give the container one inside it"
    } else if cidr.broadcast().is_some_and(|b| cidr.addr() == b) {
        "is the network's broadcast address; give the container another"
    } else {
        return Ok(());
    };
    Err(Failure::new(1, format_args!("{cidr} {wrong}")))
}

/// One line of plain addresses, in the order of the arguments.
pub(crate) fn plain(cidrs: &[Cidr]) -> String {
    let ips: Vec<_> = cidrs.iter().map(|c| c.addr().to_string()).collect();
    ips.join(" ") + "\n"
}

pub(crate) fn attach(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(command, &parsed.rest)?;
    require_root()?;
    if parsed.flag("rewrite-hosts") {
        notice("Notice: this version does not write /etc/hosts yet; no effect: --rewrite-hosts");
    }
    let bridge = parsed.text("weave-bridge").unwrap_or("weave");
    overlaps(&call.cidrs, bridge)?.iter().for_each(notice);
    let target = find(&call.container, env)?;
    let attached = weave_host::attach(&AttachRequest {
        bridge,
        multicast_route: !parsed.flag("no-multicast-route"),
        ..AttachRequest::new(&target.ns, &target.naming, &call.cidrs)
    })?;
    attached.warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
    print(&plain(&call.cidrs))
}

pub(crate) fn detach(command: &Command, parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(command, &parsed.rest)?;
    require_root()?;
    let target = find(&call.container, env)?;
    let detached = weave_host::detach(&DetachRequest::new(&target.ns, &call.cidrs))?;
    detached.warnings.iter().for_each(|w| notice(format_args!("Warning: {w}")));
    print(&plain(&call.cidrs))
}

fn find(container: &str, env: &dyn Env) -> Result<Target, Failure> {
    let reference: Reference = container.parse()?;
    let docker = Docker::at(env.var("DOCKER_HOST").as_deref());
    Ok(weave_runtime::resolve(&reference, &docker)?)
}

/// Addresses that the host already routes elsewhere: the container could not be told from what is there (spec cli 2.1).
fn overlaps(cidrs: &[Cidr], bridge: &str) -> Result<Vec<String>, Failure> {
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

fn overlap(cidr: &Cidr, routes: &[Cidr]) -> Option<String> {
    let hit = |r: &&Cidr| r.contains(cidr.network().addr()) || cidr.contains(r.network().addr());
    routes.iter().find(hit).map(|r| format!("Address {cidr} overlaps with existing route {r} on host"))
}
