//! What shells and `docker run` need to know of proxy and names: `env`, `config`, `dns-args` (docs/spec/cli.md 2.2); and the
//! address of Docker's bridge, on which much of it rests.

use std::net::{IpAddr, Ipv4Addr};

use weave_api::ClientError;
use weave_host::Netlink;

use crate::args::Parsed;
use crate::options::Env;
use crate::{Failure, notice, print, query};

/// Docker's bridge unless `DOCKER_BRIDGE` names another.
pub(crate) const DOCKER_BRIDGE: &str = "docker0";

/// `export DOCKER_HOST=... ORIG_DOCKER_HOST=...` for `eval`; nothing where there is no proxy.
pub(crate) fn env(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    if parsed.flag("restore") {
        return match env.var("ORIG_DOCKER_HOST") {
            Some(original) => print(&format!("DOCKER_HOST={original}\n")),
            None => Err(Failure::new(1, "Nothing to restore: ORIG_DOCKER_HOST is not set.")),
        };
    }
    match proxy_address(parsed, env) {
        Ok(Some(address)) => print(&exports(&address, env.var("DOCKER_HOST").as_deref())),
        Ok(None) => Ok(()),
        // `eval $(weave env)` in a login script must not fail because weave is down.
        Err(failure) => {
            notice(failure.message);
            Ok(())
        }
    }
}

fn exports(address: &str, before: Option<&str>) -> String {
    match before {
        Some(before) if before == address => format!("export DOCKER_HOST={address}\n"),
        before => {
            format!("export DOCKER_HOST={address} ORIG_DOCKER_HOST={}\n", before.unwrap_or_default())
        }
    }
}

/// `-H=...` for `docker $(weave config) run ...`.
pub(crate) fn config(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    match proxy_address(parsed, env)? {
        Some(address) => print(&format!("-H={address}\n")),
        None => Err(Failure::new(1, "the Docker API proxy is not running")),
    }
}

/// Where Docker clients of this host reach the proxy; `None` without one.
pub(crate) fn proxy_address(parsed: &Parsed, env: &dyn Env) -> Result<Option<String>, Failure> {
    let list = match query::client(parsed, env).get("/proxyaddrs") {
        Ok(list) => list,
        Err(ClientError::NotFound) => return Ok(None),
        Err(e) => return Err(query::explain(e, parsed, env)),
    };
    let first = list.lines().next().filter(|l| !l.is_empty());
    Ok(first.map(|address| address.replace("0.0.0.0", &docker_host(env))))
}

/// Where Docker is, seen from its clients.
fn docker_host(env: &dyn Env) -> String {
    let set = |name: &str| env.var(name).filter(|v| !v.is_empty());
    let of_docker = || {
        let host = set("DOCKER_HOST")?;
        let host = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://"))?.to_owned();
        let host = host.rsplit_once(':').map_or(host.clone(), |(h, _)| h.to_owned());
        Some(host).filter(|h| !h.is_empty())
    };
    set("PROXY_HOST").or_else(of_docker).unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// `--dns=... --dns-search=...` without final newline; nothing where names are off. Arguments are those of `docker run`,
/// as in 1.x, and do not matter since 2.0.
pub(crate) fn dns_args(parsed: &Parsed, env: &dyn Env) -> Result<(), Failure> {
    let client = query::client(parsed, env);
    let (domain, address) = match client.get("/domain") {
        Ok(domain) => (domain, client.get("/dns-address").map_err(|e| query::explain(e, parsed, env))?),
        Err(ClientError::NotFound) => return Ok(()),
        // Containers may be made before weave is there; this is what it will serve.
        Err(ClientError::Connect { .. }) => {
            let domain = env.var("DNS_DOMAIN").filter(|d| !d.is_empty());
            let domain = domain.unwrap_or_else(|| "weave.local.".to_owned());
            (domain, docker_bridge_address(env)?.to_string())
        }
        Err(e) => return Err(query::explain(e, parsed, env)),
    };
    print(&format!("--dns={} --dns-search={}", address.trim(), domain.trim()))
}

/// `weave docker-bridge-ip`: no final newline.
pub(crate) fn docker_bridge_ip(env: &dyn Env) -> Result<(), Failure> {
    print(&docker_bridge_address(env)?.to_string())
}

fn docker_bridge_address(env: &dyn Env) -> Result<IpAddr, Failure> {
    if let Some(known) = env.var("DOCKER_BRIDGE_IP").filter(|a| !a.is_empty()) {
        return known
            .parse()
            .map_err(|_| Failure::new(1, format_args!("DOCKER_BRIDGE_IP: {known:?} is not an IP address")));
    }
    let bridge = env.var("DOCKER_BRIDGE").filter(|b| !b.is_empty());
    let bridge = bridge.unwrap_or_else(|| DOCKER_BRIDGE.to_owned());
    Ok(IpAddr::V4(first_address(&bridge)?))
}

/// The first IPv4 address of a device.
pub(crate) fn first_address(device: &str) -> Result<Ipv4Addr, Failure> {
    let mut netlink = Netlink::open()?;
    let Some(link) = netlink.link(device)? else {
        return Err(Failure::new(1, format_args!("Link not found: {device:?}")));
    };
    let addresses = netlink.addresses_of(&link)?;
    let v4 = addresses.iter().find_map(|a| match a.addr() {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    });
    v4.ok_or_else(|| Failure::new(1, format_args!("device {device} has no IPv4 address")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn lines_for_a_shell() {
        let proxy = "unix:///var/run/weave/weave.sock";
        assert_eq!(exports(proxy, None), format!("export DOCKER_HOST={proxy} ORIG_DOCKER_HOST=\n"));
        assert_eq!(
            exports(proxy, Some("tcp://h:1")),
            format!("export DOCKER_HOST={proxy} ORIG_DOCKER_HOST=tcp://h:1\n")
        );
        assert_eq!(exports(proxy, Some(proxy)), format!("export DOCKER_HOST={proxy}\n"));
    }

    #[test]
    fn the_host_of_docker() {
        for (env, host) in [
            (&[][..], "127.0.0.1"),
            (&[("DOCKER_HOST", "tcp://10.0.0.1:2375")], "10.0.0.1"),
            (&[("DOCKER_HOST", "unix:///x.sock")], "127.0.0.1"),
            (&[("PROXY_HOST", "h"), ("DOCKER_HOST", "tcp://10.0.0.1:2375")], "h"),
        ] {
            let env: BTreeMap<&str, &str> = env.iter().copied().collect();
            assert_eq!(docker_host(&env), host);
        }
    }
}
