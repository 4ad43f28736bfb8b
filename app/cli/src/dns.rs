//! `weave dns-add`, `dns-remove`, `dns-lookup` and `dns-args` (docs/spec/dns.md 14).

mod query;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use weave_api::{Client, ClientError, encode};
use weave_runtime::{Kind, Target};

use crate::args::Parsed;
use crate::env::Env;
use crate::options;
use crate::target::{find, id_of};
use crate::{Failure, docker_bridge, notice, print, ps, query as daemon};

/// The id under which names without a container are kept.
pub(crate) const EXTERN: &str = "weave:extern";
const DEFAULT_DOMAIN: &str = "weave.local.";
const PORT: u16 = 53;

/// The arguments of `dns-add` and `dns-remove`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    addresses: Vec<Ipv4Addr>,
    container: Option<String>,
    name: Option<String>,
}

/// Leading IP addresses, then at most one container. Without a container both address and name are needed to add, and an address to remove.
pub(crate) fn call(parsed: &Parsed, adds: bool) -> Result<Call, Failure> {
    let count = parsed.rest.iter().take_while(|arg| arg.parse::<Ipv4Addr>().is_ok()).count();
    let (addresses, rest) = parsed.rest.split_at(count);
    let usage = |what: &str| Failure::new(1, format_args!("{what}; {}", parsed.usage));
    let container = match rest {
        [] => None,
        [container]
            if container.parse::<IpAddr>().is_ok() || container.contains('/') && !container.contains(':') =>
        {
            return Err(usage(&format!(
                "'{container}' is neither an IPv4 address, as 10.2.1.1, nor a container"
            )));
        }
        [container] => Some(container.clone()),
        [_, extra, ..] if extra.parse::<IpAddr>().is_ok() => {
            return Err(usage("addresses come before the container"));
        }
        [first, extra, ..] => {
            return Err(usage(&format!("'{first}' and '{extra}' cannot both be the container")));
        }
    };
    let name = parsed.text("h").filter(|name| !name.is_empty()).map(str::to_owned);
    if container.is_none() && addresses.is_empty() {
        return Err(usage("neither an address nor a container is given"));
    }
    if container.is_none() && name.is_none() && adds {
        return Err(usage("an address without a container needs a name, as -h db.weave.local"));
    }
    let addresses = addresses.iter().filter_map(|arg| arg.parse().ok()).collect();
    Ok(Call { addresses, container, name })
}

pub(crate) fn add(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(parsed, true)?;
    let client = daemon::client(parsed, env);
    let domain = domain(&client, parsed, env)?;
    let name = call.name.as_deref().map(|name| check_name(name, &domain)).transpose()?;
    let (id, addresses, target) = owner(&call, parsed, env)?;
    let own = target.as_ref().and_then(own_name);
    let name = match name.map(str::to_owned).or(own) {
        Some(name) if is_within(&name, &domain) => name,
        Some(name) => {
            return done(&format!("the container's own name {name} is not in {domain}"));
        }
        None => return done("the container has no name in a domain of its own"),
    };
    let mut form = vec![("fqdn", name.as_str())];
    if target.is_some() {
        form.push(("check-alive", "true"));
    }
    for addr in addresses {
        let answer = client.request("PUT", &path(&id, addr), &[], &form);
        answer.and_then(|answer| answer.accept()).map_err(|e| daemon::explain(e, parsed, env))?;
    }
    Ok(())
}

/// As in 2.8.1 a container without a name is no error.
fn done(why: &str) -> Result<(), Failure> {
    notice(format_args!("Notice: no name is registered, {why}; -h gives one"));
    Ok(())
}

pub(crate) fn remove(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let call = call(parsed, false)?;
    let client = daemon::client(parsed, env);
    domain(&client, parsed, env)?;
    let query = call.name.as_deref().map(|name| format!("?fqdn={}", encode(name))).unwrap_or_default();
    let (id, addresses, _) = owner(&call, parsed, env)?;
    for addr in addresses {
        let answer = client.delete(&format!("{}{query}", path(&id, addr)));
        answer.map_err(|e| daemon::explain(e, parsed, env))?;
    }
    Ok(())
}

fn path(id: &str, addr: Ipv4Addr) -> String {
    format!("/name/{}/{addr}", encode(id))
}

/// Under which id the names are kept, and their addresses: those given, else those of the container.
fn owner(
    call: &Call,
    parsed: &Parsed,
    env: &dyn Env,
) -> Result<(String, Vec<Ipv4Addr>, Option<Target>), Failure> {
    let Some(container) = &call.container else {
        return Ok((EXTERN.to_owned(), call.addresses.clone(), None));
    };
    let target = find(container, env)?;
    let mut addresses = call.addresses.clone();
    if addresses.is_empty() {
        let mut ports = ps::scan(&options::bridge(parsed, env))?;
        let attached = ports.in_namespace(&target.ns)?.into_iter().flat_map(|port| port.addresses);
        addresses = attached.filter_map(|cidr| ipv4(cidr.addr())).collect();
        if addresses.is_empty() {
            let hint = "attach it first, or name an address";
            return Err(Failure::new(1, format_args!("{container} has no address in the network; {hint}")));
        }
    }
    Ok((id_of(&target), addresses, Some(target)))
}

fn ipv4(addr: IpAddr) -> Option<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Some(addr),
        IpAddr::V6(_) => None,
    }
}

/// The name that a container of Docker has from its configuration.
pub(crate) fn own_name(target: &Target) -> Option<String> {
    match &target.kind {
        Kind::Docker(info) | Kind::Podman(info) => info.dns_name().filter(|name| is_host_name(name)),
        _ => None,
    }
}

/// The domain of the daemon, which has to serve names.
pub(crate) fn domain(client: &Client, parsed: &Parsed, env: &dyn Env) -> Result<String, Failure> {
    match client.get("/domain") {
        Ok(domain) => Ok(domain),
        Err(ClientError::NotFound) => {
            Err(Failure::new(1, "this peer has no names; it was launched with --no-dns"))
        }
        Err(e) => Err(daemon::explain(e, parsed, env)),
    }
}

/// Whether a text can be the name of a host.
fn is_host_name(name: &str) -> bool {
    let plain = name.strip_suffix('.').unwrap_or(name);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '\\' && c != '/')
    };
    plain.len() <= 253 && plain.split('.').all(label)
}

/// A name that somebody gives has to be one that is served.
pub(crate) fn check_name<'a>(name: &'a str, domain: &str) -> Result<&'a str, Failure> {
    if !is_host_name(name) {
        return Err(Failure::new(1, format_args!("'{name}' is no name of a host")));
    }
    if !is_within(name, domain) {
        return Err(Failure::new(
            1,
            format_args!(
                "{name} is not in the domain {domain}; a name is as {}.{domain}",
                name.split('.').next().unwrap_or("web")
            ),
        ));
    }
    Ok(name)
}

/// Whether a name is in the domain, whatever its case.
fn is_within(name: &str, domain: &str) -> bool {
    let lower = |text: &str| text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let (name, domain) = (lower(name), lower(domain));
    name == domain || name.strip_suffix(&domain).is_some_and(|rest| rest.ends_with('.'))
}

pub(crate) fn lookup(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let [name] = parsed.rest.as_slice() else { return Err(Failure::new(1, &parsed.usage)) };
    let server = match env.var("DNS_ADDRESS").filter(|addr| !addr.is_empty()) {
        Some(text) => address(&text)
            .ok_or_else(|| Failure::new(1, format_args!("DNS_ADDRESS: {text:?} is not an IP address")))?,
        None => {
            let client = daemon::client(parsed, env);
            domain(&client, parsed, env)?;
            let text = client.get("/dns-address-port").map_err(|e| daemon::explain(e, parsed, env))?;
            address(&text).ok_or_else(|| Failure::new(1, format_args!("{text:?} is not an address")))?
        }
    };
    let addresses = query::addresses(reachable(server), name).map_err(|e| Failure::new(1, e))?;
    if addresses.is_empty() {
        // Scripts of 2.8.1 expect no output and no failure.
        notice(format_args!("no address is known of {name}"));
    }
    print(&addresses.iter().map(|addr| format!("{addr}\n")).collect::<String>())
}

/// An address with or without a port.
fn address(text: &str) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, PORT)))
}

/// A server that listens on all addresses is asked on this host.
fn reachable(server: SocketAddr) -> SocketAddr {
    if server.ip().is_unspecified() {
        let local = if server.is_ipv4() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
        };
        return SocketAddr::new(local, server.port());
    }
    server
}

/// Without a final newline, as 2.8.1. Nothing if the daemon has no names.
pub(crate) fn args(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    match server(parsed, env)? {
        Some(DnsServer { address, domain }) => print(&format!("--dns={address} --dns-search={domain}")),
        None => Ok(()),
    }
}

/// The server that containers are to ask.
#[derive(Debug)]
pub(crate) struct DnsServer {
    pub(crate) address: String,
    /// With a final dot, as it is configured.
    pub(crate) domain: String,
}

/// `None` if the daemon has no names. While none runs, its usual address and domain.
pub(crate) fn server(parsed: &Parsed, env: &dyn Env) -> Result<Option<DnsServer>, Failure> {
    let client = daemon::client(parsed, env);
    let given = |name: &str| env.var(name).filter(|value| !value.is_empty());
    let (address, domain) = match client.get("/domain") {
        Err(ClientError::NotFound) => return Ok(None),
        Err(ClientError::Connect { .. }) => (None, None),
        Err(e) => return Err(daemon::explain(e, parsed, env)),
        Ok(domain) => {
            let address = client.get("/dns-address").map_err(|e| daemon::explain(e, parsed, env));
            (Some(given("DNS_ADDRESS").map_or_else(|| address, Ok)?), Some(domain))
        }
    };
    let domain = domain.or_else(|| given("DNS_DOMAIN")).unwrap_or_else(|| DEFAULT_DOMAIN.to_owned());
    let address = match address.or_else(|| given("DNS_ADDRESS")) {
        Some(address) => address,
        None => docker_bridge::docker_bridge_address(env)?.to_string(),
    };
    Ok(Some(DnsServer { address, domain }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_domain() {
        for (name, good) in [
            ("web.weave.local", true),
            ("Web.Weave.LOCAL.", true),
            ("a.b.weave.local", true),
            ("web", false),
            ("web.example.com", false),
            ("aweave.local", false),
            ("a..weave.local", false),
            ("a b.weave.local", false),
            ("", false),
        ] {
            assert_eq!(check_name(name, "weave.local.").is_ok(), good, "{name}");
        }
        let error = check_name("web.example.com", "weave.local.").unwrap_err().message;
        assert_eq!(error, "web.example.com is not in the domain weave.local.; a name is as web.weave.local.");
    }

    #[test]
    fn addresses_of_servers() {
        assert_eq!(address("10.0.0.1"), Some(SocketAddr::from(([10, 0, 0, 1], 53))));
        assert_eq!(address("10.0.0.1:5353"), Some(SocketAddr::from(([10, 0, 0, 1], 5353))));
        assert_eq!(address("::1").map(|a| a.to_string()).as_deref(), Some("[::1]:53"));
        assert_eq!(address("h1"), None);
        assert_eq!(reachable(SocketAddr::from(([0, 0, 0, 0], 53))), SocketAddr::from(([127, 0, 0, 1], 53)));
    }
}
